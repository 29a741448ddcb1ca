"""The types below four bits, and the odd ones: byte for byte against ggml, with and without importance.

ggml's quantizers of the lattice types end the process where the squares of weights overflow, so those rows
are not tried with them.
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantize_oracles import ggml, ggml_quantize, numpy_quantize
from test_quantize_types import FINITE, KINDS, MODERATE, SHAPE, known_rows, random_blocks

from phicourse.errors import QuantizeError
from phicourse.gguf import TENSOR_TYPES
from phicourse.quantize import DEQUANTIZERS, QUANTIZERS, dequantize_rows, quantize_rows

# SHA-256 (first 16 digits) of `known_rows` as ggml 0.25.3 quantizes it without importance.
DIGESTS = {
    "Q2_K": "259d6f216d579f89",
    "Q3_K": "3d456b1e88018efa",
    "IQ4_NL": "1dc59a559c2a010e",
    "IQ4_XS": "d3ce704cefb74bda",
    "TQ1_0": "ff5763057d99ea37",
    "TQ2_0": "97263c7bf339903a",
    "MXFP4": "08d0bb993d6a774f",
    "NVFP4": "462f2890b0e2bbe7",
    "Q1_0": "05ed6cf0b041e830",
    "Q2_0": "cf77c58382765a7a",
}
# The same of `lattice_rows` with all of `LATTICE_IMPORTANCES` and, where the type can do without, with none.
LATTICE_DIGESTS = {
    "IQ3_S": "804f4bc61b073541",
    "IQ3_XXS": "0bdc88731fafb6ef",
    "IQ2_S": "f0ca440d99f381f6",
    "IQ2_XS": "bab8535dc521157c",
    "IQ2_XXS": "9f15f9a840aaf9fa",
    "IQ1_M": "52211e40228f2539",
    "IQ1_S": "c4d3e74cc05ad44f",
}
SIMPLE = tuple(DIGESTS)
LATTICE = tuple(LATTICE_DIGESTS)
TYPES = SIMPLE + LATTICE
WEIGHTED = ("Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS")
NEEDS_IMPORTANCE = ("IQ2_XS", "IQ2_XXS", "IQ1_S")
# ggml sorts up to 2,048 distances 40,000 times before it can quantize to the others: up to half a minute
QUICK_LATTICE = ("IQ3_S", "IQ3_XXS", "IQ2_XXS")
ALL_WANTED = os.environ.get("CI") or os.environ.get("PHICOURSE_ALL_ORACLES")
LIVE_LATTICE = LATTICE if ALL_WANTED else QUICK_LATTICE


def importances() -> dict[str, np.ndarray]:
    """(512,) float32 each: how much the columns of a row count."""
    rng = np.random.default_rng(7)
    uneven = rng.gamma(0.5, size=SHAPE[1])
    return {
        "uneven": uneven,
        "some zero": np.where(rng.random(SHAPE[1]) < 0.2, 0, uneven),
        "equal": np.ones(SHAPE[1]),
        "far apart": 10 ** rng.uniform(-8, 8, SHAPE[1]),
    }


IMPORTANCES = {name: numbers.astype(np.float32) for name, numbers in importances().items()}
LATTICE_ROWS = np.concatenate(
    [
        x[::5]
        for kind, x in KINDS.items()
        if kind not in ("huge", "all magnitudes", "largest floats", "any bits")
    ]
)


def ggml_with_importance(x: np.ndarray, type_name: str, importance: np.ndarray | None) -> np.ndarray:
    """(rows, n) float32 and (n,) float32 -> (rows, bytes of a row) uint8."""
    if importance is None:
        return ggml_quantize(x, type_name)
    type = TENSOR_TYPES[type_name]
    out = np.zeros((len(x), type.row_bytes(x.shape[1])), np.uint8)
    ggml().ggml_quantize_init(type.id)
    ggml().ggml_quantize_chunk(
        type.id, x.ctypes.data, out.ctypes.data, 0, *x.shape, np.ascontiguousarray(importance).ctypes.data
    )
    return out


def with_importance(x: np.ndarray, type_name: str, importance: np.ndarray | None) -> np.ndarray:
    if importance is None:
        return numpy_quantize(x, type_name)
    blocks = np.ascontiguousarray(QUANTIZERS[type_name](x, importance))
    return blocks.view(np.uint8).reshape(len(x), -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_name", SIMPLE)
def test_numpy_writes_the_bytes_of_ggml(type_name: str, kind: str) -> None:
    np.testing.assert_array_equal(
        numpy_quantize(KINDS[kind], type_name), ggml_quantize(KINDS[kind], type_name)
    )


@pytest.mark.parametrize("columns", IMPORTANCES)
@pytest.mark.parametrize("type_name", WEIGHTED)
def test_numpy_writes_the_bytes_of_ggml_with_importance(type_name: str, columns: str) -> None:
    importance = IMPORTANCES[columns]
    for kind, x in KINDS.items():
        np.testing.assert_array_equal(
            with_importance(x, type_name, importance),
            ggml_with_importance(x, type_name, importance),
            err_msg=kind,
        )


@pytest.mark.parametrize("columns", [None, *IMPORTANCES])
@pytest.mark.parametrize("type_name", LIVE_LATTICE)
def test_lattice_types_have_the_bytes_of_ggml(type_name: str, columns: str | None) -> None:
    if columns is None and type_name in NEEDS_IMPORTANCE:
        with pytest.raises(QuantizeError, match=f"{type_name} needs an importance matrix"):
            QUANTIZERS[type_name](LATTICE_ROWS)
    else:
        importance = IMPORTANCES[columns] if columns else None
        np.testing.assert_array_equal(
            with_importance(LATTICE_ROWS, type_name, importance),
            ggml_with_importance(LATTICE_ROWS, type_name, importance),
        )


ROW = arrays(
    np.float32, (1, 256), elements=st.one_of(FINITE, MODERATE), fill=st.sampled_from([0.0, -0.0, 1.0])
)
COLUMNS = arrays(np.float32, 256, elements=st.floats(0, 1000, width=32), fill=st.sampled_from([0.0, 1.0]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(ROW, COLUMNS)
def test_numpy_writes_the_bytes_of_ggml_whatever_the_row(x: np.ndarray, importance: np.ndarray) -> None:
    for type_name in SIMPLE:
        np.testing.assert_array_equal(
            numpy_quantize(x, type_name), ggml_quantize(x, type_name), err_msg=type_name
        )
    for type_name in WEIGHTED:
        np.testing.assert_array_equal(
            with_importance(x, type_name, importance),
            ggml_with_importance(x, type_name, importance),
            err_msg=type_name,
        )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(arrays(np.float32, (1, 256), elements=MODERATE, fill=st.sampled_from([0.0, -0.0, 1.0])), COLUMNS)
def test_lattice_types_have_the_bytes_of_ggml_whatever_the_row(x: np.ndarray, importance: np.ndarray) -> None:
    for type_name in LIVE_LATTICE:
        np.testing.assert_array_equal(
            with_importance(x, type_name, importance),
            ggml_with_importance(x, type_name, importance),
            err_msg=type_name,
        )


@pytest.mark.parametrize("type_name", SIMPLE)
def test_known_rows_have_known_bytes(type_name: str) -> None:
    digest = hashlib.sha256(quantize_rows(known_rows(), type_name, backend="numpy").tobytes()).hexdigest()
    assert digest[:16] == DIGESTS[type_name]


def lattice_rows() -> np.ndarray:
    """(30, 512) float32 out of integer arithmetic: dense, sparse, tiny, with ties, constant, zero."""
    x, column = known_rows(), np.arange(512)
    parts = [x, x * (column % 13 == 0), x * (column % 64 < 32), x[:3] * np.float32(2**-24), np.sign(x[:1])]
    return np.concatenate([*parts, np.full((1, 512), 0.375), np.zeros((1, 512))]).astype(np.float32)


LATTICE_IMPORTANCES = [
    np.ones(512, np.float32),
    (np.arange(512) * 37 % 101 / 16).astype(np.float32),
    (np.arange(512) % 7 == 0).astype(np.float32),
]


def lattice_digest(quantizer: Callable[..., np.ndarray], type_name: str) -> str:
    choices = LATTICE_IMPORTANCES + ([] if type_name in NEEDS_IMPORTANCE else [None])
    packed = [quantizer(lattice_rows(), type_name, importance) for importance in choices]
    return hashlib.sha256(np.concatenate(packed).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("type_name", LATTICE)
def test_lattice_types_have_known_bytes(type_name: str) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package, which has the grids")
    assert lattice_digest(with_importance, type_name) == LATTICE_DIGESTS[type_name]


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


@pytest.mark.parametrize("type_name", TYPES)
def test_dequantizers_give_the_floats_of_ggml(type_name: str) -> None:
    packed, theirs = random_blocks(type_name), np.empty(SHAPE, np.float32)
    function = getattr(ggml(), f"dequantize_row_{type_name.lower().replace('_k', '_K')}")
    function(
        ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(theirs.ctypes.data), ctypes.c_int64(theirs.size)
    )
    with np.errstate(invalid="ignore"):
        ours = dequantize_rows(packed, type_name, backend="numpy")
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("type_name", TYPES)
def test_functions_take_leading_dimensions_and_no_rows(type_name: str) -> None:
    x, importance = KINDS["gaussian"], IMPORTANCES["uneven"]
    arguments = (importance,) if type_name in WEIGHTED + LATTICE else ()
    blocks = QUANTIZERS[type_name](x.reshape(2, 3, 4, 512), *arguments)
    assert blocks.shape[:3] == (2, 3, 4)
    np.testing.assert_array_equal(
        DEQUANTIZERS[type_name](blocks).reshape(24, 512),
        DEQUANTIZERS[type_name](QUANTIZERS[type_name](x, *arguments)),
    )
    empty = QUANTIZERS[type_name](np.empty((0, 512), np.float32), *arguments)
    assert empty.shape[0] == 0 and DEQUANTIZERS[type_name](empty).shape == (0, 512)


@pytest.mark.parametrize("type_name", [*WEIGHTED, "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ1_M"])
def test_importance_moves_the_error_to_columns_that_count_little(type_name: str) -> None:
    x, importance = np.random.default_rng(2).normal(size=(16, 512)).astype(np.float32), IMPORTANCES["uneven"]

    def weighted_error(blocks: np.ndarray) -> float:
        return float(np.mean(importance * (DEQUANTIZERS[type_name](blocks) - x) ** 2))

    assert weighted_error(QUANTIZERS[type_name](x, importance)) < 0.97 * weighted_error(
        QUANTIZERS[type_name](x)
    )


@pytest.mark.parametrize("type_name", WEIGHTED + LATTICE)
@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(511), r"rows of 512 weights has 512 numbers, got \(511,\)"),
        (np.ones((2, 512)), r"got \(2, 512\)"),
        (np.where(np.arange(512) == 300, np.nan, 1), "the importance of column 300 is nan"),
        (np.where(np.arange(512) == 17, -1, 1), r"the importance of column 17 is -1\.0"),
    ],
)
def test_importance_that_does_not_fit_is_refused(
    type_name: str, importance: np.ndarray, message: str
) -> None:
    with pytest.raises(QuantizeError, match=f"{type_name}: .*{message}"):
        QUANTIZERS[type_name](KINDS["gaussian"], importance)


@pytest.mark.parametrize("type_name", TYPES)
def test_rows_that_blocks_do_not_divide_are_refused(type_name: str) -> None:
    with pytest.raises(QuantizeError, match=f"a row of 100 weights cannot be cut .* as {type_name} needs"):
        QUANTIZERS[type_name](np.ones((1, 100), np.float32))


@pytest.mark.parametrize("kind", ["huge", "largest floats"])
@pytest.mark.parametrize("type_name", ["Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "TQ1_0", "Q1_0"])
def test_weights_that_no_scale_can_hold_are_refused(type_name: str, kind: str) -> None:
    with pytest.raises(QuantizeError, match=f"input: row .* too large for {type_name}"):
        quantize_rows(KINDS[kind], type_name, backend="numpy")


# ---- what the formats promise ----------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0", "Q2_0"])
def test_ternary_weights_lose_nothing(type_name: str) -> None:
    x = np.random.default_rng(4).integers(-1, 2, (4, 512)).astype(np.float32) * np.float32(0.75)
    packed = quantize_rows(x, type_name, backend="numpy")
    np.testing.assert_array_equal(dequantize_rows(packed, type_name, backend="numpy"), x)


def test_all_243_bytes_of_trits_are_undone() -> None:
    from phicourse.quantize.ternary import _pack_trits, _unpack_trits

    digits = np.stack(np.unravel_index(np.arange(243), (3,) * 5)).astype(np.uint8)  # (5, 243)
    packed = _pack_trits(digits)
    assert len(set(packed.tolist())) == 243
    np.testing.assert_array_equal(_unpack_trits(packed, 5).reshape(5, 243), digits)


def test_scales_of_q3_k_are_undone_by_unpacking() -> None:
    from phicourse.quantize.low_k_quants import pack_signed_scales, unpack_signed_scales

    numbers = np.random.default_rng(0).integers(-32, 32, (500, 16)).astype(np.int8)
    np.testing.assert_array_equal(unpack_signed_scales(pack_signed_scales(numbers)), numbers)


def test_eight_bit_floats_round_to_the_nearest() -> None:
    from phicourse.quantize.small_floats import _half_of_ue4m3, float32_to_ue4m3

    values = 2 * _half_of_ue4m3(np.arange(0x78, dtype=np.uint8))  # from 256 on ggml jumps to 448
    assert np.all(np.diff(values) > 0) and values[8] == 2**-6
    np.testing.assert_array_equal(float32_to_ue4m3(values), np.arange(0x78))
    x = np.random.default_rng(0).uniform(0, 240, 2000).astype(np.float32)
    rounded = 2 * _half_of_ue4m3(float32_to_ue4m3(x))
    np.testing.assert_array_equal(np.abs(rounded - x), np.abs(values[:, None] - x).min(axis=0))


def test_nearest_level_is_the_nearest_and_the_upper_of_two() -> None:
    from phicourse.quantize.nonlinear import LEVELS, nearest_level

    x = np.random.default_rng(0).uniform(-150, 150, 2000).astype(np.float32)
    np.testing.assert_array_equal(nearest_level(x), np.abs(LEVELS[:, None] - x).argmin(axis=0))
    np.testing.assert_array_equal(
        nearest_level(np.array([-4.5, 7.0, 1e30, -1e30], np.float32)), [8, 9, 15, 0]
    )


def test_positive_search_fits_better_than_the_obvious_scale() -> None:
    from phicourse.quantize.weighted_search import positive_search

    rng = np.random.default_rng(1)
    x, weights = (rng.uniform(0, 1, (16, 200)).astype(np.float32) for _ in range(2))
    found = positive_search(x, weights, 15)
    assert found.codes.min() >= 0 and found.codes.max() <= 15
    obvious = x.max(axis=0) / np.float32(15)
    ours, theirs = (
        np.sum(weights * (scale * codes - x) ** 2, axis=0)
        for scale, codes in ((found.scale, found.codes), (obvious, np.round(x / obvious)))
    )
    assert np.all(ours <= theirs * 1.0001) and np.mean(ours / theirs) < 0.9


def test_near_points_of_a_grid_are_the_nearest() -> None:
    from phicourse.quantize.grids import load_grid

    pytest.importorskip("gguf", reason="needs the gguf package, which has the grids")
    grid, shells = load_grid("IQ3_XXS"), 2
    for combination in np.flatnonzero(grid.point < 0)[::100]:
        levels = combination // 8 ** np.arange(4) % 8
        squares = np.sum((grid.levels - levels) ** 2, axis=1)
        near = grid.near[grid.start[combination] : grid.start[combination + 1]]
        assert set(near) == set(np.flatnonzero(squares <= np.unique(squares)[shells - 1]))
        assert np.all(np.diff(squares[near]) >= 0)


def test_without_the_gguf_package_the_grids_are_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from phicourse.quantize.grids import load_grid

    load_grid.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(QuantizeError, match="the grid of IQ2_S comes from the gguf package"):
        QUANTIZERS["IQ2_S"](KINDS["gaussian"])


def test_scale_of_iq1_m_is_undone_by_unpacking() -> None:
    from phicourse.quantize.iq1 import _pack_scales, _unpack_scales

    rng = np.random.default_rng(0)
    d, codes = rng.normal(size=500).astype("<f2"), rng.integers(0, 8, (500, 16))
    for ours, expected in zip(_unpack_scales(_pack_scales(d, codes)), (d, codes), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_zeros_in_iq3_s_spoil_what_follows_as_in_ggml() -> None:
    def error(x: np.ndarray) -> float:
        return float(np.abs(DEQUANTIZERS["IQ3_S"](QUANTIZERS["IQ3_S"](x)) - x)[:, 64:].mean())

    x = KINDS["gaussian"][:, :256]
    zeros = x.copy()
    zeros[:, 32:64] = 0
    assert error(zeros) > 4 * error(x)
