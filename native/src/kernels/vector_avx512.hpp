// One token in AVX-512: sums of blocks in fewer instructions than block_sums() of quantized_x86.hpp needs.
//
// Three ways to save some:
//   bits stay where they are in a byte, if there is room, and their sum is divided by 4;
//   sums of four products meet their scale, not each product;
//   points of a grid are looked up in registers, 32 at a time, see points_at().
#pragma once

#include "quantized_x86.hpp"

namespace phi::PHI_ISA {

struct WideBlockSums {
    __m512i products;
    __m256i offsets;
};

inline __m512i load_512(const void *p) { return _mm512_loadu_si512(p); }
inline __m512i both_halves(__m256i a) { return _mm512_broadcast_i64x4(a); }
inline __m512i four_times(__m128i a) { return _mm512_broadcast_i32x4(a); }
inline __m512i join(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }
inline __m512i repeat_8(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }

// Sums of four products each.
inline __m512i dot_64(__m512i codes, __m512i x) { return _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, x); }

// In each lane of 128 bits the sums over that lane of four vectors.
inline __m512i sum_each_four(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
inline __m128i sum_of_lanes(__m512i lanes) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
inline __m128i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
    return sum_of_lanes(sum_each_four(a, b, c, d));
}
inline __m128i sum_products(const WideBlockSums *rows) {
    return sum_lanes(rows[0].products, rows[1].products, rows[2].products, rows[3].products);
}

// products - Σ zero · scale · Σ activation
template <class Form> WideBlockSums without_zero(__m512i products, __m256i scales, const int16_t *x_sums) {
    const __m256i zeros = _mm256_mullo_epi16(scales, _mm256_set1_epi16(Form::zero));
    const __m256i offsets = _mm256_madd_epi16(zeros, load_256(x_sums));
    return {_mm512_sub_epi32(products, _mm512_zextsi256_si512(offsets)), _mm256_setzero_si256()};
}

// ---- K-quants and trits ----------------------------------------------------------------------

// Of two bits each: what quarter number k of each half of a block meets.
inline __m512i quarters_of_x(const int8_t *x, int k) { return join(load_256(x + 32 * k), load_256(x + 128 + 32 * k)); }

[[gnu::always_inline]] inline WideBlockSums block_sums(const BlockTQ2_0 &block, Vector x, Points) {
    const __m512i bytes = load_512(block.qs);
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const __m512i codes = _mm512_and_si512(_mm512_srli_epi16(bytes, 2 * k), repeat_8(3));
        products = _mm512_dpbusd_epi32(products, codes, quarters_of_x(x.codes, k));
    }
    return without_zero<Traits<BlockTQ2_0>>(products, _mm256_set1_epi16(1), x.sums);
}

// Codes of quarters with odd numbers stay two bits up and count four times: scales of even ones are multiplied by four
// as well. Sums of four products, 4 · 28 · 127 at most, fit into words, and pairs of them meet their scale.
template <class Codes>
[[gnu::always_inline]] inline __m512i quarters_products(const int8_t *x, __m256i scales, const Codes &codes) {
    const __m512i fourfold = both_halves(_mm256_mullo_epi16(scales, _mm256_set1_epi32(1 << 16 | 4)));
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int k = 0; k < 4; k += 2) {
        const __m512i even = dot_64(codes(k), quarters_of_x(x, k)), odd = dot_64(codes(k + 1), quarters_of_x(x, k + 1));
        const auto words = [](int first) { // four times word `first`, then the next
            const long long bytes = (2 * first | (2 * first + 1) << 8) * 0x0001000100010001ll;
            return _mm256_setr_epi64x(bytes, bytes + 0x0202020202020202, bytes, bytes + 0x0202020202020202);
        };
        const __m512i each = _mm512_shuffle_epi8(fourfold, join(words(k), words(k + 4)));
        products = _mm512_dpwssd_epi32(products, _mm512_packs_epi32(even, odd), each);
    }
    return _mm512_srai_epi32(products, 2);
}

// Bits 0 and 1 of each byte for even quarters, 2 and 3 for odd ones.
inline __m512i quarter_codes(__m512i bytes, int k) {
    return _mm512_and_si512(k < 2 ? bytes : _mm512_srli_epi16(bytes, 4), repeat_8(k % 2 == 0 ? 3 : 12));
}

[[gnu::always_inline]] inline WideBlockSums block_sums(const BlockQ2_K &block, Vector x, Points) {
    const __m512i bytes = load_512(block.qs);
    const __m512i products =
        quarters_products(x.codes, scales_of(block), [&](int k) { return quarter_codes(bytes, k); });
    return {products, _mm256_madd_epi16(minima_of(block), load_256(x.sums))};
}

