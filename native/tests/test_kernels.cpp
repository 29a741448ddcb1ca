// Every kernel on every instruction set of this machine, against the same sum in double precision.
#include "engine/kv_cache.hpp"
#include "kernels/table.hpp"
#include "quantize/quantize.hpp"
#include "stand_in_grids.hpp"
#include "test_support.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

using phi::Activations;
using phi::Coding;
using phi::Isa;
using phi::Kernels;
using phi::Type;
using phi::TypeInfo;

using Bytes = std::vector<uint8_t>;

static std::string label(Isa isa, const std::string &what) { return std::string(name(isa)) + " " + what; }

// A row of a type as the quantizers write it, and as floats again.
static Bytes row_of(Type type, Floats x) {
    Bytes row(phi::type_info(type).row_bytes(static_cast<int64_t>(x.size())));
    phi::quantize(type, Type::F32, x.data(), 1, static_cast<int64_t>(x.size()), row.data(), 1);
    return row;
}

static Floats floats_of(Type type, const Bytes &row) {
    const TypeInfo &info = phi::type_info(type);
    Floats out(row.size() / info.bytes * info.block);
    phi::dequantize(type, row.data(), 1, static_cast<int64_t>(out.size()), out.data(), 1);
    return out;
}

// ---- vectors ---------------------------------------------------------------------------------

// Norm: sums in double, so only the last operations round. Two roundings and a square root: 4 units.
static void test_rms_norm(Isa isa, const Kernels &kernels) {
    for (int n : {1, 7, 33, 256}) {
        Random random(n);
        const Floats x = random.numbers(n, 3), weight = random.numbers(n, 1);
        Floats out(n);
        kernels.rms_norm(x.data(), weight.data(), n, 1e-5f, out.data());
        double squares = 0;
        for (float value : x) squares += double(value) * value;
        for (int i = 0; i < n; ++i) {
            const double expected = x[i] / std::sqrt(squares / n + 1e-5) * weight[i];
            check_close(out[i], expected, 3e-7 * std::abs(expected) + 1e-30, label(isa, "rms_norm"));
        }
    }
}

// The mean is rounded to a float once, which moves every number by half a unit of the mean; the rest as above, and
// then the bias: a unit of each of the two terms.
static void test_layer_norm(Isa isa, const Kernels &kernels) {
    for (float offset : {0.0f, 100.0f})
        for (int n : {1, 7, 33, 256}) {
            Random random(n);
            Floats x = random.numbers(n, 3), out(n);
            for (float &value : x) value += offset;
            const Floats weight = random.numbers(n, 1), bias = random.numbers(n, 2);
            kernels.layer_norm(x.data(), weight.data(), bias.data(), n, 1e-5f, out.data());
            double mean = 0, squares = 0;
            for (float value : x) mean += double(value) / n;
            for (float value : x) squares += (value - mean) * (value - mean);
            const double scale = 1 / std::sqrt(squares / n + 1e-5);
            for (int i = 0; i < n; ++i) {
                const double normed = (x[i] - mean) * scale * weight[i];
                const double error = 6e-8 * offset * scale + 4e-7 * (std::abs(normed) + std::abs(bias[i]));
                check_close(out[i], normed + bias[i], error, label(isa, "layer_norm"));
            }
        }
}

// e^x has a relative error below 2e-7; it is one of two terms of the denominator.
static void test_swiglu(Isa isa, const Kernels &kernels) {
    for (int n : {1, 5, 16, 83}) {
        Random random(n);
        Floats gate = random.numbers(n, 12), out(n);
        gate[0] = n == 5 ? -200.0f : 200.0f;
        const Floats up = random.numbers(n, 2);
        kernels.swiglu(gate.data(), up.data(), n, out.data());
        for (int i = 0; i < n; ++i) {
            const double expected = gate[i] / (1 + std::exp(-double(gate[i]))) * up[i];
            check_close(out[i], expected, 6e-7 * std::abs(expected) + 1e-30, label(isa, "swiglu"));
        }
    }
}

