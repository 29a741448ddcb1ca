"""The whole Phi-3 model: token ids in, logits of the next token out."""

from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from phicourse.checkpoint.config import PhiConfig
from phicourse.errors import ModelError
from phicourse.model.attention import Attention, KVCache, attention_mask
from phicourse.model.mlp import MLP
from phicourse.model.norms import RMSNorm
from phicourse.model.rope import cos_sin


class Layer(nn.Module):
    """One transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: PhiConfig, layer: int, dropout: float = 0.0) -> None:
        """Weights of layer number `layer`; `dropout` applies to both branches, in training only."""
        super().__init__()
        self.dropout = dropout
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """x (batch, time, hidden); returns the same shape."""
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout on what a branch adds: nothing unless training with a rate above 0."""
        return dropout(x, self.dropout) if self.training and self.dropout else x


class Decoder(nn.Module):
    """Embedding, layers and last norm: everything but the output head."""

    def __init__(self, config: PhiConfig, dropout: float = 0.0) -> None:
        """Weights named as in a Hugging Face checkpoint below its prefix `model.`."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i, dropout) for i in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Ids (batch, time); returns hidden states (batch, time, hidden)."""
        start = cache.length if cache is not None else 0
        total = start + ids.shape[1]
        x: Tensor = self.embed_tokens(ids)  # (batch, time, hidden)
        cos, sin = (part.to(x) for part in cos_sin(self.config, start, total))
        mask = attention_mask(ids.shape[1], total, self.config.sliding_window, x.device)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        out: Tensor = self.norm(x)
        return out


class Phi(nn.Module):
    """A Phi-3 language model whose parameters have the names of its Hugging Face checkpoint."""

    def __init__(self, config: PhiConfig, dropout: float = 0.0) -> None:
        """An untrained model. `dropout` is for training and costs nothing afterwards."""
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The logits of every next token.

        ids      (batch, time) int64, the positions that follow those in `cache`, which grows by them
        returns  (batch, time, vocab) float32
        raises   ModelError where the text would be longer than the model's context
        """
        total = ids.shape[1] + (cache.length if cache is not None else 0)
        if total > self.config.context_length:
            raise ModelError(f"{total} tokens do not fit into a context of {self.config.context_length}")
        head = self.model.embed_tokens if self.config.tie_embeddings else self.lm_head
        return linear(self.model(ids, cache), head.weight).float()
