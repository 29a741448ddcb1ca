// Panels: 16 rows of quantized weights, unpacked once and then used for every token of a batch.
//
// A row is a lane: four consecutive codes of each row lie side by side, so one vector meets four codes of a
// token, repeated, and the sums of 16 rows grow in 16 lanes without ever being added across lanes.
#pragma once

#include "unpacked.hpp"

namespace phi::PHI_ISA {

// The form that weights have in a panel: that of their type, unless the instruction set chooses another one.
template <class Block> struct PanelForm : Traits<Block> {};

// Where the scale of the group that begins at weight `start` is: even groups of 16 come first, as in sums.
template <int group> constexpr int scale_index(int start) {
    return group == 16 ? sum_index(start / 16) : group == 32 ? start / 32 : 0;
}

// One block of one row, in the order of the panel: what becomes a column of it is a run of 32-bit words here.
// A block of 32 has no scale but d, and one offset for all its weights: one element each, not used.
template <int size, int group> struct alignas(32) PanelRow {
    static constexpr int n_scales = size == 32 ? 1 : group == 16 ? 16 : 8;
    static constexpr int n_offsets = size == 32 ? 1 : 8;

    uint8_t codes[size];
    int32_t scales[n_scales];
    int16_t offsets[n_offsets][2]; // in the order of the sums of the activations
};

// One block of each row of the panel.
template <int size, int group> struct alignas(64) PanelBlock {
    using Row = PanelRow<size, group>;

    uint8_t codes[size / 4][panel_rows][4];
    int32_t scales[Row::n_scales][panel_rows];
    int16_t offsets[Row::n_offsets][panel_rows][2];
    float d[panel_rows], dmin[panel_rows];
};

template <class Block> using PanelBlockOf = PanelBlock<PanelForm<Block>::size, PanelForm<Block>::group>;

// 16 rows of n words, a multiple of 4, `stride` words apart, to n columns of 16 words; the instruction set brings it.
void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]);

// Codes, scales and offsets of a block; the instruction set brings it.
template <class Block, class Row> void unpack_row(const Block &block, Points points, Row &out);

template <class Block>
void pack_block(const Block *const *rows, int64_t block, Points points, PanelBlockOf<Block> &out) {
    using Row = typename PanelBlockOf<Block>::Row;
    constexpr int size = PanelForm<Block>::size, stride = sizeof(Row) / 4;
    Row staged[panel_rows];
    for (int row = 0; row < panel_rows; ++row) {
        unpack_row(rows[row][block], points, staged[row]);
        out.d[row] = d_of(rows[row][block]);
        out.dmin[row] = dmin_of(rows[row][block]);
    }
    const auto columns = [&](const void *first, int words, void *to) {
        transpose(static_cast<const uint32_t *>(first), stride, words, static_cast<uint32_t (*)[panel_rows]>(to));
    };
    columns(staged[0].codes, size / 4, out.codes);
    if constexpr (size == 256) {
        columns(staged[0].scales, Row::n_scales, out.scales);
        columns(staged[0].offsets, Row::n_offsets, out.offsets);
    }
}

// Rows first … last - 1, at most 16; where there are fewer the last is taken again. Asks for the rows after
// them, which are next.
template <class Block>
void pack_panel(const Matrix &weight, int64_t first, int64_t last, PanelBlockOf<Block> *panel) {
    const Points points = points_of<Block>();
    const Block *rows[panel_rows];
    for (int i = 0; i < panel_rows; ++i) rows[i] = row_of<Block>(weight, first + i < last ? first + i : last - 1);
    const char *ahead = reinterpret_cast<const char *>(rows[0]) + panel_rows * weight.row_bytes;
    for (int64_t block = 0; block < weight.cols / Traits<Block>::size; ++block, ahead += panel_rows * sizeof(Block)) {
        for (size_t i = 0; i < panel_rows * sizeof(Block); i += 64) __builtin_prefetch(ahead + i, 0, 2);
        pack_block(rows, block, points, panel[block]);
    }
}

// Dot products of the 16 rows with a few tokens; the instruction set brings it. Exactly the same operations on
// floats as for a single token, see dot_rows().
template <class Tile, int tokens>
void tile(const typename Tile::Block *panel, int64_t blocks, int zero, const Vector *x, float (*results)[panel_rows]);

// Products of a panel with `tokens` tokens from `first` on; the last one is repeated to make up the number.
template <class Block, class Tile, int tokens>
void panel_product(const typename Tile::Block *panel, const Activations &x, int first, int rows, float *out,
                   ptrdiff_t stride) {
    Vector vectors[tokens];
    float results[tokens][panel_rows];
    for (int i = 0; i < tokens; ++i) vectors[i] = vector_of<Block>(x, first + i < x.tokens ? first + i : x.tokens - 1);
    tile<Tile, tokens>(panel, x.cols / Traits<Block>::size, PanelForm<Block>::zero, vectors, results);
    for (int i = 0; i < tokens && first + i < x.tokens; ++i)
        for (int row = 0; row < rows; ++row) out[(first + i) * stride + row] = results[i][row];
}

// A few panels stay in the second-level cache while the tokens pass by: each token is fetched once for all of them.
template <class Block, class Tile, int tokens>
void panel_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride,
                  void *scratch) {
    const int64_t blocks = weight.cols / Traits<Block>::size;
    const int64_t at_once = matmul_scratch(weight.cols) / (blocks * sizeof(PanelBlockOf<Block>)) * panel_rows;
    auto *panels = static_cast<PanelBlockOf<Block> *>(scratch);
    for (int64_t begin = first; begin < last; begin += at_once) {
        const int64_t end = begin + at_once < last ? begin + at_once : last;
        const auto for_panels = [&](const auto &body) {
            for (int64_t row = begin; row < end; row += panel_rows)
                body(row, row + panel_rows < end ? row + panel_rows : end, panels + (row - begin) / panel_rows * blocks);
        };
        for_panels([&](int64_t row, int64_t stop, auto *panel) { pack_panel<Block>(weight, row, stop, panel); });
        for (int token = 0; token < x.tokens; token += tokens)
            for_panels([&](int64_t row, int64_t stop, const auto *panel) {
                panel_product<Block, Tile, tokens>(panel, x, token, static_cast<int>(stop - row), out + row, stride);
            });
    }
}

} // namespace phi::PHI_ISA
