"""Samplers on arrays small enough to check by hand."""

import math

import numpy as np
import pytest

from phicourse.errors import GenerateError
from phicourse.generate.sampling import (
    Sampler,
    candidates,
    draw,
    greedy,
    min_p,
    probabilities,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
)

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625, in an order that is not sorted
ODDS = np.array([0.125, 0.5, 0.0625, 0.25, 0.0625])
LOGITS = np.log(ODDS).astype(np.float32)


def kept(logits: np.ndarray) -> list[int]:
    return np.flatnonzero(logits > -np.inf).tolist()


def test_greedy_takes_the_highest_and_of_equal_ones_the_first() -> None:
    assert greedy(LOGITS) == 1
    assert greedy(np.array([0, 3, 3], np.float32)) == 1


def test_candidates_come_likeliest_first_and_leave_out_what_is_ruled_out() -> None:
    logits = LOGITS.copy()
    logits[3] = -np.inf
    assert candidates(logits).tolist() == [1, 0, 2, 4]


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 2, 3]), (0, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_k_and_breaks_ties_by_id(k: int, expected: list[int]) -> None:
    assert kept(top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0, [1]), (0.4, [1]), (0.6, [1, 3]), (0.8, [0, 1, 3]), (1.0, [0, 1, 2, 3, 4]), (2.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_token_that_crosses_p(p: float, expected: list[int]) -> None:
    assert kept(top_p(LOGITS, p)) == expected


def test_top_p_looks_only_at_what_is_left() -> None:
    left = top_k(LOGITS, 2)  # 0.5 and 0.25 are now 2/3 and 1/3
    assert kept(top_p(left, 0.6)) == [1]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.0, [0, 1, 2, 3, 4]), (0.2, [0, 1, 3]), (0.51, [1]), (1.0, [1]), (3.0, [1])]
)
def test_min_p_is_relative_to_the_best(p: float, expected: list[int]) -> None:
    assert kept(min_p(LOGITS, p)) == expected


def test_temperature_divides_and_zero_leaves_one() -> None:
    np.testing.assert_allclose(probabilities(temperature(LOGITS, 0.5)), ODDS**2 / (ODDS**2).sum(), rtol=1e-6)
    assert kept(temperature(LOGITS, 0)) == [1]
    assert kept(temperature(LOGITS, -1)) == [1]


@pytest.mark.parametrize("t", [1e-45, 1e-40, 1e-300])
def test_a_temperature_so_low_that_quotients_overflow_is_zero(t: float) -> None:
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        for logits in (LOGITS, -LOGITS, np.float32([0, -1, -2]), np.float32([3e38, 1, 2])):
            assert kept(temperature(logits, t)) == [greedy(logits)]
    assert Sampler(temperature=t, seed=1).sample(LOGITS) == 1
    assert Sampler(temperature=0.5, seed=1).sample(np.float32([1, 3e38])) == 1


def test_repetition_penalty_moves_both_signs_down_and_counts_once() -> None:
    logits = np.array([2.0, -2.0, 0.0, 1.0], np.float32)
    np.testing.assert_array_equal(repetition_penalty(logits, [0, 1, 1, 2], 2.0), np.float32([1, -4, 0, 1]))
    np.testing.assert_array_equal(logits, np.float32([2, -2, 0, 1]))  # the caller's array is left alone


def test_probabilities_do_not_overflow() -> None:
    np.testing.assert_allclose(probabilities(np.array([1e4, 1e4, -np.inf], np.float32)), [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 1), (0.49, 1), (0.51, 3), (0.74, 3), (0.76, 0), (0.9999999, 4)]
)
def test_draw_walks_from_the_likeliest(u: float, token: int) -> None:
    assert draw(LOGITS, u) == token


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(temperature=1, top_k=0, top_p=1, min_p=0, seed=7)
    n = 20_000
    counts = np.bincount([sampler.sample(LOGITS) for _ in range(n)], minlength=5)
    # four standard deviations of a binomial: a right sampler fails once in 3,000 seeds, and this one is fixed
    assert np.all(np.abs(counts - n * ODDS) < 4 * np.sqrt(n * ODDS * (1 - ODDS)))


def test_the_order_of_the_chain_is_llama_cpps() -> None:
    """Temperature is last: top-p must see the undivided logits."""
    hot = Sampler(temperature=100, top_k=0, top_p=0.6, min_p=0)
    ids, odds = hot.distribution(LOGITS)
    assert ids.tolist() == [1, 3]
    np.testing.assert_allclose(odds, [0.5, 0.5], atol=0.01)


def test_the_penalty_comes_before_everything() -> None:
    sampler = Sampler(temperature=0, repeat_penalty=10)
    logits = np.array([2.0, 1.9, 0], np.float32)
    assert sampler.sample(logits) == 0
    assert sampler.sample(logits, [0]) == 1


def test_the_penalty_looks_at_the_last_n_only() -> None:
    logits = np.array([2.0, 1.9], np.float32)
    history = [0] + [1] * 64
    assert Sampler(temperature=0, repeat_penalty=3).sample(logits, history) == 0
    assert (
        Sampler(temperature=0, repeat_penalty=3, repeat_last_n=65).sample(logits, history) == 0
    )  # both penalized
    assert Sampler(temperature=0, repeat_penalty=3, repeat_last_n=0).sample(logits, [0]) == 0
    assert Sampler(temperature=0, repeat_penalty=3, repeat_last_n=-1).sample(logits, [0]) == 1


def test_same_seed_same_tokens_and_reset_starts_again() -> None:
    def tokens(sampler: Sampler) -> list[int]:
        return [sampler.sample(LOGITS) for _ in range(30)]

    first = Sampler(seed=3, top_k=0, min_p=0)
    drawn = tokens(first)
    assert drawn == tokens(Sampler(seed=3, top_k=0, min_p=0))
    assert drawn != tokens(Sampler(seed=4, top_k=0, min_p=0))
    first.reset()
    assert drawn == tokens(first)


def test_the_defaults_are_llama_cpps() -> None:
    s = Sampler()
    assert (s.temperature, s.top_k, s.top_p, s.min_p) == (0.8, 40, 0.95, 0.05)
    assert (s.repeat_penalty, s.repeat_last_n) == (1.0, 64)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(GenerateError, match="not finite"):
        Sampler(seed=1).sample(logits)


def test_no_possible_token_is_refused() -> None:
    with pytest.raises(GenerateError, match="not finite"):
        Sampler().sample(np.full(4, -np.inf, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": math.nan},
        {"top_p": math.inf},
        {"repeat_penalty": 0},
        {"repeat_penalty": -1},
        {"seed": -2},
    ],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(GenerateError, match=next(iter(options))):
        Sampler(**options)  # type: ignore[arg-type]
