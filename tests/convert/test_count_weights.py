"""Weights counted from a config, against what was published and against a real checkpoint."""

import json
from pathlib import Path

import pytest

from phicourse.checkpoint import Checkpoint
from phicourse.checkpoint.config import parse_config
from phicourse.convert.weights import count_weights, weights_by_part

# The totals that Microsoft's repositories on Hugging Face show.
PUBLISHED = {
    "phi-2": 2_779_683_840,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Phi-3.5-mini-instruct": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "Phi-4-mini-instruct": 3_836_021_760,
}


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_released_models_have_the_published_size(name: str, total: int, shared_data: Path) -> None:
    config = parse_config(
        json.loads((shared_data / "phi" / name / "config.json").read_text(encoding="utf-8"))
    )
    assert sum(count_weights(config).values()) == sum(weights_by_part(config).values()) == total


def test_phi_tiny_has_as_many_as_its_checkpoint(phi_tiny: Path) -> None:
    checkpoint = Checkpoint.open(phi_tiny)
    assert sum(count_weights(checkpoint.config).values()) == checkpoint.n_weights


def test_experts_are_counted_all_and_norms_by_themselves() -> None:
    config = parse_config(
        {
            "architectures": ["PhiMoEForCausalLM"],
            "hidden_size": 64,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "num_local_experts": 8,
        }
    )
    parts = weights_by_part(config)
    assert parts["feed-forward"] == 2 * (8 * 3 * 64 * 32 + 8 * 64)  # the experts and the router
    assert parts["norms"] == 2 * (2 * 2 * 64) + 2 * 64  # weights and biases
    assert parts["embedding"] == parts["output"] == 100 * 64
