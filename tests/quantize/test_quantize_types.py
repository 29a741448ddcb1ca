"""Every type, byte for byte, with and without importance: NumPy against ggml, the compiled module against NumPy.

Rows of `quantize_inputs` times importance of columns; then whatever hypothesis finds.
"""

import ctypes
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantize_inputs import (
    IMPORTANCES,
    KINDS,
    LATTICE,
    LIVE_TYPES,
    NEED_IMPORTANCE,
    SHAPE,
    SORTING,
    TAKE_IMPORTANCE,
    TYPES,
    UNWEIGHTED,
    WEIGHTED,
    importances_for,
    known_importances,
    known_rows,
    phi_tiny_rows,
    random_blocks,
    rows_for,
)
from quantize_oracles import (
    ggml,
    ggml_accepts,
    ggml_quantize,
    native_quantize,
    numpy_quantize,
    qsort_is_stable,
)

from phicourse.errors import QuantizeError
from phicourse.gguf import TENSOR_TYPES
from phicourse.gguf.verify import not_finite
from phicourse.quantize import DEQUANTIZERS, QUANTIZERS, dequantize_rows, quantize_rows


def test_no_type_is_left_out() -> None:
    assert sorted(TYPES) == sorted(QUANTIZERS) == sorted(DEQUANTIZERS)


# ---- against ggml ----------------------------------------------------------------------------------------


def cost(packed: np.ndarray, x: np.ndarray, type_name: str, importance: np.ndarray | None) -> np.ndarray:
    """The error of quantized rows, each column by its importance: (rows,)."""
    back = dequantize_rows(packed, type_name, backend="numpy").astype(np.float64)
    return np.sum((1 if importance is None else importance) * (back - x) ** 2, axis=1)


def same_bytes(x: np.ndarray, type_name: str, importance: np.ndarray | None, what: str) -> None:
    """Hold NumPy against ggml.

    The order in which qsort leaves equal weights is not specified. The IQ1 types take the weights as they are
    sorted, so there, where the order is not ours, what is equal is the cost, to a hundredth.
    """
    ours = numpy_quantize(x, type_name, importance)
    theirs = ggml_quantize(x, type_name, importance)
    if type_name in SORTING and not qsort_is_stable():
        costs = (cost(packed, x, type_name, importance).sum() for packed in (ours, theirs))
        np.testing.assert_allclose(*costs, rtol=0.01, err_msg=what)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=what)


@pytest.mark.parametrize(
    ("type_name", "columns"), [(name, columns) for name in LIVE_TYPES for columns in importances_for(name)]
)
def test_numpy_writes_the_bytes_of_ggml(type_name: str, columns: str | None) -> None:
    importance = IMPORTANCES[columns] if columns else None
    for kind, x in rows_for(type_name, weighted=importance is not None).items():
        same_bytes(x, type_name, importance, kind)


@pytest.mark.parametrize("type_name", LIVE_TYPES)
def test_rows_of_a_real_model_get_the_bytes_of_ggml(type_name: str, phi_tiny: Path) -> None:
    x = phi_tiny_rows(phi_tiny)[:: 4 if type_name in LATTICE else 1]
    for columns in importances_for(type_name)[:2]:
        same_bytes(x, type_name, IMPORTANCES[columns] if columns else None, str(columns))


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-100, 100, width=32)
ZEROS_AND_ONES = st.sampled_from([0.0, -0.0, 1.0])
ANY_ROW = arrays(np.float32, (1, 256), elements=st.one_of(FINITE, MODERATE), fill=ZEROS_AND_ONES)
MODERATE_ROW = arrays(np.float32, (1, 256), elements=MODERATE, fill=ZEROS_AND_ONES)
NOT_NEGATIVE = st.floats(0, width=32, allow_nan=False, allow_infinity=False)
ANY_COLUMNS = arrays(np.float32, 256, elements=NOT_NEGATIVE, fill=st.sampled_from([0.0, 1.0]))
MODERATE_COLUMNS = arrays(
    np.float32, 256, elements=st.floats(0, 1000, width=32), fill=st.sampled_from([0.0, 1.0])
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ANY_ROW, ANY_COLUMNS)
def test_numpy_writes_the_bytes_of_ggml_whatever_the_row(x: np.ndarray, importance: np.ndarray) -> None:
    for type_name in UNWEIGHTED + WEIGHTED:
        same_bytes(x, type_name, None, type_name)
    for type_name in WEIGHTED:
        same_bytes(x, type_name, importance, f"{type_name} with importance")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(MODERATE_ROW, MODERATE_COLUMNS)
def test_lattice_types_have_the_bytes_of_ggml_whatever_the_row(x: np.ndarray, importance: np.ndarray) -> None:
    for type_name in set(LATTICE) & set(LIVE_TYPES):
        same_bytes(x, type_name, importance, type_name)


