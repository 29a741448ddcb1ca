"""The learner's table: what is solved stays solved, over kernels, and a broken file breaks nothing."""

from pathlib import Path

import pytest

import phicourse
from phicourse.errors import PhiCourseError
from phicourse.exercises import record


def states(notebook: str = "02") -> list[str]:
    return [row.state for row in phicourse.progress(notebook).rows]


def new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_attempts", {})


def test_begins_empty_and_counts_the_minutes_that_are_left() -> None:
    table = phicourse.progress("02")
    assert table.n_solved == 0 and set(states()) == {"○ not begun"}
    assert str(table).endswith("0 of 5 solved; about 60 minutes are left, 35 of them core")


def test_solved_survives_a_new_kernel_and_a_later_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    record.note("02.1", solved=False)
    record.note("02.1", solved=True)
    record.note("02.2", solved=False)
    assert states()[:3] == ["✔ solved", "✘ not yet", "○ not begun"]
    new_kernel(monkeypatch)
    record.note("02.1", solved=False)
    assert states()[:3] == ["✔ solved", "✘ not yet", "○ not begun"]
    assert [row.tries for row in phicourse.progress("02").rows][:2] == [3, 1]


def test_forget_begins_anew(progress_file: Path) -> None:
    record.note("02.1", solved=True)
    assert progress_file.exists()
    record.forget()
    assert not progress_file.exists() and set(states()) == {"○ not begun"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"02.1": 5}',
        '{"02.1": {"tries": "1", "solved": true}}',
        '{"02.1": {}}',
        "\udcff",
    ],
    ids=["empty", "cut", "deep", "list", "number", "wrong type", "no fields", "not UTF-8"],
)
def test_a_file_that_nobody_of_us_wrote_counts_as_empty(progress_file: Path, text: str) -> None:
    progress_file.parent.mkdir()
    progress_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert set(states()) == {"○ not begun"}
    record.note("02.1", solved=True)
    assert states()[0] == "✔ solved"


def test_without_a_file_the_table_lives_in_memory(
    progress_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHICOURSE_PROGRESS", "")
    record.note("01.1", solved=True)
    assert states("01")[0] == "✔ solved" and not progress_file.exists()


def test_the_file_lies_in_the_ignored_folder_of_the_course(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PHICOURSE_PROGRESS")
    monkeypatch.chdir(repository / "notebooks")
    assert record.out_folder() == repository / "out"
    monkeypatch.chdir(repository.parent)
    assert record.out_folder() is None


def test_unknown_notebooks_are_refused() -> None:
    with pytest.raises(PhiCourseError, match="'77'"):
        phicourse.progress("77")


def test_the_face_is_a_function_and_no_module() -> None:
    assert callable(phicourse.progress) and "progress" in dir(phicourse)


def test_the_html_has_a_row_for_each_exercise() -> None:
    record.note("01.1", solved=True)
    shown = phicourse.progress()._repr_html_()
    assert shown.count("<tr>") == 1 + len(phicourse.progress().rows) and "✔ solved" in shown
