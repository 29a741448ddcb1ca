"""The checks of notebook 10, importance, i-quants and ternary weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.exercises.compare import compare_arrays, compare_values
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize.grids import load_grid
from phicourse.quantize.lattice import dequantize_iq2_xxs
from phicourse.quantize.ternary import pack_trits as pack_columns_of_trits

Array = NDArray[Any]

_CODES = (-8, 7)
_TRIALS = range(-9, 10)


def _numbers(got: Any, shape: tuple[int, ...], where: str, likely: str) -> Mistake | None:
    """Say what is wrong with an array of floats before its values are looked at."""
    if not isinstance(got, np.ndarray):
        return compare_arrays(where, np.zeros(shape), got)
    return None if got.shape == shape else Mistake(f"{where}: the shape", str(shape), str(got.shape), likely)


def _close(where: str, expected: Array, got: Array, likely: str) -> Mistake | None:
    """Compare floats to five digits, and name the first that differs."""
    wrong = np.flatnonzero(~np.isclose(expected, got, rtol=1e-5, atol=0))
    if not len(wrong):
        return None
    at = int(wrong[0])
    return Mistake(f"{where}: number {at}", f"{expected[at]:.6g}", f"{got[at]:.6g}", likely)


# ---- 10.1 ------------------------------------------------------------------------------------------------


def mean_squares(chunks: Sequence[Array]) -> Array:
    """Compute the mean square of each column over all rows of arrays (tokens, columns): (columns,)."""
    return np.asarray((np.concatenate(chunks).astype(np.float64) ** 2).mean(axis=0))


@exercise("10.1", "An importance matrix", difficulty=2, minutes=10, core=True)
def importance(answer: Answer) -> Mistake | None:
    """Hold `importance(chunks) -> (columns,)` against the mean of squares over the tokens of all chunks."""
    rng = np.random.default_rng(10)
    chunks = [rng.normal(0.3, [1, 2, 3, 0.1], (n, 4)).astype(np.float32) for n in (5, 50, 2)]
    got = answer([chunk.copy() for chunk in chunks])
    everything = np.concatenate(chunks).astype(np.float64)  # (tokens, columns)
    expected = mean_squares(chunks)
    wrong = {
        "a mean of means: short chunks count as much as long ones; add up squares and tokens": np.mean(
            [(chunk.astype(np.float64) ** 2).mean(axis=0) for chunk in chunks], axis=0
        ),
        "square first, then the mean: else plus and minus cancel": everything.mean(axis=0) ** 2,
        "no root at the end: the error of the output counts in squares": np.sqrt(expected),
        "squares, not magnitudes": np.abs(everything).mean(axis=0),
        "divide by the number of tokens": (everything**2).sum(axis=0),
    }
    by_column = "one number a column: sum over the tokens, axis 0"
    likely = _matching(wrong, got) or by_column
    return _numbers(got, (4,), "the importance", by_column) or _close("the importance", expected, got, likely)


def _matching(wrong: dict[str, Array], got: Any) -> str:
    """Find the usual mistake whose result this is."""
    if not isinstance(got, np.ndarray):
        return ""
    return next(
        (text for text, value in wrong.items() if value.shape == got.shape and np.allclose(value, got, rtol=1e-5)),
        "",
    )  # fmt: skip


# ---- 10.2 ------------------------------------------------------------------------------------------------


def weighted_scale(x: Array, weights: Array) -> tuple[float, Array]:
    """Find scale and codes -8 … 7 with a small Σ w (x - scale code)²: 19 stretched scales, the best is kept.

    x, weights  (n,) floats
    returns     the scale, the codes (n,)
    """
    peak = x[np.abs(x).argmax()]
    best: tuple[float, float, Array] = (np.inf, 0.0, np.zeros(len(x)))
    for trial in _TRIALS:
        codes = np.clip(np.rint(-(8 + 0.1 * trial) / peak * x), *_CODES)
        scale = float((weights * x * codes).sum() / (weights * codes**2).sum())
        error = float((weights * (x - scale * codes) ** 2).sum())
        if error < best[0]:
            best = (error, scale, codes)
    return best[1], best[2]


@exercise("10.2", "A scale that knows what counts", difficulty=3, minutes=15)
def scale_choice(answer: Answer) -> Mistake | None:
    """Hold the weighted error of `weighted_scale(x, weights) -> (scale, codes)` against ours."""
    rng = np.random.default_rng(2)
    for case in range(20):
        x, weights = rng.normal(size=32), rng.gamma(0.3, size=32)
        got = answer(x.copy(), weights.copy())
        if not isinstance(got, tuple) or len(got) != 2:
            return Mistake("what comes back", "a pair: scale, codes", repr(got), "return scale, codes")
        scale, codes = float(got[0]), np.asarray(got[1], np.float64)
        if (mistake := _codes_mistake(codes)) is not None:
            return mistake
        ours, theirs = _error(x, weights, *weighted_scale(x, weights)), _error(x, weights, scale, codes)
        if theirs > ours * (1 + 1e-6):
            return Mistake(
                f"the weighted error, example {case}",
                f"{ours:.6g} or less",
                f"{theirs:.6g}",
                _likely_scale(x, weights, scale, codes),
            )
    return None


def _codes_mistake(codes: Array) -> Mistake | None:
    if codes.shape != (32,):
        return Mistake("the codes: the shape", "(32,)", str(codes.shape))
    if np.any(codes != np.rint(codes)) or codes.min() < _CODES[0] or codes.max() > _CODES[1]:
        return Mistake("the codes", "whole numbers from -8 to 7", str(codes[:8]), "np.rint, then np.clip")
    return None


def _error(x: Array, weights: Array, scale: float, codes: Array) -> float:
    return float((weights * (x - scale * codes) ** 2).sum())


def _likely_scale(x: Array, weights: Array, scale: float, codes: Array) -> str:
    if not codes.any():
        return "codes that are all 0 say nothing: round x times the inverse of a scale"
    if np.isclose(scale, (x * codes).sum() / (codes**2).sum()):
        return "least squares without the weights: sums of w x q and of w q²"
    if not np.isclose(scale, (weights * x * codes).sum() / (weights * codes**2).sum()):
        return "with the codes fixed, the best scale is Σ w x q / Σ w q²"
    return "keep the trial with the smallest Σ w (x - scale q)², with the weights; all 19 trials"


# ---- 10.3 ------------------------------------------------------------------------------------------------


def seven_signs(x: Array, weights: Array) -> int:
    """Store the signs of eight weights (8,) in seven bits; the cheapest one changes where their number is odd."""
    negative = x < 0
    if negative.sum() % 2:
        negative[(weights * x * x).argmin()] ^= True
    return _bits(negative) & 127


@exercise("10.3", "Eight signs in seven bits", difficulty=2, minutes=10)
def sign_bits(answer: Answer) -> Mistake | None:
    """Hold `sign_bits(x, weights) -> int` against the rule, for groups of eight weights."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        x, weights = rng.normal(size=8), rng.gamma(0.5, size=8)
        expected = seven_signs(x, weights)
        got = answer(x.copy(), weights.copy())
        mistake = compare_values(
            f"the signs of {np.round(x, 2)}", expected, got, _likely_signs(x, weights, got)
        )
        if mistake is not None:
            return mistake
    return None


