// Products with weights that are floats: F32, F16 and BF16, and whatever is made floats first.
//
// A dot product is a vector of sums that grows step by step along the columns and is added up at its end. That order
// is all that its value depends on: it is the same for a token alone and in a batch.
#pragma once

#include "../quantize/quantizers.hpp"
#include "kernels.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

// How many rows and tokens are worked on together: as many as their sums and the operands have registers.
#if defined(PHI_ISA_avx512)
inline constexpr int tile_rows = 4, tile_tokens = 6;
#elif defined(PHI_ISA_avx2)
inline constexpr int tile_rows = 4, tile_tokens = 3;
#elif defined(PHI_ISA_neon)
inline constexpr int tile_rows = 4, tile_tokens = 4;
#else
inline constexpr int tile_rows = 1, tile_tokens = 1;
#endif

// One step: so many weights of a row meet as many numbers of a vector, which are of type Input.
template <class Weight> struct Step {
    using Input = float;
    static constexpr int size = Lanes::count;
    static Lanes weights(const Weight *p) { return load(p); }
    static Lanes vector(const Input *p) { return load(p); }
    static void copy(const float *x, Input *out) { store(out, load(x)); }
};

#if defined(PHI_ISA_avx512)
// Pairs of neighbours are multiplied and added at once, if both sides are BF16. So vectors are rounded, to 8 bits and
// an exponent of their own for every number: that is finer than the codes that quantized weights meet.
struct Pairs {
    __m512bh v;
};
inline Lanes multiply_add(Pairs a, Pairs b, Lanes c) { return {_mm512_dpbf16_ps(c.v, a.v, b.v)}; }

template <> struct Step<Bfloat16> {
    using Input = Bfloat16;
    static constexpr int size = 2 * Lanes::count;
    static Pairs weights(const Bfloat16 *p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
    static Pairs vector(const Bfloat16 *p) { return weights(p); }
    static void copy(const float *x, Input *out) {
        const __m512bh rounded = _mm512_cvtne2ps_pbh(load(x + Lanes::count).v, load(x).v);
        _mm512_storeu_si512(out, reinterpret_cast<__m512i>(rounded));
    }
};
#endif

template <class Weight> using InputFor = typename Step<Weight>::Input;

// Copies `tokens` vectors as what the weights meet: step by step, those of all tokens one after the other. The last
// step is filled with zeros.
template <int tokens, class Weight> void copy_steps(const float *const *x, int64_t n, InputFor<Weight> *out) {
    constexpr int size = Step<Weight>::size;
    int64_t k = 0;
    for (; k + size <= n; k += size)
        for (int token = 0; token < tokens; ++token, out += size) Step<Weight>::copy(x[token] + k, out);
    if (k == n) return;
    for (int token = 0; token < tokens; ++token, out += size) {
        float last[size] = {};
        for (int64_t i = k; i < n; ++i) last[i - k] = x[token][i];
        Step<Weight>::copy(last, out);
    }
}

// ---- where weights come from -----------------------------------------------------------------

// Pointers to the weights of a row. `buffer` has room for them. Of the room for vectors, half is used where rows cost
// nothing: the sets of a cache fill unevenly, so that it loses lines long before it is full.
template <class Weight> struct InPlace {
    using Element = Weight;
    static constexpr int parts = 2;
    static const Weight *row(const Matrix &matrix, int64_t row, Weight *) {
        return reinterpret_cast<const Weight *>(matrix.data + row * matrix.row_bytes);
    }
};

// Types that have no kernel of their own.
template <const Quantizer &quantizer, int block> struct Dequantized {
    using Element = float;
    static constexpr int parts = 1;
    static const float *row(const Matrix &matrix, int64_t row, float *buffer) {
        quantizer.dequantize(matrix.data + row * matrix.row_bytes, matrix.cols / block, buffer);
        return buffer;
    }
};

// Pointers to tile_rows rows; past the end the last one is taken again.
template <class Source, class Weight>
void find_rows(const Matrix &matrix, int64_t first, int64_t last, Weight *buffer, const Weight **rows) {
    for (int i = 0; i < tile_rows; ++i)
        rows[i] = Source::row(matrix, first + i < last ? first + i : last - 1, buffer + i * matrix.cols);
}

// ---- tiles -----------------------------------------------------------------------------------

// What comes from memory next: a tile asks for it bit by bit, while the processor works on something else.
struct Ahead {
    const void *from;
    int64_t bytes; // while the tile takes all its steps
};

// The sums over the lanes of rows × tokens vectors, each in the order of sum().
#if defined(PHI_ISA_avx512)
// Four vectors and four others at once: halves are added, then quarters, until neighbours are left.
inline __m256 sum_each(const Lanes *a, const Lanes *b) {
    __m512 eight[4]; // a's and b's
    for (int i = 0; i < 4; ++i)
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i].v, b[i].v, 0x44),
                                 _mm512_shuffle_f32x4(a[i].v, b[i].v, 0xee));
    __m512 four[2]; // a's and b's of a row, and those of the next
    for (int i = 0; i < 2; ++i)
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[2 * i], eight[2 * i + 1], 0x88),
                                _mm512_shuffle_f32x4(eight[2 * i], eight[2 * i + 1], 0xdd));
    const __m512 two = _mm512_add_ps(_mm512_unpacklo_ps(four[0], four[1]), _mm512_unpackhi_ps(four[0], four[1]));
    const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0x4e)); // rows 0 and 2 of a, of b, 1 and 3 of a, of b
    const __m512i order = _mm512_castsi256_si512(_mm256_setr_epi32(0, 8, 1, 9, 4, 12, 5, 13));
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, one));
}
#elif defined(PHI_ISA_avx2)
// Four vectors at once.
inline __m128 sum_each(const Lanes *vectors) {
    __m128 four[4];
    for (int i = 0; i < 4; ++i)
        four[i] = _mm_add_ps(_mm256_castps256_ps128(vectors[i].v), _mm256_extractf128_ps(vectors[i].v, 1));
    const __m128 a = _mm_add_ps(_mm_unpacklo_ps(four[0], four[1]), _mm_unpackhi_ps(four[0], four[1]));
    const __m128 b = _mm_add_ps(_mm_unpacklo_ps(four[2], four[3]), _mm_unpackhi_ps(four[2], four[3]));
    return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
}
#endif

