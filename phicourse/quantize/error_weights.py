"""What an error costs: from the importance of a column to the weight that the searches give to each error.

An importance matrix says how strongly the model's activations hit each column; an error in a column that
is hit twice as hard costs twice as much. The quantizers take one number for each column of their rows.
Source: ggml `quantize_row_*_impl`.
"""

import numpy as np
from numpy.typing import ArrayLike

from phicourse.quantize.blocks import Float32
from phicourse.quantize.checks import Where, check_importance
from phicourse.quantize.rounding import sum_last


def split_importance(importance: ArrayLike, blocks: Float32, type_name: str) -> Float32:
    """Cut the importance of a row's columns as the row is cut: (n,) -> (n_blocks, size) float32.

    blocks  (..., n_blocks, size), the weights
    Raises QuantizeError where it is not one finite number, zero or more, for each column.
    """
    n_blocks, size = blocks.shape[-2:]
    columns = check_importance(np.asarray(importance), n_blocks * size, Where(type_name))
    return columns.reshape(n_blocks, size)


def error_weights(blocks: Float32, importance: ArrayLike, mean_squares: int, type_name: str) -> Float32:
    """How much an error counts: the column's importance, and a little more for large weights.

    blocks        (..., n_blocks, size) float32, the weights
    importance    (n_blocks * size,) float32
    mean_squares  how many mean squares of the block to add to the square of a weight: 1 or 2
    returns       importance * sqrt(mean_squares * mean square + weight²), (..., n_blocks, size)
    raises        QuantizeError where the importance does not fit
    """
    columns = split_importance(importance, blocks, type_name)
    squares = blocks * blocks
    added = np.float32(mean_squares) * sum_last(squares) / np.float32(blocks.shape[-1])
    return np.asarray(columns * np.sqrt(added[..., None] + squares))
