// Q4_K, Q5_K, Q6_K: 256 weights in a super-block of small sub-blocks, whose scales are themselves quantized.
// Step 1 searches each sub-block's scale (lane: a sub-block), step 2 quantizes those scales, steps 3 and 4
// round the weights again with them and pack the bits (lane: a weight, in the order of memory).
// To read, the same in NumPy: phicourse/quantize/k_quants.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "super_blocks.hpp"

namespace phi::PHI_ISA {

// ---- Q4_K and Q5_K, step 1: the search -------------------------------------------------------

constexpr int AFFINE_SUB_BLOCKS = 8; // of 32 weights
constexpr int AFFINE_GROUP = group_of(AFFINE_SUB_BLOCKS);

// How much each weight counts: its magnitude plus the root mean square of its sub-block.
static inline void sub_block_weights(const FloatPair *columns, FloatPair *w) {
    FloatPair sum{};
    for (int i = 0; i < BLOCK; ++i) sum += columns[i] * columns[i];
    const FloatPair root_mean_square = sqrt(sum / (float)BLOCK);
    for (int i = 0; i < BLOCK; ++i) w[i] = root_mean_square + abs(columns[i]);
}

template <int n_max, int count>
static inline void search(const float *x, float first_trial, int n_steps, AffineResults<count> &results) {
    for (int first = 0; first < count; first += PAIR_LANES) {
        FloatPair columns[BLOCK], w[BLOCK]; // [weight of the sub-block], lane: sub-block
        load_transposed<BLOCK>(x + first * BLOCK, columns);
        sub_block_weights(columns, w);
        results.set(first, affine_search<BLOCK, n_max>(columns, w, first_trial, 0.1f, n_steps));
    }
}

// ---- Q4_K and Q5_K, step 2: the scales -------------------------------------------------------

// Quantizes the 8 scales (or minima) of a super-block: the largest gets code 63. Returns their common scale.
static inline float six_bit_codes(const float *values, uint8_t *codes) {
    const float largest = largest_of<8>(values);
    const float inverse = largest > 0 ? 63.0f / largest : 0.0f;
    for (int j = 0; j < 8; ++j) {
        const uint8_t code = (uint8_t)nearest_int(inverse * values[j]); // below zero wraps around, as in ggml
        codes[j] = code < 63 ? code : 63;
    }
    return largest / 63.0f;
}

// Sixteen 6-bit numbers into 12 bytes: four scales, four minima, the low four bits of the other four of
// each; their two high bits top the first eight bytes.
static inline void pack_scales_and_minima(const uint8_t *scales, const uint8_t *minima, uint8_t *packed) {
    for (int j = 0; j < 4; ++j) {
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        packed[j + 4] = minima[j] | (minima[j + 4] >> 4) << 6;
        packed[j + 8] = (scales[j + 4] & 15) | minima[j + 4] << 4;
    }
}

static inline void unpack_scales_and_minima(const uint8_t *packed, uint8_t *scales, uint8_t *minima) {
    for (int j = 0; j < 4; ++j) {
        scales[j] = packed[j] & 63;
        minima[j] = packed[j + 4] & 63;
        scales[j + 4] = (packed[j + 8] & 15) | (packed[j] >> 6) << 4;
        minima[j + 4] = packed[j + 8] >> 4 | (packed[j + 4] >> 6) << 4;
    }
}

// Sets d, dmin and the scales of the super-block whose sub-blocks begin at `first`.
template <class Block, int count>
static inline void set_scales(const AffineResults<count> &found, int first, Block &out) {
    uint8_t scales[8], minima[8];
    out.d = narrow_f16(six_bit_codes(found.scale + first, scales));
    out.dmin = narrow_f16(six_bit_codes(found.minimum + first, minima));
    pack_scales_and_minima(scales, minima, out.scales);
}

// The same for a super-block of a batch. Of a code that wrapped around, Q4_K keeps the bits that fit.
template <class Block>
static inline void set_scales(const WeightedAffine<AFFINE_SUB_BLOCKS> &found, int block, Block &out) {
    constexpr int largest_code = __is_same(Block, BlockQ5_K) ? 63 : 255;
    uint8_t scales[8], minima[8];
    for (int j = 0; j < 8; ++j) {
        scales[j] = found.scales[j][block] < largest_code ? found.scales[j][block] : largest_code;
        minima[j] = found.minima[j][block] < largest_code ? found.minima[j][block] : largest_code;
    }
    out.d = narrow_f16(found.d[block]);
    out.dmin = narrow_f16(found.dmin[block]);
    pack_scales_and_minima(scales, minima, out.scales);
}

// ---- Q4_K and Q5_K, steps 3 and 4: the codes -------------------------------------------------

// How to code the weights of the super-block whose sub-blocks begin at `first`.
template <class Block, int count>
static inline void set_coders(const AffineResults<count> &found, int first, const Block &block, AffineCoder *coders) {
    uint8_t scales[8], minima[8]; // as a reader of the file will see them
    unpack_scales_and_minima(block.scales, scales, minima);
    const float d = widen_f16(block.d), dmin = widen_f16(block.dmin);
    for (int j = 0; j < 8; ++j)
        coders[j] = {d * scales[j], dmin * minima[j], found.inverse[first + j], found.base[first + j]};
}

// code_of(i, j): the codes of LANES weights from number i on, of sub-block j.
template <class CodeOf> static inline void pack_codes(CodeOf code_of, BlockQ4_K &out) {
    for (int g = 0; g < 4; ++g) // 64 weights: sub-blocks 2g and 2g + 1
        for (int l = 0; l < BLOCK; l += LANES) {
            const Ints low = code_of(64 * g + l, 2 * g), high = code_of(64 * g + BLOCK + l, 2 * g + 1);
            store_bytes(out.qs + BLOCK * g + l, low | high << 4);
        }
}

template <class CodeOf> static inline void pack_codes(CodeOf code_of, BlockQ5_K &out) {
    for (int l = 0; l < BLOCK; l += LANES) {
        Ints fifth_bits{};
        for (int g = 0; g < 4; ++g) {
            const Ints low = code_of(64 * g + l, 2 * g), high = code_of(64 * g + BLOCK + l, 2 * g + 1);
            store_bytes(out.qs + BLOCK * g + l, (low & 15) | (high & 15) << 4);
            fifth_bits |= (low >> 4 | (high >> 4) << 1) << 2 * g;
        }
        store_bytes(out.qh + l, fifth_bits);
    }
}

template <int n_max, class Block, int count>
static inline void set_codes(const float *x, const AffineResults<count> &found, int first, Block &out) {
    AffineCoder coders[AFFINE_SUB_BLOCKS];
    set_coders(found, first, out, coders);
    pack_codes([&](int i, int j) { return code<n_max>(x + i, coders[j]); }, out);
}

template <int n_max, class Block>
static inline void quantize_affine(const float *x, int64_t n_blocks, Block *out, float first_trial, int n_steps) {
    for_each_filled_group<AFFINE_GROUP, SUPER_BLOCK>(x, n_blocks, out, [=](const float *x, Block *out, int blocks) {
        AffineResults<AFFINE_GROUP * AFFINE_SUB_BLOCKS> found;
        search<n_max>(x, first_trial, n_steps, found);
        for (int block = 0; block < blocks; ++block) {
            set_scales(found, block * AFFINE_SUB_BLOCKS, out[block]);
            set_codes<n_max>(x + block * SUPER_BLOCK, found, block * AFFINE_SUB_BLOCKS, out[block]);
        }
    });
}

template <int n_max, class Block>
static inline void quantize_affine_weighted(const float *x, const float *importance, int64_t n_blocks, Block *out) {
    const auto quantize_batch = [](const float *x, const float *importance, Block *out, int blocks) {
        WeightedAffine<AFFINE_SUB_BLOCKS> batch{};
        batch.search<n_max>(x, importance, blocks, 2.0f);
        batch.search_scales<63>();
        for (int block = 0; block < blocks; ++block) {
            set_scales(batch, block, out[block]);
            set_codes<n_max>(x + block * SUPER_BLOCK, batch.found, block * AFFINE_SUB_BLOCKS, out[block]);
        }
    };
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, out, quantize_batch);
}

