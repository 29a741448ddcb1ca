"""Files are read ahead for an engine: all of them, in the background, and only where that helps."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from phicourse.gguf import mapping
from phicourse.gguf.mapping import WORTH_IT, read_ahead


def mapped(path: Path, size: int) -> NDArray[np.uint8]:
    """Map a file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return np.memmap(path, dtype=np.uint8, mode="r")


def resident_bytes(path: Path) -> int:
    """How much of a mapped file is in the memory of this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(f" {path}")]
    kilobytes = [int(next(x for x in lines[i:] if x.startswith("Rss:")).split()[1]) for i in starts]
    return sum(kilobytes) * 1024


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells what of a file is in memory"
)
def test_every_page_of_every_file_is_read(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    maps = [mapped(path, WORTH_IT + 12345) for path in paths]
    assert [resident_bytes(path) for path in paths] == [0, 0]
    thread = read_ahead(maps)
    assert thread is not None
    thread.join(60)
    assert all(resident_bytes(path) >= WORTH_IT + 12345 for path in paths)


def test_small_files_are_left_alone(tmp_path: Path) -> None:
    assert read_ahead([mapped(tmp_path / "a", WORTH_IT - 1)]) is None


@pytest.mark.parametrize("memory", [WORTH_IT - 1, None])
def test_files_that_memory_may_not_hold_are_left_alone(
    memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "available_memory", lambda: memory)
    assert read_ahead([mapped(tmp_path / "a", WORTH_IT)]) is None
