"""A vocabulary: the pieces that text is cut into, and what is special about some of them."""

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from phicourse.checkpoint import Checkpoint
from phicourse.errors import TokenizerError
from phicourse.gguf import GGUFFile, ValueType
from phicourse.tokenizer.sentencepiece_model import read_sentencepiece_model
from phicourse.tokenizer.special_tokens import (
    SpecialTokens,
    added_tokens,
    check_added_token,
    read_optional_json,
    read_special_tokens,
)

V = TypeVar("V", bound="Vocabulary")

# A metadata entry: key, value, its type, and the type of its elements where it is an array.
Entry = tuple[str, Any, ValueType, ValueType | None]

PADDING_SCORE = (
    -10000.0
)  # scores of entries without a piece and of added tokens, as llama.cpp's converter has them
ADDED_SCORE = -1000.0
MAX_VOCABULARY = 1 << 24
ID_KEYS = {  # the misspelling is part of the format
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
ADD_KEYS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}
DEFAULT_IDS = {"bos": 1, "eos": 2, "unk": 0}  # of a vocabulary of kind "llama" that does not say
STRIP_KEYS = {
    "lstrip": "phicourse.tokenizer.lstrip_token_ids",
    "rstrip": "phicourse.tokenizer.rstrip_token_ids",
}
SPACE_PREFIX_KEY = "tokenizer.ggml.add_space_prefix"
# llama.cpp knows these by their text, whatever their type: all of them end an answer.
END_TOKENS = frozenset(
    {
        "<|end|>",
        "<|endoftext|>",
        "</s>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<EOT>",
    }
)


