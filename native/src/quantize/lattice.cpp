// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: signs apart, the magnitudes of 4 or 8 weights as one grid index.
// The search tries several scales for a sub-block (lane: a sub-block). With each, magnitudes are rounded to
// levels, and where those are no point of the grid, a near one takes their place; most of the time goes there.
// To read, with the mathematics: phicourse/quantize/lattice.py
#include "grid_search.hpp"
#include "quantizers.hpp"
#include "super_blocks.hpp"

namespace phi::PHI_ISA {
namespace {

// ---- types -----------------------------------------------------------------------------------

enum class LastRound { off_grid, all, always };

// What the five types do differently.
struct Lattice {
    GridName grid;
    int group, n_levels;  // of the grid
    int size;             // weights with a scale of their own
    int mean_squares;     // how many mean squares of the block an error's weight has
    bool even_signs;      // each 8 weights store 7 signs: the number of minus signs is even then
    float smallest;       // a sub-block whose largest magnitude is below counts as zero
    bool searched;        // a search without the grid says where to start, not the largest magnitude
    int trials;           // trial i starts from a largest level 2 n_levels - 1 + i * step, |i| <= trials
    float step;
    LastRound last_round; // groups rounded again with the best scale: those off the grid, all where one is, all
    float factor;         // of the scale that is stored
    bool clears_empty;    // a block with nothing in it is all zero

