"""Cuts a GGUF file into a set of smaller ones, and puts a set together again.

Keys and tensors are copied as they are, in pieces of a few megabytes. The sets are those of llama-gguf-split
(llama.cpp, autumn 2026), byte for byte, where the tensors are aligned to 32 bytes; it writes files that cannot be
read where they are not.
"""

from collections.abc import Iterator
from pathlib import Path

from phicourse.errors import GGUFError
from phicourse.gguf.reader import GGUFFile, TensorInfo
from phicourse.gguf.shards import SPLIT_KEYS, Split, whole_path
from phicourse.gguf.types import ValueType
from phicourse.gguf.writer import GGUFWriter
from phicourse.progress_bar import byte_bar

CHUNK = 1 << 22  # bytes that are copied at once
MAX_TENSORS = 128  # in a file, where nothing else is asked for; llama-gguf-split's number


def split(
    source: Path | str,
    out: Path | str | None = None,
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    keys_first: bool = False,
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Cut a file, or the whole set that begins with it, into a set of files, and return their paths.

    out          what the set would be called as one file; None: as the source. `model.gguf` gives
                 `model-00001-of-00003.gguf` and so on
    max_tensors, max_bytes, keys_first   see `Split`; 128 tensors where neither number is given
    force        replace files that are there
    raises       GGUFError, one line
    """
    if max_tensors is None and max_bytes is None:
        max_tensors = MAX_TENSORS
    rules = Split(max_tensors, max_bytes, keys_first, like_gguf_split=True)
    with GGUFFile.open(source) as file:
        target = Path(out) if out is not None else _whole(file)
        with GGUFWriter(target, force=force, inputs=file.paths, split=rules) as writer:
            _add_pairs(file, writer)
            _copy_tensors(file, writer, progress)
    return writer.paths


def merge(
    first: Path | str,
    out: Path | str | None = None,
    *,
    compat: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Put a set of files together, and return the path of the file.

    first    the first file of the set; the others lie beside it
    out      the new file; None: beside the set, named as it without the numbers
    compat   keep the keys split.no, split.tensors.count and split.count, with 0 for this one: the bytes of
             llama-gguf-split. Without, the file is the one that was cut, byte for byte
    force    replace a file that is there
    raises   GGUFError, one line: for a file that is not the first of a set, or that lacks others
    """
    with GGUFFile.open(first) as file:
        if "split.count" not in file.metadata or file.get("split.count", int) == 0:
            raise GGUFError(
                f"{first}: is a whole model, not the first file of a set; there is nothing to merge"
            )
        target = Path(out) if out is not None else _whole(file)
        with GGUFWriter(target, force=force, inputs=file.paths) as writer:
            _add_pairs(file, writer, but=("split.count",) if compat else SPLIT_KEYS)
            if compat:
                writer.add("split.count", 0, ValueType.UINT16)
            _copy_tensors(file, writer, progress)
    return target


def _whole(file: GGUFFile) -> Path:
    """Return what a model is called as one file."""
    n_shards = file.get("split.count", int, 0)
    return whole_path(file.path, n_shards) if n_shards else file.path


def _add_pairs(file: GGUFFile, writer: GGUFWriter, but: tuple[str, ...] = SPLIT_KEYS) -> None:
    """Take over all keys but those of a set."""
    for key, value in file.metadata.items():
        if key not in but:
            writer.add(key, value.value, value.type, value.element)


def _copy_tensors(file: GGUFFile, writer: GGUFWriter, progress: bool) -> None:
    for tensor in file.tensors.values():
        writer.declare(tensor.name, tensor.shape, tensor.type)
    with byte_bar(sum(tensor.nbytes for tensor in file.tensors.values()), progress) as bar:
        for tensor in file.tensors.values():
            for chunk in _chunks(file, tensor):
                writer.write(tensor.name, chunk)
                bar.update(len(chunk))


def _chunks(file: GGUFFile, tensor: TensorInfo) -> Iterator[bytes]:
    """Read a tensor's bytes, some at a time. The pages of a memory map would count as memory of this process."""
    path, left = file.paths[tensor.shard], tensor.nbytes
    with path.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        while left:
            chunk = stream.read(min(left, CHUNK))
            if not chunk:
                raise GGUFError(f"{path}: ended while {tensor.name!r} was read; did the file change?")
            left -= len(chunk)
            yield chunk
