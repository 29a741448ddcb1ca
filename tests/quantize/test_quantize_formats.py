"""What single formats promise: nothing lost where nothing need be, packing undone, the nearest level taken."""

import sys

import numpy as np
import pytest
from quantize_inputs import IMPORTANCES, KINDS, SORTING

from phicourse.errors import QuantizeError
from phicourse.quantize import DEQUANTIZERS, QUANTIZERS, dequantize_rows, quantize_rows
from phicourse.quantize.grids import load_grid
from phicourse.quantize.iq1 import pack_scales, unpack_scales
from phicourse.quantize.k_quants import pack_scales_and_minima, unpack_scales_and_minima
from phicourse.quantize.low_k_quants import pack_signed_scales, unpack_signed_scales
from phicourse.quantize.nonlinear import LEVELS, nearest_level
from phicourse.quantize.small_floats import float32_to_ue4m3, half_of_ue4m3
from phicourse.quantize.ternary import pack_trits, unpack_trits


@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0", "Q2_0"])
def test_ternary_weights_lose_nothing(type_name: str) -> None:
    x = np.random.default_rng(4).integers(-1, 2, (4, 512)).astype(np.float32) * np.float32(0.75)
    packed = quantize_rows(x, type_name, backend="numpy")
    np.testing.assert_array_equal(dequantize_rows(packed, type_name, backend="numpy"), x)


def test_all_243_bytes_of_trits_are_undone() -> None:
    digits = np.stack(np.unravel_index(np.arange(243), (3,) * 5)).astype(np.uint8)  # (5, 243)
    packed = pack_trits(digits)
    assert len(set(packed.tolist())) == 243
    np.testing.assert_array_equal(unpack_trits(packed, 5).reshape(5, 243), digits)


def test_scales_and_minima_of_q4_k_are_undone_by_unpacking() -> None:
    numbers = np.random.default_rng(0).integers(0, 64, (2, 500, 8), np.uint8)
    packed = pack_scales_and_minima(numbers[0], numbers[1])
    assert packed.shape == (500, 12)
    np.testing.assert_array_equal(np.stack(unpack_scales_and_minima(packed)), numbers)


def test_scales_of_q3_k_are_undone_by_unpacking() -> None:
    numbers = np.random.default_rng(0).integers(-32, 32, (500, 16)).astype(np.int8)
    np.testing.assert_array_equal(unpack_signed_scales(pack_signed_scales(numbers)), numbers)


def test_eight_bit_floats_round_to_the_nearest() -> None:
    values = 2 * half_of_ue4m3(np.arange(0x78, dtype=np.uint8))  # from 256 on ggml jumps to 448
    assert np.all(np.diff(values) > 0) and values[8] == 2**-6
    np.testing.assert_array_equal(float32_to_ue4m3(values), np.arange(0x78))
    x = np.random.default_rng(0).uniform(0, 240, 2000).astype(np.float32)
    rounded = 2 * half_of_ue4m3(float32_to_ue4m3(x))
    np.testing.assert_array_equal(np.abs(rounded - x), np.abs(values[:, None] - x).min(axis=0))


def test_nearest_level_is_the_nearest_and_the_upper_of_two() -> None:
    x = np.random.default_rng(0).uniform(-150, 150, 2000).astype(np.float32)
    np.testing.assert_array_equal(nearest_level(x), np.abs(LEVELS[:, None] - x).argmin(axis=0))
    np.testing.assert_array_equal(
        nearest_level(np.array([-4.5, 7.0, 1e30, -1e30], np.float32)), [8, 9, 15, 0]
    )


def test_near_points_of_a_grid_are_the_nearest() -> None:
    pytest.importorskip("gguf", reason="needs the gguf package, which has the grids")
    grid, shells = load_grid("IQ3_XXS"), 2
    for combination in np.flatnonzero(grid.point < 0)[::100]:
        levels = combination // 8 ** np.arange(4) % 8
        squares = np.sum((grid.levels - levels) ** 2, axis=1)
        near = grid.near[grid.start[combination] : grid.start[combination + 1]]
        assert set(near) == set(np.flatnonzero(squares <= np.unique(squares)[shells - 1]))
        assert np.all(np.diff(squares[near]) >= 0)


def test_without_the_gguf_package_the_grids_are_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    load_grid.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(QuantizeError, match="the grid of IQ2_S comes from the gguf package"):
        QUANTIZERS["IQ2_S"](KINDS["gaussian"])


def test_scale_of_iq1_m_is_undone_by_unpacking() -> None:
    rng = np.random.default_rng(0)
    d, codes = rng.normal(size=500).astype("<f2"), rng.integers(0, 8, (500, 16))
    for ours, expected in zip(unpack_scales(pack_scales(d, codes)), (d, codes), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_zeros_in_iq3_s_spoil_what_follows_as_in_ggml() -> None:
    def error(x: np.ndarray) -> float:
        return float(np.abs(DEQUANTIZERS["IQ3_S"](QUANTIZERS["IQ3_S"](x)) - x)[:, 64:].mean())

    x = KINDS["gaussian"][:, :256]
    zeros = x.copy()
    zeros[:, 32:64] = 0
    assert error(zeros) > 4 * error(x)


@pytest.mark.parametrize("type_name", SORTING)
def test_the_order_of_equal_weights_hardly_matters(type_name: str) -> None:
    """The cut goes between sorted weights, and C does not say how its qsort orders equal ones."""
    pytest.importorskip("gguf", reason="needs the gguf package, which has the grids")
    x, importance = KINDS["few levels"], IMPORTANCES["uneven"]
    nudges = np.random.default_rng(0).uniform(-1e-6, 1e-6, x.shape).astype(np.float32)

    def cost(rows: np.ndarray) -> float:
        back = DEQUANTIZERS[type_name](QUANTIZERS[type_name](rows, importance))
        return float(np.sum(importance * (back - x) ** 2))

    assert cost(x) == pytest.approx(cost(x + nudges), rel=0.01)
