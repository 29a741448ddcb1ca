"""What convert does with good checkpoints, broken ones, full disks and interrupts."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import TINY, Weights, random_weights, write_safetensors

from phicourse.checkpoint import Checkpoint
from phicourse.convert import config_from_gguf, convert, rows
from phicourse.errors import ConvertError, GGUFError, PhiCourseError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, bfloat16_to_float32, float32_to_bfloat16

Tiny = Callable[..., Path]


def weights_of(file: GGUFFile, name: str) -> np.ndarray:
    """A float tensor as float32."""
    blocks = file.blocks(name)
    wide = (
        bfloat16_to_float32(blocks) if file.tensors[name].type.name == "BF16" else blocks.astype(np.float32)
    )
    return wide.reshape(file.tensors[name].shape)


def test_names_order_types_and_weights(tiny: Tiny) -> None:
    folder = tiny()
    source = Checkpoint.open(folder)
    file = GGUFFile.open(convert(folder, progress=False))
    names = list(file.tensors)
    assert names[:3] == ["rope_factors_long.weight", "rope_factors_short.weight", "token_embd.weight"]
    assert [name for name in names if name.endswith("attn_qkv.weight")] == [
        f"blk.{i}.attn_qkv.weight" for i in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)
    ]
    assert "output.weight" not in names
    for gguf_name, name in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.10.ffn_up.weight", "model.layers.10.mlp.gate_up_proj.weight"),
        ("blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        expected = source.as_float32(name)
        is_vector = expected.ndim == 1
        assert file.tensors[gguf_name].type.name == ("F32" if is_vector else "F16")
        rounded = expected if is_vector else expected.astype(np.float16).astype(np.float32)
        assert np.array_equal(weights_of(file, gguf_name), rounded)
    assert weights_of(file, "rope_factors_long.weight").tolist() == [1, 2, 4, 8]


def test_a_factor_of_the_config_s_own_counts_and_llama_cpp_s_formula_with_compat(tiny: Tiny) -> None:
    """llama.cpp's converter does not read `attention_factor`; transformers takes it in place of the formula."""
    pairs = TINY["hidden_size"] // TINY["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    scaling = {"type": "longrope", "attention_factor": 1.5, **factors}
    folder = tiny(rope_scaling=scaling, max_position_embeddings=4096, original_max_position_embeddings=64)
    written = {}
    for compat in (False, True):
        with GGUFFile.open(convert(folder, folder / f"{compat}.gguf", compat=compat, progress=False)) as file:
            written[compat] = file.get("phi3.rope.scaling.attn_factor", float)
    assert written == {False: 1.5, True: pytest.approx(np.sqrt(2))}  # 1 + ln 64 / ln 64


def test_the_config_comes_back(tiny: Tiny) -> None:
    folder = tiny(sliding_window=100)
    given = Checkpoint.open(folder).config
    back = config_from_gguf(GGUFFile.open(convert(folder, progress=False)))
    for field, value in vars(given).items():
        expected = tuple(map(np.float32, value)) if isinstance(value, tuple) else value
        expected = np.float32(value) if isinstance(value, float) else expected
        assert getattr(back, field) == expected, field


