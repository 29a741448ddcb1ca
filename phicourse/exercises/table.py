"""The table of what a learner has solved."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from phicourse.errors import PhiCourseError
from phicourse.exercises import record
from phicourse.exercises.exercise import EXERCISES


class Row(NamedTuple):
    """An exercise and what became of it."""

    id: str
    title: str
    minutes: int
    is_core: bool
    state: str
    tries: int


class Progress:
    """Exercises and what became of them; shows itself as a table, in a notebook and in a terminal."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)

    @property
    def n_solved(self) -> int:
        """How many are solved."""
        return sum(row.state == _SOLVED for row in self.rows)

    def __str__(self) -> str:
        lines = [
            f"{row.state:<13} {row.id}  {row.title:<28} {_tries(row.tries)}".rstrip() for row in self.rows
        ]
        return "\n".join([*lines, self._summary()])

    __repr__ = __str__

    def _summary(self) -> str:
        left = [row for row in self.rows if row.state != _SOLVED]
        minutes, core = sum(row.minutes for row in left), sum(row.minutes for row in left if row.is_core)
        rest = f"; about {minutes} minutes are left, {core or 'none'} of them core" if left else ""
        return f"{self.n_solved} of {len(self.rows)} solved{rest}"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{row.id}</td><td style='text-align:left'>{html.escape(row.title)}</td>"
            f"<td style='text-align:left'>{row.state}</td><td>{_tries(row.tries)}</td><td>{row.minutes}</td></tr>"
            for row in self.rows
        )
        names = ("exercise", "", "state", "tries", "minutes")
        head = "".join(f"<th>{name}</th>" for name in names)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table><p>{self._summary()}</p>"


_SOLVED, _TRIED, _OPEN = "✔ solved", "✘ not yet", "○ not begun"


def progress(notebook: str | None = None) -> Progress:
    """Show which exercises are solved, in this kernel or an earlier one.

    notebook  its number, such as "01"; all of them when not given
    raises    PhiCourseError for a notebook without exercises
    """
    known = sorted({id.partition(".")[0] for id in EXERCISES})
    if notebook is not None and notebook not in known:
        raise PhiCourseError(f"there are no exercises in notebook {notebook!r}, only in {', '.join(known)}")
    tried = record.attempts()
    rows = []
    for id, exercise in sorted(EXERCISES.items()):
        if notebook in (None, id.partition(".")[0]):
            mine = tried.get(id, record.Attempts())
            state = _SOLVED if mine.solved else _TRIED if mine.tries else _OPEN
            rows.append(Row(id, exercise.title, exercise.minutes, exercise.is_core, state, mine.tries))
    return Progress(rows)


def _tries(n: int) -> str:
    return "" if not n else "1 try" if n == 1 else f"{n} tries"
