"""The checks of notebook 02, the GGUF file byte by byte."""

import math
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phicourse.exercises import record
from phicourse.exercises.compare import (
    compare_arrays,
    compare_bytes,
    compare_values,
    first_difference,
    show_bytes,
)
from phicourse.exercises.exercise import Answer, Mistake, exercise
from phicourse.gguf import GGUFWriter, ValueType
from phicourse.gguf.anatomy import dissect, part_at

Metadata = Mapping[str, str | int | float]
Tensors = Mapping[str, NDArray[np.float32]]

_METADATA: Metadata = {"general.architecture": "phi3", "phi3.block_count": 2, "rope": 0.5, "name": "Φ ▁tiny"}
_TENSORS: Tensors = {
    "a.weight": np.arange(15, dtype="<f4").reshape(3, 5),
    "b.weight": np.linspace(-1, 1, 16, dtype="<f4").reshape(2, 8),
    "c.weight": np.array([0.25, -8, 3], "<f4"),
}


def write_gguf(metadata: Metadata, tensors: Tensors) -> bytes:
    """Write a GGUF file as the course's own writer does: whole numbers UINT32, others FLOAT32, tensors F32.

    tensors  name -> float32 of 1 to 4 dimensions
    returns  the bytes of the file
    """
    with tempfile.TemporaryDirectory(dir=record.out_folder()) as folder:
        path = Path(folder) / "file.gguf"
        with GGUFWriter(path) as writer:
            for key, value in metadata.items():
                writer.add(key, value, _type(value))
            for name, weights in tensors.items():
                writer.declare(name, weights.shape, "F32")
            for name, weights in tensors.items():
                writer.write(name, weights)
        return path.read_bytes()


def _type(value: str | int | float) -> ValueType:
    types = {str: ValueType.STRING, int: ValueType.UINT32, float: ValueType.FLOAT32}
    return types[type(value)]


@exercise("02.1", "A string", difficulty=1, minutes=5, core=True)
def pack_string(answer: Answer) -> Mistake | None:
    """Hold `pack_string(text) -> bytes` against strings of one and of several bytes a character."""
    for text in ("phi3", "", "Φ ▁tiny"):
        raw = text.encode()
        got = answer(text)
        mistake = compare_bytes(
            f"the string {text!r}", struct.pack("<Q", len(raw)) + raw, got, _string(text, got)
        )
        if mistake is not None:
            return mistake
    return None


def _string(text: str, got: Any) -> str:
    raw = text.encode()
    wrong = {
        struct.pack("<Q", len(text)) + raw: "the length counts bytes, not characters: encode first",
        struct.pack("<I", len(raw))
        + raw: "the length has 8 bytes: Q, not I (GGUF 1 had 4, and was replaced for it)",
        struct.pack(">Q", len(raw)) + raw: "little-endian, lowest byte first: `<Q`",
        struct.pack("<Q", len(raw) + 1)
        + raw
        + b"\0": "no zero byte at the end: the length says where it ends",
        raw: "the length comes first",
    }
    return wrong.get(got, "the text in UTF-8: `text.encode()`") if isinstance(got, bytes) else ""


@exercise("02.2", "A value and its type", difficulty=2, minutes=10, core=True)
def pack_value(answer: Answer) -> Mistake | None:
    """Hold `pack_value(value) -> bytes` against a string, a whole number and a float."""
    cases = {
        "phi3": struct.pack("<IQ", 8, 4) + b"phi3",
        3072: struct.pack("<II", 4, 3072),
        0.5: struct.pack("<If", 6, 0.5),
    }
    likely = "4 bytes of type (4 UINT32, 6 FLOAT32, 8 STRING), then the value; floats have 4 bytes, too"
    for value, expected in cases.items():
        mistake = compare_bytes(f"the value {value!r}", expected, answer(value), likely)
        if mistake is not None:
            return mistake
    return None


@exercise("02.3", "How many zeros", difficulty=1, minutes=5, core=True)
def padding(answer: Answer) -> Mistake | None:
    """Hold `padding(n_bytes, alignment=32) -> int` against sizes around the multiples."""
    for n_bytes, alignment in ((0, 32), (1, 32), (31, 32), (32, 32), (33, 32), (100, 64), (5, 1)):
        expected = -n_bytes % alignment
        got = answer(n_bytes) if alignment == 32 else answer(n_bytes, alignment)
        likely = {
            alignment: "a multiple of the alignment needs no zeros at all",
            n_bytes
            % alignment: "that is how many bytes are too many; so many are missing to the next multiple",
            n_bytes + expected: "only the zeros are asked for, not the new size",
        }.get(got if isinstance(got, int) else -1, "")
        mistake = compare_values(f"{n_bytes} bytes, alignment {alignment}", expected, got, likely)
        if mistake is not None:
            return mistake
    return None


