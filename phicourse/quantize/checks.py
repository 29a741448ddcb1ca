"""What goes into a quantizer, and what comes out: checked, so that an error names the tensor and the row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import QuantizeError
from phicourse.gguf.types import TensorType
from phicourse.gguf.verify import not_finite
from phicourse.quantize.blocks import Float32, UInt8


@dataclass(frozen=True)
class Where:
    """Which rows are at work: those of the tensor `name` from `first_row` on."""

    name: str
    first_row: int = 0

    def row(self, i: int) -> str:
        """Name row i of these."""
        return f"{self.name}: row {self.first_row + i}"

    def below(self, n_rows: int) -> "Where":
        """The rows from number n_rows of these on."""
        return Where(self.name, self.first_row + n_rows)


def check_rows(data: NDArray[Any], source: TensorType, type: TensorType, where: Where) -> NDArray[Any]:
    """Return the rows contiguous; QuantizeError for a wrong shape or dtype, or rows that blocks do not divide.

    data  (rows, n_blocks) of source.dtype; they shall become `type`
    """
    if data.ndim != 2:
        raise QuantizeError(f"{where.name}: rows of weights are (rows, n), got the shape {data.shape}")
    if data.dtype != source.dtype:
        raise QuantizeError(f"{where.name}: {source.name} weights are {source.dtype}, got {data.dtype}")
    n = data.shape[1] * source.block
    if n % type.block:
        raise QuantizeError(
            f"{where.name}: rows of {n} weights cannot be cut into blocks of {type.block}, as {type.name} needs"
        )
    return np.ascontiguousarray(data)


def check_finite(x: Float32, where: Where) -> None:
    """Raise QuantizeError for the first weight that is infinite or not a number."""
    if np.isfinite(x).all():
        return
    row, column = np.argwhere(~np.isfinite(x))[0]
    raise QuantizeError(
        f"{where.row(row)}, column {column} is {x[row, column]}; only finite weights can be quantized: "
        "the checkpoint is broken, or it overflowed when it was converted"
    )


def check_importance(importance: NDArray[Any], n: int, where: Where) -> Float32:
    """Return the importance of n columns as float32; QuantizeError where it does not fit or cannot weigh anything.

    importance  (n,) numbers, finite as float32, and none below zero
    """
    if importance.shape != (n,):
        raise QuantizeError(f"{where.name}: the importance of {n} columns is ({n},), got {importance.shape}")
    with np.errstate(over="ignore"):
        weights = np.ascontiguousarray(importance, np.float32)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise QuantizeError(
            f"{where.name}: the importance of column {bad[0]} is {weights[bad[0]]}; "
            "it must be a finite number, and not below 0"
        )
    return weights


def as_bytes(result: object, n_rows: int, n: int, type: TensorType) -> UInt8:
    """Return what a quantizer gave as bytes, if it is what a quantizer of this type must give."""
    n_blocks, n_bytes = n // type.block, type.row_bytes(n)
    if isinstance(result, np.ndarray):
        if result.dtype == type.dtype and result.shape == (n_rows, n_blocks):
            return np.ascontiguousarray(result).view(np.uint8).reshape(n_rows, n_bytes)
        if result.dtype == np.uint8 and result.shape == (n_rows, n_bytes):
            return result
        got = f"{result.shape} of {_dtype_name(result.dtype)}"
    else:
        got = f"a {result.__class__.__name__}"
    raise QuantizeError(
        f"the quantizer of {type.name} must give {(n_rows, n_blocks)} blocks of {_dtype_name(type.dtype)} "
        f"or {(n_rows, n_bytes)} of uint8; got {got}"
    )


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return f"{{{', '.join(dtype.names)}}}" if dtype.names else str(dtype)


def check_blocks(blocks: NDArray[Any], type: TensorType, where: Where) -> None:
    """Raise QuantizeError where a stored weight or scale is not finite: float16 ends at 65,504.

    blocks  (rows, n_blocks) of type.dtype
    """
    bad = not_finite(blocks, type)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        what = "column" if type.block == 1 else "block"
        raise QuantizeError(f"{where.row(row)}, {what} {column}: not finite, or too large for {type.name}")
