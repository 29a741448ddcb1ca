// One token in AVX-512 with Q4_K, Q5_K and Q6_K: a block of four rows at a time.
//
// What four rows need alike is made once: their activations, and their scales, which are unpacked together. Sums of
// products fit into words; two of them, side by side, meet their scales in one multiplication.
#pragma once

#include "vector_avx512.hpp"

namespace phi::PHI_ISA {

// ---- Q4_K and Q5_K ---------------------------------------------------------------------------

// What four rows have in front of their codes: d, dmin and twelve bytes of scales and minima, a row in each lane.
template <class Block> __m512i four_headers(const Block *const *rows, int64_t block) {
    const auto header = [&](int row) { return load_128(&rows[row][block]); };
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(header(0)), header(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, header(2), 2), header(3), 3);
}

// In each lane eight bytes of scales, then eight of minima; unpack_scales() says where their bits lie.
inline __m512i scales_and_minima(__m512i headers) {
    const __m512i low_mask = four_times(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m512i high_mask = four_times(_mm_setr_epi32(0, 0x30303030, 0, 0x30303030));
    const __m512i last = _mm512_shuffle_epi32(headers, _MM_PERM_DCDB);
    const __m512i first = _mm512_shuffle_epi32(headers, _MM_PERM_CCBB);
    const __m512i low = _mm512_and_si512(_mm512_srlv_epi32(last, four_times(_mm_setr_epi32(0, 0, 0, 4))), low_mask);
    return _mm512_or_si512(low, _mm512_and_si512(_mm512_srli_epi32(first, 2), high_mask));
}

// The first 32 bits of each lane.
inline __m128i first_words(__m512i lanes) {
    const __m512i places = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
    return _mm512_castsi512_si128(_mm512_permutexvar_epi32(places, lanes));
}

// Eight bytes of each lane as words, which begin with byte `first`.
template <int first> __m512i words_of(__m512i bytes) {
    const __m128i one_byte_each = _mm_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1);
    return _mm512_shuffle_epi8(bytes, four_times(_mm_add_epi8(one_byte_each, _mm_set1_epi16(first))));
}

// Σ activation of every 32.
inline __m128i sums_of_32(const int16_t *x_sums) { return _mm_add_epi16(load_128(x_sums), load_128(x_sums + 8)); }

// ---- Q4_K ------------------------------------------------------------------------------------

// 64 bytes of four rows: vector j has bytes 16 · j to + 15 of each row, in its lane.
struct FourVectors {
    __m512i v[4];
};
inline FourVectors rows_in_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
    return {{_mm512_shuffle_i32x4(ab_low, cd_low, 0x88), _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd),
             _mm512_shuffle_i32x4(ab_high, cd_high, 0x88), _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd)}};
}

// The sums of two sub-blocks of four rows, in four parts: as words, side by side. The second's codes, the high bits, stay
// four bits too high; their sums are shifted to the upper word anyway.
[[gnu::always_inline]] inline __m512i pair_sums(__m512i first, __m512i second, const int8_t *x) {
    const auto sums = [&](int bits, const int8_t *from) { // 8 · 15 · 127 fits into a word
        const __m512i half = _mm512_and_si512(first, repeat_8(bits)), other = _mm512_and_si512(second, repeat_8(bits));
        return _mm512_dpbusd_epi32(dot_64(half, four_times(load_128(from))), other, four_times(load_128(from + 16)));
    };
    return _mm512_mask_mov_epi16(_mm512_slli_epi32(sums(0xf0, x + 32), 16 - 4), 0x55555555, sums(0x0f, x));
}

// Σ scale · Σ code · activation of four rows, in four parts. Each lane of `scales` has the eight words of its row.
[[gnu::always_inline]] inline __m512i products_of(const BlockQ4_K *const *rows, int64_t block, __m512i scales,
                                                  const int8_t *x) {
    const __m512i pairs[4] = {
        _mm512_shuffle_epi32(scales, _MM_PERM_AAAA), _mm512_shuffle_epi32(scales, _MM_PERM_BBBB),
        _mm512_shuffle_epi32(scales, _MM_PERM_CCCC), _mm512_shuffle_epi32(scales, _MM_PERM_DDDD)};
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, x += 128) {
        const auto bytes = [&](int row) { return load_512(rows[row][block].qs + 64 * half); };
        const FourVectors codes = rows_in_lanes(bytes(0), bytes(1), bytes(2), bytes(3));
        products = _mm512_dpwssd_epi32(products, pair_sums(codes.v[0], codes.v[1], x), pairs[2 * half]);
        products = _mm512_dpwssd_epi32(products, pair_sums(codes.v[2], codes.v[3], x + 64), pairs[2 * half + 1]);
    }
    return products;
}

