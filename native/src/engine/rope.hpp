// The angles of rotary position embedding, with LongRoPE's two lists of factors.
#pragma once

#include "config.hpp"

namespace phi {

class Rope {
  public:
    explicit Rope(const Config &config)
        : original_context_length_(config.original_context_length),
          short_{frequencies(config, config.short_factor), static_cast<float>(config.short_magnitude)},
          long_{frequencies(config, config.long_factor), static_cast<float>(config.long_magnitude)},
          has_factors_(!config.long_factor.empty()) {}

    // A text of `length` tokens is rotated by the long factors, all of it.
    bool uses_long_factors(int64_t length) const { return has_factors_ && length > original_context_length_; }

    int64_t pairs() const { return static_cast<int64_t>(short_.speeds.size()); }

    // Cosines and sines (pairs) for a position. Angles are rounded to float as the models were trained.
    void angles(int64_t position, bool use_long, float *cosine, float *sine) const {
        const Rotation &rotation = use_long ? long_ : short_;
        for (size_t i = 0; i < rotation.speeds.size(); ++i) {
            const float angle = static_cast<float>(position) * rotation.speeds[i];
            cosine[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * rotation.magnitude;
            sine[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * rotation.magnitude;
        }
    }

  private:
    struct Rotation {
        std::vector<float> speeds; // (pairs)
        float magnitude;
    };

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

    int64_t original_context_length_;
    Rotation short_, long_;
    bool has_factors_;
};

} // namespace phi
