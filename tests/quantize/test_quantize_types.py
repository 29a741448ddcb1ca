"""Every type, byte for byte: NumPy against ggml, the compiled module against both, dequantizers against gguf."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantize_oracles import TYPES, ggml_accepts, ggml_quantize, native_quantize, numpy_quantize

from phicourse.errors import QuantizeError
from phicourse.gguf import TENSOR_TYPES
from phicourse.quantize import DEQUANTIZERS, QUANTIZERS, dequantize_rows, quantize_rows

SHAPE = (24, 512)


def kinds() -> dict[str, np.ndarray]:
    """Rows that real models have, and rows that break quantizers."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=SHAPE)
    one_hot = np.zeros(SHAPE)
    one_hot[np.arange(SHAPE[0]), rng.integers(0, SHAPE[1], SHAPE[0])] = rng.normal(size=SHAPE[0])
    any_bits = rng.integers(0, 1 << 32, SHAPE, dtype=np.uint32).view(np.float32)
    return {
        "gaussian": normal * 0.02,
        "heavy-tailed": rng.standard_t(2, SHAPE) * 0.1,
        "uniform": rng.uniform(-1, 1, SHAPE),
        "positive": rng.uniform(0.1, 1, SHAPE),
        "negative": rng.uniform(-1, -0.1, SHAPE),
        "sparse": normal * (rng.random(SHAPE) < 0.02),
        "constant": np.full(SHAPE, 0.37),
        "negative constant": np.full(SHAPE, -0.37),
        "zero": np.zeros(SHAPE),
        "zeros of both signs": np.where(rng.random(SHAPE) < 0.5, 0.0, -0.0),
        "one-hot": one_hot,
        "outlier": normal * np.where(rng.random(SHAPE) < 0.01, 1e4, 1),
        "few levels": rng.integers(-3, 4, SHAPE) * 0.125,
        "ties": rng.integers(-15, 16, SHAPE) * 0.5,
        "denormal": normal * 1e-42,
        "tiny": normal * 1e-20,
        "around the smallest that counts": normal * 10.0 ** np.linspace(-18, -10, SHAPE[0])[:, None],
        "around float16's smallest": normal * 1e-7,
        "large": normal * 1e4,
        "huge": normal * 1e37,
        "all magnitudes": normal * 10.0 ** rng.uniform(-30, 30, SHAPE),
        "largest floats": rng.choice([3.4e38, -3.4e38, 1, 0], SHAPE),
        "any bits": np.where(np.isfinite(any_bits), any_bits, 0),
    }


