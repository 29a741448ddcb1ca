"""SentencePiece's byte-pair encoding: merge the best neighbours until no merge is left.

A vocabulary made by byte-pair encoding lists its pieces in the order in which they were learned, and the score
says how early: the first merge has -1, the next -2. To encode is to replay that order. Starting from single
characters, the pair of neighbours whose union has the highest score becomes one symbol, again and again. What
is no piece in the end, a character that was never learned, is spelled in bytes: 🦥 is <0xF0><0x9F><0xA6><0xA5>.
"""

import heapq
import re
from collections.abc import Mapping

from phicourse.errors import TokenizerError
from phicourse.tokenizer.vocabulary import TokenType, Vocabulary

SPACE = "▁"  # U+2581 stands for a space in all pieces
CACHED_WORDS = 1 << 16
CACHED_LENGTH = 64  # characters; longer words hardly come twice


def merge(text: str, scores: Mapping[str, float]) -> list[str]:
    """Cut a text into pieces: repeatedly join the two neighbours whose union has the highest score.

    text     the text, spaces already replaced by U+2581
    scores   piece → score; of equal scores the leftmost pair goes first
    returns  pieces that together are the text; some may be characters that `scores` does not have
    cost     O(n log n): each merge takes one symbol away and proposes at most two pairs

    Symbol i starts at character i. Neighbours are linked, so that a merge moves nothing. Proposed pairs wait
    in a heap; one whose symbols have changed since then no longer has the size that it was proposed with.
    """
    symbols = list(text)  # symbols[i] is "" once it was merged into one to its left
    left_of = list(range(-1, len(text) - 1))
    right_of = [*range(1, len(text)), -1] if text else []
    waiting: list[tuple[float, int, int]] = []  # (-score, index of the left symbol, characters of both)

    def propose(left: int, right: int) -> None:
        union = symbols[left] + symbols[right]
        if (score := scores.get(union)) is not None:
            heapq.heappush(waiting, (-score, left, len(union)))

    for right in range(1, len(text)):
        propose(right - 1, right)
    while waiting:
        _, left, size = heapq.heappop(waiting)
        right = right_of[left]
        if not symbols[left] or right < 0 or len(symbols[left]) + len(symbols[right]) != size:
            continue
        symbols[left] += symbols[right]
        symbols[right] = ""
        after = right_of[left] = right_of[right]
        if after >= 0:
            left_of[after] = left
            propose(left, after)
        if left_of[left] >= 0:
            propose(left_of[left], left)
    return [symbol for symbol in symbols if symbol]


class SentencePieceEncoder:
    """Encodes raw text, without special tokens, with the pieces of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Index the pieces; only normal ones take part, so that no text is ever merged into a special token."""
        normal = vocabulary.ids_of_type(TokenType.NORMAL)
        self._ids = {vocabulary.tokens[id]: id for id in normal}
        self._scores = {vocabulary.tokens[id]: float(vocabulary.scores[id]) for id in normal}
        self._bytes = byte_tokens(vocabulary)
        self._unknown = vocabulary.unk
        # Where no piece has a space after another character, no merge crosses the start of a word: words are
        # encoded one by one, and the frequent ones only once. Otherwise the text is one word.
        one_by_one = not any(SPACE in piece.lstrip(SPACE) for piece in self._ids)
        self._words = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+" if one_by_one else "(?s:.+)")
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; TokenizerError where the vocabulary has no way to spell a character."""
        ids: list[int] = []
        for word in self._words.findall(text.replace(" ", SPACE)):
            known = self._cache.get(word)
            ids += known if known is not None else self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for piece in merge(word, self._scores):
            id = self._ids.get(piece)
            ids += [id] if id is not None else self._spell(piece)
        if len(word) <= CACHED_LENGTH:
            if len(self._cache) >= CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _spell(self, character: str) -> list[int]:
        """Spell a character in the tokens of its UTF-8 bytes, or say that it is unknown."""
        ids = [self._bytes[byte] for byte in character.encode() if byte in self._bytes]
        if len(ids) == len(character.encode()):
            return ids
        if self._unknown is None:
            raise TokenizerError(
                f"the vocabulary has no token for {character!r}, for its bytes, or for unknowns"
            )
        return [self._unknown]


def byte_tokens(vocabulary: Vocabulary) -> dict[int, int]:
    """Return byte → id of its token, whose text is <0x00> to <0xFF>."""
    ids: dict[int, int] = {}
    for id in vocabulary.ids_of_type(TokenType.BYTE):
        match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", vocabulary.tokens[id])
        if match is None:
            raise TokenizerError(
                f"byte token {id} is named {vocabulary.tokens[id][:50]!r}, not <0x00> to <0xFF>"
            )
        ids[int(match[1], 16)] = id
    return ids
