"""Shards, metadata files and model names: llama.cpp's bytes for the same options, and what is better here."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference_converter import run_reference

from phicourse.convert import convert
from phicourse.convert.streaming import Conversion
from phicourse.errors import ConvertError, GGUFError
from phicourse.gguf import GGUFFile, Split
from phicourse.quantize import quantize

Tiny = Callable[..., Path]
COMMIT = "2fe192450127e6a83f7441aef6e3ca586c338b77"
FULL: dict[str, Any] = {
    "general.sampling.sequence": "k;p",
    "general.sampling.top_k": 7,
    "general.sampling.top_p": 1,
    "general.sampling.min_p": 0.1,
    "general.sampling.xtc_probability": 0.2,
    "general.sampling.xtc_threshold": 0.3,
    "general.sampling.temp": 0.7,
    "general.sampling.penalty_last_n": 64,
    "general.sampling.penalty_repeat": 1.1,
    "general.sampling.mirostat": 2,
    "general.sampling.mirostat_tau": 5.0,
    "general.sampling.mirostat_eta": 0.1,
    "general.name": "Phi of Übung",
    "general.author": "Somebody",
    "general.version": "v1.2",
    "general.organization": "Some Where",
    "general.finetune": "story teller",
    "general.basename": "phi/tiny",
    "general.description": "Tells stories.\nShort ones.",
    "general.quantized_by": "nobody",
    "general.size_label": "9M",
    "general.license": "is not taken from here",
    "general.license.name": "a license",
    "general.license.link": "https://example.org/license",
    "general.url": "https://example.org",
    "general.doi": "10.1000/182",
    "general.uuid": "54cc8ab5-3d4c-4b5d-9e2a-1f0e5b0d7c11",
    "general.repo_url": "https://example.org/gguf",
    "general.source.url": "https://example.org/source",
    "general.source.doi": "10.1000/183",
    "general.source.uuid": "a",
    "general.source.repo_url": "b",
    "general.base_models": [
        {"name": "Phi", "uuid": "x", "author": "M", "version": "", "repo_url": "r", "unknown": 5},
        {},
    ],
    "general.datasets": [{"doi": "d", "url": "u", "organization": "o", "description": "e"}],
    "general.tags": ["tiny", "", "Ü"],
    "general.languages": ["en"],
    "comment": "is not a key",
}
NULLS = dict.fromkeys(FULL)
EMPTY = {key: type(value)() for key, value in FULL.items() if not isinstance(value, int | float)}
FILES = {"full": FULL, "nulls": NULLS, "empty": EMPTY, "few": {"general.name": "A/b", "general.tags": ["x"]}}
SPLITS: dict[str, tuple[list[str], Split]] = {
    "tensors": (["--split-max-tensors", "9"], Split(max_tensors=9)),
    "size": (["--split-max-size", "2M"], Split(max_bytes=2_000_000)),
    "small size": (["--split-max-size", "100K"], Split(max_bytes=100_000)),
    "both": (
        ["--split-max-size", "3M", "--split-max-tensors", "6"],
        Split(max_tensors=6, max_bytes=3_000_000),
    ),
    "keys first": (
        ["--split-max-size", "5000000", "--no-tensor-first-split"],
        Split(max_bytes=5_000_000, keys_first=True),
    ),
    "only the keys apart": (["--no-tensor-first-split"], Split(keys_first=True)),
    "no need": (["--split-max-size", "1G"], Split(max_bytes=10**9)),
}
CARD = """---
license: mit
tags: [from, the, card]
language: en
base_model: microsoft/Phi-3.5-mini-instruct
model_creator: Card
---
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def overrides(base: Path, name: str) -> Path:
    path = base / f"{name}.json"
    path.write_text(json.dumps(FILES[name]))
    return path


