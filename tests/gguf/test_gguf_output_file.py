"""Files written past the page cache: every byte in its place, whatever the pieces and the file system."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest

from phicourse.errors import GGUFError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, output_file
from phicourse.gguf.output_file import DIRECT_FROM, OutputFile

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
BUFFER = output_file._BUFFER


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The flags with which files are opened for writing."""
    flags: list[int] = []
    real = os.open

    def watched(path: str, mode: int, *rest: int) -> int:
        flags.append(mode)
        return real(path, mode, *rest)

    monkeypatch.setattr(os, "open", watched)
    return flags


def write(path: Path, pieces: list[bytes], size: int = DIRECT_FROM) -> None:
    with OutputFile(path, size) as file:
        for piece in pieces:
            file.write(memoryview(piece))
        file.finish()


@pytest.mark.parametrize(
    "sizes",
    [
        [0],
        [1],
        [4096],
        [BUFFER],
        [BUFFER + 1],
        [BUFFER - 1, 2, BUFFER],
        [5, 3 * BUFFER, 4096 - 5],
        [4095] * 3000,
    ],
)
def test_pieces_of_any_size_become_one_file(tmp_path: Path, opened: list[int], sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    pieces = [rng.bytes(size) for size in sizes]
    write(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert opened[0] & os.O_DIRECT


def test_a_small_file_goes_through_the_page_cache(tmp_path: Path, opened: list[int]) -> None:
    write(tmp_path / "a", [b"small"], size=5)
    assert (tmp_path / "a").read_bytes() == b"small"
    assert not opened


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, mode: int, *rest: int) -> int:
        if mode & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument", path)
        return real(path, mode, *rest)

    monkeypatch.setattr(os, "open", refuse)
    write(tmp_path / "a", [bytes(BUFFER), b"end"])
    assert (tmp_path / "a").read_bytes() == bytes(BUFFER) + b"end"


def test_a_disk_that_wants_larger_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening works there, and the first write does not."""

    class Picky(io.FileIO):
        refused = 0

        def write(self, raw) -> int:
            if output_file.fcntl.fcntl(self, output_file.fcntl.F_GETFL) & os.O_DIRECT:
                Picky.refused += 1
                raise OSError(errno.EINVAL, "Invalid argument")
            return super().write(raw)

    monkeypatch.setattr(output_file.io, "FileIO", Picky)
    pieces = [b"x" * (BUFFER + 7), b"y" * 5000]
    write(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert Picky.refused == 1


def test_a_gguf_file_has_the_same_bytes_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def example(path: Path) -> bytes:
        rng = np.random.default_rng(0)
        with GGUFWriter(path) as writer:
            writer.add("general.architecture", "phi3", ValueType.STRING)
            for name, rows in (("a", 1000), ("b", 3)):
                writer.declare(name, (rows, 33), "F32")
            for name, rows in (("a", 1000), ("b", 3)):
                writer.write(name, rng.standard_normal((rows, 33), np.float32))
        assert GGUFFile.open(path).tensors.keys() == {"a", "b"}
        return path.read_bytes()

    through = example(tmp_path / "through.gguf")
    monkeypatch.setattr(output_file, "DIRECT_FROM", 0)
    assert example(tmp_path / "past.gguf") == through


def test_a_full_disk_is_told_also_when_it_shows_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: OutputFile, raw: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_file, "DIRECT_FROM", 0)
    monkeypatch.setattr(OutputFile, "_put", full)
    message = r"a\.gguf: cannot be written \(No space left"
    with pytest.raises(GGUFError, match=message), GGUFWriter(tmp_path / "a.gguf") as writer:
        writer.declare("a", (4,), "F32")
        writer.write("a", np.zeros(4, np.float32))
    assert list(tmp_path.iterdir()) == []
