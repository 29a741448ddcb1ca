// Q2_K and Q3_K: the K-quants with the fewest bits, 16 sub-blocks of 16 weights in a super-block.
// The steps are those of k_quants.cpp: search each sub-block's scale (lane: a sub-block), quantize the scales,
// round the weights again with them and pack the bits (lane: a weight, in the order of memory).
// To read, the same in NumPy: phicourse/quantize/low_k_quants.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "super_blocks.hpp"

namespace phi::PHI_ISA {

constexpr int SIZE = 16, SUB_BLOCKS = 16; // weights in a sub-block, and sub-blocks
constexpr int GROUP = group_of(SUB_BLOCKS);

// ---- bits ------------------------------------------------------------------------------------

// Sixteen 6-bit numbers, stored with 32 added, into 12 bytes: byte j has the low four bits of scales j and,
// above them, of j + 8; byte 8 + j the two high bits of scales j, j + 4, j + 8 and j + 12.
static inline void pack_signed_scales(const int8_t *scales, uint8_t *packed) {
    uint64_t codes[2]; // eight bytes each
    uint32_t high[4];  // four bytes each
    for (int j = 0; j < 2; ++j) // in six bits, the highest one turned over is 32 more
        codes[j] = (load<uint64_t>(scales + 8 * j) & 0x3f3f3f3f3f3f3f3f) ^ 0x2020202020202020;
    for (int j = 0; j < 4; ++j) high[j] = (uint32_t)(codes[j / 2] >> (32 * (j % 2) + 4)) & 0x03030303;
    store(packed, (codes[0] & 0x0f0f0f0f0f0f0f0f) | (codes[1] & 0x0f0f0f0f0f0f0f0f) << 4);
    store(packed + 8, high[0] | high[1] << 2 | high[2] << 4 | high[3] << 6);
}

static inline void unpack_signed_scales(const uint8_t *packed, int8_t *scales) {
    for (int j = 0; j < SUB_BLOCKS; ++j) {
        const int low = packed[j % 8] >> 4 * (j / 8) & 15, high = packed[8 + j % 4] >> 2 * (j / 4) & 3;
        scales[j] = (int8_t)((low | high << 4) - 32);
    }
}

// ---- Q2_K ------------------------------------------------------------------------------------

// Step 1. Large weights count more, and a trial is judged by its absolute errors.
template <int count> static inline void search(const float *x, AffineResults<count> &results) {
    for (int first = 0; first < count; first += PAIR_LANES) {
        FloatPair columns[SIZE], w[SIZE]; // [weight of the sub-block], lane: sub-block
        load_transposed<SIZE>(x + first * SIZE, columns);
        for (int i = 0; i < SIZE; ++i) w[i] = abs(columns[i]);
        results.set(first, affine_search<SIZE, 3, Judge::magnitudes>(columns, w, -0.5f, 0.1f, 15));
    }
}

// Step 2. Rounds the 16 scales (or minima) of a super-block to 4 bits: the largest gets code 15. Returns their
// common scale.
static inline float four_bit_codes(const float *values, uint8_t *codes) {
    const float largest = largest_of<SUB_BLOCKS>(values);
    const float inverse = largest > 0 ? 15.0f / largest : 0.0f;
    for (int j = 0; j < SUB_BLOCKS; j += LANES) // below zero wraps around, as in ggml
        store_bytes(codes + j, nearest_int(inverse * load<Floats>(values + j)));
    return largest / 15.0f;
}

template <int count>
static inline void set_scales(const AffineResults<count> &found, int first, BlockQ2_K &out) {
    uint8_t scales[SUB_BLOCKS], minima[SUB_BLOCKS];
    out.d = narrow_f16(four_bit_codes(found.scale + first, scales));
    out.dmin = narrow_f16(four_bit_codes(found.minimum + first, minima));
    for (int j = 0; j < SUB_BLOCKS; ++j) out.scales[j] = scales[j] | minima[j] << 4;
}

static inline void set_scales(const WeightedAffine<SUB_BLOCKS> &found, int block, BlockQ2_K &out) {
    out.d = narrow_f16(found.d[block]);
    out.dmin = narrow_f16(found.dmin[block]);
    for (int j = 0; j < SUB_BLOCKS; ++j) out.scales[j] = found.scales[j][block] | found.minima[j][block] << 4;
}

// code_of(i, j): the codes of LANES weights from number i on, of sub-block j.
template <class CodeOf> static inline void pack_codes(CodeOf code_of, BlockQ2_K &out) {
    for (int h = 0; h < 2; ++h) // 128 weights: four quarters of 32
        for (int l = 0; l < 32; l += LANES) {
            Ints four{};
            for (int quarter = 0; quarter < 4; ++quarter)
                four |= code_of(128 * h + 32 * quarter + l, 8 * h + 2 * quarter + l / SIZE) << 2 * quarter;
            store_bytes(out.qs + 32 * h + l, four);
        }
}

// Steps 3 and 4 for the super-block whose sub-blocks begin at `first`.
template <int count>
static inline void set_codes(const float *x, const AffineResults<count> &found, int first, BlockQ2_K &out) {
    const float d = widen_f16(out.d), dmin = widen_f16(out.dmin); // as a reader of the file will see them
    AffineCoder coders[SUB_BLOCKS];
    for (int j = 0; j < SUB_BLOCKS; ++j)
        coders[j] = {d * (out.scales[j] & 15), dmin * (out.scales[j] >> 4), found.inverse[first + j],
                     found.base[first + j]};
    pack_codes([&](int i, int j) { return code<3>(x + i, coders[j]); }, out);
}

static void quantize_q2_k(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockQ2_K *out, int blocks) {
        AffineResults<GROUP * SUB_BLOCKS> found;
        search(x, found);
        for (int block = 0; block < blocks; ++block) {
            set_scales(found, block * SUB_BLOCKS, out[block]);
            set_codes(x + block * SUPER_BLOCK, found, block * SUB_BLOCKS, out[block]);
        }
    };
    for_each_filled_group<GROUP, SUPER_BLOCK>(x, n_blocks, (BlockQ2_K *)out, quantize_group);
}

