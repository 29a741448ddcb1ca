"""Writes GGUF files as a stream, and whole or not at all.

First the metadata and the list of tensors, then the tensors in that order, in chunks of any size: a 40 GB
file needs no more memory than its largest chunk.
"""

import errno
import io
import os
import secrets
import shutil
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GGUFError
from phicourse.gguf.reader import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    VERSION,
    check_alignment,
    padded,
)
from phicourse.gguf.types import NUMBER_DTYPES, TensorType, ValueType, tensor_type

_INTEGERS = {type for type, dtype in NUMBER_DTYPES.items() if dtype[1] in "iu"} - {ValueType.BOOL}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_output(path: Path | str, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give the path of a temporary file beside `path`; rename it to `path` when the block ends well.

    The caller writes the temporary file. Whatever exception ends the block, an interrupt included, removes it
    and leaves `path` as it was. Raises GGUFError where `path` exists and not `force`, where it is one of the
    `inputs`, whatever `force` says, where the folder is missing or not writable, and where the disk is full.
    """
    target = _check_target(Path(path), force, inputs)
    temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        _check_target(target, force)
        os.replace(temporary, target)
        with suppress(OSError):  # the file is there; some file systems cannot flush the list of names
            _flush(target.parent)
    except OSError as error:
        # Any other OSError comes from the caller's own reading and is theirs to explain.
        if error.errno in _NO_ROOM or error.filename == str(temporary):
            raise GGUFError(f"{path}: cannot be written ({error.strerror})") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _check_target(path: Path, force: bool, inputs: Iterable[Path] = ()) -> Path:
    """Return the path behind all links, if a file may be written there."""
    target = Path(os.path.realpath(path))
    try:
        is_there = target.exists()
    except OSError as error:
        raise GGUFError(f"{path}: cannot be written ({error.strerror})") from error
    if not target.parent.is_dir():
        raise GGUFError(f"{path}: the folder {target.parent} does not exist")
    if is_there and not target.is_file():
        raise GGUFError(f"{path}: is a folder or a device, not a file")
    if is_there and any(target.samefile(file) for file in inputs):
        raise GGUFError(f"{path}: is an input, too; give the output another name")
    if is_there and not force:
        raise GGUFError(f"{path}: exists already; --force (force=True) replaces it")
    return target


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


class _Declared:
    """A tensor that will be written: its place in the list and the bytes still to come."""

    def __init__(self, name: str, shape: tuple[int, ...], type: TensorType) -> None:
        self.name = name
        self.shape = shape
        self.type = type
        self.nbytes = prod(shape[:-1]) * type.row_bytes(shape[-1])
        self.missing = self.nbytes


class GGUFWriter:
    """Writes one GGUF file; see the module.

    >>> with GGUFWriter("model.gguf") as writer:
    ...     writer.add("general.architecture", "phi3", ValueType.STRING)
    ...     writer.declare("token_embd.weight", (32064, 3072), "F16")
    ...     for rows in chunks:
    ...         writer.write("token_embd.weight", rows)

    The file appears under its name when the block ends well and all declared bytes were written; else it does
    not appear, and a file that was there stays.
    """

    def __init__(self, path: Path | str, force: bool = False, inputs: Iterable[Path] = ()) -> None:
        """Nothing is touched before the `with` block begins; `inputs` are files that are never replaced."""
        self.path = Path(path)
        self._force = force
        self._inputs = tuple(inputs)
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, _Declared] = {}
        self._unwritten: deque[_Declared] = deque()
        self._alignment = DEFAULT_ALIGNMENT
        self._header_written = False
        self._file: io.FileIO | None = None
        self._session: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        """Create the temporary file; GGUFError where the target exists and not `force`."""
        self._session = self._open()
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file, or remove it after any exception."""
        assert self._session is not None
        self._session.__exit__(kind, error, traceback)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with atomic_output(self.path, self._force, self._inputs) as temporary:
            try:
                with io.FileIO(temporary, "wb") as self._file:
                    yield
                    self._finish()
            finally:
                self._file = None

    def add(self, key: str, value: Any, type: ValueType, element: ValueType | None = None) -> None:
        """Add a metadata pair; the file keeps the order.

        value  bool, int, float or str as `type` says; for ARRAY a sequence or ndarray of `element`
        Raises GGUFError where the key is there already or the value does not fit the type.
        """
        self._before_header(f"the key {key!r}")
        if not key or "\0" in key or key in self._metadata:
            raise GGUFError(f"{self.path}: {key!r} is no key: empty, with a zero byte or there already")
        encoded = _value(value, type, element)
        if encoded is None:
            wanted = type.name if element is None else f"{type.name} of {element.name}"
            raise GGUFError(f"{self.path}: {key}: {value!r:.60} is no {wanted}")
        if key == "general.alignment":
            self._alignment = check_alignment(value, str(self.path))
        self._metadata[key] = _string(key) + struct.pack("<i", type) + encoded

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
        self._unwritten.append(tensor)

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
            self._put(memoryview(bytes(padded(tensor.nbytes, self._alignment) - tensor.nbytes)))
            self._unwritten.popleft()

    def _before_header(self, what: str) -> None:
        if self._header_written:
            raise GGUFError(f"{self.path}: {what} comes too late, tensors are being written")

    def _begin(self) -> None:
        """Write the header before the first tensor, after a look at the room on the disk."""
        if self._file is None:
            raise GGUFError(f"{self.path}: is written inside `with GGUFWriter(…) as writer:` only")
        if self._header_written:
            return
        header = self._header()
        sizes = (padded(tensor.nbytes, self._alignment) for tensor in self._tensors.values())
        needed = len(header) + sum(sizes)
        if needed > (free := shutil.disk_usage(Path(os.path.realpath(self.path)).parent).free):
            raise GGUFError(f"{self.path}: needs {needed:,} bytes, the disk has {free:,} free")
        self._header_written = True
        self._put(memoryview(header))

    def _header(self) -> bytes:
        counts = struct.pack("<IQQ", VERSION, len(self._tensors), len(self._metadata))
        parts = [MAGIC, counts, *self._metadata.values()]
        offset = 0
        for tensor in self._tensors.values():
            sizes = tuple(reversed(tensor.shape))
            parts += [_string(tensor.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
            parts.append(struct.pack("<iQ", tensor.type.id, offset))
            offset += padded(tensor.nbytes, self._alignment)
        n_bytes = sum(map(len, parts))
        return b"".join(parts) + bytes(padded(n_bytes, self._alignment) - n_bytes)

    def _put(self, raw: memoryview) -> None:
        assert self._file is not None
        rest = raw.cast("B") if raw.nbytes else raw[:0]
        try:
            while rest:  # the system may take less than all at once, 2 GiB at most
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _finish(self) -> None:
        """Write the header of a file without tensors; refuse to end one whose tensors are incomplete."""
        self._begin()
        if self._unwritten:
            tensor = self._unwritten[0]
            raise GGUFError(f"{self.path}: {tensor.missing:,} bytes of {tensor.name!r} were never written")
