// Products with quantized weights in AVX-512 with VNNI.
//
// vpdpbusd multiplies codes (unsigned) with activations (signed) and adds four neighbours in 32 bits at once.
#pragma once

#include "k_quants_avx512.hpp"

namespace phi::PHI_ISA {

inline __m256i bytes_where(uint32_t bits, int value) {
    return _mm256_maskz_set1_epi8(bits, static_cast<char>(value));
}
inline __m256i negate_where(__m256i bytes, uint32_t bits) {
    return _mm256_mask_sub_epi8(bytes, bits, _mm256_setzero_si256(), bytes);
}

inline Column join_lanes(const __m128i *lanes) {
    __m512i joined = _mm512_castsi128_si512(lanes[0]);
    joined = _mm512_inserti32x4(joined, lanes[1], 1);
    joined = _mm512_inserti32x4(joined, lanes[2], 2);
    return (Column)_mm512_inserti32x4(joined, lanes[3], 3);
}
inline Column unpack_low(Column a, Column b) { return (Column)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b); }
inline Column unpack_high(Column a, Column b) { return (Column)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b); }
inline Column unpack_low_pairs(Column a, Column b) { return (Column)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b); }
inline Column unpack_high_pairs(Column a, Column b) { return (Column)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b); }
inline Lanes low_halves(Column words) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)words))}; }
inline Column levels_of(const uint8_t (&levels)[16], Column codes) {
    return (Column)_mm512_shuffle_epi8(four_times(load_128(levels)), (__m512i)codes);
}

inline __m256i dot_words(__m256i sums, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sums, a, b); }
template <class Form> __m256i dot_codes(__m256i sums, __m256i codes, __m256i x) {
    return _mm256_dpbusd_epi32(sums, codes, x);
}
template <class Form> constexpr bool signed_codes() { return false; }

// ---- many tokens -----------------------------------------------------------------------------

inline constexpr int least_tokens = 2, panel_tokens = 8; // of a tile; three registers of sums each

// From how many tokens on a panel is faster than one token after the other, as measured.
template <class Block> constexpr int few_tokens() {
    if (std::is_same_v<Block, BlockIQ2_XXS>) return 4;
    if (std::is_same_v<Block, BlockQ3_K> || std::is_same_v<Block, BlockIQ3_S>) return 3;
    return std::is_same_v<Block, BlockTQ2_0> ? 3 : 2;
}

// Scales of 16 weights cost a multiplication for four steps. Where codes stay in 8 bits they are multiplied
// beforehand: 3 · 15 at most in Q2_K, -4 · 31 to -4 · -32 in Q3_K.
template <> struct PanelForm<BlockQ2_K> : Form<256, 256, 45, has_minima> {};
template <> struct PanelForm<BlockQ3_K> : Form<256, 256, 255, 127> {};

template <class Block> constexpr int zero_in_tile() { return PanelForm<Block>::zero; }

template <int size_, int group_, int pairs_, bool in_words_> struct Tile {
    static constexpr int size = size_, group = group_, pairs = pairs_;
    static constexpr bool in_words = in_words_; // whether sums of groups are words where activations are small
    static constexpr int n_offsets = pairs > 0 ? pairs : group == 16 ? 16 : size / group;
    using Block = PanelBlock<size, group, pairs>;
};

inline __m512i repeat_32(const void *p) { return _mm512_set1_epi32(*static_cast<const AnyInt *>(p)); }

// Σ code · activation, and what it begins with, of the group of weights from `start` on: 16 rows, for each token.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void group_sums(const typename Tile::Block &block, int start, const int8_t *const *x,
                                              const int32_t *const *offsets, __m512i *sums) {
    for (int i = 0; i < tokens; ++i)
        sums[i] = Tile::pairs > 0 ? _mm512_setzero_si512() : repeat_32(offsets[i] + offset_index<Tile::group>(start));
    const auto *codes = block.codes + start / 4;
#pragma GCC unroll 8
    for (int step = 0; step < Tile::group / 4; ++step) {
        const __m512i weights = load_512(codes[step]);
        for (int i = 0; i < tokens; ++i)
            sums[i] = _mm512_dpbusd_epi32(sums[i], weights, repeat_32(x[i] + start + 4 * step));
    }
}

// Σ scale · sum of the group, for one block.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void block_products(const typename Tile::Block &block, const int8_t *const *x,
                                                  const int32_t *const *offsets, __m512i *products) {
    for (int start = 0; start < Tile::size; start += Tile::group) {
        __m512i sums[tokens];
        group_sums<Tile, tokens>(block, start, x, offsets, sums);
        const int group = start / Tile::group;
        const __m512i pairs = load_512(block.scales[group / 2]);
        const __m512i scales = _mm512_srai_epi32(group % 2 == 0 ? _mm512_slli_epi32(pairs, 16) : pairs, 16);
        for (int i = 0; i < tokens; ++i) {
            if constexpr (Tile::group < Tile::size) sums[i] = _mm512_mullo_epi32(sums[i], scales);
            products[i] = start == 0 ? sums[i] : _mm512_add_epi32(products[i], sums[i]);
        }
    }
}

// The same, two groups at a time: as words, their sums meet both scales in one multiplication. The units that multiply
// are what a prompt waits for; shifting and mixing costs nothing beside them.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void products_of_words(const typename Tile::Block &block, const int8_t *const *x,
                                                     const int32_t *const *offsets, __m512i *products) {
    for (int i = 0; i < tokens; ++i) products[i] = _mm512_setzero_si512();
    for (int start = 0; start < Tile::size; start += 2 * Tile::group) {
        __m512i even[tokens], odd[tokens];
        group_sums<Tile, tokens>(block, start, x, offsets, even);
        group_sums<Tile, tokens>(block, start + Tile::group, x, offsets, odd);
        const __m512i scales = load_512(block.scales[start / Tile::group / 2]);
        for (int i = 0; i < tokens; ++i) {
            const __m512i words = _mm512_mask_blend_epi16(0xaaaaaaaa, even[i], _mm512_slli_epi32(odd[i], 16));
            products[i] = _mm512_dpwssd_epi32(products[i], words, scales);
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
    if (Tile::in_words && x[0].small[index])
        products_of_words<Tile, tokens>(block, codes, offsets, products);
    else
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
    for (int i = 0; i < tokens; ++i) totals[i] = _mm512_loadu_ps(results[i]);
    for (int64_t block = 0; block < blocks; ++block) add_block<Tile, tokens>(panel[block], x, block, totals);
    for (int i = 0; i < tokens; ++i) _mm512_storeu_ps(results[i], totals[i]);
}

// How far codes are from zero, at most.
template <class Form> constexpr int reach() {
    constexpr int above = Form::minima ? Form::max_code : Form::max_code - Form::zero;
    return Form::zero > above ? Form::zero : above;
}

// Whether every group's sum may be a word: no code is further from zero than `reach`, so Σ |activation| decides. The mean
// |activation| may be 64, half of the largest; of most vectors it is below 40.
template <class Block> constexpr bool sums_in_words() {
    using Form = PanelForm<Block>;
    return Form::group < Form::size && reach<Form>() * Form::group * 64 <= 1 << 15;
}
template <class Block> bool is_small(const uint16_t *peaks) {
    using Form = PanelForm<Block>;
    return sums_in_words<Block>() && peaks[Form::group == 32] <= 32767 / reach<Form>();
}

template <class Block>
using TileOf = Tile<PanelForm<Block>::size, PanelForm<Block>::group, minima_pairs<Block>(), sums_in_words<Block>()>;

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

} // namespace phi::PHI_ISA