static void quantize_q2_k_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_batch = [](const float *x, const float *importance, BlockQ2_K *out, int blocks) {
        WeightedAffine<SUB_BLOCKS> batch{};
        batch.search<3>(x, importance, blocks, 1.0f);
        batch.search_scales<15>();
        for (int block = 0; block < blocks; ++block) {
            set_scales(batch, block, out[block]);
            set_codes(x + block * SUPER_BLOCK, batch.found, block * SUB_BLOCKS, out[block]);
        }
    };
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, (BlockQ2_K *)out, quantize_batch);
}

static void dequantize_q2_k(const void *data, int64_t n_blocks, float *x) {
    const BlockQ2_K *blocks = (const BlockQ2_K *)data;
    for (int64_t block = 0; block < n_blocks; ++block) {
        const float d = widen_f16(blocks[block].d), dmin = widen_f16(blocks[block].dmin);
        for (int h = 0; h < 2; ++h, x += 128) // 128 weights: four quarters of 32
            for (int l = 0; l < 32; l += LANES) {
                const uint8_t *scales = blocks[block].scales + 8 * h + l / SIZE;
                const Ints four = load_bytes(blocks[block].qs + 32 * h + l);
                for (int quarter = 0; quarter < 4; ++quarter) {
                    const int scale = scales[2 * quarter] & 15, minimum = scales[2 * quarter] >> 4;
                    const Floats codes = to_floats(four >> 2 * quarter & 3);
                    store(x + 32 * quarter + l, d * scale * codes - dmin * minimum);
                }
            }
    }
}

// ---- Q3_K, steps 1 and 2 ---------------------------------------------------------------------

using Descent = SymmetricDescent<SIZE, 4>;

// What the search without importance finds.
struct DescentResults {
    static constexpr int BLOCKS = 16; // of which enough sub-blocks go on to fill the lanes more than once
    static constexpr int COUNT = BLOCKS * SUB_BLOCKS;
    float scale[COUNT];
    int unsettled[COUNT + PAIR_LANES], n_unsettled = 0; // sub-blocks whose codes can still be improved

