"""RMSNorm: a vector divided by its own root mean square, then scaled by learned weights."""

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
