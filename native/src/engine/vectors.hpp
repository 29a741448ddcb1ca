// The vectors between two matrices: one for every token of a batch, as floats and as codes of 8 bits.
#pragma once

#include "../kernels/kernels.hpp"

#include <vector>

namespace phi {

class Vectors {
  public:
    Vectors(int64_t max_tokens, int64_t cols)
        : cols_(cols), values_(max_tokens * cols), codes_(max_tokens * cols), sums_(max_tokens * (cols / 16)),
          scales_(max_tokens * (cols / 32)) {}

    int64_t cols() const { return cols_; }
    float *row(int64_t token) { return values_.data() + token * cols_; }

    // Codes the columns begin … end - 1 of a token; both are multiples of 256, or the end of the row.
    void code(const Kernels &kernels, Coding coding, int64_t token, int64_t begin, int64_t end) {
        if (coding == Coding::none) return;
        kernels.quantize(coding, row(token) + begin, static_cast<int>(end - begin),
                         codes_.data() + token * cols_ + begin,
                         sums_.data() + (token * cols_ + begin) / sum_group(coding),
                         scales_.data() + (token * cols_ + begin) / block(coding));
    }

    // What a matrix product takes: `tokens` tokens from `first` on.
    Activations activations(Coding coding, int64_t first, int tokens) {
        const int64_t start = first * cols_;
        if (coding == Coding::none) return {tokens, cols_, coding, row(first), nullptr, nullptr, nullptr};
        return {tokens,
                cols_,
                coding,
                row(first),
                codes_.data() + start,
                sums_.data() + start / sum_group(coding),
                scales_.data() + start / block(coding)};
    }

  private:
    static int64_t block(Coding coding) { return coding == Coding::blocks_of_32 ? 32 : 256; }
    static int64_t sum_group(Coding coding) { return coding == Coding::blocks_of_32 ? 32 : 16; }

    int64_t cols_;
    std::vector<float> values_;
    std::vector<int8_t> codes_;
    std::vector<int16_t> sums_;
    std::vector<float> scales_;
};

} // namespace phi
