// IQ1_S and IQ1_M: each weight is -1, 0 or 1, all of them shifted by an eighth; 8 of them are one grid index.
// With only three values the search need not try scales: sort the weights of a sub-block (lane: a sub-block);
// then all ways to cut them into -1s, 0s and 1s can be tried, each with its own best scale.
// To read, with the mathematics: phicourse/quantize/iq1.py
#include "grid_search.hpp"
#include "quantizers.hpp"
#include "super_blocks.hpp"

namespace phi::PHI_ISA {
namespace {

constexpr float DELTA = 0.125f;
constexpr int GROUP = 8, N_LEVELS = 3, ENTRIES = entries_of(N_LEVELS), HIGHEST_NUMBER = 6560; // 3^8 - 1

// What the two types do differently.
struct Kind {
    int size;       // weights with a scale of their own
    int shifts;     // how many such a sub-block has: one, or one for each 8 weights
    float smallest; // a sub-block without a magnitude of at least that counts as zero

    constexpr int sub_blocks() const { return SUPER_BLOCK / size; }
    constexpr int groups() const { return size / GROUP; } // in a sub-block
};

constexpr Kind IQ1_S{32, 1, 1e-12f}, IQ1_M{16, 2, 1e-7f};

// x[i]: weight i, lane: sub-block
template <const Kind &kind> struct Columns {
    Floats x[kind.size];
    Floats w[kind.size]; // how much an error counts
    Ints used;           // where there is something in it
    // The same, sub-block after sub-block, and room for a load behind the last
    float weights[LANES * kind.size + LANES], counts[LANES * kind.size + LANES];
};

static inline void set_weights(const Floats *x, const float *importance, Floats mean_square, int size, Floats *w) {
    for (int i = 0; i < size; ++i) w[i] = importance ? w[i] * sqrt(mean_square + x[i] * x[i]) : x[i] * x[i];
}

template <const Kind &kind>
static inline void set_columns(const float *x, const float *importance, Floats mean_square, Columns<kind> &c) {
    load_columns<kind.size>(x, c.x);
    if (importance) load_columns<kind.size>(importance, c.w);
    set_weights(c.x, importance, mean_square, kind.size, c.w);
    Floats peak{};
    for (int i = 0; i < kind.size; ++i) peak = max(peak, abs(c.x[i]));
    c.used = ~(peak < kind.smallest);
    __builtin_memcpy(c.weights, x, sizeof(float) * LANES * kind.size);
    store_columns<kind.size>(c.w, c.counts);
}

// ---- sorting ---------------------------------------------------------------------------------

// Weights in ascending order; equal ones keep theirs, as C's qsort does it in glibc.
template <const Kind &kind> struct Sorted {
    Floats x[kind.size], w[kind.size];
    Ints index[kind.size]; // in the sub-block

    void exchange(int a, int b) {
        const Ints turned = (x[b] < x[a]) | ((x[b] == x[a]) & (index[b] < index[a]));
        const Floats lower_x = select(turned, x[b], x[a]), lower_w = select(turned, w[b], w[a]);
        const Ints lower = select(turned, index[b], index[a]);
        x[b] = select(turned, x[a], x[b]);
        w[b] = select(turned, w[a], w[b]);
        index[b] = select(turned, index[a], index[b]);
        x[a] = lower_x;
        w[a] = lower_w;
        index[a] = lower;
    }
};

// Batcher's odd-even merge sort: the same exchanges whatever the numbers are.
template <const Kind &kind> static inline Sorted<kind> sort(const Columns<kind> &c) {
    Sorted<kind> s;
    for (int i = 0; i < kind.size; ++i) {
        s.x[i] = c.x[i];
        s.w[i] = c.w[i];
        s.index[i] = splat(i);
    }
    for (int run = 1; run < kind.size; run *= 2)
        for (int step = run; step > 0; step /= 2)
            for (int first = step % run; first + step < kind.size; first += 2 * step)
                for (int i = first; i < first + step && i + step < kind.size; ++i)
                    if (i / (2 * run) == (i + step) / (2 * run)) s.exchange(i, i + step);
    return s;
}

// ---- cutting ---------------------------------------------------------------------------------

// How sorted weights are cut, for each sub-block.
struct Cut {
    Floats scale{}; // negative where -1 and 1 change places
    Floats gain = splat(-__FLT_MAX__);
    Ints first{}, second{};  // how many weights are -1, and how many are -1 or 0
    Ints shifts = splat(-1); // which pattern of shifts, in the order in which they are tried; -1: no cut

