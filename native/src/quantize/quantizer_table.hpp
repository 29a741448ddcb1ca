// What the sources that are compiled once per instruction set offer to the rest.
#pragma once

#include "format.hpp"

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
    // For `improve`, which knows nothing better than the blocks of a type that has none.
    const Format *format = nullptr;
    // As quantize, for blocks of any weights: returns false where one may be infinite or not a number. For types so quick
    // that to look at the weights before costs a quarter of the time. nullptr: finite weights only.
    bool (*quantize_any)(const float *x, int64_t n_blocks, void *out) = nullptr;
};

struct QuantizerTable {
    const Quantizer *types[N_TYPES];                       // in the order of the enumeration Type
    int64_t (*find_non_finite)(const float *x, int64_t n); // index of the first, or n
    // Puts better blocks in the place of those that the quantizer made of whole rows of n weights.
    // importance: how much each column counts; nullptr: not known
    void (*improve)(const Quantizer &quantizer, const float *x, const float *importance, int64_t n, int64_t n_blocks,
                    void *blocks);
};

} // namespace phi