@exercise("02.4", "The writer", difficulty=3, minutes=20, core=True)
def writer(answer: Answer) -> Mistake | None:
    """Hold `write_gguf(metadata, tensors) -> bytes` against the course's writer, byte by byte."""
    small: tuple[Metadata, Tensors] = {"general.architecture": "phi3"}, {"x": _TENSORS["b.weight"]}
    for metadata, tensors in (small, (_METADATA, _TENSORS)):
        got = answer(dict(metadata), dict(tensors))
        mistake = _compare_files(write_gguf(metadata, tensors), got)
        if mistake is not None:
            return mistake
    return None


def _compare_files(expected: bytes, got: Any) -> Mistake | None:
    """Compare two files, and say in which field the first difference is."""
    if not isinstance(got, bytes):
        return compare_bytes("the file", expected, got)
    at = first_difference(expected, got)
    if at is None:
        return None
    if at == len(expected):
        return Mistake(
            "behind the last byte", "nothing", show_bytes(got, at), "a multiple of 32 needs no zeros"
        )
    part = part_at(dissect(expected), at)
    likely = next((hint for beginning, hint in _FIELD_HINTS if part.what.startswith(beginning)), "")
    where = f"byte {at:,}, in {part.what}{f' (= {part.value})' if part.value else ''}"
    return Mistake(where, show_bytes(expected, at), show_bytes(got, at), likely)


_FIELD_HINTS = (
    ("the magic number", "the file begins with b'GGUF'"),
    ("the version", "version 3, in 4 bytes"),
    ("the count of", "8 bytes each; the tensors are counted first, then the keys"),
    ("the length of", "strings have an 8-byte length; keys and entries follow each other without gaps"),
    ("the dimensions of", "the number of dimensions has 4 bytes"),
    ("the shape of", "8 bytes a size, and the sizes in reverse: the contiguous dimension first"),
    ("the type of tensor", "4 bytes; F32 is type 0"),
    ("the type of", "4 bytes: your pack_value writes them"),
    (
        "the offset of",
        "8 bytes; offsets count from the start of the data, and each tensor is padded to 32 bytes",
    ),
    ("zeros", "zeros up to a multiple of 32: behind the header, and behind each tensor, the last one too"),
    ("the weights of", "the padding comes first; then the array's bytes as they are: weights.tobytes()"),
)


@exercise("02.5", "The reader", difficulty=3, minutes=20)
def reader(answer: Answer) -> Mistake | None:
    """Give `read_gguf(raw) -> (metadata, tensors)` a file of the course's writer, and compare what it finds."""
    got = answer(write_gguf(_METADATA, _TENSORS))
    if not isinstance(got, tuple) or len(got) != 2 or not all(isinstance(part, dict) for part in got):
        return Mistake(
            "what comes back", "a pair of dicts: metadata, tensors", repr(got), "return metadata, tensors"
        )
    return _compare_pairs(got[0]) or _compare_tensors(got[1])


def _compare_pairs(got: dict[str, Any]) -> Mistake | None:
    mistake = compare_values(
        "the keys", list(_METADATA), list(got), "each key is a string: its length, then its bytes"
    )
    for key, value in _METADATA.items():
        mistake = mistake or compare_values(
            f"the value of {key!r}", value, got[key], "look at its type first"
        )
    return mistake


def _compare_tensors(got: dict[str, Any]) -> Mistake | None:
    mistake = compare_values(
        "the names of the tensors",
        list(_TENSORS),
        list(got),
        "as many entries as the header counts, right behind the last key; each begins with its name",
    )
    for name, weights in _TENSORS.items():
        likely = _tensor(weights, got.get(name))
        mistake = mistake or compare_arrays(f"tensor {name!r}", weights, got[name], likely)
    return mistake


def _tensor(expected: NDArray[np.float32], got: Any) -> str:
    if isinstance(got, np.ndarray) and got.shape == expected.shape[::-1] and expected.ndim > 1:
        return "the file has the contiguous dimension first, NumPy has it last: reverse the sizes"
    if isinstance(got, np.ndarray) and got.shape == (math.prod(expected.shape),):
        return "reshape the numbers to the sizes, in reverse"
    return "the data starts at the next multiple of 32 behind the last entry; offsets count from there"
