// Unpacking in vectors of 256 bits, for AVX2 and AVX-512: what unpack.hpp says one weight at a time.
//
//   codes_of(block, part, points)   the 32 codes from weight 32 · part on
//   scales_of(block)                the scales of a block of 256 as 16 words, those of even groups first: word `part`
//                                   of each half belongs to the 16 weights of the same half of the codes
//   minima_of(block)                the same for minima
#pragma once

#include "unpacked.hpp"

#include <immintrin.h>

namespace phi::PHI_ISA {

// The instruction set brings these two.
__m256i bytes_where(uint32_t bits, int value);            // a byte for each bit: the value where it is set, else 0
__m256i negate_where(__m256i bytes, uint32_t bits);       // changes the sign of the bytes whose bits are set

inline __m256i load_256(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m128i load_128(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
inline __m128i load_64(const void *p) { return _mm_loadl_epi64(static_cast<const __m128i *>(p)); }

// Four bytes, whatever they are and wherever they begin.
using AnyInt [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
inline uint32_t load_32(const void *p) { return static_cast<uint32_t>(*static_cast<const AnyInt *>(p)); }
inline uint64_t load_u64(const void *p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

inline __m128i bytes_of(uint64_t eight) { return _mm_cvtsi64_si128(static_cast<long long>(eight)); }
inline __m256i low_four_bits(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline __m256i both_halves(__m128i a) { return _mm256_broadcastsi128_si256(a); }

// Bit `from` of each byte, and those above it, moved to bit `to`; `mask` keeps what is wanted.
inline __m256i move_bits(__m256i bytes, int from, int to, int mask) {
    const __m256i moved = from >= to ? _mm256_srli_epi16(bytes, from - to) : _mm256_slli_epi16(bytes, to - from);
    return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(mask)));
}

// 16 bytes of two codes: the low four bits first.
inline __m256i halves_of(const uint8_t *qs) {
    const __m128i bytes = load_128(qs);
    return low_four_bits(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes));
}

inline __m256i levels_of(const uint8_t (&levels)[16], __m256i codes) {
    return _mm256_shuffle_epi8(both_halves(load_128(levels)), codes);
}

// ---- scales ----------------------------------------------------------------------------------

// Eight bytes, one for each 32 weights: both halves have the same.
inline __m256i scales_of_32(uint64_t bytes) { return both_halves(_mm_cvtepu8_epi16(bytes_of(bytes))); }

// Sixteen bytes, one for each 16 weights.
inline __m128i even_odd(__m128i bytes) {
    return _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

// 1 + 2 · code
inline __m256i odd_numbers(__m256i codes) {
    return _mm256_add_epi16(_mm256_add_epi16(codes, codes), _mm256_set1_epi16(1));
}

// Eight bytes of two codes, for the even group the low one.
inline __m256i odd_scales_of_16(const uint8_t *bytes) {
    const uint64_t both = load_u64(bytes), low_four = 0x0f0f0f0f0f0f0f0f;
    return odd_numbers(_mm256_cvtepu8_epi16(_mm_set_epi64x(static_cast<long long>(both >> 4 & low_four),
                                                           static_cast<long long>(both & low_four))));
}

// The highest four bits of eight words of 32 bits.
inline __m256i odd_scales_on_top(__m256i words) {
    const __m256i codes = _mm256_srli_epi32(words, 28);
    const __m128i eight = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    return odd_numbers(both_halves(eight));
}

template <class Block>
    requires(Traits<Block>::group == 256)
__m256i scales_of(const Block &) {
    return _mm256_set1_epi16(1);
}

inline __m256i scales_of(const BlockQ2_K &block) {
    return _mm256_cvtepi8_epi16(even_odd(_mm_and_si128(load_128(block.scales), _mm_set1_epi8(15))));
}
inline __m256i minima_of(const BlockQ2_K &block) {
    const __m128i high = _mm_srli_epi16(load_128(block.scales), 4);
    return _mm256_cvtepi8_epi16(even_odd(_mm_and_si128(high, _mm_set1_epi8(15))));
}

inline __m256i scales_of(const BlockQ3_K &block) {
    const uint64_t low = load_u64(block.scales), high = load_32(block.scales + 8);
    const uint64_t low_four = 0x0f0f0f0f0f0f0f0f, next_two = 0x3030303030303030;
    const uint64_t first = (low & low_four) | ((high << 4 | high << 34) & next_two);
    const uint64_t second = (low >> 4 & low_four) | ((high | high << 30) & next_two);
    const __m128i stored = _mm_set_epi64x(static_cast<long long>(second), static_cast<long long>(first));
    return _mm256_cvtepi8_epi16(even_odd(_mm_sub_epi8(stored, _mm_set1_epi8(32))));
}

// Q4_K and Q5_K: where the scales and minima lie is said in unpack_scales().
template <class Block>
    requires(Traits<Block>::minima)
__m256i scales_of(const Block &block) {
    const uint64_t first = load_32(block.scales), third = load_32(block.scales + 8);
    return scales_of_32((first & 0x3f3f3f3f) | ((third & 0x0f0f0f0f) | (first >> 2 & 0x30303030)) << 32);
}
template <class Block> __m256i minima_of(const Block &block) {
    const uint64_t second = load_32(block.scales + 4), third = load_32(block.scales + 8);
    return scales_of_32((second & 0x3f3f3f3f) | ((third >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030)) << 32);
}

inline __m256i scales_of(const BlockQ6_K &block) { return _mm256_cvtepi8_epi16(even_odd(load_128(block.scales))); }

inline __m256i scales_of(const BlockIQ4_XS &block) {
    const uint64_t low = _pdep_u64(load_32(block.scales_l), 0x0f0f0f0f0f0f0f0f);
    const uint64_t high = _pdep_u64(block.scales_h, 0x3030303030303030);
    return _mm256_sub_epi16(scales_of_32(low | high), _mm256_set1_epi16(32));
}

inline __m256i scales_of(const BlockIQ3_S &block) {
    return odd_numbers(scales_of_32(_pdep_u64(load_32(block.scales), 0x0f0f0f0f0f0f0f0f)));
}
inline __m256i scales_of(const BlockIQ3_XXS &block) { return odd_scales_on_top(load_256(block.qs + 64)); }
inline __m256i scales_of(const BlockIQ2_S &block) { return odd_scales_of_16(block.scales); }
inline __m256i scales_of(const BlockIQ2_XS &block) { return odd_scales_of_16(block.scales); }
inline __m256i scales_of(const BlockIQ2_XXS &block) { // every other word
    const __m256 first = _mm256_castsi256_ps(load_256(block.qs)), second = _mm256_castsi256_ps(load_256(block.qs + 16));
    const __m256i mixed = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xdd));
    return odd_scales_on_top(_mm256_permute4x64_epi64(mixed, 0xd8));
}
inline __m256i scales_of(const BlockIQ1_S &block) {
    const __m128i codes = _mm_and_si128(_mm_srli_epi16(load_128(block.qh), 12), _mm_set1_epi16(7));
    return odd_numbers(both_halves(codes));
}
inline __m256i scales_of(const BlockIQ1_M &block) {
    const uint64_t all = _pext_u64(load_u64(block.scales), 0x0fff0fff0fff0fff), low_three = 0x0707070707070707;
    const __m128i codes = _mm_set_epi64x(static_cast<long long>(_pdep_u64(all >> 24, low_three)),
                                         static_cast<long long>(_pdep_u64(all, low_three)));
    return odd_numbers(_mm256_cvtepu8_epi16(even_odd(codes)));
}

// ---- codes -----------------------------------------------------------------------------------

inline __m256i codes_of(const BlockQ8_0 &block, int, Points) {
    return _mm256_xor_si256(load_256(block.qs), _mm256_set1_epi8(-128)); // q + 128
}
inline __m256i codes_of(const BlockIQ4_NL &block, int, Points) { return levels_of(iq4_levels, halves_of(block.qs)); }
inline __m256i codes_of(const BlockMXFP4 &block, int, Points) { return levels_of(e2m1_levels, halves_of(block.qs)); }
template <class Block>
    requires(Traits<Block>::size == 32)
__m256i codes_of(const Block &block, int, Points) {
    if constexpr (requires { block.qh; })
        return _mm256_or_si256(halves_of(block.qs), bytes_where(load_32(block.qh), 16));
    else
        return halves_of(block.qs);
}

// Parts 0 to 3 share 32 bytes of two bits each.
inline __m256i quarter_of(const uint8_t *qs, int part) {
    return move_bits(load_256(qs + 32 * (part / 4)), 2 * (part % 4), 0, 3);
}
inline __m256i codes_of(const BlockQ2_K &block, int part, Points) { return quarter_of(block.qs, part); }
inline __m256i codes_of(const BlockTQ2_0 &block, int part, Points) { return quarter_of(block.qs, part); }
inline __m256i codes_of(const BlockQ3_K &block, int part, Points) {
    return _mm256_or_si256(quarter_of(block.qs, part), move_bits(load_256(block.hmask), part, 2, 4));
}

// Two parts share 32 bytes of four bits each.
inline __m256i pair_of(const uint8_t *qs, int part) {
    return move_bits(load_256(qs + 32 * (part / 2)), 4 * (part % 2), 0, 15);
}
inline __m256i codes_of(const BlockQ4_K &block, int part, Points) { return pair_of(block.qs, part); }
inline __m256i codes_of(const BlockQ5_K &block, int part, Points) {
    return _mm256_or_si256(pair_of(block.qs, part), move_bits(load_256(block.qh), part, 4, 16));
}
inline __m256i codes_of(const BlockQ6_K &block, int part, Points) {
    const int half = part / 4, quarter = part % 4;
    const __m256i low = move_bits(load_256(block.ql + 64 * half + 32 * (quarter % 2)), 4 * (quarter / 2), 0, 15);
    return _mm256_or_si256(low, move_bits(load_256(block.qh + 32 * half), 2 * quarter, 4, 0x30));
}

inline __m256i codes_of(const BlockIQ4_XS &block, int part, Points) {
    return levels_of(iq4_levels, halves_of(block.qs + 16 * part));
}

// The trits of bytes that were multiplied with powers of 3, modulo 256: a third of 256 makes the next trit.
inline __m256i trits_of(__m256i bytes, __m256i powers) {
    const __m256i high_bytes = _mm256_set1_epi16(static_cast<short>(0xff00));
    const __m256i even = _mm256_andnot_si256(high_bytes, _mm256_mullo_epi16(bytes, powers));
    const __m256i odd = _mm256_mullo_epi16(_mm256_and_si256(bytes, high_bytes), powers);
    const __m256i rest = _mm256_or_si256(even, odd);
    const auto at_least = [&](int limit) { // -1 where it is
        return _mm256_cmpeq_epi8(_mm256_max_epu8(rest, _mm256_set1_epi8(static_cast<char>(limit))), rest);
    };
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(at_least(86), at_least(171)));
}
inline __m256i codes_of(const BlockTQ1_0 &block, int part, Points) {
    constexpr short powers[5] = {1, 3, 9, 27, 81};
    if (part < 5) return trits_of(load_256(block.qs), _mm256_set1_epi16(powers[part]));
    const __m128i bytes = load_128(block.qs + 32), first = _mm_set1_epi16(powers[2 * (part - 5)]);
    if (part < 7)
        return trits_of(both_halves(bytes), _mm256_set_m128i(_mm_set1_epi16(powers[2 * (part - 5) + 1]), first));
    const __m128i last = _mm_set1_epi32(static_cast<int>(load_32(block.qh)));
    return trits_of(_mm256_set_m128i(last, bytes), _mm256_set_m128i(_mm_setr_epi16(1, 1, 3, 3, 9, 9, 27, 27), first));
}

// ---- codes from grids ------------------------------------------------------------------------

// Four times seven signs, each with the eighth that makes the number of minus signs even.
inline uint32_t even_signs(uint32_t sevens) {
    const uint32_t signs = _pdep_u32(sevens, 0x7f7f7f7f);
    uint32_t parity = signs ^ signs >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return signs | (parity & 0x01010101) << 7;
}

inline __m256i points_of_4(Points points, __m256i indices) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int *>(points), indices, 4);
}
inline __m256i points_of_8(Points points, __m128i indices) {
    return _mm256_i32gather_epi64(reinterpret_cast<const long long *>(points), indices, 8);
}

