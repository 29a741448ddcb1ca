"""Arithmetic that ends in the same bits as ggml's: three ways of rounding, and sums that run in order.

C leaves open what happens to infinity or NaN here, and denormal weights do get there (1 / d overflows).
These functions do what ggml's x86-64 build does.
"""

import numpy as np
from numpy.typing import NDArray

from phicourse.quantize.blocks import Float32

Int32 = NDArray[np.int32]

# Searches divide by ranges and sums that may be zero, and weights of 1e19 have no square: what comes of it
# is never chosen, or ends as a scale that is not finite, which `quantize_rows` refuses. No warnings, then.
quiet = np.errstate(all="ignore")


def nearest_int(v: Float32) -> Int32:
    """Round to the nearest integer, ties to even, for |v| <= 4,194,303; any shape.

    Adding 1.5 * 2**23 pushes the fraction out of the 23 bits of the mantissa, so the addition itself
    rounds; the integer is then read out of the mantissa. Infinity and NaN end as -4,194,304 and 0.
    """
    mantissa = (v + np.float32(12582912.0)).view(np.int32) & np.int32(0x007FFFFF)
    return np.asarray(mantissa - np.int32(0x00400000), dtype=np.int32)


def round_half_away(v: Float32) -> Int32:
    """Round to the nearest integer, ties away from zero, as C's `roundf`; any shape."""
    whole = np.trunc(v)
    # v - whole is exact, while floor(v + 0.5) would round 0.49999997 up
    return truncate(whole + np.copysign(np.abs(v - whole) >= np.float32(0.5), v))


def truncate(v: Float32) -> Int32:
    """Drop the fraction, as a C cast does; infinity and NaN become 0; any shape."""
    return np.where(np.isfinite(v), v, np.float32(0)).astype(np.int32)


def reciprocal(d: Float32) -> Float32:
    """1 / d, and 0 where d is 0; any shape."""
    return np.where(d != 0, np.float32(1) / d, np.float32(0))


def sum_in_order(terms: Float32) -> Float32:
    """Add up the rows of (size, count), first to last: np.sum could pair them up, and round differently."""
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total += term
    return total


def sum_last(values: Float32) -> Float32:
    """Sum over the last axis, first to last: (..., size) -> (...)."""
    return sum_in_order(np.moveaxis(values, -1, 0))
