// Every quantized type in one form, to read: weight = d · scale · code - dmin · offset.
//
// A block has codes from 0 up and, for every group of 16 weights, a scale and an offset, both whole numbers.
// So a block's dot product with codes of activations needs two sums of integers, which are exact in any order:
//   products = Σ scale · Σ code · activation        offsets = Σ offset · Σ activation
#pragma once

#include "../blocks.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

template <int size> struct Unpacked {
    uint8_t codes[size];
    int16_t scales[size / 16], offsets[size / 16]; // by group of 16 weights
    float d, dmin;
};

inline float half(uint16_t bits) {
    const Half value{bits};
    return load_one(&value);
}

// What differs between the types. `group`: weights that share a scale. `one_scale`: dmin is d, and so the two
// integer sums are subtracted before they become floats.
template <class Block> struct Traits;
template <> struct Traits<BlockQ8_0> {
    static constexpr int size = 32, group = 32, max_code = 255;
    static constexpr bool one_scale = true;
};
template <> struct Traits<BlockQ4_0> {
    static constexpr int size = 32, group = 32, max_code = 15;
    static constexpr bool one_scale = true;
};
template <> struct Traits<BlockQ4_K> {
    static constexpr int size = 256, group = 32, max_code = 15;
    static constexpr bool one_scale = false;
};
template <> struct Traits<BlockQ5_K> {
    static constexpr int size = 256, group = 32, max_code = 31;
    static constexpr bool one_scale = false;
};
template <> struct Traits<BlockQ6_K> {
    static constexpr int size = 256, group = 16, max_code = 63;
    static constexpr bool one_scale = true;
};

inline void unpack(const BlockQ8_0 &block, Unpacked<32> &out) { // d · q = d · (q + 128) - d · 128
    for (int i = 0; i < 32; ++i) out.codes[i] = static_cast<uint8_t>(block.qs[i] + 128);
    for (int group = 0; group < 2; ++group) out.scales[group] = 1, out.offsets[group] = 128;
    out.d = out.dmin = half(block.d);
}

inline void unpack(const BlockQ4_0 &block, Unpacked<32> &out) { // d · (q - 8)
    // Unrolled, the compiler would no longer see that these are one vector instruction each.
#pragma GCC unroll 1
    for (int i = 0; i < 16; ++i) out.codes[i] = block.qs[i] & 15;
#pragma GCC unroll 1
    for (int i = 0; i < 16; ++i) out.codes[i + 16] = block.qs[i] >> 4;
    for (int group = 0; group < 2; ++group) out.scales[group] = 1, out.offsets[group] = 8;
    out.d = out.dmin = half(block.d);
}

// The 6-bit scales and minimums of Q4_K and Q5_K: the first four of each lie in the low six bits of bytes
// 0-3 and 4-7; of the others the low four bits are in bytes 8-11 and the high two on top of bytes 0-7.
inline void unpack_scales(const uint8_t *packed, Unpacked<256> &out) {
    for (int sub = 0; sub < 8; ++sub) {
        const int low = sub & 3;
        int scale, minimum;
        if (sub < 4) {
            scale = packed[sub] & 63;
            minimum = packed[4 + sub] & 63;
        } else {
            scale = (packed[8 + low] & 15) | packed[low] >> 6 << 4;
            minimum = packed[8 + low] >> 4 | packed[4 + low] >> 6 << 4;
        }
        out.scales[2 * sub] = out.scales[2 * sub + 1] = static_cast<int16_t>(scale);
        out.offsets[2 * sub] = out.offsets[2 * sub + 1] = static_cast<int16_t>(minimum);
    }
}

inline void unpack(const BlockQ4_K &block, Unpacked<256> &out) {
    for (int group = 0; group < 4; ++group)
        for (int i = 0; i < 32; ++i) {
            out.codes[64 * group + i] = block.qs[32 * group + i] & 15;
            out.codes[64 * group + 32 + i] = block.qs[32 * group + i] >> 4;
        }
    unpack_scales(block.scales, out);
    out.d = half(block.d);
    out.dmin = half(block.dmin);
}

inline void unpack(const BlockQ5_K &block, Unpacked<256> &out) {
    for (int group = 0; group < 4; ++group)
        for (int i = 0; i < 32; ++i) {
            const int low = block.qs[32 * group + i], high = block.qh[i] >> (2 * group);
            out.codes[64 * group + i] = static_cast<uint8_t>((low & 15) | (high & 1) << 4);
            out.codes[64 * group + 32 + i] = static_cast<uint8_t>(low >> 4 | (high & 2) << 3);
        }
    unpack_scales(block.scales, out);
    out.d = half(block.d);
    out.dmin = half(block.dmin);
}

inline void unpack(const BlockQ6_K &block, Unpacked<256> &out) { // d · scale · (q - 32)
    for (int part = 0; part < 2; ++part)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *low = block.ql + 64 * part + i;
            const int high = block.qh[32 * part + i];
            uint8_t *codes = out.codes + 128 * part + i;
            codes[0] = static_cast<uint8_t>((low[0] & 15) | (high & 3) << 4);
            codes[32] = static_cast<uint8_t>((low[32] & 15) | (high >> 2 & 3) << 4);
            codes[64] = static_cast<uint8_t>(low[0] >> 4 | (high >> 4 & 3) << 4);
            codes[96] = static_cast<uint8_t>(low[32] >> 4 | (high >> 6) << 4);
        }
    for (int group = 0; group < 16; ++group) {
        out.scales[group] = block.scales[group];
        out.offsets[group] = static_cast<int16_t>(32 * block.scales[group]);
    }
    out.d = out.dmin = half(block.d);
}

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

template <class Block> const Block *row_of(const Matrix &weight, int64_t row) {
    return reinterpret_cast<const Block *>(weight.data + row * weight.row_bytes);
}

} // namespace phi::PHI_ISA
