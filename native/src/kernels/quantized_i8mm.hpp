// Products with quantized weights in NEON with i8mm: smmla multiplies 2 rows of eight codes with 2 tokens of eight
// activations, four dot products at once.
#pragma once

#include "quantized_neon.hpp"

namespace phi::PHI_ISA {

// In a panel two neighbouring columns are mixed: a row has two words side by side, that is eight codes, two scales or
// four minima.
using TwoColumns = uint32_t[panel_rows][2];

inline void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]) {
    auto *pairs = reinterpret_cast<TwoColumns *>(columns);
    for (int row = 0; row < panel_rows; row += 2)
        for (int i = 0; i < n; i += 4) {
            const uint32_t *from = rows + row * stride + i;
            const uint64x2_t a = vreinterpretq_u64_u32(vld1q_u32(from)), b = vreinterpretq_u64_u32(vld1q_u32(from + stride));
            vst1q_u32(pairs[i / 2][row], vreinterpretq_u32_u64(vzip1q_u64(a, b)));
            vst1q_u32(pairs[i / 2 + 1][row], vreinterpretq_u32_u64(vzip2q_u64(a, b)));
        }
}

// The two columns from an even one on, of the two rows from `row` on.
inline uint32x4_t load_pair(const void *columns, int column, int row) {
    return vld1q_u32(static_cast<const TwoColumns *>(columns)[column / 2][row]);
}

// Sums of two rows and two tokens: the first row with both, then the second.
struct PairSums {
    int32x4_t v[tokens_at_once / 2][4];
};

// Eight activations of two tokens.
struct TokenPair {
    int8x16_t first, second; // of the first eight, of the next eight
};
inline TokenPair load_tokens(const int8_t *a, const int8_t *b) {
    const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(a)), y = vreinterpretq_s64_s8(vld1q_s8(b));
    return {vreinterpretq_s8_s64(vzip1q_s64(x, y)), vreinterpretq_s8_s64(vzip2q_s64(x, y))};
}

// Adds 16 codes of 8 rows, from code `k` on, times the activations of each token.
inline void add_products(const void *codes, int k, int row, const int8_t *const *x, PairSums &sums) {
    TokenPair tokens[tokens_at_once / 2];
    for (int i = 0; i < tokens_at_once / 2; ++i) tokens[i] = load_tokens(x[2 * i] + k, x[2 * i + 1] + k);
    for (int j = 0; j < 4; ++j) {
        const int8x16_t first = vreinterpretq_s8_u32(load_pair(codes, k / 4, row + 2 * j));
        const int8x16_t second = vreinterpretq_s8_u32(load_pair(codes, k / 4 + 2, row + 2 * j));
        for (int i = 0; i < tokens_at_once / 2; ++i)
            sums.v[i][j] = vmmlaq_s32(vmmlaq_s32(sums.v[i][j], first, tokens[i].first), second, tokens[i].second);
    }
}

// By token: four rows in a vector.
inline Sums by_token(const PairSums &pairs) {
    Sums sums;
    for (int i = 0; i < tokens_at_once / 2; ++i)
        for (int j = 0; j < 2; ++j) {
            sums.v[2 * i][j] = vuzp1q_s32(pairs.v[i][2 * j], pairs.v[i][2 * j + 1]);
            sums.v[2 * i + 1][j] = vuzp2q_s32(pairs.v[i][2 * j], pairs.v[i][2 * j + 1]);
        }
    return sums;
}

template <class Tile> Sums block_products(const typename Tile::Block &block, int row, const int8_t *const *x) {
    PairSums products = {};
    for (int group = 0; group < Tile::size / Tile::group; ++group) {
        PairSums sums = {};
        for (int k = group * Tile::group; k < (group + 1) * Tile::group; k += 16)
            add_products(block.codes, k, row, x, sums);
        if constexpr (Tile::group == Tile::size) return by_token(sums);
        for (int j = 0; j < 4; ++j) {
            const int32x4_t two = vreinterpretq_s32_u32(load_pair(block.scales, group, row + 2 * j));
            const int32x4_t scale = group % 2 == 0 ? vtrn1q_s32(two, two) : vtrn2q_s32(two, two);
            for (int i = 0; i < tokens_at_once / 2; ++i)
                products.v[i][j] = vmlaq_s32(products.v[i][j], sums.v[i][j], scale);
        }
    }
    return by_token(products);
}

template <class Tile> Sums block_minima(const typename Tile::Block &block, int row, const int32_t *const *offsets) {
    Sums sums;
    for (int i = 0; i < tokens_at_once; ++i) {
        if constexpr (Tile::size == 32) {
            sums.v[i][0] = sums.v[i][1] = vdupq_n_s32(*offsets[i]);
            continue;
        }
        int32x4_t rows[8] = {};
        for (int pair = 0; pair < Tile::pairs; pair += 2) {
            const int16x4_t activations = vld1_s16(reinterpret_cast<const int16_t *>(offsets[i] + pair));
            const int16x8_t twice = vcombine_s16(activations, activations);
            for (int j = 0; j < 8; j += 2) {
                const int16x8_t minima = vreinterpretq_s16_u32(load_pair(block.minima, pair, row + j));
                rows[j] = vmlal_s16(rows[j], vget_low_s16(minima), activations);
                rows[j + 1] = vmlal_high_s16(rows[j + 1], minima, twice);
            }
        }
        sums.v[i][0] = sum_lanes(rows[0], rows[1], rows[2], rows[3]);
        sums.v[i][1] = sum_lanes(rows[4], rows[5], rows[6], rows[7]);
    }
    return sums;
}

} // namespace phi::PHI_ISA
