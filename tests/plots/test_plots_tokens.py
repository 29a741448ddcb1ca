"""The pictures of tokens and merges, read back, and the figures of the converter."""

from html.parser import HTMLParser

import pytest
from matplotlib.patches import Arc

from phicourse.plots import draw_exponents, draw_rope_pairs
from phicourse.plots.merges import MADE, NEXT, PLAIN, merge_wall
from phicourse.plots.tokens import Box, Kind, token_boxes, token_rows
from phicourse.tokenizer import Tokenizer
from phicourse.tokenizer.merge_steps import merge_steps

RANKS = {"he": 0.0, "▁t": 1.0, "▁the": 2.0}
STEPS = merge_steps("▁the<", lambda left, right: RANKS.get(left + right))


class Table(HTMLParser):
    """Collects (text, attributes) of the cells and spans, row by row, and checks that what opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[tuple[str, dict[str, str | None]]]] = [[]]
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "wbr":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "span"):
            self.rows[-1].append(("", dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        text, attrs = self.rows[-1][-1]
        self.rows[-1][-1] = (text + data, attrs)


def bricks(row: list[tuple[str, dict[str, str | None]]]) -> list[tuple[str, dict[str, str | None]]]:
    return [cell for cell in row if "colspan" in cell[1]]


def test_the_wall_has_a_row_a_step_and_each_row_is_the_text() -> None:
    rows = Table(merge_wall(STEPS)).rows[1:]
    assert len(rows) == len(STEPS) == 4
    assert all("".join(text for text, _ in bricks(row)) == "▁the<" for row in rows)
    assert all(sum(int(attrs["colspan"] or 0) for _, attrs in bricks(row)) == 5 for row in rows)


def test_what_was_made_and_what_comes_next_is_marked_with_and_without_colour() -> None:
    second = {text: attrs["style"] or "" for text, attrs in bricks(Table(merge_wall(STEPS)).rows[2])}
    assert MADE in second["he"] and "bold" in second["he"]
    assert all(NEXT in second[text] and "dashed" in second[text] for text in "▁t")
    assert PLAIN in second["<"] and "dashed" not in second["<"]


def test_a_symbol_that_was_made_and_comes_next_keeps_both_marks() -> None:
    third = {text: attrs["style"] or "" for text, attrs in bricks(Table(merge_wall(STEPS)).rows[3])}
    assert "bold" in third["▁t"] and "dashed" in third["▁t"]


def test_the_next_pair_is_marked_in_the_last_row_of_a_wall_that_is_cut() -> None:
    rows = Table(merge_wall(STEPS, rows=1)).rows[1:]
    assert len(rows) == 1 and "no pair left" not in merge_wall(STEPS, rows=1)
    assert [text for text, attrs in bricks(rows[0]) if NEXT in (attrs["style"] or "")] == ["h", "e"]
    assert "no pair left" in merge_wall(STEPS, rows=99)


def test_no_text_is_no_wall_and_no_crash() -> None:
    assert bricks(Table(merge_wall(merge_steps("", lambda left, right: None))).rows[1]) == []


def test_token_rows_show_white_space_and_escape_the_rest() -> None:
    drawn = token_rows([("<a>", [Box("<b> \n", hint="'"), Box("x")])], unit="word")
    (row,) = Table(drawn).rows[1:]
    assert next(text for text, _ in row) == "<a>" and ("<b>␣⏎", "'") in [(t, a.get("title")) for t, a in row]
    assert "2 words" in drawn and "1 word<" in token_rows([("", [Box("x")])], unit="word")


def test_control_tokens_and_bytes_are_told_apart(tiny: Tokenizer) -> None:
    ids = tiny.encode("<|user|>é", parse_special=True, add_special=False)
    boxes = token_boxes(tiny.vocabulary, ids)
    assert [box.kind for box in boxes] == [Kind.CONTROL, Kind.TEXT, Kind.BYTE, Kind.BYTE]
    assert boxes[0] == Box("<|user|>", Kind.CONTROL, f"id {ids[0]}")
    styles = [attrs["style"] for _, attrs in Table(token_rows([("", boxes)])).rows[1] if "style" in attrs]
    assert len({*styles}) >= 4  # the label's, and one for each kind


def test_the_exponents_are_bars_over_what_float16_does() -> None:
    axes = draw_exponents({-30: 1, -4: 100}).axes[0]
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.containers[0]}
    assert bars == {-30: 1, -4: 100}
    assert {text.get_text() for text in axes.texts} == {"becomes 0", "rounded", "exact", "becomes infinite"}


def test_each_pair_is_joined_above_and_below() -> None:
    axes = draw_rope_pairs(4).axes[0]
    arcs = [(patch.center[0], patch.width) for patch in axes.patches if isinstance(patch, Arc)]
    assert arcs == [(2.0 + i, 4.0) for i in range(4)] + [(0.5 + 2 * i, 1.0) for i in range(4)]
    below = [text.get_text() for text in axes.texts if text.get_text().isdigit()][8:]
    assert below == ["0", "4", "1", "5", "2", "6", "3", "7"]


@pytest.fixture
def tiny(phi_tiny) -> Tokenizer:
    return Tokenizer.from_checkpoint(phi_tiny)
