"""The merge animation, moved as a hand would move it, and its static twin."""

import pytest

from phicourse.widgets import MergeAnimation, merge_animation
from phicourse.widgets.merge_animation import LONGEST

RANKS = {"he": 0.0, "▁t": 1.0, "▁the": 2.0}


def rank(left: str, right: str) -> float | None:
    return RANKS.get(left + right)


@pytest.fixture
def stage():
    pytest.importorskip("ipywidgets")
    return merge_animation._Stage(MergeAnimation("▁the", rank))


def rows(stage) -> int:
    return stage.wall.value.count("<tr>")


def test_begins_with_one_row(stage) -> None:
    assert stage.slider.value == 0 and stage.slider.max == stage.play.max == 3 and rows(stage) == 1


def test_the_slider_adds_rows_and_takes_them_away(stage) -> None:
    stage.slider.value = 2
    assert rows(stage) == 3 and "▁t made" in stage.wall.value
    stage.slider.value = 1
    assert rows(stage) == 2


def test_playing_moves_the_slider(stage) -> None:
    stage.play.value = 3
    assert stage.slider.value == 3 and rows(stage) == 4 and "no pair left" in stage.wall.value


def test_another_text_begins_anew(stage) -> None:
    stage.slider.value = 3
    stage.entry.value = "hehe"
    assert stage.slider.value == 0 and stage.slider.max == 2 and rows(stage) == 1
    stage.entry.value = ""
    assert stage.slider.max == 0 and rows(stage) == 1
    stage.entry.value = "▁the▁the"
    stage.slider.value = 6
    assert rows(stage) == 7


def test_a_typed_text_cannot_write_html(stage) -> None:
    stage.entry.value = "<b>he"
    assert "<b>" not in stage.wall.value and "&lt;" in stage.wall.value


def test_a_long_text_is_cut() -> None:
    animation = MergeAnimation("x" * 1000, rank)
    assert len(animation.text) == LONGEST == len(animation.steps[0].symbols)


def test_symbols_may_be_others_than_characters() -> None:
    animation = MergeAnimation("é", lambda left, right: 7.0, symbols=lambda text: ["Ã", "©"])
    assert [step.symbols for step in animation.steps] == [("Ã", "©"), ("Ã©",)]
    assert "rank 7" in animation.static()


@pytest.mark.parametrize("live", [True, False])
def test_the_static_twin_has_all_steps(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(merge_animation, "is_live", lambda: live)
    bundle = MergeAnimation("▁the", rank)._repr_mimebundle_()
    assert bundle["text/html"].count("<tr>") == 4
    assert live or bundle["text/plain"] == "MergeAnimation('▁the', 3 merges)"
    assert ("application/vnd.jupyter.widget-view+json" in bundle) is live
