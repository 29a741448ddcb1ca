"""Who runs what where the first layers of a model are in PyTorch on a GPU, and how many bytes each side takes.

PyTorch has the first layers, for a GPU alone also what stands behind the last one. The engine has the rest. Rows of
the embedding are looked up in the file, on whichever side: a token needs one of them.
"""

import re
from dataclasses import dataclass
from typing import Self

from phicourse.checkpoint import PhiConfig
from phicourse.generate.cache_size import BATCH
from phicourse.gguf import GGUFFile, TensorInfo

MOST_SCORES = 1 << 25
"""Attention scores that PyTorch may hold at a time: some of its kernels write all of them down."""

_EMBEDDING = "token_embd.weight"
_COMPUTED = ("rope_factors_short.weight", "rope_factors_long.weight")


@dataclass(frozen=True)
class Split:
    """The layers that PyTorch runs, and whether it runs the last norm and the output head, too."""

    config: PhiConfig
    n_layers: int
    has_head: bool

    @classmethod
    def of(cls, config: PhiConfig, gpu_layers: int) -> Self:
        """Read a number of layers as llama.cpp does: more than there are, or less than 0, means the head as well."""
        is_all = gpu_layers < 0 or gpu_layers > config.n_layers
        return cls(config, config.n_layers if is_all else gpu_layers, is_all)

    @property
    def n_engine_layers(self) -> int:
        """How many layers the engine runs."""
        return self.config.n_layers - self.n_layers

    def __str__(self) -> str:
        return f"{self.n_layers} of {self.config.n_layers} layers{' and the output head' * self.has_head}"

    def in_torch(self, file: GGUFFile) -> list[TensorInfo]:
        """The tensors that PyTorch keeps, dequantized."""
        return [tensor for tensor in file.tensors.values() if self._is_in_torch(tensor.name)]

    def in_engine(self, file: GGUFFile) -> list[TensorInfo]:
        """The tensors that the engine multiplies with, as they lie in the file."""
        if self.has_head:
            return []
        needs_embedding = self.n_layers == 0 or self.config.tie_embeddings
        return [
            tensor
            for tensor in file.tensors.values()
            if not self._is_in_torch(tensor.name)
            and tensor.name not in _COMPUTED
            and (tensor.name != _EMBEDDING or needs_embedding)
        ]

    def _is_in_torch(self, name: str) -> bool:
        if found := re.match(r"blk\.(\d+)\.", name):
            return int(found[1]) < self.n_layers
        if not self.has_head or name in _COMPUTED:
            return False
        return name != _EMBEDDING or self.config.tie_embeddings


def torch_weight_bytes(file: GGUFFile, split: Split, number_bytes: int) -> int:
    """Bytes of PyTorch's weights: matrices of numbers of so many bytes, vectors as float32."""
    return sum(
        tensor.n_weights * (number_bytes if len(tensor.shape) > 1 else 4) for tensor in split.in_torch(file)
    )


def torch_cache_bytes(split: Split, n_ctx: int, number_bytes: int) -> int:
    """Bytes of PyTorch's keys and values of n_ctx positions."""
    config = split.config
    return 2 * split.n_layers * config.n_kv_heads * n_ctx * config.head_size * number_bytes


def torch_batch(config: PhiConfig, n_ctx: int) -> int:
    """How many tokens go through PyTorch's layers together."""
    return max(1, min(BATCH, n_ctx, MOST_SCORES // (config.n_heads * n_ctx)))


def torch_work_bytes(split: Split, n_ctx: int, number_bytes: int) -> int:
    """Bytes that PyTorch needs for a batch, at most: what lives at the same time in a layer.

    Counted as if attention wrote all scores down three times (the product, with its mask, the softmax), and keys and
    values once for each query head: its slowest kernel does. The stream between the layers is float32.
    """
    config, tokens = split.config, torch_batch(split.config, n_ctx)
    query, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    stream = tokens * config.hidden_size * (3 * 4 + number_bytes)
    projected = tokens * (query + 2 * kv) * number_bytes
    rotated = tokens * (query + kv) * 3 * 4
    scores = 3 * tokens * config.n_heads * n_ctx * number_bytes
    shared = 2 * config.n_heads * config.head_size * n_ctx * number_bytes
    attention = projected + rotated + scores + shared + 2 * tokens * query * number_bytes
    feed_forward = tokens * (4 * config.ffn_size + config.hidden_size) * number_bytes
    logits = tokens * config.vocab_size * (number_bytes + 4) if split.has_head else 0
    return stream + max(attention, feed_forward, logits)
