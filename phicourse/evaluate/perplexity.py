"""Perplexity as llama-perplexity computes it: how many tokens the model hesitates between, on average.

The text is cut into chunks of n_ctx tokens. Each chunk is read by itself, and only its second half is
scored, so that every scored token has at least half a context before it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import GenerateError
from phicourse.generate.context import Context

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Perplexity:
    """The result and what it was computed on.

    perplexity  exp of the mean negative log-likelihood, in nats, of the scored tokens
    stderr      its standard error, to first order: perplexity · sqrt(variance / (tokens - 1))
    tokens      how many tokens were scored
    """

    perplexity: float
    stderr: float
    tokens: int
    chunks: int
    n_ctx: int

    @classmethod
    def of(cls, losses: Float64Array, chunks: int, n_ctx: int) -> "Perplexity":
        """Sum up the losses (tokens,) of all scored tokens."""
        value = math.exp(losses.mean())
        variance = float((losses**2).mean() - losses.mean() ** 2)  # divided by n, then by n - 1
        stderr = value * math.sqrt(max(variance, 0.0) / (losses.size - 1)) if losses.size > 1 else math.inf
        return cls(value, stderr, losses.size, chunks, n_ctx)


def negative_log_likelihoods(logits: Float32Array, targets: Sequence[int]) -> Float64Array:
    """How surprised the model was: -ln p of each target, (n, vocab) and n ids -> (n,) float64, in nats."""
    highest = logits.max(axis=1)  # (n,)
    # float32 differences, then a float64 sum: as llama-perplexity adds up
    total = np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64)
    of_target = logits[np.arange(len(targets)), np.asarray(targets)]
    losses: Float64Array = np.log(total) - (of_target - highest).astype(np.float64)
    return losses


def perplexity(
    context: Context,
    ids: Sequence[int],
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    bos: int | None = None,
    progress: Callable[[int, int, float], None] = lambda done, chunks, value: None,
) -> Perplexity:
    """Score a text.

    ids       the whole text, tokenized once, with the beginning-of-text token in front where the model has it
    n_ctx     tokens a chunk; what is left at the end is not used
    chunks    score no more than these; None: all
    bos       takes the place of each chunk's first token; None leaves it as it is
    progress  called after each chunk with (done, chunks, perplexity so far)
    raises    GenerateError where the text is shorter than two chunks, or a chunk is longer than the context
    source    llama.cpp tools/perplexity, definition only
    """
    n_chunks = count_chunks(context, len(ids), n_ctx, chunks)
    losses: list[Float64Array] = []
    for logits, targets in scored_chunks(context, ids, n_ctx, n_chunks, bos):
        losses.append(negative_log_likelihoods(logits, targets))
        progress(len(losses), n_chunks, math.exp(np.concatenate(losses).mean()))
    return Perplexity.of(np.concatenate(losses), n_chunks, n_ctx)


def count_chunks(context: Context, n_tokens: int, n_ctx: int, chunks: int | None) -> int:
    """How many chunks there are to score; GenerateError where the request makes no sense."""
    if not 4 <= n_ctx <= context.n_ctx:
        raise GenerateError(
            f"chunks of {n_ctx:,} tokens: from 4 to {context.n_ctx:,} (this context) are possible"
        )
    if n_tokens < 2 * n_ctx:
        raise GenerateError(
            f"the text has {n_tokens:,} tokens, two chunks of {n_ctx:,} are needed: "
            "take a longer text or a smaller --ctx"
        )
    if chunks is not None and chunks < 1:
        raise GenerateError(f"chunks must be 1 or more, not {chunks}")
    return min(n_tokens // n_ctx, chunks or n_tokens)


def scored_chunks(
    context: Context, ids: Sequence[int], n_ctx: int, n_chunks: int, bos: int | None
) -> Iterator[tuple[Float32Array, list[int]]]:
    """For each chunk the logits (n, vocab) over its second half and the n ids that they should predict.

    n = n_ctx - n_ctx // 2 - 1: the chunk's last token predicts nothing in it.
    """
    half = n_ctx // 2
    for i in range(n_chunks):
        chunk = list(ids[i * n_ctx : (i + 1) * n_ctx])
        read = chunk[:-1] if bos is None else [bos, *chunk[1:-1]]
        context.reset()
        yield context.all_logits(read, first=half), chunk[half + 1 :]
    context.reset()
