"""One product of a quantized matrix with vectors, against the float product of the same weights.

The bound: coding in 8 bits moves a number of the vector by at most half a scale, so the product by at most
Σ |weight| · scale / 2; and sums of float32 by 1e-5 of the sum of their magnitudes.
"""

import numpy as np
import pytest

native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")

from phicourse.generate.backends import ENGINE_TYPES  # noqa: E402
from phicourse.gguf import tensor_type  # noqa: E402
from phicourse.quantize import dequantize_rows, quantize_rows  # noqa: E402
from phicourse.quantize.grids import hand_over  # noqa: E402

ROWS, COLS, TOKENS = 37, 512, 9  # rows and tokens that no tile divides
SUMS = 1e-5
FLOATS = ("F32", "F16", "BF16")
TYPES = tuple(sorted(ENGINE_TYPES))
SOME = ("F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL")


@pytest.fixture(autouse=True, scope="module")
def grids() -> None:
    for name in TYPES:
        hand_over(native, name)


def vectors(tokens: int = TOKENS) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (rng.normal(size=(tokens, COLS)) * rng.uniform(0.1, 3, COLS)).astype(np.float32)


def weights(name: str) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(ROWS, COLS)).astype(np.float32)
    return quantize_rows(x, name, importance=np.ones(COLS, np.float32))


def product(
    name: str, data: np.ndarray, x: np.ndarray, threads: int = 1, isa: str | None = None
) -> np.ndarray:
    out = np.full((len(x), len(data)), np.nan, np.float32)
    native.multiply(name, data, x, out, threads, isa)
    return out


def half_scales(x: np.ndarray, block: int) -> np.ndarray:
    largest = np.abs(x.reshape(len(x), -1, block)).max(axis=-1)
    return np.repeat(largest / 254, block, axis=-1)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", TYPES)
def test_the_product_is_that_of_the_weights_as_floats(name: str, isa: str) -> None:
    data, x = weights(name), vectors()
    floats = dequantize_rows(data, name).astype(np.float64)
    bound = SUMS * (np.abs(x) @ np.abs(floats).T)
    if name not in FLOATS:
        bound += half_scales(x, 256 if tensor_type(name).block == 256 else 32) @ np.abs(floats).T
    if name == "BF16" and isa == "avx512":  # it rounds the vectors to BF16, too: 8 bits
        bound += 2.0**-9 * np.abs(x) @ np.abs(floats).T
    difference = np.abs(product(name, data, x, isa=isa) - x @ floats.T)
    assert np.all(difference <= bound)
    assert np.all(np.abs(x @ floats.T).max() > 3 * bound)  # so that zeros would not pass


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", SOME)
def test_neither_threads_nor_company_change_a_bit(name: str, isa: str) -> None:
    data, x = weights(name), vectors(70)
    alone = np.concatenate([product(name, data, x[i : i + 1], isa=isa) for i in range(len(x))])
    for threads in (1, 2, 5):
        assert np.array_equal(product(name, data, x, threads, isa), alone)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", TYPES)
def test_a_few_vectors_together_give_the_bits_of_each_alone(name: str, isa: str) -> None:
    data, x = weights(name), vectors()
    alone = np.concatenate([product(name, data, x[i : i + 1], isa=isa) for i in range(len(x))])
    for n in range(1, TOKENS + 1):
        assert np.array_equal(product(name, data, x[-n:], isa=isa), alone[-n:]), n


def test_whole_numbers_give_the_same_bits_on_every_instruction_set() -> None:
    rng = np.random.default_rng(3)
    data = np.zeros((ROWS, COLS // 32), tensor_type("Q8_0").dtype)
    data["d"], data["qs"] = 1, rng.integers(-127, 128, data["qs"].shape)
    x = rng.integers(-127, 128, (TOKENS, COLS)).astype(np.float32)
    x[:, ::32] = 127  # the scale of every block is 1
    raw = data.view(np.uint8).reshape(ROWS, -1)
    expected = x @ data["qs"].reshape(ROWS, -1).astype(np.float32).T
    for isa in native.isas():
        assert np.array_equal(product("Q8_0", raw, x, isa=isa), expected)


def test_zeros_and_no_vectors() -> None:
    data = weights("Q4_K")
    assert not product("Q4_K", data, np.zeros((2, COLS), np.float32)).any()
    assert product("Q4_K", data, np.zeros((0, COLS), np.float32)).shape == (0, ROWS)


def test_what_does_not_fit_is_refused() -> None:
    data, x, out = weights("Q8_0"), vectors(1), np.zeros((1, ROWS), np.float32)
    for arguments, text in (
        (("Q9_9", data, x, out), "Q9_9"),
        (("Q8_0", data[:-1], x, out), "expected"),
        (("Q8_0", data, np.zeros((1, COLS + 1), np.float32), out), "do not divide rows"),
        (("Q8_0", data, vectors(2), out), "out has rows for 1 vectors, x has 2"),
        (("Q8_0", data, x, out, 1, "abacus"), "abacus cannot run here"),
    ):
        with pytest.raises(ValueError, match=text):
            native.multiply(*arguments)
    odd = np.zeros(data.nbytes + 1, np.uint8)[1:].reshape(data.shape)
    with pytest.raises(ValueError, match="must begin at an address"):
        native.multiply("Q8_0", odd, x, out)
