"""Wrong answers to the exercises of notebook 05, and what the checks say; and the parts that they are held against."""

import numpy as np
import pytest

pytest.importorskip("torch")

from phicourse.checkpoint import Checkpoint
from phicourse.exercises import forward_pass as check
from phicourse.exercises import model_parts
from phicourse.exercises.exercise import Answer, Exercise


def layer_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * weight


def norm_of_the_sum(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.square(x).sum(-1, keepdims=True) + eps) * weight


def norm_with_eps_outside(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / (np.sqrt(np.square(x).mean(-1, keepdims=True)) + eps) * weight


def norm_without_eps(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return model_parts.rms_norm(x, weight, 0.0)


def neighbours(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = even * cos - odd * sin, odd * cos + even * sin
    return turned


def backwards(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    return model_parts.rotate(x, cos, -sin)


def plain_rope(config, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    speed = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.outer(np.arange(n_tokens), speed)
    return np.cos(angles) * config.attention_factor, np.sin(angles) * config.attention_factor


def long_one_too_early(config, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    length = n_tokens + (n_tokens == config.original_context_length)
    cos, sin = model_parts.cos_sin(config, length)
    return cos[:n_tokens], sin[:n_tokens]


def without_stretch(config, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = model_parts.cos_sin(config, n_tokens)
    return cos / config.attention_factor, sin / config.attention_factor


def window_one_too_wide(n_tokens: int, window: int | None) -> np.ndarray:
    return model_parts.window_mask(n_tokens, None if window is None else window + 1)


def no_root(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return model_parts.attention(q * np.float32(np.sqrt(q.shape[-1])), k, v, seen)


def tiled(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    group = len(q) // len(k)
    return model_parts.attention(q, np.tile(k, (group, 1, 1)), np.tile(v, (group, 1, 1)), seen)


def unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mix, weights = model_parts.attention(q, k, v, np.ones_like(seen))
    return mix, weights * seen


def overflows(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    group = len(q) // len(k)
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    weights = np.exp(q @ k.swapaxes(1, 2) / np.float32(np.sqrt(q.shape[-1]))) * seen
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ v, weights


def up_first(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return model_parts.swiglu(x, np.roll(gate_up, len(gate_up) // 2, axis=0), down)


def side_by_side(x: np.ndarray, *rest) -> np.ndarray:
    return next(array for text, array in model_parts.wrong_layers(x, *rest).items() if "Phi-2" in text)


def layer_without_the_mlp(x: np.ndarray, *rest) -> np.ndarray:
    return next(array for text, array in model_parts.wrong_layers(x, *rest).items() if "half" in text)


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (check.rms_norm, layer_norm, "that is LayerNorm"),
        (check.rms_norm, norm_of_the_sum, "not their sum"),
        (check.rms_norm, norm_with_eps_outside, "under the root"),
        (check.rms_norm, norm_without_eps, "eps is missing"),
        (check.rms_norm, lambda x, weight, eps: x / x.max(), "three vectors: 24 of 24 numbers differ"),
        (check.rotate, neighbours, "neighbours were paired"),
        (check.rotate, backwards, "turns backwards"),
        (check.rotate, lambda x, cos, sin: x[..., ::2], "the shape"),
        (check.cos_sin, plain_rope, "plain RoPE"),
        (check.cos_sin, long_one_too_early, "one token later"),
        (check.cos_sin, without_stretch, "attention_factor is missing"),
        (check.cos_sin, lambda config, n: None, "return cos, sin"),
        (check.window_mask, window_one_too_wide, "counts the token itself"),
        (check.window_mask, lambda n, window: model_parts.window_mask(n, window).T, "rows are queries"),
        (
            check.window_mask,
            lambda n, window: model_parts.window_mask(n, window) * 1,
            "the type of the numbers",
        ),
        (check.attention, no_root, "root of head_size"),
        (check.attention, tiled, "np.repeat, not np.tile"),
        (check.attention, unmasked, "mask before the softmax"),
        (check.attention, overflows, "subtract the largest score"),
        (check.attention, lambda q, k, v, seen: v, "return mix, weights"),
        (check.swiglu, up_first, "the gate is the first half"),
        (check.swiglu, lambda x, gate_up, down: x, "three vectors"),
        (check.decoder_layer, side_by_side, "side by side they stand in Phi-2"),
        (check.decoder_layer, layer_without_the_mlp, "the MLP is missing"),
        (check.decoder_layer, lambda *parts: np.full((5, 32), np.nan), "160 of 160 numbers differ"),
    ],
)
def test_a_wrong_answer_is_told_its_mistake(
    exercise: Exercise, answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercise(answer)
    message = capsys.readouterr().out
    assert message.startswith("✘") and said in message, message


def test_the_finished_parts_pass_their_own_checks() -> None:
    for name in ("rms_norm", "rotate", "cos_sin", "window_mask", "attention", "swiglu", "decoder_layer"):
        assert getattr(check, name).judge(getattr(model_parts, name)) is None, name


def test_the_weights_of_attention_mix_the_values_and_sum_to_one() -> None:
    q, k, v = check.numbers(0, 4, 6, 8), check.numbers(1, 2, 6, 8), check.numbers(2, 2, 6, 8)
    mix, weights = model_parts.attention(q, k, v, model_parts.window_mask(6, 2))
    assert np.allclose(weights.sum(-1), 1, atol=1e-6) and weights[:, 5, :4].max() == 0
    assert np.allclose(weights @ np.repeat(v, 2, axis=0), mix, atol=1e-6)


def test_the_parts_together_are_phi_tiny(phi_tiny) -> None:
    """Layer by layer in NumPy, as notebook 05 does it, against the whole model."""
    import torch

    from phicourse.model import load_checkpoint

    checkpoint = Checkpoint.open(phi_tiny)
    config, ids = checkpoint.config, [1, 300, 400, 500, 300]
    x = checkpoint.as_float32("model.embed_tokens.weight")[ids]
    rest = *model_parts.cos_sin(config, len(ids)), model_parts.window_mask(len(ids), config.sliding_window)
    for n in range(config.n_layers):
        prefix = f"model.layers.{n}."
        names = [name for name in checkpoint.tensors if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): checkpoint.as_float32(name) for name in names}
        x = model_parts.decoder_layer(x, weights, config, *rest)
    with torch.inference_mode():
        expected = load_checkpoint(checkpoint).model(torch.tensor([ids]))[0].numpy()
    normed = model_parts.rms_norm(x, checkpoint.as_float32("model.norm.weight"), config.norm_eps)
    assert np.abs(normed - expected).max() < 1e-5 * np.abs(expected).max()
