// F32, F16 and BF16: a "block" is one weight. Lane: a weight.
// The same in NumPy, to read: phicourse/quantize/float_types.py
#include "../simd.hpp"
#include "quantizers.hpp"

namespace phi::PHI_ISA {

// ---- F32 -------------------------------------------------------------------------------------

static void quantize_f32(const float *x, int64_t n, void *out) { __builtin_memcpy(out, x, n * sizeof(float)); }
static void dequantize_f32(const void *data, int64_t n, float *x) { __builtin_memcpy(x, data, n * sizeof(float)); }

// ---- F16 and BF16 ----------------------------------------------------------------------------

static inline void narrow_all(const float *x, int64_t n, void *out, Halves (*narrow)(Floats)) {
    uint16_t *halves = (uint16_t *)out;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(halves + i, narrow(load<Floats>(x + i)));
    for (; i < n; ++i) halves[i] = narrow(splat(x[i]))[0];
}

static inline void widen_all(const void *data, int64_t n, float *x, Floats (*widen)(Halves)) {
    const uint16_t *halves = (const uint16_t *)data;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(x + i, widen(load<Halves>(halves + i)));
    for (; i < n; ++i) x[i] = widen(halves[i] - Halves{})[0];
}

static void quantize_f16(const float *x, int64_t n, void *out) { narrow_all(x, n, out, narrow_f16); }
static void dequantize_f16(const void *data, int64_t n, float *x) { widen_all(data, n, x, widen_f16); }
static void quantize_bf16(const float *x, int64_t n, void *out) { narrow_all(x, n, out, narrow_bf16); }
static void dequantize_bf16(const void *data, int64_t n, float *x) { widen_all(data, n, x, widen_bf16); }

// ---- finite? ---------------------------------------------------------------------------------

// Magnitudes as integers keep their order, and what is infinite or not a number comes behind all the others.
static inline Ints magnitude(Floats v) { return bits(v) & 0x7fffffff; }
constexpr int32_t INFINITE = 0x7f800000;

int64_t find_non_finite(const float *x, int64_t n) {
    constexpr int64_t STRIDE = 1024; // weights between two looks at the result
    for (int64_t start = 0; start < n; start += STRIDE) {
        const int64_t end = start + STRIDE < n ? start + STRIDE : n;
        Ints largest{};
        int64_t i = start;
        for (; i + LANES <= end; i += LANES) largest = max(magnitude(load<Floats>(x + i)), largest);
        for (; i < end; ++i) largest = max(magnitude(splat(x[i])), largest);
        if (!any(largest >= INFINITE)) continue;
        for (i = start; magnitude(splat(x[i]))[0] < INFINITE;) ++i;
        return i;
    }
    return n;
}

const Quantizer quantizer_f32 = {quantize_f32, dequantize_f32};
const Quantizer quantizer_f16 = {quantize_f16, dequantize_f16};
const Quantizer quantizer_bf16 = {quantize_bf16, dequantize_bf16};

} // namespace phi::PHI_ISA
