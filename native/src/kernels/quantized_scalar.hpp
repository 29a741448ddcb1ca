// Products with quantized weights, one weight at a time: the kernel to read. The others do the same sums.
#pragma once

#include "unpacked.hpp"

namespace phi::PHI_ISA {

template <int size> int sum_of_products(const Unpacked<size> &weights, const int8_t *codes) {
    int total = 0;
    for (int group = 0; group < size / 16; ++group) {
        int products = 0;
        for (int i = 16 * group; i < 16 * group + 16; ++i) products += weights.codes[i] * codes[i];
        total += weights.scales[group] * products;
    }
    return total;
}

inline int sum_of_offsets(const Unpacked<32> &weights, const int16_t *sums) { return weights.offsets[0] * sums[0]; }

inline int sum_of_offsets(const Unpacked<256> &weights, const int16_t *sums) {
    int total = 0;
    for (int group = 0; group < 16; ++group) total += weights.offsets[group] * sums[sum_index(group)];
    return total;
}

template <class Block> float dot(const Block *row, int64_t cols, Vector x) {
    constexpr int size = Traits<Block>::size;
    float total = 0;
    Unpacked<size> weights;
    for (int64_t block = 0; block < cols / size; ++block) {
        unpack(row[block], weights);
        const int products = sum_of_products(weights, x.codes + block * size);
        const int offsets = sum_of_offsets(weights, x.sums + block * sums_in(size));
        const float scale = x.scales[block];
        if constexpr (Traits<Block>::one_scale) {
            total += weights.d * scale * static_cast<float>(products - offsets);
        } else {
            total += weights.d * scale * static_cast<float>(products);
            total -= weights.dmin * scale * static_cast<float>(offsets);
        }
    }
    return total;
}

template <class Block>
void quantized_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                      ptrdiff_t stride, void *) {
    for (int64_t row = first; row < last; ++row)
        for (int token = 0; token < x.tokens; ++token)
            out[token * stride + row] = dot(row_of<Block>(weight, row), weight.cols, vector_of<Block>(x, token));
}

} // namespace phi::PHI_ISA
