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
    uint8_t codes[SUB_BLOCKS];
    for (int j = 0; j < SUB_BLOCKS; ++j) codes[j] = scales[j] + 32;
    for (int j = 0; j < 8; ++j) packed[j] = (codes[j] & 15) | codes[j + 8] << 4;
    for (int j = 0; j < 4; ++j)
        packed[j + 8] = codes[j] >> 4 | (codes[j + 4] >> 4) << 2 | (codes[j + 8] >> 4) << 4 | (codes[j + 12] >> 4) << 6;
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

// What the search without importance found. Its codes follow from no scale: they were improved one by one.
template <int count> struct DescentResults {
    float scale[count];
    float codes[SIZE][count]; // -4 to 3
};

template <int count> static inline void search(const float *x, DescentResults<count> &results) {
    for (int first = 0; first < count; first += PAIR_LANES) {
        FloatPair columns[SIZE], codes[SIZE]; // [weight of the sub-block], lane: sub-block
        load_transposed<SIZE>(x + first * SIZE, columns);
        store(results.scale + first, symmetric_descent<SIZE, 4>(columns, codes));
        for (int i = 0; i < SIZE; ++i) store(results.codes[i] + first, codes[i]);
    }
}

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

// Codes of LANES weights from i on of a sub-block; where the step is zero, those of the search.
template <int count>
static inline Ints code(const float *x, const DescentResults<count> &found, int sub_block, int i, float step) {
    if (step != 0) return code<4>(x, SymmetricCoder{step, 0});
    Floats kept;
    for (int lane = 0; lane < LANES; ++lane) kept[lane] = found.codes[i + lane][sub_block];
    return nearest_int(kept) + 4;
}

template <int count>
static inline Ints code(const float *x, const SymmetricResults<count> &found, int sub_block, int, float step) {
    return code<4>(x, SymmetricCoder{step, found.inverse[sub_block]});
}

// code_of(i, j): the codes of LANES weights from number i on, of sub-block j.
template <class CodeOf> static inline void pack_codes(CodeOf code_of, BlockQ3_K &out) {
    for (int l = 0; l < 32; l += LANES) {
        Ints third_bits{};
        for (int h = 0; h < 2; ++h) { // 128 weights: four quarters of 32
            Ints four{};
            for (int quarter = 0; quarter < 4; ++quarter) {
                const Ints q = code_of(128 * h + 32 * quarter + l, 8 * h + 2 * quarter + l / SIZE);
                four |= (q & 3) << 2 * quarter;
                third_bits |= (q >> 2) << (4 * h + quarter);
            }
            store_bytes(out.qs + 32 * h + l, four);
        }
        store_bytes(out.hmask + l, third_bits);
    }
}

// Sets all of a super-block, whose sub-blocks begin at `first`, from what the search found and its scales.
template <class Found>
static inline void set_block(const float *x, const Found &found, int first, float d, const int8_t *scales,
                             BlockQ3_K &out) {
    out.d = narrow_f16(d);
    pack_signed_scales(scales, out.scales);
    const auto code_of = [&, as_stored = widen_f16(out.d)](int i, int j) {
        return code(x + i, found, first + j, i % SIZE, as_stored * scales[j]);
    };
    pack_codes(code_of, out);
}

static void quantize_q3_k(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockQ3_K *out, int blocks) {
        DescentResults<GROUP * SUB_BLOCKS> found;
        search(x, found);
        for (int block = 0; block < blocks; ++block) {
            int8_t scales[SUB_BLOCKS];
            const float d = six_bit_codes(found.scale + block * SUB_BLOCKS, scales);
            set_block(x + block * SUPER_BLOCK, found, block * SUB_BLOCKS, d, scales, out[block]);
        }
    };
    for_each_filled_group<GROUP, SUPER_BLOCK>(x, n_blocks, (BlockQ3_K *)out, quantize_group);
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
    pack_codes([=](int i, int) { return load_bytes(codes + i); }, block);
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
};

const Quantizer quantizer_q2_k = {quantize_q2_k, dequantize_q2_k, quantize_q2_k_weighted, &Q2_FORMAT};
const Quantizer quantizer_q3_k = {quantize_q3_k, dequantize_q3_k, quantize_q3_k_weighted, &Q3_FORMAT};

} // namespace phi::PHI_ISA
