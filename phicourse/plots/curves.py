"""Lines over one axis: costs, speeds, losses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of, tidy

_STYLES = ("-", "--", ":", "-.")


def draw_curves(
    x: Sequence[float],
    curves: Mapping[str, ArrayLike],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    across: Mapping[str, float] | None = None,
    upright: Mapping[str, float] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw a line for each label; lines differ in colour and in dashes.

    x        (n,) places on the horizontal axis; curves: label -> (n,) values, NaN leaves a gap
    log      whether the vertical axis is logarithmic
    across   label -> height of a thin horizontal line; upright: label -> place of a vertical one
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(7, 2.7).subplots()
    for index, (label, values) in enumerate(curves.items()):
        style = _STYLES[index % len(_STYLES)]
        axes.plot(x, np.asarray(values), style, color=PALETTE[index], linewidth=1.8, label=label)
    if log:
        axes.set_yscale("log")
    _draw_limits(axes, across or {}, upright or {})
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False, loc="best")
    tidy(axes, title)
    return figure_of(axes)


def _draw_limits(axes: Axes, across: Mapping[str, float], upright: Mapping[str, float]) -> None:
    for label, height in across.items():
        axes.axhline(height, color=GREY, linewidth=0.8)
        axes.annotate(
            label, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    for label, place in upright.items():
        axes.axvline(place, color=GREY, linewidth=0.8)
        axes.annotate(f" {label}", (place, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