// Against the form with tanh, whose own loss of digits far below 0 is the absolute part. The argument of e^x has four
// roundings; where it is large, so is their effect, but there e^x is one of two terms or the result nearly 0.
static void test_gelu(Isa isa, const Kernels &kernels) {
    for (int n : {1, 5, 16, 83}) {
        Random random(n);
        Floats x = random.numbers(n, 6), out(n);
        x[0] = n == 5 ? -200.0f : 200.0f;
        kernels.gelu(x.data(), n, out.data());
        for (int i = 0; i < n; ++i) {
            const double v = x[i], y = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
            check_close(out[i], 0.5 * v * (1 + std::tanh(y)), 1e-6 * std::abs(v), label(isa, "gelu"));
        }
    }
}

static void test_rotate_and_add(Isa isa, const Kernels &kernels) {
    Random random(5);
    const int half = 13;
    const Floats before = random.numbers(2 * half + 4, 1), cosine = random.numbers(half, 1),
                 sine = random.numbers(half, 1);
    Floats x = before;
    kernels.rotate(x.data(), cosine.data(), sine.data(), half);
    for (int i = 0; i < half; ++i) {
        const double a = before[i], b = before[i + half];
        check_close(x[i], a * cosine[i] - b * sine[i], 3e-7, label(isa, "rotate, first half"));
        check_close(x[i + half], b * cosine[i] + a * sine[i], 3e-7, label(isa, "rotate, second half"));
    }
    for (int i = 2 * half; i < 2 * half + 4; ++i) check(x[i] == before[i], label(isa, "rotate changed the rest"));
    Floats total = x;
    kernels.add(total.data(), before.data(), 3);
    for (int i = 0; i < 5; ++i) check(total[i] == (i < 3 ? x[i] + before[i] : x[i]), label(isa, "add"));
}

// A value is a row of its type, padded with zeros.
static void test_values_in_the_cache(Isa isa, const Kernels &kernels) {
    for (Type type : phi::cache_types)
        for (int head_size : {10, 80, 96}) {
            const phi::CacheFormat format = phi::cache_format(type, head_size);
            Random random(head_size);
            Floats x = random.numbers(head_size, 3);
            Bytes row(format.row_bytes);
            kernels.store_value(format, x.data(), row.data());
            x.resize(format.padded);
            check(row == row_of(type, x), label(isa, "a value as " + std::string(phi::type_info(type).name)));
        }
}

// A vector and its coded form.
struct Coded {
    Coding coding;
    int64_t cols;
    Floats values;
    std::vector<int8_t> codes;
    std::vector<int16_t> sums;
    Floats scales;
    std::vector<uint16_t> peaks;
    Floats rounded; // where weights and vectors meet in BF16

    Coded(const Kernels &kernels, Coding coding, int tokens, int64_t cols, uint64_t seed)
        : Coded(kernels, coding, tokens, cols, Random(seed).numbers(tokens * cols, 2)) {}

    Coded(const Kernels &kernels, Coding coding, int tokens, int64_t cols, Floats numbers)
        : coding(coding), cols(cols), values(std::move(numbers)), codes(tokens * cols), sums(tokens * cols / 16 + 1),
          scales(tokens * cols / 32 + 1), peaks(tokens * cols / 128 + 1) {
        if (coding == Coding::none) return;
        for (int token = 0; token < tokens; ++token)
            kernels.quantize(coding, &values[token * cols], static_cast<int>(cols),
                             {&codes[token * cols], &sums[token * cols / group()], &scales[token * cols / block()],
                              &peaks[token * cols / 128]});
    }

    int64_t block() const { return coding == Coding::blocks_of_32 ? 32 : 256; }
    int64_t group() const { return coding == Coding::blocks_of_32 ? 32 : 16; }

