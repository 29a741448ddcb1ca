"""IQ4_NL and IQ4_XS: 4-bit codes for sixteen uneven levels, close together near zero, where weights are many.

The weights of a model are distributed like a bell: evenly spaced levels waste codes on its rims. The
search is the symmetric one: try several scales, round to the nearest level, ask least squares for the
scale that fits those levels best, keep the one with the largest gain.
Source: ggml `quantize_row_iq4_nl_impl`; bytes equal to ggml 0.25.
"""

import numpy as np
from numpy.typing import ArrayLike

from phicourse.quantize.blocks import (
    Blocks,
    Float32,
    UInt8,
    join_rows,
    pack,
    pack_nibbles,
    split_rows,
    sub_blocks,
    to_columns,
    unpack_nibbles,
)
from phicourse.quantize.error_weights import error_weights
from phicourse.quantize.rounding import nearest_int, quiet, reciprocal, sum_in_order
from phicourse.quantize.scale_search import ZERO, signed_peak

# The levels of the format, chosen once by its author; not symmetric, and without a zero.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

BLOCK, SUPER_BLOCK = 32, 256


@quiet
def quantize_iq4_nl(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ4_NL: 32 weights share one scale, 4.5 bits per weight.

    x           (..., n) float32, n a multiple of 32, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 32) blocks: d float16, qs (16,) uint8
    raises      QuantizeError where 32 does not divide n, or the importance does not fit
    """
    weights = split_rows(x, BLOCK, "IQ4_NL")  # (..., n_blocks, 32)
    scale = _search(weights, _error_weights(weights, importance, "IQ4_NL"))  # (..., n_blocks)
    codes = nearest_level(weights * reciprocal(scale)[..., None])
    return pack("IQ4_NL", d=scale, qs=pack_nibbles(codes))  # only here the scale becomes a float16


@quiet
def quantize_iq4_xs(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ4_XS: as IQ4_NL, with 6-bit scales in a super-block; 4.25 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: d float16, scales_h uint16, scales_l (4,), qs (128,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    blocks = split_rows(x, SUPER_BLOCK, "IQ4_XS")  # (..., n_blocks, 256)
    weights = sub_blocks(blocks, BLOCK)  # (..., n_blocks, 8, 32)
    scales = _search(
        weights, sub_blocks(_error_weights(blocks, importance, "IQ4_XS"), BLOCK)
    )  # (..., n_blocks, 8)
    d = -signed_peak(scales, axis=-1) / np.float32(32)
    scale_codes = np.clip(nearest_int(reciprocal(d)[..., None] * scales), -32, 31)
    step = d[..., None] * scale_codes.astype(np.float32)  # with d as it was before float16
    codes = nearest_level(weights * reciprocal(step)[..., None])
    high, low = pack_scales((scale_codes + 32).astype(np.uint8))
    packed = pack_nibbles(codes).reshape(*d.shape, 128)
    return pack("IQ4_XS", d=d, scales_h=high, scales_l=low, qs=packed)


def dequantize_iq4_nl(blocks: Blocks) -> Float32:
    """Weight = d * level[code]: (..., n_blocks) IQ4_NL -> (..., n) float32."""
    return join_rows(blocks["d"].astype(np.float32)[..., None] * LEVELS[unpack_nibbles(blocks["qs"])])


def dequantize_iq4_xs(blocks: Blocks) -> Float32:
    """Weight = d * (scale - 32) * level[code]: (..., n_blocks) IQ4_XS -> (..., n) float32."""
    scales = unpack_scales(blocks["scales_h"], blocks["scales_l"]).astype(np.float32) - np.float32(32)
    step = blocks["d"].astype(np.float32)[..., None] * scales  # (..., n_blocks, 8)
    codes = unpack_nibbles(blocks["qs"].reshape(*blocks.shape, 8, 16))  # (..., n_blocks, 8, 32)
    return join_rows((step[..., None] * LEVELS[codes]).reshape(*blocks.shape, SUPER_BLOCK))


def nearest_level(levels: Float32) -> UInt8:
    """Find the code of the level nearest to each number, the upper one of two as near; any shape."""
    above = np.clip(np.searchsorted(LEVELS, levels, side="right"), 1, 15)
    lower_is_nearer = levels - LEVELS[above - 1] < LEVELS[above] - levels
    return (above - lower_is_nearer).astype(np.uint8)


def _error_weights(blocks: Float32, importance: ArrayLike | None, type_name: str) -> Float32:
    """How much an error in each weight counts: x² where no importance is known; (..., n_blocks, size)."""
    return blocks * blocks if importance is None else error_weights(blocks, importance, 2, type_name)


def _search(weights: Float32, counts: Float32) -> Float32:
    """Find the scale of each sub-block, 0 where it is all zero: (..., 32) and (..., 32) -> (...)."""
    x, counts = to_columns(weights), to_columns(counts)  # (32, count)
    peak = signed_peak(x, axis=0)
    ql, qq = _projections(x, counts, np.float32(1) / (-peak / LEVELS[0]))
    scale = np.where(qq > 0, ql / qq, np.float32(0))
    gain = scale * ql
    for shift in range(-7, 8):  # the largest weight meets a level 7 below -127 … 7 above
        ql, qq = _projections(x, counts, (np.float32(shift) + LEVELS[0]) / peak)
        better = (qq > 0) & (ql * ql > gain * qq)
        scale = np.where(better, ql / qq, scale)
        gain = np.where(better, scale * ql, gain)
    return np.where(np.abs(peak) < ZERO, np.float32(0), scale).reshape(weights.shape[:-1])


def _projections(x: Float32, counts: Float32, inverse: Float32) -> tuple[Float32, Float32]:
    """Sum up w level x and w level² over each sub-block, levels chosen with 1 / scale: two arrays (count,)."""
    levels = LEVELS[nearest_level(inverse * x)]
    weighted = counts * levels
    return sum_in_order(weighted * x), sum_in_order(weighted * levels)


def pack_scales(codes: UInt8) -> tuple[Blocks, UInt8]:
    """Eight 6-bit numbers: two high bits each in a word (...), four low bits each in (..., 4) bytes."""
    pairs = codes.reshape(*codes.shape[:-1], 4, 2)
    high = (codes >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    return np.bitwise_or.reduce(high, axis=-1), np.asarray(pairs[..., 0] & 15 | pairs[..., 1] << 4)


def unpack_scales(high: Blocks, low: UInt8) -> UInt8:
    """Undo `pack_scales`: (...) and (..., 4) -> (..., 8)."""
    four = np.stack([low & 15, low >> 4], axis=-1).reshape(*low.shape[:-1], 8)
    two = (high[..., None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    return np.asarray(four | two << 4)
