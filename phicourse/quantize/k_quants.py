"""Q4_K, Q5_K, Q6_K: 256 weights in a super-block of small sub-blocks, whose scales are themselves quantized.

Four steps, the same for all: 1. search each sub-block's scale (and minimum) in float32;
2. quantize those scales, with one float16 for the super-block; 3. round the weights again, now
with the scales as a reader of the file will see them; 4. pack the bits.
With an importance matrix, step 1 minimizes what its columns say, and step 2 is a search of its own.
Source: ggml `quantize_row_q4_K_ref`, `quantize_row_q4_K_impl` and so on; bytes equal to ggml 0.25.
"""

import numpy as np
from numpy.typing import ArrayLike

from phicourse.quantize.blocks import (
    Blocks,
    Float32,
    UInt8,
    from_columns,
    join_rows,
    pack,
    pack_nibbles,
    split_rows,
    sub_blocks,
    to_columns,
    unpack_nibbles,
)
from phicourse.quantize.error_weights import error_weights, split_importance
from phicourse.quantize.rounding import nearest_int, quiet, sum_in_order, sum_last
from phicourse.quantize.scale_search import (
    FINE_TRIALS,
    ZERO,
    Affine,
    Trials,
    affine_search,
    positive_search,
    signed_peak,
    symmetric_search,
)

SUPER_BLOCK = 256