    Activations batch(int first, int tokens) const {
        return {tokens,
                cols,
                coding,
                &values[first * cols],
                &codes[first * cols],
                &sums[first * cols / group()],
                &scales[first * cols / block()],
                &peaks[first * cols / 128]};
    }

    void round_to_bf16() { rounded = floats_of(Type::BF16, row_of(Type::BF16, values)); }

    // What the codes say, and half a step: the most that they can be wrong by. BF16 has 8 bits.
    double decoded(int64_t i) const {
        if (!rounded.empty()) return rounded[i];
        return coding == Coding::none ? values[i] : double(scales[i / block()]) * codes[i];
    }
    double half_step(int64_t i) const {
        if (!rounded.empty()) return 0x1p-8 * std::abs(values[i]);
        return coding == Coding::none ? 0 : 0.5001 * scales[i / block()];
    }
};

// The largest Σ |code| of n neighbours in a block of 256.
static int largest_sum(const int8_t *codes, int n) {
    int most = 0;
    for (int start = 0; start < 256; start += n) {
        int sum = 0;
        for (int i = start; i < start + n; ++i) sum += std::abs(codes[i]);
        most = std::max(most, sum);
    }
    return most;
}

static void test_quantize(Isa isa, const Kernels &kernels) {
    for (Coding coding : {Coding::blocks_of_32, Coding::blocks_of_256}) {
        const Coded x(kernels, coding, 2, 512, 3);
        for (int64_t i = 0; i < 1024; ++i)
            check_close(x.decoded(i), x.values[i], x.half_step(i), label(isa, "code of an activation"));
        for (int64_t start = 0; start < 1024; start += x.group()) {
            int sum = 0;
            for (int64_t i = start; i < start + x.group(); ++i) sum += x.codes[i];
            const int64_t group = start / x.group(), inside = group % 16;
            const int64_t index = coding == Coding::blocks_of_32 ? group : group - inside + inside % 2 * 8 + inside / 2;
            check(x.sums[index] == sum, label(isa, "sum of codes"));
        }
        for (int64_t start = 0; coding == Coding::blocks_of_256 && start < 1024; start += 256)
            for (int n : {16, 32})
                check(x.peaks[start / 128 + n / 32] == largest_sum(&x.codes[start], n), label(isa, "peak of codes"));
    }
    const Coded zeros(kernels, Coding::blocks_of_256, 1, 256, Floats(256, 0.0f));
    check(zeros.codes[0] == 0 && zeros.codes[255] == 0 && zeros.sums[15] == 0 && zeros.scales[0] == 0 &&
              zeros.peaks[1] == 0,
          label(isa, "codes of zeros"));
}

// ---- matrices --------------------------------------------------------------------------------

// Weights of a type, and as the floats that they stand for.
struct Weights {
    Bytes bytes;
    Floats values;
    phi::Matrix matrix;

    Weights(const TypeInfo &info, int64_t rows, int64_t cols)
        : Weights(info, rows, cols, Random(rows + cols).numbers(rows * cols, 0.5f)) {}

    Weights(const TypeInfo &info, int64_t rows, int64_t cols, const Floats &source) : values(rows * cols) {
        bytes.resize(rows * info.row_bytes(cols));
        const Floats importance(cols, 1.0f); // some types ask for it
        phi::quantize(info.type, Type::F32, source.data(), rows, cols, bytes.data(), 1, phi::active_isa(),
                      importance.data());
        phi::dequantize(info.type, bytes.data(), rows, cols, values.data(), 1);
        matrix = {info.type, rows, cols, info.row_bytes(cols), bytes.data()};
    }
};

static Floats product(const Kernels &kernels, const Weights &weights, int64_t first, int64_t last,
                      const Activations &x) {
    Floats out(x.tokens * weights.matrix.rows, std::numeric_limits<float>::quiet_NaN());
    std::vector<std::max_align_t> scratch(phi::matmul_scratch(x.cols) / sizeof(std::max_align_t) + 8);
    const auto address = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64;
    kernels.matmul[static_cast<int>(weights.matrix.type)](weights.matrix, first, last, x, out.data(),
                                                          weights.matrix.rows, reinterpret_cast<void *>(address));
    return out;
}

