// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: 32 weights share one scale (and, in the _1 types, one minimum).
// First the scales of a group of blocks (lane: a block), then their codes (lane: a weight, in the order of
// memory). The largest weights decide; with importance, a search does.
// To read, the same in NumPy: phicourse/quantize/legacy.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "scale_search.hpp"
#include "small_blocks.hpp"

namespace phi::PHI_ISA {

// ---- codes into blocks -----------------------------------------------------------------------

constexpr int HALF = BLOCK / 2;

// Blocks whose scales are found at once, so that the processor need not wait for those of the first before it looks at
// the next; few enough for the weights to stay near.
constexpr int GROUP = 64;

typedef uint16_t HalfBlock __attribute__((vector_size(HALF))); // words of two bytes: some have no shifts of bytes

// Packs the codes of a block, a byte each.
template <class Block> static inline void set_codes(const uint8_t *codes, Block &out) {
    if constexpr (requires { out.qh; }) {
        const uint32_t fifth_bits = bits_of_bytes<4>(codes);
        __builtin_memcpy(out.qh, &fifth_bits, sizeof fifth_bits);
    }
    store(out.qs, (load<HalfBlock>(codes) & 0x0f0f) | (load<HalfBlock>(codes + HALF) & 0x0f0f) << 4);
}

static inline void set_codes(const uint8_t *codes, BlockQ8_0 &out) {
    for (int i = 0; i < BLOCK; ++i) out.qs[i] = (int8_t)(codes[i] - 128);
}

// code_of(i): the codes of LANES weights of a group from number i on, as `pack` takes them; above `highest` there is
// nothing. Sets them in the first so many blocks. Returns whether none is below zero.
template <int group, int highest, class Block, class CodeOf>
    requires requires(Block block) { block.qh; }
static inline bool set_codes(CodeOf code_of, int blocks, Block *out) {
    uint8_t codes[group * BLOCK];
    Ints signs{};
    for (unsigned i = 0; i < group * BLOCK; i += 4 * LANES) {
        const Ints a = code_of(i), b = code_of(i + LANES), c = code_of(i + 2 * LANES), d = code_of(i + 3 * LANES);
        signs |= a | b | c | d;
        store(codes + i, min(pack(a, b, c, d), Bytes{} + (uint8_t)highest));
    }
    for (int block = 0; block < blocks; ++block) set_codes(codes + block * BLOCK, out[block]);
    return !any(signs < 0);
}

// The same where codes have four bits, which need not become bytes before two of them share one.
template <int group, int highest, class Block, class CodeOf>
static inline bool set_codes(CodeOf code_of, int blocks, Block *out) {
    Ints signs{};
    for (unsigned block = 0; block < (unsigned)blocks; ++block)
        for (unsigned i = 0; i < HALF; i += LANES) {
            const Ints low = code_of(block * BLOCK + i), high = code_of(block * BLOCK + HALF + i);
            signs |= low | high;
            store_bytes(out[block].qs + i, min(low, Ints{} + highest) | min(high, Ints{} + highest) << 4);
        }
    return !any(signs < 0);
}

// code_of, which looks ahead for as many weights as it takes.
template <class CodeOf> static inline auto with_prefetch(const float *x, CodeOf code_of) {
    return [=](unsigned i) {
        prefetch<LANES>(x + i);
        return code_of(i);
    };
}

// Calls write(weight number, codes) for LANES weights at a time.
template <class Block, class Write> static inline void for_each_code(const Block &block, Write write) {
    uint32_t fifth_bits = 0;
    if constexpr (requires { block.qh; }) __builtin_memcpy(&fifth_bits, block.qh, sizeof fifth_bits);
    for (int i = 0; i < HALF; i += LANES) {
        const Ints both = load_bytes(block.qs + i);
        Ints low = both & 15, high = both >> 4;
        if constexpr (requires { block.qh; }) {
            low |= lane_mask(fifth_bits >> i) & 16;
            high |= lane_mask(fifth_bits >> (HALF + i)) & 16;
        }
        write(i, to_floats(low));
        write(HALF + i, to_floats(high));
    }
}

// ---- Q8_0 ------------------------------------------------------------------------------------

static void quantize_q8_0(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockQ8_0 *out, int blocks) {
        BlockScales<GROUP> scales;
        for (int first = 0; first < GROUP; first += LANES)
            scales.set(first, largest_magnitudes<BLOCK>(x + first * BLOCK) / 127.0f);
        for (int block = 0; block < blocks; ++block, x += BLOCK) {
            prefetch<BLOCK>(x);
            out[block].d = scales.d[block];
            for (int i = 0; i < BLOCK; i += LANES)
                store_bytes(out[block].qs + i, round_away(load<Floats>(x + i) * scales.inverse[block]));
        }
    };
    for_each_filled_group<GROUP, BLOCK, Prefetch::in_parts>(x, n_blocks, (BlockQ8_0 *)out, quantize_group);
}

