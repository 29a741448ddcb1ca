"""A mixture of experts: many feed-forward parts in a layer, of which a router picks two for each token.

The router is Phi-3.5-MoE's own, "sparsemixer" (GRIN MoE, arXiv 2409.12136), without its noise in training.
llama.cpp takes another one for it, the softmax of all scores, and computes another model.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from phicourse.checkpoint.config import PhiConfig


def pick_experts(scores: Tensor, n_used: int, jitter: float) -> tuple[Tensor, Tensor]:
    """Which experts a token goes to, and how much the answer of each counts.

    The best expert comes first, then the best of the others, and so on. An answer's weight is the softmax of
    its expert's score among the experts that are still to be had and nearly as good: the distance, as a part
    of the score, is at most 2 · jitter. Mostly there are none, and the weight is 1; weights add up to more
    than 1, and are not made smaller.

    scores   (tokens, n_experts)
    returns  weights and numbers of the experts, (tokens, n_used) each, in the order of the picks
    """
    weights, experts = [], []
    left = scores  # -inf for those that are picked already
    for _ in range(n_used):
        best, expert = left.max(dim=-1, keepdim=True)  # (tokens, 1)
        size = torch.maximum(scores.abs(), best)
        is_far = (best - scores) / size > 2 * jitter  # (tokens, n_experts)
        weights.append(left.masked_fill(is_far, -torch.inf).softmax(dim=-1).gather(-1, expert))
        experts.append(expert)
        left = left.scatter(-1, expert, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(experts, dim=-1)


class Expert(nn.Module):
    """One expert, SwiGLU: w2(silu(w1(x)) · w3(x))."""

    def __init__(self, config: PhiConfig) -> None:
        """Weights for `config.hidden_size` in and out and `config.ffn_size` between."""
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.w2 = nn.Linear(config.ffn_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (tokens, hidden); returns the same shape."""
        out: Tensor = self.w2(silu(self.w1(x)) * self.w3(x))
        return out


class MixtureOfExperts(nn.Module):
    """The router's scores pick the experts of each token; their answers are weighted and added up."""

    def __init__(self, config: PhiConfig) -> None:
        """Weights of `config.n_experts` experts and of the router, which is called `gate`."""
        super().__init__()
        self.n_used = config.n_experts_used
        self.jitter = config.router_jitter
        self.gate = nn.Linear(config.hidden_size, config.n_experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_experts))

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, time, hidden); returns the same shape. Each expert reads all of its tokens at once."""
        tokens = x.flatten(0, -2)  # (tokens, hidden)
        weights, picked = pick_experts(self.gate(tokens), self.n_used, self.jitter)  # (tokens, n_used) each
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, pick = torch.where(picked == number)  # (n,) each
            if len(token):
                answers = expert(tokens[token]) * weights[token, pick, None]  # (n, hidden)
                out.index_add_(0, token, answers.to(out))
        return out.view_as(x)
