"""GGUF files that lie about a model, many of them: each runs or is refused in a line; the program never dies of one.

The reader's own tests take files that are broken; here most can be read, and what they say of the model is wrong:
numbers at the edges, tensors of other shapes, types and contents, too many of them or too few. They run in a program
of their own, so that a crash of the compiled engine is a failure like any other.
"""

import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "convert")]

from random_phi import TOKENIZER_FILES  # noqa: E402
from small_checkpoints import TINY, TINY_MOE, TINY_PHI2, random_weights, write_safetensors  # noqa: E402

import phicourse  # noqa: E402
from phicourse.errors import GGUFError, PhiCourseError  # noqa: E402
from phicourse.generate.backends import native_module  # noqa: E402
from phicourse.gguf import GGUFFile, ValueType  # noqa: E402
from phicourse.gguf.types import TENSOR_TYPES  # noqa: E402

pytestmark = pytest.mark.skipif(native_module() is None, reason="needs the compiled engine")

N_FILES = 400
SMALL: dict[str, Any] = {"vocab_size": 2048, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2032}
CONFIGS: dict[str, dict[str, Any]] = {
    "phi3": TINY | SMALL | {"tie_word_embeddings": False, "sliding_window": 20},
    "phi2": TINY_PHI2 | SMALL,
    "phimoe": TINY_MOE | SMALL | {"intermediate_size": 32},
}
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    31,
    33,
    64,
    255,
    257,
    4096,
    2**20,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
FLOATS = (0.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"))
INTEGERS = {ValueType.UINT32: "I", ValueType.INT32: "i", ValueType.UINT64: "Q", ValueType.INT64: "q"}
LONGEST = 600  # characters of an error, with the path of a temporary file in it and a list of types


@dataclass
class Piece:
    """A tensor as it will be written, true or not."""

    name: str
    shape: list[int]
    type: int
    data: bytes


@dataclass
class File:
    """What a GGUF file says: the bytes of each key's type and value, and tensors."""

    keys: dict[str, bytes]
    tensors: list[Piece]
    alignment: int = 32


def text(x: str) -> bytes:
    return struct.pack("<Q", len(x.encode())) + x.encode()


def read(path: Path) -> File:
    with GGUFFile.open(path) as file:
        raw = path.read_bytes()
        keys: dict[str, bytes] = {}
        names = list(file.metadata)
        places = [raw.index(text(name)) for name in names]
        first_tensor = raw.index(text(next(iter(file.tensors))))
        for name, start, end in zip(names, places, [*places[1:], first_tensor], strict=True):
            keys[name] = raw[start + len(text(name)) : end]
        pieces = [
            Piece(t.name, list(t.shape), t.type.id, file.data(t.name).tobytes())
            for t in file.tensors.values()
        ]
        return File(keys, pieces)


def encode(file: File) -> bytes:
    def gap(n: int) -> bytes:
        return bytes(-n % file.alignment)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(file.tensors), len(file.keys))
    out += b"".join(text(name) + value for name, value in file.keys.items())
    offset = 0
    for piece in file.tensors:
        sizes = [size % 2**64 for size in reversed(piece.shape)]
        out += text(piece.name) + struct.pack(f"<I{len(sizes)}QiQ", len(sizes), *sizes, piece.type, offset)
        offset += len(piece.data + gap(len(piece.data)))
    return out + gap(len(out)) + b"".join(piece.data + gap(len(piece.data)) for piece in file.tensors)


# ---- lies: each changes a file and says what it did ---------------------------------------------------------------


def change_a_number(rng: random.Random, file: File) -> str:
    mine = ("phi", "rope", "tokenizer.ggml.bos", "tokenizer.ggml.eos", "tokenizer.ggml.unknown")
    name = rng.choice([name for name in file.keys if name.startswith(mine)])
    (kind,) = struct.unpack_from("<i", file.keys[name])
    if kind == ValueType.FLOAT32:
        value: float = rng.choice(FLOATS)
        file.keys[name] = struct.pack("<if", kind, value)
    else:
        value, kind = rng.choice(NUMBERS), rng.choice([ValueType.UINT32, *INTEGERS])
        code = INTEGERS[kind]
        bits = 8 * struct.calcsize(code)
        value = value % 2**bits - (2**bits if code.islower() and value % 2**bits >= 2 ** (bits - 1) else 0)
        file.keys[name] = struct.pack("<i" + code, kind, value)
    return f"{name} = {value}"


def drop_a_key(rng: random.Random, file: File) -> str:
    name = rng.choice(list(file.keys))
    del file.keys[name]
    return f"no {name}"


def change_a_shape(rng: random.Random, file: File) -> str:
    piece = rng.choice(file.tensors)
    if rng.random() < 0.5:
        piece.shape[rng.randrange(len(piece.shape))] = rng.choice(NUMBERS)
    else:
        piece.shape = rng.choice([piece.shape[::-1], [1, *piece.shape], [int(np.prod(piece.shape))]])
    return f"{piece.name} has the shape {piece.shape}"


def change_a_size(rng: random.Random, file: File) -> str:
    """Twice the rows, and the data for them."""
    piece = rng.choice(file.tensors)
    piece.shape, piece.data = [2 * piece.shape[0], *piece.shape[1:]], 2 * piece.data
    return f"{piece.name} has the shape {piece.shape}"


