// The scale of codes from zero up: where IQ2_XXS starts to search.
// Lane: a sub-block, each with its float operations in the reference's order.
// To read: `positive_search` of phicourse/quantize/weighted_search.py
#pragma once

#include "../simd.hpp"

namespace phi::PHI_ISA {

// Nothing stops a number below zero: ggml keeps its code in a byte, where it wraps around.
static inline Floats as_byte(Ints code) { return to_floats(code & 255); }

static inline Ints code_up_to(Floats level, int n_max) { return min(nearest_int(level), splat(n_max)); }

// Sum of w (x - scale * code)^2, codes being code(i)
template <int n, class Code>
static inline Floats squares(const Floats *x, const Floats *w, Floats scale, Code code) {
    Floats sum{};
    for (int i = 0; i < n; ++i) {
        const Floats difference = x[i] - scale * code(i);
        sum += w[i] * difference * difference;
    }
    return sum;
}

// Tries eight scales around the obvious one. Returns the inverse of that with the smallest error.
template <int n, int n_max> static inline Floats best_inverse(const Floats *x, const Floats *w, Floats largest) {
    Floats inverse = (float)n_max / largest;
    Floats least = squares<n>(x, w, 1.0f / inverse, [&](int i) { return as_byte(nearest_int(inverse * x[i])); });
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        const Floats tried = (0.1f * step + n_max) / largest;
        const Floats error =
            squares<n>(x, w, 1.0f / tried, [&](int i) { return to_floats(code_up_to(tried * x[i], n_max)); });
        inverse = select(error < least, tried, inverse);
        least = select(error < least, error, least);
    }
    return inverse;
}

// Gives each weight the code that is nearest with the scale that the others want, and keeps it where the gain
// (sum of w x l)^2 / (sum of w l^2) grows. Returns whether any code changed.
template <int n, int n_max>
static inline bool improve(const Floats *x, const Floats *w, const Floats *wx, Floats *codes, Floats &xl, Floats &ll) {
    Ints changed{};
    for (int i = 0; i < n; ++i) {
        const Floats others_xl = xl - wx[i] * codes[i], others_ll = ll - w[i] * codes[i] * codes[i];
        const Ints nearest = code_up_to(x[i] * others_ll / others_xl, n_max);
        const Floats tried = to_floats(nearest);
        const Ints possible = (others_xl > 0.0f) & (others_ll > 0.0f) & (tried != codes[i]);
        if (!any(possible)) continue; // often, and it need not wait for the division
        const Floats new_xl = others_xl + wx[i] * tried, new_ll = others_ll + w[i] * tried * tried;
        const Ints better = possible & (new_xl * new_xl * ll > xl * xl * new_ll);
        codes[i] = select(better, as_byte(nearest), codes[i]);
        xl = select(better, new_xl, xl);
        ll = select(better, new_ll, ll);
        changed |= better;
    }
    return any(changed);
}

// largest: of each sub-block, above zero; wx[i] = w[i] * x[i]
template <int n, int n_max>
static inline Floats positive_scale(const Floats *x, const Floats *w, const Floats *wx, Floats largest) {
    const Floats inverse = best_inverse<n, n_max>(x, w, largest);
    Floats codes[n], xl{}, ll{};
    for (int i = 0; i < n; ++i) {
        const Ints code = code_up_to(inverse * x[i], n_max);
        const Floats signed_code = to_floats(code);
        xl += wx[i] * signed_code;
        ll += w[i] * signed_code * signed_code;
        codes[i] = as_byte(code);
    }
    for (int round = 0; round < 5; ++round)
        if (!improve<n, n_max>(x, w, wx, codes, xl, ll)) break;
    return select(ll > 0.0f, xl / ll, Floats{});
}

} // namespace phi::PHI_ISA
