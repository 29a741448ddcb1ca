// Blocks in groups, so that what is found for each block fills the lanes. And for types without a search, where
// the largest weights decide: finding those.
#pragma once

#include "../blocks.hpp"
#include "../simd.hpp"

namespace phi::PHI_ISA {

// ---- groups ----------------------------------------------------------------------------------

// Asks for the weights of a piece further on, which is searched for infinities next: memory then works while the
// processor does, instead of in turns with it. A hint: nothing needs to be there.
template <int count> static inline void prefetch(const float *x) {
    constexpr int ahead = 1 << 12, line = 16;
    for (int i = 0; i < count; i += line)
        __builtin_prefetch((const void *)((uintptr_t)x + sizeof(float) * (ahead + i)), 0, 2);
}

// Calls quantize_group(x, importance, out, blocks) for each `group` blocks of `size` weights. The last group may
// have fewer: the numbers come from a copy that zeros fill up, so that every lane has a block. The importance
// of the columns may be nullptr, and is then.
template <int group, int size, class Block, class QuantizeGroup>
static inline void for_each_filled_group(const float *x, const float *importance, int64_t n_blocks, Block *out,
                                         QuantizeGroup quantize_group) {
    for (; n_blocks >= group; n_blocks -= group, x += group * size, out += group) {
        prefetch<group * size>(x);
        quantize_group(x, importance, out, group);
        if (importance) importance += group * size;
    }
    if (n_blocks == 0) return;
    const int blocks = (int)n_blocks;
    float rest[group * size] = {}, its_importance[group * size] = {};
    __builtin_memcpy(rest, x, sizeof(float) * blocks * size);
    if (importance) __builtin_memcpy(its_importance, importance, sizeof(float) * blocks * size);
    quantize_group(rest, importance ? its_importance : nullptr, out, blocks);
}

// The same without importance.
template <int group, int size, class Block, class QuantizeGroup>
static inline void for_each_filled_group(const float *x, int64_t n_blocks, Block *out, QuantizeGroup quantize_group) {
    for_each_filled_group<group, size>(x, nullptr, n_blocks, out,
                                       [&](const float *x, const float *, Block *out, int blocks) {
                                           quantize_group(x, out, blocks);
                                       });
}

// ---- what LANES blocks have, a block a lane --------------------------------------------------

template <int size> static inline Floats largest_magnitudes(const float *x) {
    const auto magnitudes = [x](int block) {
        const float *weights = x + block * size;
        Floats largest = abs(load<Floats>(weights));
        for (int i = LANES; i < size; i += LANES) largest = max(abs(load<Floats>(weights + i)), largest);
        return largest;
    };
    return reduce_rows(magnitudes, [](Floats a, Floats b) { return max(a, b); });
}

struct Ranges {
    Floats lowest, highest;
};

template <int size> static inline Ranges ranges(const float *x) {
    const auto extremes = [x](int block) {
        const float *weights = x + block * size;
        FloatPair found{load<Floats>(weights), load<Floats>(weights)};
        for (int i = LANES; i < size; i += LANES) {
            found.a = min(load<Floats>(weights + i), found.a);
            found.b = max(load<Floats>(weights + i), found.b);
        }
        return found;
    };
    const auto both = reduce_rows(extremes, [](FloatPair x, FloatPair y) {
        return FloatPair{min(x.a, y.a), max(x.b, y.b)};
    });
    return {both.a, both.b};
}

// The first weight of a block for which holds(weights), with its sign. There must be one.
template <int size, class Holds> static inline float first_weight(const float *x, Holds holds) {
    static_assert(size <= 32);
    uint32_t found = 0;
    for (int i = 0; i < size; i += LANES) found |= bit_mask(holds(load<Floats>(x + i))) << i;
    return x[__builtin_ctz(found)];
}

// The number of largest magnitude, with its sign; the first of equals; never -0.
template <int size> static inline Floats signed_peaks(const float *x) {
    const Ranges range = ranges<size>(x);
    Floats peak = select(range.highest > -range.lowest, range.highest, range.lowest);
    const Ints both = (range.highest == -range.lowest) & (peak != 0.0f);
    if (any(both))
        for (int block = 0; block < LANES; ++block)
            if (both[block])
                peak[block] = first_weight<size>(
                    x + block * size, [largest = range.highest[block]](Floats v) { return abs(v) == largest; });
    return peak + 0.0f; // -0 + 0 is 0
}

// The smallest number, and of zeros the first.
template <int size> static inline Floats first_lowest(const float *x, Floats lowest) {
    const Ints zero = lowest == 0.0f;
    if (any(zero))
        for (int block = 0; block < LANES; ++block)
            if (zero[block]) lowest[block] = first_weight<size>(x + block * size, [](Floats v) { return v == 0.0f; });
    return lowest;
}

// 1 / d, and 0 where d is 0.
static inline Floats reciprocal(Floats d) { return select(d != 0.0f, 1.0f / d, Floats{}); }

// The scales of LANES blocks: as a block stores them, and 1 / d.
struct BlockScales {
    uint16_t d[LANES];
    float inverse[LANES];

    explicit BlockScales(Floats scales) {
        store(d, narrow_f16(scales));
        store(inverse, reciprocal(scales));
    }
};

} // namespace phi::PHI_ISA