// `bits` above the eight low ones of indices, whose place differs from lane to lane.
inline __m128i index_bits(uint32_t bits, __m128i shifts, int mask) {
    return _mm_and_si128(_mm_srlv_epi32(_mm_set1_epi32(static_cast<int>(bits)), shifts), _mm_set1_epi32(mask));
}
inline __m128i low_indices(const uint8_t *qs) {
    return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(static_cast<int>(load_32(qs))));
}

template <class Block> __m256i with_signs(__m256i values, uint32_t minus) {
    return _mm256_add_epi8(negate_where(values, minus), _mm256_set1_epi8(Traits<Block>::zero));
}

inline __m256i codes_of(const BlockIQ3_S &block, int part, Points points) {
    const __m256i high = _mm256_sllv_epi32(_mm256_set1_epi32(block.qh[part]), _mm256_setr_epi32(8, 7, 6, 5, 4, 3, 2, 1));
    const __m256i low = _mm256_cvtepu8_epi32(load_64(block.qs + 8 * part));
    const __m256i indices = _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi32(256)));
    return with_signs<BlockIQ3_S>(points_of_4(points, indices), load_32(block.signs + 4 * part));
}
inline __m256i codes_of(const BlockIQ3_XXS &block, int part, Points points) {
    const __m256i values = points_of_4(points, _mm256_cvtepu8_epi32(load_64(block.qs + 8 * part)));
    return with_signs<BlockIQ3_XXS>(values, even_signs(load_32(block.qs + 64 + 4 * part)));
}
inline __m256i codes_of(const BlockIQ2_S &block, int part, Points points) {
    const __m128i high = index_bits(block.qh[part] << 8u, _mm_setr_epi32(0, 2, 4, 6), 0x300);
    const __m256i values = points_of_8(points, _mm_or_si128(low_indices(block.qs + 4 * part), high));
    return with_signs<BlockIQ2_S>(values, load_32(block.qs + 32 + 4 * part));
}
inline __m256i codes_of(const BlockIQ2_XS &block, int part, Points points) {
    const uint64_t words = load_u64(block.qs + 4 * part);
    const __m128i indices = _mm_cvtepu16_epi32(bytes_of(words & 0x01ff01ff01ff01ff));
    const uint32_t signs = even_signs(static_cast<uint32_t>(_pext_u64(words, 0xfe00fe00fe00fe00)));
    return with_signs<BlockIQ2_XS>(points_of_8(points, indices), signs);
}
inline __m256i codes_of(const BlockIQ2_XXS &block, int part, Points points) {
    const uint8_t *words = reinterpret_cast<const uint8_t *>(block.qs + 4 * part);
    return with_signs<BlockIQ2_XXS>(points_of_8(points, low_indices(words)), even_signs(load_32(words + 4)));
}

