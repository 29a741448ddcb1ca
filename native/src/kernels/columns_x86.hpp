// Panels straight from the bytes of a file: first every word of 16 rows (of 8 with AVX2) becomes a column, and then all
// of the rows are unpacked at once. One by one, as in unpack_row(), it takes longer to unpack a panel than to multiply
// it with four tokens.
#pragma once

#include "decode_x86.hpp"
#include "panel.hpp"

namespace phi::PHI_ISA {

inline constexpr int column_rows = Lanes::count;

// A word of 32 bits of each row; the same bits as pairs of 16, and as bytes.
typedef uint32_t Column __attribute__((vector_size(4 * column_rows), may_alias));
typedef int16_t ColumnPairs __attribute__((vector_size(4 * column_rows)));
typedef uint8_t ColumnBytes __attribute__((vector_size(4 * column_rows)));

// The instruction set brings these: lanes of 128 bits side by side; unpacking inside them; a float of each 16-bit one
// in the low half of a word; the level of each code of four bits.
Column join_lanes(const __m128i *lanes);
Column unpack_low(Column a, Column b);
Column unpack_high(Column a, Column b);
Column unpack_low_pairs(Column a, Column b);
Column unpack_high_pairs(Column a, Column b);
Lanes low_halves(Column words);
Column levels_of(const uint8_t (&levels)[16], Column codes);

inline void put(void *to, Column column) { *static_cast<Column *>(to) = column; }

// row(i): 128 bits, of which lane i / 4 is made.
template <class Row> [[gnu::always_inline]] inline Column join_rows(const Row &row, int first, int step) {
    __m128i lanes[column_rows / 4];
#pragma GCC unroll 4
    for (int i = 0; i < column_rows / 4; ++i) lanes[i] = row(first + step * i);
    return join_lanes(lanes);
}

// Four words of each row.
struct FourColumns {
    Column v[4];
};
template <class Row> [[gnu::always_inline]] inline FourColumns four_columns(const Row &row) {
    const Column a = join_rows(row, 0, 4), b = join_rows(row, 1, 4), c = join_rows(row, 2, 4), d = join_rows(row, 3, 4);
    const Column ab_low = unpack_low(a, b), ab_high = unpack_high(a, b);
    const Column cd_low = unpack_low(c, d), cd_high = unpack_high(c, d);
    return {{unpack_low_pairs(ab_low, cd_low), unpack_high_pairs(ab_low, cd_low), unpack_low_pairs(ab_high, cd_high),
             unpack_high_pairs(ab_high, cd_high)}};
}

// One block of some rows of a panel, from row number `row` on. `ahead`: as in pack_block().
template <class Block> class BlockColumns {
  public:
    BlockColumns(const Block *const *rows, int64_t block, int row, const char *ahead)
        : rows_(rows + row), block_(block), ahead_(ahead + 64 * (row / 4)) {}

    // Four words from byte `byte` on. Asks for the same bytes of the rows ahead, as far as they are that many: all at
    // once are more than a processor has on the way.
    [[gnu::always_inline]] FourColumns four(int byte) const {
        if constexpr (Traits<Block>::size == 256)
            for (int i = 0; i < column_rows / 4; ++i) __builtin_prefetch(ahead_ + panel_rows * byte + 64 * i, 0, 2);
        return four_columns([&](int row) { return load_128(bytes(row) + byte); });
    }

    // The word at byte `byte`.
    [[gnu::always_inline]] Column one(int byte) const {
        const auto word = [&](int row) { return static_cast<int>(load_32(bytes(row) + byte)); };
        return join_rows([&](int row) { return _mm_setr_epi32(word(row), word(row + 1), word(row + 2), word(row + 3)); },
                         0, 4);
    }

  private:
    [[gnu::always_inline]] const uint8_t *bytes(int row) const {
        return reinterpret_cast<const uint8_t *>(rows_[row] + block_);
    }

    const Block *const *rows_;
    int64_t block_;
    const char *ahead_;
};

// ---- scales ----------------------------------------------------------------------------------

// Four bytes, of neighbouring groups, as two pairs.
template <class Pairs> [[gnu::always_inline]] inline void put_pairs(Column bytes, int smaller, Pairs *two, int row) {
    for (int i = 0; i < 2; ++i, bytes >>= 16) {
        const Column pair = (bytes & 0xff) | (bytes << 8 & 0xff0000);
        put(two[i][row], (Column)((ColumnPairs)pair - static_cast<int16_t>(smaller)));
    }
}

// The same where bytes have a sign.
template <class Pairs> [[gnu::always_inline]] inline void put_signed_pairs(Column bytes, Pairs *two, int row) {
    put_pairs(bytes ^ 0x80808080, 128, two, row);
}

// Byte number `byte`, in both words.
[[gnu::always_inline]] inline ColumnPairs in_both(Column bytes, int byte) {
    const Column one = bytes >> (8 * byte) & 0xff;
    return (ColumnPairs)(one | one << 16);
}

// ---- blocks of 256 ---------------------------------------------------------------------------

// Where the scales and minima of Q4_K and Q5_K lie is said in unpack_scales().
template <class Block>
    requires(std::is_same_v<Block, BlockQ4_K> || std::is_same_v<Block, BlockQ5_K>)
[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<Block> &block, int row, PanelBlockOf<Block> &out) {
    const auto [d, first, second, third] = block.four(0).v;
    store(out.d + row, low_halves(d));
    store(out.dmin + row, low_halves(d >> 16));
    put_pairs(first & 0x3f3f3f3f, 0, out.scales, row);
    put_pairs((third & 0x0f0f0f0f) | (first >> 2 & 0x30303030), 0, out.scales + 2, row);
    put_pairs(second & 0x3f3f3f3f, 0, out.minima, row);
    put_pairs((third >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030), 0, out.minima + 2, row);
    constexpr bool fifth = std::is_same_v<Block, BlockQ5_K>;
    for (int half = 0; half < 2; ++half) { // of the 32 bytes that two groups share
        FourColumns bits;
        if constexpr (fifth) bits = block.four(16 + 16 * half);
        for (int pair = 0; pair < 4; ++pair) {
            const FourColumns both = block.four((fifth ? 48 : 16) + 32 * pair + 16 * half);
            for (int i = 0; i < 4; ++i) {
                Column low = both.v[i] & 0x0f0f0f0f, high = both.v[i] >> 4 & 0x0f0f0f0f;
                if constexpr (fifth) {
                    low |= bits.v[i] >> (2 * pair) << 4 & 0x10101010;
                    high |= bits.v[i] >> (2 * pair + 1) << 4 & 0x10101010;
                }
                put(out.codes[16 * pair + 4 * half + i][row], low);
                put(out.codes[16 * pair + 8 + 4 * half + i][row], high);
            }
        }
    }
}

[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<BlockQ6_K> &block, int row,
                                                  PanelBlockOf<BlockQ6_K> &out) {
    for (int start = 0; start < 64; start += 16) { // 16 bytes of high bits, those of 64 weights
        const int half = start / 32, inside = start % 32, at = 32 * half + inside / 4;
        const FourColumns low = block.four(64 * half + inside), next = block.four(64 * half + inside + 32),
                          bits = block.four(128 + start);
        for (int i = 0; i < 4; ++i) {
            put(out.codes[at + i][row], (low.v[i] & 0x0f0f0f0f) | (bits.v[i] << 4 & 0x30303030));
            put(out.codes[at + 8 + i][row], (next.v[i] & 0x0f0f0f0f) | (bits.v[i] << 2 & 0x30303030));
            put(out.codes[at + 16 + i][row], (low.v[i] >> 4 & 0x0f0f0f0f) | (bits.v[i] & 0x30303030));
            put(out.codes[at + 24 + i][row], (next.v[i] >> 4 & 0x0f0f0f0f) | (bits.v[i] >> 2 & 0x30303030));
        }
    }
    const FourColumns scales = block.four(192);
    for (int i = 0; i < 4; ++i) put_signed_pairs(scales.v[i], out.scales + 2 * i, row);
    store(out.d + row, low_halves(block.four(194).v[3] >> 16));
}

// Two bits of each weight lie as in Q2_K. use(weights / 4, group, codes)
template <class Block, class Use>
[[gnu::always_inline]] inline void for_quarters(const BlockColumns<Block> &block, int byte, const Use &use) {
    for (int start = 0; start < 64; start += 16) {
        const FourColumns all = block.four(byte + start);
        for (int quarter = 0; quarter < 4; ++quarter)
            for (int i = 0; i < 4; ++i)
                use(start / 32 * 32 + 8 * quarter + start % 32 / 4 + i, start / 32 * 8 + 2 * quarter + start % 32 / 16,
                    all.v[i] >> (2 * quarter) & 0x03030303);
    }
}

template <class Block>
    requires(std::is_same_v<Block, BlockQ2_K>)
[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<Block> &block, int row, PanelBlockOf<Block> &out) {
    constexpr bool multiply = PanelForm<Block>::group == 256;
    const FourColumns both = block.four(0);
    for (int i = 0; i < 4; ++i) {
        const Column minima = both.v[i] >> 4 & 0x0f0f0f0f;
        put(out.minima[i][row], minima & 0x00ff00ff); // those of even groups come first
        put(out.minima[4 + i][row], minima >> 8 & 0x00ff00ff);
        if constexpr (!multiply) put_pairs(both.v[i] & 0x0f0f0f0f, 0, out.scales + 2 * i, row);
    }
    for_quarters(block, 16, [&](int at, int group, Column codes) {
        const ColumnPairs scale = in_both(both.v[group / 4] & 0x0f0f0f0f, group % 4); // no byte gets more than 45
        put(out.codes[at][row], multiply ? (Column)((ColumnPairs)codes * scale) : codes);
    });
    const Column d = block.four(68).v[3];
    store(out.d + row, low_halves(d));
    store(out.dmin + row, low_halves(d >> 16));
}

// (code - zero) · scale + new zero, all in bytes.
[[gnu::always_inline]] inline Column scaled_codes(Column codes, ColumnPairs scale, int zero, int new_zero) {
    const Column even = (Column)((ColumnPairs)(codes & 0x00ff00ff) * scale) & 0x00ff00ff;
    const Column odd = (Column)((ColumnPairs)(codes >> 8 & 0x00ff00ff) * scale << 8);
    const Column zeros = (Column)(static_cast<int16_t>(new_zero) - static_cast<int16_t>(zero) * scale) & 0x00ff00ff;
    return (Column)((ColumnBytes)(even | odd) + (ColumnBytes)(zeros | zeros << 8));
}

template <class Block>
    requires(std::is_same_v<Block, BlockQ3_K>)
[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<Block> &block, int row, PanelBlockOf<Block> &out) {
    using Form = Traits<Block>;
    using Panel = PanelForm<Block>;
    constexpr bool multiply = Panel::group != Form::group;
    const FourColumns end = block.four(94); // two bytes of codes, then scales and d
    const auto word = [&](int i) { return end.v[i] >> 16 | end.v[i + 1] << 16; };
    const Column low[2] = {word(0), word(1)}, high = word(2);
    const Column scales[4] = {(low[0] & 0x0f0f0f0f) | (high << 4 & 0x30303030),
                              (low[1] & 0x0f0f0f0f) | (high << 2 & 0x30303030),
                              (low[0] >> 4 & 0x0f0f0f0f) | (high & 0x30303030),
                              (low[1] >> 4 & 0x0f0f0f0f) | (high >> 2 & 0x30303030)};
    store(out.d + row, low_halves(end.v[3] >> 16));
    const FourColumns bits[2] = {block.four(0), block.four(16)};
    for_quarters(block, 32, [&](int at, int group, Column codes) {
        codes |= bits[at % 8 / 4].v[at % 4] >> (at / 8) << 2 & 0x04040404;
        if constexpr (multiply)
            codes = scaled_codes(codes, in_both(scales[group / 4], group % 4) - int16_t{32}, Form::zero, Panel::zero);
        put(out.codes[at][row], codes);
    });
    if constexpr (!multiply)
        for (int i = 0; i < 4; ++i) put_pairs(scales[i], 32, out.scales + 2 * i, row);
}

[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<BlockTQ2_0> &block, int row,
                                                  PanelBlockOf<BlockTQ2_0> &out) {
    for_quarters(block, 0, [&](int at, int, Column codes) { put(out.codes[at][row], codes); });
    store(out.d + row, low_halves(block.four(50).v[3] >> 16));
}

// The low or the high one of two codes in each byte; where the type has levels, its level.
template <class Block> [[gnu::always_inline]] inline Column half_codes(Column both, bool high) {
    const Column codes = (high ? both >> 4 : both) & 0x0f0f0f0f;
    if constexpr (std::is_same_v<Block, BlockIQ4_NL> || std::is_same_v<Block, BlockIQ4_XS>)
        return levels_of(iq4_levels, codes);
    else if constexpr (std::is_same_v<Block, BlockMXFP4>)
        return levels_of(e2m1_levels, codes);
    else
        return codes;
}

[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<BlockIQ4_XS> &block, int row,
                                                  PanelBlockOf<BlockIQ4_XS> &out) {
    const FourColumns head = block.four(0);
    const Column low = head.v[1], high = head.v[0] >> 16;
    store(out.d + row, low_halves(head.v[0]));
    for (int pair = 0; pair < 4; ++pair) {
        const Column even = (low >> (8 * pair) & 15) | (high >> (4 * pair) << 4 & 0x30);
        const Column odd = (low >> (8 * pair + 4) & 15) | (high >> (4 * pair + 2) << 4 & 0x30);
        put(out.scales[pair][row], (Column)((ColumnPairs)(even | odd << 16) - int16_t{32}));
    }
    for (int part = 0; part < 8; ++part) {
        const FourColumns both = block.four(8 + 16 * part);
        for (int i = 0; i < 8; ++i)
            put(out.codes[8 * part + i][row], half_codes<BlockIQ4_XS>(both.v[i % 4], i >= 4));
    }
}

// ---- blocks of 32 ----------------------------------------------------------------------------

[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<BlockQ8_0> &block, int row,
                                                  PanelBlockOf<BlockQ8_0> &out) {
    store(out.d + row, low_halves(block.one(0)));
    for (int half = 0; half < 2; ++half) {
        const FourColumns codes = block.four(2 + 16 * half);
        for (int i = 0; i < 4; ++i) put(out.codes[4 * half + i][row], codes.v[i] ^ 0x80808080); // q + 128
    }
}

template <class Block> void put_d(const BlockColumns<Block> &block, int row, PanelBlockOf<Block> &out) {
    const Column d = block.one(0);
    store(out.d + row, low_halves(d));
    if constexpr (Traits<Block>::minima) store(out.dmin + row, low_halves(d >> 16 ^ 0x8000)); // -m
}
inline void put_d(const BlockColumns<BlockMXFP4> &block, int row, PanelBlockOf<BlockMXFP4> &out) { // as d_of() does
    const Column e = block.one(0) & 0xff;
    put(out.d + row, e < 2 ? (e + 1) << 21 : (e - 1) << 23);
}

template <class Block>
    requires(Traits<Block>::size == 32)
[[gnu::always_inline]] inline void unpack_columns(const BlockColumns<Block> &block, int row, PanelBlockOf<Block> &out) {
    put_d(block, row, out);
    Column bits;
    if constexpr (requires { Block::qh; }) bits = block.one(offsetof(Block, qh));
    const FourColumns both = block.four(offsetof(Block, qs));
    for (int i = 0; i < 8; ++i) {
        Column codes = half_codes<Block>(both.v[i % 4], i >= 4);
        if constexpr (requires { Block::qh; }) // a bit into each byte: no two of the products meet
            codes |= ((bits >> (4 * i) & 15) * 0x00204081 & 0x01010101) << 4;
        put(out.codes[i][row], codes);
    }
}

// ---- panels ----------------------------------------------------------------------------------

template <class Block>
    requires requires(const BlockColumns<Block> &columns, PanelBlockOf<Block> &out) { unpack_columns(columns, 0, out); }
void pack_block(const Block *const *rows, int64_t block, Points, const char *ahead, PanelBlockOf<Block> &out) {
    if constexpr (Traits<Block>::size == 32) prefetch_panel<Block>(ahead);
    for (int row = 0; row < panel_rows; row += column_rows)
        unpack_columns(BlockColumns<Block>(rows, block, row, ahead), row, out);
}

inline void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]) {
    for (int first = 0; first < panel_rows; first += column_rows)
        for (int i = 0; i < n; i += 4) {
            const FourColumns four = four_columns([&](int row) { return load_128(rows + (first + row) * stride + i); });
            for (int j = 0; j < 4; ++j) put(&columns[i + j][first], four.v[j]);
        }
}

} // namespace phi::PHI_ISA