    // Most sub-blocks keep the codes that they start with. The others go on together, in lanes of their own.
    void search(const float *x, int blocks) {
        for (int first = 0; first < blocks * SUB_BLOCKS; first += PAIR_LANES) start(x, first);
        for (int lane = 0; lane < PAIR_LANES && n_unsettled > 0; ++lane) // the last one again, to fill the lanes
            unsettled[n_unsettled + lane] = unsettled[n_unsettled - 1];
        for (int first = 0; first < n_unsettled; first += PAIR_LANES) descend(x, unsettled + first);
    }

  private:
    void start(const float *x, int first) {
        FloatPair columns[SIZE]; // [weight of the sub-block], lane: sub-block
        load_transposed<SIZE>(x + first * SIZE, columns);
        const Descent descent(columns);
        store(scale + first, descent.scale());
        const IntPair further = descent.unsettled();
        for (uint64_t lanes = bit_mask(further.a) | (uint64_t)bit_mask(further.b) << LANES; lanes; lanes &= lanes - 1)
            unsettled[n_unsettled++] = first + __builtin_ctzll(lanes);
    }

    // Those of PAIR_LANES sub-blocks, by their numbers.
    void descend(const float *x, const int *numbers) {
        float weights[PAIR_LANES * SIZE], its_scale[PAIR_LANES];
        for (int lane = 0; lane < PAIR_LANES; ++lane)
            __builtin_memcpy(weights + lane * SIZE, x + numbers[lane] * SIZE, sizeof(float) * SIZE);
        FloatPair columns[SIZE];
        load_transposed<SIZE>(weights, columns);
        Descent descent(columns);
        descent.run();
        store(its_scale, descent.scale());
        for (int lane = 0; lane < PAIR_LANES; ++lane) scale[numbers[lane]] = its_scale[lane];
    }
};

// Rounds the 16 scales of a super-block to -32 to 31: the largest in magnitude gets -32. Returns their common
// scale.
static inline float six_bit_codes(const float *scales, int8_t *codes) {
    const float peak = signed_peak(scales, SUB_BLOCKS);
    const float inverse = peak != 0 ? -32.0f / peak : 0.0f;
    for (int j = 0; j < SUB_BLOCKS; j += LANES) {
        const Ints byte = nearest_int(inverse * load<Floats>(scales + j)) << 24 >> 24; // wraps around, as in ggml
        store_bytes(codes + j, peak != 0 ? clamp(byte, -32, 31) : splat(-32));
    }
    return peak != 0 ? 1.0f / inverse : 0.0f;
}

// Steps 1 and 2 with importance for the super-blocks of a batch. The scales are searched as weights are; each
// counts as its sub-block does.
struct WeightedSymmetric {
    SymmetricResults<BATCH * SUB_BLOCKS> found;
    float counts[BATCH * SUB_BLOCKS]; // sums of what the errors count
    float d[BATCH];
    int8_t scales[SUB_BLOCKS][BATCH]; // -32 to 31

    void search(const float *x, const float *importance, int blocks) {
        const Floats of_super_blocks = mean_squares(x, 2.0f);
        for_each_columns<SIZE>(x, importance, blocks, [&](const WeightedColumns<SIZE> &columns) {
            FloatPair w[SIZE];
            error_weights<SIZE>(columns.weights, columns.counts,
                                spread<SUB_BLOCKS, FloatPair>(of_super_blocks, columns.first), w);
            store(counts + columns.first, sum_in_order<SIZE>(w));
            found.set(columns.first, symmetric_search<SIZE, 4>(columns.weights, w));
        });
    }

    void search_scales() {
        Floats values[SUB_BLOCKS], w[SUB_BLOCKS]; // lane: super-block
        for (int j = 0; j < SUB_BLOCKS; ++j) {
            values[j] = numbers_of<SUB_BLOCKS>(found.scale, j);
            w[j] = numbers_of<SUB_BLOCKS>(counts, j);
        }
        const Symmetric<Floats> of_scales = symmetric_search<SUB_BLOCKS, 32, Values::any>(values, w);
        store(d, of_scales.scale);
        const Ints empty = abs(signed_peak<SUB_BLOCKS>(values)) < ZERO;
        for (int j = 0; j < SUB_BLOCKS; ++j) {
            const Ints codes = clamp(nearest_int(of_scales.inverse * values[j]), -32, 31);
            store_bytes(scales[j], select(empty, splat(-32), codes));
        }
    }
};

// ---- Q3_K, steps 3 and 4 ---------------------------------------------------------------------

