"""The checks of notebook 08, K-quants: the fit, the search, six-bit scales, and the whole super-block."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phicourse.exercises.badge import badge
from phicourse.exercises.blocks import compare_blocks
from phicourse.exercises.compare import compare_arrays, compare_close, recognise
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf.types import bfloat16_to_float32, float32_to_bfloat16
from phicourse.quantize.blocks import Blocks, Float32, UInt8, pack
from phicourse.quantize.k_quants import pack_pairs, pack_scales_and_minima, unpack_scales_and_minima
from phicourse.quantize.k_quants import quantize_q4_k as finished_q4_k
from phicourse.quantize.rounding import nearest_int, quiet, sum_in_order
from phicourse.quantize.scale_search import Trials, affine_search, least_squares

__all__ = ["LEVELS", "badge", "by_magnitude", "finished_fit", "finished_search", "watch_search"]

N_MAX = 15  # the largest code of Q4_K
_TRIALS = Trials(-1.0, 0.1, 20)
# Into how many steps the trials stretch the range of a sub-block: 14, 14.1, … 16.
LEVELS = np.float32(-1) + np.float32(0.1) * np.arange(21, dtype=np.float32) + np.float32(N_MAX)
_CLOSE = 1e-4
_IN_ORDER = (
    "right to four digits, but not to the last bit: build (w l) x and (w l) l from w l, "
    "and add each up with sum_in_order"
)


class Fit(NamedTuple):
    """Scale and minimum of each sub-block, (n,), and its codes, (32, n)."""

    scale: Float32
    minimum: Float32
    codes: Float32


def by_magnitude(x: Float32) -> Float32:
    """How much an error in each weight counts, where no importance is known: (32, n)."""
    root = np.sqrt(sum_in_order(x * x) / np.float32(len(x)))
    return np.asarray(root + np.abs(x))


@quiet
def finished_fit(x: Float32, weights: Float32, codes: Float32) -> tuple[Float32, Float32]:
    """The course's own answer to exercise 08.1."""
    sum_w, sum_x = sum_in_order(weights), sum_in_order(weights * x)
    scale, minimum, solvable = least_squares(x, weights, sum_w, sum_x, codes)
    return np.where(solvable, scale, np.float32(np.nan)), np.where(solvable, minimum, np.float32(np.nan))


@quiet
def finished_search(x: Float32, weights: Float32) -> Fit:
    """The course's own answer to exercise 08.2."""
    found = affine_search(x, weights, N_MAX, _TRIALS)
    return Fit(found.scale, found.minimum, found.codes)


@quiet
def watch_search(x: Float32, weights: Float32) -> tuple[Float32, Float32, Fit]:
    """Look over the shoulder of the course's search.

    x, weights  (32, n), a sub-block a column
    returns     the error of the obvious scale (n,), those of all trials (21, n), and the obvious fit
    """
    obvious = _obvious(x)
    base, best = obvious.minimum, _weighted_error(x, weights, obvious)
    first, errors = best, []
    for levels in LEVELS:
        tried = _trial(x, weights, base, levels)
        errors.append(_weighted_error(x, weights, tried))
        better = errors[-1] < best
        base, best = np.where(better, tried.minimum, base), np.where(better, errors[-1], best)
    return first, np.array(errors), obvious


def _trial(x: Float32, weights: Float32, lowest: Float32, levels: np.float32) -> Fit:
    """Stretch the range above `lowest` to so many steps, round, and fit a line."""
    inverse = levels / (x.max(axis=0) - lowest)
    codes = np.clip(nearest_int(inverse * (x - lowest)), 0, N_MAX).astype(np.float32)
    return Fit(*finished_fit(x, weights, codes), codes)


def _weighted_error(x: Float32, weights: Float32, fit: Fit) -> Float32:
    """Σ w (scale * code + minimum - x)²: (n,)."""
    difference = fit.scale * fit.codes + fit.minimum - x
    return sum_in_order(weights * (difference * difference))


def sub_blocks() -> dict[str, Float32]:
    """Sub-blocks as columns, by what is special about them: (32, n) each."""
    rng = np.random.default_rng(8)
    normal = rng.normal(size=(32, 3000)).astype(np.float32)
    positive = np.abs(normal[:, :40]) + np.float32(0.5)
    equal = np.full((32, 2), -0.25, np.float32)
    return {
        "40 sub-blocks": normal[:, :40],
        "40 sub-blocks of weights that are all positive": positive,
        "two sub-blocks of equal weights": equal,
        "3,000 sub-blocks": bfloat16_to_float32(float32_to_bfloat16(normal)),
    }


