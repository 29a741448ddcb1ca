// What the AVX2 and AVX-512 products with quantized weights have in common.
//
// A single token takes four rows at a time straight from the file: block_sums() gives the integer sums of one
// block in 8 lanes, and the lanes of four rows are added up together.
#pragma once

#include "columns_x86.hpp"

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
    const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}
inline __m128i sum_products(const BlockSums *rows) {
    return sum_lanes(rows[0].products, rows[1].products, rows[2].products, rows[3].products);
}
template <class Sums> __m128i sum_offsets(const Sums *rows) {
    return sum_lanes(rows[0].offsets, rows[1].offsets, rows[2].offsets, rows[3].offsets);
}

inline __m128 four_halves(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
    const int low = a | b << 16, high = c | d << 16;
    return _mm_cvtph_ps(_mm_setr_epi32(low, high, 0, 0));
}

// Block number `block` of four rows: their d, and their dmin.
template <class Block> __m128 four_d(const Block *const *rows, int64_t block) {
    const Block &a = rows[0][block], &b = rows[1][block], &c = rows[2][block], &d = rows[3][block];
    if constexpr (!requires { a.d; })
        return _mm_setr_ps(d_of(a), d_of(b), d_of(c), d_of(d));
    else if constexpr (Traits<Block>::parts == 1)
        return four_halves(a.d, b.d, c.d, d.d);
    else
        return _mm_mul_ps(four_halves(a.d, b.d, c.d, d.d), _mm_set1_ps(1.0f / Traits<Block>::parts));
}
template <class Block> __m128 four_dmin(const Block *const *rows, int64_t block) {
    const Block &a = rows[0][block], &b = rows[1][block], &c = rows[2][block], &d = rows[3][block];
    if constexpr (Traits<Block>::size == 32)
        return _mm_sub_ps(_mm_setzero_ps(), four_halves(a.m, b.m, c.m, d.m));
    else
        return four_halves(a.dmin, b.dmin, c.dmin, d.dmin);
}

// Four dot products with one vector.
template <class Block, class Table>
__m128 dot_rows(const Block *const *rows, int64_t blocks, Vector x, Table table) {
    using Form = Traits<Block>;
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block, x = next_block<Block>(x)) {
        decltype(block_sums(*rows[0], x, table)) sums[4];
        for (int row = 0; row < 4; ++row) sums[row] = block_sums(rows[row][block], x, table);
        const __m128 scale = _mm_set1_ps(*x.scales);
        __m128i products = sum_products(sums);
        if constexpr (Form::size == 32 && !Form::minima && !signed_codes<Form>())
            products = _mm_sub_epi32(products, _mm_set1_epi32(Form::zero * *x.sums));
        totals = _mm_fmadd_ps(_mm_mul_ps(four_d(rows, block), scale), _mm_cvtepi32_ps(products), totals);
        if constexpr (Form::minima) {
            const __m128i offsets = Form::size == 32 ? _mm_set1_epi32(*x.sums) : sum_offsets(sums);
            totals = _mm_fnmadd_ps(_mm_mul_ps(four_dmin(rows, block), scale), _mm_cvtepi32_ps(offsets), totals);
        }
    }
    return totals;
}

// Rows first … last - 1, four at a time that lie far apart: so memory is read in four long streams, which the hardware
// soon sees and asks for ahead by itself.
template <class Block, class Table>
void vector_matmul(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out, Table table) {
    const int64_t n = (last - first + 3) / 4; // rows of a stream
    for (int64_t row = first; row < first + n; ++row) {
        const Block *rows[4]; // past the end the last one is taken again
        for (int i = 0; i < 4; ++i) rows[i] = row_of<Block>(weight, row + i * n < last ? row + i * n : last - 1);
        float totals[4];
        _mm_storeu_ps(totals, dot_rows(rows, weight.cols / Traits<Block>::size, x, table));
        for (int i = 0; i < 4 && row + i * n < last; ++i) out[row + i * n] = totals[i];
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
    const __m128i even = _mm256_castsi256_si128(scales), odd = _mm256_extracti128_si256(scales, 1);
    __m128i *to = reinterpret_cast<__m128i *>(out.scales);
    if constexpr (Row::n_scales == 8) { // of groups of 16
        _mm_store_si128(to, _mm_unpacklo_epi16(even, odd));
        _mm_store_si128(to + 1, _mm_unpackhi_epi16(even, odd));
    } else {
        _mm_store_si128(to, even); // both halves have the same
    }
    if constexpr (Form::minima) {
        alignas(32) int16_t minima[16];
        _mm256_store_si256(reinterpret_cast<__m256i *>(minima), minima_of(block));
        std::memcpy(out.minima, minima, sizeof out.minima);
    }
}

} // namespace phi::PHI_ISA
