// Products with quantized weights, one weight at a time: the kernel to read. The others do the same sums.
#pragma once

#include "unpack.hpp"

namespace phi::PHI_ISA {

template <class Block> float dot(const Block *row, int64_t cols, Vector x, Points points) {
    using Form = Traits<Block>;
    constexpr int groups = sums_in(Form::size), group_size = Form::size / groups;
    float total = 0;
    Unpacked<Form::size> weights;
    for (int64_t block = 0; block < cols / Form::size; ++block) {
        unpack(row[block], weights, points);
        const int8_t *codes = x.codes + block * Form::size;
        const int16_t *sums = x.sums + block * groups;
        int products = 0, offsets = 0;
        for (int group = 0; group < groups; ++group) {
            int sum = 0;
            for (int i = group * group_size; i < (group + 1) * group_size; ++i) sum += weights.codes[i] * codes[i];
            products += weights.scales[group] * sum;
            offsets += (Form::minima ? weights.minima[group] : Form::zero * weights.scales[group]) *
                       sums[sum_index(group)];
        }
        const float scale = x.scales[block], d = d_of(row[block]);
        if constexpr (Form::minima) {
            total += d * scale * static_cast<float>(products);
            total -= dmin_of(row[block]) * scale * static_cast<float>(offsets);
        } else {
            total += d * scale * static_cast<float>(products - offsets);
        }
    }
    return total;
}

template <class Block>
void quantized_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                      ptrdiff_t stride, void *) {
    const Points points = points_of<Block>();
    for (int64_t row = first; row < last; ++row)
        for (int token = 0; token < x.tokens; ++token)
            out[token * stride + row] =
                dot(row_of<Block>(weight, row), weight.cols, vector_of<Block>(x, token), points);
}

} // namespace phi::PHI_ISA
