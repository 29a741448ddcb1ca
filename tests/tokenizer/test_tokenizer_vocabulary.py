"""Vocabularies: the bytes of llama.cpp's converter, the way through a GGUF file, and broken ones."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_texts import BPE_RELEASES, RELEASES

from phicourse.errors import PhiCourseError, TokenizerError
from phicourse.gguf import GGUFFile, GGUFWriter, ValueType
from phicourse.tokenizer import Tokenizer, TokenType, Vocabulary
from phicourse.tokenizer.sentencepiece_model import parse_sentencepiece_model, read_sentencepiece_model

# Calls set_vocab of llama.cpp's converter (llama-cpp-python 0.3.36) for each folder and writes only its keys.
CONVERTER = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import gguf
from conversion.phi import Phi2Model, Phi3MiniModel
for folder, out in json.loads(sys.argv[2]):
    config = json.loads((Path(folder) / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "phi3")
    model = object.__new__(Phi2Model if config["model_type"] == "phi" else Phi3MiniModel)
    model.dir_model, model.hparams, model.gguf_writer = Path(folder), config, writer
    model.set_vocab()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
"""


def write_gguf(path: Path, vocabulary: Vocabulary, private: bool = False, **text: str) -> GGUFFile:
    """Write a file with nothing but the vocabulary."""
    with GGUFWriter(path, force=True) as writer:
        writer.add("general.architecture", "phi3", ValueType.STRING)
        for key, value in text.items():
            writer.add(key.replace("__", "."), value, ValueType.STRING)
        for entry in vocabulary.metadata() + (vocabulary.private_metadata() if private else []):
            writer.add(*entry)
    return GGUFFile.open(path)


