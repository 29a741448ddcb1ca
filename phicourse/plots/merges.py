"""Merges as a wall of bricks, in HTML: a row for each step, a brick for each symbol, as wide as its characters.

Bricks are light and the ink on them black, so they read the same in a light and a dark theme. The brick that a
step has made is bold and has a thick edge below; the two that come next have a dashed edge: no colour is needed.
"""

import html
from collections.abc import Sequence

from phicourse.tokenizer.merge_steps import Step

PLAIN, MADE, NEXT = "#e8e8e8", "#6fcfae", "#f0e442"  # a symbol, one just made, one that is joined next
_WIDTH = "1.5em"  # of one character


def merge_wall(steps: Sequence[Step], rows: int | None = None) -> str:
    """Draw steps from the first on, and a legend.

    steps  as `merge_steps` gives them
    rows   how many to draw; all when not given. In the last row the next pair is marked all the same
    """
    n_rows = len(steps) if rows is None else min(max(rows, 1), len(steps))
    lines = "".join(_row(steps, number) for number in range(n_rows))
    style = "border-collapse:separate;border-spacing:2px;font-family:monospace;margin:.3em 0"
    return f"<div style='overflow-x:auto'><table style='{style}'>{lines}</table></div>{_legend()}"


def _row(steps: Sequence[Step], number: int) -> str:
    step = steps[number]
    following = steps[number + 1].at if number + 1 < len(steps) else None
    bricks = "".join(
        _brick(text, at == step.at, following is not None and at in (following, following + 1))
        for at, text in enumerate(step.symbols)
    )
    says = html.escape(describe_step(step, following))
    return (
        f"<tr><th style='text-align:right'>{number}</th>{bricks}"
        f"<td style='text-align:left;white-space:nowrap;padding-left:1em'>{says}</td></tr>"
    )


def _brick(text: str, is_made: bool, is_next: bool) -> str:
    colour = NEXT if is_next else MADE if is_made else PLAIN
    made = "border-bottom:4px solid #000;font-weight:bold;" if is_made else ""
    dashes = "outline:2px dashed #000;outline-offset:-2px;" if is_next else ""
    style = (
        f"background:{colour};color:#000;{made}{dashes}text-align:center;padding:2px 4px;min-width:{_WIDTH}"
    )
    return f"<td colspan='{len(text)}' style='{style}'>{html.escape(visible(text))}</td>"


def visible(text: str) -> str:
    """Show white space and control characters, which a brick would swallow."""
    return "".join(_SIGNS.get(character, character) for character in text)


_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def describe_step(step: Step, following: int | None) -> str:
    """Say what a step has made, or that nothing is left to do."""
    done = "" if following is not None else "; no pair left"
    if step.at is None or step.rank is None:
        return f"{len(step.symbols)} characters{done}"
    return f"{visible(step.symbols[step.at])} made, rank {step.rank:g}{done}"


def _legend() -> str:
    items = ((MADE, "just made"), (NEXT, "joined next"))
    return "<p>" + "".join(_square(colour, text) for colour, text in items) + "</p>"


def _square(colour: str, text: str) -> str:
    return f"<span style='background:{colour};color:#000;padding:1px 6px;margin-right:6px'>{text}</span>"
