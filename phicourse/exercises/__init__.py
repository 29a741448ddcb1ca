"""The exercises of the notebooks: a check for each, and the table of what is solved.

>>> from phicourse.exercises import checkpoint as check
>>> check.read_header(read_header)  # doctest: +SKIP
✔ 01.1 Open the header: right.
>>> phicourse.progress()  # doctest: +SKIP
"""

from phicourse.exercises import (
    blocks,
    checkpoint,
    converter,
    engine,
    forward_pass,
    generation,
    gguf,
    k_quants,
    low_bits,
    mixtures,
    tokenizer,
)
from phicourse.exercises.exercise import EXERCISES, Exercise, Mistake
from phicourse.exercises.table import Progress, progress

__all__ = [
    "EXERCISES",
    "Exercise",
    "Mistake",
    "Progress",
    "blocks",
    "checkpoint",
    "converter",
    "engine",
    "forward_pass",
    "generation",
    "gguf",
    "k_quants",
    "low_bits",
    "mixtures",
    "progress",
    "tokenizer",
]