[[gnu::always_inline]] inline WideBlockSums block_sums(const BlockQ3_K &block, Vector x, Points) {
    const __m512i bytes = load_512(block.qs), masks = both_halves(load_256(block.hmask));
    const __m256i scales = scales_of(block);
    const __m512i products = quarters_products(x.codes, scales, [&](int k) {
        const int to = k % 2 == 0 ? 2 : 4;
        const __m512i shifts = join(_mm256_set1_epi32((k - to) & 31), _mm256_set1_epi32((k + 4 - to) & 31));
        const __m512i third = _mm512_and_si512(_mm512_rorv_epi32(masks, shifts), repeat_8(1 << to));
        return _mm512_or_si512(quarter_codes(bytes, k), third);
    });
    return without_zero<Traits<BlockQ3_K>>(products, scales, x.sums);
}

// ---- levels ----------------------------------------------------------------------------------

// Four parts of 32 weights at a time: the low four bits of their bytes are the first 16 of each, the high ones the others.
[[gnu::always_inline]] inline WideBlockSums block_sums(const BlockIQ4_XS &block, Vector x, Points) {
    const __m256i scales = scales_of(block);
    const __m512i levels = four_times(load_128(iq4_levels)), wide_scales = _mm512_cvtepi16_epi32(scales);
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const __m512i bytes = load_512(block.qs + 64 * half);
        const __m512i x_first = load_512(x.codes + 128 * half), x_last = load_512(x.codes + 128 * half + 64);
        const __m512i low = _mm512_shuffle_epi8(levels, _mm512_and_si512(bytes, repeat_8(15)));
        const __m512i high = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), repeat_8(15)));
        __m512i sums = dot_64(low, _mm512_shuffle_i64x2(x_first, x_last, 0x88));
        sums = _mm512_dpbusd_epi32(sums, high, _mm512_shuffle_i64x2(x_first, x_last, 0xdd));
        const __m512i parts = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                               _mm512_set1_epi32(4 * half));
        products = _mm512_add_epi32(products, _mm512_mullo_epi32(sums, _mm512_permutexvar_epi32(parts, wide_scales)));
    }
    return without_zero<Traits<BlockIQ4_XS>>(products, scales, x.sums);
}

// ---- grids -----------------------------------------------------------------------------------

// The points of a grid, each the numbers of its levels in 16 bits: two bits for each of 8 weights, four for each of 4.
struct PointTable {
    const uint16_t *numbers;
    __m512i levels;
};
template <class Block> PointTable point_table() {
    const Grid *grid = find_grid(Traits<Block>::grid);
    return {grid->numbers, four_times(load_128(grid->levels))};
}

// 32 points of a grid of n. One instruction looks up 64 words; a bit of the index decides between two results.
template <int n> [[gnu::always_inline]] inline __m512i points_at(const uint16_t *numbers, __m512i index) {
    if constexpr (n == 64) {
        return _mm512_permutex2var_epi16(load_512(numbers), index, load_512(numbers + 32));
    } else {
        const __mmask32 upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(n / 2));
        return _mm512_mask_blend_epi16(upper, points_at<n / 2>(numbers, index),
                                       points_at<n / 2>(numbers + n / 2, index));
    }
}

// Step k takes bits k · width and up of each byte of the points, so of every point the weights k and k + group / 2. The
// activations lie in that order, see in_order_of_points(). `signs`: bit k of a byte is set where that weight is negative.
template <int group>
[[gnu::always_inline]] inline __m512i point_products(__m512i points, __m512i signs, __m512i sign_bits, __m512i levels,
                                                     const int8_t *x) {
    constexpr int width = 16 / group;
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int k = 0; k < group / 2; ++k) {
        const __m512i numbers = _mm512_and_si512(_mm512_srli_epi16(points, width * k), repeat_8((1 << width) - 1));
        const __m512i activations = load_512(x + 64 * k);
        const __mmask64 minus = _mm512_test_epi8_mask(signs, _mm512_slli_epi16(sign_bits, k));
        const __m512i turned = _mm512_mask_sub_epi8(activations, minus, _mm512_setzero_si512(), activations);
        products = _mm512_dpbusd_epi32(products, _mm512_shuffle_epi8(levels, numbers), turned);
    }
    return products;
}

