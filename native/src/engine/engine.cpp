#include "engine.hpp"

#include "../kernels/table.hpp"

#include <algorithm>
#include <cmath>

namespace phi {

namespace {

constexpr int64_t batch_tokens = 512; // of a long prompt at once: weights are unpacked once for all of them
constexpr int max_threads = 1024;

int64_t checked_n_ctx(const Config &config, int64_t n_ctx) {
    check(config);
    detail::require_between("n_ctx", n_ctx, 1, config.context_length);
    return n_ctx;
}

int checked_threads(int threads) {
    detail::require_between("threads", threads, 1, max_threads);
    return threads;
}

size_t scratch_bytes(const Config &config, const KVCache &cache) {
    const int64_t widest = std::max({config.hidden_size, config.query_size(), config.ffn_size});
    return std::max(matmul_scratch(widest), attention_scratch(cache.format()) * sizeof(float));
}

// An output that shares its numbers with the embedding has no name of its own.
std::map<std::string, const Matrix *> named_matrices(const Weights &weights) {
    std::map<std::string, const Matrix *> named;
    for (size_t i = 0; i < weights.layers.size(); ++i) {
        const std::string prefix = "blk." + std::to_string(i) + ".";
        const LayerWeights &layer = weights.layers[i];
        named[prefix + "attn_qkv.weight"] = &layer.qkv;
        named[prefix + "attn_output.weight"] = &layer.attention_out;
        named[prefix + "ffn_up.weight"] = &layer.gate_up;
        named[prefix + "ffn_down.weight"] = &layer.down;
    }
    if (weights.output.data != weights.embedding.data) named["output.weight"] = &weights.output;
    return named;
}

} // namespace

Engine::Engine(const Config &config, const Tensors &tensors, int64_t n_ctx, int threads, Type cache_type, Isa isa)
    : config_(config), n_ctx_(checked_n_ctx(config, n_ctx)), max_batch_(std::min(n_ctx, batch_tokens)),
      weights_(find_weights(config, tensors)), kernels_(kernels(isa)), pool_(checked_threads(threads)),
      cache_(config, n_ctx, cache_type), rope_(config), residual_(max_batch_, config.hidden_size),
      normed_(max_batch_, config.hidden_size), attended_(max_batch_, config.query_size()),
      gated_(max_batch_, config.ffn_size), qkv_(max_batch_ * config.qkv_size()),
      branch_(max_batch_ * config.hidden_size), gate_up_(max_batch_ * 2 * config.ffn_size),
      cosines_(max_batch_ * rope_.pairs()), sines_(max_batch_ * rope_.pairs()) {
    for (int thread = 0; thread < threads; ++thread) scratch_.emplace_back(scratch_bytes(config, cache_));
}

// ---- the text --------------------------------------------------------------------------------

void Engine::check_tokens(std::span<const int32_t> tokens) const {
    detail::require(!tokens.empty(), "forward needs at least one token");
    for (int32_t token : tokens)
        if (token < 0 || token >= config_.vocab_size)
            throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary of " +
                                    std::to_string(config_.vocab_size));
    const int64_t total = position() + static_cast<int64_t>(tokens.size());
    if (total > n_ctx_)
        throw std::out_of_range("the text would have " + std::to_string(total) + " tokens, the context has room for " +
                                std::to_string(n_ctx_));
}

void Engine::forward(std::span<const int32_t> tokens, bool all_logits, float *logits,
                     const std::function<void()> &between_batches) {
    check_tokens(tokens);
    const int64_t before = position();
    try {
        text_.insert(text_.end(), tokens.begin(), tokens.end());
        extend(static_cast<int64_t>(tokens.size()), all_logits, logits, between_batches);
    } catch (...) {
        truncate(before);
        throw;
    }
}

InputSquares Engine::input_squares(std::span<const int32_t> tokens, const std::function<void()> &between_batches) {
    truncate(0);
    const auto matrices = named_matrices(weights_);
    std::vector<float> logits(config_.vocab_size);
    try {
        for (const auto &[name, matrix] : matrices) squares_[matrix].assign(matrix->cols, 0.0);
        forward(tokens, false, logits.data(), between_batches);
    } catch (...) {
        squares_.clear();
        throw;
    }
    InputSquares named;
    for (const auto &[name, matrix] : matrices) named[name] = std::move(squares_[matrix]);
    squares_.clear();
    return named;
}

void Engine::truncate(int64_t length) {
    if (length < 0 || length > position())
        throw std::out_of_range("cannot truncate a text of " + std::to_string(position()) + " tokens to " +
                                std::to_string(length));
    text_.resize(length);
    n_cached_ = std::min(n_cached_, length);
}

