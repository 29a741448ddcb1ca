"""A whole Phi: token ids in, logits of the next token out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from phicourse.checkpoint.config import PhiConfig
from phicourse.errors import ModelError
from phicourse.model.attention import KVCache, Positions, attention_mask
from phicourse.model.layers import LAYERS
from phicourse.model.norms import LayerNorm, RMSNorm
from phicourse.model.rope import cos_sin


class Decoder(nn.Module):
    """Embedding, layers and last norm: everything but the output head."""

    def __init__(self, config: PhiConfig, dropout: float = 0.0) -> None:
        """Weights named as in a Hugging Face checkpoint below its prefix `model.`."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layer = LAYERS[config.architecture]
        self.layers = nn.ModuleList(layer(config, i, dropout) for i in range(config.n_layers))
        if config.architecture == "phi2":
            self.final_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        else:
            norm = LayerNorm if config.architecture == "phimoe" else RMSNorm
            self.norm = norm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Ids (batch, time); returns hidden states (batch, time, hidden)."""
        return self.last_norm(self.run_layers(self.embed_tokens(ids), cache))

    def run_layers(self, x: Tensor, cache: KVCache | None = None, text_length: int | None = None) -> Tensor:
        """Take embeddings (batch, time, hidden) through the layers; returns the same shape.

        text_length   of the whole text, where these are not its last positions: it chooses LongRoPE's factors
        """
        start = cache.length if cache is not None else 0
        stop = start + x.shape[1]
        cos, sin = (part.to(x) for part in cos_sin(self.config, start, stop, text_length))
        mask = attention_mask(x.shape[1], stop, self.config.sliding_window, x.device)
        for layer in self.layers:
            x = layer(x, Positions(cos, sin, mask, cache))
        return x

    def last_norm(self, x: Tensor) -> Tensor:
        """The norm before the output head: (batch, time, hidden), the same shape."""
        norm = self.final_layernorm if self.config.architecture == "phi2" else self.norm
        out: Tensor = norm(x)
        return out


class Head(nn.Module):
    """The output matrix, unless it is the embedding, and the output bias, where there is one."""

    def __init__(self, config: PhiConfig) -> None:
        """Weights and bias as the config says: maybe none at all."""
        super().__init__()
        shape, bound = (config.vocab_size, config.hidden_size), config.hidden_size**-0.5
        weight = None if config.tie_embeddings else torch.empty(shape).uniform_(-bound, bound)
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_bias else None


class Phi(nn.Module):
    """A Phi language model whose parameters have the names of its Hugging Face checkpoint."""

    def __init__(self, config: PhiConfig, dropout: float = 0.0) -> None:
        """An untrained model. `dropout` is for training and costs nothing afterwards."""
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        self.lm_head = Head(config)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The logits of every next token.

        ids      (batch, time) int64, the positions that follow those in `cache`, which grows by them
        returns  (batch, time, vocab) float32
        raises   ModelError where the text would be longer than the model's context
        """
        total = ids.shape[1] + (cache.length if cache is not None else 0)
        if total > self.config.context_length:
            raise ModelError(f"{total} tokens do not fit into a context of {self.config.context_length}")
        return self.logits(self.model(ids, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head: hidden states (batch, time, hidden) behind the last norm to (batch, time, vocab) float32."""
        head = self.lm_head
        matrix = self.model.embed_tokens.weight if head.weight is None else head.weight
        return linear(hidden, matrix, head.bias).float()
