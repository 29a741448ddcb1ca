// The forward pass of Phi-3: token ids in, logits out, keys and values kept from call to call.
#pragma once

#include "../isa.hpp"
#include "../thread_pool.hpp"
#include "config.hpp"
#include "kv_cache.hpp"
#include "rope.hpp"
#include "vectors.hpp"
#include "weights.hpp"

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace phi {

using InputSquares = std::map<std::string, std::vector<double>>;

// Logits depend on the tokens alone: not on the number of threads, nor on how the text was cut into calls.
class Engine {
  public:
    // The tensors' bytes must outlive the engine. Throws std::invalid_argument where config, tensors, n_ctx
    // or threads do not fit together.
    Engine(const Config &config, const Tensors &tensors, int64_t n_ctx, int threads,
           Type cache_type = Type::F16, Isa isa = active_isa());

    // Appends tokens to the text and writes the logits after each of them (n, vocabulary), or after the last.
    // When the text gets longer or shorter than LongRoPE's switch, everything is computed anew, because keys
    // and values of the other factors are of no use.
    // `between_batches` is called now and then; what it throws leaves the text as it was before the call.
    // Throws std::invalid_argument without tokens, std::out_of_range for an id outside the vocabulary or a
    // text longer than n_ctx.
    void forward(std::span<const int32_t> tokens, bool all_logits, float *logits,
                 const std::function<void()> &between_batches = {});

    // Forgets the text, reads these tokens, and returns for every matrix but the embedding the sums over the
    // tokens of the squares of what it is multiplied with: {name in a GGUF file: (columns)}. Throws as forward.
    InputSquares input_squares(std::span<const int32_t> tokens, const std::function<void()> &between_batches = {});

    // Forgets every position from `length` on. Throws std::out_of_range beyond position().
    void truncate(int64_t length);

    int64_t position() const { return static_cast<int64_t>(text_.size()); }
    int64_t n_ctx() const { return n_ctx_; }
    size_t cache_bytes() const { return cache_.bytes(); } // of the keys and values of a full context
    const Config &config() const { return config_; }

  private:
    // Tokens that go through the layers together.
    struct Batch {
        const int32_t *tokens;
        int size;
        int64_t position; // of the first
    };

    void check_tokens(std::span<const int32_t> tokens) const;
    void extend(int64_t new_tokens, bool all_logits, float *logits, const std::function<void()> &between_batches);
    void run_batch(const Batch &batch, int n_logits, float *logits);

    // Phases: each is called by all threads, shares the work among them and ends at a barrier. Where a phase
    // makes vectors, `next` is the matrix that they meet, for their coding.
    void layer_phases(int64_t index, const Batch &batch, void *scratch);
    void norm(const float *weight, const Matrix &next, const Batch &batch);
    void add_and_norm(const float *weight, const Matrix &next, const Batch &batch);
    void rotate_and_store(int64_t layer, const Batch &batch);
    void attend(int64_t layer, const Batch &batch, void *scratch);
    void code_attended(const Matrix &next, const Batch &batch);
    void gate(const Matrix &next, const Batch &batch);
    void add_squares(const Matrix &weight, Vectors &x, int tokens);
    void multiply(const Matrix &weight, Vectors &x, int first, int tokens, float *out, void *scratch);

    // Parts of a phase.
    void normalize(int token, const float *weight, const Matrix &next);
    void rotate_and_store(int64_t layer, int64_t position, int token, int64_t kv_head);
    size_t grain(size_t items) const;

    Config config_;
    int64_t n_ctx_, max_batch_;
    Weights weights_;
    const Kernels &kernels_;
    ThreadPool pool_;
    KVCache cache_;
    Rope rope_;

    std::vector<int32_t> text_; // all tokens
    int64_t n_cached_ = 0;      // so many of them have keys and values in the cache
    bool uses_long_factors_ = false;

    Vectors residual_, normed_, attended_, gated_;
    std::vector<float> qkv_, branch_, gate_up_;   // (tokens, rows of the matrix that makes them)
    std::vector<float> cosines_, sines_;          // (tokens, rotated pairs)
    std::vector<ZeroedArray<std::byte>> scratch_; // one for each thread

    std::map<const Matrix *, std::vector<double>> squares_; // of each matrix's input; empty unless wanted
};

} // namespace phi
