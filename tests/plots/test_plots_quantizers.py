"""The figures of notebooks 07 and 08, read back."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from phicourse.gguf import TENSOR_TYPES
from phicourse.plots import (
    draw_block,
    draw_byte_differences,
    draw_error_map,
    draw_errors,
    draw_fit,
    draw_layout,
    draw_tradeoff,
    draw_trials,
)


def lines_of(figure) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}


def texts_of(figure) -> list[str]:
    return [text.get_text().strip() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q4_K", "Q6_K"])
def test_the_layout_has_a_box_a_field_and_its_widths_are_bits(name: str) -> None:
    type = TENSOR_TYPES[name]
    boxes = [patch for patch in draw_layout([type]).axes[0].patches if isinstance(patch, Rectangle)]
    assert [box.get_width() for box in boxes] == pytest.approx(
        [8 * field.bytes / type.block for field in type.fields]
    )
    assert boxes[-1].get_x() + boxes[-1].get_width() == pytest.approx(type.bits_per_weight)


def test_the_layout_says_how_large_a_block_is() -> None:
    assert "4.5 bits: 144 bytes for 256" in texts_of(draw_layout([TENSOR_TYPES["Q4_K"]]))


def test_the_map_of_differences_counts_bits_and_shows_only_blocks_that_differ() -> None:
    theirs = np.zeros((5, 34), np.uint8)
    mine = theirs.copy()
    mine[1, 3], mine[4, 33] = 0b101, 0xFF
    axes = draw_byte_differences(mine, theirs, TENSOR_TYPES["Q8_0"]).axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (2, 34) and shown[0, 3] == 2 and shown[1, 33] == 8 and shown.sum() == 10
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "4"]
    assert [text.get_text().strip() for text in axes.texts] == ["d", "qs"]


def test_the_trade_has_every_point_and_the_law_goes_through_the_one_that_is_named() -> None:
    series = {"a": [("x", 4.0, 0.1), ("y", 6.0, 0.03)], "b": [("z", 5.0, 0.04)]}
    figure = draw_tradeoff(series, through="z")
    law = figure.axes[0].get_lines()[-1]
    assert np.interp(5.0, law.get_xdata(), law.get_ydata()) == pytest.approx(0.04, rel=1e-2)
    assert law.get_ydata()[0] == pytest.approx(0.08) and law.get_ydata()[-1] == pytest.approx(0.02)
    assert sorted(texts_of(figure)) == ["x", "y", "z"]


def test_the_law_begins_at_the_fewest_bits() -> None:
    law = draw_tradeoff({"a": [("y", 6.0, 0.03), ("x", 4.0, 0.1)]}).axes[0].get_lines()[-1]
    assert (law.get_xdata()[0], law.get_ydata()[0]) == (4.0, pytest.approx(0.1))


def test_a_block_has_all_levels_and_the_codes_below_the_weights() -> None:
    weights, levels = np.array([0.1, 0.9, 0.5], np.float32), np.linspace(0, 1, 16, dtype=np.float32)
    codes = np.array([2, 14, 8], np.uint8)
    figure = draw_block(weights, levels, codes, title="three")
    drawn = lines_of(figure)
    assert drawn["weight"] == pytest.approx(weights) and drawn["decoded"] == pytest.approx(levels[codes])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "14", "8"]
    assert len(figure.axes[0].collections[0].get_segments()) == 16


def test_the_map_of_errors_has_its_marks() -> None:
    errors = np.array([[2, 1.5, 3], [1.2, 1, 2]], np.float32)
    scales, shifts = np.array([0.5, 1, 1.5], np.float32), np.array([0, 1], np.float32)
    axes = draw_error_map(scales, shifts, errors, {"best": (1, 1), "you": (0.5, 0)}).axes[0]
    assert np.array_equal(axes.images[0].get_array(), errors)
    assert [each.get_offsets().tolist()[0] for each in axes.collections] == [[1, 1], [0.5, 0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["best", "you"]


def test_the_trials_mark_the_winner_and_step_down() -> None:
    levels = np.array([14, 15, 16], np.float32)
    drawn = lines_of(draw_trials(levels, np.array([5, 2, np.nan], np.float32), obvious=4))
    assert drawn["best so far"].tolist() == [4, 2, 2]
    assert drawn["chosen: 50% less"].tolist() == [2]


def test_trials_without_a_winner_have_no_star() -> None:
    drawn = lines_of(draw_trials(np.array([14, 15]), np.array([5, 6]), obvious=4))
    assert not any(label.startswith("chosen") for label in drawn)


def test_the_fit_is_drawn_in_steps_above_the_obvious_line() -> None:
    codes = np.array([0, 1, 3], np.float32)
    drawn = lines_of(draw_fit(codes * 2 - 1 + np.float32(0.5), codes, (2, -1), (2.2, -1)))
    assert drawn["a weight"] == pytest.approx([0.25] * 3)
    assert drawn["the line that fits best"] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-6)


def test_errors_are_sorted_by_weight() -> None:
    weights = np.array([3, 1, 2], np.float32)
    axes = draw_errors(weights, {"a": weights + weights / 10, "b": weights}).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.1, 0.2, 0.3, 0, 0, 0], abs=1e-6)
