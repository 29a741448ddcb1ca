"""The readable Phi-2 and Phi-3.5-MoE against transformers: the same logits from the same weights.

transformers 5.23 computes Phi-3.5-MoE with the short factors of LongRoPE always; Microsoft's own code on the Hub
takes the long ones for texts beyond the original context, and so do we. Beyond it we are compared with a
transformers model that was given the long factors as its short ones.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from phicourse.checkpoint import Checkpoint
from phicourse.model import KVCache, Phi, load_checkpoint
from phicourse.model.moe import pick_experts

transformers = pytest.importorskip("transformers", minversion="5.0")

TOLERANCE = 1e-4  # float32: both add up the same few hundred products, in another order
ORIGINAL = 24  # tokens that the short factors serve
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.2],
    "long_factor": [1.0, 2.5, 4.0, 7.0],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "original_max_position_embeddings": ORIGINAL,
}
PHI2: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped_heads": {"num_key_value_heads": 2},
    "partial_rotary": {
        "hidden_size": 80,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.4},
    },
    "tied": {"tie_word_embeddings": True},
}
PHIMOE: dict[str, dict[str, Any]] = {
    "plain": {"num_local_experts": 5},
    "no_biases": {"attention_bias": False, "lm_head_bias": False},
    "grouped_heads": {"num_key_value_heads": 1},
    "longrope": {"rope_parameters": LONGROPE},
    "sliding_window": {"sliding_window": 7},
    "soft_router": {"router_jitter_noise": 0.4},
    "everything": {
        "num_key_value_heads": 2,
        "rope_parameters": LONGROPE,
        "sliding_window": 9,
        "router_jitter_noise": 0.2,
        "tie_word_embeddings": True,
    },
}


def make(name: str, changes: dict[str, Any], seed: int = 0) -> Any:
    """A random model of transformers; norms and biases are random, too."""
    torch.manual_seed(seed)
    extra = {"Phimoe": {"num_local_experts": 8, "attention_bias": True, "lm_head_bias": True}}.get(name, {})
    config = getattr(transformers, f"{name}Config")(**SIZES | extra | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter, weight in model.named_parameters():
        if "norm" in parameter or parameter.endswith("bias"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def load_ours(theirs: Any, folder: Path, separate: bool = True) -> Phi:
    theirs.save_pretrained(folder, save_original_format=separate)
    return load_checkpoint(Checkpoint.open(folder))


def random_ids(time: int) -> torch.Tensor:
    return torch.randint(0, 97, (2, time), generator=torch.Generator().manual_seed(time))


@torch.inference_mode()
def assert_same(ours: Phi, theirs: Any, times: tuple[int, ...]) -> None:
    for time in times:
        ids = random_ids(time)
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def assert_same_in_parts(ours: Phi, theirs: Any, parts: list[int]) -> None:
    our_cache, their_cache = KVCache(), None
    for part in random_ids(sum(parts)).split(parts, dim=1):
        out = theirs(part, past_key_values=their_cache, use_cache=True)
        their_cache = out.past_key_values
        torch.testing.assert_close(ours(part, our_cache), out.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", PHI2)
def test_phi2(variant: str, tmp_path: Path) -> None:
    theirs = make("Phi", PHI2[variant])
    ours = load_ours(theirs, tmp_path)
    assert ours.config.tie_embeddings == (variant == "tied")
    assert_same(ours, theirs, (1, 40, 96))
    assert_same_in_parts(ours, theirs, [15, 1, 1, 4, 1])


@pytest.mark.parametrize("separate", [True, False], ids=["as on the Hub", "fused experts"])
@pytest.mark.parametrize("variant", PHIMOE)
def test_phimoe(variant: str, separate: bool, tmp_path: Path) -> None:
    theirs = make("Phimoe", PHIMOE[variant])
    ours = load_ours(theirs, tmp_path, separate)
    assert_same(ours, theirs, (1, ORIGINAL) if "rope_parameters" in PHIMOE[variant] else (1, 60))
    assert_same_in_parts(ours, theirs, [15, 1, 1, 4, 1])


def test_phimoe_beyond_the_original_context(tmp_path: Path) -> None:
    ours = load_ours(make("Phimoe", PHIMOE["everything"]), tmp_path)
    long_as_short = LONGROPE | {"short_factor": LONGROPE["long_factor"]}
    assert_same(
        ours, make("Phimoe", PHIMOE["everything"] | {"rope_parameters": long_as_short}), (ORIGINAL + 1, 60)
    )


def test_the_variants_differ_from_each_other(tmp_path: Path) -> None:
    """Were a setting ignored by both models, the comparisons above would say nothing."""
    ids = random_ids(ORIGINAL)
    settings = {"router_jitter_noise": 0.4, "sliding_window": 7, "rope_parameters": LONGROPE}
    with torch.inference_mode():
        plain = load_ours(make("Phimoe", {}), tmp_path / "plain")(ids)
        for name, value in settings.items():
            changed = load_ours(make("Phimoe", {name: value}), tmp_path / name)(ids)
            assert (changed - plain).abs().max() > 100 * TOLERANCE, name


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_the_router_is_that_of_transformers(jitter: float) -> None:
    """Also where all scores are negative, zero or equal, which random weights seldom give."""
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    scores = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    scores[:50] -= 5
    scores[50:60] = 0
    scores[60:100] = scores[60:100].round()
    weights, experts = sparsemixer(scores, jitter, training=False)
    ours = pick_experts(scores, 2, jitter)
    torch.testing.assert_close(ours[0], weights)
    assert torch.equal(ours[1], experts)
    assert (weights.sum(-1) > 1.5).any() and (weights[:, 0] < 0.9).any()