class TokenType(IntEnum):
    """What an entry of the vocabulary is; the numbers are those in GGUF files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)  # cut out of a text as a whole
KEEP_SPACE_AFTER = (
    "<unk>",
    "<s>",
    "<|endoftext|>",
)  # the special tokens of Phi-3 that swallow no white space


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Everything a tokenizer needs to know; creating one checks it.

    tokens          text of each entry; SentencePiece pieces have U+2581 for a space
    scores          (n,) float32, higher merges earlier
    types           (n,) int32 of `TokenType`
    special_ids     role (bos, eos, unk, …) → id, in the order in which the checkpoint's files give them
    add_special     role → whether every text gets that token, in the same order
    lstrip, rstrip  ids of special tokens that swallow the white space before or after them
    """

    tokens: list[str]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    special_ids: dict[str, int] = field(default_factory=dict)
    add_special: dict[str, bool] = field(default_factory=dict)
    add_space_prefix: bool = True
    chat_template: str | None = None
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    model: str = "llama"
    pre: str = "default"

    def __post_init__(self) -> None:
        """Check lengths, types, ids and that no text occurs twice."""
        n = len(self.tokens)
        if not n or self.scores.shape != (n,) or self.types.shape != (n,):
            raise TokenizerError(
                f"vocabulary of {n} tokens with {self.scores.size} scores and {self.types.size} types"
            )
        if not np.isfinite(self.scores).all():
            raise TokenizerError(
                f"token {int(np.argmin(np.isfinite(self.scores)))} has a score that is not finite"
            )
        if self.types.min() < TokenType.NORMAL or self.types.max() > TokenType.BYTE:
            raise TokenizerError("vocabulary with a token type outside 1 to 6")
        for id in (*self.special_ids.values(), *self.lstrip, *self.rstrip):
            if not 0 <= id < n:
                raise TokenizerError(f"special token id {id} is outside the vocabulary of {n} tokens")
        self._check_unique()

    def _check_unique(self) -> None:
        if len(self.ids) < len(self.tokens):
            id, text = next((id, text) for id, text in enumerate(self.tokens) if self.ids[text] != id)
            raise TokenizerError(
                f"token {text[:50]!r} is in the vocabulary twice, as {id} and {self.ids[text]}"
            )

    @cached_property
    def ids(self) -> dict[str, int]:
        """Text → id."""
        return {text: id for id, text in enumerate(self.tokens)}

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return self._special_id("bos")

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return self._special_id("eos")

    @property
    def unk(self) -> int | None:
        """The token for what the vocabulary cannot express."""
        return self._special_id("unk")

    @property
    def pad(self) -> int | None:
        """The token that fills up shorter texts of a batch."""
        return self._special_id("pad")

    @property
    def add_bos(self) -> bool:
        """Whether every text begins with `bos`."""
        return self.add_special.get("bos", True)

    @property
    def add_eos(self) -> bool:
        """Whether every text ends with `eos`."""
        return self.add_special.get("eos", False)

    @cached_property
    def eog(self) -> frozenset[int]:
        """The tokens that end an answer: eos, and those known by their text, such as <|end|>."""
        named = {id for id in (self.ids.get(text) for text in END_TOKENS) if id is not None}
        roles = {id for role in ("eos", "eot", "eom") if (id := self._special_id(role)) is not None}
        return frozenset(named | roles)

    @cached_property
    def control(self) -> frozenset[int]:
        """The tokens that text of a user must never become, and that show nothing when decoded."""
        hidden = np.flatnonzero(np.isin(self.types, (TokenType.CONTROL, TokenType.UNKNOWN)))
        return frozenset(hidden.tolist()) | {id for text, id in self.ids.items() if text in END_TOKENS}

    def ids_of_type(self, type: TokenType) -> list[int]:
        """Return the ids of all tokens of one type, in order."""
        return [int(id) for id in np.flatnonzero(self.types == type)]

    def _special_id(self, role: str) -> int | None:
        default = DEFAULT_IDS.get(role, len(self.tokens))
        return self.special_ids.get(role, default if default < len(self.tokens) else None)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the vocabulary of a checkpoint."""
        return cls.from_folder(checkpoint.folder)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the vocabulary of a checkpoint folder; tokenizer.model is required, JSON files and weights not."""
        config = read_optional_json(folder / "tokenizer_config.json")
        path = folder / "tokenizer.model"
        if not path.is_file() or config.get("tokenizer_class") == "GPT2Tokenizer":
            raise TokenizerError(
                f"{folder}: no SentencePiece vocabulary (tokenizer.model), the only kind supported yet"
            )
        model = read_sentencepiece_model(path)
        table = _Table(_vocab_size(folder, len(model.pieces)))
        for id, piece in enumerate(model.pieces):
            # SentencePiece numbers the types of its pieces as GGUF does; its user-defined ones count as normal.
            kind = TokenType.NORMAL if piece.type == TokenType.USER_DEFINED else piece.type
            table.set(id, piece.text, piece.score, kind)
        _apply_added_tokens(folder, config, table)
        special = read_special_tokens(folder, len(table.tokens))
        return table.vocabulary(cls, special, model.add_space_prefix)

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Self:
        """Read the vocabulary in a GGUF file's metadata."""
        model = file.get("tokenizer.ggml.model", str)
        if model != "llama":
            raise TokenizerError(
                f"{file.path}: tokenizer kind {model[:40]!r} is not supported yet, only 'llama' is"
            )
        tokens = file.get("tokenizer.ggml.tokens", list)
        types = _numbers(file, "tokenizer.ggml.token_type", np.int32)
        strips = _read_strips(file, types, tokens) if len(types) == len(tokens) else {}
        try:
            return cls(
                tokens=tokens,
                scores=_numbers(file, "tokenizer.ggml.scores", np.float32),
                types=types,
                special_ids={
                    role: file.get(key, int) for role, key in ID_KEYS.items() if key in file.metadata
                },
                add_special={
                    role: file.get(key, bool) for role, key in ADD_KEYS.items() if key in file.metadata
                },
                add_space_prefix=file.get(SPACE_PREFIX_KEY, bool, True),
                chat_template=file.get("tokenizer.chat_template", str, None),
                pre=file.get("tokenizer.ggml.pre", str, "default"),
                lstrip=strips.get("lstrip", frozenset()),
                rstrip=strips.get("rstrip", frozenset()),
            )
        except TokenizerError as error:
            raise TokenizerError(f"{file.path}: {error}") from error

    def metadata(self) -> list[Entry]:
        """Return the tokenizer.* entries of a GGUF file, as llama.cpp's converter writes them and in its order."""
        entries: list[Entry] = [
            ("tokenizer.ggml.model", self.model, ValueType.STRING, None),
            ("tokenizer.ggml.pre", self.pre, ValueType.STRING, None),
            ("tokenizer.ggml.tokens", self.tokens, ValueType.ARRAY, ValueType.STRING),
            ("tokenizer.ggml.scores", self.scores, ValueType.ARRAY, ValueType.FLOAT32),
            ("tokenizer.ggml.token_type", self.types, ValueType.ARRAY, ValueType.INT32),
        ]
        for role, id in self.special_ids.items():
            if role in ID_KEYS:
                entries.append((ID_KEYS[role], id, ValueType.UINT32, None))
        for role, add in self.add_special.items():
            if role in ADD_KEYS:
                entries.append((ADD_KEYS[role], add, ValueType.BOOL, None))
        if self.chat_template:
            entries.append(("tokenizer.chat_template", self.chat_template, ValueType.STRING, None))
        return entries

    def private_metadata(self) -> list[Entry]:
        """Return entries for what llama.cpp's converter leaves out; empty where there is nothing of that kind.

        Which tokens swallow white space is ours alone; llama.cpp has a key for the missing space in front of
        a text, though its converter does not write it for Phi.
        """
        entries: list[Entry] = []
        for name, key in STRIP_KEYS.items():
            if ids := sorted(getattr(self, name)):
                entries.append((key, np.array(ids, np.int32), ValueType.ARRAY, ValueType.INT32))
        if not self.add_space_prefix:
            entries.append((SPACE_PREFIX_KEY, False, ValueType.BOOL, None))
        return entries


