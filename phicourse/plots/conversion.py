"""What a converter does to weights: which of them float16 holds, and which rows rotate together."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc

from phicourse.plots.style import GREY, INK, PALETTE, PAPER, Picture, figure_of, tidy

# What float16 does to a bfloat16 number of an exponent, from that exponent on. Its numbers below 2^-14 are
# multiples of 2^-24, and bfloat16 has eight digits: so the last digit of 2^-17 is still one of them.
FLOAT16 = (("becomes 0", -40), ("rounded", -25), ("exact", -17), ("becomes infinite", 16))
_TONES = {
    "becomes 0": "#F7D9C4",
    "rounded": "#FBF3C0",
    "exact": "#D8EFE6",
    "becomes infinite": "#F7D9C4",
}


def draw_exponents(counts: Mapping[int, int], axes: Axes | None = None) -> Figure:
    """Draw how many weights have which exponent, over what float16 does to them.

    counts   exponent e -> how many weights have 2^e <= |w| < 2^(e + 1); -40 and more, below 24
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 3.2).subplots()
    ends = [start for _, start in FLOAT16[1:]] + [24]
    top = max(counts.values())
    for (fate, start), end in zip(FLOAT16, ends, strict=True):
        axes.axvspan(start - 0.5, end - 0.5, color=_TONES[fate], linewidth=0)
        axes.text((start + end - 1) / 2, top * 6, fate, ha="center", va="center", fontsize=8, color=INK)
        if start > FLOAT16[0][1]:
            axes.axvline(start - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.bar(list(counts), list(counts.values()), color=PALETTE[0], width=0.8)
    axes.set_yscale("log")
    axes.set(xlim=(-40.5, 23.5), ylim=(0.5, top * 20))
    ticks = range(-40, 21, 10)
    axes.set_xticks(list(ticks), [f"$2^{{{tick}}}$" for tick in ticks])
    axes.set_ylabel("weights", fontsize=9)
    tidy(axes, "How large the weights are, and what float16 does to such numbers")
    return figure_of(axes)


def draw_rope_pairs(halves: int, axes: Axes | None = None) -> Figure:
    """Draw which two numbers of a head rotate together: Phi's way above, that of a Llama in GGUF below.

    halves   half the size of the head
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(8, 3.4).subplots()
    size = 2 * halves
    above = list(range(size))  # place -> row of the checkpoint
    below = [row for pair in range(halves) for row in (pair, pair + halves)]  # the same, shuffled
    _draw_row(axes, 1.0, above, [(pair, pair + halves) for pair in range(halves)], up=True)
    _draw_row(axes, 0.0, below, [(2 * pair, 2 * pair + 1) for pair in range(halves)], up=False)
    for place, row in enumerate(below):
        axes.plot([row, place], [0.86, 0.14], color=PALETTE[row % halves], linewidth=1, alpha=0.6)
    axes.text(-0.8, 1, "Phi", ha="right", va="center", fontsize=10)
    axes.text(-0.8, 0, "Llama\nin GGUF", ha="right", va="center", fontsize=10)
    axes.set(xlim=(-2.2, size - 0.3), ylim=(-0.75, 2.1))
    axes.set_axis_off()
    axes.set_title("Rows of one head, and which two rotate together", loc="left", fontsize=11, weight="bold")
    return figure_of(axes)


def _draw_row(
    axes: Axes, height: float, rows: Sequence[int], pairs: Sequence[tuple[int, int]], up: bool
) -> None:
    """Draw the rows as boxes, and an arc over or below each pair of places."""
    colours = [PALETTE[row % len(pairs)] for row in rows]
    for place, row in enumerate(rows):
        box = {"fc": PAPER, "ec": colours[place]}
        axes.text(place, height, str(row), ha="center", va="center", fontsize=10, color=INK, bbox=box)
    start, end, base = (0, 180, height + 0.16) if up else (180, 360, height - 0.16)
    for left, right in pairs:
        span = right - left
        middle = ((left + right) / 2, base)
        arc = Arc(middle, span, 0.8 * span**0.5, theta1=start, theta2=end, color=colours[left], linewidth=1.8)
        axes.add_patch(arc)
