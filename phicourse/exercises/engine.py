"""The checks of notebook 11, the native engine: quantized products, what a token reads, the roof, threads."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phicourse.exercises.compare import compare_arrays, compare_values, recognise
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.quantize.blocks import Blocks, Float32
from phicourse.quantize.k_quants import quantize_q4_k, unpack_pairs, unpack_scales_and_minima
from phicourse.quantize.legacy import quantize_q8_0

Codes = NDArray[np.int8]
Float64 = NDArray[np.float64]
Range = tuple[int, int]

PANEL = 16
"""Rows that the engine's kernels take together."""

_ROUNDING = 1e-5  # of the sum of all magnitudes: float32 sums of some hundred blocks, in any order


# ---- a vector in eight bits ------------------------------------------------------------------------------


def code_vector(x: Float32, block: int = 32) -> tuple[Codes, Float32]:
    """Code a vector in 8 bits, a scale for each block, as the engine does before it meets quantized weights.

    x        (n,) float32, n a multiple of `block`
    returns  codes (n / block, block) int8, scales (n / block,) float32: x ≈ scale * code
    """
    blocks = x.reshape(-1, block)  # (n_blocks, block)
    largest = np.abs(blocks).max(axis=1)  # (n_blocks,)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(blocks * inverse[:, None]).astype(np.int8)
    return codes, largest / np.float32(127)


@exercise("11.1", "A vector in eight bits", difficulty=2, minutes=10, core=True)
def vector_codes(answer: Answer) -> Mistake | None:
    """Hold `code_vector(x, block)` against the engine's rule, on vectors chosen for the usual mistakes."""
    for where, x, block in _vectors():
        got = answer(x.copy(), block)
        if not isinstance(got, tuple) or len(got) != 2:
            likely = "a function without `return` gives None" if got is None else "return codes, scales"
            return Mistake(where, "two arrays: codes, scales", type(got).__name__, likely)
        codes, scales = code_vector(x, block)
        mistake = compare_arrays(
            f"{where}: codes", codes, got[0], _likely_codes(x.reshape(-1, block), got[0])
        ) or compare_arrays(f"{where}: scales", scales, got[1], _likely_scales(scales, got[1]))
        if mistake is not None:
            return mistake
    return None


def _vectors() -> list[tuple[str, Float32, int]]:
    rng = np.random.default_rng(11)
    normal = rng.normal(size=512).astype(np.float32)
    negative = -np.abs(normal[:64])
    halves = np.arange(64, dtype=np.float32) % 20 - np.float32(9.5)
    halves[::32] = 127
    empty = np.concatenate([normal[:32], np.zeros(32, np.float32)])
    return [
        ("64 numbers", normal[:64], 32),
        ("negative numbers", negative, 32),
        ("a block of zeros", empty, 32),
        ("halves, in blocks with the scale 1", halves, 32),
        ("512 numbers in blocks of 256", normal, 256),
    ]


def _likely_codes(blocks: Float32, got: Any) -> str:
    if isinstance(got, np.ndarray) and got.dtype != np.int8:
        return "codes are bytes with a sign: .astype(np.int8)"
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        levels = np.nan_to_num(blocks * (np.float32(127) / largest))
        by_peak = np.nan_to_num(np.rint(blocks * (np.float32(127) / blocks.max(axis=1, keepdims=True))))
        whole = np.rint(blocks * (np.float32(127) / np.abs(blocks).max()))
    wrong = {
        "round before you cast: a cast only drops the fraction": levels.astype(np.int8),
        "halves go to even numbers here, as the processor rounds: np.rint": np.trunc(
            levels + np.copysign(np.float32(0.5), levels)
        ).astype(np.int8),
        "halves go to even numbers here: np.rint, not floor(v + 0.5)": np.floor(
            levels + np.float32(0.5)
        ).astype(np.int8),
        "the largest magnitude decides, also where it belongs to a negative number": by_peak.astype(np.int8),
        "each block has a scale of its own": whole.astype(np.int8),
        "127 levels on either side, not 128": np.rint(levels * np.float32(128 / 127)).astype(np.int8),
    }
    return recognise(got, wrong)


