"""What is shown of a file, and the check of its payload."""

import json
from pathlib import Path

import numpy as np
import pytest

from phicourse.gguf import GGUFFile, GGUFWriter, ValueType, describe, summary, tensor_type, verify
from phicourse.gguf.describe import printable

EVIL = "<script>alert(1)</script>\x1b[31m\n" + "x" * 200


@pytest.fixture
def file(tmp_path: Path) -> GGUFFile:
    with GGUFWriter(tmp_path / "model.gguf") as writer:
        writer.add("general.architecture", "phi3", ValueType.STRING)
        writer.add("general.name", EVIL, ValueType.STRING)
        writer.add("phi3.rope.scaling.original_context_length.and.even.longer", 4096, ValueType.UINT32)
        writer.add("not.finite", float("nan"), ValueType.FLOAT32)
        writer.add("tokens", [f"<{i}>" for i in range(1000)], ValueType.ARRAY, ValueType.STRING)
        writer.add("scores", np.full(20, -np.inf), ValueType.ARRAY, ValueType.FLOAT32)
        writer.declare("<b>evil</b>.weight", (100, 256), "Q4_K")
        writer.declare("blk.31.attn_norm.weight_" + "n" * 30, (2, 3, 4, 4096), "F16")
        writer.write("<b>evil</b>.weight", bytes(100 * 144))
        writer.write("blk.31.attn_norm.weight_" + "n" * 30, bytes(2 * 2 * 3 * 4 * 4096))
    return GGUFFile.open(tmp_path / "model.gguf")


def test_text_fits_80_columns_and_shows_no_control_character(file: GGUFFile) -> None:
    text = describe(file, tensors=True)
    assert max(map(len, text.splitlines())) <= 80
    assert all(char == "\n" or char.isprintable() for char in text)
    assert "[string]  1,000: <0>, <1>, " in text
    assert "Q4_K" in text
    assert "4.5000" in text


def test_summary_is_json_and_right(file: GGUFFile) -> None:
    said = json.loads(json.dumps(summary(file), allow_nan=False))
    assert said["bytes"] == file.path.stat().st_size
    assert said["weights"] == 100 * 256 + 2 * 3 * 4 * 4096
    assert said["bits_per_weight"] == pytest.approx((4.5 * 25600 + 16 * 98304) / (25600 + 98304))
    assert said["types"]["Q4_K"] == {"tensors": 1, "weights": 25600, "bytes": 14400, "bits_per_weight": 4.5}
    assert list(said["types"]) == ["F16", "Q4_K"]
    assert said["tensors"][0]["offset"] == said["data_offset"]
    assert said["metadata"]["tokens"] == {
        "type": "ARRAY of STRING",
        "length": 1000,
        "value": [f"<{i}>" for i in range(8)],
    }
    assert len(summary(file, full_arrays=True)["metadata"]["tokens"]["value"]) == 1000
    assert said["metadata"]["not.finite"]["value"] == "nan"


def test_html_escapes_what_the_file_says(file: GGUFFile) -> None:
    page = file._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "&lt;b&gt;evil" in page


def test_html_map_names_wide_parts_and_explains_its_colours(file: GGUFFile) -> None:
    page = file._repr_html_()
    assert page.count("■") == len(summary(file)["types"])
    assert f">attn_norm.weight_{'n' * 30} </span>" in page  # without its layer: that is seen from the place
    assert str(file.path.parent) not in page + repr(file)


def test_printable() -> None:
    assert printable("a\tb\x1b") == "a\\tb\\x1b"
    assert printable("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("type", "at", "bad"),
    [
        ("F32", 4, np.float32([np.nan])),
        ("F16", 2, np.float16([np.inf])),
        ("BF16", 2, np.uint16([0x7F80])),
        ("Q8_0", 34, np.float16([np.nan])),
        ("Q4_K", 144 + 2, np.float16([-np.inf])),
        ("MXFP4", 17, np.uint8([255])),
        ("IQ1_M", 56 + 48, np.uint16([0xF000] * 4)),
        ("TQ2_0", 66 + 64, np.float16([np.inf])),
    ],
)
def test_verify_finds_the_block(tmp_path: Path, type: str, at: int, bad: np.ndarray) -> None:
    kind = tensor_type(type)
    raw = bytearray(3 * kind.bytes)
    paths = [tmp_path / "good.gguf", tmp_path / "bad.gguf"]
    for path in paths:
        with GGUFWriter(path) as writer:
            writer.declare("w", (3, kind.block), kind)
            writer.write("w", bytes(raw))
        raw[at : at + bad.nbytes] = bad.tobytes()
    assert verify(GGUFFile.open(paths[0])) == []
    file = GGUFFile.open(paths[1])
    (line,) = verify(file)
    assert line.startswith(f"w: block 1 at byte {file.data_offset + kind.bytes} has")