static void quantize_q4_k(const float *x, int64_t n_blocks, void *out) {
    quantize_affine<15>(x, n_blocks, (BlockQ4_K *)out, -1.0f, 20);
}

static void quantize_q5_k(const float *x, int64_t n_blocks, void *out) {
    quantize_affine<31>(x, n_blocks, (BlockQ5_K *)out, -0.5f, 15);
}

static void quantize_q4_k_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    quantize_affine_weighted<15>(x, importance, n_blocks, (BlockQ4_K *)out);
}

static void quantize_q5_k_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    quantize_affine_weighted<31>(x, importance, n_blocks, (BlockQ5_K *)out);
}

// ---- Q4_K and Q5_K, and back -----------------------------------------------------------------

// Codes of LANES weights from l on, of sub-blocks 2g and 2g + 1.
static inline IntPair codes_of(const BlockQ4_K &block, int g, int l) {
    const Ints both = load_bytes(block.qs + BLOCK * g + l);
    return {both & 15, both >> 4};
}

static inline IntPair codes_of(const BlockQ5_K &block, int g, int l) {
    const Ints both = load_bytes(block.qs + BLOCK * g + l);
    const Ints fifth_bits = load_bytes(block.qh + l) >> 2 * g;
    return {(both & 15) | (fifth_bits & 1) << 4, both >> 4 | (fifth_bits & 2) << 3};
}

