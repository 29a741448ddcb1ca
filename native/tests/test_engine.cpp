// The engine on small random models: against a forward pass written out in double precision, and against
// itself, where two ways of computing the same text must give the same bits.
#include "engine/engine.hpp"
#include "test_support.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>

using phi::Config;
using phi::Engine;
using phi::Isa;

using Tokens = std::vector<int32_t>;
using Doubles = std::vector<double>;

static Config small_config() {
    Config config;
    config.hidden_size = 48;
    config.n_layers = 2;
    config.n_heads = 6;
    config.n_kv_heads = 2;
    config.head_size = 8;
    config.ffn_size = 40;
    config.vocab_size = 61;
    config.context_length = 256;
    config.original_context_length = 64;
    config.rope_size = 6;
    config.norm_eps = 1e-5;
    config.rope_theta = 10000;
    return config;
}

static Config longrope_config() {
    Config config = small_config();
    config.short_factor = {1.0f, 1.1f, 1.5f};
    config.long_factor = {1.2f, 3.0f, 7.0f};
    config.short_magnitude = 1.2;
    config.long_magnitude = 1.3;
    return config;
}

static Config phi2_config() {
    Config config = small_config();
    config.architecture = &phi::find_architecture("phi2");
    config.attention_bias = config.output_bias = true;
    return config;
}

static Config phimoe_config() {
    Config config = longrope_config();
    config.architecture = &phi::find_architecture("phimoe");
    config.attention_bias = config.output_bias = true;
    config.n_experts = 5;
    config.n_experts_used = 2;
    config.router_jitter = 0.2;
    return config;
}

// A model with F32 weights.
class Model {
  public:
    explicit Model(const Config &config, bool tied = false) : config(config) {
        const int64_t hidden = config.hidden_size;
        add("token_embd.weight", config.vocab_size, hidden, 1);
        for (int64_t i = 0; i < config.n_layers; ++i) add_layer("blk." + std::to_string(i) + ".");
        add_norm("output_norm");
        if (!tied) add("output.weight", config.vocab_size, hidden, 0.2f);
        if (config.output_bias) add("output.bias", 1, config.vocab_size, 1);
    }

    void add_layer(const std::string &prefix) {
        const int64_t hidden = config.hidden_size, ffn = config.ffn_size, n = config.n_experts;
        const bool bias = config.attention_bias, is_gelu = config.up_size() == ffn;
        add_norm(prefix + "attn_norm");
        if (!config.architecture->is_parallel) add_norm(prefix + "ffn_norm");
        if (config.architecture->has_fused_qkv) {
            add_linear(prefix + "attn_qkv", config.qkv_size(), hidden, bias);
        } else {
            add_linear(prefix + "attn_q", config.query_size(), hidden, bias);
            add_linear(prefix + "attn_k", config.kv_size(), hidden, bias);
            add_linear(prefix + "attn_v", config.kv_size(), hidden, bias);
        }
        add_linear(prefix + "attn_output", hidden, config.query_size(), bias);
        if (config.has_experts()) {
            add_linear(prefix + "ffn_gate_inp", n, hidden, false);
            add_linear(prefix + "ffn_gate_exps", n * ffn, hidden, false);
            add_linear(prefix + "ffn_up_exps", n * ffn, hidden, false);
            add_linear(prefix + "ffn_down_exps", n * hidden, ffn, false);
        } else {
            add_linear(prefix + "ffn_up", config.up_size(), hidden, is_gelu);
            add_linear(prefix + "ffn_down", hidden, ffn, is_gelu);
        }
    }

    void add_norm(const std::string &name) {
        add(name + ".weight", 1, config.hidden_size, 1);
        if (config.architecture->has_layer_norms) add(name + ".bias", 1, config.hidden_size, 1);
    }

    void add_linear(const std::string &name, int64_t rows, int64_t cols, bool has_bias) {
        add(name + ".weight", rows, cols, 0.4f);
        if (has_bias) add(name + ".bias", 1, rows, 1);
    }

    void add(const std::string &name, int64_t rows, int64_t cols, float scale) {
        Floats &values = values_[name];
        values = Random(values_.size()).numbers(rows * cols, scale);
        tensors[name] = {"F32", rows, cols, reinterpret_cast<const uint8_t *>(values.data()), values.size() * 4};
    }

    // Stores a matrix in another type.
    void convert(const std::string &name, const std::string &type) {
        phi::Tensor &tensor = tensors.at(name);
        const phi::TypeInfo &info = phi::type_info(type);
        std::vector<uint8_t> &bytes = bytes_[name];
        bytes.resize(tensor.rows * info.row_bytes(tensor.cols));
        phi::quantize(info.type, phi::Type::F32, tensor.data, tensor.rows, tensor.cols, bytes.data(), 1);
        tensor = {type, tensor.rows, tensor.cols, bytes.data(), bytes.size()};
    }

    Floats &values(const std::string &name) { return values_.at(name); }
    const Floats &values(const std::string &name) const { return values_.at(name); }
    bool has(const std::string &name) const { return values_.count(name) != 0; }

    Config config;
    phi::Tensors tensors;

  private:
    std::map<std::string, Floats> values_;
    std::map<std::string, std::vector<uint8_t>> bytes_;
};

static Tokens random_tokens(int n, const Config &config, uint64_t seed = 7) {
    Random random(seed);
    Tokens tokens(n);
    for (int32_t &token : tokens) token = static_cast<int32_t>(random.bits() % config.vocab_size);
    return tokens;
}

static Floats forward(Engine &engine, std::span<const int32_t> tokens, bool all_logits = true) {
    Floats logits((all_logits ? tokens.size() : 1) * engine.config().vocab_size);
    engine.forward(tokens, all_logits, logits.data());
    return logits;
}

static Floats fresh(const Model &model, const Tokens &tokens, int threads = 1,
                    phi::Type cache_type = phi::Type::F16) {
    Engine engine(model.config, model.tensors, model.config.context_length, threads, cache_type);
    return forward(engine, tokens);
}

