"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: signs apart, and the magnitudes of 4 or 8 weights as one grid index.

2 bits a weight leave 3 levels at most, if each weight is coded alone. Coded eight at a time, the bits go to
the combinations that do occur, and the other ones take a neighbour: a lattice, or vector, quantizer.

The search tries several scales for a sub-block. With each, the magnitudes are rounded to levels; where
those are no point of the grid, the neighbour with the smallest weighted error takes their place. Least
squares gives the scale that fits the points best; the largest gain wins. Then one more round with that
scale, for the groups that were off the grid, or for all. A level l stands for 2 l + 1.
Source: ggml `quantize_row_iq2_xxs_impl` and its four sisters; bytes equal to ggml 0.25.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.errors import QuantizeError
from phicourse.quantize.blocks import Blocks, Float32, UInt8, join_rows, pack, split_rows, to_columns
from phicourse.quantize.error_weights import error_weights
from phicourse.quantize.grids import Grid, Indices, load_grid
from phicourse.quantize.rounding import nearest_int, quiet, sum_in_order, sum_last
from phicourse.quantize.scale_search import Mask, positive_search

SUPER_BLOCK = 256


@dataclass(frozen=True)
class Lattice:
    """What the five types do differently.

    size          weights with a scale of their own
    mean_squares  how many mean squares of the block `error_weights` adds
    even_signs    whether each 8 weights store 7 signs: the number of minus signs is even then
    smallest      a sub-block whose largest magnitude is below counts as zero
    searched      whether a search without the grid says where to start, or the largest magnitude does
    trials, step  trial i starts from a largest level 2 n_levels - 1 + i * step, -trials <= i <= trials
    last_round    which groups are rounded again with the best scale: those off the grid, all where at least
                  one is off the grid, or always all
    """

    name: str
    size: int
    mean_squares: int
    even_signs: bool
    smallest: float
    searched: bool
    trials: int
    step: float
    last_round: Literal["off grid", "all", "always"]


IQ2_XXS = Lattice("IQ2_XXS", 32, 1, True, 1e-15, True, 6, 0.1, "always")
IQ2_XS = Lattice("IQ2_XS", 16, 1, True, 1e-15, False, 9, 0.1, "off grid")
IQ2_S = Lattice("IQ2_S", 16, 2, False, 1e-8, False, 9, 0.1, "off grid")
IQ3_XXS = Lattice("IQ3_XXS", 32, 2, True, 1e-8, False, 15, 0.2, "off grid")
IQ3_S = Lattice("IQ3_S", 32, 2, False, 1e-45, False, 9, 0.2, "all")


class Found(NamedTuple):
    """What the search finds for each block."""

    scales: Float32  # (..., n_blocks, sub-blocks)
    points: Indices  # (..., n_blocks, groups) grid indices
    signs: UInt8  # (..., n_blocks, 32) a byte for each 8 weights, bit j set where weight j is negative
    empty: Mask  # (..., n_blocks, sub-blocks) nothing in it: points, signs and scale are 0


