"""A checkpoint folder as one thing: its config and all its tensors, whichever shard they are in."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint.config import PhiConfig, read_config
from phicourse.checkpoint.json_file import read_json_object
from phicourse.checkpoint.safetensors import SafeTensor, SafetensorsFile
from phicourse.errors import CheckpointError
from phicourse.gguf.layers import Tensor, layer_table
from phicourse.gguf.types import bfloat16_to_float32

INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
PICKLED = ("*.bin", "*.pt", "*.pth")
DESCRIPTIONS = ("*.json", "*.model", "*.jinja", "README.md")
FLOATS = ("F64", "F32", "F16", "BF16")
RESUME = "incomplete download? (phicourse download resumes it)"


class Checkpoint:
    """A Hugging Face folder: config.json and one or more safetensors files, memory-mapped.

    folder, config, raw_config   where it is, its checked config, and config.json as it is
    shards                       the safetensors files, sorted by name
    tensors                      name → (file, entry); files in order, names sorted within a file
    """

    def __init__(
        self, folder: Path, config: PhiConfig, raw_config: dict[str, Any], shards: list[SafetensorsFile]
    ) -> None:
        self.folder = folder
        self.config = config
        self.raw_config = raw_config
        self.shards = shards
        self.tensors = _collect(shards)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a folder; nothing but the headers is read.

        raises   CheckpointError where something is missing, broken, given twice, or stored as pickle
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: not a folder; a checkpoint is a folder with config.json")
        config, raw_config = read_config(folder)
        names, index = _find_shards(folder)
        checkpoint = cls(folder, config, raw_config, [SafetensorsFile.open(folder / name) for name in names])
        checkpoint._check_index(index)
        return checkpoint

    def data(self, name: str) -> NDArray[Any]:
        """Return a tensor as it is stored: a read-only view of the file, BF16 as its 16 bits (<u2)."""
        return self._entry(name)[0].data(name)

    def as_float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Widen a tensor, or some of its rows, to float32.

        returns  float32 of the tensor's shape (with fewer rows); a view of the file where it stores float32
        """
        file, tensor = self._entry(name)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{file.path}: tensor {name} is {tensor.dtype}, not a float type")
        stored = file.data(name) if rows is None else file.data(name)[rows]
        if tensor.dtype == "BF16":
            return bfloat16_to_float32(stored)
        return stored.astype(np.float32, copy=False)

    def file(self, name: str) -> Path | None:
        """Return the path of a file of the folder, such as tokenizer.json, or None where there is none."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def inputs(self) -> list[Path]:
        """All files that the checkpoint consists of; others may lie beside them."""
        described = [path for pattern in DESCRIPTIONS for path in self.folder.glob(pattern)]
        return [*(shard.path for shard in self.shards), *described]

    @property
    def n_weights(self) -> int:
        """How many numbers all tensors have together."""
        return sum(int(np.prod(tensor.shape, dtype=object)) for _, tensor in self.tensors.values())

    def _entry(self, name: str) -> tuple[SafetensorsFile, SafeTensor]:
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: has no tensor {name}")
        return self.tensors[name]

    def _check_index(self, index: dict[str, str]) -> None:
        """Check that each tensor of the index is in the file that it says, and that no other is there."""
        for name, shard in index.items():
            if name not in self.tensors or self.tensors[name][0].path.name != shard:
                raise CheckpointError(
                    f"{self.folder / shard}: tensor {name[:200]}, named in {INDEX}, is not there"
                )
        extra = next((name for name in self.tensors if index and name not in index), None)
        if extra is not None:
            raise CheckpointError(f"{self.folder / INDEX}: does not name tensor {extra[:200]} of the files")

    def __repr__(self) -> str:
        return f"Checkpoint({self.folder.name!r}, {len(self.tensors)} tensors, {self.n_weights:,} weights)"

    def _repr_html_(self) -> str:
        """Show the checkpoint in a notebook as a table of its tensors: equal layers are one row."""
        files = f"{len(self.shards)} files" if len(self.shards) > 1 else self.shards[0].path.name
        about = f"{len(self.tensors)} tensors, {self.n_weights:,} weights, in {files}"
        tensors = [Tensor(t.name, t.shape, t.dtype, t.nbytes) for _, t in self.tensors.values()]
        return layer_table(self.folder.resolve().name, about, tensors)


def _collect(shards: Iterable[SafetensorsFile]) -> dict[str, tuple[SafetensorsFile, SafeTensor]]:
    tensors: dict[str, tuple[SafetensorsFile, SafeTensor]] = {}
    for shard in shards:
        for name, tensor in shard.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{shard.path}: tensor {name} is in {tensors[name][0].path.name} too")
            tensors[name] = (shard, tensor)
    return tensors


def _find_shards(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Find the weight files, sorted, and the index from tensor name to file (empty where there is none)."""
    present = sorted(path.name for path in folder.glob("model*.safetensors"))
    if (folder / INDEX).is_file():
        index = _read_index(folder / INDEX)
        names = sorted(set(index.values()))
        _check_complete(folder, names)
        unnamed = next((name for name in present if name not in names), None)
        if unnamed is not None:
            raise CheckpointError(f"{folder / unnamed}: not named in {INDEX}; remove one of the two")
        return names, index
    if not present:
        raise _no_weights(folder)
    _check_complete(folder, _whole_set(present))
    return present, {}


def _read_index(path: Path) -> dict[str, str]:
    index = read_json_object(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path}: weight_map must be an object that names a file for each tensor")
    for name, shard in index.items():
        # A shard is a file of this folder: "../x" or an absolute path would reach out of it.
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{path}: tensor {name[:200]!r} has no plain file name but {str(shard)[:200]!r}"
            )
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {shard[:200]!r} is not a safetensors file")
    return index


def _whole_set(present: list[str]) -> list[str]:
    """Name all shards of the set that the present ones are of: 'model-00001-of-00003' means three files."""
    counts = {match[2] for name in present if (match := SHARD_NAME.fullmatch(name))}
    if len(counts) > 1 or (counts and any(not SHARD_NAME.fullmatch(name) for name in present)):
        raise CheckpointError(f"weight files of different sets in one folder: {', '.join(present)[:400]}")
    return [f"model-{i:05}-of-{count}.safetensors" for count in counts for i in range(1, int(count) + 1)]


def _check_complete(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder / missing[0]}{others}: missing: {RESUME}")


def _no_weights(folder: Path) -> CheckpointError:
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if not pickled:
        return CheckpointError(f"{folder}: no model*.safetensors: {RESUME}")
    return CheckpointError(
        f"{folder}: has its weights only as {pickled[0]}, a pickle, which can run code when opened; if you"
        " trust it, let transformers write safetensors:"
        " AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
    )
