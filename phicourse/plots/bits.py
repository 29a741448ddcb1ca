"""The bits of a number, a box each, coloured by what they mean."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from phicourse.plots.style import PALETTE, Picture, figure_of

_INK = {"#0072B2": "white", "#009E73": "white"}


def draw_bits(rows: Sequence[tuple[str, str, Sequence[tuple[str, int]]]], axes: Axes | None = None) -> Figure:
    """Draw numbers as rows of bits, highest first.

    rows     (what stands before the row, its bits as a text of 0 and 1, fields as (name, number of bits))
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 0.75 * len(rows) + 0.2).subplots()
    widest = max(len(bits) for _, bits, _ in rows)
    names = list(dict.fromkeys(name for _, _, fields in rows for name, _ in fields))
    for row, (label, bits, fields) in enumerate(rows):
        bottom, start = -1.5 * row, 0
        axes.text(-0.4, bottom + 0.5, label, ha="right", va="center", fontsize=10)
        for name, n_bits in fields:
            colour = PALETTE[names.index(name)]
            for at in range(start, start + n_bits):
                axes.add_patch(Rectangle((at, bottom), 1, 1, facecolor=colour, edgecolor="white"))
                ink = _INK.get(colour, "black")
                axes.text(at + 0.5, bottom + 0.47, bits[at], ha="center", va="center", fontsize=9, color=ink)
            axes.text(start + n_bits / 2, bottom + 1.05, name, ha="center", va="bottom", fontsize=8)
            start += n_bits
    axes.set(xlim=(-0.25 * widest, widest + 0.2), ylim=(-1.5 * len(rows) + 1.3, 1.6))
    axes.set_axis_off()
    return figure_of(axes)