// Two bounds. Against the codes of the activations only float sums round: integers are exact. A block's sums of
// products and offsets are at most Σ 2 · largest weight · |x|, and one rounding for each block and lane is 2^-24
// of it. Against the activations themselves half a step of each code is added.
static void check_products(const std::string &what, const Weights &weights, const Coded &x, int tokens,
                           const Floats &got) {
    const int64_t rows = weights.matrix.rows, cols = x.cols;
    for (int token = 0; token < tokens; ++token)
        for (int64_t row = 0; row < rows; ++row) {
            double coded = 0, exact = 0, magnitude = 0, step = 0, largest = 0;
            for (int64_t i = 0; i < cols; ++i)
                largest = std::max(largest, std::abs(double(weights.values[row * cols + i])));
            for (int64_t i = 0; i < cols; ++i) {
                const double weight = weights.values[row * cols + i];
                const int64_t at = token * cols + i;
                coded += weight * x.decoded(at);
                exact += weight * x.values[at];
                magnitude += 2 * largest * std::abs(x.decoded(at));
                step += std::abs(weight) * x.half_step(at);
            }
            const double rounding = magnitude * 0x1p-24 * (8 + std::sqrt(double(cols)));
            check_close(got[token * rows + row], coded, rounding, what + " against the codes");
            check_close(got[token * rows + row], exact, rounding + step, what + " against the activations");
        }
}

static void test_matmul(Isa isa, const Kernels &kernels, const TypeInfo &info) {
    const Coding coding = phi::coding_for(info.type);
    constexpr int tokens = 21; // whole tiles of every kernel, and a rest
    for (int64_t cols : {info.block, 3 * info.block, 8 * info.block, info.block == 1 ? int64_t{83} : 5 * info.block}) {
        const Weights weights(info, 37, cols); // two panels and a rest
        Coded x(kernels, coding, tokens, cols, cols);
        if (info.type == Type::BF16 && isa == Isa::avx512) x.round_to_bf16();
        const std::string what = label(isa, std::string(info.name) + " of " + std::to_string(cols));
        const Floats all = product(kernels, weights, 0, 37, x.batch(0, tokens));
        check_products(what, weights, x, tokens, all);
        for (int token = 0; token < tokens; ++token) { // alone or in a batch: the same bits
            const Floats one = product(kernels, weights, 0, 37, x.batch(token, 1));
            check(std::memcmp(one.data(), &all[token * 37], 37 * sizeof(float)) == 0, what + ": token alone differs");
        }
        for (int batch = 2; batch < 10; ++batch) {
            const Floats few = product(kernels, weights, 0, 37, x.batch(1, batch));
            check(std::memcmp(few.data(), &all[37], few.size() * sizeof(float)) == 0,
                  what + ": " + std::to_string(batch) + " tokens differ");
        }
        for (int batch : {1, tokens}) { // rows by themselves: the same bits, and no other row touched
            const Floats part = product(kernels, weights, 16, 23, x.batch(0, batch));
            check(std::memcmp(&part[16], &all[16], 7 * sizeof(float)) == 0, what + ": rows by themselves differ");
            check(std::isnan(part[15]) && std::isnan(part[23]), what + ": wrote other rows");
        }
    }
}

