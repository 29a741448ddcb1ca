"""Files that lie, are cut off, or are not what they say: each must give one line, never a crash or a hang."""

import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phicourse.errors import GGUFError
from phicourse.gguf import GGUFFile

Open = Callable[[bytes], GGUFFile]
U32, F32, STRING, ARRAY, BOOL = 4, 6, 8, 9, 7


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, type: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<i", type) + payload


def entry(name: str, ne: list[int], type: int = 0, offset: int = 0) -> bytes:
    return (
        string(name)
        + struct.pack(f"<I{len(ne)}Qi", len(ne), *[n % 2**64 for n in ne], type)
        + struct.pack("<Q", offset)
    )


def build(
    keys: list[bytes] | None = None,
    entries: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    keys, entries = keys or [], entries or []
    counts = [len(entries) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys]
    head = magic + version + struct.pack("<QQ", *counts) + b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


@pytest.fixture
def open_bytes(tmp_path: Path) -> Open:
    def open_bytes(raw: bytes) -> GGUFFile:
        path = tmp_path / "file.gguf"
        path.write_bytes(raw)
        return GGUFFile.open(path)

    return open_bytes


def small_file() -> bytes:
    """A file with every kind of value and two tensors, the last of which needs no padding."""
    keys = [
        key("general.architecture", STRING, string("phi3")),
        key("number", U32, struct.pack("<I", 5)),
        key("truth", BOOL, b"\x02"),
        key("numbers", ARRAY, struct.pack("<iQ3f", F32, 3, 1, 2, 3)),
        key("words", ARRAY, struct.pack("<iQ", STRING, 2) + string("a") + string("▁b")),
    ]
    entries = [entry("x", [32, 2], 8, 0), entry("y", [8], 0, 96)]
    return build(keys, entries, bytes(96) + np.arange(8, dtype="<f4").tobytes())


def test_the_small_file_is_good(open_bytes: Open) -> None:
    file = open_bytes(small_file())
    assert file.get("truth", bool) is True
    assert file.get("words", list) == ["a", "▁b"]
    assert file.get("numbers", np.ndarray).tolist() == [1, 2, 3]
    assert file.blocks("y").tolist() == [list(range(8))]
    assert file.blocks("x").shape == (2, 1)


def test_cut_at_every_byte(open_bytes: Open) -> None:
    raw = small_file()
    for n in range(len(raw)):
        with pytest.raises(GGUFError) as error:
            open_bytes(raw[:n])
        assert str(error.value).count("\n") == 0
        assert "file.gguf" in str(error.value)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_bytes_give_a_file_or_one_line(open_bytes: Open, data: st.DataObject) -> None:
    raw = bytearray(small_file())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.sampled_from([0, 1, 7, 8, 9, 0x7F, 0x80, 0xFF]))
    try:
        file = open_bytes(bytes(raw))
    except GGUFError as error:
        assert "\n" not in str(error)
        return
    for name, tensor in file.tensors.items():
        assert file.data(name).nbytes == tensor.nbytes
    assert file._repr_html_()


BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "magic": (build(magic=b"GGML"), "begins with b'GGML'"),
    "not a gguf at all": (b"PK\x03\x04" + bytes(64), "begins with"),
    "version 0": (build(version=struct.pack("<I", 0)), "GGUF version 0"),
    "version 1": (build(version=struct.pack("<I", 1)), "GGUF version 1; readable are 2 and 3"),
    "version 4": (build(version=struct.pack("<I", 4)), "GGUF version 4"),
    "big-endian": (build(version=struct.pack(">I", 3)), "big-endian"),
    "2^63 tensors": (build(n_tensors=1 << 63), "9,223,372,036,854,775,808 tensors cannot be in"),
    "2^64-1 keys": (build(n_keys=(1 << 64) - 1), "keys cannot be in"),
    "more keys than there are": (
        build([key("a", U32, bytes(4))], n_keys=2, data=bytes(64)),
        "key 1 is empty",
    ),
    "key length 2^63": (
        build([struct.pack("<Q", 1 << 63) + bytes(64)]),
        "key 0 needs 9,223,372,036,854,775,808",
    ),
    "key length 2^64-1": (build([struct.pack("<Q", (1 << 64) - 1) + bytes(64)]), "key 0 needs"),
    "empty key": (build([key("", U32, bytes(4))]), "key 0 is empty"),
    "zero byte in key": (build([key("a\0b", U32, bytes(4))]), "key 0 is cut by a zero byte"),
    "key twice": (build([key("a", U32, bytes(4))] * 2), "the key 'a' is there twice"),
    "key not UTF-8": (build([string(b"\xff\xfe") + struct.pack("<iI", U32, 1)]), "key 0 is not UTF-8"),
    "surrogates": (build([string(b"\xed\xa0\x80") + struct.pack("<iI", U32, 1)]), "key 0 is not UTF-8"),
    "value not UTF-8": (build([key("a", STRING, string(b"\xc3("))]), "the value of 'a' is not UTF-8"),
    "value type 13": (build([key("a", 13, bytes(8))]), "unknown value type 13"),
    "value type -1": (build([key("a", -1, bytes(8))]), "unknown value type -1"),
    "value length": (
        build([key("a", STRING, struct.pack("<Q", 1 << 40))]),
        "the value of 'a' needs 1,099,511,627,776",
    ),
    "array of arrays": (
        build([key("a", ARRAY, struct.pack("<iQiQ", ARRAY, 1, U32, 0))]),
        "array of arrays",
    ),
    "array type": (build([key("a", ARRAY, struct.pack("<iQ", 77, 1))]), "unknown value type 77"),
    "2^63 numbers": (
        build([key("a", ARRAY, struct.pack("<iQ", U32, 1 << 63))]),
        "numbers in the value of 'a' cannot",
    ),
    "2^62 numbers wrap to 0": (build([key("a", ARRAY, struct.pack("<iQ", U32, 1 << 62))]), "numbers in"),
    "2^63 strings": (
        build([key("a", ARRAY, struct.pack("<iQ", STRING, 1 << 63))]),
        "strings in the value of 'a'",
    ),
    "a string of an array": (
        build([key("a", ARRAY, struct.pack("<iQ", STRING, 2) + string("x") + struct.pack("<Q", 1 << 50))]),
        "string 1 of the value of 'a' needs",
    ),
    "a string of an array not UTF-8": (
        build([key("a", ARRAY, struct.pack("<iQ", STRING, 2) + string("x") + string(b"\x80"))]),
        "string 1 of the value of 'a' is not UTF-8",
    ),
    "alignment 0": (build([key("general.alignment", U32, struct.pack("<I", 0))]), "general.alignment is 0"),
    "alignment 3": (build([key("general.alignment", U32, struct.pack("<I", 3))]), "general.alignment is 3"),
    "alignment 2^31": (build([key("general.alignment", U32, struct.pack("<I", 1 << 31))]), "is 2147483648"),
    "alignment as text": (
        build([key("general.alignment", STRING, string("32"))]),
        "STRING, it must be UINT32",
    ),
    "alignment as float": (build([key("general.alignment", F32, bytes(4))]), "FLOAT32, it must be UINT32"),
}

