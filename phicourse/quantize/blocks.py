"""Rows into blocks and back: the few moves that every quantizer of this package makes.

A row of n weights is cut into blocks; a block is one element of a structured array, whose fields
(`d`, `qs`, …) come from the layout table in `phicourse.gguf.types`.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.errors import QuantizeError
from phicourse.gguf.types import TENSOR_TYPES

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Blocks = NDArray[Any]


def split_rows(x: ArrayLike, size: int, type_name: str) -> Float32:
    """Cut rows into blocks: (..., n) -> (..., n / size, size) float32.

    Raises QuantizeError where `size` does not divide n.
    """
    rows = np.ascontiguousarray(x, dtype=np.float32)
    n = rows.shape[-1]
    if n % size:
        raise QuantizeError(f"a row of {n} weights cannot be cut into blocks of {size}, as {type_name} needs")
    return rows.reshape(*rows.shape[:-1], n // size, size)


def sub_blocks(values: Blocks, size: int) -> Blocks:
    """Cut blocks once more: (..., n_blocks, n) -> (..., n_blocks, n / size, size)."""
    return values.reshape(*values.shape[:-1], values.shape[-1] // size, size)


def join_rows(values: Float32) -> Float32:
    """Put blocks back into rows: (..., n_blocks, size) -> (..., n_blocks * size)."""
    return values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])


def to_columns(values: Float32) -> Float32:
    """One sub-block a column, as the searches want them: (..., size) -> (size, count)."""
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)


def from_columns(columns: Float32, shape: tuple[int, ...]) -> Float32:
    """Undo `to_columns`: (size, count) -> shape, whose last dimension is size."""
    return columns.T.reshape(shape)


def pack(type_name: str, **fields: NDArray[Any]) -> Blocks:
    """Make blocks of the named type from their fields; each is rounded to the dtype that the table gives it.

    fields   every field of the type, (..., n_blocks) or (..., n_blocks, values of the field)
    returns  (..., n_blocks) structured array
    """
    dtype = TENSOR_TYPES[type_name].dtype
    first = next(iter(fields.values()))
    n_inner = len(dtype[next(iter(fields))].shape)
    blocks = np.zeros(first.shape[: first.ndim - n_inner], dtype)
    for name in dtype.names or ():
        blocks[name] = fields[name]
    return blocks


def pack_nibbles(codes: UInt8) -> UInt8:
    """Put two 4-bit codes into a byte, the second half of the last axis above: (..., 2k) -> (..., k)."""
    low, high = np.split(codes, 2, axis=-1)
    return np.asarray((low & 15) | (high << 4))


def unpack_nibbles(packed: UInt8) -> UInt8:
    """Undo `pack_nibbles`: (..., k) -> (..., 2k)."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)
