"""What the codes of a format stand for, and which code is best for a weight once the scale is known.

With scale and offset fixed, a weight is `scale * value + offset`, and the choice of the value is a question
with an exact answer: the nearest level, where every weight has a code of its own; where a code stands for
4 or 8 weights, the point of the grid with the smallest weighted error, found by asking all of them.

A sub-block shares scale and offset. Arrays are (size, n_sub, n_blocks): weight i of sub-block s of block b.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phicourse.quantize.blocks import Float32, UInt8
from phicourse.quantize.grids import Indices, load_grid

DELTA = np.float32(0.125)


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

    With values v of a point, the error of a group is Σ w (s v - |x|)² = s² Σ w v² - 2 s Σ w |x| v + Σ w x²:
    two matrix products give both sums for all groups and points, and then every scale s is cheap to try.
    With seven signs the number of minus signs is even. Where it should be odd, one weight gets the wrong sign,
    which costs 4 s w |x| v; the smallest of these in a group is a third sum for each of its points.
    """

    type_name: str
    even_signs: bool
    chunk: int = 1 << 13

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """See `Codebook`."""
        points = load_grid(self.type_name).values  # (n_points, g)
        g = points.shape[1]
        groups, of_groups = _groups(x, g), _groups(weights, g)
        costs = of_groups * np.abs(groups)  # (n_groups, g)
        products, squares = costs @ points.T, of_groups @ np.square(points).T  # (n_groups, n_points)
        odd = _odd_eights(groups, x.shape) if self.even_signs else np.empty((8 // g, 0), np.intp)
        flipped = products[odd.reshape(-1)] - 2 * _cheapest_flips(costs[odd.reshape(-1)], points)
        return _RoundToSignedGrid(points, groups, costs, squares, 2 * products, odd, 2 * flipped, x.shape)


@dataclass(frozen=True)
class _RoundToSignedGrid:
    points: Float32  # (n_points, g)
    x: Float32  # (n_groups, g)
    costs: Float32  # (n_groups, g) w |x|
    squares: Float32  # (n_groups, n_points) Σ w v²
    products: Float32  # (n_groups, n_points) twice Σ w |x| v
    odd: Indices  # (8 / g, n_odd) groups of the eights in which one sign must be wrong
    flipped: Float32  # (8 / g * n_odd, n_points) `products` of these with the wrong sign among them
    shape: tuple[int, ...]

    def codes(self, scale: Float32, offset: Float32) -> Indices:
        return _of_sub_blocks(self._nearest(scale)[0][:, None], self.shape)

    def values(self, scale: Float32, offset: Float32) -> Float32:
        points, wrong = self._nearest(scale)
        values = np.where(self.x < 0, -self.points[points], self.points[points])
        cheapest = (self.costs[wrong] * self.points[points[wrong]]).argmin(axis=1)
        values[wrong, cheapest] *= -1
        return _of_sub_blocks(values, self.shape)

    def _nearest(self, scale: Float32) -> tuple[Indices, Indices]:
        """Choose points (n_groups,), and the groups that get the wrong sign (n_odd,)."""
        steps = _for_groups(scale, len(self.x))[:, None]
        points, errors = _smallest(self.squares * steps - self.products)
        odd = self.odd.reshape(-1)
        if not len(odd):
            return points, odd
        with_flip, errors_with_flip = _smallest(self.squares[odd] * steps[odd] - self.flipped)
        extra = (errors_with_flip - errors[odd]).reshape(self.odd.shape)
        wrong = np.take_along_axis(self.odd, extra.argmin(axis=0)[None], axis=0)[0]
        points[odd] = np.where(np.isin(odd, wrong), with_flip, points[odd])
        return points, wrong


def _smallest(errors: Float32) -> tuple[Indices, Float32]:
    """Find the point with the smallest error: (n_groups, n_points) -> (n_groups,) twice."""
    found = errors.argmin(axis=1)
    return found, np.take_along_axis(errors, found[:, None], axis=1)[:, 0]


def _odd_eights(groups: Float32, shape: tuple[int, ...]) -> Indices:
    """Find the eights with an odd number of weights below zero: (n_groups, g) -> (8 / g, n_odd) groups."""
    n_in_eight = 8 // groups.shape[1]
    negative = (groups < 0).sum(axis=1).reshape(shape[0] // 8, n_in_eight, -1)
    numbers = np.arange(len(groups)).reshape(negative.shape)
    odd = negative.sum(axis=1) % 2 == 1  # (eights in a sub-block, n_sub * n_blocks)
    return np.asarray(numbers.swapaxes(0, 1)[:, odd])


def _cheapest_flips(costs: Float32, points: Float32) -> Float32:
    """Find the smallest w |x| v of each group and point: (n_groups, g), (n_points, g) -> (n_groups, n_points)."""
    smallest = costs[:, :1] * points[:, 0]
    for cost, values in zip(costs.T[1:], points.T[1:], strict=True):
        np.minimum(smallest, cost[:, None] * values, out=smallest)
    return smallest


@dataclass(frozen=True)
class ShiftedGrid:
    """Points of a grid with signs, all shifted up or down by an eighth; code = point + n_points if down.

    shared  whether all groups of a sub-block have one shift
    """

    type_name: str
    shared: bool
    chunk: int = 1 << 12

    def of(self, x: Float32, weights: Float32) -> Rounding:
        """See `Codebook`."""
        points = load_grid(self.type_name).values
        both = np.concatenate([points + DELTA, points - DELTA])  # (2 n_points, g)
        groups, of_groups = _groups(x, points.shape[1]), _groups(weights, points.shape[1])
        products, squares = (of_groups * groups) @ both.T, of_groups @ np.square(both).T
        return _RoundToShiftedGrid(both, 2 * products, squares, x.shape, self.shared)


@dataclass(frozen=True)
class _RoundToShiftedGrid:
    points: Float32  # (2 n_points, g)
    products: Float32  # (n_groups, 2 n_points) twice Σ w x v
    squares: Float32  # (n_groups, 2 n_points) Σ w v²
    shape: tuple[int, ...]
    shared: bool

    def codes(self, scale: Float32, offset: Float32) -> Indices:
        return _of_sub_blocks(self._nearest(scale)[:, None], self.shape)

    def values(self, scale: Float32, offset: Float32) -> Float32:
        return _of_sub_blocks(self.points[self._nearest(scale)], self.shape)

    def _nearest(self, scale: Float32) -> Indices:
        """Choose points and shifts (n_groups,); these formats have no other offset."""
        steps = _for_groups(scale, len(self.products))
        errors = (self.squares * steps[:, None] - self.products).reshape(len(steps), 2, -1)
        found = errors.argmin(axis=2)  # (n_groups, 2)
        smallest = np.take_along_axis(errors, found[..., None], axis=2)[..., 0] * steps[:, None]
        if self.shared:
            of_groups = smallest.reshape(-1, scale.size, 2)
            smallest = np.broadcast_to(of_groups.sum(axis=0), of_groups.shape).reshape(-1, 2)
        down = smallest.argmin(axis=1)
        return np.asarray(found[np.arange(len(down)), down] + down * errors.shape[2])


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
