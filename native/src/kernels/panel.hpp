// Panels: 16 rows of quantized weights, unpacked once and then used for every token of a batch.
//
// A row is a lane: four consecutive codes of each row lie side by side, so one vector meets four codes of a
// token, repeated, and the sums of 16 rows grow in 16 lanes without ever being added across lanes.
#pragma once

#include "unpacked.hpp"

namespace phi::PHI_ISA {

// The form that weights have in a panel: that of their type, unless the instruction set chooses another one.
template <class Block> struct PanelForm : Traits<Block> {};

// Where the offset of the group that begins at weight `start` is: even groups of 16 come first, as in sums.
template <int group> constexpr int offset_index(int start) {
    return group == 16 ? sum_index(start / 16) : group == 32 ? start / 32 : 0;
}

// How many pairs of minima a block has, in the order of offsets; the only one of a block of 32 is 1 and is not stored.
template <class Block> constexpr int minima_pairs() {
    using Form = Traits<Block>;
    return !Form::minima ? 0 : Form::size == 32 ? 1 : Form::size / Form::group / 2;
}

// One block of one row, in the order of the panel: what becomes a column of it is a run of 32-bit words here.
// Scales are in pairs, those of neighbouring groups. A block of 32 has no scale but d. Where there are no minima there
// is one pair, not used.
template <int size, int group, int pairs> struct alignas(32) PanelRow {
    static constexpr int n_scales = size == 32 ? 1 : group == 16 ? 8 : 4; // pairs
    static constexpr int n_pairs = pairs > 0 ? pairs : 1;

    uint8_t codes[size];
    int16_t scales[n_scales][2];
    int16_t minima[n_pairs][2];
};

// One block of each row of the panel.
template <int size, int group, int pairs> struct alignas(64) PanelBlock {
    using Row = PanelRow<size, group, pairs>;

    uint8_t codes[size / 4][panel_rows][4];
    int16_t scales[Row::n_scales][panel_rows][2];
    int16_t minima[Row::n_pairs][panel_rows][2];
    float d[panel_rows], dmin[panel_rows];
};

template <class Block>
using PanelBlockOf = PanelBlock<PanelForm<Block>::size, PanelForm<Block>::group, minima_pairs<Block>()>;

// 16 rows of n words, a multiple of 4, `stride` words apart, to n columns of 16 words; the instruction set brings it.
void transpose(const uint32_t *rows, int stride, int n, uint32_t (*columns)[panel_rows]);

// Codes, scales and minima of a block; the instruction set brings it.
template <class Block, class Row> void unpack_row(const Block &block, Points points, Row &out);

// Asks for as many bytes as a block of the panel has in a file.
template <class Block> void prefetch_panel(const char *bytes) {
    for (size_t i = 0; i < panel_rows * sizeof(Block); i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// One block of each row; the instruction set may know a better way for a type. `ahead`: bytes that are next.
template <class Block>
void pack_block(const Block *const *rows, int64_t block, Points points, const char *ahead, PanelBlockOf<Block> &out) {
    prefetch_panel<Block>(ahead);
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
        if constexpr (Traits<Block>::minima) columns(staged[0].minima, Row::n_pairs, out.minima);
    }
}

// 16 rows of a matrix, or fewer: then the last is taken again.
template <class Block> class Panel {
  public:
    Panel(const Matrix &weight, int64_t first, int64_t last)
        : points_(points_of<Block>()), blocks_(weight.cols / Traits<Block>::size) {
        for (int i = 0; i < panel_rows; ++i) rows_[i] = row_of<Block>(weight, first + i < last ? first + i : last - 1);
    }

    // Blocks begin … end - 1. Asks for bytes of the rows after these, which are next.
    void pack(int64_t begin, int64_t end, PanelBlockOf<Block> *out) const {
        const char *next = reinterpret_cast<const char *>(rows_[0] + panel_rows * blocks_);
        for (int64_t block = begin; block < end; ++block)
            pack_block(rows_, block, points_, next + block * panel_rows * sizeof(Block), out[block - begin]);
    }

  private:
    Points points_;
    int64_t blocks_;
    const Block *rows_[panel_rows];
};

// ---- tokens ----------------------------------------------------------------------------------

// The code of zero as the tile of the instruction set sees it.
template <class Block> constexpr int zero_in_tile();

// Numbers of 32 bits that a token has for each block, see set_offsets().
template <class Block> constexpr int offsets_in() {
    using Form = PanelForm<Block>;
    return Form::minima ? minima_pairs<Block>() : Form::group == 16 ? 16 : Form::size / Form::group;
}

// Where sums of products begin, so that no offset need be taken off them later: -zero · Σ activation for every
// group with a scale. Where weights have minima: what these meet, Σ activation, in pairs of words as they have.
template <class Block> void set_offsets(const int16_t *sums, int64_t blocks, int32_t *out) {
    using Form = PanelForm<Block>;
    constexpr int factor = Form::minima ? 1 : -zero_in_tile<Block>(), n = offsets_in<Block>();
    for (int64_t block = 0; block < blocks; ++block, sums += sums_in(Form::size), out += n) {
        if constexpr (Form::size == 32) {
            *out = factor * *sums;
        } else if constexpr (n == 1) {
            int total = 0;
            for (int i = 0; i < 16; ++i) total += sums[i];
            *out = factor * total;
        } else if constexpr (Form::minima && n == 8) {
            std::memcpy(out, sums, 32);
        } else if constexpr (Form::minima) {
            int16_t pairs[8];
            for (int i = 0; i < 8; ++i) pairs[i] = static_cast<int16_t>(sums[i] + sums[8 + i]);
            std::memcpy(out, pairs, 16);
        } else if constexpr (n == 8) {
            for (int i = 0; i < 8; ++i) out[i] = factor * (sums[i] + sums[8 + i]);
        } else {
            for (int i = 0; i < 16; ++i) out[i] = factor * sums[i];
        }
    }
}

// One token's vector as tiles take it.
struct PanelVector {
    const int8_t *codes;
    const int32_t *offsets;
    const float *scales;
    const bool *small; // for each block: the activations of all tokens of the tile are, see is_small()
};

// The vector from a later block on.
template <class Block> PanelVector blocks_later(const PanelVector &x, int64_t blocks) {
    return {x.codes + blocks * Traits<Block>::size, x.offsets + blocks * offsets_in<Block>(), x.scales + blocks,
            x.small + blocks};
}

// Whether a block of activations with these two peaks is so small that a tile may take a shorter way; the instruction
// set brings it.
template <class Block> bool is_small(const uint16_t *peaks);

// Some tokens from `first` on, in places for `places` of them: the last one is repeated. `scratch` has room for their
// offsets and for a bool of each block.
template <class Block>
void set_vectors(const Activations &x, int first, int tokens, int places, int32_t *scratch, PanelVector *vectors) {
    constexpr int size = Traits<Block>::size;
    const int64_t blocks = x.cols / size, n = blocks * offsets_in<Block>();
    bool *small = reinterpret_cast<bool *>(scratch + tokens * n);
    for (int64_t block = 0; block < blocks; ++block) small[block] = true;
    for (int i = 0; i < tokens; ++i) {
        const Vector vector = vector_of<Block>(x, first + i);
        set_offsets<Block>(vector.sums, blocks, scratch + i * n);
        vectors[i] = {vector.codes, scratch + i * n, vector.scales, small};
        if constexpr (size == 256) {
            const uint16_t *peaks = x.peaks + (first + i) * blocks * 2;
            for (int64_t block = 0; block < blocks; ++block) small[block] &= is_small<Block>(peaks + 2 * block);
        }
    }
    for (int i = tokens; i < places; ++i) vectors[i] = vectors[tokens - 1];
}

// Adds the dot products of the 16 rows with a few tokens to the results; the instruction set brings it. Exactly the
// same operations on floats as for a single token, see dot_rows().
template <class Tile, int tokens>
void tile(const typename Tile::Block *panel, int64_t blocks, const PanelVector *x, float (*results)[panel_rows]);

// The same for at most `size` tokens, with tiles of that size, 4 and 2 tokens, but none smaller than `least`: as few
// places as possible stay empty. There are enough of them in x and in the results.
template <class Tile, int least, int size>
void tiles(const typename Tile::Block *panel, int64_t blocks, const PanelVector *x, int tokens,
           float (*results)[panel_rows]) {
    if constexpr (size > least) {
        constexpr int smaller = size > 4 ? 4 : 2;
        if (tokens <= smaller) return tiles<Tile, least, smaller>(panel, blocks, x, tokens, results);
        if (tokens <= size - least) {
            tile<Tile, smaller>(panel, blocks, x, results);
            return tiles<Tile, least, smaller>(panel, blocks, x + smaller, tokens - smaller, results + smaller);
        }
    }
    tile<Tile, size>(panel, blocks, x, results);
}

template <int most>
void put_results(const float (&results)[most][panel_rows], int tokens, int rows, float *out, ptrdiff_t stride) {
    for (int i = 0; i < tokens; ++i) {
        if (rows == panel_rows)
            std::memcpy(out + i * stride, results[i], sizeof results[i]);
        else
            for (int row = 0; row < rows; ++row) out[i * stride + row] = results[i][row];
    }
}

// A few panels stay in the second-level cache while the tokens pass by: each token is fetched once for all of them.
template <class Block, class Tile, int least, int most>
void panel_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out, ptrdiff_t stride,
                  void *scratch) {
    const int64_t blocks = weight.cols / Traits<Block>::size;
    const int64_t at_once = panels_bytes(weight.cols) / (blocks * sizeof(PanelBlockOf<Block>)) * panel_rows;
    auto *panels = static_cast<PanelBlockOf<Block> *>(scratch);
    auto *for_vectors = reinterpret_cast<int32_t *>(static_cast<char *>(scratch) + panels_bytes(weight.cols));
    for (int64_t begin = first; begin < last; begin += at_once) {
        const int64_t end = begin + at_once < last ? begin + at_once : last;
        const auto for_panels = [&](const auto &body) {
            for (int64_t row = begin; row < end; row += panel_rows)
                body(row, row + panel_rows < end ? row + panel_rows : end, panels + (row - begin) / panel_rows * blocks);
        };
        for_panels([&](int64_t row, int64_t stop, auto *panel) {
            Panel<Block>(weight, row, stop).pack(0, blocks, panel);
        });
        for (int token = 0; token < x.tokens; token += most) {
            PanelVector vectors[most];
            const int used = x.tokens - token < most ? x.tokens - token : most;
            set_vectors<Block>(x, token, used, most, for_vectors, vectors);
            for_panels([&](int64_t row, int64_t stop, const auto *panel) {
                float results[most][panel_rows] = {};
                tiles<Tile, least, most>(panel, blocks, vectors, used, results);
                put_results(results, used, static_cast<int>(stop - row), out + token * stride + row, stride);
            });
        }
    }
}

// At most as many tokens as the largest tile has. A part of a panel that stays in the first-level cache meets all of
// them before the next part is unpacked.
template <class Block, class Tile, int least, int most>
void few_tokens_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                       ptrdiff_t stride, void *scratch) {
    constexpr int64_t part = 512 / Traits<Block>::size;
    const int64_t blocks = weight.cols / Traits<Block>::size;
    auto *panel = static_cast<PanelBlockOf<Block> *>(scratch);
    PanelVector vectors[most];
    set_vectors<Block>(x, 0, x.tokens, most, reinterpret_cast<int32_t *>(panel + part), vectors);
    for (int64_t row = first; row < last; row += panel_rows) {
        const int64_t stop = row + panel_rows < last ? row + panel_rows : last;
        const Panel<Block> rows(weight, row, stop);
        PanelVector rest[most];
        for (int i = 0; i < most; ++i) rest[i] = vectors[i];
        float results[most][panel_rows] = {};
        for (int64_t block = 0; block < blocks; block += part) {
            const int64_t n = block + part < blocks ? part : blocks - block;
            rows.pack(block, block + n, panel);
            tiles<Tile, least, most>(panel, n, rest, x.tokens, results);
            for (int i = 0; i < most; ++i) rest[i] = blocks_later<Block>(rest[i], n);
        }
        put_results(results, x.tokens, static_cast<int>(stop - row), out + row, stride);
    }
}

} // namespace phi::PHI_ISA
