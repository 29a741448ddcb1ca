// Products with weights of the types that have no kernel of their own: a few rows at a time become float32 again,
// and meet the vectors as float weights do. Any type runs; those with kernels of their own run faster.
#pragma once

#include "../quantize/quantizers.hpp"
#include "float_matmul.hpp"

namespace phi::PHI_ISA {

// Rows first … last - 1, at most tile_rows of them, as float32 in `rows`: [row][cols].
template <const Quantizer &quantizer, int block>
void dequantize_tile(const Matrix &matrix, int64_t first, int64_t last, float *rows) {
    quantizer.dequantize(matrix.data + first * matrix.row_bytes, (last - first) * (matrix.cols / block), rows);
}

// matmul_scratch is more than tile_rows rows of floats.
template <const Quantizer &quantizer, int block>
void dequantized_matmul(const Matrix &matrix, int64_t first, int64_t last, const Activations &x, float *out,
                        ptrdiff_t stride, void *scratch) {
    float *rows = static_cast<float *>(scratch);
    const int64_t cols = matrix.cols;
    for (int begin = 0; begin < x.tokens; begin += token_block) {
        const int tokens = x.tokens - begin < token_block ? x.tokens - begin : token_block;
        const float *vectors = x.values + begin * cols;
        float *block_out = out + begin * stride;
        int64_t row = first;
        for (; row + tile_rows <= last; row += tile_rows) {
            dequantize_tile<quantizer, block>(matrix, row, row + tile_rows, rows);
            float_rows<tile_rows>(rows, cols, vectors, tokens, block_out + row, stride);
        }
        for (; row < last; ++row) {
            dequantize_tile<quantizer, block>(matrix, row, row + 1, rows);
            float_rows<1>(rows, cols, vectors, tokens, block_out + row, stride);
        }
    }
}

} // namespace phi::PHI_ISA