@pytest.fixture
def altered(phi3_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy Phi-3's tokenizer with changed JSON files: `altered(tokenizer_config={"eos_token": "x"})`."""

    def alter(**changes: dict[str, Any] | None) -> Path:
        shutil.copytree(phi3_folder, tmp_path / "altered", dirs_exist_ok=True)
        for name, change in changes.items():
            path = tmp_path / "altered" / f"{name}.json"
            if change is None:
                path.unlink()
            else:
                path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return tmp_path / "altered"

    return alter


def older_phi2(shared_data: Path, tmp_path: Path) -> list[Path]:
    """Phi-2's tokenizer as vocab.json and merges.txt only, with and without a tokenizer_config.json."""
    folders = [tmp_path / "with_config", tmp_path / "without"]
    names = ("config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
    for folder in folders:
        folder.mkdir()
        for name in names:
            shutil.copyfile(shared_data / "phi" / "phi-2" / name, folder / name)
    shutil.copyfile(shared_data / "phi/phi-2/tokenizer_config.json", folders[0] / "tokenizer_config.json")
    return folders


def test_the_bytes_of_llama_cpps_converter(
    llama_cpp_source: Path,
    release_folder: dict[str, Path],
    stories260k: Path,
    tiny_folder: Path,
    altered: Callable[..., Path],
    shared_data: Path,
    tmp_path: Path,
) -> None:
    missing = [name for name in ("torch", "transformers", "sentencepiece") if find_spec(name) is None]
    if missing:
        pytest.skip(f"llama.cpp's converter needs {', '.join(missing)}")
    folders = [*release_folder.values(), stories260k, altered(tokenizer=None)]
    folders += [shared_data / "phi" / name for name in BPE_RELEASES]
    folders += older_phi2(shared_data, tmp_path)
    if (tiny_folder / "config.json").is_file():
        folders.append(tiny_folder)
    jobs = [(str(folder), str(tmp_path / f"{i}.gguf")) for i, folder in enumerate(folders)]
    command = [sys.executable, "-c", CONVERTER, str(llama_cpp_source), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, out in jobs:
        ours = write_gguf(tmp_path / "ours.gguf", Vocabulary.from_folder(Path(folder)))
        assert ours.path.read_bytes() == Path(out).read_bytes(), folder


def test_what_phi_3_says_of_itself(phi3: Tokenizer) -> None:
    vocabulary = phi3.vocabulary
    assert (vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.pad) == (1, 32000, 0, 32000)
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (False, False, True)
    assert vocabulary.rstrip == {2, *range(32001, 32011)} and vocabulary.lstrip == frozenset()
    assert vocabulary.tokens[259:261] == ["▁▁", "▁t"] and vocabulary.scores[260] == -1.0
    assert vocabulary.types[[0, 1, 2, 3, 259, 32007, 32050]].tolist() == [3, 3, 4, 6, 1, 3, 5]
    assert vocabulary.tokens[32050] == "[PAD32050]"
    assert phi3.n_vocab == 32064


def test_without_json_files_the_defaults_of_llama_hold(stories260k: Path) -> None:
    vocabulary = Vocabulary.from_folder(stories260k)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.pad) == (1, 2, 0, 0)
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)
    assert vocabulary.chat_template is None and vocabulary.private_metadata() == []
    assert "tokenizer.ggml.add_bos_token" not in [key for key, *_ in vocabulary.metadata()]


@pytest.mark.parametrize("release", RELEASES)
def test_a_gguf_file_with_our_keys_keeps_everything(
    release_folder: dict[str, Path], release: str, tmp_path: Path
) -> None:
    original = Vocabulary.from_folder(release_folder[release])
    again = Vocabulary.from_gguf(write_gguf(tmp_path / "v.gguf", original, private=True))
    for name in (
        "tokens",
        "special_ids",
        "add_special",
        "add_space_prefix",
        "chat_template",
        "lstrip",
        "rstrip",
    ):
        assert getattr(again, name) == getattr(original, name)
    np.testing.assert_array_equal(again.scores, original.scores)
    np.testing.assert_array_equal(again.types, original.types)
    assert Tokenizer(again).eog == Tokenizer(original).eog


def test_without_our_keys_the_name_of_the_file_decides_as_in_llama_cpp(
    phi3: Tokenizer, tmp_path: Path
) -> None:
    plain = write_gguf(tmp_path / "a.gguf", phi3.vocabulary, general__name="Phi 3 Mini 4k Instruct")
    assert Vocabulary.from_gguf(plain).rstrip == frozenset()
    named = write_gguf(tmp_path / "b.gguf", phi3.vocabulary, general__name="Phi3")
    assert Vocabulary.from_gguf(named).rstrip == phi3.vocabulary.rstrip


def test_no_space_in_front_is_kept_in_llama_cpps_key(phi3: Tokenizer, tmp_path: Path) -> None:
    plain = replace(phi3.vocabulary, add_space_prefix=False)
    again = Vocabulary.from_gguf(write_gguf(tmp_path / "v.gguf", plain, private=True))
    assert not again.add_space_prefix
    assert Tokenizer(again).encode("Hello") == [10994]
    assert Tokenizer(again).decode([15043]) == " Hello"


def test_pieces_as_the_sentencepiece_package_reads_them(phi3_folder: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = phi3_folder / "tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = read_sentencepiece_model(path).pieces
    assert len(ours) == theirs.vocab_size()
    for id, piece in enumerate(ours):
        assert (piece.text, piece.score) == (theirs.id_to_piece(id), theirs.get_score(id))


def field(number: int, payload: bytes | int) -> bytes:
    """A field of a protocol buffer; numbers below 128 only."""
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    return bytes([number << 3 | 2, len(payload)]) + payload


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    return field(1, field(1, text) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + field(3, kind))


BPE = field(2, field(3, 2))


def test_a_small_sentencepiece_model() -> None:
    model = parse_sentencepiece_model(piece(b"<unk>", 0, 2) + piece("▁a".encode(), -1.5) + BPE)
    assert [(piece.text, piece.score, piece.type) for piece in model.pieces] == [
        ("<unk>", 0, 2),
        ("▁a", -1.5, 1),
    ]
    assert model.add_space_prefix
    assert not parse_sentencepiece_model(piece(b"a") + BPE + field(3, field(3, 0))).add_space_prefix


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no pieces"),
        (BPE, "no pieces"),
        (piece(b"a"), "not of type BPE"),
        (piece(b"a") + BPE + field(3, field(2, b"map")), "precompiled_charsmap"),
        (piece(b"a") + BPE + field(3, field(5, 0)), "U\\+2581"),
        (piece(b"a") + field(2, field(3, 2) + bytes([0xC0, 0x01, 1])), "end of words"),
        (piece(b"\xff"), "not a SentencePiece model"),
        (piece(b"a", float("nan")), "score nan"),
        (piece(b"a")[:-1], "after the end of its message"),
        (b"\xff" * 20, "more than ten bytes"),
        (b"\x0b", "unknown wire type"),
        (b"\x80", "ends within a number"),
        (field(1, 5), "a number where bytes"),
    ],
)
def test_a_broken_tokenizer_model(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.model: .*{reason}"):
        read_sentencepiece_model(path)


def test_no_tokenizer_model(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no SentencePiece vocabulary \(tokenizer.model\)"):
        Vocabulary.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match=r"Phi-3-small: no SentencePiece .* and no byte-pair one"):
        Vocabulary.from_folder(shared_data / "phi" / "Phi-3-small")
    with pytest.raises(TokenizerError, match=r"SentencePiece vocabulary: tokenizer\.model is needed"):
        Vocabulary.from_folder(shared_data / "phi" / "Phi-3-medium")


TOKEN = {"content": "<x>", "special": True}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": {"vocab_size": 100}}, "vocab_size"),
        ({"config": {"vocab_size": "32064"}}, "vocab_size"),
        ({"config": {"vocab_size": 10**12}}, "vocab_size"),
        ({"config": {"bos_token_id": -1}, "tokenizer": None}, "negative id"),
        ({"added_tokens": {"<x>": -1}}, "has no id"),
        ({"added_tokens": {"<x>": "7"}}, "has no id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": TOKEN}}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"²": TOKEN}}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": [TOKEN]}}, "added_tokens_decoder"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"40000": TOKEN}}},
            "has id 40000, vocab_size is 32064",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"5": {}}}}, "content that is not empty"),
        ({"tokenizer": {"added_tokens": {"5": TOKEN}}}, "added_tokens must be a list"),
        ({"tokenizer": {"added_tokens": [TOKEN]}}, "has no id"),
        ({"tokenizer": {"added_tokens": [TOKEN | {"id": -1}]}}, "has id -1"),
        ({"tokenizer": {"added_tokens": [TOKEN | {"id": 5, "content": ""}]}}, "content that is not empty"),
        ({"tokenizer": {"added_tokens": [TOKEN | {"id": 5}, TOKEN | {"id": 6}]}}, "twice, as 5 and 6"),
        ({"tokenizer": {"post_processor": {"processors": 7}}}, "post_processor"),
    ],
)
def test_json_files_that_make_no_sense(
    altered: Callable[..., Path], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PhiCourseError, match=reason) as error:
        Vocabulary.from_folder(altered(**changes))
    assert "\n" not in str(error.value)


