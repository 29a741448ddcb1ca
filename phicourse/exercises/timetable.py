"""How long the course takes: counted from its words, its lines and its exercises, and written where it is told.

    python -m phicourse.exercises.timetable

writes the headings of the exercises and the time at the top of each notebook, the minutes in the README's table and
the plan for two days in notebooks/INSTRUCTOR.md. Nobody types these numbers.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phicourse.errors import PhiCourseError
from phicourse.exercises.exercise import EXERCISES
from phicourse.exercises.variants import Notebook, read_notebook, source, tagged, write_notebook

WORDS, LINES = 150, 15  # that one reads in a minute, of prose and of code
SLACK = 1.2  # for what runs, what is drawn, and what one moves
STEP = 5  # minutes are rounded up to this
FIRST_DAY = "06"  # the last notebook of it
BEGIN, END = "<!-- timetable -->", "<!-- end of timetable -->"

_OF_EXERCISES = ("exercise-", "stub-", "check-", "hint-", "solution-")  # their minutes are counted apart
_FORMULA = re.compile(r"\$[^$]*\$")
_RULE = re.compile(r"^\|[-:| ]+\|$", re.MULTILINE)  # of a table in Markdown
_TIME = re.compile(r"\*\*Time\*\*: [^.]*\.")
_README_ROW = re.compile(r"^(\| (\d\d) \| \[.*?\]\(.*?\) \| .*? \|) [\d,]+ \| [\d,]+ \|", re.MULTILINE)
_README_SUMS = re.compile(r"exercises included: [\d,]+ in all(.*?): [\d,]+, ", re.DOTALL)


@dataclass(frozen=True)
class Times:
    """Minutes of a notebook: to read and run it, for all its exercises, and for the core ones."""

    reading: int
    exercises: int
    core: int

    @property
    def whole(self) -> int:
        """Minutes with all exercises."""
        return self.reading + self.exercises

    @property
    def path(self) -> int:
        """Minutes with the core exercises alone."""
        return self.reading + self.core

    def __str__(self) -> str:
        if not self.exercises:
            return f"**Time**: {self.whole} minutes."
        rest = f"with the core exercises alone {self.path}"
        return f"**Time**: {self.whole} minutes, {self.exercises} of them exercises; {rest}."


def times_of(notebook: Notebook, number: str) -> Times:
    """Count the minutes of a notebook, such as "01"."""
    words = lines = 0
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "set-up" in tags or any(tag.startswith(_OF_EXERCISES) for tag in tags):
            continue
        if cell["cell_type"] == "markdown":
            words += len(_FORMULA.sub("x", _RULE.sub("", source(cell))).split())
        else:
            lines += sum(bool(line.strip()) for line in source(cell).splitlines())
    reading = STEP * math.ceil(SLACK * (words / WORDS + lines / LINES) / STEP)
    mine = [exercise for id, exercise in EXERCISES.items() if id.startswith(f"{number}.")]
    core = sum(exercise.minutes for exercise in mine if exercise.is_core)
    return Times(reading, sum(exercise.minutes for exercise in mine), core)


# ---- where it is told ------------------------------------------------------------------------------------


def write_timetable(root: Path) -> list[Path]:
    """Write the minutes into notebooks, README and INSTRUCTOR; return the files that changed."""
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks = {path: read_notebook(path) for path in paths}
    times = {path.name[:2]: times_of(notebook, path.name[:2]) for path, notebook in notebooks.items()}
    changed = []
    for path, notebook in notebooks.items():
        if _write_into(notebook, times[path.name[:2]]):
            write_notebook(path, notebook)
            changed.append(path)
    links = {path.name[:2]: f"[{_title(notebooks[path])}]({path.name})" for path in paths}
    changed += _renew(root / "README.md", lambda text: _with_minutes(text, times))
    changed += _renew(root / "notebooks" / "INSTRUCTOR.md", lambda text: _with_plan(text, plan(times, links)))
    return changed


def _renew(path: Path, renewed: Callable[[str], str]) -> list[Path]:
    before = path.read_text(encoding="utf-8")
    after = renewed(before)
    if after == before:
        return []
    path.write_text(after, encoding="utf-8")
    return [path]


def _write_into(notebook: Notebook, times: Times) -> bool:
    """Renew the time in the first cell and the headings of the exercises; say whether anything changed."""
    renewed = [(notebook["cells"][0], _TIME.sub(str(times), source(notebook["cells"][0])))]
    for id, cell in tagged(notebook, "exercise").items():
        _, newline, rest = source(cell).partition("\n")
        renewed.append((cell, f"### {EXERCISES[id].header}{newline}{rest}"))
    changed = [(cell, text) for cell, text in renewed if text != source(cell)]
    for cell, text in changed:
        cell["source"] = text.splitlines(keepends=True)
    return bool(changed)


def _title(notebook: Notebook) -> str:
    return source(notebook["cells"][0]).splitlines()[0].partition(" · ")[2]


def _with_minutes(readme: str, times: dict[str, Times]) -> str:
    """The README with the minutes of each notebook, and of all of them."""
    readme = _README_ROW.sub(lambda row: f"{row[1]} {times[row[2]].whole} | {times[row[2]].path} |", readme)
    whole, path = _sums(times)
    return _README_SUMS.sub(
        lambda found: f"exercises included: {whole:,} in all{found[1]}: {path:,}, ", readme
    )


def _with_plan(instructor: str, text: str) -> str:
    before, begin, rest = instructor.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end:
        raise PhiCourseError(f"INSTRUCTOR.md: the timetable belongs between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{behind}"


def plan(times: dict[str, Times], links: dict[str, str]) -> str:
    """The plan for two days, in Markdown.

    times  of each notebook by its number
    links  its title, with a link to it
    """
    whole, path = _sums(times)
    lines = [
        f"All of it is {whole:,} minutes, {_hours(whole)}. With the core exercises alone it is {path:,} minutes, "
        f"{_hours(path)}: two days.\n",
        "| | notebook | minutes | optional exercises | core path |",
        "| --- | --- | --: | --- | --: |",
    ]
    days = {"first": {n: t for n, t in times.items() if n <= FIRST_DAY}}
    days["second"] = {n: t for n, t in times.items() if n > FIRST_DAY}
    for day, notebooks in days.items():
        for number, each in notebooks.items():
            lines.append(f"| {number} | {links[number]} | {each.whole} | {_optional(number)} | {each.path} |")
        whole, path = _sums(notebooks)
        lines.append(f"| | **the {day} day** | {whole} | | {path} |")
    return "\n".join(lines)


def _optional(number: str) -> str:
    ids = sorted(id for id, each in EXERCISES.items() if id.startswith(f"{number}.") and not each.is_core)
    return ", ".join(ids) or "–"


def _sums(times: dict[str, Times]) -> tuple[int, int]:
    return sum(each.whole for each in times.values()), sum(each.path for each in times.values())


def _hours(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    return f"{hours} hours" + (f" and {rest} minutes" if rest else "")


if __name__ == "__main__":
    for path in write_timetable(Path.cwd()):
        print(f"phicourse: {path.name} has new minutes")
