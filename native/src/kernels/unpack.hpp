// From the bits of each type to its codes, scales and minima, one at a time: the definition to read. The layouts are
// those of blocks.hpp.
#pragma once

#include "unpacked.hpp"

namespace phi::PHI_ISA {

// Scales and minima by the groups that activations have sums of: all 32 weights, or 16 of 256.
template <int size> struct Unpacked {
    uint8_t codes[size];
    int16_t scales[sums_in(size)], minima[sums_in(size)];
};

template <int size> void set_all_scales(Unpacked<size> &out) {
    for (int group = 0; group < sums_in(size); ++group) out.scales[group] = out.minima[group] = 1;
}

inline void set_scale_of_32(Unpacked<256> &out, int part, int scale, int minimum = 0) {
    out.scales[2 * part] = out.scales[2 * part + 1] = static_cast<int16_t>(scale);
    out.minima[2 * part] = out.minima[2 * part + 1] = static_cast<int16_t>(minimum);
}

// ---- blocks of 32 ----------------------------------------------------------------------------

// 16 bytes of two codes: the low four bits first.
inline void unpack_halves(const uint8_t *qs, uint8_t *codes) {
    // Unrolled, the compiler would no longer see that these are one vector instruction each.
#pragma GCC unroll 1
    for (int i = 0; i < 16; ++i) codes[i] = qs[i] & 15;
#pragma GCC unroll 1
    for (int i = 0; i < 16; ++i) codes[i + 16] = qs[i] >> 4;
}

inline void unpack(const BlockQ8_0 &block, Unpacked<32> &out, Points) {
    for (int i = 0; i < 32; ++i) out.codes[i] = static_cast<uint8_t>(block.qs[i] + 128);
    set_all_scales(out);
}

template <class Block>
    requires(Traits<Block>::size == 32)
void unpack(const Block &block, Unpacked<32> &out, Points) {
    unpack_halves(block.qs, out.codes);
    if constexpr (requires { block.qh; })
        for (int i = 0; i < 32; ++i) out.codes[i] |= static_cast<uint8_t>((block.qh[i / 8] >> i % 8 & 1) << 4);
    if constexpr (std::is_same_v<Block, BlockIQ4_NL>)
        for (uint8_t &code : out.codes) code = iq4_levels[code];
    if constexpr (std::is_same_v<Block, BlockMXFP4>)
        for (uint8_t &code : out.codes) code = e2m1_levels[code];
    set_all_scales(out);
}

// ---- K-quants --------------------------------------------------------------------------------

// 64 bytes of four codes each, half a block for every 32 bytes.
inline void unpack_quarters(const uint8_t *qs, uint8_t *codes) {
    for (int part = 0; part < 8; ++part)
        for (int i = 0; i < 32; ++i) codes[32 * part + i] = qs[32 * (part / 4) + i] >> 2 * (part % 4) & 3;
}

inline void unpack(const BlockQ2_K &block, Unpacked<256> &out, Points) {
    unpack_quarters(block.qs, out.codes);
    for (int group = 0; group < 16; ++group) {
        out.scales[group] = block.scales[group] & 15;
        out.minima[group] = block.scales[group] >> 4;
    }
}

inline void unpack(const BlockQ3_K &block, Unpacked<256> &out, Points) {
    unpack_quarters(block.qs, out.codes);
    for (int i = 0; i < 256; ++i) out.codes[i] |= static_cast<uint8_t>((block.hmask[i % 32] >> i / 32 & 1) << 2);
    for (int group = 0; group < 16; ++group) {
        const int low = block.scales[group % 8] >> 4 * (group / 8) & 15;
        const int high = block.scales[8 + group % 4] >> 2 * (group / 4) & 3;
        out.scales[group] = static_cast<int16_t>((low | high << 4) - 32);
    }
}

// The 6-bit scales and minimums of Q4_K and Q5_K: the first four of each lie in the low six bits of bytes
// 0-3 and 4-7; of the others the low four bits are in bytes 8-11 and the high two on top of bytes 0-7.
inline void unpack_scales(const uint8_t *packed, Unpacked<256> &out) {
    for (int sub = 0; sub < 4; ++sub) {
        set_scale_of_32(out, sub, packed[sub] & 63, packed[4 + sub] & 63);
        set_scale_of_32(out, 4 + sub, (packed[8 + sub] & 15) | packed[sub] >> 6 << 4,
                        packed[8 + sub] >> 4 | packed[4 + sub] >> 6 << 4);
    }
}

// 32 bytes of two codes each for every 64 weights.
inline void unpack_pairs(const uint8_t *qs, uint8_t *codes) {
    for (int part = 0; part < 8; ++part)
        for (int i = 0; i < 32; ++i) codes[32 * part + i] = qs[32 * (part / 2) + i] >> 4 * (part % 2) & 15;
}

inline void unpack(const BlockQ4_K &block, Unpacked<256> &out, Points) {
    unpack_pairs(block.qs, out.codes);
    unpack_scales(block.scales, out);
}

inline void unpack(const BlockQ5_K &block, Unpacked<256> &out, Points) {
    unpack_pairs(block.qs, out.codes);
    for (int i = 0; i < 256; ++i) out.codes[i] |= static_cast<uint8_t>((block.qh[i % 32] >> i / 32 & 1) << 4);
    unpack_scales(block.scales, out);
}

inline void unpack(const BlockQ6_K &block, Unpacked<256> &out, Points) {
    for (int part = 0; part < 8; ++part)
        for (int i = 0; i < 32; ++i) {
            const int half = part / 4, quarter = part % 4;
            const int low = block.ql[64 * half + 32 * (quarter % 2) + i] >> 4 * (quarter / 2) & 15;
            const int high = block.qh[32 * half + i] >> 2 * quarter & 3;
            out.codes[32 * part + i] = static_cast<uint8_t>(low | high << 4);
        }
    for (int group = 0; group < 16; ++group) out.scales[group] = block.scales[group];
}

// ---- levels, and trits -----------------------------------------------------------------------

inline void unpack(const BlockIQ4_XS &block, Unpacked<256> &out, Points) {
    for (int part = 0; part < 8; ++part) {
        unpack_halves(block.qs + 16 * part, out.codes + 32 * part);
        const int low = block.scales_l[part / 2] >> 4 * (part % 2) & 15, high = block.scales_h >> 2 * part & 3;
        set_scale_of_32(out, part, (low | high << 4) - 32);
    }
    for (uint8_t &code : out.codes) code = iq4_levels[code];
}

inline void unpack(const BlockTQ2_0 &block, Unpacked<256> &out, Points) {
    unpack_quarters(block.qs, out.codes);
    set_all_scales(out);
}

// Trit t of a byte that is a fraction of 256: what is left of it after t trits, times 3, its whole part.
inline uint8_t trit(uint8_t byte, int t) {
    constexpr uint8_t powers[5] = {1, 3, 9, 27, 81};
    return static_cast<uint8_t>(static_cast<uint8_t>(byte * powers[t]) * 3 >> 8);
}

inline void unpack(const BlockTQ1_0 &block, Unpacked<256> &out, Points) {
    for (int t = 0; t < 5; ++t) {
        for (int i = 0; i < 32; ++i) out.codes[32 * t + i] = trit(block.qs[i], t);
        for (int i = 0; i < 16; ++i) out.codes[160 + 16 * t + i] = trit(block.qs[32 + i], t);
    }
    for (int t = 0; t < 4; ++t)
        for (int i = 0; i < 4; ++i) out.codes[240 + 4 * t + i] = trit(block.qh[i], t);
    set_all_scales(out);
}

// ---- grids -----------------------------------------------------------------------------------

// `n` values of a point, the signs of those whose bits are set turned.
inline void unpack_point(const int8_t *point, int n, unsigned minus, int zero, uint8_t *codes) {
    for (int i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>((minus >> i & 1 ? -point[i] : point[i]) + zero);
}

// Seven signs; the eighth makes the number of minus signs even.
inline unsigned even_signs(unsigned seven) { return seven | static_cast<unsigned>(__builtin_parity(seven)) << 7; }

inline uint32_t word_at(const void *p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

inline void unpack(const BlockIQ3_S &block, Unpacked<256> &out, Points points) {
    for (int i = 0; i < 64; ++i) {
        const int index = block.qs[i] | (block.qh[i / 8] >> i % 8 & 1) << 8;
        unpack_point(points + 4 * index, 4, block.signs[i / 2] >> 4 * (i % 2), 16, out.codes + 4 * i);
    }
    for (int part = 0; part < 8; ++part)
        set_scale_of_32(out, part, 1 + 2 * (block.scales[part / 2] >> 4 * (part % 2) & 15));
}

inline void unpack(const BlockIQ3_XXS &block, Unpacked<256> &out, Points points) {
    for (int part = 0; part < 8; ++part) {
        const uint32_t word = word_at(block.qs + 64 + 4 * part);
        for (int k = 0; k < 8; ++k) {
            const unsigned signs = even_signs(word >> 7 * (k / 2) & 127) >> 4 * (k % 2);
            unpack_point(points + 4 * block.qs[8 * part + k], 4, signs, 64, out.codes + 32 * part + 4 * k);
        }
        set_scale_of_32(out, part, 1 + 2 * static_cast<int>(word >> 28));
    }
}

inline void unpack(const BlockIQ2_S &block, Unpacked<256> &out, Points points) {
    for (int i = 0; i < 32; ++i) {
        const int index = block.qs[i] | (block.qh[i / 4] >> 2 * (i % 4) & 3) << 8;
        unpack_point(points + 8 * index, 8, block.qs[32 + i], 64, out.codes + 8 * i);
    }
    for (int group = 0; group < 16; ++group)
        out.scales[group] = static_cast<int16_t>(1 + 2 * (block.scales[group / 2] >> 4 * (group % 2) & 15));
}

inline void unpack(const BlockIQ2_XS &block, Unpacked<256> &out, Points points) {
    for (int i = 0; i < 32; ++i)
        unpack_point(points + 8 * (block.qs[i] & 511), 8, even_signs(block.qs[i] >> 9), 64, out.codes + 8 * i);
    for (int group = 0; group < 16; ++group)
        out.scales[group] = static_cast<int16_t>(1 + 2 * (block.scales[group / 2] >> 4 * (group % 2) & 15));
}

inline void unpack(const BlockIQ2_XXS &block, Unpacked<256> &out, Points points) {
    for (int part = 0; part < 8; ++part) {
        const uint32_t indices = word_at(block.qs + 4 * part), word = word_at(block.qs + 4 * part + 2);
        for (int k = 0; k < 4; ++k)
            unpack_point(points + 8 * (indices >> 8 * k & 255), 8, even_signs(word >> 7 * k & 127), 64,
                         out.codes + 32 * part + 8 * k);
        set_scale_of_32(out, part, 1 + 2 * static_cast<int>(word >> 28));
    }
}

// Eight times the values of a point, all shifted by one.
inline void unpack_shifted(const int8_t *point, bool down, uint8_t *codes) {
    for (int i = 0; i < 8; ++i) codes[i] = static_cast<uint8_t>(8 * point[i] + (down ? 8 : 10));
}

inline void unpack(const BlockIQ1_S &block, Unpacked<256> &out, Points points) {
    for (int i = 0; i < 32; ++i) {
        const int word = block.qh[i / 4], index = block.qs[i] | (word >> 3 * (i % 4) & 7) << 8;
        unpack_shifted(points + 8 * index, word >> 15 & 1, out.codes + 8 * i);
    }
    for (int part = 0; part < 8; ++part) set_scale_of_32(out, part, 1 + 2 * (block.qh[part] >> 12 & 7));
}

inline void unpack(const BlockIQ1_M &block, Unpacked<256> &out, Points points) {
    for (int i = 0; i < 32; ++i) {
        const int four = block.qh[i / 2] >> 4 * (i % 2);
        unpack_shifted(points + 8 * (block.qs[i] | (four & 7) << 8), four & 8, out.codes + 8 * i);
    }
    for (int group = 0; group < 16; ++group) {
        uint16_t word;
        std::memcpy(&word, block.scales + group / 4 * 2, sizeof word);
        out.scales[group] = static_cast<int16_t>(1 + 2 * (word >> 3 * (group % 4) & 7));
    }
}

} // namespace phi::PHI_ISA
