"""config.json of every year, read into one checked form; and configs that make no sense."""

import json
import math
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
        ({"architectures": None, "model_type": "phi"}, "'phi'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
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