// Computes all of the text that is not in the cache; the last `new_tokens` want logits, or only the last one.
void Engine::extend(int64_t new_tokens, bool all_logits, float *logits, const std::function<void()> &between_batches) {
    const int64_t end = position();
    if (rope_.uses_long_factors(end) != uses_long_factors_) {
        uses_long_factors_ = !uses_long_factors_;
        n_cached_ = 0;
    }
    const int64_t first_logits = all_logits ? end - new_tokens : end - 1;
    while (n_cached_ < end) {
        const int size = static_cast<int>(std::min<int64_t>(max_batch_, end - n_cached_));
        const int64_t batch_end = n_cached_ + size;
        const int n_logits = static_cast<int>(std::clamp<int64_t>(batch_end - first_logits, 0, size));
        run_batch({text_.data() + n_cached_, size, n_cached_}, n_logits, logits);
        logits += n_logits * config_.vocab_size;
        n_cached_ = batch_end;
        if (between_batches && n_cached_ < end) between_batches();
    }
}

// ---- one batch through the model -------------------------------------------------------------

// The last `n_logits` tokens of the batch get logits.
void Engine::run_batch(const Batch &batch, int n_logits, float *logits) {
    const Matrix &table = weights_.embedding;
    const int64_t pairs = rope_.pairs();
    for (int token = 0; token < batch.size; ++token) {
        const uint8_t *row = table.data + batch.tokens[token] * table.row_bytes;
        dequantize(table.type, row, 1, table.cols, residual_.row(token), 1);
        rope_.angles(batch.position + token, uses_long_factors_, &cosines_[token * pairs], &sines_[token * pairs]);
    }
    pool_.run([&](int thread) {
        void *scratch = scratch_[thread].data();
        norm(weights_.layers[0].attention_norm, weights_.layers[0].qkv, batch);
        for (int64_t layer = 0; layer < config_.n_layers; ++layer) layer_phases(layer, batch, scratch);
        if (n_logits == 0 && squares_.empty()) return;
        add_and_norm(weights_.output_norm, weights_.output, batch);
        add_squares(weights_.output, normed_, batch.size);
        if (n_logits > 0) multiply(weights_.output, normed_, batch.size - n_logits, n_logits, logits, scratch);
    });
}

// residual += attention(norm(residual)), then residual += mlp(norm(residual)). What a branch adds waits in
// branch_ until the norm that follows.
void Engine::layer_phases(int64_t index, const Batch &batch, void *scratch) {
    const LayerWeights &layer = weights_.layers[index];
    if (index > 0) add_and_norm(layer.attention_norm, layer.qkv, batch);
    add_squares(layer.qkv, normed_, batch.size);
    multiply(layer.qkv, normed_, 0, batch.size, qkv_.data(), scratch);
    rotate_and_store(index, batch);
    attend(index, batch, scratch);
    code_attended(layer.attention_out, batch);
    add_squares(layer.attention_out, attended_, batch.size);
    multiply(layer.attention_out, attended_, 0, batch.size, branch_.data(), scratch);
    add_and_norm(layer.ffn_norm, layer.gate_up, batch);
    add_squares(layer.gate_up, normed_, batch.size);
    multiply(layer.gate_up, normed_, 0, batch.size, gate_up_.data(), scratch);
    gate(layer.down, batch);
    add_squares(layer.down, gated_, batch.size);
    multiply(layer.down, gated_, 0, batch.size, branch_.data(), scratch);
}

// Some parts for each thread, so that none waits long for another.
size_t Engine::grain(size_t items) const { return std::max<size_t>(1, items / (8 * pool_.size())); }

void Engine::normalize(int token, const float *weight, const Matrix &next) {
    const int64_t hidden = config_.hidden_size;
    kernels_.rms_norm(residual_.row(token), weight, static_cast<int>(hidden), static_cast<float>(config_.norm_eps),
                      normed_.row(token));
    normed_.code(kernels_, coding_for(next.type), token, 0, hidden);
}

void Engine::norm(const float *weight, const Matrix &next, const Batch &batch) {
    pool_.for_each(batch.size, grain(batch.size), [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) normalize(static_cast<int>(token), weight, next);
    });
}

void Engine::add_and_norm(const float *weight, const Matrix &next, const Batch &batch) {
    const int hidden = static_cast<int>(config_.hidden_size);
    pool_.for_each(batch.size, grain(batch.size), [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) {
            kernels_.add(residual_.row(token), &branch_[token * hidden], hidden);
            normalize(static_cast<int>(token), weight, next);
        }
    });
}

// One key and value head of one token, with the query heads that share them.
void Engine::rotate_and_store(int64_t layer, int64_t position, int token, int64_t kv_head) {
    const int head_size = static_cast<int>(config_.head_size), half = static_cast<int>(rope_.pairs());
    const int64_t group = config_.group_size();
    const float *cosine = &cosines_[token * half], *sine = &sines_[token * half];
    const float query_scale = 1.0f / std::sqrt(static_cast<float>(head_size));

    float *query = &qkv_[token * config_.qkv_size()] + kv_head * group * head_size;
    for (int64_t member = 0; member < group; ++member) kernels_.rotate(query + member * head_size, cosine, sine, half);
    for (int64_t i = 0; i < group * head_size; ++i) query[i] *= query_scale;

    float *key = &qkv_[token * config_.qkv_size()] + config_.query_size() + kv_head * head_size;
    const float *value = key + config_.kv_size();
    kernels_.rotate(key, cosine, sine, half);
    const CacheFormat &format = cache_.format();
    kernels_.store_key(format, key, cache_.keys(layer, kv_head) + position / key_block * format.key_block_bytes,
                       static_cast<int>(position % key_block));
    kernels_.store_value(format, value, cache_.values(layer, kv_head) + position * format.row_bytes);
}

