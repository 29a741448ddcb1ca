// Unpacking in NEON vectors of 128 bits: what unpack.hpp says one weight at a time.
//
//   codes_of(block, part, points)   the 32 codes from weight 32 · part on, as signed bytes
//   scales_of(block)                the scales of a block of 256 as words: 8, or twice 8 where a group has 16 weights
//   minima_of(block)                the minima of a block of 256 as bytes, as many as scales
#pragma once

#include "unpacked.hpp"

#include <arm_neon.h>

namespace phi::PHI_ISA {

// The code of zero as codes_of() gives it. Levels and points of grids come around zero, so that they fit into signed
// bytes.
template <class Block> constexpr int decoded_zero() {
    using Form = Traits<Block>;
    constexpr bool is_table = Form::is_signed || std::is_same_v<Block, BlockMXFP4> || requires { Form::grid; };
    return is_table || Form::minima ? 0 : Form::zero;
}

inline uint32_t load_u32(const void *p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

inline uint8x16_t repeat_u32(uint32_t word) { return vreinterpretq_u8_u32(vdupq_n_u32(word)); }
inline uint8x16_t bytes(int value) { return vdupq_n_u8(static_cast<uint8_t>(value)); }

// Bit `from` of each byte, and those above it, moved to bit `to`; `mask` keeps what is wanted.
inline uint8x16_t move_bits(uint8x16_t v, int from, int to, int mask) {
    const uint8x16_t moved = from >= to ? v >> bytes(from - to) : v << bytes(to - from);
    const int left = from >= to ? 255 >> (from - to) : 255 << (to - from) & 255; // of a byte full of ones
    return left == mask ? moved : vandq_u8(moved, bytes(mask));
}

inline int8x16x2_t as_signed(uint8x16_t first, uint8x16_t second) {
    return {{vreinterpretq_s8_u8(first), vreinterpretq_s8_u8(second)}};
}
// ---- scales ----------------------------------------------------------------------------------

inline int16x8_t words_of(uint8x8_t bytes) { return vreinterpretq_s16_u16(vmovl_u8(bytes)); }
inline int16x8x2_t words_of(uint8x16_t bytes) {
    return {{words_of(vget_low_u8(bytes)), words_of(vget_high_u8(bytes))}};
}
inline int16x8x2_t words_of(int8x16_t bytes) { return {{vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)}}; }

// 1 + 2 · code
inline int16x8_t odd_numbers(int16x8_t codes) { return vaddq_s16(vaddq_s16(codes, codes), vdupq_n_s16(1)); }
inline int16x8x2_t odd_numbers(int16x8x2_t codes) { return {{odd_numbers(codes.val[0]), odd_numbers(codes.val[1])}}; }

// Eight bytes of two codes each, the low one first.
inline int16x8x2_t odd_scales_of_16(const uint8_t *bytes) {
    const uint8x8_t both = vld1_u8(bytes);
    const uint8x8x2_t codes = vzip_u8(vand_u8(both, vdup_n_u8(15)), vshr_n_u8(both, 4));
    return odd_numbers({{words_of(codes.val[0]), words_of(codes.val[1])}});
}

// Four bytes of two codes each, the low one first.
inline int16x8_t eight_halves(const uint8_t *bytes) {
    const uint8x8_t four = vcreate_u8(load_u32(bytes)), pairs = vzip1_u8(four, four);
    const int8x8_t down = {0, -4, 0, -4, 0, -4, 0, -4};
    return words_of(vand_u8(vshl_u8(pairs, down), vdup_n_u8(15)));
}

// The highest four bits of eight words of 32 bits.
inline int16x8_t odd_scales_on_top(uint32x4_t first, uint32x4_t second) {
    const uint16x8_t upper = vuzp2q_u16(vreinterpretq_u16_u32(first), vreinterpretq_u16_u32(second));
    return odd_numbers(vreinterpretq_s16_u16(vshrq_n_u16(upper, 12)));
}

inline int16x8x2_t scales_of(const BlockQ2_K &block) { return words_of(vandq_u8(vld1q_u8(block.scales), bytes(15))); }
inline uint8x16_t minima_of(const BlockQ2_K &block) { return vshrq_n_u8(vld1q_u8(block.scales), 4); }

inline int16x8x2_t scales_of(const BlockQ3_K &block) {
    const uint8x8_t both = vld1_u8(block.scales);
    const uint8x16_t low = vcombine_u8(vand_u8(both, vdup_n_u8(15)), vshr_n_u8(both, 4));
    const int8x16_t down = {0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4, -6, -6, -6, -6};
    const uint8x16_t high = vandq_u8(vshlq_u8(repeat_u32(load_u32(block.scales + 8)), down), bytes(3));
    const uint8x16_t stored = vorrq_u8(low, vshlq_n_u8(high, 4));
    return words_of(vreinterpretq_s8_u8(vsubq_u8(stored, bytes(32))));
}

// Q4_K and Q5_K: eight scales, then eight minima. Where they lie is said in unpack_scales().
template <class Block> uint8x16_t scales_and_minima(const Block &block) {
    const uint8x8_t first = vld1_u8(block.scales), low_six = vand_u8(first, vdup_n_u8(63));
    const uint8x8_t last = vreinterpret_u8_u32(vdup_n_u32(load_u32(block.scales + 8)));
    const int8x8_t down = {0, 0, 0, 0, -4, -4, -4, -4};
    const uint8x8_t low_four = vand_u8(vshl_u8(last, down), vdup_n_u8(15));
    const uint8x8_t others = vorr_u8(low_four, vand_u8(vshr_n_u8(first, 2), vdup_n_u8(0x30)));
    const uint32x2x2_t fours = vzip_u32(vreinterpret_u32_u8(low_six), vreinterpret_u32_u8(others));
    return vcombine_u8(vreinterpret_u8_u32(fours.val[0]), vreinterpret_u8_u32(fours.val[1]));
}
template <class Block>
    requires(Traits<Block>::minima)
int16x8_t scales_of(const Block &block) {
    return words_of(vget_low_u8(scales_and_minima(block)));
}
template <class Block> uint8x8_t minima_of(const Block &block) { return vget_high_u8(scales_and_minima(block)); }

inline int16x8x2_t scales_of(const BlockQ6_K &block) { return words_of(vld1q_s8(block.scales)); }

inline int16x8_t scales_of(const BlockIQ4_XS &block) {
    const int16x8_t down = {0, -2, -4, -6, -8, -10, -12, -14};
    const uint16x8_t high = vandq_u16(vshlq_u16(vdupq_n_u16(block.scales_h), down), vdupq_n_u16(3));
    const int16x8_t stored = vorrq_s16(eight_halves(block.scales_l), vreinterpretq_s16_u16(vshlq_n_u16(high, 4)));
    return vsubq_s16(stored, vdupq_n_s16(32));
}

inline int16x8_t scales_of(const BlockIQ3_S &block) { return odd_numbers(eight_halves(block.scales)); }
inline int16x8_t scales_of(const BlockIQ3_XXS &block) {
    const auto four = [&](int at) { return vreinterpretq_u32_u8(vld1q_u8(block.qs + at)); };
    return odd_scales_on_top(four(64), four(80));
}
inline int16x8x2_t scales_of(const BlockIQ2_S &block) { return odd_scales_of_16(block.scales); }
inline int16x8x2_t scales_of(const BlockIQ2_XS &block) { return odd_scales_of_16(block.scales); }
inline int16x8_t scales_of(const BlockIQ2_XXS &block) { // every other word of 32 bits
    const auto four = [&](int at) { return vreinterpretq_u32_u16(vld1q_u16(block.qs + at)); };
    return odd_scales_on_top(vuzp2q_u32(four(0), four(8)), vuzp2q_u32(four(16), four(24)));
}
inline int16x8_t scales_of(const BlockIQ1_S &block) {
    const uint16x8_t codes = vandq_u16(vshrq_n_u16(vld1q_u16(block.qh), 12), vdupq_n_u16(7));
    return odd_numbers(vreinterpretq_s16_u16(codes));
}
inline int16x8x2_t scales_of(const BlockIQ1_M &block) { // four of three bits in each word of 16
    const uint8x16_t packed = vcombine_u8(vld1_u8(block.scales), vdup_n_u8(0));
    const int16x8_t down = {0, -3, -6, -9, 0, -3, -6, -9};
    const uint8x16_t from = {0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3};
    const auto eight = [&](int first) {
        const uint16x8_t words = vreinterpretq_u16_u8(vqtbl1q_u8(packed, vaddq_u8(from, bytes(first))));
        return vreinterpretq_s16_u16(vandq_u16(vshlq_u16(words, down), vdupq_n_u16(7)));
    };
    return odd_numbers({{eight(0), eight(4)}});
}

// ---- codes -----------------------------------------------------------------------------------

// -1 in the bytes whose bits are set. `bits`: the bytes of bits, which meet the weights as `from` says.
inline uint8x16_t mask_where(uint8x16_t bits, uint8x16_t from) {
    const uint8x16_t each = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return vtstq_u8(vqtbl1q_u8(bits, from), each);
}
inline uint8x16x2_t masks_where(uint8x16_t bits, int stride) {
    const uint8x16_t of_eight = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    const uint8x16_t first = vmulq_u8(of_eight, bytes(stride)), second = vaddq_u8(first, bytes(2 * stride));
    return {{mask_where(bits, first), mask_where(bits, second)}};
}

// 16 bytes of two codes: the low four bits first.
inline uint8x16x2_t halves_of(const uint8_t *qs) {
    const uint8x16_t both = vld1q_u8(qs);
    return {{vandq_u8(both, bytes(15)), vshrq_n_u8(both, 4)}};
}
inline int8x16x2_t levels_of(const uint8_t (&levels)[16], int zero, const uint8_t *qs) {
    const uint8x16_t table = vsubq_u8(vld1q_u8(levels), bytes(zero));
    const uint8x16x2_t codes = halves_of(qs);
    return as_signed(vqtbl1q_u8(table, codes.val[0]), vqtbl1q_u8(table, codes.val[1]));
}

inline int8x16x2_t with_bits(uint8x16x2_t codes, uint8x16x2_t bits) {
    return as_signed(vorrq_u8(codes.val[0], bits.val[0]), vorrq_u8(codes.val[1], bits.val[1]));
}

inline int8x16x2_t codes_of(const BlockQ8_0 &block, int, Points) {
    return {{vld1q_s8(block.qs), vld1q_s8(block.qs + 16)}};
}
inline int8x16x2_t codes_of(const BlockIQ4_NL &block, int, Points) {
    return levels_of(iq4_levels, Traits<BlockIQ4_NL>::zero, block.qs);
}
inline int8x16x2_t codes_of(const BlockMXFP4 &block, int, Points) {
    return levels_of(e2m1_levels, Traits<BlockMXFP4>::zero, block.qs);
}
template <class Block>
    requires(Traits<Block>::size == 32)
int8x16x2_t codes_of(const Block &block, int, Points) {
    const uint8x16x2_t low = halves_of(block.qs);
    if constexpr (requires { block.qh; }) {
        const uint8x16x2_t masks = masks_where(repeat_u32(load_u32(block.qh)), 1);
        return with_bits(low, {{vandq_u8(masks.val[0], bytes(16)), vandq_u8(masks.val[1], bytes(16))}});
    } else {
        return as_signed(low.val[0], low.val[1]);
    }
}

inline uint8x16x2_t move_bits(const uint8_t *from_32, int from, int to, int mask) {
    return {{move_bits(vld1q_u8(from_32), from, to, mask), move_bits(vld1q_u8(from_32 + 16), from, to, mask)}};
}

// Parts 0 to 3 share 32 bytes of two bits each.
inline uint8x16x2_t quarter_of(const uint8_t *qs, int part) {
    return move_bits(qs + 32 * (part / 4), 2 * (part % 4), 0, 3);
}
template <class Block>
    requires(std::is_same_v<Block, BlockQ2_K> || std::is_same_v<Block, BlockTQ2_0>)
int8x16x2_t codes_of(const Block &block, int part, Points) {
    const uint8x16x2_t codes = quarter_of(block.qs, part);
    return as_signed(codes.val[0], codes.val[1]);
}
inline int8x16x2_t codes_of(const BlockQ3_K &block, int part, Points) {
    return with_bits(quarter_of(block.qs, part), move_bits(block.hmask, part, 2, 4));
}

// Two parts share 32 bytes of four bits each.
inline uint8x16x2_t pair_of(const uint8_t *qs, int part) {
    return move_bits(qs + 32 * (part / 2), 4 * (part % 2), 0, 15);
}
inline int8x16x2_t codes_of(const BlockQ4_K &block, int part, Points) {
    const uint8x16x2_t codes = pair_of(block.qs, part);
    return as_signed(codes.val[0], codes.val[1]);
}
inline int8x16x2_t codes_of(const BlockQ5_K &block, int part, Points) {
    return with_bits(pair_of(block.qs, part), move_bits(block.qh, part, 4, 16));
}
inline int8x16x2_t codes_of(const BlockQ6_K &block, int part, Points) {
    const int half = part / 4, quarter = part % 4;
    const uint8x16x2_t low = move_bits(block.ql + 64 * half + 32 * (quarter % 2), 4 * (quarter / 2), 0, 15);
    return with_bits(low, move_bits(block.qh + 32 * half, 2 * quarter, 4, 0x30));
}

inline int8x16x2_t codes_of(const BlockIQ4_XS &block, int part, Points) {
    return levels_of(iq4_levels, Traits<BlockIQ4_XS>::zero, block.qs + 16 * part);
}

// The trits of bytes that were multiplied with powers of 3, modulo 256: a third of 256 makes the next trit.
inline uint8x16_t trits_of(uint8x16_t packed, uint8x16_t powers) {
    const uint8x16_t rest = vmulq_u8(packed, powers);
    return vsubq_u8(bytes(0), vaddq_u8(vcgeq_u8(rest, bytes(86)), vcgeq_u8(rest, bytes(171)))); // -1 where it is
}
inline int8x16x2_t codes_of(const BlockTQ1_0 &block, int part, Points) {
    constexpr uint8_t powers[5] = {1, 3, 9, 27, 81};
    if (part < 5) {
        const uint8x16_t power = bytes(powers[part]);
        return as_signed(trits_of(vld1q_u8(block.qs), power), trits_of(vld1q_u8(block.qs + 16), power));
    }
    const int t = 2 * (part - 5);
    const uint8x16_t packed = vld1q_u8(block.qs + 32), first = trits_of(packed, bytes(powers[t]));
    if (part < 7) return as_signed(first, trits_of(packed, bytes(powers[t + 1])));
    const uint8x16_t four_each = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    return as_signed(first, trits_of(repeat_u32(load_u32(block.qh)), four_each));
}

// ---- codes from grids ------------------------------------------------------------------------

// Four times seven signs, each with the eighth that makes the number of minus signs even, in a byte of every word.
inline uint8x16_t even_signs(uint32_t sevens) {
    const int32x4_t down = {0, -7, -14, -21};
    const uint8x16_t signs = vandq_u8(vreinterpretq_u8_u32(vshlq_u32(vdupq_n_u32(sevens), down)), bytes(127));
    return vsliq_n_u8(signs, vcntq_u8(signs), 7);
}

// Changes the sign of the weights whose bits are set; `stride`: from one byte of bits to the next.
inline int8x16x2_t with_signs(int8x16x2_t values, uint8x16_t minus, int stride) {
    const uint8x16x2_t masks = masks_where(minus, stride);
    for (int i = 0; i < 2; ++i) {
        const int8x16_t mask = vreinterpretq_s8_u8(masks.val[i]);
        values.val[i] = vsubq_s8(veorq_s8(values.val[i], mask), mask);
    }
    return values;
}

// The points whose numbers index(0), index(1), … are: eight of four values, or four of eight.
template <class Index> int8x16x2_t points_of_4(Points points, Index index) {
    const auto four = [&](int k) {
        uint32x4_t values = vdupq_n_u32(load_u32(points + 4 * index(k)));
        values = vsetq_lane_u32(load_u32(points + 4 * index(k + 1)), values, 1);
        values = vsetq_lane_u32(load_u32(points + 4 * index(k + 2)), values, 2);
        return vreinterpretq_s8_u32(vsetq_lane_u32(load_u32(points + 4 * index(k + 3)), values, 3));
    };
    return {{four(0), four(4)}};
}
template <class Index> int8x16x2_t points_of_8(Points points, Index index) {
    const auto point = [&](int k) { return vld1_s8(points + 8 * index(k)); };
    return {{vcombine_s8(point(0), point(1)), vcombine_s8(point(2), point(3))}};
}

inline int8x16x2_t codes_of(const BlockIQ3_S &block, int part, Points points) {
    const int16x8_t up = {8, 7, 6, 5, 4, 3, 2, 1};
    const uint16x8_t high = vandq_u16(vshlq_u16(vdupq_n_u16(block.qh[part]), up), vdupq_n_u16(256));
    uint16_t indices[8];
    vst1q_u16(indices, vorrq_u16(vmovl_u8(vld1_u8(block.qs + 8 * part)), high));
    const auto index = [&](int k) { return indices[k]; };
    return with_signs(points_of_4(points, index), repeat_u32(load_u32(block.signs + 4 * part)), 1);
}
inline int8x16x2_t codes_of(const BlockIQ3_XXS &block, int part, Points points) {
    const auto index = [&](int k) { return block.qs[8 * part + k]; };
    return with_signs(points_of_4(points, index), even_signs(load_u32(block.qs + 64 + 4 * part)), 4);
}
inline int8x16x2_t codes_of(const BlockIQ2_S &block, int part, Points points) {
    const auto index = [&](int k) { return block.qs[4 * part + k] | (block.qh[part] << (8 - 2 * k) & 0x300); };
    return with_signs(points_of_8(points, index), repeat_u32(load_u32(block.qs + 32 + 4 * part)), 1);
}
inline int8x16x2_t codes_of(const BlockIQ2_XS &block, int part, Points points) {
    const uint16_t *words = block.qs + 4 * part;
    const auto index = [&](int k) { return words[k] & 511; };
    const uint32_t sevens = words[0] >> 9 | words[1] >> 9 << 7 | words[2] >> 9 << 14 | words[3] >> 9 << 21;
    return with_signs(points_of_8(points, index), even_signs(sevens), 4);
}
inline int8x16x2_t codes_of(const BlockIQ2_XXS &block, int part, Points points) {
    const uint8_t *bytes_at = reinterpret_cast<const uint8_t *>(block.qs + 4 * part);
    const auto index = [&](int k) { return bytes_at[k]; };
    return with_signs(points_of_8(points, index), even_signs(load_u32(bytes_at + 4)), 4);
}

// Eight times the values, and one more; or one less in the bytes where `down` is -1, not 0.
inline int8x16_t shifted(int8x16_t values, int8x16_t down) {
    return vaddq_s8(vshlq_n_s8(values, 3), vorrq_s8(down, vdupq_n_s8(1)));
}
inline int8x16x2_t codes_of(const BlockIQ1_S &block, int part, Points points) {
    const int word = block.qh[part];
    const auto index = [&](int k) { return block.qs[4 * part + k] | (word << 8 >> 3 * k & 0x700); };
    const int8x16x2_t values = points_of_8(points, index);
    const int8x16_t down = vdupq_n_s8(static_cast<int8_t>(-(word >> 15)));
    return {{shifted(values.val[0], down), shifted(values.val[1], down)}};
}
inline int8x16x2_t codes_of(const BlockIQ1_M &block, int part, Points points) {
    const int fours = block.qh[2 * part] | block.qh[2 * part + 1] << 8;
    const auto index = [&](int k) { return block.qs[4 * part + k] | (fours >> 4 * k & 7) << 8; };
    const int8x16x2_t values = points_of_8(points, index);
    const auto down = [&](int k) { return vdup_n_s8(static_cast<int8_t>(-(fours >> (4 * k + 3) & 1))); };
    const int8x16_t first = vcombine_s8(down(0), down(1)), second = vcombine_s8(down(2), down(3));
    return {{shifted(values.val[0], first), shifted(values.val[1], second)}};
}

} // namespace phi::PHI_ISA