# ---- the fit ---------------------------------------------------------------------------------------------


@exercise("08.1", "A line through 32 points", difficulty=3, minutes=20, core=True)
def fit_line(answer: Answer) -> Mistake | None:
    """Hold `fit_line(x, weights, codes) -> (scale, minimum)` against least squares, to the last bit."""
    for where, x in sub_blocks().items():
        weights, codes = by_magnitude(x), _obvious(x).codes
        expected, got = finished_fit(x, weights, codes), answer(x.copy(), weights.copy(), codes.copy())
        mistake = _compare_parts(
            where, expected, got, _wrong_fits(x, weights, codes), Fit._fields[:2], _CLOSE
        )
        if mistake is not None:
            return mistake
    return None


@quiet
def _obvious(x: Float32) -> Fit:
    """Level 0 on the smallest weight or on zero, level 15 on the largest."""
    minimum = np.minimum(x.min(axis=0), np.float32(0))
    inverse = np.float32(N_MAX) / (x.max(axis=0) - minimum)
    codes = np.clip(nearest_int(inverse * (x - minimum)), 0, N_MAX).astype(np.float32)
    return Fit(np.float32(1) / inverse, minimum, codes)


@quiet
def _wrong_fits(x: Float32, weights: Float32, codes: Float32) -> dict[str, tuple[NDArray[Any], ...]]:
    """What the usual mistakes make of the same sub-blocks."""
    scale, minimum = finished_fit(x, weights, codes)
    plain = finished_fit(x, np.ones_like(x), codes)
    wl = weights * codes
    terms = (weights, weights * x, wl, wl * codes, wl * x)
    w, wx, wl, wll, wlx = (sum_in_order(term) for term in terms)
    free, free_minimum = (a / (w * wll - wl * wl) for a in (w * wlx - wx * wl, wll * wx - wl * wlx))
    return {
        "each term needs its weight: Σ w l², not Σ l²": plain,
        "the sign: here the minimum is what is added, below zero; only the file stores it as positive": (
            scale,
            -minimum,
        ),
        "a minimum above zero cannot be stored: it becomes 0, and the scale Σ w l x / Σ w l²": (
            free,
            free_minimum,
        ),
        "with the minimum at 0 another scale is best: Σ w l x / Σ w l²": (
            free,
            np.minimum(free_minimum, np.float32(0)),
        ),
        "the scale comes first, then the minimum": (minimum, scale),
    }


def _compare_parts(
    where: str,
    expected: tuple[NDArray[Any], ...],
    got: Any,
    reasons: Mapping[str, tuple[NDArray[Any], ...]],
    names: tuple[str, ...],
    tolerance: float = 0.0,
) -> Mistake | None:
    """Compare a tuple of arrays, each bit for bit.

    reasons    likely mistake -> what it leads to
    tolerance  how close counts as the same mistake; what is right but for that has a reason of its own
    """
    if not isinstance(got, tuple) or len(got) != len(expected):
        likely = f"return {', '.join(names)}"
        return Mistake(f"{where}: what comes back", f"a tuple: {', '.join(names)}", repr(got), likely)
    likely = next((text for text, wrong in reasons.items() if _is_like(wrong, got, tolerance)), "")
    if tolerance and _is_like(expected, got, tolerance):
        likely = _IN_ORDER
    for name, right, part in zip(names, expected, got, strict=True):
        mistake = compare_arrays(f"{where}: {name}", right, part, likely)
        if mistake is not None:
            return mistake
    return None


def _is_like(expected: tuple[NDArray[Any], ...], got: tuple[Any, ...], tolerance: float) -> bool:
    """Whether all that is known is of the same type and as close."""
    return all(
        isinstance(part, np.ndarray)
        and (part.shape, part.dtype) == (right.shape, right.dtype)
        and compare_close("", right[np.isfinite(right)], part[np.isfinite(right)], tolerance) is None
        for right, part in zip(expected, got, strict=True)
    )


# ---- the search ------------------------------------------------------------------------------------------


@exercise("08.2", "The search", difficulty=4, minutes=25, core=True)
def search(answer: Answer) -> Mistake | None:
    """Hold `search(x, weights) -> (scale, minimum, codes)` against the course's, bit by bit."""
    for where, x in sub_blocks().items():
        weights = by_magnitude(x)
        expected, got = finished_search(x, weights), answer(x.copy(), weights.copy())
        wrong = _wrong_searches(x, weights)
        mistake = _compare_parts(where, tuple(expected), _plain(got), wrong, Fit._fields, _CLOSE)
        if mistake is not None:
            return mistake
    return None


