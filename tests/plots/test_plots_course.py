"""The figures of notebooks 01 and 02, read back."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from phicourse.plots import draw_bits, draw_family, draw_floor_plan


def rectangles(figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_the_area_of_a_part_of_the_floor_plan_is_its_share_of_the_weights() -> None:
    columns = [
        ("in", {"a": 10}),
        ("layers", {"b": 30, "c": 10}),
        ("layers", {"b": 30, "c": 10}),
        ("out", {"d": 10}),
    ]
    areas = [part.get_width() * part.get_height() for part in rectangles(draw_floor_plan(columns))]
    assert areas == pytest.approx(np.array([10, 30, 10, 30, 10, 10]) / 100)


def test_the_floor_plan_writes_each_name_once_and_the_shares_in_the_legend() -> None:
    axes = draw_floor_plan([("in", {"a": 1}), *[("layers", {"b": 14})] * 7, ("out", {"c": 1})]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["in", "layers", "out"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a  1.0%", "b  98.0%", "c  1.0%"]


def test_the_family_has_a_bar_a_part_and_the_total_behind() -> None:
    figure = draw_family({"small": {"x": 10**9, "y": 0}, "large": {"x": 2 * 10**9, "y": 10**9}})
    assert [bar.get_width() for bar in rectangles(figure)] == pytest.approx([1, 2, 0, 1])
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["1.00", "3.00"]


def test_every_bit_is_drawn_once_in_its_order() -> None:
    axes = draw_bits(
        [("one", "0111", [("sign", 1), ("rest", 3)]), ("two", "10", [("sign", 1), ("rest", 1)])]
    ).axes[0]
    bits = [text.get_text() for text in axes.texts if text.get_text() in "01"]
    assert "".join(bits) == "011110" and len(axes.patches) == 6
    assert len({patch.get_facecolor() for patch in axes.patches}) == 2
