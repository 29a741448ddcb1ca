"""Where a model is fragile: the harm of each matrix as a wall of cells, and of one of them for every type."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from phicourse.plots.cells import draw_fragility, frame_cell
from phicourse.plots.style import GREY, PALETTE, Picture, tidy

_STEP = 4  # a bit less doubles the error of a weight, and harm goes with its square


def draw_sensitivity(
    damage: Mapping[str, NDArray[np.float64]],
    chosen: tuple[str, int],
    curve: Mapping[str, tuple[float, float]],
    type: str,
    title: str,
    unit: str,
) -> Figure:
    """Draw what breaks if only one matrix is quantized, and frame one; beside it, this one in every type.

    damage   kind of matrix -> (layers,) positive numbers; (1,) for a matrix outside the layers
    chosen   kind and layer of the matrix that is framed
    curve    type -> (bits per weight, harm > 0) of that matrix
    type     that the wall shows
    title    of the wall
    unit     what the harms are
    returns  the figure
    """
    figure = Picture(10, 0.42 * len(damage) + 1.1)
    wall, beside = figure.subplots(1, 2, width_ratios=(5, 3))
    draw_fragility(damage, title, unit, axes=wall)
    frame_cell(wall, damage, *chosen)
    _draw_curve(beside, curve, type)
    kind, layer = chosen
    tidy(beside, kind if len(damage[kind]) == 1 else f"{kind}, layer {layer}")
    return figure


def _draw_curve(axes: Axes, curve: Mapping[str, tuple[float, float]], type: str) -> None:
    """Draw harm over bits, and the line on which each bit less makes it four times as large."""
    bits, harms = (np.array(column) for column in zip(*curve.values(), strict=True))
    at, harm = curve[type]
    axes.plot(
        bits, harm * _STEP ** (at - bits), ":", color=GREY, linewidth=1.5, label=f"× {_STEP} for each bit"
    )
    axes.plot(bits, harms, "o-", color=PALETTE[0], markersize=5)
    axes.plot(at, harm, "D", color=PALETTE[5], markersize=9, label=type)
    axes.set_yscale("log")
    axes.set_xticks(bits, [f"{name}\n{n_bits:.3g}" for name, (n_bits, _) in curve.items()])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.set_xlabel("bits per weight", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