KINDS = {name: rows.astype(np.float32) for name, rows in kinds().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_name", TYPES)
def test_numpy_writes_the_bytes_of_ggml(type_name: str, kind: str) -> None:
    np.testing.assert_array_equal(
        numpy_quantize(KINDS[kind], type_name), ggml_quantize(KINDS[kind], type_name)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_name", TYPES)
def test_what_llama_quantize_refuses_we_refuse(type_name: str, kind: str) -> None:
    expected = ggml_quantize(KINDS[kind], type_name)
    if ggml_accepts(expected, type_name):
        np.testing.assert_array_equal(quantize_rows(KINDS[kind], type_name, backend="numpy"), expected)
    else:
        with pytest.raises(QuantizeError, match=r"input: row \d+, (block|column) \d+"):
            quantize_rows(KINDS[kind], type_name, backend="numpy")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("type_name", TYPES)
def test_the_compiled_module_writes_the_bytes_of_numpy(type_name: str, threads: int) -> None:
    for kind, x in KINDS.items():
        try:
            expected = quantize_rows(x, type_name, backend="numpy")
        except QuantizeError:
            with pytest.raises(QuantizeError):
                native_quantize(x, type_name, threads)
        else:
            np.testing.assert_array_equal(native_quantize(x, type_name, threads), expected, err_msg=kind)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    arrays(np.float32, (1, 256), elements=st.one_of(FINITE, MODERATE), fill=st.sampled_from([0.0, -0.0, 1.0]))
)
def test_numpy_writes_the_bytes_of_ggml_whatever_the_row(x: np.ndarray) -> None:
    for type_name in TYPES:
        np.testing.assert_array_equal(
            numpy_quantize(x, type_name), ggml_quantize(x, type_name), err_msg=type_name
        )


# SHA-256 (first 16 digits) of `known_rows` as ggml 0.25.3 quantizes it: the bytes hold without ggml, too.
DIGESTS: dict[str, str] = {
    "F32": "295f88e1cab686d8",
    "F16": "36e4bed8188d90ca",
    "BF16": "81c1ccedfe80b036",
    "Q4_0": "79d4b435a9074aa1",
    "Q4_1": "0cd5fc5977ef9642",
    "Q5_0": "da768c0ab255dc83",
    "Q5_1": "0aac715c016366e8",
    "Q8_0": "94d374a69f5949ed",
    "Q4_K": "8105db3910ad3e54",
    "Q5_K": "e5a8138554ef00dd",
    "Q6_K": "1fff8e60eaff5982",
}


def known_rows() -> np.ndarray:
    """(8, 512) float32 out of integer arithmetic, the same everywhere."""
    i = np.arange(8 * 512, dtype=np.int64)
    mixed = (i * 7919 + i * i * 104729) % 65521
    return ((mixed - 32760) * (mixed % 17 - 8)).reshape(8, 512).astype(np.float32) / np.float32(1 << 22)


@pytest.mark.parametrize("type_name", TYPES)
def test_known_rows_have_known_bytes(type_name: str) -> None:
    digest = hashlib.sha256(quantize_rows(known_rows(), type_name).tobytes()).hexdigest()
    assert digest[:16] == DIGESTS[type_name]


@pytest.mark.parametrize("type_name", TYPES)
def test_dequantizers_give_the_floats_of_gguf(type_name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package, the oracle")
    packed = np.concatenate([random_blocks(type_name), quantize_rows(KINDS["gaussian"], type_name)])
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
    ours = dequantize_rows(packed, type_name, backend="numpy")
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_array_equal(
        ours.view(np.uint32), np.ascontiguousarray(theirs, np.float32).view(np.uint32)
    )


@pytest.mark.parametrize("type_name", TYPES)
def test_the_compiled_module_dequantizes_like_numpy(type_name: str) -> None:
    native = pytest.importorskip("phicourse.native", reason="the compiled module is not built")
    if type_name not in {"F32", "F16", "BF16", *native.block_layouts()}:
        pytest.skip(f"the compiled module leaves {type_name} to NumPy")
    packed = random_blocks(type_name)
    ours = dequantize_rows(packed, type_name, backend="numpy")
    theirs = dequantize_rows(packed, type_name, backend="native", threads=2)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def random_blocks(type_name: str) -> np.ndarray:
    """Blocks of 24 rows with every bit random, except that no scale is infinite or not a number."""
    type, rng = TENSOR_TYPES[type_name], np.random.default_rng(5)
    packed = rng.integers(0, 256, (SHAPE[0], type.row_bytes(SHAPE[1])), np.uint8)
    blocks = packed.view(type.dtype)
    floats = [blocks[name] for name in blocks.dtype.names or () if blocks[name].dtype.kind == "f"]
    if type_name in ("F32", "F16"):
        floats = [blocks]
    for values in floats:
        values[~np.isfinite(values)] = 0.5
    if type_name == "BF16":
        blocks[(blocks & 0x7F80) == 0x7F80] = 0x3F80
    return packed


@pytest.mark.parametrize("type_name", TYPES)
def test_error_stays_below_a_step(type_name: str) -> None:
    x = KINDS["uniform"]
    back = dequantize_rows(quantize_rows(x, type_name), type_name)
    bits = TENSOR_TYPES[type_name].bits_per_weight
    # b bits make 2**b levels over a range of 2; scales take a part of the bits, so allow two steps
    assert np.abs(back - x).max() <= 2 * 2 / 2 ** min(int(bits), 10)


@pytest.mark.parametrize("type_name", TYPES)
def test_functions_take_leading_dimensions_and_no_rows(type_name: str) -> None:
    cube = KINDS["gaussian"].reshape(2, 3, 4, 512)
    blocks = QUANTIZERS[type_name](cube)
    assert blocks.shape[:3] == (2, 3, 4)
    np.testing.assert_array_equal(
        DEQUANTIZERS[type_name](blocks).reshape(24, 512),
        dequantize_rows(quantize_rows(KINDS["gaussian"], type_name), type_name),
    )
    assert quantize_rows(np.empty((0, 512), np.float32), type_name).shape[0] == 0
    assert QUANTIZERS[type_name](np.empty((0, 512), np.float32)).shape[0] == 0


def test_packing_is_undone_by_unpacking() -> None:
    from phicourse.quantize.k_quants import pack_scales_and_minima, unpack_scales_and_minima

    numbers = np.random.default_rng(0).integers(0, 64, (2, 500, 8), np.uint8)
    packed = pack_scales_and_minima(numbers[0], numbers[1])
    assert packed.shape == (500, 12)
    np.testing.assert_array_equal(np.stack(unpack_scales_and_minima(packed)), numbers)