    // xv, vv: sums of w x value and of w value^2
    void consider(Floats xv, Floats vv, int i, int j, int pattern) {
        const Ints better = (vv > 0.0f) & (xv * xv > gain * vv);
        if (!any(better)) return;
        scale = select(better, xv / vv, scale);
        gain = select(better, scale * xv, gain);
        first = select(better, splat(i), first);
        second = select(better, splat(j), second);
        shifts = select(better, splat(pattern), shifts);
    }
};

// Both shifts for the whole sub-block: pattern 0 up, 1 down.
static inline Cut best_cut(const Sorted<IQ1_S> &s) {
    constexpr int n = IQ1_S.size;
    Floats x[n + 1], w[n + 1]; // sums of the first 0, 1, 2, ... w x and w
    x[0] = w[0] = Floats{};
    for (int i = 0; i < n; ++i) {
        x[i + 1] = x[i] + s.w[i] * s.x[i];
        w[i + 1] = w[i] + s.w[i];
    }
    // What the weights before and behind a cut add to the sums, by shift. Those between are 0 + shift.
    Floats high_x[2][n + 1], high_w[2][n + 1];
    for (int shift = 0; shift < 2; ++shift)
        for (int j = 0; j <= n; ++j) {
            const float value = shift ? 1 - DELTA : 1 + DELTA;
            high_x[shift][j] = (x[n] - x[j]) * value;
            high_w[shift][j] = (w[n] - w[j]) * value * value;
        }
    Cut best;
    for (int i = 0; i <= n; ++i) {
        constexpr float LOW[2] = {-1 + DELTA, -1 - DELTA};
        const Floats before_x = x[i] - x[0], before_w = w[i] - w[0];
        const Floats low_x[2] = {before_x * LOW[0], before_x * LOW[1]};
        const Floats low_w[2] = {before_w * LOW[0] * LOW[0], before_w * LOW[1] * LOW[1]};
        for (int j = i; j <= n; ++j) {
            const Floats middle_x = (x[j] - x[i]) * DELTA, middle_w = (w[j] - w[i]) * DELTA * DELTA;
            best.consider(low_x[0] + middle_x + high_x[0][j], low_w[0] + middle_w + high_w[0][j], i, j, 0);
            best.consider(low_x[1] - middle_x + high_x[1][j], low_w[1] + middle_w + high_w[1][j], i, j, 1);
        }
    }
    return best;
}

// Four patterns of shifts for the halves of the sub-block: ++, +-, -+, --. Sums over the halves, see iq1.py.
static inline Cut best_cut(const Sorted<IQ1_M> &s) {
    constexpr int n = IQ1_M.size;
    constexpr float HIGH[2] = {1 + DELTA, 1 - DELTA};
    constexpr float LOW_MIDDLE[2] = {0.75f, 1.25f}, MIDDLE_HIGH[2] = {-1.25f, -0.75f}; // differences of squares
    Floats x[2][n + 1], w[2][n + 1]; // by half: sums of the first 0, 1, 2, ... w x and w
    for (int half = 0; half < 2; ++half) {
        x[half][0] = w[half][0] = Floats{};
        for (int i = 0; i < n; ++i) {
            const Ints inside = (s.index[i] >= GROUP) == (half ? splat(-1) : Ints{});
            x[half][i + 1] = select(inside, x[half][i] + s.w[i] * s.x[i], x[half][i]);
            w[half][i + 1] = select(inside, w[half][i] + s.w[i], w[half][i]);
        }
    }
    Cut best;
    for (int i = 0; i <= n; ++i)
        for (int j = i; j <= n; ++j) {
            Floats xv[2][2], vv[2][2]; // by half and shift
            for (int half = 0; half < 2; ++half)
                for (int shift = 0; shift < 2; ++shift) {
                    xv[half][shift] = x[half][n] * HIGH[shift] - (x[half][i] + x[half][j]);
                    vv[half][shift] = w[half][n] * HIGH[shift] * HIGH[shift] + w[half][i] * LOW_MIDDLE[shift] +
                                      w[half][j] * MIDDLE_HIGH[shift];
                }
            for (int pattern = 0; pattern < 4; ++pattern)
                best.consider(xv[0][pattern / 2] + xv[1][pattern % 2], vv[0][pattern / 2] + vv[1][pattern % 2], i, j,
                              pattern);
        }
    return best;
}

// The numbers of the combinations that a cut gives.
template <const Kind &kind> static inline void combinations(const Sorted<kind> &s, const Cut &cut, Ints *numbers) {
    static constexpr int32_t POWERS[GROUP] = {1, 3, 9, 27, 81, 243, 729, 2187};
    for (int group = 0; group < kind.groups(); ++group) numbers[group] = Ints{};
    for (int i = 0; i < kind.size; ++i) {
        const Ints level = -(i >= cut.first) - (i >= cut.second);
        const Ints digit = level * gather(POWERS, s.index[i] & (GROUP - 1)), group_of = s.index[i] / GROUP;
        for (int group = 0; group < kind.groups(); ++group) numbers[group] += digit & (group_of == group);
    }
    const Ints turned = cut.scale < 0.0f; // 0 and 2 change places
    for (int group = 0; group < kind.groups(); ++group)
        numbers[group] = select(turned, HIGHEST_NUMBER - numbers[group], numbers[group]);
}

// ---- onto the grid ---------------------------------------------------------------------------

template <const Kind &kind> struct Fit {
    Floats scale;
    Ints words[kind.groups()];
    Ints shifts; // the pattern
};

// The shift of a group, by the pattern of its sub-block.
template <const Kind &kind> static inline Floats shift_of(Ints shifts, int group) {
    const Ints minus = (kind.shifts == 2 && group == 0 ? shifts >> 1 : shifts) & 1;
    return from_bits(bits(splat(DELTA)) ^ minus << 31);
}

// Where a combination has the nearest level for each weight, and none is halfway between two.
static inline Ints is_nearest(const Floats *x, Floats scale, Floats shift, Ints number) {
    Floats nearest{}, farthest{};
    for (int i = GROUP - 1; i >= 0; --i) {
        const Floats exact = min(max(x[i] / scale - shift + 1.0f, Floats{}), splat(N_LEVELS - 1.0f));
        const Floats level = round_even(exact);
        nearest = nearest * (float)N_LEVELS + level;
        farthest = max(farthest, abs(exact - level));
    }
    return (truncate(nearest) == number) & (farthest < 0.4999f) & (scale > 1e-30f) & (scale < 1e30f);
}

static inline Table<GROUP, ENTRIES> values_of(float shift) { return evenly_spaced<GROUP, ENTRIES>(-1 + shift, 1); }

// Sums of w x v and w v^2, v being the values of points.
struct Projections {
    Floats xv{}, vv{};

