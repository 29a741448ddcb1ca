"""Writes GGUF files as a stream, and whole or not at all.

First the metadata and the list of tensors, then the tensors in that order, in chunks of any size: a 40 GB
file needs no more memory than its largest chunk.
"""

import os
import shutil
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GGUFError
from phicourse.gguf.atomic import atomic_outputs, check_target
from phicourse.gguf.output_file import OutputFile
from phicourse.gguf.reader import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    VERSION,
    check_alignment,
    padded,
)
from phicourse.gguf.shards import Split
from phicourse.gguf.types import NUMBER_DTYPES, TensorType, ValueType, tensor_type

_INTEGERS = {type for type, dtype in NUMBER_DTYPES.items() if dtype[1] in "iu"} - {ValueType.BOOL}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _is_exact(numbers: NDArray[Any], type: ValueType) -> bool:
    """Whether every number can be stored as the type without becoming another."""
    if numbers.size == 0:
        return True
    if type is ValueType.BOOL:
        return numbers.dtype == bool
    if type is ValueType.FLOAT32 and numbers.dtype.kind == "f":
        return not np.any(np.isfinite(numbers) & (np.abs(numbers) > np.finfo(np.float32).max))
    if type in (ValueType.FLOAT32, ValueType.FLOAT64):
        return numbers.dtype.kind in "fiu"
    limits = np.iinfo(NUMBER_DTYPES[type])
    integers = numbers.dtype.kind in "iu" or all(isinstance(number, int) for number in numbers.flat)
    return bool(integers and limits.min <= int(numbers.min()) and int(numbers.max()) <= limits.max)


def _numbers(value: Any, type: ValueType, ndim: int) -> bytes | None:
    """Encode a number, or an array of numbers; None where one does not fit."""
    numbers = np.asarray(value)
    if numbers.dtype.kind == "f" and isinstance(value, list | tuple):
        numbers = np.asarray(value, dtype=object) if type in _INTEGERS else numbers  # 2**63 is no float64
    fits = numbers.ndim == ndim and _is_exact(numbers, type)
    return numbers.astype(NUMBER_DTYPES[type]).tobytes() if fits else None


def _value(value: Any, type: ValueType, element: ValueType | None) -> bytes | None:
    """Encode a value without its type (arrays: element type, count, elements); None if it does not fit."""
    if type is ValueType.STRING:
        return _string(value) if isinstance(value, str) else None
    if type in NUMBER_DTYPES:
        return _numbers(value, type, ndim=0)
    if not isinstance(value, list | tuple | np.ndarray) or element in (None, ValueType.ARRAY):
        return None
    head = struct.pack("<iQ", element, len(value))
    if element is ValueType.STRING:
        return head + b"".join(map(_string, value)) if all(isinstance(text, str) for text in value) else None
    numbers = _numbers(value, ValueType(element), ndim=1)
    return None if numbers is None else head + numbers


def _pair(key: str, value: Any, type: ValueType, element: ValueType | None = None) -> bytes | None:
    """Encode a metadata pair: key, type, value; None if the value does not fit the type."""
    encoded = _value(value, type, element)
    return None if encoded is None else _string(key) + struct.pack("<i", type) + encoded


class _Declared:
    """A tensor that will be written: its place in the list and the bytes still to come."""

    def __init__(self, name: str, shape: tuple[int, ...], type: TensorType) -> None:
        self.name = name
        self.shape = shape
        self.type = type
        self.nbytes = prod(shape[:-1]) * type.row_bytes(shape[-1])
        self.missing = self.nbytes


