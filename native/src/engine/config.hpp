// The shape of a Phi-3 model, checked before anything is sized by it.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace phi {

struct Config {
    int64_t hidden_size = 0, n_layers = 0, n_heads = 0, n_kv_heads = 0, head_size = 0, ffn_size = 0;
    int64_t vocab_size = 0, context_length = 0, original_context_length = 0;
    int64_t rope_size = 0;      // dimensions of a head that are rotated, from the first on
    int64_t sliding_window = 0; // a query sees the keys with query - key < sliding_window; 0: all
    double norm_eps = 0, rope_theta = 0, attention_factor = 1;
    std::vector<float> short_factor, long_factor; // one divisor for each rotated pair, or empty

    int64_t group_size() const { return n_heads / n_kv_heads; } // query heads for one key and value head
    int64_t query_size() const { return n_heads * head_size; }
    int64_t kv_size() const { return n_kv_heads * head_size; }
    int64_t qkv_size() const { return query_size() + 2 * kv_size(); }
};

namespace detail {

inline void require(bool holds, const std::string &message) {
    if (!holds) throw std::invalid_argument(message);
}

inline void require_between(const char *name, int64_t value, int64_t least, int64_t most) {
    require(value >= least && value <= most, std::string(name) + " must be from " + std::to_string(least) + " to " +
                                                 std::to_string(most) + ", not " + std::to_string(value));
}

inline void require_positive(const char *name, double value) {
    require(std::isfinite(value) && value > 0, std::string(name) + " must be a positive number");
}

inline void check_factors(const char *name, const std::vector<float> &factors, int64_t pairs) {
    require(factors.empty() || static_cast<int64_t>(factors.size()) == pairs,
            std::string(name) + " has " + std::to_string(factors.size()) + " numbers, rope_size needs " +
                std::to_string(pairs));
    for (float factor : factors) require_positive(name, factor);
}

} // namespace detail

// Throws std::invalid_argument, which names the field. The limits keep every size far from overflow.
inline void check(const Config &config) {
    using namespace detail;
    require_between("hidden_size", config.hidden_size, 1, 1 << 20);
    require_between("n_layers", config.n_layers, 1, 4096);
    require_between("n_heads", config.n_heads, 1, 1 << 16);
    require_between("n_kv_heads", config.n_kv_heads, 1, config.n_heads);
    require_between("head_size", config.head_size, 1, 1 << 12);
    require_between("ffn_size", config.ffn_size, 1, 1 << 24);
    require_between("vocab_size", config.vocab_size, 1, 1 << 24);
    require_between("context_length", config.context_length, 1, int64_t{1} << 31);
    require_between("original_context_length", config.original_context_length, 1, int64_t{1} << 31);
    require_between("rope_size", config.rope_size, 2, config.head_size);
    require_between("sliding_window", config.sliding_window, 0, int64_t{1} << 31);
    require_positive("norm_eps", config.norm_eps);
    require_positive("rope_theta", config.rope_theta);
    require_positive("attention_factor", config.attention_factor);
    require(config.n_heads % config.n_kv_heads == 0, "n_kv_heads must divide n_heads");
    require(config.rope_size % 2 == 0, "rope_size must be even");
    require(config.query_size() <= 1 << 22, "n_heads * head_size must be at most 4194304");
    require(config.short_factor.empty() == config.long_factor.empty(),
            "short_factor and long_factor must be given together");
    check_factors("short_factor", config.short_factor, config.rope_size / 2);
    check_factors("long_factor", config.long_factor, config.rope_size / 2);
}

} // namespace phi
