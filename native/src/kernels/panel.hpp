// Panels: 16 rows of quantized weights, unpacked once and then used for every token of a batch.
//
// A row is a lane: four consecutive codes of each row lie side by side, so one vector meets four codes of a
// token, repeated, and the sums of 16 rows grow in 16 lanes without ever being added across lanes.
#pragma once

#include "unpacked.hpp"

namespace phi::PHI_ISA {

// One block of each row of the panel.
template <class Block> struct alignas(64) PanelBlock {
    static constexpr int size = Traits<Block>::size;
    // A block of 32 has no scale but d, and one offset for all its weights: one element, not used.
    static constexpr int scale_groups = size == 32 ? 1 : size / Traits<Block>::group;
    static constexpr int offset_pairs = size == 32 ? 1 : 8;

    uint8_t codes[size / 4][panel_rows][4];
    int32_t scales[scale_groups][panel_rows];
    int16_t offsets[offset_pairs][panel_rows][2]; // in the order of the sums of the activations
    float d[panel_rows], dmin[panel_rows];
};

// One block of one row, in the order of the panel: what becomes a column of it is a run of 32-bit words here.
template <class Block> struct alignas(16) PanelRow {
    uint8_t codes[Traits<Block>::size];
    int32_t scales[PanelBlock<Block>::scale_groups];
    int16_t offsets[PanelBlock<Block>::offset_pairs][2];
};

// 16 rows of n words, a multiple of 4, `stride` words apart, to n columns of 16 words; the instruction set brings it.
void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]);

template <class Block> void unpack_row(const Block &block, PanelRow<Block> &out, float &d, float &dmin) {
    constexpr int size = Traits<Block>::size, group = Traits<Block>::group;
    Unpacked<size> weights;
    unpack(block, weights);
    std::memcpy(out.codes, weights.codes, size);
    d = weights.d;
    dmin = weights.dmin;
    if constexpr (size == 256) {
        for (int i = 0; i < size / group; ++i) out.scales[i] = weights.scales[i * group / 16];
        for (int i = 0; i < 16; ++i) out.offsets[sum_index(i) / 2][sum_index(i) % 2] = weights.offsets[i];
    }
}

template <class Block> void pack_block(const Block *const *rows, int64_t block, PanelBlock<Block> &out) {
    constexpr int size = Traits<Block>::size, stride = sizeof(PanelRow<Block>) / 4;
    PanelRow<Block> staged[panel_rows];
    for (int row = 0; row < panel_rows; ++row) unpack_row(rows[row][block], staged[row], out.d[row], out.dmin[row]);
    const auto columns = [&](const void *first, int words, void *to) {
        transpose(static_cast<const uint32_t *>(first), stride, words, static_cast<uint32_t (*)[panel_rows]>(to));
    };
    columns(staged[0].codes, size / 4, out.codes);
    if constexpr (size == 256) {
        columns(staged[0].scales, size / Traits<Block>::group, out.scales);
        columns(staged[0].offsets, 8, out.offsets);
    }
}

// Rows first … last - 1, at most 16; where there are fewer the last is taken again. Asks for the rows after
// them, which are next.
template <class Block> void pack_panel(const Matrix &weight, int64_t first, int64_t last, PanelBlock<Block> *panel) {
    const Block *rows[panel_rows];
    for (int i = 0; i < panel_rows; ++i) rows[i] = row_of<Block>(weight, first + i < last ? first + i : last - 1);
    const char *ahead = reinterpret_cast<const char *>(rows[0]) + panel_rows * weight.row_bytes;
    for (int64_t block = 0; block < weight.cols / Traits<Block>::size; ++block, ahead += panel_rows * sizeof(Block)) {
        for (size_t i = 0; i < panel_rows * sizeof(Block); i += 64) __builtin_prefetch(ahead + i, 0, 2);
        pack_block(rows, block, panel[block]);
    }
}

// Dot products of the 16 rows with a few tokens; the instruction set brings it. Exactly the same operations on
// floats as for a single token, see dot_rows().
template <class Block, int tokens>
void tile(const PanelBlock<Block> *panel, int64_t blocks, const Vector *x, float (*results)[panel_rows]);

// Products of a panel with all tokens, `tokens` at a time; the last of them is repeated to make up the number.
template <class Block, int tokens>
void panel_product(const PanelBlock<Block> *panel, const Activations &x, int rows, float *out, ptrdiff_t stride) {
    for (int first = 0; first < x.tokens; first += tokens) {
        Vector vectors[tokens];
        float results[tokens][panel_rows];
        for (int i = 0; i < tokens; ++i)
            vectors[i] = vector_of<Block>(x, first + i < x.tokens ? first + i : x.tokens - 1);
        tile<Block, tokens>(panel, x.cols / Traits<Block>::size, vectors, results);
        for (int i = 0; i < tokens && first + i < x.tokens; ++i)
            for (int row = 0; row < rows; ++row) out[(first + i) * stride + row] = results[i][row];
    }
}

template <class Block, int tokens>
void panel_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride,
                  void *scratch) {
    PanelBlock<Block> *panel = static_cast<PanelBlock<Block> *>(scratch);
    for (int64_t row = first; row < last; row += panel_rows) {
        const int rows = static_cast<int>(last - row < panel_rows ? last - row : panel_rows);
        pack_panel(weight, row, row + rows, panel);
        panel_product<Block, tokens>(panel, x, rows, out + row, stride);
    }
}

} // namespace phi::PHI_ISA
