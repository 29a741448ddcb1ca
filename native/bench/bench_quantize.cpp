// Quantizers: megabytes of float32 weights a second, for each type and instruction set, best of several runs.
//   bench_quantize [THREADS [TYPE]]
#include "../tests/stand_in_grids.hpp"
#include "quantize/quantize.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using Clock = std::chrono::steady_clock;

constexpr int64_t ROWS = 64, N = 4096;
constexpr int RUNS = 15;

static double seconds(auto &&work) {
    double best = 1e9;
    for (int run = 0; run < RUNS; ++run) {
        const auto start = Clock::now();
        work();
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
}

static void report(const phi::TypeInfo &info, int threads) {
    std::vector<float> x(ROWS * N);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (float &value : x) value = normal(random);
    const std::vector<float> ones(N, 1.0f);
    const float *importance = needs_importance(info.type) ? ones.data() : nullptr;
    std::vector<uint8_t> blocks(ROWS * info.row_bytes(N));

    std::printf("%-7s", info.name.data());
    for (phi::Isa isa : phi::available_isas()) {
        const double there = seconds([&] {
            phi::quantize(info.type, phi::Type::F32, x.data(), ROWS, N, blocks.data(), threads, isa, importance);
        });
        const double back =
            seconds([&] { phi::dequantize(info.type, blocks.data(), ROWS, N, x.data(), threads, isa); });
        const double megabytes = 4e-6 * ROWS * N;
        std::printf("  %s %6.0f, back %6.0f", name(isa), megabytes / there, megabytes / back);
    }
    std::printf("\n");
}

int main(int argc, char **argv) {
    set_stand_in_grids();
    const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    for (const phi::TypeInfo &info : phi::type_infos())
        if (argc <= 2 || info.name == argv[2]) report(info, threads);
}
