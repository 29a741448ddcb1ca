"""The table of block layouts, and bfloat16."""

import numpy as np
import pytest

from phicourse.errors import GGUFError
from phicourse.gguf import TENSOR_TYPES, bfloat16_to_float32, float32_to_bfloat16, tensor_type
from phicourse.gguf.types import TensorType, _layout

ALL_TYPES = list(TENSOR_TYPES.values())


@pytest.mark.parametrize("type", ALL_TYPES, ids=lambda type: type.name)
def test_fields_fill_the_block(type: TensorType) -> None:
    offset = 0
    for field in type.fields:
        assert field.offset == offset
        assert np.dtype(field.dtype).itemsize == field.bytes
        assert field.meaning
        offset += field.bytes
    assert offset == type.bytes == type.dtype.itemsize
    if type.block > 1:
        assert [type.dtype.fields[field.name][1] for field in type.fields] == [f.offset for f in type.fields]


CODE_BITS = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8, "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6}


@pytest.mark.parametrize("name", CODE_BITS)
def test_codes_fill_their_fields(name: str) -> None:
    """All bits of a block that are no scales are codes or high bits: none unused, none counted twice."""
    type = tensor_type(name)
    parts = [field for field in type.fields if field.name in ("qs", "qh", "ql", "hmask")]
    assert sum(8 * field.bytes for field in parts) == type.block * CODE_BITS[name]


def test_sizes_equal_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package as an oracle")
    # gguf 0.19 gives Q8_1, which no file has, 40 bytes; ggml's struct has 36 since its scales became halves.
    wrong_there = {"Q8_1": 40}
    for their_type, (block, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        ours = tensor_type(int(their_type))
        assert (ours.name, ours.block) == (their_type.name, block)
        assert wrong_there.get(ours.name, ours.bytes) == n_bytes
    known_there = {their_type.name for their_type in gguf.GGML_QUANT_SIZES}
    assert set(TENSOR_TYPES) - known_there <= {"Q2_0"}  # came after gguf 0.19


def test_lookup_by_name_and_id() -> None:
    assert tensor_type("q4_k") is tensor_type("Q4_K") is tensor_type(12)
    with pytest.raises(GGUFError, match=r"unknown tensor type 'Q4_X'; known are F32, F16, .*Q4_K"):
        tensor_type("Q4_X")
    for removed in (4, 5, 31, 32, 33, 36, 37, 38, 43, -1):
        with pytest.raises(GGUFError, match="unknown tensor type"):
            tensor_type(removed)


def test_row_bytes() -> None:
    assert tensor_type("Q4_K").row_bytes(3072) == 12 * 144
    assert tensor_type("F16").row_bytes(7) == 14
    with pytest.raises(GGUFError, match="rows of 100 weights are no multiple of 256, the block of Q4_K"):
        tensor_type("Q4_K").row_bytes(100)


def test_a_table_entry_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(GGUFError, match="the fields of X have 18 bytes, a block has 20"):
        _layout("X", 99, 32, 20, ("d", "<f2", None, "scale"), ("qs", "(16,)u1", 4, "codes"))


def test_bfloat16_widens_and_rounds_back() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = bfloat16_to_float32(every)
    quiet = np.where(np.isnan(wide), every | np.uint16(0x40), every)
    assert np.array_equal(float32_to_bfloat16(wide), quiet)


def test_bfloat16_rounds_to_nearest_even_as_torch() -> None:
    torch = pytest.importorskip("torch", reason="needs torch as an oracle")
    rng = np.random.default_rng(7)
    x = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    ties = ((rng.integers(0, 0x7F7F, 500, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)).view(
        np.float32
    )
    x = np.concatenate([x[~np.isnan(x)], ties, np.float32([0.0, -0.0, np.inf, -np.inf, 3.4028235e38])])
    theirs = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(float32_to_bfloat16(x), theirs)
    assert float32_to_bfloat16(x.reshape(-1, 1)).shape == (len(x), 1)
    assert float32_to_bfloat16(np.float32(1.0)).shape == ()
