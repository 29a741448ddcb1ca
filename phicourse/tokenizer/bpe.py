"""GPT-2's byte-pair encoding: cut text into words, words into bytes, and merge neighbours in the order learned.

Training counted which two neighbours were together most often, made them one token, and began again: the list
of merges is the list of these pairs, and the place of a pair in it is its rank. To encode is to replay them,
word by word: of all neighbours that were ever merged, merge those of the lowest rank first.

That is SentencePiece's way too, with two differences. It looks for the union of two neighbours, whatever they
were; here the pair itself must have been merged. And its symbols are characters, with bytes as a last resort;
here they are bytes from the start, so that nothing is ever unknown. The bytes are written as 256 printable
characters, those of ALPHABET: a space is Ġ, é is Ã©.
"""

from phicourse.errors import TokenizerError
from phicourse.tokenizer.merging import WordCache, merge_neighbours
from phicourse.tokenizer.pre_tokenizer import PreTokenizer
from phicourse.tokenizer.vocabulary import TokenType, Vocabulary


def _alphabet() -> str:
    """Give each byte a character: printable ones of Latin-1 are their own, the others get U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


ALPHABET = _alphabet()  # character of each byte
TO_BYTE = {character: byte for byte, character in enumerate(ALPHABET)}


def to_alphabet(data: bytes) -> str:
    """Write bytes in the alphabet of the vocabulary.

    >>> to_alphabet(" é".encode())
    'ĠÃ©'
    """
    return data.decode("latin-1").translate(_TRANSLATION)


_TRANSLATION = dict(enumerate(ALPHABET))


def from_alphabet(token: str) -> bytes:
    """Return the bytes of a token; where a character is not of the alphabet, as in added tokens, its UTF-8."""
    try:
        return bytes([TO_BYTE[character] for character in token])
    except KeyError:
        return token.encode()


def merge_by_rank(word: str, ranks: dict[str, int]) -> list[str]:
    """Cut a word into tokens: repeatedly join the two neighbours that were merged first in training.

    word    in the alphabet of the vocabulary
    ranks   "left right" → place in the list of merges
    """
    return merge_neighbours(word, lambda left, right: ranks.get(f"{left} {right}"))


class BytePairEncoder:
    """Encodes raw text, without special tokens, with the merges of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Index tokens and merges.

        Only normal tokens take part, so that no text is ever merged into a special one. TokenizerError where
        a merge makes something else, or the pre-tokenizer is not known.
        """
        self._ids = {vocabulary.tokens[id]: id for id in vocabulary.ids_of_type(TokenType.NORMAL)}
        self._ranks = {merge: rank for rank, merge in enumerate(vocabulary.merges)}
        wrong = next((merge for merge in vocabulary.merges if not self._is_merge(merge)), None)
        if wrong is not None:
            raise TokenizerError(f"merge {wrong[:50]!r} does not join two tokens into a token")
        self._pre_tokenizer = PreTokenizer(vocabulary.pre)
        self._cache = WordCache()

    def _is_merge(self, merge: str) -> bool:
        left, _, right = merge.partition(" ")
        return bool(left and right) and left + right in self._ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; TokenizerError where the vocabulary lacks one of its bytes."""
        ids: list[int] = []
        for word in self._pre_tokenizer.words(text):
            known = self._cache.get(word)
            ids += known if known is not None else self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        tokens = merge_by_rank(to_alphabet(word.encode()), self._ranks)
        try:
            ids = [self._ids[token] for token in tokens]
        except KeyError as error:
            byte = from_alphabet(error.args[0])
            raise TokenizerError(f"the vocabulary has no token for the byte 0x{byte.hex()}") from error
        self._cache.keep(word, ids)
        return ids
