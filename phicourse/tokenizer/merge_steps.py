"""The merge loop, written to be watched: what the text is cut into after each merge."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple


class Step(NamedTuple):
    """What a text is cut into at one moment.

    symbols  together they are the text
    at       which of them the last merge has made; None before the first merge
    rank     of that merge; None before the first
    """

    symbols: tuple[str, ...]
    at: int | None = None
    rank: float | None = None


def merge_steps(symbols: Iterable[str], rank: Callable[[str, str], float | None]) -> list[Step]:
    """Join neighbours as `merge_neighbours` does, and note each step, the beginning first.

    symbols, rank   as in `merge_neighbours`
    cost            O(n²): every step looks at all pairs, as one does by hand
    """
    steps = [Step(tuple(symbols))]
    while True:
        now = steps[-1].symbols
        pairs = [(rank(left, right), at) for at, (left, right) in enumerate(pairwise(now))]
        known = [(value, at) for value, at in pairs if value is not None]
        if not known:
            return steps
        value, at = min(known)  # of equal ranks the leftmost pair
        steps.append(Step((*now[:at], now[at] + now[at + 1], *now[at + 2 :]), at, value))
