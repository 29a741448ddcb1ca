"""Which function does the work, and what is refused with which words."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from phicourse.errors import QuantizeError
from phicourse.gguf import TENSOR_TYPES, float32_to_bfloat16
from phicourse.quantize import QUANTIZERS, dequantize_rows, quantize_rows, use
from phicourse.quantize.registry import quantize_data, takes_importance

X = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)


def halved(x: np.ndarray) -> np.ndarray:
    return QUANTIZERS["Q8_0"](x / np.float32(2))


def test_use_replaces_one_type_for_a_while() -> None:
    before = quantize_rows(X, "Q8_0")
    with use(q8_0=halved):
        np.testing.assert_array_equal(quantize_rows(X, "q8_0"), quantize_rows(X / 2, "Q8_0", backend="numpy"))
        np.testing.assert_array_equal(quantize_rows(X, "Q8_0", backend="numpy"), before)
        np.testing.assert_array_equal(quantize_rows(X, "Q4_0"), quantize_rows(X, "Q4_0", backend="numpy"))
    np.testing.assert_array_equal(quantize_rows(X, "Q8_0"), before)


def test_use_nests_and_ends_with_an_exception() -> None:
    before = quantize_rows(X, "Q8_0")
    with pytest.raises(ZeroDivisionError), use(q8_0=halved):
        with use(q8_0=lambda x: halved(x / 2), q4_0=QUANTIZERS["Q4_0"]):
            assert not np.array_equal(quantize_rows(X, "Q8_0"), before)
        np.testing.assert_array_equal(quantize_rows(X, "Q8_0"), quantize_rows(X / 2, "Q8_0", backend="numpy"))
        raise ZeroDivisionError
    np.testing.assert_array_equal(quantize_rows(X, "Q8_0"), before)


def test_use_takes_bytes_too() -> None:
    def as_bytes(x: np.ndarray) -> np.ndarray:
        return QUANTIZERS["Q4_K"](x).view(np.uint8).reshape(len(x), -1)

    with use(q4_k=as_bytes):
        np.testing.assert_array_equal(quantize_rows(X, "Q4_K"), quantize_rows(X, "Q4_K", backend="numpy"))


def test_use_is_seen_by_its_own_thread_only() -> None:
    seen: list[np.ndarray] = []
    with use(q8_0=halved):
        thread = threading.Thread(target=lambda: seen.append(quantize_rows(X, "Q8_0")))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(seen[0], quantize_rows(X, "Q8_0", backend="numpy"))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: None, "got a NoneType"),
        (lambda x: QUANTIZERS["Q4_0"](x), r"blocks of \{d, qs\} .* got \(6, 16\) of \{d, qs\}"),
        (lambda x: QUANTIZERS["Q8_0"](x)[:, :3], r"must give \(6, 16\) blocks .* got \(6, 3\)"),
        (lambda x: np.zeros((6, 543), np.uint8), r"or \(6, 544\) of uint8; got \(6, 543\) of uint8"),
        (lambda x: x, r"got \(6, 512\) of float32"),
    ],
)
def test_what_a_learners_function_gives_is_checked(result: object, message: str) -> None:
    with use(q8_0=result), pytest.raises(QuantizeError, match=f"the quantizer of Q8_0 .*{message}"):
        quantize_rows(X, "Q8_0")


def test_scales_of_a_learners_function_are_checked() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        blocks = QUANTIZERS["Q8_0"](x)
        blocks["d"][2, 3] = np.nan
        return blocks

    with use(q8_0=broken), pytest.raises(QuantizeError, match="input: row 2, block 3: not finite"):
        quantize_rows(X, "Q8_0")


@pytest.mark.parametrize(
    ("type_name", "field", "broken"), [("MXFP4", "e", 0xFF), ("IQ1_M", "scales", 0xFF), ("Q6_K", "d", np.inf)]
)
def test_scales_of_every_kind_are_checked(type_name: str, field: str, broken: float) -> None:
    """MXFP4 keeps its scale in an exponent, IQ1_M in the top bits of four words."""

    def spoiled(x: np.ndarray) -> np.ndarray:
        blocks = np.zeros(
            (len(x), x.shape[1] // TENSOR_TYPES[type_name].block), TENSOR_TYPES[type_name].dtype
        )
        blocks[field][1, 1] = broken
        return blocks

    with (
        use(**{type_name.lower(): spoiled}),
        pytest.raises(
            QuantizeError, match=f"input: row 1, block 1: not finite, or too large for {type_name}"
        ),
    ):
        quantize_rows(X, type_name)


def test_use_refuses_unknown_types_and_what_is_no_function() -> None:
    with pytest.raises(QuantizeError, match=r"'q4_k_m'; known types are F32, .*Q4_K"), use(q4_k_m=halved):
        pass
    with pytest.raises(QuantizeError, match="must be a function, got 'q8_0'"), use(q8_0="q8_0"):
        pass


@pytest.mark.parametrize("backend", ["auto", "numpy", "native"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1", "Q3_K", "Q6_K"])
def test_weights_that_are_not_finite_are_named(type_name: str, value: float, backend: str) -> None:
    if backend == "native":
        pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    x = X.copy()
    x[4, 300] = value
    with pytest.raises(QuantizeError, match=f"blk: row 4, column 300 is {value}"):
        quantize_rows(x, type_name, name="blk", backend=backend)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon"])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types_that_look_at_weights_on_the_way_miss_none(type_name: str, isa: str) -> None:
    native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    if isa not in native.isas():
        pytest.skip(f"no {isa} here")
    rng = np.random.default_rng(6)
    type = TENSOR_TYPES[type_name]
    for _ in range(300):
        x = rng.normal(size=(1, 96)).astype(np.float32) * np.float32(rng.choice([0, 1e-45, 1e-38, 1, 3e37]))
        wrong = rng.choice(96, size=rng.integers(0, 4), replace=False)
        x[0, wrong] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32), size=len(wrong))
        out = np.empty((1, type.row_bytes(96)), np.uint8)
        if len(wrong):
            with pytest.raises(ValueError, match=f"row 0 column {wrong.min()} is"):
                native.quantize(type_name, x, out, 1, isa)
        else:
            native.quantize(type_name, x, out, 1, isa)


def test_rows_keep_their_number_in_the_tensor() -> None:
    x = np.ones((3000, 256), np.float32)
    x[2500, 7] = np.nan
    with pytest.raises(QuantizeError, match="blk: row 12500, column 7 is nan"):
        quantize_data(x, TENSOR_TYPES["F32"], "Q4_0", backend="numpy", name="blk", first_row=10000)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_half_sources_are_widened(type_name: str, backend: str) -> None:
    half = X.astype(np.float16)
    np.testing.assert_array_equal(
        quantize_data(half, TENSOR_TYPES["F16"], type_name, backend=backend),
        quantize_rows(half.astype(np.float32), type_name, backend="numpy"),
    )
    brain = float32_to_bfloat16(X)
    wide = (brain.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(
        quantize_data(brain, TENSOR_TYPES["BF16"], type_name, backend=backend),
        quantize_rows(wide, type_name, backend="numpy"),
    )


def test_quantized_sources_are_widened() -> None:
    blocks = QUANTIZERS["Q8_0"](X)
    np.testing.assert_array_equal(
        quantize_data(blocks, TENSOR_TYPES["Q8_0"], "Q4_K"),
        quantize_rows(dequantize_rows(quantize_rows(X, "Q8_0"), "Q8_0"), "Q4_K"),
    )


def test_rows_that_are_not_contiguous() -> None:
    wide = np.random.default_rng(1).normal(size=(512, 6)).astype(np.float32)
    np.testing.assert_array_equal(quantize_rows(wide.T, "Q4_K"), quantize_rows(wide.T.copy(), "Q4_K"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_rows(X, "Q8_K"), r"cannot quantize to 'Q8_K'; known types are F32, .*Q6_K"),
        (lambda: quantize_rows(X[:, :300], "Q4_K"), "rows of 300 weights cannot be cut into blocks of 256"),
        (lambda: quantize_rows(X[0], "Q4_K"), r"got the shape \(512,\)"),
        (lambda: quantize_rows(X.astype(np.float64), "Q4_K"), "F32 weights are float32, got float64"),
        (lambda: quantize_rows(X, "Q4_K", backend="gpu"), "unknown backend 'gpu'"),
        (lambda: dequantize_rows(np.zeros((2, 35), np.uint8), "Q8_0"), r"\(rows, k \* 34\) uint8"),
        (lambda: dequantize_rows(np.zeros((2, 34), np.int8), "Q8_0"), "got .* int8"),
        (lambda: quantize_data(np.zeros((2, 3), np.int8), TENSOR_TYPES["I8"], "F16"), "cannot read I8"),
        (lambda: quantize_rows(X * np.float32(1e8), "Q8_0"), r"row \d, block \d+: .* too large for Q8_0"),
        (lambda: quantize_rows(X * np.float32(1e6), "F16"), r"row \d, column \d+: .* too large for F16"),
        (lambda: QUANTIZERS["Q4_K"](X[:, :300]), "a row of 300 weights cannot be cut into blocks of 256"),
    ],
)
def test_refusals_say_why(call: object, message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        call()


# ---- importance ----------------------------------------------------------------------------------------

IMPORTANCE = np.random.default_rng(2).gamma(0.5, size=512).astype(np.float32)
WEIGHTED = [type_name for type_name, function in QUANTIZERS.items() if takes_importance(function)]


def test_the_types_that_weigh_errors() -> None:
    """Those for which ggml's quantizers look at the importance."""
    lattice = {f"IQ{name}" for name in ("1_S", "1_M", "2_XXS", "2_XS", "2_S", "3_XXS", "3_S", "4_NL", "4_XS")}
    k_quants = {f"Q{bits}_K" for bits in (2, 3, 4, 5, 6)}
    assert set(WEIGHTED) == lattice | k_quants | {"Q4_0", "Q4_1", "Q5_0", "Q5_1"}


