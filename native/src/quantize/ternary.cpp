// TQ1_0 and TQ2_0: every weight is -1, 0 or 1 times the scale of its super-block, the largest magnitude.
// Lane: a weight, in the order of memory. To read, the same in NumPy: phicourse/quantize/ternary.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "small_blocks.hpp"

namespace phi::PHI_ISA {

// 0, 1 or 2; 1, too, where a subnormal scale has no finite inverse.
static inline Ints trits(const float *x, float inverse) {
    return (round_away(load<Floats>(x) * inverse) + 1) & 3;
}

static inline Floats values(Ints trits, float d) { return to_floats(trits - 1) * d; }

// ---- TQ1_0 -----------------------------------------------------------------------------------

// Five trits are the digits of a number q to base 3, below 243. The byte is q / 243 as a fraction of 256,
// rounded up: so the digits come out from the front, as what a multiplication by 3 carries out of the byte.
static inline Ints fraction(Ints q) { return (q * 256 + 242) / 243; }

constexpr uint8_t POWERS_OF_3[] = {1, 3, 9, 27, 81};

// Trit t, for both vectors and numbers.
template <class V> static inline V trit(V bytes, int t) { return ((bytes * POWERS_OF_3[t] & 255) * 3) >> 8; }

// `columns` bytes of five trits each: trit t of byte l is that of weight first + l + columns * t.
// trits_of(i): the trits of LANES weights from number i on
template <int columns, class TritsOf> static inline void pack_trits(TritsOf trits_of, int first, uint8_t *bytes) {
    for (int l = 0; l < columns; l += LANES) {
        Ints q{};
        for (int t = 0; t < 5; ++t) q = q * 3 + trits_of(first + columns * t + l);
        store_bytes(bytes + l, fraction(q));
    }
}

template <int columns> static inline void unpack_trits(const uint8_t *bytes, float d, float *x) {
    for (int t = 0; t < 5; ++t)
        for (int l = 0; l < columns; l += LANES) store(x + columns * t + l, values(trit(load_bytes(bytes + l), t), d));
}

// The last 16 weights: four trits a byte, and a fifth digit 0.
template <class TritsOf> static inline void pack_last_trits(TritsOf trits_of, int first, uint8_t *qh) {
    uint8_t last[16];
    for (int i = 0; i < 16; i += LANES) store_bytes(last + i, trits_of(first + i));
    for (int l = 0; l < 4; ++l) {
        const int q = 81 * last[l] + 27 * last[4 + l] + 9 * last[8 + l] + 3 * last[12 + l];
        qh[l] = (uint8_t)((q * 256 + 242) / 243);
    }
}

static inline void unpack_last_trits(const uint8_t *qh, float d, float *x) {
    for (int t = 0; t < 4; ++t)
        for (int l = 0; l < 4; ++l) x[4 * t + l] = (float)(trit<int>(qh[l], t) - 1) * d;
}

template <class TritsOf> static inline void set_trits(TritsOf trits_of, BlockTQ1_0 &out) {
    pack_trits<32>(trits_of, 0, out.qs);
    pack_trits<16>(trits_of, 160, out.qs + 32);
    pack_last_trits(trits_of, 240, out.qh);
}

static void dequantize_tq1_0(const void *data, int64_t n_blocks, float *x) {
    const BlockTQ1_0 *blocks = (const BlockTQ1_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += SUPER_BLOCK) {
        const float d = widen_f16(blocks[i].d);
        unpack_trits<32>(blocks[i].qs, d, x);
        unpack_trits<16>(blocks[i].qs + 32, d, x + 160);
        unpack_last_trits(blocks[i].qh, d, x + 240);
    }
}

// ---- TQ2_0 -----------------------------------------------------------------------------------

template <class TritsOf> static inline void set_trits(TritsOf trits_of, BlockTQ2_0 &out) {
    for (int h = 0; h < 2; ++h) // 128 weights: four quarters of 32
        for (int l = 0; l < 32; l += LANES) {
            Ints byte{};
            for (int t = 0; t < 4; ++t) byte |= trits_of(128 * h + 32 * t + l) << 2 * t;
            store_bytes(out.qs + 32 * h + l, byte);
        }
}

static void dequantize_tq2_0(const void *data, int64_t n_blocks, float *x) {
    const BlockTQ2_0 *blocks = (const BlockTQ2_0 *)data;
    for (int64_t i = 0; i < n_blocks; ++i, x += SUPER_BLOCK) {
        const float d = widen_f16(blocks[i].d);
        for (int h = 0; h < 2; ++h)
            for (int l = 0; l < 32; l += LANES) {
                const Ints byte = load_bytes(blocks[i].qs + 32 * h + l);
                for (int t = 0; t < 4; ++t) store(x + 128 * h + 32 * t + l, values(byte >> 2 * t & 3, d));
            }
    }
}

// ---- both ------------------------------------------------------------------------------------

template <class Block> static void quantize(const float *x, int64_t n_blocks, void *out) {
    const auto quantize_group = [](const float *x, Block *out, int blocks) {
        BlockScales scales;
        scales.set(0, largest_magnitudes<SUPER_BLOCK>(x));
        for (int block = 0; block < blocks; ++block, x += SUPER_BLOCK) {
            out[block].d = scales.d[block];
            set_trits([x, inverse = scales.inverse[block]](int i) { return trits(x + i, inverse); }, out[block]);
        }
    };
    for_each_filled_group<LANES, SUPER_BLOCK>(x, n_blocks, (Block *)out, quantize_group);
}

template <class Block> static void read(const void *block, Scales &scales) {
    scales.d = widen_f16(((const Block *)block)->d);
    scales.scale[0] = 1;
}

template <class Block> static void write(const Scales &scales, const uint8_t *codes, void *block) {
    Block &out = *(Block *)block;
    out.d = narrow_f16(scales.d);
    set_trits([=](int i) { return load_bytes(codes + i); }, out);
}

template <class Block>
constexpr Format FORMAT = {
    .n_sub = 1, .size = SUPER_BLOCK, .bytes = sizeof(Block),
    .first = -1, .last = 1, .lowest_scale = 1, .highest_scale = 1, .lowest_minimum = 0,
    .counts = Counts::equal, .mean = Mean::none,
    .read = read<Block>, .write = write<Block>,
};

const Quantizer quantizer_tq1_0 = {quantize<BlockTQ1_0>, dequantize_tq1_0, nullptr, &FORMAT<BlockTQ1_0>};
const Quantizer quantizer_tq2_0 = {quantize<BlockTQ2_0>, dequantize_tq2_0, nullptr, &FORMAT<BlockTQ2_0>};

} // namespace phi::PHI_ISA
