// Products with quantized weights in NEON with i8mm: smmla multiplies 2 rows of eight codes with 2 tokens of eight
// activations, four dot products at once.
#pragma once

#include "quantized_neon.hpp"

namespace phi::PHI_ISA {

// In a panel two neighbouring columns are mixed: a row has two words side by side, that is eight codes, four scales or
// eight minima.
using TwoColumns = uint32_t[panel_rows][2];

inline void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]) {
    auto *pairs = reinterpret_cast<TwoColumns *>(columns);
    for (int row = 0; row < panel_rows; row += 2)
        for (int i = 0; i < n; i += 4) {
            const uint32_t *from = rows + row * stride + i;
            const uint64x2_t a = vreinterpretq_u64_u32(vld1q_u32(from));
            const uint64x2_t b = vreinterpretq_u64_u32(vld1q_u32(from + stride));
            vst1q_u32(pairs[i / 2][row], vreinterpretq_u32_u64(vzip1q_u64(a, b)));
            vst1q_u32(pairs[i / 2 + 1][row], vreinterpretq_u32_u64(vzip2q_u64(a, b)));
        }
}

// Where those of a row are.
template <class Column> const uint8_t *at_row(const Column *columns, int row) {
    return reinterpret_cast<const uint8_t *>(columns) + row * sizeof(TwoColumns) / panel_rows;
}

// Sums of two rows and two tokens: the first row with both, then the second.
struct PairSums {
    int32x4_t v[tokens_at_once / 2][4];
};

// Adds eight codes of 8 rows times those activations of each token; in a vector of x there are two tokens.
[[gnu::always_inline]] inline void add_products(const uint8_t *codes, const int8x16_t *x, PairSums &sums) {
    for (int j = 0; j < 4; ++j) {
        const int8x16_t two_rows = vreinterpretq_s8_u8(vld1q_u8(codes + 16 * j));
        for (int i = 0; i < tokens_at_once / 2; ++i) sums.v[i][j] = vmmlaq_s32(sums.v[i][j], two_rows, x[i]);
    }
}

// Σ code · activation for some codes, a multiple of 16.
template <int n>
[[gnu::always_inline]] inline PairSums sum_products(const uint8_t *codes, const int8_t *const *x, int64_t k) {
    PairSums sums = {};
#pragma GCC unroll 2
    for (int64_t end = k + n; k < end; k += 16, codes += 2 * sizeof(TwoColumns)) {
        int8x16_t first[tokens_at_once / 2], second[tokens_at_once / 2]; // eight activations of two tokens
        for (int i = 0; i < tokens_at_once / 2; ++i) {
            const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x[2 * i] + k));
            const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(x[2 * i + 1] + k));
            first[i] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
            second[i] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        }
        add_products(codes, first, sums);
        add_products(codes + sizeof(TwoColumns), second, sums);
    }
    return sums;
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

template <class Tile>
[[gnu::always_inline]] inline Sums block_products(const typename Tile::Block &block, int row, const int8_t *const *x) {
    constexpr int group = Tile::group;
    const uint8_t *codes = at_row(block.codes, row);
    if constexpr (group == Tile::size) return by_token(sum_products<group>(codes, x, 0));
    PairSums products = {};
    for (int64_t k = 0; k < Tile::size; k += 2 * group) {
        const int64_t pair = k / (2 * group); // of scales: two of them are side by side in each row
        const uint8_t *scales = at_row(block.scales, row) + pair / 2 * sizeof(TwoColumns) + pair % 2 * 4;
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd, codes += group * panel_rows) {
            const PairSums sums = sum_products<group>(codes, x, k + odd * group);
            for (int j = 0; j < 4; ++j) {
                const int32x4_t words = vreinterpretq_s32_u8(vld1q_u8(scales + 16 * j)), two = vtrn1q_s32(words, words);
                const int32x4_t scale = odd ? scales_in<true>(two) : scales_in<false>(two);
                for (int i = 0; i < tokens_at_once / 2; ++i)
                    products.v[i][j] = vmlaq_s32(products.v[i][j], sums.v[i][j], scale);
            }
        }
    }
    return by_token(products);
}

template <class Tile>
[[gnu::always_inline]] inline Sums block_minima(const typename Tile::Block &block, int row,
                                                const int32_t *const *offsets) {
    if constexpr (Tile::size == 32) {
        Sums sums;
        for (int i = 0; i < tokens_at_once; ++i) sums.v[i][0] = sums.v[i][1] = vdupq_n_s32(*offsets[i]);
        return sums;
    }
    PairSums low = {}, high = {};
    const uint8_t *minima = at_row(block.minima, row);
    for (int pairs = 0; pairs < Tile::pairs; pairs += 4, minima += sizeof(TwoColumns)) { // eight groups
        int8x16_t low_bytes[tokens_at_once / 2], high_bytes[tokens_at_once / 2];
        for (int i = 0; i < tokens_at_once / 2; ++i) {
            const SplitSums a = split_sums(offsets[2 * i] + pairs), b = split_sums(offsets[2 * i + 1] + pairs);
            low_bytes[i] = as_bytes(a.low, b.low);
            high_bytes[i] = as_bytes(a.high, b.high);
        }
        add_products(minima, low_bytes, low);
        add_products(minima, high_bytes, high);
    }
    for (int i = 0; i < tokens_at_once / 2; ++i)
        for (int j = 0; j < 4; ++j) low.v[i][j] = joined(low.v[i][j], high.v[i][j]);
    return by_token(low);
}

} // namespace phi::PHI_ISA
