"""One product alone: the clock, the bandwidth, and llama.cpp's product beside ours."""

from itertools import count

import numpy as np
import pytest

from phicourse.errors import PhiCourseError
from phicourse.evaluate import products
from phicourse.quantize import dequantize_rows, quantize_rows


def test_the_shortest_time_counts_and_the_budget_ends_it() -> None:
    readings = iter(np.cumsum([0, 5, 1, 2, 1, 7, 1, 3]).tolist())  # 5, 2, 7, …
    calls = count()
    assert products.best_seconds(lambda: next(calls), 14, lambda: next(readings)) == 2
    assert next(calls) == 3


def test_work_is_done_twice_even_without_a_budget() -> None:
    calls = count()
    products.best_seconds(lambda: next(calls), 0, iter(range(100)).__next__)
    assert next(calls) == 2


def test_bandwidth_is_a_rate() -> None:
    assert 1e6 < products.read_bandwidth(2, 1 << 20, 0.01) < 1e13


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_llama_cpp_multiplies_the_same_weights(name: str, tokens: int) -> None:
    if not products.has_llama_cpp():
        pytest.skip("needs llama-cpp-python, whose product it is")
    rng = np.random.default_rng(1)
    data = quantize_rows(rng.normal(size=(33, 512)).astype(np.float32), name)
    x = rng.normal(size=(tokens, 512)).astype(np.float32)
    expected = x @ dequantize_rows(data, name).T
    with products.LlamaProduct(name, data, tokens) as product:
        first, again = product(x, 1).copy(), product(x, 2)
        assert np.array_equal(first, again)
        # vectors are coded in 8 bits: an error of 1/254 of the largest number at most, mostly less
        assert np.abs(first - expected).max() < 0.02 * np.abs(expected).max()


def test_without_llama_cpp_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_ggml", lambda: None)
    assert not products.has_llama_cpp()
    with pytest.raises(PhiCourseError, match="pip install llama-cpp-python"):
        products.LlamaProduct("Q8_0", np.zeros((1, 34), np.uint8), 1)
