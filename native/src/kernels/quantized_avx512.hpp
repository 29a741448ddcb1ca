// Products with quantized weights in AVX-512 with VNNI.
//
// vpdpbusd multiplies codes (unsigned) with activations (signed) and adds four neighbours in 32 bits at once.
#pragma once

#include "quantized_x86.hpp"

namespace phi::PHI_ISA {

inline __m512i load_512(const void *p) { return _mm512_loadu_si512(p); }

inline __m256i add_halves(__m512i a) {
    return _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
}

// scale · code · activation for 64 weights; lane i has four of them, and lane pick[i] of `scales` their scale.
inline __m512i scaled_products(__m512i codes, const int8_t *x, __m512i scales, __m512i pick) {
    const __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, load_512(x));
    return _mm512_mullo_epi32(products, _mm512_permutexvar_epi32(pick, scales));
}

// Lane numbers first + 0, 0, … 1, 1, … with every number `repeat` times.
inline __m512i lane_numbers(int first, int repeat) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_srli_epi32(lanes, repeat == 4 ? 2 : 3), _mm512_set1_epi32(first));
}

// 32 bytes of two codes each, in order: the low four bits of all, then the high four bits.
inline __m512i low_then_high(const uint8_t *bytes) {
    const __m512i both = _mm512_broadcast_i64x4(load_256(bytes));
    const __m512i shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15));
}

inline __m256i minimum_products(__m128i minimums, const int16_t *sums) {
    return _mm256_madd_epi16(_mm256_broadcastsi128_si256(minimums), load_256(sums));
}

inline BlockSums block_sums(const BlockQ4_K &block, const int8_t *x, const int16_t *sums) {
    const ScalesAndMinimums s = scales_and_minimums(block.scales);
    const __m512i scales = _mm512_castsi256_si512(_mm256_cvtepi16_epi32(s.scales));
    __m512i products = _mm512_setzero_si512();
    for (int group = 0; group < 4; ++group) {
        const __m512i codes = low_then_high(block.qs + 32 * group);
        products =
            _mm512_add_epi32(products, scaled_products(codes, x + 64 * group, scales, lane_numbers(2 * group, 8)));
    }
    return {add_halves(products), minimum_products(s.minimums, sums)};
}

inline BlockSums block_sums(const BlockQ5_K &block, const int8_t *x, const int16_t *sums) {
    const ScalesAndMinimums s = scales_and_minimums(block.scales);
    const __m512i scales = _mm512_castsi256_si512(_mm256_cvtepi16_epi32(s.scales));
    const __m512i fifth_bits = _mm512_broadcast_i64x4(load_256(block.qh));
    __m512i products = _mm512_setzero_si512();
    for (int group = 0; group < 4; ++group) {
        const int low = 2 * group, high = 2 * group + 1; // the bits of qh that belong to the two halves
        const __m512i shifts = _mm512_setr_epi64(low, low, low, low, high, high, high, high);
        const __m512i fifth = _mm512_and_si512(_mm512_srlv_epi64(fifth_bits, shifts), _mm512_set1_epi8(1));
        const __m512i codes = _mm512_or_si512(low_then_high(block.qs + 32 * group), _mm512_slli_epi16(fifth, 4));
        products =
            _mm512_add_epi32(products, scaled_products(codes, x + 64 * group, scales, lane_numbers(2 * group, 8)));
    }
    return {add_halves(products), minimum_products(s.minimums, sums)};
}

inline BlockSums block_sums(const BlockQ6_K &block, const int8_t *x, const int16_t *sums) {
    const __m512i scales = _mm512_cvtepi8_epi32(load_128(block.scales));
    const __m512i low_four = _mm512_set1_epi8(15), high_two = _mm512_set1_epi8(0x30);
    __m512i products = _mm512_setzero_si512();
    for (int part = 0; part < 2; ++part) {
        const __m512i bytes = load_512(block.ql + 64 * part);
        const __m512i top = _mm512_broadcast_i64x4(load_256(block.qh + 32 * part));
        // Bits 0-1 belong to weights 0-31 of this half, 2-3 to 32-63, 4-5 to 64-95, 6-7 to 96-127.
        const __m512i low_top = _mm512_sllv_epi64(top, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
        const __m512i high_top = _mm512_srlv_epi64(top, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2));
        const __m512i low = _mm512_or_si512(_mm512_and_si512(bytes, low_four), _mm512_and_si512(low_top, high_two));
        const __m512i high = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_four),
                                             _mm512_and_si512(high_top, high_two));
        const int8_t *start = x + 128 * part;
        products = _mm512_add_epi32(products, scaled_products(low, start, scales, lane_numbers(8 * part, 4)));
        products = _mm512_add_epi32(products, scaled_products(high, start + 64, scales, lane_numbers(8 * part + 4, 4)));
    }
    const __m256i offsets = _mm256_slli_epi16(even_odd_scales(block.scales), 5); // 32 · scale
    return {_mm256_sub_epi32(add_halves(products), _mm256_madd_epi16(offsets, load_256(sums))), _mm256_setzero_si256()};
}