static void check_same(const Floats &got, const Floats &expected, const std::string &what) {
    check(got.size() == expected.size() && std::memcmp(got.data(), expected.data(), got.size() * 4) == 0,
          what + ": not the same bits");
}

static Floats last_rows(const Floats &logits, size_t n, const Config &config) {
    return {logits.end() - static_cast<ptrdiff_t>(n * config.vocab_size), logits.end()};
}

// ---- the forward pass, written out -----------------------------------------------------------

static Doubles times(const Floats &matrix, const Doubles &x) {
    Doubles out(matrix.size() / x.size());
    for (size_t row = 0; row < out.size(); ++row)
        for (size_t i = 0; i < x.size(); ++i) out[row] += matrix[row * x.size() + i] * x[i];
    return out;
}

static void add(Doubles &x, const Doubles &y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// A matrix by its name in the file, and the bias that goes with it, where there is one.
static Doubles linear(const Model &model, const std::string &name, const Doubles &x) {
    Doubles out = times(model.values(name + ".weight"), x);
    if (model.has(name + ".bias")) add(out, {model.values(name + ".bias").begin(), model.values(name + ".bias").end()});
    return out;
}

// RMSNorm, or LayerNorm where there is a bias.
static Doubles normed(const Model &model, const std::string &name, const Doubles &x) {
    const Floats &weight = model.values(name + ".weight");
    const bool is_layer_norm = model.has(name + ".bias");
    double mean = 0, squares = 0;
    if (is_layer_norm)
        for (double value : x) mean += value / double(x.size());
    for (double value : x) squares += (value - mean) * (value - mean) / double(x.size());
    Doubles out(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        out[i] = (x[i] - mean) / std::sqrt(squares + model.config.norm_eps) * weight[i];
        if (is_layer_norm) out[i] += model.values(name + ".bias")[i];
    }
    return out;
}

static void rotate(double *head, int64_t position, const Config &config, bool use_long) {
    const Floats &factors = use_long ? config.long_factor : config.short_factor;
    const int64_t half = config.rope_size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const double speed = std::pow(config.rope_theta, -2.0 * double(i) / double(config.rope_size));
        const double angle = double(position) * speed / (factors.empty() ? 1 : factors[i]);
        const double magnitude = use_long ? config.long_magnitude : config.short_magnitude;
        const double cosine = std::cos(angle) * magnitude, sine = std::sin(angle) * magnitude;
        const double a = head[i], b = head[i + half];
        head[i] = a * cosine - b * sine;
        head[i + half] = b * cosine + a * sine;
    }
}

// Attention of the last of the positions whose queries, keys and values are given.
static Doubles attended(const std::vector<Doubles> &qkv, const Config &config) {
    const int64_t size = config.head_size, position = static_cast<int64_t>(qkv.size()) - 1;
    Doubles out(config.query_size());
    for (int64_t head = 0; head < config.n_heads; ++head) {
        const int64_t key_at = config.query_size() + head / config.group_size() * size;
        double total = 0;
        for (int64_t key = 0; key <= position; ++key) {
            if (config.sliding_window && position - key >= config.sliding_window) continue;
            double score = 0;
            for (int64_t i = 0; i < size; ++i) score += qkv[position][head * size + i] * qkv[key][key_at + i];
            const double weight = std::exp(score / std::sqrt(double(size)));
            total += weight;
            for (int64_t i = 0; i < size; ++i) out[head * size + i] += weight * qkv[key][key_at + config.kv_size() + i];
        }
        for (int64_t i = 0; i < size; ++i) out[head * size + i] /= total;
    }
    return out;
}

static Doubles gated(const Doubles &gate_up) {
    const size_t n = gate_up.size() / 2;
    Doubles out(n);
    for (size_t i = 0; i < n; ++i) out[i] = gate_up[i] / (1 + std::exp(-gate_up[i])) * gate_up[n + i];
    return out;
}

static Doubles gelu(Doubles x) {
    for (double &v : x) v *= 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    return x;
}

// The rows of one of n experts.
static Floats expert_rows(const Model &model, const std::string &name, int64_t expert) {
    const Floats &all = model.values(name + ".weight");
    const auto n = static_cast<ptrdiff_t>(all.size() / model.config.n_experts);
    return {all.begin() + expert * n, all.begin() + (expert + 1) * n};
}

// Two experts, as the router picks them: it shares its choice with whoever is nearly as good.
static Doubles mixture(const Model &model, const std::string &prefix, const Doubles &x) {
    const Doubles scores = linear(model, prefix + "ffn_gate_inp", x);
    Doubles left = scores, out(x.size());
    for (int pick = 0; pick < 2; ++pick) {
        const auto best = std::max_element(left.begin(), left.end());
        const int64_t expert = best - left.begin();
        double total = 0;
        for (size_t i = 0; i < left.size(); ++i)
            if ((*best - scores[i]) / std::max(std::abs(scores[i]), *best) <= 2 * model.config.router_jitter)
                total += std::exp(left[i] - *best);
        Doubles gate_up = times(expert_rows(model, prefix + "ffn_gate_exps", expert), x);
        for (double up : times(expert_rows(model, prefix + "ffn_up_exps", expert), x)) gate_up.push_back(up);
        Doubles answer = times(expert_rows(model, prefix + "ffn_down_exps", expert), gated(gate_up));
        for (double &value : answer) value /= total;
        add(out, answer);
        left[expert] = -INFINITY;
    }
    return out;
}

static Doubles feed_forward(const Model &model, const std::string &prefix, const Doubles &x) {
    if (model.config.has_experts()) return mixture(model, prefix, x);
    const Doubles up = linear(model, prefix + "ffn_up", x);
    return linear(model, prefix + "ffn_down", model.config.up_size() == model.config.ffn_size ? gelu(up) : gated(up));
}

static Doubles queries_keys_values(const Model &model, const std::string &prefix, const Doubles &x) {
    if (model.config.architecture->has_fused_qkv) return linear(model, prefix + "attn_qkv", x);
    Doubles all;
    for (const char *name : {"attn_q", "attn_k", "attn_v"})
        for (double value : linear(model, prefix + name, x)) all.push_back(value);
    return all;
}