    void add(const Floats *x, const Floats *w, Ints words, Floats shift, Floats factor) {
        const Table<GROUP, ENTRIES> values = values_of(0);
        for (int i = 0; i < GROUP; ++i) {
            const Floats value = (values.look_up(i, words >> 4 * i) + shift) * factor;
            xv += w[i] * value * x[i];
            vv += w[i] * value * value;
        }
    }
};

// Replaces combinations that are no points by near ones, and fits the scale to those.
template <const Kind &kind>
static inline void onto_grid(const Grid &grid, const Columns<kind> &c, const Ints *numbers, Fit<kind> &fit) {
    Searches<kind.groups()> searches;
    Ints off_grid{};
    float scales[LANES], shifts[kind.groups()][LANES];
    store(scales, fit.scale);
    for (int group = 0; group < kind.groups(); ++group) {
        const Floats shift = shift_of<kind>(fit.shifts, group);
        const Ints sure = is_nearest(c.x + group * GROUP, fit.scale, shift, numbers[group]);
        off_grid |= searches.add(grid, group, numbers[group], c.used, sure);
        store(shifts[group], shift);
    }
    searches.run(grid, [&](int place) {
        const int lane = place % LANES, group = place / LANES, first = lane * kind.size + group * GROUP;
        return errors(values_of(shifts[group][lane]), c.weights + first, c.counts + first, scales[lane]);
    });
    Projections sums;
    for (int group = 0; group < kind.groups(); ++group) {
        const int first = group * GROUP;
        fit.words[group] = load<Ints>(searches.words + group * LANES);
        sums.add(c.x + first, c.w + first, fit.words[group], shift_of<kind>(fit.shifts, group), splat(1.0f));
    }
    fit.scale = select(off_grid & (sums.xv > 0.0f) & (sums.vv > 0.0f), sums.xv / sums.vv, fit.scale);
}

// ---- the search ------------------------------------------------------------------------------

// What is found for the sub-blocks of a batch, in the order of memory. Empty ones have scale, points and shifts 0.
template <const Kind &kind> struct Found {
    static constexpr int COUNT = BATCH * kind.sub_blocks();
    float scales[COUNT] = {};
    int32_t shifts[COUNT] = {};
    int32_t words[COUNT][kind.groups()] = {};
    uint16_t points[COUNT][kind.groups()] = {};
};

template <const Kind &kind>
static inline void keep(const Grid &grid, const Fit<kind> &fit, Ints used, int first, Found<kind> &found) {
    store(found.scales + first, select(used, fit.scale, Floats{}));
    store(found.shifts + first, fit.shifts & used);
    const Ints first_point = splat(grid.first_word);
    for (int group = 0; group < kind.groups(); ++group) {
        const Ints words = select(used, fit.words[group], first_point);
        const Ints points = points_of<GROUP, N_LEVELS>(grid, words);
        for (int lane = 0; lane < LANES; ++lane) {
            found.words[first + lane][group] = words[lane];
            found.points[first + lane][group] = points[lane];
        }
    }
}

template <const Kind &kind>
static inline void search(const Grid &grid, const float *x, const float *importance, Floats means, int blocks,
                          Found<kind> &found) {
    for (int first = 0; first < blocks * kind.sub_blocks(); first += LANES) {
        const int offset = first * kind.size;
        Columns<kind> c;
        set_columns(x + offset, importance ? importance + offset : nullptr,
                    spread<kind.sub_blocks(), Floats>(means, first), c);
        const Sorted<kind> sorted = sort(c);
        const Cut cut = best_cut(sorted);
        c.used &= cut.shifts >= 0;
        Ints numbers[kind.groups()];
        combinations(sorted, cut, numbers);
        Fit<kind> fit;
        fit.scale = abs(cut.scale);
        fit.shifts = select(cut.scale < 0.0f, (1 << kind.shifts) - 1 - cut.shifts, cut.shifts);
        onto_grid(grid, c, numbers, fit);
        keep(grid, fit, c.used, first, found);
    }
}

// ---- packing ---------------------------------------------------------------------------------

static inline void pack(const Found<IQ1_S> &found, int first, BlockIQ1_S &out) {
    const BlockScale scale = scale_codes<8, 7>(found.scales + first);
    out.d = narrow_f16(scale.d * 1.125f);
    for (int j = 0; j < 8; ++j) {
        const uint16_t *points = found.points[first + j];
        int word = scale.codes[j] << 12 | (scale.empty ? 0 : found.shifts[first + j]) << 15;
        for (int k = 0; k < 4; ++k) {
            out.qs[4 * j + k] = (uint8_t)points[k];
            word |= (points[k] >> 8) << 3 * k;
        }
        out.qh[j] = (uint16_t)word;
    }
}

static void quantize_weighted_iq1_s(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const Grid &grid = *find_grid(GridName::IQ1_S);
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, (BlockIQ1_S *)out,
                   [&](const float *x, const float *importance, BlockIQ1_S *out, int blocks) {
                       Found<IQ1_S> found;
                       search(grid, x, importance, mean_squares(x, 2), blocks, found);
                       for (int block = 0; block < blocks; ++block)
                           pack(found, block * IQ1_S.sub_blocks(), out[block]);
                   });
}

// The scales that fit whole super-blocks best, once the codes of their sub-blocks' scales are known.
// Lane: super-block
static inline Floats refit(const Found<IQ1_M> &found, const BlockScale *scales, const float *x,
                           const float *importance, Floats mean_square) {
    Projections sums;
    Floats d{};
    for (int lane = 0; lane < LANES; ++lane) d[lane] = scales[lane].d;
    for (int j = 0; j < IQ1_M.sub_blocks(); ++j) {
        Floats columns[IQ1_M.size], w[IQ1_M.size], factor{};
        load_columns<IQ1_M.size, SUPER_BLOCK>(x + j * IQ1_M.size, columns);
        if (importance) load_columns<IQ1_M.size, SUPER_BLOCK>(importance + j * IQ1_M.size, w);
        set_weights(columns, importance, mean_square, IQ1_M.size, w);
        Ints shifts{}, words[2] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const int number = lane * IQ1_M.sub_blocks() + j;
            factor[lane] = 2 * scales[lane].codes[j] + 1;
            shifts[lane] = found.shifts[number];
            for (int group = 0; group < 2; ++group) words[group][lane] = found.words[number][group];
        }
        for (int group = 0; group < 2; ++group)
            sums.add(columns + group * GROUP, w + group * GROUP, words[group], shift_of<IQ1_M>(shifts, group), factor);
    }
    return select(sums.vv > 0.0f, sums.xv / sums.vv, d);
}