// For each row two numbers, side by side: the sums of its lane in `a` and in `b`.
inline __m256i lane_sums(__m512i a, __m512i b) {
    const __m512i halves = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i sums = _mm512_add_epi32(halves, _mm512_shuffle_epi32(halves, _MM_PERM_BADC));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), sums));
}

// d and dmin lie side by side in a header, and so do a row's products and offsets here. Every second total counts.
inline __m128 dot_rows(const BlockQ4_K *const *rows, int64_t blocks, Vector x, Points) {
    __m256 totals = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block, x = next_block<BlockQ4_K>(x)) {
        const __m512i headers = four_headers(rows, block), bytes = scales_and_minima(headers);
        const __m512i products = products_of(rows, block, words_of<0>(bytes), x.codes);
        const __m512i offsets = _mm512_madd_epi16(words_of<8>(bytes), four_times(sums_of_32(x.sums)));
        const __m256 sums = _mm256_cvtepi32_ps(lane_sums(products, offsets));
        const __m256 factors = _mm256_mul_ps(_mm256_cvtph_ps(first_words(headers)), _mm256_set1_ps(*x.scales));
        totals = _mm256_fmadd_ps(factors, sums, totals);
        totals = _mm256_fnmadd_ps(_mm256_movehdup_ps(factors), _mm256_movehdup_ps(sums), totals);
    }
    return _mm_shuffle_ps(_mm256_castps256_ps128(totals), _mm256_extractf128_ps(totals, 1), 0x88);
}

// ---- Q5_K ------------------------------------------------------------------------------------

// Half a block's activations that meet the low four bits of its codes, those of its first and third sub-block, or, 32
// further on, those that meet the high ones.
inline __m512i x_of_half(const int8_t *x) { return join(load_256(x), load_256(x + 64)); }

// Half a block's codes: of the first and third sub-block, and of the second and fourth, twice as large.
struct HalfCodes {
    __m512i even, odd;
};
inline HalfCodes codes_of_half(const BlockQ5_K &block, int half) {
    const __m512i bytes = load_512(block.qs + 64 * half), odd = _mm512_srli_epi16(bytes, 3);
    // Bits 4 · half and two further on become bits 4, and those above them bits 5.
    const __m512i turns = join(_mm256_set1_epi32(4 - 4 * half), _mm256_set1_epi32((2 - 4 * half) & 31));
    const __m512i fifths = _mm512_rolv_epi32(both_halves(load_256(block.qh)), turns);
    return {_mm512_or_si512(_mm512_and_si512(bytes, repeat_8(0x0f)), _mm512_and_si512(fifths, repeat_8(0x10))),
            _mm512_or_si512(_mm512_and_si512(odd, repeat_8(0x1e)), _mm512_and_si512(fifths, repeat_8(0x20)))};
}

// Σ scale · Σ code · activation, in 16 parts. Each lane of `scales` has the eight bytes of this row.
[[gnu::always_inline]] inline __m512i products_of_32(const BlockQ5_K &block, const __m512i *x, __m512i scales) {
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const auto [even, odd] = codes_of_half(block, half);
        const __m512i high = _mm512_slli_epi32(dot_64(odd, x[2 * half + 1]), 16 - 1);
        const __m512i words = _mm512_mask_mov_epi16(high, 0x55555555, dot_64(even, x[2 * half]));
        const auto two = [](int sub) { return _mm256_set1_epi32(static_cast<int>(0x80018000 + 0x10001 * sub)); };
        const __m512i both = _mm512_shuffle_epi8(scales, join(two(4 * half), two(4 * half + 2)));
        products = _mm512_dpwssd_epi32(products, words, both);
    }
    return products;
}

// d and dmin of four rows, from their headers.
struct FourSteps {
    __m128 d, dmin;
};
inline FourSteps steps_of(__m512i headers) {
    const __m256 both = _mm256_cvtph_ps(first_words(headers));
    const __m128 low = _mm256_castps256_ps128(both), high = _mm256_extractf128_ps(both, 1);
    return {_mm_shuffle_ps(low, high, 0x88), _mm_shuffle_ps(low, high, 0xdd)};
}

// Σ minimum · Σ activation of four rows.
inline __m128i minima_products(__m512i minima, const int16_t *x_sums) {
    __m512i products = _mm512_madd_epi16(minima, four_times(sums_of_32(x_sums)));
    products = _mm512_add_epi32(products, _mm512_shuffle_epi32(products, _MM_PERM_CDAB));
    return first_words(_mm512_add_epi32(products, _mm512_shuffle_epi32(products, _MM_PERM_BADC)));
}

