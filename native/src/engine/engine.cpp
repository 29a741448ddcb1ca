#include "engine.hpp"

#include "../kernels/table.hpp"

#include <algorithm>
#include <cmath>

namespace phi {

namespace {

constexpr int64_t batch_tokens = 512; // of a long prompt at once: weights are unpacked once for all of them
constexpr int long_batch = 32;        // tokens, from which on a batch can be stopped between two layers
constexpr int max_threads = 1024, max_sequences = 1024;

int64_t checked_n_ctx(const Config &config, int64_t n_ctx) {
    check(config);
    detail::require_between("n_ctx", n_ctx, 1, config.context_length);
    return n_ctx;
}

int checked_threads(int threads) {
    detail::require_between("threads", threads, 1, max_threads);
    return threads;
}

std::vector<Sequence> empty_sequences(const Config &config, int64_t n_ctx, Type cache_type, int64_t n) {
    detail::require_between("n_sequences", n, 1, max_sequences);
    std::vector<Sequence> sequences;
    for (int64_t i = 0; i < n; ++i) sequences.emplace_back(KVCache(config, n_ctx, cache_type));
    return sequences;
}

size_t scratch_bytes(const Config &config, const CacheFormat &format) {
    const int64_t widest = std::max({config.hidden_size, config.query_size(), config.ffn_size});
    return std::max(matmul_scratch(widest), attention_scratch(format) * sizeof(float));
}

size_t panels_of(const Matrix &weight) { return (weight.rows + panel_rows - 1) / panel_rows; }

} // namespace

Engine::Engine(const Config &config, const Tensors &tensors, int64_t n_ctx, int threads, Type cache_type, Isa isa,
               int64_t n_sequences)
    : config_(config), n_ctx_(checked_n_ctx(config, n_ctx)), weights_(find_weights(config, tensors)),
      kernels_(kernels(isa)), pool_(checked_threads(threads)),
      sequences_(empty_sequences(config, n_ctx, cache_type, n_sequences)), rope_(config),
      max_batch_(std::min(n_ctx * n_sequences, batch_tokens)), residual_(max_batch_, config.hidden_size),
      normed_(max_batch_, config.hidden_size), attended_(max_batch_, config.query_size()),
      gated_(max_batch_ * config.feed_forward_passes(), config.ffn_size), qkv_(max_batch_ * config.qkv_size()),
      branch_(max_batch_ * config.hidden_size), up_(max_batch_ * config.feed_forward_passes() * config.up_size()),
      cosines_(max_batch_ * rope_.pairs()), sines_(max_batch_ * rope_.pairs()),
      max_slots_(config.has_experts() ? max_batch_ * config.n_experts_used : 0),
      router_scores_(config.has_experts() ? max_batch_ * config.n_experts : 0), picks_(max_slots_),
      handed_out_(max_slots_, config.hidden_size), answers_(max_slots_ * config.hidden_size) {
    for (int thread = 0; thread < threads; ++thread)
        scratch_.emplace_back(scratch_bytes(config, sequences_[0].cache().format()));
    if (!config.has_experts()) return;
    first_slot_.resize(config.n_experts + 1);
    up_products_.reserve(2 * config.n_experts);
    down_products_.reserve(config.n_experts);
}

size_t Engine::work_bytes() const {
    size_t bytes = picks_.size() * sizeof(Pick);
    for (const Vectors *vectors : {&residual_, &normed_, &attended_, &gated_, &handed_out_}) bytes += vectors->bytes();
    for (const auto *floats : {&qkv_, &branch_, &up_, &cosines_, &sines_, &router_scores_, &answers_})
        bytes += floats->bytes();
    for (const auto &scratch : scratch_) bytes += scratch.bytes();
    return bytes;
}

// ---- the texts -------------------------------------------------------------------------------

int64_t Engine::checked(int64_t sequence) const {
    if (sequence < 0 || sequence >= n_sequences())
        throw std::out_of_range("sequence " + std::to_string(sequence) + " does not exist: there are 0 to " +
                                std::to_string(n_sequences() - 1));
    return sequence;
}

void Engine::check_readings(std::span<const Reading> readings) const {
    detail::require(config_.first_layer == 0, "this engine begins behind the embedding and takes hidden states");
    detail::require(!readings.empty(), "forward needs at least one sequence");
    std::vector<bool> reads(sequences_.size());
    for (const Reading &reading : readings) {
        check_tokens(reading);
        detail::require(!reads[reading.sequence], "sequence " + std::to_string(reading.sequence) + " is named twice");
        reads[reading.sequence] = true;
    }
}

void Engine::check_tokens(const Reading &reading) const {
    detail::require(!reading.tokens.empty(), "forward needs at least one token");
    for (int32_t token : reading.tokens)
        if (token < 0 || token >= config_.vocab_size)
            throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary of " +
                                    std::to_string(config_.vocab_size));
    const int64_t total = position(reading.sequence) + static_cast<int64_t>(reading.tokens.size());
    if (total > n_ctx_)
        throw std::out_of_range("the text would have " + std::to_string(total) + " tokens, the context has room for " +
                                std::to_string(n_ctx_));
}

