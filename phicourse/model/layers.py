"""One transformer block of each architecture: how norms, attention and the feed-forward part hang together."""

from torch import Tensor, nn
from torch.nn.functional import dropout

from phicourse.checkpoint.config import PhiConfig
from phicourse.model.attention import FusedAttention, Positions, SeparateAttention
from phicourse.model.mlp import MLP, PlainMLP
from phicourse.model.moe import MixtureOfExperts
from phicourse.model.norms import LayerNorm, RMSNorm


class Layer(nn.Module):
    """What the layers of all architectures have."""

    def __init__(self, dropout: float) -> None:
        """`dropout` applies to what both branches add, in training only."""
        super().__init__()
        self.dropout = dropout

    def drop(self, x: Tensor) -> Tensor:
        """Dropout on what a branch adds: nothing unless training with a rate above 0."""
        return dropout(x, self.dropout) if self.training and self.dropout else x


class Phi2Layer(Layer):
    """Phi-1, Phi-1.5 and Phi-2: both branches read the same norm, x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, config: PhiConfig, layer: int, dropout: float = 0.0) -> None:
        """Weights of layer number `layer`."""
        super().__init__(dropout)
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = SeparateAttention(config, layer, output="dense")
        self.mlp = PlainMLP(config)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x (batch, time, hidden); returns the same shape."""
        normed = self.input_layernorm(x)
        return x + self.drop(self.self_attn(normed, at)) + self.drop(self.mlp(normed))


class Phi3Layer(Layer):
    """Phi-3 and Phi-4: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: PhiConfig, layer: int, dropout: float = 0.0) -> None:
        """Weights of layer number `layer`."""
        super().__init__(dropout)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = FusedAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x (batch, time, hidden); returns the same shape."""
        x = x + self.drop(self.self_attn(self.input_layernorm(x), at))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class PhiMoELayer(Layer):
    """Phi-3.5-MoE: as Phi-3, with LayerNorms, and with a mixture of experts in place of the MLP."""

    def __init__(self, config: PhiConfig, layer: int, dropout: float = 0.0) -> None:
        """Weights of layer number `layer`."""
        super().__init__(dropout)
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = SeparateAttention(config, layer, output="o_proj")
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.block_sparse_moe = MixtureOfExperts(config)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x (batch, time, hidden); returns the same shape."""
        x = x + self.drop(self.self_attn(self.input_layernorm(x), at))
        return x + self.drop(self.block_sparse_moe(self.post_attention_layernorm(x)))


LAYERS = {"phi2": Phi2Layer, "phi3": Phi3Layer, "phimoe": PhiMoELayer}
