"""Bits per byte: perplexity's sister, which compares models with different vocabularies.

A token of one model is not a token of another, but a byte of text is the same for both: it is the size that
the text would have, per byte, if the model compressed it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GenerateError
from phicourse.evaluate.perplexity import negative_log_likelihoods


class Model(Protocol):
    """What is needed of a model: an `LLM` has it."""

    @property
    def n_ctx(self) -> int:
        """Tokens that it can see."""
        ...

    def tokenize(self, text: str, special: bool = ...) -> list[int]:
        """Text to ids, `special`: with the beginning-of-text token."""
        ...

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), vocab) float32."""
        ...


def bits_per_byte(model: Model, texts: str | Iterable[str]) -> float:
    """The mean number of bits that the model needs for one UTF-8 byte of the texts.

    Each text is read on its own after the beginning-of-text token; what exceeds the context starts again
    after a new one. Every token but that one is scored.

    raises   GenerateError where the texts are empty, or the model has no token to begin with
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    n_bytes = sum(len(text.encode()) for text in texts)
    if not n_bytes:
        raise GenerateError("bits per byte: there is no text")
    nats = sum(text_loss(model, text) for text in texts)
    return nats / math.log(2) / n_bytes


def text_loss(model: Model, text: str) -> float:
    """The sum of -ln p over all tokens of one text, in nats."""
    start, ids = model.tokenize("", special=True), model.tokenize(text)
    if not start:
        raise GenerateError(
            "bits per byte: this model has no beginning-of-text token to predict the first token from"
        )
    room = model.n_ctx - len(start)
    return sum(chunk_loss(model, start, ids[i : i + room]) for i in range(0, len(ids), room))


def chunk_loss(model: Model, start: Sequence[int], ids: Sequence[int]) -> float:
    """The sum of -ln p over `ids`, read after `start`, in nats."""
    logits = model.logits([*start, *ids[:-1]])  # (len(start) + n - 1, vocab)
    return float(negative_log_likelihoods(logits[len(start) - 1 :], ids).sum())
