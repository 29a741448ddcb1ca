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

// Adds four codes of 8 rows, times those activations of each token that are in a lane.
template <int lane> void add_products(const uint8_t (*codes)[4], const int8x16_t *x, Sums &sums) {
    const int8x16_t first = vreinterpretq_s8_u8(vld1q_u8(codes[0])), second = vreinterpretq_s8_u8(vld1q_u8(codes[4]));
    for (int i = 0; i < tokens_at_once; ++i) {
        sums.v[i][0] = vdotq_laneq_s32(sums.v[i][0], first, x[i], lane);
        sums.v[i][1] = vdotq_laneq_s32(sums.v[i][1], second, x[i], lane);
    }
}

template <class Tile> Sums block_products(const typename Tile::Block &block, int row, const int8_t *const *x) {
    Sums products = {};
    for (int start = 0; start < Tile::size; start += Tile::group) {
        Sums sums = {};
        for (int k = start; k < start + Tile::group; k += 16) {
            int8x16_t vectors[tokens_at_once];
            for (int i = 0; i < tokens_at_once; ++i) vectors[i] = vld1q_s8(x[i] + k);
            add_products<0>(&block.codes[k / 4][row], vectors, sums);
            add_products<1>(&block.codes[k / 4 + 1][row], vectors, sums);
            add_products<2>(&block.codes[k / 4 + 2][row], vectors, sums);
            add_products<3>(&block.codes[k / 4 + 3][row], vectors, sums);
        }
        if constexpr (Tile::group == Tile::size) return sums;
        const int32_t *scales = &block.scales[start / Tile::group][row];
        for (int j = 0; j < 2; ++j) {
            const int32x4_t scale = vld1q_s32(scales + 4 * j);
            for (int i = 0; i < tokens_at_once; ++i)
                products.v[i][j] = vmlaq_s32(products.v[i][j], sums.v[i][j], scale);
        }
    }
    return products;
}

template <class Tile> Sums block_minima(const typename Tile::Block &block, int row, const int32_t *const *offsets) {
    Sums sums;
    for (int i = 0; i < tokens_at_once; ++i)
        for (int j = 0; j < 2; ++j) {
            if constexpr (Tile::size == 32) {
                sums.v[i][j] = vdupq_n_s32(*offsets[i]);
                continue;
            }
            int32x4_t two = vdupq_n_s32(0), next_two = two; // rows, their pairs not yet added
            for (int pair = 0; pair < Tile::pairs; ++pair) {
                const int16x8_t minima = vld1q_s16(block.minima[pair][row + 4 * j]);
                const int16x8_t activations = vreinterpretq_s16_s32(vdupq_n_s32(offsets[i][pair]));
                two = vmlal_s16(two, vget_low_s16(minima), vget_low_s16(activations));
                next_two = vmlal_high_s16(next_two, minima, activations);
            }
            sums.v[i][j] = vpaddq_s32(two, next_two);
        }
    return sums;
}

} // namespace phi::PHI_ISA