@pytest.mark.parametrize("type_name", [name for name in WEIGHTED if name not in ("IQ2_XS", "IQ2_S", "IQ1_M")])
def test_importance_reaches_the_quantizer(type_name: str) -> None:
    packed = quantize_rows(X[:2], type_name, importance=IMPORTANCE)
    blocks = np.ascontiguousarray(QUANTIZERS[type_name](X[:2], importance=IMPORTANCE))
    np.testing.assert_array_equal(packed, blocks.view(np.uint8).reshape(2, -1))
    assert not np.array_equal(packed, quantize_rows(X[:2], type_name, importance=IMPORTANCE[::-1]))


@pytest.mark.parametrize("type_name", [name for name in QUANTIZERS if name not in WEIGHTED])
def test_other_types_take_no_notice(type_name: str) -> None:
    np.testing.assert_array_equal(
        quantize_rows(X, type_name, importance=IMPORTANCE), quantize_rows(X, type_name)
    )


def test_a_learners_function_gets_importance_if_it_wants_it() -> None:
    seen: list[np.ndarray | None] = []

    def mine(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
        seen.append(importance)
        return QUANTIZERS["Q8_0"](x)

    with use(q8_0=mine):
        quantize_rows(X, "Q8_0", importance=IMPORTANCE)
        quantize_rows(X, "Q8_0")
    np.testing.assert_array_equal(seen[0], IMPORTANCE)
    assert seen[1:] == [None]
    with use(q4_k=lambda x: QUANTIZERS["Q4_K"](x)):
        np.testing.assert_array_equal(
            quantize_rows(X, "Q4_K", importance=IMPORTANCE), quantize_rows(X, "Q4_K", backend="numpy")
        )


@pytest.mark.parametrize("type_name", ["Q4_K", "Q8_0", "F16"])
@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (IMPORTANCE[:511], r"blk: the importance of 512 columns is \(512,\), got \(511,\)"),
        (IMPORTANCE[None], r"got \(1, 512\)"),
        (np.where(np.arange(512) == 3, np.nan, 1.0), "blk: the importance of column 3 is nan"),
        (np.where(np.arange(512) == 4, 1e39, 1.0), "blk: the importance of column 4 is inf"),
        (np.where(np.arange(512) == 5, -1e-9, 1.0), "blk: the importance of column 5 is -"),
    ],
)
def test_importance_that_cannot_weigh_is_refused(
    type_name: str, importance: np.ndarray, message: str
) -> None:
    with pytest.raises(QuantizeError, match=message):
        quantize_rows(X, type_name, importance=importance, name="blk")


@pytest.mark.parametrize("type_name", ["IQ1_S", "IQ2_XXS", "IQ2_XS"])
def test_types_that_cannot_do_without_importance_say_so(type_name: str) -> None:
    with pytest.raises(QuantizeError, match=f"{type_name} needs .*importance"):
        quantize_rows(X, type_name)


WITHOUT_NATIVE = """
import sys
sys.modules["phicourse.native"] = None
import numpy as np
from phicourse.errors import QuantizeError
from phicourse.quantize import quantize_rows
for _ in range(3):
    quantize_rows(np.ones((2, 256), np.float32), "Q4_K")
try:
    quantize_rows(np.ones((2, 256), np.float32), "Q4_K", backend="native")
except QuantizeError as error:
    print(error)
"""


def test_without_the_compiled_module_one_line_says_so(repository: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NATIVE], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("\n") == 1 and "NumPy quantizes, slowly" in done.stderr
    assert done.stdout == "the compiled module was not built; use the backend 'numpy'\n"


def test_threads_must_be_there() -> None:
    pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    with pytest.raises(QuantizeError, match="0 threads cannot work"):
        quantize_rows(X, "Q4_K", threads=0)