static void layer(const Model &model, int64_t index, std::vector<Doubles> &residual) {
    const Config &config = model.config;
    const std::string prefix = "blk." + std::to_string(index) + ".";
    const bool use_long =
        !config.long_factor.empty() && static_cast<int64_t>(residual.size()) > config.original_context_length;
    std::vector<Doubles> qkv;
    for (size_t position = 0; position < residual.size(); ++position) {
        Doubles &x = residual[position];
        const Doubles first = normed(model, prefix + "attn_norm", x);
        qkv.push_back(queries_keys_values(model, prefix, first));
        for (int64_t head = 0; head < config.n_heads + config.n_kv_heads; ++head)
            rotate(&qkv.back()[head * config.head_size], static_cast<int64_t>(position), config, use_long);
        add(x, linear(model, prefix + "attn_output", attended(qkv, config)));
        const bool is_parallel = config.architecture->is_parallel;
        add(x, feed_forward(model, prefix, is_parallel ? first : normed(model, prefix + "ffn_norm", x)));
    }
}

static Doubles written_out(const Model &model, const Tokens &tokens) {
    const Config &config = model.config;
    std::vector<Doubles> residual;
    for (int32_t token : tokens) {
        const auto row = model.values("token_embd.weight").begin() + token * config.hidden_size;
        residual.emplace_back(row, row + config.hidden_size);
    }
    for (int64_t i = 0; i < config.n_layers; ++i) layer(model, i, residual);
    Doubles logits;
    const Floats &output = model.values(model.has("output.weight") ? "output.weight" : "token_embd.weight");
    for (const Doubles &x : residual) {
        Doubles of_token = times(output, normed(model, "output_norm", x));
        if (config.output_bias)
            add(of_token, {model.values("output.bias").begin(), model.values("output.bias").end()});
        logits.insert(logits.end(), of_token.begin(), of_token.end());
    }
    return logits;
}

static double relative_error(const Floats &got, const Doubles &expected) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        worst = std::max(worst, std::abs(got[i] - expected[i]));
        largest = std::max(largest, std::abs(expected[i]));
    }
    return worst / largest;
}

// With keys and values in floats all arithmetic is float32: 1e-5 of the largest logit is some 100 roundings. Halves
// are off by up to 2^-12 of their size, and so logits by a few times that: 1e-3.
static void test_against_written_out() {
    Config window = small_config(), heads = small_config(), full = longrope_config();
    window.sliding_window = 9;
    heads.n_kv_heads = heads.n_heads;
    full.rope_size = full.head_size;
    full.short_factor.push_back(2.0f);
    full.long_factor.push_back(9.0f);
    Config moe_window = phimoe_config(), no_biases = phimoe_config();
    moe_window.sliding_window = 9;
    no_biases.attention_bias = no_biases.output_bias = false;
    no_biases.router_jitter = 0.01;
    for (const Config &config : {small_config(), window, heads, longrope_config(), full, phi2_config(), phimoe_config(),
                                 moe_window, no_biases})
        for (bool tied : {false, true})
            for (int n : {1, 2, 64, 65, 90}) {
                const Model model(config, tied);
                const Tokens tokens = random_tokens(n, config);
                const Doubles expected = written_out(model, tokens);
                const std::string what = "logits of " + std::to_string(n) + " tokens, written out";
                check_close(relative_error(fresh(model, tokens, 1, phi::Type::F32), expected), 0, 1e-5, what);
                check_close(relative_error(fresh(model, tokens), expected), 0, 1e-3, what);
            }
}

// ---- the engine against itself ---------------------------------------------------------------

static void test_threads() {
    for (const Config &config : {longrope_config(), phi2_config(), phimoe_config()}) {
        const Model model(config);
        const Tokens tokens = random_tokens(80, model.config);
        const Floats expected = fresh(model, tokens);
        for (int threads : {2, 3, 7})
            check_same(fresh(model, tokens, threads), expected, std::to_string(threads) + " threads");
    }
}

// However a text is cut into calls, the last logits are those of one call over all of it: also where it grows
// past LongRoPE's switch at 64 tokens.
static void test_cuts() {
    for (const Config &config : {small_config(), longrope_config(), phi2_config(), phimoe_config()}) {
        const Model model(config);
        const Tokens tokens = random_tokens(100, config);
        for (const std::vector<int> &cuts : {std::vector<int>{1, 63, 1, 35}, {64, 1, 1, 34}, {50, 50}, {33, 67}}) {
            Engine engine(config, model.tensors, 100, 2);
            size_t done = 0;
            for (int size : cuts) {
                const Floats got = forward(engine, std::span(tokens).subspan(done, size));
                done += size;
                const Floats expected = fresh(model, {tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(done)});
                check_same(got, last_rows(expected, size, config), "cut at " + std::to_string(done));
            }
        }
    }
}

static void test_last_logits() {
    const Model model(small_config());
    const Tokens tokens = random_tokens(30, model.config);
    Engine engine(model.config, model.tensors, 30, 2);
    check_same(forward(engine, tokens, false), last_rows(fresh(model, tokens), 1, model.config), "logits of the last");
}

// Back over the switch and forth again: what was computed with the other factors must not be used.
static void test_truncate() {
    const Model model(longrope_config());
    const Tokens tokens = random_tokens(90, model.config), other = random_tokens(40, model.config, 8);
    Engine engine(model.config, model.tensors, 128, 2);
    forward(engine, tokens);
    for (int keep : {70, 40, 10, 0}) {
        engine.truncate(keep);
        check(engine.position() == keep, "position after truncate");
        Tokens text(tokens.begin(), tokens.begin() + keep);
        text.insert(text.end(), other.begin(), other.end());
        check_same(forward(engine, other), last_rows(fresh(model, text), other.size(), model.config),
                   "after truncate to " + std::to_string(keep));
        engine.truncate(0);
        forward(engine, tokens);
    }
}

// ---- the last layers alone -------------------------------------------------------------------

