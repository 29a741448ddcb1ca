"""One block with a scale and a minimum: its levels and codes, and the error of every choice around."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from phicourse.plots.style import GREY, INK, PALETTE, PAPER, Picture, figure_of, tidy

_MARKERS = {"*": 190.0, "o": 70.0, "D": 60.0}  # sign -> area in square points

_TICKS = (1, 2, 4)  # of the error's colours


def draw_block(
    weights: NDArray[np.float32],
    levels: NDArray[np.float32],
    codes: NDArray[np.uint8],
    axes: Axes | None = None,
    title: str = "A block and its levels",
) -> Figure:
    """Draw weights, the levels that they may take, and the code of each below it.

    weights  (n,) float32
    levels   (n_levels,) float32, what codes 0, 1, … stand for
    codes    (n,) uint8
    axes     where to draw; a new figure when not given
    title    what stands above
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 3.4).subplots()
    positions = np.arange(len(weights))
    axes.hlines(levels, -0.7, len(weights) - 0.3, color=GREY, linewidth=0.4)
    for code in range(0, len(levels), 5):
        axes.text(len(weights) - 0.2, levels[code], f"level {code}", fontsize=8, color=GREY, va="center")
    axes.vlines(positions, weights, levels[codes], color=PALETTE[1], linewidth=2.5, label="error")
    axes.plot(positions, weights, "o", markersize=4, color=PALETTE[0], label="weight")
    axes.plot(positions, levels[codes], "_", markersize=9, color=PALETTE[5], label="decoded")
    axes.set_xticks(positions, [str(code) for code in codes])
    axes.set_xlim(-0.7, len(weights) + 2.2)
    axes.set_xlabel("code of each weight", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    tidy(axes, title)
    axes.tick_params(axis="x", labelsize=8, length=0)
    return figure_of(axes)


def draw_error_map(
    scales: NDArray[np.float32],
    shifts: NDArray[np.float32],
    errors: NDArray[np.float32],
    marks: Mapping[str, tuple[float, float]],
    axes: Axes | None = None,
) -> Figure:
    """Draw the error for every scale and every minimum, dark where it is large, and mark some choices.

    scales   (n,) in parts of the scale that just reaches all weights
    shifts   (m,) how far above the smallest weight the minimum lies, in such scales
    errors   (m, n), in parts of the error of the choice (1, 0)
    marks    what a choice is called -> (scale, shift), at most three
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(5, 3.6).subplots()
    norm = LogNorm(errors.min(), 6)
    extent = (scales[0], scales[-1], shifts[0], shifts[-1])
    image = axes.imshow(
        errors,
        norm=norm,
        cmap="magma_r",
        origin="lower",
        extent=extent,
        aspect="auto",
        interpolation="nearest",
    )
    for (name, (scale, shift)), (sign, area), colour in zip(
        marks.items(), _MARKERS.items(), ("#56B4E9", PAPER, "#009E73"), strict=False
    ):
        axes.scatter(scale, shift, s=area, marker=sign, color=colour, edgecolors=INK, label=name, zorder=3)
    axes.set(xlim=(scales[0], scales[-1]), ylim=(shifts[0], shifts[-1]))
    axes.set_xlabel("scale, in parts of Q4_1's", fontsize=9)
    axes.set_ylabel("minimum, in steps above Q4_1's", fontsize=9)
    axes.legend(fontsize=8, loc="upper right", facecolor=PAPER, labelcolor=INK)
    _draw_colour_bar(axes, image)
    tidy(axes, "All choices for this block")
    return figure_of(axes)


def _draw_colour_bar(axes: Axes, image: AxesImage) -> None:
    bar = figure_of(axes).colorbar(image, ax=axes, extend="max", ticks=_TICKS, shrink=0.9)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([f"× {tick}" for tick in _TICKS], fontsize=8)
    bar.set_label("error, against Q4_1's", fontsize=9)
