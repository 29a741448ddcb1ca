"""The figures of notebooks 09 and 10, read back."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from phicourse.plots import (
    draw_change,
    draw_fragility,
    draw_mixes,
    draw_pairs,
    draw_sensitivity,
    draw_shares,
    draw_types,
)
from phicourse.plots.mixes import draw_design, unbeaten


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_matrix_is_a_cell_and_types_with_more_bits_are_darker() -> None:
    types = {"token_embd": ["Q4_K"], "attn_qkv": ["Q6_K", "Q4_K", "Q6_K"]}
    axes = draw_types(types, {"Q4_K": 4.5, "Q6_K": 6.5625}, "a model").axes[0]
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [cell.get_width() for cell in cells] == [3, 1, 1, 1]
    light, dark = (sum(cells[i].get_facecolor()[:3]) for i in (0, 1))
    assert dark < light and cells[1].get_facecolor() == cells[3].get_facecolor()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["Q6_K  6.5625 bits", "Q4_K  4.5 bits"]


def test_fragility_writes_each_number_on_ink_that_can_be_read() -> None:
    axes = draw_fragility({"a": np.array([0.5, 0.001]), "b": np.array([0.02])}, "harm", "KL").axes[0]
    assert texts(axes) == ["0.500", "0.001", "0.020"]
    assert axes.texts[0].get_color() == "white" and axes.texts[1].get_color() == "black"


def test_small_harms_are_written_so_that_one_sees_them() -> None:
    axes = draw_fragility({"a": np.array([2e-5, 3e-4])}, "harm", "KL").axes[0]
    assert texts(axes) == ["2.0e-05", "3.0e-04"]


def test_sensitivity_is_a_wall_and_a_curve_beside_the_law() -> None:
    damage = {"output": np.array([0.5]), "a": np.array([0.1, 0.4])}
    curve = {"Q4_K": (4.5, 0.1), "Q2_K": (2.5, 0.4)}
    wall, beside = draw_sensitivity(damage, ("a", 1), curve, "Q2_K", "wall", "KL").axes
    assert [patch.get_x() for patch in wall.patches if not patch.get_fill()] == [1]
    law, line, _ = beside.lines
    assert law.get_ydata().tolist() == [0.4 / 16, 0.4] and line.get_ydata().tolist() == [0.1, 0.4]
    assert [label.get_text() for label in beside.get_xticklabels()] == ["Q4_K\n4.5", "Q2_K\n2.5"]


def test_many_layers_have_no_numbers() -> None:
    assert texts(draw_fragility({"a": np.linspace(0.1, 1, 32)}, "harm", "KL").axes[0]) == []


def test_the_unbeaten_are_those_that_no_other_is_smaller_and_better_than() -> None:
    assert unbeaten([(3, 0.1), (1, 1.0), (2, 2.0), (3, 0.2), (4, 0.1)]) == [(1, 1.0), (3, 0.1)]


def test_mixes_are_drawn_where_they_are_and_named_once() -> None:
    series = {"one": {"A": (1.0, 0.5), "B": (2.0, 0.1)}, "two": {"C": (3.0, 0.01)}}
    axes = draw_mixes(series, "sizes", budget=2.5).axes[0]
    drawn = [line.get_xydata().tolist() for line in axes.lines[:2]]
    assert drawn == [[[1.0, 0.5], [2.0, 0.1]], [[3.0, 0.01]]]
    assert sorted(texts(axes)) == ["A", "B", "C"]
    assert axes.lines[-1].get_xdata() == [2.5, 2.5]


def test_names_do_not_cover_each_other() -> None:
    crowd = {f"NAME_{i}": (1 + i / 1000, 0.1) for i in range(40)}
    axes = draw_mixes({"crowd": {**crowd, "far": (9.0, 1.0)}}, "crowd").axes[0]
    figure = axes.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 2 <= len(boxes) < 41
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_no_name_leaves_the_picture() -> None:
    points = {"A_LONG_NAME_TO_THE_LEFT": (1.0, 0.5), "A_LONG_NAME_TO_THE_RIGHT": (2.0, 0.1)}
    figure = draw_mixes({"two": points}, "two")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 2 and all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_a_change_is_an_arrow_from_the_first_to_the_second() -> None:
    axes = draw_change({"X": (0.5, 0.25), "Y": (0.1, 0.2)}, ("before", "after"), "change").axes[0]
    arrows = [(note.xyann[0], note.xy[0]) for note in axes.texts if note.get_text() == ""]
    assert arrows == [(0.5, 0.25), (0.1, 0.2)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["X", "Y"]


def test_a_design_has_bars_a_place_and_a_text() -> None:
    figure = draw_design([("output", "Q6_K", 400_000)], {"A": (1.0, 0.5)}, (2.0, 0.1), "it costs 5 $")
    bars, below, plane = figure.axes
    assert [patch.get_width() for patch in bars.patches] == pytest.approx([0.4])
    assert texts(below) == [r"it costs 5 \$"]
    assert sorted(texts(plane)) == ["A", "this one"]


def test_pairs_are_counted_over_all_neighbours_of_the_grid() -> None:
    levels = np.array([[1, 1, 3, 1], [1, 1, 1, 1]], np.float32)  # pairs (1, 1) three times, (3, 1) once
    axes = draw_pairs(levels, np.zeros((5, 2), np.float32), "pairs").axes[0]
    assert texts(axes) == ["75%", "25%"]
    dots, bubbles = axes.collections
    assert len(dots.get_offsets()) == 5
    assert bubbles.get_sizes()[0] == pytest.approx(3 * bubbles.get_sizes()[1])


def test_shares_are_percent() -> None:
    axes = draw_shares({"a": np.array([0.25, 0.75]), "b": np.array([1.0, 0.0])}, "shares", "how many").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [25, 75, 100, 0]
