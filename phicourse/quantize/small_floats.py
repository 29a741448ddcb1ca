"""MXFP4 and NVFP4: codes are 4-bit floating-point numbers, and so, in a way, are the scales.

A code is an E2M1 number: 1 sign bit, 2 exponent bits, 1 mantissa bit; 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their
negatives. Large weights get coarse steps and small ones fine steps, and hardware multiplies them directly.
MXFP4 (of OCP, used by gpt-oss) has a power of two as scale, for 32 weights; NVFP4 (of NVIDIA) an 8-bit
float, for 16. There is no search.
Source: ggml `quantize_row_mxfp4_ref`, `quantize_row_nvfp4_ref`; bytes equal to ggml 0.25.
"""

import numpy as np

from phicourse.quantize.blocks import (
    Blocks,
    Float32,
    UInt8,
    join_rows,
    pack,
    pack_nibbles,
    split_rows,
    unpack_nibbles,
)
from phicourse.quantize.rounding import quiet, truncate

# Twice the E2M1 numbers: whole, with the half in the scale. Code 8 would be -0; it is 0 here.
LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@quiet
def quantize_mxfp4(x: Float32) -> Blocks:
    """Quantize rows to MXFP4: 32 weights share a power of two, 4.25 bits per weight.

    x        (..., n) float32, n a multiple of 32, finite
    returns  (..., n / 32) blocks: e uint8 (an exponent), qs (16,) uint8
    raises   QuantizeError where 32 does not divide n
    """
    weights = split_rows(x, 32, "MXFP4")  # (..., n_blocks, 32)
    largest = np.abs(weights).max(axis=-1)
    # the power of two at or below the largest weight shall meet code 4, of the numbers 4 and 6; log2 in
    # float64 first, because the last bit of a float32 log2 differs between processors
    power = np.floor(np.log2(largest.astype(np.float64)).astype(np.float32)) - np.float32(2)
    exponent = np.where(largest > 0, truncate(power + np.float32(127)), 0).astype(np.uint8)
    codes = _nearest_codes(weights, half_of_power(exponent))
    return pack("MXFP4", e=exponent, qs=pack_nibbles(codes))


@quiet
def quantize_nvfp4(x: Float32) -> Blocks:
    """Quantize rows to NVFP4: 16 weights share an 8-bit float, four times in a block; 4.5 bits per weight.

    x        (..., n) float32, n a multiple of 64, finite
    returns  (..., n / 64) blocks: d (4,) uint8 (floats), qs (32,) uint8
    raises   QuantizeError where 64 does not divide n
    """
    blocks = split_rows(x, 64, "NVFP4")
    weights = blocks.reshape(*blocks.shape[:-1], 4, 16)  # (..., n_blocks, 4, 16)
    d = float32_to_ue4m3(np.abs(weights).max(axis=-1) / np.float32(6))  # the largest E2M1 number
    codes = _nearest_codes(weights, half_of_ue4m3(d))
    return pack("NVFP4", d=d, qs=pack_nibbles(codes).reshape(*blocks.shape[:-1], 32))


def dequantize_mxfp4(blocks: Blocks) -> Float32:
    """Weight = 2^(e - 127) * E2M1 number: (..., n_blocks) MXFP4 -> (..., n) float32."""
    with np.errstate(over="ignore"):  # 2^128 is infinite, as in ggml; no weight of a model gets there
        return join_rows(LEVELS[unpack_nibbles(blocks["qs"])] * half_of_power(blocks["e"])[..., None])


def dequantize_nvfp4(blocks: Blocks) -> Float32:
    """Weight = d * E2M1 number: (..., n_blocks) NVFP4 -> (..., n) float32."""
    packed = blocks["qs"].reshape(*blocks.shape, 4, 8)
    values = LEVELS[unpack_nibbles(packed)] * half_of_ue4m3(blocks["d"])[..., None]  # (..., 4, 16)
    return join_rows(values.reshape(*blocks.shape, 64))


def _nearest_codes(weights: Float32, scale: Float32) -> UInt8:
    """Find the level nearest to each weight, the first of equals: (..., size), (...) -> (..., size)."""
    levels = LEVELS * scale[..., None]  # (..., 16)
    distance = np.abs(levels[..., None, :] - weights[..., :, None])  # (..., size, 16)
    return np.asarray(distance.argmin(axis=-1), dtype=np.uint8)


def half_of_power(exponent: UInt8) -> Float32:
    """2^(e - 127) / 2, any shape: the exponent field of a float32, whose two smallest are denormal."""
    wide = exponent.astype(np.uint32)
    denormal = np.uint32(0x00200000) << np.minimum(wide, np.uint32(1))  # 2^-128 or 2^-127
    return np.where(wide < 2, denormal, (wide - np.uint32(1)) << np.uint32(23)).view(np.float32)


def float32_to_ue4m3(x: Float32) -> UInt8:
    """Round to an unsigned 8-bit float with 4 exponent and 3 mantissa bits, half up; any shape.

    Below 2^-6 (code 8) the steps are 2^-9; the largest number is 448 (code 126), and as in ggml it takes
    the place of all numbers from 248 on. Zero for x <= 0 or NaN.
    """
    bits = x.view(np.int32)
    # The highest four bits of the mantissa and the exponent are one number: adding a half to the fourth
    # rounds, and a carry goes into the exponent, where it belongs. Float32's bias is 127, this one's is 7.
    normal = ((bits >> 19) + 1 >> 1) - ((127 - 7) << 3)
    normal = np.where(normal < 15 << 3, normal, 0x7E)
    small = np.minimum(truncate(x * np.float32(512) + np.float32(0.5)), 7)
    is_small = x < np.float32(2**-6)
    return np.where(x > 0, np.where(is_small, small, normal), 0).astype(np.uint8)


def half_of_ue4m3(codes: UInt8) -> Float32:
    """Half the number that an unsigned 8-bit float stands for, any shape; code 127 (NaN) is read as 0."""
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    small = np.ldexp(mantissa, -9)
    normal = np.ldexp(np.float32(1) + mantissa / np.float32(8), exponent - 7)
    values = np.where(exponent == 0, small, normal) * np.float32(0.5)
    return np.where(codes == 0x7F, np.float32(0), values).astype(np.float32)
