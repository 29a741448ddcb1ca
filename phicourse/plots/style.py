"""One look for all figures: colours that the colour-blind can tell apart, on no background.

A page may be white or nearly black, and a picture in a notebook cannot know which. So what lies on the page itself,
words and axes, is of one grey that has enough contrast with both. What lies on a colour has its own ink.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.typing import ColorType
from PIL import Image  # comes with matplotlib

from phicourse.gguf import atomic_output

# Okabe and Ito's palette, in an order that keeps neighbours far apart in lightness
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
GREY = "#767676"  # 4.5 times as dark as white, 4.2 times as light as JupyterLab's dark page
MARGIN = 0.1  # inches
PAPER, INK = "white", "black"  # where words lie on something light, whatever the page is
SHARPNESS = 2  # pixels of the file for each pixel on a notebook's page, for screens with small pixels
N_COLOURS = 256  # of a file
DOTS = 150  # an inch, in files of their own

matplotlib.rc("text", color=GREY)
matplotlib.rc("axes", facecolor="none", edgecolor=GREY, labelcolor=GREY)
matplotlib.rc("xtick", color=GREY)
matplotlib.rc("ytick", color=GREY)


class Picture(Figure):
    """A figure that a notebook shows without pyplot: alone on a cell's last line, or given to `display`."""

    def __init__(self, width: float, height: float) -> None:
        """Make an empty figure; width and height are inches."""
        layout = ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN)
        super().__init__(figsize=(width, height), layout=layout, facecolor="none")

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The PNG file, and the size in pixels that it takes on the page."""
        return png_of(self), size_of(self)


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG file of at most 256 colours: less than half the size, and no eye sees it."""
    drawn, file = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi * SHARPNESS)
    pixels = Image.open(drawn).convert("RGBA")
    few = pixels.quantize(N_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, format="PNG", optimize=True)
    return file.getvalue()


def size_of(figure: Figure) -> dict[str, int]:
    """Return the width and height in pixels that a figure takes on a notebook's page."""
    width, height = figure.get_size_inches() * figure.dpi
    return {"width": round(width), "height": round(height)}


def save_png(figure: Figure, path: Path, force: bool = False) -> None:
    """Write a figure to a PNG file of its own; GGUFError where it is there already, unless `force` replaces it."""
    with atomic_output(path, force) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS)


def tidy(axes: Axes, title: str) -> None:
    """Give axes a left-aligned title and take away the frame lines that carry nothing."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)


def ink_on(colour: ColorType) -> str:
    """Return what can be read on a colour: white on a dark one, black on a light one."""
    red, green, blue = to_rgb(colour)
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def figure_of(axes: Axes) -> Figure:
    """Return the whole figure that axes are part of."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def stack_bars(
    axes: Axes, bars: Mapping[str, Mapping[str, int]], unit: float, total: Callable[[float], str]
) -> None:
    """Draw horizontal bars, the first on top, one colour a part.

    bars   label -> part -> amount; every bar has the same parts
    unit   what the axis counts: amounts are divided by it
    total  what to write behind a bar of so many units
    """
    labels = list(bars)
    left = [0.0] * len(labels)  # units drawn so far in each bar
    for part, colour in zip(bars[labels[0]], PALETTE, strict=False):
        widths = [bars[label][part] / unit for label in labels]
        axes.barh(labels, widths, left=left, color=colour, label=part, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, units in enumerate(left):
        axes.text(units, row, f" {total(units)}", va="center", fontsize=9, color=GREY)
    axes.set_xlim(0, max(left) * 1.2)
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False, loc="lower right")
