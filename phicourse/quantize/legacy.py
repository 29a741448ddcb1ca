"""Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: 32 weights share one scale (and, in the `_1` types, one minimum).

One formula each, no search: the largest weight decides. Only an importance matrix makes the 4- and 5-bit
types search; Q8_0 has no use for one. These types came first, hence "legacy"; Q8_0 is still the best choice
at 8 bits, and the others catch rows that no K-quant divides.
Source: ggml `quantize_row_*_ref`, `quantize_row_*_impl` and `dequantize_row_*`; bytes equal to ggml 0.25.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.quantize.blocks import (
    Blocks,
    Float32,
    UInt8,
    from_columns,
    join_rows,
    pack,
    pack_nibbles,
    split_rows,
    to_columns,
    unpack_nibbles,
)
from phicourse.quantize.error_weights import error_weights
from phicourse.quantize.rounding import quiet, reciprocal, round_half_away, truncate
from phicourse.quantize.scale_search import FINE_TRIALS, affine_search, signed_peak, symmetric_search

BLOCK = 32


@quiet
def quantize_q8_0(x: Float32) -> Blocks:
    """Quantize rows to Q8_0: 32 weights share one scale, 8.5 bits per weight.

    x        (..., n) float32, n a multiple of 32, finite
    returns  (..., n / 32) blocks: d float16, qs (32,) int8
    raises   QuantizeError where 32 does not divide n
    """
    weights = split_rows(x, BLOCK, "Q8_0")  # (..., n_blocks, 32)
    scale = np.abs(weights).max(axis=-1) / np.float32(127)  # (..., n_blocks)
    codes = round_half_away(weights * reciprocal(scale)[..., None])  # -127 … 127
    return pack("Q8_0", d=scale, qs=codes)  # only here the scale becomes a float16


def dequantize_q8_0(blocks: Blocks) -> Float32:
    """Weight = d * code: (..., n_blocks) Q8_0 -> (..., n) float32."""
    return join_rows(_column(blocks["d"]) * blocks["qs"].astype(np.float32))


@quiet
def quantize_q4_0(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q4_0: codes 0 … 15 stand for -8 … 7 scales, 4.5 bits per weight.

    x           (..., n) float32, n a multiple of 32, finite
    importance  (n,) float32, how much each column counts; None: the largest weight decides
    returns     (..., n / 32) blocks: d float16, qs (16,) uint8
    raises      QuantizeError where 32 does not divide n, or the importance does not fit
    """
    scale, codes = _symmetric(split_rows(x, BLOCK, "Q4_0"), importance, 8, "Q4_0")
    return pack("Q4_0", d=scale, qs=pack_nibbles(codes))


def dequantize_q4_0(blocks: Blocks) -> Float32:
    """Weight = d * (code - 8): (..., n_blocks) Q4_0 -> (..., n) float32."""
    codes = unpack_nibbles(blocks["qs"])  # (..., n_blocks, 32)
    return join_rows((codes.astype(np.float32) - np.float32(8)) * _column(blocks["d"]))


