// Products with quantized weights in AVX2.
//
// vpmaddubsw multiplies codes (unsigned) with activations (signed) and adds neighbours in 16 bits: 2 · 63 · 127
// is below 2^15 for every type but Q8_0. vpmaddwd then multiplies with scales and adds in 32 bits.
#pragma once

#include "quantized_x86.hpp"

namespace phi::PHI_ISA {

inline __m256i low_four_bits(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline __m256i high_four_bits(__m256i bytes) { return low_four_bits(_mm256_srli_epi16(bytes, 4)); }
inline __m256i both_halves(__m128i a) { return _mm256_broadcastsi128_si256(a); }

// scale · code · activation for 32 weights: in each half of `scales` word number `index` belongs to the 16
// weights of the same half.
inline __m256i scaled_products(__m256i codes, const int8_t *x, __m256i scales, int index) {
    const __m256i pick = _mm256_set1_epi16(static_cast<short>(2 * index | (2 * index + 1) << 8));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load_256(x)), _mm256_shuffle_epi8(scales, pick));
}

inline BlockSums block_sums(const BlockQ4_K &block, const int8_t *x, const int16_t *sums) {
    const ScalesAndMinimums s = scales_and_minimums(block.scales);
    const __m256i scales = both_halves(s.scales);
    __m256i products = _mm256_setzero_si256();
    for (int group = 0; group < 4; ++group) {
        const __m256i bytes = load_256(block.qs + 32 * group);
        const __m256i low = scaled_products(low_four_bits(bytes), x + 64 * group, scales, 2 * group);
        const __m256i high = scaled_products(high_four_bits(bytes), x + 64 * group + 32, scales, 2 * group + 1);
        products = _mm256_add_epi32(products, _mm256_add_epi32(low, high));
    }
    return {products, _mm256_madd_epi16(both_halves(s.minimums), load_256(sums))};
}

inline BlockSums block_sums(const BlockQ5_K &block, const int8_t *x, const int16_t *sums) {
    const ScalesAndMinimums s = scales_and_minimums(block.scales);
    const __m256i scales = both_halves(s.scales), fifth_bits = load_256(block.qh), sixteen = _mm256_set1_epi8(16);
    __m256i products = _mm256_setzero_si256();
    for (int group = 0; group < 4; ++group) {
        const __m256i bytes = load_256(block.qs + 32 * group);
        const __m256i fifth = _mm256_srli_epi16(fifth_bits, 2 * group); // bits 0 and 1 are this group's
        const __m256i low_fifth = _mm256_and_si256(_mm256_slli_epi16(fifth, 4), sixteen);
        const __m256i high_fifth = _mm256_and_si256(_mm256_slli_epi16(fifth, 3), sixteen);
        const __m256i low = _mm256_or_si256(low_four_bits(bytes), low_fifth);
        const __m256i high = _mm256_or_si256(high_four_bits(bytes), high_fifth);
        products = _mm256_add_epi32(products, scaled_products(low, x + 64 * group, scales, 2 * group));
        products = _mm256_add_epi32(products, scaled_products(high, x + 64 * group + 32, scales, 2 * group + 1));
    }
    return {products, _mm256_madd_epi16(both_halves(s.minimums), load_256(sums))};
}

inline BlockSums block_sums(const BlockQ6_K &block, const int8_t *x, const int16_t *sums) {
    const __m256i scales = even_odd_scales(block.scales), high_two = _mm256_set1_epi8(0x30);
    __m256i products = _mm256_setzero_si256();
    for (int part = 0; part < 2; ++part) {
        const __m256i first = load_256(block.ql + 64 * part), second = load_256(block.ql + 64 * part + 32);
        const __m256i top = load_256(block.qh + 32 * part);
        const __m256i codes[4] = {
            _mm256_or_si256(low_four_bits(first), _mm256_and_si256(_mm256_slli_epi16(top, 4), high_two)),
            _mm256_or_si256(low_four_bits(second), _mm256_and_si256(_mm256_slli_epi16(top, 2), high_two)),
            _mm256_or_si256(high_four_bits(first), _mm256_and_si256(top, high_two)),
            _mm256_or_si256(high_four_bits(second), _mm256_and_si256(_mm256_srli_epi16(top, 2), high_two))};
        for (int i = 0; i < 4; ++i)
            products =
                _mm256_add_epi32(products, scaled_products(codes[i], x + 128 * part + 32 * i, scales, 4 * part + i));
    }
    const __m256i offsets = _mm256_madd_epi16(_mm256_slli_epi16(scales, 5), load_256(sums)); // 32 · scale
    return {_mm256_sub_epi32(products, offsets), _mm256_setzero_si256()};
}

inline BlockSums block_sums(const BlockQ4_0 &block, const int8_t *x, const int16_t *sums) {
    const __m128i bytes = load_128(block.qs);
    const __m256i codes = low_four_bits(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes));
    const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load_256(x)), _mm256_set1_epi16(1));
    return {without_offset(products, 8 * *sums), _mm256_setzero_si256()};
}

// Signed codes: |weight| · (activation with the weight's sign).
inline __m256i signed_products(__m256i weights, __m256i x) {
    const __m256i words = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return _mm256_madd_epi16(words, _mm256_set1_epi16(1));
}

inline BlockSums block_sums(const BlockQ8_0 &block, const int8_t *x, const int16_t *) {
    return {signed_products(load_256(block.qs), load_256(x)), _mm256_setzero_si256()};
}

