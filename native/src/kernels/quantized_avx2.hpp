// Products with quantized weights in AVX2.
//
// vpmaddubsw multiplies codes (unsigned) with activations (signed) and adds neighbours in 16 bits: 2 · 128 · 127
// is below 2^15. vpmaddwd then multiplies with scales and adds in 32 bits.
#pragma once

#include "quantized_x86.hpp"

namespace phi::PHI_ISA {

// -1 in the bytes whose bits are set.
inline __m256i mask_bytes(uint32_t bits) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(all, spread), each), each);
}
inline __m256i bytes_where(uint32_t bits, int value) {
    return _mm256_and_si256(mask_bytes(bits), _mm256_set1_epi8(static_cast<char>(value)));
}
inline __m256i negate_where(__m256i bytes, uint32_t bits) {
    const __m256i mask = mask_bytes(bits);
    return _mm256_sub_epi8(_mm256_xor_si256(bytes, mask), mask);
}

inline Column join_lanes(const __m128i *lanes) { return (Column)_mm256_set_m128i(lanes[1], lanes[0]); }
inline Column unpack_low(Column a, Column b) { return (Column)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b); }
inline Column unpack_high(Column a, Column b) { return (Column)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b); }
inline Column unpack_low_pairs(Column a, Column b) { return (Column)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
inline Column unpack_high_pairs(Column a, Column b) { return (Column)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
inline Lanes low_halves(Column words) {
    const __m256i halves = (__m256i)(words & 0xffff);
    return {_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)))};
}
inline Column levels_of(const uint8_t (&levels)[16], Column codes) {
    return (Column)levels_of(levels, (__m256i)codes);
}

inline __m256i dot_words(__m256i sums, __m256i a, __m256i b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }
template <class Form> __m256i dot_codes(__m256i sums, __m256i codes, __m256i x) {
    return dot_words(sums, word_products<Form>(codes, x), _mm256_set1_epi16(1));
}
template <class Form> constexpr bool signed_codes() { return Form::is_signed; }

// ---- many tokens -----------------------------------------------------------------------------

inline constexpr int least_tokens = 2, panel_tokens = 6; // of a tile; their sums fit into the 16 registers

// From how many tokens on a panel is faster than one token after the other, as measured.
template <class Block> constexpr int few_tokens() { return 3; }

template <class Block> constexpr int zero_in_tile() { return Traits<Block>::is_signed ? 0 : Traits<Block>::zero; }

// steps: how many steps of four codes can be added up in 16 bits.
template <int size_, int group_, int max_code, int pairs_> struct Tile {
    static constexpr int size = size_, group = group_, pairs = pairs_;
    static constexpr int n_offsets = pairs > 0 ? pairs : group == 16 ? 16 : size / group;
    static constexpr bool is_signed = max_code > 127;
    static constexpr int most = 32767 / (2 * 127 * max_code), all = group / 4;
    static constexpr int steps = most >= 8 && all >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
    using Block = PanelBlock<size, group, pairs>;
};

// Types whose codes fit as often into 16 bits share their code.
constexpr int rounded_up(int max_code) {
    for (int bits : {15, 31, 63, 127})
        if (max_code <= bits) return bits;
    return 255;
}
template <class Block>
using TileOf =
    Tile<Traits<Block>::size, Traits<Block>::group, rounded_up(Traits<Block>::max_code), minima_pairs<Block>()>;

template <class Block> bool is_small(const uint16_t *) { return false; } // there is one way only

inline __m256i repeat_32(const void *p) { return _mm256_set1_epi32(*static_cast<const AnyInt *>(p)); }

// Adds Σ code · activation over one group of weights that share a scale, for eight rows.
template <class Tile, int tokens>
[[gnu::always_inline]] inline void group_products(const uint8_t (*codes)[panel_rows][4], const int8_t *const *x,
                                                  __m256i *products) {
    for (int start = 0; start < Tile::group / 4; start += Tile::steps) {
        __m256i words[tokens];
        for (int i = 0; i < tokens; ++i) words[i] = _mm256_setzero_si256();
#pragma GCC unroll 2 // with more the compiler adds in a tree, for which there are not enough registers
        for (int step = start; step < start + Tile::steps; ++step) {
            const __m256i weights = load_256(codes[step]);
            for (int i = 0; i < tokens; ++i)
                words[i] = _mm256_add_epi16(words[i], word_products<Tile>(weights, repeat_32(x[i] + 4 * step)));
        }
        for (int i = 0; i < tokens; ++i)
            products[i] = _mm256_add_epi32(products[i], _mm256_madd_epi16(words[i], _mm256_set1_epi16(1)));
    }
}

