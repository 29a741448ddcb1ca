// For types without a search, where the largest weights decide: finding those.
#pragma once

#include "../blocks.hpp"
#include "groups.hpp"

namespace phi::PHI_ISA {

template <int size> static inline Floats largest_magnitudes(const float *x) {
    const auto magnitudes = [x](int block) {
        const float *weights = x + block * size;
        Floats largest = abs(load<Floats>(weights));
        for (int i = LANES; i < size; i += LANES) largest = max(abs(load<Floats>(weights + i)), largest);
        return largest;
    };
    return reduce_rows(magnitudes, [](Floats a, Floats b) { return max(a, b); });
}

struct Ranges {
    Floats lowest, highest;
};

template <int size> static inline Ranges ranges(const float *x) {
    const auto extremes = [x](int block) {
        const float *weights = x + block * size;
        FloatPair found{load<Floats>(weights), load<Floats>(weights)};
        for (int i = LANES; i < size; i += LANES) {
            found.a = min(load<Floats>(weights + i), found.a);
            found.b = max(load<Floats>(weights + i), found.b);
        }
        return found;
    };
    const auto both = reduce_rows(extremes, [](FloatPair x, FloatPair y) {
        return FloatPair{min(x.a, y.a), max(x.b, y.b)};
    });
    return {both.a, both.b};
}

// The first weight of a block for which holds(weights), with its sign. There must be one.
template <int size, class Holds> static inline float first_weight(const float *x, Holds holds) {
    static_assert(size <= 32);
    uint32_t found = 0;
    for (int i = 0; i < size; i += LANES) found |= bit_mask(holds(load<Floats>(x + i))) << i;
    return x[__builtin_ctz(found)];
}

// The number of largest magnitude, with its sign; the first of equals; never -0.
template <int size> static inline Floats signed_peaks(const float *x) {
    const Ranges range = ranges<size>(x);
    Floats peak = select(range.highest > -range.lowest, range.highest, range.lowest);
    const Ints both = (range.highest == -range.lowest) & (peak != 0.0f);
    if (any(both))
        for (int block = 0; block < LANES; ++block)
            if (both[block])
                peak[block] = first_weight<size>(
                    x + block * size, [largest = range.highest[block]](Floats v) { return abs(v) == largest; });
    return peak + 0.0f; // -0 + 0 is 0
}

// The smallest number, and of zeros the first.
template <int size> static inline Floats first_lowest(const float *x, Floats lowest) {
    const Ints zero = lowest == 0.0f;
    if (any(zero))
        for (int block = 0; block < LANES; ++block)
            if (zero[block]) lowest[block] = first_weight<size>(x + block * size, [](Floats v) { return v == 0.0f; });
    return lowest;
}

// 1 / d, and 0 where d is 0.
static inline Floats reciprocal(Floats d) { return select(d != 0.0f, 1.0f / d, Floats{}); }

// The scales of consecutive blocks: as a block stores them, and 1 / d.
template <int count = LANES> struct BlockScales {
    uint16_t d[count];
    float inverse[count];

    void set(int first, Floats scales) {
        store(d + first, narrow_f16(scales));
        store(inverse + first, reciprocal(scales));
    }
};

} // namespace phi::PHI_ISA
