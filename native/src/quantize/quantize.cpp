#include "quantize.hpp"

#include "../blocks.hpp"
#include "../thread_pool.hpp"
#include "finite_blocks.hpp"
#include "grids.hpp"
#include "quantizer_table.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

namespace phi {

// ---- types -----------------------------------------------------------------------------------

static constexpr std::array<TypeInfo, N_TYPES> TYPES = {{
    {Type::F32, "F32", 1, 4},
    {Type::F16, "F16", 1, 2},
    {Type::BF16, "BF16", 1, 2},
    {Type::Q8_0, "Q8_0", BLOCK, sizeof(BlockQ8_0)},
    {Type::Q4_0, "Q4_0", BLOCK, sizeof(BlockQ4_0)},
    {Type::Q4_1, "Q4_1", BLOCK, sizeof(BlockQ4_1)},
    {Type::Q5_0, "Q5_0", BLOCK, sizeof(BlockQ5_0)},
    {Type::Q5_1, "Q5_1", BLOCK, sizeof(BlockQ5_1)},
    {Type::Q2_K, "Q2_K", SUPER_BLOCK, sizeof(BlockQ2_K)},
    {Type::Q3_K, "Q3_K", SUPER_BLOCK, sizeof(BlockQ3_K)},
    {Type::Q4_K, "Q4_K", SUPER_BLOCK, sizeof(BlockQ4_K)},
    {Type::Q5_K, "Q5_K", SUPER_BLOCK, sizeof(BlockQ5_K)},
    {Type::Q6_K, "Q6_K", SUPER_BLOCK, sizeof(BlockQ6_K)},
    {Type::IQ4_NL, "IQ4_NL", BLOCK, sizeof(BlockIQ4_NL)},
    {Type::IQ4_XS, "IQ4_XS", SUPER_BLOCK, sizeof(BlockIQ4_XS)},
    {Type::IQ3_S, "IQ3_S", SUPER_BLOCK, sizeof(BlockIQ3_S)},
    {Type::IQ3_XXS, "IQ3_XXS", SUPER_BLOCK, sizeof(BlockIQ3_XXS)},
    {Type::IQ2_S, "IQ2_S", SUPER_BLOCK, sizeof(BlockIQ2_S)},
    {Type::IQ2_XS, "IQ2_XS", SUPER_BLOCK, sizeof(BlockIQ2_XS)},
    {Type::IQ2_XXS, "IQ2_XXS", SUPER_BLOCK, sizeof(BlockIQ2_XXS)},
    {Type::IQ1_M, "IQ1_M", SUPER_BLOCK, sizeof(BlockIQ1_M)},
    {Type::IQ1_S, "IQ1_S", SUPER_BLOCK, sizeof(BlockIQ1_S)},
    {Type::TQ1_0, "TQ1_0", SUPER_BLOCK, sizeof(BlockTQ1_0)},
    {Type::TQ2_0, "TQ2_0", SUPER_BLOCK, sizeof(BlockTQ2_0)},
    {Type::MXFP4, "MXFP4", BLOCK, sizeof(BlockMXFP4)},
    {Type::NVFP4, "NVFP4", BLOCK_NVFP4, sizeof(BlockNVFP4)},
    {Type::Q1_0, "Q1_0", BLOCK_Q1_0, sizeof(BlockQ1_0)},
    {Type::Q2_0, "Q2_0", BLOCK_Q2_0, sizeof(BlockQ2_0)},
}};

std::span<const TypeInfo> type_infos() { return TYPES; }

const TypeInfo &type_info(Type type) { return TYPES[static_cast<size_t>(type)]; }

const TypeInfo &type_info(std::string_view name) {
    std::string known;
    for (const TypeInfo &info : TYPES) {
        if (info.name == name) return info;
        known += (known.empty() ? "" : ", ") + std::string(info.name);
    }
    throw std::invalid_argument("no quantizer for type " + std::string(name) + "; there are " + known);
}

// ---- grids -----------------------------------------------------------------------------------

static std::optional<GridName> grid_of(Type type) {
    switch (type) {
    case Type::IQ3_S: return GridName::IQ3_S;
    case Type::IQ3_XXS: return GridName::IQ3_XXS;
    case Type::IQ2_S: return GridName::IQ2_S;
    case Type::IQ2_XS: return GridName::IQ2_XS;
    case Type::IQ2_XXS: return GridName::IQ2_XXS;
    case Type::IQ1_M: return GridName::IQ1_S;
    case Type::IQ1_S: return GridName::IQ1_S;
    default: return std::nullopt;
    }
}

void set_grid(Type type, const int8_t *values, int64_t n_points, int64_t group) {
    const std::optional<GridName> grid = grid_of(type);
    if (!grid) throw std::invalid_argument(std::string(type_info(type).name) + " has no grid");
    set_grid(*grid, values, n_points, group);
}

void check_grid(const TypeInfo &info) {
    const std::optional<GridName> grid = grid_of(info.type);
    if (grid && !find_grid(*grid))
        throw std::invalid_argument("the grid of " + std::string(info.name) + " has not been set; set_grid does that");
}

// ---- instruction sets ------------------------------------------------------------------------

namespace scalar {
extern const QuantizerTable quantizer_table;
}
namespace avx2 {
extern const QuantizerTable quantizer_table;
}
namespace avx512 {
extern const QuantizerTable quantizer_table;
}
namespace neon {
extern const QuantizerTable quantizer_table;
}

static const QuantizerTable &table(Isa isa) {
    switch (isa) {
#ifdef PHI_HAS_avx512
    case Isa::avx512: return avx512::quantizer_table;
#endif
#ifdef PHI_HAS_avx2
    case Isa::avx2: return avx2::quantizer_table;
#endif
#ifdef PHI_HAS_neon
    case Isa::neon:
    case Isa::neon_i8mm: return neon::quantizer_table;
#endif
    default: return scalar::quantizer_table;
    }
}

// ---- chunks ----------------------------------------------------------------------------------

// What a thread takes at a time: enough to forget the taking. What it works on at a time: that much float32
// stays in the first-level cache between the passes over it. Both are multiples of every block.
constexpr int64_t CHUNK = 1 << 16, PIECE = 1 << 12;

// Calls work(first, end) for each chunk of so many weights, in order, on all threads. A thread whose call
// returns false takes no further chunk.
template <class Work> static void for_each_chunk(int64_t n_weights, int64_t chunk, int threads, Work work) {
    std::atomic<int64_t> next{0};
    const auto take_chunks = [&](int) {
        for (int64_t first; (first = next.fetch_add(chunk)) < n_weights;)
            if (!work(first, std::min(first + chunk, n_weights))) return;
    };
    const int64_t n_chunks = (n_weights + chunk - 1) / chunk;
    ThreadPool(static_cast<int>(std::min<int64_t>(threads, n_chunks))).run(take_chunks);
}

static void check_row(const TypeInfo &info, int64_t n) {
    if (n % info.block == 0) return;
    throw std::invalid_argument(std::string(info.name) + " has blocks of " + std::to_string(info.block) +
                                " weights, which do not divide rows of " + std::to_string(n));
}

// ---- quantize --------------------------------------------------------------------------------

NonFiniteError::NonFiniteError(int64_t row, int64_t column, float value)
    : std::runtime_error("row " + std::to_string(row) + " column " + std::to_string(column) + " is " +
                         (value != value ? "nan" : "inf")),
      row(row), column(column) {}

namespace {
struct Job {
    const QuantizerTable &functions;
    const TypeInfo &info;
    Type source;
    const void *x;
    int64_t n; // weights in a row
    void *out;
    const float *importance;
    Search search;

