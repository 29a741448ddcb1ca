"""Phi-3.5-MoE: experts stacked to three dimensions, streamed, from both ways in which they are stored."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import TINY_MOE, Weights, fuse_experts, random_weights, write_safetensors

from phicourse.checkpoint import Checkpoint
from phicourse.convert import OUTTYPES, config_from_gguf, convert, rows
from phicourse.errors import CheckpointError, ConvertError, GGUFError
from phicourse.gguf import GGUFFile, GGUFWriter
from phicourse.quantize import dequantize_rows

Tiny = Callable[..., Path]
ELEVEN = TINY_MOE | {"num_local_experts": 11}  # expert 10 comes before expert 2 in a file


def make(tiny: Tiny, weights: Weights | None = None, **changes: Any) -> Path:
    config = TINY_MOE | changes
    return tiny(random_weights(config) if weights is None else weights, base=TINY_MOE, **changes)


def test_every_expert_is_at_its_place(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tiny, num_local_experts=11)
    source = Checkpoint.open(folder)
    monkeypatch.setattr(rows, "CHUNK_WEIGHTS", 5 * 256)  # chunks end within experts
    file = GGUFFile.open(convert(folder, outtype="f32", progress=False))
    for kind, target in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        tensor = file.tensors[f"blk.1.ffn_{target}_exps.weight"]
        assert tensor.shape == ((11, 256, 96) if kind == "w2" else (11, 96, 256))
        stack = file.blocks(tensor.name).reshape(tensor.shape)
        for i in range(11):
            name = f"model.layers.1.block_sparse_moe.experts.{i}.{kind}.weight"
            assert np.array_equal(stack[i], source.as_float32(name)), (i, kind)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_types(tiny: Tiny, outtype: str) -> None:
    """The router stays F32, biases too; TQ cannot cut rows of 96, and spares embedding and output."""
    file = GGUFFile.open(convert(make(tiny), outtype=outtype, progress=False))
    wanted = OUTTYPES[outtype][0]
    types = {name: tensor.type.name for name, tensor in file.tensors.items()}
    assert types["blk.0.ffn_gate_inp.weight"] == types["blk.0.attn_q.bias"] == types["output.bias"] == "F32"
    assert types["blk.1.ffn_gate_exps.weight"] == types["blk.1.ffn_up_exps.weight"] == wanted
    is_ternary = outtype.startswith("tq")
    for name in ("blk.1.ffn_down_exps.weight", "token_embd.weight", "output.weight"):
        assert types[name] == ("F16" if is_ternary else wanted)
    assert file.get("general.file_type", int) == OUTTYPES[outtype][1]


def test_the_config_comes_back(tiny: Tiny) -> None:
    folder = make(tiny, router_jitter_noise=0.02)
    given = Checkpoint.open(folder).config
    assert (given.architecture, given.n_experts, given.n_experts_used) == ("phimoe", 3, 2)
    assert given.short_mscale == given.long_mscale == 1.243163121016122
    back = config_from_gguf(GGUFFile.open(convert(folder, progress=False)))
    for field, value in vars(given).items():
        expected = tuple(map(np.float32, value)) if isinstance(value, tuple) else value
        expected = np.float32(value) if isinstance(value, float) else expected
        assert getattr(back, field) == expected, field


def test_our_own_keys(tiny: Tiny) -> None:
    """llama.cpp has no keys for the model's own router and rotation; a file without them could never run right."""
    folder = make(tiny)
    ours, reference = (
        GGUFFile.open(convert(folder, folder / f"{compat}.gguf", compat=compat, progress=False))
        for compat in (False, True)
    )
    own = [f"phicourse.phimoe.{name}" for name in ("router_jitter", "short_mscale", "long_mscale")]
    assert list(ours.metadata) == [*reference.metadata, *own]
    assert list(ours.tensors) == list(reference.tensors)


