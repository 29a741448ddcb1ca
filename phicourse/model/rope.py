"""Rotary position embedding: pairs of a head's dimensions turn by angles that grow with the position.

LongRoPE, which makes a 4k model a 128k one, divides every pair's speed by a factor of its own. There are two
lists of factors: short ones for texts within the original context, long ones beyond it.
"""

import torch
from torch import Tensor

from phicourse.checkpoint.config import PhiConfig


def frequencies(config: PhiConfig, total: int) -> Tensor:
    """How far each pair of dimensions turns from one position to the next, in radians: (rope_size / 2,).

    `total` is the length of the whole text, the cached part included: it chooses between short and long
    factors, as transformers does anew in every forward pass. Keys already in a cache stay as they are.
    """
    pair = torch.arange(0, config.rope_size, 2, dtype=torch.float32)  # (rope_size / 2,)
    speed = 1.0 / config.rope_theta ** (pair / config.rope_size)
    is_long = total > config.original_context_length
    factors = config.long_factor if is_long else config.short_factor
    return speed if factors is None else speed / torch.tensor(factors)


def cos_sin(config: PhiConfig, start: int, total: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the positions start … total - 1, each (time, rope_size / 2), float32.

    Both carry the attention factor: LongRoPE stretches queries and keys a little to keep attention sharp.
    """
    positions = torch.arange(start, total, dtype=torch.float32)
    angles = torch.outer(positions, frequencies(config, total))  # (time, rope_size / 2)
    return angles.cos() * config.attention_factor, angles.sin() * config.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first dimensions of every head; dimension i pairs with i + rope_size / 2 ("NEOX" order).

    x         (batch, heads, time, head_size)
    cos, sin  (time, rope_size / 2), of x's type; where rope_size < head_size the last dimensions stay
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
