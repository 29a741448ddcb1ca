// How a sub-block finds its scale: try some, keep the one whose codes fit best.
// Lane: a sub-block. PAIR_LANES searches run side by side, and each lane does its float operations in the
// reference's order, so that it decides as the reference decides. x[i] has weight i of every sub-block.
// To read, with the mathematics: phicourse/quantize/scale_search.py, which has the same functions.
#pragma once

#include "../simd.hpp"

namespace phi::PHI_ISA {

// Below this largest magnitude a sub-block counts as all zero.
constexpr float ZERO = 1e-15f;

// The searches for scales alone take Floats as well as pairs of them.
template <class V> static inline V clamp(V v, int low, int high) {
    return min(max(v, V{} + (float)low), V{} + (float)high);
}

template <int n> static inline FloatPair sum_in_order(const FloatPair *terms) {
    FloatPair sum{};
    for (int i = 0; i < n; ++i) sum += terms[i];
    return sum;
}

// How much an error counts: the importance of the weight's column, and a little more for large weights.
template <int n>
static inline void error_weights(const FloatPair *x, const FloatPair *importance, FloatPair mean_square,
                                 FloatPair *w) {
    for (int i = 0; i < n; ++i) w[i] = importance[i] * sqrt(mean_square + x[i] * x[i]);
}

// The number of largest magnitude of every sub-block, with its sign; the first of equals; never -0.
template <int n, class V> static inline V signed_peak(const V *x) {
    V peak{}, magnitude{};
    for (int i = 0; i < n; ++i) {
        const auto larger = abs(x[i]) > magnitude;
        peak = select(larger, x[i], peak);
        magnitude = select(larger, abs(x[i]), magnitude);
    }
    return peak;
}

// ---- symmetric: weight = scale * code, with codes from -n_max to n_max - 1 -------------------

template <class V> struct Symmetric {
    V scale;
    V inverse; // code = nearest_int(inverse * x); 0 where the sub-block is all zero
};

// Sums of w x l and of w l^2 over each sub-block, l being the code.
template <class V> struct Projections {
    V xl, ll;

    void add(V w, V weighted_x, V code) {
        xl += weighted_x * code;
        ll += w * code * code;
    }
};

// Finite numbers lie within the peak, so their codes are small, and the quick rounding finds them. The scales
// of very large weights may be infinite or no numbers: they need the reference's own rounding.
enum class Values { finite, any };

template <int n_max, Values values, class V> static inline V signed_code(V level) {
    if constexpr (values == Values::finite) return clamp(round_even(level), -n_max, n_max - 1);
    else return clamp(nearest_float(level), -n_max, n_max - 1);
}

// weighted_x[i] = w[i] * x[i]
template <int n, int n_max, Values values, class V>
static inline Projections<V> projections(const V *x, const V *w, const V *weighted_x, V inverse) {
    Projections<V> sums{};
    for (int i = 0; i < n; ++i) sums.add(w[i], weighted_x[i], signed_code<n_max, values>(inverse * x[i]));
    return sums;
}

// Tries 19 scales around the one that gives the peak the lowest code. The best codes have the largest gain.
template <int n, int n_max, Values values = Values::finite, class V>
static inline Symmetric<V> symmetric_search(const V *x, const V *w) {
    V peak = signed_peak<n>(x);
    const auto empty = abs(peak) < ZERO;
    peak = select(empty, V{} + 1.0f, peak);
    V weighted_x[n];
    for (int i = 0; i < n; ++i) weighted_x[i] = w[i] * x[i];

    Symmetric<V> best{{}, -(float)n_max / peak};
    const auto first = projections<n, n_max, values>(x, w, weighted_x, best.inverse);
    best.scale = select(first.ll != 0.0f, first.xl / first.ll, V{});
    V gain = best.scale * first.xl;
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) continue;
        const V inverse = -(n_max + 0.1f * step) / peak;
        const auto sums = projections<n, n_max, values>(x, w, weighted_x, inverse);
        const auto better = (sums.ll > 0.0f) & (sums.xl * sums.xl > gain * sums.ll);
        const V scale = sums.xl / sums.ll;
        best.scale = select(better, scale, best.scale);
        best.inverse = select(better, inverse, best.inverse);
        gain = select(better, scale * sums.xl, gain);
    }
    return {select(empty, V{}, best.scale), select(empty, V{}, best.inverse)};
}