def _bits(negative: Array) -> int:
    """Bit j is set where number j is negative."""
    return int((negative.astype(int) << np.arange(8)).sum())


def _likely_signs(x: Array, weights: Array, got: Any) -> str:
    if not isinstance(got, int | np.integer):
        return "one whole number"
    negative = x < 0
    by_size, by_cost = negative.copy(), negative.copy()
    if negative.sum() % 2:
        by_size[np.abs(x).argmin()] ^= True
        by_cost[(weights * x * x).argmin()] ^= True
    wrong = {
        "seven bits are stored: & 127": _bits(by_cost),
        "weight j is bit j, the first one the lowest": _bits(by_cost[::-1]) >> 1,
        "an odd number of minus signs cannot be stored: one sign has to change": _bits(negative) & 127,
        "the cheapest one changes: smallest w x², not smallest x": _bits(by_size) & 127,
    }
    return next((text for text, value in wrong.items() if value == got), "")


# ---- 10.4 ------------------------------------------------------------------------------------------------


@exercise("10.4", "The nearest point", difficulty=2, minutes=10)
def nearest_points(answer: Answer) -> Mistake | None:
    """Hold `nearest_points(x, weights, grid, scale) -> (n,)` against a search through all points."""
    rng = np.random.default_rng(4)
    grid, scale = load_grid("IQ2_XXS").values.astype(np.float64), 0.02
    x, weights = np.abs(rng.normal(0, 0.4, (60, 8))), rng.gamma(0.5, size=(60, 8))
    expected = nearest(x, weights, grid, scale)
    got = answer(x.copy(), weights.copy(), grid.copy(), scale)
    if not isinstance(got, np.ndarray) or got.shape != expected.shape:
        shape = str(getattr(got, "shape", repr(got)))
        return Mistake(
            "the shape",
            "(60,): an index for each group",
            shape,
            "argmin over the points, not over the weights",
        )
    mine, theirs = (_cost(x, weights, grid[points.astype(int)], scale) for points in (expected, got))
    worse = np.flatnonzero(theirs > mine * (1 + 1e-9))
    if not len(worse):
        return None
    at = int(worse[0])
    likely = {
        "the weights are missing: Σ w (scale point - x)²": nearest(x, np.ones_like(weights), grid, scale),
        "the grid is in units of the scale: compare scale * grid with x": nearest(x, weights, grid, 1.0),
    }
    reason = next((text for text, points in likely.items() if np.array_equal(points, got)), "")
    return Mistake(f"group {at}", f"point {expected[at]}", f"point {got[at]}", reason)


