"""Safetensors files, memory-mapped: a JSON header that says where each tensor lies, then the bytes.

    8 bytes     length of the header, little-endian
    header      JSON: {"name": {"dtype": "BF16", "shape": [3072, 8192], "data_offsets": [begin, end]}, …}
    the rest    the tensors, without gaps; offsets count from here

A file is untrusted: every length, offset, dtype and shape is checked against its size before it is used.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint.json_file import parse_json_object
from phicourse.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # bytes; the limit of the reference implementation
MAX_DIMENSIONS = 8
# NumPy has no bfloat16 and no 8-bit floats: they are handed out as the unsigned integers of their bits.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class SafeTensor:
    """Where one tensor lies: `offset` in bytes from the start of the file, shape with rows first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """A checked, memory-mapped safetensors file; `tensors` is sorted by name.

    >>> shard = SafetensorsFile.open("model.safetensors")  # doctest: +SKIP
    >>> shard.data("model.norm.weight").shape  # doctest: +SKIP
    (3072,)
    """

    def __init__(self, path: Path, content: NDArray[np.uint8], tensors: dict[str, SafeTensor]) -> None:
        self.path = path
        self.tensors = tensors
        self._content = content

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Map a file and check its header; CheckpointError says what is wrong and where."""
        path = Path(path)
        content = _map(path)
        return cls(path, content, _read_header(path, content))

    def data(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of the file, in the dtype of `DTYPES` (BF16 as its bits)."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: has no tensor {name}")
        tensor = self.tensors[name]
        raw = self._content[tensor.offset : tensor.offset + tensor.nbytes]
        return raw.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def __repr__(self) -> str:
        return f"SafetensorsFile({str(self.path)!r}, {len(self.tensors)} tensors)"


def _map(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        raise CheckpointError(f"{path}: not found, or not a file")
    try:
        if path.stat().st_size < 8:
            raise CheckpointError(f"{path}: only {path.stat().st_size} bytes, no safetensors file")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _read_header(path: Path, content: NDArray[np.uint8]) -> dict[str, SafeTensor]:
    """Read all tensors of the header, sorted by name; together they cover the rest of the file exactly."""
    (length,) = struct.unpack("<Q", content[:8].tobytes())
    if length > HEADER_LIMIT:
        raise CheckpointError(f"{path}: header of {length:,} bytes, above the limit of {HEADER_LIMIT:,}")
    if length > len(content) - 8:
        raise CheckpointError(
            f"{path}: header ends at byte {8 + length:,}, the file at {len(content):,}: incomplete download?"
            " (phicourse download resumes it)"
        )
    header = parse_json_object(content[8 : 8 + length].tobytes(), f"{path}: header")
    header.pop("__metadata__", None)
    tensors = [_read_entry(path, name, header[name], 8 + length) for name in sorted(header)]
    _check_layout(path, tensors, 8 + length, len(content))
    return {tensor.name: tensor for tensor in tensors}


def _read_entry(path: Path, name: str, entry: object, data_start: int) -> SafeTensor:
    """Check one entry of the header by itself: known dtype, possible shape, as many bytes as they need."""
    where = f"{path}: tensor {name[:200]!r}"
    if not name.isprintable():
        raise CheckpointError(f"{where}: its name is not printable text")
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: its entry must be an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r}, known are {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be [begin, end]")
    needed, given = prod(shape) * np.dtype(DTYPES[dtype]).itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise CheckpointError(f"{where}: {dtype} {shape} needs {needed:,} bytes, data_offsets give {given:,}")
    return SafeTensor(name, dtype, tuple(shape), data_start + offsets[0], given)


def _are_counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_layout(path: Path, tensors: list[SafeTensor], start: int, file_size: int) -> None:
    """Check that the tensors follow each other without gap or overlap, up to the last byte of the file."""
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset + tensor.nbytes > file_size:
            raise CheckpointError(
                f"{path}: tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes:,}, the file at"
                f" {file_size:,}: incomplete download? (phicourse download resumes it)"
            )
        if tensor.offset != end:
            fault = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {tensor.name} at byte {tensor.offset:,} {fault} ({end:,})")
        end += tensor.nbytes
    if end != file_size:
        raise CheckpointError(f"{path}: the last tensor ends at byte {end:,}, the file at {file_size:,}")
