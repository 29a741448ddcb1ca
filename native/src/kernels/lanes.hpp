// Floats that are worked on together: 16 with AVX-512, 8 with AVX2, 4 with NEON, 1 in the scalar kernels.
//
// Kernels on floats are written once, over Lanes; with one lane they read as the plain loop that they are.
// Everything lives in namespace phi::PHI_ISA because this header is compiled once per instruction set.
#pragma once

#include "kernels.hpp"

#include <cstring>
#include <type_traits>

#if defined(PHI_ISA_avx2) || defined(PHI_ISA_avx512)
#include <immintrin.h>
#elif defined(PHI_ISA_neon)
#include <arm_neon.h>
#endif

namespace phi::PHI_ISA {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

#if defined(PHI_ISA_avx512)

struct Lanes {
    static constexpr int count = 16;
    __m512 v;
};

inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline Lanes load(const Half *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))}; }
inline Lanes load(const Bfloat16 *p) {
    const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16))};
}
inline Lanes load(const int8_t *p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}
inline void store(float *p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; } // a·b + c
inline Lanes maximum(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes round_to_even(Lanes a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a, but 0 where x < limit
inline Lanes zero_below(Lanes limit, Lanes x, Lanes a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ), a.v)};
}
inline Lanes power_of_two(Lanes n) { // n whole, -126 … 127
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
inline void store_codes(int8_t *p, Lanes a) { // rounded to even, held at -128 and 127
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline __m256 lower_half(Lanes a) { return _mm512_castps512_ps256(a.v); }
inline __m256 upper_half(Lanes a) { return _mm512_extractf32x8_ps(a.v, 1); }

#elif defined(PHI_ISA_avx2)

struct Lanes {
    static constexpr int count = 8;
    __m256 v;
};

inline Lanes zero() { return {_mm256_setzero_ps()}; }
inline Lanes broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Lanes load(const float *p) { return {_mm256_loadu_ps(p)}; }
inline Lanes load(const Half *p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))}; }
inline Lanes load(const Bfloat16 *p) {
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(upper), 16))};
}
inline Lanes load(const int8_t *p) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))};
}
inline void store(float *p, Lanes a) { _mm256_storeu_ps(p, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; } // a·b + c
inline Lanes maximum(Lanes a, Lanes b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Lanes round_to_even(Lanes a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a, but 0 where x < limit
inline Lanes zero_below(Lanes limit, Lanes x, Lanes a) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.v, limit.v, _CMP_GE_OQ), a.v)};
}
inline Lanes power_of_two(Lanes n) { // n whole, -126 … 127
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline void store_codes(int8_t *p, Lanes a) { // rounded to even, held at -128 and 127
    const __m256i whole = _mm256_cvtps_epi32(a.v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(words, words));
}

#elif defined(PHI_ISA_neon)

struct Lanes {
    static constexpr int count = 4;
    float32x4_t v;
};

inline Lanes zero() { return {vdupq_n_f32(0.0f)}; }
inline Lanes broadcast(float x) { return {vdupq_n_f32(x)}; }
inline Lanes load(const float *p) { return {vld1q_f32(p)}; }
inline uint16x4_t load_words(const void *p) { return vld1_u16(static_cast<const uint16_t *>(p)); }
inline Lanes load(const Half *p) { return {vcvt_f32_f16(vreinterpret_f16_u16(load_words(p)))}; }
inline Lanes load(const Bfloat16 *p) { return {vreinterpretq_f32_u32(vshll_n_u16(load_words(p), 16))}; }
inline Lanes load(const int8_t *p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t words = vmovl_s8(vcreate_s8(four));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)))};
}
inline void store(float *p, Lanes a) { vst1q_f32(p, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {vaddq_f32(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {vsubq_f32(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {vmulq_f32(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {vdivq_f32(a.v, b.v)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {vfmaq_f32(c.v, a.v, b.v)}; } // a·b + c
inline Lanes maximum(Lanes a, Lanes b) { return {vmaxq_f32(a.v, b.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {vminq_f32(a.v, b.v)}; }
inline Lanes round_to_even(Lanes a) { return {vrndnq_f32(a.v)}; }
// a, but 0 where x < limit
inline Lanes zero_below(Lanes limit, Lanes x, Lanes a) {
    return {vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x.v, limit.v), vreinterpretq_u32_f32(a.v)))};
}
inline Lanes power_of_two(Lanes n) { // n whole, -126 … 127
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
}
inline void store_codes(int8_t *p, Lanes a) { // rounded to even, held at -128 and 127
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(a.v));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    std::memcpy(p, &four, sizeof four);
}

#else

struct Lanes {
    static constexpr int count = 1;
    float v;
};

// Half to float: exponent and mantissa move 13 places up, and the bias grows from 15 to 127.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 0x3ffu;
    // 0: subnormal
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(mantissa);
    // 31: infinity and NaN
    const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
    return bits_to_float(sign | biased << 23 | mantissa << 13);
}

inline Lanes zero() { return {0.0f}; }
inline Lanes broadcast(float x) { return {x}; }
inline Lanes load(const float *p) { return {*p}; }
inline Lanes load(const Half *p) { return {half_to_float(static_cast<uint16_t>(*p))}; }
inline Lanes load(const Bfloat16 *p) { return {bits_to_float(static_cast<uint32_t>(*p) << 16)}; }
inline Lanes load(const int8_t *p) { return {static_cast<float>(*p)}; }
inline void store(float *p, Lanes a) { *p = a.v; }
inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
inline Lanes operator/(Lanes a, Lanes b) { return {a.v / b.v}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {a.v * b.v + c.v}; }
inline Lanes maximum(Lanes a, Lanes b) { return {a.v > b.v ? a.v : b.v}; }
inline Lanes minimum(Lanes a, Lanes b) { return {a.v < b.v ? a.v : b.v}; }
inline Lanes round_to_even(Lanes a) { return {__builtin_rintf(a.v)}; }
// a, but 0 where x < limit
inline Lanes zero_below(Lanes limit, Lanes x, Lanes a) { return {x.v >= limit.v ? a.v : 0.0f}; }
inline Lanes power_of_two(Lanes n) { // n whole, -126 … 127
    return {bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n.v) + 127) << 23)};
}
inline void store_codes(int8_t *p, Lanes a) { // rounded to even, held at -128 and 127
    const float whole = __builtin_rintf(a.v);
    *p = static_cast<int8_t>(whole > 127.0f ? 127.0f : whole > -128.0f ? whole : -128.0f);
}

#endif

// Sum and maximum over the lanes, always in the same order.
#if defined(PHI_ISA_avx2) || defined(PHI_ISA_avx512)
inline float sum(__m256 a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(__m256 a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#endif
#if defined(PHI_ISA_avx512)
inline float sum(Lanes a) { return sum(_mm256_add_ps(lower_half(a), upper_half(a))); }
inline float largest(Lanes a) { return largest(_mm256_max_ps(lower_half(a), upper_half(a))); }
#elif defined(PHI_ISA_avx2)
inline float sum(Lanes a) { return sum(a.v); }
inline float largest(Lanes a) { return largest(a.v); }
#elif defined(PHI_ISA_neon)
inline float sum(Lanes a) { return vaddvq_f32(a.v); } // neighbours first
inline float largest(Lanes a) { return vmaxvq_f32(a.v); }
#else
inline float sum(Lanes a) { return a.v; }
inline float largest(Lanes a) { return a.v; }
#endif

// One float from memory, whatever its type.
inline float load_one(const float *p) { return *p; }
inline float load_one(const Bfloat16 *p) { return bits_to_float(static_cast<uint32_t>(*p) << 16); }
inline float load_one(const Half *p) {
#if defined(PHI_ISA_avx2) || defined(PHI_ISA_avx512)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<uint16_t>(*p))));
#elif defined(PHI_ISA_neon)
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(static_cast<uint16_t>(*p)))), 0);
#else
    return load(p).v;
#endif
}

// e^x: x = n·ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, and 2^n put into the exponent. Relative
// error below 2e-7; 0 below -87.3, where the result would be subnormal; held at e^88 above.
inline Lanes exponential(Lanes x) {
    const Lanes lowest = broadcast(-87.3f);
    const Lanes clamped = minimum(maximum(x, lowest), broadcast(88.0f));
    const Lanes n = round_to_even(clamped * broadcast(1.44269504f));
    // ln 2 in two parts, so that n·ln 2 is subtracted almost exactly
    Lanes r = multiply_add(n, broadcast(-0.693359375f), clamped);
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    Lanes p = broadcast(1.0f / 720); // Taylor: r^k / k!
    p = multiply_add(p, r, broadcast(1.0f / 120));
    p = multiply_add(p, r, broadcast(1.0f / 24));
    p = multiply_add(p, r, broadcast(1.0f / 6));
    p = multiply_add(p, r, broadcast(0.5f));
    p = multiply_add(p, r, broadcast(1.0f));
    p = multiply_add(p, r, broadcast(1.0f));
    return zero_below(lowest, x, p * power_of_two(n));
}

// Asks for memory that will be worked on soon, into the second-level cache.
[[gnu::always_inline]] inline void prefetch_bytes(const void *from, int64_t n) {
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(static_cast<const char *>(from) + i, 0, 2);
}

} // namespace phi::PHI_ISA
