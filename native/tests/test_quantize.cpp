// Every quantizer on every instruction set: the same bytes, and llama.cpp's (as hashes of what
// ggml_quantize_chunk of ggml 0.25.3 gives for the rows that are made here).
#include "quantize/quantize.hpp"
#include "stand_in_grids.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

using phi::Isa;
using phi::Type;
using phi::TypeInfo;

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;

static int failures = 0;

static void check(bool holds, const std::string &what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

static std::string label(const TypeInfo &info, Isa isa, const std::string &what) {
    return std::string(info.name) + " on " + name(isa) + ": " + what;
}

// ---- rows to quantize: exact in float32, so that any program can make the same ---------------

constexpr int64_t ROWS = 7, N = 1280; // 35 super-blocks: no multiple of any number of lanes

static uint64_t random_bits(uint64_t i) { // splitmix64
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// A bell-shaped number between -1 and 1: four 16-bit numbers added.
static float bell(uint64_t i) {
    const uint64_t z = random_bits(i);
    const int sum = int(z & 0xffff) + int(z >> 16 & 0xffff) + int(z >> 32 & 0xffff) + int(z >> 48);
    return float(sum - 131070) * 0x1p-17f;
}

static float any_finite(uint64_t i) {
    const float value = std::bit_cast<float>(uint32_t(random_bits(i)));
    return std::isfinite(value) ? value : 0.0f;
}

struct Case {
    const char *name;
    float (*value)(uint64_t i);
};

constexpr Case CASES[] = {
    {"ordinary weights", [](uint64_t i) { return bell(i) * 0x1p-5f; }},
    {"blocks of all sizes", [](uint64_t i) { return std::ldexp(bell(i), int(random_bits(i / 32) % 40) - 30); }},
    {"sizes near the limits", [](uint64_t i) { return std::ldexp(bell(i), int(random_bits(i / 32) % 250) - 125); }},
    {"positive", [](uint64_t i) { return std::fabs(bell(i)); }},
    {"far from zero", [](uint64_t i) { return bell(i) * 0x1p-10f + (i / 64 % 2 ? 1.0f : -1.0f); }},
    {"mostly zero", [](uint64_t i) { return random_bits(i) % 16 == 0 ? bell(i + 1) : 0.0f; }},
    {"zero", [](uint64_t) { return 0.0f; }},
    {"minus zero", [](uint64_t) { return -0.0f; }},
    {"constant blocks", [](uint64_t i) { return bell(i / 32); }},
    {"small whole numbers", [](uint64_t i) { return float(int(random_bits(i) % 11) - 5); }},
    {"subnormal", [](uint64_t i) { return float(int(random_bits(i) % 401) - 200) * 0x1p-149f; }},
    {"any bits", any_finite},
};

static Floats rows_of(const Case &c) {
    Floats x(ROWS * N);
    for (size_t i = 0; i < x.size(); ++i) x[i] = c.value(i);
    return x;
}

// The types that can do without importance.
static std::vector<TypeInfo> types() {
    std::vector<TypeInfo> found;
    for (const TypeInfo &info : phi::type_infos())
        if (!needs_importance(info.type)) found.push_back(info);
    return found;
}

// ---- calls -----------------------------------------------------------------------------------

static Bytes quantized(const TypeInfo &info, const Floats &x, int64_t n, Isa isa, int threads = 1) {
    Bytes out(x.size() / n * info.row_bytes(n), 0xaa);
    phi::quantize(info.type, Type::F32, x.data(), x.size() / n, n, out.data(), threads, isa);
    return out;
}

static Floats dequantized(const TypeInfo &info, const Bytes &blocks, int64_t n, Isa isa, int threads = 1) {
    const int64_t rows = blocks.size() / info.row_bytes(n);
    Floats x(rows * n);
    phi::dequantize(info.type, blocks.data(), rows, n, x.data(), threads, isa);
    return x;
}

static uint64_t hash(uint64_t state, const void *data, size_t size) { // FNV-1a
    for (size_t i = 0; i < size; ++i) state = (state ^ static_cast<const uint8_t *>(data)[i]) * 0x100000001b3u;
    return state;
}

// ---- tests -----------------------------------------------------------------------------------

struct Golden {
    const char *type;
    uint64_t blocks, values; // hashes over all cases: of the bytes, and of the floats they stand for
};

constexpr Golden GOLDEN[] = {
    {"F32", 0x50824e3f61503b5b, 0x50824e3f61503b5b},
    {"F16", 0x22cd5637fa703993, 0x0947c2a6e21922ec},
    {"BF16", 0x4090656d31a43792, 0x285edeeccc20f64a},
    {"Q8_0", 0xd7a0aaf7783820db, 0xc3e119505a747554},
    {"Q4_0", 0x5a01bfafd361b159, 0xf98d844820b51fe5},
    {"Q4_1", 0x685344717a522764, 0x3a41fe70dd10abab},
    {"Q5_0", 0x48f28e8c74a86dc2, 0xc66014aaa0c3edce},
    {"Q5_1", 0x72ef93b9440f9a24, 0x639f1b3c2fc63c6d},
    {"Q2_K", 0x49809060551f7cfe, 0xe03f73660a36b0ef},
    {"Q3_K", 0x9c537eafd0627446, 0xb55aa2702c4311fa},
    {"Q4_K", 0x86d7835ff062d611, 0x3d612b25150bb18c},
    {"Q5_K", 0xbd9d8cd854530581, 0x5bb4c1b1f13cce40},
    {"Q6_K", 0xb212286c541db967, 0x98afae85d68d1c1b},
    {"IQ4_NL", 0xd17b3aa086ae4c83, 0x7a098b9520b6d7ab},
    {"IQ4_XS", 0x2233be7147064d18, 0x2ca8afd9040e9228},
    {"TQ1_0", 0x6b654faa820aa04c, 0xf62f1cd5ddc8ac84},
    {"TQ2_0", 0xb1ad94d9373aa88a, 0xf62f1cd5ddc8ac84},
    {"MXFP4", 0xa6ac20b497eaa680, 0xcf90fd36f6de7933},
    {"NVFP4", 0xb7f6f11781c6c277, 0xcd97ddc191ce087b},
    {"Q1_0", 0x373d0d4ed124d806, 0x566569048e227a25},
    {"Q2_0", 0x25805d6bcb0e4682, 0xff8253482f6bba6e},
};

static void test_golden(Isa isa) {
    for (const Golden &golden : GOLDEN) {
        const TypeInfo &info = phi::type_info(golden.type);
        uint64_t blocks_hash = 0xcbf29ce484222325u, values_hash = blocks_hash;
        for (const Case &c : CASES) {
            const Bytes blocks = quantized(info, rows_of(c), N, isa);
            Floats values = dequantized(info, blocks, N, isa); // infinite scales give some that are no numbers
            for (float &value : values) value = std::isnan(value) ? std::nanf("") : value;
            blocks_hash = hash(blocks_hash, blocks.data(), blocks.size());
            values_hash = hash(values_hash, values.data(), values.size() * sizeof(float));
            check(blocks == quantized(info, rows_of(c), N, Isa::scalar), label(info, isa, c.name));
        }
        char got[80];
        std::snprintf(got, sizeof got, "hashes 0x%016llx, 0x%016llx", (unsigned long long)blocks_hash,
                      (unsigned long long)values_hash);
        check(blocks_hash == golden.blocks && values_hash == golden.values, label(info, isa, got));
    }
}

// How much the columns count: nothing for every eighth or so.
static float importance_of(uint64_t column) {
    const uint64_t z = random_bits(column + (1 << 20));
    return z % 8 == 0 ? 0.0f : float(z >> 40) * 0x1p-24f;
}

static Bytes quantized_with_importance(const TypeInfo &info, const Floats &x, int64_t n, Isa isa, int threads) {
    Floats importance(n);
    for (int64_t i = 0; i < n; ++i) importance[i] = importance_of(i);
    Bytes out(x.size() / n * info.row_bytes(n) + 1, 0x55);
    phi::quantize(info.type, Type::F32, x.data(), x.size() / n, n, out.data(), threads, isa, importance.data());
    check(out.back() == 0x55, label(info, isa, "written past the end with importance"));
    out.pop_back();
    return out;
}

struct WeightedGolden {
    const char *type;
    uint64_t blocks; // hash over all cases
};

constexpr WeightedGolden WEIGHTED_GOLDEN[] = {
    {"Q2_K", 0x58070ae3252e0e53},
    {"Q3_K", 0xb7ab8daa3a195502},
    {"Q4_K", 0x73de15f6fb14f644},
    {"Q5_K", 0xdc5e45fa3195b9ad},
    {"Q6_K", 0xf5424418c17d56f8},
};

static void test_importance(Isa isa) {
    for (const WeightedGolden &golden : WEIGHTED_GOLDEN) {
        const TypeInfo &info = phi::type_info(golden.type);
        uint64_t blocks_hash = 0xcbf29ce484222325u;
        for (const Case &c : CASES) {
            const Bytes blocks = quantized_with_importance(info, rows_of(c), N, isa, 3);
            blocks_hash = hash(blocks_hash, blocks.data(), blocks.size());
        }
        char got[80];
        std::snprintf(got, sizeof got, "with importance, hash 0x%016llx", (unsigned long long)blocks_hash);
        check(blocks_hash == golden.blocks, label(info, isa, got));
        for (int64_t n = info.block; n <= 35 * info.block; n += info.block) {
            Floats row = rows_of(CASES[1]);
            row.resize(n);
            check(quantized_with_importance(info, row, n, isa, 1) ==
                      quantized_with_importance(info, row, n, Isa::scalar, 1),
                  label(info, isa, std::to_string(n) + " columns with importance"));
        }
    }
}

// A row of any number of blocks gives the first bytes of a longer one, and nothing behind them is written.
static void test_any_number_of_blocks(Isa isa) {
    const Floats x = rows_of(CASES[1]);
    for (const TypeInfo &info : types()) {
        const Bytes whole = quantized(info, x, x.size(), isa);
        for (int64_t blocks = 1; blocks <= 35; ++blocks) {
            const int64_t n = blocks * info.block, bytes = info.row_bytes(n);
            Bytes out(bytes + 1, 0x55);
            phi::quantize(info.type, Type::F32, x.data(), 1, n, out.data(), 1, isa);
            Floats back(n + 1, 42.0f);
            phi::dequantize(info.type, out.data(), 1, n, back.data(), 1, isa);
            const std::string what = std::to_string(blocks) + " blocks";
            check(std::equal(out.begin(), out.end() - 1, whole.begin()), label(info, isa, what));
            check(out[bytes] == 0x55 && back[n] == 42.0f, label(info, isa, what + ": written past the end"));
        }
    }
}

static void test_threads(Isa isa) {
    const int64_t n = 4096, rows = 41; // more than two chunks, the last one short
    Floats x(rows * n);
    for (size_t i = 0; i < x.size(); ++i) x[i] = bell(i);
    for (const TypeInfo &info : types()) {
        const Bytes one = quantized(info, x, n, isa), three = quantized(info, x, n, isa, 3);
        check(one == three, label(info, isa, "three threads"));
        const Floats back = dequantized(info, one, n, isa);
        check(back == dequantized(info, one, n, isa, 3), label(info, isa, "three threads back"));
    }
}

// Rows of F16 and BF16 give what the same rows as F32 give.
static void test_sources(Isa isa) {
    const Floats x = rows_of(CASES[0]);
    for (Type source : {Type::F16, Type::BF16}) {
        const TypeInfo &from = phi::type_info(source);
        const Bytes narrow = quantized(from, x, N, isa);
        const Floats wide = dequantized(from, narrow, N, isa);
        for (const TypeInfo &info : types()) {
            Bytes out(ROWS * info.row_bytes(N));
            phi::quantize(info.type, source, narrow.data(), ROWS, N, out.data(), 2, isa);
            check(out == quantized(info, wide, N, isa), label(info, isa, "from " + std::string(from.name)));
        }
    }
}

// Every float16 survives the way through float32, and what lies halfway between two becomes the even one.
static void test_float16(Isa isa) {
    const TypeInfo &f16 = phi::type_info(Type::F16);
    for (uint32_t h = 0; h < 0x7bff; ++h) { // up to the largest number
        const uint16_t halves[4] = {uint16_t(h), uint16_t(h + 1), uint16_t(h | 0x8000), uint16_t((h + 1) | 0x8000)};
        Bytes bytes(sizeof halves);
        std::memcpy(bytes.data(), halves, sizeof halves);
        const Floats x = dequantized(f16, bytes, 4, isa);
        check(quantized(f16, x, 4, isa) == bytes, label(f16, isa, "round trip of " + std::to_string(h)));
        const float middle = (x[0] + x[1]) / 2;
        const Bytes even = quantized(f16, {middle, -middle}, 2, isa);
        const uint32_t wanted = h + h % 2;
        const uint16_t expected[2] = {uint16_t(wanted), uint16_t(wanted | 0x8000)};
        check(std::memcmp(even.data(), expected, sizeof expected) == 0, label(f16, isa, "tie after " + std::to_string(h)));
    }
}

static void test_non_finite(Isa isa) {
    const int64_t n = 4096, rows = 40;
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
    const TypeInfo &info = phi::type_info(Type::Q8_0);
    for (int64_t place : {int64_t(0), int64_t(77), 17 * n + 4095, rows * n - 1}) {
        Floats x(rows * n, 1.0f);
        x[place] = place % 2 ? -infinity : nan;
        if (place < rows * n - 1) x.back() = infinity; // a later one, which another thread may find first
        const std::string expected = "row " + std::to_string(place / n) + " column " + std::to_string(place % n) +
                                     (place % 2 ? " is inf" : " is nan");
        std::string got = "no error";
        try {
            quantized(info, x, n, isa, 3);
        } catch (const phi::NonFiniteError &error) {
            got = error.what();
            check(error.row == place / n && error.column == place % n, label(info, isa, "place of the error"));
        }
        check(got == expected, label(info, isa, "expected '" + expected + "', got '" + got + "'"));
    }
}

template <class Call> static void check_refused(const char *what, Call call) {
    try {
        call();
        check(false, std::string("not refused: ") + what);
    } catch (const std::invalid_argument &) {
    }
}

static void test_refusals() {
    float x[300] = {};
    uint8_t out[2000];
    check_refused("half a block", [&] { phi::quantize(Type::Q4_K, Type::F32, x, 1, 300, out, 1); });
    check_refused("half a block back", [&] { phi::dequantize(Type::Q8_0, out, 1, 48, x, 1); });
    check_refused("quantized source", [&] { phi::quantize(Type::F32, Type::Q8_0, x, 1, 32, out, 1); });
    check_refused("unknown type", [] { phi::type_info("Q9_Z"); });
}

int main() {
    set_stand_in_grids();
    for (Isa isa : phi::available_isas()) {
        if (isa == Isa::neon_i8mm) continue; // it quantizes as neon does
        test_golden(isa);
        test_importance(isa);
        test_any_number_of_blocks(isa);
        test_threads(isa);
        test_sources(isa);
        test_float16(isa);
        test_non_finite(isa);
    }
    test_refusals();
    std::printf("%d failures\n", failures);
    return failures != 0;
}
