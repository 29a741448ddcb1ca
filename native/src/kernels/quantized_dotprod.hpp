// Products with quantized weights in NEON with dotprod: sdot with a lane repeats four activations for four rows.
#pragma once

#include "quantized_neon.hpp"

namespace phi::PHI_ISA {

// Four codes of four rows in each vector, as panels are described.
inline void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]) {
    for (int row = 0; row < panel_rows; row += 4)
        for (int i = 0; i < n; i += 4) {
            const auto pairs = [&](const uint32_t *p) { return vtrnq_u32(vld1q_u32(p), vld1q_u32(p + stride)); };
            const uint32_t *from = rows + row * stride + i;
            const uint32x4x2_t ab = pairs(from), cd = pairs(from + 2 * stride);
            for (int j = 0; j < 2; ++j) {
                const uint64x2_t upper = vreinterpretq_u64_u32(ab.val[j]), lower = vreinterpretq_u64_u32(cd.val[j]);
                vst1q_u32(&columns[i + j][row], vreinterpretq_u32_u64(vzip1q_u64(upper, lower)));
                vst1q_u32(&columns[i + 2 + j][row], vreinterpretq_u32_u64(vzip2q_u64(upper, lower)));
            }
        }
}

// Adds four codes of 8 rows, the lane's of 16, times those activations of each token that are in the lane.
template <int lane>
[[gnu::always_inline]] inline void add_products(const uint8_t *codes, const int8x16_t *x, Sums &sums) {
    const uint8_t *four = codes + lane * panel_rows * 4;
    const int8x16_t first = vreinterpretq_s8_u8(vld1q_u8(four)), second = vreinterpretq_s8_u8(vld1q_u8(four + 16));
    for (int i = 0; i < tokens_at_once; ++i) {
        sums.v[i][0] = vdotq_laneq_s32(sums.v[i][0], first, x[i], lane);
        sums.v[i][1] = vdotq_laneq_s32(sums.v[i][1], second, x[i], lane);
    }
}

template <class Tile>
[[gnu::always_inline]] inline Sums block_products(const typename Tile::Block &block, int row, const int8_t *const *x) {
    const uint8_t *codes = block.codes[0][row];
    const int32_t *scales = block.scales[0] + row;
    Sums products = {};
    for (int64_t k = 0; k < Tile::size; scales += panel_rows) {
        Sums sums = {};
        for (const int64_t end = k + Tile::group; k < end; k += 16, codes += 16 * panel_rows) {
            int8x16_t vectors[tokens_at_once];
            for (int i = 0; i < tokens_at_once; ++i) vectors[i] = vld1q_s8(x[i] + k);
            add_products<0>(codes, vectors, sums);
            add_products<1>(codes, vectors, sums);
            add_products<2>(codes, vectors, sums);
            add_products<3>(codes, vectors, sums);
        }
        if constexpr (Tile::group == Tile::size) return sums;
        for (int j = 0; j < 2; ++j) {
            const int32x4_t scale = vld1q_s32(scales + 4 * j);
            for (int i = 0; i < tokens_at_once; ++i)
                products.v[i][j] = vmlaq_s32(products.v[i][j], sums.v[i][j], scale);
        }
    }
    return products;
}

template <class Tile>
[[gnu::always_inline]] inline Sums block_minima(const typename Tile::Block &block, int row,
                                                const int32_t *const *offsets) {
    Sums sums;
    if constexpr (Tile::size == 32) {
        for (int i = 0; i < tokens_at_once; ++i) sums.v[i][0] = sums.v[i][1] = vdupq_n_s32(*offsets[i]);
        return sums;
    }
    Sums low = {}, high = {};
    const auto *minima = reinterpret_cast<const uint8_t *>(block.minima[0][row]);
    for (int pairs = 0; pairs < Tile::pairs; pairs += 4, minima += 8 * panel_rows) { // eight groups
        int8x16_t low_bytes[tokens_at_once], high_bytes[tokens_at_once];
        for (int i = 0; i < tokens_at_once; ++i) {
            const SplitSums split = split_sums(offsets[i] + pairs);
            low_bytes[i] = as_bytes(split.low, split.low);
            high_bytes[i] = as_bytes(split.high, split.high);
        }
        add_products<0>(minima, low_bytes, low);
        add_products<1>(minima, low_bytes, low);
        add_products<0>(minima, high_bytes, high);
        add_products<1>(minima, high_bytes, high);
    }
    for (int i = 0; i < tokens_at_once; ++i)
        for (int j = 0; j < 2; ++j) sums.v[i][j] = joined(low.v[i][j], high.v[i][j]);
    return sums;
}

} // namespace phi::PHI_ISA
