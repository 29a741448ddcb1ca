"""How a sub-block finds its scale: the heart of the K-quants, step by step.

Rounding to the nearest level is easy once the scale is known; the question is which scale. The
obvious one, that just lets the largest weight fit, is rarely the best: a slightly smaller or larger
one moves many weights closer to a level. So: try several scales, round with each, ask least squares
for the scale that fits those codes best, keep the codes with the smallest error.

| search              | weight =               | codes              | how                                  |
| ------------------- | ---------------------- | ------------------ | ------------------------------------ |
| `symmetric_search`  | scale * code           | -n_max … n_max - 1 | 19 scales                            |
| `symmetric_descent` | scale * code           | -n_max … n_max - 1 | one scale, then codes one by one     |
| `positive_search`   | scale * code           | 0 … n_max          | 9 scales, then codes one by one      |
| `affine_search`     | scale * code + minimum | 0 … n_max          | up to 38 scales, each with a minimum |

All sub-blocks are searched at once. Arrays are (size, count): x[i, s] is weight i of sub-block s, so
that one row of an array is one step of the loop that ggml runs over a sub-block. `weights`, of the same
shape, say how much an error in each x counts. Sums are taken row by row, in that order: another order
rounds differently, and a bit of difference can change a code.
Sub-blocks of zeros divide by zero on the way, without harm; the quantizers are `quiet` about it.
Source: ggml `make_qx_quants`, `make_q3_quants`, `make_qp_quants`, `make_qkx2_quants`, `make_qkx3_quants`;
bytes equal to ggml 0.25.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phicourse.quantize.blocks import Float32
from phicourse.quantize.rounding import Int32, nearest_int, sum_in_order

# Below this largest magnitude a sub-block counts as all zero.
ZERO = np.float32(1e-15)

Mask = NDArray[np.bool_]


def signed_peak(x: Float32, axis: int) -> Float32:
    """Find the number of largest magnitude along an axis, with its sign; the first of equals; never -0.

    What is not a number is none: sums of weights beyond 1e12 overflow, and ggml looks past such a scale.
    """
    numbers = np.where(np.isnan(x), np.float32(0), x)
    where = np.expand_dims(np.abs(numbers).argmax(axis=axis), axis)
    peak = np.take_along_axis(numbers, where, axis).squeeze(axis)
    return np.where(peak != 0, peak, np.float32(0))  # the sign of a zero would end up in the file


# ---- codes on both sides of zero -------------------------------------------------------------------------


class Symmetric(NamedTuple):
    """weight = scale * code, with codes on both sides of zero."""

    scale: Float32  # (count,)
    codes: Float32  # (size, count), whole numbers


def symmetric_search(x: Float32, weights: Float32, n_max: int) -> Symmetric:
    """Find scale and codes -n_max … n_max - 1 for each sub-block.

    x, weights  (size, count) float32
    returns     scale (count,) and codes (size, count); where a sub-block is all zero, 0 and -n_max

    With the codes l fixed, the error Σ w (x - s l)² is smallest at s = Σ w x l / Σ w l², and what then
    remains is Σ w x² - s Σ w x l. So the best codes are those with the largest gain s Σ w x l.
    """
    peak = signed_peak(x, axis=0)  # (count,)
    weighted_x = weights * x
    codes = _signed_codes(np.float32(-n_max) / peak * x, n_max)  # the obvious ones: the peak gets -n_max
    xl, ll = _projections(weights, weighted_x, codes)
    scale = np.where(ll != 0, xl / ll, np.float32(0))
    gain = scale * xl
    for step in (-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9):
        stretched = np.float32(n_max) + np.float32(0.1) * np.float32(step)
        tried = _signed_codes(-stretched / peak * x, n_max)
        xl, ll = _projections(weights, weighted_x, tried)
        better = (ll > 0) & (xl * xl > gain * ll)
        np.copyto(codes, tried, where=better)
        scale = np.where(better, xl / ll, scale)
        gain = np.where(better, scale * xl, gain)
    empty = np.abs(peak) < ZERO
    return Symmetric(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-n_max), codes))


def symmetric_descent(x: Float32, weights: Float32, n_max: int) -> Symmetric:
    """Start with the peak at -n_max, then improve codes one by one.

    Arguments and result as `symmetric_search`.
    """
    peak = signed_peak(x, axis=0)  # (count,)
    codes = _signed_codes(np.float32(-n_max) / peak * x, n_max)
    scale, codes = _descend(x, weights, codes, n_max, signed=True)
    empty = np.abs(peak) < ZERO
    return Symmetric(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(-n_max), codes))


def _signed_codes(levels: Float32, n_max: int) -> Float32:
    """Round to -n_max … n_max - 1, any shape."""
    return np.clip(nearest_int(levels), -n_max, n_max - 1).astype(np.float32)


def _projections(weights: Float32, weighted_x: Float32, codes: Float32) -> tuple[Float32, Float32]:
    """Sum up w x l and w l² over each sub-block: two arrays (count,)."""
    return sum_in_order(weighted_x * codes), sum_in_order(weights * codes * codes)


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
    largest = np.zeros_like(x[0])  # (count,)
    for row in x:  # as ggml compares: what is not a number is forgotten with the next row
        largest = np.where(largest > row, largest, row)
    inverse = np.float32(n_max) / largest
    best = _squares(x, weights, np.float32(1) / inverse, _as_bytes(nearest_int(inverse * x)))
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        tried = (np.float32(0.1) * np.float32(step) + np.float32(n_max)) / largest
        error = _squares(x, weights, np.float32(1) / tried, _codes_up_to(tried * x, n_max))
        inverse = np.where(error < best, tried, inverse)
        best = np.where(error < best, error, best)
    scale, codes = _descend(x, weights, _codes_up_to(inverse * x, n_max), n_max, signed=False)
    empty = largest < ZERO
    return Positive(np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes))


def _codes_up_to(levels: Float32, n_max: int) -> Float32:
    """Round to n_max at most, any shape."""
    return np.minimum(nearest_int(levels), n_max).astype(np.float32)


def _as_bytes(codes: Float32 | Int32) -> Float32:
    """What is left of whole numbers in a byte, any shape."""
    return np.mod(codes, 256).astype(np.float32)


def _squares(x: Float32, weights: Float32, scale: Float32, codes: Float32) -> Float32:
    """Sum up w (x - scale * code)² over each sub-block: (count,)."""
    difference = x - scale * codes
    return sum_in_order(weights * difference * difference)


# ---- codes one by one ------------------------------------------------------------------------------------


def _descend(
    x: Float32, weights: Float32, codes: Float32, n_max: int, *, signed: bool
) -> tuple[Float32, Float32]:
    """Improve one code after the other, at most five times round: coordinate descent.

    Take weight i out of the sums: the scale that the others want is Σ w x l / Σ w l² without it. Put in
    the code that is nearest with that scale, and keep it if the gain (Σ w x l)² / Σ w l² grows.

    codes    (size, count), where to start
    signed   whether codes are -n_max … n_max - 1, or bytes up to n_max
    returns  the scale (count,) that fits the new codes best, 0 where all count nothing; the codes
    """
    xl, ll = _projections(weights, weights * x, codes)
    codes = codes.copy() if signed else _as_bytes(codes)
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            others_xl = xl - weights[i] * x[i] * codes[i]  # (count,)
            others_ll = ll - weights[i] * codes[i] * codes[i]
            wanted = x[i] * others_ll / others_xl
            tried = _signed_codes(wanted, n_max) if signed else _codes_up_to(wanted, n_max)
            new_xl = others_xl + weights[i] * x[i] * tried
            new_ll = others_ll + weights[i] * tried * tried
            better = (others_xl > 0) & (tried != codes[i]) & (new_xl * new_xl * ll > xl * xl * new_ll)
            better &= (new_ll if signed else others_ll) > 0
            codes[i] = np.where(better, tried if signed else _as_bytes(tried), codes[i])
            xl, ll = np.where(better, new_xl, xl), np.where(better, new_ll, ll)
            changed |= bool(better.any())
        if not changed:
            break
    return np.where(ll > 0, xl / ll, np.float32(0)), codes


# ---- scale and minimum -----------------------------------------------------------------------------------


class Affine(NamedTuple):
    """weight = scale * code + minimum, with codes from 0 up and a minimum that is never above zero."""

    scale: Float32  # (count,)
    minimum: Float32  # (count,)
    codes: Float32  # (size, count), whole numbers
    error: Float32  # (count,) weighted error


class Trials(NamedTuple):
    """Trial i stretches the range of x to n_max + first + i * step levels, i = 0 … n_steps."""

    first: float
    step: float
    n_steps: int


# What all types try where the importance of the columns is known.
FINE_TRIALS = Trials(-0.9, 0.05, 36)


def affine_search(
    x: Float32, weights: Float32, n_max: int, trials: Trials, *, absolute: bool = False
) -> Affine:
    """Find scale, minimum and codes 0 … n_max for each sub-block.

    x, weights  (size, count) float32
    trials      the stretches to try
    absolute    judge a trial by Σ w |error|, not by Σ w error²
    returns     the best fit; where all x are the same, and not above zero, scale 0 and codes 0
    """
    for best in affine_steps(x, weights, n_max, trials, absolute=absolute):  # noqa: B007 - only the last counts
        pass
    return best


def affine_steps(
    x: Float32, weights: Float32, n_max: int, trials: Trials, *, absolute: bool = False
) -> Iterator[Affine]:
    """Do the search above one step at a time; yield the best fit so far, first the obvious one.

    Arguments as `affine_search`. Draw what this yields to see the search at work.
    """
    highest = x.max(axis=0)  # (count,)
    best = _obvious_fit(x, weights, highest, n_max, absolute)
    yield best
    sum_w, sum_x = sum_in_order(weights), sum_in_order(weights * x)
    for i in range(trials.n_steps + 1):
        levels = np.float32(trials.first) + np.float32(trials.step) * np.float32(i) + np.float32(n_max)
        # the range starts at the best minimum so far, no longer at the smallest weight
        codes = _codes_above(x, best.minimum, levels / (highest - best.minimum), n_max)
        scale, minimum, solvable = least_squares(x, weights, sum_w, sum_x, codes)
        error = _error_of(x, weights, scale, minimum, codes, absolute)
        best = _choose(solvable & (error < best.error), Affine(scale, minimum, codes, error), best)
        yield best


def _obvious_fit(x: Float32, weights: Float32, highest: Float32, n_max: int, absolute: bool) -> Affine:
    """Put level 0 on the smallest weight (or on zero, if that is lower), level n_max on the largest."""
    lowest = np.take_along_axis(x, x.argmin(axis=0)[None], axis=0)[0]  # of 0 and -0 the first
    minimum = np.where(lowest > 0, np.float32(0), lowest)
    inverse = np.float32(n_max) / (highest - minimum)  # infinite where all are equal: codes 0
    scale = np.where(highest > minimum, np.float32(1) / inverse, np.float32(0))  # never -0
    codes = _codes_above(x, minimum, inverse, n_max)
    return Affine(scale, minimum, codes, _error_of(x, weights, scale, minimum, codes, absolute))


def _codes_above(x: Float32, minimum: Float32, inverse_scale: Float32, n_max: int) -> Float32:
    """Round (x - minimum) / scale, in 0 … n_max: (size, count)."""
    return np.clip(nearest_int(inverse_scale * (x - minimum)), 0, n_max).astype(np.float32)


def least_squares(
    x: Float32, weights: Float32, sum_w: Float32, sum_x: Float32, codes: Float32
) -> tuple[Float32, Float32, Mask]:
    """Find the scale and minimum (count,) that fit the codes best, and where there is a single best one.

    Setting the derivatives of Σ w (s l + m - x)² by s and by m to zero gives two equations,
        s Σ w l² + m Σ w l = Σ w l x
        s Σ w l  + m Σ w   = Σ w x
    with one solution where their determinant is positive: where the codes are not all the same.
    A minimum above zero is not allowed (it is stored as a positive number to subtract); then m = 0.
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


def _error_of(
    x: Float32, weights: Float32, scale: Float32, minimum: Float32, codes: Float32, absolute: bool
) -> Float32:
    """Sum up w (scale * code + minimum - x)², or the w of its magnitude, over each sub-block: (count,)."""
    difference = scale * codes + minimum - x
    return sum_in_order(weights * (np.abs(difference) if absolute else difference * difference))


def _choose(where: Mask, new: Affine, old: Affine) -> Affine:
    """Take the new fit in the sub-blocks where it is better, else the old one."""
    return Affine(*(np.where(where, a, b) for a, b in zip(new, old, strict=True)))
