"""How many weights a model has: counted from its config alone, with the shapes that the converter asks for."""

from math import prod

from phicourse.checkpoint import PhiConfig
from phicourse.convert.streaming import ARCHITECTURES

PARTS = {"embedding": "token_embd.", "attention": ".attn_", "feed-forward": ".ffn_", "output": "output."}


def count_weights(config: PhiConfig) -> dict[str, int]:
    """Count the weights of each kind of tensor, all layers and experts together.

    returns  name of the tensor in GGUF, with N for the layer -> weights; without LongRoPE's factors, which are
             no weights, and without the output matrix where it is the embedding
    """
    counts: dict[str, int] = {}
    for rule in ARCHITECTURES[config.architecture].tables[0]:
        if not rule.is_optional(config):
            counts[rule.target] = prod(rule.shape(config)) * rule.n_layers(config)
    return counts


def weights_by_part(config: PhiConfig) -> dict[str, int]:
    """Count the weights of the embedding, attention, feed-forward layers, output matrix, and of the norms.

    The norms are counted as `norms`, not with the attention or the feed-forward layer that they stand before.
    """
    parts = dict.fromkeys((*PARTS, "norms"), 0)
    for name, weights in count_weights(config).items():
        is_norm = "norm." in name
        part = "norms" if is_norm else next(part for part, sign in PARTS.items() if sign in name)
        parts[part] += weights
    return parts
