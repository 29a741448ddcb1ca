// Every quantized type in one form, to read: weight = d · scale · (code - zero), or d · scale · code - dmin · minimum.
//
// A block has codes from 0 up and, for every group of weights, a scale and perhaps a minimum, all whole numbers. So a
// block's dot product with codes of activations needs two sums of integers, which are exact in any order:
//   products = Σ scale · Σ code · activation        offsets = Σ offset · Σ activation
// where the offset of a group is its minimum, or zero · scale.
#pragma once

#include "../blocks.hpp"
#include "../quantize/grids.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

inline constexpr int has_minima = -1;

// What differs between the types.
//   size, group  weights in a block, and weights that share a scale
//   max_code     the largest code
//   zero         the code of weight 0; or has_minima, where every group has its own
//   parts        the file's d is so many times ours: scales become whole numbers
template <int size_, int group_, int max_code_, int zero_, int parts_ = 1> struct Form {
    static constexpr int size = size_, group = group_, max_code = max_code_, zero = zero_, parts = parts_;
    static constexpr bool minima = zero == has_minima;
    static constexpr bool is_signed = max_code > 127; // codes fill all 8 bits: around zero they fit into signed ones
};

template <class Block> struct Traits;
template <> struct Traits<BlockQ8_0> : Form<32, 32, 255, 128> {};
template <> struct Traits<BlockQ4_0> : Form<32, 32, 15, 8> {};
template <> struct Traits<BlockQ4_1> : Form<32, 32, 15, has_minima> {};
template <> struct Traits<BlockQ5_0> : Form<32, 32, 31, 16> {};
template <> struct Traits<BlockQ5_1> : Form<32, 32, 31, has_minima> {};
template <> struct Traits<BlockIQ4_NL> : Form<32, 32, 241, 128> {};
template <> struct Traits<BlockMXFP4> : Form<32, 32, 24, 12> {};
template <> struct Traits<BlockQ2_K> : Form<256, 16, 3, has_minima> {};
template <> struct Traits<BlockQ3_K> : Form<256, 16, 7, 4> {};
template <> struct Traits<BlockQ4_K> : Form<256, 32, 15, has_minima> {};
template <> struct Traits<BlockQ5_K> : Form<256, 32, 31, has_minima> {};
template <> struct Traits<BlockQ6_K> : Form<256, 16, 63, 32> {};
template <> struct Traits<BlockIQ4_XS> : Form<256, 32, 241, 128> {};
template <> struct Traits<BlockTQ1_0> : Form<256, 256, 2, 1> {};
template <> struct Traits<BlockTQ2_0> : Form<256, 256, 2, 1> {};
template <> struct Traits<BlockIQ3_S> : Form<256, 32, 31, 16> {
    static constexpr GridName grid = GridName::IQ3_S;
};
template <> struct Traits<BlockIQ3_XXS> : Form<256, 32, 126, 64, 4> {
    static constexpr GridName grid = GridName::IQ3_XXS;
};
template <> struct Traits<BlockIQ2_S> : Form<256, 16, 107, 64, 8> {
    static constexpr GridName grid = GridName::IQ2_S;
};
template <> struct Traits<BlockIQ2_XS> : Form<256, 16, 107, 64, 8> {
    static constexpr GridName grid = GridName::IQ2_XS;
};
template <> struct Traits<BlockIQ2_XXS> : Form<256, 32, 107, 64, 8> {
    static constexpr GridName grid = GridName::IQ2_XXS;
};
// Eight times the point of the grid, and one more or less.
template <> struct Traits<BlockIQ1_M> : Form<256, 16, 18, 9, 8> {
    static constexpr GridName grid = GridName::IQ1_S;
};
template <> struct Traits<BlockIQ1_S> : Form<256, 32, 18, 9, 8> {
    static constexpr GridName grid = GridName::IQ1_S;
};

// The points of the type's grid, if it has one: found once for a matrix.
using Points = const int8_t *;
template <class Block> Points points_of() {
    if constexpr (requires { Traits<Block>::grid; })
        return find_grid(Traits<Block>::grid)->values;
    else
        return nullptr;
}

// Sixteen levels of codes of four bits, as they are in the form above.
alignas(16) inline constexpr uint8_t iq4_levels[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                       129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) inline constexpr uint8_t e2m1_levels[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// ---- d and dmin ------------------------------------------------------------------------------

inline float half(uint16_t bits) {
    const Half value{bits};
    return load_one(&value);
}

template <class Block> float d_of(const Block &block) { return half(block.d) * (1.0f / Traits<Block>::parts); }

// 2^(e - 128): e - 1 as the exponent of a float, whose two smallest are subnormal.
inline float d_of(const BlockMXFP4 &block) {
    const uint32_t e = block.e;
    return bits_to_float(e < 2 ? (e + 1) << 21 : (e - 1) << 23);
}

// A quarter of d lies on top of each word of scales.
inline float d_of(const BlockIQ1_M &block) {
    uint16_t words[4];
    std::memcpy(words, block.scales, sizeof words);
    const int d = words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12;
    return half(static_cast<uint16_t>(d)) * 0.125f;
}

// Q4_1 and Q5_1 add m: dmin is -m, and the minimum 1.
template <class Block> float dmin_of(const Block &block) {
    if constexpr (!Traits<Block>::minima)
        return 0;
    else if constexpr (Traits<Block>::size == 32)
        return -half(block.m);
    else
        return half(block.dmin);
}

// ---- activations -----------------------------------------------------------------------------

// How many sums of codes an activation block of this size has, and where that of a group of 16 is: even
// groups first, then odd ones.
inline constexpr int sums_in(int size) { return size == 32 ? 1 : 16; }
inline constexpr int sum_index(int group) { return group % 2 * 8 + group / 2; }

// One token's vector as its codes.
struct Vector {
    const int8_t *codes;
    const int16_t *sums;
    const float *scales;
};

template <class Block> Vector vector_of(const Activations &x, int token) {
    constexpr int size = Traits<Block>::size;
    const int64_t blocks = x.cols / size;
    return {x.codes + token * x.cols, x.sums + token * blocks * sums_in(size), x.scales + token * blocks};
}

// The vector from the next block on.
template <class Block> Vector next_block(Vector x) {
    constexpr int size = Traits<Block>::size;
    return {x.codes + size, x.sums + sums_in(size), x.scales + 1};
}

template <class Block> const Block *row_of(const Matrix &weight, int64_t row) {
    return reinterpret_cast<const Block *>(weight.data + row * weight.row_bytes);
}

} // namespace phi::PHI_ISA
