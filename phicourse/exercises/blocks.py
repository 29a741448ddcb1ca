"""The checks of notebook 07, blocks: Q8_0, Q4_0, and the fifth bit of Q5_0."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.exercises.badge import badge
from phicourse.exercises.compare import compare_arrays, recognise
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf.types import TENSOR_TYPES, bfloat16_to_float32, float32_to_bfloat16
from phicourse.quantize.blocks import Blocks, Float32, UInt8, pack, split_rows
from phicourse.quantize.blocks import pack_nibbles as finished_pack_nibbles
from phicourse.quantize.legacy import dequantize_q4_0 as finished_dequantize_q4_0
from phicourse.quantize.legacy import dequantize_q8_0 as finished_dequantize_q8_0
from phicourse.quantize.legacy import quantize_q4_0 as finished_q4_0
from phicourse.quantize.legacy import quantize_q8_0 as finished_q8_0
from phicourse.quantize.rounding import quiet, reciprocal, round_half_away, truncate
from phicourse.quantize.scale_search import signed_peak

__all__ = ["badge"]

_BLOCK = 32
_IS_NONE = "a function without `return` gives None"


def compare_blocks(
    where: str, expected: Blocks, got: Any, reasons: Mapping[str, Blocks], type_name: str
) -> Mistake | None:
    """Compare blocks field by field, in the order of the file.

    reasons  likely mistake -> the blocks that it leads to
    """
    if not isinstance(got, np.ndarray) or got.dtype != expected.dtype:
        has = f"an array of {got.dtype}" if isinstance(got, np.ndarray) else repr(got)
        likely = _IS_NONE if got is None else f"begin with np.zeros(shape, {type_name}) and fill its fields"
        return Mistake(f"{where}: what comes back", f"an array of {type_name} blocks", has, likely)
    if got.shape != expected.shape:
        likely = f"rows first, then the blocks of a row: n / {TENSOR_TYPES[type_name].block} of them"
        return Mistake(f"{where}: the shape", str(expected.shape), str(got.shape), likely)
    likely = next((text for text, blocks in reasons.items() if np.array_equal(blocks, got)), "")
    for field in expected.dtype.names or ():
        mistake = compare_arrays(f"{where}: field {field}", expected[field], got[field], likely)
        if mistake is not None:
            return mistake
    return None


def rows(largest: float) -> dict[str, Float32]:
    """Rows that bring the usual mistakes to light, by what is special about them: (rows, 64) each.

    largest  a block with it as largest magnitude gets the scale 1
    """
    rng = np.random.default_rng(7)
    normal = rng.normal(size=(40, 2 * _BLOCK)).astype(np.float32)
    like_phi = bfloat16_to_float32(float32_to_bfloat16(rng.normal(size=(400, 2 * _BLOCK)).astype(np.float32)))
    negative = -np.abs(normal[:1])
    negative[0, ::16] = -9
    halves = (np.arange(2 * _BLOCK, dtype=np.float32)[None] % 15) - np.float32(6.5)
    halves[:, ::_BLOCK] = -largest
    both = np.abs(normal[:1]) / np.float32(9)
    both[0, 3::_BLOCK], both[0, 9::_BLOCK] = 8, -8
    empty = normal[:1].copy()
    empty[:, :_BLOCK] = 0
    return {
        "one row": normal[:1],
        "a row whose largest weights are negative": negative,
        "a row with 8 and -8 in each block": both,
        "a row of halves": halves,
        "a block of zeros": empty,
        "400 rows of weights with 8 bits, as Phi's": like_phi,
        "40 rows": normal,
    }


# ---- Q8_0 ------------------------------------------------------------------------------------------------


@exercise("07.1", "A scale and 32 codes", difficulty=2, minutes=15, core=True)
def quantize_q8_0(answer: Answer) -> Mistake | None:
    """Hold `quantize_q8_0(x)` against the course's, byte by byte, on rows chosen for the usual mistakes."""
    for where, x in rows(127).items():
        got = answer(x.copy())
        mistake = compare_blocks(where, finished_q8_0(x), got, _wrong_q8_0(x), "Q8_0")
        if mistake is not None:
            return mistake
    return None