template <class Block> static void dequantize_affine(const void *data, int64_t n_blocks, float *x) {
    const Block *blocks = (const Block *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += SUPER_BLOCK) {
        uint8_t scales[8], minima[8];
        unpack_scales_and_minima(blocks[i].scales, scales, minima);
        const float d = widen_f16(blocks[i].d), dmin = widen_f16(blocks[i].dmin);
        for (int g = 0; g < 4; ++g)
            for (int l = 0; l < BLOCK; l += LANES) {
                const FloatPair codes = to_floats(codes_of(blocks[i], g, l));
                store(x + 64 * g + l, d * scales[2 * g] * codes.a - dmin * minima[2 * g]);
                store(x + 64 * g + BLOCK + l, d * scales[2 * g + 1] * codes.b - dmin * minima[2 * g + 1]);
            }
    }
}

// ---- Q6_K, step 1: the search ----------------------------------------------------------------

constexpr int Q6_SUB_BLOCKS = 16, Q6_SUB_BLOCK = 16; // sub-blocks, and weights in one
constexpr int Q6_GROUP = group_of(Q6_SUB_BLOCKS);

template <int count> static inline void search(const float *x, SymmetricResults<count> &results) {
    for (int first = 0; first < count; first += PAIR_LANES) {
        FloatPair columns[Q6_SUB_BLOCK], w[Q6_SUB_BLOCK]; // [weight of the sub-block], lane: sub-block
        load_transposed<Q6_SUB_BLOCK>(x + first * Q6_SUB_BLOCK, columns);
        for (int i = 0; i < Q6_SUB_BLOCK; ++i) w[i] = columns[i] * columns[i];
        results.set(first, symmetric_search<Q6_SUB_BLOCK, 32>(columns, w));
    }
}

// ---- Q6_K, step 2: the scales ----------------------------------------------------------------