// 32 points' weights: first 0 and group / 2 of each, then 1 and group / 2 + 1, …
template <GridName grid> void in_order_of_points(const int8_t *x, int64_t n, int8_t *out) {
    constexpr int group = grid == GridName::IQ3_S || grid == GridName::IQ3_XXS ? 4 : 8;
    for (int64_t start = 0; start < n; start += 32 * group)
        for (int k = 0; k < group / 2; ++k)
            for (int i = 0; i < 32 * group; i += 64, out += 2 * 64 / group) {
                const __m512i bytes = load_512(x + start + i);
                if constexpr (group == 8) {
                    const __m512i first = _mm512_and_si512(_mm512_srli_epi64(bytes, 8 * k), _mm512_set1_epi64(0xff));
                    const __m512i second = _mm512_and_si512(_mm512_srli_epi64(bytes, 8 * k + 24), _mm512_set1_epi64(0xff00));
                    _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm512_cvtepi64_epi16(_mm512_or_si512(first, second)));
                } else {
                    const __m512i first = _mm512_and_si512(_mm512_srli_epi32(bytes, 8 * k), _mm512_set1_epi32(0xff));
                    const __m512i second = _mm512_and_si512(_mm512_srli_epi32(bytes, 8 * k + 8), _mm512_set1_epi32(0xff00));
                    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm512_cvtepi32_epi16(_mm512_or_si512(first, second)));
                }
            }
}

// Seven bits of each word, and above them the eighth that makes their number even; then the high four of the eight once
// more, on top of the next byte.
inline __m512i even_signs_of_8(__m512i words) {
    const __m512i sevens = _mm512_and_si512(words, _mm512_set1_epi16(127));
    const __m512i folded = _mm512_and_si512(_mm512_xor_si512(sevens, _mm512_srli_epi16(sevens, 4)), _mm512_set1_epi16(15));
    const __m512i odd = four_times(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m512i signs = _mm512_or_si512(sevens, _mm512_shuffle_epi8(odd, folded));
    return _mm512_or_si512(signs, _mm512_slli_epi16(signs, 4));
}

// For each 32 weights a word of four indices, and one of four times seven signs and the scale.
[[gnu::always_inline]] inline WideBlockSums block_sums(const BlockIQ2_XXS &block, Vector x, PointTable table) {
    const __m512i words = load_512(block.qs);
    const __m128i index_bytes = _mm_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1);
    const __m512i points = points_at<256>(table.numbers, _mm512_shuffle_epi8(words, four_times(index_bytes)));
    const __m128i sign_bytes = _mm_setr_epi8(4, 5, 4, 5, 5, 6, 6, 7, 12, 13, 12, 13, 13, 14, 14, 15);
    const __m512i sevens = _mm512_srlv_epi16(_mm512_shuffle_epi8(words, four_times(sign_bytes)),
                                             _mm512_set1_epi64(0x0005000600070000));
    const __m512i products =
        point_products<8>(points, even_signs_of_8(sevens), repeat_8(1), table.levels, x.codes);
    const __m512i scales = _mm512_srli_epi32(_mm512_shuffle_epi32(words, _MM_PERM_DDBB), 27); // one bit too many
    return {_mm512_mullo_epi32(products, _mm512_or_si512(scales, _mm512_set1_epi32(1))), _mm256_setzero_si256()};
}

[[gnu::always_inline]] inline WideBlockSums block_sums(const BlockIQ3_S &block, Vector x, PointTable table) {
    const __m512i scales = _mm512_cvtepi16_epi32(scales_of(block));
    // Of four bytes, which become 16, bit k and k + 2 belong to each point.
    const __m512i sign_bits = _mm512_set1_epi32(0x40100401);
    __m512i products = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const __m512i index = _mm512_cvtepu8_epi16(load_256(block.qs + 32 * half));
        const __mmask32 upper = load_32(block.qh + 4 * half);
        const __m512i points = _mm512_mask_blend_epi16(upper, points_at<256>(table.numbers, index),
                                                       points_at<256>(table.numbers + 256, index));
        const __m512i signs = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(load_128(block.signs + 16 * half)),
                                                 _mm512_set1_epi32(0x01010101));
        const __m512i sums = point_products<4>(points, signs, sign_bits, table.levels, x.codes + 128 * half);
        const __m512i parts = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                               _mm512_set1_epi32(4 * half));
        products = _mm512_add_epi32(products, _mm512_mullo_epi32(sums, _mm512_permutexvar_epi32(parts, scales)));
    }
    return {products, _mm256_setzero_si256()};
}