@quiet
def quantize_q4_k(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q4_K: 8 sub-blocks of 32 weights, each with scale and minimum; 4.5 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: d, dmin float16, scales (12,) uint8, qs (128,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    d, dmin, scales, codes = _scales_minima_codes(x, importance, 15, Trials(-1.0, 0.1, 20), "Q4_K")
    return pack("Q4_K", d=d, dmin=dmin, scales=scales, qs=pack_pairs(codes))


@quiet
def quantize_q5_k(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q5_K: as Q4_K, with a fifth bit for each weight, 5.5 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: d, dmin float16, scales (12,), qh (32,), qs (128,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    d, dmin, scales, codes = _scales_minima_codes(x, importance, 31, Trials(-0.5, 0.1, 15), "Q5_K")
    return pack("Q5_K", d=d, dmin=dmin, scales=scales, qh=pack_fifth_bits(codes), qs=pack_pairs(codes))


@quiet
def quantize_q6_k(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to Q6_K: 16 sub-blocks of 16 weights, each with an 8-bit scale, 6.5625 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts, whatever its weight; None: large weights count more
    returns     (..., n / 256) blocks: ql (128,), qh (64,) uint8, scales (16,) int8, d float16
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    blocks = split_rows(x, SUPER_BLOCK, "Q6_K")  # (..., n_blocks, 256)
    counts = blocks * blocks
    if importance is not None:
        counts = np.broadcast_to(split_importance(importance, blocks, "Q6_K"), blocks.shape)
    weights = sub_blocks(blocks, 16)  # (..., n_blocks, 16, 16)
    found = symmetric_search(to_columns(weights), to_columns(sub_blocks(counts, 16)), n_max=32)  # step 1
    scales = found.scale.reshape(weights.shape[:-1])  # (..., n_blocks, 16)
    codes = from_columns(found.codes, weights.shape)

    peak = signed_peak(scales, axis=-1)  # step 2: this scale gets code -128
    inverse = np.float32(-128) / peak
    d = (np.float32(1) / inverse).astype(np.float16)  # (..., n_blocks)
    scale_codes = np.minimum(nearest_int(inverse[..., None] * scales), 127).astype(np.int8)

    step = (d.astype(np.float32)[..., None] * scale_codes)[..., None]  # step 3
    codes = np.where(step != 0, np.clip(nearest_int(weights / step), -32, 31), codes) + np.float32(32)

    ql, qh = pack_six_bits(codes.astype(np.uint8).reshape(*d.shape, SUPER_BLOCK))  # step 4
    packed = pack("Q6_K", ql=ql, qh=qh, scales=scale_codes, d=d)
    packed[np.abs(peak) < ZERO] = np.zeros((), packed.dtype)  # nothing in it: all bytes zero
    return packed


def dequantize_q4_k(blocks: Blocks) -> Float32:
    """Weight = d * scale * code - dmin * minimum: (..., n_blocks) Q4_K -> (..., n) float32."""
    return _from_scales_and_minima(blocks, unpack_pairs(blocks["qs"]))


def dequantize_q5_k(blocks: Blocks) -> Float32:
    """Weight = d * scale * code - dmin * minimum: (..., n_blocks) Q5_K -> (..., n) float32."""
    return _from_scales_and_minima(blocks, unpack_pairs(blocks["qs"]) | unpack_fifth_bits(blocks["qh"]))


def dequantize_q6_k(blocks: Blocks) -> Float32:
    """Weight = d * scale * (code - 32): (..., n_blocks) Q6_K -> (..., n) float32."""
    scales = blocks["d"].astype(np.float32)[..., None] * blocks["scales"].astype(np.float32)
    codes = sub_blocks(unpack_six_bits(blocks["ql"], blocks["qh"]), 16).astype(np.float32) - np.float32(32)
    values = scales[..., None] * codes  # (..., n_blocks, 16, 16)
    return join_rows(values.reshape(*blocks.shape, SUPER_BLOCK))


def _scales_minima_codes(
    x: Float32, importance: ArrayLike | None, n_max: int, trials: Trials, type_name: str
) -> tuple[Blocks, Blocks, UInt8, UInt8]:
    """Do steps 1 to 3 of Q4_K and Q5_K.

    x, importance  as for the quantizers
    n_max          the largest code
    trials         what to try where no importance is known
    returns        d, dmin (..., n_blocks) float16, packed scales (..., n_blocks, 12), codes (..., n_blocks, 256)
    """
    blocks = split_rows(x, SUPER_BLOCK, type_name)  # (..., n_blocks, 256)
    weights = sub_blocks(blocks, 32)  # (..., n_blocks, 8, 32)
    columns = to_columns(weights)  # (32, count)
    if importance is None:
        found = affine_search(columns, _by_magnitude(columns), n_max, trials)  # step 1
        scales, minima = scales_and_minima(found, weights.shape[:-1])  # (..., n_blocks, 8)
        d, scale_codes = _six_bit_codes(scales)  # step 2
        dmin, minimum_codes = _six_bit_codes(minima)
    else:
        counts = sub_blocks(error_weights(blocks, importance, 2, type_name), 32)
        found = affine_search(columns, to_columns(counts), n_max, FINE_TRIALS)
        scales, minima = scales_and_minima(found, weights.shape[:-1])
        d, scale_codes = searched_codes(scales, sum_last(counts), 63)
        dmin, minimum_codes = searched_codes(minima, sum_last(counts), 63)
        if type_name == "Q5_K":  # a scale below zero is a byte above 63, which ggml cuts off only here
            scale_codes, minimum_codes = (np.minimum(v, np.uint8(63)) for v in (scale_codes, minimum_codes))
    packed = pack_scales_and_minima(scale_codes, minimum_codes)

    scale_codes, minimum_codes = unpack_scales_and_minima(packed)
    step = (d.astype(np.float32)[..., None] * scale_codes)[..., None]  # step 3
    below = (dmin.astype(np.float32)[..., None] * minimum_codes)[..., None]
    codes = from_columns(found.codes, weights.shape)
    codes = np.where(step != 0, np.clip(nearest_int((weights + below) / step), 0, n_max), codes)
    return d, dmin, packed, codes.astype(np.uint8).reshape(*d.shape, SUPER_BLOCK)


def _by_magnitude(columns: Float32) -> Float32:
    """How much each weight counts: its magnitude plus the root mean square of its sub-block, (32, count)."""
    mean_square = sum_in_order(columns * columns) / np.float32(len(columns))
    return np.asarray(np.sqrt(mean_square) + np.abs(columns))


def scales_and_minima(found: Affine, shape: tuple[int, ...]) -> tuple[Float32, Float32]:
    """Scales, and minima as positive numbers to be subtracted: two arrays of this shape."""
    return found.scale.reshape(shape), -found.minimum.reshape(shape)


def searched_codes(values: Float32, counts: Float32, n_max: int) -> tuple[Blocks, UInt8]:
    """Search for the codes of scales (or minima) as for those of weights; each counts as its sub-block does.

    values, counts  (..., n_blocks, sub-blocks) float32
    returns         their common float16 scale (..., n_blocks), codes 0 … n_max (..., n_blocks, sub-blocks)
    """
    found = positive_search(to_columns(values), to_columns(counts), n_max)
    codes = from_columns(found.codes, values.shape).astype(np.uint8)
    return found.scale.reshape(values.shape[:-1]).astype(np.float16), codes


def _six_bit_codes(values: Float32) -> tuple[Blocks, UInt8]:
    """Quantize the 8 scales (or minima) of a super-block: the largest gets code 63.

    values   (..., n_blocks, 8) float32
    returns  their common float16 scale (..., n_blocks), codes 0 … 63 (..., n_blocks, 8)
    """
    largest = np.maximum(values.max(axis=-1), np.float32(0))
    inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
    codes = nearest_int(inverse[..., None] * values).astype(np.uint8)  # below zero wraps around, as in ggml
    return (largest / np.float32(63)).astype(np.float16), np.minimum(codes, np.uint8(63))


def _from_scales_and_minima(blocks: Blocks, codes: UInt8) -> Float32:
    """Return the weights of Q4_K or Q5_K blocks: codes (..., n_blocks, 256) -> (..., n) float32."""
    scale_codes, minimum_codes = unpack_scales_and_minima(blocks["scales"])
    step = blocks["d"].astype(np.float32)[..., None] * scale_codes.astype(np.float32)
    below = blocks["dmin"].astype(np.float32)[..., None] * minimum_codes.astype(np.float32)
    values = step[..., None] * sub_blocks(codes, 32).astype(np.float32) - below[..., None]
    return join_rows(values.reshape(*blocks.shape, SUPER_BLOCK))


def pack_scales_and_minima(scales: UInt8, minima: UInt8) -> UInt8:
    """Sixteen 6-bit numbers into 12 bytes.

    scales, minima  (..., 8) uint8, 0 … 63
    returns         (..., 12): bytes 0-3 scales 0-3, bytes 4-7 minima 0-3, bytes 8-11 the low four bits of
                    scales 4-7 and, above them, of minima 4-7; their two high bits top bytes 0-3 and 4-7
    """
    packed = np.empty((*scales.shape[:-1], 12), np.uint8)
    packed[..., 0:4] = scales[..., :4] | (scales[..., 4:] >> 4 << 6)
    packed[..., 4:8] = minima[..., :4] | (minima[..., 4:] >> 4 << 6)
    packed[..., 8:12] = (scales[..., 4:] & 15) | (minima[..., 4:] << 4)
    return packed


def unpack_scales_and_minima(packed: UInt8) -> tuple[UInt8, UInt8]:
    """Undo `pack_scales_and_minima`: (..., 12) -> scales (..., 8), minima (..., 8)."""
    low, middle, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=-1)
    return scales, minima


def pack_pairs(codes: UInt8) -> UInt8:
    """Pack the low four bits; weights 64 g + l and 64 g + 32 + l share a byte: (..., 256) -> (..., 128)."""
    groups = codes.reshape(*codes.shape[:-1], 4, 64)
    return pack_nibbles(groups).reshape(*codes.shape[:-1], 128)


def unpack_pairs(packed: UInt8) -> UInt8:
    """Undo `pack_pairs`: (..., 128) -> (..., 256)."""
    groups = packed.reshape(*packed.shape[:-1], 4, 32)
    return unpack_nibbles(groups).reshape(*packed.shape[:-1], SUPER_BLOCK)


def pack_fifth_bits(codes: UInt8) -> UInt8:
    """Bit 4 of weight 32 g + l becomes bit g of byte l: (..., 256) -> (..., 32)."""
    groups = codes.reshape(*codes.shape[:-1], 8, 32)
    return np.packbits(groups >> 4, axis=-2, bitorder="little")[..., 0, :]


def unpack_fifth_bits(packed: UInt8) -> UInt8:
    """Undo `pack_fifth_bits`: (..., 32) -> 0 or 16 for each weight, (..., 256)."""
    bits = np.unpackbits(packed[..., None, :], axis=-2, bitorder="little")  # (..., 8, 32)
    return np.asarray(bits << 4).reshape(*packed.shape[:-1], SUPER_BLOCK)


def pack_six_bits(codes: UInt8) -> tuple[UInt8, UInt8]:
    """Split 6-bit codes, half a super-block at a time, into low four and high two bits.

    codes    (..., 256), 0 … 63; below, quarter q of a half is weights 32 q to 32 q + 31
    returns  ql (..., 128): quarter 0 with quarter 2 above it, then quarter 1 with quarter 3;
             qh (..., 64): all four quarters in a byte, the first lowest
    """
    halves = codes.reshape(*codes.shape[:-1], 2, 128)
    quarters = halves.reshape(*codes.shape[:-1], 2, 4, 32) >> 4  # the high bits
    qh = quarters[..., 0, :] | quarters[..., 1, :] << 2 | quarters[..., 2, :] << 4 | quarters[..., 3, :] << 6
    ql = pack_nibbles(halves)
    return ql.reshape(*codes.shape[:-1], 128), np.asarray(qh).reshape(*codes.shape[:-1], 64)


def unpack_six_bits(ql: UInt8, qh: UInt8) -> UInt8:
    """Undo `pack_six_bits`: (..., 128) and (..., 64) -> (..., 256)."""
    low = unpack_nibbles(ql.reshape(*ql.shape[:-1], 2, 64))  # (..., 2, 128)
    pairs = qh.reshape(*qh.shape[:-1], 2, 32)
    high = np.concatenate([(pairs >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=-1)
    return np.asarray(low | high).reshape(*ql.shape[:-1], SUPER_BLOCK)
