"""The scale searches as mathematics: what they promise holds, whatever ggml does."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from phicourse.quantize.rounding import (
    nearest_int,
    reciprocal,
    round_half_away,
    sum_in_order,
    sum_last,
    truncate,
)
from phicourse.quantize.scale_search import (
    Symmetric,
    Trials,
    affine_search,
    affine_steps,
    positive_search,
    signed_peak,
    symmetric_descent,
    symmetric_search,
)

TRIALS = Trials(first=-1.0, step=0.1, n_steps=20)
HALVES = (slice(8), slice(8, None))


def sub_blocks(size: int = 32, count: int = 200) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(size, count)).astype(np.float32)


def error(x: np.ndarray, weights: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    return np.sum(weights.astype(np.float64) * (fitted.astype(np.float64) - x) ** 2, axis=0)


def test_affine_search_only_ever_improves() -> None:
    x = sub_blocks()
    steps = list(affine_steps(x, np.abs(x), n_max=15, trials=TRIALS))
    assert len(steps) == 22
    for before, after in pairwise(steps):
        assert np.all(after.error <= before.error)
    assert np.mean(steps[-1].error / steps[0].error) < 0.95
    last = affine_search(x, np.abs(x), n_max=15, trials=TRIALS)
    np.testing.assert_array_equal(last.codes, steps[-1].codes)


def test_affine_fit_has_the_error_it_says_and_stays_in_its_levels() -> None:
    x = sub_blocks()
    weights = np.abs(x) + 1
    fit = affine_search(x, weights, n_max=15, trials=TRIALS)
    np.testing.assert_allclose(error(x, weights, fit.scale * fit.codes + fit.minimum), fit.error, rtol=1e-4)
    assert fit.codes.min() >= 0 and fit.codes.max() <= 15
    assert np.all(fit.minimum <= 0) and np.all(fit.scale > 0)


def test_affine_fit_cannot_be_improved_by_moving_scale_or_minimum() -> None:
    """At the best fit the derivatives by scale and minimum are zero, unless the minimum was held at zero."""
    x = sub_blocks()
    weights = np.ones_like(x)
    fit = affine_search(x, weights, n_max=15, trials=TRIALS)
    at_best = error(x, weights, fit.scale * fit.codes + fit.minimum)
    free = fit.minimum < 0
    for scale, minimum in ((1.003, 1), (0.997, 1), (1, 1.003), (1, 0.997)):
        moved = error(x, weights, scale * fit.scale * fit.codes + minimum * fit.minimum)
        assert np.all(moved[free] >= at_best[free] * (1 - 1e-5))


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_affine_search_of_equal_weights_is_exact(value: float) -> None:
    x = np.full((32, 3), value, np.float32)
    with np.errstate(all="ignore"):
        fit = affine_search(x, np.abs(x) + 1, n_max=15, trials=TRIALS)
    np.testing.assert_allclose(fit.scale * fit.codes + fit.minimum, x, rtol=1e-6)


def test_absolute_error_is_another_measure() -> None:
    x = sub_blocks(16)
    squared = affine_search(x, np.abs(x), 3, TRIALS)
    absolute = affine_search(x, np.abs(x), 3, TRIALS, absolute=True)
    magnitudes = [
        np.sum(np.abs(x) * np.abs(fit.scale * fit.codes + fit.minimum - x)) for fit in (absolute, squared)
    ]
    np.testing.assert_allclose(magnitudes[0], absolute.error.sum(), rtol=1e-4)
    assert magnitudes[0] < magnitudes[1]


@pytest.mark.parametrize("search", [symmetric_search, symmetric_descent])
def test_symmetric_searches_beat_the_obvious_scale(search: Callable[..., Symmetric]) -> None:
    x = sub_blocks(16)
    fit = search(x, x * x, n_max=4)
    obvious = signed_peak(x, axis=0) / np.float32(-4)
    codes = np.clip(np.round(x / obvious), -4, 3)
    found, first = (error(x, x * x, fitted) for fitted in (fit.scale * fit.codes, obvious * codes))
    energy = error(x, x * x, np.zeros_like(x))
    assert np.all(found <= first + 1e-6 * energy)  # gains are compared in float32, near the energy
    assert np.mean(found / first) < 0.9
    assert fit.codes.min() >= -4 and fit.codes.max() <= 3


def test_symmetric_search_looks_at_the_weights() -> None:
    x = sub_blocks(16)
    weights = np.where(np.arange(16) < 8, 1, 0).astype(np.float32)[:, None] * np.ones_like(x)
    fit = symmetric_search(x, weights, n_max=4)
    first, second = (error(x[half], x[half] ** 0, (fit.scale * fit.codes)[half]) for half in HALVES)
    assert first.sum() < 0.8 * second.sum()


@pytest.mark.parametrize("search", [symmetric_search, symmetric_descent])
def test_symmetric_searches_of_nothing(search: Callable[..., Symmetric]) -> None:
    x = np.zeros((16, 2), np.float32)
    with np.errstate(all="ignore"):
        fit = search(x, x, n_max=32)
    assert np.all(fit.scale == 0) and np.all(fit.codes == -32)


def test_positive_search_fits_better_than_the_obvious_scale() -> None:
    rng = np.random.default_rng(1)
    x, weights = (rng.uniform(0, 1, (16, 200)).astype(np.float32) for _ in range(2))
    found = positive_search(x, weights, 15)
    assert found.codes.min() >= 0 and found.codes.max() <= 15
    obvious = x.max(axis=0) / np.float32(15)
    ours, theirs = (
        error(x, weights, fitted) for fitted in (found.scale * found.codes, obvious * np.round(x / obvious))
    )
    assert np.all(ours <= theirs * 1.0001) and np.mean(ours / theirs) < 0.9


def test_positive_search_of_nothing() -> None:
    with np.errstate(all="ignore"):
        fit = positive_search(np.zeros((8, 2), np.float32), np.ones((8, 2), np.float32), 63)
    assert np.all(fit.scale == 0) and np.all(fit.codes == 0)


def test_sums_run_in_order() -> None:
    terms = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)
    assert sum_in_order(terms)[0] == 1.0  # 1e8 + 1 is 1e8 in float32; another order gives 2 or 0
    np.testing.assert_array_equal(sum_last(terms.T[None]), [[1.0]])
    assert sum_last(np.empty((3, 0), np.float32)).tolist() == [0, 0, 0]


def test_peak_is_the_first_of_the_largest_and_never_minus_zero() -> None:
    x = np.array([[1.0, -2.0, 2.0], [-0.0, -0.0, -0.0]], np.float32)
    np.testing.assert_array_equal(signed_peak(x, axis=1), [-2.0, 0.0])
    assert not np.signbit(signed_peak(x, axis=1)[1])
    assert signed_peak(float32(np.nan, 1.0, -3.0), axis=0) == -3.0


def float32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_nearest_int_rounds_ties_to_even() -> None:
    np.testing.assert_array_equal(
        nearest_int(float32(0.5, 1.5, -0.5, -1.5, 2.49, 63.4)), [0, 2, 0, -2, 2, 63]
    )
    x = np.random.default_rng(0).uniform(-4e6, 4e6, 1000).astype(np.float32)
    np.testing.assert_array_equal(nearest_int(x), np.rint(x))


def test_round_half_away_and_truncate() -> None:
    x = float32(0.5, -0.5, 2.5, 0.49999997, -126.5, 8388607.5)
    np.testing.assert_array_equal(round_half_away(x), [1, -1, 3, 0, -127, 8388608])
    np.testing.assert_array_equal(truncate(float32(1.9, -1.9, np.inf, np.nan)), [1, -1, 0, 0])


def test_reciprocal_of_zero_is_zero() -> None:
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(reciprocal(float32(0.0, -0.0, 4.0)), [0, 0, 0.25])
