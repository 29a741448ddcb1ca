"""Figures are functions of plain arrays: what they draw can be read back and held against the numbers."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from phicourse.plots import draw_importance, draw_next_tokens, draw_quantized, draw_sizes


def bars(figure) -> list[Rectangle]:
    (axes,) = figure.axes
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_sizes_stacks_the_parts_of_each_file() -> None:
    files = {
        "F16": {"embedding": 2_000_000, "other": 1_000_000},
        "Q4": {"embedding": 500_000, "other": 1_000},
    }
    drawn = bars(draw_sizes(files))
    assert [bar.get_width() for bar in drawn] == pytest.approx([2.0, 0.5, 1.0, 0.001])
    assert [bar.get_x() for bar in drawn] == pytest.approx([0, 0, 2.0, 0.5])


def test_sizes_writes_the_total_behind_each_bar() -> None:
    figure = draw_sizes({"F16": {"a": 9_000_000, "b": 40_000}})
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["9.0 MB"]


def test_next_tokens_draws_every_probability_once() -> None:
    figure = draw_next_tokens([" dog", "\n", "$"], {"F16": [0.5, 0.25, 0.1], "Q4_K_M": [0.4, 0.3, 0.05]})
    assert [bar.get_width() for bar in bars(figure)] == pytest.approx([0.5, 0.25, 0.1, 0.4, 0.3, 0.05])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["␣dog", r"\n", r"\$"]


def test_quantized_draws_weights_decoded_values_and_levels() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    decoded = np.array([0.0, 0.25, 0.25, 0.5], dtype=np.float32)
    axes = draw_quantized(weights, decoded, 2).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert np.array_equal(drawn["weight"], weights) and np.array_equal(drawn["decoded"], decoded)
    levels = [len(collection.get_segments()) for collection in axes.collections]
    assert levels == [2, 2, 4]  # two levels in each block, then one error bar a weight


def luminance(colour: str) -> float:
    """Of light that a screen gives for a colour: WCAG 2, relative luminance."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize(("page", "least"), [("#ffffff", 4.5), ("#111111", 4.0), ("#0d1117", 4.0)])
def test_words_can_be_read_on_a_light_page_and_on_a_dark_one(page: str, least: float) -> None:
    axes = draw_sizes({"F16": {"a": 9_000_000}}).axes[0]
    words = [axes.xaxis.label, *axes.get_xticklabels(), *axes.get_legend().get_texts(), axes.texts[0]]
    for colour in {to_hex(each.get_color()) for each in words}:
        low, high = sorted((luminance(colour), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= least


def test_a_figure_shows_itself_in_a_notebook_without_a_background() -> None:
    png, size = draw_sizes({"F16": {"a": 9_000_000}})._repr_png_()
    pixels = imread(BytesIO(png), format="png")  # (height, width, 4)
    assert pixels.shape[:2] == (2 * size["height"], 2 * size["width"])
    assert pixels[0, 0, 3] == 0 and pixels[..., 3].max() == 1


def test_importance_draws_a_line_a_layer_in_parts_of_its_mean() -> None:
    rows = np.array([[1, 1, 1, 5], [4, 0, 0, 0], [np.nan] * 4], np.float32)
    figure = draw_importance({"attn_qkv": rows, "output": rows[:1]})
    (first, second, *_) = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["attn_qkv", "output"]
    drawn = np.ma.filled(first.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[0.5, 0.5, 0.5, 2.5], [4, 0.1, 0.1, 0.1], [np.nan] * 4])


def test_importance_of_many_columns_shows_the_largest_of_neighbours() -> None:
    rows = np.ones((2, 1100), np.float32)
    rows[1, 1099] = 8
    image = draw_importance({"ffn_down": rows}).axes[0].images[0].get_array()
    assert image.shape == (2, 367)  # 3 columns share one
    assert image[1, -1] > 7 and image[1, :-1].max() < 1
