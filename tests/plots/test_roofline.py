"""The race and the roof, read back."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from phicourse.plots import draw_race, draw_roofline

SPEEDS = {"Python": {"Q8_0": 2e6}, "C++": {"Q8_0": 3.2e9, "Q4_K": 4e9}}


def test_a_bar_for_each_speed_and_a_line_for_each_limit() -> None:
    axes = draw_race(SPEEDS, {"Q8_0": 2e10, "Q4_K": 4e10}).axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx([2e6, 3.2e9, 4e9])
    rows = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    assert np.round(rows).tolist() == [0, 1, 1] and rows[1] < rows[2]
    limits = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())]
    assert limits == [2e10, 4e10]
    assert [text.get_text().strip() for text in axes.texts] == ["2 M", "3.2 G", "4 G"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Python", "C++"]


def test_the_roof_rises_with_the_bandwidth_and_ends_at_the_highest_ceiling() -> None:
    points = {"ours": [("1", 0.5, 8e9), ("64", 32.0, 9e10)]}
    axes = draw_roofline(20e9, {"float32": 5e10, "8 bits": 1e11}, points).axes[0]
    x, roof = axes.lines[0].get_data()
    assert roof == pytest.approx(np.minimum(20e9 * x, 1e11))
    assert min(roof) < 8e9 and max(roof) == 1e11
    lower = axes.lines[1]
    assert set(lower.get_ydata()) == {5e10} and min(lower.get_xdata()) == 5e10 / 20e9
    assert np.array(axes.lines[3].get_data()).tolist() == [[0.5, 32.0], [8e9, 9e10]]
    assert {"memory", "float32", "8 bits", "1", "64"} == {text.get_text() for text in axes.texts}
