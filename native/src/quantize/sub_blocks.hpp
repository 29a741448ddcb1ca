// What the i-quants with grids have in common: super-blocks in batches, their sub-blocks side by side in lanes.
#pragma once

#include "../blocks.hpp"
#include "../simd.hpp"

namespace phi::PHI_ISA {

// ---- batches ---------------------------------------------------------------------------------

constexpr int BATCH = LANES; // super-blocks: sums over them run with one in each lane

// A copy of fewer super-blocks than a batch has, with zeros behind them.
static inline const float *filled_up(const float *x, int blocks, float *copy) {
    __builtin_memcpy(copy, x, sizeof(float) * blocks * SUPER_BLOCK);
    __builtin_memset(copy + blocks * SUPER_BLOCK, 0, sizeof(float) * (BATCH - blocks) * SUPER_BLOCK);
    return copy;
}

// Calls quantize_batch(x, importance, out, blocks) for each batch. The last one may have fewer blocks: x and
// importance then come from copies that zeros fill up, so that every lane has a sub-block.
// importance: of the columns of the row, or nullptr
template <class Block, class QuantizeBatch>
static inline void for_each_batch(const float *x, const float *importance, int64_t n_blocks, Block *out,
                                  QuantizeBatch quantize_batch) {
    float rest[BATCH * SUPER_BLOCK], rest_importance[BATCH * SUPER_BLOCK];
    for (int64_t block = 0; block < n_blocks; block += BATCH, x += BATCH * SUPER_BLOCK, out += BATCH) {
        const int blocks = n_blocks - block < BATCH ? (int)(n_blocks - block) : BATCH;
        if (blocks < BATCH) {
            x = filled_up(x, blocks, rest);
            if (importance) importance = filled_up(importance, blocks, rest_importance);
        }
        quantize_batch(x, importance, out, blocks);
        if (importance) importance += BATCH * SUPER_BLOCK;
    }
}

// ---- rows and columns ------------------------------------------------------------------------

// Loads LANES runs of n consecutive floats, one run a lane: value i of run r goes to lane r of columns[i].
// Runs begin `stride` floats apart.
template <int n, int stride = n> static inline void load_columns(const float *x, Floats *columns) {
    for (int i = 0; i < n; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) columns[i + lane] = load<Floats>(x + lane * stride + i);
        transpose(columns + i);
    }
}

// And back.
template <int n> static inline void store_columns(const Floats *columns, float *x) {
    for (int i = 0; i < n; i += LANES) {
        Floats square[LANES];
        for (int lane = 0; lane < LANES; ++lane) square[lane] = columns[i + lane];
        transpose(square);
        for (int lane = 0; lane < LANES; ++lane) store(x + lane * n + i, square[lane]);
    }
}

// ---- how much an error counts ----------------------------------------------------------------

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

// Those of the super-blocks that sub-blocks belong to. Lane: sub-block, the first of them has number `first`.
template <int sub_blocks> static inline Floats of_sub_blocks(const float *of_blocks, int first) {
    Floats values{};
    for (int lane = 0; lane < LANES; ++lane) values[lane] = of_blocks[(first + lane) / sub_blocks];
    return values;
}

// ---- scales ----------------------------------------------------------------------------------

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