static void dequantize_q8_0(const void *data, int64_t n_blocks, float *x) {
    const BlockQ8_0 *blocks = (const BlockQ8_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) {
        const float d = widen_f16(blocks[i].d);
        for (int l = 0; l < BLOCK; l += LANES) store(x + l, to_floats(load_signed_bytes(blocks[i].qs + l)) * d);
    }
}

// ---- without a look ahead for infinite weights -----------------------------------------------

// The next two find their codes by cutting off fractions, which makes no number INT32_MIN. A block with a weight that is
// infinite, or no number, has such a code: the scale is infinite, its inverse 0, and 0 times infinite is no number.
template <bool (*quantize)(const float *, int64_t, void *)>
static void without_answer(const float *x, int64_t n_blocks, void *out) {
    quantize(x, n_blocks, out);
}

// ---- Q4_0 and Q5_0: scale * code, with codes from -n_max to n_max - 1 ------------------------

template <int n_max, class Block> static bool quantize_symmetric(const float *x, int64_t n_blocks, void *out) {
    bool finite = true;
    const auto quantize_group = [&finite](const float *x, Block *out, int blocks) {
        BlockScales<GROUP> scales;
        for (int first = 0; first < GROUP; first += LANES) // the peak gets code 0
            scales.set(first, signed_peaks<BLOCK>(x + first * BLOCK) / (float)-n_max);
        // x * inverse is between -n_max and n_max, and cutting off the fraction after + n_max + 0.5 rounds it
        const auto code_of = [&](unsigned i) {
            return truncate(load<Floats>(x + i) * scales.inverse[i / BLOCK] + (n_max + 0.5f));
        };
        for (int block = 0; block < blocks; ++block) out[block].d = scales.d[block];
        finite &= set_codes<GROUP, 2 * n_max - 1>(with_prefetch(x, code_of), blocks, out);
    };
    for_each_filled_group<GROUP, BLOCK, Prefetch::in_parts>(x, n_blocks, (Block *)out, quantize_group);
    return finite;
}

template <int n_max, class Block> static void dequantize_symmetric(const void *data, int64_t n_blocks, float *x) {
    const Block *blocks = (const Block *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) {
        const float d = widen_f16(blocks[i].d);
        for_each_code(blocks[i], [=](int l, Floats codes) { store(x + l, (codes - (float)n_max) * d); });
    }
}

// ---- Q4_1 and Q5_1: scale * code + minimum, with codes from 0 to n_max -----------------------

template <int n_max, class Block> static bool quantize_affine(const float *x, int64_t n_blocks, void *out) {
    bool finite = true;
    const auto quantize_group = [&finite](const float *x, Block *out, int blocks) {
        BlockScales<GROUP> scales;
        uint16_t m[GROUP];
        float lowest[GROUP];
        for (int first = 0; first < GROUP; first += LANES) {
            const float *blocks = x + first * BLOCK;
            const Ranges range = ranges<BLOCK>(blocks);
            scales.set(first, abs(range.highest - range.lowest) / (float)n_max); // abs: -0 - 0 is -0
            const Floats minima = first_lowest<BLOCK>(blocks, range.lowest);     // for the sign of a zero
            store(m + first, narrow_f16(minima));
            store(lowest + first, minima);
        }
        const auto code_of = [&](unsigned i) {
            return truncate((load<Floats>(x + i) - lowest[i / BLOCK]) * scales.inverse[i / BLOCK] + 0.5f);
        };
        for (int block = 0; block < blocks; ++block) {
            out[block].d = scales.d[block];
            out[block].m = m[block];
        }
        finite &= set_codes<GROUP, n_max>(with_prefetch(x, code_of), blocks, out);
    };
    for_each_filled_group<GROUP, BLOCK, Prefetch::in_parts>(x, n_blocks, (Block *)out, quantize_group);
    return finite;
}

template <class Block> static void dequantize_affine(const void *data, int64_t n_blocks, float *x) {
    const Block *blocks = (const Block *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += BLOCK) {
        const float d = widen_f16(blocks[i].d), m = widen_f16(blocks[i].m);
        for_each_code(blocks[i], [=](int l, Floats codes) { store(x + l, codes * d + m); });
    }
}

// ---- with importance -------------------------------------------------------------------------

// PAIR_LANES blocks of a row, and how much an error in each weight counts: [weight of the block], lane: block.
struct WeightedBlocks {
    FloatPair x[BLOCK], w[BLOCK];
};

// Calls quantize_group(x, columns, out, blocks) for each PAIR_LANES blocks of a row.
template <class Block, class QuantizeGroup>
static inline void for_each_weighted_group(const float *row, const float *importance, int64_t n_blocks, Block *out,
                                           QuantizeGroup quantize_group) {
    float sum = 0;
    for (int64_t i = 0; i < n_blocks * BLOCK; ++i) sum += row[i] * row[i];
    const FloatPair mean_square = splat_pair(sum / (float)(n_blocks * BLOCK));
    const auto weigh = [=](const float *x, const float *importance, Block *out, int blocks) {
        WeightedBlocks columns;
        FloatPair counts[BLOCK];
        load_transposed<BLOCK>(x, columns.x);
        load_transposed<BLOCK>(importance, counts);
        error_weights<BLOCK>(columns.x, counts, mean_square, columns.w);
        quantize_group(x, columns, out, blocks);
    };
    for_each_filled_group<PAIR_LANES, BLOCK>(row, importance, n_blocks, out, weigh);
}

