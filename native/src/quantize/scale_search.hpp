// How a sub-block finds its scale: try some, keep the one whose codes fit best.
// Lane: a sub-block. PAIR_LANES searches run side by side, and each lane does its float operations in the
// reference's order, so that it decides as the reference decides. x[i] has weight i of every sub-block.
// To read, with the mathematics: phicourse/quantize/scale_search.py, which has the same functions.
#pragma once

#include "../simd.hpp"

namespace phi::PHI_ISA {

// Below this largest magnitude a sub-block counts as all zero.
constexpr float ZERO = 1e-15f;

static inline FloatPair clamp(FloatPair v, int low, int high) {
    return min(max(v, splat_pair((float)low)), splat_pair((float)high));
}

// How much an error counts: the importance of the weight's column, and a little more for large weights.
template <int n>
static inline void error_weights(const FloatPair *x, const FloatPair *importance, FloatPair mean_square,
                                 FloatPair *w) {
    for (int i = 0; i < n; ++i) w[i] = importance[i] * sqrt(mean_square + x[i] * x[i]);
}

// The number of largest magnitude of every sub-block, with its sign; the first of equals; never -0.
template <int n> static inline FloatPair signed_peak(const FloatPair *x) {
    FloatPair peak{}, magnitude{};
    for (int i = 0; i < n; ++i) {
        const IntPair larger = abs(x[i]) > magnitude;
        peak = select(larger, x[i], peak);
        magnitude = select(larger, abs(x[i]), magnitude);
    }
    return peak;
}

// ---- symmetric: weight = scale * code, with codes from -n_max to n_max - 1 -------------------

struct Symmetric {
    FloatPair scale;
    FloatPair inverse; // code = nearest_int(inverse * x); 0 where the sub-block is all zero
};

// Sums of w x l and of w l^2 over each sub-block, l being the code.
struct Projections {
    FloatPair xl, ll;
};

// weighted_x[i] = w[i] * x[i]
template <int n, int n_max>
static inline Projections projections(const FloatPair *x, const FloatPair *w, const FloatPair *weighted_x,
                                      FloatPair inverse) {
    Projections sums{};
    for (int i = 0; i < n; ++i) {
        const FloatPair code = clamp(round_even(inverse * x[i]), -n_max, n_max - 1);
        sums.xl += weighted_x[i] * code;
        sums.ll += w[i] * code * code;
    }
    return sums;
}

// Tries 19 scales around the one that gives the peak the lowest code. The best codes have the largest gain.
template <int n, int n_max> static inline Symmetric symmetric_search(const FloatPair *x, const FloatPair *w) {
    FloatPair peak = signed_peak<n>(x);
    const IntPair empty = abs(peak) < ZERO;
    peak = select(empty, splat_pair(1.0f), peak);
    FloatPair weighted_x[n];
    for (int i = 0; i < n; ++i) weighted_x[i] = w[i] * x[i];

    Symmetric best{{}, -(float)n_max / peak};
    const Projections first = projections<n, n_max>(x, w, weighted_x, best.inverse);
    best.scale = select(first.ll != 0.0f, first.xl / first.ll, FloatPair{});
    FloatPair gain = best.scale * first.xl;
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) continue;
        const FloatPair inverse = -(n_max + 0.1f * step) / peak;
        const Projections sums = projections<n, n_max>(x, w, weighted_x, inverse);
        const IntPair better = (sums.ll > 0.0f) & (sums.xl * sums.xl > gain * sums.ll);
        const FloatPair scale = sums.xl / sums.ll;
        best.scale = select(better, scale, best.scale);
        best.inverse = select(better, inverse, best.inverse);
        gain = select(better, scale * sums.xl, gain);
    }
    return {select(empty, FloatPair{}, best.scale), select(empty, FloatPair{}, best.inverse)};
}

// ---- affine: weight = scale * code + minimum, with codes from 0 to n_max, minimum <= 0 -------

struct Affine {
    FloatPair scale, minimum;
    FloatPair inverse, base; // code = nearest_int(inverse * (x - base))
    FloatPair error;         // weighted squared error
};

// What the search needs to know about the weights of each sub-block.
struct Statistics {
    FloatPair lowest, highest;
    FloatPair sum_w, sum_x; // of w and of w x
};

template <int n> static inline Statistics statistics(const FloatPair *x, const FloatPair *w) {
    Statistics s{x[0], x[0], w[0], w[0] * x[0]};
    for (int i = 1; i < n; ++i) {
        s.lowest = min(x[i], s.lowest);
        s.highest = max(x[i], s.highest);
        s.sum_w += w[i];
        s.sum_x += w[i] * x[i];
    }
    return s;
}