// Four words with four 3-bit codes each, and above them four bits of the float16 d.
static inline void pack_scales(uint16_t d, const uint8_t *codes, uint8_t *packed) {
    for (int j = 0; j < 4; ++j) {
        uint16_t word = (d >> 4 * j & 15) << 12;
        for (int k = 0; k < 4; ++k) word |= codes[4 * j + k] << 3 * k;
        __builtin_memcpy(packed + 2 * j, &word, sizeof word);
    }
}

static inline void pack(const Found<IQ1_M> &found, int first, const BlockScale &scale, float d, BlockIQ1_M &out) {
    for (int j = 0; j < 16; ++j) {
        const uint16_t *points = found.points[first + j];
        const int shifts = scale.empty ? 0 : found.shifts[first + j];
        out.qs[2 * j] = (uint8_t)points[0];
        out.qs[2 * j + 1] = (uint8_t)points[1];
        out.qh[j] = points[0] >> 8 | (shifts >> 1) << 3 | (points[1] >> 8) << 4 | (shifts & 1) << 7;
    }
    pack_scales(scale.empty ? 0 : narrow_f16(d * 1.1125f), scale.codes, out.scales);
}

static void quantize_weighted_iq1_m(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const Grid &grid = *find_grid(GridName::IQ1_S);
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, (BlockIQ1_M *)out,
                   [&](const float *x, const float *importance, BlockIQ1_M *out, int blocks) {
                       const Floats mean_square = mean_squares(x, 2);
                       float d[BATCH];
                       Found<IQ1_M> found;
                       search(grid, x, importance, mean_square, blocks, found);
                       BlockScale scales[BATCH];
                       for (int block = 0; block < BATCH; ++block)
                           scales[block] = scale_codes<16, 7>(found.scales + block * IQ1_M.sub_blocks());
                       store(d, refit(found, scales, x, importance, mean_square));
                       for (int block = 0; block < blocks; ++block)
                           pack(found, block * IQ1_M.sub_blocks(), scales[block], d[block], out[block]);
                   });
}