// Sets d and the scales of the super-block whose sub-blocks begin at `first`, and how to code them. Returns
// false where there is nothing in it: all bytes are zero then.
template <int count>
static inline bool set_scales(const SymmetricResults<count> &found, int first, BlockQ6_K &out,
                              SymmetricCoder *coders) {
    const float peak = signed_peak(found.scale + first, Q6_SUB_BLOCKS); // this scale gets code -128
    if (__builtin_fabsf(peak) < ZERO) {
        __builtin_memset(&out, 0, sizeof out);
        return false;
    }
    const float inverse = -128.0f / peak;
    out.d = narrow_f16(1.0f / inverse);
    const float d = widen_f16(out.d); // as a reader of the file will see it
    for (int j = 0; j < Q6_SUB_BLOCKS; ++j) {
        const int code = nearest_int(inverse * found.scale[first + j]);
        out.scales[j] = (int8_t)(code < 127 ? code : 127);
        coders[j] = {d * out.scales[j], found.inverse[first + j]};
    }
    return true;
}

// ---- Q6_K, steps 3 and 4: the codes ----------------------------------------------------------

// code_of(i, j): the codes of LANES weights from number i on, of sub-block j.
template <class CodeOf> static inline void pack_codes(CodeOf code_of, BlockQ6_K &out) {
    for (int h = 0; h < 2; ++h) // 128 weights: four quarters of 32
        for (int l = 0; l < 32; l += LANES) {
            Ints q[4];
            for (int quarter = 0; quarter < 4; ++quarter)
                q[quarter] = code_of(128 * h + 32 * quarter + l, 8 * h + 2 * quarter + l / Q6_SUB_BLOCK);
            store_bytes(out.ql + 64 * h + l, (q[0] & 15) | (q[2] & 15) << 4);
            store_bytes(out.ql + 64 * h + 32 + l, (q[1] & 15) | (q[3] & 15) << 4);
            store_bytes(out.qh + 32 * h + l, q[0] >> 4 | (q[1] >> 4) << 2 | (q[2] >> 4) << 4 | (q[3] >> 4) << 6);
        }
}

template <int count>
static inline void set_blocks(const float *x, const SymmetricResults<count> &found, int blocks, BlockQ6_K *out) {
    for (int block = 0; block < blocks; ++block) {
        SymmetricCoder coders[Q6_SUB_BLOCKS];
        if (!set_scales(found, block * Q6_SUB_BLOCKS, out[block], coders)) continue;
        const auto code_of = [&](int i, int j) { return code<32>(x + block * SUPER_BLOCK + i, coders[j]); };
        pack_codes(code_of, out[block]);
    }
}

static void quantize_q6_k(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, BlockQ6_K *out, int blocks) {
        SymmetricResults<Q6_GROUP * Q6_SUB_BLOCKS> found;
        search(x, found);
        set_blocks(x, found, blocks, out);
    };
    for_each_filled_group<Q6_GROUP, SUPER_BLOCK>(x, n_blocks, (BlockQ6_K *)out, quantize_group);
}

// The errors count what the columns do.
static void quantize_q6_k_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const auto quantize_batch = [](const float *x, const float *importance, BlockQ6_K *out, int blocks) {
        SymmetricResults<BATCH * Q6_SUB_BLOCKS> found;
        for_each_columns<Q6_SUB_BLOCK>(x, importance, blocks, [&](const WeightedColumns<Q6_SUB_BLOCK> &columns) {
            found.set(columns.first, symmetric_search<Q6_SUB_BLOCK, 32>(columns.weights, columns.counts));
        });
        set_blocks(x, found, blocks, out);
    };
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, (BlockQ6_K *)out, quantize_batch);
}

// ---- Q6_K, and back --------------------------------------------------------------------------

static void dequantize_q6_k(const void *data, int64_t n_blocks, float *x) {
    const BlockQ6_K *blocks = (const BlockQ6_K *)data;
    for (int64_t i = 0; i < n_blocks; ++i) {
        const BlockQ6_K &block = blocks[i];
        const float d = widen_f16(block.d);
        for (int h = 0; h < 2; ++h, x += 128)
            for (int l = 0; l < 32; l += LANES) {
                const int8_t *scale = block.scales + 8 * h + l / Q6_SUB_BLOCK;
                const Ints high = load_bytes(block.qh + 32 * h + l);
                for (int quarter = 0; quarter < 4; ++quarter) {
                    const Ints low = load_bytes(block.ql + 64 * h + 32 * (quarter % 2) + l) >> 4 * (quarter / 2);
                    const Ints q = (low & 15) | ((high >> 2 * quarter) & 3) << 4;
                    store(x + 32 * quarter + l, d * scale[2 * quarter] * to_floats(q - 32));
                }
            }
    }
}

