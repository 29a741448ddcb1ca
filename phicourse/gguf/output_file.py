"""A file that is written once, from its first byte to its last; a large one past the system's page cache.

Bytes that pass through the page cache are copied there, and take the room of files that are read again, such as
the checkpoint that is converted. In virtual machines each new page of it also costs far more than the copy: on the
one where this was measured, 0.3 GB/s came through, and 2 GB/s past it.
"""

import errno
import io
import mmap
import os
from pathlib import Path
from typing import Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Bytes from which on a file is written past the page cache; smaller ones are likely to be read soon.
DIRECT_FROM = 256 << 20
# Disks take whole blocks only, from an address that is aligned as well.
_DISK_BLOCK = 4096
_BUFFER = 2048 * _DISK_BLOCK
_CAN_BE_DIRECT = fcntl is not None and hasattr(os, "O_DIRECT")


class OutputFile:
    """A file to be written in order, emptied if it exists. `size` is what it will have, in bytes.

    What `write` was given is in the file when `finish` has returned. Raises OSError as the system does.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._is_direct = _CAN_BE_DIRECT and size >= DIRECT_FROM
        self._file = self._open(path)
        # Memory that is mapped begins at a page, so it is aligned.
        self._buffer = mmap.mmap(-1, _BUFFER) if self._is_direct else None
        self._filled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, path: Path) -> io.FileIO:
        if self._is_direct:
            try:
                return io.FileIO(
                    str(path), "wb", opener=lambda name, flags: os.open(name, flags | os.O_DIRECT)
                )
            except OSError as error:
                if error.errno != errno.EINVAL:  # which says that the file system has no such thing
                    raise
                self._is_direct = False
        return io.FileIO(str(path), "wb")

    def write(self, raw: memoryview) -> None:
        """Append bytes."""
        if self._buffer is None:
            self._put(raw)
            return
        while raw:
            part = raw[: _BUFFER - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            raw = raw[len(part) :]
            if self._filled == _BUFFER:
                self._empty()

    def finish(self) -> None:
        """Write what has not been written; the last bytes, no whole block, pass through the page cache."""
        if self._buffer is None:
            return
        whole = self._filled // _DISK_BLOCK * _DISK_BLOCK
        last = self._buffer[whole : self._filled]
        self._filled = whole
        self._empty()
        self._through_the_page_cache()
        self._put(memoryview(last))

    def close(self) -> None:
        """Close the file; what `finish` has not written is lost."""
        self._file.close()

    def _empty(self) -> None:
        assert self._buffer is not None
        with memoryview(self._buffer)[: self._filled] as blocks:
            self._put(blocks)
        self._filled = 0

    def _put(self, raw: memoryview) -> None:
        while raw:  # the system may take less than all at once, 2 GiB at most
            try:
                n_bytes = self._file.write(raw)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._through_the_page_cache()  # a disk with larger blocks
            else:
                raw = raw[n_bytes:]

    def _through_the_page_cache(self) -> None:
        if self._is_direct:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self._is_direct = False