@pytest.fixture(scope="session")
def checkpoint(phi_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi-tiny with a model card and sampling settings, in a folder such as the Hub's cache has."""
    folder = tmp_path_factory.mktemp("hub") / "models--some-one--Phi-tiny-instruct" / "snapshots" / COMMIT
    shutil.copytree(phi_tiny, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "generation_config.json").write_text(
        '{"top_k": 3, "temperature": 0.5, "repetition_penalty": 2}'
    )
    return folder


@pytest.fixture(scope="session")
def theirs(repository: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a case, with what llama.cpp's converter writes."""
    base = tmp_path_factory.mktemp("theirs")
    cases = {case: arguments for case, (arguments, _) in SPLITS.items()}
    cases |= {case: ["--metadata", str(overrides(base, case))] for case in FILES}
    cases |= {"named": ["--model-name", "Named"], "named over": [*cases["full"], "--model-name", "a/B-7b"]}
    cases |= {"plain": []}
    for case in cases:
        (base / case).mkdir()
    jobs = [
        [str(checkpoint), "--outtype", "f16", "--outfile", str(base / case / "m.gguf"), *arguments]
        for case, arguments in cases.items()
    ]
    run_reference(repository, jobs)
    return base


@pytest.mark.parametrize("case", SPLITS)
def test_every_shard_has_the_converter_s_bytes(
    checkpoint: Path, theirs: Path, tmp_path: Path, case: str
) -> None:
    first = convert(checkpoint, tmp_path / "m.gguf", compat=True, split=SPLITS[case][1], progress=False)
    expected = contents(theirs / case)
    assert contents(tmp_path) == expected
    assert first.name == min(expected)
    with GGUFFile.open(first) as file:
        assert file.n_shards == len(expected)
        assert len(expected) > 1 or case == "no need"


@pytest.mark.parametrize("case", FILES)
def test_a_metadata_file_has_the_converter_s_effect(
    checkpoint: Path, theirs: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = overrides(tmp_path, case)
    out = convert(checkpoint, tmp_path / "m.gguf", compat=True, metadata=given, progress=False)
    assert out.read_bytes() == (theirs / case / "m.gguf").read_bytes()
    ignored = "cannot be set here: 'general.license, comment'"
    assert (ignored in capsys.readouterr().err) == ("comment" in FILES[case])


def test_a_model_name_has_the_converter_s_effect(checkpoint: Path, theirs: Path, tmp_path: Path) -> None:
    options = {"compat": True, "progress": False}
    named = convert(checkpoint, tmp_path / "a.gguf", model_name="Named", **options)
    assert named.read_bytes() == (theirs / "named" / "m.gguf").read_bytes()
    given = overrides(tmp_path, "full")
    over = convert(checkpoint, tmp_path / "b.gguf", metadata=given, model_name="a/B-7b", **options)
    assert over.read_bytes() == (theirs / "named over" / "m.gguf").read_bytes()


# ---- models in the Hub's cache ----------------------------------------------------------------------------


def test_a_model_in_the_hub_s_cache_has_its_own_name_and_not_its_commit_s(
    checkpoint: Path, theirs: Path, tmp_path: Path
) -> None:
    """general.name and its parts differ from llama.cpp's on purpose: the folder there is named after a commit.

    llama.cpp's converter takes OWNER/NAME only with --remote; a commit as general.name helps nobody.
    """
    ours = GGUFFile.open(convert(checkpoint, tmp_path / "ours.gguf", progress=False))
    reference = GGUFFile.open(theirs / "plain" / "m.gguf")
    differing = {
        key
        for key in ours.metadata.keys() | reference.metadata.keys()
        if not key.startswith("phicourse.")
        and str(ours.metadata.get(key)) != str(reference.metadata.get(key))
    }
    assert reference.get("general.name", str) == COMMIT
    assert ours.get("general.name", str) == "Phi Tiny Instruct"
    assert ours.get("general.organization", str) == "Some One"
    assert differing == {
        "general.name",
        "general.organization",
        "general.basename",
        "general.finetune",
    }
    compat = convert(checkpoint, tmp_path / "compat.gguf", compat=True, progress=False)
    assert compat.read_bytes() == (theirs / "plain" / "m.gguf").read_bytes()


@pytest.mark.parametrize(
    ("compat", "name"),
    [(False, r"Phi-tiny-\d\.\dM-instruct-F16\.gguf"), (True, rf"{COMMIT}-\d\.\dM-{COMMIT}-F16\.gguf")],
)
def test_nothing_is_written_into_the_hub_s_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compat: bool, name: str
) -> None:
    before = sorted(os.listdir(checkpoint))
    monkeypatch.chdir(tmp_path)
    out = convert(checkpoint, compat=compat, progress=False)
    assert re.fullmatch(name, str(out))
    assert quantize(checkpoint, mix="Q8_0", progress=False) == Path("ggml-model-Q8_0.gguf")
    assert sorted(os.listdir(checkpoint)) == before


# ---- files and names that lie -----------------------------------------------------------------------------

LIES = {
    "not JSON": ("{", "not valid JSON"),
    "a list": ("[]", "the top level must be a JSON object"),
    "twice": ('{"general.name": "a", "general.name": "b"}', "appears twice"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "a number for a text": ('{"general.name": 5}', "general.name is 5, it must be a text"),
    "a list for a text": ('{"general.url": ["a"]}', "general.url is ['a'], it must be a text"),
    "a text for a list": ('{"general.tags": "a"}', "general.tags is 'a', it must be a list of texts"),
    "numbers in a list": ('{"general.languages": [1]}', "it must be a list of texts"),
    "a text for a number": ('{"general.sampling.top_k": "1"}', "top_k is '1', it must be INT32"),
    "a fraction for a number": ('{"general.sampling.top_k": 1.5}', "it must be INT32"),
    "a truth for a number": ('{"general.sampling.temp": true}', "temp is True, it must be FLOAT32"),
    "a number too large": ('{"general.sampling.top_k": 99999999999}', "top_k: 99999999999 is no INT32"),
    "names for models": (
        '{"general.base_models": ["a"]}',
        "base_models is ['a'], it must be a list of objects",
    ),
    "numbers in models": ('{"general.datasets": [{"name": 1}]}', "it must be a list of objects with texts"),
    "half a character": ('{"general.name": "\\ud800"}', "general.name: '\\ud800' is no STRING"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_metadata_file_that_lies_is_one_line_and_no_file(tiny: Tiny, tmp_path: Path, case: str) -> None:
    content, message = LIES[case]
    (tmp_path / "given.json").write_text(content)
    with pytest.raises((ConvertError, GGUFError)) as error:
        convert(tiny(), tmp_path / "m.gguf", metadata=tmp_path / "given.json", progress=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m.gguf").exists()


def test_a_metadata_file_that_is_missing_or_the_output(tiny: Tiny, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    with pytest.raises(ConvertError, match=r"given\.json: cannot be read: No such file"):
        convert(tiny(), metadata=given, progress=False)
    given.write_text("{}")
    with pytest.raises(GGUFError, match="is an input, too"):
        convert(tiny(folder="again"), given, metadata=given, force=True, progress=False)
    assert given.read_text() == "{}"


def test_no_name_leads_out_of_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    names = {"basename": "a/b", "finetune": "../../c", "version": "\\d", "size_label": "e\0f"}
    given.write_text(json.dumps({f"general.{key}": value for key, value in names.items()}))
    folder = tiny()
    out = convert(folder, metadata=given, progress=False)
    assert out == folder / "a-b-e-f-..-..-c--d-F16.gguf"


def test_an_interrupt_in_the_second_shard_leaves_none(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny()
    before = sorted(folder.iterdir())
    real, seen = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *args: (seen.append(args), real(*args)))

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversion, "_stored", interrupt)
    with pytest.raises(KeyboardInterrupt):  # after the rope factors, which are in the config
        convert(folder, split=Split(max_tensors=1), progress=False)
    assert seen == []
    assert sorted(folder.iterdir()) == before