def _likely_scales(scales: Float32, got: Any) -> str:
    if isinstance(got, np.ndarray) and got.dtype == np.float16:
        return "nobody stores these: the scale stays float32"
    with np.errstate(all="ignore"):
        wrong = {
            "x ≈ scale * code: the scale is the largest magnitude over 127, not its inverse": (
                1 / scales
            ).astype(np.float32),
            "over 127, the code of the largest": (scales * np.float32(127)).astype(np.float32),
            "nobody stores these: a float16 in between loses digits": scales.astype(np.float16).astype(
                np.float32
            ),
        }
    return recognise(got, wrong, 1e-6)


# ---- Q8_0 ------------------------------------------------------------------------------------------------


def dot_q8_0(row: Blocks, codes: Codes, scales: Float32) -> float:
    """Multiply a row of Q8_0 blocks with a coded vector, one weight at a time.

    row            (n_blocks,) blocks with the fields d and qs
    codes, scales  (n_blocks, 32) int8 and (n_blocks,) float32
    """
    total = 0.0
    for block, x, scale in zip(row, codes.tolist(), scales.tolist(), strict=True):
        products = sum(q * c for q, c in zip(block["qs"].tolist(), x, strict=True))
        total += float(block["d"]) * scale * products
    return total


def multiply_q8_0(blocks: Blocks, codes: Codes, scales: Float32) -> Float32:
    """Multiply all rows with a coded vector; blocks one after the other, so that the sums have the engine's order.

    blocks         (rows, n_blocks) with the fields d and qs
    codes, scales  (n_blocks, 32) int8 and (n_blocks,) float32
    returns        (rows,) float32
    """
    total = np.zeros(len(blocks), np.float32)
    for index, (x, scale) in enumerate(zip(codes, scales, strict=True)):
        products = blocks["qs"][:, index].astype(np.int32) @ x.astype(np.int32)  # (rows,)
        total += blocks["d"][:, index].astype(np.float32) * scale * products.astype(np.float32)
    return total


Terms = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]  # codes of weights and vector -> products


def _block_terms(blocks: Blocks, codes: Codes, scales: Float32, products: Terms | None = None) -> Float64:
    """What each block adds: (..., n_blocks) float64."""
    whole = np.multiply(blocks["qs"], codes, dtype=np.int64).sum(axis=-1)
    found = whole if products is None else products(blocks["qs"], codes)
    return np.asarray(blocks["d"].astype(np.float64) * scales.astype(np.float64) * found)


def _wrong_products(blocks: Blocks, codes: Codes, scales: Float32) -> dict[str, Float64]:
    """What the usual mistakes make of rows: text -> (...,)."""
    d = blocks["d"].astype(np.float64)
    right = _block_terms(blocks, codes, scales)
    narrow = _block_terms(blocks, codes, scales, lambda q, x: (q * x).sum(axis=-1, dtype=np.int64))
    unsigned = _block_terms(
        blocks, codes, scales, lambda q, x: (q.view(np.uint8) * x.astype(np.int64)).sum(axis=-1)
    )
    with np.errstate(all="ignore"):
        return {
            "int8 times int8 stays int8 in NumPy: 100 · 100 becomes 16. Widen the codes first": narrow.sum(
                -1
            ),
            "the codes have a sign: int8, not uint8": unsigned.sum(-1),
            "the scales of the vector are missing": (right / scales).sum(-1),
            "the scale d of the weights is missing": np.nan_to_num(right / d).sum(-1),
            "both scales are missing": np.nan_to_num(right / d / scales).sum(-1),
            "every block has a scale of its own: multiply before you add the blocks": (
                np.nan_to_num(right / d / scales).sum(-1) * d[..., 0] * scales[0]
            ),
        }