@pytest.mark.parametrize("source", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_chunks_do_not_matter(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, source: str, outtype: str) -> None:
    folder = tiny(random_weights(TINY, source))
    whole = convert(folder, folder / "whole.gguf", outtype, progress=False).read_bytes()
    monkeypatch.setattr(rows, "CHUNK_WEIGHTS", 3 * 64)
    assert convert(folder, folder / "parts.gguf", outtype, progress=False).read_bytes() == whole


def test_memory_does_not_grow_with_the_model(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TINY | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 32}
    config |= {"num_hidden_layers": 2, "num_key_value_heads": 32}
    folder = tiny(
        random_weights(config, "F32"), **{key: config[key] for key in config if config[key] != TINY.get(key)}
    )
    monkeypatch.setattr(rows, "CHUNK_WEIGHTS", 1 << 16)
    tracemalloc.start()
    out = convert(folder, outtype="f32", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Four threads, each with a chunk (256 KiB) read and one waiting, and the vocabulary; the file has 34 MB.
    assert out.stat().st_size > 30e6
    assert peak < 5e6


@pytest.mark.parametrize(
    ("dtype", "outtype", "expected"),
    [("BF16", "auto", "BF16"), ("F16", "AUTO", "F16"), ("F32", "auto", "F16"), ("BF16", "F32", "F32")],
)
def test_outtype(tiny: Tiny, dtype: str, outtype: str, expected: str) -> None:
    file = GGUFFile.open(convert(tiny(random_weights(TINY, dtype)), outtype=outtype, progress=False))
    assert file.tensors["token_embd.weight"].type.name == expected


def test_rows_that_q8_0_cannot_cut_become_f16(tiny: Tiny) -> None:
    folder = tiny(random_weights(TINY | {"intermediate_size": 40}), intermediate_size=40)
    file = GGUFFile.open(convert(folder, outtype="q8_0", progress=False))
    assert file.tensors["blk.0.ffn_down.weight"].type.name == "F16"
    assert file.tensors["blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert file.get("general.file_type", int) == 7


def test_the_file_is_named_after_the_model(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny(folder="Phi-9.5-mini-instruct")
    assert convert(folder, progress=False) == folder / "Phi-9.5-mini-instruct-F16.gguf"
    assert (
        convert(str(folder), str(tmp_path), "q8_0", progress=False)
        == tmp_path / "Phi-9.5-mini-instruct-Q8_0.gguf"
    )
    assert convert(Checkpoint.open(folder), tmp_path / "a.gguf", progress=False) == tmp_path / "a.gguf"


def test_an_existing_file_stays_unless_forced(tiny: Tiny) -> None:
    folder = tiny()
    out = convert(folder, progress=False)
    before = out.read_bytes()
    with pytest.raises(GGUFError, match="exists already; --force"):
        convert(folder, progress=False)
    out.write_bytes(b"")
    assert convert(folder, force=True, progress=False).read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model"])
def test_the_checkpoint_s_own_files_stay_even_when_forced(tiny: Tiny, name: str) -> None:
    folder = tiny()
    before = (folder / name).read_bytes()
    with pytest.raises(GGUFError, match="is an input, too"):
        convert(folder, folder / name, force=True, progress=False)
    assert (folder / name).read_bytes() == before


def without(weights: Weights, *names: str) -> Weights:
    return {name: data for name, data in weights.items() if name not in names}


def good() -> Weights:
    return random_weights(TINY)


def poisoned(name: str, value: float, dtype: str = "BF16") -> Weights:
    weights = random_weights(TINY, dtype)
    bad = np.float32([value])
    weights[name][3, 5] = float32_to_bfloat16(bad)[0] if dtype == "BF16" else bad[0]
    return weights


QKV = "model.layers.7.self_attn.qkv_proj.weight"
BROKEN: dict[str, tuple[Callable[[], Weights], dict, str]] = {
    "missing tensor": (lambda: without(good(), QKV), {}, f"{QKV} is missing; incomplete download?"),
    "missing layers": (
        good,
        {"num_hidden_layers": 13},
        "model.layers.11.input_layernorm.weight and 11 more tensors",
    ),
    "missing output": (good, {"tie_word_embeddings": False}, "lm_head.weight is missing"),
    "more layers than the config": (
        good,
        {"num_hidden_layers": 10},
        "'model.layers.10.input_layernorm.weight' is none",
    ),
    "unexpected tensor": (
        lambda: good() | {"model.layers.0.self_attn.q_proj.weight": np.zeros((2, 2), "<f4")},
        {},
        "'model.layers.0.self_attn.q_proj.weight' is none of a Phi3ForCausalLM with 11 layers",
    ),
    "layer 01": (
        lambda: good() | {"model.layers.01.input_layernorm.weight": np.zeros(32, "<f4")},
        {},
        "'model.layers.01.input_layernorm.weight' is none",
    ),
    "wrong shape": (
        lambda: good() | {QKV: np.zeros((32, 64), "<f4")},
        {},
        f"{QKV} has the shape (32, 64), config.json asks for (64, 32)",
    ),
    "integers": (
        lambda: good() | {QKV: np.zeros((64, 32), "<i4")},
        {},
        f"{QKV} is I32; convertible are F64, F32",
    ),
    "not a number": (
        lambda: poisoned(QKV, np.nan),
        {},
        f"{QKV}, row 3, column 5 is nan: not a finite number",
    ),
    "infinite": (lambda: poisoned(QKV, -np.inf, "F16"), {}, f"{QKV}, row 3, column 5 is -inf"),
    "too large": (
        lambda: poisoned(QKV, -65536, "F32"),
        {},
        "is -65536: too large for F16; use --outtype bf16 or f32",
    ),
    "just too large": (lambda: poisoned(QKV, 65520, "F32"), {}, "is 65520: too large for F16"),
    "too large as BF16": (lambda: poisoned(QKV, 65536), {}, "is 65536: too large for F16"),
    "other architecture": (
        good,
        {"architectures": ["LlamaForCausalLM"]},
        "'LlamaForCausalLM' is not supported, only",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_one_line_and_no_file(tiny: Tiny, case: str) -> None:
    make, changes, message = BROKEN[case]
    folder = tiny(make(), **changes)
    before = sorted(folder.iterdir())
    with pytest.raises(PhiCourseError) as error:
        convert(folder, progress=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before


def test_the_largest_weights_that_fit(tiny: Tiny) -> None:
    for value, dtype, stored in ((65519, "F32", 65504), (-65280, "BF16", -65280)):
        folder = tiny(poisoned(QKV, value, dtype), folder=dtype)
        file = GGUFFile.open(convert(folder, progress=False))
        assert weights_of(file, "blk.7.attn_qkv.weight")[3, 5] == stored
    file = GGUFFile.open(
        convert(tiny(poisoned(QKV, 3e38, "F32"), folder="wide"), outtype="bf16", progress=False)
    )
    assert weights_of(file, "blk.7.attn_qkv.weight")[3, 5] == pytest.approx(3e38, rel=0.01)
    with pytest.raises(ConvertError, match="too large for BF16"):
        convert(tiny(poisoned(QKV, 3.4e38, "F32"), folder="wider"), outtype="bf16", progress=False)


def test_buffers_of_old_checkpoints_are_left_out(tiny: Tiny) -> None:
    folder = tiny(good() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, "<f4")})
    assert len(GGUFFile.open(convert(folder, progress=False)).tensors) == 2 + 2 + 11 * 6


def test_unknown_outtype_and_bad_sampling_settings(tiny: Tiny) -> None:
    folder = tiny()
    with pytest.raises(ConvertError, match=r"unknown outtype 'q4_k_m'; known are f32, f16, .*tq2_0, auto"):
        convert(folder, outtype="q4_k_m", progress=False)
    (folder / "generation_config.json").write_text('{"top_k": "many"}')
    with pytest.raises(ConvertError, match=r"generation_config\.json: top_k is 'many', not a INT32"):
        convert(folder, progress=False)
    (folder / "generation_config.json").write_text("{broken")
    assert convert(folder, progress=False).is_file()


def test_an_interrupt_leaves_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny()
    before = sorted(folder.iterdir())
    seen = []

    def interrupt(self: GGUFWriter, name: str, chunk: object) -> None:
        seen.append(name)
        if len(seen) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(GGUFWriter, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, progress=False)
    assert sorted(folder.iterdir()) == before


def test_a_file_that_shrinks_meanwhile_is_an_error(tiny: Tiny) -> None:
    folder = tiny()
    checkpoint = Checkpoint.open(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(folder.joinpath("model.safetensors").stat().st_size // 2)
    with pytest.raises(ConvertError, match=r"ended while .* was read; did the file change\?"):
        convert(checkpoint, progress=False)


def test_shards_may_hold_the_tensors_in_any_order(tiny: Tiny) -> None:
    folder = tiny()
    whole = GGUFFile.open(convert(folder, folder / "whole.gguf", progress=False))
    (folder / "model.safetensors").unlink()
    weights = good()
    index = {}
    for i, names in enumerate((list(weights)[::-2], list(weights)[-2::-2])):
        shard = f"model-{i + 1:05d}-of-00002.safetensors"
        write_safetensors(folder / shard, {name: weights[name] for name in names})
        index |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sharded = GGUFFile.open(convert(folder, folder / "sharded.gguf", progress=False))
    assert sorted(sharded.tensors) == sorted(whole.tensors)
    assert list(sharded.tensors) != list(whole.tensors)
    assert all(np.array_equal(sharded.data(name), whole.data(name)) for name in whole.tensors)


def test_progress_goes_to_standard_error_only(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tiny())
    assert capsys.readouterr().out == ""


BAD_KEYS = {
    "architecture": (
        "general.architecture",
        "llama",
        ValueType.STRING,
        "architecture 'llama' is not supported",
    ),
    "text for a number": (
        "phi3.block_count",
        "32",
        ValueType.STRING,
        "'phi3.block_count' is STRING, expected int",
    ),
    "no layers": ("phi3.block_count", 0, ValueType.UINT32, "n_layers"),
    "many layers": ("phi3.block_count", 2**32 - 1, ValueType.UINT32, "n_layers"),
    "no heads": ("phi3.attention.head_count", 0, ValueType.UINT32, "0 attention heads"),
    "heads that do not divide": ("phi3.attention.head_count", 3, ValueType.UINT32, "is not hidden_size 32"),
    "end token outside": ("tokenizer.ggml.eos_token_id", 512, ValueType.UINT32, "eos_id"),
    "odd rotation": ("phi3.rope.dimension_count", 3, ValueType.UINT32, "rope_size"),
    "endless context": ("phi3.context_length", 2**32 - 1, ValueType.UINT32, "context_length"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_gguf_file_that_lies_about_its_model(tiny: Tiny, tmp_path: Path, case: str) -> None:
    key, value, type, message = BAD_KEYS[case]
    good = GGUFFile.open(convert(tiny(), progress=False))
    with GGUFWriter(tmp_path / "bad.gguf") as writer:
        for name, given in good.metadata.items():
            new = (value, type, None) if name == key else (given.value, given.type, given.element)
            writer.add(name, *new)
        for name, tensor in good.tensors.items():
            writer.declare(name, tensor.shape, tensor.type)
        for name in good.tensors:
            writer.write(name, good.data(name))
    with pytest.raises(GGUFError) as error:
        config_from_gguf(GGUFFile.open(tmp_path / "bad.gguf"))
    assert message in str(error.value)