def _plain(got: Any) -> Any:
    """Codes may be whole numbers of any type."""
    if isinstance(got, tuple) and len(got) == 3 and isinstance(got[2], np.ndarray):
        return (*got[:2], got[2].astype(np.float32))
    return got


@quiet
def _wrong_searches(x: Float32, weights: Float32) -> dict[str, tuple[NDArray[Any], ...]]:
    """What the usual mistakes find."""
    from_below = _search(x, weights, np.minimum(x.min(axis=0), np.float32(0)))
    return {
        "that is the obvious scale: try the others, too": tuple(_obvious(x)),
        "the trials measure from the best minimum so far, which moves, not from the smallest weight": tuple(
            from_below
        ),
        "an error counts as much as its weight: Σ w (…)²": tuple(_search(x, weights, None, weighted=False)),
        "keep the fitted scale and minimum, not those that gave the codes": tuple(
            _search(x, weights, None, fitted=False)
        ),
    }


def _search(
    x: Float32, weights: Float32, base: Float32 | None, weighted: bool = True, fitted: bool = True
) -> Fit:
    """Search in a wrong way: from a fixed minimum, without weights, or without least squares."""
    judge = weights if weighted else np.ones_like(x)
    best = _obvious(x)
    smallest = _weighted_error(x, judge, best)
    for levels in LEVELS:
        lowest = best.minimum if base is None else base
        tried = _trial(x, weights, lowest, levels)
        if not fitted:
            tried = Fit((x.max(axis=0) - lowest) / levels, lowest, tried.codes)
        error = _weighted_error(x, judge, tried)
        better = error < smallest
        best = Fit(*(np.where(better, new, old) for new, old in zip(tried, best, strict=True)))
        smallest = np.where(better, error, smallest)
    return best


# ---- scales in six bits ----------------------------------------------------------------------------------


@exercise("08.3", "Quantize the scales", difficulty=2, minutes=10)
def six_bits(answer: Answer) -> Mistake | None:
    """Hold `six_bits(values) -> (d, codes)` on scales of some super-blocks, one of them all zero."""
    values = np.abs(np.random.default_rng(6).normal(size=(200, 8))).astype(np.float32)
    values[3] = 0
    for where, some in (("four super-blocks", values[:4]), ("200 super-blocks", values)):
        got = answer(some.copy())
        mistake = _compare_parts(where, _six_bits(some), got, _wrong_six_bits(some), ("d", "codes"))
        if mistake is not None:
            return mistake
    return None


@quiet
def _six_bits(values: Float32, levels: int = 63, half: bool = False) -> tuple[Blocks, UInt8]:
    """The right answer, or a wrong one: another number of levels, or rounding with the float16 unit."""
    largest = values.max(axis=-1)
    d = (largest / np.float32(levels)).astype(np.float16)
    inverse = np.float32(1) / d.astype(np.float32) if half else np.float32(levels) / largest
    codes = nearest_int(np.where(largest > 0, inverse, np.float32(0))[:, None] * values)
    return d, np.minimum(codes, 63).astype(np.uint8)


@quiet
def _wrong_six_bits(values: Float32) -> dict[str, tuple[NDArray[Any], ...]]:
    d, codes = _six_bits(values)
    largest = values.max(axis=-1)
    inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
    return {
        "six bits: 0 to 63, so the largest gets 63": _six_bits(values, levels=64),
        "round with 63 / largest in float32; d becomes a float16 only when it is stored": _six_bits(
            values, half=True
        ),
        "round to the nearest: a cast only drops the fraction": (
            d,
            (inverse[:, None] * values).astype(np.uint8),
        ),
        "d must be float16, as the file has it": (largest / np.float32(63), codes),
        "the codes must be uint8": (d, codes.astype(np.int32)),
    }


@exercise("08.4", "Sixteen numbers in twelve bytes", difficulty=3, minutes=15)
def pack_scales(answer: Answer) -> Mistake | None:
    """Hold `pack_scales(scales, minima)` against the course's."""
    rng = np.random.default_rng(4)
    counting = np.arange(1, 9, dtype=np.uint8)[None]
    cases = {
        "scales 1 to 8, minima 9 to 16": (counting, counting + np.uint8(8)),
        "scales 56 to 63, minima 0": (counting + np.uint8(55), counting * np.uint8(0)),
        "50 super-blocks": tuple(rng.integers(0, 64, (2, 50, 8), np.uint8)),
    }
    for where, (scales, minima) in cases.items():
        got = answer(scales.copy(), minima.copy())
        expected = pack_scales_and_minima(scales, minima)
        mistake = compare_arrays(where, expected, got, _likely_packed(expected, scales, minima, got))
        if mistake is not None:
            return mistake
    return None


