"""Q2_K and Q3_K: the K-quants with the fewest bits, 16 sub-blocks of 16 weights in a super-block.

The steps are those of `k_quants`: search each sub-block's scale, quantize the scales, round again, pack.
With two or three bits a weight the search matters most, and so does knowing which columns count:
with an importance matrix the trials are finer, and the scales themselves are searched, not just rounded.
Source: ggml `quantize_row_q2_K_ref`, `_impl`, `quantize_row_q3_K_ref`, `_impl`; bytes equal to ggml 0.25.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.quantize.blocks import (
    Blocks,
    Float32,
    UInt8,
    from_columns,
    join_rows,
    pack,
    split_rows,
    sub_blocks,
    to_columns,
)
from phicourse.quantize.error_weights import error_weights
from phicourse.quantize.k_quants import scales_and_minima, searched_codes
from phicourse.quantize.rounding import nearest_int, quiet, sum_last
from phicourse.quantize.scale_search import (
    FINE_TRIALS,
    Symmetric,
    Trials,
    affine_search,
    signed_peak,
    symmetric_descent,
    symmetric_search,
)

SUPER_BLOCK, SIZE = 256, 16


@quiet
def quantize_q2_k(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q2_K: 2-bit codes; 4-bit scale and minimum for each 16; 2.625 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: scales (16,), qs (64,) uint8, d, dmin float16
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    blocks = split_rows(x, SUPER_BLOCK, "Q2_K")  # (..., n_blocks, 256)
    weights = sub_blocks(blocks, SIZE)  # (..., n_blocks, 16, 16)
    columns = to_columns(weights)  # (16, count)
    if importance is None:
        found = affine_search(columns, np.abs(columns), 3, Trials(-0.5, 0.1, 15), absolute=True)  # step 1
        scales, minima = scales_and_minima(found, weights.shape[:-1])
        d, scale_codes = _four_bit_codes(scales)  # step 2
        dmin, minimum_codes = _four_bit_codes(minima)
    else:
        counts = sub_blocks(error_weights(blocks, importance, 1, "Q2_K"), SIZE)  # (..., n_blocks, 16, 16)
        found = affine_search(columns, to_columns(counts), 3, FINE_TRIALS)
        scales, minima = scales_and_minima(found, weights.shape[:-1])
        d, scale_codes = searched_codes(scales, sum_last(counts), 15)
        dmin, minimum_codes = searched_codes(minima, sum_last(counts), 15)
    packed = scale_codes | minimum_codes << 4  # (..., n_blocks, 16)

    step = (d.astype(np.float32)[..., None] * (packed & 15))[..., None]  # step 3
    below = (dmin.astype(np.float32)[..., None] * (packed >> 4))[..., None]
    codes = from_columns(found.codes, weights.shape)
    rounded = np.clip(nearest_int(np.divide(weights + below, step)), 0, 3)
    codes = np.where(step != 0, rounded, codes)
    return pack("Q2_K", scales=packed, qs=pack_two_bits(_flat(codes)), d=d, dmin=dmin)  # step 4


@quiet
def quantize_q3_k(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q3_K: 3-bit codes around zero, a 6-bit scale for each 16; 3.4375 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: hmask (32,), qs (64,), scales (12,) uint8, d float16
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    blocks = split_rows(x, SUPER_BLOCK, "Q3_K")  # (..., n_blocks, 256)
    weights = sub_blocks(blocks, SIZE)  # (..., n_blocks, 16, 16)
    columns = to_columns(weights)  # (16, count)
    if importance is None:
        found = symmetric_descent(columns, columns * columns, 4)  # step 1
        d, scale_codes = _six_bit_codes(found.scale.reshape(weights.shape[:-1]))  # step 2
    else:
        counts = sub_blocks(error_weights(blocks, importance, 2, "Q3_K"), SIZE)  # (..., n_blocks, 16, 16)
        found = symmetric_search(columns, to_columns(counts), 4)
        scales = found.scale.reshape(weights.shape[:-1])  # (..., n_blocks, 16)
        of_scales = symmetric_search(to_columns(scales), to_columns(sum_last(counts)), 32)
        d, scale_codes = _as_stored(of_scales, scales.shape)

    step = (d.astype(np.float32)[..., None] * scale_codes)[..., None]  # step 3
    codes = from_columns(found.codes, weights.shape)
    codes = np.where(step != 0, np.clip(nearest_int(weights / step), -4, 3), codes)
    stored = _flat(codes + np.float32(4))  # (..., n_blocks, 256), 0 … 7

    qs, hmask = pack_two_bits(stored), pack_third_bits(stored)  # step 4
    return pack("Q3_K", hmask=hmask, qs=qs, scales=pack_signed_scales(scale_codes), d=d)


def dequantize_q2_k(blocks: Blocks) -> Float32:
    """Weight = d * scale * code - dmin * minimum: (..., n_blocks) Q2_K -> (..., n) float32."""
    step = _float(blocks["d"])[..., None] * _float(blocks["scales"] & 15)  # (..., n_blocks, 16)
    below = _float(blocks["dmin"])[..., None] * _float(blocks["scales"] >> 4)
    codes = _float(sub_blocks(unpack_two_bits(blocks["qs"]), SIZE))  # (..., n_blocks, 16, 16)
    return join_rows((step[..., None] * codes - below[..., None]).reshape(*blocks.shape, SUPER_BLOCK))


def dequantize_q3_k(blocks: Blocks) -> Float32:
    """Weight = d * (scale - 32) * (code - 4): (..., n_blocks) Q3_K -> (..., n) float32."""
    step = _float(blocks["d"])[..., None] * _float(unpack_signed_scales(blocks["scales"]))
    codes = unpack_two_bits(blocks["qs"]) | unpack_third_bits(blocks["hmask"])
    values = step[..., None] * (_float(sub_blocks(codes, SIZE)) - np.float32(4))  # (..., n_blocks, 16, 16)
    return join_rows(values.reshape(*blocks.shape, SUPER_BLOCK))


# ---- step 2: the scales ----------------------------------------------------------------------------------


def _four_bit_codes(values: Float32) -> tuple[Blocks, UInt8]:
    """Round the 16 scales (or minima) of a super-block to 4 bits: the largest gets code 15.

    values   (..., n_blocks, 16) float32
    returns  their common float16 scale (..., n_blocks), codes (..., n_blocks, 16) uint8
    """
    largest = np.fmax.reduce(values, axis=-1)
    largest = np.where(largest > 0, largest, np.float32(0))  # never -0: the sign would end up in the file
    inverse = np.where(largest > 0, np.float32(15) / largest, np.float32(0))
    codes = nearest_int(inverse[..., None] * values).astype(np.uint8)  # below zero wraps around, as in ggml
    return (largest / np.float32(15)).astype(np.float16), codes


def _six_bit_codes(scales: Float32) -> tuple[Blocks, NDArray[np.int8]]:
    """Round the 16 scales of a super-block to -32 … 31: the largest in magnitude gets -32.

    scales   (..., n_blocks, 16) float32
    returns  their common float16 scale (..., n_blocks), codes (..., n_blocks, 16) int8
    """
    peak = signed_peak(scales, axis=-1)
    inverse = np.float32(-32) / peak
    rounded = nearest_int(inverse[..., None] * scales).astype(np.int8)  # wraps around first, as in ggml
    codes = np.where(peak[..., None] != 0, np.clip(rounded, -32, 31), np.int8(-32))
    return np.where(peak != 0, np.float32(1) / inverse, np.float32(0)).astype(np.float16), codes


def _as_stored(found: Symmetric, shape: tuple[int, ...]) -> tuple[Blocks, NDArray[np.int8]]:
    """The scale of scales as float16 (..., n_blocks), and their codes (..., n_blocks, 16) int8."""
    codes = from_columns(found.codes, shape).astype(np.int8)
    return found.scale.reshape(shape[:-1]).astype(np.float16), codes


# ---- step 4: bits ----------------------------------------------------------------------------------------


def pack_signed_scales(scales: NDArray[np.int8]) -> UInt8:
    """Sixteen 6-bit numbers into 12 bytes.

    scales   (..., 16) int8, -32 … 31; stored with 32 added
    returns  (..., 12): byte j has the low four bits of scales j and, above them, of j + 8; byte 8 + j the
             two high bits of scales j, j + 4, j + 8 and j + 12, the first lowest
    """
    codes = (scales + np.int8(32)).astype(np.uint8)
    low = (codes[..., :8] & 15) | codes[..., 8:] << 4
    high = codes.reshape(*codes.shape[:-1], 4, 4) >> np.uint8(4)
    return np.concatenate([low, _four_in_a_byte(high)], axis=-1)


def unpack_signed_scales(packed: UInt8) -> NDArray[np.int8]:
    """Undo `pack_signed_scales`: (..., 12) -> (..., 16)."""
    low = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], axis=-1)
    high = np.concatenate([packed[..., 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return np.asarray((low | high << 4).astype(np.int8) - np.int8(32))


def pack_two_bits(codes: UInt8) -> UInt8:
    """Pack the low two bits, half a super-block at a time.

    codes    (..., 256)
    returns  (..., 64): byte 32 h + l has weights 128 h + l, + 32, + 64 and + 96, the first lowest
    """
    quarters = codes.reshape(*codes.shape[:-1], 2, 4, 32) & np.uint8(3)
    return _four_in_a_byte(quarters).reshape(*codes.shape[:-1], 64)


def unpack_two_bits(packed: UInt8) -> UInt8:
    """Undo `pack_two_bits`: (..., 64) -> (..., 256)."""
    halves = packed.reshape(*packed.shape[:-1], 2, 1, 32)
    quarters = halves >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)  # (..., 2, 4, 32)
    return quarters.reshape(*packed.shape[:-1], SUPER_BLOCK)


def _four_in_a_byte(quarters: UInt8) -> UInt8:
    """Put four 2-bit numbers into a byte, the first lowest: (..., 4, k) -> (..., k)."""
    first, second, third, fourth = np.moveaxis(quarters, -2, 0)
    return np.asarray(first | second << 2 | third << 4 | fourth << 6)


def pack_third_bits(codes: UInt8) -> UInt8:
    """Bit 2 of weight 32 g + l becomes bit g of byte l: (..., 256) -> (..., 32)."""
    groups = codes.reshape(*codes.shape[:-1], 8, 32)
    return np.packbits(groups >> 2, axis=-2, bitorder="little")[..., 0, :]


def unpack_third_bits(packed: UInt8) -> UInt8:
    """Undo `pack_third_bits`: (..., 32) -> 0 or 4 for each weight, (..., 256)."""
    bits = np.unpackbits(packed[..., None, :], axis=-2, bitorder="little")  # (..., 8, 32)
    return np.asarray(bits << 2).reshape(*packed.shape[:-1], SUPER_BLOCK)


def _flat(codes: NDArray[Any]) -> UInt8:
    """Put the codes of a super-block in a row: (..., n_blocks, 16, 16) -> (..., n_blocks, 256) uint8."""
    return codes.astype(np.uint8).reshape(*codes.shape[:-2], SUPER_BLOCK)


def _float(values: NDArray[Any]) -> Float32:
    return values.astype(np.float32)
