"""Where the bytes of a model are: one stacked bar a file, one colour a part."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phicourse.plots.style import Picture, figure_of, stack_bars, tidy


def draw_sizes(files: Mapping[str, Mapping[str, int]], axes: Axes | None = None) -> Figure:
    """Draw stacked horizontal bars of bytes by part of the model.

    files    label of a file -> part of the model -> bytes; every file has the same parts
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(7, 0.7 * len(files) + 1.2).subplots()
    stack_bars(axes, files, 1e6, lambda megabytes: f"{megabytes:.1f} MB")
    axes.set_xlabel("megabytes", fontsize=9)
    tidy(axes, "Where the bytes are")
    return figure_of(axes)