static void quantize_iq1_m(const float *x, int64_t n_blocks, void *out) {
    quantize_weighted_iq1_m(x, nullptr, n_blocks, out);
}

// ---- and back --------------------------------------------------------------------------------

// What 32 weights of a block stand for: points, shifts, steps of their halves.
struct Part {
    uint16_t points[4];
    bool minus[4]; // shifted down?
    float steps[2];
};

static inline Part unpack(const BlockIQ1_S &block, int j) {
    const uint16_t word = block.qh[j];
    const float step = widen_f16(block.d) * (2 * (word >> 12 & 7) + 1);
    Part part{{}, {}, {step, step}};
    for (int k = 0; k < 4; ++k) {
        part.points[k] = block.qs[4 * j + k] | (word >> 3 * k & 7) << 8;
        part.minus[k] = word >> 15;
    }
    return part;
}

static inline uint16_t stored_d(const uint16_t *words) {
    return words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12;
}

static inline Part unpack(const BlockIQ1_M &block, int j) {
    uint16_t words[4];
    __builtin_memcpy(words, block.scales, sizeof words);
    const uint16_t d = stored_d(words);
    Part part;
    for (int half = 0; half < 2; ++half)
        part.steps[half] = widen_f16(d) * (2 * (words[j / 2] >> 3 * (2 * (j % 2) + half) & 7) + 1);
    for (int k = 0; k < 4; ++k) {
        const int four = block.qh[2 * j + k / 2] >> 4 * (k % 2);
        part.points[k] = block.qs[4 * j + k] | (four & 7) << 8;
        part.minus[k] = four & 8;
    }
    return part;
}

template <class Block> static void dequantize(const void *data, int64_t n_blocks, float *x) {
    const Grid &grid = *find_grid(GridName::IQ1_S);
    const Block *blocks = (const Block *)data;
    for (int64_t i = 0; i < n_blocks; ++i)
        for (int j = 0; j < SUPER_BLOCK / 32; ++j, x += 32) {
            const Part part = unpack(blocks[i], j);
            int8_t values[32], shifts[32]; // in eighths
            for (int k = 0; k < 4; ++k) {
                __builtin_memcpy(values + k * GROUP, grid.values + part.points[k] * GROUP, GROUP);
                __builtin_memset(shifts + k * GROUP, part.minus[k] ? -1 : 1, GROUP);
            }
            for (int l = 0; l < 32; l += LANES) {
                const Floats shift = DELTA * to_floats(load_signed_bytes(shifts + l));
                store(x + l, part.steps[l / 16] * (to_floats(load_signed_bytes(values + l)) + shift));
            }
        }
}