BAD_TENSORS: dict[str, tuple[list[bytes], int, str]] = {
    "name twice": ([entry("t", [8]), entry("t", [8], offset=32)], 64, "the tensor 't' is there twice"),
    "empty name": ([entry("", [8])], 64, "the name of tensor 0 is empty"),
    "name too long": ([entry("n" * 64, [8])], 64, "more than 63 bytes"),
    "five dimensions": ([entry("t", [1] * 5)], 64, "5 dimensions, the most is 4"),
    "2^32-1 dimensions": (
        [string("t") + struct.pack("<I", 2**32 - 1) + bytes(64)],
        64,
        "4294967295 dimensions",
    ),
    "a dimension of 0": ([entry("t", [8, 0])], 64, "impossible shape"),
    "a negative dimension": ([entry("t", [-8, -1])], 64, "impossible shape"),
    "a product of 2^64": ([entry("t", [1 << 32, 1 << 32])], 64, "impossible shape"),
    "a product that wraps to 8": ([entry("t", [(1 << 61) + 1, 8])], 64, "impossible shape"),
    "more bytes than the file": ([entry("t", [1 << 40])], 64, "ends at byte 4,398,046,511"),
    "bytes beyond 2^63": ([entry("t", [1 << 62])], 64, "ends at byte 18,446,744,073,709,551"),
    "a removed type": ([entry("t", [32], 4)], 64, "unknown tensor type 4"),
    "type 43": ([entry("t", [32], 43)], 64, "unknown tensor type 43"),
    "type -1": ([entry("t", [32], -1)], 64, "unknown tensor type -1"),
    "rows of 31 in blocks of 32": (
        [entry("t", [31, 32], 2)],
        1024,
        "rows of 31 weights are no multiple of 32",
    ),
    "overlap": (
        [entry("a", [16]), entry("b", [8], offset=32)],
        256,
        "'b' is said to start at 32, it must be 64",
    ),
    "gap": ([entry("a", [8]), entry("b", [8], offset=64)], 256, "'b' is said to start at 64, it must be 32"),
    "not aligned": ([entry("a", [3]), entry("b", [8], offset=12)], 256, "it must be 32"),
    "offset 2^64-1": ([entry("a", [8], offset=(1 << 64) - 1)], 256, "it must be 0"),
    "data cut off": ([entry("a", [64])], 255, "ends at byte 320, the file at 319; incomplete download?"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_lie_in_the_header(open_bytes: Open, case: str) -> None:
    raw, message = BAD_HEADERS[case]
    with pytest.raises(GGUFError) as error:
        open_bytes(raw)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_lie_about_a_tensor(open_bytes: Open, case: str) -> None:
    entries, n_data, message = BAD_TENSORS[case]
    with pytest.raises(GGUFError) as error:
        open_bytes(build(entries=entries, data=bytes(n_data)))
    assert message in str(error.value)


def test_a_large_hostile_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A sparse file of 1 TiB claims 2^36 empty strings: the header's size limit refuses the count."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(build([key("a", ARRAY, struct.pack("<iQ", STRING, 1 << 36))]))
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("the file system has no sparse files of this size")
    started = time.monotonic()
    with pytest.raises(GGUFError, match="68,719,476,736 strings in the value of 'a' cannot be in"):
        GGUFFile.open(path)
    assert time.monotonic() - started < 60  # without the limit this takes hours


def test_other_alignments_are_read(open_bytes: Open) -> None:
    raw = build(
        [key("general.alignment", U32, struct.pack("<I", 8))],
        [entry("a", [1]), entry("b", [2], offset=8)],
        np.float32([1, 0, 2, 3]).tobytes(),
        alignment=8,
    )
    file = open_bytes(raw)
    assert file.alignment == 8
    assert file.blocks("b").tolist() == [[2, 3]]


def test_version_2_scalars_and_missing_last_padding_are_read(open_bytes: Open) -> None:
    raw = build(entries=[entry("s", [])], data=np.float32(4.5).tobytes(), version=struct.pack("<I", 2))
    file = open_bytes(raw)
    assert file.version == 2
    assert file.tensors["s"].shape == ()
    assert file.blocks("s").tolist() == [[4.5]]


def test_values_have_the_type_that_is_asked_for(open_bytes: Open) -> None:
    file = open_bytes(small_file())
    assert file.get("number", int) == 5
    assert file.get("missing", int, 7) == 7
    assert file.get("missing", int, None) is None
    for name, type in (
        ("number", str),
        ("number", bool),
        ("number", float),
        ("truth", int),
        ("words", np.ndarray),
    ):
        with pytest.raises(GGUFError, match=f"'{name}' is .*, expected {type.__name__}"):
            file.get(name, type)
    with pytest.raises(GGUFError, match="the key 'missing' is missing"):
        file.get("missing", int)
    with pytest.raises(GGUFError, match="there is no tensor 'z'"):
        file.data("z")


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for name, message in (("none.gguf", "no such file"), ("empty.gguf", "is empty"), (".", "is a folder")):
        with pytest.raises(GGUFError, match=message):
            GGUFFile.open(tmp_path / name)


def test_arrays_outlive_the_file_and_cannot_be_written(open_bytes: Open) -> None:
    with open_bytes(small_file()) as file:
        y = file.blocks("y")
    assert y[0, 7] == 7
    with pytest.raises(ValueError, match="read-only"):
        y[0, 0] = 1
    with pytest.raises(GGUFError, match="is closed"):
        file.data("y")
