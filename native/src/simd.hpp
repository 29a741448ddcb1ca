// A small vector type on the compiler's vector extensions. One source, any width: LANES floats side by
// side, and + - * / < work lane by lane, each lane rounding as a plain float would.
// Only for sources that are compiled once per instruction set: everything is in namespace phi::PHI_ISA
// and uses no function of the standard library, so that no code of one set can be linked into another.
#pragma once

#include <cstdint>
#include <utility>

#if defined(PHI_ISA_avx2) || defined(PHI_ISA_avx512)
#include <immintrin.h>
#elif defined(PHI_ISA_neon)
#include <arm_neon.h>
#endif

namespace phi::PHI_ISA {

#if defined(PHI_ISA_avx512)
constexpr int LANES = 16;
#elif defined(PHI_ISA_avx2)
constexpr int LANES = 8;
#else
constexpr int LANES = 4; // neon; and scalar, where the compiler does what it can
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES))); // also masks: a lane is 0 or -1
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(4 * LANES)));

// ---- lanes -----------------------------------------------------------------------------------

static inline Floats splat(float value) { return value - Floats{}; }
static inline Ints splat(int32_t value) { return value - Ints{}; }

static inline Ints bits(Floats v) { return (Ints)v; }
static inline Floats from_bits(Ints v) { return (Floats)v; }
static inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

template <class V> static inline V select(Ints mask, V yes, V no) { return mask ? yes : no; }
template <class V> static inline V min(V a, V b) { return a < b ? a : b; }
template <class V> static inline V max(V a, V b) { return a > b ? a : b; }
static inline Floats abs(Floats v) { return from_bits(bits(v) & 0x7fffffff); }

static inline Floats sqrt(Floats v) {
    Floats root;
    for (int lane = 0; lane < LANES; ++lane) root[lane] = __builtin_sqrtf(v[lane]);
    return root;
}

// ---- memory, of any alignment ----------------------------------------------------------------

