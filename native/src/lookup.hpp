// Tables: many small ones in registers, one large one in memory.
//   permute     entry of a table of LANES numbers, modulo LANES, for each lane
//   gather      entry of a table in memory for each lane
//   lane_bits   bit i: is lane i of the mask set?
//   smallest    of all lanes
#pragma once

#include "simd.hpp"

namespace phi::PHI_ISA {

#if defined(PHI_ISA_avx2) || defined(PHI_ISA_avx512)

static inline float smallest(__m256 v) {
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

#endif
#if defined(PHI_ISA_avx512)

static inline float smallest(__m512 v) {
    return smallest(_mm256_min_ps(_mm512_maskz_extractf32x8_ps(-1, v, 0), _mm512_maskz_extractf32x8_ps(-1, v, 1)));
}
static inline Floats permute(Floats table, Ints index) {
    return _mm512_maskz_permutexvar_ps(-1, (__m512i)index, table);
}
static inline Ints gather(const int32_t *table, Ints index) {
    return (Ints)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), -1, (__m512i)index, table, 4);
}
static inline unsigned lane_bits(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }

#elif defined(PHI_ISA_avx2)

static inline Floats permute(Floats table, Ints index) { return _mm256_permutevar8x32_ps(table, (__m256i)index); }
static inline Ints gather(const int32_t *table, Ints index) {
    return (Ints)_mm256_i32gather_epi32(table, (__m256i)index, 4);
}
static inline unsigned lane_bits(Ints mask) { return _mm256_movemask_ps((__m256)mask); }

#else

#if defined(PHI_ISA_neon)
static inline Floats permute(Floats table, Ints index) { // by bytes, as there is no instruction for floats
    const Ints bytes = (index & 3) * 0x04040404 + 0x03020100;
    return (Floats)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)bytes);
}
#else
static inline Floats permute(Floats table, Ints index) {
    return Floats{table[index[0] & 3], table[index[1] & 3], table[index[2] & 3], table[index[3] & 3]};
}
#endif
static inline Ints gather(const int32_t *table, Ints index) {
    return Ints{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
static inline unsigned lane_bits(Ints mask) {
    const Ints bit = mask & Ints{1, 2, 4, 8};
    return bit[0] | bit[1] | bit[2] | bit[3];
}
static inline float smallest(Floats v) {
    const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
}

#endif

// Stores the lanes of a mask one after the other, and anything behind them. Returns how many they are.
static inline int store_some(int32_t *p, Ints v, Ints mask) {
    const unsigned some = lane_bits(mask);
#if defined(PHI_ISA_avx512)
    store(p, _mm512_maskz_compress_epi32((__mmask16)some, (__m512i)v));
    return __builtin_popcount(some);
#elif defined(PHI_ISA_avx2)
    const uint64_t bytes = _pdep_u64(some, 0x0101010101010101) * 255; // a byte for each lane
    const __m128i lanes = _mm_cvtsi64_si128((int64_t)_pext_u64(0x0706050403020100, bytes));
    store(p, _mm256_permutevar8x32_epi32((__m256i)v, _mm256_cvtepu8_epi32(lanes)));
    return __builtin_popcount(some);
#else
    int count = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        p[count] = v[lane];
        count += some >> lane & 1;
    }
    return count;
#endif
}

// Bit i: is lane i equal to the number?
static inline unsigned lanes_equal(Floats v, float number) {
#if defined(PHI_ISA_avx512)
    return _mm512_cmp_ps_mask(v, splat(number), _CMP_EQ_OQ);
#else
    return lane_bits(v == number);
#endif
}

// The smallest number of each of LANES vectors. As transpose, but half of what an exchange gives is left.
template <int step = 1> static inline Floats smallest_of_each(const Floats *rows) {
    if constexpr (step == LANES) {
        return rows[0];
    } else {
        Floats left[LANES];
        for (int row = 0; row < LANES; row += 2 * step) {
            Floats a = rows[row], b = rows[row + step];
            exchange<step>(a, b, std::make_integer_sequence<int, LANES>());
            left[row] = min(a, b);
        }
        return smallest_of_each<2 * step>(left);
    }
}

// The number of each lane.
static inline Ints lane_numbers() {
    Ints numbers{};
    for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
    return numbers;
}

} // namespace phi::PHI_ISA