// ---- blocks of 32 ----------------------------------------------------------------------------

// The words of four blocks' codes, from the first one's d on. A second vector begins four words later.
template <class Block> __m512i codes_of_four(const Block *blocks) {
    static_assert(sizeof(Block) == 18);
    const auto word = [](int block, int i) { // of two vectors, from 32 on in the second one
        const int at = 9 * block + 1 + i;
        return static_cast<long long>(at < 32 ? at : at - 4 + 32);
    };
    const auto four = [&](int block, int i) {
        return word(block, i) | word(block, i + 1) << 16 | word(block, i + 2) << 32 | word(block, i + 3) << 48;
    };
    const __m512i order = _mm512_setr_epi64(four(0, 0), four(0, 4), four(1, 0), four(1, 4), four(2, 0), four(2, 4),
                                            four(3, 0), four(3, 4));
    const char *bytes = reinterpret_cast<const char *>(blocks);
    return _mm512_permutex2var_epi16(load_512(bytes), order, load_512(bytes + 8));
}

// d of four blocks of four rows: in a lane of 128 bits that of one block of each row.
template <class Block> __m512 sixteen_d(const Block *const *rows, int64_t block) {
    const __m512i order = _mm512_setr_epi64(0, 9 * 0x0001000100010001, 18 * 0x0001000100010001, 27 * 0x0001000100010001,
                                            0, 0, 0, 0);
    __m512i halves = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row)
        halves = _mm512_mask_permutexvar_epi16(halves, 0x1111u << row, order, load_512(rows[row] + block));
    return _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
}

// One number of each block, in all of its lane.
inline __m512i in_lanes(__m128i four) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                    _mm512_castsi128_si512(four));
}

// Σ code · activation for four blocks of four rows, placed as d: the low four bits are the first 16 weights of a block.
template <class Block>
[[gnu::always_inline]] inline __m512i sixteen_products(const Block *const *rows, int64_t block, const int8_t *x) {
    const __m512i x_first = load_512(x), x_last = load_512(x + 64);
    const __m512i x_low = _mm512_shuffle_i64x2(x_first, x_last, 0x88), x_high = _mm512_shuffle_i64x2(x_first, x_last, 0xdd);
    __m512i sums[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        const __m512i bytes = codes_of_four(rows[row] + block);
        __m512i low = _mm512_and_si512(bytes, repeat_8(15));
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), repeat_8(15));
        if constexpr (std::is_same_v<Block, BlockIQ4_NL>) {
            const __m512i levels = four_times(load_128(iq4_levels));
            low = _mm512_shuffle_epi8(levels, low);
            high = _mm512_shuffle_epi8(levels, high);
        }
        sums[row] = _mm512_dpbusd_epi32(dot_64(low, x_low), high, x_high);
    }
    return sum_each_four(sums[0], sums[1], sums[2], sums[3]);
}

// As the other one, but four blocks at a time.
template <class Block>
    requires(std::is_same_v<Block, BlockQ4_0> || std::is_same_v<Block, BlockIQ4_NL>)
__m128 dot_rows(const Block *const *rows, int64_t blocks, Vector x, Points points) {
    if (blocks % 4 != 0) return dot_rows<Block, Points>(rows, blocks, x, points);
    const __m512i zero = _mm512_set1_epi32(Traits<Block>::zero);
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < blocks; block += 4) {
        const __m512i zeros = _mm512_mullo_epi32(in_lanes(_mm_cvtepi16_epi32(load_64(x.sums + block))), zero);
        const __m512i products = _mm512_sub_epi32(sixteen_products(rows, block, x.codes + 32 * block), zeros);
        const __m512 sums = _mm512_cvtepi32_ps(products);
        const __m512 scales = _mm512_castsi512_ps(in_lanes(load_128(x.scales + block)));
        const __m512 factors = _mm512_mul_ps(sixteen_d(rows, block), scales);
        totals = _mm_fmadd_ps(_mm512_castps512_ps128(factors), _mm512_castps512_ps128(sums), totals);
        totals = _mm_fmadd_ps(_mm512_extractf32x4_ps(factors, 1), _mm512_extractf32x4_ps(sums, 1), totals);
        totals = _mm_fmadd_ps(_mm512_extractf32x4_ps(factors, 2), _mm512_extractf32x4_ps(sums, 2), totals);
        totals = _mm_fmadd_ps(_mm512_extractf32x4_ps(factors, 3), _mm512_extractf32x4_ps(sums, 3), totals);
    }
    return totals;
}

} // namespace phi::PHI_ISA
