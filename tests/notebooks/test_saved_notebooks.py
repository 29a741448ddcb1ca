"""Notebooks as they lie in the repository: what GitHub shows of them, and what nobody should find in them."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 20  # lines


def set_up_of(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return next("".join(cell["source"]) for cell in cells if "set-up" in cell["metadata"].get("tags", []))


SET_UP = set_up_of(next(path for path in NOTEBOOKS if path.name.startswith("01")))


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
    bundles = [output.get("data", {}) for output in outputs(notebook)]
    assert not any("application/vnd.jupyter.widget-view+json" in data for data in bundles)
    # four letters such as /tmp come up by chance in base64
    texts = [{kind: data for kind, data in bundle.items() if kind != "image/png"} for bundle in bundles]
    saved = json.dumps([texts, [output.get("text") for output in outputs(notebook)]])
    for folder in (repository, Path.home(), Path(tempfile.gettempdir())):
        assert str(folder) not in saved


def test_says_at_the_top_what_one_gets_and_how_long_it_takes(notebook: dict) -> None:
    opening = "".join(notebook["cells"][0]["source"])
    assert opening.startswith("# ") and "**At the end**" in opening and "**Time**" in opening


def test_the_set_up_cell_upgrades_nothing_and_is_the_same_everywhere(notebook: dict) -> None:
    cells = [cell for cell in code_cells(notebook) if "set-up" in cell["metadata"].get("tags", [])]
    if not cells:
        pytest.skip("this notebook sets nothing up for Colab")
    text = "".join(cells[0]["source"])
    assert "--upgrade" not in text and "pip install -U" not in text
    assert text == SET_UP


def test_every_output_that_is_compared_is_text(notebook: dict) -> None:
    for cell in code_cells(notebook):
        if "nbval-check-output" in cell["metadata"].get("tags", []):
            assert cell["outputs"] and not any(
                "image/png" in output.get("data", {}) for output in cell["outputs"]
            )


def test_cells_are_short(notebook: dict) -> None:
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= LONGEST_CELL, source
