"""Reads a byte-pair vocabulary of a checkpoint folder: tokenizer.json, or vocab.json with merges.txt.

tokenizer.json describes a whole tokenizer. Those of Phi models are of one make: an optional normalizer, a
pre-tokenizer that cuts words, byte-pair encoding, and tokens that were added later. Whatever would need more
than that is refused: a tokenizer that gives slightly other ids makes a model slightly worse, and nobody sees it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicourse.checkpoint import read_json_object
from phicourse.errors import TokenizerError
from phicourse.tokenizer.pre_tokenizer import name_of_pre_tokenizer

MERGES_LIMIT = 64 << 20  # bytes; the largest in use has 5 MB
NORMALIZERS = (None, "NFC")
PLAIN = {  # what Phi's tokenizers have, or leave out
    "type": ("BPE",),
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


@dataclass(frozen=True)
class BPEModel:
    """A byte-pair vocabulary.

    ids          token → id; bytes are written in the alphabet of GPT-2
    merges       "left right", the first learned first
    pre          llama.cpp's name for the way to cut text into words
    normalizer   "NFC" where text is brought into that form first
    """

    ids: dict[str, int]
    merges: list[str]
    pre: str
    normalizer: str | None = None


def read_bpe_model(folder: Path, tokenizer: dict[str, Any]) -> BPEModel | None:
    """Read a folder's byte-pair vocabulary; None where it has none.

    tokenizer   the content of tokenizer.json; empty where there is none
    raises      TokenizerError where a file is broken or describes another kind of tokenizer
    """
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not tokenizer and not (vocabulary.is_file() and merges.is_file()):
        return None
    source = folder / "tokenizer.json" if tokenizer else vocabulary
    try:
        if tokenizer:
            return _from_tokenizer_json(tokenizer)
        return _from_vocab_json(read_json_object(vocabulary), merges)
    except TokenizerError as error:
        raise TokenizerError(f"{source}: {error}") from error


def _from_tokenizer_json(tokenizer: dict[str, Any]) -> BPEModel:
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("it has no model")
    if model.get("byte_fallback") is True:
        raise TokenizerError("it describes a SentencePiece vocabulary: tokenizer.model is needed")
    for name, allowed in PLAIN.items():
        if (value := model.get(name, allowed[0])) not in allowed:
            raise TokenizerError(f"model.{name} is {str(value)[:50]!r}, which is not supported")
    if not _has_type(tokenizer.get("decoder"), "ByteLevel"):
        raise TokenizerError("its decoder is not ByteLevel, the only one supported")
    return BPEModel(
        ids=_checked_ids(model.get("vocab")),
        merges=_merges(model.get("merges")),
        pre=name_of_pre_tokenizer(tokenizer.get("pre_tokenizer")),
        normalizer=_normalizer(tokenizer.get("normalizer")),
    )


def _from_vocab_json(ids: dict[str, Any], merges: Path) -> BPEModel:
    """Read the older pair of files, which say nothing of words: they come with GPT-2's way to cut them.

    Only that way puts a space and a digit into one word, so the vocabulary shows whether it was learned so.
    """
    if "Ġ1" not in ids:
        raise TokenizerError(
            "this vocabulary was not learned with GPT-2's words: tokenizer.json is needed, which says with what"
        )
    return BPEModel(_checked_ids(ids), _read_merges(merges), "gpt-2")


def _checked_ids(ids: object) -> dict[str, int]:
    if not isinstance(ids, dict) or not ids:
        raise TokenizerError("its vocabulary is not an object of tokens and ids")
    wrong = next((token for token, id in ids.items() if type(id) is not int or id < 0), None)
    if wrong is not None:
        raise TokenizerError(f"token {wrong[:50]!r} has the id {str(ids[wrong])[:50]}")
    if len(set(ids.values())) < len(ids):
        raise TokenizerError("two tokens of its vocabulary have the same id")
    return ids


def _merges(merges: object) -> list[str]:
    """Read "left right" or, as newer files have it, ["left", "right"]."""
    if not isinstance(merges, list):
        raise TokenizerError("model.merges is not a list")
    return [_merge(merge) for merge in merges]


def _merge(merge: object) -> str:
    match merge:
        case str():
            return merge
        case [str(left), str(right)]:
            return f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}"
    raise TokenizerError(f"merge {str(merge)[:50]!r} is not a pair of tokens")


def _read_merges(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MERGES_LIMIT:
            raise TokenizerError(f"{path.name} is larger than {MERGES_LIMIT >> 20} MiB")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path.name} cannot be read as UTF-8 text: {error}") from error
    return list(_pairs(lines[1:] if lines[0].startswith("#") else lines))


def _pairs(lines: list[str]) -> Iterator[str]:
    for line in filter(None, map(str.strip, lines)):
        if len(line.split()) != 2:
            raise TokenizerError(f"merges.txt: {line[:50]!r} is not a pair of tokens")
        yield " ".join(line.split())


def _normalizer(description: object) -> str | None:
    match description:
        case None | {"type": "Sequence", "normalizers": []}:
            return None
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            return "NFC"
    raise TokenizerError("its normalizer is not NFC, the only one supported")


def _has_type(description: object, name: str) -> bool:
    return isinstance(description, dict) and description.get("type") == name
