// Products with weights of each type, on one thread, the best of several runs: for a prompt, multiplications a second
// in 10^9; for one token, the same, and gigabytes of weights a second.
//   bench_kernels [TYPE [ISA]]
#include "../tests/stand_in_grids.hpp"
#include "engine/vectors.hpp"
#include "kernels/table.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <string>

constexpr int64_t ROWS = 32768, COLS = 3072, DIFFERENT_ROWS = 16;
constexpr int TOKENS = 512;
constexpr double SECONDS = 0.4; // of runs, the best of which counts

static double cpu_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

static double best_seconds(auto &&work) {
    double best = 1e9;
    for (double total = 0; total < SECONDS;) {
        const double start = cpu_seconds();
        work();
        const double run = cpu_seconds() - start;
        best = std::min(best, run);
        total += run;
    }
    return best;
}

static std::vector<float> normal_numbers(int64_t n, float scale) {
    std::vector<float> x(n);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, scale);
    for (float &value : x) value = normal(random);
    return x;
}

// Few rows are quantized, which takes long for some types, and repeated.
static std::vector<uint8_t> weights(const phi::TypeInfo &info) {
    const std::vector<float> x = normal_numbers(DIFFERENT_ROWS * COLS, 0.02f), ones(COLS, 1.0f);
    const int64_t bytes = DIFFERENT_ROWS * info.row_bytes(COLS);
    std::vector<uint8_t> blocks(ROWS * info.row_bytes(COLS));
    phi::quantize(info.type, phi::Type::F32, x.data(), DIFFERENT_ROWS, COLS, blocks.data(), 2, phi::active_isa(),
                  needs_importance(info.type) ? ones.data() : nullptr);
    for (size_t at = bytes; at < blocks.size(); at += bytes) std::memcpy(&blocks[at], blocks.data(), bytes);
    return blocks;
}

static void report(const phi::TypeInfo &info, const std::string &only_isa) {
    const std::vector<uint8_t> blocks = weights(info);
    const phi::Matrix matrix{info.type, ROWS, COLS, info.row_bytes(COLS), blocks.data()};
    const std::vector<float> x = normal_numbers(TOKENS * COLS, 1.0f);
    std::vector<float> out(TOKENS * ROWS);
    void *scratch = operator new(phi::matmul_scratch(COLS), std::align_val_t{64});

    std::printf("%-8s", info.name.data());
    for (phi::Isa isa : phi::available_isas()) {
        if (!only_isa.empty() && only_isa != name(isa)) continue;
        const phi::Kernels &kernels = phi::kernels(isa);
        phi::Vectors vectors(TOKENS, COLS);
        std::copy(x.begin(), x.end(), vectors.row(0));
        for (int token = 0; token < TOKENS; ++token)
            vectors.code(kernels, phi::Codings(info.type), token, 0, COLS);
        const auto seconds = [&](int64_t rows, int tokens) {
            const phi::Activations input = vectors.activations(phi::coding_for(info.type), 0, tokens);
            const auto matmul = kernels.matmul[static_cast<int>(info.type)];
            return best_seconds([&] { matmul(matrix, 0, rows, input, out.data(), ROWS, scratch); });
        };
        const int64_t prompt_rows = isa == phi::Isa::scalar ? 16 : 256;
        const double prompt = seconds(prompt_rows, TOKENS), one = seconds(ROWS, 1);
        std::printf("  %-6s prompt %6.1f  token %6.1f = %5.1f GB/s", name(isa),
                    1e-9 * static_cast<double>(prompt_rows * COLS * TOKENS) / prompt, 1e-9 * ROWS * COLS / one,
                    1e-9 * static_cast<double>(blocks.size()) / one);
        std::fflush(stdout);
    }
    std::printf("\n");
    operator delete(scratch, std::align_val_t{64});
}

int main(int argc, char **argv) {
    set_stand_in_grids();
    for (const phi::TypeInfo &info : phi::type_infos())
        if (argc <= 1 || *argv[1] == '\0' || info.name == argv[1]) report(info, argc > 2 ? argv[2] : "");
}
