"""SwiGLU: a gate, itself passed through SiLU, decides how much of each hidden feature goes on."""

from torch import Tensor, nn
from torch.nn.functional import silu

from phicourse.checkpoint.config import PhiConfig


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x)); one matrix makes gate and up, in this order."""

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