// ---- codes one by one ------------------------------------------------------------------------

enum class Codes { of_both_signs, bytes };

// The sums without one weight.
template <class V> static inline Projections<V> without(const Projections<V> &sums, V w, V weighted_x, V code) {
    return {sums.xl - weighted_x * code, sums.ll - w * code * code};
}

// The code that is nearest to x with the scale that the others want, where they want one above 0.
template <int highest, Codes kind, class V> static inline V wanted_code(V x, const Projections<V> &others) {
    const V code = min(nearest_float(x * others.ll / others.xl), V{} + (float)highest);
    if constexpr (kind == Codes::of_both_signs) return max(code, V{} - (float)(highest + 1));
    return code;
}

// Takes weight after weight out of the sums, gives it the code that is nearest with the scale that the others
// want, and keeps that if the gain (sum of w x l)^2 / (sum of w l^2) grows; at most five times round.
// Bytes are from 0 to `highest`, but nothing stops a number below zero: its code wraps around, as in ggml.
template <int n, int highest, Codes kind, class V>
static inline void descend(const V *x, const V *w, const V *weighted_x, V *codes, Projections<V> &sums) {
    for (int round = 0; round < 5; ++round) {
        bool changed = false;
        for (int i = 0; i < n; ++i) {
            const Projections<V> others = without(sums, w[i], weighted_x[i], codes[i]);
            const V tried = wanted_code<highest, kind>(x[i], others);
            const auto candidate = (others.xl > 0.0f) & (tried != codes[i]);
            if (!any(candidate)) continue; // often; and it need not wait for the division
            Projections<V> with = others;
            with.add(w[i], weighted_x[i], tried);
            const V divisor = select(candidate, kind == Codes::bytes ? others.ll : with.ll, V{});
            const auto better = (divisor > 0.0f) & (with.xl * with.xl * sums.ll > sums.xl * sums.xl * with.ll);
            sums = {select(better, with.xl, sums.xl), select(better, with.ll, sums.ll)};
            codes[i] = select(better, kind == Codes::bytes ? nearest_byte(tried) : tried, codes[i]);
            changed |= any(better);
        }
        if (!changed) return;
    }
}

// A search for codes of -n_max to n_max - 1 that improves them one by one; errors count x^2.
template <int n, int n_max> struct SymmetricDescent {
    const FloatPair *x;
    FloatPair codes[n], w[n], weighted_x[n];
    Projections<FloatPair> sums{};
    IntPair empty; // all zero: codes are -n_max then, and sums are zero

    // Starts with the largest weight at -n_max.
    explicit SymmetricDescent(const FloatPair *x) : x(x) {
        FloatPair peak = signed_peak<n>(x);
        empty = abs(peak) < ZERO;
        peak = select(empty, splat_pair(1.0f), peak);
        for (int i = 0; i < n; ++i) {
            w[i] = x[i] * x[i];
            weighted_x[i] = w[i] * x[i];
            codes[i] = signed_code<n_max, Values::finite>(-(float)n_max / peak * x[i]);
            sums.add(w[i], weighted_x[i], codes[i]);
        }
    }

    // Where a weight wants another code: only there a descent can change anything. One weight does not wait for
    // another here.
    IntPair unsettled() const {
        IntPair found{};
        for (int i = 0; i < n; ++i) {
            const Projections<FloatPair> others = without(sums, w[i], weighted_x[i], codes[i]);
            const FloatPair wanted = wanted_code<n_max - 1, Codes::of_both_signs>(x[i], others);
            found = found | ((others.xl > 0.0f) & (wanted != codes[i]));
        }
        return found;
    }

    void run() { descend<n, n_max - 1, Codes::of_both_signs>(x, w, weighted_x, codes, sums); }

    FloatPair scale() const { return select(sums.ll > 0.0f, sums.xl / sums.ll, FloatPair{}); }
    FloatPair code(int i) const { return select(empty, splat_pair(-n_max), codes[i]); }
};

// ---- codes from zero up ----------------------------------------------------------------------

