"""config.json of every year, read into one checked form; and configs that make no sense."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phicourse.checkpoint import PhiConfig, read_config
from phicourse.checkpoint.config import parse_config
from phicourse.checkpoint.json_file import parse_json_object
from phicourse.errors import CheckpointError

SMALL: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 256,
}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
PHI2 = {
    **{key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")},
    "architectures": ["PhiForCausalLM"],
    "intermediate_size": 256,
}
MOE = SMALL | {"architectures": ["PhiMoEForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}


def test_phi_3_mini(shared_data: Path) -> None:
    config, raw = read_config(shared_data / "phi" / "Phi-3-mini-4k-instruct")
    assert config == PhiConfig(
        architecture="phi3",
        hidden_size=3072,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_size=96,
        ffn_size=8192,
        vocab_size=32064,
        context_length=4096,
        original_context_length=4096,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_size=96,
        sliding_window=2047,
        bos_id=1,
        eos_id=32000,
    )
    assert raw["torch_dtype"] == "bfloat16"


def test_phi_3_5_mini_has_long_rope(shared_data: Path) -> None:
    config, _ = read_config(shared_data / "phi" / "Phi-3.5-mini-instruct")
    assert config.short_factor is not None and config.long_factor is not None
    assert len(config.short_factor) == len(config.long_factor) == 48
    assert config.attention_factor == pytest.approx(1.190238, abs=1e-6)  # sqrt(1 + ln 32 / ln 4096)
    assert (config.context_length, config.original_context_length) == (131072, 4096)


def test_phi_4_mini_rotates_a_part_of_each_head_and_shares_heads(shared_data: Path) -> None:
    config, _ = read_config(shared_data / "phi" / "Phi-4-mini-instruct")
    assert (config.rope_size, config.head_size, config.group_size) == (96, 128, 3)
    assert config.tie_embeddings


def test_phi_2(shared_data: Path) -> None:
    config, _ = read_config(shared_data / "phi" / "phi-2")
    assert config == PhiConfig(
        architecture="phi2",
        hidden_size=2560,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_size=80,
        ffn_size=10240,
        vocab_size=51200,
        context_length=2048,
        original_context_length=2048,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_size=32,
        bos_id=50256,
        eos_id=50256,
        attention_bias=True,
        output_bias=True,
    )


@pytest.mark.parametrize(
    ("document", "model_type"),
    [(PHI2, "phi"), (SMALL, "phi3"), (MOE, "phimoe")],
    ids=["phi2", "phi3", "phimoe"],
)
def test_what_a_config_leaves_out_is_what_transformers_takes(
    document: dict[str, Any], model_type: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(document | {"model_type": model_type}))
    ours, _ = read_config(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.rope_size == int(16 * rope.get("partial_rotary_factor", 1.0))
    assert ours.norm_eps == (theirs.layer_norm_eps if model_type == "phi" else theirs.rms_norm_eps)
    assert ours.n_kv_heads == theirs.num_key_value_heads
    without_length = {key: value for key, value in document.items() if key != "max_position_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps(without_length | {"model_type": model_type}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read_config(tmp_path)[0].context_length == theirs.max_position_embeddings


@pytest.mark.parametrize("name", ["PhiMoEForCausalLM", "PhimoeForCausalLM", None])
def test_phimoe_by_each_of_its_names(name: str | None) -> None:
    scaling = {"type": "longrope", "short_mscale": 1.25, "long_mscale": 1.5, **FACTORS}
    names = {"architectures": [name]} if name else {"architectures": None, "model_type": "phimoe"}
    given = {
        "attention_bias": True,
        "lm_head_bias": True,
        "router_jitter_noise": 0.25,
        "rope_scaling": scaling,
    }
    config = parse_config(MOE | names | given)
    assert (config.architecture, config.n_experts, config.n_experts_used) == ("phimoe", 4, 2)
    assert (config.attention_bias, config.output_bias, config.router_jitter) == (True, True, 0.25)
    assert (config.short_mscale, config.long_mscale) == (1.25, 1.5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Phi3SmallForCausalLM", "block-sparse attention"),
        ("Phi3VForCausalLM", "vision"),
        ("Phi4MMForCausalLM", "adapters"),
        ("Phi4MultimodalForCausalLM", "adapters"),
        ("Phi4ForCausalLMV", "only models of text"),
        ("Phi4FlashForCausalLM", "layers with a state"),
        ("LlamaForCausalLM", "Phi3ForCausalLM, PhiMoEForCausalLM, PhimoeForCausalLM are$"),
    ],
)
def test_other_models_are_told_what_is_supported_and_why_not(name: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}' is not supported, only PhiForCausalLM, .*{reason}"):
        parse_config(SMALL | {"architectures": [name]})


def test_a_released_vision_model_is_refused(shared_data: Path) -> None:
    with pytest.raises(CheckpointError, match="'Phi4ForCausalLMV' is not supported"):
        read_config(shared_data / "phi" / "Phi-4-reasoning-vision-15B")


@pytest.mark.parametrize(
    "name", ["Phi-3-mini-4k-instruct", "Phi-3.5-mini-instruct", "Phi-4-mini-instruct", "phi-4"]
)
def test_agrees_with_transformers(shared_data: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, _ = read_config(shared_data / "phi" / name)
    theirs = transformers.AutoConfig.from_pretrained(shared_data / "phi" / name, trust_remote_code=False)
    rope = theirs.rope_parameters
    assert config.rope_theta == rope["rope_theta"]
    assert config.rope_size == int(
        theirs.hidden_size // theirs.num_attention_heads * rope["partial_rotary_factor"]
    )
    assert config.n_kv_heads == theirs.num_key_value_heads
    assert (config.long_factor is not None) == (rope["rope_type"] == "longrope")
    assert config.norm_eps == theirs.rms_norm_eps


def test_the_rope_settings_of_transformers_5_mean_the_same_as_the_old_ones() -> None:
    old = SMALL | {
        "rope_theta": 5000.0,
        "partial_rotary_factor": 1.0,
        "rope_scaling": {"type": "longrope", **FACTORS},
    }
    new = SMALL | {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 1.0,
            **FACTORS,
        }
    }
    assert parse_config(old) == parse_config(new)
    assert parse_config(old).rope_theta == 5000.0


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("longrope", math.sqrt(1 + math.log(4) / math.log(256))),
        ("su", math.sqrt(1 + math.log(4) / math.log(256))),
        ("yarn", 0.1 * math.log(4) + 1),
    ],
)
def test_attention_factor(kind: str, factor: float) -> None:
    scaling = {"type": kind, **FACTORS}
    assert parse_config(SMALL | {"rope_scaling": scaling}).attention_factor == pytest.approx(factor)
    given = scaling | {"attention_factor": 1.5}
    assert parse_config(SMALL | {"rope_scaling": given}).attention_factor == 1.5
    short = SMALL | {"rope_scaling": scaling, "max_position_embeddings": 128}
    assert parse_config(short).attention_factor == 1.0


def test_ids_outside_the_vocabulary_and_lists_of_ids_count_as_not_given() -> None:
    config = parse_config(SMALL | {"bos_token_id": 1, "eos_token_id": 32000})
    assert (config.bos_id, config.eos_id) == (1, None)
    assert parse_config(SMALL | {"eos_token_id": [1, 2]}).eos_id is None


@pytest.mark.parametrize("window", [0, None])
def test_no_sliding_window(window: int | None) -> None:
    assert parse_config(SMALL | {"sliding_window": window}).sliding_window is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None, "model_type": "phi3small"}, "'phi3small'"),
        ({"architectures": [["Phi3ForCausalLM"]]}, "architecture list"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"max_position_embeddings": 10**400, "rope_scaling": {"type": "su", **FACTORS}}, "max_position"),
        ({"num_attention_heads": 3}, "head_size"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "n_layers"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"head_dim": 32}, "head_size"),
        ({"rms_norm_eps": 0}, "norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.2}, "rope_size"),
        ({"sliding_window": -1}, "sliding_window"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_scaling": "longrope"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "linear"),
        ({"rope_scaling": {"type": ["longrope"]}}, "rope type"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}}, "long_factor"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0] * 7}}, "long_factor"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [-1.0] * 8}}, "long_factor"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": ["1"] * 8}}, "long_factor"),
    ],
)
def test_a_config_that_makes_no_sense_names_the_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as error:
        parse_config(SMALL | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("document", "change", "named"),
    [
        (PHI2, {"hidden_act": "silu"}, "hidden_act 'silu' is not supported: a PhiForCausalLM uses gelu_new"),
        (PHI2, {"qk_layernorm": True}, "qk_layernorm"),
        (PHI2, {"layer_norm_eps": -1e-5}, "norm_eps"),
        (PHI2, {"rope_scaling": {"type": "longrope", **FACTORS}}, "rope type"),
        (PHI2, {"num_attention_heads": 5}, "head_size"),
        (MOE, {"num_local_experts": 0}, "num_local_experts"),
        (MOE, {"num_local_experts": 1 << 20}, "n_experts"),
        (MOE, {"num_local_experts": "16"}, "num_local_experts"),
        (MOE, {"num_experts_per_tok": 5}, "n_experts_used must be a whole number from 1 to 4"),
        (MOE, {"num_experts_per_tok": -2}, "num_experts_per_tok"),
        (MOE, {"router_jitter_noise": -0.1}, "router_jitter"),
        (MOE, {"lm_head_bias": 1}, "lm_head_bias"),
        (MOE, {"attention_bias": "no"}, "attention_bias"),
        (MOE, {"rope_scaling": {"type": "longrope", **FACTORS, "short_mscale": 0}}, "short_mscale"),
        (MOE, {"rope_scaling": {"type": "longrope", **FACTORS, "long_mscale": [1]}}, "long_mscale"),
    ],
)
def test_what_only_one_architecture_has_is_checked_too(
    document: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    parse_config(document)
    with pytest.raises(CheckpointError, match=named) as error:
        parse_config(document | change)
    assert "\n" not in str(error.value)


def test_experts_belong_to_phimoe_alone() -> None:
    dense = parse_config(SMALL)
    with pytest.raises(CheckpointError, match="a phi3 model has no experts, but n_experts is 4"):
        replace(dense, n_experts=4)
    with pytest.raises(CheckpointError, match="architecture 'llama' is not supported"):
        replace(dense, architecture="llama")


def test_a_missing_file_says_what_a_checkpoint_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: not found; a checkpoint is a folder"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "must be a JSON object, not list"),
        (b"{", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_broken_json(content: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"here: .*{reason}"):
        parse_json_object(content, "here")


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"vocab_size": 0}))
    with pytest.raises(CheckpointError, match=r"config.json: vocab_size"):
        read_config(tmp_path)


UGLY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 1 << 31, 1 << 60, 10**400, 0.0, 0.5, -0.5, 1e-320, 1e308, float("inf"),
    float("nan"), "", "16", "\n", [], [0], [1.0] * 8, ["a"], {}, {"type": 1}, {"type": "longrope"},
]  # fmt: skip


@pytest.mark.parametrize("document", [PHI2, SMALL, MOE], ids=["phi2", "phi3", "phimoe"])
def test_whatever_a_field_says_there_is_a_config_or_one_line(document: dict[str, Any]) -> None:
    rope = {
        "type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 1.0,
        **FACTORS,
        "short_mscale": 1.0,
    }
    scaled = document if document is PHI2 else document | {"rope_scaling": rope}
    fields = {*scaled, "head_dim", "tie_word_embeddings", "sliding_window", "bos_token_id", "eos_token_id"}
    fields |= {"hidden_act", "model_type", "rope_theta", "partial_rotary_factor", "rope_parameters"}
    fields |= {"layer_norm_eps", "rms_norm_eps", "router_jitter_noise", "lm_head_bias", "qk_layernorm"}
    cases = [scaled | {field: value} for field in fields for value in UGLY]
    cases += [scaled | {"rope_scaling": rope | {field: value}} for field in rope for value in UGLY]
    cases += [{key: value for key, value in scaled.items() if key != field} for field in scaled]
    outcomes = set()
    for case in cases:
        try:
            parse_config(case)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert outcomes == {"refused", "read"}
