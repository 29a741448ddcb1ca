// The types with grids, on stand-ins for those: the same bytes on every instruction set, and those of the readable
// twin in NumPy (as hashes of what phicourse/quantize/lattice.py and iq1.py give with these grids). That twin and
// the module are held against ggml, with the true grids, by tests/quantize.
#include "stand_in_grids.hpp"
#include "test_support.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

using phi::Isa;
using phi::Type;
using phi::TypeInfo;

using Bytes = std::vector<uint8_t>;

constexpr int64_t ROWS = 3, N = 35 * 256; // no multiple of any number of lanes

// ---- rows to quantize: exact in float32, so that NumPy can make the same ---------------------

constexpr int CASES = 6;

static float value_of(int kind, int64_t i, float v) {
    switch (kind) {
    case 0: return v * 0.02f;
    case 1: return v * v * v;
    case 2: return i % 13 == 0 ? v : 0.0f;
    case 3: return std::ldexp(v, -int(i / 32 % 40));
    case 4: return std::trunc(v * 6) / 4;
    default: return i / 16 % 3 == 0 ? 0.0f : v;
    }
}

static Floats rows_of(int kind) {
    Floats x = Random(kind).numbers(ROWS * N, 1);
    for (size_t i = 0; i < x.size(); ++i) x[i] = value_of(kind, i, x[i]);
    return x;
}

static Floats importance_of_columns() {
    Floats importance = Random(99).numbers(N, 1);
    for (int64_t i = 0; i < N; ++i) importance[i] = i % 9 == 0 ? 0.0f : std::fabs(importance[i]);
    return importance;
}

// ---- calls -----------------------------------------------------------------------------------

static Bytes quantized(const TypeInfo &info, const Floats &x, int64_t n, Isa isa, const float *importance,
                       int threads = 1) {
    Bytes out(x.size() / n * info.row_bytes(n) + 1, 0x55);
    phi::quantize(info.type, Type::F32, x.data(), x.size() / n, n, out.data(), threads, isa, importance);
    check(out.back() == 0x55, std::string(info.name) + ": written past the end");
    out.pop_back();
    return out;
}

static uint64_t hash(uint64_t state, const void *data, size_t size) { // FNV-1a
    for (size_t i = 0; i < size; ++i) state = (state ^ static_cast<const uint8_t *>(data)[i]) * 0x100000001b3u;
    return state;
}

// ---- tests -----------------------------------------------------------------------------------

struct Golden {
    const char *type;
    uint64_t without, with; // hashes over all cases: of blocks without importance (0: there are none) and with it
    uint64_t values;        // of the floats that blocks with importance stand for
};

constexpr Golden GOLDEN[] = {
    {"IQ3_S", 0x264e44b423fc4aea, 0x7acdf8b55255e256, 0xb680f851fbd532a8},
    {"IQ3_XXS", 0x3e8b4f5be9d412ea, 0xa907dfd4028b8167, 0x8229ec7205d74a91},
    {"IQ2_S", 0x55951a8e152fb64b, 0x9da759a0ed4e169a, 0x19c58adb324208e7},
    {"IQ2_XS", 0, 0xc4968c8edd563de8, 0x6cf251cf0a9bc44e},
    {"IQ2_XXS", 0, 0xd2d4345d51a1547b, 0xa7ec33909d469241},
    {"IQ1_M", 0x32055b7e006257c1, 0x2702661e3ec011b4, 0x0261a5e5d90d8965},
    {"IQ1_S", 0, 0xd9795810ffcb6931, 0x05f6ecafc337dcce},
};

