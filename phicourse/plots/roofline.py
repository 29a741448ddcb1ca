"""How fast, and what holds it up: a race as bars, and the roof of Williams, Waterman and Patterson (2009)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of, ink_on, tidy

_MARKERS = "os^Dv"
_BAR = 0.8  # of the room that a runner has


def draw_race(
    speeds: Mapping[str, Mapping[str, float]], limits: Mapping[str, float], axes: Axes | None = None
) -> Figure:
    """Draw bars on a logarithmic scale, a group for each runner and a colour for each format.

    speeds   runner -> format -> speed in multiply-adds a second; a runner may lack formats
    limits   format -> speed that the memory allows, a dashed line
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(8, 0.55 * len(speeds) + 1.3).subplots()
    height = _BAR / len(limits)
    for index, (name, limit) in enumerate(limits.items()):
        colour, shift = PALETTE[index], (index - (len(limits) - 1) / 2) * height
        rows = [row for row, by_format in enumerate(speeds.values()) if name in by_format]
        values = [by_format[name] for by_format in speeds.values() if name in by_format]
        axes.barh([row + shift for row in rows], values, height, color=colour, label=name)
        axes.axvline(limit, color=colour, linestyle="--", linewidth=1.2)
        for row, value in zip(rows, values, strict=True):
            axes.annotate(  # inside the bar, whose own limit is further to the right
                _in_words(value),
                (value, row + shift),
                (-4, 0),
                "data",
                "offset points",
                ha="right",
                va="center",
                fontsize=8,
                color=ink_on(colour),
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},  # another's limit passes behind
            )
    axes.plot([], [], "--", color=GREY, label="what memory allows")
    values = [*limits.values(), *(value for row in speeds.values() for value in row.values())]
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 10)
    axes.set_yticks(range(len(speeds)), list(speeds))
    axes.invert_yaxis()
    axes.set_xlabel("multiply-adds a second", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0.45, 1), ncols=len(limits) + 1)
    tidy(axes, "One matrix times one vector")
    return figure_of(axes)


def draw_roofline(
    bandwidth: float,
    ceilings: Mapping[str, float],
    series: Mapping[str, Sequence[tuple[str, float, float]]],
    axes: Axes | None = None,
) -> Figure:
    """Draw speed over operational intensity on logarithmic scales, under the roof that a machine has.

    bandwidth  bytes a second that come from memory: the slope
    ceilings   what computes -> multiply-adds a second that it can do: flat lines, the highest is the roof
    series     name -> points (label, multiply-adds for each byte read, multiply-adds a second)
    axes       where to draw; a new figure when not given
    returns    the figure
    """
    if axes is None:
        axes = Picture(8, 4.2).subplots()
    places = [x for points in series.values() for _, x, _ in points]
    x = np.geomspace(min(places) / 3, max(places) * 3, 200)
    axes.plot(x, np.minimum(bandwidth * x, max(ceilings.values())), color=GREY, linewidth=2.5)
    start = (x[0], bandwidth * x[0])
    axes.annotate("memory", start, xytext=(14, -2), textcoords="offset points", fontsize=9)
    for label, height in ceilings.items():
        edge = height / bandwidth
        axes.plot([edge, x[-1]], [height, height], ":", color=GREY)
        axes.annotate(label, (edge, height), xytext=(6, 3), textcoords="offset points", fontsize=9)
    _draw_points(axes, series)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=2.5 * max(ceilings.values()))
    axes.set_xlabel("multiply-adds for each byte read", fontsize=9)
    axes.set_ylabel("multiply-adds a second", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    tidy(axes, "The roof")
    return figure_of(axes)


def _draw_points(axes: Axes, series: Mapping[str, Sequence[tuple[str, float, float]]]) -> None:
    for index, (name, points) in enumerate(series.items()):
        colour, marker = PALETTE[index], _MARKERS[index]
        _, intensity, speed = zip(*points, strict=True)
        axes.plot(intensity, speed, marker=marker, color=colour, label=name, linewidth=1, markersize=5)
        for label, at, value in points:
            shift = (3, -11) if index % 2 else (-3, 6)  # below and above in turns
            axes.annotate(
                label, (at, value), xytext=shift, textcoords="offset points", fontsize=8, color=colour
            )


def _in_words(speed: float) -> str:
    """Write a number of multiply-adds a second: 12 G, 3.4 M."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if speed >= size:
            return f"{speed / size:.3g} {sign}"
    return f"{speed:.3g}"
