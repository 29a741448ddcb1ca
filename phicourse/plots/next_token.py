"""What a model would say next: the most likely tokens, side by side for several files."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phicourse.plots.style import PALETTE, Picture, figure_of, tidy


def draw_next_tokens(
    tokens: Sequence[str],
    probabilities: Mapping[str, Sequence[float]],
    axes: Axes | None = None,
    title: str = "What comes next",
) -> Figure:
    """Draw grouped horizontal bars of next-token probabilities.

    tokens         text of each candidate, most likely first
    probabilities  label of a file -> probability of each candidate, 0 to 1
    axes           where to draw; a new figure when not given
    title          what stands above
    returns        the figure
    """
    if axes is None:
        axes = Picture(7, 0.36 * len(tokens) + 1.2).subplots()
    height = 0.8 / len(probabilities)
    rows = np.arange(len(tokens))
    for index, (label, values) in enumerate(probabilities.items()):
        offset = (index - (len(probabilities) - 1) / 2) * height
        axes.barh(rows + offset, values, height=height, color=PALETTE[index], label=label)
    axes.set_yticks(rows, [visible(token) for token in tokens])
    axes.invert_yaxis()
    axes.set_xlabel("probability of the next token", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    tidy(axes, title)
    return figure_of(axes)


def visible(token: str) -> str:
    """Write a token's text so that a figure shows all of it: spaces as open boxes, control characters by name."""
    return repr(token)[1:-1].replace(" ", "␣").replace("$", r"\$")  # a $ would start a formula
