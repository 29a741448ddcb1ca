// The engine on small random models: against a forward pass written out in double precision, and against
// itself, where two ways of computing the same text must give the same bits.
#include "engine/engine.hpp"
#include "test_support.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

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
    config.attention_factor = 1.2;
    return config;
}

// A model with F32 weights.
class Model {
  public:
    explicit Model(const Config &config, bool tied = false) : config(config) {
        const int64_t hidden = config.hidden_size;
        add("token_embd.weight", config.vocab_size, hidden, 1);
        for (int64_t i = 0; i < config.n_layers; ++i) {
            const std::string prefix = "blk." + std::to_string(i) + ".";
            add(prefix + "attn_norm.weight", 1, hidden, 1);
            add(prefix + "ffn_norm.weight", 1, hidden, 1);
            add(prefix + "attn_qkv.weight", config.qkv_size(), hidden, 0.4f);
            add(prefix + "attn_output.weight", hidden, config.query_size(), 0.4f);
            add(prefix + "ffn_up.weight", 2 * config.ffn_size, hidden, 0.4f);
            add(prefix + "ffn_down.weight", hidden, config.ffn_size, 0.4f);
        }
        add("output_norm.weight", 1, hidden, 1);
        if (!tied) add("output.weight", config.vocab_size, hidden, 0.2f);
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

static Doubles normed(const Doubles &x, const Floats &weight, double eps) {
    double squares = 0;
    for (double value : x) squares += value * value;
    Doubles out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] / std::sqrt(squares / double(x.size()) + eps) * weight[i];
    return out;
}

static void rotate(double *head, int64_t position, const Config &config, bool use_long) {
    const Floats &factors = use_long ? config.long_factor : config.short_factor;
    const int64_t half = config.rope_size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const double speed = std::pow(config.rope_theta, -2.0 * double(i) / double(config.rope_size));
        const double angle = double(position) * speed / (factors.empty() ? 1 : factors[i]);
        const double cosine = std::cos(angle) * config.attention_factor,
                     sine = std::sin(angle) * config.attention_factor;
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

static void add(Doubles &x, const Doubles &y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

static void layer(const Model &model, int64_t index, std::vector<Doubles> &residual) {
    const Config &config = model.config;
    const std::string prefix = "blk." + std::to_string(index) + ".";
    const bool use_long =
        !config.long_factor.empty() && static_cast<int64_t>(residual.size()) > config.original_context_length;
    std::vector<Doubles> qkv;
    for (size_t position = 0; position < residual.size(); ++position) {
        Doubles &x = residual[position];
        qkv.push_back(times(model.values(prefix + "attn_qkv.weight"),
                            normed(x, model.values(prefix + "attn_norm.weight"), config.norm_eps)));
        for (int64_t head = 0; head < config.n_heads + config.n_kv_heads; ++head)
            rotate(&qkv.back()[head * config.head_size], static_cast<int64_t>(position), config, use_long);
        add(x, times(model.values(prefix + "attn_output.weight"), attended(qkv, config)));
        const Doubles y = normed(x, model.values(prefix + "ffn_norm.weight"), config.norm_eps);
        add(x,
            times(model.values(prefix + "ffn_down.weight"), gated(times(model.values(prefix + "ffn_up.weight"), y))));
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
    for (const Doubles &x : residual)
        for (double logit : times(output, normed(x, model.values("output_norm.weight"), config.norm_eps)))
            logits.push_back(logit);
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
    for (const Config &config : {small_config(), window, heads, longrope_config(), full})
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
    const Model model(longrope_config());
    const Tokens tokens = random_tokens(80, model.config);
    const Floats expected = fresh(model, tokens);
    for (int threads : {2, 3, 7})
        check_same(fresh(model, tokens, threads), expected, std::to_string(threads) + " threads");
}

// However a text is cut into calls, the last logits are those of one call over all of it: also where it grows
// past LongRoPE's switch at 64 tokens.
static void test_cuts() {
    for (const Config &config : {small_config(), longrope_config()}) {
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

template <class Change> static void refuse(const Change &change, const std::string &part) {
    Model model(longrope_config());
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

int main() {
    test_against_written_out();
    test_threads();
    test_cuts();
    test_last_logits();
    test_truncate();
    test_grouped_heads();
    test_window();
    test_mixed_types();
    test_interrupt();
    test_interrupt_at_the_switch();
    test_refusals();
    test_bad_calls();
    return report("engine");
}
