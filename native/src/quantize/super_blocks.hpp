// Super-blocks: how their sub-blocks reach the lanes, and what the types that are made of them have in common.
#pragma once

#include "../blocks.hpp"
#include "../simd.hpp"
#include "scale_search.hpp"

namespace phi::PHI_ISA {

// ---- groups ----------------------------------------------------------------------------------

// A group is as many super-blocks as fill the lanes with their sub-blocks, at least one.
constexpr int group_of(int sub_blocks) { return PAIR_LANES > sub_blocks ? PAIR_LANES / sub_blocks : 1; }

// The numbers of fewer super-blocks than a group has, and zeros behind them, so that every lane has a sub-block.
template <int group> struct Rest {
    float values[group * SUPER_BLOCK] = {};

    Rest(const float *x, int blocks) { __builtin_memcpy(values, x, sizeof(float) * blocks * SUPER_BLOCK); }
};

// Calls quantize_group(x, out, blocks) for each group. The last one may have fewer blocks: x is a Rest then.
template <int group, class Block, class QuantizeGroup>
static inline void for_each_group(const float *x, int64_t n_blocks, Block *out, QuantizeGroup quantize_group) {
    int64_t block = 0;
    for (; block + group <= n_blocks; block += group) quantize_group(x + block * SUPER_BLOCK, out + block, group);
    if (block == n_blocks) return;
    const int blocks = (int)(n_blocks - block);
    quantize_group(Rest<group>(x + block * SUPER_BLOCK, blocks).values, out + block, blocks);
}

// ---- batches: super-blocks of a row with importance ------------------------------------------

// Their scales are searched, too, a super-block a lane: so many are done before the search.
constexpr int BATCH = LANES;

// Calls quantize_batch(x, importance, out, blocks) for each batch of a row. The last one may have fewer blocks.
template <class Block, class QuantizeBatch>
static inline void for_each_batch(const float *x, const float *importance, int64_t n_blocks, Block *out,
                                  QuantizeBatch quantize_batch) {
    for (int64_t block = 0; block < n_blocks; block += BATCH) {
        const int blocks = n_blocks - block < BATCH ? (int)(n_blocks - block) : BATCH;
        quantize_batch(x + block * SUPER_BLOCK, importance + block * SUPER_BLOCK, out + block, blocks);
    }
}

// PAIR_LANES sub-blocks of `size` weights, and the importance of their columns.
template <int size> struct WeightedColumns {
    int first;                             // number of the first of these sub-blocks in its batch
    FloatPair weights[size], counts[size]; // [weight of the sub-block], lane: sub-block
};

// Calls search(columns) for all sub-blocks of a batch, and for zeros that fill up the last group.
template <int size, class Search>
static inline void for_each_columns(const float *x, const float *importance, int blocks, Search search) {
    constexpr int sub_blocks = SUPER_BLOCK / size, group = group_of(sub_blocks);
    const auto search_group = [&](const float *x, const float *importance, int block) {
        for (int first = 0; first < group * sub_blocks; first += PAIR_LANES) {
            WeightedColumns<size> columns;
            columns.first = block * sub_blocks + first;
            load_transposed<size>(x + first * size, columns.weights);
            load_transposed<size>(importance + first * size, columns.counts);
            search(columns);
        }
    };
    int block = 0;
    for (; block + group <= blocks; block += group)
        search_group(x + block * SUPER_BLOCK, importance + block * SUPER_BLOCK, block);
    if (block >= blocks) return;
    const Rest<group> last(x + block * SUPER_BLOCK, blocks - block);
    const Rest<group> its_importance(importance + block * SUPER_BLOCK, blocks - block);
    search_group(last.values, its_importance.values, block);
}

// The mean squares of the super-blocks of a batch, times the factor.
static inline Floats mean_squares(const float *x, int blocks, float factor) {
    Floats sum{};
    for (int i = 0; i < SUPER_BLOCK; i += LANES) {
        Floats columns[LANES]; // lane: super-block; the last one again and again where there are no more
        for (int lane = 0; lane < LANES; ++lane)
            columns[lane] = load<Floats>(x + (lane < blocks ? lane : blocks - 1) * SUPER_BLOCK + i);
        transpose(columns);
        for (int k = 0; k < LANES; ++k) sum += columns[k] * columns[k];
    }
    return factor * sum / (float)SUPER_BLOCK;
}

// From lanes of super-blocks to lanes of sub-blocks, PAIR_LANES from `first` on.
template <int sub_blocks> static inline FloatPair spread(Floats of_super_blocks, int first) {
    float values[PAIR_LANES];
    for (int lane = 0; lane < PAIR_LANES; ++lane) values[lane] = of_super_blocks[(first + lane) / sub_blocks];
    return load<FloatPair>(values);
}

// Number j of each super-block of a batch. Lane: super-block.
template <int sub_blocks> static inline Floats numbers_of(const float *of_sub_blocks, int j) {
    Floats values;
    for (int lane = 0; lane < BATCH; ++lane) values[lane] = of_sub_blocks[lane * sub_blocks + j];
    return values;
}

// ---- codes on both sides of zero -------------------------------------------------------------

// What was found for consecutive sub-blocks.
template <int count> struct SymmetricResults {
    float scale[count], inverse[count];

    void set(int first, const Symmetric<FloatPair> &found) {
        store(scale + first, found.scale);
        store(inverse + first, found.inverse);
    }
};

// How the weights of a sub-block become codes: nearest_int(x / step) where the step is not zero, else as the
// search left them: nearest_int(inverse * x), or the lowest code where it found only zeros (inverse 0).
struct SymmetricCoder {
    float step, inverse;
};

// 0 to 2 n_max - 1
template <int n_max> static inline Ints code(const float *x, const SymmetricCoder &coder) {
    const Floats v = load<Floats>(x);
    if (coder.step != 0) return clamp(nearest_int(v / coder.step), -n_max, n_max - 1) + n_max;
    if (coder.inverse != 0) return clamp(nearest_int(coder.inverse * v), -n_max, n_max - 1) + n_max;
    return Ints{};
}

// The number of largest magnitude, with its sign; the first of equals.
static inline float signed_peak(const float *values, int n) {
    float peak = 0;
    for (int j = 0; j < n; ++j)
        if (__builtin_fabsf(values[j]) > __builtin_fabsf(peak)) peak = values[j];
    return peak;
}

// ---- scale and minimum -----------------------------------------------------------------------

template <int count> struct AffineResults {
    float scale[count], minimum[count], inverse[count], base[count];

    void set(int first, const Affine &found) {
        store(scale + first, found.scale);
        store(minimum + first, -found.minimum); // positive: to be subtracted
        store(inverse + first, found.inverse);
        store(base + first, found.base);
    }
};

// How the weights of a sub-block become codes: nearest_int((x + below) / step) where the step is not zero,
// else as the search left them, nearest_int(inverse * (x - base)).
struct AffineCoder {
    float step, below, inverse, base;
};

template <int n_max> static inline Ints code(const float *x, const AffineCoder &coder) {
    const Floats v = load<Floats>(x);
    if (coder.step == 0) return clamp(nearest_int(coder.inverse * (v - coder.base)), 0, n_max);
    return clamp(nearest_int((v + coder.below) / coder.step), 0, n_max);
}

// The largest of the scales (or minima) of a super-block, at least zero.
template <int n> static inline float largest_of(const float *values) {
    float largest = 0;
    for (int j = 0; j < n; ++j) largest = values[j] > largest ? values[j] : largest;
    return largest;
}

// Steps 1 and 2 with importance for the super-blocks of a batch: the sub-blocks' scales and minima, and
// their codes, searched as those of weights are; each counts as its sub-block does.
template <int sub_blocks> struct WeightedAffine {
    AffineResults<BATCH * sub_blocks> found;
    float counts[BATCH * sub_blocks]; // sums of what the errors count
    float d[BATCH], dmin[BATCH];
    uint8_t scales[sub_blocks][BATCH], minima[sub_blocks][BATCH]; // below zero they wrap around, as in ggml

    // The errors count importance * sqrt(factor * mean square + x^2)
    template <int n_max> void search(const float *x, const float *importance, int blocks, float factor) {
        constexpr int size = SUPER_BLOCK / sub_blocks;
        const Floats of_super_blocks = mean_squares(x, blocks, factor);
        for_each_columns<size>(x, importance, blocks, [&](const WeightedColumns<size> &columns) {
            const FloatPair mean_square = spread<sub_blocks>(of_super_blocks, columns.first);
            FloatPair w[size];
            error_weights<size>(columns.weights, columns.counts, mean_square, w);
            store(counts + columns.first, sum_in_order<size>(w));
            found.set(columns.first, affine_search<size, n_max>(columns.weights, w, -0.9f, 0.05f, 36));
        });
    }

    template <int largest_code> void search_scales() {
        FloatPair values[sub_blocks], w[sub_blocks], codes[sub_blocks]; // lane: super-block; scales, minima
        for (int j = 0; j < sub_blocks; ++j) {
            values[j] = {numbers_of<sub_blocks>(found.scale, j), numbers_of<sub_blocks>(found.minimum, j)};
            w[j].a = w[j].b = numbers_of<sub_blocks>(counts, j);
        }
        const FloatPair scale = positive_search<sub_blocks, largest_code>(values, w, codes);
        store(d, scale.a);
        store(dmin, scale.b);
        for (int j = 0; j < sub_blocks; ++j) {
            store_bytes(scales[j], nearest_int(codes[j].a));
            store_bytes(minima[j], nearest_int(codes[j].b));
        }
    }
};

} // namespace phi::PHI_ISA