void Engine::forward(std::span<const int32_t> tokens, bool all_logits, float *logits,
                     const std::function<void()> &may_stop) {
    const Reading reading{0, tokens};
    forward({&reading, 1}, all_logits, logits, may_stop);
}

void Engine::forward(std::span<const Reading> readings, bool all_logits, float *logits,
                     const std::function<void()> &may_stop) {
    check_readings(readings);
    std::vector<Growth> growths;
    for (const auto &[number, tokens] : readings) {
        Sequence &sequence = sequences_[number];
        growths.push_back({&sequence, sequence.length(), all_logits ? static_cast<int64_t>(tokens.size()) : 1, nullptr});
    }
    try {
        for (const auto &[number, tokens] : readings) {
            sequences_[number].append(tokens);
            sequences_[number].choose_factors(rope_.uses_long_factors(position(number)));
        }
        extend(growths, logits, may_stop);
    } catch (...) {
        for (const Growth &growth : growths) growth.sequence->truncate(growth.first);
        throw;
    }
}

void Engine::forward_hidden(std::span<const float> hidden, int64_t n_logits, int64_t text_length, float *logits,
                            const std::function<void()> &may_stop) {
    using namespace detail;
    const int64_t before = position(), n = static_cast<int64_t>(hidden.size()) / config_.hidden_size;
    require(config_.first_layer > 0, "this engine begins with the embedding and takes tokens");
    require(n > 0 && n * config_.hidden_size == static_cast<int64_t>(hidden.size()),
            "hidden states must be one or more rows of " + std::to_string(config_.hidden_size));
    require_between("n_logits", n_logits, 0, n);
    require_between("text_length", text_length, before + n, n_ctx_);
    Sequence &sequence = sequences_[0];
    const bool use_long = rope_.uses_long_factors(text_length);
    require(before == 0 || use_long == sequence.uses_long_factors(),
            "the keys in the cache were rotated by LongRoPE's other factors: truncate to 0 first");
    const Growth growth{&sequence, before, n_logits, hidden.data()};
    try {
        sequence.append(std::vector<int32_t>(n)); // tokens that nobody knows here
        sequence.choose_factors(use_long);
        extend({&growth, 1}, logits, may_stop);
    } catch (...) {
        sequence.truncate(before);
        throw;
    }
}

InputSquares Engine::input_squares(std::span<const int32_t> tokens, const std::function<void()> &may_stop) {
    truncate(0);
    std::vector<float> logits(config_.vocab_size);
    InputSquares named;
    try {
        for (const auto &[name, matrices] : weights_.multiplied)
            for (const Matrix &matrix : matrices) squares_[matrix.data].sums.resize(matrix.cols);
        forward(tokens, false, logits.data(), may_stop);
        for (const auto &[name, matrices] : weights_.multiplied)
            for (const Matrix &matrix : matrices) {
                const MatrixSquares &squares = squares_.at(matrix.data);
                named[name].sums.insert(named[name].sums.end(), squares.sums.begin(), squares.sums.end());
                named[name].tokens.push_back(squares.tokens);
            }
    } catch (...) {
        squares_.clear();
        throw;
    }
    squares_.clear();
    return named;
}

void Engine::truncate(int64_t length, int64_t sequence) { sequences_[checked(sequence)].truncate(length); }

void Engine::copy(int64_t source, int64_t target, int64_t length) {
    const Sequence &from = sequences_[checked(source)];
    Sequence &to = sequences_[checked(target)];
    if (length < 0 || length > from.length())
        throw std::out_of_range("cannot copy " + std::to_string(length) + " tokens of a text of " +
                                std::to_string(from.length()));
    if (source == target)
        to.truncate(length);
    else
        to.copy(from, length);
}

