"""The search for the scale of a sub-block: each trial's error, and the line that least squares draws."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of, tidy


def draw_trials(
    levels: NDArray[np.float32], errors: NDArray[np.float32], obvious: float, axes: Axes | None = None
) -> Figure:
    """Draw the error of each trial, the best so far as steps, and mark the one that wins.

    levels   (n,) into how many levels each trial stretches the range
    errors   (n,) what least squares leaves of the error; NaN where a trial has no solution
    obvious  the error of the obvious scale, without least squares
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(6, 3).subplots()
    known = np.where(np.isnan(errors), np.inf, errors)
    best = np.minimum.accumulate(np.minimum(known, obvious))
    axes.axhline(obvious, color=GREY, linewidth=1, linestyle="--", label="the obvious scale")
    axes.step(levels, best, where="mid", color=PALETTE[4], linewidth=3, label="best so far")
    axes.plot(levels, errors, "o-", color=PALETTE[0], markersize=5, linewidth=1, label="a trial")
    winner = int(known.argmin())
    if known[winner] < obvious:
        axes.plot(
            levels[winner],
            errors[winner],
            "*",
            color=PALETTE[5],
            markersize=17,
            markeredgecolor="black",
            label=f"chosen: {1 - known[winner] / obvious:.0%} less",
        )
    axes.set_ylim(0, None)
    axes.set_xlabel("the range of the weights, in steps", fontsize=9)
    axes.set_ylabel("weighted error", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    tidy(axes, "One trial after the other")
    return figure_of(axes)


def draw_fit(
    weights: NDArray[np.float32],
    codes: NDArray[np.float32],
    obvious: tuple[float, float],
    fitted: tuple[float, float],
    axes: Axes | None = None,
) -> Figure:
    """Draw how far weights are from the levels of their codes, and the line that fits them better.

    weights, codes   (n,)
    obvious, fitted  (scale, minimum); the first is drawn level, and its scale is the unit
    axes             where to draw; a new figure when not given
    returns          the figure
    """
    if axes is None:
        axes = Picture(7, 3.4).subplots()
    scale, minimum = obvious
    above = (weights - (scale * codes + minimum)) / scale
    ends = np.arange(codes.max() + 1)
    line = (fitted[0] * ends + fitted[1] - (scale * ends + minimum)) / scale
    axes.axhline(0, color=GREY, linestyle="--", linewidth=1.6, label="the obvious line")
    axes.plot(ends, line, color=PALETTE[5], linewidth=2.5, label="the line that fits best")
    axes.vlines(codes, line[codes.astype(int)], above, color=PALETTE[1], linewidth=1.5, label="error")
    axes.plot(codes, above, "o", color=PALETTE[0], markersize=5, label="a weight")
    axes.set_ylim(-0.75, 0.75)
    axes.set_xlabel("code", fontsize=9)
    axes.set_ylabel("above the level, in steps", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right", ncols=4, bbox_to_anchor=(1, -0.02))
    tidy(axes, "Codes fixed: a line through the weights")
    return figure_of(axes)


def draw_errors(
    weights: NDArray[np.float32], decoded: Mapping[str, NDArray[np.float32]], axes: Axes | None = None
) -> Figure:
    """Draw what becomes of weights, sorted by size, as the error of each.

    weights  (n,)
    decoded  name of a choice -> (n,) what a reader gets
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(6, 3).subplots()
    order = np.argsort(weights)
    places = np.arange(len(weights))
    width = 0.8 / len(decoded)
    for i, ((name, values), colour) in enumerate(
        zip(decoded.items(), (GREY, PALETTE[5], *PALETTE), strict=False)
    ):
        shift = (i - (len(decoded) - 1) / 2) * width
        axes.bar(places + shift, (values - weights)[order], width, color=colour, label=name)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks([0, len(weights) - 1], ["smallest weight", "largest weight"])
    axes.set_ylabel("error", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(decoded))
    tidy(axes, "What is left of the error")
    return figure_of(axes)