void Engine::rotate_and_store(int64_t layer, const Batch &batch) {
    const size_t heads = config_.n_kv_heads, items = batch.size * heads;
    pool_.for_each(items, grain(items), [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const int token = static_cast<int>(item / heads);
            rotate_and_store(layer, batch.position + token, token, item % heads);
        }
    });
}

// A tile has as many neighbouring tokens as make tile_queries queries; a group that is larger than that is
// cut into several tiles.
void Engine::attend(int64_t layer, const Batch &batch, void *scratch) {
    const int64_t group = config_.group_size(), head_size = config_.head_size;
    const int64_t members = std::min<int64_t>(group, tile_queries), parts = (group + members - 1) / members;
    const int64_t tokens = tile_queries / members, rows = (batch.size + tokens - 1) / tokens;
    const size_t items = config_.n_kv_heads * parts * rows;
    pool_.for_each(items, 1, [&](size_t item, size_t) {
        const int64_t row = item % rows, part = item / rows % parts, kv_head = item / rows / parts;
        const int64_t token = row * tokens, head = kv_head * group + part * members;
        AttentionTile tile{};
        tile.queries = &qkv_[token * config_.qkv_size() + head * head_size];
        tile.out = attended_.row(token) + head * head_size;
        tile.query_stride = config_.qkv_size();
        tile.out_stride = config_.query_size();
        tile.tokens = static_cast<int>(std::min(tokens, batch.size - token));
        tile.members = static_cast<int>(std::min(members, group - part * members));
        tile.position = batch.position + token;
        tile.window = config_.sliding_window > 0 ? config_.sliding_window : n_ctx_;
        tile.format = cache_.format();
        tile.keys = cache_.keys(layer, kv_head);
        tile.values = cache_.values(layer, kv_head);
        tile.scratch = static_cast<float *>(scratch);
        kernels_.attend(tile);
    });
}

// The two phases below share the columns of the tokens in steps of 256, which all codings can be cut at: one
// token alone keeps all threads busy.
void Engine::code_attended(const Matrix &next, const Batch &batch) {
    const Coding coding = coding_for(next.type);
    if (coding == Coding::none) return;
    const int64_t cols = attended_.cols(), steps = (cols + 255) / 256;
    const size_t items = batch.size * steps;
    pool_.for_each(items, grain(items), [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const int64_t start = item % steps * 256;
            attended_.code(kernels_, coding, item / steps, start, std::min(start + 256, cols));
        }
    });
}

void Engine::gate(const Matrix &next, const Batch &batch) {
    const Coding coding = coding_for(next.type);
    const int64_t cols = config_.ffn_size, steps = (cols + 255) / 256;
    const size_t items = batch.size * steps;
    pool_.for_each(items, grain(items), [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const int64_t token = item / steps, start = item % steps * 256, stop = std::min(start + 256, cols);
            const float *gates = &gate_up_[token * 2 * cols + start];
            kernels_.swiglu(gates, gates + cols, static_cast<int>(stop - start), gated_.row(token) + start);
            gated_.code(kernels_, coding, token, start, stop);
        }
    });
}

// Does nothing unless the sums are wanted. All tokens of a column are added up by one thread, in order.
void Engine::add_squares(const Matrix &weight, Vectors &x, int tokens) {
    const auto found = squares_.find(&weight);
    if (found == squares_.end()) return;
    double *sums = found->second.data();
    pool_.for_each(weight.cols, 256, [&](size_t begin, size_t end) {
        for (int token = 0; token < tokens; ++token) {
            const float *row = x.row(token);
            for (size_t i = begin; i < end; ++i) sums[i] += static_cast<double>(row[i]) * row[i];
        }
    });
}

void Engine::multiply(const Matrix &weight, Vectors &x, int first, int tokens, float *out, void *scratch) {
    const Activations activations = x.activations(coding_for(weight.type), first, tokens);
    const auto matmul = kernels_.matmul[static_cast<int>(weight.type)];
    const size_t panels = (weight.rows + panel_rows - 1) / panel_rows;
    pool_.for_each(panels, grain(panels), [&](size_t begin, size_t end) {
        const int64_t last = std::min<int64_t>(end * panel_rows, weight.rows);
        matmul(weight, begin * panel_rows, last, activations, out, weight.rows, scratch);
    });
}

} // namespace phi
