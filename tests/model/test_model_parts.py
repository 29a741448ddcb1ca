"""The readable Phi's parts against the equations that they stand for."""

import math

import pytest
import torch

from phicourse.checkpoint.config import PhiConfig
from phicourse.errors import ModelError
from phicourse.model import KVCache, Phi
from phicourse.model.attention import attention_mask
from phicourse.model.norms import RMSNorm
from phicourse.model.rope import cos_sin, frequencies, rotate

SHORT, LONG = (1.0, 1.5), (2.0, 8.0)


def small_config(**changes: object) -> PhiConfig:
    sizes: dict[str, object] = {
        "architecture": "phi3",
        "hidden_size": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_size": 4,
        "ffn_size": 24,
        "vocab_size": 31,
        "context_length": 20,
        "original_context_length": 8,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_size": 4,
        "short_factor": SHORT,
        "long_factor": LONG,
        "attention_factor": 1.25,
        "sliding_window": None,
        "tie_embeddings": False,
        "bos_id": 1,
        "eos_id": 2,
    }
    return PhiConfig(**sizes | changes)  # type: ignore[arg-type]


def test_rms_norm_is_the_equation() -> None:
    norm = RMSNorm(3, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0])
    scale = math.sqrt((4 + 16 + 1) / 3 + 0.5)
    expected = torch.tensor([2.0, -8.0, 3.0]) / scale
    torch.testing.assert_close(norm(torch.tensor([2.0, -4.0, 1.0])), expected)


def test_factors_switch_beyond_the_original_context() -> None:
    config = small_config()
    torch.testing.assert_close(frequencies(config, 8), torch.tensor([1.0, 0.01]) / torch.tensor(SHORT))
    torch.testing.assert_close(frequencies(config, 9), torch.tensor([1.0, 0.01]) / torch.tensor(LONG))


def test_rotation_turns_pairs_of_halves_and_leaves_the_rest() -> None:
    cos, sin = torch.tensor([[0.6]]), torch.tensor([[0.8]])  # one pair, one position
    x = torch.tensor([1.0, 2.0, 5.0, 7.0]).view(1, 1, 1, 4)
    turned = rotate(x, cos, sin).flatten()
    torch.testing.assert_close(turned, torch.tensor([0.6 - 1.6, 1.2 + 0.8, 5.0, 7.0]))


def test_attention_factor_lengthens_queries_and_keys() -> None:
    cos, sin = cos_sin(small_config(), 3, 7)
    assert cos.shape == sin.shape == (4, 2)
    torch.testing.assert_close(cos.square() + sin.square(), torch.full((4, 2), 1.25**2))


def test_mask_of_a_window_counts_the_query_itself() -> None:
    mask = attention_mask(time=2, total=5, window=3, device=torch.device("cpu"))
    assert mask is not None
    assert mask.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert attention_mask(time=5, total=5, window=5, device=torch.device("cpu")) is None


@pytest.mark.parametrize("window", [None, 3])
def test_a_cache_changes_nothing_within_one_regime(window: int | None) -> None:
    torch.manual_seed(0)
    model = Phi(small_config(sliding_window=window)).eval()
    ids = torch.randint(0, 31, (1, 8))
    cache = KVCache()
    with torch.inference_mode():
        whole = model(ids)
        steps = [model(part, cache) for part in ids.split([3, 1, 1, 2, 1], dim=1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)
        cache.truncate(4)
        assert cache.length == 4
        torch.testing.assert_close(model(ids[:, 4:], cache), whole[:, 4:], rtol=0, atol=1e-5)
        cache.truncate(0)
        assert cache.length == 0


def test_no_position_sees_what_comes_later() -> None:
    torch.manual_seed(0)
    model = Phi(small_config()).eval()
    ids = torch.randint(0, 31, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 31
    with torch.inference_mode():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-4


def test_dropout_is_off_outside_training() -> None:
    torch.manual_seed(0)
    model = Phi(small_config(), dropout=0.5)
    ids = torch.randint(0, 31, (1, 8))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    torch.testing.assert_close(model(ids), model(ids), rtol=0, atol=0)


def test_a_text_beyond_the_context_is_refused() -> None:
    model, cache = Phi(small_config()).eval(), KVCache()
    model(torch.zeros(1, 19, dtype=torch.int64), cache)
    with pytest.raises(ModelError, match="21 tokens do not fit into a context of 20"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache)
