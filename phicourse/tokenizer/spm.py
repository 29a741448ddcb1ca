"""SentencePiece's byte-pair encoding: merge the best neighbours until no merge is left.

A vocabulary made by byte-pair encoding lists its pieces in the order in which they were learned, and the score
says how early: the first merge has -1, the next -2. To encode is to replay that order. Starting from single
characters, the pair of neighbours whose union has the highest score becomes one symbol, again and again. What
is no piece in the end, a character that was never learned, is spelled in bytes: 🦥 is <0xF0><0x9F><0xA6><0xA5>.
"""

import re
from collections.abc import Mapping

from phicourse.errors import TokenizerError
from phicourse.tokenizer.merging import WordCache, merge_neighbours
from phicourse.tokenizer.vocabulary import TokenType, Vocabulary

SPACE = "▁"  # U+2581 stands for a space in all pieces


def merge(text: str, scores: Mapping[str, float]) -> list[str]:
    """Cut a text into pieces: repeatedly join the two neighbours whose union has the highest score.

    text     the text, spaces already replaced by U+2581
    scores   piece → score; of equal scores the leftmost pair goes first
    returns  pieces that together are the text; some may be characters that `scores` does not have
    """

    def rank(left: str, right: str) -> float | None:
        score = scores.get(left + right)
        return None if score is None else -score

    return merge_neighbours(text, rank)


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
        self._cache = WordCache()

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
        self._cache.keep(word, ids)
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
