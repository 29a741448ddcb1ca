// The kernels between the matrices: norm, activation, rotation, and the coding of vectors in 8 bits.
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

// Squares are summed in double, eight sums side by side, so that the compiler may use vectors.
inline double sum_of_squares(const float *x, int n) {
    double sums[8] = {};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(x[i + lane]) * x[i + lane];
    for (; i < n; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

inline void rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    const float mean = static_cast<float>(sum_of_squares(x, n) / n);
    const float scale = 1.0f / __builtin_sqrtf(mean + eps);
    for (int i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

inline double sum_of(const float *x, int n) {
    double sums[8] = {};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int lane = 0; lane < 8; ++lane) sums[lane] += x[i + lane];
    for (; i < n; ++i) sums[0] += x[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// The mean is taken away first: a small variance around a large mean keeps its digits.
inline void layer_norm(const float *x, const float *weight, const float *bias, int n, float eps, float *out) {
    const float mean = static_cast<float>(sum_of(x, n) / n);
    for (int i = 0; i < n; ++i) out[i] = x[i] - mean;
    const float variance = static_cast<float>(sum_of_squares(out, n) / n);
    const float scale = 1.0f / __builtin_sqrtf(variance + eps);
    for (int i = 0; i < n; ++i) out[i] = out[i] * scale * weight[i] + bias[i];
}

inline void add(float *x, const float *y, int n) {
    for (int i = 0; i < n; ++i) x[i] += y[i];
}

// The last elements, fewer than there are lanes, go through a buffer: every element takes the same path.
template <class Body> void for_lanes(int n, const Body &body) {
    int i = 0;
    for (; i + Lanes::count <= n; i += Lanes::count) body(i, Lanes::count);
    if (i < n) body(i, n - i);
}

inline Lanes load_some(const float *p, int count) {
    if (count == Lanes::count) return load(p);
    float buffer[Lanes::count] = {};
    for (int i = 0; i < count; ++i) buffer[i] = p[i];
    return load(buffer);
}

inline void store_some(float *p, Lanes a, int count) {
    if (count == Lanes::count) return store(p, a);
    float buffer[Lanes::count];
    store(buffer, a);
    for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

inline void swiglu(const float *gate, const float *up, int n, float *out) {
    for_lanes(n, [&](int i, int count) {
        const Lanes g = load_some(gate + i, count);
        const Lanes silu = g / (broadcast(1.0f) + exponential(zero() - g));
        store_some(out + i, silu * load_some(up + i, count), count);
    });
}

// 0.5 * (1 + tanh(y)) is 1 / (1 + e^-2y): the tanh form of GELU needs no more than SiLU does.
inline void gelu(const float *x, int n, float *out) {
    constexpr float twice_sqrt_2_over_pi = 1.5957691216057308f;
    for_lanes(n, [&](int i, int count) {
        const Lanes v = load_some(x + i, count);
        const Lanes y = broadcast(twice_sqrt_2_over_pi) * (v + broadcast(0.044715f) * v * v * v);
        store_some(out + i, v / (broadcast(1.0f) + exponential(zero() - y)), count);
    });
}

inline void rotate(float *x, const float *cosine, const float *sine, int half) {
    for (int i = 0; i < half; ++i) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cosine[i] - second * sine[i];
        x[i + half] = second * cosine[i] + first * sine[i];
    }
}

// One block of n codes: the largest magnitude becomes 127. Returns the scale.
inline float code_block(const float *x, int n, int8_t *codes) {
    Lanes most = zero();
    for (int i = 0; i < n; i += Lanes::count) {
        const Lanes v = load(x + i);
        most = maximum(most, maximum(v, zero() - v));
    }
    const float magnitude = largest(most);
    const Lanes inverse = broadcast(magnitude > 1e-30f ? 127.0f / magnitude : 0.0f); // no infinity
    for (int i = 0; i < n; i += Lanes::count) store_codes(codes + i, load(x + i) * inverse);
    return magnitude / 127.0f;
}

struct CodeSums {
    int sum, magnitudes; // Σ code, Σ |code|
};
inline CodeSums sums_of_16(const int8_t *codes) {
    CodeSums sums{};
    for (int i = 0; i < 16; ++i) {
        sums.sum += codes[i];
        sums.magnitudes += codes[i] < 0 ? -codes[i] : codes[i];
    }
    return sums;
}

// What belongs to 256 codes beside their scale.
inline void sum_codes(const int8_t *codes, int16_t *sums, uint16_t *peaks) {
    const auto raise = [](uint16_t &peak, int sum) { peak = static_cast<uint16_t>(sum > peak ? sum : peak); };
    peaks[0] = peaks[1] = 0;
    for (int pair = 0; pair < 8; ++pair, codes += 32) { // even groups first, then odd ones
        const CodeSums even = sums_of_16(codes), odd = sums_of_16(codes + 16);
        sums[pair] = static_cast<int16_t>(even.sum);
        sums[8 + pair] = static_cast<int16_t>(odd.sum);
        raise(peaks[0], even.magnitudes > odd.magnitudes ? even.magnitudes : odd.magnitudes);
        raise(peaks[1], even.magnitudes + odd.magnitudes);
    }
}

inline void quantize(Coding coding, const float *x, int n, CodedVector out) {
    const int block = coding == Coding::blocks_of_32 ? 32 : 256;
    for (int i = 0; i < n / block; ++i) {
        int8_t *codes = out.codes + i * block;
        out.scales[i] = code_block(x + i * block, block, codes);
        if (block == 32)
            out.sums[i] = static_cast<int16_t>(sums_of_16(codes).sum + sums_of_16(codes + 16).sum);
        else
            sum_codes(codes, out.sums + 16 * i, out.peaks + 2 * i);
    }
}

} // namespace phi::PHI_ISA