def _cost(x: Array, weights: Array, points: Array, scale: float) -> Array:
    return np.asarray((weights * (scale * points - x) ** 2).sum(axis=-1))


def nearest(x: Array, weights: Array, grid: Array, scale: float) -> Array:
    """Return the point (n,) with the smallest weighted error for each group (n, 8), of all in a grid (n_points, 8)."""
    return np.asarray(_cost(x[:, None], weights[:, None], grid[None], scale).argmin(axis=1))


# ---- 10.5 ------------------------------------------------------------------------------------------------


@exercise("10.5", "Read a block of IQ2_XXS", difficulty=4, minutes=20)
def decode_block(answer: Answer) -> Mistake | None:
    """Hold `decode_iq2_xxs(raw, grid) -> (256,)` against the course's reader, for blocks of random bytes."""
    rng = np.random.default_rng(5)
    grid = load_grid("IQ2_XXS").values
    for _ in range(5):
        raw = np.float16(0.25).tobytes() + rng.bytes(64)
        expected = dequantize_iq2_xxs(np.frombuffer(raw, TENSOR_TYPES["IQ2_XXS"].dtype))
        got = answer(raw, grid.copy())
        all_of_them = "eight pairs of words, each with four groups of eight weights"
        mistake = _numbers(got, (256,), "the weights", all_of_them) or _close(
            "the weights",
            expected,
            np.asarray(got, np.float32),
            _likely_block(expected, np.asarray(got, np.float32)),
        )
        if mistake is not None:
            return mistake
    return None


def _likely_block(expected: Array, got: Array) -> str:
    same_size = np.isclose(np.abs(expected), np.abs(got), rtol=1e-5)
    if same_size.all():
        wrong = np.flatnonzero(~np.isclose(expected, got))
        if (wrong % 8 == 7).all():
            return "the eighth sign: such that the number of minus signs is even"
        return "signs of group g: 7 bits of the second word, from bit 7 g on; bit j belongs to weight j"
    ratio = np.abs(got[same_size == 0] / expected[same_size == 0])
    if np.allclose(ratio, 4):
        return "the step is d (1/2 + s) / 4"
    if np.allclose(ratio % 1, 0) or len(np.unique(np.round(ratio, 5))) <= 16:
        return "the step is d (1/2 + s) / 4, s the highest 4 bits of the second word"
    return "each 32 weights have two words: four indices, a byte each, then signs and scale"


# ---- 10.6 ------------------------------------------------------------------------------------------------


def five_in_a_byte(trits: Array) -> Array:
    """Pack trits (n, 5), the first one highest, as TQ1_0 does: (n,) uint8."""
    return pack_columns_of_trits(np.ascontiguousarray(trits.T))


@exercise("10.6", "Five trits in a byte", difficulty=2, minutes=10)
def pack_trits(answer: Answer) -> Mistake | None:
    """Hold `pack_trits(trits) -> (n,)` against all 243 bytes."""
    number = np.arange(243)
    trits = np.stack([number // 3 ** (4 - t) % 3 for t in range(5)], axis=-1).astype(np.uint8)  # (243, 5)
    expected = five_in_a_byte(trits)  # (243,)
    got = answer(trits.copy())
    wrong = {
        "this is q itself: scale it by 256 / 243, so that reading needs no division": number,
        "round up: else the last digits come out one too small": number * 256 // 243,
        "in uint8 a number above 255 starts again at 0: use a wider type on the way": (
            ((number * 256) % 256 + 242) // 243
        ),
        "the first trit is the highest digit: q = 3 q + t": five_in_a_byte(trits[:, ::-1]),
    }
    likely = next(
        (
            text
            for text, value in wrong.items()
            if isinstance(got, np.ndarray) and np.array_equal(got.astype(int), value.astype(int))
        ),
        "",
    )
    return compare_arrays("the bytes of all 243 combinations", expected, got, likely)
