// Blocks in groups, so that what is found for each block, or each sub-block, fills the lanes.
#pragma once

#include "../simd.hpp"

namespace phi::PHI_ISA {

// Asks for the weights of a piece further on, which is searched for infinities next: memory then works while the
// processor does, instead of in turns with it. A hint: nothing needs to be there.
template <int count> static inline void prefetch(const float *x) {
    constexpr int ahead = 1 << 12, line = 16;
    for (int i = 0; i < count; i += line)
        __builtin_prefetch((const void *)((uintptr_t)x + sizeof(float) * (ahead + i)), 0, 2);
}

// Who asks for further weights: many questions at once have to wait for each other, so whoever has large groups and
// little to do with them spreads the questions.
enum class Prefetch { whole_groups, in_parts };

// Calls quantize_group(x, importance, out, blocks) for each `group` blocks of `size` weights. The last group may
// have fewer: the numbers come from a copy that zeros fill up, so that every lane has a block. The importance
// of the columns may be nullptr, and is then.
template <int group, int size, Prefetch ahead = Prefetch::whole_groups, class Block, class QuantizeGroup>
static inline void for_each_filled_group(const float *x, const float *importance, int64_t n_blocks, Block *out,
                                         QuantizeGroup quantize_group) {
    for (; n_blocks >= group; n_blocks -= group, x += group * size, out += group) {
        if constexpr (ahead == Prefetch::whole_groups) prefetch<group * size>(x);
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
template <int group, int size, Prefetch ahead = Prefetch::whole_groups, class Block, class QuantizeGroup>
static inline void for_each_filled_group(const float *x, int64_t n_blocks, Block *out, QuantizeGroup quantize_group) {
    for_each_filled_group<group, size, ahead>(x, nullptr, n_blocks, out,
                                              [&](const float *x, const float *, Block *out, int blocks) {
                                                  quantize_group(x, out, blocks);
                                              });
}

} // namespace phi::PHI_ISA