template <int rows, int tokens>
[[gnu::always_inline]] inline void sum_each(const Lanes (*sums)[rows], float (*out)[rows]) {
#if defined(PHI_ISA_avx512)
    if constexpr (rows == 4 && tokens % 2 == 0) {
#pragma GCC unroll 8
        for (int token = 0; token < tokens; token += 2)
            _mm256_storeu_ps(out[token], sum_each(sums[token], sums[token + 1]));
        return;
    }
#elif defined(PHI_ISA_avx2)
    if constexpr (rows == 4) {
#pragma GCC unroll 8
        for (int token = 0; token < tokens; ++token) _mm_storeu_ps(out[token], sum_each(sums[token]));
        return;
    }
#endif
    for (int token = 0; token < tokens; ++token)
        for (int row = 0; row < rows; ++row) out[token][row] = sum(sums[token][row]);
}

// rows × tokens dot products of n columns. Vectors are given step by step: those of all tokens, one after the other.
template <int rows, int tokens, class Weight>
[[gnu::always_inline]] inline void float_tile(const Weight *const *weights, const InputFor<Weight> *x, int64_t n,
                                              Ahead ahead, float (*out)[rows]) {
    using Step = Step<Weight>;
    Lanes sums[tokens][rows];
    for (int token = 0; token < tokens; ++token)
        for (int row = 0; row < rows; ++row) sums[token][row] = zero();
    const int64_t whole = n / Step::size * Step::size;
    // A single token works at the speed of the memory and asks often, a tile of several seldom.
    constexpr int64_t columns = tokens > 1 ? 8 * Step::size : Step::size > 16 ? Step::size : 16;
    const char *next = static_cast<const char *>(ahead.from);
    const int64_t bytes = ahead.bytes * columns / n;
    for (int64_t k = 0; k < whole; next += bytes) {
        prefetch_bytes(next, bytes);
        const int64_t pause = whole - k < columns ? whole : k + columns;
        for (; k < pause; k += Step::size, x += tokens * Step::size) {
            decltype(Step::vector(x)) vectors[tokens];
            for (int token = 0; token < tokens; ++token) vectors[token] = Step::vector(x + token * Step::size);
            for (int row = 0; row < rows; ++row) {
                const auto row_weights = Step::weights(weights[row] + k);
                for (int token = 0; token < tokens; ++token)
                    sums[token][row] = multiply_add(row_weights, vectors[token], sums[token][row]);
            }
        }
    }
    sum_each<rows, tokens>(sums, out);
    for (int64_t i = whole; i < n; ++i) // what makes no whole step
        for (int token = 0; token < tokens; ++token)
            for (int row = 0; row < rows; ++row)
                out[token][row] += load_one(weights[row] + i) * load_one(x + token * Step::size + i - whole);
}

// Bytes of scratch in front of the vectors: for a tile's rows, in whole cache lines, so that floats are aligned.
template <class Weight> constexpr int64_t bytes_of_rows(int64_t cols) {
    return (tile_rows * cols * static_cast<int64_t>(sizeof(Weight)) + 63) / 64 * 64;
}
template <class Weight> InputFor<Weight> *behind_rows(void *scratch, int64_t cols) {
    return reinterpret_cast<InputFor<Weight> *>(static_cast<char *>(scratch) + bytes_of_rows<Weight>(cols));
}