class _Shard:
    """One of the files that are written: its pairs, encoded, and its tensors."""

    def __init__(self, metadata: Sequence[bytes], tensors: Sequence[_Declared], alignment: int) -> None:
        self.tensors = tensors
        self.alignment = alignment
        self.header = self._encode(metadata)
        self.size = len(self.header) + sum(map(self.padded, tensors))

    def padded(self, tensor: _Declared) -> int:
        """Return the bytes that a tensor takes with the zeros behind it."""
        return padded(tensor.nbytes, self.alignment)

    def _encode(self, metadata: Sequence[bytes]) -> bytes:
        counts = struct.pack("<IQQ", VERSION, len(self.tensors), len(metadata))
        parts = [MAGIC, counts, *metadata]
        offset = 0
        for tensor in self.tensors:
            sizes = tuple(reversed(tensor.shape))
            parts += [_string(tensor.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
            parts.append(struct.pack("<iQ", tensor.type.id, offset))
            offset += self.padded(tensor)
        n_bytes = sum(map(len, parts))
        return b"".join(parts) + bytes(padded(n_bytes, self.alignment) - n_bytes)


class GGUFWriter:
    """Writes one GGUF file; see the module.

    >>> with GGUFWriter("model.gguf") as writer:
    ...     writer.add("general.architecture", "phi3", ValueType.STRING)
    ...     writer.declare("token_embd.weight", (32064, 3072), "F16")
    ...     for rows in chunks:
    ...         writer.write("token_embd.weight", rows)

    The file appears under its name when the block ends well and all declared bytes were written; else it does
    not appear, and a file that was there stays. With `split` it may become a set of files, which appear together;
    `paths` then says which. The calls are the same.
    """

    def __init__(
        self, path: Path | str, force: bool = False, inputs: Iterable[Path] = (), split: Split | None = None
    ) -> None:
        """Nothing is touched before the `with` block begins; `inputs` are files that are never replaced."""
        self.path = Path(path)
        self.paths = [self.path]
        self._force = force
        self._inputs = tuple(inputs)
        self._split = split
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, _Declared] = {}
        self._alignment = DEFAULT_ALIGNMENT
        self._header_written = False
        self._session: AbstractContextManager[None] | None = None
        self._outputs = ExitStack()
        self._shards: deque[tuple[_Shard, Path]] = deque()  # the files to come, and where each is written
        self._shard: _Shard | None = None  # the one that is written
        self._file: OutputFile | None = None
        self._unwritten: deque[_Declared] = deque()  # its tensors that are not complete

    def __enter__(self) -> Self:
        """Look whether the target may be written; GGUFError where it exists and not `force`."""
        self._session = self._open()
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file, or remove it after any exception."""
        assert self._session is not None
        try:
            self._session.__exit__(kind, error, traceback)
        finally:
            self._session = None

    @contextmanager
    def _open(self) -> Iterator[None]:
        if self._split is None:  # else the names of the files show only when all tensors are declared
            check_target(self.path, self._force, self._inputs)
        with self._outputs:
            try:
                yield
                self._finish()
            finally:
                if self._file is not None:
                    self._file.close()

    def add(self, key: str, value: Any, type: ValueType, element: ValueType | None = None) -> None:
        """Add a metadata pair; the file keeps the order.

        value  bool, int, float or str as `type` says; for ARRAY a sequence or ndarray of `element`
        Raises GGUFError where the key is there already or the value does not fit the type.
        """
        self._before_header(f"the key {key!r}")
        if not key or "\0" in key or key in self._metadata:
            raise GGUFError(f"{self.path}: {key!r} is no key: empty, with a zero byte or there already")
        try:
            encoded = _pair(key, value, type, element)
        except UnicodeEncodeError:  # half of a surrogate pair, as JSON can have it
            encoded = None
        if encoded is None:
            wanted = type.name if element is None else f"{type.name} of {element.name}"
            raise GGUFError(f"{self.path}: {key}: {value!r:.60} is no {wanted}")
        if key == "general.alignment":
            self._alignment = check_alignment(value, str(self.path))
        self._metadata[key] = encoded

    def declare(self, name: str, shape: Sequence[int], type: TensorType | str) -> None:
        """Announce a tensor: `shape` in NumPy order, rows first. Tensors are written in this order.

        Raises GGUFError for a name that is there already or too long, and for rows that the type cannot hold.
        """
        self._before_header(f"the tensor {name!r}")
        kind = tensor_type(type) if isinstance(type, str) else type
        if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES or name in self._tensors:
            raise GGUFError(f"{self.path}: {name!r} is no tensor name: empty, too long or there already")
        if not 1 <= len(shape) <= MAX_DIMENSIONS or any(size < 1 for size in shape):
            raise GGUFError(f"{self.path}: tensor {name!r} has the impossible shape {tuple(shape)}")
        try:
            tensor = _Declared(name, tuple(int(size) for size in shape), kind)
        except GGUFError as error:
            raise GGUFError(f"{self.path}: tensor {name!r}: {error}") from None
        self._tensors[name] = tensor

    def write(self, name: str, chunk: bytes | memoryview | NDArray[Any]) -> None:
        """Write the next bytes of a tensor; any array whose bytes, in C order, are the file's bytes.

        Raises GGUFError out of order, beyond the tensor's end, and when the disk is full.
        """
        self._begin()
        raw = np.ascontiguousarray(chunk).data if isinstance(chunk, np.ndarray) else memoryview(chunk)
        tensor = self._unwritten[0] if self._unwritten else None
        if tensor is None or tensor.name != name:
            expected = repr(tensor.name) if tensor else "the end"
            raise GGUFError(f"{self.path}: {name!r} out of order, next is {expected}")
        if raw.nbytes > tensor.missing:
            raise GGUFError(f"{self.path}: {raw.nbytes:,} bytes for {name!r}, which lacks {tensor.missing:,}")
        self._put(raw)
        tensor.missing -= raw.nbytes
        if not tensor.missing:
            assert self._shard is not None
            self._put(memoryview(bytes(self._shard.padded(tensor) - tensor.nbytes)))
            self._unwritten.popleft()
            self._advance()

    def _before_header(self, what: str) -> None:
        if self._header_written:
            raise GGUFError(f"{self.path}: {what} comes too late, tensors are being written")

    def _begin(self) -> None:
        """Lay the files out before the first tensor is written, after a look at the room on the disk."""
        if self._session is None:
            raise GGUFError(f"{self.path}: is written inside `with GGUFWriter(…) as writer:` only")
        if self._header_written:
            return
        shards = self._plan()
        needed = sum(shard.size for shard in shards)
        if needed > (free := shutil.disk_usage(Path(os.path.realpath(self.path)).parent).free):
            raise GGUFError(f"{self.path}: needs {needed:,} bytes, the disk has {free:,} free")
        self._header_written = True
        temporaries = self._outputs.enter_context(atomic_outputs(self.paths, self._force, self._inputs))
        self._shards.extend(zip(shards, temporaries, strict=True))
        self._advance()

    def _plan(self) -> list[_Shard]:
        """Share the keys and the tensors among the files, and name these."""
        split, tensors = self._split or Split(), list(self._tensors.values())
        counts = split.counts(tensor.nbytes for tensor in tensors)
        self.paths = split.paths(self.path, len(counts))
        shards = []
        for i, n in enumerate(counts):
            pairs = [_pair(*pair) or b"" for pair in split.pairs(i, len(counts), len(tensors))]
            # All keys of the model are in the first file, so it alone has its alignment.
            metadata, alignment = ([], DEFAULT_ALIGNMENT) if i else (self._metadata.values(), self._alignment)
            first = sum(counts[:i])
            shards.append(_Shard([*metadata, *pairs], tensors[first : first + n], alignment))
        return shards

    def _advance(self) -> None:
        """Begin the next file where one has all its tensors; a file of keys only has them at once."""
        while not self._unwritten and self._shards:
            self._end_file()
            self._shard, temporary = self._shards.popleft()
            self._file = OutputFile(temporary, self._shard.size)
            self._put(memoryview(self._shard.header))
            self._unwritten.extend(self._shard.tensors)

    def _end_file(self) -> None:
        if self._file is not None:
            with self._told():
                self._file.finish()
            self._file.close()

    def _put(self, raw: memoryview) -> None:
        assert self._file is not None
        with self._told():
            self._file.write(raw.cast("B") if raw.nbytes else raw[:0])

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say which file it was that could not be written."""
        try:
            yield
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _finish(self) -> None:
        """Write the header of a file without tensors; refuse to end one whose tensors are incomplete."""
        self._begin()
        if self._unwritten:
            tensor = self._unwritten[0]
            raise GGUFError(f"{self.path}: {tensor.missing:,} bytes of {tensor.name!r} were never written")
        self._end_file()
