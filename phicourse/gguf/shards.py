"""One model in several files: their names, their keys, and which tensor goes where.

Two of llama.cpp's programs write such sets and differ in small things, so a `Split` says whose rules it follows:
its converter's (gguf-py `gguf_writer.py`) or those of llama-gguf-split (`gguf-split.cpp`), both of autumn 2026.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from phicourse.errors import GGUFError
from phicourse.gguf.types import ValueType

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
MAX_SHARDS = (1 << 16) - 1  # split.count is a UINT16
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_PADDING = 32  # of a tensor; llama-gguf-split counts it so, whatever general.alignment says

# key, value, type of its number
SplitPair = tuple[str, int, ValueType]


@dataclass(frozen=True)
class Split:
    """When a new file of a set begins.

    max_tensors         tensors in a file at most; None: any number
    max_bytes           bytes of tensors in a file at most; None: any number. A larger tensor has a file of its own
    keys_first          the first file has keys only
    like_gguf_split     as llama-gguf-split does: the padding of tensors counts, `split.count` stands last, and a
                        set of one file has a number in its name, too; else as the converter does
    """

    max_tensors: int | None = None
    max_bytes: int | None = None
    keys_first: bool = False
    like_gguf_split: bool = False

    def counts(self, sizes: Iterable[int]) -> list[int]:
        """Return how many tensors each file has, of tensors with these sizes in bytes, which keep their order."""
        counts, n_bytes = [0, 0] if self.keys_first else [0], 0
        for size in sizes:
            size += -size % _PADDING if self.like_gguf_split else 0
            if counts[-1] and self._is_full(counts[-1], n_bytes + size):
                counts.append(0)
                n_bytes = 0
            counts[-1] += 1
            n_bytes += size
        if len(counts) > MAX_SHARDS:
            raise GGUFError(f"{len(counts):,} files are too many for a set, which has {MAX_SHARDS:,} at most")
        return counts

    def _is_full(self, n_tensors: int, n_bytes: int) -> bool:
        """Whether a file of n tensors may not have another, with which it has n_bytes."""
        return (self.max_tensors is not None and n_tensors >= self.max_tensors) or (
            self.max_bytes is not None and n_bytes > self.max_bytes
        )

    def paths(self, path: Path, n_shards: int) -> list[Path]:
        """Name the files of a set; one alone keeps the name that it was given."""
        if n_shards == 1 and not self.like_gguf_split:
            return [path]
        return [shard_path(path, i, n_shards) for i in range(n_shards)]

    def pairs(self, i: int, n_shards: int, n_tensors: int) -> list[SplitPair]:
        """List the keys that file i (from 0) has beside those of the model, in their order."""
        if n_shards == 1 and not self.like_gguf_split:
            return []
        no, count, total = (
            ("split.no", i, ValueType.UINT16),
            ("split.count", n_shards, ValueType.UINT16),
            ("split.tensors.count", n_tensors, ValueType.INT32),
        )
        return [no, total, count] if self.like_gguf_split else [no, count, total]


def shard_path(path: Path, i: int, n_shards: int) -> Path:
    """Name file i (from 0) of the set that would be `path` as one file: `model-00001-of-00003.gguf`."""
    return path.with_name(f"{path.name.removesuffix('.gguf')}-{i + 1:05d}-of-{n_shards:05d}.gguf")


def whole_path(first: Path, n_shards: int) -> Path:
    """Return the path of a set as one file from that of its first shard: the way back from `shard_path`.

    Raises GGUFError where the name is not that of the first of n files.
    """
    match = _NAME.fullmatch(first.name)
    if match is None or int(match["number"]) != 1 or int(match["count"]) != n_shards:
        raise GGUFError(f"{first}: one of {n_shards} files; give the first, …-00001-of-{n_shards:05d}.gguf")
    return first.with_name(match["stem"] + ".gguf")
