// The table of kernels: what the engine asks of an instruction set. Each set fills one (kernels.cpp).
//
// Two rules make the text independent of threads and batches:
//   an output element is computed by one call, in an order of operations that its inputs alone decide;
//   that order is the same whether a token comes alone or in a batch.
#pragma once

#include "../quantize/quantize.hpp"

#include <cstddef>
#include <cstdint>

namespace phi {

// Floats of 16 bits as they lie in memory. Types of their own, so that nobody takes them for integers.
enum class Half : uint16_t {};     // IEEE binary16
enum class Bfloat16 : uint16_t {}; // the upper half of a float

// A weight matrix as it lies in the file: row by row, each row in blocks of its type.
struct Matrix {
    Type type;
    int64_t rows, cols;
    int64_t row_bytes;
    const uint8_t *data;
};

// How a vector is coded before it meets weights of a type: not at all where they are floats, else in 8 bits
// with one scale for every 32 or 256, as many as there are weights in a block.
enum class Coding { none, blocks_of_32, blocks_of_256 };

// The coding that weights of this type are multiplied with.
constexpr Coding coding_for(Type weight_type) {
    switch (weight_type) {
    case Type::F32:
    case Type::F16:
    case Type::BF16:
    case Type::NVFP4:
    case Type::Q1_0:
    case Type::Q2_0: return Coding::none;
    case Type::Q8_0:
    case Type::Q4_0:
    case Type::Q4_1:
    case Type::Q5_0:
    case Type::Q5_1:
    case Type::IQ4_NL:
    case Type::MXFP4: return Coding::blocks_of_32;
    default: return Coding::blocks_of_256;
    }
}

// A batch of vectors, coded: x ≈ scale * code. Coded once, then used by every row of a matrix.
//
// `sums` has the sums of the codes that weights with an offset need: of every 16 where a block has 256, a
// block's in the order 0, 2, … 14, 1, 3, … 15 (a 256-bit vector keeps even and odd groups in separate
// halves); of every 32 where a block has 32.
//
// `peaks` tells how large sums of products can become: the largest Σ |code| of 16 neighbours and of 32, where a block
// has 256.
struct Activations {
    int tokens;
    int64_t cols;
    Coding coding;
    const float *values; // (tokens, cols); the others are not set where the coding is none
    const int8_t *codes; // (tokens, cols)
    const int16_t *sums; // (tokens, cols / 16 or cols / 32)
    const float *scales; // (tokens, cols / 256 or cols / 32)
    const uint16_t *peaks; // (tokens, cols / 256, 2)
};

// Where the coded form of one vector goes.
struct CodedVector {
    int8_t *codes;
    int16_t *sums;
    float *scales;
    uint16_t *peaks;
};

// Keys of one head lie in blocks of 32 positions, and inside a block by dimension: (head_size, 32). So one
// vector load takes one dimension of many keys, and no kernel sums over the lanes of a vector.
inline constexpr int key_block = 32;

// How keys and values of one head are kept: as F32, F16 or BF16, or coded as weights are, in Q8_0 or Q4_0.
//
// A value is a row of its type. A block of keys has 32 such rows, each byte (coded) or element (else) beside that
// of the next position: coded first all codes, (bytes of codes in a row, 32), then the scales, (blocks in a row, 32).
// Numbers only, because kernels may call no inline function from outside their namespace.
struct CacheFormat {
    Type type;
    int head_size;
    int padded;                         // head_size rounded up to whole blocks or vectors; the padding is 0
    int64_t row_bytes, key_block_bytes; // of a value, and of 32 keys
    int64_t block_bytes;                // of 32 keys and the 32 values that follow them
};

// Queries of neighbouring tokens that share one key and value head, and where their attention goes.
struct AttentionTile {
    const float *queries; // [token * query_stride + member * head_size + dimension], already scaled
    float *out;           // [token * out_stride + member * head_size + dimension]
    ptrdiff_t query_stride, out_stride;
    int tokens;
    int members; // query heads that share the keys
    int64_t position; // of the first token
    int64_t window;   // a query sees the keys with query - key < window
    CacheFormat format;
    const uint8_t *blocks; // of 32 positions each, format.block_bytes at every stride
    int64_t block_stride;  // bytes
    float *scratch;        // attention_scratch(...) floats
};

// The most queries, tokens times members, that a tile may have.
inline constexpr int tile_queries = 32;

// Floats of scratch: the weighted sums of all queries, and a block of keys and values.
inline constexpr size_t attention_scratch(const CacheFormat &format) {
    return static_cast<size_t>(tile_queries + 2 * key_block) * format.padded;
}

// out[token * stride + row] = weight row · activations, for rows first … last - 1 and all tokens.
// `scratch` has matmul_scratch(cols) bytes, aligned to 64.
using Matmul = void (*)(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                        ptrdiff_t stride, void *scratch);

struct Kernels {
    // out = x / sqrt(mean(x^2) + eps) * weight
    void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *out);
    // out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias
    void (*layer_norm)(const float *x, const float *weight, const float *bias, int n, float eps, float *out);
    // x += y
    void (*add)(float *x, const float *y, int n);
    // out = silu(gate) * up, silu(x) = x / (1 + e^-x)
    void (*swiglu)(const float *gate, const float *up, int n, float *out);
    // out = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
    void (*gelu)(const float *x, int n, float *out);
    // Turns pairs (x[i], x[i + half]) by the angles whose cosine and sine are given.
    void (*rotate)(float *x, const float *cosine, const float *sine, int half);
    // Put the key of one position, number `slot` of its block, or its value into the cache: (head_size) floats.
    void (*store_key)(const CacheFormat &format, const float *key, uint8_t *block, int slot);
    void (*store_value)(const CacheFormat &format, const float *value, uint8_t *row);
    // Codes one vector; n is a multiple of the block size.
    void (*quantize)(Coding coding, const float *x, int n, CodedVector out);
    // Causal attention in one pass over the keys; scores are never stored beyond a block.
    void (*attend)(const AttentionTile &tile);
    const Matmul *matmul; // for each Type
};

