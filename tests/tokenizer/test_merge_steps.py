"""The merge loop to watch ends where the fast one does, and shows each step on the way."""

import random

import pytest

from phicourse.tokenizer import Tokenizer, TokenType
from phicourse.tokenizer.merge_steps import Step, merge_steps
from phicourse.tokenizer.merging import merge_neighbours

RANKS = {"he": 0.0, "▁t": 1.0, "▁the": 2.0, "aa": 3.0}


def rank(left: str, right: str) -> float | None:
    return RANKS.get(left + right)


def test_every_step_is_shown_with_the_symbol_that_it_made() -> None:
    assert merge_steps("▁the", rank) == [
        Step(("▁", "t", "h", "e")),
        Step(("▁", "t", "he"), 2, 0.0),
        Step(("▁t", "he"), 0, 1.0),
        Step(("▁the",), 0, 2.0),
    ]


def test_of_equal_ranks_the_leftmost_goes_first() -> None:
    assert merge_steps("aaa", rank)[-1].symbols == ("aa", "a")


@pytest.mark.parametrize("text", ["", "x"])
def test_nothing_to_join_is_one_step(text: str) -> None:
    assert merge_steps(text, rank) == [Step(tuple(text))]


def test_ends_where_the_fast_loop_does() -> None:
    dice = random.Random(0)
    for _ in range(200):
        pieces = list("ab▁")
        for _ in range(10):
            pieces.append(dice.choice(pieces) + dice.choice(pieces))
        ranks = {piece: place for place, piece in enumerate(dict.fromkeys(pieces[3:]))}
        text = dice.choices("ab▁", k=12)
        steps = merge_steps(text, lambda left, right: ranks.get(left + right))  # noqa: B023
        fast = merge_neighbours(text, lambda left, right: ranks.get(left + right))  # noqa: B023
        assert list(steps[-1].symbols) == fast
        assert all("".join(step.symbols) == "".join(text) for step in steps)


def test_on_phi_tiny(tiny: Tokenizer) -> None:
    words = tiny.vocabulary
    ranks = {words.tokens[id]: -float(words.scores[id]) for id in words.ids_of_type(TokenType.NORMAL)}
    steps = merge_steps("▁a▁unicorn", lambda left, right: ranks.get(left + right))
    assert list(steps[-1].symbols) == [words.tokens[id] for id in tiny.encode("a unicorn", add_special=False)]
