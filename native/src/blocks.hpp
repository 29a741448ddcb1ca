// The blocks of the tensor types, byte for byte as they lie in a GGUF file (little-endian).
// d and dmin are float16 and kept as their bits. Source of the layouts: ggml 0.25 `ggml-common.h`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace phi {

constexpr int BLOCK = 32;        // weights in a block of Q8_0 to Q5_1, IQ4_NL and MXFP4
constexpr int SUPER_BLOCK = 256; // weights in a block of the K-quants, IQ4_XS, TQ1_0 and TQ2_0
constexpr int BLOCK_NVFP4 = 64, BLOCK_Q1_0 = 128, BLOCK_Q2_0 = 64;

struct BlockQ8_0 {
    uint16_t d;       // value = d * q
    int8_t qs[BLOCK]; // q
};

struct BlockQ4_0 {
    uint16_t d;            // value = d * (q - 8)
    uint8_t qs[BLOCK / 2]; // byte j: q of weight j low, of weight j + 16 high
};

struct BlockQ4_1 {
    uint16_t d;            // value = d * q + m
    uint16_t m;
    uint8_t qs[BLOCK / 2]; // as in Q4_0
};

struct BlockQ5_0 {
    uint16_t d;            // value = d * (q - 16)
    uint8_t qh[BLOCK / 8]; // bit j of the word: fifth bit of q of weight j
    uint8_t qs[BLOCK / 2]; // low four bits, as in Q4_0
};

