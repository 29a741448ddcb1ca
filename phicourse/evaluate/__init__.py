"""How good and how fast: perplexity, KL divergence, bits per byte, tokens per second."""

from phicourse.evaluate.bench import Measurement, bench
from phicourse.evaluate.bits_per_byte import bits_per_byte
from phicourse.evaluate.imatrix import gather_importance, write_importance
from phicourse.evaluate.kl_divergence import Divergence, compare, read_base, write_base
from phicourse.evaluate.perplexity import Perplexity, perplexity
from phicourse.evaluate.text import evaluate_text

__all__ = [
    "Divergence",
    "Measurement",
    "Perplexity",
    "bench",
    "bits_per_byte",
    "compare",
    "evaluate_text",
    "gather_importance",
    "perplexity",
    "read_base",
    "write_base",
    "write_importance",
]
