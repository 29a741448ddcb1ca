"""Weights before and after quantizing, one dot each."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of, tidy


def draw_quantized(
    weights: NDArray[np.float32], decoded: NDArray[np.float32], block: int, axes: Axes | None = None
) -> Figure:
    """Draw weights and their decoded values, and the levels that each block offers.

    weights, decoded  (n,) float32, n a multiple of `block`
    block             weights that share one scale
    axes              where to draw; a new figure when not given
    returns           the figure
    """
    if axes is None:
        axes = Picture(8, 3).subplots()
    positions = np.arange(len(weights))
    for start in range(0, len(weights), block):
        levels = np.unique(decoded[start : start + block])
        axes.hlines(levels, start - 0.5, start + block - 0.5, color=GREY, linewidth=0.4)
        axes.axvline(start - 0.5, color=GREY, linewidth=1)
    axes.vlines(positions, weights, decoded, color=PALETTE[1], linewidth=1)
    axes.plot(positions, weights, "o", markersize=4, color=PALETTE[0], label="weight")
    axes.plot(positions, decoded, "_", markersize=7, color=PALETTE[5], label="decoded")
    axes.set_xlim(-0.5, len(weights) - 0.5)
    axes.set_xlabel("position in the row", fontsize=9)
    axes.legend(
        fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2
    )  # beside the title
    tidy(axes, f"Weights and what is left of them, {block} to a block")
    return figure_of(axes)
