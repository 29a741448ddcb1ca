"""Q1_0 and Q2_0: one or two bits a weight and one scale; nothing is simpler, and nothing loses more.

Like the ternary types they are for models that were trained with such weights. Q1_0 keeps the signs,
Q2_0 has the levels -1, 0, 1 and 2 (the last one a use that the quantizer itself never makes of it).
Source: ggml `quantize_row_q1_0_ref`, `quantize_row_q2_0_ref`; bytes equal to ggml 0.25.
"""

import numpy as np

from phicourse.quantize.blocks import Blocks, Float32, join_rows, pack, split_rows
from phicourse.quantize.rounding import quiet, reciprocal, round_half_away, sum_last


@quiet
def quantize_q1_0(x: Float32) -> Blocks:
    """Quantize rows to Q1_0: the sign of each weight, and their mean magnitude; 1.125 bits per weight.

    x        (..., n) float32, n a multiple of 128, finite
    returns  (..., n / 128) blocks: d float16, qs (16,) uint8
    raises   QuantizeError where 128 does not divide n

    Of all scales the mean magnitude has the smallest squared error: Σ (|x| - d)² is least there.
    """
    weights = split_rows(x, 128, "Q1_0")  # (..., n_blocks, 128)
    mean = sum_last(np.abs(weights)) / np.float32(128)
    return pack("Q1_0", d=mean, qs=np.packbits(weights >= 0, axis=-1, bitorder="little"))


@quiet
def quantize_q2_0(x: Float32) -> Blocks:
    """Quantize rows to Q2_0: -1, 0 or 1 times the largest magnitude of 64 weights; 2.25 bits per weight.

    x        (..., n) float32, n a multiple of 64, finite
    returns  (..., n / 64) blocks: d float16, qs (16,) uint8
    raises   QuantizeError where 64 does not divide n
    """
    weights = split_rows(x, 64, "Q2_0")  # (..., n_blocks, 64)
    scale = np.abs(weights).max(axis=-1)
    levels = weights * reciprocal(scale)[..., None]
    # 1 / d is infinite for denormal weights: ggml's x86-64 build then ends at the lowest code
    codes = np.where(np.isfinite(levels), round_half_away(levels) + 1, 0).astype(np.uint8)
    fours = codes.reshape(*codes.shape[:-1], 16, 4) << np.array([0, 2, 4, 6], np.uint8)
    return pack("Q2_0", d=scale, qs=np.bitwise_or.reduce(fours, axis=-1))


def dequantize_q1_0(blocks: Blocks) -> Float32:
    """Weight = d or -d: (..., n_blocks) Q1_0 -> (..., n) float32."""
    signs = np.unpackbits(blocks["qs"], axis=-1, bitorder="little")  # (..., n_blocks, 128)
    d = blocks["d"].astype(np.float32)[..., None]
    return join_rows(np.where(signs, d, -d))


def dequantize_q2_0(blocks: Blocks) -> Float32:
    """Weight = d * (code - 1): (..., n_blocks) Q2_0 -> (..., n) float32."""
    codes = blocks["qs"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3  # (..., n_blocks, 16, 4)
    values = blocks["d"].astype(np.float32)[..., None, None] * (codes.astype(np.float32) - np.float32(1))
    return join_rows(values.reshape(*blocks.shape, 64))
