"""Speculation: tokens that are guessed cheaply and checked by the model many at a time. The text stays the same.

Generation reads all weights for every token; for eight tokens at once it reads them once, too. So something cheap
guesses what comes next, the model says in one step what it would have said after each guess, and the guesses are
kept up to the first wrong one. Every token is sampled from the model's own logits, in order, so guesses change how
fast a text comes and never which text. Source: Leviathan et al. 2023 (a smaller model guesses), Saxena 2023 (the text
itself does).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from phicourse.errors import GenerateError
from phicourse.generate.context import Context

MAX_GUESSES = 7
"""The most tokens guessed at a time: with the one before them 8 are read, as many as kernels take at once."""


def guesses_ahead(before: int, guessed: int, right: int) -> int:
    """Return how many tokens to guess next: twice as many while all are right, else one more than were right.

    before  how many were to be guessed this time; it stays where there was no idea
    """
    if not guessed:
        return before
    return min(MAX_GUESSES, 2 * before) if right == guessed else right + 1


class Draft(Protocol):
    """Something that guesses."""

    def guess(self, history: Sequence[int], n: int) -> list[int]:
        """Up to n ids that may follow those of `history`; none where it has no idea."""
        ...


class PromptLookup:
    """Guesses that the text repeats itself: what followed when its last few tokens stood there before.

    Good where answers quote their question, as summaries, changed code and tables do; it costs nothing.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        """`longest`, `shortest`: how many tokens must agree; the longest match wins, of equal ones the latest."""
        if not 1 <= shortest <= longest:
            raise GenerateError(f"prompt lookup needs 1 <= shortest <= longest, not {shortest} and {longest}")
        self.sizes = range(longest, shortest - 1, -1)

    def guess(self, history: Sequence[int], n: int) -> list[int]:
        """Up to n ids that followed the same tokens earlier."""
        ids = np.asarray(history, np.int64)
        for size in self.sizes:
            if len(ids) <= size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)  # (places, size)
            places = np.flatnonzero((windows == ids[-size:]).all(axis=1))
            if places.size:
                start = int(places[-1]) + size
                return [int(id) for id in ids[start : start + n]]
        return []


class DraftModel:
    """Guesses what a smaller model with the same vocabulary thinks likeliest, while it is sure enough."""

    def __init__(self, context: Context, least_probability: float = 0.5) -> None:
        """`least_probability`: below it the small model's guess is not worth a check."""
        self.context = context
        self.least_probability = least_probability

    def guess(self, history: Sequence[int], n: int) -> list[int]:
        """Up to n ids, each the likeliest after those before it."""
        ids = list(history)
        while len(ids) - len(history) < n and len(ids) <= self.context.n_ctx:
            logits = self.context.logits_after(ids)  # (vocab,)
            best = int(np.argmax(logits))
            if 1 / np.exp(logits - logits[best]).sum() < self.least_probability:
                break
            ids.append(best)
        return ids[len(history) :]


def check_draft_model(context: Context, draft: Context) -> None:
    """GenerateError where the two models do not have the same tokens."""
    sizes = context.backend.config.vocab_size, draft.backend.config.vocab_size
    if sizes[0] != sizes[1]:
        raise GenerateError(
            f"the draft model has {sizes[1]:,} tokens and the model {sizes[0]:,}: only a model with the same "
            "vocabulary can guess for another"
        )