@quiet
def quantize_iq2_xxs(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ2_XXS: 8-bit index and 7 signs for each 8, a scale for 32; 2.0625 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; this type needs it
    returns     (..., n / 256) blocks: d float16, qs (32,) uint16
    raises      QuantizeError where 256 does not divide n, or the importance is missing or does not fit
    """
    found = _search(x, importance, IQ2_XXS)
    d, scale_codes = _four_bit_codes(found.scales)
    indices = found.points.astype(np.uint8).view("<u4")  # (..., n_blocks, 8): four in a word
    words = np.stack([indices, pack_signs_and_scale(found.signs, scale_codes)], axis=-1)
    qs = as_words(words.reshape(*d.shape, 16), "<u2")
    return _clear_empty(pack("IQ2_XXS", d=d, qs=qs), d)


@quiet
def quantize_iq2_xs(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ2_XS: 9-bit index and 7 signs for each 8, a scale for 16; 2.3125 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; this type needs it
    returns     (..., n / 256) blocks: d float16, qs (32,) uint16, scales (8,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance is missing or does not fit
    """
    found = _search(x, importance, IQ2_XS)
    d, scale_codes = _four_bit_codes(found.scales)
    words = found.points.astype(np.uint16) | found.signs.astype(np.uint16) << np.uint16(9)
    return _clear_empty(pack("IQ2_XS", d=d, qs=words, scales=pack_neighbours(scale_codes)), d)


@quiet
def quantize_iq2_s(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ2_S: 10-bit index and 8 signs for each 8, a scale for 16; 2.5625 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: d float16, qs (64,), qh (8,), scales (8,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    found = _search(x, importance, IQ2_S)
    d, scale_codes = _four_bit_codes(found.scales)
    low = np.concatenate([found.points.astype(np.uint8), found.signs], axis=-1)
    high = (found.points >> 8).astype(np.uint8).reshape(*d.shape, 8, 4) << np.array([0, 2, 4, 6], np.uint8)
    qh = np.bitwise_or.reduce(high, axis=-1)
    return pack("IQ2_S", d=d * np.float32(0.9875), qs=low, qh=qh, scales=pack_neighbours(scale_codes))


@quiet
def quantize_iq3_xxs(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ3_XXS: 8-bit index for each 4, 7 signs for 8, a scale for 32; 3.0625 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: d float16, qs (96,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    found = _search(x, importance, IQ3_XXS)
    d, scale_codes = _four_bit_codes(found.scales)
    words = as_words(pack_signs_and_scale(found.signs, scale_codes), "u1")
    qs = np.concatenate([found.points.astype(np.uint8), words], axis=-1)
    return _clear_empty(pack("IQ3_XXS", d=d * np.float32(1.0125), qs=qs), d)


@quiet
def quantize_iq3_s(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ3_S: 9-bit index for each 4, 8 signs for 8, a scale for 32; 3.4375 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: d float16, qs (64,), qh (8,), signs (32,), scales (4,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit

    Where a sub-block is all zero, those after it are stored one place too early, and are read wrongly: a
    mistake in ggml, kept here for the same bytes. Ninth bits and scales stay in their place.
    """
    found = _search(x, importance, IQ3_S)
    d, scale_codes = _four_bit_codes(found.scales)
    low = found.points.astype(np.uint8).reshape(*d.shape, 8, 8)
    high = (found.points >> 8).astype(np.uint8).reshape(*d.shape, 8, 8)
    signs = found.signs.reshape(*d.shape, 8, 4)
    order = np.argsort(found.empty, axis=-1, kind="stable")[..., None]  # empty sub-blocks go to the end
    return pack(
        "IQ3_S",
        d=d * np.float32(1.033),
        qs=np.take_along_axis(low, order, axis=-2).reshape(*d.shape, 64),
        qh=np.packbits(high, axis=-1, bitorder="little")[..., 0],
        signs=np.take_along_axis(signs, order, axis=-2).reshape(*d.shape, 32),
        scales=pack_neighbours(scale_codes),
    )


def dequantize_iq2_xxs(blocks: Blocks) -> Float32:
    """Weight = d (scale + 1/2) / 4 * point * sign: (..., n_blocks) IQ2_XXS -> (..., n) float32."""
    words = np.ascontiguousarray(blocks["qs"]).view("<u4").reshape(*blocks.shape, 8, 2)
    indices = np.ascontiguousarray(words[..., :1]).view(np.uint8).reshape(*blocks.shape, 32)
    signs, scales = unpack_signs_and_scale(words[..., 1])
    return _values(blocks, "IQ2_XXS", _half_steps(blocks, scales, 0.25), indices, signs)


def dequantize_iq2_xs(blocks: Blocks) -> Float32:
    """Weight = d (scale + 1/2) / 4 * point * sign: (..., n_blocks) IQ2_XS -> (..., n) float32."""
    signs = _with_even_sign((blocks["qs"] >> 9).astype(np.uint8))
    step = _half_steps(blocks, unpack_neighbours(blocks["scales"]), 0.25)
    return _values(blocks, "IQ2_XS", step, blocks["qs"] & 511, signs)


def dequantize_iq2_s(blocks: Blocks) -> Float32:
    """Weight = d (scale + 1/2) / 4 * point * sign: (..., n_blocks) IQ2_S -> (..., n) float32."""
    high = blocks["qh"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3  # (..., 8, 4)
    indices = blocks["qs"][..., :32] | high.reshape(*blocks.shape, 32).astype(np.uint16) << 8
    step = _half_steps(blocks, unpack_neighbours(blocks["scales"]), 0.25)
    return _values(blocks, "IQ2_S", step, indices, blocks["qs"][..., 32:])


def dequantize_iq3_xxs(blocks: Blocks) -> Float32:
    """Weight = d (scale + 1/2) / 2 * point * sign: (..., n_blocks) IQ3_XXS -> (..., n) float32."""
    words = np.ascontiguousarray(blocks["qs"][..., 64:]).view("<u4")  # (..., n_blocks, 8)
    signs, scales = unpack_signs_and_scale(words)
    return _values(blocks, "IQ3_XXS", _half_steps(blocks, scales, 0.5), blocks["qs"][..., :64], signs)


def dequantize_iq3_s(blocks: Blocks) -> Float32:
    """Weight = d (2 scale + 1) * point * sign: (..., n_blocks) IQ3_S -> (..., n) float32."""
    high = np.unpackbits(blocks["qh"], axis=-1, bitorder="little").astype(np.uint16)  # (..., 64)
    scales = unpack_neighbours(blocks["scales"]).astype(np.float32)
    step = blocks["d"].astype(np.float32)[..., None] * (np.float32(2) * scales + np.float32(1))
    return _values(blocks, "IQ3_S", step, blocks["qs"] | high << 8, blocks["signs"])


# ---- the search ------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """Sub-blocks, one a column."""

    x: Float32  # (size, count) magnitudes; one may be negative, see `_signs`
    weights: Float32  # (size, count) how much an error counts
    grid: Grid

    def groups(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut columns into the groups that share an index: (size, count) -> (n_groups, g, count)."""
        g = self.grid.levels.shape[1]
        return values.reshape(len(values) // g, g, values.shape[1])


def _search(x: Float32, importance: ArrayLike | None, type: Lattice) -> Found:
    """Find scales, grid points and signs for rows (..., n) float32."""
    blocks = split_rows(x, SUPER_BLOCK, type.name)  # (..., n_blocks, 256)
    weights = lattice_error_weights(blocks, importance, type)
    magnitudes, signs = _signs(blocks, weights, type.even_signs)
    of_type = _Columns(_columns(magnitudes, type), _columns(weights, type), load_grid(type.name))
    scale, points, empty = _search_columns(of_type, type)

    n_sub = SUPER_BLOCK // type.size
    shape = (*blocks.shape[:-1], n_sub)
    flipped = (scale < 0).reshape(shape)  # does not happen with weights that are as they should be
    all_signs = np.uint8(127 if type.even_signs else 255)
    signs = signs.reshape(*shape, type.size // 8)
    signs = np.where(flipped[..., None], signs ^ all_signs, signs)
    signs[empty.reshape(shape)] = 0
    return Found(
        np.abs(scale).reshape(shape),
        points.T.reshape(*blocks.shape[:-1], n_sub * len(points)),
        signs.reshape(*blocks.shape[:-1], 32),
        empty.reshape(shape),
    )


def _search_columns(columns: _Columns, type: Lattice) -> tuple[Float32, Indices, Mask]:
    """Find scale (count,), points (n_groups, count) and whether nothing is there (count,)."""
    largest = columns.x.max(axis=0)
    empty = largest < np.float32(type.smallest)
    n_levels = columns.grid.n_levels
    scale, start = largest / np.float32(2 * n_levels - 1), largest
    if type.searched:  # one level more is allowed here, and the grid is not asked
        scale = positive_search(columns.x, columns.weights, n_levels + 1).scale
        start = scale * np.float32(n_levels)
        empty |= start <= 0
    scale, points, off_grid = _try_scales(columns, scale, start, type)
    again = _in_last_round(off_grid, type) & (scale > 0)
    points = np.where(again, _nearest_points(columns, np.float32(1) / scale, scale)[0], points)
    xl, ll = _projections(columns, points)
    scale = np.where(again.any(axis=0) & (ll > 0), xl / ll, scale)
    return np.where(empty, np.float32(0), scale), np.where(empty, 0, points), empty


def _try_scales(
    columns: _Columns, scale: Float32, start: Float32, type: Lattice
) -> tuple[Float32, Indices, Mask]:
    """Try scales that put `start` (count,) a little below and above the highest level; keep the best.

    scale    (count,) what remains, with the lowest levels, where no trial gains anything
    returns  scale (count,), points (n_groups, count), and which of those are neighbours of what was wanted
    """
    top = np.float32(2 * columns.grid.n_levels - 1)  # what the highest level stands for
    gain = np.zeros_like(scale)
    points = np.full((len(columns.groups(columns.x)), len(start)), columns.grid.point[0])
    off_grid = np.full(points.shape, type.last_round == "all")
    for trial in range(-type.trials, type.trials + 1):
        inverse = (top + np.float32(trial) * np.float32(type.step)) / start
        tried, tried_off_grid = _nearest_points(columns, inverse, np.float32(1) / inverse)
        xl, ll = _projections(columns, tried)
        better = (ll > 0) & (xl * xl > gain * ll)
        scale = np.where(better, xl / ll, scale)
        gain = np.where(better, scale * xl, gain)
        points = np.where(better, tried, points)
        off_grid = np.where(better, tried_off_grid, off_grid)
    return scale, points, off_grid


def _in_last_round(off_grid: Mask, type: Lattice) -> Mask:
    """Choose the groups that are rounded once more: (n_groups, count)."""
    if type.last_round == "off grid":
        return off_grid
    if type.last_round == "all":
        return np.broadcast_to(off_grid.any(axis=0), off_grid.shape)
    return np.ones_like(off_grid)


def _nearest_points(columns: _Columns, inverse: Float32, scale: Float32) -> tuple[Indices, Mask]:
    """Round the magnitudes to grid points.

    inverse, scale  (count,) 1 / scale for rounding, and the scale for judging neighbours
    returns         points (n_groups, count), and where the nearest levels were not on the grid
    """
    grid = columns.grid
    levels = np.clip(
        nearest_int(np.float32(0.5) * (inverse * columns.x - np.float32(1))), 0, grid.n_levels - 1
    )
    combinations = grid.combinations(columns.groups(levels))
    points = grid.point[combinations]
    off_grid = points < 0
    group, column = np.nonzero(off_grid)
    if len(group):
        x = columns.groups(columns.x)[group, :, column]  # (n_off, g)
        roots = columns.groups(np.sqrt(columns.weights))[group, :, column]
        near = grid.best_near(combinations[group, column], _stands_for(grid), x, roots, scale[column])
        points[group, column] = near
    return points, off_grid


def _projections(columns: _Columns, points: Indices) -> tuple[Float32, Float32]:
    """Sum up w x value and w value² over each sub-block: two arrays (count,)."""
    values = _stands_for(columns.grid)[points]  # (n_groups, count, g)
    values = np.moveaxis(values, -1, 1).reshape(columns.x.shape)
    weights = columns.weights
    return sum_in_order(weights * columns.x * values), sum_in_order(weights * values * values)


def _stands_for(grid: Grid) -> Float32:
    """Return what the levels of the points stand for in the search, 1, 3, 5, …: (n_points, g)."""
    return (2 * grid.levels + 1).astype(np.float32)


def lattice_error_weights(blocks: Float32, importance: ArrayLike | None, type: Lattice) -> Float32:
    """How much an error in each weight counts: (..., n_blocks, 256)."""
    if importance is not None:
        return error_weights(blocks, importance, type.mean_squares, type.name)
    if type.name in ("IQ2_XXS", "IQ2_XS"):
        raise QuantizeError(f"{type.name} needs an importance matrix: without it, nothing sensible remains")
    if type.name == "IQ2_S":
        mean_square = np.float32(2) * sum_last(blocks * blocks) / np.float32(SUPER_BLOCK)
        return np.asarray(np.float32(0.25) * mean_square[..., None] + blocks * blocks)
    return blocks * blocks


def _signs(blocks: Float32, weights: Float32, even: bool) -> tuple[Float32, UInt8]:
    """Split weights into magnitudes (..., n_blocks, 256) and signs, a byte for each 8 (..., n_blocks, 32).

    With `even`, seven signs are stored and the eighth follows from them: the number of minus signs is
    even. Where it is odd, the weight whose error costs least takes the wrong sign; its magnitude is negative.
    """
    eights = blocks.reshape(*blocks.shape[:-1], 32, 8)
    negative = eights < 0
    if even:
        costs = weights.reshape(eights.shape) * eights * eights
        cheapest = np.arange(8) == costs.argmin(axis=-1)[..., None]
        negative ^= cheapest & (negative.sum(axis=-1) % 2 == 1)[..., None]
    magnitudes = np.where(negative, -eights, eights).reshape(blocks.shape)
    signs = np.packbits(negative, axis=-1, bitorder="little")[..., 0]
    return magnitudes, signs & np.uint8(127) if even else signs


def _columns(values: Float32, type: Lattice) -> Float32:
    """One sub-block a column: (..., n_blocks, 256) -> (size, count)."""
    return to_columns(values.reshape(-1, type.size))


# ---- scales and bits -------------------------------------------------------------------------------------


def _four_bit_codes(scales: Float32) -> tuple[Float32, UInt8]:
    """Quantize the scales of a block: code l stands for 2 l + 1, the largest scale for 31.

    scales   (..., n_blocks, sub-blocks) float32
    returns  their scale (..., n_blocks) float32, codes 0 … 15 (..., n_blocks, sub-blocks)
    """
    d = scales.max(axis=-1) / np.float32(31)
    inverse = (np.float32(1) / d)[..., None]
    codes = np.clip(nearest_int(np.float32(0.5) * (inverse * scales - np.float32(1))), 0, 15)
    return d, np.where(d[..., None] > 0, codes, 0).astype(np.uint8)


def _clear_empty(blocks: Blocks, d: Float32) -> Blocks:
    """Let blocks whose scale is zero, and not just too small for float16, be all zero bytes."""
    blocks[d == 0] = np.zeros((), blocks.dtype)
    return blocks


def pack_signs_and_scale(signs: UInt8, scale_codes: UInt8) -> NDArray[np.uint32]:
    """Four times 7 signs and a 4-bit scale in a word: (..., 32) and (..., 8) -> (..., 8)."""
    fours = signs.reshape(*signs.shape[:-1], 8, 4).astype(np.uint32) << np.array([0, 7, 14, 21], np.uint32)
    return np.asarray(np.bitwise_or.reduce(fours, axis=-1) | scale_codes.astype(np.uint32) << np.uint32(28))


def unpack_signs_and_scale(words: NDArray[np.uint32]) -> tuple[UInt8, UInt8]:
    """Undo `pack_signs_and_scale`: (..., 8) -> signs (..., 32), all eight of them, and scales (..., 8)."""
    sevens = (words[..., None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)).astype(np.uint8)
    return _with_even_sign(sevens.reshape(*words.shape[:-1], 32)), (words >> np.uint32(28)).astype(np.uint8)


def _with_even_sign(sevens: UInt8) -> UInt8:
    """Put the eighth sign above seven, such that the number of minus signs is even; any shape."""
    parity = np.unpackbits(sevens[..., None], axis=-1).sum(axis=-1, dtype=np.uint8) & np.uint8(1)
    return np.asarray(sevens | parity << np.uint8(7))


def as_words(words: NDArray[np.uint32], dtype: str) -> Blocks:
    """See 32-bit words as smaller numbers, the low part first: (..., k) -> (..., 2 k) or (..., 4 k)."""
    return np.ascontiguousarray(words.astype("<u4")).view(dtype)


def pack_neighbours(codes: UInt8) -> UInt8:
    """Two 4-bit numbers in a byte, the first lower: (..., 2 k) -> (..., k)."""
    return np.asarray(codes[..., ::2] | codes[..., 1::2] << 4)


def unpack_neighbours(packed: UInt8) -> UInt8:
    """Undo `pack_neighbours`: (..., k) -> (..., 2 k)."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _half_steps(blocks: Blocks, scales: UInt8, factor: float) -> Float32:
    """d * (scale + 1/2) * factor: (..., n_blocks) and (..., n_blocks, sub-blocks) -> the latter."""
    d = blocks["d"].astype(np.float32)[..., None]
    return np.asarray(d * (np.float32(0.5) + scales.astype(np.float32)) * np.float32(factor))


def _values(blocks: Blocks, type_name: str, step: Float32, indices: Blocks, signs: UInt8) -> Float32:
    """Look up the points, put scales and signs to them: -> (..., n) float32.

    step     (..., n_blocks, sub-blocks)
    indices  (..., n_blocks, groups)
    signs    (..., n_blocks, 32)
    """
    points = load_grid(type_name).values[indices]
    points = points.reshape(*step.shape, SUPER_BLOCK // step.shape[-1])  # (..., sub-blocks, size)
    negative = np.unpackbits(signs, axis=-1, bitorder="little").reshape(points.shape)
    values = step[..., None] * points
    return join_rows(np.where(negative, -values, values).reshape(*blocks.shape, SUPER_BLOCK))