// The largest sums that there can be: weights and vectors have one magnitude, and a token the signs of a row. With
// half of the numbers small, sums are as they usually are.
static void test_large_sums(Isa isa, const Kernels &kernels, const TypeInfo &info) {
    const int64_t rows = 16, cols = 2 * info.block;
    Floats signs = Random(1).numbers(rows * cols, 1);
    for (float &sign : signs) sign = sign < 0 ? -1.0f : 1.0f;
    const Weights weights(info, rows, cols, signs);
    for (bool mixed : {false, true}) {
        Floats vectors = signs;
        if (mixed)
            for (int64_t i = 0; i < rows * cols; i += 2) vectors[i] *= 0.125f;
        const Coded x(kernels, phi::coding_for(info.type), static_cast<int>(rows), cols, vectors);
        const Floats all = product(kernels, weights, 0, rows, x.batch(0, static_cast<int>(rows)));
        const std::string what = label(isa, std::string(info.name) + ", large sums");
        check_products(what, weights, x, static_cast<int>(rows), all);
        for (int token = 0; token < rows; ++token) {
            const Floats one = product(kernels, weights, 0, rows, x.batch(token, 1));
            check(std::memcmp(one.data(), &all[token * rows], rows * sizeof(float)) == 0, what + ": token alone differs");
        }
    }
}

// ---- attention -------------------------------------------------------------------------------

struct AttentionCase {
    int head_size, members, tokens;
    int64_t position, window;
};

class AttentionTest {
  public:
    AttentionTest(const Kernels &kernels, const AttentionCase &c, Type type)
        : kernels_(kernels), case_(c), format_(phi::cache_format(type, c.head_size)),
          n_keys_((c.position + c.tokens + 31) / 32 * 32) {
        Random random(c.head_size + c.position);
        queries_ = random.numbers(int64_t{c.tokens} * c.members * c.head_size, 0.8f);
        float_keys_ = random.numbers(n_keys_ * c.head_size, 2);
        float_values_ = random.numbers(n_keys_ * c.head_size, 2);
        fill_cache();
        for (Floats *rows : {&float_keys_, &float_values_}) as_cached(*rows);
    }

    Floats attend(int first, int tokens) const {
        const int row = case_.members * case_.head_size;
        Floats out(tokens * row), scratch(phi::attention_scratch(format_));
        kernels_.attend({.queries = &queries_[first * row],
                         .out = out.data(),
                         .query_stride = row,
                         .out_stride = row,
                         .tokens = tokens,
                         .members = case_.members,
                         .position = case_.position + first,
                         .window = case_.window,
                         .format = format_,
                         .blocks = blocks_.data(),
                         .block_stride = block_stride(),
                         .scratch = scratch.data()});
        return out;
    }

    // softmax(q·k) · v over the keys seen, in double.
    std::vector<double> expected(int token, int member) const {
        const int64_t position = case_.position + token, size = case_.head_size;
        const float *query = &queries_[(token * case_.members + member) * size];
        std::vector<double> out(size);
        double total = 0;
        for (int64_t key = 0; key <= position; ++key) {
            if (position - key >= case_.window) continue;
            double score = 0;
            for (int64_t i = 0; i < size; ++i) score += double(query[i]) * float_keys_[key * size + i];
            const double weight = std::exp(score);
            total += weight;
            for (int64_t i = 0; i < size; ++i) out[i] += weight * float_values_[key * size + i];
        }
        for (double &value : out) value /= total;
        return out;
    }

    // The value of the last token becomes NaN.
    void spoil_last_value() {
        const int64_t key = case_.position + case_.tokens - 1;
        const Floats unusable(case_.head_size, std::numeric_limits<float>::quiet_NaN());
        kernels_.store_value(format_, unusable.data(),
                             &blocks_[key / 32 * block_stride()] + format_.key_block_bytes + key % 32 * format_.row_bytes);
    }

  private:
    // Positions after the last token hold what an earlier text left there, in the worst case NaN.
    void fill_cache() {
        const int size = case_.head_size;
        blocks_.resize(n_keys_ / 32 * block_stride());
        const Floats unseen(size, std::numeric_limits<float>::quiet_NaN());
        for (int64_t key = 0; key < n_keys_; ++key) {
            const bool seen = key < case_.position + case_.tokens;
            uint8_t *block = &blocks_[key / 32 * block_stride()];
            const int slot = static_cast<int>(key % 32);
            kernels_.store_key(format_, seen ? &float_keys_[key * size] : unseen.data(), block, slot);
            kernels_.store_value(format_, seen ? &float_values_[key * size] : unseen.data(),
                                 block + format_.key_block_bytes + slot * format_.row_bytes);
        }
    }

