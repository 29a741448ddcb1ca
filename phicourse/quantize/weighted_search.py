"""Searches in which each weight has an importance of its own, and the finer searches of the small types.

An importance matrix says how strongly the model's activations hit each column; an error in a column that
is hit twice as hard costs twice as much. The searches here are those of `scale_search` with any weights,
and two more: one for codes that start at zero without a minimum, one that improves codes one by one.

As there, arrays are (size, count), one sub-block a column, and sums run row by row.
Source: ggml `make_qx_quants`, `make_q3_quants`, `make_qkx3_quants`, `make_qp_quants`; bytes equal to ggml 0.25.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.errors import QuantizeError
from phicourse.quantize.blocks import Float32
from phicourse.quantize.rounding import nearest_int
from phicourse.quantize.scale_search import ZERO, Affine, Mask, Symmetric, signed_peak, sum_in_order

_SHIFTS = (-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9)


def to_columns(values: Float32) -> Float32:
    """One sub-block a column, as the searches want them: (..., size) -> (size, count)."""
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)


def from_columns(columns: Float32, shape: tuple[int, ...]) -> Float32:
    """Undo `to_columns`: (size, count) -> shape, whose last dimension is size."""
    return columns.T.reshape(shape)


def sum_last(values: Float32) -> Float32:
    """Sum over the last axis, first to last: (..., size) -> (...)."""
    return sum_in_order(np.moveaxis(values, -1, 0))


def split_importance(importance: ArrayLike, n: int, size: int, type_name: str) -> Float32:
    """Cut the importance of a row's columns into blocks: (n,) -> (n / size, size) float32.

    Raises QuantizeError where it is not one finite number, zero or more, for each column.
    """
    numbers = np.ascontiguousarray(importance, dtype=np.float32)
    if numbers.shape != (n,):
        raise QuantizeError(
            f"{type_name}: the importance of rows of {n} weights has {n} numbers, got {numbers.shape}"
        )
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        column = int(np.argmin(np.isfinite(numbers) & (numbers >= 0)))
        raise QuantizeError(f"{type_name}: the importance of column {column} is {numbers[column]}")
    return numbers.reshape(n // size, size)


def error_weights(weights: Float32, importance: Float32, factor: float) -> Float32:
    """How much an error counts: the column's importance, and a little more for large weights.

    weights     (..., n_blocks, size) float32
    importance  (n_blocks, size)
    factor      how many mean squares of the block to add to the square of a weight: 1 or 2
    returns     importance * sqrt(factor * mean square + weight²), (..., n_blocks, size)
    """
    mean_square = np.float32(factor) * sum_last(weights * weights) / np.float32(weights.shape[-1])
    return np.asarray(importance * np.sqrt(mean_square[..., None] + weights * weights))


# ---- codes on both sides of zero -------------------------------------------------------------------------


def symmetric_search(x: Float32, weights: Float32, n_max: int) -> Symmetric:
    """Find scale and codes -n_max … n_max - 1 that lose least of Σ w x², see `scale_search`.

    x, weights  (size, count) float32
    returns     scale (count,) and codes (size, count); where a sub-block is all zero, 0 and -n_max
    """
    peak = signed_peak(np.where(np.isnan(x), np.float32(0), x), axis=0)  # (count,)
    weighted_x = weights * x
    codes = _signed_codes(np.float32(-n_max) / peak * x, n_max)
    xl, ll = _projections(weights, weighted_x, codes)
    scale = np.where(ll != 0, xl / ll, np.float32(0))
    gain = scale * xl
    for shift in _SHIFTS:
        stretched = np.float32(n_max) + np.float32(0.1) * np.float32(shift)
        tried = _signed_codes(-stretched / peak * x, n_max)
        xl, ll = _projections(weights, weighted_x, tried)
        better = (ll > 0) & (xl * xl > gain * ll)
        np.copyto(codes, tried, where=better)
        scale = np.where(better, xl / ll, scale)
        gain = np.where(better, scale * xl, gain)
    empty = np.abs(peak) < ZERO
    return Symmetric(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-n_max), codes))


def symmetric_descent(x: Float32, n_max: int) -> Symmetric:
    """Start with the largest weight at -n_max, then improve codes one by one; errors count x².

    x        (size, count) float32
    returns  scale (count,) and codes -n_max … n_max - 1 (size, count); where a sub-block is all zero,
             0 and -n_max
    """
    peak = signed_peak(x, axis=0)  # (count,)
    weights = x * x
    codes = _signed_codes(np.float32(-n_max) / peak * x, n_max)
    xl, ll = _projections(weights, weights * x, codes)
    codes, xl, ll = _descend(x, weights, codes, xl, ll, range(-n_max, n_max))
    empty = np.abs(peak) < ZERO
    scale = np.where(ll > 0, xl / ll, np.float32(0))
    return Symmetric(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-n_max), codes))


# ---- codes from zero up ----------------------------------------------------------------------------------


class Positive(NamedTuple):
    """weight = scale * code, with codes from zero up: for numbers that are not negative, such as scales."""

    scale: Float32  # (count,)
    codes: Float32  # (size, count), whole numbers


def positive_search(x: Float32, weights: Float32, n_max: int) -> Positive:
    """Find scale and codes 0 … n_max: eight trials around the obvious scale, then codes one by one.

    x, weights  (size, count) float32, x not negative
    returns     scale (count,) and codes (size, count); where nothing reaches 1e-15, zeros

    Nothing stops an x below zero: its code is a byte in ggml, which wraps around, and so it does here.
    """
    largest = np.zeros_like(x[0])
    for row in x:
        largest = np.where(largest > row, largest, row)
    inverse = np.float32(n_max) / largest
    best = _squares(x, weights, np.float32(1) / inverse, _as_bytes(nearest_int(inverse * x)))
    for shift in (-4, -3, -2, -1, 1, 2, 3, 4):
        tried = (np.float32(0.1) * np.float32(shift) + np.float32(n_max)) / largest
        error = _squares(x, weights, np.float32(1) / tried, _codes_up_to(tried * x, n_max))
        inverse = np.where(error < best, tried, inverse)
        best = np.where(error < best, error, best)
    codes = _codes_up_to(inverse * x, n_max)
    xl, ll = _projections(weights, weights * x, codes)
    codes, xl, ll = _descend(x, weights, _as_bytes(codes), xl, ll, range(n_max + 1))
    empty = largest < ZERO
    scale = np.where(ll > 0, xl / ll, np.float32(0))
    return Positive(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes))


# ---- codes one by one ------------------------------------------------------------------------------------


def _descend(
    x: Float32, weights: Float32, codes: Float32, xl: Float32, ll: Float32, allowed: range
) -> tuple[Float32, Float32, Float32]:
    """Improve one code after the other, at most five times round: coordinate descent.

    Take weight i out of the sums: the scale that the others want is Σ w x l / Σ w l² without it. Put in
    the code that is nearest with that scale, and keep it if the gain (Σ w x l)² / Σ w l² grows.

    xl, ll   (count,) the sums Σ w x l and Σ w l² of the codes (size, count)
    allowed  the codes that there are
    returns  the codes and their sums
    """
    signed = allowed.start < 0
    codes = codes.copy()
    for _ in range(5):
        before = codes.copy()
        for i in range(len(x)):
            others_xl = xl - weights[i] * x[i] * codes[i]
            others_ll = ll - weights[i] * codes[i] * codes[i]
            nearest = nearest_int(x[i] * others_ll / others_xl).astype(np.float32)
            tried = np.clip(nearest, allowed.start if signed else None, allowed.stop - 1)
            new_xl = others_xl + weights[i] * x[i] * tried
            new_ll = others_ll + weights[i] * tried * tried
            better = (others_xl > 0) & (tried != codes[i]) & (new_xl * new_xl * ll > xl * xl * new_ll)
            better &= (new_ll > 0) if signed else (others_ll > 0)
            codes[i] = np.where(better, tried if signed else _as_bytes(tried), codes[i])
            xl, ll = np.where(better, new_xl, xl), np.where(better, new_ll, ll)
        if np.array_equal(codes, before):
            break
    return codes, xl, ll


# ---- scale and minimum -----------------------------------------------------------------------------------


def affine_search(
    x: Float32,
    weights: Float32,
    n_max: int,
    first: float,
    step: float,
    n_steps: int,
    *,
    absolute: bool = False,
) -> Affine:
    """Find scale, minimum and codes 0 … n_max for each sub-block.

    x, weights   (size, count) float32: the sub-blocks, and how much each of their weights counts
    first, step  trial i stretches the range of x to n_max + first + i * step levels
    n_steps      trials after the first
    absolute     judge a trial by Σ w |error|, not by Σ w error²
    returns      the best fit; where all weights are equal, and not above zero, scale 0 and codes 0
    """
    lowest, highest = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)  # (count,)
    inverse = np.float32(n_max) / (highest - lowest)
    best = _affine(
        x, weights, np.float32(1) / inverse, lowest, _codes_above(x, lowest, inverse, n_max), absolute
    )
    sum_w, sum_x = sum_in_order(weights), sum_in_order(weights * x)
    for i in range(n_steps + 1):
        levels = np.float32(first) + np.float32(step) * np.float32(i) + np.float32(n_max)
        codes = _codes_above(x, best.minimum, levels / (highest - best.minimum), n_max)
        scale, minimum, solvable = _least_squares(x, weights, sum_w, sum_x, codes)
        fit = _affine(x, weights, scale, minimum, codes, absolute)
        better = solvable & (fit.error < best.error)
        best = Affine(*(np.where(better, new, old) for new, old in zip(fit, best, strict=True)))
    return best


def _affine(
    x: Float32, weights: Float32, scale: Float32, minimum: Float32, codes: Float32, absolute: bool
) -> Affine:
    """Put a fit together with its error."""
    difference = scale * codes + minimum - x
    error = np.abs(difference) if absolute else difference * difference
    return Affine(scale, minimum, codes, sum_in_order(weights * error))


def _least_squares(
    x: Float32, weights: Float32, sum_w: Float32, sum_x: Float32, codes: Float32
) -> tuple[Float32, Float32, Mask]:
    """Find the scale and minimum (count,) that fit the codes best, and where there is a single best one.

    The equations are those of `scale_search`: Σ w (s l + m - x)² has its smallest value where both its
    derivatives are zero. A minimum above zero is not allowed; then it is 0.
    """
    weighted_l = weights * codes
    sum_l, sum_ll = sum_in_order(weighted_l), sum_in_order(weighted_l * codes)
    sum_xl = sum_in_order(weighted_l * x)
    determinant = sum_w * sum_ll - sum_l * sum_l
    scale: Float32 = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant)
    minimum: Float32 = np.divide(sum_ll * sum_x - sum_l * sum_xl, determinant)
    above = minimum > 0
    scale[above], minimum[above] = (sum_xl / sum_ll)[above], 0
    return scale, minimum, determinant > 0


# ---- small steps -----------------------------------------------------------------------------------------


def _projections(weights: Float32, weighted_x: Float32, codes: Float32) -> tuple[Float32, Float32]:
    """Sum up w x l and w l² over each sub-block: two arrays (count,)."""
    return sum_in_order(weighted_x * codes), sum_in_order(weights * codes * codes)


def _squares(x: Float32, weights: Float32, scale: Float32, codes: Float32) -> Float32:
    """Sum up w (x - scale * code)² over each sub-block: (count,)."""
    difference = x - scale * codes
    return sum_in_order(weights * difference * difference)


def _signed_codes(levels: Float32, n_max: int) -> Float32:
    """Round to -n_max … n_max - 1, any shape."""
    return np.clip(nearest_int(levels), -n_max, n_max - 1).astype(np.float32)


def _codes_up_to(levels: Float32, n_max: int) -> Float32:
    """Round to n_max at most, any shape."""
    return np.minimum(nearest_int(levels), n_max).astype(np.float32)


def _codes_above(x: Float32, minimum: Float32, inverse_scale: Float32, n_max: int) -> Float32:
    """Round (x - minimum) / scale, in 0 … n_max: (size, count)."""
    return np.clip(nearest_int(inverse_scale * (x - minimum)), 0, n_max).astype(np.float32)


def _as_bytes(codes: Float32 | NDArray[np.int32]) -> Float32:
    """What is left of whole numbers in a byte, any shape."""
    return np.mod(codes, 256).astype(np.float32)
