"""The layout table as a picture: where the bits of a weight go, and in which bytes two sets of blocks differ."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from phicourse.gguf.block_anatomy import field_kind
from phicourse.gguf.types import Field, TensorType
from phicourse.plots.hex import COLOURS
from phicourse.plots.style import GREY, INK, Picture, figure_of, tidy

_NARROW = 0.035  # of the widest row: less has no room for a name
_ROOMY = 0.14  # of the widest row: from here on there is room for a sentence
_MOST_BLOCKS = 24  # that the map of differences shows
_WHITE_TO_RED = ListedColormap(["white", *colormaps["YlOrRd"](np.linspace(0.25, 1, 8))])


def draw_layout(types: Sequence[TensorType], axes: Axes | None = None) -> Figure:
    """Draw blocks as bars, cut into their fields in the order of the file; width is bits for each weight.

    types    types that have blocks
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 0.55 * len(types) + 1.2).subplots()
    widest = max(type.bits_per_weight for type in types)
    for row, type in enumerate(types):
        for field in type.fields:
            _draw_field(axes, row, type, field, widest)
        text = f" {type.bits_per_weight:.4g} bits: {type.bytes} bytes for {type.block}"
        axes.text(type.bits_per_weight, row, text, va="center", fontsize=9, color=GREY)
    kinds = dict.fromkeys(field_kind(field) for type in types for field in type.fields)
    handles = [Patch(facecolor=COLOURS[kind], edgecolor="black", label=kind) for kind in kinds]
    axes.legend(
        handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=5
    )
    axes.set_yticks(range(len(types)), [type.name for type in types])
    axes.set(xlim=(0, widest * 1.28), ylim=(len(types) - 0.5, -0.5), xticks=[])
    tidy(axes, "Where the bits of a weight go")
    axes.spines["bottom"].set_visible(False)
    return figure_of(axes)


def _draw_field(axes: Axes, row: int, type: TensorType, field: Field, widest: float) -> None:
    left, width = (8 * n_bytes / type.block for n_bytes in (field.offset, field.bytes))
    box = Rectangle(
        (left, row - 0.35), width, 0.7, facecolor=COLOURS[field_kind(field)], edgecolor="black", linewidth=0.7
    )
    axes.add_patch(box)
    if width > _NARROW * widest:
        sized = f"{field.name}: {field.bytes} bytes" if width > _ROOMY * widest else field.name
        axes.text(left + width / 2, row, sized, ha="center", va="center", fontsize=8, color=INK)


def draw_byte_differences(mine: NDArray[np.uint8], theirs: NDArray[np.uint8], type: TensorType) -> Figure:
    """Draw the first blocks that differ: a line a block, a cell a byte, the darker the more bits are different.

    mine, theirs  (n_blocks, bytes of a block)
    type          what the bytes are: its fields are marked
    returns       the figure
    """
    bits = np.unpackbits((mine ^ theirs)[..., None], axis=-1).sum(axis=-1)  # (n_blocks, bytes)
    blocks = np.flatnonzero(bits.any(axis=1))[:_MOST_BLOCKS]
    axes = Picture(9, 0.14 * len(blocks) + 1.1).subplots()
    image = axes.imshow(
        bits[blocks], cmap=_WHITE_TO_RED, vmin=-0.5, vmax=8.5, aspect="auto", interpolation="nearest"
    )
    for field in type.fields:
        axes.axvline(field.offset - 0.5, color=GREY, linewidth=0.8)
        axes.text(field.offset - 0.4, -0.6, f" {field.name}", ha="left", va="bottom", fontsize=8)
    axes.set_yticks(range(len(blocks)), [f"{block:,}" for block in blocks])
    axes.set_xlabel("byte of the block", fontsize=9)
    axes.set_ylabel("block", fontsize=9)
    figure_of(axes).colorbar(image, ax=axes, ticks=[0, 2, 4, 6, 8]).set_label("bits that differ", fontsize=9)
    tidy(axes, "")
    axes.tick_params(labelsize=7)
    return figure_of(axes)