template <int n_max, class Block>
static void quantize_symmetric_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, const WeightedBlocks &columns, Block *out, int blocks) {
        const auto found = symmetric_search<BLOCK, n_max>(columns.x, columns.w);
        float scale[PAIR_LANES], inverse[PAIR_LANES];
        store(scale, found.scale);
        store(inverse, found.inverse);
        const auto code_of = [&](unsigned i) {
            const float its_inverse = inverse[i / BLOCK];
            const int zero = its_inverse != 0 ? n_max : 0; // where there are only zeros, they get the lowest code
            return clamp(nearest_int(load<Floats>(x + i) * its_inverse), -n_max, n_max - 1) + zero;
        };
        for (int block = 0; block < blocks; ++block) out[block].d = narrow_f16(scale[block]);
        set_codes<PAIR_LANES, 2 * n_max - 1>(code_of, blocks, out);
    };
    for_each_weighted_group(x, importance, n_blocks, (Block *)out, quantize_group);
}

template <int n_max, class Block>
static void quantize_affine_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, const WeightedBlocks &columns, Block *out, int blocks) {
        const Affine found = affine_search<BLOCK, n_max>(columns.x, columns.w, -0.9f, 0.05f, 36);
        float scale[PAIR_LANES], minimum[PAIR_LANES], inverse[PAIR_LANES], base[PAIR_LANES];
        store(scale, found.scale);
        store(minimum, found.minimum);
        store(inverse, found.inverse);
        store(base, found.base);
        const auto code_of = [&](unsigned i) {
            const Ints code = nearest_int(inverse[i / BLOCK] * (load<Floats>(x + i) - base[i / BLOCK]));
            return clamp(code, 0, n_max);
        };
        for (int block = 0; block < blocks; ++block) {
            out[block].d = narrow_f16(scale[block]);
            out[block].m = narrow_f16(minimum[block]);
        }
        set_codes<PAIR_LANES, n_max>(code_of, blocks, out);
    };
    for_each_weighted_group(x, importance, n_blocks, (Block *)out, quantize_group);
}

// ---- for the search of better scales ---------------------------------------------------------

template <class Block> static void read(const void *data, Scales &scales) {
    const Block &block = *(const Block *)data;
    scales.d = widen_f16(block.d);
    scales.scale[0] = 1;
    if constexpr (requires { block.m; }) {
        scales.dmin = widen_f16(block.m);
        scales.minimum[0] = 1;
    }
}

template <class Block> static void write(const Scales &scales, const uint8_t *codes, void *out) {
    Block &block = *(Block *)out;
    block.d = narrow_f16(scales.d);
    if constexpr (requires { block.m; }) block.m = narrow_f16(scales.dmin);
    set_codes(codes, block);
}

template <int first, int last, class Block>
constexpr Format FORMAT = {
    .n_sub = 1, .size = BLOCK, .bytes = sizeof(Block),
    .first = first, .last = last, .lowest_scale = 1, .highest_scale = 1, .lowest_minimum = first < 0 ? 0 : 1,
    .counts = Counts::equal, .mean = Mean::of_row,
    .read = read<Block>, .write = write<Block>,
};

const Quantizer quantizer_q8_0 = {quantize_q8_0, dequantize_q8_0, nullptr, &FORMAT<-128, 127, BlockQ8_0>};
template <bool (*quantize)(const float *, int64_t, void *)>
constexpr Quantizer quantizer(decltype(Quantizer::dequantize) dequantize,
                              decltype(Quantizer::quantize_weighted) quantize_weighted, const Format *format) {
    return {without_answer<quantize>, dequantize, quantize_weighted, format, quantize};
}

const Quantizer quantizer_q4_0 = quantizer<quantize_symmetric<8, BlockQ4_0>>(
    dequantize_symmetric<8, BlockQ4_0>, quantize_symmetric_weighted<8, BlockQ4_0>, &FORMAT<-8, 7, BlockQ4_0>);
const Quantizer quantizer_q4_1 = quantizer<quantize_affine<15, BlockQ4_1>>(
    dequantize_affine<BlockQ4_1>, quantize_affine_weighted<15, BlockQ4_1>, &FORMAT<0, 15, BlockQ4_1>);
const Quantizer quantizer_q5_0 = quantizer<quantize_symmetric<16, BlockQ5_0>>(
    dequantize_symmetric<16, BlockQ5_0>, quantize_symmetric_weighted<16, BlockQ5_0>, &FORMAT<-16, 15, BlockQ5_0>);
const Quantizer quantizer_q5_1 = quantizer<quantize_affine<31, BlockQ5_1>>(
    dequantize_affine<BlockQ5_1>, quantize_affine_weighted<31, BlockQ5_1>, &FORMAT<0, 31, BlockQ5_1>);

} // namespace phi::PHI_ISA
