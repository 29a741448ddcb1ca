"""The tokenizer: text to ids and back, and conversations to ids.

Ids are those of Hugging Face's fast tokenizers for all Phi models: the Phi-3 family has a SentencePiece
vocabulary (`spm`), Phi-1, Phi-2 and Phi-4 have byte-pair encoding as in GPT-2 (`bpe`), each with its own way to
cut words (`pre_tokenizer`). Others differ from that in details:

    white space beside <|end|> and the like   swallowed by Hugging Face and here, all that Unicode knows; by
        llama.cpp only where a file's general.name has "phi-3" or "phi3", behind them, and only ASCII's. The
        converter's files do not say which tokens swallow: our private keys do.
    </s>   Phi-3 lists it as text that a user may write; llama.cpp and we keep it for the template, since it
        ends an answer.
    <|tool|>   of Phi-4-mini is text that a user may write by its files; llama.cpp's converter makes control
        tokens of all that look like that, and so do we.
    a space in front   put before each stretch of text between special tokens, by all, in Phi-3's family only.
        When decoding, Hugging Face and we drop one at the very start; llama.cpp only where no special token is
        before it.
    a space before a full stop   stays when decoding, in transformers since version 5 whatever
        clean_up_tokenization_spaces says, and here: "a . b" comes back as it was. llama.cpp takes it away for
        Phi-2 and Phi-4.
    bytes that are no UTF-8   become U+FFFD as in Python; Hugging Face writes one for each byte.
    <s> in front of a chat   put there by llama.cpp and here where the vocabulary asks for it; Hugging Face
        leaves it to the template.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from phicourse.checkpoint import Checkpoint
from phicourse.errors import TokenizerError
from phicourse.gguf import GGUFFile
from phicourse.tokenizer.bpe import BytePairEncoder
from phicourse.tokenizer.chat import ChatTemplate
from phicourse.tokenizer.detokenize import StreamDecoder, decode, token_bytes
from phicourse.tokenizer.partition import Partition
from phicourse.tokenizer.spm import SentencePieceEncoder
from phicourse.tokenizer.vocabulary import Vocabulary


class Tokenizer:
    """Encodes with one vocabulary; holds nothing that changes but caches.

    >>> tokenizer = Tokenizer.from_checkpoint("data/phi-tiny")  # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Once upon a time"))  # doctest: +SKIP
    'Once upon a time'
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        encoder = BytePairEncoder if vocabulary.model == "gpt2" else SentencePieceEncoder
        self._encoder: BytePairEncoder | SentencePieceEncoder = encoder(vocabulary)
        self._partition = Partition(vocabulary)
        self._pieces: dict[bool, list[bytes]] = {}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint | Path | str) -> Self:
        """Read the tokenizer of a checkpoint, open or given as a folder; no weights are needed."""
        folder = checkpoint.folder if isinstance(checkpoint, Checkpoint) else Path(checkpoint)
        return cls(Vocabulary.from_folder(folder))

    @classmethod
    def from_gguf(cls, file: GGUFFile | Path | str) -> Self:
        """Read the tokenizer in a GGUF file, open or given as a path."""
        if isinstance(file, GGUFFile):
            return cls(Vocabulary.from_gguf(file))
        with GGUFFile.open(file) as opened:
            return cls(Vocabulary.from_gguf(opened))

    @property
    def n_vocab(self) -> int:
        """How many tokens there are."""
        return len(self.vocabulary.tokens)

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return self.vocabulary.bos

    @property
    def eog(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.vocabulary.eog

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Turn a text into ids.

        add_special     put the token for the beginning in front, or that for the end behind, where the
                        vocabulary asks for it
        parse_special   read <|end|> and the like as the control tokens that they name; off for text of users
        raises          TokenizerError where the text is no Unicode text (has half a surrogate pair)
        """
        return self.encode_segments([(text, parse_special)], add_special=add_special)

    def encode_segments(
        self, segments: Iterable[tuple[str, bool]], *, add_special: bool = False
    ) -> list[int]:
        """Turn a text that comes in segments, each with its own `parse_special`, into ids.

        Raw text that meets at the border of two segments is encoded as if it were one.
        """
        ids: list[int] = []
        if add_special and self.vocabulary.add_bos and self.bos is not None:
            ids.append(self.bos)
        for part in self._partition.cut(segments):
            ids += [part] if isinstance(part, int) else self._encode_raw(part)
        if add_special and self.vocabulary.add_eos and self.vocabulary.eos is not None:
            ids.append(self.vocabulary.eos)
        return ids

    def _encode_raw(self, text: str) -> list[int]:
        """Encode text between special tokens: each such stretch gets its own space in front."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text has half a surrogate pair, {text[error.start]!r}") from error
        if self.vocabulary.normalizer == "NFC":
            text = unicodedata.normalize("NFC", text)
        return self._encoder.encode(" " + text if self.vocabulary.add_space_prefix else text)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Turn ids into text; control tokens are shown only where `special`.

        The space that encoding put in front is dropped, once, at the start. Bytes that are no UTF-8 become
        U+FFFD. TokenizerError where an id is outside the vocabulary.
        """
        return decode(self._token_bytes(special), ids, self.vocabulary.add_space_prefix)

    def stream(self, special: bool = False, *, continues: bool = False) -> StreamDecoder:
        """Return a decoder for tokens that come one by one.

        continues   the tokens go on from text that is there already, so that a space in front stays
        """
        return StreamDecoder(self._token_bytes(special), self.vocabulary.add_space_prefix and not continues)

    def _token_bytes(self, special: bool) -> list[bytes]:
        if special not in self._pieces:
            self._pieces[special] = token_bytes(self.vocabulary, special)
        return self._pieces[special]

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        template = self.vocabulary.chat_template
        if template is None:
            raise TokenizerError("this model has no chat template: give it plain text instead of messages")
        control = [self.vocabulary.tokens[id] for id in self.vocabulary.control]
        return ChatTemplate(template, control, self._template_variables())

    def _template_variables(self) -> dict[str, str]:
        roles = ("bos", "eos", "unk", "pad")
        ids = {role: getattr(self.vocabulary, role) for role in roles}
        return {f"{role}_token": self.vocabulary.tokens[id] for role, id in ids.items() if id is not None}

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Return a conversation as the text that the model's chat template makes of it.

        messages   dicts with "role" and "content"
        raises     TokenizerError where there is no template, it fails, or it refuses the messages
        """
        return self._chat_template.render(messages, add_generation_prompt)

    def chat(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """Turn a conversation into ids; only what the template itself writes can become a control token.

        The token for the beginning is put in front where the vocabulary asks for it and the template has not
        done so. Arguments and errors are those of `render`.
        """
        segments = self._chat_template.segments(messages, add_generation_prompt)
        ids = self.encode_segments(segments)
        if self.vocabulary.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids
