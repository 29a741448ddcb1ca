"""The two norms of the Phis, which keep a vector's size in bounds from layer to layer.

Phi-1, Phi-1.5, Phi-2 and Phi-3.5-MoE have LayerNorms; the Phi-3 models leave out the mean and the bias.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · weight, over the last dimension; the mean in float32."""

    def __init__(self, size: int, eps: float) -> None:
        """Weights of ones for vectors of `size` entries."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., size) of any float type; returns the same shape and type."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)  # (..., 1)
        return self.weight * (wide * scale).to(x.dtype)


class LayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias, over the last dimension; both in float32."""

    def __init__(self, size: int, eps: float) -> None:
        """Weights of ones and a bias of zeros for vectors of `size` entries."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., size) of any float type; returns the same shape and type."""
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)  # (..., size)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)  # (..., 1)
        return self.weight * (centred * scale).to(x.dtype) + self.bias
