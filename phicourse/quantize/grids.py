"""The grids of the i-quants: few points of a lattice, chosen so that 4 or 8 weights are one index.

With three levels (or eight) for each of 8 (or 4) weights there are 6,561 (or 4,096) combinations; the
grid has 256 to 2,048 of them, found by their author by clustering the weights of models. No formula gives
them, so they are read out of the `gguf` package.
Source: `gguf.quants`; the neighbours as ggml's `iq2xs_init_impl` and `iq3xs_init_impl` (ggml 0.25) list them.
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phicourse.errors import QuantizeError
from phicourse.quantize.blocks import Float32

Indices = NDArray[np.intp]

# How many different distances count as near, when a combination is not on the grid.
_SHELLS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3, "IQ1_S": 3}
# Which grid a type has.
GRIDS = {name: name for name in _SHELLS} | {"IQ1_M": "IQ1_S"}


class Grid(NamedTuple):
    """The points of one type's grid, and which of them are near the combinations that are no points.

    A combination of levels l0, l1, … has the number l0 + n_levels l1 + n_levels² l2 + …
    """

    values: Float32  # (n_points, g) what a reader multiplies with the scale
    levels: Indices  # (n_points, g) the level of each weight, from 0 up
    n_levels: int
    point: Indices  # (n_levels^g,) the point that each combination is, or -1
    near: Indices  # the points near each combination that is no point itself, list after list
    start: Indices  # (n_levels^g + 1,) where in `near` the list of a combination starts

    def combinations(self, levels: NDArray[np.int32]) -> Indices:
        """Number the combinations: (n_groups, g, count) -> (n_groups, count)."""
        weights = self.n_levels ** np.arange(levels.shape[1])
        return np.asarray((levels * weights[:, None]).sum(axis=1), dtype=np.intp)

    def best_near(
        self,
        combinations: Indices,
        values: Float32,
        x: Float32,
        weights: Float32,
        scale: Float32,
        shift: Float32 | None = None,
    ) -> Indices:
        """Find the near point with the smallest Σ w (scale * value - x)², the first of equals.

        combinations  (n,) none of them a point
        values        (n_points, g) what the points stand for
        x, weights    (n, g) float32
        scale, shift  (n,) float32; a shift is added to all values of a point
        returns       (n,) points
        """
        points, owner, starts = self._lists(combinations)
        errors = np.zeros(len(points), np.float32)
        for i in range(x.shape[1]):
            value = values[:, i][points]
            if shift is not None:
                value = value + shift[owner]
            difference = scale[owner] * value - x[owner, i]
            errors += weights[owner, i] * difference * difference
        errors[np.isnan(errors)] = np.inf  # weights beyond 1e19, which no scale can hold
        smallest = np.minimum.reduceat(errors, starts)  # (n,)
        where = np.flatnonzero(errors == smallest[owner])
        return points[where[np.searchsorted(where, starts)]]

    def _lists(self, combinations: Indices) -> tuple[Indices, Indices, Indices]:
        """Put the lists of several combinations one after the other.

        combinations  (n,)
        returns       the points of all lists; to which of the n each belongs; where each list starts (n,)
        """
        lengths = self.start[combinations + 1] - self.start[combinations]
        starts = lengths.cumsum() - lengths
        owner = np.repeat(np.arange(len(combinations)), lengths)
        within = np.arange(len(owner)) - starts[owner]
        return self.near[self.start[combinations][owner] + within], owner, starts


@cache
def load_grid(type_name: str) -> Grid:
    """Make the grid of a type usable; QuantizeError where the `gguf` package is not installed."""
    values = _read_values(type_name)
    different = np.unique(values)
    return _complete(values, np.searchsorted(different, values), len(different), _SHELLS[type_name])


@cache
def hand_over(native: ModuleType, type_name: str) -> None:
    """Give the compiled module the grid of a type, if it has one, before it works with that type."""
    if type_name in GRIDS:
        native.set_grid(type_name, _read_values(GRIDS[type_name]).astype(np.int8))


def _read_values(type_name: str) -> Float32:
    """Read a grid out of the `gguf` package, (n_points, g); QuantizeError where that is not installed."""
    try:
        quants = import_module("gguf.quants")
    except ImportError as error:
        raise QuantizeError(
            f"the grid of {type_name} comes from the gguf package, which is not installed: pip install gguf"
        ) from error
    source = getattr(quants, type_name)
    source.init_grid()
    return np.asarray(source.grid, dtype=np.float32).reshape(source.grid_shape)


def _complete(values: Float32, levels: Indices, n_levels: int, shells: int) -> Grid:
    """Number the points and find the neighbours of all other combinations."""
    g = levels.shape[1]
    all_levels = np.stack(np.unravel_index(np.arange(n_levels**g), (n_levels,) * g)[::-1], axis=-1)
    point = np.full(n_levels**g, -1, np.intp)
    point[(levels * n_levels ** np.arange(g)).sum(axis=1)] = np.arange(len(levels))
    others = np.flatnonzero(point < 0)
    counts = np.zeros(n_levels**g, np.intp)
    counts[others], near = _near(all_levels[others], levels, shells)
    return Grid(values, levels, n_levels, point, near, np.concatenate([[0], counts.cumsum()]))


def _near(combinations: Indices, points: Indices, shells: int) -> tuple[Indices, Indices]:
    """List the points in the nearest shells around each combination, by distance, then by index.

    combinations, points  (n, g) and (n_points, g) levels
    shells                how many different distances to take
    returns               the length of each list (n,), and the lists one after the other
    """
    a, b = combinations.astype(np.float32), points.astype(np.float32)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T  # (n, n_points), whole
    limit = np.full((len(a), 1), -1, np.float32)
    for _ in range(shells):
        limit = np.where(squares > limit, squares, np.float32(np.inf)).min(axis=1, keepdims=True)
    rows, found = np.nonzero(squares <= limit)
    order = np.lexsort((found, squares[rows, found], rows))
    return np.bincount(rows, minlength=len(a)), found[order]
