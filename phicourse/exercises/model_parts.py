"""The finished parts of `phicourse.model` as functions of NumPy arrays: what notebook 05 builds is held against them.

Needs PyTorch; import it where it is used.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from phicourse.checkpoint import PhiConfig
from phicourse.model.attention import Positions, attention_mask
from phicourse.model.layers import Phi3Layer
from phicourse.model.norms import RMSNorm
from phicourse.model.rope import cos_sin as torch_cos_sin
from phicourse.model.rope import rotate as torch_rotate

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Branch = Callable[[Array], Array]


def rms_norm(x: Array, weight: Array, eps: float = 1e-5) -> Array:
    """Normalize the last dimension: (..., size) to the same shape."""
    norm = RMSNorm(len(weight), eps)
    norm.load_state_dict({"weight": torch.from_numpy(weight)})
    return _array(norm(torch.from_numpy(x)))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn the pairs of x (heads, time, size) by angles whose cos and sin are (time, size / 2)."""
    return _array(torch_rotate(*(torch.from_numpy(part) for part in (x, cos, sin))))


def cos_sin(config: PhiConfig, n_tokens: int) -> tuple[Array, Array]:
    """Return cosines and sines of the positions 0 … n_tokens - 1, each (n_tokens, size / 2)."""
    cos, sin = torch_cos_sin(config, 0, n_tokens)
    return _array(cos), _array(sin)


def window_mask(n_tokens: int, window: int | None) -> Mask:
    """Return which keys (columns) each query (row) sees: (n_tokens, n_tokens)."""
    seen = attention_mask(n_tokens, n_tokens, window, torch.device("cpu"))
    return np.tri(n_tokens, dtype=bool) if seen is None else seen.numpy()


def attention(q: Array, k: Array, v: Array, seen: Mask) -> tuple[Array, Array]:
    """Attend from q (heads, time, size) to k and v (kv_heads, time, size): the mix, and the weights.

    The weights are the mix of the rows of an identity matrix.
    """
    queries, keys, values, mask = (torch.from_numpy(part)[None] for part in (q, k, v, seen))
    rows = torch.eye(k.shape[1]).expand(1, *k.shape[:2], -1)
    mix, weights = (
        scaled_dot_product_attention(queries, keys, each, attn_mask=mask, enable_gqa=True)[0]
        for each in (values, rows)
    )
    return _array(mix), _array(weights)


def swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    """Return down(silu(gate(x)) · up(x)) for x (..., hidden), gate_up (2 ffn, hidden), down (hidden, ffn)."""
    gate, up = linear(torch.from_numpy(x), torch.from_numpy(gate_up)).chunk(2, dim=-1)
    return _array(linear(silu(gate) * up, torch.from_numpy(down)))


def decoder_layer(
    x: Array, weights: Mapping[str, Array], config: PhiConfig, cos: Array, sin: Array, seen: Mask
) -> Array:
    """Run one layer on x (time, hidden); `weights` by their names behind `model.layers.N.`."""
    attend, feed = _branches(weights, config, cos, sin, seen)
    y = x + attend(x)
    return y + feed(y)


def wrong_layers(
    x: Array, weights: Mapping[str, Array], config: PhiConfig, cos: Array, sin: Array, seen: Mask
) -> dict[str, Array]:
    """Return what usual mistakes make of a layer, by their explanation."""
    attend, feed = _branches(weights, config, cos, sin, seen)
    swapped = {
        **weights,
        "input_layernorm.weight": weights["post_attention_layernorm.weight"],
        "post_attention_layernorm.weight": weights["input_layernorm.weight"],
    }
    attend_swapped, feed_swapped = _branches(swapped, config, cos, sin, seen)
    y = x + attend(x)
    swapped_y = x + attend_swapped(x)
    return {
        "the second addition is missing: y + what the MLP makes of y": feed(y),
        "x itself goes on: attention and MLP only add to it": feed(attend(x)),
        "the first addition is missing: x + what attention makes of x": attend(x) + feed(attend(x)),
        "the MLP reads what attention has changed; side by side they stand in Phi-2": y + feed(x),
        "the MLP adds to y, not to x: what attention found must stay": x + feed(y),
        "input_layernorm comes before attention, post_attention_layernorm before the MLP": swapped_y
        + feed_swapped(swapped_y),
        "only half of the layer: the MLP is missing": y,
    }


def _branches(
    weights: Mapping[str, Array], config: PhiConfig, cos: Array, sin: Array, seen: Mask
) -> tuple[Branch, Branch]:
    """Make a layer's two branches, each with its norm: attention, and the MLP."""
    with torch.device("meta"):
        layer = Phi3Layer(config, 0)
    layer.load_state_dict({name: torch.from_numpy(part) for name, part in weights.items()}, assign=True)
    at = Positions(torch.from_numpy(cos), torch.from_numpy(sin), torch.from_numpy(seen), None)

    def attend(x: Array) -> Array:
        normed = layer.input_layernorm(torch.from_numpy(x)[None])
        return _array(layer.self_attn(normed, at)[0])

    def feed(x: Array) -> Array:
        return _array(layer.mlp(layer.post_attention_layernorm(torch.from_numpy(x))))

    return attend, feed


def _array(x: Tensor) -> Array:
    array: Array = x.detach().numpy()
    return array
