"""Bits against error: what each format pays, and what it gets."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of, tidy

_MARKERS = "os^Dv"
_BELOW, _ABOVE = (-4, -13), (6, 4)  # where names stand: points from the dot
_TICKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

Point = tuple[str, float, float]


def draw_tradeoff(
    series: Mapping[str, Sequence[Point]], through: str = "", axes: Axes | None = None
) -> Figure:
    """Draw error over bits, a line with named points for each series; the error has a logarithmic scale.

    series   name -> points (what it is called, bits per weight, error as a part of the weights' size)
    through  the point from which half the error for each bit is drawn; the one with the fewest bits if not given
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(8, 4).subplots()
    everything = sorted(chain.from_iterable(series.values()), key=lambda point: point[1])
    anchor = next((point for point in everything if point[0] == through), everything[0])
    for i, (name, points) in enumerate(series.items()):
        in_order = sorted(points, key=lambda point: point[1])
        _, bits, errors = zip(*in_order, strict=True)
        axes.plot(bits, errors, marker=_MARKERS[i], color=PALETTE[i], label=name, linewidth=1)
        for label, x, y in in_order:
            offset = _BELOW if i == 0 and len(series) > 1 else _ABOVE
            axes.annotate(
                label, (x, y), xytext=offset, textcoords="offset points", fontsize=8, color=PALETTE[i]
            )
    _draw_halving(axes, anchor, everything[0][1], everything[-1][1])
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    axes.set_yticks([tick for tick in _TICKS if lowest <= tick <= highest])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("bits for each weight", fontsize=9)
    axes.set_ylabel("error, as a part of the weights", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    tidy(axes, "What the bits buy")
    return figure_of(axes)


def _draw_halving(axes: Axes, anchor: Point, first: float, last: float) -> None:
    """Draw a law: one bit more has twice the levels, and so half the error."""
    bits = np.linspace(first, last, 50)
    errors = anchor[2] / 2 ** (bits - anchor[1])
    axes.plot(bits, errors, ":", color=GREY, linewidth=1.5, label="half the error for each bit", zorder=3)
