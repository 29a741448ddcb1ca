// Keys and values on their way into the cache and out of it; see CacheFormat.
#pragma once

#include "../blocks.hpp"
#include "../quantize/quantizers.hpp"
#include "kernels.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

inline constexpr int max_head_size = 1 << 12; // see check(Config)
inline constexpr int scale_bytes = 2;         // in front of the codes of a block

inline const Quantizer &cache_quantizer(Type type) {
    switch (type) {
    case Type::F32: return quantizer_f32;
    case Type::F16: return quantizer_f16;
    case Type::BF16: return quantizer_bf16;
    case Type::Q8_0: return quantizer_q8_0;
    default: return quantizer_q4_0;
    }
}

// Weights in a block, and bytes of its codes.
struct Coded {
    int weights, bytes;
};
inline Coded coded(Type type) {
    if (type == Type::Q8_0) return {BLOCK, sizeof(BlockQ8_0) - scale_bytes};
    if (type == Type::Q4_0) return {BLOCK, sizeof(BlockQ4_0) - scale_bytes};
    return {1, type == Type::F32 ? 4 : 2};
}
inline bool is_coded(Type type) { return type == Type::Q8_0 || type == Type::Q4_0; }

inline void store_value(const CacheFormat &format, const float *value, uint8_t *row) {
    float padded[max_head_size];
    for (int i = 0; i < format.head_size; ++i) padded[i] = value[i];
    for (int i = format.head_size; i < format.padded; ++i) padded[i] = 0.0f;
    cache_quantizer(format.type).quantize(padded, format.padded / coded(format.type).weights, row);
}

// `slot`: which of the block's positions it is.
inline void store_key(const CacheFormat &format, const float *key, uint8_t *block, int slot) {
    uint8_t row[max_head_size * sizeof(float)];
    store_value(format, key, row);
    const auto [weights, bytes] = coded(format.type);
    if (!is_coded(format.type)) {
        for (int i = 0; i < format.head_size; ++i)
            __builtin_memcpy(block + (i * key_block + slot) * bytes, row + i * bytes, bytes);
        return;
    }
    const int blocks = format.padded / weights;
    uint8_t *scales = block + blocks * bytes * key_block;
    for (int i = 0; i < blocks; ++i) {
        const uint8_t *from = row + i * (scale_bytes + bytes);
        __builtin_memcpy(scales + (i * key_block + slot) * scale_bytes, from, scale_bytes);
        for (int j = 0; j < bytes; ++j) block[(i * bytes + j) * key_block + slot] = from[scale_bytes + j];
    }
}

// out[slot] = scale[slot] * code[slot] for the positions of a block.
inline void scaled_codes(const Half *scales, const int8_t *codes, float *out) {
    for (int j = 0; j < key_block; j += Lanes::count) store(out + j, load(scales + j) * load(codes + j));
}

// A block of keys as floats, (padded, 32).
inline void coded_keys_to_floats(const CacheFormat &format, const uint8_t *block, float *out) {
    const auto [weights, bytes] = coded(format.type);
    const int blocks = format.padded / weights;
    const Half *scales = reinterpret_cast<const Half *>(block + blocks * bytes * key_block);
    for (int i = 0; i < blocks; ++i, scales += key_block, out += weights * key_block) {
        for (int j = 0; j < bytes; ++j, block += key_block) {
            if (format.type == Type::Q8_0) {
                scaled_codes(scales, reinterpret_cast<const int8_t *>(block), out + j * key_block);
                continue;
            }
            int8_t low[key_block], high[key_block]; // codes j and j + 16, see BlockQ4_0
            for (int slot = 0; slot < key_block; ++slot) {
                low[slot] = static_cast<int8_t>((block[slot] & 15) - 8);
                high[slot] = static_cast<int8_t>((block[slot] >> 4) - 8);
            }
            scaled_codes(scales, low, out + j * key_block);
            scaled_codes(scales, high, out + (j + BLOCK / 2) * key_block);
        }
    }
}

} // namespace phi::PHI_ISA
