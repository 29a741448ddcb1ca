// The search for smaller errors: on every instruction set the same bytes, and no block worse than the reference's.
#include "quantize/quantize.hpp"
#include "test_support.hpp"

#include <cmath>

using phi::Isa;
using phi::Search;
using phi::Type;
using phi::TypeInfo;
using Bytes = std::vector<uint8_t>;

constexpr int64_t ROWS = 7, N = 1280; // 35 super-blocks: no multiple of any number of lanes

static Bytes quantized(const TypeInfo &info, const Floats &x, const float *importance, Search search, Isa isa,
                       int threads = 1) {
    Bytes out(ROWS * info.row_bytes(N));
    phi::quantize(info.type, Type::F32, x.data(), ROWS, N, out.data(), threads, isa, importance, search);
    return out;
}

// Squared errors of the blocks, each counted as much as `counts` says.
static std::vector<double> errors_of(const TypeInfo &info, const Floats &x, const Bytes &blocks, const Floats &counts) {
    Floats values(x.size());
    phi::dequantize(info.type, blocks.data(), ROWS, N, values.data(), 1, Isa::scalar);
    std::vector<double> errors(x.size() / info.block);
    for (size_t i = 0; i < x.size(); ++i)
        errors[i / info.block] += counts[i] * std::pow(double(values[i]) - x[i], 2);
    return errors;
}

static void check_not_worse(const std::vector<double> &ours, const std::vector<double> &theirs,
                            const std::string &what) {
    size_t n_worse = 0;
    for (size_t i = 0; i < ours.size(); ++i) n_worse += ours[i] > theirs[i];
    check(n_worse == 0, what + ": " + std::to_string(n_worse) + " blocks are worse than the reference's");
}

static double sum(const std::vector<double> &values) {
    double total = 0;
    for (double value : values) total += value;
    return total;
}

static void check_errors(const TypeInfo &info, const Floats &x, const float *importance, const std::string &what) {
    const Bytes best = quantized(info, x, importance, Search::best, Isa::scalar);
    const Bytes reference = quantized(info, x, importance, Search::reference, Isa::scalar);
    const Floats equal(x.size(), 1.0f);
    const auto ours = errors_of(info, x, best, equal), theirs = errors_of(info, x, reference, equal);
    check_not_worse(ours, theirs, what + ", plain");
    check(sum(ours) < sum(theirs), what + ": the error must fall");

    const bool by_importance = importance && info.type == Type::Q6_K;
    const bool by_square = !importance && (info.type == Type::Q3_K || info.type == Type::Q6_K ||
                                           info.type == Type::IQ4_NL || info.type == Type::IQ4_XS);
    if (!by_importance && !by_square) return; // others count what the search alone knows; Python tests them
    Floats counts(x.size());
    for (size_t i = 0; i < x.size(); ++i) counts[i] = by_importance ? importance[i % N] : x[i] * x[i];
    check_not_worse(errors_of(info, x, best, counts), errors_of(info, x, reference, counts), what + ", weighted");
}

static void check_bytes(const TypeInfo &info, const Floats &x, const float *importance, const std::string &what) {
    const Bytes expected = quantized(info, x, importance, Search::best, Isa::scalar);
    for (Isa isa : phi::available_isas())
        if (isa != Isa::neon_i8mm) // which quantizes as neon does
            check(quantized(info, x, importance, Search::best, isa, 3) == expected, what + " on " + name(isa));
}

// Weights as models have them, weights of many sizes, and rows with nothing in them.
static Floats ordinary_rows() {
    Random random(3);
    Floats x(ROWS * N);
    for (float &value : x) value = (random.number() + random.number() + random.number()) * 0.02f;
    return x;
}

static Floats odd_rows() {
    Random random(4);
    Floats x(ROWS * N);
    for (size_t i = 0; i < x.size(); ++i) {
        const int exponent = i / N == 5 ? int(i / 32 % 200) - 100 : int(i / 64 % 24) - 20;
        x[i] = i / N == 3 ? 0.0f : std::ldexp(random.number(), exponent);
    }
    return x;
}

int main() {
    Random random(5);
    Floats importance(N), ordinary = ordinary_rows(), odd = odd_rows();
    for (size_t i = 0; i < importance.size(); ++i) importance[i] = i / 50 % 3 ? std::fabs(random.number()) : 0.0f;

    int n_types = 0;
    for (const TypeInfo &info : phi::type_infos()) {
        const std::string label(info.name);
        if (!phi::has_better_search(info.type)) {
            const auto search = [&] { quantized(info, ordinary, importance.data(), Search::best, Isa::scalar); };
            check_throws<std::invalid_argument>(search, "no better search for type " + label);
            continue;
        }
        ++n_types;
        check_errors(info, ordinary, nullptr, label);
        check_errors(info, ordinary, importance.data(), label + " with importance");
        for (const Floats &x : {ordinary, odd}) {
            check_bytes(info, x, nullptr, label);
            check_bytes(info, x, importance.data(), label + " with importance");
        }
    }
    check(n_types == 15, "fifteen types have a better search, not " + std::to_string(n_types));
    return report("best search");
}