// ---- better scales ---------------------------------------------------------------------------

static void read_iq1_s(const void *data, Scales &scales) {
    const BlockIQ1_S &block = *(const BlockIQ1_S *)data;
    scales.d = widen_f16(block.d);
    for (int j = 0; j < 8; ++j) scales.scale[j] = block.qh[j] >> 12 & 7;
}

static void write_iq1_s(const Scales &scales, const uint8_t *codes, void *data) {
    const Grid &grid = *find_grid(GridName::IQ1_S);
    BlockIQ1_S &block = *(BlockIQ1_S *)data;
    block.d = narrow_f16(scales.d);
    for (int j = 0; j < 8; ++j, codes += IQ1_S.size) {
        int word = (int)scales.scale[j] << 12 | codes[0] / GRID_SIGN << 15;
        for (int k = 0; k < 4; ++k) {
            const int point = point_of<GROUP, N_LEVELS>(grid, codes + k * GROUP);
            block.qs[4 * j + k] = (uint8_t)point;
            word |= (point >> 8) << 3 * k;
        }
        block.qh[j] = (uint16_t)word;
    }
}

static void read_iq1_m(const void *data, Scales &scales) {
    uint16_t words[4];
    __builtin_memcpy(words, ((const BlockIQ1_M *)data)->scales, sizeof words);
    scales.d = widen_f16(stored_d(words));
    for (int j = 0; j < 16; ++j) scales.scale[j] = words[j / 4] >> 3 * (j % 4) & 7;
}

static void write_iq1_m(const Scales &scales, const uint8_t *codes, void *data) {
    const Grid &grid = *find_grid(GridName::IQ1_S);
    BlockIQ1_M &block = *(BlockIQ1_M *)data;
    uint8_t scale_codes[16];
    for (int j = 0; j < 16; ++j) {
        scale_codes[j] = (uint8_t)scales.scale[j];
        block.qh[j] = 0;
        for (int k = 0; k < 2; ++k, codes += GROUP) {
            const int point = point_of<GROUP, N_LEVELS>(grid, codes);
            block.qs[2 * j + k] = (uint8_t)point;
            block.qh[j] |= (point >> 8 | codes[0] / GRID_SIGN << 3) << 4 * k;
        }
    }
    pack_scales(narrow_f16(scales.d), scale_codes, block.scales);
}

constexpr GridCodes S_CODES = {GridName::IQ1_S, GROUP, N_LEVELS, GridCodes::shifts_of_sub_blocks};
constexpr GridCodes M_CODES = {GridName::IQ1_S, GROUP, N_LEVELS, GridCodes::shifts_of_groups};

constexpr Format S_FORMAT = {
    .n_sub = IQ1_S.sub_blocks(), .size = IQ1_S.size, .bytes = sizeof(BlockIQ1_S),
    .first = 0, .last = 0, .lowest_scale = 0, .highest_scale = 7, .lowest_minimum = 0,
    .counts = Counts::square, .mean = Mean::twice_of_block,
    .read = read_iq1_s, .write = write_iq1_s,
    .first_reach = 3, .reach = 1, .scale_codes = ScaleCodes::odd, .grid = &S_CODES,
};

constexpr Format M_FORMAT = {
    .n_sub = IQ1_M.sub_blocks(), .size = IQ1_M.size, .bytes = sizeof(BlockIQ1_M),
    .first = 0, .last = 0, .lowest_scale = 0, .highest_scale = 7, .lowest_minimum = 0,
    .counts = Counts::square, .mean = Mean::twice_of_block,
    .read = read_iq1_m, .write = write_iq1_m,
    .first_reach = 3, .reach = 1, .scale_codes = ScaleCodes::odd, .grid = &M_CODES,
};

} // namespace

const Quantizer quantizer_iq1_m = {quantize_iq1_m, dequantize<BlockIQ1_M>, quantize_weighted_iq1_m, &M_FORMAT};
const Quantizer quantizer_iq1_s = {nullptr, dequantize<BlockIQ1_S>, quantize_weighted_iq1_s, &S_FORMAT};

} // namespace phi::PHI_ISA