// Σ minimum · Σ activation of one block of eight rows, for a token.
template <class Tile> __m256i block_minima(const typename Tile::Block &block, int row, const int32_t *offsets) {
    if constexpr (Tile::size == 32) return repeat_32(offsets);
    __m256i sums = _mm256_setzero_si256();
    for (int pair = 0; pair < Tile::pairs; ++pair)
        sums = dot_words(sums, load_256(block.minima[pair][row]), repeat_32(offsets + pair));
    return sums;
}

// The scales of eight rows for the group that begins at weight `start`.
template <class Tile> __m256i scales_at(const typename Tile::Block &block, int start, int row) {
    const int group = start / Tile::group;
    const __m256i pairs = load_256(block.scales[group / 2][row]);
    return _mm256_srai_epi32(group % 2 == 0 ? _mm256_slli_epi32(pairs, 16) : pairs, 16);
}

// Adds one block of eight rows, from `row` on, to the dot products with each token.
template <class Tile, int tokens>
void add_block(const typename Tile::Block &block, int row, const PanelVector *x, int64_t index, __m256 *totals) {
    constexpr int size = Tile::size, group = Tile::group;
    __m256i products[tokens];
    const int32_t *offsets[tokens];
    for (int i = 0; i < tokens; ++i) offsets[i] = x[i].offsets + index * Tile::n_offsets;
    for (int start = 0; start < size; start += group) {
        const int offset = offset_index<group>(start);
        const int8_t *codes[tokens];
        __m256i sums[tokens];
        for (int i = 0; i < tokens; ++i) {
            codes[i] = x[i].codes + index * size + start;
            sums[i] = Tile::pairs > 0 || Tile::is_signed ? _mm256_setzero_si256() : repeat_32(offsets[i] + offset);
        }
        group_products<Tile, tokens>(reinterpret_cast<const uint8_t (*)[panel_rows][4]>(block.codes[start / 4][row]),
                                     codes, sums);
        for (int i = 0; i < tokens; ++i) {
            if constexpr (group < size) sums[i] = _mm256_mullo_epi32(sums[i], scales_at<Tile>(block, start, row));
            products[i] = start == 0 ? sums[i] : _mm256_add_epi32(products[i], sums[i]);
        }
    }
    const __m256 d = _mm256_load_ps(block.d + row), dmin = _mm256_load_ps(block.dmin + row);
    for (int i = 0; i < tokens; ++i) {
        const __m256 scale = _mm256_set1_ps(x[i].scales[index]);
        totals[i] = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), _mm256_cvtepi32_ps(products[i]), totals[i]);
        if constexpr (Tile::pairs > 0) {
            const __m256 minima = _mm256_cvtepi32_ps(block_minima<Tile>(block, row, offsets[i]));
            totals[i] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, scale), minima, totals[i]);
        }
    }
}

template <class Tile, int tokens>
void tile(const typename Tile::Block *panel, int64_t blocks, const PanelVector *x, float (*results)[panel_rows]) {
    for (int row = 0; row < panel_rows; row += 8) {
        __m256 totals[tokens];
        for (int i = 0; i < tokens; ++i) totals[i] = _mm256_loadu_ps(results[i] + row);
        for (int64_t block = 0; block < blocks; ++block) add_block<Tile, tokens>(panel[block], row, x, block, totals);
        for (int i = 0; i < tokens; ++i) _mm256_storeu_ps(results[i] + row, totals[i]);
    }
}

template <class Block>
void one_token(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out, void *) {
    vector_matmul<Block>(weight, first, last, x, out, points_of<Block>());
}

} // namespace phi::PHI_ISA
