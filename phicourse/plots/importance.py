"""Which columns of a model's weights matter: an image a kind of tensor, a line a layer."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from phicourse.plots.style import Picture, tidy

_WIDTH = 512  # columns of the picture; more are drawn as the largest of their neighbours
_RANGE = (0.1, 10.0)


def draw_importance(importance: Mapping[str, NDArray[np.float32]]) -> Figure:
    """Draw how much each column counts, as parts of its row's mean; outliers are dark.

    importance  kind of tensor -> (layers, columns) mean squares; rows of NaN stay empty
    returns     the figure
    """
    heights = [max(0.3, min(0.15 * len(rows), 0.6 + 0.04 * len(rows))) for rows in importance.values()]
    figure = Picture(8, sum(heights) + 0.55 * len(heights) + 0.5)
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (kind, rows) in zip(panels, importance.items(), strict=True):
        image = _draw_rows(axes, rows)
        tidy(axes, kind)
    panels[-1].set_xlabel("column of the weight", fontsize=9)
    bar = figure.colorbar(
        image, ax=list(panels), extend="both", shrink=min(1.0, 2.5 / figure.get_figheight())
    )
    bar.set_label("mean square of its input,\nin means of the layer", fontsize=9)
    return figure


def _draw_rows(axes: Axes, rows: NDArray[np.float32]) -> AxesImage:
    """Draw one kind of tensor: a line a layer."""
    n_layers, n_columns = rows.shape
    relative = np.clip(rows / rows.mean(axis=1, keepdims=True), *_RANGE)
    width = -(-n_columns // _WIDTH)  # columns that share one of the picture
    filled = np.full((n_layers, -(-n_columns // width) * width), _RANGE[0], np.float32)
    filled[:, :n_columns] = relative
    pooled = filled.reshape(n_layers, -1, width).max(axis=2)
    image = axes.imshow(
        pooled,
        norm=LogNorm(*_RANGE),
        cmap="magma_r",
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, pooled.shape[1] * width - 0.5, n_layers - 0.5, -0.5),
    )
    axes.set_xlim(-0.5, n_columns - 0.5)
    if n_layers > 1:
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel("layer", fontsize=9)
    else:
        axes.set_yticks([])
    return image
