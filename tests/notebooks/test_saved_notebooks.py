"""Notebooks as they lie in the repository: what GitHub shows of them, and what nobody should find in them."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 20  # lines


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_was_run_once_from_top_to_bottom(notebook: dict) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_shows_no_error_and_no_noise(notebook: dict) -> None:
    assert [output for output in outputs(notebook) if output["output_type"] == "error"] == []
    assert [output["text"] for output in outputs(notebook) if output.get("name") == "stderr"] == []


def test_text_that_came_in_pieces_is_one_output(notebook: dict) -> None:
    """GitHub starts a new line for each output: `nbconvert --coalesce-streams` joins them."""
    for cell in code_cells(notebook):
        names = [output.get("name") for output in cell["outputs"]]
        assert all(first is None or first != second for first, second in pairwise(names))


def test_figures_are_saved_as_pictures(notebook: dict) -> None:
    for output in outputs(notebook):
        data = output.get("data", {"text/html": ""})
        assert {"text/html", "image/png", "text/markdown"} & set(data), data["text/plain"]


def test_saves_no_widget_state_and_no_path_of_a_machine(notebook: dict, repository: Path) -> None:
    assert "widgets" not in notebook["metadata"]
    saved = json.dumps(outputs(notebook))
    for folder in (repository, Path.home(), Path(tempfile.gettempdir())):
        assert str(folder) not in saved


def test_cells_are_short(notebook: dict) -> None:
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= LONGEST_CELL, source
