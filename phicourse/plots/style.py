"""One look for all figures: colours that the colour-blind can tell apart, on white so that every theme shows them."""

from matplotlib.axes import Axes

# Okabe and Ito's palette, in an order that keeps neighbours far apart in lightness
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#666666"


def tidy(axes: Axes, title: str) -> None:
    """Give axes a left-aligned title and take away the frame lines that carry nothing."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)
