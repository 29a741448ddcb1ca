"""Wrong answers to the exercises of notebook 10, and what the checks say about them."""

from collections.abc import Callable

import numpy as np
import pytest

from phicourse.exercises import low_bits
from phicourse.exercises.exercise import Answer, Exercise
from phicourse.gguf.types import TENSOR_TYPES
from phicourse.quantize.lattice import dequantize_iq2_xxs

Array = np.ndarray


def everything(chunks: list[Array]) -> Array:
    return np.concatenate(chunks).astype(np.float64)


def scale_search(
    round_off: bool = False, fit: Callable[[Array], Array] = lambda w: w, trials: range = range(-9, 10)
) -> Answer:
    """The search with one thing changed: codes that are no numbers, other weights in the fit, fewer trials."""

    def answer(x: Array, weights: Array) -> tuple[float, Array]:
        peak, best = x[np.abs(x).argmax()], (np.inf, 0.0, x)
        for t in trials:
            codes = -(8 + 0.1 * t) / peak * x
            codes = codes if round_off else np.clip(np.rint(codes), -8, 7)
            w = fit(weights)
            scale = (w * x * codes).sum() / (w * codes**2).sum()
            error = (weights * (x - scale * codes) ** 2).sum()
            best = min(best, (error, scale, codes), key=lambda each: each[0])
        return best[1], best[2]

    return answer


def signs(
    flip: Callable[[Array, Array], Array] | None = lambda x, w: w * x**2,
    mask: int = 127,
    reverse: bool = False,
) -> Answer:
    def answer(x: Array, weights: Array) -> int:
        negative = x < 0
        if flip is not None and negative.sum() % 2:
            negative[flip(x, weights).argmin()] ^= True
        order = negative[::-1] if reverse else negative
        number = int(sum(int(minus) << j for j, minus in enumerate(order)))
        return number >> 1 if reverse else number & mask

    return answer


def block(change: Callable[[Array], Array]) -> Answer:
    """The right weights (32 groups of 8), changed."""

    def answer(raw: bytes, grid: Array) -> Array:
        weights = dequantize_iq2_xxs(np.frombuffer(raw, TENSOR_TYPES["IQ2_XXS"].dtype))
        return change(weights.reshape(32, 8)).reshape(-1).astype(np.float32)

    return answer


def no_eighth_sign(weights: Array) -> Array:
    return np.column_stack([weights[:, :7], np.abs(weights[:, 7])])


def trits(pack: Callable[[Array], Array], reverse: bool = False) -> Answer:
    def answer(digits: Array) -> Array:
        order = digits[:, ::-1] if reverse else digits
        number = sum(order[:, t].astype(int) * 3 ** (4 - t) for t in range(5))
        return pack(number).astype(np.uint8)

    return answer


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (low_bits.importance, lambda c: np.mean([(x**2).mean(0) for x in c], axis=0), "mean of means"),
        (low_bits.importance, lambda c: everything(c).mean(0) ** 2, "square first"),
        (low_bits.importance, lambda c: np.sqrt((everything(c) ** 2).mean(0)), "no root"),
        (low_bits.importance, lambda c: np.abs(everything(c)).mean(0), "squares, not magnitudes"),
        (low_bits.importance, lambda c: (everything(c) ** 2).sum(0), "divide by the number"),
        (low_bits.importance, lambda c: (everything(c) ** 2).mean(1), "the shape"),
        (low_bits.importance, lambda c: None, "without `return`"),
        (low_bits.scale_choice, scale_search(fit=np.ones_like), "without the weights"),
        (low_bits.scale_choice, scale_search(trials=range(1)), "all 19 trials"),
        (low_bits.scale_choice, scale_search(round_off=True), "np.rint"),
        (low_bits.scale_choice, lambda x, w: 1.0, "return scale, codes"),
        (low_bits.scale_choice, lambda x, w: (0.1, np.zeros(32)), "all 0 say nothing"),
        (low_bits.scale_choice, lambda x, w: (0.1, np.clip(np.rint(x / 0.3), -8, 7)), "the best scale is"),
        (low_bits.sign_bits, signs(flip=None), "an odd number of minus signs"),
        (low_bits.sign_bits, signs(flip=lambda x, w: np.abs(x)), "not smallest x"),
        (low_bits.sign_bits, signs(mask=255), "& 127"),
        (low_bits.sign_bits, signs(reverse=True), "weight j is bit j"),
        (low_bits.sign_bits, lambda x, w: "no", "one whole number"),
        (
            low_bits.nearest_points,
            lambda x, w, g, s: low_bits.nearest(x, np.ones_like(w), g, s),
            "the weights are missing",
        ),
        (
            low_bits.nearest_points,
            lambda x, w, g, s: low_bits.nearest(x, w, g, 1.0),
            "in units of the scale",
        ),
        (low_bits.nearest_points, lambda x, w, g, s: g[low_bits.nearest(x, w, g, s)], "argmin over the points"),
        (low_bits.decode_block, block(no_eighth_sign), "the eighth sign"),
        (low_bits.decode_block, block(np.abs), "signs of group g"),
        (low_bits.decode_block, block(lambda w: 4 * w), "d (1/2 + s) / 4"),
        (low_bits.decode_block, block(lambda w: w[::-1]), "two words"),
        (low_bits.decode_block, lambda raw, grid: np.zeros(32), "the shape"),
        (low_bits.pack_trits, trits(lambda q: q), "q itself"),
        (low_bits.pack_trits, trits(lambda q: q * 256 // 243), "round up"),
        (low_bits.pack_trits, trits(lambda q: (q * 256 + 242) // 243, reverse=True), "the highest digit"),
        (low_bits.pack_trits, trits(lambda q: (q * 256 % 256 + 242) // 243), "wider type"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message


def test_the_course_own_answers_are_right() -> None:
    assert low_bits.importance.judge(low_bits.mean_squares) is None
    assert low_bits.scale_choice.judge(low_bits.weighted_scale) is None
    assert low_bits.sign_bits.judge(low_bits.seven_signs) is None
    assert low_bits.nearest_points.judge(low_bits.nearest) is None
    assert low_bits.pack_trits.judge(low_bits.five_in_a_byte) is None
