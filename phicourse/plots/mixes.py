"""Whole files against each other: size and quality, before and after, and a mix on the bench."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from phicourse.plots.style import GREY, PALETTE, Picture, figure_of, tidy

Point = tuple[float, float]  # megabytes, KL divergence

_FONT = 7.5  # points
_MARKERS = "osD^vPX*"
_KL = "KL divergence from F16, nats a token"
# Where the name of a point may stand, in points from it: right, left, above, below, the corners, further away
_PLACES = (
    (7, 0),
    (-7, 0),
    (0, 8),
    (0, -8),
    (6, 7),
    (6, -7),
    (-6, 7),
    (-6, -7),
    (14, 14),
    (14, -14),
    (-14, -14),
)


def draw_mixes(
    series: Mapping[str, Mapping[str, Point]],
    title: str,
    *,
    budget: float | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw files as points: to the left is small, below is good. The line joins those that none beats in both.

    series   what belongs together -> name of a file -> (megabytes, KL divergence > 0)
    budget   megabytes; a line marks them
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(9, 5.2).subplots()
    points = {name: point for files in series.values() for name, point in files.items()}
    for colour, marker, (label, files) in zip(PALETTE, _MARKERS, series.items(), strict=False):
        axes.plot(*_columns(files.values()), marker, color=colour, markersize=6, label=label, zorder=3)
    axes.plot(*_columns(unbeaten(points.values())), "-", color=GREY, linewidth=0.8, zorder=1)
    if budget is not None:
        axes.axvline(budget, color=PALETTE[5], linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.margins(x=0.08)
    axes.set_xlabel("megabytes", fontsize=9)
    axes.set_ylabel(_KL, fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes, title)
    _name_points(axes, points)
    return figure_of(axes)


def unbeaten(points: Iterable[Point]) -> list[Point]:
    """Return the points, by size, of which none has another one that is no larger and better."""
    kept: list[Point] = []
    for size, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((size, loss))
    return kept


def _columns(points: Iterable[Point]) -> tuple[list[float], list[float]]:
    listed = list(points)
    return [x for x, _ in listed], [y for _, y in listed]


def _name_points(axes: Axes, points: Mapping[str, Point]) -> None:
    """Write each name beside its point, in the first place that is free; where none is, it stays away."""
    figure = figure_of(axes)
    figure.draw_without_rendering()  # only then it is known where the points lie
    unit = figure.dpi / 72  # pixels of a point
    frame = axes.get_window_extent()
    pixels = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [Bbox.from_bounds(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit) for x, y in pixels.values()]
    for name, (x, y) in pixels.items():
        size = (0.62 * _FONT * len(name) * unit, 1.1 * _FONT * unit)
        boxes = {(dx, dy): _text_box((x + dx * unit, y + dy * unit), size, _side(dx)) for dx, dy in _PLACES}
        free = [
            place
            for place, box in boxes.items()
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and not any(map(box.overlaps, taken))
        ]
        if free:
            taken.append(boxes[free[0]])
            _write_beside(axes, name, points[name], free[0])


def _side(dx: float) -> str:
    """Say which side of a text is at its place."""
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _text_box(place: Point, size: tuple[float, float], side: str) -> Bbox:
    (x, y), (width, height) = place, size
    left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[side] * width
    return Bbox.from_bounds(left, y - height / 2, width, height)


def _write_beside(axes: Axes, name: str, point: Point, place: Point) -> None:
    note = axes.annotate(
        name,
        point,
        xytext=place,
        textcoords="offset points",
        ha=_side(place[0]),
        va="center",
        fontsize=_FONT,
    )
    note.set_in_layout(False)


def draw_change(
    changes: Mapping[str, tuple[float, float]], labels: tuple[str, str], title: str, axes: Axes | None = None
) -> Figure:
    """Draw pairs of losses, one below the other: an arrow leads from the first to the second.

    changes  name -> (KL divergence before, after), both > 0
    labels   what the two are
    axes     where to draw; a new figure when not given
    returns  the figure
    """
    if axes is None:
        axes = Picture(8, 0.34 * len(changes) + 1.1).subplots()
    for row, (before, after) in enumerate(changes.values()):
        axes.annotate(
            "", (after, row), (before, row), arrowprops={"arrowstyle": "->", "color": GREY, "shrinkB": 4}
        )
    rows = range(len(changes))
    axes.plot([before for before, _ in changes.values()], rows, "o", color=PALETTE[1], label=labels[0])
    axes.plot([after for _, after in changes.values()], rows, "D", color=PALETTE[0], label=labels[1])
    axes.set_xscale("log")
    axes.set_yticks(list(rows), list(changes))
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.set_xlabel(_KL, fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes, title)
    return figure_of(axes)


def draw_design(
    parts: Sequence[tuple[str, str, int]], known: Mapping[str, Point], yours: Point, text: str = ""
) -> Figure:
    """Draw a mix on the bench: what each part weighs, where the mix lies among known ones, and what it writes.

    parts    (name of a part, its type, its bytes), from top to bottom
    known    name of a mix -> (megabytes, KL divergence > 0)
    yours    the same of this one
    text     what the model writes, in lines
    returns  the figure
    """
    figure = Picture(10, 4.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 5), height_ratios=(6, 1))
    bars = figure.add_subplot(grid[0, 0])
    names = [f"{name}\n{type}" for name, type, _ in parts]
    bars.barh(names, [n_bytes / 1e6 for _, _, n_bytes in parts], color=PALETTE[4], height=0.65)
    bars.invert_yaxis()
    bars.set_xlabel("megabytes", fontsize=9)
    tidy(bars, f"{yours[0]:.2f} MB")
    below = figure.add_subplot(grid[1, :])
    below.set_axis_off()
    below.text(0, 1, text.replace("$", r"\$"), va="top", fontsize=9)
    series = {"known mixes": known, "this one": {"this one": yours}}
    draw_mixes(series, f"KL {yours[1]:.4f}", axes=figure.add_subplot(grid[0, 1]))
    return figure