@quiet
def quantize_q5_0(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q5_0: codes 0 … 31 stand for -16 … 15 scales, 5.5 bits per weight.

    x           (..., n) float32, n a multiple of 32, finite
    importance  (n,) float32, how much each column counts; None: the largest weight decides
    returns     (..., n / 32) blocks: d float16, qh uint32 (the fifth bits), qs (16,) uint8
    raises      QuantizeError where 32 does not divide n, or the importance does not fit
    """
    scale, codes = _symmetric(split_rows(x, BLOCK, "Q5_0"), importance, 16, "Q5_0")
    return pack("Q5_0", d=scale, qh=pack_fifth_bits(codes), qs=pack_nibbles(codes))


def dequantize_q5_0(blocks: Blocks) -> Float32:
    """Weight = d * (code - 16): (..., n_blocks) Q5_0 -> (..., n) float32."""
    codes = unpack_nibbles(blocks["qs"]) | unpack_fifth_bits(blocks["qh"])
    return join_rows((codes.astype(np.float32) - np.float32(16)) * _column(blocks["d"]))


@quiet
def quantize_q4_1(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q4_1: codes 0 … 15 go up from the block's minimum, 5 bits per weight.

    x           (..., n) float32, n a multiple of 32, finite
    importance  (n,) float32, how much each column counts; None: the largest weight decides
    returns     (..., n / 32) blocks: d, m float16, qs (16,) uint8
    raises      QuantizeError where 32 does not divide n, or the importance does not fit
    """
    scale, minimum, codes = _affine(split_rows(x, BLOCK, "Q4_1"), importance, 15, "Q4_1")
    return pack("Q4_1", d=scale, m=minimum, qs=pack_nibbles(codes))


def dequantize_q4_1(blocks: Blocks) -> Float32:
    """Weight = d * code + m: (..., n_blocks) Q4_1 -> (..., n) float32."""
    codes = unpack_nibbles(blocks["qs"])
    return join_rows(codes.astype(np.float32) * _column(blocks["d"]) + _column(blocks["m"]))


@quiet
def quantize_q5_1(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q5_1: codes 0 … 31 go up from the block's minimum, 6 bits per weight.

    x           (..., n) float32, n a multiple of 32, finite
    importance  (n,) float32, how much each column counts; None: the largest weight decides
    returns     (..., n / 32) blocks: d, m float16, qh uint32 (the fifth bits), qs (16,) uint8
    raises      QuantizeError where 32 does not divide n, or the importance does not fit
    """
    scale, minimum, codes = _affine(split_rows(x, BLOCK, "Q5_1"), importance, 31, "Q5_1")
    return pack("Q5_1", d=scale, m=minimum, qh=pack_fifth_bits(codes), qs=pack_nibbles(codes))


def dequantize_q5_1(blocks: Blocks) -> Float32:
    """Weight = d * code + m: (..., n_blocks) Q5_1 -> (..., n) float32."""
    codes = unpack_nibbles(blocks["qs"]) | unpack_fifth_bits(blocks["qh"])
    return join_rows(codes.astype(np.float32) * _column(blocks["d"]) + _column(blocks["m"]))


def _symmetric(
    weights: Float32, importance: ArrayLike | None, n_max: int, type_name: str
) -> tuple[Float32, UInt8]:
    """Scale (..., n_blocks) and codes (..., n_blocks, 32) such that weight = scale * (code - n_max).

    Without importance, the largest weight gets code 0, which stands for -n_max: the side with one level
    more. Where it is positive, the scale is negative.
    """
    if importance is None:
        scale = signed_peak(weights, axis=-1) / np.float32(-n_max)
        levels = weights * reciprocal(scale)[..., None] + np.float32(n_max + 0.5)
        return scale, np.minimum(truncate(levels), 2 * n_max - 1).astype(np.uint8)
    found = symmetric_search(to_columns(weights), _counts(weights, importance, type_name), n_max)
    codes = from_columns(found.codes, weights.shape) + np.float32(n_max)
    return found.scale.reshape(weights.shape[:-1]), codes.astype(np.uint8)


def _affine(
    weights: Float32, importance: ArrayLike | None, n_max: int, type_name: str
) -> tuple[Float32, Float32, UInt8]:
    """Scale, minimum (..., n_blocks) and codes (..., n_blocks, 32): weight = scale * code + minimum.

    Without importance, the smallest weight gets code 0, the largest n_max. With it, the minimum is not
    above zero, as in the K-quants.
    """
    if importance is None:
        lowest, highest = _at(weights, weights.argmin(axis=-1)), _at(weights, weights.argmax(axis=-1))
        scale = (highest - lowest) / np.float32(n_max)
        levels = (weights - lowest[..., None]) * reciprocal(scale)[..., None] + np.float32(0.5)
        return scale, lowest, np.minimum(truncate(levels), n_max).astype(np.uint8)
    counts = _counts(weights, importance, type_name)
    found = affine_search(to_columns(weights), counts, n_max, FINE_TRIALS)
    scale, minimum = (values.reshape(weights.shape[:-1]) for values in (found.scale, found.minimum))
    return scale, minimum, from_columns(found.codes, weights.shape).astype(np.uint8)


def _counts(weights: Float32, importance: ArrayLike, type_name: str) -> Float32:
    """How much an error in each weight counts, one block a column: (..., n_blocks, 32) -> (32, count).

    Unlike in the K-quants, the mean square is that of the whole row.
    """
    rows = join_rows(weights)[..., None, :]  # (..., 1, n)
    return to_columns(error_weights(rows, importance, 1, type_name).reshape(weights.shape))


def _at(weights: Float32, index: NDArray[np.intp]) -> Float32:
    """Pick one weight of each block: (..., n_blocks, 32) at (..., n_blocks) -> (..., n_blocks).

    Through argmin rather than min, because among 0 and -0 ggml takes the first, and the sign is stored.
    """
    return np.take_along_axis(weights, index[..., None], axis=-1)[..., 0]


def _column(scale: Blocks) -> Float32:
    """Return a stored scale of each block, to multiply its weights: (..., n_blocks) -> (..., n_blocks, 1)."""
    return scale.astype(np.float32)[..., None]


def pack_fifth_bits(codes: UInt8) -> Blocks:
    """Bit 4 of code j becomes bit j of a word: (..., 32) -> (...) uint32."""
    bits = (codes >> np.uint8(4)).astype(np.uint32) << np.arange(BLOCK, dtype=np.uint32)
    return np.asarray(np.bitwise_or.reduce(bits, axis=-1))


def unpack_fifth_bits(word: Blocks) -> UInt8:
    """Bit j of the word becomes bit 4 of value j: (...) uint32 -> (..., 32)."""
    bits = word[..., None] >> np.arange(BLOCK, dtype=np.uint32)
    return ((bits & np.uint32(1)) << np.uint32(4)).astype(np.uint8)
