// IQ4_NL and IQ4_XS: 4-bit codes for sixteen uneven levels, close together near zero, where weights are many.
// First the scales are searched (lane: 32 weights that share one), then the codes found (lane: a weight, in
// the order of memory). To read, the same in NumPy: phicourse/quantize/nonlinear.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "scale_search.hpp"
#include "small_blocks.hpp"

namespace phi::PHI_ISA {

constexpr int N_LEVELS = 16;
constexpr float LEVELS[N_LEVELS] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// From here on level k is nearer than level k - 1: halfway, where both distances are exact in float32.
constexpr float threshold(int k) { return (LEVELS[k - 1] + LEVELS[k]) / 2; }

// The level nearest to each number, the upper one of two as near. v is a number.
static inline FloatPair nearest_level(FloatPair v) {
    FloatPair level = splat_pair(LEVELS[0]);
    for (int k = 1; k < N_LEVELS; ++k) level = select(v < threshold(k), level, splat_pair(LEVELS[k]));
    return level;
}

// Its code; 15 for what is not a number, as in ggml.
static inline Ints nearest_code(Floats v) {
    Ints code = splat(N_LEVELS - 1);
    for (int k = 1; k < N_LEVELS; ++k) code += v < threshold(k); // -1 where it is
    return code;
}

// ---- the search ------------------------------------------------------------------------------

// Sums of w x level and of w level^2 over each sub-block, levels chosen with 1 / scale.
static inline Projections<FloatPair> projections(const FloatPair *x, const FloatPair *w, FloatPair inverse) {
    Projections<FloatPair> sums{};
    for (int i = 0; i < BLOCK; ++i) {
        const FloatPair level = nearest_level(inverse * x[i]), weighted = w[i] * level;
        sums.xl += weighted * x[i];
        sums.ll += weighted * level;
    }
    return sums;
}

// The scale of each sub-block, 0 where it is all zero. The largest weight meets in turn numbers from 7 below
// -127 to 7 above; the best levels have the largest gain.
static inline FloatPair level_search(const FloatPair *x, const FloatPair *w) {
    FloatPair peak = signed_peak<BLOCK>(x);
    const IntPair empty = abs(peak) < ZERO;
    peak = select(empty, splat_pair(1.0f), peak);
    const Projections<FloatPair> first = projections(x, w, 1.0f / (-peak / LEVELS[0]));
    FloatPair scale = select(first.ll > 0.0f, first.xl / first.ll, FloatPair{});
    FloatPair gain = scale * first.xl;
    for (int shift = -7; shift <= 7; ++shift) {
        const Projections<FloatPair> sums = projections(x, w, (shift + LEVELS[0]) / peak);
        const IntPair better = (sums.ll > 0.0f) & (sums.xl * sums.xl > gain * sums.ll);
        const FloatPair tried = sums.xl / sums.ll;
        scale = select(better, tried, scale);
        gain = select(better, tried * sums.xl, gain);
    }
    return select(empty, FloatPair{}, scale);
}

// Twice the mean square of the `size` weights around each of PAIR_LANES sub-blocks.
template <int size> static inline FloatPair twice_mean_square(const float *x) {
    constexpr int runs = PAIR_LANES * BLOCK / size;
    float sums[runs] = {}, spread[PAIR_LANES];
    for (int i = 0; i < size; ++i)
        for (int run = 0; run < runs; ++run) sums[run] += x[run * size + i] * x[run * size + i];
    for (int lane = 0; lane < PAIR_LANES; ++lane) spread[lane] = sums[lane * BLOCK / size] * (2.0f / size);
    return load<FloatPair>(spread);
}

// The scales of PAIR_LANES sub-blocks, of blocks of `size` weights. Large weights count more; so do, where
// importance is known, columns that have it.
template <int size> static inline FloatPair search(const float *x, const float *importance) {
    FloatPair columns[BLOCK], w[BLOCK]; // [weight of the sub-block], lane: sub-block
    load_transposed<BLOCK>(x, columns);
    if (importance) {
        FloatPair counts[BLOCK];
        load_transposed<BLOCK>(importance, counts);
        error_weights<BLOCK>(columns, counts, twice_mean_square<size>(x), w);
    } else {
        for (int i = 0; i < BLOCK; ++i) w[i] = columns[i] * columns[i];
    }
    return level_search(columns, w);
}

// ---- the codes -------------------------------------------------------------------------------

// code_of(i): the codes of LANES weights from number i on.
template <class CodeOf> static inline void pack_codes(CodeOf code_of, uint8_t *qs) {
    constexpr int half = BLOCK / 2;
    for (int i = 0; i < half; i += LANES) store_bytes(qs + i, code_of(i) | code_of(half + i) << 4);
}

static inline void set_codes(const float *x, float inverse, uint8_t *qs) {
    pack_codes([=](int i) { return nearest_code(inverse * load<Floats>(x + i)); }, qs);
}

static inline void levels_of(const uint8_t *qs, float d, float *x) {
    constexpr int half = BLOCK / 2;
    for (int i = 0; i < half; i += LANES) {
        const Ints both = load_bytes(qs + i);
        store(x + i, d * lookup(LEVELS, both & 15));
        store(x + half + i, d * lookup(LEVELS, both >> 4));
    }
}

static inline float reciprocal(float d) { return d != 0 ? 1.0f / d : 0.0f; }

// ---- IQ4_NL ----------------------------------------------------------------------------------

static void quantize_weighted_iq4_nl(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, const float *importance, BlockIQ4_NL *out, int blocks) {
        float scales[PAIR_LANES];
        store(scales, search<BLOCK>(x, importance));
        for (int block = 0; block < blocks; ++block) {
            out[block].d = narrow_f16(scales[block]);
            set_codes(x + block * BLOCK, reciprocal(scales[block]), out[block].qs);
        }
    };
    for_each_filled_group<PAIR_LANES, BLOCK>(x, importance, n_blocks, (BlockIQ4_NL *)out, quantize_group);
}

