// MXFP4 and NVFP4: codes are 4-bit floating-point numbers, and so, in a way, are the scales.
// First the scales of a group of blocks (lane: a run of weights that share one), then their codes (lane: a
// weight, in the order of memory). To read, the same in NumPy: phicourse/quantize/small_floats.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "small_blocks.hpp"
#include "small_float_scales.hpp"

namespace phi::PHI_ISA {

// ---- codes: E2M1 numbers ---------------------------------------------------------------------

// Twice the numbers: whole, with the half in the scale. Code 8 would be -0; it is 0 here.
constexpr float LEVELS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Codes of the levels nearest to the weights, the first of equals. As the levels are symmetric and zero comes
// first, only those of one sign matter. The distances are rounded as in ggml: to a weight that is far too
// large they are all the same.
static inline Ints nearest_codes(const float *x, float scale) {
    const Floats v = load<Floats>(x), magnitude = abs(v);
    Floats nearest = magnitude;
    Ints code{};
    for (int k = 1; k < 8; ++k) {
        const Floats distance = abs(LEVELS[k] * scale - magnitude);
        code = select(distance < nearest, splat(k), code);
        nearest = min(distance, nearest);
    }
    return code | (((v < 0.0f) & (code != 0)) & 8);
}

// ---- MXFP4: the scale is a power of two ------------------------------------------------------

// floor(log2 v), the logarithm rounded to float32: a little below a power of two it is that power's. v > 0
static inline int floor_log2(float v) { return (int)__builtin_floorf((float)__builtin_log2(v)); }

// The same by the exponent of v, where no rounding can matter.
static inline Ints floor_log2(Floats v) {
    Ints power = (bits(v) >> 23) - 127;
    const Ints close = (bits(v) & 0x007fff00) == 0x007fff00, subnormal = power == -127;
    const Ints doubtful = (close | subnormal) & (v > 0.0f);
    if (any(doubtful))
        for (int lane = 0; lane < LANES; ++lane)
            if (doubtful[lane]) power[lane] = floor_log2(v[lane]);
    return power;
}

static void quantize_mxfp4(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockMXFP4 *out, int blocks) {
        const Floats largest = largest_magnitudes<BLOCK>(x);
        // the power of two at or below the largest weight meets code 6, of the number 4
        const Ints e = select(largest > 0.0f, (floor_log2(largest) - 2 + 127) & 255, Ints{});
        float scale[LANES];
        store(scale, half_of_power(e));
        for (int block = 0; block < blocks; ++block, x += BLOCK) {
            constexpr int half = BLOCK / 2;
            out[block].e = (uint8_t)e[block];
            for (int i = 0; i < half; i += LANES) {
                const Ints low = nearest_codes(x + i, scale[block]), high = nearest_codes(x + half + i, scale[block]);
                store_bytes(out[block].qs + i, low | high << 4);
            }
        }
    };
    for_each_filled_group<LANES, BLOCK>(x, n_blocks, (BlockMXFP4 *)out, quantize_group);
}

static void dequantize_mxfp4(const void *data, int64_t n_blocks, float *x) {
    const BlockMXFP4 *blocks = (const BlockMXFP4 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) {
        const float scale = half_of_power(splat((int32_t)blocks[i].e))[0];
        for (int l = 0; l < BLOCK / 2; l += LANES) {
            const Ints both = load_bytes(blocks[i].qs + l);
            store(x + l, lookup(LEVELS, both & 15) * scale);
            store(x + BLOCK / 2 + l, lookup(LEVELS, both >> 4) * scale);
        }
    }
}

// ---- NVFP4: the scale is an unsigned 8-bit float ---------------------------------------------

constexpr int NV_SUB_BLOCKS = 4, NV_SUB_BLOCK = 16; // sub-blocks, and weights in one

// Rounded half up. Below 2^-6 (code 8) the steps are 2^-9; the largest number is 448 (code 126), and as in ggml
// it takes the place of all numbers from 248 on.
static inline Ints to_ue4m3(Floats v) {
    // Exponent and the highest bits of the fraction are one number: what rounding carries goes where it belongs.
    // The exponent of a float counts from 127, this one from 7.
    Ints normal = (((bits(v) >> 19) + 1) >> 1) - ((127 - 7) << 3);
    normal = select(normal < 15 << 3, normal, splat(126));
    const Ints small = min(truncate(v * 512.0f + 0.5f), splat(7));
    return select(v > 0.0f, select(v < 0x1p-6f, small, normal), Ints{});
}

// Two codes a byte: of weight j low, of weight j + 8 high.
static inline void pack_sub_block(const uint8_t *codes, uint8_t *qs) {
    store(qs, load<uint64_t>(codes) | load<uint64_t>(codes + 8) << 4);
}

typedef uint64_t Codes __attribute__((vector_size(NV_SUB_BLOCK))); // a byte each

static inline Codes unpack_sub_block(const uint8_t *qs) {
    const uint64_t packed = load<uint64_t>(qs), low_bits = 0x0f0f0f0f0f0f0f0f;
    return Codes{packed & low_bits, packed >> 4 & low_bits};
}