// Each token by itself. It works at the speed of the memory, and the hardware does not guess well where several rows
// are read side by side.
template <class Source>
void few_tokens(const Matrix &matrix, int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride,
                void *scratch) {
    using Weight = typename Source::Element;
    auto *buffer = static_cast<Weight *>(scratch);
    auto *vector = behind_rows<Weight>(scratch, matrix.cols);
    for (int token = 0; token < x.tokens; ++token) {
        const float *values = x.values + token * matrix.cols;
        copy_steps<1, Weight>(&values, matrix.cols, vector);
        for (int64_t row = first; row < last; row += tile_rows) {
            const Weight *rows[tile_rows];
            find_rows<Source>(matrix, row, last, buffer, rows);
            const Ahead next_rows{rows[0] + tile_rows * matrix.cols, tile_rows * matrix.row_bytes};
            float results[1][tile_rows];
            float_tile<tile_rows, 1>(rows, vector, matrix.cols, next_rows, results);
            for (int i = 0; i < tile_rows && row + i < last; ++i) out[token * stride + row + i] = results[0][i];
        }
    }
}

// ---- many tokens -----------------------------------------------------------------------------

// Vectors are copied in the order in which tiles need them, as many as stay in the second-level cache while the rows
// pass: a single stream is what the hardware fetches ahead best.
template <class Source> class FloatBatch {
    using Weight = typename Source::Element;
    using Input = InputFor<Weight>;
    static constexpr int step = Step<Weight>::size;

  public:
    FloatBatch(const Matrix &matrix, void *scratch)
        : matrix_(matrix), buffer_(static_cast<Weight *>(scratch)),
          vectors_(behind_rows<Weight>(scratch, matrix.cols)), padded_((matrix.cols + step - 1) / step * step) {
        const int64_t tiles = float_vectors(matrix.cols) / Source::parts / (padded_ * tile_tokens * sizeof(Input));
        at_once_ = static_cast<int>(tiles > 1 ? tiles : 1) * tile_tokens;
    }

    void multiply(int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride) {
        for (int begin = 0; begin < x.tokens; begin += at_once_) {
            const int tokens = x.tokens - begin < at_once_ ? x.tokens - begin : at_once_;
            copy_vectors(x.values + begin * matrix_.cols, tokens);
            for (int64_t row = first; row < last; row += tile_rows)
                multiply_rows(row, row + tile_rows < last ? row + tile_rows : last, tokens, out + begin * stride, stride);
        }
    }

  private:
    Input *tile_vectors(int token) const { return vectors_ + token * padded_; }

    // The last one is repeated to make up whole tiles.
    void copy_vectors(const float *x, int tokens) {
        for (int token = 0; token < tokens; token += tile_tokens) {
            const float *of_tile[tile_tokens];
            for (int i = 0; i < tile_tokens; ++i)
                of_tile[i] = x + (token + i < tokens ? token + i : tokens - 1) * matrix_.cols;
            copy_steps<tile_tokens, Weight>(of_tile, matrix_.cols, tile_vectors(token));
        }
    }

    // Not inlined: GCC needs all registers for the tile.
    [[gnu::noinline]] void multiply_rows(int64_t first, int64_t last, int tokens, float *out, ptrdiff_t stride) {
        const Weight *rows[tile_rows];
        find_rows<Source>(matrix_, first, last, buffer_, rows);
        const int64_t bytes = tile_rows * matrix_.row_bytes;
        const auto *next_rows = matrix_.data + first * matrix_.row_bytes + bytes;
        for (int token = 0; token < tokens; token += tile_tokens) {
            // Of the rows that come next, a part with every tile.
            const int64_t from = bytes * token / tokens, to = bytes * (token + tile_tokens) / tokens;
            float results[tile_tokens][tile_rows];
            float_tile<tile_rows, tile_tokens>(rows, tile_vectors(token), matrix_.cols, {next_rows + from, to - from},
                                               results);
            for (int i = 0; i < tile_tokens && token + i < tokens; ++i)
                for (int64_t row = first; row < last; ++row) out[(token + i) * stride + row] = results[i][row - first];
        }
    }

    const Matrix &matrix_;
    Weight *buffer_;  // (tile_rows, cols), where the weights are not floats
    Input *vectors_;  // (tiles, steps, tile_tokens, step)
    int64_t padded_;  // columns, in whole steps
    int at_once_;     // tokens, in whole tiles
};

template <class Source>
void float_matmul(const Matrix &matrix, int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride,
                  void *scratch) {
    if (x.tokens < tile_tokens || tile_tokens == 1)
        few_tokens<Source>(matrix, first, last, x, out, stride, scratch);
    else
        FloatBatch<Source>(matrix, scratch).multiply(first, last, x, out, stride);
}

} // namespace phi::PHI_ISA
