"""Weights of a checkpoint as rows of a GGUF file: read in chunks, checked, rounded.

A chunk is read from the file instead of through a memory map: memory stays at a few chunks whatever the size
of the model, and a file that is cut off meanwhile is an error instead of a crash.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import ConvertError
from phicourse.gguf import TensorType, bfloat16_to_float32, tensor_type

# Weights in a chunk: 2 MiB of bfloat16 and 4 MiB of float32, which a processor's cache holds.
CHUNK_WEIGHTS = 1 << 20
SOURCES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# The bits of a number without its sign, as an integer, are ordered as the numbers are. From this one on the
# rounded number is infinite (all bits of the exponent set) or was none before.
_NOT_FINITE = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_OVERFLOWS = {
    ("F32", "F16"): 0x477FF000,  # 65520, half way between the largest float16 and the next step
    ("BF16", "F16"): 0x4780,  # 65536, the first bfloat16 above 65520
    ("F32", "BF16"): 0x7F7F8000,  # half way between the largest bfloat16 and the next step
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor of the checkpoint lies, as rows: `dtype` is a key of SOURCES, `offset` counts bytes."""

    name: str
    path: Path
    dtype: str
    offset: int
    columns: int


def encoded_chunks(
    pieces: Iterable[tuple[Stored, range]], type: TensorType, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[NDArray[Any]]:
    """Yield rows of tensors in a GGUF type, a chunk at a time and in order; `ahead` chunks are worked on at once.

    Raises ConvertError where a weight is infinite or not a number, or does not fit into the type.
    """
    pending: deque[Future[NDArray[Any]]] = deque()
    try:
        for tensor, start, stop in _cut(pieces):
            # A thread has no context of its own, where phicourse.use keeps the quantizers put in place.
            pending.append(pool.submit(copy_context().run, _encode, tensor, type, start, stop))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _cut(pieces: Iterable[tuple[Stored, range]]) -> Iterator[tuple[Stored, int, int]]:
    """Cut the rows of the pieces into chunks."""
    for tensor, rows in pieces:
        step = max(1, CHUNK_WEIGHTS // tensor.columns)
        for start in range(rows.start, rows.stop, step):
            yield tensor, start, min(start + step, rows.stop)


def _encode(tensor: Stored, type: TensorType, start: int, stop: int) -> NDArray[Any]:
    """Read rows start to stop and return them in the type: (rows, n_blocks)."""
    stored, dtype = _read(tensor, start, stop), tensor.dtype
    if dtype == "F64":
        with np.errstate(over="ignore"):
            stored, dtype = stored.astype("<f4"), "F32"
    _check(tensor, stored, dtype, type, start)
    if dtype == type.name:
        return stored
    # A quantizer stands above this package: it is fetched when a file asks for it.
    from phicourse.quantize.registry import quantize_data

    packed = quantize_data(
        stored, tensor_type(dtype), type.name, threads=1, name=tensor.name, first_row=start
    )
    return packed.view(type.dtype)


def _read(tensor: Stored, start: int, stop: int) -> NDArray[Any]:
    """Read rows from the file: (rows, columns) as they are stored."""
    rows = np.empty((stop - start, tensor.columns), SOURCES[tensor.dtype])
    raw = rows.data.cast("B")
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.offset + start * tensor.columns * rows.itemsize)
            while raw:
                if not (n_bytes := file.readinto(raw)):
                    raise ConvertError(
                        f"{tensor.path}: ended while {tensor.name} was read; did the file change?"
                    )
                raw = raw[n_bytes:]
    except OSError as error:
        raise ConvertError(f"{tensor.path}: cannot be read ({error.strerror})") from error
    return rows


def _check(tensor: Stored, stored: NDArray[Any], dtype: str, type: TensorType, first_row: int) -> None:
    """Raise ConvertError where a weight is not finite, or would not be in the type."""
    unsigned = np.dtype(f"<u{stored.itemsize}").type
    bits = stored.view(unsigned) & unsigned((1 << (8 * stored.itemsize - 1)) - 1)
    largest = int(bits.max())
    limit = _OVERFLOWS.get((dtype, type.name), _NOT_FINITE[dtype])
    if largest < limit:
        return
    row, column = np.unravel_index(int(bits.argmax()), bits.shape)
    weight = stored[row, column] if dtype != "BF16" else bfloat16_to_float32(stored[row, column])
    where = f"{tensor.path}: {tensor.name}, row {first_row + row}, column {column}"
    if largest >= _NOT_FINITE[dtype]:
        raise ConvertError(f"{where} is {weight}: not a finite number, the checkpoint is broken")
    raise ConvertError(f"{where} is {weight:g}: too large for {type.name}; use --outtype bf16 or f32")


def default_threads() -> int:
    """Return how many chunks to work on at once; more than four wait for the disk."""
    return min(4, os.cpu_count() or 1)
