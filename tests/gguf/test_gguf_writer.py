"""What is written is read back, is what the gguf package writes, and appears whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phicourse.errors import GGUFError
from phicourse.gguf import TENSOR_TYPES, GGUFFile, GGUFWriter, ValueType, atomic, atomic_output, tensor_type

V = ValueType
SCALARS = [
    ("u8", 255, V.UINT8),
    ("i8", -128, V.INT8),
    ("u16", 65535, V.UINT16),
    ("i16", -32768, V.INT16),
    ("u32", 2**32 - 1, V.UINT32),
    ("i32", -(2**31), V.INT32),
    ("f32", 0.5, V.FLOAT32),
    ("truth", True, V.BOOL),
    ("text", "▁naïve\n日本", V.STRING),
    ("u64", 2**64 - 1, V.UINT64),
    ("i64", -(2**63), V.INT64),
    ("f64", 1e-300, V.FLOAT64),
]
ARRAYS = [
    ("numbers", np.arange(5, dtype=np.int32), V.INT32),
    ("scores", [0.5, -1.0], V.FLOAT32),
    ("bytes", [0, 255], V.UINT8),
    ("truths", [True, False, True], V.BOOL),
    ("texts", ["", "a", "▁é"], V.STRING),
    ("wide", [2**63, 1], V.UINT64),
]


def write_example(path: Path, **options: bool) -> dict[str, np.ndarray]:
    """One key of each type, one tensor of each type, random bytes."""
    rng = np.random.default_rng(3)
    tensors = {
        name: rng.integers(0, 256, (2, 3 * type.bytes), np.uint8) for name, type in TENSOR_TYPES.items()
    }
    with GGUFWriter(path, **options) as writer:
        writer.add("general.architecture", "test", V.STRING)
        for key, value, type in SCALARS:
            writer.add(key, value, type)
        for key, value, element in ARRAYS:
            writer.add(key, value, V.ARRAY, element)
        for name in tensors:
            writer.declare(f"{name}.weight", (2, 3 * tensor_type(name).block), name)
        for name, data in tensors.items():
            writer.write(f"{name}.weight", data[:1])  # a row as an array, the next as bytes
            writer.write(f"{name}.weight", data[1:].tobytes())
    return tensors


def test_roundtrip(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = write_example(path)
    file = GGUFFile.open(path)
    assert list(file.metadata)[1:] == [key for key, *_ in SCALARS + ARRAYS]
    for key, value, type in SCALARS:
        assert (file.metadata[key].type, file.metadata[key].value) == (type, value)
    for key, value, element in ARRAYS:
        assert file.metadata[key].element == element
        assert list(file.metadata[key].value) == list(value)
    assert [info.name for info in file.tensors.values()] == [f"{name}.weight" for name in tensors]
    for name, data in tensors.items():
        assert np.array_equal(file.data(f"{name}.weight"), data)
        assert file.blocks(f"{name}.weight").shape == (2, 3)
        assert file.tensors[f"{name}.weight"].offset % 32 == 0
    assert path.stat().st_size % 32 == 0


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package as an oracle")
    path = tmp_path / "a.gguf"
    rng = np.random.default_rng(4)
    known = [type.name for type in gguf.GGML_QUANT_SIZES if type.name != "Q8_1"]  # its size there is wrong
    data = {name: rng.integers(0, 256, (2, 3 * tensor_type(name).bytes), np.uint8) for name in known}
    with GGUFWriter(path) as writer:
        for key, value, type in SCALARS:
            writer.add(key, value, type)
        for key, value, element in ARRAYS:
            writer.add(key, value, V.ARRAY, element)
        for name in known:
            writer.declare(name, (2, 3 * tensor_type(name).block), name)
        for name in known:
            writer.write(name, data[name])
    reader = gguf.GGUFReader(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(fields) == [key for key, *_ in SCALARS + ARRAYS]
    for key, value, type in SCALARS:
        assert [int(t) for t in fields[key].types] == [type]
        assert fields[key].contents() == value
    for key, value, element in ARRAYS:
        assert [int(t) for t in fields[key].types] == [V.ARRAY, element]
        assert fields[key].contents() == list(value)
    for theirs in reader.tensors:
        ours = GGUFFile.open(path).tensors[theirs.name]
        assert (theirs.tensor_type.name, theirs.data_offset, theirs.n_bytes) == (
            ours.type.name,
            ours.offset,
            ours.nbytes,
        )
        assert tuple(reversed(theirs.shape.tolist())) == ours.shape
        assert theirs.data.tobytes() == data[theirs.name].tobytes()


def test_bytes_equal_the_gguf_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package as an oracle")
    weights = np.random.default_rng(5).standard_normal((3, 7)).astype(np.float32)
    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "test")
    theirs.add_uint32("count", 3)
    theirs.add_float32("epsilon", 1e-5)
    theirs.add_bool("truth", False)
    theirs.add_array("texts", ["a", "▁b"])
    theirs.add_array("numbers", [1, -2])
    theirs.add_tensor("w", weights)
    theirs.add_tensor("h", weights.astype(np.float16))
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()
    with GGUFWriter(tmp_path / "ours.gguf") as ours:
        ours.add("general.architecture", "test", V.STRING)
        ours.add("count", 3, V.UINT32)
        ours.add("epsilon", 1e-5, V.FLOAT32)
        ours.add("truth", False, V.BOOL)
        ours.add("texts", ["a", "▁b"], V.ARRAY, V.STRING)
        ours.add("numbers", [1, -2], V.ARRAY, V.INT32)
        ours.declare("w", (3, 7), "F32")
        ours.declare("h", (3, 7), "F16")
        ours.write("w", weights)
        ours.write("h", weights.astype("<f2"))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_reads_what_the_gguf_package_writes_for_every_value_type(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package as an oracle")
    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "test")
    for key, value, type in SCALARS:
        theirs.add_key_value(key, value, gguf.GGUFValueType(int(type)))
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.close()
    file = GGUFFile.open(tmp_path / "theirs.gguf")
    assert [(key, v.value, v.type) for key, v in file.metadata.items()][1:] == SCALARS


BAD_VALUES = [
    (256, V.UINT8, None),
    (-1, V.UINT32, None),
    (2**64, V.UINT64, None),
    (1.5, V.INT32, None),
    (True, V.UINT32, None),
    (1, V.BOOL, None),
    (1e39, V.FLOAT32, None),
    ("x", V.FLOAT32, None),
    (5, V.STRING, None),
    ("abc", V.ARRAY, V.STRING),
    ([1, "a"], V.ARRAY, V.STRING),
    ([[1]], V.ARRAY, V.UINT32),
    ([1], V.ARRAY, None),
    ([[1]], V.ARRAY, V.ARRAY),
    ([1, -1], V.ARRAY, V.UINT8),
]


@pytest.mark.parametrize("bad", BAD_VALUES, ids=repr)
def test_a_value_that_does_not_fit_its_type(tmp_path: Path, bad: tuple) -> None:
    value, type, element = bad
    with pytest.raises(GGUFError, match=r"a\.gguf: key: .* is no"), GGUFWriter(tmp_path / "a.gguf") as writer:
        writer.add("key", value, type, element)
    assert list(tmp_path.iterdir()) == []


def test_empty_arrays_and_other_alignments(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "a.gguf") as writer:
        writer.add("general.alignment", 64, V.UINT32)
        writer.add("none", [], V.ARRAY, V.STRING)
        writer.add("nothing", [], V.ARRAY, V.UINT32)
        for name in "ab":
            writer.declare(name, (1,), "F32")
        for name in "ab":
            writer.write(name, np.float32([3]))
    file = GGUFFile.open(tmp_path / "a.gguf")
    assert file.get("none", list) == []
    assert file.tensors["b"].offset - file.tensors["a"].offset == 64


def misuse_order(w: GGUFWriter) -> None:
    w.write("b", bytes(32))


def misuse_too_much(w: GGUFWriter) -> None:
    w.write("a", bytes(33))


def misuse_too_little(w: GGUFWriter) -> None:
    w.write("a", bytes(31))


def misuse_after_the_end(w: GGUFWriter) -> None:
    w.write("a", bytes(32))
    w.write("b", bytes(32))
    w.write("b", bytes(1))


def misuse_late_key(w: GGUFWriter) -> None:
    w.write("a", bytes(32))
    w.add("k", 1, V.UINT32)


def misuse_late_tensor(w: GGUFWriter) -> None:
    w.write("a", bytes(32))
    w.declare("c", (8,), "F32")


MISUSES = [
    (misuse_order, "'b' out of order, next is 'a'"),
    (misuse_too_much, "33 bytes for 'a', which lacks 32"),
    (misuse_too_little, "1 bytes of 'a' were never written"),
    (misuse_after_the_end, "'b' out of order, next is the end"),
    (misuse_late_key, "the key 'k' comes too late"),
    (misuse_late_tensor, "the tensor 'c' comes too late"),
    (lambda w: w.declare("a", (8,), "F32"), "no tensor name"),
    (lambda w: w.declare("n" * 64, (8,), "F32"), "no tensor name"),
    (lambda w: w.declare("c", (2, 31), "Q4_0"), "tensor 'c': rows of 31 weights are no multiple of 32"),
    (lambda w: w.declare("c", (0, 8), "F32"), "impossible shape"),
    (lambda w: w.declare("c", (1, 1, 1, 1, 1), "F32"), "impossible shape"),
    (lambda w: w.declare("c", (8,), "Q4_Z"), "unknown tensor type"),
    (lambda w: w.add("", 1, V.UINT32), "no key"),
    (lambda w: w.add("general.alignment", 3, V.UINT32), "no power of two"),
    (lambda w: [w.add("k", 1, V.UINT32) for _ in range(2)], "there already"),
]


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda case: case[1])
def test_misuse_leaves_nothing(tmp_path: Path, misuse: tuple) -> None:
    action, message = misuse
    with pytest.raises(GGUFError) as error, GGUFWriter(tmp_path / "a.gguf") as writer:
        writer.declare("a", (8,), "F32")
        writer.declare("b", (8,), "F32")
        action(writer)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError, SystemExit, MemoryError])
def test_any_exception_leaves_the_old_file(tmp_path: Path, exception: type[BaseException]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(exception), GGUFWriter(path, force=True) as writer:
        writer.declare("a", (8,), "F32")
        writer.write("a", bytes(16))
        raise exception
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    assert path.read_bytes() == b"old"


def test_an_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(GGUFError, match=r"exists already; --force"), GGUFWriter(path):
        pytest.fail("the block must not run")
    assert path.read_bytes() == b"old"
    write_example(path, force=True)
    assert GGUFFile.open(path).tensors


def test_an_input_stays_even_when_forced(tmp_path: Path) -> None:
    path, link = tmp_path / "a.gguf", tmp_path / "link.gguf"
    path.write_bytes(b"old")
    link.symlink_to("a.gguf")
    with (
        pytest.raises(GGUFError, match="is an input, too"),
        GGUFWriter(link, force=True, inputs=[tmp_path, path]),
    ):
        pytest.fail("the block must not run")
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_flushed_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have no fsync for folders; the file is complete by then."""
    flush = atomic._flush

    def refuse(path: Path) -> None:
        if path.is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(path)

    monkeypatch.setattr(atomic, "_flush", refuse)
    with atomic_output(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with pytest.raises(GGUFError, match="exists already"), atomic_output(path) as temporary:
        temporary.write_bytes(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_links_folders_and_devices(tmp_path: Path) -> None:
    (tmp_path / "real.gguf").write_bytes(b"old")
    (tmp_path / "link.gguf").symlink_to("real.gguf")
    with atomic_output(tmp_path / "link.gguf", force=True) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "real.gguf").read_bytes() == b"new"
    for path, message in (
        (tmp_path, "is a folder or a device"),
        (Path(os.devnull), "is a folder or a device"),
        (tmp_path / "no" / "a.gguf", "does not exist"),
        (tmp_path / ("n" * 300), "cannot be written"),
    ):
        with pytest.raises(GGUFError, match=message), atomic_output(path, force=True):
            pytest.fail("the block must not run")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_example(path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_no_room_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the system refuses the write either way."""
    resource = pytest.importorskip("resource", reason="needs Unix limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with (
            pytest.raises(GGUFError, match=r"a\.gguf: cannot be written"),
            GGUFWriter(tmp_path / "a.gguf") as w,
        ):
            w.declare("a", (8192,), "F32")
            w.write("a", bytes(4 * 8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def write_a_terabyte(path: Path) -> None:
    with GGUFWriter(path) as writer:
        writer.declare("a", (10**6, 10**6), "F32")
        writer.write("a", bytes(4))


def test_room_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"needs 4,000,000,000,\d+ bytes, the disk has"):
        write_a_terabyte(tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_an_interrupt_from_outside_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from phicourse.gguf import GGUFWriter\n"
        "with GGUFWriter(sys.argv[1]) as writer:\n"
        "    writer.declare('a', (8,), 'F32')\n"
        "    writer.write('a', bytes(8))\n"
        "    print(os.listdir(os.path.dirname(sys.argv[1])))\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.gguf")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert ".partial" in run.stdout
    assert "KeyboardInterrupt" in run.stderr
    assert list(tmp_path.iterdir()) == []