static Floats embedding_rows(const Model &model, const Tokens &tokens) {
    const Floats &table = model.values("token_embd.weight");
    const int64_t hidden = model.config.hidden_size;
    Floats rows;
    for (int32_t token : tokens) rows.insert(rows.end(), &table[token * hidden], &table[token * hidden] + hidden);
    return rows;
}

// The model with `extra` layers before its own that are computed elsewhere, and without an embedding.
static void put_layers_in_front(Model &model, int64_t extra) {
    phi::Tensors moved;
    for (const auto &[name, tensor] : model.tensors) {
        const size_t dot = name.find('.', 4);
        if (name.starts_with("blk."))
            moved["blk." + std::to_string(std::stoi(name.substr(4)) + extra) + name.substr(dot)] = tensor;
        else if (name != "token_embd.weight" || !model.has("output.weight"))
            moved[name] = tensor;
    }
    model.tensors = moved;
    model.config.n_layers += extra;
    model.config.first_layer = extra;
}

// An engine that is handed the embedding's rows gives the bits of one that looks them up, in any cuts, also where
// the text has outgrown LongRoPE's switch.
static void test_hidden_states() {
    for (const Config &config : {longrope_config(), phi2_config(), phimoe_config()})
        for (bool tied : {false, true})
            for (int n : {1, 60, 100}) {
                Model model(config, tied);
                const Tokens tokens = random_tokens(n, config);
                const Floats expected = fresh(model, tokens), hidden = embedding_rows(model, tokens);
                put_layers_in_front(model, 3);
                Engine engine(model.config, model.tensors, 128, 2);
                Floats logits(expected.size());
                const int64_t half = n / 2, size = config.hidden_size;
                const std::span<const float> all(hidden);
                if (half > 0) engine.forward_hidden(all.first(half * size), half, n, logits.data());
                engine.forward_hidden(all.subspan(half * size), n - half, n, &logits[half * config.vocab_size]);
                check(engine.position() == n, "position after hidden states");
                check_same(logits, expected, "logits of hidden states");
                engine.truncate(0);
                Floats last(config.vocab_size);
                engine.forward_hidden(all, 1, n, last.data());
                check_same(last, last_rows(expected, 1, config), "logits of the last hidden state");
            }
}

// Without a layer of its own an engine is the last norm and the output matrix.
static void test_no_layers() {
    Model model(small_config());
    const Floats hidden = embedding_rows(model, {3, 4, 5});
    Config config = model.config;
    config.first_layer = config.n_layers;
    phi::Tensors rest;
    for (const std::string name : {"output_norm.weight", "output.weight"}) rest[name] = model.tensors.at(name);
    Engine engine(config, rest, 10, 2, phi::Type::F32);
    Floats logits(3 * config.vocab_size);
    engine.forward_hidden(hidden, 3, 3, logits.data());
    check(engine.cache_bytes() == 0, "an engine without layers needs no cache");
    const Floats &norm = model.values("output_norm.weight"), &matrix = model.values("output.weight");
    Doubles expected;
    for (int token = 0; token < 3; ++token) {
        const float *x = &hidden[token * config.hidden_size];
        double squares = 0;
        for (int64_t i = 0; i < config.hidden_size; ++i) squares += static_cast<double>(x[i]) * x[i];
        const double scale = 1 / std::sqrt(squares / static_cast<double>(config.hidden_size) + config.norm_eps);
        for (int64_t row = 0; row < config.vocab_size; ++row) {
            double sum = 0;
            for (int64_t i = 0; i < config.hidden_size; ++i)
                sum += x[i] * scale * norm[i] * matrix[row * config.hidden_size + i];
            expected.push_back(sum);
        }
    }
    check_close(relative_error(logits, expected), 0, 1e-5, "the head alone, written out");
}

static void test_bad_hidden_states() {
    Model model(longrope_config());
    const Floats hidden = embedding_rows(model, random_tokens(70, model.config));
    const std::span<const float> all(hidden);
    const int64_t size = model.config.hidden_size;
    Floats logits(70 * model.config.vocab_size);
    const auto refused = [&](Engine &engine, std::span<const float> states, int64_t n_logits, int64_t length,
                             const std::string &part) {
        check_throws<std::invalid_argument>(
            [&] { engine.forward_hidden(states, n_logits, length, logits.data()); }, part);
    };
    Engine whole(model.config, model.tensors, 64, 1);
    refused(whole, all.first(size), 1, 1, "begins with the embedding");
    put_layers_in_front(model, 1);
    Engine engine(model.config, model.tensors, 100, 1);
    check_throws<std::invalid_argument>([&] { forward(engine, Tokens{1}); }, "takes hidden states");
    refused(engine, all.first(0), 0, 1, "one or more rows of 48");
    refused(engine, all.first(size + 1), 1, 2, "one or more rows of 48");
    refused(engine, all.first(size), 2, 1, "n_logits must be from 0 to 1");
    refused(engine, all.first(3 * size), 1, 2, "text_length must be from 3 to 100");
    refused(engine, all.first(size), 1, 101, "text_length must be from 1 to 100");
    engine.forward_hidden(all.first(10 * size), 0, 60, logits.data());
    refused(engine, all.first(size), 1, 65, "truncate to 0 first");
    check(engine.position() == 10, "a refused call changed the text");
    engine.truncate(0);
    engine.forward_hidden(all, 70, 70, logits.data());
    model.config.first_layer = 4;
    check_throws<std::invalid_argument>([&] { Engine(model.config, model.tensors, 64, 1); },
                                        "first_layer must be from 0 to 3");
}