struct BlockQ5_1 {
    uint16_t d; // value = d * q + m
    uint16_t m;
    uint8_t qh[BLOCK / 8];
    uint8_t qs[BLOCK / 2];
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

struct BlockIQ4_NL {
    uint16_t d;            // value = d * level[q], of 16 uneven levels
    uint8_t qs[BLOCK / 2]; // as in Q4_0
};

// Eight sub-blocks of 32 weights: value = d * (scale - 32) * level[q]
struct BlockIQ4_XS {
    uint16_t d;
    uint16_t scales_h;           // bits 2j and 2j + 1: the high two bits of the scale of sub-block j
    uint8_t scales_l[4];         // low four bits: byte j has sub-block 2j low, 2j + 1 high
    uint8_t qs[SUPER_BLOCK / 2]; // 16 bytes for each sub-block, as in Q4_0
};

// The types with grids: value = step * point of the grid * sign. Points have 8 values (IQ2, IQ1) or 4 (IQ3).
// A step belongs to 32 weights (IQ3_S, IQ3_XXS, IQ2_XXS) or 16 (IQ2_S, IQ2_XS).

struct BlockIQ3_S {
    uint16_t d;                      // step = d * (1 + 2 * scale)
    uint8_t qs[SUPER_BLOCK / 4];     // low eight bits of indices
    uint8_t qh[SUPER_BLOCK / 32];    // bit k of byte j: ninth bit of index 8j + k
    uint8_t signs[SUPER_BLOCK / 8];  // bit i of byte j: is weight 8j + i negative?
    uint8_t scales[SUPER_BLOCK / 64]; // two of four bits, the first low
};

struct BlockIQ3_XXS {
    uint16_t d;                      // step = d * (1/2 + scale) / 2
    uint8_t qs[3 * SUPER_BLOCK / 8]; // 64 indices; for each 32 weights a word: four times 7 signs, a 4-bit scale
};

struct BlockIQ2_S {
    uint16_t d;                       // step = d * (1/2 + scale) / 4
    uint8_t qs[SUPER_BLOCK / 4];      // low eight bits of 32 indices, then the signs
    uint8_t qh[SUPER_BLOCK / 32];     // two high bits of four indices each
    uint8_t scales[SUPER_BLOCK / 32]; // as in IQ3_S
};

struct BlockIQ2_XS {
    uint16_t d;                  // step as in IQ2_S
    uint16_t qs[SUPER_BLOCK / 8]; // index of nine bits, 7 signs above it
    uint8_t scales[SUPER_BLOCK / 32];
};

struct BlockIQ2_XXS {
    uint16_t d;                   // step as in IQ2_S
    uint16_t qs[SUPER_BLOCK / 8]; // for each 32 weights two words: four indices; signs and scale as in IQ3_XXS
};

// value = step * (point of the grid +- 1/8), the sign by 32 weights (IQ1_S) or by 8 (IQ1_M)

struct BlockIQ1_M {
    uint8_t qs[SUPER_BLOCK / 8];      // low eight bits of indices
    uint8_t qh[SUPER_BLOCK / 16];     // four bits for each index: its high three, and whether the eighth is subtracted
    uint8_t scales[SUPER_BLOCK / 32]; // four words: four 3-bit scales of 16 weights, and four bits of the float16 d
};

struct BlockIQ1_S {
    uint16_t d;                   // step = d * (2 * scale + 1)
    uint8_t qs[SUPER_BLOCK / 8];  // low eight bits of indices
    uint16_t qh[SUPER_BLOCK / 32]; // high three bits of four indices, a 3-bit scale, whether the eighth is subtracted
};

// Ternary digits (trits), five in a byte: value = d * (trit - 1)
struct BlockTQ1_0 {
    uint8_t qs[48]; // byte l < 32: weights l + 32t; byte 32 + l: weights 160 + l + 16t; t from 0 to 4
    uint8_t qh[4];  // byte l: weights 240 + l + 4t, t from 0 to 3
    uint16_t d;
};

struct BlockTQ2_0 {
    uint8_t qs[SUPER_BLOCK / 4]; // byte 32h + l: trits of weights 128h + l, + 32, + 64, + 96
    uint16_t d;
};

struct BlockMXFP4 {
    uint8_t e;             // value = 2^(e - 127) * E2M1 number q
    uint8_t qs[BLOCK / 2]; // as in Q4_0
};

// Four sub-blocks of 16 weights: value = d * E2M1 number q
struct BlockNVFP4 {
    uint8_t d[BLOCK_NVFP4 / 16]; // unsigned floats, 4 bits of exponent and 3 of mantissa
    uint8_t qs[BLOCK_NVFP4 / 2]; // byte 8s + j: q of weight 16s + j low, of weight 16s + j + 8 high
};

struct BlockQ1_0 {
    uint16_t d;
    uint8_t qs[BLOCK_Q1_0 / 8]; // bit j % 8 of byte j / 8: weight j is d, not -d
};

struct BlockQ2_0 {
    uint16_t d;                 // value = d * (q - 1)
    uint8_t qs[BLOCK_Q2_0 / 4]; // byte j: q of weights 4j to 4j + 3
};

static_assert(sizeof(BlockQ8_0) == 34 && offsetof(BlockQ8_0, qs) == 2);
static_assert(sizeof(BlockQ4_0) == 18 && offsetof(BlockQ4_0, qs) == 2);
static_assert(sizeof(BlockQ4_1) == 20 && offsetof(BlockQ4_1, m) == 2 && offsetof(BlockQ4_1, qs) == 4);
static_assert(sizeof(BlockQ5_0) == 22 && offsetof(BlockQ5_0, qh) == 2 && offsetof(BlockQ5_0, qs) == 6);
static_assert(sizeof(BlockQ5_1) == 24 && offsetof(BlockQ5_1, m) == 2 && offsetof(BlockQ5_1, qh) == 4 &&
              offsetof(BlockQ5_1, qs) == 8);
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
static_assert(sizeof(BlockIQ4_NL) == 18 && offsetof(BlockIQ4_NL, qs) == 2);
static_assert(sizeof(BlockIQ4_XS) == 136 && offsetof(BlockIQ4_XS, scales_h) == 2 &&
              offsetof(BlockIQ4_XS, scales_l) == 4 && offsetof(BlockIQ4_XS, qs) == 8);
static_assert(sizeof(BlockIQ3_S) == 110 && offsetof(BlockIQ3_S, qs) == 2 && offsetof(BlockIQ3_S, qh) == 66 &&
              offsetof(BlockIQ3_S, signs) == 74 && offsetof(BlockIQ3_S, scales) == 106);
static_assert(sizeof(BlockIQ3_XXS) == 98 && offsetof(BlockIQ3_XXS, qs) == 2);
static_assert(sizeof(BlockIQ2_S) == 82 && offsetof(BlockIQ2_S, qs) == 2 && offsetof(BlockIQ2_S, qh) == 66 &&
              offsetof(BlockIQ2_S, scales) == 74);
static_assert(sizeof(BlockIQ2_XS) == 74 && offsetof(BlockIQ2_XS, qs) == 2 && offsetof(BlockIQ2_XS, scales) == 66);
static_assert(sizeof(BlockIQ2_XXS) == 66 && offsetof(BlockIQ2_XXS, qs) == 2);
static_assert(sizeof(BlockIQ1_M) == 56 && offsetof(BlockIQ1_M, qh) == 32 && offsetof(BlockIQ1_M, scales) == 48);
static_assert(sizeof(BlockIQ1_S) == 50 && offsetof(BlockIQ1_S, qs) == 2 && offsetof(BlockIQ1_S, qh) == 34);
static_assert(sizeof(BlockTQ1_0) == 54 && offsetof(BlockTQ1_0, qh) == 48 && offsetof(BlockTQ1_0, d) == 52);
static_assert(sizeof(BlockTQ2_0) == 66 && offsetof(BlockTQ2_0, d) == 64);
static_assert(sizeof(BlockMXFP4) == 17 && offsetof(BlockMXFP4, qs) == 1);
static_assert(sizeof(BlockNVFP4) == 36 && offsetof(BlockNVFP4, qs) == 4);
static_assert(sizeof(BlockQ1_0) == 18 && offsetof(BlockQ1_0, qs) == 2);
static_assert(sizeof(BlockQ2_0) == 18 && offsetof(BlockQ2_0, qs) == 2);

} // namespace phi