// Sum of w (x - scale * code)^2
template <int n, class V> static inline V squares(const V *x, const V *w, V scale, const V *codes) {
    V sum{};
    for (int i = 0; i < n; ++i) {
        const V difference = x[i] - scale * codes[i];
        sum += w[i] * difference * difference;
    }
    return sum;
}

template <int n, int n_max, class V> static inline void codes_up_to(const V *x, V inverse, V *codes) {
    for (int i = 0; i < n; ++i) codes[i] = min(nearest_float(inverse * x[i]), V{} + (float)n_max);
}

// For numbers that are not negative, such as scales: eight trials around the obvious scale, then codes one by
// one. Sets the codes, bytes of 0 to n_max; returns the scale; zeros where nothing reaches ZERO.
template <int n, int n_max, class V> static inline V positive_search(const V *x, const V *w, V *codes) {
    V largest{};
    for (int i = 0; i < n; ++i) largest = select(largest > x[i], largest, x[i]);
    V inverse = (float)n_max / largest;
    for (int i = 0; i < n; ++i) codes[i] = nearest_byte(inverse * x[i]);
    V best = squares<n>(x, w, 1.0f / inverse, codes);
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        const V tried = (0.1f * step + n_max) / largest;
        codes_up_to<n, n_max>(x, tried, codes);
        const V error = squares<n>(x, w, 1.0f / tried, codes);
        inverse = select(error < best, tried, inverse);
        best = select(error < best, error, best);
    }

    V weighted_x[n];
    Projections<V> sums{};
    codes_up_to<n, n_max>(x, inverse, codes);
    for (int i = 0; i < n; ++i) {
        weighted_x[i] = w[i] * x[i];
        sums.add(w[i], weighted_x[i], codes[i]);
        codes[i] = nearest_byte(codes[i]);
    }
    descend<n, n_max, Codes::bytes>(x, w, weighted_x, codes, sums);
    const auto empty = largest < ZERO;
    for (int i = 0; i < n; ++i) codes[i] = select(empty, V{}, codes[i]);
    return select(empty, V{}, select(sums.ll > 0.0f, sums.xl / sums.ll, V{}));
}

// ---- affine: weight = scale * code + minimum, with codes from 0 to n_max, minimum <= 0 -------

struct Affine {
    FloatPair scale, minimum;
    FloatPair inverse, base; // code = nearest_int(inverse * (x - base))
    FloatPair error;         // weighted, see Judge
};

// What a trial is judged by: the sum of w error^2 or of w |error|.
enum class Judge { squares, magnitudes };

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

template <int n, Judge judge>
static inline FloatPair error_of(const FloatPair *x, const FloatPair *w, const FloatPair *codes, FloatPair scale,
                                 FloatPair minimum) {
    FloatPair sum{};
    for (int i = 0; i < n; ++i) {
        const FloatPair difference = scale * codes[i] + minimum - x[i];
        sum += w[i] * (judge == Judge::squares ? difference * difference : abs(difference));
    }
    return sum;
}

// Sets the scale, minimum and error that fit the codes best. Returns where there is a single best one.
template <int n, Judge judge>
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
    fit.error = error_of<n, judge>(x, w, codes, fit.scale, fit.minimum);
    return determinant > 0.0f;
}

static inline Affine choose(IntPair where, const Affine &a, const Affine &b) {
    return {select(where, a.scale, b.scale), select(where, a.minimum, b.minimum),
            select(where, a.inverse, b.inverse), select(where, a.base, b.base), select(where, a.error, b.error)};
}

// Trial i stretches the range of x to n_max + first + i * step levels. The range starts at the best minimum so
// far.
template <int n, int n_max, Judge judge = Judge::squares>
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
    best.error = error_of<n, judge>(x, w, codes, best.scale, best.minimum);
    for (int i = 0; i <= n_steps; ++i) {
        Affine fit;
        fit.base = best.minimum;
        fit.inverse = (first + step * i + n_max) / select(constant, splat_pair(1.0f), s.highest - fit.base);
        codes_above<n, n_max>(x, s, fit.base, fit.inverse, codes);
        const IntPair solvable = least_squares<n, judge>(x, w, s, codes, fit);
        best = choose(solvable & (fit.error < best.error), fit, best);
    }
    best.scale = select(constant, FloatPair{}, best.scale);
    return best;
}

} // namespace phi::PHI_ISA