@quiet
def _wrong_q8_0(x: Float32) -> dict[str, Blocks]:
    """What the usual mistakes make of rows."""
    weights = split_rows(x, _BLOCK, "Q8_0")
    largest = np.abs(weights).max(axis=-1)  # (rows, n_blocks)

    def blocks(
        largest: Float32 = largest,
        levels: int = 127,
        round: Callable[[Float32], Any] = round_half_away,
        divide: bool = False,
        half: bool = False,
    ) -> Blocks:
        scale = largest / np.float32(levels)
        used = scale.astype(np.float16).astype(np.float32) if half else scale
        quotient = weights / used[..., None] if divide else weights * reciprocal(used)[..., None]
        codes = round(np.nan_to_num(quotient))
        return pack("Q8_0", d=scale, qs=codes.astype(np.int64).astype(np.int8))

    halves_up = "halves go away from zero: -2.5 becomes -3; floor(v + 0.5) makes -2 of it"
    return {
        "halves go away from zero: np.round would make 2 of 2.5": blocks(round=np.round),
        halves_up: blocks(round=lambda v: np.floor(v + np.float32(0.5))),
        "round before you write whole numbers: a cast only drops the fraction": blocks(round=np.trunc),
        "the largest magnitude decides, also where it belongs to a negative weight": blocks(
            weights.max(axis=-1)
        ),
        "127 levels on either side: the largest weight gets 127, and -128 stays unused": blocks(levels=128),
        "round with the float32 scale; it becomes a float16 only in the file": blocks(half=True),
        "ggml computes 1 / scale once for a block, then multiplies: a division rounds otherwise": blocks(
            divide=True
        ),
    }


@exercise("07.2", "And back", difficulty=1, minutes=5)
def dequantize_q8_0(answer: Answer) -> Mistake | None:
    """Hold `dequantize_q8_0(blocks)` against the course's, bit by bit."""
    blocks = finished_q8_0(rows(127)["40 rows"])
    expected = finished_dequantize_q8_0(blocks)
    as_bytes = blocks["d"].astype(np.float32)[..., None] * blocks["qs"].view(np.uint8).astype(np.float32)
    wrong = {"the codes have a sign: int8, not uint8": as_bytes.reshape(expected.shape)}
    return _decoded(expected, answer(blocks.copy()), wrong)


def _decoded(expected: Float32, got: Any, wrong: Mapping[str, NDArray[Any]]) -> Mistake | None:
    likely = recognise(got, wrong)
    if isinstance(got, np.ndarray):
        if got.dtype == np.float16:
            likely = "float16 times small whole numbers stays float16: widen d with .astype(np.float32) first"
        elif got.ndim == 3:
            likely = "put the blocks of a row side by side again: .reshape(len(blocks), -1)"
    return compare_arrays("40 rows", expected, got, likely)


# ---- nibbles ---------------------------------------------------------------------------------------------


@exercise("07.3", "Two codes in a byte", difficulty=2, minutes=10, core=True)
def pack_nibbles(answer: Answer) -> Mistake | None:
    """Hold `pack_nibbles(codes)` against the course's."""
    rng = np.random.default_rng(3)
    up = np.arange(16, dtype=np.uint8)
    one = np.concatenate([up, up[::-1]])[None]
    for where, codes in (
        ("codes 0 to 15, then 15 to 0", one),
        ("3 × 2 blocks", rng.integers(0, 16, (3, 2, 32), np.uint8)),
    ):
        got = answer(codes.copy())
        low, high = codes[..., :16], codes[..., 16:]
        even, odd = codes[..., ::2], codes[..., 1::2]
        wrong = {
            "weight j goes into the low four bits, weight j + 16 into the high ones": low << 4 | high,
            "not neighbours: weights j and j + 16 share a byte (it was so until May 2023)": even | odd << 4,
            "not neighbours: weights j and j + 16 share a byte": even << 4 | odd,
            "the second half must be shifted up by 4 bits": low | high,
        }
        mistake = compare_arrays(
            where, finished_pack_nibbles(codes), got, _likely_type(got) or recognise(got, wrong)
        )
        if mistake is not None:
            return mistake
    return None


def _likely_type(got: Any) -> str:
    is_wide = isinstance(got, np.ndarray) and got.dtype != np.uint8
    return "bytes are uint8; write constants so that they do not widen it" if is_wide else ""


# ---- Q4_0 ------------------------------------------------------------------------------------------------


@exercise("07.4", "Sixteen levels around zero", difficulty=3, minutes=15, core=True)
def quantize_q4_0(answer: Answer) -> Mistake | None:
    """Hold `quantize_q4_0(x)` against the course's, byte by byte."""
    for where, x in rows(8).items():
        got = answer(x.copy())
        mistake = compare_blocks(where, finished_q4_0(x), got, _wrong_q4_0(x), "Q4_0")
        if mistake is not None:
            return mistake
    return None


