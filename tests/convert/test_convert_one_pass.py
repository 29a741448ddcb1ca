"""From a checkpoint to a quantized file in one pass: straight, or with the bytes of the way over F16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import TINY, TINY_MOE, TINY_PHI2, Weights, cast, fuse_experts, random_weights

from phicourse.checkpoint import Checkpoint
from phicourse.convert import convert
from phicourse.errors import ConvertError, QuantizeError
from phicourse.gguf import GGUFFile
from phicourse.quantize import quantize, quantize_rows

Tiny = Callable[..., Path]
BASES: dict[str, dict[str, Any]] = {"phi2": TINY_PHI2, "phi3": TINY, "phimoe": TINY_MOE}


def small_weights(config: dict[str, Any], dtype: str = "BF16", scale: float = 1e-6) -> Weights:
    """Weights of some 1e-8, where float16 has few digits left and a quantizer sees other numbers."""
    return {
        name: cast(wide * np.float32(scale), dtype) if wide.ndim > 1 else wide
        for name, wide in random_weights(config, "F32").items()
    }


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "BF16"])
@pytest.mark.parametrize("name", BASES)
def test_via_f16_has_the_bytes_of_two_steps(tiny: Tiny, name: str, mix: str) -> None:
    folder = tiny(small_weights(BASES[name]), base=BASES[name])
    straight, over_f16, two_steps = (folder / f"{which}.gguf" for which in ("straight", "via", "two"))
    quantize(folder, straight, mix, progress=False)
    quantize(folder, over_f16, mix, via="f16", progress=False)
    half = convert(folder, folder / "half.gguf", "f16", progress=False)
    quantize(half, two_steps, mix, progress=False)
    assert over_f16.read_bytes() == two_steps.read_bytes()
    assert straight.read_bytes() != two_steps.read_bytes()
    assert pairs(straight) == pairs(two_steps)


def pairs(path: Path) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in GGUFFile.open(path).metadata.items()]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_straight_is_what_the_quantizer_makes_of_the_checkpoint(tiny: Tiny, dtype: str) -> None:
    folder = tiny(small_weights(TINY_MOE, dtype), base=TINY_MOE)
    file = GGUFFile.open(quantize(folder, folder / "q4_0.gguf", "Q4_0", progress=False))  # type: ignore[arg-type]
    source = Checkpoint.open(folder)
    experts = [source.as_float32(f"model.layers.1.block_sparse_moe.experts.{i}.w3.weight") for i in range(3)]
    expected = quantize_rows(np.concatenate(experts), "Q4_0")
    assert np.array_equal(file.data("blk.1.ffn_up_exps.weight").reshape(expected.shape), expected)
    router = source.as_float32("model.layers.1.block_sparse_moe.gate.weight")
    assert np.array_equal(file.blocks("blk.1.ffn_gate_inp.weight").reshape(router.shape), router)


def test_both_ways_agree_on_bf16_weights_that_float16_holds(tiny: Tiny) -> None:
    """Eight digits fit into eleven, as long as the number is not too small."""
    weights = random_weights(TINY)
    for data in weights.values():  # no bfloat16 below 2**-14
        bits = data.view("<u2")
        bits[(bits & 0x7FFF) < (127 - 14) << 7] = (127 - 14) << 7
    folder = tiny(weights)
    straight = quantize(folder, folder / "straight.gguf", "Q4_0", progress=False)
    over_f16 = quantize(folder, folder / "via.gguf", "Q4_0", via="f16", progress=False)
    assert straight.read_bytes() == over_f16.read_bytes()  # type: ignore[union-attr]


def test_weights_beyond_float16_need_no_float16(tiny: Tiny) -> None:
    weights = random_weights(TINY)
    weights["model.layers.7.mlp.down_proj.weight"][0, 0] = cast(np.float32([1e6]), "BF16")[0]
    folder = tiny(weights)
    with pytest.raises(ConvertError, match="too large for F16"):
        quantize(folder, folder / "via.gguf", "Q8_0", via="f16", progress=False)
    assert not (folder / "via.gguf").exists()
    quantize(folder, folder / "straight.gguf", "Q8_0", progress=False)


def test_what_is_left_as_it_is_keeps_the_type_of_the_checkpoint(tiny: Tiny) -> None:
    folder = tiny(random_weights(TINY_MOE), base=TINY_MOE)
    out = quantize(folder, folder / "a.gguf", "Q8_0", leave_output_tensor=True, progress=False)
    assert GGUFFile.open(out).tensors["output.weight"].type.name == "BF16"  # type: ignore[arg-type]


def test_fused_experts_are_quantized_like_separate_ones(tiny: Tiny) -> None:
    files = []
    weights = small_weights(TINY_MOE)
    for name, given in (("separate", weights), ("fused", fuse_experts(weights))):
        folder = tiny(given, folder=name, base=TINY_MOE)
        quantize(folder, folder / "q4.gguf", "Q4_K_M", progress=False)
        files.append(GGUFFile.open(folder / "q4.gguf"))
    assert list(files[0].tensors) == list(files[1].tensors)
    assert all(np.array_equal(files[0].data(name), files[1].data(name)) for name in files[0].tensors)


@pytest.mark.parametrize("name", ["phi2", "phimoe"])
def test_via_f16_has_the_bytes_of_llama_cpp(tiny: Tiny, name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    folder = tiny(small_weights(BASES[name], scale=1.0), base=BASES[name])
    half = convert(folder, folder / "half.gguf", "f16", progress=False)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    theirs = folder / "theirs.gguf"
    assert llama_cpp.llama_model_quantize(bytes(half), bytes(theirs), parameters) == 0
    ours = quantize(folder, folder / "ours.gguf", "Q4_K_M", via="f16", progress=False)
    assert ours.read_bytes() == theirs.read_bytes()  # type: ignore[union-attr]


def test_via_is_refused_where_it_means_nothing(tiny: Tiny) -> None:
    folder = tiny()
    with pytest.raises(QuantizeError, match="only via 'f16'"):
        quantize(folder, folder / "a.gguf", "Q8_0", via="f32", progress=False)
    half = convert(folder, progress=False)
    with pytest.raises(QuantizeError, match="only a checkpoint folder can go via f16"):
        quantize(half, folder / "a.gguf", "Q8_0", via="f16", progress=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tiny: Tiny, value: float) -> None:
    weights = random_weights(TINY_PHI2, "F32")
    weights["model.layers.1.mlp.fc1.weight"][200, 9] = value
    folder = tiny(weights, base=TINY_PHI2)
    where = r"model\.safetensors: model\.layers\.1\.mlp\.fc1\.weight, row 200, column 9 is -?(nan|inf)"
    with pytest.raises(ConvertError, match=where):
        quantize(folder, folder / "a.gguf", "Q4_0", progress=False)
    assert not (folder / "a.gguf").exists()
