// The vectors between two matrices: one for every token of a batch, as floats and as codes of 8 bits.
#pragma once

#include "../kernels/kernels.hpp"
#include "memory.hpp"

namespace phi {

// The codings of the weights that a vector meets: it may go to several matrices, of several types.
class Codings {
  public:
    Codings() = default;
    explicit Codings(Type weight_type) { add(weight_type); }

    void add(Type weight_type) { bits_ |= 1u << static_cast<int>(coding_for(weight_type)); }
    bool has(Coding coding) const { return (bits_ >> static_cast<int>(coding) & 1) != 0; }

  private:
    unsigned bits_ = 0;
};

class Vectors {
  public:
    Vectors(int64_t max_tokens, int64_t cols)
        : cols_(cols), values_(max_tokens * cols), in_32_(max_tokens, cols, 32, 32), in_256_(max_tokens, cols, 256, 16) {
    }

    int64_t cols() const { return cols_; }
    size_t bytes() const { return values_.bytes() + in_32_.bytes() + in_256_.bytes(); }
    float *row(int64_t token) { return values_.data() + token * cols_; }

    // Codes the columns begin … end - 1 of a token; both are multiples of 256, or the end of the row.
    void code(const Kernels &kernels, Codings codings, int64_t token, int64_t begin, int64_t end) {
        for (Coding coding : {Coding::blocks_of_32, Coding::blocks_of_256}) {
            if (!codings.has(coding)) continue;
            const int64_t at = token * cols_ + begin;
            const Codes &codes = codes_in(coding);
            kernels.quantize(coding, row(token) + begin, static_cast<int>(end - begin), codes.from(at));
        }
    }

    // What a matrix product takes: `tokens` tokens from `first` on.
    Activations activations(Coding coding, int64_t first, int tokens) {
        if (coding == Coding::none) return {tokens, cols_, coding, row(first), nullptr, nullptr, nullptr, nullptr};
        const auto [codes, sums, scales, peaks] = codes_in(coding).from(first * cols_);
        return {tokens, cols_, coding, row(first), codes, sums, scales, peaks};
    }

  private:
    // Memory that is not touched where no matrix wants this coding.
    struct Codes {
        Codes(int64_t max_tokens, int64_t cols, int64_t block, int64_t sum_group)
            : block(block), sum_group(sum_group), codes(max_tokens * cols), sums(max_tokens * cols / sum_group),
              scales(max_tokens * cols / block), peaks(block == 256 ? max_tokens * cols / 128 : 0) {}

        size_t bytes() const { return codes.bytes() + sums.bytes() + scales.bytes() + peaks.bytes(); }

        // `at`: the number of a column, counted through all tokens.
        CodedVector from(int64_t at) const {
            return {codes.data() + at, sums.data() + at / sum_group, scales.data() + at / block,
                    peaks.data() + (block == 256 ? at / 128 : 0)};
        }

        int64_t block, sum_group; // codes that share a scale, and a sum
        ZeroedArray<int8_t> codes;
        ZeroedArray<int16_t> sums;
        ZeroedArray<float> scales;
        ZeroedArray<uint16_t> peaks;
    };

    const Codes &codes_in(Coding coding) const { return coding == Coding::blocks_of_32 ? in_32_ : in_256_; }

    int64_t cols_;
    ZeroedArray<float> values_;
    Codes in_32_, in_256_;
};

} // namespace phi