def _likely_packed(expected: UInt8, scales: UInt8, minima: UInt8, got: Any) -> str:
    swapped = pack_scales_and_minima(minima, scales)
    flat = np.concatenate([scales, minima[..., :4]], axis=-1)
    wrong = {"scales in bytes 0-3, minima in bytes 4-7": swapped, "12 bytes must hold 16 numbers": flat}
    if not isinstance(got, np.ndarray) or got.shape != expected.shape:
        return "one byte each for 12 of them: (..., 12)"
    if got.dtype != np.uint8:
        return "bytes are uint8"
    if reason := recognise(got, wrong):
        return reason
    if (got[..., 8:] != expected[..., 8:]).any():
        return "bytes 8-11: the low four bits of scales 4-7, and above them those of minima 4-7"
    return "the two high bits of number 4 + j are the two high bits of byte j (scales) or 4 + j (minima)"


# ---- the whole super-block -------------------------------------------------------------------------------


def super_blocks() -> dict[str, Float32]:
    """Rows of super-blocks, by what is special about them: (rows, 512) each."""
    rng = np.random.default_rng(9)
    normal = rng.normal(size=(100, 512)).astype(np.float32)
    outlier = normal[:2] * np.float32(1e-3)
    outlier[:, 40] = 30
    empty = normal[:2].copy()
    empty[0, :64] = empty[1, :256] = 0
    return {
        "one row": normal[:1],
        "rows with sub-blocks of zeros": empty,
        "rows with an outlier, so that most scales become 0": outlier,
        "rows of positive weights": np.abs(normal[:2]),
        "100 rows": bfloat16_to_float32(float32_to_bfloat16(normal)),
    }


@exercise("08.5", "The whole super-block", difficulty=4, minutes=30, core=True)
def quantize_q4_k(answer: Answer) -> Mistake | None:
    """Hold `quantize_q4_k(x)` against the course's, byte by byte."""
    for where, x in super_blocks().items():
        got = answer(x.copy())
        mistake = compare_blocks(where, finished_q4_k(x), got, _wrong_q4_k(x), "Q4_K")
        if mistake is not None:
            return mistake
    return None


@quiet
def _wrong_q4_k(x: Float32) -> dict[str, Blocks]:
    """What the usual mistakes make of rows."""
    right = finished_q4_k(x)
    columns = np.ascontiguousarray(x.reshape(-1, 32).T)
    found = finished_search(columns, by_magnitude(columns))
    codes = found.codes.T.reshape(*right.shape, 8, 32)
    step, below = (_stored(right, name) for name in ("d", "dmin"))  # (rows, n_blocks, 8, 1)
    float_step, float_below = (values.reshape(*right.shape, 8, 1) for values in (found.scale, -found.minimum))
    weights = x.reshape(*right.shape, 8, 32)

    def blocks(rounded: NDArray[Any], kept: NDArray[Any] = codes, step: Float32 = step) -> Blocks:
        new = np.where(step != 0, np.clip(rounded, 0, N_MAX), kept).astype(np.uint8)
        fields = {name: right[name] for name in ("d", "dmin", "scales")}
        return pack("Q4_K", **fields, qs=pack_pairs(new.reshape(*right.shape, 256)))

    again = nearest_int((weights + below) / step)
    return {
        "round the weights again, with the scales that the file has: d times the six-bit code": blocks(codes),
        "the minimum is stored as a positive number that is subtracted: add it before you round": blocks(
            nearest_int((weights - below) / step)
        ),
        "the scales that a reader sees are d (as float16) times the six-bit codes": blocks(
            nearest_int((weights + float_below) / float_step), step=float_step
        ),
        "where d times the code is 0 the codes of the search stay": blocks(again, np.zeros_like(codes)),
    }


def _stored(blocks: Blocks, name: str) -> Float32:
    """The scales, or minima, as a reader of the file sees them: (rows, n_blocks, 8, 1)."""
    scales, minima = unpack_scales_and_minima(blocks["scales"])
    values = blocks[name].astype(np.float32)[..., None] * (scales if name == "d" else minima)
    return np.asarray(values)[..., None]
