"""TQ1_0 and TQ2_0: every weight is -1, 0 or 1 times the scale of its super-block.

Made for models trained with such weights (BitNet), where nothing is lost; others do not survive it.
There is no search: the largest weight is the scale, the rest is rounded. What is worth reading is how
TQ1_0 packs five ternary digits (trits) into a byte: 3^5 = 243 fits into 256, 1.6 bits a weight.
Source: ggml `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`; bytes equal to ggml 0.25.
"""

import numpy as np

from phicourse.quantize.blocks import Blocks, Float32, UInt8, join_rows, pack, split_rows
from phicourse.quantize.low_k_quants import pack_two_bits, unpack_two_bits
from phicourse.quantize.rounding import quiet, reciprocal, round_half_away

SUPER_BLOCK = 256


@quiet
def quantize_tq1_0(x: Float32) -> Blocks:
    """Quantize rows to TQ1_0: trits, five in a byte, 1.6875 bits per weight.

    x        (..., n) float32, n a multiple of 256, finite
    returns  (..., n / 256) blocks: qs (48,), qh (4,) uint8, d float16
    raises   QuantizeError where 256 does not divide n
    """
    scale, trits = _scale_and_trits(split_rows(x, SUPER_BLOCK, "TQ1_0"))
    first, second, last = (pack_trits(part) for part in split_trits(trits))
    return pack("TQ1_0", qs=np.concatenate([first, second], axis=-1), qh=last, d=scale)


@quiet
def quantize_tq2_0(x: Float32) -> Blocks:
    """Quantize rows to TQ2_0: the same trits in two bits each, faster to read, 2.0625 bits per weight.

    x        (..., n) float32, n a multiple of 256, finite
    returns  (..., n / 256) blocks: qs (64,) uint8, d float16
    raises   QuantizeError where 256 does not divide n
    """
    scale, trits = _scale_and_trits(split_rows(x, SUPER_BLOCK, "TQ2_0"))
    return pack("TQ2_0", qs=pack_two_bits(trits), d=scale)


def dequantize_tq1_0(blocks: Blocks) -> Float32:
    """Weight = d * (trit - 1): (..., n_blocks) TQ1_0 -> (..., n) float32."""
    first, second, last = blocks["qs"][..., :32], blocks["qs"][..., 32:], blocks["qh"]
    trits = [unpack_trits(first, 5), unpack_trits(second, 5), unpack_trits(last, 4)]
    return _from_trits(blocks, np.concatenate(trits, axis=-1))


def dequantize_tq2_0(blocks: Blocks) -> Float32:
    """Weight = d * (code - 1): (..., n_blocks) TQ2_0 -> (..., n) float32; a code 3, never written, is 2 d."""
    return _from_trits(blocks, unpack_two_bits(blocks["qs"]))


def _scale_and_trits(weights: Float32) -> tuple[Float32, UInt8]:
    """Scale (..., n_blocks) and trits 0, 1, 2 (..., n_blocks, 256) for -1, 0, 1 scales."""
    scale = np.abs(weights).max(axis=-1)
    return scale, (round_half_away(weights * reciprocal(scale)[..., None]) + 1).astype(np.uint8)


def _from_trits(blocks: Blocks, trits: UInt8) -> Float32:
    """Return the weights of blocks: trits (..., n_blocks, 256) -> (..., n) float32."""
    return join_rows(blocks["d"].astype(np.float32)[..., None] * (trits.astype(np.float32) - np.float32(1)))


def split_trits(trits: UInt8) -> tuple[UInt8, UInt8, UInt8]:
    """Cut the trits of a super-block as they share bytes: trit t of byte b is row t, column b.

    trits    (..., 256)
    returns  (..., 5, 32), (..., 5, 16) and (..., 4, 4): 160, 80 and 16 weights
    """
    shape = trits.shape[:-1]
    first, second, last = np.split(trits, [160, 240], axis=-1)
    return first.reshape(*shape, 5, 32), second.reshape(*shape, 5, 16), last.reshape(*shape, 4, 4)


def pack_trits(trits: UInt8) -> UInt8:
    """Put a column of trits into a byte: (..., 4 or 5, k) -> (..., k).

    The trits t0, t1, … are the digits of a number q to base 3, from 0 to 242 (with four, the last digit
    is 0). The byte is q / 243 as a fraction of 256, rounded up: so the digits come out from the front,
    each by a multiplication with 3, whose carry out of the byte is the next digit.
    """
    q = np.zeros((*trits.shape[:-2], trits.shape[-1]), np.uint16)
    for t in range(5):
        q *= 3
        if t < trits.shape[-2]:
            q += trits[..., t, :]
    return ((q * np.uint32(256) + np.uint32(242)) // np.uint32(243)).astype(np.uint8)


def unpack_trits(packed: UInt8, n_trits: int) -> UInt8:
    """Undo `pack_trits`: (..., k) -> (..., n_trits * k), first trits first."""
    trits, rest = [], packed.astype(np.uint16)
    for _ in range(n_trits):
        rest = rest * np.uint16(3)
        trits.append((rest >> 8).astype(np.uint8))  # the carry
        rest = rest & np.uint16(255)
    return np.concatenate(trits, axis=-1)
