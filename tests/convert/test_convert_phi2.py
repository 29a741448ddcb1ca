"""Phi-1, Phi-1.5 and Phi-2: biases, three matrices of attention, and numbers that llama.cpp takes for granted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import TINY_PHI2, UNLIKE_RELEASED, random_weights

from phicourse.checkpoint import Checkpoint
from phicourse.convert import OUTTYPES, config_from_gguf, convert
from phicourse.errors import ConvertError
from phicourse.gguf import GGUFFile

Tiny = Callable[..., Path]


def make(tiny: Tiny, **changes: object) -> Path:
    return tiny(random_weights(TINY_PHI2 | changes, "F32"), base=TINY_PHI2, **changes)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_biases_and_norms_stay_f32(tiny: Tiny, outtype: str) -> None:
    folder = make(tiny)
    source = Checkpoint.open(folder)
    file = GGUFFile.open(convert(folder, outtype=outtype, progress=False))
    for ours, theirs in (
        ("blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias"),
        ("blk.0.attn_output.bias", "model.layers.0.self_attn.dense.bias"),
        ("blk.1.ffn_down.bias", "model.layers.1.mlp.fc2.bias"),
        ("output_norm.bias", "model.final_layernorm.bias"),
        ("output.bias", "lm_head.bias"),
    ):
        assert file.tensors[ours].type.name == "F32"
        assert np.array_equal(file.blocks(ours).reshape(-1), source.as_float32(theirs))
    matrix = file.tensors["blk.0.ffn_down.weight"]
    assert matrix.type.name == OUTTYPES[outtype][0] and matrix.shape == (64, 256)


def test_the_config_comes_back(tiny: Tiny) -> None:
    folder = make(tiny, **UNLIKE_RELEASED)
    given = Checkpoint.open(folder).config
    assert (given.architecture, given.rope_size, given.norm_eps) == ("phi2", 16, 1e-5)
    assert given.attention_bias and given.output_bias
    back = config_from_gguf(GGUFFile.open(convert(folder, progress=False)))
    for field, value in vars(given).items():
        expected = np.float32(value) if isinstance(value, float) and field != "router_jitter" else value
        assert getattr(back, field) == expected, field


def test_where_we_say_what_the_model_is_and_the_reference_what_released_ones_are(tiny: Tiny) -> None:
    """llama.cpp's converter writes 4 * hidden_size, as many key heads as heads, and no rope base.

    llama.cpp refuses such a file, or would run it with the wrong angles. With `compat` we write it, too, which
    `test_convert_oracle` compares (case phi-of-transformers).
    """
    folder = make(tiny, **UNLIKE_RELEASED)
    ours, reference = (
        GGUFFile.open(convert(folder, folder / f"{compat}.gguf", compat=compat, progress=False))
        for compat in (False, True)
    )
    keys = ("phi2.feed_forward_length", "phi2.attention.head_count_kv", "phi2.rope.freq_base")
    assert [ours.metadata[key].value for key in keys] == [128, 1, 5e4]
    assert [reference.get(key, int, None) for key in keys] == [256, 2, None]
    others = [key for key in ours.metadata if key not in keys]
    assert all(str(ours.metadata[key]) == str(reference.metadata[key]) for key in others)
    usual = GGUFFile.open(convert(make(tiny, folder="usual"), progress=False))
    assert "phi2.rope.freq_base" not in usual.metadata


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.self_attn.v_proj.bias", "v_proj.bias is missing"),
        ("lm_head.bias", "lm_head.bias is missing"),
    ],
)
def test_a_missing_bias(tiny: Tiny, name: str, message: str) -> None:
    weights = random_weights(TINY_PHI2)
    del weights[name]
    with pytest.raises(ConvertError, match=message):
        convert(tiny(weights, base=TINY_PHI2), progress=False)


@pytest.mark.parametrize("changes", [{}, UNLIKE_RELEASED], ids=["usual", "unlike released"])
def test_llama_cpp_computes_what_transformers_does(tiny: Tiny, changes: dict[str, object]) -> None:
    """Float32 weights and a float32 cache: only the order of sums and llama.cpp's table of GELU (f16) differ."""
    llama_cpp = pytest.importorskip("llama_cpp")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = make(tiny, **changes)
    ids = [1, 5, 300, 17, 42, 42, 7, 499]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    file = convert(folder, outtype="f32", progress=False)
    f32 = llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(str(file), n_ctx=64, logits_all=True, type_k=f32, type_v=f32, verbose=False)
    llama.eval(ids)
    assert np.abs(np.array(llama.scores[: len(ids)]) - expected).max() < 2e-3 * np.abs(expected).max()
