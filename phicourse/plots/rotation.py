"""Rotary positions: every pair of a head's dimensions is the hand of a clock, and each runs at its own speed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of

_RADIUS = 0.42


def draw_clocks(
    angles: NDArray[np.floating], rows: Sequence[str], columns: Sequence[str], axes: Axes | None = None
) -> Figure:
    """Draw a grid of clocks, a row a pair of dimensions, a column a position.

    angles   (rows, columns) radians, counted from the right against the clock
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(0.6 * len(columns) + 1.7, 0.6 * len(rows) + 0.4).subplots()
    for row, turned in enumerate(angles):
        for column, angle in enumerate(turned):
            _draw_clock(axes, column, -row, angle, PALETTE[row % len(PALETTE)])
    for row, name in enumerate(rows):
        axes.text(-0.7, -row, name, ha="right", va="center", fontsize=9)
    for column, name in enumerate(columns):
        axes.text(column, 0.6, name, ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-2.3, len(columns) - 0.4), ylim=(-len(rows) + 0.4, 1), aspect="equal")
    axes.set_axis_off()
    return figure_of(axes)


def _draw_clock(axes: Axes, x: float, y: float, angle: float, colour: str) -> None:
    axes.add_patch(Circle((x, y), _RADIUS, facecolor="none", edgecolor=GREY, linewidth=0.6))
    tip = x + _RADIUS * np.cos(angle), y + _RADIUS * np.sin(angle)
    axes.plot((x, tip[0]), (y, tip[1]), color=colour, linewidth=2.5, solid_capstyle="round")
