"""IQ1_S and IQ1_M: 1.5625 and 1.75 bits a weight. Each weight is -1, 0 or 1, all of them shifted by an eighth.

The grid has 2,048 of the 6,561 combinations that 8 such weights can form. With only three values the search
need not try scales: sort the weights of a sub-block; then the best -1s are the first of them, the 1s the
last, and all ways to cut can be tried, each with its own best scale, both ways of shifting.
Source: ggml `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl`; bytes equal to ggml 0.25.3 (IQ1_M sums up
otherwise in older releases). Weights that are equal keep their order, as C's `qsort` does it in glibc.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phicourse.errors import QuantizeError
from phicourse.quantize.blocks import Blocks, Float32, UInt8, join_rows, pack, split_rows, to_columns
from phicourse.quantize.error_weights import error_weights
from phicourse.quantize.grids import Grid, Indices, load_grid
from phicourse.quantize.rounding import nearest_int, quiet, sum_in_order

SUPER_BLOCK = 256
DELTA = np.float32(0.125)


class Cut(NamedTuple):
    """How sorted weights are cut, for each sub-block."""

    scale: Float32  # (count,) negative where -1 and 1 change places
    first: Indices  # (count,) how many weights are -1
    second: Indices  # (count,) how many are -1 or 0
    shifts: Indices  # (count,) which pattern of shifts, in the order in which they are tried; -1: no cut


# the cut (first, second) -> Σ w x value and Σ w value² for each pattern of shifts
Trials = Callable[[int, int], Iterator[tuple[Float32, Float32]]]


class Fit(NamedTuple):
    """What the search finds for each sub-block."""

    scale: Float32  # (count,)
    points: Indices  # (n_groups, count) grid indices
    shifts: Indices  # (count,) the pattern of shifts


@quiet
def quantize_iq1_s(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ1_S: 11-bit index for each 8, scale and shift for each 32; 1.5625 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; this type needs it
    returns     (..., n / 256) blocks: d float16, qs (32,) uint8, qh (8,) uint16
    raises      QuantizeError where 256 does not divide n, or the importance is missing or does not fit
    """
    blocks = split_rows(x, SUPER_BLOCK, "IQ1_S")  # (..., n_blocks, 256)
    if importance is None:
        raise QuantizeError("IQ1_S needs an importance matrix: without it, nothing sensible remains")
    columns = to_columns(blocks.reshape(-1, 32))  # (32, count)
    weights = to_columns(error_weights(blocks, importance, 2, "IQ1_S").reshape(-1, 32))
    fit = _fit(columns, weights, 1e-12, n_shifts=1)

    scales = fit.scale.reshape(*blocks.shape[:-1], 8)
    d, codes = _three_bit_codes(scales)
    points = fit.points.T.reshape(*d.shape, 8, 4)
    high = np.bitwise_or.reduce(points >> 8 << np.array([0, 3, 6, 9]), axis=-1)
    minus = fit.shifts.reshape(scales.shape) * (d != 0)[..., None]
    qs = points.astype(np.uint8).reshape(*d.shape, 32)
    return pack("IQ1_S", d=d * np.float32(1.125), qs=qs, qh=high | codes << 12 | minus << 15)


@quiet
def quantize_iq1_m(x: Float32, importance: ArrayLike | None = None) -> Blocks:
    """Quantize rows to IQ1_M: index and shift for each 8, a scale for each 16; 1.75 bits per weight.

    x           (..., n) float32, n a multiple of 256, finite
    importance  (n,) float32, how much each column counts; None: large weights count more
    returns     (..., n / 256) blocks: qs (32,), qh (16,), scales (8,) uint8
    raises      QuantizeError where 256 does not divide n, or the importance does not fit
    """
    blocks = split_rows(x, SUPER_BLOCK, "IQ1_M")  # (..., n_blocks, 256)
    counts = blocks * blocks if importance is None else error_weights(blocks, importance, 2, "IQ1_M")
    columns, weights = to_columns(blocks.reshape(-1, 16)), to_columns(counts.reshape(-1, 16))
    fit = _fit(columns, weights, 1e-7, n_shifts=2)

    scales = fit.scale.reshape(*blocks.shape[:-1], 16)
    d, codes = _three_bit_codes(scales)
    points = fit.points.T.reshape(*d.shape, 16, 2)
    minus = np.stack([fit.shifts >> 1, fit.shifts & 1], axis=-1).reshape(points.shape)
    minus = minus * (d != 0)[..., None, None]
    high = (points >> 8 | minus << 3) << np.array([0, 4])
    refitted = np.where(d != 0, _refit(blocks, counts, fit, codes, d), np.float32(0))
    return pack(
        "IQ1_M",
        qs=points.astype(np.uint8).reshape(*d.shape, 32),
        qh=np.bitwise_or.reduce(high, axis=-1),
        scales=pack_scales((refitted * np.float32(1.1125)).astype("<f2"), codes),
    )


