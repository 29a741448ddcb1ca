"""The feed-forward part of a layer: every position by itself is widened, bent and narrowed again."""

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from phicourse.checkpoint.config import PhiConfig


class MLP(nn.Module):
    """Phi-3's, SwiGLU: down(silu(gate(x)) · up(x)); one matrix makes gate and up, in this order.

    The gate, itself passed through SiLU, decides how much of each hidden feature goes on.
    """

    def __init__(self, config: PhiConfig) -> None:
        """Weights for `config.hidden_size` in and out and `config.ffn_size` between."""
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., hidden); returns the same shape."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # (..., ffn) each
        out: Tensor = self.down_proj(silu(gate) * up)  # (..., hidden)
        return out


class PlainMLP(nn.Module):
    """Phi-2's, without a gate: fc2(gelu(fc1(x))), with biases and the tanh form of GELU ("gelu_new")."""

    def __init__(self, config: PhiConfig) -> None:
        """Weights for `config.hidden_size` in and out and `config.ffn_size` between."""
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_size)
        self.fc2 = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., hidden); returns the same shape."""
        out: Tensor = self.fc2(gelu(self.fc1(x), approximate="tanh"))  # (..., ffn) to (..., hidden)
        return out
