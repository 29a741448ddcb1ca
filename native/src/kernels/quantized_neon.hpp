// What the NEON products with quantized weights have in common, with i8mm or without.
//
// sdot multiplies signed bytes and adds four neighbours in 32 bits. A single token takes four rows at a time straight
// from the file: block_sums() gives the integer sums of one block in 4 lanes, and the lanes of four rows are added up
// together.
#pragma once

#include "decode_neon.hpp"
#include "panel.hpp"

namespace phi::PHI_ISA {

// The sums over the lanes of four vectors.
inline int32x4_t sum_lanes(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

// ---- one token -------------------------------------------------------------------------------

// Integer sums of one block, spread over lanes. `offsets` is 0 where the products contain it already.
struct BlockSums {
    int32x4_t products, offsets;
};

// Sums of activations by the groups that weights have scales for, in their order: 8, or twice 8.
template <class Form> int16x8x2_t group_sums(const int16_t *sums) {
    if constexpr (Form::size == 32) return {};
    const int16x8_t even = vld1q_s16(sums), odd = vld1q_s16(sums + 8);
    if constexpr (Form::group == 16) return vzipq_s16(even, odd);
    return {{vaddq_s16(even, odd), vdupq_n_s16(0)}};
}

inline int32x4_t sum_products(int16x8_t a, int16x8_t b) {
    return vmlal_high_s16(vmull_s16(vget_low_s16(a), vget_low_s16(b)), a, b);
}
inline int32x4_t sum_products(int16x8x2_t a, int16x8x2_t b) {
    return vaddq_s32(sum_products(a.val[0], b.val[0]), sum_products(a.val[1], b.val[1]));
}
inline int32x4_t sum_products(int16x8_t a, int16x8x2_t b) { return sum_products(a, b.val[0]); }

// Scales of four groups.
inline int32x4_t four_scales(int16x8_t scales, int from) {
    return vmovl_s16(from == 0 ? vget_low_s16(scales) : vget_high_s16(scales));
}
inline int32x4_t four_scales(int16x8x2_t scales, int from) { return four_scales(scales.val[from / 8], from % 8); }

// Adds code · activation for 32 weights, those of each half by themselves.
struct HalfSums {
    int32x4_t first, second;
};
template <class Block>
HalfSums dot_halves(HalfSums sums, const Block &block, int part, const int8_t *x, Points points) {
    const int8x16x2_t codes = codes_of(block, part, points);
    return {vdotq_s32(sums.first, codes.val[0], vld1q_s8(x + 32 * part)),
            vdotq_s32(sums.second, codes.val[1], vld1q_s8(x + 32 * part + 16))};
}

// Where one scale is all there is: the offset is taken off later, for four rows at once.
template <class Block>
    requires(Traits<Block>::group == Traits<Block>::size)
BlockSums block_sums(const Block &block, const int8_t *x, int16x8x2_t, Points points) {
    HalfSums sums = {vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 8
    for (int part = 0; part < Traits<Block>::size / 32; ++part) sums = dot_halves(sums, block, part, x, points);
    return {vaddq_s32(sums.first, sums.second), vdupq_n_s32(0)};
}

// The lanes of four groups are added up and then meet their scales together.
template <class Block> BlockSums block_sums(const Block &block, const int8_t *x, int16x8x2_t sums, Points points) {
    using Form = Traits<Block>;
    const auto scales = scales_of(block);
    int32x4_t products = vdupq_n_s32(0);
#pragma GCC unroll 4
    for (int group = 0; group < 256 / Form::group; group += 4) {
        int32x4_t four[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i += 32 / Form::group) {
            const int part = (group + i) * Form::group / 32;
            const HalfSums halves = dot_halves({vdupq_n_s32(0), vdupq_n_s32(0)}, block, part, x, points);
            if constexpr (Form::group == 16) {
                four[i] = halves.first;
                four[i + 1] = halves.second;
            } else {
                four[i] = vaddq_s32(halves.first, halves.second);
            }
        }
        products = vmlaq_s32(products, sum_lanes(four[0], four[1], four[2], four[3]), four_scales(scales, group));
    }
    if constexpr (Form::minima) return {products, sum_products(words_of(minima_of(block)), sums)};
    if constexpr (decoded_zero<Block>() != 0)
        products = vmlsq_n_s32(products, sum_products(scales, sums), decoded_zero<Block>());
    return {products, vdupq_n_s32(0)};
}

// d or dmin of four rows.
template <class Block> float32x4_t four_halves(const Block *const *rows, int64_t block, uint16_t Block::*member) {
    uint16x4_t halves = vld1_dup_u16(&(rows[0][block].*member));
    halves = vld1_lane_u16(&(rows[1][block].*member), halves, 1);
    halves = vld1_lane_u16(&(rows[2][block].*member), halves, 2);
    halves = vld1_lane_u16(&(rows[3][block].*member), halves, 3);
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}
template <class Block> float32x4_t four_d(const Block *const *rows, int64_t block) {
    if constexpr (!requires { rows[0]->d; })
        return float32x4_t{d_of(rows[0][block]), d_of(rows[1][block]), d_of(rows[2][block]), d_of(rows[3][block])};
    else if constexpr (Traits<Block>::parts == 1)
        return four_halves(rows, block, &Block::d);
    else
        return vmulq_n_f32(four_halves(rows, block, &Block::d), 1.0f / Traits<Block>::parts);
}
template <class Block> float32x4_t four_dmin(const Block *const *rows, int64_t block) {
    if constexpr (Traits<Block>::size == 32)
        return vnegq_f32(four_halves(rows, block, &Block::m));
    else
        return four_halves(rows, block, &Block::dmin);
}

// What is taken off the products of a block that has one scale, for all rows: zero · Σ activation.
template <class Block> int32x4_t common_offset(const int16_t *sums) {
    constexpr int zero = decoded_zero<Block>();
    if constexpr (Traits<Block>::size == 32) return vdupq_n_s32(zero * *sums);
    const int32_t total = vaddlvq_s16(vld1q_s16(sums)) + vaddlvq_s16(vld1q_s16(sums + 8));
    return vdupq_n_s32(zero * total);
}

// Asks for the bytes that will be worked on four rows later. Four short streams are too much for the hardware to guess.
template <class Block> void prefetch_rows(const Block *row, int64_t blocks, int64_t block) {
    const char *ahead = reinterpret_cast<const char *>(row + 4 * blocks + 4 * block);
    for (size_t i = 0; i < 4 * sizeof(Block); i += 64) __builtin_prefetch(ahead + i, 0, 2);
}

// Four dot products with one vector.
template <class Block> float32x4_t dot_rows(const Block *const *rows, int64_t blocks, Vector x, Points points) {
    using Form = Traits<Block>;
    float32x4_t totals = vdupq_n_f32(0.0f);
    for (int64_t block = 0; block < blocks; ++block) {
        prefetch_rows(rows[0], blocks, block);
        const int16_t *x_sums = x.sums + block * sums_in(Form::size);
        const int16x8x2_t sums_of_groups = group_sums<Form>(x_sums);
        BlockSums sums[4];
        for (int row = 0; row < 4; ++row)
            sums[row] = block_sums(rows[row][block], x.codes + block * Form::size, sums_of_groups, points);
        int32x4_t products = sum_lanes(sums[0].products, sums[1].products, sums[2].products, sums[3].products);
        if constexpr (Form::group == Form::size && decoded_zero<Block>() != 0)
            products = vsubq_s32(products, common_offset<Block>(x_sums));
        totals = vfmaq_f32(totals, vmulq_n_f32(four_d(rows, block), x.scales[block]), vcvtq_f32_s32(products));
        if constexpr (Form::minima) {
            const int32x4_t offsets =
                Form::size == 32 ? vdupq_n_s32(*x_sums)
                                 : sum_lanes(sums[0].offsets, sums[1].offsets, sums[2].offsets, sums[3].offsets);
            totals = vfmsq_f32(totals, vmulq_n_f32(four_dmin(rows, block), x.scales[block]), vcvtq_f32_s32(offsets));
        }
    }
    return totals;
}

template <class Block> void vector_matmul(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out) {
    const Points points = points_of<Block>();
    for (int64_t row = first; row < last; row += 4) {
        const Block *rows[4]; // past the end the last one is taken again
        for (int i = 0; i < 4; ++i) rows[i] = row_of<Block>(weight, row + i < last ? row + i : last - 1);
        float totals[4];
        vst1q_f32(totals, dot_rows(rows, weight.cols / Traits<Block>::size, x, points));
        for (int i = 0; i < 4 && row + i < last; ++i) out[row + i] = totals[i];
    }
}

// ---- panels ----------------------------------------------------------------------------------

// Codes of a panel are signed and around zero, so nothing is taken off later.
template <class Block> constexpr int zero_in_tile() { return 0; }

// Scales of 16 weights cost a multiplication for every four products. Where codes stay in 8 bits they are multiplied
// beforehand: 3 · 15 at most in Q2_K; in Q3_K -4 · -32 = 128 does not fit, but its negative does.
template <> struct PanelForm<BlockQ2_K> : Form<256, 256, 45, has_minima> {};
template <> struct PanelForm<BlockQ3_K> : Form<256, 256, 128, 0> {};
template <class Block> constexpr bool negative_codes() { return std::is_same_v<Block, BlockQ3_K>; }

// One scale for each half of 32 codes, as bytes.
inline int8x16x2_t scaled(int8x16x2_t codes, int first_scale, int second_scale) {
    return {{vmulq_s8(codes.val[0], vdupq_n_s8(static_cast<int8_t>(first_scale))),
             vmulq_s8(codes.val[1], vdupq_n_s8(static_cast<int8_t>(second_scale)))}};
}

template <class Block> void unpack_codes(const Block &block, Points points, const int16_t *scales, uint8_t *out) {
    constexpr bool multiply = PanelForm<Block>::group != Traits<Block>::group;
    constexpr int sign = negative_codes<Block>() ? -1 : 1;
    const int8x16_t zero = vdupq_n_s8(decoded_zero<Block>());
#pragma GCC unroll 8
    for (int part = 0; part < Traits<Block>::size / 32; ++part) {
        int8x16x2_t codes = codes_of(block, part, points);
        if constexpr (decoded_zero<Block>() != 0)
            codes = {{vsubq_s8(codes.val[0], zero), vsubq_s8(codes.val[1], zero)}};
        if constexpr (multiply) codes = scaled(codes, sign * scales[2 * part], sign * scales[2 * part + 1]);
        vst1q_u8(out + 32 * part, vreinterpretq_u8_s8(codes.val[0]));
        vst1q_u8(out + 32 * part + 16, vreinterpretq_u8_s8(codes.val[1]));
    }
}

inline void store_words(int16_t *out, int16x8_t words) { vst1q_s16(out, words); }
inline void store_words(int16_t *out, int16x8x2_t words) {
    vst1q_s16(out, words.val[0]);
    vst1q_s16(out + 8, words.val[1]);
}

// In the order of the sums that they meet: those of 16 weights even ones first.
inline uint8x16_t ordered_minima(uint8x8_t minima) { return vcombine_u8(minima, vdup_n_u8(0)); }
inline uint8x16_t ordered_minima(uint8x16_t minima) {
    const uint8x8x2_t sorted = vuzp_u8(vget_low_u8(minima), vget_high_u8(minima));
    return vcombine_u8(sorted.val[0], sorted.val[1]);
}

// Scales are in the order of their groups. Minima are bytes, and the room for them is not filled.
template <class Block, class Row> void unpack_row(const Block &block, Points points, Row &out) {
    using Form = Traits<Block>;
    int16_t scales[16] = {};
    if constexpr (Form::group < Form::size) store_words(scales, scales_of(block));
    std::memcpy(out.scales, scales, sizeof out.scales);
    if constexpr (Form::minima && Form::size > 32) {
        std::memset(out.minima, 0, sizeof out.minima);
        vst1q_u8(reinterpret_cast<uint8_t *>(out.minima), ordered_minima(minima_of(block)));
    }
    unpack_codes(block, points, scales, out.codes);
}

// ---- many tokens -----------------------------------------------------------------------------

template <class Block> bool is_small(const uint16_t *) { return false; } // there is one way only

inline constexpr int tokens_at_once = 4; // with 8 rows, their sums and products fit into the 32 registers
inline constexpr int least_tokens = tokens_at_once, panel_tokens = 8; // of a tile
template <class Block> constexpr int few_tokens() { return panel_tokens; } // not measured: fewer come one by one

template <int size_, int group_, int pairs_, bool negative_> struct Tile {
    static constexpr int size = size_, group = group_, pairs = pairs_;
    static constexpr bool negative = negative_;
    static constexpr int n_offsets = pairs > 0 ? pairs : group == 16 ? 16 : size / group;
    using Block = PanelBlock<size, group, pairs>;
};
template <class Block>
using TileOf =
    Tile<PanelForm<Block>::size, PanelForm<Block>::group, minima_pairs<Block>(), negative_codes<Block>()>;

// Numbers for 8 rows and a few tokens.
struct Sums {
    int32x4_t v[tokens_at_once][2];
};

// The two that the instruction set brings, for the 8 rows from `row` on of a block. With each of a few tokens:
// Σ scale · Σ code · activation; Σ minimum · Σ activation.
template <class Tile> Sums block_products(const typename Tile::Block &block, int row, const int8_t *const *x);
template <class Tile> Sums block_minima(const typename Tile::Block &block, int row, const int32_t *const *offsets);

// The scales of an even group or the odd one after it, from pairs of words.
template <bool odd> int32x4_t scales_in(int32x4_t pairs) {
    return vshrq_n_s32(odd ? pairs : vshlq_n_s32(pairs, 16), 16);
}

struct Totals {
    float32x4_t v[tokens_at_once][2];
};

// Sums of activations in two bytes, 64 · high + low, so that they can meet minima as activations meet codes.
struct SplitSums {
    int16x8_t low, high; // as words
};
inline SplitSums split_sums(const int32_t *eight_words) {
    const int16x8_t sums = vld1q_s16(reinterpret_cast<const int16_t *>(eight_words));
    return {vandq_s16(sums, vdupq_n_s16(63)), vshrq_n_s16(sums, 6)};
}
inline int32x4_t joined(int32x4_t low, int32x4_t high) { return vaddq_s32(low, vshlq_n_s32(high, 6)); }
inline int8x16_t as_bytes(int16x8_t first, int16x8_t second) {
    return vuzp1q_s8(vreinterpretq_s8_s16(first), vreinterpretq_s8_s16(second));
}

// Adds the products of some blocks of 8 rows with a few tokens.
template <class Tile>
Totals add_blocks(Totals totals, const typename Tile::Block *panel, int row, int64_t first, int64_t last,
                  const PanelVector *x) {
    constexpr int tokens = tokens_at_once;
    for (int64_t index = first; index < last; ++index) {
        const typename Tile::Block &block = panel[index];
        const int8_t *codes[tokens];
        const int32_t *offsets[tokens];
        for (int i = 0; i < tokens; ++i) {
            codes[i] = x[i].codes + index * Tile::size;
            offsets[i] = x[i].offsets + index * Tile::n_offsets;
        }
        const auto add = [&](const float *d, const Sums &sums, bool minus) {
            for (int i = 0; i < tokens; ++i)
                for (int j = 0; j < 2; ++j) {
                    const float32x4_t scale = vmulq_n_f32(vld1q_f32(d + row + 4 * j), x[i].scales[index]);
                    const float32x4_t sum = vcvtq_f32_s32(sums.v[i][j]), total = totals.v[i][j];
                    totals.v[i][j] = minus ? vfmsq_f32(total, scale, sum) : vfmaq_f32(total, scale, sum);
                }
        };
        add(block.d, block_products<Tile>(block, row, codes), Tile::negative);
        if constexpr (Tile::pairs > 0) add(block.dmin, block_minima<Tile>(block, row, offsets), true);
    }
    return totals;
}

// A strip of 256 weights of 8 rows, 2 KB, stays in the first-level cache while it meets the tokens.
template <class Tile, int tokens>
void tile(const typename Tile::Block *panel, int64_t blocks, const PanelVector *x, float (*results)[panel_rows]) {
    constexpr int strip = 256 / Tile::size;
    for (int row = 0; row < panel_rows; row += 8) {
        Totals totals[tokens / tokens_at_once];
        for (int i = 0; i < tokens; ++i)
            for (int j = 0; j < 2; ++j)
                totals[i / tokens_at_once].v[i % tokens_at_once][j] = vld1q_f32(results[i] + row + 4 * j);
        for (int64_t first = 0; first < blocks; first += strip) {
            const int64_t last = first + strip < blocks ? first + strip : blocks;
            for (int i = 0; i < tokens / tokens_at_once; ++i)
                totals[i] = add_blocks<Tile>(totals[i], panel, row, first, last, x + i * tokens_at_once);
        }
        for (int i = 0; i < tokens; ++i)
            for (int j = 0; j < 2; ++j)
                vst1q_f32(results[i] + row + 4 * j, totals[i / tokens_at_once].v[i % tokens_at_once][j]);
    }
}

template <class Block>
void one_token(const Matrix &weight, int64_t first, int64_t last, Vector x, float *out, void *) {
    vector_matmul<Block>(weight, first, last, x, out);
}

} // namespace phi::PHI_ISA