@pytest.mark.parametrize("type_name", UNWEIGHTED + WEIGHTED)
def test_what_llama_quantize_refuses_we_refuse(type_name: str) -> None:
    for kind, x in KINDS.items():
        expected = ggml_quantize(x[::6], type_name)
        if ggml_accepts(expected, type_name):
            packed = quantize_rows(x[::6], type_name, backend="numpy")
            np.testing.assert_array_equal(packed, expected, err_msg=kind)
        else:
            with pytest.raises(QuantizeError, match=r"input: row \d+, (block|column) \d+"):
                quantize_rows(x[::6], type_name, backend="numpy")


@pytest.mark.parametrize("kind", ["huge", "largest floats"])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "Q1_0"])
def test_weights_that_no_scale_can_hold_are_refused(type_name: str, kind: str) -> None:
    for importance in (None, IMPORTANCES["uneven"]):
        with pytest.raises(QuantizeError, match=f"input: row .* too large for {type_name}"):
            quantize_rows(KINDS[kind], type_name, importance=importance, backend="numpy")


@pytest.mark.parametrize("type_name", TYPES)
def test_the_compiled_module_finds_the_first_scale_that_is_not_finite(type_name: str) -> None:
    """It looks at what it stored, block by block, and says where NumPy would have stopped."""
    native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    importance = IMPORTANCES["uneven"]
    quantize_rows(KINDS["gaussian"], type_name, importance=importance)  # hands over the grid
    type, finite = TENSOR_TYPES[type_name], KINDS["gaussian"]
    too_large = finite * np.where(np.arange(len(finite)) < 10, 1, 1e11)[:, None].astype(np.float32)
    for x, isa, threads in itertools.product((finite, too_large), native.isas(), (1, 3)):
        out = np.empty((len(x), type.row_bytes(x.shape[1])), np.uint8)
        first = native.quantize(type_name, x, out, threads, isa, importance)
        bad = np.flatnonzero(not_finite(out.view(type.dtype), type))
        assert first == (bad[0] if bad.size else None), (isa, threads)
        holds_it = x is finite or type_name in ("F32", "BF16", "MXFP4", "NVFP4")
        assert (first is None) == holds_it, (isa, threads)


# SHA-256 (first 16 digits) of `known_rows` with `known_importances` as ggml 0.25.3 quantizes them: the bytes
# hold without ggml, too.
DIGESTS = {
    "F32": "7c60983f0c34c894",
    "F16": "31d09637e491486d",
    "BF16": "e93b29881c54e0aa",
    "Q8_0": "326b1661729b6616",
    "TQ1_0": "eaeacfd48821209d",
    "TQ2_0": "d1e89f03fea258f1",
    "MXFP4": "5978c5910546af4e",
    "NVFP4": "6062011a93bebb6f",
    "Q1_0": "9dcf3bffa69a1432",
    "Q2_0": "7b57cce86ea09c43",
    "Q4_0": "660d8066322708d9",
    "Q4_1": "10dae7758643059b",
    "Q5_0": "387c69e0fc655156",
    "Q5_1": "e9fb0ca297a1f848",
    "Q2_K": "e0c0dd6551e39cc0",
    "Q3_K": "38a47cf8246f2223",
    "Q4_K": "661c4c47aa14c70c",
    "Q5_K": "11fc79fcdc2a1ff7",
    "Q6_K": "70424fe07c76ddbc",
    "IQ4_NL": "49d9681484763358",
    "IQ4_XS": "b5a38cb4b02b2382",
    "IQ3_S": "804f4bc61b073541",
    "IQ3_XXS": "0bdc88731fafb6ef",
    "IQ2_S": "f0ca440d99f381f6",
    "IQ2_XS": "bab8535dc521157c",
    "IQ2_XXS": "9f15f9a840aaf9fa",
    "IQ1_M": "52211e40228f2539",
    "IQ1_S": "c4d3e74cc05ad44f",
}