    const Quantizer &quantizer() const { return *functions.types[static_cast<size_t>(info.type)]; }
    bool is_weighted() const { return importance && quantizer().quantize_weighted; }
    bool looks_while_quantizing() const {
        return quantizer().quantize_any && !is_weighted() && search == Search::reference;
    }

    // Importance belongs to columns, and some types weigh it with what the whole row has: rows stay whole.
    int64_t whole_rows(int64_t n_weights) const {
        return is_weighted() && n > 0 ? std::max(n_weights / n, int64_t(1)) * n : n_weights;
    }
};
} // namespace

// Source weights from `first` on, as float32; widened into the buffer where they are stored in 16 bits.
static const float *as_floats(const Job &job, int64_t first, int64_t count, float *buffer) {
    const std::byte *start = static_cast<const std::byte *>(job.x) + first * type_info(job.source).bytes;
    if (job.source == Type::F32) return reinterpret_cast<const float *>(start);
    job.functions.types[static_cast<size_t>(job.source)]->dequantize(start, count, buffer);
    return buffer;
}

static void quantize_piece(const Job &job, const float *weights, int64_t count, std::byte *out) {
    const Quantizer &quantizer = job.quantizer();
    const int64_t n_blocks = count / job.info.block, row_bytes = job.info.row_bytes(job.n);
    if (job.is_weighted())
        for (int64_t row = 0; row < count / job.n; ++row)
            quantizer.quantize_weighted(weights + row * job.n, job.importance, job.n / job.info.block,
                                        out + row * row_bytes);
    else quantizer.quantize(weights, n_blocks, out);
    if (job.search == Search::best)
        job.functions.improve(quantizer, weights, job.is_weighted() ? job.importance : nullptr, job.n, n_blocks, out);
}

// Quantizes some weights if all are finite. Returns the number of the first that is not, or `count`.
static int64_t quantize_if_finite(const Job &job, const float *weights, int64_t count, std::byte *out) {
    if (job.looks_while_quantizing() && job.quantizer().quantize_any(weights, count / job.info.block, out)) return count;
    const int64_t finite = job.functions.find_non_finite(weights, count);
    if (finite == count) quantize_piece(job, weights, count, out);
    return finite;
}

// The first of something, found by many threads.
static void keep_smallest(std::atomic<int64_t> &smallest, int64_t found) {
    for (int64_t old = smallest; found < old && !smallest.compare_exchange_weak(old, found);) {
    }
}

// Quantizes the weights from `first` to `end` in pieces, as far as they are finite. Returns how far that is.
static int64_t quantize_chunk(const Job &job, int64_t first, int64_t end, std::atomic<int64_t> &first_bad_block) {
    const int64_t piece = job.whole_rows(PIECE);
    std::vector<float> buffer(job.source == Type::F32 ? 0 : piece);
    for (; first < end; first += piece) {
        const int64_t count = std::min(piece, end - first), block = first / job.info.block;
        std::byte *out = static_cast<std::byte *>(job.out) + block * job.info.bytes;
        const int64_t finite = quantize_if_finite(job, as_floats(job, first, count, buffer.data()), count, out);
        if (finite < count) return first + finite;
        const int64_t n_blocks = count / job.info.block, bad = find_not_finite(job.info.type, out, n_blocks);
        if (bad < n_blocks) keep_smallest(first_bad_block, block + bad);
    }
    return end;
}

static void check(const Job &job) {
    check_row(job.info, job.n);
    if (job.source > Type::BF16) throw std::invalid_argument("only F32, F16 and BF16 rows can be quantized");
    if (!job.importance && !job.quantizer().quantize)
        throw std::invalid_argument(std::string(job.info.name) +
                                    " needs an importance matrix: without it, nothing sensible remains");
    if (job.search == Search::best && !job.quantizer().format)
        throw std::invalid_argument("no better search for type " + std::string(job.info.name));
    check_grid(job.info);
}

bool has_better_search(Type type) { return table(Isa::scalar).types[static_cast<size_t>(type)]->format != nullptr; }

std::optional<int64_t> quantize(Type type, Type source, const void *x, int64_t rows, int64_t n, void *out, int threads,
                                Isa isa, const float *importance, Search search) {
    const Job job{table(isa), type_info(type), source, x, n, out, importance, search};
    check(job);
    const int64_t n_weights = rows * n, n_blocks = n_weights / job.info.block;
    std::atomic<int64_t> first_bad{n_weights}, first_bad_block{n_blocks};
    for_each_chunk(n_weights, job.whole_rows(CHUNK), threads, [&](int64_t first, int64_t end) {
        const int64_t reached = quantize_chunk(job, first, end, first_bad_block);
        if (reached < end) keep_smallest(first_bad, reached);
        return reached == end;
    });

    if (first_bad < n_weights) {
        float buffer;
        throw NonFiniteError(first_bad / n, first_bad % n, *as_floats(job, first_bad, 1, &buffer));
    }
    if (first_bad_block == n_blocks) return std::nullopt;
    return first_bad_block;
}

// ---- dequantize ------------------------------------------------------------------------------

void dequantize(Type type, const void *data, int64_t rows, int64_t n, float *out, int threads, Isa isa) {
    const TypeInfo &info = type_info(type);
    check_row(info, n);
    check_grid(info);
    const QuantizerTable &functions = table(isa);
    for_each_chunk(rows * n, CHUNK, threads, [&](int64_t first, int64_t end) {
        const std::byte *blocks = static_cast<const std::byte *>(data) + first / info.block * info.bytes;
        functions.types[static_cast<size_t>(type)]->dequantize(blocks, (end - first) / info.block, out + first);
        return true;
    });
}

} // namespace phi