// Every key and value head twice is the same model with two query heads each.
static void test_grouped_heads() {
    Config config = small_config();
    const Model grouped(config);
    config.n_kv_heads = config.n_heads;
    Model full(config);
    const int64_t head_rows = config.head_size * config.hidden_size, group = grouped.config.group_size();
    for (auto &[name, tensor] : full.tensors) {
        if (name.find("attn_qkv") == std::string::npos) continue;
        const float *source = grouped.values(name).data();
        float *target = full.values(name).data();
        std::copy_n(source, config.n_heads * head_rows, target);
        for (int64_t head = 0; head < 2 * config.n_heads; ++head)
            std::copy_n(source + (config.n_heads + head / group) * head_rows, head_rows,
                        target + (config.n_heads + head) * head_rows);
    }
    for (const auto &[name, tensor] : grouped.tensors)
        if (name.find("attn_qkv") == std::string::npos) full.values(name) = grouped.values(name);
    full.tensors = [&] {
        phi::Tensors tensors = full.tensors;
        for (auto &[name, tensor] : tensors) tensor.data = reinterpret_cast<const uint8_t *>(full.values(name).data());
        return tensors;
    }();
    const Tokens tokens = random_tokens(50, config);
    check_same(fresh(grouped, tokens), fresh(full, tokens), "grouped heads");
}

// A window no shorter than the text changes nothing, a shorter one does.
static void test_window() {
    Config config = small_config();
    const Tokens tokens = random_tokens(40, config);
    const Floats all = fresh(Model(config), tokens);
    config.sliding_window = 40;
    check_same(fresh(Model(config), tokens), all, "window as long as the text");
    config.sliding_window = 39;
    const Floats windowed = fresh(Model(config), tokens);
    const auto last = static_cast<ptrdiff_t>(39 * config.vocab_size);
    check(std::equal(all.begin(), all.begin() + last, windowed.begin()), "window changed tokens inside it");
    check(!std::equal(all.begin() + last, all.end(), windowed.begin() + last), "window had no effect");
}

// Types may differ from tensor to tensor; cut and threads still change nothing.
static void test_mixed_types() {
    Config config = small_config();
    config.hidden_size = 256;
    config.head_size = 32;
    config.n_heads = 8;
    config.rope_size = 32;
    config.ffn_size = 512;
    Model model(config);
    const Floats exact = fresh(model, random_tokens(70, config));
    const char *types[] = {"Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "F16", "BF16"};
    int next = 0;
    for (const auto &[name, tensor] : phi::Tensors(model.tensors))
        if (tensor.rows > 1) model.convert(name, types[next++ % 7]);
    const Tokens tokens = random_tokens(70, config);
    const Floats expected = fresh(model, tokens);
    check_same(fresh(model, tokens, 3), expected, "mixed types, 3 threads");
    Engine engine(config, model.tensors, 100, 2);
    forward(engine, std::span(tokens).first(45));
    check_same(forward(engine, std::span(tokens).subspan(45)), last_rows(expected, 25, config), "mixed types, cut");
    double difference = 0, size = 0; // 0.06 here; 2 where they have nothing in common
    for (size_t i = 0; i < exact.size(); ++i) {
        difference += std::pow(double(expected[i]) - exact[i], 2);
        size += std::pow(double(exact[i]), 2);
    }
    check(difference < 0.2 * size, "mixed types are far from the weights that they were made of");
}

// ---- several sequences -----------------------------------------------------------------------

// A text in a sequence of an engine with several, and alone in an engine of its own.
struct Twin {
    Twin(const Model &model, int64_t n_ctx, phi::Type cache_type)
        : alone(model.config, model.tensors, n_ctx, 1, cache_type) {}

    Engine alone;
    Tokens text;
};

using Twins = std::deque<Twin>; // engines cannot be moved

static Twins twins_of(const Model &model, int n, int64_t n_ctx, phi::Type cache_type) {
    Twins twins;
    for (int i = 0; i < n; ++i) twins.emplace_back(model, n_ctx, cache_type);
    return twins;
}

// Some sequences read at once; each gets the bits that it would get alone.
static void read_at_once(Engine &engine, Twins &twins, const std::map<int, Tokens> &parts, bool all_logits,
                         const std::string &what) {
    std::vector<phi::Reading> readings;
    Floats expected;
    for (const auto &[sequence, tokens] : parts) {
        readings.push_back({sequence, tokens});
        Twin &twin = twins[sequence];
        const Floats of_one = forward(twin.alone, tokens, all_logits);
        expected.insert(expected.end(), of_one.begin(), of_one.end());
        twin.text.insert(twin.text.end(), tokens.begin(), tokens.end());
    }
    Floats got(expected.size());
    engine.forward(readings, all_logits, got.data());
    check_same(got, expected, what);
}

static void truncate(Engine &engine, Twins &twins, int sequence, int64_t length) {
    engine.truncate(length, sequence);
    twins[sequence].alone.truncate(length);
    twins[sequence].text.resize(length);
}

static void copy(Engine &engine, Twins &twins, int source, int target, int64_t length) {
    engine.copy(source, target, length);
    Tokens text(twins[source].text.begin(), twins[source].text.begin() + length);
    twins[target].alone.truncate(0);
    if (length > 0) forward(twins[target].alone, text);
    twins[target].text = std::move(text);
}

// Reads, forgets and copies at random, often beyond LongRoPE's switch at 64 tokens and back.
static void test_sequences(const Config &config, phi::Type cache_type, int threads) {
    constexpr int n = 4, n_ctx = 120;
    const Model model(config);
    Engine engine(config, model.tensors, n_ctx, threads, cache_type, phi::active_isa(), n);
    Twins twins = twins_of(model, n, n_ctx, cache_type);
    Random random(threads);
    for (int step = 0; step < 12; ++step) {
        std::map<int, Tokens> parts;
        for (int i = 0; i < n; ++i) {
            const int64_t length = engine.position(i);
            if (length > 90) truncate(engine, twins, i, random.bits() % length);
            if (random.bits() % 8 == 0) copy(engine, twins, i, random.bits() % n, random.bits() % (engine.position(i) + 1));
        }
        for (int i = 0; i < n; ++i) {
            const int64_t room = n_ctx - engine.position(i), most = random.bits() % 3 ? 1 : 50;
            if (room == 0 || (i > 0 && random.bits() % 4 == 0)) continue;
            parts[i] = random_tokens(1 + random.bits() % std::min(most, room), config, random.bits());
        }
        if (!parts.empty()) read_at_once(engine, twins, parts, random.bits() % 2, "sequences, step " + std::to_string(step));
    }
    for (int i = 0; i < n; ++i) {
        check(engine.position(i) == static_cast<int64_t>(twins[i].text.size()), "position of a sequence");
        if (engine.position(i) == n_ctx) truncate(engine, twins, i, n_ctx - 1);
        read_at_once(engine, twins, {{i, {3}}}, false, "sequences at the end");
        const Floats fresh_pass = last_rows(fresh(model, twins[i].text, 1, cache_type), 1, config);
        twins[i].alone.truncate(engine.position(i) - 1);
        check_same(forward(twins[i].alone, Tokens{3}), fresh_pass, "sequences and a fresh pass");
    }
}

static void test_sequences() {
    Config window = longrope_config(), moe_window = phimoe_config();
    window.sliding_window = 9;
    moe_window.sliding_window = 40;
    int threads = 1;
    for (const Config &config : {small_config(), longrope_config(), window, phi2_config(), moe_window})
        for (phi::Type cache_type : phi::cache_types) test_sequences(config, cache_type, 1 + threads++ % 3);
}

// More tokens than go through the layers at once; what is thrown then leaves all texts as they were.
static void test_long_sequences() {
    Config config = longrope_config();
    config.context_length = 800;
    config.original_context_length = 400;
    const Model model(config);
    Engine engine(config, model.tensors, 800, 2, phi::Type::F16, phi::active_isa(), 3);
    Twins twins = twins_of(model, 3, 800, phi::Type::F16);
    read_at_once(engine, twins, {{0, random_tokens(300, config)}, {2, random_tokens(9, config)}}, true, "two texts");
    const Tokens more = random_tokens(150, config, 1), first = random_tokens(600, config, 2);
    const std::vector<phi::Reading> readings = {{2, more}, {1, first}, {0, more}};
    Floats logits(3 * config.vocab_size);
    const auto stop = [] { throw std::runtime_error("stop"); };
    check_throws<std::runtime_error>([&] { engine.forward(readings, false, logits.data(), stop); }, "stop");
    check(engine.position(0) == 300 && engine.position(1) == 0 && engine.position(2) == 9, "texts after an interrupt");
    read_at_once(engine, twins, {{0, more}, {1, first}, {2, more}}, true, "three long texts");
    check(engine.cache_bytes() == 3 * twins[0].alone.cache_bytes(), "bytes of three caches");
}

// ---- experts ---------------------------------------------------------------------------------

static void check_picks(const Floats &scores, float jitter, const std::vector<phi::Pick> &expected,
                        const std::string &what) {
    std::vector<phi::Pick> picks(expected.size());
    phi::pick_experts(scores.data(), static_cast<int>(scores.size()), static_cast<int>(picks.size()), jitter,
                      picks.data());
    for (size_t i = 0; i < picks.size(); ++i) {
        check(picks[i].expert == expected[i].expert, what + ", expert");
        check_close(picks[i].weight, expected[i].weight, 1e-6, what + ", weight");
    }
}

static void test_router() {
    const float near = 1 / (1 + std::exp(-0.1f)); // softmax of two scores that differ by 0.1
    check_picks({1, 9, 3, 5}, 0.01f, {{1, 1, 0}, {3, 1, 0}}, "far apart");
    check_picks({1, 10, 9.9f, 5}, 0.01f, {{1, near, 0}, {2, 1, 0}}, "the second is nearly as good as the first");
    check_picks({1, 9.9f, 20, 10}, 0.01f, {{2, 1, 0}, {3, near, 0}}, "the third is nearly as good as the second");
    check_picks({-3, -2, -8, -2.02f}, 0.01f, {{1, 1 / (1 + std::exp(-0.02f)), 0}, {3, 1, 0}}, "all below 0");
    check_picks({0, 0, 0}, 0.01f, {{0, 1 / 3.0f, 0}, {1, 0.5f, 0}, {2, 1, 0}}, "all the same");
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        phi::Pick picks[3];
        const float scores[] = {bad, bad, bad};
        phi::pick_experts(scores, 3, 3, 0.01f, picks);
        check(picks[0].expert + picks[1].expert + picks[2].expert == 3 && picks[0].expert != picks[1].expert,
              "scores that are no numbers: each expert once");
    }
}

