// The forward pass of a Phi: token ids in, logits out, keys and values kept from call to call.
#pragma once

#include "../isa.hpp"
#include "../thread_pool.hpp"
#include "config.hpp"
#include "kv_cache.hpp"
#include "rope.hpp"
#include "router.hpp"
#include "vectors.hpp"
#include "weights.hpp"

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace phi {

// What a tensor's matrices, one or those of all experts, were multiplied with.
struct TensorSquares {
    std::vector<double> sums;    // (matrices, columns), of the squares
    std::vector<int64_t> tokens; // (matrices)
};

using InputSquares = std::map<std::string, TensorSquares>; // by the tensor's name in a GGUF file

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

    // As forward, where the layers before config.first_layer are computed elsewhere: appends the hidden states
    // (n, hidden) that they made of n tokens, and writes the logits after the last `n_logits` of them.
    // `text_length`: of the whole text that these are part of; it chooses LongRoPE's factors, as it did for the
    // layers before. The caller empties the cache where they change.
    void forward_hidden(std::span<const float> hidden, int64_t n_logits, int64_t text_length, float *logits,
                        const std::function<void()> &between_batches = {});

    // Forgets the text, reads these tokens, and returns for every matrix but the embedding the sums over the
    // tokens of the squares of what it is multiplied with. Throws as forward.
    InputSquares input_squares(std::span<const int32_t> tokens, const std::function<void()> &between_batches = {});

    // Forgets every position from `length` on. Throws std::out_of_range beyond position().
    void truncate(int64_t length);

    int64_t position() const { return static_cast<int64_t>(text_.size()); }
    int64_t n_ctx() const { return n_ctx_; }
    size_t cache_bytes() const { return cache_.bytes(); } // of the keys and values of a full context
    size_t work_bytes() const;                            // of all that lies between two matrices
    const Config &config() const { return config_; }

  private:
    // Tokens that go through the layers together.
    struct Batch {
        const int32_t *tokens; // or, where the first layers are computed elsewhere,
        const float *hidden;   // (size, hidden)
        int size;
        int64_t position; // of the first
    };

    void check_tokens(std::span<const int32_t> tokens) const;
    void extend(const float *hidden, int64_t n_logits, float *logits, const std::function<void()> &between_batches);
    void begin_batch(const Batch &batch);
    void run_batch(const Batch &batch, int n_logits, float *logits);

    // Some of a phase's vectors meet a matrix.
    struct Product {
        const Linear *linear;
        int first, tokens; // the vectors
        float *out;        // (tokens, stride)
        ptrdiff_t stride;
    };

    // Phases: each is called by all threads, shares the work among them and ends at a barrier.
    void layer_phases(int64_t index, const Batch &batch, void *scratch);
    void norm(const Norm &norm, const Batch &batch);
    void add_and_norm(const Norm &norm, const Batch &batch);
    void project_qkv(const LayerWeights &layer, const Batch &batch, void *scratch);
    void rotate_and_store(int64_t layer, const Batch &batch);
    void attend(int64_t layer, const Batch &batch, void *scratch);
    void code_attended(const Linear &next, const Batch &batch);
    void feed_forward(const FeedForwardWeights &weights, const Batch &batch, void *scratch);
    void mixture(const LayerWeights &layer, const Batch &batch, void *scratch);
    void route(const LayerWeights &layer, const Batch &batch);
    void hand_out(const LayerWeights &layer, const Batch &batch);
    void activate(const Linear &next, int vectors);
    void collect(const Batch &batch);
    void apply(std::span<const Product> products, Vectors &x, void *scratch);
    void add_squares(const Product &product, Vectors &x);
    void multiply(std::span<const Product> products, Vectors &x, void *scratch);

    // Parts of a phase.
    void normalize(int token, const Norm &norm);
    void rotate_and_store(int64_t layer, int64_t position, int token, int64_t kv_head);
    void multiply(const Product &product, int64_t first_row, int64_t last_row, Vectors &x, void *scratch);
    void plan_products(const LayerWeights &layer);
    size_t grain(size_t items) const;

    Config config_;
    int64_t n_ctx_, max_batch_;
    Weights weights_;
    const Kernels &kernels_;
    ThreadPool pool_;
    KVCache cache_;
    Rope rope_;

    std::vector<int32_t> text_; // all tokens; zeros where their hidden states came
    int64_t n_cached_ = 0;      // so many of them have keys and values in the cache
    bool uses_long_factors_ = false;

    Vectors residual_, normed_, attended_;
    Vectors gated_;                               // one for each pass of a token through a feed-forward part
    std::vector<float> qkv_, branch_, up_;        // (tokens or passes, rows of the matrices that make them)
    std::vector<float> cosines_, sines_;          // (tokens, rotated pairs)
    std::vector<ZeroedArray<std::byte>> scratch_; // one for each thread

    // Of a layer with experts. Tokens lie in slots, a copy for each pick, those of an expert side by side.
    std::vector<float> router_scores_;                 // (tokens, experts)
    std::vector<Pick> picks_;                          // (tokens, picks)
    std::vector<int> first_slot_;                      // (experts + 1)
    Vectors handed_out_;                               // (slots, hidden)
    std::vector<float> answers_;                       // (slots, hidden)
    std::vector<Product> up_products_, down_products_; // of the experts that were picked

    // Of each matrix's input, by where its weights are; empty unless wanted.
    struct MatrixSquares {
        std::vector<double> sums; // (columns)
        int64_t tokens = 0;
    };
    std::map<const uint8_t *, MatrixSquares> squares_;
};

} // namespace phi