inline __m128 dot_rows(const BlockQ5_K *const *rows, int64_t blocks, Vector x, Points) {
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block, x = next_block<BlockQ5_K>(x)) {
        const __m512i codes[4] = {x_of_half(x.codes), x_of_half(x.codes + 32), x_of_half(x.codes + 128),
                                  x_of_half(x.codes + 160)};
        const __m512i headers = four_headers(rows, block), bytes = scales_and_minima(headers);
        const __m512i products[4] = {
            products_of_32(rows[0][block], codes, _mm512_shuffle_i32x4(bytes, bytes, 0x00)),
            products_of_32(rows[1][block], codes, _mm512_shuffle_i32x4(bytes, bytes, 0x55)),
            products_of_32(rows[2][block], codes, _mm512_shuffle_i32x4(bytes, bytes, 0xaa)),
            products_of_32(rows[3][block], codes, _mm512_shuffle_i32x4(bytes, bytes, 0xff))};
        const FourSteps steps = steps_of(headers);
        const __m128 scale = _mm_set1_ps(*x.scales);
        const __m128i sums = sum_lanes(products[0], products[1], products[2], products[3]);
        const __m128i offsets = minima_products(words_of<8>(bytes), x.sums);
        totals = _mm_fmadd_ps(_mm_mul_ps(steps.d, scale), _mm_cvtepi32_ps(sums), totals);
        totals = _mm_fnmadd_ps(_mm_mul_ps(steps.dmin, scale), _mm_cvtepi32_ps(offsets), totals);
    }
    return totals;
}

// ---- Q6_K ------------------------------------------------------------------------------------

// Weights 64 · k to 64 · k + 63.
inline __m512i codes_of_64(const BlockQ6_K &block, int k) {
    const __m512i bytes = load_512(block.ql + 64 * (k / 2)), highest = both_halves(load_256(block.qh + 32 * (k / 2)));
    const __m512i low = _mm512_and_si512(k % 2 == 0 ? bytes : _mm512_srli_epi16(bytes, 4), repeat_8(15));
    const __m512i turns = k % 2 == 0 ? join(_mm256_set1_epi32(4), _mm256_set1_epi32(2))
                                     : join(_mm256_set1_epi32(0), _mm256_set1_epi32(30));
    return _mm512_or_si512(low, _mm512_and_si512(_mm512_rolv_epi32(highest, turns), repeat_8(0x30)));
}

// For sums of four products of weights 128 · half to + 63 and of the 64 behind them, packed: a lane has four of a
// group of 16 and four of the group four further on. Bytes come to the top of words, where a shift keeps their sign.
template <int half> __m512i group_scales(__m512i scales) {
    const auto four = [](int group) { return static_cast<long long>(0x0080008000800080 | 0x0100010001000100 * group); };
    constexpr int at = 8 * half;
    const __m512i places = _mm512_setr_epi64(four(at), four(at + 4), four(at + 1), four(at + 5), four(at + 2),
                                             four(at + 6), four(at + 3), four(at + 7));
    return _mm512_srai_epi16(_mm512_shuffle_epi8(scales, places), 8);
}

// `begin` is what each sum begins with: -32 · Σ activation.
[[gnu::always_inline]] inline __m512i products_of_16(const BlockQ6_K &block, const __m512i *x, const __m512i *begin) {
    const __m512i scales = four_times(load_128(block.scales));
    __m512i products = _mm512_setzero_si512();
    const auto add = [&](int k, __m512i words) {
        const __m512i even = _mm512_dpbusd_epi32(begin[k], codes_of_64(block, k), x[k]);
        const __m512i odd = _mm512_dpbusd_epi32(begin[k + 1], codes_of_64(block, k + 1), x[k + 1]);
        products = _mm512_dpwssd_epi32(products, _mm512_packs_epi32(even, odd), words);
    };
    add(0, group_scales<0>(scales));
    add(2, group_scales<1>(scales));
    return products;
}

inline __m128 dot_rows(const BlockQ6_K *const *rows, int64_t blocks, Vector x, Points) {
    constexpr int zero = Traits<BlockQ6_K>::zero;
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block, x = next_block<BlockQ6_K>(x)) {
        __m512i codes[4], begin[4], products[4];
        for (int k = 0; k < 4; ++k) {
            codes[k] = load_512(x.codes + 64 * k);
            begin[k] = _mm512_sub_epi32(_mm512_setzero_si512(), dot_64(repeat_8(zero), codes[k]));
        }
#pragma GCC unroll 4
        for (int row = 0; row < 4; ++row) products[row] = products_of_16(rows[row][block], codes, begin);
        const __m128 factors = _mm_mul_ps(four_d(rows, block), _mm_set1_ps(*x.scales));
        const __m128i sums = sum_lanes(products[0], products[1], products[2], products[3]);
        totals = _mm_fmadd_ps(factors, _mm_cvtepi32_ps(sums), totals);
    }
    return totals;
}

} // namespace phi::PHI_ISA
