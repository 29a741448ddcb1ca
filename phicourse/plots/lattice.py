"""Grids of four and eight dimensions, on paper."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from phicourse.plots.style import GREY, INK, PALETTE, Picture, figure_of, tidy

_LARGEST = 900.0  # of the bubbles, in square points
_SHOWN = 0.025  # smaller shares have no number


def draw_pairs(
    levels: NDArray[np.float32], magnitudes: NDArray[np.float32], title: str, axes: Axes | None = None
) -> Figure:
    """Draw neighbours as pairs: weights as dots, and how often a grid has each pair of levels, as bubbles.

    levels      (n_points, g) the levels of the grid, in units of the scale
    magnitudes  (n, 2) neighbours among the weights, without sign, in units of the scale
    axes        where to draw; a new figure when not given
    returns     the figure
    """
    if axes is None:
        axes = Picture(4.5, 4.2).subplots()
    pairs = np.concatenate([levels[:, i : i + 2] for i in range(0, levels.shape[1], 2)])
    places, counts = np.unique(pairs, axis=0, return_counts=True)
    axes.scatter(
        magnitudes[:, 0],
        magnitudes[:, 1],
        s=3,
        color=GREY,
        alpha=0.35,
        linewidths=0,
        label="two weights",
        zorder=1,
    )
    areas = _LARGEST * counts / counts.max() * np.sqrt(9 / len(places))
    axes.scatter(places[:, 0], places[:, 1], s=areas, color=PALETTE[4], linewidths=0, zorder=2)
    for (x, y), share in zip(places, counts / len(pairs), strict=True):
        if share >= _SHOWN:
            text = axes.text(x, y, f"{share:.0%}", ha="center", va="center", fontsize=8, color=INK, zorder=3)
            text.set_path_effects([withStroke(linewidth=2, foreground=PALETTE[4])])  # where a bubble is small
    edge = 1.3 * float(levels.max())
    axes.set(xlim=(0, edge), ylim=(0, edge), aspect="equal")
    axes.set_xlabel("a weight, in units of its scale", fontsize=9)
    axes.set_ylabel("its neighbour", fontsize=9)
    tidy(axes, title)
    return figure_of(axes)


def draw_shares(
    shares: Mapping[str, NDArray[np.float64]], title: str, xlabel: str, axes: Axes | None = None
) -> Figure:
    """Draw how often something was counted 0, 1, 2, … times: bars side by side.

    shares   label -> (n,) parts of the whole
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(4.5, 4.2).subplots()
    width = 0.8 / len(shares)
    for i, (colour, (label, parts)) in enumerate(zip(PALETTE, shares.items(), strict=False)):
        left = np.arange(len(parts)) + (i - (len(shares) - 1) / 2) * width
        axes.bar(left, 100 * parts, width, color=colour, label=label)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel("%", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes, title)
    return figure_of(axes)
