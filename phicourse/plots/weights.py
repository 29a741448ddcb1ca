"""Where a model's weights sit: one model as a floor plan, several models side by side."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from phicourse.plots.style import PALETTE, Picture, figure_of, stack_bars, tidy

_NARROW = 0.1  # of the width: less has no room for a name


def draw_floor_plan(columns: Sequence[tuple[str, Mapping[str, int]]], axes: Axes | None = None) -> Figure:
    """Draw a model as columns from input to output, cut into its tensors: area is weights, exactly.

    columns  (name, tensor -> weights), in the order in which a token passes them; neighbours may share a name
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 3.8).subplots()
    total = sum(sum(tensors.values()) for _, tensors in columns)
    kinds = list(dict.fromkeys(kind for _, tensors in columns for kind in tensors))
    colours = dict(zip(kinds, PALETTE, strict=False))
    left = 0.0  # part of all weights drawn so far
    for _, tensors in columns:
        width = sum(tensors.values()) / total
        _draw_column(axes, left, width, tensors, colours)
        left += width
    _name_runs(axes, columns, total)
    shares = {kind: sum(tensors.get(kind, 0) for _, tensors in columns) / total for kind in kinds}
    handles = [Patch(color=colours[kind], label=f"{kind}  {share:.1%}") for kind, share in shares.items()]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    tidy(axes, f"{total / 1e9:.2f} billion weights: the area of a part is its share")
    axes.set_axis_off()
    return figure_of(axes)


def _draw_column(
    axes: Axes, left: float, width: float, tensors: Mapping[str, int], colours: Mapping[str, str]
) -> None:
    bottom, column = 0.0, sum(tensors.values())
    for kind, weights in tensors.items():
        height = weights / column
        axes.add_patch(
            Rectangle(
                (left, bottom), width, height, facecolor=colours[kind], edgecolor="white", linewidth=0.6
            )
        )
        bottom += height


def _name_runs(axes: Axes, columns: Sequence[tuple[str, Mapping[str, int]]], total: int) -> None:
    """Write each name once, below the columns that have it; the outer ones stay inside the picture."""
    left = 0.0
    for name, run in groupby(columns, key=itemgetter(0)):
        width = sum(sum(tensors.values()) for _, tensors in run) / total
        place, side = left + width / 2, "center"
        if width < _NARROW and left == 0:
            place, side = 0.0, "left"
        elif width < _NARROW and left + width > 1 - _NARROW:
            place, side = 1.0, "right"
        axes.text(place, -0.03, name, ha=side, va="top", fontsize=9)
        left += width


def draw_family(models: Mapping[str, Mapping[str, int]], axes: Axes | None = None) -> Figure:
    """Draw stacked horizontal bars of weights by part, a bar a model.

    models   name -> part -> weights; every model has the same parts
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 0.42 * len(models) + 1.1).subplots()
    stack_bars(axes, models, 1e9, lambda billions: f"{billions:.2f}")
    axes.set_xlabel("billions of weights", fontsize=9)
    tidy(axes, "The family, part by part")
    return figure_of(axes)
