"""How the system is to read a mapped file that a model runs from."""

import mmap
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.memory import available_memory

WORTH_IT = 64 << 20
"""Bytes of a file from which on a thread for it is worth starting."""

_STEP = 64 << 20


def read_ahead(maps: Sequence[NDArray[np.uint8]]) -> Thread | None:
    """Begin to read mapped files from end to end, in a thread of its own, into pages as large as the system has.

    An engine's threads ask here and there for what they need, and Linux answers with many small pages. Read in order
    and with this advice, a file that was not in memory yet comes in pages of 2 MB, from which a processor reads faster.

    maps     of `np.memmap`, (size,) bytes each
    returns  the thread; None where the files are small, or larger than the memory that is left
    """
    size, memory = sum(len(data) for data in maps), available_memory()
    if size < WORTH_IT or memory is None or size > memory:
        return None
    for data in maps:
        _ask_for_huge_pages(data)
    thread = Thread(target=_touch, args=(tuple(maps),), name="read ahead", daemon=True)
    thread.start()
    return thread


def _ask_for_huge_pages(data: NDArray[np.uint8]) -> None:
    mapping: Any = getattr(data, "_mmap", None)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)


def _touch(maps: Sequence[NDArray[np.uint8]]) -> None:
    """Read a byte of every page; NumPy lets other threads work meanwhile."""
    for data in maps:
        for start in range(0, len(data), _STEP):
            data[start : start + _STEP : mmap.PAGESIZE].max()
