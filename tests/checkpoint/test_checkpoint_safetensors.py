"""Safetensors files: the same as the safetensors package reads, and files that lie about themselves."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phicourse.checkpoint import SafetensorsFile
from phicourse.errors import CheckpointError

Write = Callable[..., Path]
GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file: `write(header, data, length=None)`, the header as bytes or as an object for JSON."""

    def write(header: Any, data: bytes = b"", length: int | None = None) -> Path:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
        return path

    return write


def test_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    dtypes = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    dtypes += ("int64", "int32", "int16", "int8", "uint8", "bool")
    source = torch.linspace(-2, 2, 24).reshape(2, 3, 4)
    tensors = {name: source.to(getattr(torch, name)) for name in dtypes}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 5)}
    path = tmp_path / "model.safetensors"
    safetensors.save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile.open(path)
    assert list(file.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        ours = file.data(name)
        assert ours.shape == tuple(tensor.shape)
        assert ours.tobytes() == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert not ours.flags.writeable
    assert file.data("float32").dtype == np.dtype("<f4")
    assert file.data("bfloat16").dtype == np.dtype("<u2")


def test_entries_say_where_a_tensor_lies(write: Write) -> None:
    path = write(GOOD, np.arange(6, dtype="<f4").tobytes())
    file = SafetensorsFile.open(path)
    tensor = file.tensors["a"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F32", (2, 3), 24)
    assert path.read_bytes()[tensor.offset :] == np.arange(6, dtype="<f4").tobytes()
    np.testing.assert_array_equal(file.data("a"), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(CheckpointError, match="has no tensor b"):
        file.data("b")


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


TWO = {
    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (entry(dtype="F12"), b"\0" * 24, "unknown dtype 'F12'"),
        (entry(dtype=4), b"\0" * 24, "unknown dtype"),
        (entry(dtype=["F32"]), b"\0" * 24, "unknown dtype"),
        (entry(shape=[2, -3]), b"\0" * 24, "shape"),
        (entry(shape=[2, 3.0]), b"\0" * 24, "shape"),
        (entry(shape=[True, 6]), b"\0" * 24, "shape"),
        (entry(shape="6"), b"\0" * 24, "shape"),
        (entry(shape=[1] * 9 + [6]), b"\0" * 24, "shape"),
        (entry(shape=[2, 4]), b"\0" * 24, "needs 32 bytes, data_offsets give 24"),
        (entry(shape=[1 << 62, 1 << 62]), b"\0" * 24, "needs"),
        (entry(offsets=[24, 0]), b"\0" * 24, "data_offsets"),
        (entry(offsets=[0]), b"\0" * 24, "data_offsets"),
        (entry(offsets=[0, 1 << 64]), b"\0" * 24, "data_offsets"),
        (entry(offsets=None), b"\0" * 24, "data_offsets"),
        (
            entry(),
            b"\0" * 20,
            r"ends at byte \d+, the file at \d+: incomplete download\?.*phicourse download",
        ),
        (entry(), b"\0" * 28, "the last tensor ends at byte"),
        (entry(offsets=[4, 28]), b"\0" * 28, "leaves a gap"),
        (TWO | {"b": TWO["b"] | {"data_offsets": [2, 6]}}, b"\0" * 6, "overlaps"),
        (TWO | {"b": TWO["a"]}, b"\0" * 8, "overlaps"),
        (TWO | {"b": TWO["b"] | {"data_offsets": [6, 10]}}, b"\0" * 10, "leaves a gap"),
        ({"a": [1, 2]}, b"", "must be an object"),
        ({"a\nb": GOOD["a"]}, b"\0" * 24, "not printable"),
        (b'{"\\ud800": {}}', b"", "not printable"),
        ([1], b"", "must be a JSON object"),
        (b"{nonsense}", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "'a' appears twice"),
        (b"[" * 1_000_000, b"", "nested too deeply"),
    ],
)
def test_a_file_that_lies(write: Write, header: Any, data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        SafetensorsFile.open(write(header, data))
    assert "model.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("length", "reason"),
    [(1000, "header ends at byte 1,008, the file at"), (100_000_001, "limit"), (2**64 - 1, "limit")],
)
def test_length_of_the_header(write: Write, length: int, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        SafetensorsFile.open(write(GOOD, b"\0" * 24, length))


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        SafetensorsFile.open(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):
        SafetensorsFile.open(tmp_path)
    (tmp_path / "short.safetensors").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="only 7 bytes"):
        SafetensorsFile.open(tmp_path / "short.safetensors")


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    edits=st.lists(st.tuples(st.integers(0, 95), st.integers(0, 255)), max_size=4), cut=st.integers(0, 100)
)
def test_damaged_bytes_give_an_error_or_a_sound_file(
    write: Write, edits: list[tuple[int, int]], cut: int
) -> None:
    path = write(GOOD, np.arange(6, dtype="<f4").tobytes())
    content = bytearray(path.read_bytes())
    for place, byte in edits:
        if place < len(content):
            content[place] = byte
    path.write_bytes(content[: len(content) - cut] if cut < 20 else content)
    try:
        file = SafetensorsFile.open(path)
    except CheckpointError:
        return
    for name, tensor in file.tensors.items():
        assert file.data(name).nbytes == tensor.nbytes