static void quantize_iq4_nl(const float *x, int64_t n_blocks, void *out) {
    quantize_weighted_iq4_nl(x, nullptr, n_blocks, out);
}

static void dequantize_iq4_nl(const void *data, int64_t n_blocks, float *x) {
    const BlockIQ4_NL *blocks = (const BlockIQ4_NL *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) levels_of(blocks[i].qs, widen_f16(blocks[i].d), x);
}

// ---- IQ4_XS ----------------------------------------------------------------------------------

constexpr int XS_SUB_BLOCKS = SUPER_BLOCK / BLOCK;
constexpr int XS_GROUP = PAIR_LANES / XS_SUB_BLOCKS;

// Sets the 6-bit codes of the scales, from -32 to 31.
static inline void pack_scales(const int *codes, BlockIQ4_XS &out) {
    uint32_t low_bits = 0, high_bits = 0;
    for (int j = 0; j < XS_SUB_BLOCKS; ++j) {
        const uint32_t stored = (uint32_t)(codes[j] + 32);
        low_bits |= (stored & 15) << 4 * j;
        high_bits |= (stored >> 4) << 2 * j;
    }
    out.scales_h = (uint16_t)high_bits;
    __builtin_memcpy(out.scales_l, &low_bits, sizeof low_bits);
}

static inline int scale_code(const BlockIQ4_XS &block, int j) {
    return ((block.scales_l[j / 2] >> 4 * (j % 2) & 15) | (block.scales_h >> 2 * j & 3) << 4) - 32;
}

// Quantizes the scales of a super-block to six bits, the one of largest magnitude to -32, and with them the
// weights.
static inline void set_super_block(const float *x, const float *scales, BlockIQ4_XS &out) {
    float peak = 0;
    for (int j = 0; j < XS_SUB_BLOCKS; ++j)
        if (__builtin_fabsf(scales[j]) > __builtin_fabsf(peak)) peak = scales[j];
    const float d = -peak / 32.0f, inverse = reciprocal(d);
    out.d = narrow_f16(d);
    int codes[XS_SUB_BLOCKS];
    for (int j = 0; j < XS_SUB_BLOCKS; ++j) {
        const int code = nearest_int(inverse * scales[j]);
        codes[j] = code < -32 ? -32 : code > 31 ? 31 : code;
        const float step = d * codes[j]; // with d as it was before float16
        set_codes(x + j * BLOCK, reciprocal(step), out.qs + j * BLOCK / 2);
    }
    pack_scales(codes, out);
}