    int64_t block_stride() const { return format_.block_bytes + 64; } // something else lies between

    // What is left of rows when they were stored.
    void as_cached(Floats &rows) const {
        for (auto row = rows.begin(); row != rows.end(); row += case_.head_size) {
            Floats padded(row, row + case_.head_size);
            padded.resize(format_.padded);
            const Floats cached = floats_of(format_.type, row_of(format_.type, padded));
            std::copy_n(cached.begin(), case_.head_size, row);
        }
    }

    const Kernels &kernels_;
    AttentionCase case_;
    phi::CacheFormat format_;
    int64_t n_keys_;
    Floats queries_, float_keys_, float_values_;
    Bytes blocks_;
};

// Scores reach about 10, so a rounding of 2^-24 of them changes a weight by 1e-6 of itself; values reach 2.
static void test_attention(Isa isa, const Kernels &kernels) {
    const int64_t all = std::numeric_limits<int64_t>::max();
    const AttentionCase cases[] = {{16, 1, 1, 0, all}, {24, 2, 5, 3, all},   {96, 1, 32, 50, all}, {10, 3, 7, 91, all},
                                   {64, 4, 8, 60, 5},  {16, 1, 32, 100, 33}, {32, 32, 1, 77, 64},  {20, 1, 3, 200, 1}};
    const int n_types = std::size(phi::cache_types);
    for (int i = 0; i < n_types * static_cast<int>(std::size(cases)); ++i) {
        const AttentionCase &c = cases[i / n_types];
        AttentionTest test(kernels, c, phi::cache_types[i % n_types]);
        const std::string what = label(isa, "attention to " + std::string(phi::type_info(phi::cache_types[i % n_types]).name) +
                                                ", head size " + std::to_string(c.head_size) + " at " +
                                                std::to_string(c.position));
        const Floats got = test.attend(0, c.tokens);
        const int row = c.members * c.head_size;
        for (int token = 0; token < c.tokens; ++token) {
            for (int member = 0; member < c.members; ++member) {
                const std::vector<double> expected = test.expected(token, member);
                for (int j = 0; j < c.head_size; ++j)
                    check_close(got[token * row + member * c.head_size + j], expected[j], 2e-5, what);
            }
            const Floats alone = test.attend(token, 1);
            check(std::memcmp(alone.data(), &got[token * row], row * sizeof(float)) == 0,
                  what + ": token alone differs");
        }
        test.spoil_last_value();
        check(std::memcmp(test.attend(0, c.tokens).data(), got.data(), (c.tokens - 1) * row * sizeof(float)) == 0,
              what + ": a token sees the last one's value");
    }
}

// Arguments: the instruction sets that this machine must turn out to have, if any are named.
static void test_isas(int argc, char **argv) {
    std::string found, expected;
    for (Isa isa : phi::available_isas()) found += std::string(" ") + name(isa);
    for (int i = 1; i < argc; ++i) expected += std::string(" ") + argv[i];
    check(expected.empty() || found == expected, "instruction sets found:" + found + ", expected:" + expected);
}

int main(int argc, char **argv) {
    test_isas(argc, argv);
    set_stand_in_grids();
    for (Isa isa : phi::available_isas()) {
        const Kernels &kernels = phi::kernels(isa);
        test_rms_norm(isa, kernels);
        test_layer_norm(isa, kernels);
        test_swiglu(isa, kernels);
        test_gelu(isa, kernels);
        test_rotate_and_add(isa, kernels);
        test_values_in_the_cache(isa, kernels);
        test_quantize(isa, kernels);
        for (const TypeInfo &info : phi::type_infos()) {
            test_matmul(isa, kernels, info);
            test_large_sums(isa, kernels, info);
        }
        test_attention(isa, kernels);
    }
    return report("kernels");
}