// Eight times the values; `down` is -1 in the bytes of weights that are shifted down, 0 in others.
inline __m256i shifted(__m256i values, __m256i down) {
    const __m256i eightfold = _mm256_and_si256(_mm256_slli_epi16(values, 3), _mm256_set1_epi8(-8));
    return _mm256_add_epi8(eightfold, _mm256_add_epi8(_mm256_add_epi8(down, down), _mm256_set1_epi8(10)));
}
inline __m256i codes_of(const BlockIQ1_S &block, int part, Points points) {
    const uint32_t word = block.qh[part];
    const __m128i high = index_bits(word << 8, _mm_setr_epi32(0, 3, 6, 9), 0x700);
    const __m256i values = points_of_8(points, _mm_or_si128(low_indices(block.qs + 4 * part), high));
    return shifted(values, _mm256_set1_epi8(static_cast<char>(-static_cast<int>(word >> 15))));
}
inline __m256i codes_of(const BlockIQ1_M &block, int part, Points points) {
    const uint32_t fours = block.qh[2 * part] | block.qh[2 * part + 1] << 8u;
    const __m128i high = index_bits(fours << 8, _mm_setr_epi32(0, 4, 8, 12), 0x700);
    const __m256i values = points_of_8(points, _mm_or_si128(low_indices(block.qs + 4 * part), high));
    const __m256i bits = _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(fours), _mm256_setr_epi64x(3, 7, 11, 15)),
                                          _mm256_set1_epi64x(1));
    return shifted(values, _mm256_sub_epi64(_mm256_setzero_si256(), bits));
}

} // namespace phi::PHI_ISA
