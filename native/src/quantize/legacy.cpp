// Q8_0 and Q4_0: 32 weights share one scale, and the largest weight decides.
// First the scales of PAIR_LANES blocks (lane: a block), then their codes (lane: a weight, in the order of
// memory). To read, the same in NumPy: phicourse/quantize/legacy.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "scale_search.hpp"

namespace phi::PHI_ISA {

// ---- groups ----------------------------------------------------------------------------------

// The scales of a group of blocks.
struct BlockScales {
    float d[PAIR_LANES], inverse[PAIR_LANES]; // inverse: 1 / d, 0 where d is 0
};

static inline BlockScales block_scales(FloatPair d) {
    BlockScales scales;
    store(scales.d, d);
    store(scales.inverse, select(d != 0.0f, 1.0f / d, FloatPair{}));
    return scales;
}

// Calls find_scales on PAIR_LANES blocks at a time and set_codes on each block. The last group may have
// fewer: its scales come from a copy that zeros fill up, so that every lane has a block.
template <class Block, class FindScales, class SetCodes>
static inline void for_each_block(const float *x, int64_t n_blocks, Block *out, FindScales find_scales,
                                  SetCodes set_codes) {
    for (int64_t first = 0; first < n_blocks; first += PAIR_LANES) {
        const int blocks = n_blocks - first < PAIR_LANES ? (int)(n_blocks - first) : PAIR_LANES;
        FloatPair columns[BLOCK]; // [weight of the block], lane: block
        if (blocks == PAIR_LANES) {
            load_transposed<BLOCK>(x + first * BLOCK, columns);
        } else {
            float rest[PAIR_LANES * BLOCK] = {};
            __builtin_memcpy(rest, x + first * BLOCK, sizeof(float) * BLOCK * blocks);
            load_transposed<BLOCK>(rest, columns);
        }
        const BlockScales scales = find_scales(columns);
        for (int block = 0; block < blocks; ++block) {
            out[first + block].d = narrow_f16(scales.d[block]);
            set_codes(x + (first + block) * BLOCK, scales.inverse[block], out[first + block]);
        }
    }
}

// ---- Q8_0 ------------------------------------------------------------------------------------

static void quantize_q8_0(const float *x, int64_t n_blocks, void *out) {
    const auto find_scales = [](const FloatPair *columns) {
        FloatPair largest{};
        for (int i = 0; i < BLOCK; ++i) largest = max(abs(columns[i]), largest);
        return block_scales(largest / 127.0f);
    };
    const auto set_codes = [](const float *x, float inverse, BlockQ8_0 &out) {
        for (int i = 0; i < BLOCK; i += LANES) store_bytes(out.qs + i, round_away(load<Floats>(x + i) * inverse));
    };
    for_each_block(x, n_blocks, (BlockQ8_0 *)out, find_scales, set_codes);
}

static void dequantize_q8_0(const void *data, int64_t n_blocks, float *x) {
    const BlockQ8_0 *blocks = (const BlockQ8_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) {
        const float d = widen_f16(blocks[i].d);
        for (int l = 0; l < BLOCK; l += LANES) store(x + l, to_floats(load_signed_bytes(blocks[i].qs + l)) * d);
    }
}

// ---- Q4_0 ------------------------------------------------------------------------------------

// 0 to 15: x * inverse is between -8 and 8, and cutting off the fraction after + 8.5 rounds it.
static inline Ints code_q4_0(const float *x, float inverse) {
    return min(truncate(load<Floats>(x) * inverse + 8.5f), splat(15)) & 15;
}

static void quantize_q4_0(const float *x, int64_t n_blocks, void *out) {
    const auto find_scales = [](const FloatPair *columns) {
        return block_scales(signed_peak<BLOCK>(columns) / -8.0f); // the peak gets code 0
    };
    const auto set_codes = [](const float *x, float inverse, BlockQ4_0 &out) {
        constexpr int half = BLOCK / 2;
        for (int i = 0; i < half; i += LANES)
            store_bytes(out.qs + i, code_q4_0(x + i, inverse) | code_q4_0(x + half + i, inverse) << 4);
    };
    for_each_block(x, n_blocks, (BlockQ4_0 *)out, find_scales, set_codes);
}

static void dequantize_q4_0(const void *data, int64_t n_blocks, float *x) {
    const BlockQ4_0 *blocks = (const BlockQ4_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) {
        const float d = widen_f16(blocks[i].d);
        for (int l = 0; l < BLOCK / 2; l += LANES) {
            const Ints both = load_bytes(blocks[i].qs + l);
            store(x + l, to_floats((both & 15) - 8) * d);
            store(x + BLOCK / 2 + l, to_floats((both >> 4) - 8) * d);
        }
    }
}

const Quantizer quantizer_q8_0 = {quantize_q8_0, dequantize_q8_0};
const Quantizer quantizer_q4_0 = {quantize_q4_0, dequantize_q4_0};

} // namespace phi::PHI_ISA
