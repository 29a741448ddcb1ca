// What the sources that are compiled once per instruction set offer to the rest.
#pragma once

#include <cstdint>

namespace phi {

// Functions on consecutive blocks, one for each Type in the order of the enumeration.
struct QuantizerTable {
    void (*quantize[8])(const float *x, int64_t n_blocks, void *out);
    void (*dequantize[8])(const void *data, int64_t n_blocks, float *x);
    int64_t (*find_non_finite)(const float *x, int64_t n); // index of the first, or n
};

} // namespace phi