// Rows that the batched kernels of quantized weights unpack and work on together.
inline constexpr int panel_rows = 16;

// Bytes for one unpacked panel: a code for every weight, and for every 16 weights of a row at most a scale
// (4 bytes), an offset (2) and a share of two floats for each block (4).
inline constexpr size_t panel_bytes(int64_t cols) { return panel_rows * (cols + cols / 16 * 10) + 64; }

// As many panels as leave room for vectors in a second-level cache of a megabyte, or one where rows are long.
inline constexpr size_t panels_bytes(int64_t cols) {
    constexpr size_t half_of_cache = 512 << 10;
    return panel_bytes(cols) > half_of_cache ? panel_bytes(cols) / 64 * 64 + 64 : half_of_cache;
}

// Room for the vectors of products of floats: most of that cache, and at least those of a tile, at most 6 of a few more
// columns each.
inline constexpr size_t float_vectors(int64_t cols) {
    constexpr size_t most_of_cache = 768 << 10;
    const size_t tile = 6 * sizeof(float) * (cols + 16);
    return tile > most_of_cache ? tile : most_of_cache;
}

// In front of them there is room for 4 rows, where those are made floats first.
inline constexpr size_t float_scratch(int64_t cols) { return 4 * sizeof(float) * (cols + 16) + float_vectors(cols); }

// Behind panels there is a number for every 16 weights of the tokens, at most 8, that meet them together, and a byte
// for every block.
inline constexpr size_t matmul_scratch(int64_t cols) {
    const size_t for_panels = panels_bytes(cols) + 8 * (cols / 16) * sizeof(int32_t) + cols / 32;
    return for_panels > float_scratch(cols) ? for_panels : float_scratch(cols);
}

} // namespace phi
