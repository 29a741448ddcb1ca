"""The statistics of the benchmark, with a clock that ticks as told."""

from collections.abc import Callable

import numpy as np
import pytest
from fake_model import BOS, FakeBackend

from phicourse.errors import GenerateError
from phicourse.evaluate import bench
from phicourse.evaluate.bench import random_ids


def ticking(*seconds: float) -> Callable[[], float]:
    """A clock between whose pairs of readings the given times pass."""
    readings = iter(np.cumsum([0, *(t for s in seconds for t in (s, 100))]).tolist())
    return lambda: next(readings)


def test_mean_and_sample_deviation_of_rates() -> None:
    pp, tg = bench(
        FakeBackend(n_ctx=2000), n_prompt=600, n_gen=10, repetitions=3, clock=ticking(6, 3, 2, 1, 2, 4)
    )
    assert (pp.test, tg.test) == ("pp600", "tg10")
    assert pp.tokens_per_second == pytest.approx((100 + 200 + 300) / 3)
    assert pp.stddev == pytest.approx(100)
    assert tg.tokens_per_second == pytest.approx((10 + 5 + 2.5) / 3)
    assert tg.as_dict() == {
        "test": "tg10",
        "tokens_per_second": tg.tokens_per_second,
        "stddev": pytest.approx(np.std([10, 5, 2.5], ddof=1)),
        "threads": 1,
        "isa": "fake",
        "repetitions": 3,
    }


def test_what_is_run_is_what_llama_bench_runs() -> None:
    backend = FakeBackend(n_ctx=2000)
    bench(backend, n_prompt=600, n_gen=3, repetitions=2, bos=BOS)
    assert backend.calls == [600] * 3 + [1] + [1, 1, 1] * 2  # a whole warm-up prompt, one warm-up token
    assert backend.position == 0


def test_a_depth_is_read_once_and_not_timed() -> None:
    backend = FakeBackend(n_ctx=2000)
    pp, tg = bench(backend, n_prompt=60, n_gen=2, repetitions=2, depth=500, clock=ticking(6, 6, 1, 1))
    assert (pp.test, tg.test) == ("pp60 @ d500", "tg2 @ d500")
    assert (pp.tokens_per_second, tg.tokens_per_second) == (10, 2)
    assert backend.calls == [500] + [60] * 3 + [500] + [1] + [1, 1] * 2


def test_one_repetition_has_no_deviation_and_zero_leaves_a_test_out() -> None:
    (only,) = bench(FakeBackend(), n_prompt=0, n_gen=4, repetitions=1, clock=ticking(2))
    assert (only.test, only.tokens_per_second, only.stddev) == ("tg4", 2, 0)


def test_ids_are_the_same_every_time_and_begin_with_bos() -> None:
    ids = random_ids(50, 200, 7)
    np.testing.assert_array_equal(ids, random_ids(50, 200, 7))
    assert ids[0] == 7
    assert ids.min() >= 0
    assert ids.max() < 200
    assert len(set(ids.tolist())) > 20


@pytest.mark.parametrize(
    "options",
    [
        {"n_prompt": 0, "n_gen": 0},
        {"n_prompt": -1},
        {"repetitions": 0},
        {"n_prompt": 65},
        {"depth": 57},
        {"depth": -1},
    ],
)
def test_impossible_requests_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(GenerateError, match="bench"):
        bench(FakeBackend(n_ctx=64), **({"n_prompt": 8, "n_gen": 8} | options))
