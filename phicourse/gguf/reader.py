"""Reads GGUF files and trusts nothing in them.

Every count, length, offset, type and shape is held against the bytes that are there before anything is
allocated. What passes can be sliced without further thought; what does not gives one line with the offset.
"""

import mmap
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GGUFError
from phicourse.gguf.mapping import read_ahead
from phicourse.gguf.shards import SPLIT_KEYS, shard_path, whole_path
from phicourse.gguf.types import NUMBER_DTYPES, TensorType, Value, ValueType, tensor_type

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 63  # ggml keeps 64 bytes for a tensor's name, the last one a zero
# Real headers have 30 MB at most, nearly all of it vocabulary. The limit keeps a hostile 40 GB file
# from filling the memory with 5,000,000,000 empty strings.
MAX_HEADER_BYTES = 1 << 28
_MISSING: Any = object()
_FOLDER = "is a folder, not a GGUF file; phicourse convert makes one of a checkpoint folder"

T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    shape   NumPy order: rows first, the contiguous dimension last (the reverse of what the file stores)
    offset  from the start of its file
    shard   which file of a split set has it; 0 where there is only one
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int
    shard: int = 0

    @property
    def n_weights(self) -> int:
        """How many numbers the tensor has."""
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """How many rows: the product of all dimensions but the last."""
        return prod(self.shape[:-1])