// ---- many tokens -----------------------------------------------------------------------------

inline constexpr int panel_tokens = 6; // their sums fit into the 16 registers

inline __m256i repeat_32(const void *p) { return _mm256_set1_epi32(*static_cast<const AnyInt *>(p)); }

// How many steps of four codes can be added up in 16 bits.
template <class Block> constexpr int steps_in_words() {
    constexpr int most = 32767 / (2 * 127 * Traits<Block>::max_code), all = Traits<Block>::group / 4;
    return most >= 8 && all >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// Four codes of eight rows with four activations of a token, pairs added in 16 bits.
template <class Block> __m256i step_products(__m256i codes, const int8_t *x) {
    const __m256i activations = repeat_32(x);
    if constexpr (std::is_same_v<Block, BlockQ8_0>) { // signed again, so that 16 bits are enough
        const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights));
    } else {
        return _mm256_maddubs_epi16(codes, activations);
    }
}

// Σ code · activation over one group of weights that share a scale, for eight rows.
template <class Block, int tokens>
[[gnu::always_inline]] inline void group_products(const uint8_t (*codes)[panel_rows][4], const int8_t *const *x,
                                                  __m256i *products) {
    constexpr int steps = steps_in_words<Block>();
    for (int i = 0; i < tokens; ++i) products[i] = _mm256_setzero_si256();
    for (int start = 0; start < Traits<Block>::group / 4; start += steps) {
        __m256i words[tokens];
        for (int i = 0; i < tokens; ++i) words[i] = _mm256_setzero_si256();
#pragma GCC unroll 2 // with more the compiler adds in a tree, for which there are not enough registers
        for (int step = start; step < start + steps; ++step) {
            const __m256i weights = load_256(codes[step]);
            for (int i = 0; i < tokens; ++i)
                words[i] = _mm256_add_epi16(words[i], step_products<Block>(weights, x[i] + 4 * step));
        }
        for (int i = 0; i < tokens; ++i)
            products[i] = _mm256_add_epi32(products[i], _mm256_madd_epi16(words[i], _mm256_set1_epi16(1)));
    }
}

// Adds one block of eight rows, from `row` on, to the dot products with each token.
template <class Block, int tokens>
void add_block(const PanelBlock<Block> &block, int row, const Vector *x, int64_t index, __m256 *totals) {
    constexpr int size = Traits<Block>::size, group = Traits<Block>::group;
    __m256i products[tokens], offsets[tokens];
    for (int i = 0; i < tokens; ++i) products[i] = offsets[i] = _mm256_setzero_si256();
    for (int start = 0; start < size; start += group) {
        const int8_t *codes[tokens];
        __m256i sums[tokens];
        for (int i = 0; i < tokens; ++i) codes[i] = x[i].codes + index * size + start;
        group_products<Block, tokens>(reinterpret_cast<const uint8_t (*)[panel_rows][4]>(block.codes[start / 4][row]),
                                      codes, sums);
        for (int i = 0; i < tokens; ++i) {
            if constexpr (size == 256)
                sums[i] = _mm256_mullo_epi32(sums[i], load_256(&block.scales[start / group][row]));
            products[i] = _mm256_add_epi32(products[i], sums[i]);
        }
    }
    if constexpr (size == 256)
        for (int pair = 0; pair < 8; ++pair)
            for (int i = 0; i < tokens; ++i) {
                const __m256i both = repeat_32(x[i].sums + index * 16 + 2 * pair);
                offsets[i] = _mm256_add_epi32(offsets[i], _mm256_madd_epi16(load_256(block.offsets[pair][row]), both));
            }
    if constexpr (std::is_same_v<Block, BlockQ4_0>)
        for (int i = 0; i < tokens; ++i) offsets[i] = _mm256_set1_epi32(8 * x[i].sums[index]);
    const __m256 d = _mm256_load_ps(block.d + row), dmin = _mm256_load_ps(block.dmin + row);
    for (int i = 0; i < tokens; ++i) {
        const __m256 scale = _mm256_set1_ps(x[i].scales[index]);
        if constexpr (Traits<Block>::one_scale) products[i] = _mm256_sub_epi32(products[i], offsets[i]);
        totals[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), _mm256_cvtepi32_ps(products[i]), totals[i]);
        if constexpr (!Traits<Block>::one_scale)
            totals[i] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, scale), _mm256_cvtepi32_ps(offsets[i]), totals[i]);
    }
}

template <class Block, int tokens>
void tile(const PanelBlock<Block> *panel, int64_t blocks, const Vector *x, float (*results)[panel_rows]) {
    for (int row = 0; row < panel_rows; row += 8) {
        __m256 totals[tokens];
        for (int i = 0; i < tokens; ++i) totals[i] = _mm256_setzero_ps();
        for (int64_t block = 0; block < blocks; ++block) add_block<Block, tokens>(panel[block], row, x, block, totals);
        for (int i = 0; i < tokens; ++i) _mm256_storeu_ps(results[i] + row, totals[i]);
    }
}

template <class Block>
void quantized_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                      ptrdiff_t stride, void *scratch) {
    if (x.tokens >= panel_tokens)
        return panel_matmul<Block, panel_tokens>(weight, first, last, x, out, stride, scratch);
    for (int token = 0; token < x.tokens; ++token)
        vector_matmul<Block>(weight, first, last, vector_of<Block>(x, token), out + token * stride);
}

} // namespace phi::PHI_ISA
