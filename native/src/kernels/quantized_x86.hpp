// What the AVX2 and AVX-512 products with quantized weights have in common.
//
// A single token takes four rows at a time straight from the file: block_sums() of the instruction set gives
// the integer sums of one block in 8 lanes, and the lanes of four rows are added up together.
#pragma once

#include "panel.hpp"
#include "unpacked.hpp"

#include <immintrin.h>

namespace phi::PHI_ISA {

inline __m256i load_256(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m128i load_128(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }

// Four bytes, whatever they are and wherever they begin.
using AnyInt [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
inline uint32_t load_32(const void *p) { return static_cast<uint32_t>(*static_cast<const AnyInt *>(p)); }

// The sums over the lanes of four vectors.
inline __m128i sum_lanes(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// Scales and minimums of Q4_K and Q5_K, see unpack_scales(): 8 words each.
struct ScalesAndMinimums {
    __m128i scales, minimums;
};

inline ScalesAndMinimums scales_and_minimums(const uint8_t *packed) {
    const uint64_t first = load_32(packed), second = load_32(packed + 4), third = load_32(packed + 8);
    const uint64_t low_six = 0x3f3f3f3f, low_four = 0x0f0f0f0f, high_two = 0x30303030;
    const uint64_t scales = (first & low_six) | ((third & low_four) | (first >> 2 & high_two)) << 32;
    const uint64_t minimums = (second & low_six) | ((third >> 4 & low_four) | (second >> 2 & high_two)) << 32;
    return {_mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(scales))),
            _mm_cvtepu8_epi16(_mm_cvtsi64_si128(static_cast<long long>(minimums)))};
}

// The scales of Q6_K as words, those of even groups first, then those of odd groups.
inline __m256i even_odd_scales(const int8_t *scales) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(load_128(scales), order));
}

inline __m128 four_halves(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
    const int low = a | b << 16, high = c | d << 16;
    return _mm_cvtph_ps(_mm_setr_epi32(low, high, 0, 0));
}

// Integer sums of one block, spread over lanes. `offsets` is 0 where the products contain it already.
struct BlockSums {
    __m256i products, offsets;
};

// Blocks of 32 have one offset for all weights: it is taken off one lane of the products.
inline __m256i without_offset(__m256i products, int offset) {
    return _mm256_sub_epi32(products, _mm256_zextsi128_si256(_mm_cvtsi32_si128(offset)));
}

BlockSums block_sums(const BlockQ8_0 &block, const int8_t *x, const int16_t *sums);
BlockSums block_sums(const BlockQ4_0 &block, const int8_t *x, const int16_t *sums);
BlockSums block_sums(const BlockQ4_K &block, const int8_t *x, const int16_t *sums);
BlockSums block_sums(const BlockQ5_K &block, const int8_t *x, const int16_t *sums);
BlockSums block_sums(const BlockQ6_K &block, const int8_t *x, const int16_t *sums);

// Asks for the bytes that will be worked on four rows later. Four short streams are too much for the hardware
// to guess.
template <class Block> void prefetch_rows(const Block *row, int64_t blocks, int64_t block) {
    const char *ahead = reinterpret_cast<const char *>(row + 4 * blocks + 4 * block);
    for (size_t i = 0; i < 4 * sizeof(Block); i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
}

// Four dot products with one vector.
template <class Block> __m128 dot_rows(const Block *const *rows, int64_t blocks, Vector x) {
    constexpr int size = Traits<Block>::size;
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block) {
        prefetch_rows(rows[0], blocks, block);
        BlockSums sums[4];
        for (int row = 0; row < 4; ++row)
            sums[row] = block_sums(rows[row][block], x.codes + block * size, x.sums + block * sums_in(size));
        const Block &a = rows[0][block], &b = rows[1][block], &c = rows[2][block], &d = rows[3][block];
        const __m128 scale = _mm_mul_ps(four_halves(a.d, b.d, c.d, d.d), _mm_set1_ps(x.scales[block]));
        const __m128i products = sum_lanes(sums[0].products, sums[1].products, sums[2].products, sums[3].products);
        totals = _mm_fmadd_ps(scale, _mm_cvtepi32_ps(products), totals);
        if constexpr (!Traits<Block>::one_scale) {
            const __m128i offsets = sum_lanes(sums[0].offsets, sums[1].offsets, sums[2].offsets, sums[3].offsets);
            const __m128 min_scale =
                _mm_mul_ps(four_halves(a.dmin, b.dmin, c.dmin, d.dmin), _mm_set1_ps(x.scales[block]));
            totals = _mm_fnmadd_ps(min_scale, _mm_cvtepi32_ps(offsets), totals);
        }
    }
    return totals;
}

template <class Block> void vector_matmul(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out) {
    for (int64_t row = first; row < last; row += 4) {
        const Block *rows[4]; // past the end the last one is taken again
        for (int i = 0; i < 4; ++i) rows[i] = row_of<Block>(weight, row + i < last ? row + i : last - 1);
        float totals[4];
        _mm_storeu_ps(totals, dot_rows(rows, weight.cols / Traits<Block>::size, x));
        for (int i = 0; i < 4 && row + i < last; ++i) out[row + i] = totals[i];
    }
}

// Four rows of four words at a time.
inline void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]) {
    for (int row = 0; row < panel_rows; row += 4)
        for (int i = 0; i < n; i += 4) {
            const uint32_t *from = rows + row * stride + i;
            const __m128i a = load_128(from), b = load_128(from + stride), c = load_128(from + 2 * stride),
                          d = load_128(from + 3 * stride);
            const __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
            const __m128i cd_low = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);
            const __m128i out[4] = {_mm_unpacklo_epi64(ab_low, cd_low), _mm_unpackhi_epi64(ab_low, cd_low),
                                    _mm_unpacklo_epi64(ab_high, cd_high), _mm_unpackhi_epi64(ab_high, cd_high)};
            for (int j = 0; j < 4; ++j) _mm_store_si128(reinterpret_cast<__m128i *>(&columns[i + j][row]), out[j]);
        }
}

} // namespace phi::PHI_ISA
