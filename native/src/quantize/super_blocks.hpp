// Super-blocks in groups: as many side by side as it takes to fill the lanes with their sub-blocks.
#pragma once

#include "../blocks.hpp"
#include "../simd.hpp"

namespace phi::PHI_ISA {

static inline Ints clamp(Ints v, int low, int high) { return min(max(v, splat(low)), splat(high)); }

// ---- groups ----------------------------------------------------------------------------------

// A group is as many super-blocks as fill the lanes with their sub-blocks, at least one.
constexpr int group_of(int sub_blocks) { return PAIR_LANES > sub_blocks ? PAIR_LANES / sub_blocks : 1; }

// Calls quantize_group(x, out, blocks) for each group. The last one may have fewer blocks: x then comes from
// a copy that zeros fill up, so that every lane has a sub-block.
template <int group, class Block, class QuantizeGroup>
static inline void for_each_group(const float *x, int64_t n_blocks, Block *out, QuantizeGroup quantize_group) {
    int64_t block = 0;
    for (; block + group <= n_blocks; block += group) quantize_group(x + block * SUPER_BLOCK, out + block, group);
    if (block == n_blocks) return;
    float rest[group * SUPER_BLOCK] = {};
    const int blocks = (int)(n_blocks - block);
    __builtin_memcpy(rest, x + block * SUPER_BLOCK, sizeof(float) * blocks * SUPER_BLOCK);
    quantize_group(rest, out + block, blocks);
}

} // namespace phi::PHI_ISA
