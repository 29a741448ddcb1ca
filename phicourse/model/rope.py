"""Rotary position embedding: pairs of a head's dimensions turn by angles that grow with the position.

LongRoPE, which makes a 4k model a 128k one, divides every pair's speed by a factor of its own. There are two
lists of factors: short ones for texts within the original context, long ones beyond it.
"""

import torch
from torch import Tensor

from phicourse.checkpoint.config import PhiConfig


def is_long(config: PhiConfig, total: int) -> bool:
    """Whether a text of `total` tokens, the cached part included, has outgrown the original context.

    transformers asks anew in every forward pass, and so do we. Keys already in a cache stay as they are.
    """
    return config.long_factor is not None and total > config.original_context_length


def frequencies(config: PhiConfig, total: int) -> Tensor:
    """How far each pair of dimensions turns from one position to the next, in radians: (rope_size / 2,)."""
    pair = torch.arange(0, config.rope_size, 2, dtype=torch.float32)  # (rope_size / 2,)
    speed = 1.0 / config.rope_theta ** (pair / config.rope_size)
    factors = config.long_factor if is_long(config, total) else config.short_factor
    return speed if factors is None else speed / torch.tensor(factors)


def magnitude(config: PhiConfig, total: int) -> float:
    """How much longer queries and keys get, to keep attention sharp: 1 without LongRoPE.

    Phi-3 has one number, which follows from its two context lengths; Phi-3.5-MoE has two of its own.
    """
    own = config.long_mscale if is_long(config, total) else config.short_mscale
    return config.attention_factor if own is None else own


def cos_sin(config: PhiConfig, start: int, stop: int, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the positions start … stop - 1, times the magnitude: (time, rope_size / 2) float32.

    total   the length of the text, which chooses the factors; None: it ends here
    """
    total = stop if total is None else total
    positions = torch.arange(start, stop, dtype=torch.float32)
    angles = torch.outer(positions, frequencies(config, total))  # (time, rope_size / 2)
    return angles.cos() * magnitude(config, total), angles.sin() * magnitude(config, total)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first dimensions of every head; dimension i pairs with i + rope_size / 2 ("NEOX" order).

    x         (batch, heads, time, head_size)
    cos, sin  (time, rope_size / 2), of x's type; where rope_size < head_size the last dimensions stay
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
