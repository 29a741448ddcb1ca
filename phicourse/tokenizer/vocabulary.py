"""A vocabulary: the pieces that text is cut into, and what is special about some of them."""

import re
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
from phicourse.tokenizer.bpe_model import NORMALIZERS, BPEModel, read_bpe_model
from phicourse.tokenizer.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from phicourse.tokenizer.special_tokens import (
    SpecialTokens,
    added_tokens,
    check_added_token,
    named_special_tokens,
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
MODELS = ("llama", "gpt2")  # SentencePiece's and GPT-2's byte-pair encoding, by their names in GGUF
DEFAULT_IDS = {"bos": 1, "eos": 2, "unk": 0}  # of a vocabulary of kind "llama" that does not say
STRIP_KEYS = {
    "lstrip": "phicourse.tokenizer.lstrip_token_ids",
    "rstrip": "phicourse.tokenizer.rstrip_token_ids",
}
NORMALIZER_KEY = "phicourse.tokenizer.normalizer"
SPACE_PREFIX_KEY = "tokenizer.ggml.add_space_prefix"
CONTROL_LOOK = re.compile(r"<\|.*\|>|<pad>|<mask>", re.DOTALL)  # of added tokens that do not say so
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

    model           "llama" for SentencePiece, "gpt2" for byte-pair encoding as in GPT-2
    tokens          text of each entry; SentencePiece pieces have U+2581 for a space, GPT-2's are bytes, each
                    written as one printable character
    scores          (n,) float32, higher merges earlier; zeros in vocabularies of kind "gpt2"
    merges          of kind "gpt2" only: "left right", the first learned first
    pre             of kind "gpt2": how text is cut into words, by llama.cpp's name
    types           (n,) int32 of `TokenType`
    special_ids     role (bos, eos, unk, …) → id, in the order in which the checkpoint's files give them
    add_special     role → whether every text gets that token, in the same order
    lstrip, rstrip  ids of special tokens that swallow the white space before or after them
    normalizer      "NFC" where text is brought into that form first
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
    merges: list[str] = field(default_factory=list)
    normalizer: str | None = None

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
        if self.normalizer not in NORMALIZERS:
            raise TokenizerError(f"normalizer {str(self.normalizer)[:40]!r} is not supported, only NFC is")
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
        return self.add_special.get("bos", self.model == "llama")

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
        default = DEFAULT_IDS.get(role) if self.model == "llama" else None
        return self.special_ids.get(role, default if default in range(len(self.tokens)) else None)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the vocabulary of a checkpoint."""
        return cls.from_folder(checkpoint.folder)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the vocabulary of a checkpoint folder; no weights are needed.

        It is in tokenizer.model (SentencePiece), tokenizer.json, or vocab.json with merges.txt (byte-pair
        encoding as in GPT-2); other JSON files may be missing.
        """
        config = read_optional_json(folder / "tokenizer_config.json")
        tokenizer = read_optional_json(folder / "tokenizer.json")
        path = folder / "tokenizer.model"
        if path.is_file() and config.get("tokenizer_class") != "GPT2Tokenizer":
            return cls._from_sentencepiece(folder, read_sentencepiece_model(path), config, tokenizer)
        model = read_bpe_model(folder, tokenizer)
        if model is None:
            raise TokenizerError(
                f"{folder}: no SentencePiece vocabulary (tokenizer.model) and no byte-pair one"
                " (tokenizer.json, or vocab.json with merges.txt)"
            )
        return cls._from_bpe(folder, model, config, tokenizer)

    @classmethod
    def _from_bpe(
        cls, folder: Path, model: BPEModel, config: dict[str, Any], tokenizer: dict[str, Any]
    ) -> Self:
        added = [token["id"] for token in added_tokens(tokenizer)]
        table = _Table(_vocab_size(folder, 1 + max([*model.ids.values(), *added])))
        for text, id in model.ids.items():
            table.set(id, text, 0, TokenType.NORMAL)
        if not tokenizer:  # then no list of added tokens need have those of vocab.json
            for id in {model.ids[text] for text in named_special_tokens(folder) if text in model.ids}:
                table.set(id, table.tokens[id], 0, TokenType.CONTROL)
        _apply_added_tokens(folder, config, tokenizer, table)
        table.settle_added_tokens()
        return table.vocabulary(
            cls,
            read_special_tokens(folder, len(table.tokens), tokenizer),
            model="gpt2",
            pre="phi-2" if model.pre == "gpt-2" and table.adds_white_space() else model.pre,
            scores=np.zeros(len(table.tokens), np.float32),
            merges=model.merges,
            normalizer=model.normalizer,
            add_space_prefix=False,
        )

    @classmethod
    def _from_sentencepiece(
        cls, folder: Path, model: SentencePieceModel, config: dict[str, Any], tokenizer: dict[str, Any]
    ) -> Self:
        table = _Table(_vocab_size(folder, len(model.pieces)))
        for id, piece in enumerate(model.pieces):
            # SentencePiece numbers the types of its pieces as GGUF does; its user-defined ones count as normal.
            kind = TokenType.NORMAL if piece.type == TokenType.USER_DEFINED else piece.type
            table.set(id, piece.text, piece.score, kind)
        _apply_added_tokens(folder, config, tokenizer, table)
        special = read_special_tokens(folder, len(table.tokens), tokenizer)
        return table.vocabulary(cls, special, scores=table.scores, add_space_prefix=model.add_space_prefix)

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Self:
        """Read the vocabulary in a GGUF file's metadata."""
        model = file.get("tokenizer.ggml.model", str)
        if model not in MODELS:
            raise TokenizerError(
                f"{file.path}: tokenizer kind {model[:40]!r} is not supported; supported are {', '.join(MODELS)}"
            )
        byte_pairs = model == "gpt2"
        tokens = file.get("tokenizer.ggml.tokens", list)
        types = _numbers(file, "tokenizer.ggml.token_type", np.int32)
        strips = _read_strips(file, types, tokens) if len(types) == len(tokens) else {}
        try:
            return cls(
                tokens=tokens,
                scores=np.zeros(len(tokens), np.float32) if byte_pairs else _scores(file),
                types=types,
                special_ids={
                    role: file.get(key, int) for role, key in ID_KEYS.items() if key in file.metadata
                },
                add_special={
                    role: file.get(key, bool) for role, key in ADD_KEYS.items() if key in file.metadata
                },
                add_space_prefix=file.get(SPACE_PREFIX_KEY, bool, not byte_pairs),
                chat_template=file.get("tokenizer.chat_template", str, None),
                model=model,
                pre=file.get("tokenizer.ggml.pre", str, "default"),
                merges=file.get("tokenizer.ggml.merges", list) if byte_pairs else [],
                normalizer=file.get(NORMALIZER_KEY, str, None),
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
        ]
        if self.model == "llama":
            entries.append(("tokenizer.ggml.scores", self.scores, ValueType.ARRAY, ValueType.FLOAT32))
        entries.append(("tokenizer.ggml.token_type", self.types, ValueType.ARRAY, ValueType.INT32))
        if self.merges:
            entries.append(("tokenizer.ggml.merges", self.merges, ValueType.ARRAY, ValueType.STRING))
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

        Which tokens swallow white space, and how text is normalized, is ours alone; llama.cpp has a key for
        the missing space in front of a text, though its converter does not write it for Phi.
        """
        entries: list[Entry] = []
        for name, key in STRIP_KEYS.items():
            if ids := sorted(getattr(self, name)):
                entries.append((key, np.array(ids, np.int32), ValueType.ARRAY, ValueType.INT32))
        if self.add_space_prefix != (self.model == "llama"):
            entries.append((SPACE_PREFIX_KEY, self.add_space_prefix, ValueType.BOOL, None))
        if self.normalizer is not None:
            entries.append((NORMALIZER_KEY, self.normalizer, ValueType.STRING, None))
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

    def settle_added_tokens(self) -> None:
        """Make control tokens of added ones that look like it, as llama.cpp's converter does for kind "gpt2"."""
        for id in np.flatnonzero(self.types == TokenType.USER_DEFINED).tolist():
            if CONTROL_LOOK.fullmatch(self.tokens[id]):
                self.types[id] = TokenType.CONTROL
            else:
                self.tokens[id] = self.tokens[id].replace("▁", " ")

    def adds_white_space(self) -> bool:
        """Whether white space was added as tokens of its own."""
        added = np.flatnonzero(self.types == TokenType.USER_DEFINED).tolist()
        return any(self.tokens[id].isspace() for id in added)

    def vocabulary(self, cls: type[V], special: SpecialTokens, **kind: Any) -> V:
        """Build the vocabulary from the gathered entries, and what depends on its kind."""
        return cls(
            tokens=self.tokens,
            types=self.types,
            special_ids=special.ids,
            add_special=special.add,
            chat_template=special.chat_template,
            lstrip=frozenset(self.strips["lstrip"]),
            rstrip=frozenset(self.strips["rstrip"]),
            **kind,
        )


def _apply_added_tokens(
    folder: Path, config: dict[str, Any], tokenizer: dict[str, Any], table: _Table
) -> None:
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
    for token in added_tokens(tokenizer):
        table.add(token["id"], token)


def _vocab_size(folder: Path, n_tokens: int) -> int:
    """Read how many entries the model has room for; without a config.json, as many as there are tokens."""
    size = read_optional_json(folder / "config.json").get("vocab_size", n_tokens)
    if type(size) is not int or not n_tokens <= size <= MAX_VOCABULARY:
        raise TokenizerError(
            f"{folder}: vocab_size in config.json must be at least {n_tokens}, the size of its tokenizer,"
            f" and at most {MAX_VOCABULARY}"
        )
    return size


def _scores(file: GGUFFile) -> NDArray[np.float32]:
    return _numbers(file, "tokenizer.ggml.scores", np.float32)


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
