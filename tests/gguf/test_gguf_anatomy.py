"""The anatomy of a file: every byte has a name, the names are those of the bytes, and a fault has its place."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phicourse.exercises.gguf import write_gguf
from phicourse.gguf import GGUFFile
from phicourse.gguf.anatomy import KINDS, Part, dissect, part_at

FILE = write_gguf(
    {"general.architecture": "phi3", "n": 7, "empty": "", "theta": 0.5},
    {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(8, np.float32)},
)
HEADER_END = next(part.offset for part in dissect(FILE) if part.kind == "padding")


def without_gaps(parts: list[Part], size: int) -> bool:
    ends = [0, *(part.end for part in parts)]
    return (
        all(part.offset == end and part.nbytes for part, end in zip(parts, ends, strict=False))
        and ends[-1] == size
    )


def test_every_byte_belongs_to_one_part() -> None:
    parts = dissect(FILE)
    assert without_gaps(parts, len(FILE)) and {part.kind for part in parts} <= set(KINDS) - {
        "fault",
        "unread",
    }


def test_parts_say_what_their_bytes_say() -> None:
    found = {part.what: part for part in dissect(FILE)}
    assert found["the count of tensors"].offset == 8 and found["the count of tensors"].value == "2"
    assert found["key 0"].value == "'general.architecture'"
    assert found["the type of the value of 'n'"].value == "4: UINT32"
    assert found["the value of 'n'"].value == "7" and found["the value of 'theta'"].value == "0.5"
    assert found["the type of tensor 'a.weight'"].value == "0: F32"
    assert found["the length of the value of 'empty'"].value == "0" and "the value of 'empty'" not in found
    weights = found["the weights of 'a.weight'"]
    assert np.array_equal(np.frombuffer(FILE[weights.offset : weights.end], "<f4"), np.ones(6))


def test_agrees_with_the_reader_on_a_real_file(phi_tiny: Path, tmp_path: Path) -> None:
    import phicourse

    path = phicourse.convert(phi_tiny, tmp_path / "tiny.gguf", "f16", progress=False)
    file, raw = GGUFFile.open(path), Path(path).read_bytes()
    parts = dissect(raw)
    assert without_gaps(parts, len(raw))
    weights = [(part.offset, part.nbytes) for part in parts if part.kind == "weights"]
    assert weights == [(tensor.offset, tensor.nbytes) for tensor in file.tensors.values()]
    assert sum(part.what.startswith("key ") for part in parts) == len(file.metadata)


@pytest.mark.parametrize(
    ("raw", "fault_at", "said"),
    [
        (b"GGML" + FILE[4:], 0, "no GGUF file"),
        (FILE[:4] + struct.pack("<I", 9) + FILE[8:], 4, "version 9"),
        (FILE[:16] + struct.pack("<Q", 1 << 62) + FILE[24:], 16, "cannot be in"),
        (FILE[:90], 85, "the length of key 2"),
        (FILE[:-40], HEADER_END, "incomplete download"),
    ],
)
def test_a_fault_has_its_place_and_the_readers_words(raw: bytes, fault_at: int, said: str) -> None:
    parts = dissect(raw)
    (fault,) = [part for part in parts if part.kind == "fault"]
    assert without_gaps(parts, len(raw)) and fault.offset == fault_at and said in fault.what
    assert {part.kind for part in parts if part.offset > fault.offset} <= {"unread"}


@given(st.binary(max_size=80), st.integers(0, len(FILE)))
@settings(deadline=None, max_examples=200)
def test_whatever_the_bytes_are_each_has_a_part(noise: bytes, at: int) -> None:
    raw = FILE[:at] + noise + FILE[at + len(noise) :]
    assert without_gaps(dissect(raw), len(raw))


def test_part_at_finds_the_part_of_a_byte() -> None:
    parts = dissect(FILE)
    assert part_at(parts, 0).what == "the magic number" and part_at(parts, 5).what == "the version"
    assert part_at(parts, len(FILE) - 1).offset <= len(FILE) - 1
