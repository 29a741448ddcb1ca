// The shape of a Phi model, checked before anything is sized by it.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace phi {

// fc2(gelu(fc1(x))), down(silu(gate(x)) * up(x)), or several of the latter, of which a router picks some.
enum class FeedForward { gelu, swiglu, experts };

// What sets the Phis apart; all else are numbers.
struct Architecture {
    const char *name;     // in a GGUF file
    bool has_layer_norms; // with mean and bias; else RMSNorms
    bool is_parallel;     // the feed-forward part reads the norm that attention reads; else one of its own
    bool has_fused_qkv;   // queries, keys and values come from one matrix; else from three
    FeedForward feed_forward;
};

inline constexpr Architecture architectures[] = {
    {"phi2", true, true, false, FeedForward::gelu},
    {"phi3", false, false, true, FeedForward::swiglu},
    {"phimoe", true, false, false, FeedForward::experts},
};

// Throws std::invalid_argument for a name that is none of theirs.
inline const Architecture &find_architecture(const std::string &name) {
    for (const Architecture &known : architectures)
        if (name == known.name) return known;
    throw std::invalid_argument("architecture " + name + " is not known: phi2, phi3 and phimoe are");
}

struct Config {
    const Architecture *architecture = &find_architecture("phi3");
    int64_t hidden_size = 0, n_layers = 0, first_layer = 0; // layers before the first one are computed elsewhere
    int64_t n_heads = 0, n_kv_heads = 0, head_size = 0, ffn_size = 0;
    int64_t vocab_size = 0, context_length = 0, original_context_length = 0;
    int64_t rope_size = 0;      // dimensions of a head that are rotated, from the first on
    int64_t sliding_window = 0; // a query sees the keys with query - key < sliding_window; 0: all
    double norm_eps = 0, rope_theta = 0;
    std::vector<float> short_factor, long_factor;     // one divisor for each rotated pair, or empty
    double short_magnitude = 1, long_magnitude = 1;   // by which rotation lengthens queries and keys
    bool attention_bias = false, output_bias = false; // after the matrices of attention, after the last one
    int64_t n_experts = 0, n_experts_used = 0;        // of a layer, and by each token; 0 without experts
    double router_jitter = 0;                         // see pick_experts

    int64_t own_layers() const { return n_layers - first_layer; }
    int64_t group_size() const { return n_heads / n_kv_heads; } // query heads for one key and value head
    int64_t query_size() const { return n_heads * head_size; }
    int64_t kv_size() const { return n_kv_heads * head_size; }
    int64_t qkv_size() const { return query_size() + 2 * kv_size(); }
    int64_t up_size() const { return architecture->feed_forward == FeedForward::gelu ? ffn_size : 2 * ffn_size; }
    bool has_experts() const { return architecture->feed_forward == FeedForward::experts; }
    int64_t feed_forward_passes() const { return has_experts() ? n_experts_used : 1; } // of each token
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
    require_between("first_layer", config.first_layer, 0, config.n_layers);
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
    require_positive("short_magnitude", config.short_magnitude);
    require_positive("long_magnitude", config.long_magnitude);
    if (config.has_experts()) {
        require_between("n_experts", config.n_experts, 1, 512);
        require_between("n_experts_used", config.n_experts_used, 1, config.n_experts);
        require_positive("router_jitter", config.router_jitter);
    }
    require(config.n_heads % config.n_kv_heads == 0, "n_kv_heads must divide n_heads");
    require(config.rope_size % 2 == 0, "rope_size must be even");
    require(config.query_size() <= 1 << 22, "n_heads * head_size must be at most 4194304");
    require(config.short_factor.empty() == config.long_factor.empty(),
            "short_factor and long_factor must be given together");
    check_factors("short_factor", config.short_factor, config.rope_size / 2);
    check_factors("long_factor", config.long_factor, config.rope_size / 2);
}

} // namespace phi