static void quantize_weighted_iq4_xs(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, const float *importance, BlockIQ4_XS *out, int blocks) {
        float scales[PAIR_LANES];
        store(scales, search<SUPER_BLOCK>(x, importance));
        for (int block = 0; block < blocks; ++block)
            set_super_block(x + block * SUPER_BLOCK, scales + block * XS_SUB_BLOCKS, out[block]);
    };
    for_each_filled_group<XS_GROUP, SUPER_BLOCK>(x, importance, n_blocks, (BlockIQ4_XS *)out, quantize_group);
}

static void quantize_iq4_xs(const float *x, int64_t n_blocks, void *out) {
    quantize_weighted_iq4_xs(x, nullptr, n_blocks, out);
}

static void dequantize_iq4_xs(const void *data, int64_t n_blocks, float *x) {
    const BlockIQ4_XS *blocks = (const BlockIQ4_XS *)data;
    for (int64_t i = 0; i < n_blocks; ++i) {
        const float d = widen_f16(blocks[i].d);
        for (int j = 0; j < XS_SUB_BLOCKS; ++j, x += BLOCK)
            levels_of(blocks[i].qs + j * BLOCK / 2, d * scale_code(blocks[i], j), x);
    }
}

// ---- for the search of better scales ---------------------------------------------------------

static void read_iq4_nl(const void *data, Scales &scales) {
    scales.d = widen_f16(((const BlockIQ4_NL *)data)->d);
    scales.scale[0] = 1;
}

static void write_iq4_nl(const Scales &scales, const uint8_t *codes, void *out) {
    BlockIQ4_NL &block = *(BlockIQ4_NL *)out;
    block.d = narrow_f16(scales.d);
    pack_codes([=](int i) { return load_bytes(codes + i); }, block.qs);
}

static void read_iq4_xs(const void *data, Scales &scales) {
    const BlockIQ4_XS &block = *(const BlockIQ4_XS *)data;
    scales.d = widen_f16(block.d);
    for (int j = 0; j < XS_SUB_BLOCKS; ++j) scales.scale[j] = (float)scale_code(block, j);
}

static void write_iq4_xs(const Scales &scales, const uint8_t *codes, void *out) {
    BlockIQ4_XS &block = *(BlockIQ4_XS *)out;
    int of_scales[XS_SUB_BLOCKS];
    for (int j = 0; j < XS_SUB_BLOCKS; ++j, codes += BLOCK) {
        of_scales[j] = (int)scales.scale[j];
        pack_codes([=](int i) { return load_bytes(codes + i); }, block.qs + j * BLOCK / 2);
    }
    block.d = narrow_f16(scales.d);
    pack_scales(of_scales, block);
}

constexpr Format NL_FORMAT = {
    .n_sub = 1, .size = BLOCK, .bytes = sizeof(BlockIQ4_NL),
    .first = LEVELS[0], .last = LEVELS[N_LEVELS - 1], .lowest_scale = 1, .highest_scale = 1, .lowest_minimum = 0,
    .counts = Counts::square, .mean = Mean::twice_of_block,
    .read = read_iq4_nl, .write = write_iq4_nl, .levels = LEVELS,
};
constexpr Format XS_FORMAT = {
    .n_sub = XS_SUB_BLOCKS, .size = BLOCK, .bytes = sizeof(BlockIQ4_XS),
    .first = LEVELS[0], .last = LEVELS[N_LEVELS - 1], .lowest_scale = -32, .highest_scale = 31, .lowest_minimum = 0,
    .counts = Counts::square, .mean = Mean::twice_of_block,
    .read = read_iq4_xs, .write = write_iq4_xs, .levels = LEVELS,
    .first_reach = 4, .reach = 4, .opposite = Opposite::always,
};

const Quantizer quantizer_iq4_nl = {quantize_iq4_nl, dequantize_iq4_nl, quantize_weighted_iq4_nl, &NL_FORMAT};
const Quantizer quantizer_iq4_xs = {quantize_iq4_xs, dequantize_iq4_xs, quantize_weighted_iq4_xs, &XS_FORMAT};

} // namespace phi::PHI_ISA
