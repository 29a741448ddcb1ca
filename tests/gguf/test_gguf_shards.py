"""Split sets: one file to the reader, given the first."""

from pathlib import Path

import numpy as np
import pytest

from phicourse.errors import GGUFError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType


def write_shard(
    folder: Path, i: int, n: int, tensors: dict[str, np.ndarray], total: int, **lies: int
) -> Path:
    path = folder / f"model-{lies.get('name', i) + 1:05d}-of-{n:05d}.gguf"
    with GGUFWriter(path) as writer:
        if i == 0:
            writer.add("general.architecture", "phi3", ValueType.STRING)
        writer.add("split.no", lies.get("no", i), ValueType.UINT16)
        writer.add("split.count", lies.get("count", n), ValueType.UINT16)
        writer.add("split.tensors.count", total, ValueType.INT32)
        for name, data in tensors.items():
            writer.declare(name, data.shape, "F32")
        for name, data in tensors.items():
            writer.write(name, data)
    return path


@pytest.fixture
def tensors() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {},
        {"a": rng.random((2, 3), np.float32), "b": rng.random(4, np.float32)},
        {"c": rng.random(5, np.float32)},
    ]


def test_a_set_is_one_file(tmp_path: Path, tensors: list[dict[str, np.ndarray]]) -> None:
    paths = [write_shard(tmp_path, i, 3, part, 3) for i, part in enumerate(tensors)]
    file = GGUFFile.open(paths[0])
    assert file.n_shards == 3
    assert file.paths == paths
    assert file.size == sum(path.stat().st_size for path in paths)
    assert list(file.tensors) == ["a", "b", "c"]
    for part in tensors:
        for name, data in part.items():
            assert np.array_equal(file.blocks(name).reshape(data.shape), data)
    assert file.tensors["c"].shard == 2


def test_only_the_first_opens_a_set(tmp_path: Path, tensors: list[dict[str, np.ndarray]]) -> None:
    paths = [write_shard(tmp_path, i, 3, part, 3) for i, part in enumerate(tensors)]
    with pytest.raises(GGUFError, match=r"one of 3 files; give the first, …-00001-of-00003\.gguf"):
        GGUFFile.open(paths[1])
    renamed = paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(GGUFError, match="give the first"):
        GGUFFile.open(renamed)


def test_a_missing_file_is_named(tmp_path: Path, tensors: list[dict[str, np.ndarray]]) -> None:
    paths = [write_shard(tmp_path, i, 3, part, 3) for i, part in enumerate(tensors)]
    paths[2].unlink()
    with pytest.raises(GGUFError, match=r"file 3 of 3, model-00003-of-00003\.gguf, is missing"):
        GGUFFile.open(paths[0])


@pytest.mark.parametrize(
    ("lie", "message"),
    [({"no": 2}, "is not file 2 of 3"), ({"count": 4}, "is not file 2 of 3")],
    ids=["number", "count"],
)
def test_a_file_of_another_set(
    tmp_path: Path, tensors: list[dict[str, np.ndarray]], lie: dict, message: str
) -> None:
    first = write_shard(tmp_path, 0, 3, tensors[0], 3)
    write_shard(tmp_path, 1, 3, tensors[1], 3, **lie)
    write_shard(tmp_path, 2, 3, tensors[2], 3)
    with pytest.raises(GGUFError, match=message):
        GGUFFile.open(first)


def test_wrong_total_twice_and_wrong_first(tmp_path: Path, tensors: list[dict[str, np.ndarray]]) -> None:
    first = write_shard(tmp_path, 0, 2, tensors[0], 9)
    second = write_shard(tmp_path, 1, 2, tensors[1], 9)
    with pytest.raises(GGUFError, match=r"has 2 tensors, split\.tensors\.count says 9"):
        GGUFFile.open(first)
    first.unlink()
    first = write_shard(tmp_path, 0, 2, tensors[1], 9)
    with pytest.raises(GGUFError, match="the tensor 'a' is in another file of the set too"):
        GGUFFile.open(first)
    first.unlink()
    second.unlink()
    with pytest.raises(GGUFError, match="says it is file 2 of 2, its name says 1"):
        GGUFFile.open(write_shard(tmp_path, 1, 2, tensors[1], 2, name=0))
