"""A checkpoint folder: shards and their index, float32 rows, and folders that are incomplete or not safe."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phicourse.checkpoint import Checkpoint
from phicourse.errors import CheckpointError

CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_shard(path: Path, tensors: dict[str, tuple[str, Any]]) -> None:
    """Write name → (dtype, array with the bytes to store)."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    raw_header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw_header)) + raw_header + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def ones(n: int = 2) -> tuple[str, Any]:
    return "F32", np.ones(n, "<f4")


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_one_file(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {"b": ones(), "a": ones(3)})
    checkpoint = Checkpoint.open(folder)
    assert list(checkpoint.tensors) == ["a", "b"]  # sorted, whatever their order in the file
    assert checkpoint.n_weights == 5
    assert checkpoint.config.hidden_size == 8 and checkpoint.raw_config == CONFIG
    assert checkpoint.file("config.json") == folder / "config.json"
    assert checkpoint.file("tokenizer.json") is None


def test_shards_keep_their_order(folder: Path) -> None:
    write_shard(folder / SECOND, {"a": ones()})
    write_shard(folder / FIRST, {"c": ones(), "b": ones()})
    write_index(folder, {"a": SECOND, "b": FIRST, "c": FIRST})
    checkpoint = Checkpoint.open(folder)
    assert [shard.path.name for shard in checkpoint.shards] == [FIRST, SECOND]
    assert list(checkpoint.tensors) == ["b", "c", "a"]


def test_shards_without_an_index(folder: Path) -> None:
    write_shard(folder / FIRST, {"a": ones()})
    write_shard(folder / SECOND, {"b": ones()})
    assert set(Checkpoint.open(folder).tensors) == {"a", "b"}


def test_files_may_be_links(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    write_shard(blobs / "f00d", {"a": ones()})
    (folder / "model.safetensors").symlink_to(blobs / "f00d")
    assert list(Checkpoint.open(folder).tensors) == ["a"]


def test_float32_of_every_float_type(folder: Path) -> None:
    values = np.array([[1.0, -2.5], [0.15625, 3.0], [8.0, 0.0]], np.float32)
    tensors = {
        "F32": ("F32", values),
        "F16": ("F16", values.astype("<f2")),
        "F64": ("F64", values.astype("<f8")),
        "BF16": ("BF16", (values.view("<u4") >> 16).astype("<u2")),  # these values need no more bits
        "I32": ("I32", values.astype("<i4")),
    }
    write_shard(folder / "model.safetensors", tensors)
    checkpoint = Checkpoint.open(folder)
    for name in ("F32", "F16", "F64", "BF16"):
        assert checkpoint.as_float32(name).dtype == np.float32
        np.testing.assert_array_equal(checkpoint.as_float32(name), values)
        np.testing.assert_array_equal(checkpoint.as_float32(name, slice(1, 3)), values[1:3])
    assert checkpoint.data("BF16").dtype == np.dtype("<u2")
    with pytest.raises(CheckpointError, match="tensor I32 is I32, not a float type"):
        checkpoint.as_float32("I32")
    with pytest.raises(CheckpointError, match="has no tensor nothing"):
        checkpoint.data("nothing")


def test_shows_itself_as_a_table(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {"<b>": ones(1000)})
    html = Checkpoint.open(folder)._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html and "4,000" in html


def test_shows_equal_layers_as_one_row_and_no_path(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {f"layers.{i}.norm": ones(1000) for i in range(3)})
    checkpoint = Checkpoint.open(folder)
    html = checkpoint._repr_html_()
    assert "layers.*.norm" in html and "<td>3</td>" in html and "12,000" in html
    assert str(folder.parent) not in html + repr(checkpoint)


def test_stories260k(stories260k: Path) -> None:
    checkpoint = Checkpoint.open(stories260k)
    assert len(checkpoint.tensors) == 33
    assert checkpoint.as_float32("model.embed_tokens.weight", slice(0, 2)).shape == (2, 64)


def test_a_missing_shard_is_named(folder: Path) -> None:
    write_shard(folder / FIRST, {"a": ones()})
    write_index(folder, {"a": FIRST, "b": SECOND})
    with pytest.raises(CheckpointError, match=rf"{SECOND}: missing: .*phicourse download resumes it"):
        Checkpoint.open(folder)


def test_a_missing_shard_is_known_from_the_names_alone(folder: Path) -> None:
    write_shard(folder / "model-00002-of-00004.safetensors", {"a": ones()})
    with pytest.raises(CheckpointError, match=r"model-00001-of-00004.safetensors and 2 more: missing"):
        Checkpoint.open(folder)


def test_a_dangling_link_is_a_missing_shard(folder: Path) -> None:
    (folder / FIRST).symlink_to(folder / "gone")
    write_index(folder, {"a": FIRST})
    with pytest.raises(CheckpointError, match=f"{FIRST}: missing"):
        Checkpoint.open(folder)


def test_the_same_tensor_in_two_shards(folder: Path) -> None:
    write_shard(folder / FIRST, {"a": ones()})
    write_shard(folder / SECOND, {"a": ones()})
    with pytest.raises(CheckpointError, match=f"tensor a is in {FIRST} too"):
        Checkpoint.open(folder)


def test_index_and_files_that_do_not_agree(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {"a": ones()})
    write_index(folder, {"a": "model.safetensors", "b": "model.safetensors"})
    with pytest.raises(CheckpointError, match="tensor b, named in"):
        Checkpoint.open(folder)
    write_shard(folder / "model.safetensors", {"a": ones(), "b": ones(), "c": ones()})
    with pytest.raises(CheckpointError, match="does not name tensor c"):
        Checkpoint.open(folder)


def test_two_sets_of_weights_in_one_folder(folder: Path) -> None:
    write_shard(folder / "model.safetensors", {"a": ones()})
    write_shard(folder / "model-00001-of-00001.safetensors", {"a": ones()})
    with pytest.raises(CheckpointError, match="different sets"):
        Checkpoint.open(folder)
    write_index(folder, {"a": "model.safetensors"})
    with pytest.raises(CheckpointError, match="not named in"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x\0", 7, "a.bin"]
)
def test_an_index_cannot_point_out_of_the_folder(folder: Path, shard: Any) -> None:
    write_index(folder, {"a": shard})
    with pytest.raises(CheckpointError, match=INDEX):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(folder: Path, weight_map: Any) -> None:
    write_index(folder, weight_map)
    with pytest.raises(CheckpointError, match="weight_map"):
        Checkpoint.open(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle.*save_pretrained"):
        Checkpoint.open(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no model\*.safetensors: incomplete download"):
        Checkpoint.open(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        Checkpoint.open(tmp_path / "model.gguf")
