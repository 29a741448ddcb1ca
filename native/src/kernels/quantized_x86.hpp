// What the AVX2 and AVX-512 products with quantized weights have in common.
//
// A single token takes the weights straight from the file, from the first byte of a row to its last: the processor
// guesses such reading well and fetches ahead. block_sums() gives the integer sums of one block in 8 lanes, and the
// lanes of four blocks are added up together. Floats come last, for four rows side by side, see dot_rows().
#pragma once

#include "decode_x86.hpp"
#include "panel.hpp"

namespace phi::PHI_ISA {

// ---- one token -------------------------------------------------------------------------------

// The instruction set brings these: they add products to 8 sums, of two neighbouring words or of four bytes each.
// Where signed_codes, dot_codes() takes codes around zero, else from 0 up.
__m256i dot_words(__m256i sums, __m256i a, __m256i b);
template <class Form> __m256i dot_codes(__m256i sums, __m256i codes, __m256i x);
template <class Form> constexpr bool signed_codes();

// Integer sums of one block, spread over lanes. `offsets` is 0 where the products contain it already.
struct BlockSums {
    __m256i products, offsets;
};

// code · activation, two neighbours in each word: 2 · 128 · 127 fits. Where codes have all 8 bits they are taken as
// signed: |weight| · (activation with the weight's sign).
template <class Form> __m256i word_products(__m256i codes, __m256i x) {
    if constexpr (!Form::is_signed) return _mm256_maddubs_epi16(codes, x);
    const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
}

// What is taken off for every group: its minimum, or what its scale makes of the code of zero.
template <class Form, class Block> __m256i offsets_of(const Block &block, __m256i scales) {
    if constexpr (Form::minima)
        return minima_of(block);
    else
        return _mm256_mullo_epi16(scales, _mm256_set1_epi16(Form::zero));
}

// In each half of `scales` the word number `part`, everywhere.
inline __m256i pick_scales(__m256i scales, int part) {
    return _mm256_shuffle_epi8(scales, _mm256_set1_epi16(static_cast<short>(2 * part | (2 * part + 1) << 8)));
}

// The sums of a block with the part of a vector that it meets. The instruction set may know a better way for a type.
// Where types have a grid, a table of its points is handed in.
template <class Block>
    requires(Traits<Block>::size == 32)
BlockSums block_sums(const Block &block, Vector x, Points points) {
    const __m256i zero = _mm256_setzero_si256();
    return {dot_codes<Traits<Block>>(zero, codes_of(block, 0, points), load_256(x.codes)), zero};
}

template <class Block> BlockSums block_sums(const Block &block, Vector x, Points points) {
    using Form = Traits<Block>;
    const __m256i zero = _mm256_setzero_si256();
    const __m256i scales = scales_of(block);
    __m256i products = zero;
#pragma GCC unroll 8
    for (int part = 0; part < Form::size / 32; ++part) {
        const __m256i codes = codes_of(block, part, points), activations = load_256(x.codes + 32 * part);
        if constexpr (Form::group == 256)
            products = dot_codes<Form>(products, codes, activations);
        else
            products = dot_words(products, word_products<Form>(codes, activations), pick_scales(scales, part));
    }
    if constexpr (Form::is_signed) return {products, zero};
    const __m256i offsets = _mm256_madd_epi16(offsets_of<Form>(block, scales), load_256(x.sums));
    if constexpr (Form::minima) return {products, offsets};
    return {_mm256_sub_epi32(products, offsets), zero};
}

// The sums over the lanes of four vectors.
inline __m128i sum_lanes(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    const __m256i sums = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}
inline __m128i sum_products(const BlockSums *rows) {
    return sum_lanes(rows[0].products, rows[1].products, rows[2].products, rows[3].products);
}
template <class Sums> __m128i sum_offsets(const Sums *rows) {
    return sum_lanes(rows[0].offsets, rows[1].offsets, rows[2].offsets, rows[3].offsets);
}

// The sums of four blocks that follow each other; offsets only where a block of 256 has minima.
struct FourSums {
    __m128i products, offsets;
};
template <class Block, class Table>
[[gnu::always_inline]] inline FourSums four_sums(const Block *blocks, Vector x, Table table) {
    using Form = Traits<Block>;
    decltype(block_sums(*blocks, x, table)) sums[4];
    for (int i = 0; i < 4; ++i, x = next_block<Block>(x)) sums[i] = block_sums(blocks[i], x, table);
    return {sum_products(sums), Form::minima && Form::size == 256 ? sum_offsets(sums) : _mm_setzero_si128()};
}

inline __m128 four_halves(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
    const int low = a | b << 16, high = c | d << 16;
    return _mm_cvtph_ps(_mm_setr_epi32(low, high, 0, 0));
}

// Of four blocks: d and dmin.
template <class Block> __m128 four_d(const Block *blocks) {
    const auto &[a, b, c, d] = *reinterpret_cast<const Block(*)[4]>(blocks);
    if constexpr (!requires { a.d; })
        return _mm_setr_ps(d_of(a), d_of(b), d_of(c), d_of(d));
    else if constexpr (Traits<Block>::parts == 1)
        return four_halves(a.d, b.d, c.d, d.d);
    else
        return _mm_mul_ps(four_halves(a.d, b.d, c.d, d.d), _mm_set1_ps(1.0f / Traits<Block>::parts));
}
template <class Block> __m128 four_dmin(const Block *blocks) {
    const auto &[a, b, c, d] = *reinterpret_cast<const Block(*)[4]>(blocks);
    if constexpr (Traits<Block>::size == 32)
        return _mm_sub_ps(_mm_setzero_ps(), four_halves(a.m, b.m, c.m, d.m));
    else
        return four_halves(a.dmin, b.dmin, c.dmin, d.dmin);
}

// What a row adds up: for each block a sum of products times d and the vector's scale; where the type has minima, a sum
// of offsets times dmin and the scale is taken off.
struct Terms {
    float *products, *factors, *offsets, *offset_factors;
};

// The terms of four blocks. For blocks of 32 the vector has the sums that offsets are made of.
template <class Block, class Table>
[[gnu::always_inline]] inline void set_four_terms(const Block *blocks, Vector x, Table table, const Terms &terms, int64_t at) {
    using Form = Traits<Block>;
    auto [products, offsets] = four_sums(blocks, x, table);
    if constexpr (Form::size == 32) {
        offsets = _mm_cvtepi16_epi32(load_64(x.sums));
        if constexpr (!Form::minima && !signed_codes<Form>())
            products = _mm_sub_epi32(products, _mm_mullo_epi32(offsets, _mm_set1_epi32(Form::zero)));
    }
    const __m128 scales = _mm_loadu_ps(x.scales);
    _mm_storeu_ps(terms.products + at, _mm_cvtepi32_ps(products));
    _mm_storeu_ps(terms.factors + at, _mm_mul_ps(four_d(blocks), scales));
    if constexpr (Form::minima) {
        _mm_storeu_ps(terms.offsets + at, _mm_cvtepi32_ps(offsets));
        _mm_storeu_ps(terms.offset_factors + at, _mm_mul_ps(four_dmin(blocks), scales));
    }
}

template <class Block, class Table>
void set_terms_of_short_row(const Block *row, int64_t n, Vector x, Table table, const Terms &terms);

// The terms of n blocks. Where they are no multiple of four, some of the last four are done twice.
template <class Block, class Table>
void set_terms(const Block *row, int64_t n, Vector x, Table table, const Terms &terms) {
    constexpr int size = Traits<Block>::size;
    if (n < 4) return set_terms_of_short_row(row, n, x, table, terms);
    for (int64_t block = 0; block < n; block += 4) {
        const int64_t at = block + 4 <= n ? block : n - 4;
        set_four_terms(row + at, {x.codes + at * size, x.sums + at * sums_in(size), x.scales + at}, table, terms, at);
    }
}

// A row of fewer than four blocks is lengthened with zeros.
template <class Block, class Table>
void set_terms_of_short_row(const Block *row, int64_t n, Vector x, Table table, const Terms &terms) {
    constexpr int size = Traits<Block>::size, n_sums = sums_in(size);
    Block blocks[4] = {};
    int8_t codes[4 * size] = {};
    int16_t sums[4 * n_sums] = {};
    float scales[4] = {};
    std::memcpy(blocks, row, n * sizeof(Block));
    std::memcpy(codes, x.codes, n * size);
    std::memcpy(sums, x.sums, n * n_sums * sizeof *sums);
    std::memcpy(scales, x.scales, n * sizeof *scales);
    set_terms<Block>(blocks, 4, {codes, sums, scales}, table, terms); // again, with four
}

// Four numbers of each of four rows, `stride` apart, to four vectors of a number of each row.
inline void load_columns(const float *rows, int64_t stride, __m128 *columns) {
    for (int i = 0; i < 4; ++i) columns[i] = _mm_loadu_ps(rows + i * stride);
    _MM_TRANSPOSE4_PS(columns[0], columns[1], columns[2], columns[3]);
}

// One addition has to wait for the one before it: four times four rows wait together.
inline constexpr int rows_at_once = 16;

// The terms of the rows, added up one block after the other. `stride`: from row to row.
template <bool minima> void add_terms(const Terms &terms, int64_t stride, int64_t n, float *out) {
    constexpr int fours = rows_at_once / 4;
    __m128 totals[fours], products[4], factors[4], offsets[4], offset_factors[4];
    for (int four = 0; four < fours; ++four) totals[four] = _mm_setzero_ps();
    for (int64_t block = 0; block < n; block += 4)
        for (int four = 0; four < fours; ++four) {
            const int64_t at = 4 * four * stride + block;
            load_columns(terms.products + at, stride, products);
            load_columns(terms.factors + at, stride, factors);
            if constexpr (minima) load_columns(terms.offsets + at, stride, offsets);
            if constexpr (minima) load_columns(terms.offset_factors + at, stride, offset_factors);
            for (int i = 0; i < 4 && block + i < n; ++i) {
                totals[four] = _mm_fmadd_ps(factors[i], products[i], totals[four]);
                if constexpr (minima) totals[four] = _mm_fnmadd_ps(offset_factors[i], offsets[i], totals[four]);
            }
        }
    for (int four = 0; four < fours; ++four) _mm_storeu_ps(out + 4 * four, totals[four]);
}

// Dot products of `rows` rows, at most rows_at_once, with one vector. `room` is for the terms of all blocks.
template <class Block, class Table>
void dot_rows(const Matrix &weight, int64_t first, int rows, Vector x, Table table, float *room, float *out) {
    const int64_t blocks = weight.cols / Traits<Block>::size, stride = (blocks + 3) / 4 * 4;
    const int64_t all = rows_at_once * stride;
    const Terms terms{room, room + all, room + 2 * all, room + 3 * all};
    for (int row = 0; row < rows; ++row) {
        const Block *weights = row_of<Block>(weight, first + row);
        const int64_t at = row * stride;
        const Terms own{terms.products + at, terms.factors + at, terms.offsets + at, terms.offset_factors + at};
        set_terms(weights, blocks, x, table, own);
    }
    add_terms<Traits<Block>::minima>(terms, stride, blocks, out);
}

// Rows first … last - 1.
template <class Block, class Table>
void vector_matmul(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out, Table table, void *scratch) {
    for (int64_t row = first; row < last; row += rows_at_once) {
        const int rows = last - row < rows_at_once ? static_cast<int>(last - row) : rows_at_once;
        float totals[rows_at_once];
        dot_rows<Block>(weight, row, rows, x, table, static_cast<float *>(scratch), totals);
        std::memcpy(out + row, totals, rows * sizeof *totals);
    }
}

// ---- panels ----------------------------------------------------------------------------------

// (code - zero) · scale + new zero: 32 codes whose halves have a scale each.
inline __m256i scaled_codes(__m256i codes, int even_scale, int odd_scale, int zero, int new_zero) {
    const auto scaled = [&](__m128i half, int scale) {
        const __m256i words = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(half), _mm256_set1_epi16(static_cast<short>(scale)));
        return _mm256_add_epi16(words, _mm256_set1_epi16(static_cast<short>(new_zero - zero * scale)));
    };
    const __m256i even = scaled(_mm256_castsi256_si128(codes), even_scale);
    const __m256i odd = scaled(_mm256_extracti128_si256(codes, 1), odd_scale);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(even, odd), 0xd8);
}