// Computes all of the texts that is not in the caches.
void Engine::extend(std::span<const Growth> growths, float *logits, const std::function<void()> &may_stop) {
    for (Batch batch = next_batch(growths); batch.size() > 0;) {
        run_batch(batch, logits, may_stop);
        logits += batch.wanted.size() * config_.vocab_size;
        for (const Place &place : batch.places) place.sequence->set_cached(place.position + 1);
        batch = next_batch(growths);
        if (may_stop && batch.size() > 0) may_stop();
    }
}

// What is not in the caches, text by text: all of it, or as much as goes through the layers together.
Engine::Batch Engine::next_batch(std::span<const Growth> growths) const {
    Batch batch;
    for (const auto &[sequence, first, n_logits, hidden] : growths) {
        const int64_t end = sequence->length();
        for (int64_t at = sequence->n_cached(); at < end && batch.size() < max_batch_; ++at) {
            if (at >= end - n_logits) batch.wanted.push_back(batch.size());
            add_place(batch, {sequence, at, hidden == nullptr ? nullptr : hidden + (at - first) * config_.hidden_size});
        }
    }
    return batch;
}

// A tile has as many neighbouring tokens as make tile_queries queries.
void Engine::add_place(Batch &batch, const Place &place) const {
    const bool continues = !batch.places.empty() && batch.places.back().sequence == place.sequence &&
                           batch.tiles.back().tokens < tile_tokens();
    if (!continues) batch.tiles.push_back({batch.size(), 0});
    ++batch.tiles.back().tokens;
    batch.places.push_back(place);
}

int64_t Engine::tile_tokens() const { return tile_queries / std::min<int64_t>(config_.group_size(), tile_queries); }

// ---- one batch through the model -------------------------------------------------------------

// What goes into the first layer, and the angles of the positions.
void Engine::begin_batch(const Batch &batch) {
    const Matrix &table = weights_.embedding;
    const int64_t pairs = rope_.pairs(), n = config_.hidden_size;
    for (int token = 0; token < batch.size(); ++token) {
        const auto &[sequence, position, hidden] = batch.places[token];
        if (hidden != nullptr)
            std::copy_n(hidden, n, residual_.row(token));
        else
            dequantize(table.type, table.data + sequence->token(position) * table.row_bytes, 1, n,
                       residual_.row(token), 1);
        rope_.angles(position, sequence->uses_long_factors(), &cosines_[token * pairs], &sines_[token * pairs]);
    }
}

// All layers are one task of the threads. A long batch takes seconds: there each layer is one, and the caller may stop
// between them. What the layers before have stored for it is not counted as cached, and written again.
void Engine::run_batch(const Batch &batch, float *logits, const std::function<void()> &may_stop) {
    begin_batch(batch);
    const bool is_long = may_stop && batch.size() >= long_batch;
    const int64_t n_layers = config_.own_layers(), step = is_long ? 1 : std::max<int64_t>(n_layers, 1);
    for (int64_t first = 0;; first += step) {
        const int64_t last = std::min(first + step, n_layers);
        pool_.run([&](int thread) {
            void *scratch = scratch_[thread].data();
            if (first == 0 && n_layers > 0) norm(weights_.layers[0].attention_norm, batch);
            for (int64_t layer = first; layer < last; ++layer) layer_phases(layer, batch, scratch);
            if (last == n_layers) output(batch, logits, scratch);
        });
        if (last == n_layers) return;
        may_stop();
    }
}

// The vectors of the tokens that get logits move together, so that the matrix is read once for all of them. Where
// sums of squares are wanted, the matrix is not used, but all of its inputs are looked at.
void Engine::output(const Batch &batch, float *logits, void *scratch) {
    if (!squares_.empty()) {
        add_and_norm(weights_.output_norm, batch);
        return add_squares({&weights_.output, 0, batch.size(), nullptr, 0}, normed_);
    }
    const int n = static_cast<int>(batch.wanted.size()), hidden = static_cast<int>(config_.hidden_size);
    if (n == 0) return;
    pool_.for_each(n, grain(n), [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const int token = batch.wanted[i];
            if (config_.own_layers() > 0) kernels_.add(residual_.row(token), &branch_[token * hidden], hidden);
            normalize(token, weights_.output_norm, static_cast<int>(i));
        }
    });
    const Product product{&weights_.output, 0, n, logits, config_.vocab_size};
    multiply({&product, 1}, normed_, scratch);
}