@quiet
def _wrong_q4_0(x: Float32) -> dict[str, Blocks]:
    """What the usual mistakes make of rows."""
    weights = split_rows(x, _BLOCK, "Q4_0")
    peak, largest = signed_peak(weights, axis=-1), np.abs(weights).max(axis=-1)  # (rows, n_blocks)

    right = peak / np.float32(-8)

    def blocks(
        scale: Float32 = right, half: bool = False, rounded: bool = False, clip: bool = True
    ) -> Blocks:
        used = scale.astype(np.float16).astype(np.float32) if half else scale
        levels = weights * reciprocal(used)[..., None]
        codes = np.round(levels) + 8 if rounded else truncate(levels + np.float32(8.5))
        codes = np.clip(codes, 0, 15) if clip else codes
        return pack("Q4_0", d=scale, qs=finished_pack_nibbles(codes.astype(np.int64).astype(np.uint8)))

    last = np.where((peak == 8) & (weights == -8).any(axis=-1), np.float32(1), right)
    return {
        "among 8 and -8 the first counts: np.argmax(np.abs(…)) finds it": blocks(last),
        "keep the sign of the largest weight: scale = peak / -8, so that it gets level -8": blocks(
            largest / np.float32(8)
        ),
        "the sign: the largest weight over *minus* 8, or it becomes +8, which no code stands for": blocks(
            peak / np.float32(8)
        ),
        "that uses levels -7 to 7; ggml puts the largest weight on -8, and nothing is wasted": blocks(
            largest / np.float32(7)
        ),
        "drop the fraction of levels + 8.5: np.round goes to even numbers at halves": blocks(rounded=True),
        "level +8 has no code: np.minimum(codes, 15)": blocks(clip=False),
        "round with the float32 scale; it becomes a float16 only in the file": blocks(half=True),
    }


@exercise("07.5", "Back from nibbles", difficulty=2, minutes=5)
def dequantize_q4_0(answer: Answer) -> Mistake | None:
    """Hold `dequantize_q4_0(blocks)` against the course's, bit by bit."""
    blocks = finished_q4_0(rows(8)["40 rows"])
    expected, scale = finished_dequantize_q4_0(blocks), blocks["d"].astype(np.float32)[..., None]
    low, high = blocks["qs"] & 15, blocks["qs"] >> 4
    codes = np.concatenate([low, high], axis=-1)  # (rows, n_blocks, 32)

    def decoded(codes: UInt8, zero: int = 8) -> Float32:
        values = (codes.astype(np.float32) - np.float32(zero)) * scale
        return np.asarray(values).reshape(len(blocks), -1)

    wrong = {
        "code 8 is zero: subtract 8": decoded(codes, 0),
        "bytes have no sign: 3 - 8 is 251 there; make the codes float32 or int8 first": decoded(codes - 8, 0),
        "the low four bits are weights 0 to 15, the high ones 16 to 31": decoded(
            np.concatenate([high, low], axis=-1)
        ),
        "not neighbours: byte j has weights j and j + 16": decoded(
            np.stack([low, high], -1).reshape(codes.shape)
        ),
    }
    return _decoded(expected, answer(blocks.copy()), wrong)


# ---- the fifth bit ---------------------------------------------------------------------------------------


@exercise("07.6", "The fifth bit", difficulty=2, minutes=10)
def fifth_bits(answer: Answer) -> Mistake | None:
    """Hold `fifth_bits(qh)` against words with one bit, and against random ones."""
    rng = np.random.default_rng(5)
    words = {
        "the word 1": np.array([1], "<u4"),
        "the word 0x80000000": np.array([1 << 31], "<u4"),
        "2 × 3 words": rng.integers(0, 1 << 32, (2, 3), np.uint32),
    }
    for where, qh in words.items():
        bits = qh[..., None] >> np.arange(_BLOCK, dtype=np.uint32) & np.uint32(1)  # (..., 32)
        got = answer(qh.copy())
        wrong = {
            "the fifth bit is worth 16": bits,
            "bit j belongs to weight j: the lowest bit comes first": 16 * bits[..., ::-1],
            "each byte's lowest bit comes first: np.unpackbits(…, bitorder='little')": 16
            * bits.reshape(*qh.shape, 4, 8)[..., ::-1].reshape(bits.shape),
        }
        likely = recognise(got, {text: array.astype(np.uint8) for text, array in wrong.items()})
        mistake = compare_arrays(where, (16 * bits).astype(np.uint8), got, likely or _likely_type(got))
        if mistake is not None:
            return mistake
    return None