// Two batches; every token meets two experts, and the gates of the experts what the router meets.
static void test_input_squares() {
    Config config = phimoe_config();
    config.context_length = 700;
    config.original_context_length = 100;
    const Model model(config);
    const Tokens tokens = random_tokens(600, config);
    Engine engine(config, model.tensors, 700, 3), alone(config, model.tensors, 700, 1);
    forward(engine, Tokens{1, 2, 3});
    const phi::InputSquares squares = engine.input_squares(tokens), same = alone.input_squares(tokens);
    const phi::TensorSquares &router = squares.at("blk.1.ffn_gate_inp.weight"),
                             &gates = squares.at("blk.1.ffn_gate_exps.weight"), &output = squares.at("output.weight");
    check(router.tokens == std::vector<int64_t>{600} && output.tokens == router.tokens, "all tokens, once");
    int64_t met = 0;
    for (int64_t n : gates.tokens) met += n;
    check(gates.tokens.size() == 5 && met == 1200, "two experts for each token");
    for (int64_t i = 0; i < config.hidden_size; ++i) {
        double total = 0;
        for (int64_t expert = 0; expert < 5; ++expert) total += gates.sums[expert * config.hidden_size + i];
        check_close(total, 2 * router.sums[i], 1e-9 * total, "what the experts met is what the router did");
    }
    for (const auto &[name, tensor] : squares)
        check(tensor.sums == same.at(name).sums && tensor.tokens == same.at(name).tokens, name + ": 3 threads, or 1");
    check(squares.count("token_embd.weight") == 0 && squares.count("blk.0.attn_v.weight") == 1, "names");
    forward(engine, Tokens{5});
    check(engine.position() == 601, "it works as before");
}

