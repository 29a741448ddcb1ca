"""Reads tokenizer.model: the pieces of a SentencePiece vocabulary, from the few protocol-buffer fields needed.

A protocol buffer is a row of fields. Each starts with a number: field * 8 + wire type. Numbers are varints,
seven bits a byte with the low bits first; texts and messages are a length and that many bytes.

    ModelProto       1 pieces (one message each), 2 trainer, 3 normalizer
    SentencePiece    1 piece (text), 2 score (float32), 3 type (1 NORMAL, 2 UNKNOWN, 3 CONTROL, …)
    TrainerSpec      3 model type (2 is BPE), 24 treat_whitespace_as_suffix
    NormalizerSpec   2 precompiled_charsmap, 3 add_dummy_prefix, 5 escape_whitespaces

Its field 4, remove_extra_whitespaces, is not looked at: GGUF cannot say it for this kind of vocabulary, so
llama.cpp keeps all white space, and so do we.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phicourse.errors import TokenizerError

SIZE_LIMIT = 64 << 20  # bytes; real ones have half a megabyte to five
MODEL_TYPE_BPE = 2
NUMBER, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; `type` is SentencePiece's number for it."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The pieces in order of their ids, and whether a space is put before a text."""

    pieces: tuple[Piece, ...]
    add_space_prefix: bool


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read and check a tokenizer.model.

    raises   TokenizerError where the file is broken, no BPE model, or normalizes text in ways that we do not
    """
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise TokenizerError(
                f"{path}: larger than {SIZE_LIMIT >> 20} MiB, too large for a tokenizer.model"
            )
        content = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse_sentencepiece_model(content)
    except (ValueError, struct.error) as error:
        raise TokenizerError(f"{path}: not a SentencePiece model: {error}") from error
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def parse_sentencepiece_model(content: bytes) -> SentencePieceModel:
    """Parse the bytes of a tokenizer.model; ValueError where they are no protocol buffer of that kind."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(content):
        if field == 1:
            pieces.append(_parse_piece(_message(value)))
        elif field == 2:
            trainer |= dict(_fields(_message(value)))
        elif field == 3:
            normalizer |= dict(_fields(_message(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    _check_kind(trainer, normalizer)
    return SentencePieceModel(tuple(pieces), bool(normalizer.get(3, 1)))


def _check_kind(trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]) -> None:
    """Refuse models that our merge loop would tokenize differently; the Phi-3 family passes."""
    if trainer.get(3, 1) != MODEL_TYPE_BPE:
        raise TokenizerError("a SentencePiece model, but not of type BPE; only BPE is supported")
    unsupported = {
        "changes characters (precompiled_charsmap)": bool(normalizer.get(2, b"")),
        "does not turn spaces into U+2581": not normalizer.get(5, 1),
        "marks the end of words, not their start": bool(trainer.get(24, 0)),
    }
    fault = next((name for name, present in unsupported.items() if present), None)
    if fault is not None:
        raise TokenizerError(f"its normalizer {fault}, which is not supported")


def _parse_piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(message):
        if field == 1:
            text = _message(value).decode("utf-8")
        elif field == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif field == 3 and isinstance(value, int):
            kind = value
    if not math.isfinite(score):
        raise ValueError(f"piece {text[:50]!r} has the score {score}")
    return Piece(text, score, kind)


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes were expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk over the fields of a message: numbers as int, all else as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == NUMBER:
            number, position = _varint(data, position)
            yield field, number
            continue
        if wire_type == BYTES:
            length, position = _varint(data, position)
        elif wire_type in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire_type == EIGHT_BYTES else 4
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {position}")
        if length > len(data) - position:
            raise ValueError(f"field {field} ends after the end of its message")
        yield field, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Read a varint of at most ten bytes; return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("the file ends within a number")
        value |= (data[position] & 127) << shift
        position += 1
        if data[position - 1] < 128:
            return value, position
    raise ValueError(f"number of more than ten bytes before byte {position}")