// Codes of LANES weights from i on of a sub-block, as the search left them: for where its step is zero. They follow from
// no scale, and are seldom wanted: the search is done again.
__attribute__((noinline, cold)) static Ints code_found(const float *x, const DescentResults &, int, int i) {
    const float *weights = x - i;
    if (signed_peak(weights, SIZE) == 0) return Ints{}; // in a hurry, for there may be many
    FloatPair columns[SIZE];
    for (int k = 0; k < SIZE; ++k) columns[k] = splat_pair(weights[k]);
    Descent descent(columns);
    descent.run();
    Floats codes;
    for (int lane = 0; lane < LANES; ++lane) codes[lane] = descent.code(i + lane).a[0];
    return nearest_int(codes) + 4;
}

template <int count>
static inline Ints code_found(const float *x, const SymmetricResults<count> &found, int sub_block, int) {
    return code<4>(x, SymmetricCoder{0, found.inverse[sub_block]});
}

typedef uint16_t Words __attribute__((vector_size(32))); // of two codes each: some have no shifts of bytes

// The codes of a super-block, a byte each.
static inline void pack_codes(const uint8_t *codes, BlockQ3_K &out) {
    Words third_bits{};
    for (int h = 0; h < 2; ++h) { // 128 weights: four quarters of 32
        Words four{};
        for (int quarter = 0; quarter < 4; ++quarter) {
            const Words q = load<Words>(codes + 128 * h + 32 * quarter);
            four |= (q & 0x0303) << 2 * quarter;
            third_bits |= (q >> 2 & 0x0101) << (4 * h + quarter);
        }
        store(out.qs + 32 * h, four);
    }
    store(out.hmask, third_bits);
}

// Sets all of a super-block, whose sub-blocks begin at `first`, from what the search found and its scales.
template <class Found>
static inline void set_block(const float *x, const Found &found, int first, float d, const int8_t *scales,
                             BlockQ3_K &out) {
    out.d = narrow_f16(d);
    pack_signed_scales(scales, out.scales);
    float steps[SUB_BLOCKS], inverse[SUB_BLOCKS];
    for (int j = 0; j < SUB_BLOCKS; j += LANES) {
        const Floats its_steps = widen_f16(out.d) * to_floats(load_signed_bytes(scales + j));
        store(steps + j, its_steps);
        store(inverse + j, 1.0f / its_steps);
    }
    const auto code_of = [&](int i) {
        const int j = i / SIZE;
        if (steps[j] == 0) return code_found(x + i, found, first + j, i % SIZE);
        return clamp(nearest_quotient(load<Floats>(x + i), steps[j], inverse[j]), -4, 3) + 4;
    };
    uint8_t codes[SUPER_BLOCK];
    for (int i = 0; i < SUPER_BLOCK; i += 4 * LANES)
        store(codes + i, pack(code_of(i), code_of(i + LANES), code_of(i + 2 * LANES), code_of(i + 3 * LANES)));
    pack_codes(codes, out);
}

static void quantize_q3_k(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_batch = [](const float *x, BlockQ3_K *out, int blocks) {
        DescentResults found;
        found.search(x, blocks);
        for (int block = 0; block < blocks; ++block) {
            int8_t scales[SUB_BLOCKS];
            const float d = six_bit_codes(found.scale + block * SUB_BLOCKS, scales);
            set_block(x + block * SUPER_BLOCK, found, block * SUB_BLOCKS, d, scales, out[block]);
        }
    };
    for_each_filled_group<DescentResults::BLOCKS, SUPER_BLOCK>(x, n_blocks, (BlockQ3_K *)out, quantize_batch);
}

static void quantize_q3_k_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_batch = [](const float *x, const float *importance, BlockQ3_K *out, int blocks) {
        WeightedSymmetric batch{};
        batch.search(x, importance, blocks);
        batch.search_scales();
        for (int block = 0; block < blocks; ++block) {
            int8_t scales[SUB_BLOCKS];
            for (int j = 0; j < SUB_BLOCKS; ++j) scales[j] = batch.scales[j][block];
            set_block(x + block * SUPER_BLOCK, batch.found, block * SUB_BLOCKS, batch.d[block], scales, out[block]);
        }
    };
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, (BlockQ3_K *)out, quantize_batch);
}

