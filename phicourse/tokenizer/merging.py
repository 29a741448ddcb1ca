"""The loop that all byte-pair encodings share: join neighbours, the best pair first, until none can be joined."""

import heapq
from collections.abc import Callable, Iterable

CACHED_WORDS = 1 << 16
CACHED_LENGTH = 64  # characters; longer words hardly come twice


def merge_neighbours(symbols: Iterable[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Join neighbours, those of the lowest rank first, until no pair of neighbours has a rank.

    symbols   what the text is cut into at first, usually its characters; none empty
    rank      (left, right) → its rank, or None where the two cannot be joined; of equal ranks the leftmost
              pair goes first
    returns   the symbols that are left; together they are the text
    cost      O(n log n): each merge takes one symbol away and proposes at most two pairs

    Neighbours are linked, so that a merge moves nothing. Proposed pairs wait in a heap; one whose symbols have
    grown since then no longer has the size that it was proposed with.
    """
    texts = list(symbols)  # texts[i] is "" once it was joined with one to its left
    left_of = list(range(-1, len(texts) - 1))
    right_of = [*range(1, len(texts)), -1] if texts else []
    waiting: list[tuple[float, int, int]] = []  # (rank, index of the left symbol, characters of both)

    def propose(left: int, right: int) -> None:
        if (priority := rank(texts[left], texts[right])) is not None:
            heapq.heappush(waiting, (priority, left, len(texts[left]) + len(texts[right])))

    for right in range(1, len(texts)):
        propose(right - 1, right)
    while waiting:
        _, left, size = heapq.heappop(waiting)
        right = right_of[left]
        if not texts[left] or right < 0 or len(texts[left]) + len(texts[right]) != size:
            continue
        texts[left] += texts[right]
        texts[right] = ""
        after = right_of[left] = right_of[right]
        if after >= 0:
            left_of[after] = left
            propose(left, after)
        if left_of[left] >= 0:
            propose(left_of[left], left)
    return [text for text in texts if text]


class WordCache(dict[str, list[int]]):
    """Ids of words met before: most of a text is words that came earlier."""

    def keep(self, word: str, ids: list[int]) -> None:
        """Remember a word unless it is long; start anew where there are too many."""
        if len(word) <= CACHED_LENGTH:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
