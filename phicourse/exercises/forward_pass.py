"""The checks of notebook 05, the Phi forward pass: NumPy functions, held against the parts of `phicourse.model`."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import PhiConfig
from phicourse.checkpoint.config import parse_config
from phicourse.exercises.compare import compare_arrays, compare_close, recognise
from phicourse.exercises.exercise import Answer, Mistake, exercise

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

TOLERANCE = 1e-5  # of the largest number: float32 sums of some dozens of products, added in another order
_ORIGINAL = 6  # tokens that the short factors of the small model serve
_SMALL = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 24,
    "original_max_position_embeddings": _ORIGINAL,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.25, 1.5],
        "long_factor": [1.0, 2.0, 3.5, 4.0],
    },
}


def small_config() -> PhiConfig:
    """Return a model of one layer, with fewer key heads than query heads."""
    return parse_config(_SMALL)


def finished() -> ModuleType:
    """Return the finished parts; PyTorch is not loaded before a check needs it."""
    from phicourse.exercises import model_parts

    return model_parts


def numbers(seed: int, *shape: int) -> Array:
    """Draw normally distributed float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@exercise("05.1", "RMSNorm", difficulty=1, minutes=5, core=True)
def rms_norm(answer: Answer) -> Mistake | None:
    """Hold `rms_norm(x, weight, eps)` against ours on ordinary vectors, and on ones so small that eps counts."""
    weight, eps = np.linspace(0.5, 2, 8, dtype=np.float32), 1e-5
    for where, x in (
        ("three vectors", numbers(1, 3, 8) + 1),
        ("vectors of small numbers", numbers(2, 2, 2, 8) / np.float32(300)),
    ):
        got = answer(x.copy(), weight.copy(), eps)
        likely = recognise(got, _wrong_norms(x, weight, eps), TOLERANCE)
        mistake = compare_close(where, finished().rms_norm(x, weight, eps), got, TOLERANCE, likely)
        if mistake is not None:
            return mistake
    return None


def _wrong_norms(x: Array, weight: Array, eps: float) -> dict[str, Array]:
    squares = np.square(x)
    mean = squares.mean(-1, keepdims=True)
    centred = x - x.mean(-1, keepdims=True)
    root = np.sqrt(mean + eps)
    return {
        "no mean is subtracted: that is LayerNorm, which Phi-2 has": centred
        / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
        * weight,
        "eps is added to the mean of the squares, under the root": x / (np.sqrt(mean) + eps) * weight,
        "eps is missing: a vector of zeros would be divided by zero": x / np.sqrt(mean) * weight,
        "the mean of the squares, not their sum": x / np.sqrt(squares.sum(-1, keepdims=True) + eps) * weight,
        "the mean goes over the last dimension only: axis=-1, keepdims=True": x
        / np.sqrt(squares.mean() + eps)
        * weight,
        "the weights are missing": x / root,
        "divide by the root of the mean, not by the mean": x / (mean + eps) * weight,
    }


@exercise("05.2", "Turn the pairs", difficulty=2, minutes=10, core=True)
def rotate(answer: Answer) -> Mistake | None:
    """Hold `rotate(x, cos, sin)` against ours."""
    x, angles = numbers(3, 2, 5, 8), np.abs(numbers(4, 5, 4))
    cos, sin = np.cos(angles), np.sin(angles)
    got = answer(x.copy(), cos.copy(), sin.copy())
    likely = recognise(got, _wrong_turns(x, cos, sin), TOLERANCE)
    return compare_close("the turned heads", finished().rotate(x, cos, sin), got, TOLERANCE, likely)


def _wrong_turns(x: Array, cos: Array, sin: Array) -> dict[str, Array]:
    first, second = np.split(x, 2, axis=-1)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = even * cos - odd * sin, odd * cos + even * sin
    backwards = first * cos + second * sin, second * cos - first * sin
    one_sign = first * cos - second * sin, second * cos - first * sin
    neighbours = np.stack(turned, axis=-1).reshape(x.shape)
    return {
        "neighbours were paired; in Phi dimension i goes with i + size / 2": neighbours,
        "neighbours were paired, and not even put back in their places": np.concatenate(turned, -1),
        "that turns backwards: the first half loses second · sin": np.concatenate(backwards, -1),
        "the second half gains first · sin: plus, not minus": np.concatenate(one_sign, -1),
    }


