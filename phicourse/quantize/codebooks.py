"""What the codes of a format stand for, and which code is best for a weight once the scale is known.

With scale and offset fixed, a weight is `scale * value + offset`, and the choice of the value is a question
with an exact answer: the nearest level, where every weight has a code of its own. Where a code stands for
4 or 8 weights, the nearest levels are no point of the grid as a rule; then the points near them are asked.

A sub-block shares scale and offset. Arrays are (size, n_sub, n_blocks): weight i of sub-block s of block b.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phicourse.quantize.blocks import Float32, UInt8
from phicourse.quantize.grids import Grid, Indices, load_grid
from phicourse.quantize.rounding import reciprocal, sum_in_order, sum_last
from phicourse.quantize.scale_search import Mask

DELTA, NO_SHIFT = np.float32(0.125), np.float32(0)


class Rounding(Protocol):
    """A codebook that has seen the weights: rounds them, given scales and offsets (n_sub, n_blocks)."""

    def codes(self, scale: Float32, offset: Float32) -> NDArray[Any]:
        """Choose the best codes: (codes in a sub-block, n_sub, n_blocks), uint8, or indices of grid points."""

    def values(self, scale: Float32, offset: Float32) -> Float32:
        """What the best codes stand for: (size, n_sub, n_blocks)."""


class Codebook(Protocol):
    """What codes stand for."""

    @property
    def chunk(self) -> int:
        """How many weights to round at a time, so that the work stays in a processor's cache."""

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """Prepare to round these weights; (size, n_sub, n_blocks) both, and `weights` what an error counts."""


# ---- a code for each weight ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Whole numbers from `first` to `last`; the code of `first` is 0."""

    first: int
    last: int
    chunk: int = 1 << 17

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """See `Codebook`; what errors count makes no difference to the nearest number."""
        return _RoundToRange(self, x)

    def lowest_two(self) -> tuple[np.float32, np.float32]:
        """The lowest number, and how far the next one is from it."""
        return np.float32(self.first), np.float32(1)


@dataclass(frozen=True)
class _RoundToRange:
    range: Range
    x: Float32

    def codes(self, scale: Float32, offset: Float32) -> UInt8:
        return (self.values(scale, offset) - np.float32(self.range.first)).astype(np.uint8)

    def values(self, scale: Float32, offset: Float32) -> Float32:
        levels = _levels(self.x, scale, offset)
        np.rint(levels, out=levels)
        np.fmax(levels, np.float32(self.range.first), out=levels)
        return np.fmin(levels, np.float32(self.range.last), out=levels)


@dataclass(frozen=True)
class Table:
    """Uneven levels, one for each code, all of them whole numbers."""

    levels: Float32  # (n_codes,)
    chunk: int = 1 << 17

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """See `Codebook`; what errors count makes no difference to the nearest level."""
        levels, codes = np.unique(self.levels, return_index=True)
        return _RoundToTable(levels, codes.astype(np.uint8), x)

    def lowest_two(self) -> tuple[np.float32, np.float32]:
        """The lowest level, and how far the next one is from it."""
        first, second = np.unique(self.levels)[:2]
        return first, second - first


@dataclass(frozen=True)
class _RoundToTable:
    levels: Float32  # from the lowest up
    of_levels: UInt8  # their codes
    x: Float32

    def codes(self, scale: Float32, offset: Float32) -> UInt8:
        return self.of_levels[self._nearest(scale, offset)]

    def values(self, scale: Float32, offset: Float32) -> Float32:
        return self.levels[self._nearest(scale, offset)]

    def _nearest(self, scale: Float32, offset: Float32) -> Indices:
        """Count the middles that a level reaches: halfway, the upper one is taken."""
        middles = (self.levels[1:] + self.levels[:-1]) / np.float32(2)
        return np.searchsorted(middles, _levels(self.x, scale, offset), side="right")


def _levels(x: Float32, scale: Float32, offset: Float32) -> Float32:
    """(x - offset) / scale, and 0 where the scale is."""
    levels = x - offset
    levels *= np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return levels


# ---- a code for each group -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedGrid:
    """Points of a grid for the magnitudes of a group; a sign for each weight, or seven for each eight.

    With seven signs the number of minus signs is even. Where it should be odd, one weight gets the wrong sign, and
    the magnitude that is wanted for it is below zero. A wrong sign costs 4 s w |x| v, most often with the smallest
    value v there is: so it goes to the weight with the smallest w |x|.
    """

    type_name: str
    even_signs: bool
    chunk: int = 1 << 15

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """See `Codebook`."""
        grid = load_grid(self.type_name)
        negative = x < 0
        if self.even_signs:
            negative ^= _wrong_signs(x, weights)
        g = grid.values.shape[1]
        groups = _Groups(grid, _groups(np.where(negative, -x, x), g), _groups(weights, g))
        return _RoundToSignedGrid(groups, negative)


@dataclass(frozen=True)
class _RoundToSignedGrid:
    groups: "_Groups"  # of magnitudes
    negative: Mask  # (size, n_sub, n_blocks)

    def codes(self, scale: Float32, offset: Float32) -> Indices:
        return _of_sub_blocks(self.groups.nearest(scale)[:, None], self.negative.shape)

    def values(self, scale: Float32, offset: Float32) -> Float32:
        values = self.groups.grid.values[self.groups.nearest(scale)]
        magnitudes = _of_sub_blocks(values, self.negative.shape)
        return np.where(self.negative, -magnitudes, magnitudes)


