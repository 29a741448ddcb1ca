"""Files cut into sets and put together again: llama-gguf-split's bytes, and the file that it was before.

The reference is llama.cpp's own tool, compiled here from its one source file against the wheel's libraries.
"""

import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from phicourse.errors import GGUFError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, merge, reshard, split
from phicourse.gguf.shards import Split, shard_path

V = ValueType
# What the tool takes of llama.cpp's `common` library, which the wheel does not have.
COMMON_H = """
#define LLM_KV_SPLIT_NO "split.no"
#define LLM_KV_SPLIT_COUNT "split.count"
#define LLM_KV_SPLIT_TENSORS_COUNT "split.tensors.count"
"""
BUILD_INFO_H = """
static int llama_build_number() { return 0; }
static const char * llama_commit() { return ""; }
static const char * llama_compiler() { return ""; }
static const char * llama_build_target() { return ""; }
"""
# name -> (shape, type); the sizes leave padding behind some
TENSORS = {
    "a": ((3, 7), "F32"),
    "b": ((64, 32), "F16"),
    "c": ((5,), "F32"),
    "d": ((4, 256), "Q4_K"),
    "e": ((2, 3, 32), "Q8_0"),
    "f": ((100,), "F32"),
    "g": ((33,), "F16"),
}


@pytest.fixture(scope="session")
def gguf_split(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama-gguf-split, from `make oracles`."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, the oracle")
    oracle = repository / ".oracles" / "llama.cpp"
    source, compiler = oracle / "tools" / "gguf-split" / "gguf-split.cpp", shutil.which("c++")
    if not source.is_file():
        pytest.skip("needs llama.cpp's gguf-split.cpp in .oracles/llama.cpp: make oracles")
    if compiler is None:
        pytest.skip("needs a C++ compiler to build llama-gguf-split")
    folder, libraries = tmp_path_factory.mktemp("gguf-split"), Path(llama_cpp.__file__).parent / "lib"
    (folder / "common.h").write_text(COMMON_H)
    (folder / "build-info.h").write_text(BUILD_INFO_H)
    headers = [f"-I{folder}", f"-I{oracle / 'include'}", f"-I{oracle / 'ggml' / 'include'}"]
    linked = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"]
    command = [compiler, "-std=c++17", *headers, str(source), "-o", str(folder / "gguf-split"), *linked]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "gguf-split"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A model in one file."""
    rng = np.random.default_rng(2)
    with GGUFWriter(tmp_path / "whole.gguf") as writer:
        writer.add("general.architecture", "phi3", V.STRING)
        writer.add("general.name", "Ünïcode", V.STRING)
        writer.add("truths", [True, False], V.ARRAY, V.BOOL)
        writer.add("tokens", ["<s>", "", "▁a"], V.ARRAY, V.STRING)
        writer.add("scores", [0.5, -1.0], V.ARRAY, V.FLOAT32)
        writer.add("big", 2**63, V.UINT64)
        for name, (shape, type) in TENSORS.items():
            writer.declare(name, shape, type)
        for tensor in list(writer._tensors.values()):
            writer.write(tensor.name, rng.integers(0, 256, tensor.nbytes, np.uint8))
    return tmp_path / "whole.gguf"


def run(tool: Path, *args: str | Path) -> None:
    done = subprocess.run([tool, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WAYS = {
    "one tensor each": (["--split-max-tensors", "1"], {"max_tensors": 1}),
    "three tensors each": (["--split-max-tensors", "3"], {"max_tensors": 3}),
    "keys first": (
        ["--no-tensor-first-split", "--split-max-tensors", "3"],
        {"max_tensors": 3, "keys_first": True},
    ),
    "the default": ([], {}),
    "size": (["--split-max-size", "1M"], {"max_bytes": 10**6}),
    "keys first, size": (
        ["--no-tensor-first-split", "--split-max-size", "1M"],
        {"max_bytes": 10**6, "keys_first": True},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_same_bytes_as_llama_gguf_split(gguf_split: Path, whole: Path, tmp_path: Path, way: str) -> None:
    arguments, options = WAYS[way]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    run(gguf_split, "--split", *arguments, whole, tmp_path / "theirs" / "m")
    paths = split(whole, tmp_path / "ours" / "m.gguf", progress=False, **options)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert paths == sorted((tmp_path / "ours").iterdir())
    first = paths[0]
    run(gguf_split, "--merge", first, tmp_path / "theirs.gguf")
    compat = merge(first, tmp_path / "compat.gguf", compat=True, progress=False)
    assert compat.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert merge(first, progress=False).read_bytes() == whole.read_bytes()


def test_sizes_count_the_padding_as_llama_gguf_split_does(gguf_split: Path, tmp_path: Path) -> None:
    """It takes no smaller size than a megabyte, so the tensors must be large: 499,972 bytes, 500,000 with zeros."""
    with GGUFWriter(tmp_path / "large.gguf") as writer:
        for name in "abcde":
            writer.declare(name, (124_993,), "F32")
        for name in "abcde":
            writer.write(name, bytes(4 * 124_993))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    run(gguf_split, "--split-max-size", "1M", tmp_path / "large.gguf", tmp_path / "theirs" / "m")
    split(tmp_path / "large.gguf", tmp_path / "ours" / "m", max_bytes=10**6, progress=False)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert len(contents(tmp_path / "ours")) == 3


@pytest.mark.parametrize(
    ("rules", "sizes", "counts"),
    [
        (Split(), [1, 2, 3], [3]),
        (Split(max_tensors=2), [1] * 5, [2, 2, 1]),
        (Split(max_tensors=2), [1] * 4, [2, 2]),
        (Split(max_bytes=10), [5, 5, 1, 9, 1], [2, 2, 1]),
        (Split(max_bytes=10), [50, 1, 50], [1, 1, 1]),
        (Split(max_bytes=64), [33, 31], [2]),
        (Split(max_bytes=64, like_gguf_split=True), [33, 31], [1, 1]),
        (Split(max_tensors=3, max_bytes=10), [1, 1, 1, 9, 9], [3, 1, 1]),
        (Split(max_tensors=2, keys_first=True), [1] * 3, [0, 2, 1]),
        (Split(keys_first=True), [], [0, 0]),
        (Split(max_tensors=1), [], [0]),
    ],
)
def test_where_a_new_file_begins(rules: Split, sizes: list[int], counts: list[int]) -> None:
    assert rules.counts(sizes) == counts


def test_more_files_than_a_set_can_number() -> None:
    assert len(Split(max_tensors=1).counts([1] * 65_535)) == 65_535
    with pytest.raises(GGUFError, match="65,536 files are too many"):
        Split(max_tensors=1).counts([1] * 65_536)


def test_a_set_is_cut_anew_and_keeps_its_alignment(whole: Path, tmp_path: Path) -> None:
    with GGUFFile.open(whole) as file, GGUFWriter(tmp_path / "aligned.gguf") as writer:
        writer.add("general.alignment", 128, V.UINT32)
        for name, tensor in file.tensors.items():
            writer.declare(name, tensor.shape, tensor.type)
        for name in file.tensors:
            writer.write(name, file.data(name))
    before = (tmp_path / "aligned.gguf").read_bytes()
    three = split(tmp_path / "aligned.gguf", max_tensors=3, progress=False)
    assert [path.name for path in three] == [f"aligned-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    two = split(three[0], max_tensors=4, progress=False)
    assert [path.name for path in two] == ["aligned-00001-of-00002.gguf", "aligned-00002-of-00002.gguf"]
    with pytest.raises(GGUFError, match=r"aligned\.gguf: exists already"):
        merge(two[0], progress=False)
    assert merge(two[0], force=True, progress=False).read_bytes() == before


def test_a_set_does_not_replace_itself(whole: Path) -> None:
    paths = split(whole, max_tensors=3, progress=False)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(GGUFError, match="is an input, too"):
        split(paths[0], max_tensors=3, force=True, progress=False)
    with pytest.raises(GGUFError, match="is an input, too"):
        merge(paths[0], paths[1], force=True, progress=False)
    assert [path.read_bytes() for path in paths] == before


def test_memory_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GGUFWriter(tmp_path / "large.gguf") as writer:
        writer.declare("a", (1 << 23,), "F32")
        writer.write("a", bytes(1 << 25))
    monkeypatch.setattr(reshard, "CHUNK", 1 << 16)
    tracemalloc.start()
    split(tmp_path / "large.gguf", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# ---- sets that lie ----------------------------------------------------------------------------------------


def test_nothing_to_merge(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="is a whole model, not the first file of a set"):
        merge(whole, tmp_path / "out.gguf", progress=False)
    paths = split(whole, max_tensors=3, progress=False)
    again = merge(paths[0], tmp_path / "again.gguf", compat=True, progress=False)
    with pytest.raises(GGUFError, match="is a whole model"):
        merge(again, tmp_path / "out.gguf", progress=False)
    with pytest.raises(GGUFError, match=r"one of 3 files; give the first"):
        merge(paths[1], tmp_path / "out.gguf", progress=False)
    assert not (tmp_path / "out.gguf").exists()


def test_a_missing_file_of_the_set(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, max_tensors=3, progress=False)
    paths[2].unlink()
    with pytest.raises(GGUFError, match=r"file 3 of 3, whole-00003-of-00003\.gguf, is missing beside it"):
        merge(paths[0], tmp_path / "out.gguf", progress=False)


def test_files_in_the_wrong_place(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, max_tensors=3, progress=False)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(GGUFError, match="is not file 2 of 3 of this set"):
        merge(paths[0], tmp_path / "out.gguf", progress=False)


@pytest.mark.parametrize(
    ("key", "value", "type", "message"),
    [
        ("split.tensors.count", 8, V.INT32, "split.tensors.count is 8, in .* 7; files of two models"),
        ("general.name", "Other", V.STRING, "general.name is 'Other', in .*; files of two models"),
        ("split.no", 2, V.UINT16, "is not file 2 of 3 of this set"),
        ("split.no", "1", V.STRING, "'split.no' is STRING, expected int"),
    ],
)
def test_a_file_that_says_otherwise_than_the_first(
    whole: Path, tmp_path: Path, key: str, value: object, type: ValueType, message: str
) -> None:
    paths = split(whole, max_tensors=3, progress=False)
    with GGUFFile.open(shard_path(whole, 0, 3)) as file:
        middle = [name for name, tensor in file.tensors.items() if tensor.shard == 1]
        pairs = {
            "split.no": (1, V.UINT16),
            "split.tensors.count": (7, V.INT32),
            "split.count": (3, V.UINT16),
        }
        with GGUFWriter(paths[1], force=True) as writer:
            for name, pair in (pairs | {key: (value, type)}).items():
                writer.add(name, *pair)
            for name in middle:
                writer.declare(name, file.tensors[name].shape, file.tensors[name].type)
            for name in middle:
                writer.write(name, file.data(name))
    with pytest.raises(GGUFError, match=message):
        merge(paths[0], tmp_path / "out.gguf", progress=False)
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_shrinks_meanwhile(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = split(whole, max_tensors=3, progress=False)
    write = GGUFWriter.write

    def cut(self: GGUFWriter, name: str, chunk: bytes) -> None:
        paths[2].open("r+b").truncate(40)
        write(self, name, chunk)

    monkeypatch.setattr(GGUFWriter, "write", cut)
    with pytest.raises(GGUFError, match=r"ended while 'g' was read; did the file change\?"):
        merge(paths[0], tmp_path / "out.gguf", progress=False)
    assert not (tmp_path / "out.gguf").exists()


# ---- whole or not at all ----------------------------------------------------------------------------------


def write_set(path: Path, stop_at: str = "", **options: bool) -> GGUFWriter:
    """A set of three files, or an interrupt in the middle of a tensor."""
    with GGUFWriter(path, split=Split(max_tensors=1), **options) as writer:
        for name in "abc":
            writer.declare(name, (8,), "F32")
        for name in "abc":
            writer.write(name, bytes(16))
            if name == stop_at:
                raise KeyboardInterrupt
            writer.write(name, bytes(16))
    return writer


@pytest.mark.parametrize("stop_at", ["a", "b", "c"])
def test_an_interrupt_leaves_none_of_a_set(tmp_path: Path, stop_at: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "m.gguf", stop_at)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_of_a_set_stay_unless_forced(tmp_path: Path) -> None:
    third = tmp_path / "m-00003-of-00003.gguf"
    third.write_bytes(b"old")
    with pytest.raises(GGUFError, match=r"m-00003-of-00003\.gguf: exists already; --force"):
        write_set(tmp_path / "m.gguf")
    assert contents(tmp_path) == {third.name: b"old"}
    paths = write_set(tmp_path / "m.gguf", force=True).paths
    assert GGUFFile.open(paths[0]).paths == paths == sorted(tmp_path.iterdir())


def test_a_file_that_appears_meanwhile_keeps_all_others_away(tmp_path: Path) -> None:
    theirs = tmp_path / "m-00002-of-00002.gguf"

    def write_two() -> None:
        with GGUFWriter(tmp_path / "m.gguf", split=Split(max_tensors=1)) as writer:
            writer.declare("a", (8,), "F32")
            writer.declare("b", (8,), "F32")
            writer.write("a", bytes(32))
            theirs.write_bytes(b"theirs")
            writer.write("b", bytes(32))

    with pytest.raises(GGUFError, match="exists already"):
        write_two()
    assert contents(tmp_path) == {theirs.name: b"theirs"}


def test_the_first_file_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever opens a set by its first file finds all of it."""
    replace, seen = os.replace, []

    def note(source: Path, target: Path) -> None:
        seen.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    write_set(tmp_path / "m.gguf")
    assert seen == [f"m-{i:05d}-of-00003.gguf" for i in (3, 2, 1)]