template <class Block, class Row>
    requires(Traits<Block>::size == 32)
void unpack_row(const Block &block, Points points, Row &out) {
    _mm256_store_si256(reinterpret_cast<__m256i *>(out.codes), codes_of(block, 0, points));
}

// Where a panel has one scale for the block, but the type has several, they are multiplied into the codes.
template <class Block, class Row> void unpack_row(const Block &block, Points points, Row &out) {
    using Form = Traits<Block>;
    using Panel = PanelForm<Block>;
    constexpr bool multiply = Panel::group != Form::group;
    __m256i scales = scales_of(block);
    alignas(32) int16_t factors[16];
    _mm256_store_si256(reinterpret_cast<__m256i *>(factors), scales);
#pragma GCC unroll 8
    for (int part = 0; part < 8; ++part) {
        __m256i codes = codes_of(block, part, points);
        if constexpr (multiply)
            codes = scaled_codes(codes, factors[part], factors[8 + part], Form::minima ? 0 : Form::zero,
                                 Form::minima ? 0 : Panel::zero);
        _mm256_store_si256(reinterpret_cast<__m256i *>(out.codes) + part, codes);
    }
    if constexpr (multiply) scales = _mm256_set1_epi16(1);
    __m256i *to = reinterpret_cast<__m256i *>(out.scales);
    _mm256_store_si256(to, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(scales)));
    if constexpr (Row::n_scales == 16)
        _mm256_store_si256(to + 1, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(scales, 1)));
    if constexpr (Form::minima) {
        alignas(32) int16_t minima[16];
        _mm256_store_si256(reinterpret_cast<__m256i *>(minima), minima_of(block));
        std::memcpy(out.minima, minima, sizeof out.minima);
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