static void test_golden(Isa isa) {
    const Floats importance = importance_of_columns();
    for (const Golden &golden : GOLDEN) {
        const TypeInfo &info = phi::type_info(golden.type);
        uint64_t without = 0xcbf29ce484222325u, with = without, values_hash = without;
        for (int kind = 0; kind < CASES; ++kind) {
            const Floats x = rows_of(kind);
            if (!needs_importance(info.type)) {
                const Bytes blocks = quantized(info, x, N, isa, nullptr);
                without = hash(without, blocks.data(), blocks.size());
            }
            const Bytes blocks = quantized(info, x, N, isa, importance.data(), 3);
            with = hash(with, blocks.data(), blocks.size());
            Floats values(ROWS * N);
            phi::dequantize(info.type, blocks.data(), ROWS, N, values.data(), 2, isa);
            values_hash = hash(values_hash, values.data(), values.size() * sizeof(float));
        }
        char got[120];
        std::snprintf(got, sizeof got, "%s on %s: hashes 0x%016llx, 0x%016llx, 0x%016llx", golden.type, name(isa),
                      (unsigned long long)without, (unsigned long long)with, (unsigned long long)values_hash);
        check(with == golden.with && values_hash == golden.values, got);
        check(needs_importance(info.type) || without == golden.without, got);
    }
}

// A row of any number of blocks gives the first bytes of a longer one.
static void test_any_number_of_blocks(Isa isa) {
    const Floats importance = importance_of_columns();
    for (const Golden &golden : GOLDEN) {
        const TypeInfo &info = phi::type_info(golden.type);
        const Floats x = rows_of(5);
        const Bytes whole = quantized(info, Floats(x.begin(), x.begin() + N), N, isa, importance.data());
        for (int64_t n = 256; n < N; n += 256) {
            const Floats row(x.begin(), x.begin() + n); // of its own, so that a sanitizer sees loads behind it
            const Bytes part = quantized(info, row, n, isa, Floats(importance.begin(), importance.begin() + n).data());
            check(std::memcmp(part.data(), whole.data(), part.size()) == 0, golden.type + std::to_string(n));
        }
    }
}

static void test_no_grid() {
    float x[256] = {};
    uint8_t out[256] = {};
    const auto importance = std::array<float, 256>{};
    check_throws<std::invalid_argument>(
        [&] { phi::quantize(Type::IQ2_S, Type::F32, x, 1, 256, out, 1, phi::active_isa(), importance.data()); },
        "the grid of IQ2_S has not been set");
    check_throws<std::invalid_argument>([&] { phi::dequantize(Type::IQ1_M, out, 1, 256, x, 1); },
                                        "the grid of IQ1_M has not been set");
}

static void test_points_that_cannot_be_the_grid() {
    const StandIn &grid = STAND_INS[2]; // IQ2_S
    const auto refused = [&](const std::vector<int8_t> &points, int64_t n, int64_t group, const char *part) {
        check_throws<std::invalid_argument>([&] { phi::set_grid(grid.type, points.data(), n, group); }, part);
    };
    std::vector<int8_t> points = points_of(grid);
    refused(points, 512, 8, "the grid of IQ2_S has 1024 points of 8 values, got 512 of 8");
    refused(points, 2048, 4, "got 2048 of 4");
    points[77] = 9;
    refused(points, 1024, 8, "has 3 different values, got 4");
    points = points_of(grid);
    std::copy_n(points.begin() + 8 * 5, 8, points.begin() + 8 * 9);
    refused(points, 1024, 8, "has points 5 and 9 alike");
    points = points_of(grid);
    points[0] = 25;
    refused(points, 1024, 8, "lacks the point of the lowest levels");
    check_throws<std::invalid_argument>([&] { phi::set_grid(Type::Q4_K, points.data(), 1024, 8); }, "Q4_K has no grid");
}

static void test_setting_again() {
    set_stand_in_grids(); // the same points: nothing changes
    const StandIn &grid = STAND_INS[4];
    std::vector<int8_t> points = points_of(grid);
    std::swap_ranges(points.begin() + 8, points.begin() + 16, points.begin() + 16);
    check_throws<std::invalid_argument>(
        [&] { phi::set_grid(grid.type, points.data(), grid.n_points, grid.group); }, "has been set to other points");
}

int main() {
    test_no_grid();
    test_points_that_cannot_be_the_grid();
    set_stand_in_grids();
    test_setting_again();
    for (Isa isa : phi::available_isas()) {
        test_golden(isa);
        test_any_number_of_blocks(isa);
    }
    return report("grids");
}
