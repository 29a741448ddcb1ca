"""The readable Phi against transformers' Phi3ForCausalLM: the same logits from the same weights."""

from typing import Any

import pytest
import torch

from phicourse.checkpoint.config import parse_config
from phicourse.model import KVCache, Phi

transformers = pytest.importorskip("transformers", minversion="5.0")

TOLERANCE = 1e-4  # float32: both add up the same few hundred products, in another order
ORIGINAL = 24  # tokens that the short factors serve
FACTORS = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.2],
    "long_factor": [1.0, 2.5, 4.0, 7.0],
    "original_max_position_embeddings": ORIGINAL,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped_heads": {"num_key_value_heads": 2},
    "one_kv_head": {"num_key_value_heads": 1},
    "partial_rotary": {"hidden_size": 64, "partial_rotary_factor": 0.5},
    "longrope": {"rope_parameters": {**FACTORS, "rope_theta": 10000.0}},
    "other_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}},
    "sliding_window": {"sliding_window": 7},
    "tied": {"tie_word_embeddings": True},
    "everything": {
        "hidden_size": 64,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {**FACTORS, "rope_theta": 20000.0, "partial_rotary_factor": 0.5},
        "sliding_window": 9,
        "tie_word_embeddings": True,
    },
}


def make_pair(seed: int = 0, **changes: Any) -> tuple[Phi, Any]:
    """Our model and theirs with the same random weights."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 96,
        "original_max_position_embeddings": ORIGINAL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": None,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
    }
    theirs = transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes | changes)).eval()
    for name, weight in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    config = parse_config(theirs.config.to_dict() | {"architectures": ["Phi3ForCausalLM"]})
    ours = Phi(config).eval()
    weights = theirs.state_dict()
    if config.tie_embeddings:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights)
    return ours, theirs


def random_ids(time: int) -> torch.Tensor:
    return torch.randint(0, 97, (2, time), generator=torch.Generator().manual_seed(time))


@pytest.mark.parametrize("time", [1, ORIGINAL, ORIGINAL + 1, 60])
@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_texts(variant: str, time: int) -> None:
    ours, theirs = make_pair(**VARIANTS[variant])
    ids = random_ids(time)
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_a_cache_across_the_switch_of_factors(variant: str) -> None:
    ours, theirs = make_pair(**VARIANTS[variant])
    ids = random_ids(ORIGINAL + 8)
    our_cache, their_cache = KVCache(), None
    parts = [15, 1, 1, 1, 4, 1, 1, 1, 1, 1, 3, 1, 1]  # sums to the length
    with torch.inference_mode():
        for part in ids.split(parts, dim=1):
            out = theirs(part, past_key_values=their_cache, use_cache=True)
            their_cache = out.past_key_values
            torch.testing.assert_close(ours(part, our_cache), out.logits, rtol=0, atol=TOLERANCE)
    assert our_cache.length == ids.shape[1]


def test_the_variants_differ_from_each_other() -> None:
    """Were a setting ignored by both models, the comparison above would say nothing."""
    ids = random_ids(60)
    with torch.inference_mode():
        logits = {
            name: make_pair(**VARIANTS[name])[0](ids) for name in ("plain", "longrope", "sliding_window")
        }
    for name in ("longrope", "sliding_window"):
        assert (logits[name] - logits["plain"]).abs().max() > 100 * TOLERANCE