// residual += attention(norm(residual)), then residual += mlp(norm(residual)). What a branch adds waits in
// branch_ until the norm that follows. A parallel layer has no second norm: there the MLP, too, reads the first.
void Engine::layer_phases(int64_t index, const Batch &batch, void *scratch) {
    const LayerWeights &layer = weights_.layers[index];
    if (index > 0) add_and_norm(layer.attention_norm, batch);
    project_qkv(layer, batch, scratch);
    rotate_and_store(index, batch);
    attend(index, batch, scratch);
    code_attended(layer.attention_out, batch);
    const Product out{&layer.attention_out, 0, batch.size(), branch_.data(), config_.hidden_size};
    apply({&out, 1}, attended_, scratch);
    add_and_norm(layer.ffn_norm, batch);
    config_.has_experts() ? mixture(layer, batch, scratch) : feed_forward(layer.experts[0], batch, scratch);
}

// Some parts for each thread, so that none waits long for another.
size_t Engine::grain(size_t items) const { return std::max<size_t>(1, items / (8 * pool_.size())); }

// ---- norms -----------------------------------------------------------------------------------

// The normed vector of a token, into row `to`.
void Engine::normalize(int token, const Norm &norm, int to) {
    const int hidden = static_cast<int>(config_.hidden_size);
    const float eps = static_cast<float>(config_.norm_eps);
    const float *x = residual_.row(token);
    if (norm.bias != nullptr)
        kernels_.layer_norm(x, norm.weight, norm.bias, hidden, eps, normed_.row(to));
    else
        kernels_.rms_norm(x, norm.weight, hidden, eps, normed_.row(to));
    normed_.code(kernels_, norm.codings, to, 0, hidden);
}

void Engine::norm(const Norm &norm, const Batch &batch) {
    pool_.for_each(batch.size(), grain(batch.size()), [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) normalize(static_cast<int>(token), norm, static_cast<int>(token));
    });
}

// A norm without weights leaves normed_ as it is.
void Engine::add_and_norm(const Norm &norm, const Batch &batch) {
    const int hidden = static_cast<int>(config_.hidden_size);
    pool_.for_each(batch.size(), grain(batch.size()), [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) {
            kernels_.add(residual_.row(token), &branch_[token * hidden], hidden);
            if (norm.weight != nullptr) normalize(static_cast<int>(token), norm, static_cast<int>(token));
        }
    });
}

// ---- attention -------------------------------------------------------------------------------

void Engine::project_qkv(const LayerWeights &layer, const Batch &batch, void *scratch) {
    Product products[3];
    int n = 0;
    float *out = qkv_.data();
    for (const Linear &linear : layer.qkv) {
        products[n++] = {&linear, 0, batch.size(), out, config_.qkv_size()};
        out += linear.weight.rows;
    }
    apply({products, static_cast<size_t>(n)}, normed_, scratch);
}

// One key and value head of one token, with the query heads that share them.
void Engine::rotate_and_store(int64_t layer, const Place &place, int token, int64_t kv_head) {
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
    const KVCache &cache = place.sequence->cache();
    const CacheFormat &format = cache.format();
    uint8_t *block = cache.block(layer, place.position / key_block, kv_head);
    const int slot = static_cast<int>(place.position % key_block);
    kernels_.store_key(format, key, block, slot);
    kernels_.store_value(format, value, block + format.key_block_bytes + slot * format.row_bytes);
}

void Engine::rotate_and_store(int64_t layer, const Batch &batch) {
    const size_t heads = config_.n_kv_heads, items = batch.size() * heads;
    pool_.for_each(items, grain(items), [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const int token = static_cast<int>(item / heads);
            rotate_and_store(layer, batch.places[token], token, item % heads);
        }
    });
}