def dequantize_iq1_s(blocks: Blocks) -> Float32:
    """Weight = d (2 scale + 1) * (point ± 1/8): (..., n_blocks) IQ1_S -> (..., n) float32."""
    words = blocks["qh"].astype(np.intp)  # (..., n_blocks, 8)
    step = blocks["d"].astype(np.float32)[..., None] * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    high = (words[..., None] >> np.array([0, 3, 6, 9]) & 7).reshape(*blocks.shape, 32)
    shift = np.where(words >> 15, -DELTA, DELTA)[..., None]  # (..., 8, 1)
    points = load_grid("IQ1_S").values[blocks["qs"] | high << 8].reshape(*blocks.shape, 8, 32)
    return join_rows((step[..., None] * (points + shift)).reshape(*blocks.shape, SUPER_BLOCK))


def dequantize_iq1_m(blocks: Blocks) -> Float32:
    """Weight = d (2 scale + 1) * (point ± 1/8): (..., n_blocks) IQ1_M -> (..., n) float32."""
    d, codes = unpack_scales(blocks["scales"])
    step = d.astype(np.float32)[..., None] * (2 * codes + 1).astype(np.float32)  # (..., n_blocks, 16)
    four = (blocks["qh"][..., None] >> np.array([0, 4], np.uint8) & 15).reshape(*blocks.shape, 32)
    shift = np.where(four >> 3, -DELTA, DELTA)[..., None]  # (..., 32, 1)
    points = load_grid("IQ1_S").values[blocks["qs"] | (four & 7).astype(np.intp) << 8]  # (..., 32, 8)
    values = np.repeat(step, 2, axis=-1)[..., None] * (points + shift)
    return join_rows(values.reshape(*blocks.shape, SUPER_BLOCK))


# ---- the search ------------------------------------------------------------------------------------------


def _fit(x: Float32, weights: Float32, smallest: float, n_shifts: int) -> Fit:
    """Find scale, points and shifts for each sub-block.

    x, weights  (size, count) float32
    smallest    a sub-block without a magnitude of at least that counts as zero
    n_shifts    whether the sub-block has one shift, or each half has its own
    returns     zeros for all where a sub-block is zero, or has no cut
    """
    order = x.argsort(axis=0, kind="stable")  # (size, count)
    best = (_cut_with_one_shift if n_shifts == 1 else _cut_with_two_shifts)(x, weights, order)
    rank = order.argsort(axis=0)
    levels = (rank >= best.first).astype(np.int32) + (rank >= best.second)
    turned = best.scale < 0
    levels = np.where(turned, 2 - levels, levels)
    shifts = np.where(turned, 2**n_shifts - 1 - best.shifts, best.shifts)

    scale, points = _onto_grid(x, weights, levels, np.abs(best.scale), shifts)
    empty = (np.abs(x).max(axis=0) < np.float32(smallest)) | (best.shifts < 0)
    return Fit(np.where(empty, np.float32(0), scale), np.where(empty, 0, points), np.where(empty, 0, shifts))


