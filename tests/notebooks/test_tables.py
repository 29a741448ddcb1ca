"""What the README and the leader's page say of the notebooks, held against the notebooks themselves."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from phicourse.exercises import EXERCISES

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = {path.name[:2]: path for path in sorted(FOLDER.glob("*.ipynb"))}
INSTRUCTOR = (FOLDER / "INSTRUCTOR.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d\d) \| \[(.+)\]\((.+)\) \| (\d+) \| (.+) \| (\d+) \|$", re.MULTILINE)
TOTAL = re.compile(r"^\| \| \*\*the (first|second) day\*\* \| (\d+) \| \| (\d+) \|$", re.MULTILINE)
FIRST_DAY = "06"  # the last notebook of it


@dataclass(frozen=True)
class Row:
    """A row of the leader's table: minutes, exercises that are left out, minutes without them."""

    number: str
    title: str
    link: str
    minutes: int
    left_out: list[str]
    rest: int


ROWS = {
    number: Row(number, title, link, int(minutes), re.findall(r"\d\d\.\d", left_out), int(rest))
    for number, title, link, minutes, left_out, rest in ROW.findall(INSTRUCTOR)
}


def opening(number: str) -> str:
    return "".join(json.loads(NOTEBOOKS[number].read_text(encoding="utf-8"))["cells"][0]["source"])


def title(number: str) -> str:
    return opening(number).splitlines()[0].removeprefix(f"# {number} · ")


def minutes(number: str) -> int:
    return int(re.search(r"\*\*Time\*\*: (\d+) minutes", opening(number))[1])


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_the_time_at_the_top_has_room_for_the_exercises(number: str) -> None:
    of_exercises = sum(each.minutes for id, each in EXERCISES.items() if id.startswith(number))
    said = re.search(r"minutes, (\d+) of them exercises", opening(number))
    assert (int(said[1]) if said else 0) == of_exercises < minutes(number)


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_the_leader_knows_each_notebook_and_its_minutes(number: str) -> None:
    row = ROWS[number]
    assert (row.title, row.link) == (title(number), NOTEBOOKS[number].name)
    assert row.minutes == minutes(number)
    assert all(id.startswith(number) for id in row.left_out)
    assert row.rest == row.minutes - sum(EXERCISES[id].minutes for id in row.left_out)
    part = INSTRUCTOR.partition(f"\n### {number} · {row.title}\n")[2].partition("\n### ")[0]
    assert all(f"- **{what}**: " in part for what in ("Ask", "Usual mistakes", "Show"))
    assert set(re.findall(r"\b\d\d\.\d\b", part)) <= EXERCISES.keys()


def test_the_days_add_up() -> None:
    days = {"first": [], "second": []}
    for number, row in ROWS.items():
        days["first" if number <= FIRST_DAY else "second"].append(row)
    said = {day: (int(whole), int(rest)) for day, whole, rest in TOTAL.findall(INSTRUCTOR)}
    assert said == {
        day: (sum(row.minutes for row in rows), sum(row.rest for row in rows)) for day, rows in days.items()
    }
    assert f"All of it is {sum(whole for whole, _ in said.values()):,} minutes" in INSTRUCTOR
    assert all(f"has {rest} minutes a day" in INSTRUCTOR for _, rest in said.values())


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_the_readme_has_a_row_for_each_notebook(number: str, repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| {number} |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1] == f"[{title(number)}](notebooks/{NOTEBOOKS[number].name})"
    assert cells[2] != "–" and cells[3] == str(minutes(number))
    assert re.fullmatch(r"\d+ s", cells[4]) and re.fullmatch(r"[\d,]+ MB", cells[5])
