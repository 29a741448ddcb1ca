// The angles of rotary position embedding, with LongRoPE's two lists of factors.
#pragma once

#include "config.hpp"

namespace phi {

class Rope {
  public:
    explicit Rope(const Config &config)
        : attention_factor_(static_cast<float>(config.attention_factor)),
          original_context_length_(config.original_context_length), short_(frequencies(config, config.short_factor)),
          long_(frequencies(config, config.long_factor)), has_factors_(!config.long_factor.empty()) {}

    // A text of `length` tokens is rotated by the long factors, all of it.
    bool uses_long_factors(int64_t length) const { return has_factors_ && length > original_context_length_; }

    int64_t pairs() const { return static_cast<int64_t>(short_.size()); }

    // Cosines and sines (pairs) for a position. Angles are rounded to float as the models were trained.
    void angles(int64_t position, bool use_long, float *cosine, float *sine) const {
        const std::vector<float> &speeds = use_long ? long_ : short_;
        for (size_t i = 0; i < speeds.size(); ++i) {
            const float angle = static_cast<float>(position) * speeds[i];
            cosine[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * attention_factor_;
            sine[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * attention_factor_;
        }
    }

  private:
    // Radians from one position to the next: 1 / (factor * theta^(2i / rope_size)).
    static std::vector<float> frequencies(const Config &config, const std::vector<float> &factors) {
        std::vector<float> speeds(static_cast<size_t>(config.rope_size / 2));
        for (size_t i = 0; i < speeds.size(); ++i) {
            const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.rope_size);
            const float power = std::pow(static_cast<float>(config.rope_theta), exponent);
            speeds[i] = 1.0f / (factors.empty() ? power : factors[i] * power);
        }
        return speeds;
    }

    float attention_factor_;
    int64_t original_context_length_;
    std::vector<float> short_, long_;
    bool has_factors_;
};

} // namespace phi
