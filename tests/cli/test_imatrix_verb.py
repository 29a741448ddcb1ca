"""`phicourse imatrix` as a user types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phicourse.cli import app
from phicourse.quantize.importance import ImportanceMatrix

pytest.importorskip("torch")


def invoke(*args: str | Path):
    return CliRunner().invoke(app, ["imatrix", *map(str, args)])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Once upon a time there was a little dog. The dog ran to the park. " * 20)
    return path


@pytest.fixture(scope="module")
def measured(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imatrix") / "a.gguf"
    result = invoke(checkpoint, "-f", text, "-o", out, "--ctx", 32, "--chunks", 2)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.stderr
    return out


def test_a_file_is_measured(measured: Path, text: Path) -> None:
    matrix = ImportanceMatrix.read(measured)
    assert (matrix.n_chunks, matrix.chunk_size, matrix.datasets) == (2, 32, (str(text),))
    assert len(matrix.squares) == 4  # one layer


def test_the_engine_measures_a_gguf_file(f16: Path, measured: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    result = invoke(f16, "-f", text, "-o", out, "--ctx", 32, "--chunks", 2, "--process-output", "--json")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["tensors"]) == 5
    theirs = ImportanceMatrix.read(measured).entries
    assert ImportanceMatrix.read(out).entries.keys() == theirs.keys() | {"output.weight"}


def test_matrices_are_added_up_into_the_other_format(measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.dat"
    files = ("--in-file", measured, "--in-file", measured)
    assert invoke(*files, "-o", out, "--output-format", "dat", "--ctx", 32).exit_code == 0
    assert ImportanceMatrix.read(out).n_chunks == 4
    again = invoke(*files, "-o", out)
    assert again.exit_code == 1 and "--force" in again.stderr
    onto_itself = invoke(*files, "-o", measured, "--force")
    assert onto_itself.exit_code == 1 and "is an input" in onto_itself.stderr


def test_statistics_are_a_table_or_a_document(measured: Path) -> None:
    table = invoke("--show-statistics", measured)
    assert table.exit_code == 0 and "attn_qkv" in table.stdout and "2 chunks of 32 tokens" in table.stdout
    document = json.loads(invoke("--show-statistics", measured, "--json").stdout)
    assert (document["path"], document["chunks"], len(document["tensors"])) == (str(measured), 2, 4)


def test_the_picture_is_a_png_file(measured: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    assert invoke("--show-statistics", measured, "--picture", picture).exit_code == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert invoke("--show-statistics", measured, "--picture", picture).exit_code == 1


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("model.gguf", "-o", "x"),
        ("-f", "text", "-o", "x"),
        ("model.gguf", "-f", "text"),
        ("-o", "x"),
        ("model.gguf", "--show-statistics", "x"),
    ],
)
def test_wrong_usage_is_status_2(args: tuple[str, ...]) -> None:
    assert invoke(*args).exit_code == 2


def test_a_file_that_is_no_matrix_is_one_line(text: Path) -> None:
    result = invoke("--show-statistics", text)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"phicourse: {text}: is no importance matrix")
    assert result.stderr.count("\n") == 1
