// A text that grows, with the keys and values of its tokens. An engine has one or several.
#pragma once

#include "kv_cache.hpp"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace phi {

class Sequence {
  public:
    explicit Sequence(KVCache cache) : cache_(std::move(cache)) {}

    int64_t length() const { return static_cast<int64_t>(text_.size()); }
    int64_t n_cached() const { return n_cached_; } // the first so many tokens have keys and values
    bool uses_long_factors() const { return uses_long_factors_; }
    int32_t token(int64_t position) const { return text_[position]; }
    const KVCache &cache() const { return cache_; }

    void append(std::span<const int32_t> tokens) { text_.insert(text_.end(), tokens.begin(), tokens.end()); }

    // Keys and values that LongRoPE's other factors made are of no use.
    void choose_factors(bool use_long) {
        if (use_long != uses_long_factors_) n_cached_ = 0;
        uses_long_factors_ = use_long;
    }

    void set_cached(int64_t n) { n_cached_ = n; }

    // Forgets every position from `length` on. Throws std::out_of_range beyond length().
    void truncate(int64_t length) {
        if (length < 0 || length > this->length())
            throw std::out_of_range("cannot truncate a text of " + std::to_string(this->length()) + " tokens to " +
                                    std::to_string(length));
        text_.resize(length);
        n_cached_ = std::min(n_cached_, length);
    }

    // Becomes the first `length` positions of another sequence of the same engine.
    void copy(const Sequence &other, int64_t length) {
        text_.assign(other.text_.begin(), other.text_.begin() + length);
        n_cached_ = std::min(length, other.n_cached_);
        uses_long_factors_ = other.uses_long_factors_;
        cache_.copy(other.cache_, n_cached_);
    }

  private:
    KVCache cache_;
    std::vector<int32_t> text_;
    int64_t n_cached_ = 0;
    bool uses_long_factors_ = false;
};

} // namespace phi
