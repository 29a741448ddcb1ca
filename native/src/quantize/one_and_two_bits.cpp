// Q1_0 and Q2_0: one or two bits a weight and one scale.
// First the scales of a group of blocks (lane: a block), then their codes (lane: a weight, in the order of
// memory). To read, the same in NumPy: phicourse/quantize/one_and_two_bits.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "small_blocks.hpp"

namespace phi::PHI_ISA {

// ---- Q1_0: the signs, and the mean magnitude -------------------------------------------------

// Of PAIR_LANES blocks, each summed from its first weight to its last.
static inline FloatPair mean_magnitudes(const float *x) {
    constexpr int part = 32;
    FloatPair sum{};
    for (int start = 0; start < BLOCK_Q1_0; start += part) {
        FloatPair columns[part]; // [weight of the part], lane: block
        load_transposed<part, BLOCK_Q1_0>(x + start, columns);
        for (int i = 0; i < part; ++i) sum += abs(columns[i]);
    }
    return sum / (float)BLOCK_Q1_0;
}

static void quantize_q1_0(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockQ1_0 *out, int blocks) {
        float d[PAIR_LANES];
        store(d, mean_magnitudes(x));
        for (int block = 0; block < blocks; ++block, x += BLOCK_Q1_0) {
            out[block].d = narrow_f16(d[block]);
            for (int i = 0; i < BLOCK_Q1_0; i += 32) {
                uint32_t word = 0;
                for (int l = 0; l < 32; l += LANES) word |= bit_mask(load<Floats>(x + i + l) >= 0.0f) << l;
                __builtin_memcpy(out[block].qs + i / 8, &word, sizeof word);
            }
        }
    };
    for_each_filled_group<PAIR_LANES, BLOCK_Q1_0>(x, n_blocks, (BlockQ1_0 *)out, quantize_group);
}

static void dequantize_q1_0(const void *data, int64_t n_blocks, float *x) {
    const BlockQ1_0 *blocks = (const BlockQ1_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK_Q1_0) {
        const float d = widen_f16(blocks[i].d);
        for (int l = 0; l < BLOCK_Q1_0; l += 32) {
            uint32_t word;
            __builtin_memcpy(&word, blocks[i].qs + l / 8, sizeof word);
            for (int k = 0; k < 32; k += LANES) store(x + l + k, select(lane_mask(word >> k), splat(d), splat(-d)));
        }
    }
}

// ---- Q2_0: -1, 0 or 1 times the largest magnitude --------------------------------------------

// Four bytes of two bits make one, the low byte of the result.
static inline Ints gather_bits(Ints word) { return word | word >> 6 | word >> 12 | word >> 18; }

static inline void pack_codes(const uint8_t *codes, BlockQ2_0 &out) {
    for (int j = 0; j < BLOCK_Q2_0 / 4; j += LANES)
        store_bytes(out.qs + j, gather_bits(load<Ints>(codes + 4 * j)));
}

static void quantize_q2_0(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockQ2_0 *out, int blocks) {
        BlockScales scales;
        scales.set(0, largest_magnitudes<BLOCK_Q2_0>(x));
        for (int block = 0; block < blocks; ++block, x += BLOCK_Q2_0) {
            uint8_t codes[BLOCK_Q2_0];
            for (int i = 0; i < BLOCK_Q2_0; i += LANES)
                store_bytes(codes + i, max(round_away(load<Floats>(x + i) * scales.inverse[block]) + 1, Ints{}));
            out[block].d = scales.d[block];
            pack_codes(codes, out[block]);
        }
    };
    for_each_filled_group<LANES, BLOCK_Q2_0>(x, n_blocks, (BlockQ2_0 *)out, quantize_group);
}

template <int... lane> static inline Ints two_bits(uint32_t word, std::integer_sequence<int, lane...>) {
    return (splat((int32_t)word) >> Ints{2 * lane...}) & 3;
}

static void dequantize_q2_0(const void *data, int64_t n_blocks, float *x) {
    const BlockQ2_0 *blocks = (const BlockQ2_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK_Q2_0) {
        const float d = widen_f16(blocks[i].d);
        for (int l = 0; l < BLOCK_Q2_0; l += LANES) {
            uint32_t word = 0;
            __builtin_memcpy(&word, blocks[i].qs + l / 4, LANES / 4);
            store(x + l, to_floats(two_bits(word, std::make_integer_sequence<int, LANES>()) - 1) * d);
        }
    }
}

// ---- Q2_0, for the search of better scales ---------------------------------------------------

static void read_q2_0(const void *block, Scales &scales) {
    scales.d = widen_f16(((const BlockQ2_0 *)block)->d);
    scales.scale[0] = 1;
}

static void write_q2_0(const Scales &scales, const uint8_t *codes, void *block) {
    BlockQ2_0 &out = *(BlockQ2_0 *)block;
    out.d = narrow_f16(scales.d);
    pack_codes(codes, out);
}

constexpr Format Q2_0_FORMAT = {
    .n_sub = 1, .size = BLOCK_Q2_0, .bytes = sizeof(BlockQ2_0),
    .first = -1, .last = 2, .lowest_scale = 1, .highest_scale = 1, .lowest_minimum = 0,
    .counts = Counts::equal, .mean = Mean::none,
    .read = read_q2_0, .write = write_q2_0,
};

const Quantizer quantizer_q1_0 = {quantize_q1_0, dequantize_q1_0};
const Quantizer quantizer_q2_0 = {quantize_q2_0, dequantize_q2_0, nullptr, &Q2_0_FORMAT};

} // namespace phi::PHI_ISA