template <class V> static inline V load(const void *p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class V> static inline void store(void *p, V v) { __builtin_memcpy(p, &v, sizeof v); }

// ---- rounding to whole numbers ---------------------------------------------------------------

// Adding 1.5 * 2^23 leaves a float no bits for a fraction: the sum is rounded to the nearest whole number,
// ties to even, and its low 23 bits are that number plus 2^22. Holds up to the limit.
constexpr float MAGIC = 12582912.0f;
constexpr float MAGIC_LIMIT = 4194303.0f;

// Beyond the limit the answer is arbitrary, but it is llama.cpp's.
static inline Ints nearest_int(Floats v) { return (bits(v + MAGIC) & 0x007fffff) - 0x00400000; }
static inline int nearest_int(float v) { return nearest_int(splat(v))[0]; }

// nearest_int as a float, and its low byte as a float: put below the exponent of 2^23, bits count from there.
static inline Floats nearest_float(Floats v) { return from_bits((bits(v + MAGIC) & 0x007fffff) | 0x4b000000) - MAGIC; }
static inline Floats nearest_byte(Floats v) { return from_bits((bits(v + MAGIC) & 255) | 0x4b000000) - 0x1p23f; }

// ---- bfloat16: the upper half of a float -----------------------------------------------------

static inline Floats widen_bf16(Halves h) { return from_bits(__builtin_convertvector(h, Ints) << 16); }

// Ties go to even. v is a number, or infinite.
static inline Halves narrow_bf16(Floats v) {
    return __builtin_convertvector((bits(v) + 0x7fff + ((bits(v) >> 16) & 1)) >> 16, Halves);
}

// ---- what the instruction sets have instructions for -----------------------------------------
// any         is a lane of the mask set?
// truncate    toward zero; INT32_MIN where the result does not fit, as x86 answers and so llama.cpp
// round_even  as nearest_int, but the result is a float
// store_bytes the low byte of each lane; load_bytes, load_signed_bytes back
// pack        four vectors, one after the other, as bytes; less than 0 becomes 0, more than 255 is not allowed
// narrow_f16  float to float16, ties to even; widen_f16 back. What is no number gets a minus sign, which the
//             results of operations on x86 have anyway, and so llama.cpp's
// bit_mask    a bit for each lane of a mask; lane_mask back
// lookup      entry number index[lane], from 0 to 15, of a table of 16 floats

#if defined(PHI_ISA_avx512)

// With the mask of all lanes: GCC 12 takes the undefined vector in the unmasked forms for a mistake.
static inline Floats min(Floats a, Floats b) { return _mm512_maskz_min_ps(-1, a, b); }
static inline Floats max(Floats a, Floats b) { return _mm512_maskz_max_ps(-1, a, b); }
static inline uint32_t bit_mask(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }
static inline bool any(Ints mask) { return bit_mask(mask) != 0; }
static inline Floats lookup(const float *table, Ints index) {
    return _mm512_maskz_permutexvar_ps(-1, (__m512i)index, load<Floats>(table));
}
static inline Ints truncate(Floats v) { return (Ints)_mm512_maskz_cvttps_epi32(-1, v); }
static inline Floats round_even(Floats v) { return _mm512_maskz_roundscale_ps(-1, v, _MM_FROUND_TO_NEAREST_INT); }
static inline Ints load_bytes(const void *p) { return (Ints)_mm512_maskz_cvtepu8_epi32(-1, load<__m128i>(p)); }
static inline Ints load_signed_bytes(const void *p) { return (Ints)_mm512_maskz_cvtepi8_epi32(-1, load<__m128i>(p)); }
static inline void store_bytes(void *p, Ints v) { store(p, _mm512_maskz_cvtepi32_epi8(-1, (__m512i)v)); }
static inline Bytes pack(Ints a, Ints b, Ints c, Ints d) {
    const __m512i ab = _mm512_packus_epi32((__m512i)a, (__m512i)b), cd = _mm512_packus_epi32((__m512i)c, (__m512i)d);
    const Ints order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}; // they are packed by quarters
    return (Bytes)_mm512_maskz_permutexvar_epi32(-1, (__m512i)order, _mm512_packus_epi16(ab, cd));
}
static inline Floats widen_f16(Halves h) { return _mm512_maskz_cvtph_ps(-1, (__m256i)h); }
static inline Halves narrow_f16(Floats v) {
    return (Halves)_mm512_maskz_cvtps_ph(-1, v, _MM_FROUND_TO_NEAREST_INT);
}

#elif defined(PHI_ISA_avx2)

static inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
static inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
static inline uint32_t bit_mask(Ints mask) { return _mm256_movemask_ps((Floats)mask); }
static inline bool any(Ints mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
static inline Floats lookup(const float *table, Ints index) {
    const Floats low = _mm256_permutevar8x32_ps(load<Floats>(table), (__m256i)index);
    const Floats high = _mm256_permutevar8x32_ps(load<Floats>(table + 8), (__m256i)index);
    return select(index < 8, low, high);
}
static inline Ints truncate(Floats v) { return (Ints)_mm256_cvttps_epi32(v); }
static inline Floats round_even(Floats v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT); }
static inline Ints load_bytes(const void *p) {
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline Ints load_signed_bytes(const void *p) {
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline void store_bytes(void *p, Ints v) {
    const __m256i bytes = (__m256i)(v & 255);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storeu_si64(p, _mm_packus_epi16(words, words));
}
static inline Bytes pack(Ints a, Ints b, Ints c, Ints d) {
    const __m256i ab = _mm256_packus_epi32((__m256i)a, (__m256i)b), cd = _mm256_packus_epi32((__m256i)c, (__m256i)d);
    const Ints order = {0, 4, 1, 5, 2, 6, 3, 7}; // they are packed by halves
    return (Bytes)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), (__m256i)order);
}
static inline Floats widen_f16(Halves h) { return _mm256_cvtph_ps((__m128i)h); }
static inline Halves narrow_f16(Floats v) { return (Halves)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

#else

static inline bool any(Ints mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
static inline uint32_t bit_mask(Ints mask) { return (mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8); }
static inline Floats lookup(const float *table, Ints index) {
    return Floats{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
static inline Ints truncate(Floats v) {
    return select(abs(v) < 0x1p31f, __builtin_convertvector(v, Ints), splat(INT32_MIN));
}
static inline Floats round_even(Floats v) { return (v + MAGIC) - MAGIC; }
typedef uint8_t LaneBytes __attribute__((vector_size(LANES)));
typedef int8_t SignedBytes __attribute__((vector_size(LANES)));
static inline Ints load_bytes(const void *p) { return __builtin_convertvector(load<LaneBytes>(p), Ints); }
static inline Ints load_signed_bytes(const void *p) { return __builtin_convertvector(load<SignedBytes>(p), Ints); }
static inline void store_bytes(void *p, Ints v) { store(p, __builtin_convertvector(v, LaneBytes)); }
static inline Bytes pack(Ints a, Ints b, Ints c, Ints d) {
    uint8_t bytes[4 * LANES];
    store_bytes(bytes, max(a, Ints{}));
    store_bytes(bytes + LANES, max(b, Ints{}));
    store_bytes(bytes + 2 * LANES, max(c, Ints{}));
    store_bytes(bytes + 3 * LANES, max(d, Ints{}));
    return load<Bytes>(bytes);
}

#if defined(PHI_ISA_neon)

static inline Floats widen_f16(Halves h) { return (Floats)vcvt_f32_f16((float16x4_t)h); }
static inline Halves narrow_f16(Floats v) {
    return (Halves)vcvt_f16_f32((float32x4_t)v) | (__builtin_convertvector(v != v, Halves) & 0x8000);
}

#else

// Exponent and fraction move to their places in a float, whose exponent then counts from 127 instead of
// 15: a multiplication by 2^112 corrects that, for subnormal numbers too.
static inline Floats widen_f16(Halves h) {
    const Ints wide = __builtin_convertvector(h, Ints);
    const Floats value = from_bits((wide & 0x7fff) << 13) * 0x1p112f;
    const Ints special = value >= 65536.0f; // infinite or not a number
    return from_bits(bits(value) | (special & 0x7f800000) | ((wide & 0x8000) << 16));
}

// A float below 2^-14 becomes subnormal: adding 0.5 lets the adder do the rounding.
static inline Halves narrow_f16(Floats v) {
    const Ints magnitude = bits(v) & 0x7fffffff;
    const Ints normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Ints subnormal = bits(from_bits(magnitude) + 0.5f) - bits(splat(0.5f));
    Ints half = select(magnitude < (113 << 23), subnormal, normal);
    half = select(magnitude >= (143 << 23), splat(0x7c00), half);
    half = select(magnitude > (255 << 23), splat(0xfe00), half);
    return __builtin_convertvector(half | ((bits(v) >> 16) & 0x8000), Halves);
}

#endif
#endif

template <int... lane> static inline Ints lane_bits(std::integer_sequence<int, lane...>) {
    return Ints{(1 << lane)...};
}

static inline Ints lane_mask(uint32_t bits) {
    return (splat((int32_t)bits) & lane_bits(std::make_integer_sequence<int, LANES>())) != 0;
}

static inline Ints clamp(Ints v, int low, int high) { return min(max(v, splat(low)), splat(high)); }
static inline bool all(Ints mask) { return !any(~mask); }

// Bit i of the result is bit number `bit` of byte i, of 32 bytes.
template <int bit> static inline uint32_t bits_of_bytes(const uint8_t *bytes) {
#if defined(PHI_ISA_avx2) || defined(PHI_ISA_avx512)
    return _mm256_movemask_epi8(_mm256_slli_epi16(load<__m256i>(bytes), 7 - bit));
#else
    uint32_t bits = 0;
    for (int i = 0; i < 32; i += 8) { // the product moves bit 8 k to bit 56 + k
        const uint64_t ones = load<uint64_t>(bytes + i) >> bit & 0x0101010101010101;
        bits |= (uint32_t)(ones * 0x0102040810204080 >> 56) << i;
    }
    return bits;
#endif
}

// Ties away from zero, as roundf. The largest float below 1/2 is added, not 1/2, which would carry 0.49999997
// to 1.
static inline Ints round_away(Floats v) {
    const Ints sign = bits(v) & INT32_MIN;
    return truncate(v + from_bits(sign | bits(splat(0.49999997f))));
}

static inline float widen_f16(uint16_t h) { return widen_f16(h - Halves{})[0]; }
static inline uint16_t narrow_f16(float v) { return narrow_f16(splat(v))[0]; }

// ---- pairs -----------------------------------------------------------------------------------

// Two vectors that take every step together: while the sum of one is on its way, the processor adds to the
// other's.
template <class V> struct Pair {
    V a, b;
};
using FloatPair = Pair<Floats>;
using IntPair = Pair<Ints>;
constexpr int PAIR_LANES = 2 * LANES;

#define PHI_PAIR_OPERATOR(result, op) \
    static inline result operator op(FloatPair x, FloatPair y) { return {x.a op y.a, x.b op y.b}; } \
    static inline result operator op(FloatPair x, float y) { return {x.a op y, x.b op y}; } \
    static inline result operator op(float x, FloatPair y) { return {x op y.a, x op y.b}; }
PHI_PAIR_OPERATOR(FloatPair, +)
PHI_PAIR_OPERATOR(FloatPair, -)
PHI_PAIR_OPERATOR(FloatPair, *)
PHI_PAIR_OPERATOR(FloatPair, /)
PHI_PAIR_OPERATOR(IntPair, <)
PHI_PAIR_OPERATOR(IntPair, >)
PHI_PAIR_OPERATOR(IntPair, ==)
PHI_PAIR_OPERATOR(IntPair, !=)
#undef PHI_PAIR_OPERATOR

static inline FloatPair operator-(FloatPair x) { return {-x.a, -x.b}; }
static inline FloatPair &operator+=(FloatPair &x, FloatPair y) { return x = x + y; }
static inline IntPair operator&(IntPair x, IntPair y) { return {x.a & y.a, x.b & y.b}; }
static inline IntPair operator|(IntPair x, IntPair y) { return {x.a | y.a, x.b | y.b}; }

static inline FloatPair select(IntPair mask, FloatPair yes, FloatPair no) {
    return {select(mask.a, yes.a, no.a), select(mask.b, yes.b, no.b)};
}
static inline FloatPair min(FloatPair x, FloatPair y) { return {min(x.a, y.a), min(x.b, y.b)}; }
static inline FloatPair max(FloatPair x, FloatPair y) { return {max(x.a, y.a), max(x.b, y.b)}; }
static inline FloatPair abs(FloatPair x) { return {abs(x.a), abs(x.b)}; }
static inline FloatPair sqrt(FloatPair x) { return {sqrt(x.a), sqrt(x.b)}; }
static inline FloatPair round_even(FloatPair x) { return {round_even(x.a), round_even(x.b)}; }
static inline FloatPair splat_pair(float value) { return {splat(value), splat(value)}; }
static inline FloatPair to_floats(IntPair x) { return {to_floats(x.a), to_floats(x.b)}; }
static inline IntPair nearest_int(FloatPair x) { return {nearest_int(x.a), nearest_int(x.b)}; }
static inline FloatPair nearest_float(FloatPair x) { return {nearest_float(x.a), nearest_float(x.b)}; }
static inline FloatPair nearest_byte(FloatPair x) { return {nearest_byte(x.a), nearest_byte(x.b)}; }
static inline bool all(IntPair mask) { return all(mask.a & mask.b); }
static inline bool any(IntPair mask) { return any(mask.a) || any(mask.b); }

// ---- transpose -------------------------------------------------------------------------------

// The lanes of a (numbered from 0) and b (from LANES) that are listed.
template <int... lane> static inline Floats shuffle(Floats a, Floats b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, lane...);
#else
    return __builtin_shuffle(a, b, Ints{lane...});
#endif
}

// One step of the butterfly: of every 2 x 2 squares of step x step values, the two off the diagonal change
// places.
template <int step, int... lane>
static inline void exchange(Floats &a, Floats &b, std::integer_sequence<int, lane...>) {
    const Floats upper = shuffle<(lane & step ? LANES + lane - step : lane)...>(a, b);
    b = shuffle<(lane & step ? LANES + lane : lane + step)...>(a, b);
    a = upper;
}

// Rows become columns.
template <int step = 1> static inline void transpose(Floats *square) {
    for (int row = 0; row < LANES; ++row)
        if (!(row & step))
            exchange<step>(square[row], square[row + step], std::make_integer_sequence<int, LANES>());
    if constexpr (2 * step < LANES) transpose<2 * step>(square);
}

// Of two rows, the lanes of a without the bit `step` and those of b with it; and what these are to be combined with, the
// other half of each row. A blend and one shuffle: an exchange takes two.
template <int step, int... lane>
static inline FloatPair halves(Floats a, Floats b, std::integer_sequence<int, lane...>) {
    return {shuffle<(lane & step ? LANES + lane : lane)...>(a, b),
            shuffle<(lane & step ? LANES + lane - step : lane + step)...>(a, b)};
}

template <int step, class Combine> static inline Floats combine_rows(Floats a, Floats b, Combine combine) {
    const FloatPair both = halves<step>(a, b, std::make_integer_sequence<int, LANES>());
    return combine(both.a, both.b);
}

template <int step, class Combine> static inline FloatPair combine_rows(FloatPair x, FloatPair y, Combine combine) {
    const FloatPair a = halves<step>(x.a, y.a, std::make_integer_sequence<int, LANES>());
    const FloatPair b = halves<step>(x.b, y.b, std::make_integer_sequence<int, LANES>());
    return combine(FloatPair{a.a, b.a}, FloatPair{a.b, b.b});
}

// Makes one number of the lanes of each row, by halves: lane r gets that of row(r). The same with two in a pair.
// combine(a, b) is combine(b, a).
template <int rows = LANES, class Row, class Combine>
static inline auto reduce_rows(Row row, Combine combine, int first = 0) {
    if constexpr (rows == 1) {
        return row(first);
    } else {
        const auto a = reduce_rows<rows / 2>(row, combine, first);
        const auto b = reduce_rows<rows / 2>(row, combine, first + rows / 2);
        return combine_rows<rows / 2>(a, b, combine);
    }
}

// Loads LANES runs of n consecutive floats, one run a lane: value i of run r goes to lane r of columns[i].
// Runs begin `stride` floats apart.
template <int n, int stride = n> static inline void load_columns(const float *x, Floats *columns) {
    for (int i = 0; i < n; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) columns[i + lane] = load<Floats>(x + lane * stride + i);
        transpose(columns + i);
    }
}

// And back.
template <int n> static inline void store_columns(const Floats *columns, float *x) {
    for (int i = 0; i < n; i += LANES) {
        Floats square[LANES];
        for (int lane = 0; lane < LANES; ++lane) square[lane] = columns[i + lane];
        transpose(square);
        for (int lane = 0; lane < LANES; ++lane) store(x + lane * n + i, square[lane]);
    }
}

// Loads n floats each of PAIR_LANES runs that begin `stride` apart, one run a lane: value i of run r goes to lane
// r of out[i].
template <int n, int stride = n> static inline void load_transposed(const float *x, FloatPair *out) {
    for (int i = 0; i < n; i += LANES) {
        Floats a[LANES], b[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            a[lane] = load<Floats>(x + lane * stride + i);
            b[lane] = load<Floats>(x + (LANES + lane) * stride + i);
        }
        transpose(a);
        transpose(b);
        for (int lane = 0; lane < LANES; ++lane) out[i + lane] = {a[lane], b[lane]};
    }
}

} // namespace phi::PHI_ISA
