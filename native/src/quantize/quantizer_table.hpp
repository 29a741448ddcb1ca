// What the sources that are compiled once per instruction set offer to the rest.
#pragma once

#include <cstdint>

namespace phi {

constexpr int N_TYPES = 28;

// The functions of a type, on consecutive blocks.
struct Quantizer {
    // nullptr where the type cannot do without importance
    void (*quantize)(const float *x, int64_t n_blocks, void *out);
    void (*dequantize)(const void *data, int64_t n_blocks, float *x);
    // The blocks of one whole row, and how much each of its columns counts. nullptr: that makes no difference.
    void (*quantize_weighted)(const float *x, const float *importance, int64_t n_blocks, void *out) = nullptr;
};

struct QuantizerTable {
    const Quantizer *types[N_TYPES];                       // in the order of the enumeration Type
    int64_t (*find_non_finite)(const float *x, int64_t n); // index of the first, or n
};

} // namespace phi
