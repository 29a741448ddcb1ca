"""From ids back to text, all at once or token by token."""

import codecs
from collections.abc import Iterable

from phicourse.errors import TokenizerError
from phicourse.tokenizer.bpe import from_alphabet
from phicourse.tokenizer.spm import SPACE, byte_tokens
from phicourse.tokenizer.vocabulary import TokenType, Vocabulary


def token_bytes(vocabulary: Vocabulary, special: bool) -> list[bytes]:
    """Return the bytes that each token stands for; control tokens stand for none unless `special`."""
    byte_pairs = vocabulary.model == "gpt2"
    raw = {} if byte_pairs else {id: bytes([byte]) for byte, id in byte_tokens(vocabulary).items()}
    unused = set(vocabulary.ids_of_type(TokenType.UNUSED))
    normal = set(vocabulary.ids_of_type(TokenType.NORMAL)) - vocabulary.control
    silent = unused if special else unused | vocabulary.control
    pieces: list[bytes] = []
    for id, text in enumerate(vocabulary.tokens):
        if id in raw:
            pieces.append(raw[id])
        elif id in silent:
            pieces.append(b"")
        elif id in normal:
            pieces.append(from_alphabet(text) if byte_pairs else text.replace(SPACE, " ").encode())
        else:
            pieces.append(text.encode())
    return pieces


class StreamDecoder:
    """Turns tokens into text one by one and never cuts a character: its bytes wait until they are complete.

    Bytes that are no UTF-8 become U+FFFD as in `bytes.decode(errors="replace")`. All pieces joined, with that
    of `finish`, are what `Tokenizer.decode` gives for the same ids.
    """

    def __init__(self, pieces: list[bytes], drop_space: bool) -> None:
        """Take the bytes of each token, and whether the space that encoding put in front is to be dropped."""
        self._pieces = pieces
        self._drop_space = drop_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Add a token; return the text that it completes, which may be empty."""
        return self._emit(self._utf8.decode(piece(self._pieces, id)))

    def finish(self) -> str:
        """End the text; return U+FFFD where it ends within a character, else nothing."""
        return self._emit(self._utf8.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


def piece(pieces: list[bytes], id: int) -> bytes:
    """Return the bytes of one token; TokenizerError where the vocabulary has no such id."""
    if not 0 <= id < len(pieces):
        raise TokenizerError(f"token id {id} is outside the vocabulary of {len(pieces)} tokens")
    return pieces[id]


def decode(pieces: list[bytes], ids: Iterable[int], drop_space: bool) -> str:
    """Return the text of all tokens at once."""
    text = b"".join(piece(pieces, id) for id in ids).decode("utf-8", "replace")
    return text.removeprefix(" ") if drop_space else text