inline BlockSums block_sums(const BlockQ4_0 &block, const int8_t *x, const int16_t *sums) {
    const __m128i bytes = load_128(block.qs);
    const __m256i codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes), _mm256_set1_epi8(15));
    const __m256i products = _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, load_256(x));
    return {without_offset(products, 8 * *sums), _mm256_setzero_si256()};
}

inline BlockSums block_sums(const BlockQ8_0 &block, const int8_t *x, const int16_t *sums) {
    const __m256i codes = _mm256_xor_si256(load_256(block.qs), _mm256_set1_epi8(-128)); // q + 128
    const __m256i products = _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, load_256(x));
    return {without_offset(products, 128 * *sums), _mm256_setzero_si256()};
}

// ---- many tokens -----------------------------------------------------------------------------

inline constexpr int panel_tokens = 8; // three registers of sums each

inline __m512i repeat_32(const void *p) { return _mm512_set1_epi32(*static_cast<const AnyInt *>(p)); }

// Adds one block of 16 rows to the dot products with each token.
template <class Block, int tokens>
void add_block(const PanelBlock<Block> &block, const Vector *x, int64_t index, __m512 *totals) {
    constexpr int size = Traits<Block>::size, group = Traits<Block>::group;
    __m512i products[tokens], offsets[tokens];
    for (int i = 0; i < tokens; ++i) products[i] = offsets[i] = _mm512_setzero_si512();
    for (int start = 0; start < size; start += group) {
        __m512i sums[tokens];
        for (int i = 0; i < tokens; ++i) sums[i] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int k = start; k < start + group; k += 4) {
            const __m512i codes = load_512(block.codes[k / 4]);
            for (int i = 0; i < tokens; ++i)
                sums[i] = _mm512_dpbusd_epi32(sums[i], codes, repeat_32(x[i].codes + index * size + k));
        }
        for (int i = 0; i < tokens; ++i) {
            if constexpr (size == 256) sums[i] = _mm512_mullo_epi32(sums[i], load_512(block.scales[start / group]));
            products[i] = _mm512_add_epi32(products[i], sums[i]);
        }
    }
    if constexpr (size == 256)
        for (int pair = 0; pair < 8; ++pair)
            for (int i = 0; i < tokens; ++i)
                offsets[i] = _mm512_dpwssd_epi32(offsets[i], load_512(block.offsets[pair]),
                                                 repeat_32(x[i].sums + index * 16 + 2 * pair));
    else
        for (int i = 0; i < tokens; ++i)
            offsets[i] = _mm512_set1_epi32((Traits<Block>::max_code + 1) / 2 * x[i].sums[index]);
    const __m512 d = _mm512_load_ps(block.d), dmin = _mm512_load_ps(block.dmin);
    for (int i = 0; i < tokens; ++i) {
        const __m512 scale = _mm512_set1_ps(x[i].scales[index]);
        if constexpr (Traits<Block>::one_scale) products[i] = _mm512_sub_epi32(products[i], offsets[i]);
        totals[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), _mm512_cvtepi32_ps(products[i]), totals[i]);
        if constexpr (!Traits<Block>::one_scale)
            totals[i] = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, scale), _mm512_cvtepi32_ps(offsets[i]), totals[i]);
    }
}

template <class Block, int tokens>
void tile(const PanelBlock<Block> *panel, int64_t blocks, const Vector *x, float (*results)[panel_rows]) {
    __m512 totals[tokens];
    for (int i = 0; i < tokens; ++i) totals[i] = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block) add_block<Block, tokens>(panel[block], x, block, totals);
    for (int i = 0; i < tokens; ++i) _mm512_storeu_ps(results[i], totals[i]);
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
