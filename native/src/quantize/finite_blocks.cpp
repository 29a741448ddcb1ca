#include "finite_blocks.hpp"

#include "../blocks.hpp"

#include <cstring>

namespace phi {

// All bits of the exponent are set in an infinity and in what is not a number.
static bool is_finite_f16(uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }
static bool is_finite_bf16(uint16_t bits) { return (bits & 0x7f80) != 0x7f80; }
static bool is_finite_f32(uint32_t bits) { return (bits & 0x7f800000) != 0x7f800000; }

template <class Block> static bool is_finite_block(const Block &block) {
    bool finite = is_finite_f16(block.d);
    if constexpr (requires { block.m; }) finite &= is_finite_f16(block.m);
    if constexpr (requires { block.dmin; }) finite &= is_finite_f16(block.dmin);
    return finite;
}

static bool is_finite_block(const BlockMXFP4 &block) { return block.e != 0xff; }

// The top four bits of each word of scales are d, and all but its sign and mantissa are in the last two words.
static bool is_finite_block(const BlockIQ1_M &block) {
    return is_finite_f16(static_cast<uint16_t>((block.scales[5] >> 4) << 8 | (block.scales[7] >> 4) << 12));
}

template <class Block, class IsFinite>
static int64_t find_first(const void *data, int64_t n, IsFinite is_finite) {
    const Block *blocks = static_cast<const Block *>(data);
    bool all = true; // without a way out, the usual case is quick
    for (int64_t i = 0; i < n; ++i) all &= is_finite(blocks[i]);
    if (all) return n;
    for (int64_t i = 0; i < n; ++i)
        if (!is_finite(blocks[i])) return i;
    return n;
}

template <class Block> static int64_t find_first(const void *data, int64_t n) {
    return find_first<Block>(data, n, [](const Block &block) { return is_finite_block(block); });
}

int64_t find_not_finite(Type type, const void *blocks, int64_t n) {
    switch (type) {
    case Type::F32: return find_first<uint32_t>(blocks, n, is_finite_f32);
    case Type::F16: return find_first<uint16_t>(blocks, n, is_finite_f16);
    case Type::BF16: return find_first<uint16_t>(blocks, n, is_finite_bf16);
    case Type::Q8_0: return find_first<BlockQ8_0>(blocks, n);
    case Type::Q4_0: return find_first<BlockQ4_0>(blocks, n);
    case Type::Q4_1: return find_first<BlockQ4_1>(blocks, n);
    case Type::Q5_0: return find_first<BlockQ5_0>(blocks, n);
    case Type::Q5_1: return find_first<BlockQ5_1>(blocks, n);
    case Type::Q2_K: return find_first<BlockQ2_K>(blocks, n);
    case Type::Q3_K: return find_first<BlockQ3_K>(blocks, n);
    case Type::Q4_K: return find_first<BlockQ4_K>(blocks, n);
    case Type::Q5_K: return find_first<BlockQ5_K>(blocks, n);
    case Type::Q6_K: return find_first<BlockQ6_K>(blocks, n);
    case Type::IQ4_NL: return find_first<BlockIQ4_NL>(blocks, n);
    case Type::IQ4_XS: return find_first<BlockIQ4_XS>(blocks, n);
    case Type::IQ3_S: return find_first<BlockIQ3_S>(blocks, n);
    case Type::IQ3_XXS: return find_first<BlockIQ3_XXS>(blocks, n);
    case Type::IQ2_S: return find_first<BlockIQ2_S>(blocks, n);
    case Type::IQ2_XS: return find_first<BlockIQ2_XS>(blocks, n);
    case Type::IQ2_XXS: return find_first<BlockIQ2_XXS>(blocks, n);
    case Type::IQ1_M: return find_first<BlockIQ1_M>(blocks, n);
    case Type::IQ1_S: return find_first<BlockIQ1_S>(blocks, n);
    case Type::TQ1_0: return find_first<BlockTQ1_0>(blocks, n);
    case Type::TQ2_0: return find_first<BlockTQ2_0>(blocks, n);
    case Type::MXFP4: return find_first<BlockMXFP4>(blocks, n);
    case Type::NVFP4: return n; // its scales have no infinity
    case Type::Q1_0: return find_first<BlockQ1_0>(blocks, n);
    case Type::Q2_0: return find_first<BlockQ2_0>(blocks, n);
    }
    return n;
}

} // namespace phi