// What the caller throws between batches leaves the text as it was.
static void test_interrupt() {
    Config config = small_config();
    config.context_length = 2000;
    const Model model(config);
    const Tokens tokens = random_tokens(1300, config);
    Engine engine(config, model.tensors, 1400, 2);
    const std::span<const int32_t> all(tokens);
    forward(engine, all.first(20));
    int calls = 0;
    Floats logits(1280 * config.vocab_size);
    const auto stop = [&] {
        if (++calls == 2) throw std::runtime_error("stop");
    };
    check_throws<std::runtime_error>([&] { engine.forward(all.subspan(20), true, logits.data(), stop); }, "stop");
    check(engine.position() == 20 && calls == 2, "position after an interrupt");
    check_same(forward(engine, all.subspan(20, 30)),
               last_rows(fresh(model, {tokens.begin(), tokens.begin() + 50}), 30, config), "after an interrupt");
}

// A batch of a large model takes seconds, so it can be stopped between two layers.
static void test_interrupt_within_a_batch() {
    Config config = small_config();
    config.n_layers = 3;
    const Model model(config);
    const Tokens tokens = random_tokens(100, config);
    const std::span<const int32_t> all(tokens);
    Engine engine(config, model.tensors, 200, 2);
    forward(engine, all.first(20));
    int calls = 0;
    Floats logits(config.vocab_size);
    const auto count = [&] { ++calls; };
    const auto stop = [&] {
        if (++calls == 2) throw std::runtime_error("stop");
    };
    check_throws<std::runtime_error>([&] { engine.forward(all.subspan(20), false, logits.data(), stop); }, "stop");
    check(engine.position() == 20 && calls == 2, "position after an interrupt within a batch");
    calls = 0;
    engine.forward(all.subspan(20, 40), false, logits.data(), count);
    check(calls == 2, "between three layers");
    check_same(forward(engine, all.subspan(60)), last_rows(fresh(model, tokens), 40, config), "after it");
    calls = 0;
    engine.forward(all.first(1), false, logits.data(), count);
    check(calls == 0, "a token is not interrupted");
}

// An interrupt while everything is computed anew with the long factors: what is missing is made up for later.
static void test_interrupt_at_the_switch() {
    Config config = longrope_config();
    config.context_length = 2000;
    config.original_context_length = 1000;
    const Model model(config);
    const Tokens tokens = random_tokens(1100, config);
    const std::span<const int32_t> all(tokens);
    Engine engine(config, model.tensors, 1100, 2);
    forward(engine, all.first(900), false);
    Floats logits(200 * config.vocab_size);
    const auto stop = [] { throw std::runtime_error("stop"); };
    check_throws<std::runtime_error>([&] { engine.forward(all.subspan(900), true, logits.data(), stop); }, "stop");
    check(engine.position() == 900, "position after an interrupt at the switch");
    check_same(forward(engine, all.subspan(900)), last_rows(fresh(model, tokens), 200, config),
               "after an interrupt at the switch");
}

// ---- what is refused -------------------------------------------------------------------------

template <class Change>
static void refuse(const Change &change, const std::string &part, const Config &config = longrope_config()) {
    Model model(config);
    int64_t n_ctx = 64;
    int threads = 1;
    change(model, n_ctx, threads);
    check_throws<std::invalid_argument>([&] { Engine(model.config, model.tensors, n_ctx, threads); }, part);
}

static void test_refusals() {
    refuse([](Model &, int64_t &n_ctx, int &) { n_ctx = 0; }, "n_ctx must be from 1 to 256, not 0");
    refuse([](Model &, int64_t &n_ctx, int &) { n_ctx = 257; }, "n_ctx must be from 1 to 256, not 257");
    refuse([](Model &, int64_t &, int &threads) { threads = 0; }, "threads must be from 1");
    refuse([](Model &m, int64_t &, int &) { m.config.n_kv_heads = 4; }, "n_kv_heads must divide n_heads");
    refuse([](Model &m, int64_t &, int &) { m.config.rope_size = 5; }, "rope_size must be even");
    refuse([](Model &m, int64_t &, int &) { m.config.rope_size = 10; }, "rope_size must be from 2 to 8");
    refuse([](Model &m, int64_t &, int &) { m.config.norm_eps = 0; }, "norm_eps must be a positive");
    refuse([](Model &m, int64_t &, int &) { m.config.rope_theta = NAN; }, "rope_theta must be a positive");
    refuse([](Model &m, int64_t &, int &) { m.config.long_factor.pop_back(); }, "long_factor has 2 numbers");
    refuse([](Model &m, int64_t &, int &) { m.config.long_factor.clear(); }, "must be given together");
    refuse([](Model &m, int64_t &, int &) { m.config.short_factor[1] = -1; }, "short_factor must be a positive");
    refuse([](Model &m, int64_t &, int &) { m.config.n_layers = 3; }, "blk.2.attn_norm.weight is missing");
    refuse([](Model &m, int64_t &, int &) { m.config.vocab_size = 60; },
           "token_embd.weight has 61 rows of 48, expected 60 rows of 48");
    refuse([](Model &m, int64_t &, int &) { m.tensors["blk.0.attn_qkv.bias"] = m.tensors["output_norm.weight"]; },
           "blk.0.attn_qkv.bias has no place");
    refuse([](Model &m, int64_t &, int &) { m.tensors["output.weight"].type = "Q2_K"; }, "output.weight: ");
    refuse([](Model &m, int64_t &, int &) { m.tensors["output.weight"].type = "Q4_0"; }, "blocks of 32");
    refuse([](Model &m, int64_t &, int &) { m.tensors["output.weight"].bytes -= 4; }, "bytes, expected");
    refuse([](Model &m, int64_t &, int &) { m.tensors["output.weight"].data += 2; }, "divisible by 4");
    refuse([](Model &m, int64_t &, int &) { m.convert("output_norm.weight", "F16"); },
           "output_norm.weight must be F32");
    refuse([](Model &m, int64_t &, int &) { m.tensors.erase("blk.1.ffn_up.bias"); }, "blk.1.ffn_up.bias is missing",
           phi2_config());
    refuse([](Model &m, int64_t &, int &) { m.tensors["blk.1.ffn_norm.weight"] = m.tensors["output_norm.weight"]; },
           "blk.1.ffn_norm.weight has no place in a phi2 model", phi2_config());
    refuse([](Model &m, int64_t &, int &) { m.config.attention_bias = false; }, "bias has no place in a phimoe model",
           phimoe_config());
    refuse([](Model &m, int64_t &, int &) { m.config.n_experts = 6; },
           "blk.0.ffn_gate_inp.weight has 5 rows of 48, expected 6 rows of 48", phimoe_config());
    refuse([](Model &m, int64_t &, int &) { m.tensors["blk.1.ffn_down_exps.weight"].rows -= 48; },
           "blk.1.ffn_down_exps.weight has 192 rows of 40, expected 240 rows of 40", phimoe_config());
    refuse([](Model &m, int64_t &, int &) { m.config.n_experts_used = 6; }, "n_experts_used must be from 1 to 5",
           phimoe_config());
    refuse([](Model &m, int64_t &, int &) { m.config.router_jitter = NAN; }, "router_jitter must be a positive",
           phimoe_config());
    check_throws<std::invalid_argument>([] { phi::find_architecture("llama"); }, "llama is not known");
    Config huge = small_config();
    huge.n_layers = 4096;
    huge.n_kv_heads = 1 << 16;
    check_throws<std::invalid_argument>([&] { phi::KVCache(huge, int64_t{1} << 31, phi::Type::F16); },
                                        "choose a smaller n_ctx");
}

