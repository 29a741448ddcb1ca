"""Texts as rows of tokens, in HTML: a box for each, its id below the pointer, control tokens in black.

What a token is can be seen without colour: control tokens are white on black, bytes have a dotted edge below.
"""

import html
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from phicourse.plots.merges import visible
from phicourse.tokenizer import TokenType, Vocabulary


class Kind(Enum):
    """What a box stands for."""

    TEXT = "text"
    BYTE = "a byte"
    CONTROL = "control token"


class Box(NamedTuple):
    """One token: what it shows, what it is, and what the pointer says."""

    text: str
    kind: Kind = Kind.TEXT
    hint: str = ""


def token_boxes(vocabulary: Vocabulary, ids: Iterable[int]) -> list[Box]:
    """Return a box for each id: its text, whether it is a byte or a control token, its id as the hint."""
    return [Box(vocabulary.tokens[id], _kind(vocabulary, id), f"id {id}") for id in ids]


def _kind(vocabulary: Vocabulary, id: int) -> Kind:
    if id in vocabulary.control:
        return Kind.CONTROL
    return Kind.BYTE if vocabulary.types[id] == TokenType.BYTE else Kind.TEXT


_STYLES = {
    Kind.BYTE: "background:#f5c26b;color:#000;border-bottom:3px dotted #000",
    Kind.CONTROL: "background:#000;color:#fff;border:2px solid #8fd0f5;font-weight:bold",
}
_TINTS = ("#8fd0f5", "#d6ebf8")  # neighbours of the same kind differ


def token_rows(rows: Sequence[tuple[str, Sequence[Box]]], unit: str = "token") -> str:
    """Draw texts cut into tokens, one below the other.

    rows  what stands in front of the row, and its boxes
    unit  what a box is, for the count behind the row
    """
    lines = "".join(_row(label, boxes, unit) for label, boxes in rows)
    kinds = {box.kind for _, boxes in rows for box in boxes if box.kind in _STYLES}
    names = "".join(_span(_STYLES[kind], kind.value) for kind in Kind if kind in kinds)
    return f"<table style='margin:.3em 0'>{lines}</table><p>{names}</p>"


def _row(label: str, boxes: Sequence[Box], unit: str) -> str:
    drawn = "".join(_box(box, place) for place, box in enumerate(boxes))
    n_tokens = f"{len(boxes)} {unit}{'' if len(boxes) == 1 else 's'}"
    return (
        f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(label)}</th>"
        f"<td style='text-align:left;line-height:2.1;font-family:monospace'>{drawn}</td>"
        f"<td style='vertical-align:top;white-space:nowrap'>{n_tokens}</td></tr>"
    )


def _box(box: Box, place: int) -> str:
    style = _STYLES.get(box.kind, f"background:{_TINTS[place % 2]};color:#000")
    title = f" title='{html.escape(box.hint, quote=True)}'" if box.hint else ""
    return _span(style, visible(box.text), title)


def _span(style: str, text: str, title: str = "") -> str:
    space = "padding:2px 4px;margin-right:2px;white-space:pre"
    return f"<span style='{style};{space}'{title}>{html.escape(text)}</span><wbr>"