@exercise("05.3", "LongRoPE", difficulty=3, minutes=15)
def cos_sin(answer: Answer) -> Mistake | None:
    """Hold `cos_sin(config, n_tokens)` against ours, just below and just above the switch of factors."""
    config = small_config()
    for n_tokens in (_ORIGINAL, _ORIGINAL + 1):
        got = answer(config, n_tokens)
        if not isinstance(got, tuple) or len(got) != 2:
            return Mistake("what comes back", "a pair: cos, sin", repr(got), "return cos, sin")
        wrong = _wrong_angles(config, n_tokens)
        for name, expected, mine in zip(
            ("cos", "sin"), finished().cos_sin(config, n_tokens), got, strict=True
        ):
            function = np.cos if name == "cos" else np.sin
            images = {text: function(angles) * factor for text, (angles, factor) in wrong.items()}
            likely = recognise(mine, images, TOLERANCE)
            where = f"{name} of {n_tokens} tokens, the original context being {_ORIGINAL}"
            mistake = compare_close(where, expected, mine, TOLERANCE, likely)
            if mistake is not None:
                return mistake
    return None


def _wrong_angles(config: PhiConfig, n_tokens: int) -> dict[str, tuple[NDArray[np.float64], float]]:
    """Return the angles and the factor that usual mistakes give, by their explanation."""
    pair, positions = np.arange(config.head_size // 2), np.arange(n_tokens)
    speed = config.rope_theta ** (-2 * pair / config.head_size)
    short, long = np.array(config.short_factor), np.array(config.long_factor)
    right, other = (long, short) if n_tokens > config.original_context_length else (short, long)
    stretch = config.attention_factor
    return {
        "the long factors begin one token later: n_tokens > original_context_length": (
            np.outer(positions, speed / other),
            stretch,
        ),
        "the factors divide the speeds: a longer text needs slower pairs": (
            np.outer(positions, speed * right),
            stretch,
        ),
        "attention_factor is missing: it multiplies both cos and sin": (
            np.outer(positions, speed / right),
            1.0,
        ),
        "the factors are missing: that is plain RoPE": (np.outer(positions, speed), stretch),
        "positions count from 0": (np.outer(positions + 1, speed / right), stretch),
        "pair i turns by theta^(-2i/size): the exponent counts dimensions, not pairs": (
            np.outer(positions, config.rope_theta ** (-pair / config.head_size) / right),
            stretch,
        ),
    }


@exercise("05.4", "Who sees whom", difficulty=1, minutes=5)
def window_mask(answer: Answer) -> Mistake | None:
    """Hold `window_mask(n_tokens, window)` against ours, with and without a window."""
    for n_tokens, window in ((5, None), (6, 3), (4, 1), (4, 9)):
        expected = finished().window_mask(n_tokens, window)
        got = answer(n_tokens, window)
        likely = recognise(got, _wrong_masks(n_tokens, window))
        mistake = compare_arrays(f"{n_tokens} tokens, window {window}", expected, got, likely)
        if mistake is not None:
            return mistake
    return None


def _wrong_masks(n_tokens: int, window: int | None) -> dict[str, Mask]:
    back = np.subtract.outer(np.arange(n_tokens), np.arange(n_tokens))  # query minus key
    width = n_tokens if window is None else window
    return {
        "the window counts the token itself: query - key < window, not <=": (back >= 0) & (back <= width),
        "a token sees itself: key <= query": (back > 0) & (back < width),
        "the window is missing": back >= 0,
        "no token sees what comes after it: key <= query": np.abs(back) < width,
        "rows are queries, columns are keys": (back <= 0) & (-back < width),
        "True stands for what is seen": ~((back >= 0) & (back < width)),
    }


@exercise("05.5", "Attention", difficulty=3, minutes=15, core=True)
def attention(answer: Answer) -> Mistake | None:
    """Hold `attention(q, k, v, seen) -> (mix, weights)` against ours: plain, grouped, and with large numbers."""
    seen = finished().window_mask(5, 3)
    for where, n_kv_heads, scale in (
        ("2 heads", 2, 1),
        ("4 heads in 2 groups", 2, 1),
        ("large scores", 2, 40),
    ):
        n_heads = 4 if "groups" in where else 2
        q, k, v = (
            numbers(5, n_heads, 5, 4) * scale,
            numbers(6, n_kv_heads, 5, 4),
            numbers(7, n_kv_heads, 5, 4),
        )
        with np.errstate(all="ignore"):
            got = answer(q.copy(), k.copy(), v.copy(), seen.copy())
        if not isinstance(got, tuple) or len(got) != 2:
            return Mistake(
                "what comes back", "a pair: mix, weights", type(got).__name__, "return mix, weights"
            )
        mix, weights = finished().attention(q, k, v, seen)
        likely = _likely_attention(q, k, seen, got[1])
        mistake = compare_close(f"{where}: weights", weights, got[1], TOLERANCE, likely)
        mistake = mistake or compare_close(
            f"{where}: mix", mix, got[0], TOLERANCE, "mix = weights @ v, with the heads of v as those of k"
        )
        if mistake is not None:
            return mistake
    return None


def _likely_attention(q: Array, k: Array, seen: Mask, got: Any) -> str:
    """Name the usual ways to be wrong."""
    if isinstance(got, np.ndarray) and not np.isfinite(got).all():
        return "exp of a large score is infinite: subtract the largest score of each row first"
    group, size = len(q) // len(k), q.shape[-1]
    scores = q @ np.repeat(k, group, axis=0).swapaxes(1, 2)
    tiled = q @ np.tile(k, (group, 1, 1)).swapaxes(1, 2)
    root = np.sqrt(size)
    unmasked = _softmax(scores / root) * seen
    wrong = {
        "the scores are divided by the root of head_size": _softmax(np.where(seen, scores, -np.inf)),
        "the root of head_size, not head_size": _softmax(np.where(seen, scores / size, -np.inf)),
        "neighbouring queries share a key: np.repeat, not np.tile": _softmax(
            np.where(seen, tiled / root, -np.inf)
        ),
        "mask before the softmax, or the rows do not sum to 1": unmasked,
        "the mask is missing": _softmax(scores / root),
        "softmax over the keys, the last axis": _softmax(
            np.where(seen, scores / root, -np.inf).swapaxes(1, 2)
        ).swapaxes(1, 2),
        "what is not seen gets minus infinity; 0 is a score like others": _softmax(scores / root * seen),
    }
    return recognise(got, wrong, TOLERANCE)


def _softmax(scores: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        total: NDArray[Any] = weights / weights.sum(axis=-1, keepdims=True)
    return total


@exercise("05.6", "SwiGLU", difficulty=1, minutes=5)
def swiglu(answer: Answer) -> Mistake | None:
    """Hold `swiglu(x, gate_up, down)` against ours."""
    x, gate_up, down = numbers(8, 3, 6), numbers(9, 10, 6), numbers(10, 6, 5)
    got = answer(x.copy(), gate_up.copy(), down.copy())
    likely = recognise(got, _wrong_mlps(x, gate_up, down), TOLERANCE)
    return compare_close("three vectors", finished().swiglu(x, gate_up, down), got, TOLERANCE, likely)


def _wrong_mlps(x: Array, gate_up: Array, down: Array) -> dict[str, Array]:
    gate, up = np.split(x @ gate_up.T, 2, axis=-1)
    even, odd = (x @ gate_up.T)[..., 0::2], (x @ gate_up.T)[..., 1::2]
    return {
        "the gate is the first half of the rows, up the second": _silu(up) * gate @ down.T,
        "silu(z) is z · sigmoid(z)": _silu(gate) / gate * up @ down.T,
        "up is not passed through silu": _silu(gate) * _silu(up) @ down.T,
        "silu comes before the product: silu(gate) · up": _silu(gate * up) @ down.T,
        "the halves lie one behind the other, not in turns": _silu(even) * odd @ down.T,
        "up is missing": _silu(gate) @ down.T,
    }


def _silu(z: Array) -> Array:
    product: Array = z / (1 + np.exp(-z))
    return product


@exercise("05.7", "One layer", difficulty=3, minutes=15)
def decoder_layer(answer: Answer) -> Mistake | None:
    """Hold `decoder_layer(x, weights, config, cos, sin, seen)` against ours, with grouped heads."""
    config = small_config()
    weights = layer_weights(config)
    x = numbers(11, 5, config.hidden_size)
    cos, sin = finished().cos_sin(config, len(x))
    rest = weights, config, cos, sin, finished().window_mask(len(x), None)
    got = answer(x.copy(), *rest)
    likely = recognise(got, finished().wrong_layers(x, *rest), TOLERANCE)
    return compare_close("the layer", finished().decoder_layer(x, *rest), got, TOLERANCE, likely)


def layer_weights(config: PhiConfig) -> dict[str, Array]:
    """Draw the weights of a layer, by their names behind `model.layers.N.`."""
    rows = (config.n_heads + 2 * config.n_kv_heads) * config.head_size
    hidden, ffn = config.hidden_size, config.ffn_size
    shapes = {
        "self_attn.qkv_proj.weight": (rows, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_up_proj.weight": (2 * ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    matrices = {
        name: numbers(20 + i, *shape) / np.float32(4) for i, (name, shape) in enumerate(shapes.items())
    }
    return {
        "input_layernorm.weight": np.linspace(0.5, 1.5, hidden, dtype=np.float32),
        "post_attention_layernorm.weight": np.linspace(2, 0.5, hidden, dtype=np.float32),
        **matrices,
    }
