"""The figures of notebooks 05 and 06, read back."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from phicourse.plots import draw_attention, draw_clocks, draw_curves, draw_heads
from phicourse.plots.next_token import visible
from phicourse.plots.style import png_of, size_of

MAPS = np.tril(np.random.default_rng(0).random((2, 3, 4, 4)))
MAPS /= MAPS.sum(axis=-1, keepdims=True)


def test_curves_have_their_values_labels_and_marks() -> None:
    figure = draw_curves(
        [1, 2, 4],
        {"a": [1, 10, 100], "b": np.array([3, 2, 1])},
        title="two",
        x_label="x",
        y_label="y",
        log=True,
        across={"level": 50},
        upright={"here": 2},
    )
    axes = figure.axes[0]
    first, second = axes.lines[:2]
    assert first.get_xdata().tolist() == [1, 2, 4] and second.get_ydata().tolist() == [3, 2, 1]
    assert first.get_linestyle() != second.get_linestyle() and first.get_color() != second.get_color()
    assert [text.get_text().strip() for text in axes.texts] == ["level", "here"]
    assert axes.get_yscale() == "log" and len(axes.get_legend().get_texts()) == 2


def test_one_curve_needs_no_legend() -> None:
    axes = draw_curves([0, 1], {"only": [0, 1]}, title="", x_label="", y_label="").axes[0]
    assert axes.get_legend() is None


def test_the_hands_of_the_clocks_point_where_the_angles_say() -> None:
    angles = np.array([[0, np.pi / 2], [np.pi, 0.3], [1, 2]])
    axes = draw_clocks(angles, ["p", "q", "r"], ["0", "1"]).axes[0]
    assert sum(isinstance(patch, Circle) for patch in axes.patches) == 6
    hands = [np.diff(np.array(line.get_data()), axis=1)[:, 0] for line in axes.lines]
    assert [np.arctan2(y, x) for x, y in hands] == pytest.approx(angles.ravel())
    assert [text.get_text() for text in axes.texts] == ["p", "q", "r", "0", "1"]


def test_every_head_is_drawn_once_and_nobody_sees_the_future() -> None:
    panels = draw_heads(MAPS).axes[:-1]  # the last is the colour bar
    assert len(panels) == 6 and panels[4].get_title() == "layer 1, head 1"
    shown = panels[4].images[0].get_array()
    assert np.allclose(np.ma.filled(shown, 0), MAPS[1, 1])
    assert np.isnan(np.asarray(shown.data))[np.triu_indices(4, 1)].all()


def test_a_head_shows_the_row_of_the_query_as_bars() -> None:
    left, right = draw_attention(["<s>", "▁a", "$", "\n"], MAPS[0, 0], 2, "Layer 0, head 0").axes
    frame = next(patch for patch in left.patches if isinstance(patch, Rectangle))
    assert (frame.get_y(), frame.get_width()) == (1.5, 3)
    assert [bar.get_width() for bar in right.patches] == pytest.approx(MAPS[0, 0, 2])
    assert [label.get_text() for label in right.get_yticklabels()] == ["<s>", "▁a", r"\$", r"\n"]


def test_text_that_would_not_be_seen_is_shown() -> None:
    assert visible(" a\t$") == r"␣a\t\$"


def test_the_file_of_a_figure_is_twice_as_sharp_as_on_the_page_and_white_only_where_it_is_painted() -> None:
    figure = draw_heads(MAPS)
    with Image.open(BytesIO(png_of(figure))) as image:
        assert image.width == pytest.approx(2 * size_of(figure)["width"], abs=2)
        pixels = image.convert("RGBA")
    assert pixels.getpixel((0, 0))[3] == 0
    assert (255, 255, 255, 255) in {colour for _, colour in pixels.getcolors(pixels.width * pixels.height)}