// A group of query heads that is larger than a tile is cut into several.
void Engine::attend(int64_t layer, const Batch &batch, void *scratch) {
    const int64_t group = config_.group_size(), head_size = config_.head_size;
    const int64_t members = std::min<int64_t>(group, tile_queries), parts = (group + members - 1) / members;
    const int64_t tiles = static_cast<int64_t>(batch.tiles.size());
    pool_.for_each(config_.n_kv_heads * parts * tiles, 1, [&](size_t item, size_t) {
        const auto &[token, tokens] = batch.tiles[item % tiles];
        const int64_t part = item / tiles % parts, kv_head = item / tiles / parts;
        const auto &[sequence, position, hidden] = batch.places[token];
        const int64_t head = kv_head * group + part * members;
        AttentionTile tile{};
        tile.queries = &qkv_[token * config_.qkv_size() + head * head_size];
        tile.out = attended_.row(token) + head * head_size;
        tile.query_stride = config_.qkv_size();
        tile.out_stride = config_.query_size();
        tile.tokens = tokens;
        tile.members = static_cast<int>(std::min(members, group - part * members));
        tile.position = position;
        tile.window = config_.sliding_window > 0 ? config_.sliding_window : n_ctx_;
        tile.format = sequence->cache().format();
        tile.blocks = sequence->cache().block(layer, 0, kv_head);
        tile.block_stride = sequence->cache().block_stride();
        tile.scratch = static_cast<float *>(scratch);
        kernels_.attend(tile);
    });
}

// Here and in `activate` threads share the columns of the tokens in steps of 256, which all codings can be cut
// at: one token alone keeps all of them busy.
void Engine::code_attended(const Linear &next, const Batch &batch) {
    if (coding_for(next.weight.type) == Coding::none) return;
    const Codings codings(next.weight.type);
    const int64_t cols = attended_.cols(), steps = (cols + 255) / 256;
    const size_t items = batch.size() * steps;
    pool_.for_each(items, grain(items), [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const int64_t start = item % steps * 256;
            attended_.code(kernels_, codings, item / steps, start, std::min(start + 256, cols));
        }
    });
}

// ---- the feed-forward part -------------------------------------------------------------------

void Engine::feed_forward(const FeedForwardWeights &weights, const Batch &batch, void *scratch) {
    const Product up{&weights.up[0], 0, batch.size(), up_.data(), config_.up_size()};
    const Product down{&weights.down, 0, batch.size(), branch_.data(), config_.hidden_size};
    apply({&up, 1}, normed_, scratch);
    activate(weights.down, batch.size());
    apply({&down, 1}, gated_, scratch);
}

// An expert works on all of its tokens at once: its weights are read once for a batch.
void Engine::mixture(const LayerWeights &layer, const Batch &batch, void *scratch) {
    const Product scores{&layer.router, 0, batch.size(), router_scores_.data(), config_.n_experts};
    apply({&scores, 1}, normed_, scratch);
    route(layer, batch);
    hand_out(layer, batch);
    apply(up_products_, handed_out_, scratch);
    activate(layer.experts[0].down, static_cast<int>(batch.size() * config_.n_experts_used));
    apply(down_products_, gated_, scratch);
    collect(batch);
}

// Picks the experts and sorts the picks by expert. So little work that one thread does it.
void Engine::route(const LayerWeights &layer, const Batch &batch) {
    const int n_experts = static_cast<int>(config_.n_experts), n_used = static_cast<int>(config_.n_experts_used);
    pool_.for_each(1, 1, [&](size_t, size_t) {
        const std::span<Pick> picks(picks_.data(), static_cast<size_t>(batch.size()) * n_used);
        for (int token = 0; token < batch.size(); ++token)
            pick_experts(&router_scores_[token * n_experts], n_experts, n_used,
                         static_cast<float>(config_.router_jitter), &picks[token * n_used]);
        std::fill(first_slot_.begin(), first_slot_.end(), 0);
        for (Pick &pick : picks) pick.slot = first_slot_[pick.expert + 1]++; // among those of its expert
        for (int expert = 0; expert < n_experts; ++expert) first_slot_[expert + 1] += first_slot_[expert];
        for (Pick &pick : picks) pick.slot += first_slot_[pick.expert];
        plan_products(layer);
    });
}

void Engine::plan_products(const LayerWeights &layer) {
    up_products_.clear();
    down_products_.clear();
    for (size_t i = 0; i < layer.experts.size(); ++i) {
        const FeedForwardWeights &expert = layer.experts[i];
        const int first = first_slot_[i], tokens = first_slot_[i + 1] - first;
        if (tokens == 0) continue;
        float *out = &up_[first * config_.up_size()];
        for (const Linear &up : expert.up) {
            up_products_.push_back({&up, first, tokens, out, config_.up_size()});
            out += up.weight.rows;
        }
        float *answers = &answers_[first * config_.hidden_size];
        down_products_.push_back({&expert.down, first, tokens, answers, config_.hidden_size});
    }
}