def _sample_rows(n_rows: int, cols: int) -> tuple[Blocks, Codes, Float32]:
    """Rows and a vector whose blocks differ in size, so that no scale can stand for another."""
    rng = np.random.default_rng(3)
    sizes = np.repeat(np.geomspace(0.2, 3, cols // 32), 32)
    rows = (rng.normal(size=(n_rows, cols)) * sizes[::-1]).astype(np.float32)
    codes, scales = code_vector((rng.normal(size=cols) * sizes).astype(np.float32))
    return quantize_q8_0(rows), codes, scales


def _by_hand() -> tuple[Blocks, Codes, Float32]:
    """One block whose product is known: 32 · 100 · 100 · 0.5 · 0.25."""
    weights, vector = np.full((1, 32), 50, np.float32), np.full(32, 25, np.float32)
    blocks = quantize_q8_0(weights)
    blocks["d"], blocks["qs"] = 0.5, 100
    codes, scales = np.full((1, 32), 100, np.int8), vector[:1] / np.float32(100)
    return blocks, codes, scales


@exercise("11.2", "One row, one weight at a time", difficulty=2, minutes=10)
def dot(answer: Answer) -> Mistake | None:
    """Hold `dot_q8_0(row, codes, scales)` against the exact sum."""
    samples = {"one block, all codes 100": _by_hand(), "a row of 256 weights": _sample_rows(1, 256)}
    for where, (blocks, codes, scales) in samples.items():
        got = answer(blocks[0], codes.copy(), scales.copy())
        if (number := _number(got)) is None:
            return _not_a_number(where, got)
        mistake = _compare_sums(where, blocks[:1], codes, scales, np.array([number]))
        if mistake is not None:
            return mistake
    return None


def _number(got: Any) -> float | None:
    """Return a number, Python's or NumPy's, as a float; None where it is none."""
    plain = np.asarray(got)
    return float(plain) if plain.ndim == 0 and plain.dtype.kind in "iuf" else None


def _not_a_number(where: str, got: Any) -> Mistake:
    likely = "a function without `return` gives None" if got is None else "one number: add up all blocks"
    return Mistake(where, "a number", type(got).__name__, likely)


def _compare_sums(where: str, blocks: Blocks, codes: Codes, scales: Float32, got: Any) -> Mistake | None:
    """Compare with exact sums; how far off they may be depends on the magnitudes that were added."""
    terms = _block_terms(blocks, codes, scales)
    expected, allowed = terms.sum(axis=-1), _ROUNDING * np.abs(terms).sum(axis=-1)
    wrong = np.flatnonzero(~(np.abs(got - expected) <= allowed))
    if not len(wrong):
        return None
    first = int(wrong[0])
    reasons = _wrong_products(blocks, codes, scales)
    likely = next(
        (text for text, sums in reasons.items() if np.all(np.abs(sums - got) <= allowed + 1e-9)), ""
    )
    place = where if len(expected) == 1 else f"{where}: {len(wrong)} of them differ, the first is row {first}"
    return Mistake(place, f"{expected[first]:.6g}", f"{got[first]:.6g}", likely)


@exercise("11.3", "All rows at once", difficulty=3, minutes=15)
def product(answer: Answer) -> Mistake | None:
    """Hold `multiply_q8_0(blocks, codes, scales)` against the exact sums."""
    samples = {
        "one row of one block": _by_hand(),
        "5 rows of 256 weights": _sample_rows(5, 256),
        "40 rows of 768 weights": _sample_rows(40, 768),
    }
    for where, (blocks, codes, scales) in samples.items():
        got = answer(blocks.copy(), codes.copy(), scales.copy())
        expected = _block_terms(blocks, codes, scales).sum(axis=-1).astype(np.float32)
        if not isinstance(got, np.ndarray) or got.shape != expected.shape or got.dtype != np.float32:
            likely = "the scales are float32, the codes whole numbers: the result is .astype(np.float32)"
            if isinstance(got, np.ndarray) and got.shape != expected.shape:
                likely = "one number for each row: sum over its weights, then over its blocks"
            mistake = compare_arrays(where, expected, got, likely if isinstance(got, np.ndarray) else "")
        else:
            mistake = _compare_sums(where, blocks, codes, scales, got)
        if mistake is not None:
            return mistake
    return None


# ---- Q4_K ------------------------------------------------------------------------------------------------


class SuperBlocks(NamedTuple):
    """A row of Q4_K, unpacked: weight = d * scale * code - dmin * minimum.

    d, dmin         (n_blocks,) float32
    scales, minima  (n_blocks, 8) int32, of 32 weights each
    codes           (n_blocks, 8, 32) int32, 0 to 15
    """

    d: Float32
    dmin: Float32
    scales: NDArray[np.int32]
    minima: NDArray[np.int32]
    codes: NDArray[np.int32]


def unpack_q4_k(row: Blocks) -> SuperBlocks:
    """Unpack a row of Q4_K blocks (n_blocks,)."""
    scales, minima = unpack_scales_and_minima(row["scales"])
    codes = unpack_pairs(row["qs"]).reshape(len(row), 8, 32)
    d, dmin = row["d"].astype(np.float32), row["dmin"].astype(np.float32)
    return SuperBlocks(d, dmin, scales.astype(np.int32), minima.astype(np.int32), codes.astype(np.int32))


def dot_q4_k(row: SuperBlocks, codes: Codes, scales: Float32) -> float:
    """Multiply a row of super-blocks with a coded vector.

    codes, scales  (n_blocks, 256) int8 and (n_blocks,) float32
    """
    x = codes.reshape(-1, 8, 32).astype(np.int32)
    products = (row.scales * (row.codes * x).sum(axis=2)).sum(axis=1)  # (n_blocks,)
    offsets = (row.minima * x.sum(axis=2)).sum(axis=1)
    return float((scales * (row.d * products - row.dmin * offsets)).sum())


@exercise("11.4", "The minimum needs only a sum", difficulty=3, minutes=15)
def super_block_dot(answer: Answer) -> Mistake | None:
    """Hold `dot_q4_k(row, codes, scales)` against the exact sum."""
    rng = np.random.default_rng(4)
    sizes = np.repeat(np.array([0.5, 1, 2, 4]), 256)
    rows = (rng.normal(0.3, 1, size=1024) * sizes).astype(np.float32)
    vector = (rng.normal(0.2, 1, size=1024) * sizes[::-1]).astype(np.float32)
    packed = quantize_q4_k(rows[None])[0]  # (4,)
    for n_blocks in (1, 4):
        codes, scales = code_vector(vector[: 256 * n_blocks], 256)
        where = f"{n_blocks} super-block{'s' * (n_blocks > 1)}"
        got = answer(unpack_q4_k(packed[:n_blocks]), codes.copy(), scales.copy())
        if (number := _number(got)) is None:
            return _not_a_number(where, got)
        mistake = _compare_super(where, unpack_q4_k(packed[:n_blocks]), codes, scales, number)
        if mistake is not None:
            return mistake
    return None


def _compare_super(where: str, row: SuperBlocks, codes: Codes, scales: Float32, got: float) -> Mistake | None:
    x = codes.reshape(-1, 8, 32).astype(np.int64)
    d, dmin, s = (part.astype(np.float64) for part in (row.d, row.dmin, scales))
    of_groups = (row.codes * x).sum(axis=2)  # (n_blocks, 8)
    sums = x.sum(axis=2)
    products, offsets = (row.scales * of_groups).sum(axis=1), (row.minima * sums).sum(axis=1)
    expected = (s * (d * products - dmin * offsets)).sum()
    allowed = _ROUNDING * (s * (d * np.abs(products) + dmin * np.abs(offsets))).sum()
    if abs(got - expected) <= allowed:
        return None
    wrong = {
        "the sign: Q4_K stores the minimum as a positive number that is subtracted": (
            s * (d * products + dmin * offsets)
        ).sum(),
        "the minimum is missing: each weight has one, and it meets the vector, too": (s * d * products).sum(),
        "a minimum is multiplied with the sum of its 32 codes of the vector": (
            s * (d * products - dmin * row.minima.sum(axis=1))
        ).sum(),
        "the minimum belongs to every weight: multiply it with the sum of 32 codes, not with their number": (
            s * (d * products - dmin * 32 * row.minima.sum(axis=1))
        ).sum(),
        "the scales of the vector are missing": (d * products - dmin * offsets).sum(),
        "the vector's scale counts for the minimum as well": (s * d * products - dmin * offsets).sum(),
        "each group of 32 has a 6-bit scale of its own": (
            s * (d * of_groups.sum(axis=1) - dmin * offsets)
        ).sum(),
        "minimum times dmin, scale times d": (s * (d * products - d * offsets)).sum(),
    }
    likely = next((text for text, value in wrong.items() if abs(got - value) <= allowed), "")
    return Mistake(where, f"{expected:.6g}", f"{got:.6g}", likely)


# ---- what a token reads ----------------------------------------------------------------------------------


def bytes_per_token(tensors: Mapping[str, int], cache_bytes: int, n_positions: int) -> int:
    """Count the bytes that must come from memory for one generated token.

    tensors      name in the GGUF file -> bytes
    cache_bytes  bytes of keys and values that a position has in the cache
    n_positions  how many positions there are
    """
    whole = sum(tensors.values()) + n_positions * cache_bytes
    return whole - tensors["token_embd.weight"] * ("output.weight" in tensors)


@exercise("11.5", "What one token reads", difficulty=2, minutes=10)
def token_bytes(answer: Answer) -> Mistake | None:
    """Check `bytes_per_token(tensors, cache_bytes, n_positions)` with and without an output matrix."""
    untied = {"token_embd.weight": 1000, "blk.0.attn_qkv.weight": 300, "output.weight": 2000}
    tied = {"token_embd.weight": 1000, "blk.0.attn_qkv.weight": 300, "blk.0.ffn_up.weight": 500}
    cases = [("no cache yet", untied, 0), ("100 positions", untied, 100), ("a tied output", tied, 100)]
    for where, tensors, n_positions in cases:
        weights, cache = sum(tensors.values()), 7 * n_positions
        expected, got = bytes_per_token(tensors, 7, n_positions), answer(dict(tensors), 7, n_positions)
        wrong = {
            "the embedding is a table: a token reads one row of it, nearly nothing": weights + cache,
            "without an output.weight the embedding is the output matrix, and is read": weights
            - 1000
            + cache,
            "the keys and values of all positions are read for every token": expected - cache,
            "the keys and values of every position are read, not only the last's": expected - cache + 7,
        }
        likely = next((text for text, value in wrong.items() if value == got), "")
        mistake = compare_values(where, expected, got, likely)
        if mistake is not None:
            return mistake
    return None


# ---- the roof --------------------------------------------------------------------------------------------


def attainable(tokens: int, bytes_per_weight: float, bandwidth: float, peak: float) -> float:
    """Say how many multiply-adds a second a product can reach, if nothing but the machine holds it up.

    tokens            vectors that meet each weight while it is there
    bytes_per_weight  of the format
    bandwidth, peak   bytes a second from memory; multiply-adds a second
    """
    return min(peak, bandwidth * tokens / bytes_per_weight)


@exercise("11.6", "The roof", difficulty=2, minutes=10, core=True)
def roof(answer: Answer) -> Mistake | None:
    """Check `attainable(tokens, bytes_per_weight, bandwidth, peak)` left and right of the edge."""
    cases = [
        ("1 token, 2 bytes, 20 GB/s, 100 G multiply-adds", 1, 2.0, 20e9, 100e9),
        ("3 tokens, 0.5 bytes, 10 GB/s, 100 G multiply-adds", 3, 0.5, 10e9, 100e9),
        ("512 tokens, 0.5 bytes, 20 GB/s, 100 G multiply-adds", 512, 0.5, 20e9, 100e9),
    ]
    for where, tokens, size, bandwidth, peak in cases:
        expected, got = attainable(tokens, size, bandwidth, peak), answer(tokens, size, bandwidth, peak)
        if (number := _number(got)) is None:
            return _not_a_number(where, got)
        slope = bandwidth * tokens / size
        wrong = {
            "no product is faster than the arithmetic: the smaller of the two counts": slope,
            "both must be done: the slower one counts, so take the smaller number": max(peak, slope),
            "fewer bytes for a weight mean more weights a second: divide": min(
                peak, bandwidth * size * tokens
            ),
            "each weight that came meets all tokens": min(peak, bandwidth / size),
            "more tokens for each byte read mean more work, not less": min(peak, slope / tokens**2),
            "a multiplication with its addition counts once here": min(peak, 2 * slope),
        }
        if not np.isclose(number, expected, rtol=1e-9):
            likely = next((text for text, value in wrong.items() if np.isclose(number, value)), "")
            return Mistake(where, f"{expected:.6g}", f"{number:.6g}", likely)
    return None


# ---- threads ---------------------------------------------------------------------------------------------


def split_rows(n_rows: int, n_threads: int) -> list[Range]:
    """Share rows among threads: ranges from first to last + 1, in order, in whole panels of 16."""
    n_panels = -(-n_rows // PANEL)
    n_parts = min(n_threads, n_panels)
    edges = [PANEL * (n_panels * part // n_parts) for part in range(n_parts)] + [n_rows]
    return list(pairwise(edges))


@exercise("11.7", "Rows for threads", difficulty=2, minutes=10)
def threads(answer: Answer) -> Mistake | None:
    """Check that `split_rows(n_rows, n_threads)` gives each row to one thread, in fair parts of whole panels."""
    for n_rows, n_threads in ((64, 2), (96, 4), (100, 3), (3072, 5), (20, 8)):
        where = f"{n_rows} rows, {n_threads} threads"
        got = answer(n_rows, n_threads)
        if not isinstance(got, Sequence) or not all(len(part) == 2 for part in got):
            likely = "a function without `return` gives None" if got is None else "a list of (first, end)"
            return Mistake(where, str(split_rows(n_rows, n_threads)), repr(got), likely)
        reason = _wrong_split([(int(a), int(b)) for a, b in got], n_rows, n_threads)
        if reason:
            return Mistake(where, f"for instance {split_rows(n_rows, n_threads)}", str(list(got)), reason)
    return None


def _wrong_split(parts: list[Range], n_rows: int, n_threads: int) -> str:
    """Say what is wrong with a split; empty where nothing is."""
    if sum(end - first for first, end in parts) < n_rows and parts and parts[-1][1] < n_rows:
        return "the last rows have no thread: what does not divide goes to somebody, too"
    if any(end <= first for first, end in parts):
        return "a thread without rows is not needed: return fewer parts"
    if not parts or parts[0][0] != 0 or parts[-1][1] != n_rows:
        return "the parts must begin at 0 and end at n_rows"
    if any(end != first for (_, end), (first, _) in pairwise(parts)):
        return "each row to one thread: a part begins where the one before ends"
    if any(first % PANEL for first, _ in parts):
        return "the kernels take 16 rows together: parts begin at multiples of 16"
    panels = [-(-(end - first) // PANEL) for first, end in parts]
    if len(parts) > n_threads or max(panels) > -(-sum(panels) // n_threads):
        return "all wait for the slowest: no thread may have more than its share, rounded up to 16 rows"
    return ""
