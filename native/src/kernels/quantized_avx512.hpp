// Products with quantized weights in AVX-512 with VNNI.
//
// vpdpbusd multiplies codes (unsigned) with activations (signed) and adds four neighbours in 32 bits at once.
#pragma once

#include "quantized_x86.hpp"

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

template <int size_, int group_, bool minima_> struct Tile {
    static constexpr int size = size_, group = group_;
    static constexpr bool minima = minima_;
    using Block = PanelBlock<size, group>;
};

inline __m512i load_512(const void *p) { return _mm512_load_si512(p); }
inline __m512i repeat_32(const void *p) { return _mm512_set1_epi32(*static_cast<const AnyInt *>(p)); }

// Σ scale · Σ code · activation of one block of 16 rows, for each token.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void block_products(const typename Tile::Block &block, const int8_t *const *x,
                                                  __m512i *products) {
    for (int start = 0; start < Tile::size; start += Tile::group) {
        __m512i fresh[tokens], *sums = Tile::group < Tile::size ? fresh : products;
        if (Tile::group < Tile::size)
            for (int i = 0; i < tokens; ++i) fresh[i] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int k = start; k < start + Tile::group; k += 4) {
            const __m512i codes = load_512(block.codes[k / 4]);
            for (int i = 0; i < tokens; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], codes, repeat_32(x[i] + k));
        }
        if (Tile::group == Tile::size) continue;
        const __m512i scales = load_512(block.scales[scale_index<Tile::group>(start)]);
        for (int i = 0; i < tokens; ++i)
            products[i] = _mm512_add_epi32(products[i], _mm512_mullo_epi32(fresh[i], scales));
    }
}

// Adds one block of 16 rows to the dot products with each token.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void add_block(const typename Tile::Block &block, int zero, const Vector *x,
                                             int64_t index, __m512 *totals) {
    __m512i products[tokens], offsets[tokens];
    const int8_t *codes[tokens];
    for (int i = 0; i < tokens; ++i) {
        codes[i] = x[i].codes + index * Tile::size;
        products[i] = offsets[i] = _mm512_setzero_si512();
    }
    block_products<Tile, tokens>(block, codes, products);
    for (int i = 0; i < tokens; ++i) {
        const int16_t *sums = x[i].sums + index * sums_in(Tile::size);
        if constexpr (Tile::size == 32)
            offsets[i] = _mm512_set1_epi32(Tile::minima ? *sums : zero * *sums);
        else
            for (int pair = 0; pair < 8; ++pair)
                offsets[i] = _mm512_dpwssd_epi32(offsets[i], load_512(block.offsets[pair]), repeat_32(sums + 2 * pair));
    }
    const __m512 d = _mm512_load_ps(block.d), dmin = _mm512_load_ps(block.dmin);
    for (int i = 0; i < tokens; ++i) {
        const __m512 scale = _mm512_set1_ps(x[i].scales[index]);
        if constexpr (!Tile::minima) products[i] = _mm512_sub_epi32(products[i], offsets[i]);
        totals[i] = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), _mm512_cvtepi32_ps(products[i]), totals[i]);
        if constexpr (Tile::minima)
            totals[i] = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, scale), _mm512_cvtepi32_ps(offsets[i]), totals[i]);
    }
}

template <class Tile, int tokens>
void tile(const typename Tile::Block *panel, int64_t blocks, int zero, const Vector *x, float (*results)[panel_rows]) {
    __m512 totals[tokens];
    for (int i = 0; i < tokens; ++i) totals[i] = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block) add_block<Tile, tokens>(panel[block], zero, x, block, totals);
    for (int i = 0; i < tokens; ++i) _mm512_storeu_ps(results[i], totals[i]);
}

template <class Block>
void quantized_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                      ptrdiff_t stride, void *scratch) {
    using Form = PanelForm<Block>;
    if (x.tokens >= panel_tokens)
        return panel_matmul<Block, Tile<Form::size, Form::group, Form::minima>, panel_tokens>(weight, first, last, x,
                                                                                              out, stride, scratch);
    for (int token = 0; token < x.tokens; ++token)
        vector_matmul<Block>(weight, first, last, vector_of<Block>(x, token), out + token * stride);
}

} // namespace phi::PHI_ISA
