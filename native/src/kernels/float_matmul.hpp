// Products with weights that are floats: F32, F16 and BF16. The vectors stay float32.
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

// How many rows and tokens are worked on together: as many as their sums and the operands have registers.
#if defined(PHI_ISA_avx512)
inline constexpr int tile_rows = 4, tile_tokens = 6;
#elif defined(PHI_ISA_avx2)
inline constexpr int tile_rows = 4, tile_tokens = 3;
#elif defined(PHI_ISA_neon)
inline constexpr int tile_rows = 4, tile_tokens = 4;
#else
inline constexpr int tile_rows = 1, tile_tokens = 1;
#endif
inline constexpr int token_block = 8 * tile_tokens; // tokens whose vectors stay in the second-level cache

// Asks for the weights that come after these rows. A single token works at the speed of the memory, and the
// hardware does not guess well where several rows are read side by side.
template <int rows, class Weight> void prefetch_next_rows(const Weight *weight, int64_t cols, int64_t k) {
    constexpr int bytes = rows * Lanes::count * sizeof(Weight); // of one step
    const char *ahead = reinterpret_cast<const char *>(weight + rows * cols + rows * k);
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i, 0, 2); // into the second-level cache
}

// rows × tokens dot products. Each has one vector of sums of its own, so its value does not depend on what
// else is in the tile.
template <int rows, int tokens, class Weight>
void float_tile(const Weight *weight, int64_t cols, const float *x, float *out, ptrdiff_t stride) {
    Lanes sums[rows][tokens];
    for (int row = 0; row < rows; ++row)
        for (int token = 0; token < tokens; ++token) sums[row][token] = zero();
    int64_t k = 0;
    for (; k + Lanes::count <= cols; k += Lanes::count) {
        if constexpr (tokens == 1) prefetch_next_rows<rows>(weight, cols, k);
        Lanes vectors[tokens];
        for (int token = 0; token < tokens; ++token) vectors[token] = load(x + token * cols + k);
        for (int row = 0; row < rows; ++row) {
            const Lanes weights = load(weight + row * cols + k);
            for (int token = 0; token < tokens; ++token)
                sums[row][token] = multiply_add(weights, vectors[token], sums[row][token]);
        }
    }
    for (int row = 0; row < rows; ++row)
        for (int token = 0; token < tokens; ++token) {
            float total = sum(sums[row][token]);
            for (int64_t i = k; i < cols; ++i) total += load_one(weight + row * cols + i) * x[token * cols + i];
            out[token * stride + row] = total;
        }
}

template <int rows, class Weight>
void float_rows(const Weight *weight, int64_t cols, const float *x, int tokens, float *out, ptrdiff_t stride) {
    int token = 0;
    for (; token + tile_tokens <= tokens; token += tile_tokens)
        float_tile<rows, tile_tokens>(weight, cols, x + token * cols, out + token * stride, stride);
    for (; token < tokens; ++token) float_tile<rows, 1>(weight, cols, x + token * cols, out + token * stride, stride);
}

template <class Weight>
void float_matmul(const Matrix &matrix, int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride,
                  void *) {
    const Weight *weight = reinterpret_cast<const Weight *>(matrix.data);
    const int64_t cols = matrix.cols;
    for (int begin = 0; begin < x.tokens; begin += token_block) {
        const int tokens = x.tokens - begin < token_block ? x.tokens - begin : token_block;
        const float *vectors = x.values + begin * cols;
        float *block_out = out + begin * stride;
        int64_t row = first;
        for (; row + tile_rows <= last; row += tile_rows)
            float_rows<tile_rows>(weight + row * cols, cols, vectors, tokens, block_out + row, stride);
        for (; row < last; ++row) float_rows<1>(weight + row * cols, cols, vectors, tokens, block_out + row, stride);
    }
}

} // namespace phi::PHI_ISA
