// Which experts a token goes to: Phi-3.5-MoE's router, "sparsemixer", without its noise in training.
#pragma once

#include <algorithm>
#include <cmath>

namespace phi {

// A pick of one token: an expert, and how much its answer counts.
struct Pick {
    int expert;
    float weight;
    int slot; // where the token's copy for this expert lies among those of the batch
};

// Picks the expert with the highest score, then the highest of the others, and so on. A pick's weight is the
// softmax of its score among the experts that are not picked before and nearly as good: the distance, as a
// part of the score, is at most 2 * jitter. Weights are not made to add up to 1. `picks` has n_used places.
inline void pick_experts(const float *scores, int n_experts, int n_used, float jitter, Pick *picks) {
    for (int i = 0; i < n_used; ++i) {
        const auto is_picked = [&](int expert) {
            return std::any_of(picks, picks + i, [&](const Pick &pick) { return pick.expert == expert; });
        };
        int best = -1; // where scores are no numbers, still one of the experts
        for (int expert = 0; expert < n_experts; ++expert)
            if (!is_picked(expert) && (best < 0 || scores[expert] > scores[best])) best = expert;
        float total = 0;
        for (int expert = 0; expert < n_experts; ++expert) {
            const float distance = scores[best] - scores[expert];
            const bool is_far = distance / std::max(std::abs(scores[expert]), scores[best]) > 2 * jitter;
            if (!is_far && !is_picked(expert)) total += std::exp(-distance);
        }
        picks[i] = {best, 1.0f / total, 0};
    }
}

} // namespace phi
