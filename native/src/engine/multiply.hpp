// One product of a weight matrix with vectors, by the kernels of the engine but without a model around it: to be
// measured, and to be held against others.
#pragma once

#include "../isa.hpp"
#include "../kernels/table.hpp"
#include "../thread_pool.hpp"
#include "memory.hpp"
#include "vectors.hpp"

#include <algorithm>

namespace phi {

// out[token * rows + row] = weight row · vector, for `tokens` vectors of weight.cols floats. Rows are shared among
// the threads, so that none of the sums depends on their number.
inline void multiply(const Matrix &weight, const float *x, int tokens, float *out, int threads, Isa isa) {
    const Kernels &table = kernels(isa);
    const Codings codings(weight.type);
    const size_t panels = (weight.rows + panel_rows - 1) / panel_rows;
    ThreadPool pool(static_cast<int>(std::min<size_t>(std::max(threads, 1), std::max<size_t>(panels, 1))));
    const size_t grain = std::max<size_t>(1, panels / (8 * pool.size()));
    Vectors vectors(tokens, weight.cols);
    std::copy_n(x, tokens * weight.cols, vectors.row(0));
    std::vector<ZeroedArray<std::byte>> scratch;
    for (int thread = 0; thread < pool.size(); ++thread) scratch.emplace_back(matmul_scratch(weight.cols));
    pool.run([&](int thread) {
        pool.for_each(tokens, 1, [&](size_t token, size_t) { vectors.code(table, codings, token, 0, weight.cols); });
        const Activations coded = vectors.activations(coding_for(weight.type), 0, tokens);
        pool.for_each(panels, grain, [&](size_t begin, size_t end) {
            const int64_t last = std::min<int64_t>(end * panel_rows, weight.rows);
            table.matmul[static_cast<int>(weight.type)](weight, begin * panel_rows, last, coded, out, weight.rows,
                                                        scratch[thread].data());
        });
    });
}

} // namespace phi
