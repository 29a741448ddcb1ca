"""Where attention goes: all heads of a model as small maps, or one head as a map and one of its rows as bars."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from phicourse.plots.next_token import visible
from phicourse.plots.style import PALETTE, PAPER, Picture, tidy

Maps = NDArray[np.floating]
_COLOURS = "magma_r"


def draw_heads(maps: Maps) -> Figure:
    """Draw every head of every layer; a row of pictures a layer.

    maps     (layers, heads, time, time), what each query (row) takes from each key (column); rows sum to 1
    returns  the figure
    """
    n_layers, n_heads = maps.shape[:2]
    figure = Picture(1.5 * n_heads + 1, 1.55 * n_layers + 0.3)
    panels = figure.subplots(n_layers, n_heads, squeeze=False)
    for layer, row in enumerate(panels):
        for head, axes in enumerate(row):
            image = _draw_map(axes, maps[layer, head])
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
    bar = figure.colorbar(image, ax=list(panels.flat), shrink=0.5)
    bar.set_label("part of a query's attention", fontsize=9)
    return figure


def draw_attention(tokens: Sequence[str], weights: Maps, query: int, title: str = "") -> Figure:
    """Draw one head: its map with the row of one query framed, and this row as bars.

    tokens   the text of each token
    weights  (time, time), rows sum to 1
    query    the token that looks
    returns  the figure
    """
    figure = Picture(8, 0.2 * len(tokens) + 1.4)
    names = [visible(token) for token in tokens]
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _draw_map(left, weights)
    left.add_patch(
        Rectangle((-0.5, query - 0.5), query + 1, 1, fill=False, edgecolor=PALETTE[0], linewidth=2)
    )
    left.set_xticks(range(len(names)), names, rotation=90)
    left.set_yticks(range(len(names)), names)
    tidy(left, title)
    right.barh(range(len(names)), weights[query], color=PALETTE[0])
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xlim(0, 1)
    tidy(right, f"{names[query]} looks at")
    return figure


def _draw_map(axes: Axes, weights: Maps) -> AxesImage:
    """Draw a map; what no query may see stays white."""
    axes.set_facecolor(PAPER)
    seen = np.where(np.tri(len(weights), dtype=bool), weights, np.nan)
    return axes.imshow(seen, vmin=0, vmax=1, cmap=_COLOURS, interpolation="nearest")