// ---- for the search of better scales ---------------------------------------------------------

template <class Block> static void read_affine(const void *data, Scales &scales) {
    const Block &block = *(const Block *)data;
    uint8_t of_scales[8], of_minima[8];
    unpack_scales_and_minima(block.scales, of_scales, of_minima);
    scales.d = widen_f16(block.d);
    scales.dmin = widen_f16(block.dmin);
    for (int j = 0; j < 8; ++j) {
        scales.scale[j] = of_scales[j];
        scales.minimum[j] = -(float)of_minima[j];
    }
}

template <class Block> static void write_affine(const Scales &scales, const uint8_t *codes, void *out) {
    Block &block = *(Block *)out;
    uint8_t of_scales[8], of_minima[8];
    for (int j = 0; j < 8; ++j) {
        of_scales[j] = (uint8_t)scales.scale[j];
        of_minima[j] = (uint8_t)-scales.minimum[j];
    }
    block.d = narrow_f16(scales.d);
    block.dmin = narrow_f16(scales.dmin);
    pack_scales_and_minima(of_scales, of_minima, block.scales);
    pack_codes([=](int i, int) { return load_bytes(codes + i); }, block);
}

template <int n_max, class Block>
constexpr Format AFFINE_FORMAT = {
    .n_sub = AFFINE_SUB_BLOCKS, .size = BLOCK, .bytes = sizeof(Block),
    .first = 0, .last = n_max, .lowest_scale = 0, .highest_scale = 63, .lowest_minimum = -63,
    .counts = Counts::magnitude_and_root, .mean = Mean::twice_of_block,
    .read = read_affine<Block>, .write = write_affine<Block>,
};

static void read_q6_k(const void *data, Scales &scales) {
    const BlockQ6_K &block = *(const BlockQ6_K *)data;
    scales.d = widen_f16(block.d);
    for (int j = 0; j < Q6_SUB_BLOCKS; ++j) scales.scale[j] = block.scales[j];
}

static void write_q6_k(const Scales &scales, const uint8_t *codes, void *out) {
    BlockQ6_K &block = *(BlockQ6_K *)out;
    block.d = narrow_f16(scales.d);
    for (int j = 0; j < Q6_SUB_BLOCKS; ++j) block.scales[j] = (int8_t)scales.scale[j];
    pack_codes([=](int i, int) { return load_bytes(codes + i); }, block);
}

constexpr Format Q6_FORMAT = {
    .n_sub = Q6_SUB_BLOCKS, .size = Q6_SUB_BLOCK, .bytes = sizeof(BlockQ6_K),
    .first = -32, .last = 31, .lowest_scale = -128, .highest_scale = 127, .lowest_minimum = 0,
    .counts = Counts::square, .mean = Mean::none,
    .read = read_q6_k, .write = write_q6_k, .first_reach = 7, .reach = 7,
};

const Quantizer quantizer_q4_k = {quantize_q4_k, dequantize_affine<BlockQ4_K>, quantize_q4_k_weighted,
                                  &AFFINE_FORMAT<15, BlockQ4_K>};
const Quantizer quantizer_q5_k = {quantize_q5_k, dequantize_affine<BlockQ5_K>, quantize_q5_k_weighted,
                                  &AFFINE_FORMAT<31, BlockQ5_K>};
const Quantizer quantizer_q6_k = {quantize_q6_k, dequantize_q6_k, quantize_q6_k_weighted, &Q6_FORMAT};

} // namespace phi::PHI_ISA