// ---- Q3_K, and back --------------------------------------------------------------------------

static void dequantize_q3_k(const void *data, int64_t n_blocks, float *x) {
    const BlockQ3_K *blocks = (const BlockQ3_K *)data;
    for (int64_t block = 0; block < n_blocks; ++block) {
        const float d = widen_f16(blocks[block].d);
        int8_t scales[SUB_BLOCKS];
        unpack_signed_scales(blocks[block].scales, scales);
        for (int h = 0; h < 2; ++h, x += 128) // 128 weights: four quarters of 32
            for (int l = 0; l < 32; l += LANES) {
                const Ints low = load_bytes(blocks[block].qs + 32 * h + l);
                const Ints third_bits = load_bytes(blocks[block].hmask + l) >> 4 * h;
                for (int quarter = 0; quarter < 4; ++quarter) {
                    const Ints codes = (low >> 2 * quarter & 3) | (third_bits >> quarter & 1) << 2;
                    store(x + 32 * quarter + l, d * scales[8 * h + 2 * quarter + l / SIZE] * to_floats(codes - 4));
                }
            }
    }
}

// ---- for the search of better scales ---------------------------------------------------------

static void read_q2_k(const void *data, Scales &scales) {
    const BlockQ2_K &block = *(const BlockQ2_K *)data;
    scales.d = widen_f16(block.d);
    scales.dmin = widen_f16(block.dmin);
    for (int j = 0; j < SUB_BLOCKS; ++j) {
        scales.scale[j] = block.scales[j] & 15;
        scales.minimum[j] = -(float)(block.scales[j] >> 4);
    }
}

static void write_q2_k(const Scales &scales, const uint8_t *codes, void *out) {
    BlockQ2_K &block = *(BlockQ2_K *)out;
    block.d = narrow_f16(scales.d);
    block.dmin = narrow_f16(scales.dmin);
    for (int j = 0; j < SUB_BLOCKS; ++j)
        block.scales[j] = (uint8_t)((int)scales.scale[j] | (int)-scales.minimum[j] << 4);
    pack_codes([=](int i, int) { return load_bytes(codes + i); }, block);
}

static void read_q3_k(const void *data, Scales &scales) {
    const BlockQ3_K &block = *(const BlockQ3_K *)data;
    int8_t of_scales[SUB_BLOCKS];
    unpack_signed_scales(block.scales, of_scales);
    scales.d = widen_f16(block.d);
    for (int j = 0; j < SUB_BLOCKS; ++j) scales.scale[j] = of_scales[j];
}

static void write_q3_k(const Scales &scales, const uint8_t *codes, void *out) {
    BlockQ3_K &block = *(BlockQ3_K *)out;
    int8_t of_scales[SUB_BLOCKS];
    for (int j = 0; j < SUB_BLOCKS; ++j) of_scales[j] = (int8_t)scales.scale[j];
    block.d = narrow_f16(scales.d);
    pack_signed_scales(of_scales, block.scales);
    pack_codes(codes, block);
}

constexpr Format Q2_FORMAT = {
    .n_sub = SUB_BLOCKS, .size = SIZE, .bytes = sizeof(BlockQ2_K),
    .first = 0, .last = 3, .lowest_scale = 0, .highest_scale = 15, .lowest_minimum = -15,
    .counts = Counts::magnitude, .mean = Mean::of_block,
    .read = read_q2_k, .write = write_q2_k, .magnitudes = true,
};
constexpr Format Q3_FORMAT = {
    .n_sub = SUB_BLOCKS, .size = SIZE, .bytes = sizeof(BlockQ3_K),
    .first = -4, .last = 3, .lowest_scale = -32, .highest_scale = 31, .lowest_minimum = 0,
    .counts = Counts::square, .mean = Mean::twice_of_block,
    .read = read_q3_k, .write = write_q3_k,
    .first_reach = 7, .reach = 3, .opposite = Opposite::weighted,
};

const Quantizer quantizer_q2_k = {quantize_q2_k, dequantize_q2_k, quantize_q2_k_weighted, &Q2_FORMAT};
const Quantizer quantizer_q3_k = {quantize_q3_k, dequantize_q3_k, quantize_q3_k_weighted, &Q3_FORMAT};

} // namespace phi::PHI_ISA
