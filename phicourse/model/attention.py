"""Grouped-query attention with rotary positions, a sliding window and a cache of keys and values."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from phicourse.checkpoint.config import PhiConfig
from phicourse.model.rope import rotate


class KVCache:
    """The keys and values of all earlier positions, so that each is computed once.

    Every layer has one pair of tensors (batch, kv_heads, length, head_size). The layers of one forward pass
    append in turn; the cache is as long as its first layer says.
    """

    def __init__(self) -> None:
        """An empty cache."""
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """The number of positions held."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions (batch, kv_heads, time, head_size) of a layer and return all of them."""
        if layer in self.layers:
            old_keys, old_values = self.layers[layer]
            keys, values = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        self.layers[layer] = keys, values
        return keys, values

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        cut = {layer: (k[:, :, :length], v[:, :, :length]) for layer, (k, v) in self.layers.items()}
        self.layers = cut if length > 0 else {}


class ReservedKVCache(KVCache):
    """Room for all positions, taken at once: nothing moves when the text grows, and nothing is taken later."""

    def __init__(
        self, config: PhiConfig, n_layers: int, n_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Room for `n_positions` of one text in the first `n_layers` layers (at least one)."""
        super().__init__()
        shape = (1, config.n_kv_heads, n_positions, config.head_size)
        for layer in range(n_layers):
            room = torch.empty(
                (2, *shape), dtype=dtype, device=device
            )  # the system gives pages when they are used
            self.layers[layer] = room[0], room[1]
        self._lengths = [0] * n_layers  # differ only where a forward pass was interrupted

    @property
    def length(self) -> int:
        """The number of positions that all layers hold."""
        return min(self._lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole room."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions (1, kv_heads, time, head_size) of a layer and return all of them."""
        start = self._lengths[layer]
        stop = start + keys.shape[2]
        all_keys, all_values = (room[:, :, :stop] for room in self.layers[layer])
        all_keys[:, :, start:], all_values[:, :, start:] = keys, values
        self._lengths[layer] = stop
        return all_keys, all_values

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        self._lengths = [min(held, length) for held in self._lengths]


def attention_mask(time: int, total: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees: bool (time, total), or None where plain causal attention says the same.

    A query sees itself and what came before; with a window, only the nearest `window` positions, itself
    among them. The queries are the last `time` of `total` positions.
    """
    if time == total and (window is None or total <= window):
        return None
    query = torch.arange(total - time, total, device=device)[:, None]  # (time, 1)
    key = torch.arange(total, device=device)[None, :]  # (1, total)
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


class Positions(NamedTuple):
    """Where the queries of a forward pass stand and what they see; the same for all layers.

    cos, sin  (time, rope_size / 2), see `rope.cos_sin`
    mask      bool (time, total), see `attention_mask`
    cache     what earlier passes have read
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    cache: KVCache | None


class Attention(nn.Module):
    """softmax(q·k / sqrt(head_size)) · v, each key and value head shared by a group of query heads.

    The classes below add the matrices that make queries, keys and values, and that mix the heads in the end.
    """

    def __init__(self, config: PhiConfig, layer: int) -> None:
        """Sizes of layer number `layer`."""
        super().__init__()
        self.head_size = config.head_size
        self.layer = layer
        self.grouped = config.n_heads != config.n_kv_heads
        self.query_rows = config.n_heads * config.head_size
        self.kv_rows = config.n_kv_heads * config.head_size

    def attend(self, q: Tensor, k: Tensor, v: Tensor, at: Positions) -> Tensor:
        """q (batch, time, query_rows), k and v (batch, time, kv_rows); returns (batch, time, query_rows)."""
        q, k, v = self.heads(q), self.heads(k), self.heads(v)
        q, k = rotate(q, at.cos, at.sin), rotate(k, at.cos, at.sin)  # (batch, heads, time, head_size)
        if at.cache is not None:
            k, v = at.cache.append(self.layer, k, v)  # (batch, kv_heads, total, head_size)
        seen = scaled_dot_product_attention(
            q, k, v, attn_mask=at.mask, is_causal=at.mask is None, enable_gqa=self.grouped
        )  # (batch, heads, time, head_size)
        return seen.transpose(1, 2).flatten(2)

    def heads(self, x: Tensor) -> Tensor:
        """(batch, time, heads · head_size) to (batch, heads, time, head_size)."""
        return x.view(*x.shape[:-1], -1, self.head_size).transpose(1, 2)


class FusedAttention(Attention):
    """Phi-3's: one matrix makes queries, keys and values, in this order."""

    def __init__(self, config: PhiConfig, layer: int) -> None:
        """Weights of layer number `layer`."""
        super().__init__(config, layer)
        self.rows = [self.query_rows, self.kv_rows, self.kv_rows]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.rows), bias=False)
        self.o_proj = nn.Linear(self.query_rows, config.hidden_size, bias=False)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x (batch, time, hidden); returns the same shape."""
        q, k, v = self.qkv_proj(x).split(self.rows, dim=-1)
        out: Tensor = self.o_proj(self.attend(q, k, v, at))
        return out


class SeparateAttention(Attention):
    """Phi-2's and Phi-3.5-MoE's: a matrix each for queries, keys and values, and a bias after every matrix."""

    def __init__(self, config: PhiConfig, layer: int, output: str) -> None:
        """Weights of layer number `layer`; `output` is the name of the last matrix, "dense" or "o_proj"."""
        super().__init__(config, layer)
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, self.query_rows, bias)
        self.k_proj = nn.Linear(hidden, self.kv_rows, bias)
        self.v_proj = nn.Linear(hidden, self.kv_rows, bias)
        self.output = output
        self.add_module(output, nn.Linear(self.query_rows, hidden, bias))

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x (batch, time, hidden); returns the same shape."""
        seen = self.attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), at)
        out: Tensor = self.get_submodule(self.output)(seen)
        return out