def test_one_file_where_nothing_has_to_be_split(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "m.gguf", split=Split(max_tensors=9)) as writer:
        writer.declare("a", (8,), "F32")
        writer.write("a", bytes(32))
    assert writer.paths == [tmp_path / "m.gguf"]
    assert list(GGUFFile.open(tmp_path / "m.gguf").metadata) == []


def test_what_killed_programs_left_is_removed_and_what_is_in_use_stays(tmp_path: Path) -> None:
    left = tmp_path / ".m.gguf.0123abcd.partial"
    left.write_bytes(b"left behind")
    other = tmp_path / ".n.gguf.0123abcd.partial"
    other.write_bytes(b"of another file")
    with GGUFWriter(tmp_path / "m.gguf") as first:
        first.declare("a", (8,), "F32")
        first.write("a", bytes(16))
        assert not left.exists()
        assert other.exists()
        with GGUFWriter(tmp_path / "m.gguf", force=True) as second:
            second.declare("b", (8,), "F32")
            second.write("b", bytes(32))
        assert list(GGUFFile.open(tmp_path / "m.gguf").tensors) == ["b"]
        (tmp_path / "m.gguf").unlink()
        first.write("a", bytes(16))
    assert sorted(contents(tmp_path)) == [other.name, "m.gguf"]
