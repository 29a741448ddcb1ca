"""What the README and the leader's page say of the notebooks, held against the notebooks themselves."""

import json
import re
import shutil
from pathlib import Path

import pytest

from phicourse.exercises import EXERCISES
from phicourse.exercises.timetable import FIRST_DAY, LINES, WORDS, Times, times_of, write_timetable
from phicourse.exercises.variants import read_notebook

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = {path.name[:2]: path for path in sorted(FOLDER.glob("*.ipynb"))}
INSTRUCTOR = (FOLDER / "INSTRUCTOR.md").read_text(encoding="utf-8")
MOST_IN_TWO_DAYS, MOST_IN_A_DAY = 13 * 60, 435  # minutes; the second is what nine hours leave without breaks


def opening(number: str) -> str:
    return "".join(json.loads(NOTEBOOKS[number].read_text(encoding="utf-8"))["cells"][0]["source"])


def title(number: str) -> str:
    return opening(number).splitlines()[0].removeprefix(f"# {number} · ")


@pytest.fixture(scope="module")
def times() -> dict[str, Times]:
    return {number: times_of(read_notebook(path), number) for number, path in NOTEBOOKS.items()}


def test_nobody_typed_the_minutes(repository: Path, tmp_path: Path) -> None:
    """What `make notebooks` would write stands there already."""
    shutil.copytree(repository / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(repository / "README.md", tmp_path)
    assert write_timetable(tmp_path) == []


def test_minutes_that_somebody_typed_are_written_anew(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    files = {path: path.read_text(encoding="utf-8") for path in (*NOTEBOOKS.values(), FOLDER / "INSTRUCTOR.md")}
    for path, text in files.items():
        text = re.sub(r"(Time\*\*: |core exercises alone )\d+", r"\g<1>1", text)
        (tmp_path / "notebooks" / path.name).write_text(text.replace("minutes · core", "minutes"), "utf-8")
    readme = (repository / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(re.sub(r"(included: |as core: )\d[\d,]*\d", r"\g<1>1", readme), "utf-8")
    write_timetable(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme
    for path, text in files.items():
        assert (tmp_path / "notebooks" / path.name).read_text(encoding="utf-8") == text


def test_reading_is_counted_from_words_and_lines_and_exercises_apart() -> None:
    prose = {"cell_type": "markdown", "metadata": {}, "source": ["word " * WORDS * 10, "$a + b$"]}
    code = {"cell_type": "code", "metadata": {}, "source": ["x = 1\n", "\n"] * LINES * 5}
    task = {"cell_type": "markdown", "metadata": {"tags": ["exercise-01.1"]}, "source": ["word " * 9_999]}
    times = times_of({"cells": [prose, code, task]}, "01")
    assert times.reading == 20  # 15 minutes and a fifth, rounded up
    of_01 = {id: each for id, each in EXERCISES.items() if id.startswith("01.")}
    assert times.exercises == sum(each.minutes for each in of_01.values())
    assert times.core == sum(each.minutes for each in of_01.values() if each.is_core) < times.exercises


def test_the_core_path_fits_into_two_days(times: dict[str, Times]) -> None:
    days = [sum(each.path for n, each in times.items() if (n <= FIRST_DAY) is first) for first in (True, False)]
    assert sum(days) <= MOST_IN_TWO_DAYS and max(days) <= MOST_IN_A_DAY
    assert f"has {MOST_IN_A_DAY} minutes a day" in INSTRUCTOR
    assert all(each.core for each in times.values() if each.exercises)


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_the_leader_knows_each_notebook(number: str) -> None:
    part = INSTRUCTOR.partition(f"\n### {number} · {title(number)}\n")[2].partition("\n### ")[0]
    assert all(f"- **{what}**: " in part for what in ("Ask", "Usual mistakes", "Show"))
    assert set(re.findall(r"\b\d\d\.\d\b", part)) <= EXERCISES.keys()


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_the_readme_has_a_row_for_each_notebook(number: str, repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| {number} |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1] == f"[{title(number)}](notebooks/{NOTEBOOKS[number].name})"
    assert cells[2] != "–"
    assert re.fullmatch(r"\d+ s", cells[5]) and re.fullmatch(r"[\d,]+ MB", cells[6])
