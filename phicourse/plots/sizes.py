"""Where the bytes of a model are: one stacked bar a file, one colour a part."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phicourse.plots.style import GREY, PALETTE, Picture, tidy


def draw_sizes(files: Mapping[str, Mapping[str, int]], axes: Axes | None = None) -> Figure:
    """Draw stacked horizontal bars of bytes by part of the model.

    files    label of a file -> part of the model -> bytes; every file has the same parts
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(7, 0.7 * len(files) + 1.2).subplots()
    labels = list(files)
    left = [0.0] * len(labels)  # MB drawn so far in each bar
    for part, colour in zip(files[labels[0]], PALETTE, strict=False):
        widths = [files[label][part] / 1e6 for label in labels]
        axes.barh(labels, widths, left=left, color=colour, label=part, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f} MB", va="center", fontsize=9, color=GREY)
    axes.set_xlim(0, max(left) * 1.2)
    axes.invert_yaxis()  # the first file on top
    axes.set_xlabel("megabytes", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    tidy(axes, "Where the bytes are")
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure
