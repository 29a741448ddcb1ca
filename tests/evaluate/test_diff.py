"""What differs between two files, told completely, in numbers that NumPy and gguf-py confirm."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from phicourse.cli import app
from phicourse.errors import GGUFError
from phicourse.evaluate import diff as module
from phicourse.evaluate.diff import diff
from phicourse.gguf import GGUFWriter, ValueType
from phicourse.quantize.registry import quantize_rows

RNG = np.random.Generator(np.random.PCG64(0))
WEIGHTS = RNG.standard_normal((12, 512), dtype=np.float32)
KEYS: dict[str, tuple[Any, ...]] = {
    "general.architecture": ("phi3", ValueType.STRING),
    "phi3.block_count": (2, ValueType.UINT32),
    "not.a.number": (float("nan"), ValueType.FLOAT32),
    "tokenizer.ggml.tokens": ([f"<{i}>" for i in range(100)], ValueType.ARRAY, ValueType.STRING),
    "tokenizer.ggml.scores": (np.arange(100, dtype=np.float32), ValueType.ARRAY, ValueType.FLOAT32),
}
TENSORS: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
    "token_embd.weight": ("F32", WEIGHTS),
    "blk.0.ffn_up.weight": ("F32", WEIGHTS[:4]),
    "output_norm.weight": ("F32", WEIGHTS[0]),
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GGUF file of keys and tensors; a type that is not float takes the array's bytes."""

    def file(name: str, keys: dict[str, Any] = KEYS, tensors: dict[str, Any] = TENSORS) -> Path:
        with GGUFWriter(tmp_path / name) as writer:
            for key, value in keys.items():
                writer.add(key, *value)
            for tensor, (type, data) in tensors.items():
                shape = data.shape if type in ("F32", "F16") or data.dtype == np.float32 else (1, 256)
                writer.declare(tensor, shape, type)
            for tensor, (type, data) in tensors.items():
                if data.dtype == np.float32 and type != "F32":
                    data = quantize_rows(data, type)
                writer.write(tensor, data)
        return tmp_path / name

    return file