def _wrong_signs(x: Float32, weights: Float32) -> Mask:
    """Choose one weight of each eight with an odd number below zero: (size, n_sub, n_blocks)."""
    eights = x.reshape(len(x) // 8, 8, *x.shape[1:])
    odd = (eights < 0).sum(axis=1, keepdims=True) % 2 == 1
    costs = (weights * np.abs(x)).reshape(eights.shape)
    cheapest = costs.argmin(axis=1)[:, None] == np.arange(8).reshape(8, 1, 1)
    return np.asarray(cheapest & odd).reshape(x.shape)


@dataclass(frozen=True)
class ShiftedGrid:
    """Points of a grid with signs, all shifted up or down by an eighth; code = point + n_points if down.

    shared  whether all groups of a sub-block have one shift
    """

    type_name: str
    shared: bool
    chunk: int = 1 << 15

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """See `Codebook`."""
        grid = load_grid(self.type_name)
        g = grid.values.shape[1]
        return _RoundToShiftedGrid(_Groups(grid, _groups(x, g), _groups(weights, g)), x.shape, self.shared)


@dataclass(frozen=True)
class _RoundToShiftedGrid:
    groups: "_Groups"
    shape: tuple[int, ...]
    shared: bool

    def codes(self, scale: Float32, offset: Float32) -> Indices:
        points, down = self._nearest(scale)
        return _of_sub_blocks((points + down * len(self.groups.grid.values))[:, None], self.shape)

    def values(self, scale: Float32, offset: Float32) -> Float32:
        points, down = self._nearest(scale)
        values = self.groups.grid.values[points] + np.where(down, -DELTA, DELTA)[:, None]
        return _of_sub_blocks(values, self.shape)

    def _nearest(self, scale: Float32) -> tuple[Indices, Mask]:
        """Choose points, and whether to shift them down: (n_groups,) both."""
        up, down = (self.groups.nearest(scale, shift) for shift in (DELTA, -DELTA))
        errors_up, errors_down = (
            self.groups.errors(scale, points, shift) for points, shift in ((up, DELTA), (down, -DELTA))
        )
        is_down = errors_down < errors_up
        if self.shared:
            of_all = (sum_in_order(errors.reshape(-1, scale.size)) for errors in (errors_down, errors_up))
            is_down = np.tile(np.less(*of_all), len(is_down) // scale.size)
        return np.where(is_down, down, up), is_down


@dataclass(frozen=True)
class _Groups:
    """Groups of weights, and the grid whose points they become. Scales are those of sub-blocks (n_sub, n_blocks)."""

    grid: Grid
    x: Float32  # (n_groups, g)
    weights: Float32  # (n_groups, g) what an error counts

    def nearest(self, scale: Float32, shift: np.float32 = NO_SHIFT) -> Indices:
        """Choose points (n_groups,), whose values are shifted.

        The nearest level for each weight is best; where these are no point, the best of those near them is taken:
        of all there are, another one would be better in one of a thousand groups.
        """
        values = np.unique(self.grid.values)
        middles = (values[1:] + values[:-1]) / np.float32(2)
        steps = _for_groups(scale, len(self.x))
        exact = self.x * reciprocal(steps)[:, None] - shift
        levels = np.searchsorted(middles, exact, side="right").astype(np.int32)  # halfway, the upper one
        combinations = self.grid.combinations(levels[..., None])[:, 0]
        points = self.grid.point[combinations]
        off = np.flatnonzero(points < 0)
        if len(off):
            shifts = np.full(len(off), shift)
            near = self.grid.best_near(
                combinations[off], self.grid.values, self.x[off], self.weights[off], steps[off], shifts
            )
            points[off] = near
        return points

    def errors(self, scale: Float32, points: Indices, shift: np.float32) -> Float32:
        """Sum up w (scale * value - x)²: (n_groups,)."""
        values = self.grid.values[points] + shift
        difference = _for_groups(scale, len(self.x))[:, None] * values - self.x
        return sum_last(self.weights * difference * difference)


def _groups(values: Float32, g: int) -> Float32:
    """One group a row: (size, n_sub, n_blocks) -> (size / g * n_sub * n_blocks, g)."""
    size, *others = values.shape
    return np.ascontiguousarray(np.moveaxis(values.reshape(size // g, g, *others), 1, -1)).reshape(-1, g)


def _for_groups(scale: Float32, n_groups: int) -> Float32:
    """Repeat the scales of sub-blocks for their groups: (n_sub, n_blocks) -> (n_groups,)."""
    return np.tile(scale.reshape(-1), n_groups // scale.size)


def _of_sub_blocks(groups: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo `_groups`: (n_groups, k) -> (k groups in a sub-block, n_sub, n_blocks); shape is that of the weights."""
    _, *others = shape
    k = groups.shape[1]
    columns = np.moveaxis(groups.reshape(-1, *others, k), -1, 1)
    return columns.reshape(-1, *others)