    constexpr int sub_blocks() const { return SUPER_BLOCK / size; }
    constexpr int groups() const { return size / group; } // in a sub-block
    constexpr int entries() const { return entries_of(n_levels); }
    constexpr bool needs_importance() const { return grid == GridName::IQ2_XXS || grid == GridName::IQ2_XS; }
    constexpr int top() const { return 2 * n_levels - 1; } // what the highest level stands for
};

constexpr Lattice IQ2_XXS{GridName::IQ2_XXS, 8, 3, 32, 1, true, 1e-15f, true, 6, 0.1f, LastRound::always, 1, true};
constexpr Lattice IQ2_XS{GridName::IQ2_XS, 8, 3, 16, 1, true, 1e-15f, false, 9, 0.1f, LastRound::off_grid, 1, true};
constexpr Lattice IQ2_S{GridName::IQ2_S, 8, 3, 16, 2, false, 1e-8f, false, 9, 0.1f, LastRound::off_grid, 0.9875f, false};
constexpr Lattice IQ3_XXS{GridName::IQ3_XXS, 4, 8, 32, 2, true, 1e-8f, false, 15, 0.2f, LastRound::off_grid, 1.0125f, true};
constexpr Lattice IQ3_S{GridName::IQ3_S, 4, 8, 32, 2, false, 1e-45f, false, 9, 0.2f, LastRound::all, 1.033f, false};

// ---- sub-blocks side by side -----------------------------------------------------------------

// x[i]: weight i, lane: sub-block
template <const Lattice &type> struct Columns {
    Floats x[type.size];  // magnitudes; one of 8 may be negative, see split_signs
    Floats w[type.size];  // how much an error counts
    Floats wx[type.size]; // w x
    Ints signs;           // bit i: is weight i negative?
    Floats largest;       // magnitude, with its sign
    Floats bound;         // of magnitudes without signs
    Ints used;            // where there is something in it
    // x and the root of w, sub-block after sub-block, and room for a load behind the last
    float magnitudes[LANES * type.size + LANES], roots[LANES * type.size + LANES];
};

// How much errors count without importance.
template <const Lattice &type> static inline Floats own_weight(Floats x, Floats mean_square) {
    if constexpr (type.grid == GridName::IQ2_S) return 0.25f * mean_square + x * x;
    else return x * x;
}

template <const Lattice &type>
static inline void set_weights(const float *importance, Floats mean_square, Columns<type> &c) {
    if (importance) load_columns<type.size>(importance, c.w);
    for (int i = 0; i < type.size; ++i)
        c.w[i] = importance ? c.w[i] * sqrt(mean_square + c.x[i] * c.x[i]) : own_weight<type>(c.x[i], mean_square);
}

// Which of 8 weights takes the wrong sign, so that the number of minus signs is even: the one whose error costs
// least, the first of equals. -1 where the number is even.
static inline Ints cheapest_where_odd(const Floats *x, const Floats *w) {
    Floats least = w[0] * x[0] * x[0];
    Ints cheapest{}, odd = x[0] < 0.0f;
    for (int i = 1; i < 8; ++i) {
        const Floats cost = w[i] * x[i] * x[i];
        cheapest = select(cost < least, splat(i), cheapest);
        least = select(cost < least, cost, least);
        odd ^= x[i] < 0.0f;
    }
    return cheapest | ~odd;
}

// Turns weights into magnitudes and signs. A weight with the wrong sign has a negative magnitude.
template <const Lattice &type> static inline void split_signs(Columns<type> &c) {
    c.signs = Ints{};
    for (int first = 0; first < type.size; first += 8) {
        const Ints wrong = type.even_signs ? cheapest_where_odd(c.x + first, c.w + first) : splat(-1);
        for (int i = 0; i < 8; ++i) {
            const Ints negative = (c.x[first + i] < 0.0f) ^ (wrong == i);
            c.x[first + i] = select(negative, -c.x[first + i], c.x[first + i]);
            c.signs |= negative & splat((int32_t)(1u << (first + i)));
        }
    }
}

template <const Lattice &type>
static inline void set_columns(const float *x, const float *importance, Floats mean_square, Columns<type> &c) {
    load_columns<type.size>(x, c.x);
    set_weights(importance, mean_square, c);
    split_signs(c);
    c.largest = c.x[0];
    c.bound = Floats{};
    Floats roots[type.size];
    for (int i = 0; i < type.size; ++i) {
        c.wx[i] = c.w[i] * c.x[i];
        c.largest = select(c.largest > c.x[i], c.largest, c.x[i]);
        c.bound = max(c.bound, abs(c.x[i]));
        roots[i] = sqrt(c.w[i]);
    }
    c.used = ~(c.largest < type.smallest);
    store_columns<type.size>(c.x, c.magnitudes);
    store_columns<type.size>(roots, c.roots);
}

// ---- rounding to points ----------------------------------------------------------------------

// The number of a combination of levels, and where that is sure to have the nearest level for each weight. Where
// a weight is halfway between two, rounding errors may have another one be nearer.
struct Combination {
    Ints number, sure;
};

template <const Lattice &type> static inline Combination combination(const Floats *x, Floats inverse) {
    Floats number{}, farthest{};
    for (int i = type.group - 1; i >= 0; --i) {
        const Floats exact = min(max(0.5f * (inverse * x[i] - 1.0f), Floats{}), splat(type.n_levels - 1.0f));
        const Floats level = round_even(exact);
        number = number * (float)type.n_levels + level;
        farthest = max(farthest, abs(exact - level));
    }
    return {truncate(number), farthest < 0.4999f};
}

// The same with the reference's rounding, where numbers are too large for the quick one.
template <const Lattice &type>
__attribute__((noinline, cold)) static Combination exact_combination(const Floats *x, const Floats &inverse) {
    Ints number{};
    for (int i = type.group - 1; i >= 0; --i) {
        const Ints level = nearest_int(0.5f * (inverse * x[i] - 1.0f));
        number = number * type.n_levels + min(max(level, Ints{}), splat(type.n_levels - 1));
    }
    return {number, Ints{}};
}

// Points for the groups of each sub-block.
template <const Lattice &type> struct Points {
    Ints words[type.groups()];
    Ints off_grid[type.groups()]; // where the nearest levels are no point, and a near one takes their place
};

template <const Lattice &type> static inline Table<type.group, type.entries()> values_of() {
    return evenly_spaced<type.group, type.entries()>(1, 2);
}

// Rounds the groups that are wanted: inverse = 1 / scale is for rounding, the scale for judging near points.
template <const Lattice &type>
static inline Points<type> nearest_points(const Grid &grid, const Columns<type> &c, Floats inverse, Floats scale,
                                          const Ints *wanted) {
    const bool quick = all(abs(inverse * c.bound) < MAGIC_LIMIT);
    const Ints moderate = (scale > 1e-30f) & (scale < 1e30f); // errors keep their relative precision
    Points<type> found;
    Searches<type.groups()> searches;
    for (int group = 0; group < type.groups(); ++group) {
        const Floats *x = c.x + group * type.group;
        const Combination nearest = quick ? combination<type>(x, inverse) : exact_combination<type>(x, inverse);
        found.off_grid[group] = searches.add(grid, group, nearest.number, wanted[group], nearest.sure & moderate);
    }
    float scales[LANES];
    store(scales, scale);
    searches.run(grid, [&](int place) {
        const int lane = place % LANES, first = lane * type.size + place / LANES * type.group;
        return errors(values_of<type>(), c.magnitudes + first, c.roots + first, scales[lane]);
    });
    for (int group = 0; group < type.groups(); ++group) found.words[group] = load<Ints>(searches.words + group * LANES);
    return found;
}

// ---- the search ------------------------------------------------------------------------------

// Sums of w x v and w v^2 over each sub-block, v being the values of its points.
struct Projections {
    Floats xv, vv;
};

template <const Lattice &type>
static inline Projections projections(const Columns<type> &c, const Ints *words) {
    const auto values = values_of<type>();
    Projections sums{};
    for (int group = 0; group < type.groups(); ++group) {
        for (int i = 0; i < type.group; ++i) {
            const Floats value = values.look_up(i, words[group] >> 4 * i);
            const int weight = group * type.group + i;
            sums.xv += c.wx[weight] * value;
            sums.vv += c.w[weight] * value * value;
        }
    }
    return sums;
}

template <const Lattice &type> struct Fit {
    Floats scale;
    Points<type> points;
};

// Tries scales that put `start` a little below and above the highest level; keeps the best.
template <const Lattice &type>
static inline void try_scales(const Grid &grid, const Columns<type> &c, Floats start, Ints used, Fit<type> &best) {
    Floats gain{};
    Ints wanted[type.groups()];
    for (int group = 0; group < type.groups(); ++group) {
        best.points.words[group] = splat(grid.word[0]); // the lowest levels
        best.points.off_grid[group] = splat(type.last_round == LastRound::all ? -1 : 0);
        wanted[group] = used;
    }
    for (int trial = -type.trials; trial <= type.trials; ++trial) {
        const Floats inverse = (type.top() + trial * type.step) / start;
        const Points<type> tried = nearest_points(grid, c, inverse, 1.0f / inverse, wanted);
        const Projections sums = projections(c, tried.words);
        const Ints better = (sums.vv > 0.0f) & (sums.xv * sums.xv > gain * sums.vv);
        best.scale = select(better, sums.xv / sums.vv, best.scale);
        gain = select(better, best.scale * sums.xv, gain);
        for (int group = 0; group < type.groups(); ++group) {
            best.points.words[group] = select(better, tried.words[group], best.points.words[group]);
            best.points.off_grid[group] = select(better, tried.off_grid[group], best.points.off_grid[group]);
        }
    }
}

// Rounds groups once more, with the best scale, and fits the scale to what they are then.
template <const Lattice &type>
static inline void round_again(const Grid &grid, const Columns<type> &c, Ints used, Fit<type> &fit) {
    Ints any_off_grid{}, again[type.groups()];
    for (int group = 0; group < type.groups(); ++group) any_off_grid |= fit.points.off_grid[group];
    for (int group = 0; group < type.groups(); ++group) {
        const Ints chosen = type.last_round == LastRound::always ? splat(-1)
                            : type.last_round == LastRound::all  ? any_off_grid
                                                                 : fit.points.off_grid[group];
        again[group] = chosen & used & (fit.scale > 0.0f);
    }
    const Points<type> found = nearest_points(grid, c, 1.0f / fit.scale, fit.scale, again);
    Ints refitted{};
    for (int group = 0; group < type.groups(); ++group) {
        fit.points.words[group] = select(again[group], found.words[group], fit.points.words[group]);
        refitted |= again[group];
    }
    const Projections sums = projections(c, fit.points.words);
    fit.scale = select(refitted & (sums.vv > 0.0f), sums.xv / sums.vv, fit.scale);
}

// What is found for the sub-blocks of a batch, in the order of memory.
template <const Lattice &type> struct Found {
    static constexpr int COUNT = BATCH * type.sub_blocks();
    float scales[COUNT];
    uint32_t signs[COUNT]; // bit i: is weight i negative?
    bool empty[COUNT];     // then points, signs and scale are 0
    uint16_t points[COUNT][type.groups()];
};

template <const Lattice &type>
static inline void keep(const Grid &grid, const Columns<type> &c, const Fit<type> &fit, Ints used, int first,
                        Found<type> &found) {
    store(found.scales + first, select(used, abs(fit.scale), Floats{}));
    store(found.signs + first, select(fit.scale < 0.0f, ~c.signs, c.signs) & used);
    for (int lane = 0; lane < LANES; ++lane) found.empty[first + lane] = !used[lane];
    for (int group = 0; group < type.groups(); ++group) {
        const Ints points = points_of<type.group, type.n_levels>(grid, fit.points.words[group]) & used;
        for (int lane = 0; lane < LANES; ++lane) found.points[first + lane][group] = points[lane];
    }
}

template <const Lattice &type>
static inline void search(const Grid &grid, const float *x, const float *importance, int blocks, Found<type> &found) {
    const Floats means = mean_squares(x, type.mean_squares);
    for (int first = 0; first < blocks * type.sub_blocks(); first += LANES) {
        const int offset = first * type.size;
        Columns<type> c;
        set_columns(x + offset, importance ? importance + offset : nullptr,
                    spread<type.sub_blocks(), Floats>(means, first), c);
        Ints used = c.used;
        Fit<type> fit;
        Floats start = select(used, c.largest, splat(1.0f));
        if constexpr (type.searched) {
            Floats codes[type.size];
            fit.scale = positive_search<type.size, type.n_levels + 1>(c.x, c.w, codes);
            start = fit.scale * (float)type.n_levels;
            used &= ~(start <= 0.0f);
        } else {
            fit.scale = start / (float)type.top();
        }
        try_scales(grid, c, start, used, fit);
        round_again(grid, c, used, fit);
        keep(grid, c, fit, used, first, found);
    }
}

// ---- packing ---------------------------------------------------------------------------------

static inline void pack_pairs(const uint8_t *codes, int n, uint8_t *packed) {
    for (int j = 0; j < n / 2; ++j) packed[j] = codes[2 * j] | codes[2 * j + 1] << 4;
}

// Four times 7 signs and a 4-bit scale.
static inline uint32_t signs_and_scale(uint32_t signs, uint32_t code) {
    uint32_t word = code << 28;
    for (int k = 0; k < 4; ++k) word |= (signs >> 8 * k & 127) << 7 * k;
    return word;
}

// What a block stores.
template <const Lattice &type> struct Contents {
    uint16_t d;
    uint8_t scales[type.sub_blocks()];
    uint32_t signs[type.sub_blocks()]; // bit i: is weight i negative?
    uint16_t points[type.sub_blocks()][type.groups()];
};

// Each packs them into a block.

static inline void pack(const Contents<IQ2_XXS> &contents, BlockIQ2_XXS &out) {
    out.d = contents.d;
    for (int j = 0; j < 8; ++j) {
        const uint16_t *points = contents.points[j];
        const uint32_t words[2] = {points[0] | points[1] << 8 | points[2] << 16 | (uint32_t)points[3] << 24,
                                   signs_and_scale(contents.signs[j], contents.scales[j])};
        __builtin_memcpy(out.qs + 4 * j, words, sizeof words);
    }
}

static inline void pack(const Contents<IQ2_XS> &contents, BlockIQ2_XS &out) {
    out.d = contents.d;
    pack_pairs(contents.scales, 16, out.scales);
    for (int j = 0; j < 32; ++j)
        out.qs[j] = contents.points[j / 2][j % 2] | (contents.signs[j / 2] >> 8 * (j % 2) & 127) << 9;
}

static inline void pack(const Contents<IQ2_S> &contents, BlockIQ2_S &out) {
    out.d = contents.d;
    pack_pairs(contents.scales, 16, out.scales);
    for (int j = 0; j < 8; ++j) {
        out.qh[j] = 0;
        for (int k = 0; k < 4; ++k) {
            const int point = contents.points[2 * j + k / 2][k % 2];
            out.qs[4 * j + k] = (uint8_t)point;
            out.qs[32 + 4 * j + k] = (uint8_t)(contents.signs[2 * j + k / 2] >> 8 * (k % 2));
            out.qh[j] |= (point >> 8) << 2 * k;
        }
    }
}

static inline void pack(const Contents<IQ3_XXS> &contents, BlockIQ3_XXS &out) {
    out.d = contents.d;
    for (int j = 0; j < 8; ++j) {
        for (int k = 0; k < 8; ++k) out.qs[8 * j + k] = (uint8_t)contents.points[j][k];
        const uint32_t word = signs_and_scale(contents.signs[j], contents.scales[j]);
        __builtin_memcpy(out.qs + SUPER_BLOCK / 4 + 4 * j, &word, sizeof word);
    }
}

static inline void pack(const Contents<IQ3_S> &contents, BlockIQ3_S &out) {
    out.d = contents.d;
    pack_pairs(contents.scales, 8, out.scales);
    __builtin_memcpy(out.signs, contents.signs, sizeof out.signs);
    for (int j = 0; j < 8; ++j) {
        out.qh[j] = 0;
        for (int k = 0; k < 8; ++k) {
            out.qs[8 * j + k] = (uint8_t)contents.points[j][k];
            out.qh[j] |= (contents.points[j][k] >> 8) << k;
        }
    }
}

// Where a sub-block of IQ3_S is empty, those after it are stored one place too early, and are read wrongly: a mistake in
// ggml, kept for the same bytes. Ninth bits and scales stay in their place.
static inline void close_gaps(const bool *empty, BlockIQ3_S &out) {
    int place = 0;
    for (int j = 0; j < 8; ++j) {
        if (empty[j]) continue;
        __builtin_memmove(out.qs + 8 * place, out.qs + 8 * j, 8);
        __builtin_memmove(out.signs + 4 * place++, out.signs + 4 * j, 4);
    }
    __builtin_memset(out.qs + 8 * place, 0, 8 * (8 - place));
    __builtin_memset(out.signs + 4 * place, 0, 4 * (8 - place));
}

// Packs what was found for the sub-blocks from `first` on into a block that is all zero.
template <const Lattice &type, class Block>
static inline void pack_found(const Found<type> &found, int first, Block &out) {
    const BlockScale scale = scale_codes<type.sub_blocks(), 15>(found.scales + first);
    if (scale.empty && type.clears_empty) return;
    Contents<type> contents;
    contents.d = narrow_f16(scale.d * type.factor);
    __builtin_memcpy(contents.scales, scale.codes, sizeof contents.scales);
    __builtin_memcpy(contents.signs, found.signs + first, sizeof contents.signs);
    __builtin_memcpy(contents.points, found.points + first, sizeof contents.points);
    pack(contents, out);
    if constexpr (type.grid == GridName::IQ3_S) close_gaps(found.empty + first, out);
}

template <const Lattice &type, class Block>
static void quantize_weighted(const float *x, const float *importance, int64_t n_blocks, void *out) {
    const Grid &grid = *find_grid(type.grid);
    for_each_filled_group<BATCH, SUPER_BLOCK>(x, importance, n_blocks, (Block *)out,
                   [&](const float *x, const float *importance, Block *out, int blocks) {
                       Found<type> found;
                       search(grid, x, importance, blocks, found);
                       __builtin_memset(out, 0, sizeof(Block) * blocks);
                       for (int block = 0; block < blocks; ++block)
                           pack_found(found, block * type.sub_blocks(), out[block]);
                   });
}

template <const Lattice &type, class Block> static void quantize(const float *x, int64_t n_blocks, void *out) {
    quantize_weighted<type, Block>(x, nullptr, n_blocks, out);
}

// ---- and back --------------------------------------------------------------------------------

// Puts the eighth sign above seven, such that the number of minus signs is even.
static inline uint32_t with_even_sign(uint32_t seven) { return seven | (uint32_t)__builtin_parity(seven) << 7; }

static inline uint32_t with_even_signs(uint32_t sevens) {
    uint32_t signs = 0;
    for (int k = 0; k < 4; ++k) signs |= with_even_sign(sevens >> 7 * k & 127) << 8 * k;
    return signs;
}

// What 32 weights of a block stand for: points, signs (bit i: weight i), steps of their halves.
struct Part {
    uint16_t points[8]; // as many as there are groups
    uint32_t signs;
    float steps[2];
};

static inline float quarter_step(uint16_t d, int code) { return widen_f16(d) * (0.5f + code) * 0.25f; }

static inline Part unpack(const BlockIQ2_XXS &block, int j) {
    uint32_t words[2];
    __builtin_memcpy(words, block.qs + 4 * j, sizeof words);
    const float step = quarter_step(block.d, words[1] >> 28);
    Part part{{}, with_even_signs(words[1]), {step, step}};
    for (int k = 0; k < 4; ++k) part.points[k] = words[0] >> 8 * k & 255;
    return part;
}

static inline Part unpack(const BlockIQ2_XS &block, int j) {
    Part part{{}, 0, {quarter_step(block.d, block.scales[j] & 15), quarter_step(block.d, block.scales[j] >> 4)}};
    for (int k = 0; k < 4; ++k) {
        const uint16_t word = block.qs[4 * j + k];
        part.points[k] = word & 511;
        part.signs |= with_even_sign(word >> 9) << 8 * k;
    }
    return part;
}

static inline Part unpack(const BlockIQ2_S &block, int j) {
    Part part{{}, 0, {quarter_step(block.d, block.scales[j] & 15), quarter_step(block.d, block.scales[j] >> 4)}};
    __builtin_memcpy(&part.signs, block.qs + 32 + 4 * j, sizeof part.signs);
    for (int k = 0; k < 4; ++k) part.points[k] = block.qs[4 * j + k] | (block.qh[j] >> 2 * k & 3) << 8;
    return part;
}

static inline Part unpack(const BlockIQ3_XXS &block, int j) {
    uint32_t word;
    __builtin_memcpy(&word, block.qs + SUPER_BLOCK / 4 + 4 * j, sizeof word);
    const float step = widen_f16(block.d) * (0.5f + (word >> 28)) * 0.5f;
    Part part{{}, with_even_signs(word), {step, step}};
    for (int k = 0; k < 8; ++k) part.points[k] = block.qs[8 * j + k];
    return part;
}

static inline Part unpack(const BlockIQ3_S &block, int j) {
    const float step = widen_f16(block.d) * (1 + 2 * (block.scales[j / 2] >> 4 * (j % 2) & 15));
    Part part{{}, 0, {step, step}};
    __builtin_memcpy(&part.signs, block.signs + 4 * j, sizeof part.signs);
    for (int k = 0; k < 8; ++k) part.points[k] = block.qs[8 * j + k] | (block.qh[j] >> k & 1) << 8;
    return part;
}

template <const Lattice &type, class Block> static void dequantize(const void *data, int64_t n_blocks, float *x) {
    const Grid &grid = *find_grid(type.grid);
    const Block *blocks = (const Block *)data;
    for (int64_t i = 0; i < n_blocks; ++i)
        for (int j = 0; j < SUPER_BLOCK / 32; ++j, x += 32) {
            const Part part = unpack(blocks[i], j);
            int8_t values[32];
            for (int k = 0; k < 32 / type.group; ++k)
                __builtin_memcpy(values + k * type.group, grid.values + part.points[k] * type.group, type.group);
            for (int l = 0; l < 32; l += LANES) {
                const Ints minus = splat((int32_t)(part.signs >> l)) << (31 - lane_numbers()) & INT32_MIN;
                const Floats magnitude = part.steps[l / 16] * to_floats(load_signed_bytes(values + l));
                store(x + l, from_bits(bits(magnitude) ^ minus));
            }
        }
}

// ---- better scales ---------------------------------------------------------------------------

// The scales of the sub-blocks of a block, by their codes.

static inline void read_codes(const uint8_t *pairs, int n, float *codes) {
    for (int j = 0; j < n; ++j) codes[j] = pairs[j / 2] >> 4 * (j % 2) & 15;
}

static inline void read_codes(const BlockIQ2_S &block, float *codes) { read_codes(block.scales, 16, codes); }
static inline void read_codes(const BlockIQ2_XS &block, float *codes) { read_codes(block.scales, 16, codes); }
static inline void read_codes(const BlockIQ3_S &block, float *codes) { read_codes(block.scales, 8, codes); }
static inline void read_codes(const BlockIQ2_XXS &block, float *codes) {
    for (int j = 0; j < 8; ++j) codes[j] = block.qs[4 * j + 3] >> 12;
}
static inline void read_codes(const BlockIQ3_XXS &block, float *codes) {
    for (int j = 0; j < 8; ++j) codes[j] = block.qs[SUPER_BLOCK / 4 + 4 * j + 3] >> 4;
}

template <class Block> static void read(const void *block, Scales &scales) {
    scales.d = widen_f16(((const Block *)block)->d);
    read_codes(*(const Block *)block, scales.scale);
}

template <const Lattice &type, class Block> static void write(const Scales &scales, const uint8_t *codes, void *block) {
    const Grid &grid = *find_grid(type.grid);
    Contents<type> contents{narrow_f16(scales.d), {}, {}, {}};
    for (int j = 0; j < type.sub_blocks(); ++j, codes += type.size) {
        contents.scales[j] = (uint8_t)scales.scale[j];
        for (int i = 0; i < type.size; ++i) contents.signs[j] |= (uint32_t)(codes[i] / GRID_SIGN) << i;
        for (int k = 0; k < type.groups(); ++k)
            contents.points[j][k] = (uint16_t)point_of<type.group, type.n_levels>(grid, codes + k * type.group);
    }
    pack(contents, *(Block *)block);
}

template <const Lattice &type>
constexpr GridCodes GRID_CODES = {type.grid, type.group, type.n_levels,
                                  type.even_signs ? GridCodes::even_signs : GridCodes::signs};

template <const Lattice &type, class Block>
constexpr Format FORMAT = {
    .n_sub = type.sub_blocks(), .size = type.size, .bytes = sizeof(Block),
    .first = 0, .last = 0, .lowest_scale = 0, .highest_scale = 15, .lowest_minimum = 0,
    .counts = type.grid == GridName::IQ2_S ? Counts::square_and_mean : Counts::square,
    .mean = type.mean_squares == 1 ? Mean::of_block : Mean::twice_of_block,
    .read = read<Block>, .write = write<type, Block>,
    .first_reach = 4, .reach = 2, .scale_codes = ScaleCodes::odd,
    .unit = type.group == 8 ? 0.125f : type.grid == GridName::IQ3_XXS ? 0.25f : 1, .grid = &GRID_CODES<type>,
};

template <const Lattice &type, class Block> constexpr Quantizer quantizer() {
    return {type.needs_importance() ? nullptr : quantize<type, Block>, dequantize<type, Block>,
            quantize_weighted<type, Block>, &FORMAT<type, Block>};
}

} // namespace

const Quantizer quantizer_iq3_s = quantizer<IQ3_S, BlockIQ3_S>();
const Quantizer quantizer_iq3_xxs = quantizer<IQ3_XXS, BlockIQ3_XXS>();
const Quantizer quantizer_iq2_s = quantizer<IQ2_S, BlockIQ2_S>();
const Quantizer quantizer_iq2_xs = quantizer<IQ2_XS, BlockIQ2_XS>();
const Quantizer quantizer_iq2_xxs = quantizer<IQ2_XXS, BlockIQ2_XXS>();

} // namespace phi::PHI_ISA
