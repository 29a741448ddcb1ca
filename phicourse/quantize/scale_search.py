"""How a sub-block finds its scale: the heart of the K-quants, step by step.

Rounding to the nearest level is easy once the scale is known; the question is which scale. The
obvious one, that just lets the largest weight fit, is rarely the best: a slightly smaller or larger
one moves many weights closer to a level. So: try several scales, round with each, ask least squares
for the scale that fits those codes best, keep the codes with the smallest error.

All sub-blocks are searched at once. Arrays are (size, count): x[i, s] is weight i of sub-block s, so
that one row of an array is one step of the loop that ggml runs over a sub-block. Sums are taken row by
row, in that order: another order rounds differently, and a bit of difference can change a code.
Sub-blocks of zeros divide by zero on the way, without harm; `k_quants` silences NumPy's warnings.
Source: ggml `make_qx_quants`, `make_qkx2_quants`; bytes equal to ggml 0.25.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phicourse.quantize.blocks import Float32
from phicourse.quantize.rounding import nearest_int

# Below this largest magnitude a sub-block counts as all zero.
ZERO = np.float32(1e-15)

Mask = NDArray[np.bool_]


class Symmetric(NamedTuple):
    """weight = scale * code, with codes on both sides of zero."""

    scale: Float32  # (count,)
    codes: Float32  # (size, count), whole numbers


class Affine(NamedTuple):
    """weight = scale * code + minimum, with codes from 0 up and a minimum that is never above zero."""

    scale: Float32  # (count,)
    minimum: Float32  # (count,)
    codes: Float32  # (size, count), whole numbers
    error: Float32  # (count,) weighted squared error


def symmetric_search(x: Float32, n_max: int) -> Symmetric:
    """Find scale and codes -n_max … n_max - 1 for each sub-block; large weights count more (weight x²).

    x        (size, count) float32
    returns  scale (count,) and codes (size, count); where a sub-block is all zero, 0 and -n_max

    With the codes l fixed, the error Σ w (x - s l)² is smallest at s = Σ w x l / Σ w l², and what then
    remains is Σ w x² - s Σ w x l. So the best codes are those with the largest gain s Σ w x l.
    """
    peak = signed_peak(x, axis=0)  # (count,)
    weights = x * x
    weighted_x = weights * x
    codes = _signed_codes(x, np.float32(-n_max) / peak, n_max)
    xl, ll = _projections(weights, weighted_x, codes)
    scale = np.where(ll != 0, xl / ll, np.float32(0))
    gain = scale * xl
    for step in (-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9):
        stretched = np.float32(n_max) + np.float32(0.1) * np.float32(step)
        tried = _signed_codes(x, -stretched / peak, n_max)
        xl, ll = _projections(weights, weighted_x, tried)
        better = (ll > 0) & (xl * xl > gain * ll)
        np.copyto(codes, tried, where=better)
        scale = np.where(better, xl / ll, scale)
        gain = np.where(better, scale * xl, gain)
    empty = np.abs(peak) < ZERO
    return Symmetric(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-n_max), codes))


def affine_search(x: Float32, weights: Float32, n_max: int, first: float, n_steps: int) -> Affine:
    """Find scale, minimum and codes 0 … n_max for each sub-block.

    x, weights  (size, count) float32: the sub-blocks, and how much each of their weights counts
    first       the first trial stretches the range of x to n_max + first levels, each further one to 0.1 more
    n_steps     trials after the first
    returns     the fit with the smallest weighted error
    """
    for best in affine_steps(x, weights, n_max, first, n_steps):  # noqa: B007 - only the last one counts
        pass
    return best


def affine_steps(x: Float32, weights: Float32, n_max: int, first: float, n_steps: int) -> Iterator[Affine]:
    """Do the search above one step at a time; yield the best fit so far, first the obvious one.

    Arguments as `affine_search`. Draw what this yields to see the search at work.
    """
    highest = x.max(axis=0)  # (count,)
    best = _obvious_fit(x, weights, highest, n_max)
    yield best
    sum_w, sum_x = sum_in_order(weights), sum_in_order(weights * x)
    for step in range(n_steps + 1):
        levels = np.float32(first) + np.float32(0.1) * np.float32(step) + np.float32(n_max)
        # the range starts at the best minimum so far, no longer at the smallest weight
        codes = _codes_above(x, best.minimum, levels / (highest - best.minimum), n_max)
        fit, solvable = _least_squares(x, weights, sum_w, sum_x, codes)
        best = _choose(solvable & (fit.error < best.error), fit, best)
        yield best


def _obvious_fit(x: Float32, weights: Float32, highest: Float32, n_max: int) -> Affine:
    """Put level 0 on the smallest weight (or on zero, if that is lower), level n_max on the largest."""
    minimum = np.minimum(x.min(axis=0), np.float32(0))
    inverse = np.float32(n_max) / (highest - minimum)  # infinite where all are equal: scale, codes 0
    scale = np.float32(1) / inverse
    codes = _codes_above(x, minimum, inverse, n_max)
    return Affine(scale, minimum, codes, _error(x, weights, scale, minimum, codes))


def _least_squares(
    x: Float32, weights: Float32, sum_w: Float32, sum_x: Float32, codes: Float32
) -> tuple[Affine, Mask]:
    """Find the scale and minimum that fit the codes best, and where there is a single best one.

    Setting the derivatives of Σ w (s l + m - x)² by s and by m to zero gives two equations,
        s Σ w l² + m Σ w l = Σ w l x
        s Σ w l  + m Σ w   = Σ w x
    with one solution where their determinant is positive: where the codes are not all the same.
    A minimum above zero is not allowed (it is stored as a positive number to subtract); then m = 0.
    """
    weighted_l = weights * codes
    sum_l = sum_in_order(weighted_l)
    sum_ll = sum_in_order(weighted_l * codes)
    sum_xl = sum_in_order(weighted_l * x)
    determinant = sum_w * sum_ll - sum_l * sum_l
    scale: Float32 = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant)
    minimum: Float32 = np.divide(sum_ll * sum_x - sum_l * sum_xl, determinant)
    above = minimum > 0
    scale[above] = (sum_xl / sum_ll)[above]
    minimum[above] = 0
    return Affine(scale, minimum, codes, _error(x, weights, scale, minimum, codes)), determinant > 0


def _choose(where: Mask, new: Affine, old: Affine) -> Affine:
    """Take the new fit in the sub-blocks where it is better, else the old one."""
    return Affine(*(np.where(where, a, b) for a, b in zip(new, old, strict=True)))


def _error(x: Float32, weights: Float32, scale: Float32, minimum: Float32, codes: Float32) -> Float32:
    """Sum up w (scale * code + minimum - x)² of each sub-block: (count,)."""
    difference = scale * codes + minimum - x
    return sum_in_order(weights * (difference * difference))


def _projections(weights: Float32, weighted_x: Float32, codes: Float32) -> tuple[Float32, Float32]:
    """Sum up w x l and w l² over each sub-block: two arrays (count,)."""
    return sum_in_order(weighted_x * codes), sum_in_order(weights * codes * codes)


def _signed_codes(x: Float32, inverse_scale: Float32, n_max: int) -> Float32:
    """Round x / scale, in -n_max … n_max - 1: (size, count)."""
    return np.clip(nearest_int(inverse_scale * x), -n_max, n_max - 1).astype(np.float32)


def _codes_above(x: Float32, minimum: Float32, inverse_scale: Float32, n_max: int) -> Float32:
    """Round (x - minimum) / scale, in 0 … n_max: (size, count)."""
    return np.clip(nearest_int(inverse_scale * (x - minimum)), 0, n_max).astype(np.float32)


def signed_peak(x: Float32, axis: int) -> Float32:
    """Find the number of largest magnitude along an axis, with its sign; the first of equals; never -0."""
    where = np.expand_dims(np.abs(x).argmax(axis=axis), axis)
    peak = np.take_along_axis(x, where, axis).squeeze(axis)
    return np.where(peak != 0, peak, np.float32(0))  # the sign of a zero would end up in the file


def sum_in_order(terms: Float32) -> Float32:
    """Add up the rows of (size, count), first to last: np.sum could pair them up, and round differently."""
    total: Float32 = np.zeros_like(terms[0])
    for term in terms:
        total += term
    return total