// Copies every token to the experts that it was given to.
void Engine::hand_out(const LayerWeights &layer, const Batch &batch) {
    const int64_t hidden = config_.hidden_size, n_used = config_.n_experts_used;
    const size_t n_picks = batch.size() * n_used;
    pool_.for_each(n_picks, grain(n_picks), [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const float *row = normed_.row(i / n_used);
            std::copy(row, row + hidden, handed_out_.row(picks_[i].slot));
            handed_out_.code(kernels_, layer.expert_codings, picks_[i].slot, 0, hidden);
        }
    });
}

// branch = the sum of the experts' answers, weighted, in the order of the picks.
void Engine::collect(const Batch &batch) {
    const int64_t hidden = config_.hidden_size, n_used = config_.n_experts_used;
    pool_.for_each(batch.size(), grain(batch.size()), [&](size_t begin, size_t end) {
        for (size_t token = begin; token < end; ++token) {
            float *out = &branch_[token * hidden];
            std::fill(out, out + hidden, 0.0f);
            for (int64_t i = 0; i < n_used; ++i) {
                const Pick &pick = picks_[token * n_used + i];
                const float *answer = &answers_[pick.slot * hidden];
                for (int64_t j = 0; j < hidden; ++j) out[j] += pick.weight * answer[j];
            }
        }
    });
}

void Engine::activate(const Linear &next, int vectors) {
    const bool is_gelu = config_.architecture->feed_forward == FeedForward::gelu;
    const Codings codings(next.weight.type);
    const int64_t cols = config_.ffn_size, steps = (cols + 255) / 256;
    const size_t items = vectors * steps;
    pool_.for_each(items, grain(items), [&](size_t begin, size_t end) {
        for (size_t item = begin; item < end; ++item) {
            const int64_t vector = item / steps, start = item % steps * 256, stop = std::min(start + 256, cols);
            const float *up = &up_[vector * config_.up_size() + start];
            float *out = gated_.row(vector) + start;
            is_gelu ? kernels_.gelu(up, static_cast<int>(stop - start), out)
                    : kernels_.swiglu(up, up + cols, static_cast<int>(stop - start), out);
            gated_.code(kernels_, codings, vector, start, stop);
        }
    });
}

// ---- products --------------------------------------------------------------------------------

void Engine::apply(std::span<const Product> products, Vectors &x, void *scratch) {
    for (const Product &product : products) add_squares(product, x);
    multiply(products, x, scratch);
}

// Does nothing unless the sums are wanted. All vectors of a column are added up by one thread, in order.
void Engine::add_squares(const Product &product, Vectors &x) {
    const auto found = squares_.find(product.linear->weight.data);
    if (found == squares_.end()) return;
    MatrixSquares &squares = found->second;
    pool_.for_each(squares.sums.size(), 256, [&](size_t begin, size_t end) {
        if (begin == 0) squares.tokens += product.tokens;
        for (int token = 0; token < product.tokens; ++token) {
            const float *row = x.row(product.first + token);
            for (size_t i = begin; i < end; ++i) squares.sums[i] += static_cast<double>(row[i]) * row[i];
        }
    });
}

void Engine::multiply(std::span<const Product> products, Vectors &x, void *scratch) {
    size_t panels = 0;
    bool copies_vectors = false;
    for (const Product &product : products) {
        panels += panels_of(product.linear->weight);
        copies_vectors |= product.tokens > 1 && coding_for(product.linear->weight.type) == Coding::none;
    }
    // Where every part begins with copies of all vectors, parts are larger.
    pool_.for_each(panels, copies_vectors ? grain(2 * panels) : grain(panels), [&](size_t begin, size_t end) {
        size_t first = 0; // panel of the product
        for (const Product &product : products) {
            const size_t n = panels_of(product.linear->weight);
            const size_t from = std::max(begin, first), to = std::min(end, first + n);
            if (from < to) multiply(product, (from - first) * panel_rows, (to - first) * panel_rows, x, scratch);
            first += n;
        }
    });
}

void Engine::multiply(const Product &product, int64_t first, int64_t last, Vectors &x, void *scratch) {
    const auto &[weight, bias] = *product.linear;
    last = std::min(last, weight.rows);
    const Activations activations = x.activations(coding_for(weight.type), product.first, product.tokens);
    kernels_.matmul[static_cast<int>(weight.type)](weight, first, last, activations, product.out, product.stride,
                                                   scratch);
    if (bias == nullptr) return;
    for (int token = 0; token < product.tokens; ++token)
        kernels_.add(product.out + token * product.stride + first, bias + first, static_cast<int>(last - first));
}

} // namespace phi
