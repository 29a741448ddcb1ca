"""A model as a wall of cells: a row for each kind of matrix, a cell for each layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from phicourse.plots.style import PALETTE, Picture, figure_of, ink_on, tidy

_BITS = (1.0, 9.0)  # the ends of the colours of types
_LEAST = 0.001  # smaller numbers need another form
_ROOM = 8.0  # layers to a row of cells in which a number can be read: more are drawn without


def draw_types(
    types: Mapping[str, Sequence[str]], bits: Mapping[str, float], title: str, axes: Axes | None = None
) -> Figure:
    """Draw which type each matrix has: the darker, the more bits.

    types    kind of matrix -> its type in each layer; one type for a matrix outside the layers
    bits     type -> bits per weight
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = _wall_of(len(types))
    shades = colormaps["YlGnBu"]
    low, high = _BITS
    colours = {type: shades((min(bits[type], high) - low) / (high - low)) for type in bits}
    _draw_cells(axes, {kind: [(colours[type], "") for type in row] for kind, row in types.items()})
    used = sorted({type for row in types.values() for type in row}, key=lambda type: -bits[type])
    handles = [Patch(color=colours[type], label=f"{type}  {bits[type]:g} bits") for type in used]
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(axes, title)
    return figure_of(axes)


def draw_fragility(
    damage: Mapping[str, NDArray[np.float64]], title: str, unit: str, axes: Axes | None = None
) -> Figure:
    """Draw how much harm is done where: the darker, the more; the colours are logarithmic.

    damage   kind of matrix -> (layers,) positive numbers; (1,) for a matrix outside the layers
    unit     what they are
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = _wall_of(len(damage))
    values = np.concatenate(list(damage.values()))
    norm, shades = LogNorm(values.min(), values.max()), colormaps["YlOrRd"]
    digits = ".3f" if values.min() >= _LEAST else ".1e"
    cells = {
        kind: [(shades(float(norm(value))), f"{value:{digits}}") for value in row]
        for kind, row in damage.items()
    }
    _draw_cells(axes, cells)
    axes.set_xlabel(f"layer   (numbers: {unit})", fontsize=9)
    tidy(axes, title)
    return figure_of(axes)


def frame_cell(
    axes: Axes, rows: Mapping[str, Sequence[object] | NDArray[np.float64]], kind: str, layer: int
) -> None:
    """Draw a frame around one cell of a wall.

    rows   kind of matrix -> its layers, as they were drawn
    layer  0 for a matrix outside the layers
    """
    step = max(map(len, rows.values())) / len(rows[kind])
    place = (layer * step, list(rows).index(kind) + 0.06)
    frame = Rectangle(
        place, step, 0.88, fill=False, edgecolor=PALETTE[0], linewidth=4, clip_on=False, zorder=3
    )
    axes.add_patch(frame)


def _wall_of(n_rows: int) -> Axes:
    return Picture(8, 0.42 * n_rows + 0.9).subplots()


def _draw_cells(
    axes: Axes, rows: Mapping[str, Sequence[tuple[tuple[float, float, float, float], str]]]
) -> None:
    """Draw the rows from top to bottom; a cell is a colour and what is written in it."""
    width = max(map(len, rows.values()))
    for y, row in enumerate(rows.values()):
        step = width / len(row)
        for i, (colour, text) in enumerate(row):
            axes.add_patch(
                Rectangle((i * step, y + 0.06), step, 0.88, facecolor=colour, edgecolor="white", linewidth=1)
            )
            if text and width <= _ROOM:
                ink = ink_on(colour)
                axes.text((i + 0.5) * step, y + 0.52, text, ha="center", va="center", fontsize=9, color=ink)
    axes.set(xlim=(0, width), ylim=(len(rows), 0))
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
    marked = np.arange(0, width, 1 if width <= _ROOM else 4)
    axes.set_xticks(marked + 0.5, [str(layer) for layer in marked])
    axes.set_xlabel("layer", fontsize=9)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