def cli(*args: str | Path) -> str:
    result = CliRunner().invoke(app, ["diff", *map(str, args)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_file_equals_its_copy(write: Write) -> None:
    text = cli(write("a.gguf"), write("b.gguf"))
    assert text.splitlines()[-1].startswith("the files are equal")
    document = json.loads(cli(write("c.gguf"), write("d.gguf"), "--json"))
    assert document["equal"] is True
    assert document["keys"] == {"same": 5, "only_a": [], "only_b": [], "changed": []}
    assert document["tensors"]["same"] == 3


def test_keys_that_differ(write: Write) -> None:
    tokens = list(KEYS["tokenizer.ggml.tokens"][0])
    tokens[70] = "<other>"
    others = KEYS | {
        "phi3.block_count": (2, ValueType.INT32),
        "tokenizer.ggml.tokens": (tokens, ValueType.ARRAY, ValueType.STRING),
        "tokenizer.ggml.scores": (np.arange(99, dtype=np.float32), ValueType.ARRAY, ValueType.FLOAT32),
        "general.name": ("new", ValueType.STRING),
    }
    del others["general.architecture"]
    a, b = write("a.gguf"), write("b.gguf", others)
    keys = diff(a, b).as_dict()["keys"]
    assert (keys["same"], keys["only_a"], keys["only_b"]) == (1, ["general.architecture"], ["general.name"])
    changed = {change["key"]: change for change in keys["changed"]}
    assert changed["phi3.block_count"]["a"] == {"type": "UINT32", "value": 2}
    assert changed["phi3.block_count"]["b"] == {"type": "INT32", "value": 2}
    assert changed["tokenizer.ggml.tokens"]["a"]["from"] == 70
    assert changed["tokenizer.ggml.tokens"]["b"]["value"][0] == "<other>"
    assert changed["tokenizer.ggml.scores"]["b"] == {
        "type": "ARRAY of FLOAT32",
        "length": 99,
        "from": 99,
        "value": [],
    }
    text = cli(a, b)
    assert "keys: 1 the same, 3 changed (~), 1 only in a (-), 1 only in b (+)" in text
    assert "- general.architecture  string phi3" in text
    assert "100, from 70: <70>, <71>" in text
    assert text.splitlines()[-1] == "the files differ in keys"


def test_tensors_that_are_only_in_one_and_shapes(write: Write) -> None:
    others = {
        "token_embd.weight": ("F32", WEIGHTS.reshape(6, 1024)),
        "output_norm.weight": TENSORS["output_norm.weight"],
        "extra.weight": ("F16", WEIGHTS[:2].astype(np.float16)),
    }
    difference = diff(write("a.gguf"), write("b.gguf", tensors=others))
    tensors = difference.as_dict()["tensors"]
    assert [tensor["name"] for tensor in tensors["only_a"]] == ["blk.0.ffn_up.weight"]
    assert tensors["only_b"] == [{"name": "extra.weight", "type": "F16", "shape": [2, 512], "bytes": 2048}]
    (changed,) = tensors["changed"]
    assert (changed["shape_a"], changed["shape_b"], changed["max_abs"]) == ([12, 512], [6, 1024], None)
    assert difference.areas == ["tensors", "shapes"]
    assert "shape differs" in str(difference)


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_K"])
def test_the_error_is_that_of_gguf_py(type: str, write: Write) -> None:
    gguf = pytest.importorskip("gguf")
    a, b = write("a.gguf"), write("b.gguf", tensors=TENSORS | {"token_embd.weight": (type, WEIGHTS)})
    difference = diff(a, b)
    (change,) = difference.changed_tensors
    packed = quantize_rows(WEIGHTS, type)
    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type]).astype(np.float64)
    error = values.reshape(WEIGHTS.shape) - WEIGHTS
    assert change.error is not None
    assert change.error.max_abs == np.abs(error).max()
    relative = np.sqrt(np.square(error).mean() / np.square(WEIGHTS, dtype=np.float64).mean())
    assert change.error.relative_rmse == pytest.approx(relative, rel=1e-12)  # float64 in another order
    assert difference.areas == ["types"]
    assert f"F32 -> {type}" in str(difference)


def test_a_single_bit_is_found_wherever_it_is(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 512)  # a row at a time
    changed = WEIGHTS.copy()
    changed[11, 511] += 0.5
    a = write("a.gguf")
    difference = diff(a, write("b.gguf", tensors=TENSORS | {"token_embd.weight": ("F32", changed)}))
    assert difference.areas == ["bytes"]
    (change,) = difference.changed_tensors
    assert change.error is not None
    assert change.error.max_abs == np.float64(changed[11, 511]) - np.float64(WEIGHTS[11, 511])
    assert change.error.n == WEIGHTS.size


def test_chunks_change_nothing_but_the_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"w": ("F32", np.tile(WEIGHTS, (200, 1)))}  # 4.9 MB
    a, b = write("a.gguf", tensors=large), write("b.gguf", tensors={"w": ("Q8_0", large["w"][1])})
    whole = diff(a, b, progress=False).changed_tensors[0].error
    monkeypatch.setattr(module, "CHUNK", 8192)
    tracemalloc.start()
    chunked = diff(a, b, progress=False).changed_tensors[0].error
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole is not None and chunked is not None
    assert chunked.max_abs == whole.max_abs
    assert chunked.rmse == pytest.approx(whole.rmse, rel=1e-12)
    assert peak < 1_500_000


def test_types_that_cannot_be_read_are_compared_as_bytes(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEQUANTIZERS", {})
    ones, twos = (np.full(74, value, np.uint8) for value in (1, 2))
    a = write("a.gguf", tensors={"same": ("IQ2_XS", ones), "other": ("IQ2_XS", ones)})
    b = write("b.gguf", tensors={"same": ("IQ2_XS", ones), "other": ("IQ2_XS", twos)})
    difference = diff(a, b)
    assert [change.a.name for change in difference.changed_tensors] == ["other"]
    assert difference.changed_tensors[0].error is None
    assert "bytes differ" in str(difference)
    assert difference.areas == ["bytes"]


def test_weights_that_are_no_numbers_give_json_all_the_same(write: Write) -> None:
    broken = WEIGHTS[0].copy()
    broken[3] = np.nan
    a = write("a.gguf", tensors={"w": ("F32", WEIGHTS[0]), "zero": ("F32", np.zeros(4, np.float32))})
    b = write("b.gguf", tensors={"w": ("F32", broken), "zero": ("F32", np.ones(4, np.float32))})
    difference = diff(a, b)
    w, zero = json.loads(json.dumps(difference.as_dict(), allow_nan=False))["tensors"]["changed"]
    assert (w["relative_rmse"], w["max_abs"]) == (None, None)
    assert (zero["relative_rmse"], zero["max_abs"]) == (None, 1.0)
    assert "not finite" in str(difference)


def test_order_counts(write: Write) -> None:
    backwards = write("b.gguf", dict(reversed(KEYS.items())), dict(reversed(TENSORS.items())))
    assert diff(write("a.gguf"), backwards).areas == ["order"]


def test_a_split_set_against_the_file_in_one(write: Write) -> None:
    a = write("a.gguf")
    for i, names in enumerate((["token_embd.weight"], ["blk.0.ffn_up.weight", "output_norm.weight"])):
        split = {
            "split.no": (i, ValueType.UINT16),
            "split.count": (2, ValueType.UINT16),
            "split.tensors.count": (3, ValueType.INT32),
        }
        keys = KEYS | split if i == 0 else split
        write(f"b-{i + 1:05d}-of-00002.gguf", keys, {name: TENSORS[name] for name in names})
    difference = diff(a, a.with_name("b-00001-of-00002.gguf"))
    assert difference.changed_tensors == []
    assert difference.keys_only_b == ["split.no", "split.count", "split.tensors.count"]
    assert difference.areas == ["keys", "version, alignment or number of files"]


def test_text_fits_80_columns_and_shows_no_control_character(write: Write) -> None:
    evil = "\x1b[31m" + "x" * 200
    a = write("a.gguf", KEYS | {evil: (evil, ValueType.STRING), "k": (evil, ValueType.STRING)})
    tensors = {"\x1b[31m" + "n" * 50: ("Q4_K", WEIGHTS), "long" * 15: ("F32", WEIGHTS.reshape(2, 2, 3, 512))}
    b = write("b.gguf", KEYS | {"k": ("\n", ValueType.STRING)}, TENSORS | tensors)
    for text in (cli(a, b), cli(b, a)):
        assert max(map(len, text.splitlines())) <= 80
        assert all(char == "\n" or char.isprintable() for char in text)


def test_files_that_are_broken_or_missing(write: Write, tmp_path: Path) -> None:
    a = write("a.gguf")
    (tmp_path / "cut.gguf").write_bytes(a.read_bytes()[:-100])
    for name in ("cut.gguf", "no.gguf"):
        result = CliRunner().invoke(app, ["diff", str(a), str(tmp_path / name)])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"phicourse: {tmp_path / name}")
        assert result.stderr.count("\n") == 1


def test_a_file_that_shrinks_while_it_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = write("a.gguf"), write("b.gguf")
    compare = module.compare_tensor

    def cut(*args: Any) -> Any:
        b.write_bytes(b.read_bytes()[:600])
        return compare(*args)

    monkeypatch.setattr(module, "compare_tensor", cut)
    with pytest.raises(GGUFError, match="shorter"):
        diff(a, b)
