// Blocks in groups, so that what is found for each block fills the lanes. And for types without a search, where
// the largest weights decide: finding those.
#pragma once

#include "../blocks.hpp"
#include "../simd.hpp"

namespace phi::PHI_ISA {

// ---- groups ----------------------------------------------------------------------------------

// Calls quantize_group(x, importance, out, blocks) for each `group` blocks of `size` weights. The last group may
// have fewer: the numbers come from a copy that zeros fill up, so that every lane has a block. The importance
// of the columns may be nullptr, and is then.
template <int group, int size, class Block, class QuantizeGroup>
static inline void for_each_filled_group(const float *x, const float *importance, int64_t n_blocks, Block *out,
                                         QuantizeGroup quantize_group) {
    for (; n_blocks >= group; n_blocks -= group, x += group * size, out += group) {
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
        Floats largest{};
        for (int i = 0; i < size; i += LANES) largest = max(abs(load<Floats>(x + block * size + i)), largest);
        return largest;
    };
    return reduce_rows(magnitudes, [](Floats a, Floats b) { return max(a, b); });
}

template <int size> static inline Floats highest_weights(const float *x) {
    const auto weights = [x](int block) {
        Floats highest = load<Floats>(x + block * size);
        for (int i = LANES; i < size; i += LANES) highest = max(load<Floats>(x + block * size + i), highest);
        return highest;
    };
    return reduce_rows(weights, [](Floats a, Floats b) { return max(a, b); });
}

template <int size> static inline Floats lowest_weights(const float *x) {
    const auto weights = [x](int block) {
        Floats lowest = load<Floats>(x + block * size);
        for (int i = LANES; i < size; i += LANES) lowest = min(load<Floats>(x + block * size + i), lowest);
        return lowest;
    };
    return reduce_rows(weights, [](Floats a, Floats b) { return min(a, b); });
}

// The first weight of each block for which holds(weights, number of the block), with its sign. There must be one.
template <int size, class Holds> static inline Floats first_weights(const float *x, Holds holds) {
    static_assert(size <= 32);
    float first[LANES];
    for (int block = 0; block < LANES; ++block, x += size) {
        uint32_t found = 0;
        for (int i = 0; i < size; i += LANES) found |= bit_mask(holds(load<Floats>(x + i), block)) << i;
        first[block] = x[__builtin_ctz(found)];
    }
    return load<Floats>(first);
}

// 1 / d, and 0 where d is 0.
static inline Floats reciprocal(Floats d) { return select(d != 0.0f, 1.0f / d, Floats{}); }

} // namespace phi::PHI_ISA