def test_where_the_chat_template_comes_from(altered: Callable[..., Path]) -> None:
    folder = altered()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert Vocabulary.from_folder(folder).chat_template == config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Vocabulary.from_folder(folder).chat_template == (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert Vocabulary.from_folder(folder).chat_template is None
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert Vocabulary.from_folder(folder).chat_template == "{{ messages }}"
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert Vocabulary.from_folder(folder).chat_template == "b"


ENTRIES: dict[str, tuple[Any, ValueType, ValueType | None]] = {
    "tokenizer.ggml.model": ("llama", ValueType.STRING, None),
    "tokenizer.ggml.tokens": (["<unk>", "<s>", "a"], ValueType.ARRAY, ValueType.STRING),
    "tokenizer.ggml.scores": (np.zeros(3, np.float32), ValueType.ARRAY, ValueType.FLOAT32),
    "tokenizer.ggml.token_type": (np.array([2, 3, 1], np.int32), ValueType.ARRAY, ValueType.INT32),
}


def strings(*texts: str) -> tuple[Any, ValueType, ValueType | None]:
    return list(texts), ValueType.ARRAY, ValueType.STRING


def floats(*numbers: float) -> tuple[Any, ValueType, ValueType | None]:
    return np.array(numbers, np.float32), ValueType.ARRAY, ValueType.FLOAT32


def integers(*numbers: int) -> tuple[Any, ValueType, ValueType | None]:
    return np.array(numbers, np.int32), ValueType.ARRAY, ValueType.INT32


@pytest.mark.parametrize(
    ("key", "entry", "reason"),
    [
        ("tokenizer.ggml.model", ("bert", ValueType.STRING, None), "'bert' is not supported"),
        ("tokenizer.ggml.model", None, "tokenizer.ggml.model"),
        ("tokenizer.ggml.tokens", integers(1, 2, 3), "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.tokens", strings("<unk>", "<s>"), "2 tokens with 3 scores"),
        ("tokenizer.ggml.tokens", strings("<unk>", "<s>", "<s>"), "twice, as 1 and 2"),
        ("tokenizer.ggml.scores", None, "tokenizer.ggml.scores"),
        ("tokenizer.ggml.scores", floats(0, 0), "3 tokens with 2 scores"),
        ("tokenizer.ggml.scores", floats(0, float("nan"), 0), "token 1 has a score"),
        ("tokenizer.ggml.scores", integers(0, 0, 0), "elements of type int32"),
        ("tokenizer.ggml.token_type", integers(1, 1), "3 tokens with 3 scores and 2 types"),
        ("tokenizer.ggml.token_type", integers(1, 1, 9), "outside 1 to 6"),
        ("tokenizer.ggml.token_type", integers(2, 6, 1), "byte token 1 is named '<s>'"),
        ("tokenizer.ggml.bos_token_id", (3, ValueType.UINT32, None), "id 3 is outside the vocabulary of 3"),
        ("tokenizer.ggml.eos_token_id", ("2", ValueType.STRING, None), "tokenizer.ggml.eos_token_id"),
        ("tokenizer.ggml.add_bos_token", (1, ValueType.UINT32, None), "tokenizer.ggml.add_bos_token"),
        ("phicourse.tokenizer.rstrip_token_ids", integers(-1), "id -1 is outside"),
        ("phicourse.tokenizer.lstrip_token_ids", floats(0.5), "elements of type float32"),
        ("tokenizer.chat_template", (7, ValueType.UINT32, None), "tokenizer.chat_template"),
    ],
)
def test_a_gguf_file_that_lies(tmp_path: Path, key: str, entry: Any, reason: str) -> None:
    path = tmp_path / "v.gguf"
    with GGUFWriter(path) as writer:
        for name, value in (ENTRIES | {key: entry}).items():
            if value is not None:
                writer.add(name, *value)
    with pytest.raises(PhiCourseError, match=reason) as error:
        Tokenizer.from_gguf(path)
    assert "\n" not in str(error.value)


def test_the_smallest_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    with GGUFWriter(path) as writer:
        for name, value in ENTRIES.items():
            writer.add(name, *value)
    tokenizer = Tokenizer.from_gguf(path)
    assert (tokenizer.bos, tokenizer.vocabulary.eos, tokenizer.vocabulary.pad) == (1, 2, None)
    assert tokenizer.vocabulary.ids_of_type(TokenType.NORMAL) == [2]
    assert tokenizer.encode("a") == [1, 0, 2]  # a space in front, for which there is no token
