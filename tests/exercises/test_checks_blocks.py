"""Wrong quantizers, and what the checks of notebooks 07 and 08 say about them; and the badge."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from phicourse.errors import QuantizeError
from phicourse.exercises import blocks, k_quants
from phicourse.exercises.badge import Badge, badge, llama_cpp_quantize
from phicourse.exercises.exercise import Answer, Exercise
from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize import QUANTIZERS
from phicourse.quantize.blocks import pack_nibbles, unpack_nibbles
from phicourse.quantize.k_quants import (
    pack_pairs,
    pack_scales_and_minima,
    quantize_q4_k,
    unpack_pairs,
)
from phicourse.quantize.legacy import dequantize_q4_0, dequantize_q8_0, quantize_q4_0, quantize_q8_0
from phicourse.quantize.rounding import nearest_int, quiet, round_half_away, sum_in_order, truncate


def q8_0(
    of: Callable[[np.ndarray], np.ndarray] = lambda w: np.abs(w).max(axis=-1),
    levels: int = 127,
    round: Callable[[np.ndarray], np.ndarray] = round_half_away,
    divide: bool = False,
    half: bool = False,
) -> Answer:
    """A quantizer with one thing changed."""

    @quiet
    def answer(x: np.ndarray) -> np.ndarray:
        weights = x.reshape(len(x), -1, 32)
        scale = of(weights) / np.float32(levels)
        used = scale.astype(np.float16).astype(np.float32) if half else scale
        inverse = np.where(used != 0, 1 / used, np.float32(0))
        out = np.zeros(scale.shape, TENSOR_TYPES["Q8_0"].dtype)
        quotient = weights / used[..., None] if divide else weights * inverse[..., None]
        out["d"], out["qs"] = scale, round(np.nan_to_num(quotient)).astype(np.int64)
        return out

    return answer


def q4_0(
    scale_of: Callable[[np.ndarray], np.ndarray], codes_of: Callable[[np.ndarray], Any] | None = None
) -> Answer:
    @quiet
    def answer(x: np.ndarray) -> np.ndarray:
        weights = x.reshape(len(x), -1, 32)
        scale = scale_of(weights).astype(np.float32)
        levels = weights * np.where(scale != 0, 1 / scale, np.float32(0))[..., None]
        codes = (codes_of or (lambda v: np.clip(truncate(v + np.float32(8.5)), 0, 15)))(levels)
        out = np.zeros(scale.shape, TENSOR_TYPES["Q4_0"].dtype)
        out["d"], out["qs"] = scale, pack_nibbles(codes.astype(np.int64).astype(np.uint8))
        return out

    return answer


def peak(weights: np.ndarray) -> np.ndarray:
    where = np.abs(weights).argmax(axis=-1)[..., None]
    return np.take_along_axis(weights, where, -1)[..., 0]


def last_peak(weights: np.ndarray) -> np.ndarray:
    return peak(weights[..., ::-1])


def values_q4_0(codes_of: Callable[[np.ndarray], np.ndarray], zero: float = 8) -> Answer:
    def answer(blocks: np.ndarray) -> np.ndarray:
        values = codes_of(blocks["qs"]).astype(np.float32) - np.float32(zero)
        return (values * blocks["d"].astype(np.float32)[..., None]).reshape(len(blocks), -1)

    return answer


def neighbours(qs: np.ndarray) -> np.ndarray:
    return np.stack([qs & 15, qs >> 4], axis=-1).reshape(*qs.shape[:-1], 32)


def bits_of(qh: np.ndarray) -> np.ndarray:
    return (qh[..., None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).astype(np.uint8)


def said_about(exercise: Exercise, answer: Answer, capsys: pytest.CaptureFixture[str]) -> str:
    with np.errstate(all="ignore"):
        exercise(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (blocks.quantize_q8_0, q8_0(round=np.round), "np.round would make 2 of 2.5"),
        (blocks.quantize_q8_0, q8_0(round=lambda v: np.floor(v + np.float32(0.5))), "-2.5 becomes -3"),
        (blocks.quantize_q8_0, q8_0(round=np.trunc), "a cast only drops"),
        (blocks.quantize_q8_0, q8_0(of=lambda w: w.max(axis=-1)), "belongs to a negative weight"),
        (blocks.quantize_q8_0, q8_0(levels=128), "127 levels on either side"),
        (blocks.quantize_q8_0, q8_0(divide=True), "a division rounds otherwise"),
        (blocks.quantize_q8_0, q8_0(half=True), "a float16 only in the file"),
        (blocks.quantize_q8_0, lambda x: None, "without `return`"),
        (blocks.quantize_q8_0, lambda x: x, "np.zeros(shape, Q8_0)"),
        (blocks.quantize_q8_0, lambda x: quantize_q8_0(x).ravel(), "rows first"),
        (blocks.dequantize_q8_0, lambda b: (b["d"][..., None] * b["qs"]).reshape(len(b), -1), "widen d"),
        (blocks.dequantize_q8_0, lambda b: b["d"].astype("f4")[..., None] * b["qs"], "side by side"),
        (
            blocks.dequantize_q8_0,
            lambda b: (b["d"].astype("f4")[..., None] * b["qs"].view(np.uint8)).reshape(len(b), -1),
            "int8, not uint8",
        ),
        (blocks.pack_nibbles, lambda c: c[..., :16] << 4 | c[..., 16:], "into the low four bits"),
        (blocks.pack_nibbles, lambda c: c[..., ::2] | c[..., 1::2] << 4, "until May 2023"),
        (blocks.pack_nibbles, lambda c: c[..., :16] | c[..., 16:], "shifted up"),
        (blocks.pack_nibbles, lambda c: pack_nibbles(c).astype(np.int64), "bytes are uint8"),
        (blocks.quantize_q4_0, q4_0(lambda w: np.abs(w).max(axis=-1) / 8), "keep the sign"),
        (blocks.quantize_q4_0, q4_0(lambda w: peak(w) / 8), "*minus* 8"),
        (blocks.quantize_q4_0, q4_0(lambda w: np.abs(w).max(axis=-1) / 7), "nothing is wasted"),
        (blocks.quantize_q4_0, q4_0(lambda w: last_peak(w) / -8), "the first counts"),
        (
            blocks.quantize_q4_0,
            q4_0(lambda w: peak(w) / -8, lambda v: np.clip(np.round(v) + 8, 0, 15)),
            "even",
        ),
        (
            blocks.quantize_q4_0,
            q4_0(lambda w: peak(w) / -8, lambda v: truncate(v + np.float32(8.5))),
            "no code",
        ),
        (blocks.dequantize_q4_0, values_q4_0(unpack_nibbles, zero=0), "code 8 is zero"),
        (blocks.dequantize_q4_0, values_q4_0(lambda qs: unpack_nibbles(qs) - np.uint8(8), 0), "no sign"),
        (blocks.dequantize_q4_0, values_q4_0(neighbours), "not neighbours"),
        (
            blocks.dequantize_q4_0,
            values_q4_0(lambda qs: unpack_nibbles(qs >> 4 | qs << 4)),
            "weights 0 to 15",
        ),
        (blocks.fifth_bits, bits_of, "worth 16"),
        (blocks.fifth_bits, lambda qh: 16 * bits_of(qh)[..., ::-1], "the lowest bit comes first"),
        (
            blocks.fifth_bits,
            lambda qh: 16 * np.unpackbits(qh.astype("<u4").view(np.uint8).reshape(*qh.shape, 4), axis=-1),
            "bitorder='little'",
        ),
        (blocks.fifth_bits, lambda qh: 16 * bits_of(qh).astype(np.uint32), "bytes are uint8"),
    ],
)
def test_a_wrong_block_is_told_why(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in said_about(exercise, answer, capsys)


# ---- K-quants --------------------------------------------------------------------------------------------


def fit_without_weights(x: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> tuple:
    return k_quants.finished_fit(x, np.ones_like(x), codes)


def fit_with_positive_minimum(x: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> tuple:
    scale, minimum = k_quants.finished_fit(x, weights, codes)
    return scale, -minimum


def fit_in_float64(x: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> tuple:
    found = k_quants.finished_fit(*(each.astype(np.float64) for each in (x, weights, codes)))
    return tuple(each.astype(np.float32) for each in found)


def fit_without_limit(x: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> tuple:
    w, wl = sum_in_order(weights), weights * codes
    wx, l1, l2, xl = (sum_in_order(each) for each in (weights * x, wl, wl * codes, wl * x))
    determinant = w * l2 - l1 * l1
    determinant[determinant <= 0] = np.nan
    return (w * xl - wx * l1) / determinant, (l2 * wx - l1 * xl) / determinant


def fit_with_the_old_scale(x: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> tuple:
    scale, minimum = fit_without_limit(x, weights, codes)
    return scale, np.minimum(minimum, np.float32(0))


def search_wrongly(**how: Any) -> Answer:
    def answer(x: np.ndarray, weights: np.ndarray) -> tuple:
        base = np.minimum(x.min(axis=0), 0) if how.get("from_below") else None
        rest = {name: value for name, value in how.items() if name != "from_below"}
        return tuple(k_quants._search(x, weights, base, **rest))

    return answer


def six_bits(levels: int = 63, half: bool = False, dtype: Any = np.uint8) -> Answer:
    def answer(values: np.ndarray) -> tuple:
        d, codes = k_quants._six_bits(values, levels, half)
        return d, codes.astype(dtype)

    return answer


def q4_k_with(change: Callable[[np.ndarray], None]) -> Answer:
    def answer(x: np.ndarray) -> np.ndarray:
        out = quantize_q4_k(x)
        change(out)
        return out

    return answer


def swap_halves(out: np.ndarray) -> None:
    out["qs"] = out["qs"] >> 4 | out["qs"] << 4


def q4_k_once_rounded(x: np.ndarray) -> np.ndarray:
    """Keeps the codes of the search."""
    columns = np.ascontiguousarray(x.reshape(-1, 32).T)
    codes = k_quants.finished_search(columns, k_quants.by_magnitude(columns)).codes
    out = quantize_q4_k(x)
    out["qs"] = pack_pairs(codes.T.reshape(*out.shape, 256).astype(np.uint8))
    return out


def q4_k_with_the_wrong_sign(x: np.ndarray) -> np.ndarray:
    out = quantize_q4_k(x)
    step, below = k_quants._stored(out, "d"), k_quants._stored(out, "dmin")
    codes = np.clip(nearest_int((x.reshape(*out.shape, 8, 32) - below) / step), 0, 15).astype(np.uint8)
    codes = np.where(step != 0, codes, unpack_pairs(out["qs"]).reshape(codes.shape))
    out["qs"] = pack_pairs(codes.reshape(*out.shape, 256))
    return out


def zero_codes_where_the_scale_is_zero(x: np.ndarray) -> np.ndarray:
    out = quantize_q4_k(x)
    codes = unpack_pairs(out["qs"]).reshape(*out.shape, 8, 32) * (k_quants._stored(out, "d") != 0)
    out["qs"] = pack_pairs(codes.reshape(*out.shape, 256))
    return out


LOW = np.array([63] * 8 + [255] * 4, np.uint8)


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (k_quants.fit_line, fit_without_weights, "Σ w l², not Σ l²"),
        (k_quants.fit_line, fit_with_positive_minimum, "the sign"),
        (k_quants.fit_line, fit_in_float64, "not to the last bit"),
        (k_quants.fit_line, fit_without_limit, "cannot be stored"),
        (k_quants.fit_line, fit_with_the_old_scale, "another scale is best"),
        (k_quants.fit_line, lambda x, w, c: k_quants.finished_fit(x, w, c)[::-1], "the scale comes first"),
        (k_quants.fit_line, lambda x, w, c: None, "a tuple: scale, minimum"),
        (k_quants.search, lambda x, w: tuple(k_quants._obvious(x)), "try the others, too"),
        (k_quants.search, search_wrongly(from_below=True), "the best minimum so far, which moves"),
        (k_quants.search, search_wrongly(weighted=False), "as much as its weight"),
        (k_quants.search, search_wrongly(fitted=False), "keep the fitted scale"),
        (k_quants.six_bits, six_bits(levels=64), "0 to 63"),
        (k_quants.six_bits, six_bits(half=True), "only when it is stored"),
        (k_quants.six_bits, six_bits(dtype=np.int32), "must be uint8"),
        (k_quants.six_bits, lambda v: (v.max(axis=-1) / np.float32(63), six_bits()(v)[1]), "must be float16"),
        (k_quants.pack_scales, lambda s, m: pack_scales_and_minima(m, s), "scales in bytes 0-3"),
        (k_quants.pack_scales, lambda s, m: np.concatenate([s, m], -1), "(..., 12)"),
        (k_quants.pack_scales, lambda s, m: pack_scales_and_minima(s, m) & LOW, "the two high bits"),
        (k_quants.pack_scales, lambda s, m: pack_scales_and_minima(s, m ^ 15), "bytes 8-11"),
        (k_quants.pack_scales, lambda s, m: pack_scales_and_minima(s, m).astype(int), "bytes are uint8"),
        (k_quants.quantize_q4_k, q4_k_once_rounded, "round the weights again"),
        (k_quants.quantize_q4_k, q4_k_with_the_wrong_sign, "add it before you round"),
        (k_quants.quantize_q4_k, zero_codes_where_the_scale_is_zero, "the codes of the search stay"),
        (k_quants.quantize_q4_k, q4_k_with(swap_halves), "field qs"),
        (k_quants.quantize_q4_k, lambda x: quantize_q4_k(x).view(np.uint8), "np.zeros(shape, Q4_K)"),
    ],
)
def test_a_wrong_super_block_is_told_why(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in said_about(exercise, answer, capsys)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        (blocks.quantize_q8_0, quantize_q8_0),
        (blocks.quantize_q4_0, quantize_q4_0),
        (blocks.dequantize_q8_0, dequantize_q8_0),
        (blocks.dequantize_q4_0, dequantize_q4_0),
        (k_quants.fit_line, k_quants.finished_fit),
        (k_quants.search, k_quants.finished_search),
        (k_quants.quantize_q4_k, quantize_q4_k),
    ],
)
def test_the_finished_functions_pass(exercise: Exercise, answer: Answer) -> None:
    assert exercise.judge(answer) is None


# ---- the badge -------------------------------------------------------------------------------------------

X = np.random.default_rng(1).normal(size=(6, 512)).astype(np.float32)


@pytest.mark.parametrize(
    "name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_our_quantizers_get_the_badge(name: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the judge")
    earned = badge(QUANTIZERS[name], X, name)
    assert earned.n_different == 0
    assert str(earned).startswith(f"your {name}: 0 of ") and "✔" in earned._repr_html_()


def test_a_wrong_quantizer_gets_the_map_of_its_bits() -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the judge")
    lost = badge(q8_0(levels=128), X, "Q8_0")
    assert lost.n_different == 96
    assert "✘" in lost._repr_html_() and "data:image/png" in lost._repr_html_()


def test_without_a_judge_nobody_is_judged() -> None:
    theirs = np.zeros((2, 34), np.uint8)
    alone = Badge(TENSOR_TYPES["Q8_0"], theirs, None)
    assert (
        alone.n_different == 0 and "not installed" in alone._repr_html_() and "✔" not in alone._repr_html_()
    )
    assert Badge(TENSOR_TYPES["Q8_0"], theirs ^ 1, theirs).n_different == 2


def test_blocks_of_another_type_are_refused() -> None:
    with pytest.raises(QuantizeError, match="must give"):
        badge(QUANTIZERS["Q4_0"], X, "Q8_0")


def test_the_judge_is_llama_cpp() -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the judge")
    packed = llama_cpp_quantize(X, "Q4_K")
    assert packed is not None and packed.shape == (6, 288) and packed.any()
