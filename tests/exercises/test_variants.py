"""Editions of the notebooks: without solutions, solved, and with the repository's address."""

import shutil
from pathlib import Path

import pytest

from phicourse.errors import PhiCourseError
from phicourse.exercises.variants import (
    Notebook,
    read_notebook,
    repository_address,
    solutions,
    solved,
    source,
    student,
    tagged,
    with_address,
    write_editions,
)

ADDRESS = "https://github.com/someone/phicourse"
PATHS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("0[1-9]*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Notebook:
    return read_notebook(request.param)


def test_students_get_no_solution_and_no_output(notebook: Notebook) -> None:
    edition = student(notebook)
    assert (
        tagged(edition, "solution") == {}
        and tagged(edition, "stub").keys() == tagged(notebook, "stub").keys()
    )
    assert len(edition["cells"]) == len(notebook["cells"]) - len(solutions(notebook))
    assert all(not cell.get("outputs") for cell in edition["cells"])
    text = "\n".join(map(source, edition["cells"]))
    assert not any(code in text for code in solutions(notebook).values())


def test_the_solved_edition_has_the_solutions_in_place_of_the_stubs(notebook: Notebook) -> None:
    edition = solved(notebook)
    assert {id: source(cell) for id, cell in tagged(edition, "stub").items()} == solutions(notebook)
    stubs = [source(cell) for cell in tagged(notebook, "stub").values()]
    assert all("NotImplementedError" in stub for stub in stubs)  # and the notebook itself was left alone


def test_the_solved_edition_keeps_only_outputs_that_are_compared(notebook: Notebook) -> None:
    for before, after in zip(notebook["cells"], solved(notebook)["cells"], strict=True):
        if before["cell_type"] == "code":
            is_compared = "nbval-check-output" in before["metadata"].get("tags", [])
            assert after["outputs"] == (before["outputs"] if is_compared else [])


def test_the_address_comes_once_and_goes_again(notebook: Notebook) -> None:
    addressed = with_address(notebook, "notebooks/x.ipynb", ADDRESS)
    (opening,) = [cell for cell in addressed["cells"] if "opening" in cell["metadata"].get("tags", [])]
    (set_up,) = [cell for cell in addressed["cells"] if "set-up" in cell["metadata"].get("tags", [])]
    last = source(opening).splitlines()[-1]
    assert "mybinder.org/v2/gh/someone/phicourse/HEAD?labpath=notebooks%2Fx.ipynb" in last
    assert "colab.research.google.com/github/someone/phicourse/blob/HEAD/notebooks/x.ipynb" in last
    assert f'REPOSITORY = "{ADDRESS}"' in source(set_up)
    assert with_address(addressed, "notebooks/x.ipynb", ADDRESS) == addressed
    without = with_address(notebook, "notebooks/x.ipynb", None)
    assert with_address(addressed, "notebooks/x.ipynb", None) == without


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebooks_have_the_address_that_pyproject_has(path: Path, repository: Path) -> None:
    notebook = read_notebook(path)
    address = repository_address(repository / "pyproject.toml")
    assert with_address(notebook, f"notebooks/{path.name}", address) == notebook


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\n[project.urls]\nRepository = "ftp://github.com/x"\n')
    with pytest.raises(PhiCourseError, match="no address"):
        repository_address(project)


def test_a_students_file_stays_and_a_solved_one_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notebooks").mkdir()
    shutil.copy(PATHS[0], tmp_path / "notebooks")
    for edition in ("student", "solved"):
        (path,) = write_editions(tmp_path, edition)
        path.write_text("mine")
        again = write_editions(tmp_path, edition)
        assert (path.read_text() == "mine") is (edition == "student") is (again == [])
    assert "stays" in capsys.readouterr().out


def test_two_code_blocks_in_a_solution_are_refused(notebook: Notebook) -> None:
    cell = next(iter(tagged(notebook, "solution").values()))
    cell["source"] = cell["source"] + ["\n\n```python\nx\n```\n"]
    with pytest.raises(PhiCourseError, match="one block"):
        solutions(notebook)
