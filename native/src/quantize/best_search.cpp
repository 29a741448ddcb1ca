// A better choice of scales than llama.cpp's, in the same formats: `--search best`.
// From the blocks of the type's own quantizer on, scales are tried, and those kept that make both its own error
// and the plain squared error smaller. Lane: a block, for all formats; the order of the float operations is
// that of the NumPy version. To read, with the mathematics: phicourse/quantize/best_search.py
#include "best_search.hpp"
#include "small_float_scales.hpp"

namespace phi::PHI_ISA {
namespace {

// ---- how much errors count ------

static inline Floats sum_of_squares(const Floats *x, int n) {
    Floats sum{};
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

static inline Floats mean_of_block(const Format &format, const Columns &c) {
    const float factor = format.mean == Mean::of_block ? 1.0f : 2.0f;
    return factor * sum_of_squares(c.x, format.block()) / (float)format.block();
}

static inline void set_unweighted(const Format &format, Columns &c) {
    const Floats mean = mean_of_block(format, c);
    for (int first = 0; first < format.block(); first += format.size) {
        const Floats root = sqrt(sum_of_squares(c.x + first, format.size) / (float)format.size);
        for (int i = first; i < first + format.size; ++i) {
            switch (format.counts) {
            case Counts::equal: c.counts[i] = splat(1.0f); break;
            case Counts::magnitude: c.counts[i] = abs(c.x[i]); break;
            case Counts::square: c.counts[i] = c.x[i] * c.x[i]; break;
            case Counts::square_and_mean: c.counts[i] = 0.25f * mean + c.x[i] * c.x[i]; break;
            case Counts::magnitude_and_root: c.counts[i] = root + abs(c.x[i]); break;
            }
        }
    }
}

// c.counts has the importance.
static inline void set_weighted(const Format &format, Floats mean_of_row, Columns &c) {
    if (format.mean == Mean::none) return;
    const Floats mean = format.mean == Mean::of_row ? mean_of_row : mean_of_block(format, c);
    for (int i = 0; i < format.block(); ++i) c.counts[i] = c.counts[i] * sqrt(mean + c.x[i] * c.x[i]);
}

static inline void set_units(int n, Columns &c) {
    Floats sum{};
    for (int i = 0; i < n; ++i) sum += c.counts[i];
    c.counted = sum != 0.0f;
    const Floats unit = select(c.counted, (float)n / sum, Floats{});
    for (int i = 0; i < n; ++i) c.counts[i] = c.counts[i] * unit;
}

// ---- codebooks: what the codes of weights stand for ------------------------------------------

// Weights by themselves: the best code is that of the nearest level.
template <class Book> struct RoundedLevels {
    const Book &book;
    const Floats *x;
    Floats offset, inverse;

    Floats level(int i) const {
        if constexpr (Book::HAS_OFFSETS) return (x[i] - offset) * inverse;
        else return x[i] * inverse;
    }
    Floats value(int i) const { return book.value(level(i)); }
    Ints code(int i) const { return book.code(level(i)); }
};

// Whole numbers from first to last.
template <bool has_offsets> struct Range {
    static constexpr bool HAS_OFFSETS = has_offsets;
    static constexpr int TRIALS = 3; // side by side
    using Rounded = RoundedLevels<Range>;
    const Floats *x;
    float first, last;

    Range(const Format &format, const Columns &c, Floats) : x(c.x), first(format.first), last(format.last) {}
    Floats scale(Floats code) const { return code; }
    Rounded round(int, Floats step, Floats offset) const { return {*this, x, offset, reciprocal(step)}; }
    Floats value(Floats level) const { return within(round_even(level), first, last); }
    Ints code(Floats level) const { return truncate(value(level) - first); }
};

// Uneven levels.
template <ScaleCodes scale_codes> struct Table {
    static constexpr bool HAS_OFFSETS = false;
    static constexpr int TRIALS = 3;
    using Rounded = RoundedLevels<Table>;
    const Floats *x;
    const float *levels;
    float middles[15]; // from there on the upper one of two levels is nearer

    Table(const Format &format, const Columns &c, Floats) : x(c.x), levels(format.levels) {
        for (int k = 0; k < 15; ++k) middles[k] = (levels[k] + levels[k + 1]) / 2;
    }
    Floats scale(Floats code) const {
        if constexpr (scale_codes == ScaleCodes::powers_of_two) return half_of_power(truncate(code));
        else if constexpr (scale_codes == ScaleCodes::small_floats) return half_of_ue4m3(truncate(code));
        else return code;
    }
    Rounded round(int, Floats step, Floats offset) const { return {*this, x, offset, reciprocal(step)}; }
    Floats value(Floats level) const {
        if constexpr (scale_codes != ScaleCodes::numbers) return symmetric_value(level);
        Floats nearest = splat(levels[0]);
        for (int k = 0; k < 15; ++k) nearest = select(level < middles[k], nearest, splat(levels[k + 1]));
        return nearest;
    }
    Ints code(Floats level) const {
        Ints code = splat(15);
        for (int k = 0; k < 15; ++k) code += level < middles[k]; // -1 where it is
        return code;
    }

    // The same by the magnitude, where 15 levels are symmetric. Halfway between two, the upper one is nearer, also below
    // zero: there the magnitude is made a little smaller. As whole numbers, the bits of magnitudes have the same order.
    Floats symmetric_value(Floats level) const {
        const Ints magnitude = (bits(level) & INT32_MAX) + (bits(level) >> 31);
        Floats nearest{};
        for (int k = 7; k < 14; ++k)
            nearest = select(magnitude < bits(splat(middles[k])), nearest, splat(levels[k + 1]));
        return from_bits(bits(nearest) | (bits(level) & INT32_MIN));
    }
};

static float mean_square(const float *row, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += row[i] * row[i];
    return sum / (float)n;
}

static void improve_group(const Group &group) {
    const Format &format = group.format();
    if (format.grid) improve_group_on_grid(group);
    else if (format.scale_codes == ScaleCodes::powers_of_two)
        improve_group<Table<ScaleCodes::powers_of_two>, false, Judge::squares>(group);
    else if (format.scale_codes == ScaleCodes::small_floats)
        improve_group<Table<ScaleCodes::small_floats>, false, Judge::squares>(group);
    else if (format.levels) improve_group<Table<ScaleCodes::numbers>, false, Judge::squares>(group);
    else if (!format.has_minima()) improve_group<Range<false>, false, Judge::squares>(group);
    else if (format.magnitudes && !group.columns.weighted) improve_group<Range<true>, true, Judge::magnitudes>(group);
    else improve_group<Range<true>, true, Judge::squares>(group);
}

} // namespace

void improve(const Quantizer &quantizer, const float *x, const float *importance, int64_t n, int64_t n_blocks,
             void *blocks) {
    const Format &format = *quantizer.format;
    const int size = format.block();
    Group group{quantizer, {}, 0, (uint8_t *)blocks};
    Floats mean_of_row{};
    int64_t row = -1;
    float its_mean = 0;
    for (int64_t first = 0; first < n_blocks; first += LANES, group.blocks += LANES * format.bytes) {
        group.n_blocks = n_blocks - first < LANES ? (int)(n_blocks - first) : LANES;
        const float *weights[LANES], *columns[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t start = (first + (lane < group.n_blocks ? lane : group.n_blocks - 1)) * size;
            weights[lane] = x + start;
            columns[lane] = importance + start % n;
            if (importance && format.mean == Mean::of_row && row != start / n) {
                row = start / n;
                its_mean = mean_square(x + row * n, n);
            }
            mean_of_row[lane] = its_mean;
        }
        group.columns.weighted = importance != nullptr;
        load_blocks(weights, size, group.columns.x);
        if (importance) {
            load_blocks(columns, size, group.columns.counts);
            set_weighted(format, mean_of_row, group.columns);
        } else {
            set_unweighted(format, group.columns);
        }
        set_units(size, group.columns);
        improve_group(group);
    }
}

} // namespace phi::PHI_ISA