# ---- fused experts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outtype", ["f32", "q8_0", "tq2_0"])
@pytest.mark.parametrize("name", ["PhiMoEForCausalLM", "PhimoeForCausalLM"])
def test_fused_experts_give_the_file_of_separate_ones(tiny: Tiny, name: str, outtype: str) -> None:
    weights = random_weights(ELEVEN)
    separate = make(tiny, weights, folder="separate/model", num_local_experts=11)
    fused = make(
        tiny, fuse_experts(weights), folder="fused/model", num_local_experts=11, architectures=[name]
    )
    files = [convert(folder, outtype=outtype, progress=False) for folder in (separate, fused)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_transformers_saves_in_either_form(tiny: Tiny) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = make(tiny)
    torch.manual_seed(5)
    settings = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    files = []
    for is_separate in (True, False):
        model.save_pretrained(folder, save_original_format=is_separate)
        names = set(Checkpoint.open(folder).tensors)
        assert ("model.layers.0.mlp.experts.gate_up_proj" in names) != is_separate
        assert ("model.layers.0.block_sparse_moe.experts.2.w3.weight" in names) == is_separate
        files.append(convert(folder, folder / f"{is_separate}.gguf", progress=False))
    assert files[0].read_bytes() == files[1].read_bytes()


# ---- memory, and what can be wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_fused", [False, True])
def test_experts_are_streamed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, is_fused: bool) -> None:
    changes = {"intermediate_size": 2048, "num_local_experts": 8, "num_hidden_layers": 1}
    weights = random_weights(TINY_MOE | changes, "F32")
    folder = make(tiny, fuse_experts(weights) if is_fused else weights, **changes)
    del weights
    monkeypatch.setattr(rows, "CHUNK_WEIGHTS", 1 << 16)
    tracemalloc.start()
    out = convert(folder, outtype="f32", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.stat().st_size > 50e6  # one stack has 17 MB
    assert peak < 5e6


def test_experts_may_differ_in_precision(tiny: Tiny) -> None:
    weights = random_weights(TINY_MOE, "F32")
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    weights[name] = weights[name].astype("<f2")
    file = GGUFFile.open(convert(make(tiny, weights), outtype="f32", progress=False))
    stack = file.blocks("blk.0.ffn_gate_exps.weight").reshape(3, 96, 256)
    assert np.array_equal(stack[1], weights[name].astype(np.float32))


def test_an_expert_that_is_not_finite(tiny: Tiny) -> None:
    weights = random_weights(TINY_MOE, "F32")
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    weights[name][7, 3] = np.nan
    with pytest.raises(ConvertError, match=r"experts\.2\.w2\.weight, row 7, column 3 is nan"):
        convert(make(tiny, weights), progress=False)


def without(weights: Weights, part: str) -> Weights:
    return {name: data for name, data in weights.items() if part not in name}


EXPERT = "model.layers.1.block_sparse_moe.experts"
BROKEN: dict[str, tuple[Callable[[], Weights], dict[str, Any], str]] = {
    "an expert is missing": (
        lambda: without(random_weights(TINY_MOE), f"{EXPERT}.2."),
        {},
        f"{EXPERT}.2.w1.weight and 2 more tensors are missing",
    ),
    "half an expert": (
        lambda: without(random_weights(TINY_MOE), f"{EXPERT}.0.w3"),
        {},
        f"{EXPERT}.0.w3.weight is missing",
    ),
    "more experts than the config": (
        lambda: random_weights(TINY_MOE | {"num_local_experts": 4}),
        {},
        "experts.3.w1.weight' is none of a PhiMoEForCausalLM with 2 layers of 3 experts",
    ),
    "fewer experts than the config": (
        lambda: random_weights(TINY_MOE),
        {"num_local_experts": 4},
        "block_sparse_moe.gate.weight has the shape (3, 256), config.json asks for (4, 256)",
    ),
    "fused and fewer": (
        lambda: fuse_experts(random_weights(TINY_MOE)),
        {"num_local_experts": 2},
        "has the shape",
    ),
    "fused without the way down": (
        lambda: without(fuse_experts(random_weights(TINY_MOE)), "layers.0.mlp.experts.down_proj"),
        {},
        "model.layers.0.mlp.experts.down_proj is missing",
    ),
    "fused and separate": (
        lambda: (
            random_weights(TINY_MOE) | {"model.layers.0.mlp.experts.down_proj": np.zeros((3, 256, 96), "<f2")}
        ),
        {},
        "'model.layers.0.mlp.experts.down_proj' is none of",
    ),
    "no bias where the config has one": (
        lambda: without(random_weights(TINY_MOE), "q_proj.bias"),
        {},
        "model.layers.0.self_attn.q_proj.bias and 1 more tensors are missing",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_one_line(tiny: Tiny, case: str) -> None:
    weights, changes, message = BROKEN[case]
    with pytest.raises(ConvertError) as error:
        convert(make(tiny, weights(), **changes), progress=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_absurd_numbers_of_experts_end_at_once(tiny: Tiny) -> None:
    folder = make(tiny, num_local_experts=3)
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"num_local_experts": 10**9}, "n_experts must be a whole number from 1 to 512"),
        ({"num_experts_per_tok": 4}, "n_experts_used must be a whole number from 1 to 3"),
        ({"num_local_experts": -1}, "num_local_experts must be positive"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=message):
            convert(folder, progress=False)
    (folder / "config.json").write_text(
        json.dumps(config | {"num_local_experts": 512, "num_hidden_layers": 4096})
    )
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": np.zeros(256, "<f4")})
    tracemalloc.start()
    with pytest.raises(ConvertError, match=r"embed_tokens\.weight and 6344707 more tensors are missing"):
        convert(folder, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # the names of six million tensors would take hundreds of megabytes


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("phimoe.expert_count", 0, "n_experts must be a whole number from 1 to 512"),
        ("phimoe.expert_count", 2**32 - 1, "n_experts must be"),
        ("phimoe.expert_used_count", 4, "n_experts_used must be a whole number from 1 to 3"),
        ("phimoe.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon"),
        ("general.architecture", "phi2", "phi2"),
        ("phicourse.phimoe.router_jitter", -1.0, "router_jitter must be a positive number"),
    ],
)
def test_a_gguf_file_that_lies(tiny: Tiny, tmp_path: Path, key: str, value: Any, message: str) -> None:
    good = GGUFFile.open(convert(make(tiny), progress=False))
    with GGUFWriter(tmp_path / "bad.gguf") as writer:
        for name, given in good.metadata.items():
            if name != key or value is not None:
                writer.add(name, value if name == key else given.value, given.type, given.element)
        for name, tensor in good.tensors.items():
            writer.declare(name, tensor.shape, tensor.type)
        for name in good.tensors:
            writer.write(name, good.data(name))
    with pytest.raises(GGUFError, match=message) as error:
        config_from_gguf(GGUFFile.open(tmp_path / "bad.gguf"))
    assert "bad.gguf" in str(error.value) and "\n" not in str(error.value)


def test_llama_cpp_loads_our_file(tiny: Tiny) -> None:
    """With our own keys, which it passes over. Its router and norms are not those of transformers."""
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(str(convert(make(tiny), progress=False)), n_ctx=64, verbose=False)
    llama.eval([1, 5, 300])
    assert llama.metadata["phimoe.expert_count"] == "3"


def test_q8_0_experts_are_close(tiny: Tiny) -> None:
    folder = make(tiny)
    file = GGUFFile.open(convert(folder, outtype="q8_0", progress=False))
    tensor = file.tensors["blk.0.ffn_up_exps.weight"]
    stack = dequantize_rows(file.data(tensor.name).reshape(3 * 96, -1), "Q8_0").reshape(tensor.shape)
    expected = Checkpoint.open(folder).as_float32("model.layers.0.block_sparse_moe.experts.2.w3.weight")
    assert np.abs(stack[2] - expected).max() < 0.005 * np.abs(expected).max()
