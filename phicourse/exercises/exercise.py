"""What an exercise is, and what its check says: expected, got, where they first differ, the likely mistake.

A check is a function that is given the learner's function and returns the first mistake that it finds, or None.
`exercise` puts it into the registry:

    @exercise("01.1", "Open the header", difficulty=1, minutes=5)
    def read_header(answer: Answer) -> Mistake | None: …
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from phicourse.exercises import record

Answer = Callable[..., Any]
F = TypeVar("F", bound=Answer)
HARDEST = 5
_WIDTH = 300  # characters of a value in a message


@dataclass(frozen=True)
class Mistake:
    """The first thing that is wrong with an answer: where it is, and two texts that differ."""

    where: str
    expected: str
    got: str
    likely: str = ""

    def __str__(self) -> str:
        """Write the lines that the learner reads."""
        lines = [f"✘ {self.where}", f"  expected  {_short(self.expected)}", f"  got       {_short(self.got)}"]
        if self.likely:
            lines.append(f"  likely    {self.likely}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Exercise:
    """A task of a notebook. Called with the learner's function, it prints what became of it.

    id          notebook and number, "01.2"
    difficulty  1 to 5; minutes: what most people need
    is_core     whether it is on the path for two days
    find        looks for the first mistake
    """

    id: str
    title: str
    difficulty: int
    minutes: int
    is_core: bool
    find: Callable[[Answer], Mistake | None]

    @property
    def header(self) -> str:
        """The heading that the exercise has in its notebook."""
        dots = "●" * self.difficulty + "○" * (HARDEST - self.difficulty)
        path = "core" if self.is_core else "optional"
        return f"Exercise {self.id} · {self.title}   {dots} · {self.minutes} minutes · {path}"

    def __call__(self, answer: Answer) -> None:
        """Check an answer, print the verdict and note it for `phicourse.progress()`."""
        try:
            mistake = self.judge(answer)
        except NotImplementedError:
            print(
                f"○ {self.id} {self.title}: not written yet. Put your lines in the place of the `raise`, then"
            )
            print("  run that cell and this one again. The hint below unfolds.")
            return
        record.note(self.id, solved=mistake is None)
        print(mistake or f"✔ {self.id} {self.title}: right.")
        if mistake and not mistake.likely:
            print("  try       a case so small that you can do it by hand, with `print` between the steps")

    def judge(self, answer: Answer) -> Mistake | None:
        """Return the first mistake, None where the answer is right; NotImplementedError where it is a stub.

        Whatever else the learner's code raises is a mistake, too.
        """
        if not callable(answer):
            return Mistake(
                "the function itself is checked", "a function", repr(answer), "write it without ( )"
            )
        try:
            return self.find(answer)
        except NotImplementedError:
            raise
        except Exception as error:
            return Mistake("your code raised an error", "a result", _name(error), _place(error))

    def yours_or(self, answer: F, other: F) -> F:
        """Return the learner's function where it is right, else `other`, and say which of them goes on."""
        try:
            solved = self.judge(answer) is None
        except NotImplementedError:
            solved = False
        whose = "your own" if solved else f"the course's, until {self.id} is solved,"
        print(f"Below, {whose} {answer.__name__} does the work.")
        return answer if solved else other


EXERCISES: dict[str, Exercise] = {}


def exercise(
    id: str, title: str, *, difficulty: int, minutes: int, core: bool = False
) -> Callable[[Callable[[Answer], Mistake | None]], Exercise]:
    """Make an exercise of a check and put it into the registry."""

    def register(find: Callable[[Answer], Mistake | None]) -> Exercise:
        EXERCISES[id] = Exercise(id, title, difficulty, minutes, core, find)
        return EXERCISES[id]

    return register


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _place(error: Exception) -> str:
    """Name the last line of the traceback that a notebook or another file of the learner's has."""
    here = __package__.replace(".", "/")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if here not in frame.filename]
    mine = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename and "/phicourse/" not in frame.filename
    ]
    return f"look at line {mine[-1].lineno} of your cell: {mine[-1].line}" if mine else ""
