"""No exercise without a wrong answer: the tables of the files beside this one have one whose message helps."""

from importlib import import_module
from pathlib import Path

import pytest

from phicourse.exercises import EXERCISES
from phicourse.exercises.exercise import Answer, Exercise, Mistake

HERE = Path(__file__).resolve().parent


def wrong_answers() -> dict[str, list[Answer]]:
    """The answers of all tables of (exercise, answer, what is said), by exercise."""
    found: dict[str, list[Answer]] = {id: [] for id in EXERCISES}
    for path in sorted(HERE.glob("test_checks*.py")):
        for test in vars(import_module(path.stem)).values():
            for exercise, answer in table_of(test):
                found[exercise.id].append(answer)
    return found


def table_of(test: object) -> list[tuple[Exercise, Answer]]:
    """The first two columns of a test's table, where it is one of wrong answers."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize" and tuple(mark.args[0]) == ("exercise", "answer", "said"):
            rows = [getattr(row, "values", row) for row in mark.args[1]]
            return [(row[0], row[1]) for row in rows]
    return []


WRONG = wrong_answers()


def judge(id: str, answer: Answer) -> Mistake | None:
    return EXERCISES[id].judge(answer)


@pytest.mark.parametrize("id", sorted(EXERCISES))
def test_a_wrong_answer_is_told_the_likely_mistake(id: str) -> None:
    assert WRONG[id], f"exercise {id} was never tried wrong: write an answer into a table of test_checks*.py"
    helpful = (mistake for answer in WRONG[id] if (mistake := judge(id, answer)) and mistake.likely)
    assert next(helpful, None) is not None, f"no wrong answer to exercise {id} is told why it is wrong"