def change_a_type(rng: random.Random, file: File) -> str:
    """Random bytes of another type: every code of a block may appear."""
    piece, kind = rng.choice(file.tensors), rng.choice(list(TENSOR_TYPES.values()))
    piece.type = kind.id
    if piece.shape[-1] % kind.block == 0:
        piece.data = rng.randbytes(int(np.prod(piece.shape[:-1])) * kind.row_bytes(piece.shape[-1]))
    return f"{piece.name} is {kind.name}"


def spoil_numbers(rng: random.Random, file: File) -> str:
    piece, bad = rng.choice(file.tensors), rng.choice([*FLOATS, -3e38])
    numbers = np.frombuffer(piece.data, "<f4").copy()
    numbers[slice(None) if rng.random() < 0.5 else rng.randrange(len(numbers))] = bad
    piece.data = numbers.tobytes()
    return f"{piece.name} has {bad}"


def other_tensors(rng: random.Random, file: File) -> str:
    piece = rng.choice(file.tensors)
    kind = rng.randrange(4)
    if kind == 0:
        file.tensors.remove(piece)
    elif kind == 1:
        file.tensors.append(piece)
    elif kind == 2:
        piece.name = rng.choice(
            [piece.name.replace("weight", "bias"), "blk.99.x", "rope_factors_long.weight"]
        )
    else:
        file.tensors.append(Piece("output.bias", [4], 0, bytes(16)))
    return f"{('no', 'twice', 'now', 'beside')[kind]} {piece.name}"


def change_the_alignment(rng: random.Random, file: File) -> str:
    file.alignment = rng.choice([1, 2, 4, 64])
    file.keys["general.alignment"] = struct.pack("<iI", ValueType.UINT32, file.alignment)
    return f"alignment {file.alignment}"


LIES: tuple[Callable[[random.Random, File], str], ...] = (
    change_a_number,
    change_a_number,
    drop_a_key,
    change_a_shape,
    change_a_size,
    change_a_type,
    change_a_type,
    spoil_numbers,
    spoil_numbers,
    other_tensors,
    change_the_alignment,
)


# ---- what is done with them ---------------------------------------------------------------------------------------


def write(path: Path, originals: list[Path], seed: int) -> str:
    """A file that lies, and how."""
    rng = random.Random(seed)
    original = rng.choice(originals)
    file = read(original)
    said = [rng.choice(LIES)(rng, file) for _ in range(rng.choice([1, 1, 2]))]
    path.write_bytes(encode(file))
    return f"file {seed}, {original.stem}: {', '.join(said)}"


def use(path: Path, seed: int) -> None:
    """Load it and let it write."""
    rng = random.Random(seed)
    llm = phicourse.load(
        path,
        n_ctx=rng.choice([None, 1, 40]),
        threads=rng.choice([1, 3]),
        cache_type=rng.choice(["F16", "Q8_0", "F32"]),
        n_sequences=rng.choice([1, 2]),
    )
    llm.logits([1])
    llm.generate([1, 5, 7, 5, 7], max_tokens=30, temperature=rng.choice([0, 1e-40, 0.8]), draft="lookup")
    llm.generate_many([[1, 2, 3], [4]], max_tokens=3)


def use_all(folder: Path) -> None:
    """Say what is done next, so that the last line tells of which file the program died; then how many ran."""
    originals, ran = sorted(folder.glob("phi*.gguf")), 0
    path = folder / "lies.gguf"
    for seed in range(N_FILES):
        print(write(path, originals, seed), flush=True)
        try:
            use(path, seed)
        except PhiCourseError as error:
            assert str(error).isprintable() and len(str(error)) < LONGEST, repr(error)
        else:
            ran += 1
    print(f"{ran} ran", flush=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, phi_tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, config in CONFIGS.items():
        checkpoint = folder / name
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text(json.dumps(config))
        write_safetensors(checkpoint / "model.safetensors", random_weights(config))
        for file in TOKENIZER_FILES:
            shutil.copy(phi_tiny / file, checkpoint / file)
        phicourse.convert(checkpoint, folder / f"{name}.gguf", "f32", progress=False)
    return folder


def test_without_a_lie_a_file_is_written_as_it_was(folder: Path) -> None:
    for path in folder.glob("phi*.gguf"):
        assert encode(read(path)) == path.read_bytes()


def test_no_file_brings_the_program_down(folder: Path) -> None:
    script = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_hostile_files as t; "
    script += "t.use_all(pathlib.Path(sys.argv[2]))"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-c",
            script,
            str(Path(__file__).parent),
            str(folder),
        ],
        capture_output=True,
        text=True,
    )
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, f"{last}\n{done.stderr[-2000:]}"
    assert N_FILES // 10 < int(last.split()[0]) < N_FILES // 2  # some are still models, most are not


def test_a_type_that_holds_no_weights_is_named(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = read(folder / "phi3.gguf")
    piece = next(piece for piece in file.tensors if piece.name == "blk.1.ffn_down.weight")
    piece.type = TENSOR_TYPES["I32"].id
    path = tmp_path / "numbers.gguf"
    path.write_bytes(encode(file))
    for options in ({}, {"backend": "torch"}, {"gpu_layers": -1}):
        with pytest.raises(
            PhiCourseError, match=r"numbers\.gguf: blk\.1\.ffn_down\.weight is I32, which is no"
        ):
            phicourse.load(path, **options)  # type: ignore[arg-type]
    with pytest.raises(GGUFError, match=r"ends at byte"):
        path.write_bytes(encode(file)[:-1000])
        phicourse.load(path)