class Cursor:
    """A position in the header that cannot leave the file."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.path = path
        self.at = 0

    def fail(self, what: str, at: int | None = None) -> GGUFError:
        """Build the error for byte `at` (default: here)."""
        return GGUFError(f"{self.path}: byte {self.at if at is None else at:,}: {what}")

    def take(self, n_bytes: int, what: str) -> memoryview:
        """Return the next n bytes and step over them."""
        if n_bytes > self.end - self.at:
            raise self.fail(f"{what} needs {n_bytes:,} bytes, {self._left()}")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def _left(self) -> str:
        if self.end < len(self.data):
            return f"the header may have {self.end:,} in all"
        return f"the file has {self.end - self.at:,} left; incomplete download?"

    def number(self, code: str, what: str) -> Any:
        """Read one little-endian number; `code` as in struct."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code), what))[0]

    def count(self, what: str, min_bytes: int) -> int:
        """Read how many of something follow, each of at least min_bytes."""
        at, n = self.at, int(self.number("Q", f"the count of {what}"))
        if n > (self.end - self.at) // min_bytes:
            raise self.fail(f"{n:,} {what} cannot be in {self.end - self.at:,} bytes", at)
        return n

    def string(self, what: str) -> str:
        """Read a length and that many bytes of UTF-8."""
        at, n = self.at, int(self.number("Q", f"the length of {what}"))
        try:
            return str(self.take(n, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 ({error.reason})", at) from None

    def name(self, what: str) -> str:
        """Read a string that names something: not empty, no zero byte."""
        at, name = self.at, self.string(what)
        if not name or "\0" in name:
            raise self.fail(f"{what} is {'empty' if not name else 'cut by a zero byte'}", at)
        return name

    def value_type(self, what: str) -> ValueType:
        """Read the type of a value."""
        at, id = self.at, self.number("i", f"the type of {what}")
        try:
            return ValueType(id)
        except ValueError:
            raise self.fail(f"{what} has the unknown value type {id}", at) from None

    def value(self, what: str) -> Value:
        """Read a value with its type."""
        type = self.value_type(what)
        if type is ValueType.ARRAY:
            return self._array(what)
        if type is ValueType.STRING:
            return Value(type, self.string(what))
        dtype = np.dtype(NUMBER_DTYPES[type])
        number = np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        return Value(type, bool(number) if type is ValueType.BOOL else number)

    def _array(self, what: str) -> Value:
        at, element = self.at, self.value_type(f"the elements of {what}")
        if element is ValueType.ARRAY:
            raise self.fail(f"{what} is an array of arrays, which GGUF readers do not take", at)
        if element is ValueType.STRING:
            return Value(ValueType.ARRAY, self._strings(what), element)
        dtype = np.dtype(NUMBER_DTYPES[element])
        n = self.count(f"numbers in {what}", min_bytes=dtype.itemsize)
        numbers = np.frombuffer(self.take(n * dtype.itemsize, what), dtype).copy()
        numbers = numbers != 0 if element is ValueType.BOOL else numbers
        numbers.flags.writeable = False
        return Value(ValueType.ARRAY, numbers, element)

    def _strings(self, what: str) -> list[str]:
        """Read a count and that many strings; vocabularies have 200,000, so good ones go the short way."""
        n = self.count(f"strings in {what}", min_bytes=8)
        data, at, end, length_at = self.data, self.at, self.end, struct.Struct("<Q").unpack_from
        strings: list[str] = []
        for i in range(n):
            length = length_at(data, at)[0] if end - at >= 8 else end
            try:
                if length > end - at - 8:
                    raise ValueError
                strings.append(str(data[at + 8 : at + 8 + length], "utf-8"))
            except ValueError:  # UnicodeDecodeError is one too
                self.at = at
                self.string(f"string {i} of {what}")
                raise
            at += 8 + length
        self.at = at
        return strings


@dataclass(frozen=True)
class Header:
    """What stands before the weights; the tensors' offsets count from the start of the file."""

    version: int
    alignment: int
    data_offset: int
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def _read_version(cursor: Cursor) -> int:
    if (magic := bytes(cursor.take(4, "the magic number"))) != MAGIC:
        raise cursor.fail(f"no GGUF file: begins with {magic!r}, not with {MAGIC!r}", 0)
    version = int(cursor.number("I", "the version"))
    if version and not version & 0xFFFF:
        raise cursor.fail("big-endian file; write it again with little-endian byte order", 4)
    if version not in (2, VERSION):
        raise cursor.fail(f"GGUF version {version}; readable are 2 and {VERSION}", 4)
    return version


def _read_metadata(cursor: Cursor, n: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for i in range(n):
        at, key = cursor.at, cursor.name(f"key {i}")
        if key in metadata:
            raise cursor.fail(f"the key {key!r} is there twice", at)
        metadata[key] = cursor.value(f"the value of {key!r}")
    return metadata


def _read_alignment(cursor: Cursor, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", Value(ValueType.UINT32, DEFAULT_ALIGNMENT))
    if value.type is not ValueType.UINT32:
        raise GGUFError(f"{cursor.path}: general.alignment is {value.type_name}, it must be UINT32")
    return check_alignment(value.value, str(cursor.path))


def check_alignment(alignment: int, where: str) -> int:
    """Return the alignment if it is a power of two from 1 to 64 KiB, else GGUFError."""
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise GGUFError(f"{where}: general.alignment is {alignment}, no power of two up to {MAX_ALIGNMENT}")
    return int(alignment)


def _read_shape(cursor: Cursor, what: str) -> tuple[int, ...]:
    at, n_dims = cursor.at, int(cursor.number("I", f"the dimensions of {what}"))
    if n_dims > MAX_DIMENSIONS:
        raise cursor.fail(f"{what} has {n_dims} dimensions, the most is {MAX_DIMENSIONS}", at)
    sizes = [int(cursor.number("q", f"the shape of {what}")) for _ in range(n_dims)]
    if any(size < 1 for size in sizes) or prod(sizes) >= 1 << 63:
        raise cursor.fail(f"{what} has the impossible shape {tuple(reversed(sizes))}", at)
    return tuple(reversed(sizes))


def _read_tensor(cursor: Cursor, i: int, expected_offset: int) -> TensorInfo:
    """Read one tensor's entry; its offset, relative to the data, must be the end of the tensor before."""
    at, name = cursor.at, cursor.name(f"the name of tensor {i}")
    what = f"tensor {name!r}"
    if len(name.encode()) > MAX_NAME_BYTES:
        raise cursor.fail(f"the name {name!r} has more than {MAX_NAME_BYTES} bytes", at)
    shape = _read_shape(cursor, what)
    at, type_id = cursor.at, int(cursor.number("i", f"the type of {what}"))
    try:
        type = tensor_type(type_id)
        nbytes = prod(shape[:-1]) * type.row_bytes(shape[-1] if shape else 1)
    except GGUFError as error:
        raise cursor.fail(f"{what}: {error}", at) from None
    at, offset = cursor.at, int(cursor.number("Q", f"the offset of {what}"))
    if offset != expected_offset:
        raise cursor.fail(f"{what} is said to start at {offset:,}, it must be {expected_offset:,}", at)
    return TensorInfo(name, shape, type, offset, nbytes)


def _read_tensors(cursor: Cursor, n: int, alignment: int) -> dict[str, TensorInfo]:
    """Read the entries; offsets are still relative to the data."""
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for i in range(n):
        at = cursor.at
        tensor = _read_tensor(cursor, i, end)
        if tensor.name in tensors:
            raise cursor.fail(f"the tensor {tensor.name!r} is there twice", at)
        tensors[tensor.name] = tensor
        end = tensor.offset + padded(tensor.nbytes, alignment)
    return tensors


def padded(n_bytes: int, alignment: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment


def read_header(cursor: Cursor) -> Header:
    """Read and check everything before the weights; GGUFError says at which byte the file is wrong."""
    data, path = cursor.data, cursor.path
    version = _read_version(cursor)
    n_tensors = cursor.count("tensors", min_bytes=8 + 1 + 4 + 4 + 8)
    n_keys = cursor.count("keys", min_bytes=8 + 1 + 4 + 1)
    metadata = _read_metadata(cursor, n_keys)
    alignment = _read_alignment(cursor, metadata)
    relative = _read_tensors(cursor, n_tensors, alignment)
    start = padded(cursor.at, alignment)
    tensors = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in relative.items()}
    for tensor in tensors.values():
        if tensor.offset + tensor.nbytes > len(data):
            raise GGUFError(
                f"{path}: tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes:,}, "
                f"the file at {len(data):,}; incomplete download?"
            )
    return Header(version, alignment, start, metadata, tensors)


def _map(path: Path) -> NDArray[np.uint8]:
    """Map a file into memory, read-only: (size,) bytes."""
    try:
        if not path.is_file():
            raise GGUFError(f"{path}: {_FOLDER if path.is_dir() else 'there is no such file'}")
        if path.stat().st_size == 0:
            raise GGUFError(f"{path}: the file is empty")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise GGUFError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class GGUFFile:
    """A GGUF file, or a split set of them, mapped into memory and checked.

    >>> with GGUFFile.open("model.gguf") as file:
    ...     layers = file.get("phi3.block_count", int)
    ...     weights = file.blocks("token_embd.weight")  # (rows, n_blocks)
    """

    def __init__(self, path: Path, maps: tuple[NDArray[np.uint8], ...], header: Header) -> None:
        """Use `GGUFFile.open`, which checks."""
        self.path = path
        self.version = header.version
        self.alignment = header.alignment
        self.data_offset = header.data_offset
        self.metadata = header.metadata
        self.tensors = header.tensors
        self.size = sum(len(data) for data in maps)
        self._maps = maps

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Map and check a file; given the first file of a split set, all of it.

        Raises GGUFError with the byte where the file is wrong.
        """
        path = Path(path)
        data = _map(path)
        header = read_header(Cursor(data.data, path))
        file = cls(path, (data,), header)
        n_shards = file.get("split.count", int, 1)
        return cls(path, *_read_shards(file, data, header)) if n_shards > 1 else file

    @property
    def n_shards(self) -> int:
        """How many files the set has."""
        return len(self._maps)

    @property
    def paths(self) -> list[Path]:
        """All files of the set."""
        if self.n_shards < 2:
            return [self.path]
        whole = whole_path(self.path, self.n_shards)
        return [shard_path(whole, i, self.n_shards) for i in range(self.n_shards)]

    @overload
    def get(self, key: str, expected_type: type[T]) -> T: ...
    @overload
    def get(self, key: str, expected_type: type[T], default: None) -> T | None: ...
    @overload
    def get(self, key: str, expected_type: type[T], default: T) -> T: ...
    def get(self, key: str, expected_type: type[T], default: Any = _MISSING) -> Any:
        """Return the plain value of a key.

        expected_type  bool, int, float, str, list (of str) or np.ndarray (of numbers)
        Raises GGUFError where the key is missing and has no default, or has another type. A bool is no int;
        an int is no float.
        """
        value = self.metadata.get(key)
        if value is None:
            if default is _MISSING:
                raise GGUFError(f"{self.path}: the key {key!r} is missing")
            return default
        if type(value.value) is not expected_type:
            raise GGUFError(f"{self.path}: {key!r} is {value.type_name}, expected {expected_type.__name__}")
        return value.value

    def tensor(self, name: str) -> TensorInfo:
        """Return a tensor's entry; GGUFError where there is none of that name."""
        if name not in self.tensors:
            raise GGUFError(f"{self.path}: there is no tensor {name!r}")
        return self.tensors[name]

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, mapped, not copied: (rows, bytes of a row) uint8, read-only."""
        info = self.tensor(name)
        if not self._maps:
            raise GGUFError(f"{self.path}: the file is closed")
        return self._maps[info.shard][info.offset : info.offset + info.nbytes].reshape(info.rows, -1)

    def release(self, name: str) -> None:
        """Give the memory that a tensor's bytes were read into back to the system; they can be read again."""
        info = self.tensor(name)
        mapping = getattr(self._maps[info.shard], "_mmap", None) if self._maps else None
        if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return  # Windows has no such call
        first = padded(info.offset, mmap.PAGESIZE)  # pages that it shares with its neighbours stay
        last = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def read_ahead(self) -> None:
        """Begin to read all of the file in the background: a model is about to run from it."""
        read_ahead(self._maps)

    def blocks(self, name: str) -> NDArray[Any]:
        """Return a tensor as its blocks: (rows, n_blocks) of the type's dtype, mapped, read-only."""
        return self.data(name).view(self.tensor(name).type.dtype)

    def close(self) -> None:
        """Let go of the mapping; arrays that were handed out stay valid."""
        self._maps = ()

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def __repr__(self) -> str:
        """Say what and how large in one line."""
        return f"GGUFFile({self.path.name!r}, {len(self.tensors)} tensors, {self.size:,} bytes)"

    def _repr_html_(self) -> str:
        from phicourse.gguf.describe import file_map

        return file_map(self)


def _read_shards(
    first: GGUFFile, data: NDArray[np.uint8], header: Header
) -> tuple[tuple[NDArray[np.uint8], ...], Header]:
    """Map the other files of a split set and put their tensors behind those of the first."""
    n_shards = first.get("split.count", int)
    whole = whole_path(first.path, n_shards)
    if (number := first.get("split.no", int)) != 0:
        raise GGUFError(f"{first.path}: says it is file {number + 1} of {n_shards}, its name says 1")
    maps, tensors = [data], dict(header.tensors)
    for i in range(1, n_shards):
        path = shard_path(whole, i, n_shards)
        if not path.exists():
            raise GGUFError(f"{first.path}: file {i + 1} of {n_shards}, {path.name}, is missing beside it")
        maps.append(_map(path))
        _add_shard(tensors, first, GGUFFile(path, (), read_header(Cursor(maps[i].data, path))), i)
    if (said := first.get("split.tensors.count", int, len(tensors))) != len(tensors):
        raise GGUFError(f"{first.path}: the set has {len(tensors)} tensors, split.tensors.count says {said}")
    return tuple(maps), replace(header, tensors=tensors)


def _add_shard(tensors: dict[str, TensorInfo], first: GGUFFile, shard: GGUFFile, i: int) -> None:
    """Check that a file is number i of the set of the first, by all keys that it has, and add its tensors."""
    n_shards = first.get("split.count", int)
    if (shard.get("split.no", int), shard.get("split.count", int)) != (i, n_shards):
        raise GGUFError(f"{shard.path}: is not file {i + 1} of {n_shards} of this set, by its split.* keys")
    for key, value in shard.metadata.items():
        given = first.metadata.get(key, value)
        if key not in SPLIT_KEYS[:2] and str(value) != str(given):
            raise GGUFError(
                f"{shard.path}: {key} is {value.value!r:.60}, in {first.path.name} {given.value!r:.60}; files of "
                "two models?"
            )
    for name, tensor in shard.tensors.items():
        if name in tensors:
            raise GGUFError(f"{shard.path}: the tensor {name!r} is in another file of the set too")
        tensors[name] = replace(tensor, shard=i)