static void quantize_nvfp4(const float *x, int64_t n_blocks, void *out) {
    constexpr int group = LANES / NV_SUB_BLOCKS;
    const auto quantize_group = [](const float *x, BlockNVFP4 *out, int blocks) {
        const Ints d = to_ue4m3(largest_magnitudes<NV_SUB_BLOCK>(x) / 6.0f); // the largest E2M1 number
        float scale[LANES];
        store(scale, half_of_ue4m3(d));
        for (int s = 0; s < blocks * NV_SUB_BLOCKS; ++s, x += NV_SUB_BLOCK) {
            BlockNVFP4 &block = out[s / NV_SUB_BLOCKS];
            uint8_t codes[NV_SUB_BLOCK];
            for (int i = 0; i < NV_SUB_BLOCK; i += LANES) store_bytes(codes + i, nearest_codes(x + i, scale[s]));
            block.d[s % NV_SUB_BLOCKS] = (uint8_t)d[s];
            pack_sub_block(codes, block.qs + s % NV_SUB_BLOCKS * NV_SUB_BLOCK / 2);
        }
    };
    for_each_filled_group<group, BLOCK_NVFP4>(x, n_blocks, (BlockNVFP4 *)out, quantize_group);
}

static void dequantize_nvfp4(const void *data, int64_t n_blocks, float *x) {
    const BlockNVFP4 *blocks = (const BlockNVFP4 *)data;
    for (int64_t i = 0; i < n_blocks; ++i)
        for (int s = 0; s < NV_SUB_BLOCKS; ++s, x += NV_SUB_BLOCK) {
            const float scale = half_of_ue4m3(splat((int32_t)blocks[i].d[s]))[0];
            const Codes codes = unpack_sub_block(blocks[i].qs + s * NV_SUB_BLOCK / 2);
            for (int l = 0; l < NV_SUB_BLOCK; l += LANES)
                store(x + l, lookup(LEVELS, load_bytes((const uint8_t *)&codes + l)) * scale);
        }
}

// ---- better scales ---------------------------------------------------------------------------

// From the lowest up, and the codes of these; the last one again, for there are 15.
constexpr float SORTED[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12, 12};
constexpr uint8_t CODES[16] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7};

static void read_mxfp4(const void *block, Scales &scales) {
    scales.d = 1;
    scales.scale[0] = ((const BlockMXFP4 *)block)->e;
}

static void write_mxfp4(const Scales &scales, const uint8_t *codes, void *block) {
    BlockMXFP4 &out = *(BlockMXFP4 *)block;
    out.e = (uint8_t)scales.scale[0];
    for (int i = 0; i < BLOCK / 2; ++i) out.qs[i] = CODES[codes[i]] | CODES[codes[i + BLOCK / 2]] << 4;
}

static void read_nvfp4(const void *block, Scales &scales) {
    scales.d = 1;
    for (int s = 0; s < NV_SUB_BLOCKS; ++s) scales.scale[s] = ((const BlockNVFP4 *)block)->d[s];
}

static void write_nvfp4(const Scales &scales, const uint8_t *codes, void *block) {
    BlockNVFP4 &out = *(BlockNVFP4 *)block;
    for (int s = 0; s < NV_SUB_BLOCKS; ++s) {
        uint8_t its_codes[NV_SUB_BLOCK];
        for (int i = 0; i < NV_SUB_BLOCK; ++i) its_codes[i] = CODES[codes[s * NV_SUB_BLOCK + i]];
        out.d[s] = (uint8_t)scales.scale[s];
        pack_sub_block(its_codes, out.qs + s * NV_SUB_BLOCK / 2);
    }
}

constexpr Format MXFP4_FORMAT = {
    .n_sub = 1, .size = BLOCK, .bytes = sizeof(BlockMXFP4),
    .first = SORTED[0], .last = SORTED[15], .lowest_scale = 0, .highest_scale = 254, .lowest_minimum = 0,
    .counts = Counts::equal, .mean = Mean::none,
    .read = read_mxfp4, .write = write_mxfp4, .levels = SORTED,
    .first_reach = 1, .scale_codes = ScaleCodes::powers_of_two, .has_d = false,
};

constexpr Format NVFP4_FORMAT = {
    .n_sub = NV_SUB_BLOCKS, .size = NV_SUB_BLOCK, .bytes = sizeof(BlockNVFP4),
    .first = SORTED[0], .last = SORTED[15], .lowest_scale = 0, .highest_scale = 126, .lowest_minimum = 0,
    .counts = Counts::equal, .mean = Mean::none,
    .read = read_nvfp4, .write = write_nvfp4, .levels = SORTED,
    .first_reach = 7, .scale_codes = ScaleCodes::small_floats, .has_d = false,
};

const Quantizer quantizer_mxfp4 = {quantize_mxfp4, dequantize_mxfp4, nullptr, &MXFP4_FORMAT};
const Quantizer quantizer_nvfp4 = {quantize_nvfp4, dequantize_nvfp4, nullptr, &NVFP4_FORMAT};

} // namespace phi::PHI_ISA