def _onto_grid(
    x: Float32, weights: Float32, levels: NDArray[np.int32], scale: Float32, shifts: Indices
) -> tuple[Float32, Indices]:
    """Replace levels that are not on the grid by near ones, and fit the scale (count,) to those.

    x, weights, levels  (size, count)
    returns             the scale (count,), points (n_groups, count)
    """
    grid = load_grid("IQ1_S")
    groups = levels.reshape(len(x) // 8, 8, x.shape[1])  # (n_groups, 8, count)
    shift = _shift_of_groups(shifts, len(groups))
    combinations = grid.combinations(groups)
    points = grid.point[combinations]
    off_grid = points < 0
    group, column = np.nonzero(off_grid)
    if len(group):
        near_x, near_weights = (v.reshape(groups.shape)[group, :, column] for v in (x, weights))
        points[group, column] = grid.best_near(
            combinations[group, column],
            grid.values,
            near_x,
            near_weights,
            scale[column],
            shift[group, column],
        )
    xl, ll = _projections(x, weights, _values_of(grid, points, shift))
    return np.where(off_grid.any(axis=0) & (xl > 0) & (ll > 0), xl / ll, scale), points


def _cut_with_one_shift(x: Float32, weights: Float32, order: Indices) -> Cut:
    """Try all cuts, with the shift up and the shift down for the whole sub-block (patterns 0 and 1)."""
    sorted_x, sorted_w = (np.take_along_axis(v, order, axis=0) for v in (weights * x, weights))
    sum_x, sum_w = _sums_so_far(sorted_x), _sums_so_far(sorted_w)

    def trials(i: int, j: int) -> Iterator[tuple[Float32, Float32]]:
        x_parts = (sum_x[i] - sum_x[0], sum_x[j] - sum_x[i], sum_x[-1] - sum_x[j])
        w_parts = (sum_w[i] - sum_w[0], sum_w[j] - sum_w[i], sum_w[-1] - sum_w[j])
        for shift in (DELTA, -DELTA):
            low, middle, high = (np.float32(level) + shift for level in (-1, 0, 1))
            xl = x_parts[0] * low + x_parts[1] * middle + x_parts[2] * high
            ll = w_parts[0] * low * low + w_parts[1] * middle * middle + w_parts[2] * high * high
            yield xl, ll

    return _best_cut(len(x), x.shape[1], trials)


def _cut_with_two_shifts(x: Float32, weights: Float32, order: Indices) -> Cut:
    """Try all cuts, with four patterns of shifts for the halves of the sub-block: ++, +-, -+, --.

    The three levels of a shift are one apart. So, with T the sum of w x over a half, Σ w x value is T times
    the high level, less one sum for all weights that are not 1, and one for those that are -1.
    """
    half = len(x) // 2
    sums = []
    for in_half in (order < half, order >= half):
        sorted_x, sorted_w = (
            np.where(in_half, np.take_along_axis(v, order, axis=0), np.float32(0))
            for v in (weights * x, weights)
        )
        sums.append((_sums_so_far(sorted_x), _sums_so_far(sorted_w)))

    def trials(i: int, j: int) -> Iterator[tuple[Float32, Float32]]:
        of_halves = []
        for sum_x, sum_w in sums:
            both = sum_x[i] + sum_x[j]
            for shift in (DELTA, -DELTA):
                low, middle, high = (np.float32(level) + shift for level in (-1, 0, 1))
                xl = sum_x[-1] * high - both
                ll = sum_w[-1] * high * high + sum_w[i] * (low * low - middle * middle)
                of_halves.append((xl, ll + sum_w[j] * (middle * middle - high * high)))
        for first in of_halves[:2]:
            for second in of_halves[2:]:
                yield first[0] + second[0], first[1] + second[1]

    return _best_cut(len(x), x.shape[1], trials)


def _best_cut(size: int, count: int, trials: Trials) -> Cut:
    """Go through all cuts; keep the one with the largest gain, the first of equals."""
    scale, gain = np.zeros(count, np.float32), np.full(count, np.finfo(np.float32).min)
    first, second = np.zeros(count, np.intp), np.zeros(count, np.intp)
    shifts = np.full(count, -1)
    for i in range(size + 1):
        for j in range(i, size + 1):
            for pattern, (xl, ll) in enumerate(trials(i, j)):
                better = (ll > 0) & (xl * xl > gain * ll)
                if better.any():
                    scale = np.where(better, xl / ll, scale)
                    gain = np.where(better, scale * xl, gain)
                    first[better], second[better], shifts[better] = i, j, pattern
    return Cut(scale, first, second, shifts)


def _sums_so_far(terms: Float32) -> Float32:
    """Sum up the first 0, 1, 2, … rows: (size, count) -> (size + 1, count)."""
    return np.concatenate([np.zeros_like(terms[:1]), np.add.accumulate(terms, axis=0)])


def _projections(x: Float32, weights: Float32, values: Float32) -> tuple[Float32, Float32]:
    """Sum up w value x and w value² over each column: two arrays (count,)."""
    weighted = weights * values
    return sum_in_order(weighted * x), sum_in_order(weighted * values)


def _shift_of_groups(shifts: Indices, n_groups: int) -> Float32:
    """Turn patterns into shifts: (count,) -> (n_groups, count). Two groups have one each, four a common one."""
    patterns = np.stack([shifts >> 1, shifts & 1]) if n_groups == 2 else np.stack([shifts] * n_groups)
    return np.where(patterns & 1, -DELTA, DELTA)


def _values_of(grid: Grid, points: Indices, shift: Float32) -> Float32:
    """Look up what points stand for: (n_groups, count) -> (8 n_groups, count)."""
    values = grid.values[points] + shift[..., None]  # (n_groups, count, 8)
    return np.moveaxis(values, -1, 1).reshape(8 * len(points), points.shape[1])


def _refit(blocks: Float32, counts: Float32, fit: Fit, codes: Indices, d: Float32) -> Float32:
    """Find the scale that fits whole blocks best, once the codes of their scales are known: (..., n_blocks)."""
    values = _values_of(load_grid("IQ1_S"), fit.points, _shift_of_groups(fit.shifts, 2))  # (16, count)
    values = (values.T * (2 * codes + 1).astype(np.float32).reshape(-1, 1)).reshape(-1, SUPER_BLOCK)
    xl, ll = _projections(to_columns(blocks), to_columns(counts), to_columns(values))
    return np.where(ll > 0, xl / ll, d.ravel()).reshape(d.shape)


# ---- scales and bits -------------------------------------------------------------------------------------


def _three_bit_codes(scales: Float32) -> tuple[Float32, Indices]:
    """Quantize the scales of a block: code l stands for 2 l + 1, the largest scale for 15.

    scales   (..., n_blocks, sub-blocks) float32
    returns  their scale (..., n_blocks) float32, codes 0 … 7 (..., n_blocks, sub-blocks)
    """
    d = scales.max(axis=-1) / np.float32(15)
    inverse = (np.float32(1) / d)[..., None]
    codes = np.clip(nearest_int(np.float32(0.5) * (inverse * scales - np.float32(1))), 0, 7)
    return d, np.where(d[..., None] != 0, codes, 0).astype(np.intp)


def pack_scales(d: Blocks, codes: Indices) -> UInt8:
    """Four words with four 3-bit codes each, and above them 4 bits of the float16: -> (..., 8) uint8.

    d, codes  (...) float16 and (..., 16)
    """
    threes = codes.reshape(*d.shape, 4, 4) << np.array([0, 3, 6, 9])
    bits = d.view("<u2").astype(np.intp)[..., None] >> np.array([0, 4, 8, 12]) & 15
    words = np.bitwise_or.reduce(threes, axis=-1) | bits << 12
    return np.asarray(words.astype("<u2").view(np.uint8))


def unpack_scales(packed: UInt8) -> tuple[Blocks, Indices]:
    """Undo `pack_scales`: (..., 8) -> (...) float16 and (..., 16)."""
    words = np.ascontiguousarray(packed).view("<u2").astype(np.intp)  # (..., 4)
    bits = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12]), axis=-1)
    codes = words[..., None] >> np.array([0, 3, 6, 9]) & 7
    return bits.astype("<u2").view("<f2"), codes.reshape(*words.shape[:-1], 16)
