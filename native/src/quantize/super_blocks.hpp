// Super-blocks: how their sub-blocks reach the lanes, and what the types that are made of them have in common.
#pragma once

#include "../blocks.hpp"
#include "groups.hpp"
#include "scale_search.hpp"

namespace phi::PHI_ISA {

// ---- groups and batches ----------------------------------------------------------------------

// As many super-blocks as fill the lanes with their sub-blocks, at least one.
constexpr int group_of(int sub_blocks) { return PAIR_LANES > sub_blocks ? PAIR_LANES / sub_blocks : 1; }

// Where something is found for whole super-blocks, too, such as their mean squares: one in each lane.
constexpr int BATCH = LANES;

// PAIR_LANES sub-blocks of `size` weights, and the importance of their columns.
template <int size> struct WeightedColumns {
    int first;                             // number of the first of these sub-blocks in its batch
    FloatPair weights[size], counts[size]; // [weight of the sub-block], lane: sub-block
};

// Calls search(columns) for the sub-blocks of so many super-blocks of a batch, and for others that fill up the
// last group.
template <int size, class Search>
static inline void for_each_columns(const float *x, const float *importance, int blocks, Search search) {
    constexpr int sub_blocks = SUPER_BLOCK / size;
    static_assert(BATCH * sub_blocks % PAIR_LANES == 0);
    for (int first = 0; first < blocks * sub_blocks; first += PAIR_LANES) {
        WeightedColumns<size> columns;
        columns.first = first;
        load_transposed<size>(x + first * size, columns.weights);
        load_transposed<size>(importance + first * size, columns.counts);
        search(columns);
    }
}

// factor times the mean of x^2 of each super-block of a batch, summed up in the order of memory.
static inline Floats mean_squares(const float *x, float factor) {
    Floats sum{};
    for (int i = 0; i < SUPER_BLOCK; i += LANES) {
        Floats columns[LANES];
        load_columns<LANES, SUPER_BLOCK>(x + i, columns);
        for (int k = 0; k < LANES; ++k) sum += columns[k] * columns[k];
    }
    return factor * sum / (float)SUPER_BLOCK;
}

// From lanes of super-blocks to lanes of sub-blocks, from number `first` of the batch on.
template <int sub_blocks, class V> static inline V spread(Floats of_super_blocks, int first) {
    constexpr int lanes = sizeof(V) / sizeof(float);
    float values[lanes];
    for (int lane = 0; lane < lanes; ++lane) values[lane] = of_super_blocks[(first + lane) / sub_blocks];
    return load<V>(values);
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

// nearest_int(v / step), for a fraction of what a division costs: v times 1 / step is as good, but where it is next to
// half a code, or far off.
static inline Ints nearest_quotient(Floats v, float step, float inverse) {
    const Floats quotient = v * inverse, whole = round_even(quotient);
    const Ints sure = (abs(quotient - whole) < 0.4999f) & (abs(quotient) < 64.0f);
    return all(sure) ? truncate(whole) : nearest_int(v / step);
}

// 0 to 2 n_max - 1
template <int n_max> static inline Ints code(const float *x, const SymmetricCoder &coder) {
    const Floats v = load<Floats>(x);
    if (coder.step != 0) return clamp(nearest_int(v / coder.step), -n_max, n_max - 1) + n_max;
    if (coder.inverse != 0) return clamp(nearest_int(coder.inverse * v), -n_max, n_max - 1) + n_max;
    return Ints{};
}

// The number of largest magnitude, with its sign; the first of equals. In two steps without a branch for each number.
static inline float signed_peak(const float *values, int n) {
    float largest = 0;
    for (int j = 0; j < n; ++j) {
        const float magnitude = __builtin_fabsf(values[j]);
        largest = magnitude > largest ? magnitude : largest;
    }
    uint32_t found = 0;
    for (int j = 0; j < n; ++j) found |= (uint32_t)(__builtin_fabsf(values[j]) == largest) << j;
    return largest > 0 ? values[__builtin_ctz(found)] : 0.0f;
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
        const Floats of_super_blocks = mean_squares(x, factor);
        for_each_columns<size>(x, importance, blocks, [&](const WeightedColumns<size> &columns) {
            const FloatPair mean_square = spread<sub_blocks, FloatPair>(of_super_blocks, columns.first);
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

// ---- scales that are odd numbers -------------------------------------------------------------

// The common scale of a super-block's scales, and their codes: l stands for 2 l + 1.
struct BlockScale {
    float d;
    uint8_t codes[16];
    bool empty; // nothing in the whole super-block
};

template <int n, int highest> static inline BlockScale scale_codes(const float *scales) {
    float peak = 0;
    for (int i = 0; i < n; ++i) peak = peak > scales[i] ? peak : scales[i];
    BlockScale found{peak / (2 * highest + 1), {}, peak == 0};
    if (found.empty) return found;
    const float inverse = 1 / found.d;
    for (int i = 0; i < n; ++i) {
        const int code = nearest_int(0.5f * (inverse * scales[i] - 1));
        found.codes[i] = code < 0 ? 0 : code < highest ? code : highest;
    }
    return found;
}

} // namespace phi::PHI_ISA