class _Table:
    """The entries while they are gathered: `n` of padding, then overwritten one by one."""

    def __init__(self, n: int) -> None:
        self.tokens = [f"[PAD{id}]" for id in range(n)]
        self.scores = np.full(n, PADDING_SCORE, np.float32)
        self.types = np.full(n, TokenType.UNUSED, np.int32)
        self.strips: dict[str, set[int]] = {"lstrip": set(), "rstrip": set()}

    def set(self, id: int, text: str, score: float, kind: int) -> None:
        """Overwrite one entry."""
        if not 0 <= id < len(self.tokens):
            raise TokenizerError(f"token {text[:50]!r} has id {id}, vocab_size is {len(self.tokens)}")
        self.tokens[id], self.scores[id], self.types[id] = text, score, kind

    def add(self, id: int, token: dict[str, Any]) -> None:
        """Overwrite one entry with an added token of a JSON file, with its white-space flags."""
        kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        self.set(id, token["content"], ADDED_SCORE, kind)
        for name, ids in self.strips.items():
            (ids.add if token.get(name) is True else ids.discard)(id)

    def vocabulary(self, cls: type[V], special: SpecialTokens, add_space_prefix: bool) -> V:
        """Build the vocabulary from the gathered entries."""
        return cls(
            tokens=self.tokens,
            scores=self.scores,
            types=self.types,
            special_ids=special.ids,
            add_special=special.add,
            add_space_prefix=add_space_prefix,
            chat_template=special.chat_template,
            lstrip=frozenset(self.strips["lstrip"]),
            rstrip=frozenset(self.strips["rstrip"]),
        )


def _apply_added_tokens(folder: Path, config: dict[str, Any], table: _Table) -> None:
    """Overwrite entries with the added tokens of three files; a later file wins."""
    for text, id in read_optional_json(folder / "added_tokens.json").items():
        if type(id) is not int or id < 0:
            raise TokenizerError(f"added_tokens.json: token {text[:50]!r} has no id")
        if id < len(table.tokens):
            table.set(id, text, ADDED_SCORE, TokenType.USER_DEFINED)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(id.isdecimal() and len(id) < 10 for id in decoder):
        raise TokenizerError("tokenizer_config.json: added_tokens_decoder must map ids to tokens")
    for id, token in decoder.items():
        check_added_token("tokenizer_config.json", token)
        table.add(int(id), token)
    for token in added_tokens(read_optional_json(folder / "tokenizer.json")):
        table.add(token["id"], token)


def _vocab_size(folder: Path, n_pieces: int) -> int:
    """Read how many entries the model has room for; without a config.json, as many as there are pieces."""
    size = read_optional_json(folder / "config.json").get("vocab_size", n_pieces)
    if type(size) is not int or not n_pieces <= size <= MAX_VOCABULARY:
        raise TokenizerError(
            f"{folder}: vocab_size in config.json must be at least {n_pieces}, the size of tokenizer.model"
        )
    return size


def _numbers(file: GGUFFile, key: str, dtype: type[np.generic]) -> NDArray[Any]:
    numbers = file.get(key, np.ndarray)
    if numbers.dtype != dtype:
        raise TokenizerError(f"{key} has elements of type {numbers.dtype}, not {np.dtype(dtype)}")
    return numbers


def _read_strips(file: GGUFFile, types: NDArray[np.int32], tokens: list[str]) -> dict[str, frozenset[int]]:
    """Read which tokens swallow white space: our keys say it; without them llama.cpp goes by the file's name."""
    said = {
        name: frozenset(_numbers(file, key, np.int32).tolist())
        for name, key in STRIP_KEYS.items()
        if key in file.metadata
    }
    if said:
        return said
    name = file.get("general.name", str, "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return {}
    special = np.flatnonzero(np.isin(types, SPECIAL_TYPES)).tolist()
    return {"rstrip": frozenset(id for id in special if tokens[id] not in KEEP_SPACE_AFTER)}