// The reference's rounding, for weights at the ends of what a float can hold, where the quick one differs.
// Apart, so that the compiler keeps its registers for the usual case.
template <int n, int n_max>
__attribute__((noinline, cold)) static void codes_above_exact(const FloatPair *x, const FloatPair &base,
                                                              const FloatPair &inverse, FloatPair *codes) {
    for (int i = 0; i < n; ++i) codes[i] = clamp(to_floats(nearest_int(inverse * (x[i] - base))), 0, n_max);
}

template <int n, int n_max>
static inline void codes_above(const FloatPair *x, const Statistics &s, FloatPair base, FloatPair inverse,
                               FloatPair *codes) {
    const FloatPair low = abs(inverse * (s.lowest - base)), high = abs(inverse * (s.highest - base));
    if (!all((low < MAGIC_LIMIT) & (high < MAGIC_LIMIT)))
        return codes_above_exact<n, n_max>(x, base, inverse, codes);
    for (int i = 0; i < n; ++i) codes[i] = clamp(round_even(inverse * (x[i] - base)), 0, n_max);
}

// Sum of w (scale * code + minimum - x)^2
template <int n>
static inline FloatPair error_of(const FloatPair *x, const FloatPair *w, const FloatPair *codes, FloatPair scale,
                                 FloatPair minimum) {
    FloatPair sum{};
    for (int i = 0; i < n; ++i) {
        const FloatPair difference = scale * codes[i] + minimum - x[i];
        sum += w[i] * (difference * difference);
    }
    return sum;
}

// Sets the scale, minimum and error that fit the codes best. Returns where there is a single best one.
template <int n>
static inline IntPair least_squares(const FloatPair *x, const FloatPair *w, const Statistics &s,
                                    const FloatPair *codes, Affine &fit) {
    FloatPair sum_l{}, sum_ll{}, sum_xl{};
    for (int i = 0; i < n; ++i) {
        const FloatPair weighted_l = w[i] * codes[i];
        sum_l += weighted_l;
        sum_ll += weighted_l * codes[i];
        sum_xl += weighted_l * x[i];
    }
    const FloatPair determinant = s.sum_w * sum_ll - sum_l * sum_l;
    const FloatPair scale = (s.sum_w * sum_xl - s.sum_x * sum_l) / determinant;
    const FloatPair minimum = (sum_ll * s.sum_x - sum_l * sum_xl) / determinant;
    const IntPair above = minimum > 0.0f; // cannot be stored: the best fit without a minimum instead
    fit.scale = select(above, sum_xl / sum_ll, scale);
    fit.minimum = select(above, FloatPair{}, minimum);
    fit.error = error_of<n>(x, w, codes, fit.scale, fit.minimum);
    return determinant > 0.0f;
}

static inline Affine choose(IntPair where, const Affine &a, const Affine &b) {
    return {select(where, a.scale, b.scale), select(where, a.minimum, b.minimum),
            select(where, a.inverse, b.inverse), select(where, a.base, b.base), select(where, a.error, b.error)};
}

// Trial i stretches the range of x to n_max + first + i * step levels. The range starts at the best minimum so
// far.
template <int n, int n_max>
static inline Affine affine_search(const FloatPair *x, const FloatPair *w, float first, float step, int n_steps) {
    const Statistics s = statistics<n>(x, w);
    Affine best;
    best.minimum = best.base = min(FloatPair{}, s.lowest); // -0 stays: some types store it
    // Sub-blocks of one value need no code: with any range at all, theirs are zero and no trial is better.
    const IntPair constant = s.highest == best.minimum;

    FloatPair codes[n];
    best.inverse = (float)n_max / select(constant, splat_pair(1.0f), s.highest - best.minimum);
    best.scale = 1.0f / best.inverse;
    codes_above<n, n_max>(x, s, best.base, best.inverse, codes);
    best.error = error_of<n>(x, w, codes, best.scale, best.minimum);
    for (int i = 0; i <= n_steps; ++i) {
        Affine fit;
        fit.base = best.minimum;
        fit.inverse = (first + step * i + n_max) / select(constant, splat_pair(1.0f), s.highest - fit.base);
        codes_above<n, n_max>(x, s, fit.base, fit.inverse, codes);
        const IntPair solvable = least_squares<n>(x, w, s, codes, fit);
        best = choose(solvable & (fit.error < best.error), fit, best);
    }
    best.scale = select(constant, FloatPair{}, best.scale);
    return best;
}

} // namespace phi::PHI_ISA