static void test_bad_calls() {
    const Model model(small_config());
    Engine engine(model.config, model.tensors, 10, 1);
    forward(engine, Tokens{1, 2, 3});
    check_throws<std::invalid_argument>([&] { forward(engine, Tokens{}); }, "at least one token");
    check_throws<std::out_of_range>([&] { forward(engine, Tokens{4, 61}); }, "token 61 is not in the vocabulary of 61");
    check_throws<std::out_of_range>([&] { forward(engine, Tokens{-1}); }, "token -1");
    check_throws<std::out_of_range>([&] { forward(engine, Tokens(8, 1)); }, "11 tokens, the context has room for 10");
    check_throws<std::out_of_range>([&] { engine.truncate(4); }, "3 tokens to 4");
    check_throws<std::out_of_range>([&] { engine.truncate(-1); }, "to -1");
    check(engine.position() == 3, "a refused call changed the text");
    check_same(forward(engine, Tokens{5}), last_rows(fresh(model, {1, 2, 3, 5}), 1, model.config),
               "after refused calls");
}

static void test_bad_sequences() {
    const Model model(small_config());
    Engine engine(model.config, model.tensors, 10, 1, phi::Type::F16, phi::active_isa(), 2);
    const Tokens good{1, 2, 3}, bad{4, 61}, none;
    Floats logits(2 * model.config.vocab_size);
    const auto read = [&](const std::vector<phi::Reading> &readings) { engine.forward(readings, false, logits.data()); };
    read({{1, good}});
    check_throws<std::invalid_argument>([&] { read({}); }, "at least one sequence");
    check_throws<std::out_of_range>([&] { read({{0, good}, {2, good}}); }, "sequence 2 does not exist: there are 0 to 1");
    check_throws<std::out_of_range>([&] { read({{-1, good}}); }, "sequence -1 does not exist");
    check_throws<std::invalid_argument>([&] { read({{0, good}, {0, good}}); }, "sequence 0 is named twice");
    check_throws<std::out_of_range>([&] { read({{0, good}, {1, bad}}); }, "token 61 is not in the vocabulary");
    check_throws<std::invalid_argument>([&] { read({{0, good}, {1, none}}); }, "at least one token");
    check_throws<std::out_of_range>([&] { engine.truncate(0, 2); }, "sequence 2 does not exist");
    check_throws<std::out_of_range>([&] { engine.position(2); }, "sequence 2 does not exist");
    check_throws<std::out_of_range>([&] { engine.copy(1, 2, 1); }, "sequence 2 does not exist");
    check_throws<std::out_of_range>([&] { engine.copy(1, 0, 4); }, "cannot copy 4 tokens of a text of 3");
    check_throws<std::out_of_range>([&] { engine.copy(1, 0, -1); }, "cannot copy -1 tokens");
    check(engine.position(0) == 0 && engine.position(1) == 3, "a refused call changed a text");
    for (int64_t n : {0, 1025})
        check_throws<std::invalid_argument>(
            [&] { Engine(model.config, model.tensors, 10, 1, phi::Type::F16, phi::active_isa(), n); },
            "n_sequences must be from 1 to 1024, not " + std::to_string(n));
}

// Every item is in one part, and no part is larger than asked.
static void test_parts() {
    for (int threads : {1, 2, 3}) {
        phi::ThreadPool pool(threads);
        for (size_t n : {0, 1, 2, 15, 16, 17, 1000})
            for (size_t grain : {1, 7, 8, 64}) {
                std::vector<std::atomic<int>> times(n);
                std::atomic<bool> too_large = false;
                pool.run([&](int) {
                    pool.for_each(n, grain, [&](size_t begin, size_t end) {
                        if (end - begin > grain) too_large = true;
                        for (size_t i = begin; i < end; ++i) ++times[i];
                    });
                });
                check(!too_large && std::ranges::all_of(times, [](const auto &count) { return count == 1; }),
                      "parts of " + std::to_string(n) + " items on " + std::to_string(threads) + " threads");
            }
    }
}

int main() {
    test_parts();
    test_against_written_out();
    test_threads();
    test_cuts();
    test_last_logits();
    test_truncate();
    test_hidden_states();
    test_no_layers();
    test_bad_hidden_states();
    test_grouped_heads();
    test_window();
    test_mixed_types();
    test_sequences();
    test_long_sequences();
    test_router();
    test_input_squares();
    test_interrupt();
    test_interrupt_within_a_batch();
    test_interrupt_at_the_switch();
    test_refusals();
    test_bad_calls();
    test_bad_sequences();
    return report("engine");
}
