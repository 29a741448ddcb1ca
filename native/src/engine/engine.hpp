// The forward pass of a Phi: token ids in, logits out, keys and values kept from call to call.
#pragma once

#include "../isa.hpp"
#include "../thread_pool.hpp"
#include "config.hpp"
#include "rope.hpp"
#include "router.hpp"
#include "sequence.hpp"
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

// What a sequence reads next.
struct Reading {
    int64_t sequence;
    std::span<const int32_t> tokens;
};

// Reads and continues several texts, its sequences, each with n_ctx positions of its own. Tokens of all of them go
// through the layers together, so that the weights are read once.
//
// Logits depend on the tokens of their own text alone: not on the number of threads, nor on how the text was cut
// into calls, nor on what other sequences read.
class Engine {
  public:
    // The tensors' bytes must outlive the engine. Throws std::invalid_argument where config, tensors and numbers
    // do not fit together.
    Engine(const Config &config, const Tensors &tensors, int64_t n_ctx, int threads,
           Type cache_type = Type::F16, Isa isa = active_isa(), int64_t n_sequences = 1);

    // Appends tokens to the texts and writes the logits after each of them (n, vocabulary), or after the last of
    // each reading, in the order of the readings.
    // When a text gets longer or shorter than LongRoPE's switch, all of it is computed anew, because keys and
    // values of the other factors are of no use.
    // `may_stop` is called between the batches of a long text and the layers of a long batch; what it throws leaves
    // the texts as they were before the call.
    // Throws std::invalid_argument without readings, without tokens and where a sequence is named twice,
    // std::out_of_range for a sequence that does not exist, an id outside the vocabulary or a text longer than n_ctx.
    void forward(std::span<const Reading> readings, bool all_logits, float *logits,
                 const std::function<void()> &may_stop = {});

    // The same for the first sequence.
    void forward(std::span<const int32_t> tokens, bool all_logits, float *logits,
                 const std::function<void()> &may_stop = {});

    // As forward, where the layers before config.first_layer are computed elsewhere: appends the hidden states
    // (n, hidden) that they made of n tokens, and writes the logits after the last `n_logits` of them.
    // `text_length`: of the whole text that these are part of; it chooses LongRoPE's factors, as it did for the
    // layers before. The caller empties the cache where they change. The first sequence's only.
    void forward_hidden(std::span<const float> hidden, int64_t n_logits, int64_t text_length, float *logits,
                        const std::function<void()> &may_stop = {});

    // Forgets the first sequence's text, reads these tokens, and returns for every matrix but the embedding the sums
    // over the tokens of the squares of what it is multiplied with. Throws as forward.
    InputSquares input_squares(std::span<const int32_t> tokens, const std::function<void()> &may_stop = {});

    // Forgets every position of a sequence from `length` on. Throws std::out_of_range beyond position(sequence).
    void truncate(int64_t length, int64_t sequence = 0);

    // A sequence forgets its text and becomes the first `length` positions of another: nothing is computed again.
    // Throws std::out_of_range where the other is shorter.
    void copy(int64_t source, int64_t target, int64_t length);

    int64_t position(int64_t sequence = 0) const { return sequences_[checked(sequence)].length(); }
    int64_t n_ctx() const { return n_ctx_; }
    int64_t n_sequences() const { return static_cast<int64_t>(sequences_.size()); }
    // Of the keys and values of full contexts, of all sequences.
    size_t cache_bytes() const { return sequences_.size() * sequences_[0].cache().bytes(); }
    size_t work_bytes() const; // of all that lies between two matrices
    const Config &config() const { return config_; }

  private:
    // A sequence whose text has grown: its tokens from `first` on are new.
    struct Growth {
        Sequence *sequence;
        int64_t first;
        int64_t n_logits;    // wanted after the last so many
        const float *hidden; // (new tokens, hidden) where the first layers are computed elsewhere, or null
    };

    // A token that goes through the layers.
    struct Place {
        Sequence *sequence;
        int64_t position;
        const float *hidden; // (hidden), or null
    };

    // Neighbouring tokens of one text, which attend together.
    struct Tile {
        int first, tokens;
    };

    // Tokens that go through the layers together, those of a text side by side.
    struct Batch {
        std::vector<Place> places;
        std::vector<Tile> tiles;
        std::vector<int> wanted; // the tokens that get logits

        int size() const { return static_cast<int>(places.size()); }
    };

    int64_t checked(int64_t sequence) const;
    void check_readings(std::span<const Reading> readings) const;
    void check_tokens(const Reading &reading) const;
    void extend(std::span<const Growth> growths, float *logits, const std::function<void()> &may_stop);
    Batch next_batch(std::span<const Growth> growths) const;
    void add_place(Batch &batch, const Place &place) const;
    void begin_batch(const Batch &batch);
    void run_batch(const Batch &batch, float *logits, const std::function<void()> &may_stop);
    int64_t tile_tokens() const;

    // Some of a phase's vectors meet a matrix.
    struct Product {
        const Linear *linear;
        int first, tokens; // the vectors
        float *out;        // (tokens, stride)
        ptrdiff_t stride;
    };

    // Phases: each is called by all threads, shares the work among them and ends at a barrier.
    void layer_phases(int64_t index, const Batch &batch, void *scratch);
    void output(const Batch &batch, float *logits, void *scratch);
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
    void normalize(int token, const Norm &norm, int to);
    void rotate_and_store(int64_t layer, const Place &place, int token, int64_t kv_head);
    void multiply(const Product &product, int64_t first_row, int64_t last_row, Vectors &x, void *scratch);
    void plan_products(const LayerWeights &layer);
    size_t grain(size_t items) const;

    Config config_;
    int64_t n_ctx_;
    Weights weights_;
    const Kernels &kernels_;
    ThreadPool pool_;
    std::vector<Sequence> sequences_;
    Rope rope_;
    int64_t max_batch_; // tokens

    Vectors residual_, normed_, attended_;
    Vectors gated_;                               // one for each pass of a token through a feed-forward part
    ZeroedArray<float> qkv_, branch_, up_;        // (tokens or passes, rows of the matrices that make them)
    ZeroedArray<float> cosines_, sines_;          // (tokens, rotated pairs)
    std::vector<ZeroedArray<std::byte>> scratch_; // one for each thread

    // Of a layer with experts. Tokens lie in slots, a copy for each pick, those of an expert side by side.
    int64_t max_slots_;                                // none without experts
    ZeroedArray<float> router_scores_;                 // (tokens, experts)
    std::vector<Pick> picks_;                          // (tokens, picks)
    std::vector<int> first_slot_;                      // (experts + 1)
    Vectors handed_out_;                               // (slots, hidden)
    ZeroedArray<float> answers_;                       // (slots, hidden)
    std::vector<Product> up_products_, down_products_; // of the experts that were picked

    // Of each matrix's input, by where its weights are; empty unless wanted.
    struct MatrixSquares {
        std::vector<double> sums; // (columns)
        int64_t tokens = 0;
    };
    std::map<const uint8_t *, MatrixSquares> squares_;
};

} // namespace phi
