"""A backend together with the tokens that it has seen, so that no token is computed twice."""

from collections.abc import Sequence

import numpy as np

from phicourse.generate.backends import Backend
from phicourse.generate.sampling import Float32Array


class Context:
    """Knows which ids the backend's cache holds, and extends or rewinds it to those that are wanted.

    In a chat every question repeats the conversation so far: only what is new in it is computed.
    """

    def __init__(self, backend: Backend, sequence: int = 0) -> None:
        """Take over one of a backend's sequences; whatever it holds is forgotten at the first use."""
        self.backend = backend
        self.sequence = sequence
        self._ids: list[int] = []

    @property
    def n_ctx(self) -> int:
        """How many tokens the cache can hold."""
        return self.backend.n_ctx

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return len(self._ids)

    def common(self, ids: Sequence[int]) -> int:
        """How many of `ids` need not be computed again; the last one always is."""
        return min(common_prefix(self._ids, list(ids)), len(ids) - 1)

    def missing(self, ids: Sequence[int]) -> list[int]:
        """Forget what does not belong to `ids` (at least one), and return those that are still to be read."""
        ids = list(ids)
        self._rewind(self.common(ids))
        return ids[len(self._ids) :]

    def note(self, ids: Sequence[int]) -> None:
        """The backend has read these, too."""
        self._ids += ids

    def copy(self, other: "Context", length: int) -> None:
        """Become the first `length` ids of another sequence of the same backend, without computing them."""
        self.backend.copy(other.sequence, self.sequence, length)
        self._ids = other._ids[:length]

    def logits_after(self, ids: Sequence[int]) -> Float32Array:
        """The logits of the token that follows `ids` (at least one): (vocab,) float32."""
        logits: Float32Array = self._extend(self.missing(ids), all_logits=False)[-1]
        return logits

    def all_logits(self, ids: Sequence[int], first: int = 0) -> Float32Array:
        """The logits after each of `ids` from number `first` on: (len(ids) - first, vocab) float32."""
        ids = list(ids)
        self._rewind(min(common_prefix(self._ids, ids), first))
        if len(self._ids) < first:
            self._extend(ids[len(self._ids) : first], all_logits=False)
        return self._extend(ids[first:], all_logits=True)

    def last_logits(self, ids: Sequence[int], n: int) -> Float32Array:
        """The logits after each of the last n of `ids`: (n, vocab) float32."""
        return self.logits_after(ids)[None] if n == 1 else self.all_logits(ids, first=len(ids) - n)

    def room_after(self, length: int) -> int:
        """How many tokens more than `length` can be read without changing what is expected before them.

        Beyond LongRoPE's switch other factors hold, for all of the text.
        """
        config = self.backend.config
        is_before = config.long_factor is not None and length <= config.original_context_length
        limit = min(self.n_ctx, config.original_context_length) if is_before else self.n_ctx
        return max(0, limit - length)

    def reset(self) -> None:
        """Forget everything."""
        self._rewind(0)

    def _rewind(self, length: int) -> None:
        """Keep the first `length` ids. An interrupted step may have left the backend shorter or longer."""
        length = min(length, self.backend.length(self.sequence))
        self.backend.truncate(length, self.sequence)
        del self._ids[length:]

    def _extend(self, ids: list[int], all_logits: bool) -> Float32Array:
        (logits,) = self.backend.forward_many([(self.sequence, np.asarray(ids, np.int32))], all_logits)
        self.note(ids)
        return logits


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences have in common at the start."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