def digest(packed: list[np.ndarray]) -> str:
    return hashlib.sha256(np.concatenate(packed).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("type_name", TYPES)
def test_known_rows_have_known_bytes(type_name: str) -> None:
    if type_name in LATTICE:
        pytest.importorskip("gguf", reason="needs the gguf package, which has the grids")
    x, choices = known_rows(), known_importances(type_name)
    assert digest([numpy_quantize(x, type_name, chosen) for chosen in choices]) == DIGESTS[type_name]


# ---- the compiled module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("columns", [None, "uneven", "some zero", "zero"])
@pytest.mark.parametrize("type_name", TYPES)
def test_the_compiled_module_writes_the_bytes_of_numpy(
    type_name: str, columns: str | None, threads: int
) -> None:
    if type_name in NEED_IMPORTANCE and columns is None:
        pytest.skip("needs importance")
    importance = IMPORTANCES[columns] if columns else None
    native_quantize(np.zeros((1, 512), np.float32), type_name, importance)  # skips where it cannot
    for kind, x in rows_for(type_name, weighted=importance is not None).items():
        try:
            expected = quantize_rows(x, type_name, importance=importance, backend="numpy")
        except QuantizeError:
            with pytest.raises(QuantizeError):
                native_quantize(x, type_name, importance, threads)
        else:
            found = native_quantize(x, type_name, importance, threads)
            np.testing.assert_array_equal(found, expected, err_msg=kind)


@pytest.mark.parametrize("type_name", TYPES)
def test_the_compiled_module_dequantizes_like_numpy(type_name: str) -> None:
    native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    if type_name not in {"F32", "F16", "BF16", *native.block_layouts()}:
        pytest.skip(f"the compiled module leaves {type_name} to NumPy")
    packed = random_blocks(type_name)
    ours = dequantize_rows(packed, type_name, backend="numpy")
    theirs = dequantize_rows(packed, type_name, backend="native", threads=2)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


# ---- and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in ("Q1_0", "Q2_0")])
def test_dequantizers_give_the_floats_of_gguf(type_name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package, the oracle")
    packed = random_blocks(type_name)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
        ours = dequantize_rows(packed, type_name, backend="numpy")
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_array_equal(
        ours.view(np.uint32), np.ascontiguousarray(theirs, np.float32).view(np.uint32)
    )


@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in ("F32", "F16", "BF16")])
def test_dequantizers_give_the_floats_of_ggml(type_name: str) -> None:
    packed, theirs = random_blocks(type_name), np.empty(SHAPE, np.float32)
    function = getattr(ggml(), f"dequantize_row_{type_name.lower().replace('_k', '_K')}")
    function(
        ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(theirs.ctypes.data), ctypes.c_int64(theirs.size)
    )
    with np.errstate(invalid="ignore"):
        ours = dequantize_rows(packed, type_name, backend="numpy")
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("columns", [None, "equal"])
@pytest.mark.parametrize("type_name", [name for name in TYPES if TENSOR_TYPES[name].bits_per_weight >= 4])
def test_error_stays_below_a_step(type_name: str, columns: str | None) -> None:
    x = KINDS["uniform"]
    packed = quantize_rows(x, type_name, importance=IMPORTANCES[columns] if columns else None)
    bits = TENSOR_TYPES[type_name].bits_per_weight
    # b bits make 2**b levels over a range of 2; scales take a part of the bits, so allow two steps
    assert np.abs(dequantize_rows(packed, type_name) - x).max() <= 2 * 2 / 2 ** min(int(bits), 10)


# ---- what importance does --------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", [name for name in TAKE_IMPORTANCE if name not in NEED_IMPORTANCE])
def test_importance_moves_the_error_to_columns_that_count_little(type_name: str) -> None:
    x, importance = np.random.default_rng(2).normal(size=(16, 512)).astype(np.float32), IMPORTANCES["uneven"]
    with_it, without = (
        cost(numpy_quantize(x, type_name, given), x, type_name, importance).sum()
        for given in (importance, None)
    )
    assert with_it < 0.97 * without


@pytest.mark.parametrize("type_name", NEED_IMPORTANCE)
def test_types_of_two_bits_need_importance(type_name: str) -> None:
    with pytest.raises(QuantizeError, match=f"{type_name} needs an importance matrix"):
        QUANTIZERS[type_name](KINDS["gaussian"])


@pytest.mark.parametrize("type_name", TAKE_IMPORTANCE)
@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(511), r"the importance of 512 columns is \(512,\), got \(511,\)"),
        (np.ones((2, 512)), r"got \(2, 512\)"),
        (np.where(np.arange(512) == 300, np.nan, 1), "the importance of column 300 is nan"),
        (np.where(np.arange(512) == 5, np.inf, 1), "the importance of column 5 is inf"),
        (np.where(np.arange(512) == 17, -1, 1), r"the importance of column 17 is -1\.0"),
    ],
)
def test_importance_that_does_not_fit_is_refused(
    type_name: str, importance: np.ndarray, message: str
) -> None:
    with pytest.raises(QuantizeError, match=f"{type_name}: .*{message}"):
        QUANTIZERS[type_name](KINDS["gaussian"], importance)


# ---- shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [None, "uneven"])
@pytest.mark.parametrize("type_name", TYPES)
def test_functions_take_leading_dimensions_and_no_rows(type_name: str, columns: str | None) -> None:
    if (columns is None and type_name in NEED_IMPORTANCE) or (columns and type_name in UNWEIGHTED):
        pytest.skip("no such case")
    x, arguments = KINDS["gaussian"], (IMPORTANCES[columns],) if columns else ()
    blocks = QUANTIZERS[type_name](x.reshape(2, 3, 4, 512), *arguments)
    assert blocks.shape[:3] == (2, 3, 4)
    np.testing.assert_array_equal(
        DEQUANTIZERS[type_name](blocks).reshape(24, 512),
        DEQUANTIZERS[type_name](QUANTIZERS[type_name](x, *arguments)),
    )
    empty = QUANTIZERS[type_name](np.empty((0, 512), np.float32), *arguments)
    assert empty.shape[0] == 0 and DEQUANTIZERS[type_name](empty).shape == (0, 512)


@pytest.mark.parametrize("type_name", [name for name in TYPES if TENSOR_TYPES[name].block > 1])
def test_rows_that_blocks_do_not_divide_are_refused(type_name: str) -> None:
    with pytest.raises(QuantizeError, match=f"a row of 100 weights cannot be cut .* as {type_name} needs"):
        QUANTIZERS[type_name](np.ones((1, 100), np.float32))
