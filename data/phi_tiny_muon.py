"""Muon: gradient descent whose every step turns a matrix by the same amount in all directions.

The momentum G = U S Vᵀ of a weight matrix is replaced by the nearby U Vᵀ, found without a decomposition by a few
Newton-Schulz steps (K. Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024).
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

# The quintic a·x + b·x³ + c·x⁵, applied to singular values in [0, 1] again and again, sends them near 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Set all singular values near 1. matrices (n, rows, columns) with rows >= columns."""
    a, b, c = QUINTIC
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x.mT @ x  # (n, columns, columns)
        x = a * x + x @ (b * square + c * square @ square)
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for fused weight matrices: each is cut into the `parts` that it fuses before it is orthogonalized."""

    def __init__(self, parameters: list[tuple[nn.Parameter, int]], lr: float, decay: float) -> None:
        """`parameters`: each matrix with its number of parts along the rows; `decay` is weight decay."""
        groups = [{"params": [p for p, n in parameters if n == parts], "parts": parts} for parts in (1, 2, 3)]
        super().__init__([g for g in groups if g["params"]], {"lr": lr, "decay": decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix; those of one shape together."""
        jobs: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float, float]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                direction = self.direction(parameter, group["momentum"])
                for weight, part in zip(
                    parameter.chunk(group["parts"]), direction.chunk(group["parts"]), strict=True
                ):
                    tall = (part, weight) if part.shape[0] >= part.shape[1] else (part.T, weight.T)
                    jobs[tuple(tall[0].shape)].append((*tall, group["lr"], group["decay"]))
        for (rows, columns), job in jobs.items():
            steps = orthogonalize(torch.stack([part for part, *_ in job])) * (rows / columns) ** 0.5
            for step, (_, weight, lr, decay) in zip(steps, job, strict=True):
                weight.mul_(1 - lr * decay).sub_(step, alpha=lr)

    def direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's momentum of the gradient."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["average"], momentum)
