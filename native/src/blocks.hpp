// The blocks of the tensor types, byte for byte as they lie in a GGUF file (little-endian).
// d and dmin are float16 and kept as their bits. Source of the layouts: ggml 0.25 `ggml-common.h`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace phi {

constexpr int BLOCK = 32;        // weights in a block of Q8_0 and Q4_0
constexpr int SUPER_BLOCK = 256; // weights in a block of the K-quants

struct BlockQ8_0 {
    uint16_t d;       // value = d * q
    int8_t qs[BLOCK]; // q
};

struct BlockQ4_0 {
    uint16_t d;            // value = d * (q - 8)
    uint8_t qs[BLOCK / 2]; // byte j: q of weight j low, of weight j + 16 high
};

// Sixteen sub-blocks of 16 weights: value = d * scale * q - dmin * minimum
struct BlockQ2_K {
    uint8_t scales[SUPER_BLOCK / 16]; // scale low, minimum high
    uint8_t qs[SUPER_BLOCK / 4];      // byte 32h + l: q of weights 128h + l, + 32, + 64, + 96
    uint16_t d;
    uint16_t dmin;
};

// Sixteen sub-blocks of 16 weights: value = d * (scale - 32) * (q - 4)
struct BlockQ3_K {
    uint8_t hmask[SUPER_BLOCK / 8]; // bit g of byte l: third bit of q of weight 32g + l
    uint8_t qs[SUPER_BLOCK / 4];    // low two bits, as in Q2_K
    uint8_t scales[12];             // 6 bits each
    uint16_t d;
};

// Eight sub-blocks of 32 weights: value = d * scale * q - dmin * minimum
struct BlockQ4_K {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];          // a 6-bit scale and a 6-bit minimum for each sub-block
    uint8_t qs[SUPER_BLOCK / 2]; // byte 32g + l: q of weight 64g + l low, of weight 64g + 32 + l high
};

struct BlockQ5_K {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[SUPER_BLOCK / 8]; // bit g of byte l: fifth bit of q of weight 32g + l
    uint8_t qs[SUPER_BLOCK / 2]; // low four bits, as in Q4_K
};

// Sixteen sub-blocks of 16 weights: value = d * scale * (q - 32)
struct BlockQ6_K {
    uint8_t ql[SUPER_BLOCK / 2]; // low four bits: byte 64h + l has weights 128h + l and + 64
    uint8_t qh[SUPER_BLOCK / 4]; // byte 32h + l: high two bits of weights 128h + l, + 32, + 64, + 96
    int8_t scales[SUPER_BLOCK / 16];
    uint16_t d;
};

static_assert(sizeof(BlockQ8_0) == 34 && offsetof(BlockQ8_0, qs) == 2);
static_assert(sizeof(BlockQ4_0) == 18 && offsetof(BlockQ4_0, qs) == 2);
static_assert(sizeof(BlockQ2_K) == 84 && offsetof(BlockQ2_K, qs) == 16 && offsetof(BlockQ2_K, d) == 80 &&
              offsetof(BlockQ2_K, dmin) == 82);
static_assert(sizeof(BlockQ3_K) == 110 && offsetof(BlockQ3_K, qs) == 32 && offsetof(BlockQ3_K, scales) == 96 &&
              offsetof(BlockQ3_K, d) == 108);
static_assert(sizeof(BlockQ4_K) == 144 && offsetof(BlockQ4_K, dmin) == 2 && offsetof(BlockQ4_K, scales) == 4 &&
              offsetof(BlockQ4_K, qs) == 16);
static_assert(sizeof(BlockQ5_K) == 176 && offsetof(BlockQ5_K, dmin) == 2 && offsetof(BlockQ5_K, scales) == 4 &&
              offsetof(BlockQ5_K, qh) == 16 && offsetof(BlockQ5_K, qs) == 48);
static_assert(sizeof(BlockQ6_K) == 210 && offsetof(BlockQ6_K, qh) == 128 && offsetof(BlockQ6_K, scales) == 192 &&
              offsetof(BlockQ6_K, d) == 208);

} // namespace phi
