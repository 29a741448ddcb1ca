"""Every exercise as its notebook has it: the header, the stub, the check, and the one solution."""

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phicourse.exercises import EXERCISES
from phicourse.exercises.variants import Notebook, read_notebook, solutions, source, tagged

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
BOOKS = {path.name[:2]: read_notebook(path) for path in NOTEBOOKS}
IDS = [id for notebook in BOOKS.values() for id in tagged(notebook, "stub")]


def book_of(id: str) -> Notebook:
    return BOOKS[id.partition(".")[0]]


@pytest.fixture(autouse=True)
def in_the_notebooks_folder(repository: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(repository / "notebooks")
    yield
    os.chdir(before)


def namespace_for(id: str) -> dict[str, Any]:
    """What a learner has who has run all cells up to an exercise, and solved those before it."""
    names: dict[str, Any] = {"Path": Path}
    code = solutions(book_of(id))
    for cell in book_of(id)["cells"]:
        tags = cell["metadata"].get("tags", [])
        stubs = [tag.removeprefix("stub-") for tag in tags if tag.startswith("stub-")]
        if id in stubs:
            break
        if "given" in tags:
            exec(source(cell), names)
        if stubs:
            exec(code[stubs[0]], names)
    return names


def asked_for(code: str) -> str:
    """The name of the function that an exercise is about: the last one that the cell defines."""
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)][-1]


def define(code: str, names: dict[str, Any]) -> Callable[..., Any]:
    exec(code, names)
    return names[asked_for(code)]


def test_every_registered_exercise_is_in_a_notebook() -> None:
    assert sorted(IDS) == sorted(EXERCISES)


@pytest.mark.parametrize(
    "notebook", [book for id, book in BOOKS.items() if id != "00"], ids=[id for id in BOOKS if id != "00"]
)
def test_a_notebook_has_at_least_three_exercises(notebook: Notebook) -> None:
    assert len(tagged(notebook, "stub")) >= 3


@pytest.mark.parametrize("id", IDS)
def test_an_exercise_has_header_stub_check_hint_and_solution_in_this_order(id: str) -> None:
    cells = book_of(id)["cells"]
    kinds = ("exercise", "stub", "check", "hint", "solution")
    places = [cells.index(tagged(book_of(id), kind)[id]) for kind in kinds]
    assert places == list(range(places[0], places[0] + len(kinds)))
    assert source(cells[places[0]]).splitlines()[0] == f"### {EXERCISES[id].header}"
    for folded in places[3:]:
        assert source(cells[folded]).startswith("<details><summary>")


@pytest.mark.parametrize("id", IDS)
def test_the_stub_is_typed_and_has_the_signature_and_docstring_of_the_solution(id: str) -> None:
    stub = define(source(tagged(book_of(id), "stub")[id]), namespace_for(id))
    solution = define(solutions(book_of(id))[id], namespace_for(id))
    assert stub.__name__ == solution.__name__
    assert inspect.signature(stub) == inspect.signature(solution)
    assert stub.__doc__ and stub.__doc__ == solution.__doc__
    assert inspect.Signature.empty not in (
        inspect.signature(stub).return_annotation,
        *(each.annotation for each in inspect.signature(stub).parameters.values()),
    )


@pytest.mark.parametrize("id", [id for id in IDS if EXERCISES[id].is_core])
def test_a_core_exercise_says_which_optional_ones_it_builds_on(id: str) -> None:
    """Who is on the short path has not written those, and learns here to copy their solutions."""
    book = book_of(id)
    optional = {
        asked_for(source(stub)): other
        for other, stub in tagged(book, "stub").items()
        if not EXERCISES[other].is_core
    }
    called = {node.id for node in ast.walk(ast.parse(solutions(book)[id])) if isinstance(node, ast.Name)}
    for name in called & optional.keys():
        assert optional[name] in source(tagged(book, "exercise")[id]), name


@pytest.mark.parametrize("id", IDS)
def test_the_check_accepts_the_solution(id: str, capsys: pytest.CaptureFixture[str]) -> None:
    EXERCISES[id](define(solutions(book_of(id))[id], namespace_for(id)))
    assert capsys.readouterr().out == f"✔ {id} {EXERCISES[id].title}: right.\n"


@pytest.mark.parametrize("id", IDS)
def test_the_check_is_kind_to_a_stub_and_counts_no_try(
    id: str, capsys: pytest.CaptureFixture[str], progress_file: Path
) -> None:
    EXERCISES[id](define(source(tagged(book_of(id), "stub")[id]), namespace_for(id)))
    said = capsys.readouterr().out
    assert said.startswith(f"○ {id}") and "not written yet" in said
    assert not progress_file.exists()


@pytest.mark.parametrize("id", IDS)
def test_the_check_cell_calls_the_check_of_its_exercise(id: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = namespace_for(id)
    lines = [line for cell in book_of(id)["cells"] for line in source(cell).splitlines()]
    exec(next(line for line in lines if line.startswith("from ") and line.endswith(" as check")), names)
    define(solutions(book_of(id))[id], names)
    exec(source(tagged(book_of(id), "check")[id]), names)
    assert capsys.readouterr().out.startswith(f"✔ {id}")
