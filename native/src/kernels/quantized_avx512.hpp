// Products with quantized weights in AVX-512 with VNNI.
//
// vpdpbusd multiplies codes (unsigned) with activations (signed) and adds four neighbours in 32 bits at once.
#pragma once

#include "vector_avx512.hpp"

namespace phi::PHI_ISA {

inline __m256i bytes_where(uint32_t bits, int value) {
    return _mm256_maskz_set1_epi8(bits, static_cast<char>(value));
}
inline __m256i negate_where(__m256i bytes, uint32_t bits) {
    return _mm256_mask_sub_epi8(bytes, bits, _mm256_setzero_si256(), bytes);
}

inline __m256i dot_words(__m256i sums, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sums, a, b); }
template <class Form> __m256i dot_codes(__m256i sums, __m256i codes, __m256i x) {
    return _mm256_dpbusd_epi32(sums, codes, x);
}
template <class Form> constexpr bool signed_codes() { return false; }

// ---- many tokens -----------------------------------------------------------------------------

inline constexpr int panel_tokens = 8; // three registers of sums each

// Scales of 16 weights cost a multiplication for four steps. Where codes stay in 8 bits they are multiplied
// beforehand: 3 · 15 at most in Q2_K, -4 · 31 to -4 · -32 in Q3_K.
template <> struct PanelForm<BlockQ2_K> : Form<256, 256, 45, has_minima> {};
template <> struct PanelForm<BlockQ3_K> : Form<256, 256, 255, 127> {};

template <class Block> constexpr int zero_in_tile() { return PanelForm<Block>::zero; }

template <int size_, int group_, int pairs_> struct Tile {
    static constexpr int size = size_, group = group_, pairs = pairs_;
    static constexpr int n_offsets = pairs > 0 ? pairs : group == 16 ? 16 : size / group;
    using Block = PanelBlock<size, group, pairs>;
};

inline __m512i repeat_32(const void *p) { return _mm512_set1_epi32(*static_cast<const AnyInt *>(p)); }

// Σ scale · (Σ code · activation, and what it begins with) of one block of 16 rows, for each token.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void block_products(const typename Tile::Block &block, const int8_t *const *x,
                                                  const int32_t *const *offsets, __m512i *products) {
    for (int start = 0; start < Tile::size; start += Tile::group) {
        constexpr bool scaled = Tile::group < Tile::size;
        const int index = scale_index<Tile::group>(start);
        __m512i sums[tokens];
        for (int i = 0; i < tokens; ++i)
            sums[i] = Tile::pairs > 0 ? _mm512_setzero_si512() : repeat_32(offsets[i] + index);
#pragma GCC unroll 8
        for (int k = start; k < start + Tile::group; k += 4) {
            const __m512i codes = load_512(block.codes[k / 4]);
            for (int i = 0; i < tokens; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], codes, repeat_32(x[i] + k));
        }
        for (int i = 0; i < tokens; ++i) {
            if constexpr (scaled) sums[i] = _mm512_mullo_epi32(sums[i], load_512(block.scales[index]));
            products[i] = start == 0 ? sums[i] : _mm512_add_epi32(products[i], sums[i]);
        }
    }
}

// Σ minimum · Σ activation of one block, for a token.
template <class Tile>
[[gnu::always_inline]] inline __m512i block_minima(const typename Tile::Block &block, const int32_t *offsets) {
    if constexpr (Tile::size == 32) return repeat_32(offsets);
    __m512i sums = _mm512_setzero_si512();
    for (int pair = 0; pair < Tile::pairs; ++pair)
        sums = _mm512_dpwssd_epi32(sums, load_512(block.minima[pair]), repeat_32(offsets + pair));
    return sums;
}

// Adds one block of 16 rows to the dot products with each token.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void add_block(const typename Tile::Block &block, const PanelVector *x, int64_t index,
                                             __m512 *totals) {
    __m512i products[tokens];
    const int8_t *codes[tokens];
    const int32_t *offsets[tokens];
    for (int i = 0; i < tokens; ++i) {
        codes[i] = x[i].codes + index * Tile::size;
        offsets[i] = x[i].offsets + index * Tile::n_offsets;
    }
    block_products<Tile, tokens>(block, codes, offsets, products);
    const __m512 d = _mm512_load_ps(block.d), dmin = _mm512_load_ps(block.dmin);
    for (int i = 0; i < tokens; ++i) {
        const __m512 scale = _mm512_set1_ps(x[i].scales[index]);
        totals[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), _mm512_cvtepi32_ps(products[i]), totals[i]);
        if constexpr (Tile::pairs > 0) {
            const __m512 minima = _mm512_cvtepi32_ps(block_minima<Tile>(block, offsets[i]));
            totals[i] = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, scale), minima, totals[i]);
        }
    }
}

template <class Tile, int tokens>
void tile(const typename Tile::Block *panel, int64_t blocks, const PanelVector *x, float (*results)[panel_rows]) {
    __m512 totals[tokens];
    for (int i = 0; i < tokens; ++i) totals[i] = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block) add_block<Tile, tokens>(panel[block], x, block, totals);
    for (int i = 0; i < tokens; ++i) _mm512_storeu_ps(results[i], totals[i]);
}

template <class Block>
void one_token(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out, void *scratch) {
    if constexpr (requires(Block block, PointTable table) { block_sums(block, x, table); }) {
        int8_t *codes = static_cast<int8_t *>(scratch);
        in_order_of_points<Traits<Block>::grid>(x.codes, weight.cols, codes);
        vector_matmul<Block>(weight, first, last, {codes, x.sums, x.scales}, out, point_table<Block>());
    } else {
        vector_matmul<Block>(weight, first, last, x, out, points_of<Block>());
    }
}

template <class Block>
void quantized_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                      ptrdiff_t stride, void *scratch) {
    using Form = PanelForm<Block>;
    if (x.tokens >= panel_tokens)
        return panel_matmul<Block, Tile<Form::size, Form::group, minima_pairs<Block>()>, panel_tokens>(weight, first, last, x,
                                                                                              out, stride, scratch);
    for (int token = 0; token < x.tokens; ++token)
        one_token<Block>(weight, first, last, vector_of<Block>(x, token), out + token * stride, scratch);
}

} // namespace phi::PHI_ISA
