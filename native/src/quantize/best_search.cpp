// A better choice of scales than llama.cpp's, in the same formats: `--search best`.
// From the blocks of the type's own quantizer on, scales are tried, and those kept that make both its own error
// and the plain squared error smaller. Lane: a block, for all formats; the order of the float operations is
// that of the NumPy version. To read, with the mathematics: phicourse/quantize/best_search.py
#include "../blocks.hpp"
#include "quantizers.hpp"
#include "scale_search.hpp"

namespace phi::PHI_ISA {

// ---- what is better --------------------------------------------------------------------------

// Of a block, or a sub-block. Float sums err by less than MARGIN of them, and by less than TINY where terms vanish.
struct Errors {
    Floats own, plain;
};

constexpr float MARGIN = 0x1p-14f, TINY = 0x1p-100f, LARGEST = 0x1p120f;

static inline Errors operator+(Errors a, Errors b) { return {a.own + b.own, a.plain + b.plain}; }
static inline Errors operator-(Errors a, Errors b) { return {a.own - b.own, a.plain - b.plain}; }
static inline Ints operator<=(Errors a, Errors b) { return (a.own <= b.own) & (a.plain <= b.plain); }
static inline Errors select(Ints mask, Errors yes, Errors no) {
    return {select(mask, yes.own, no.own), select(mask, yes.plain, no.plain)};
}
static inline Errors max(Errors a, Errors b) { return {max(a.own, b.own), max(a.plain, b.plain)}; }

// Up to here an error is surely smaller. Where it cannot be told, no error is.
static inline Floats limit(Floats error) {
    return select(error < LARGEST, error * (1.0f - MARGIN) - TINY, splat(-1.0f));
}

template <Judge judge> static inline void add(Errors &sum, Floats count, Floats difference) {
    const Floats square = difference * difference;
    sum.own += count * (judge == Judge::squares ? square : abs(difference));
    sum.plain += square;
}

namespace {

// ---- blocks side by side ---------------------------------------------------------------------

struct Columns {
    Floats x[SUPER_BLOCK];
    Floats counts[SUPER_BLOCK]; // how much an error counts for the type's own search, in units of the block's mean
    Ints counted;               // where any does
};

// The numbers of one block a lane: number i of each to columns[i].
static inline void load_blocks(const float *const *blocks, int size, Floats *columns) {
    for (int i = 0; i < size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) columns[i + lane] = load<Floats>(blocks[lane] + i);
        transpose(columns + i);
    }
}

static inline Floats sum_of_squares(const Floats *x, int n) {
    Floats sum{};
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

static inline void set_unweighted(const Format &format, Columns &c) {
    for (int first = 0; first < format.block(); first += format.size) {
        const Floats root = sqrt(sum_of_squares(c.x + first, format.size) / (float)format.size);
        for (int i = first; i < first + format.size; ++i) {
            switch (format.counts) {
            case Counts::equal: c.counts[i] = splat(1.0f); break;
            case Counts::magnitude: c.counts[i] = abs(c.x[i]); break;
            case Counts::square: c.counts[i] = c.x[i] * c.x[i]; break;
            case Counts::magnitude_and_root: c.counts[i] = root + abs(c.x[i]); break;
            }
        }
    }
}

// c.counts has the importance.
static inline void set_weighted(const Format &format, Floats mean_of_row, Columns &c) {
    if (format.mean == Mean::none) return;
    Floats mean = mean_of_row;
    if (format.mean != Mean::of_row) {
        const float factor = format.mean == Mean::of_block ? 1.0f : 2.0f;
        mean = factor * sum_of_squares(c.x, format.block()) / (float)format.block();
    }
    for (int i = 0; i < format.block(); ++i) c.counts[i] = c.counts[i] * sqrt(mean + c.x[i] * c.x[i]);
}

static inline void set_units(int n, Columns &c) {
    Floats sum{};
    for (int i = 0; i < n; ++i) sum += c.counts[i];
    c.counted = sum != 0.0f;
    const Floats unit = select(c.counted, (float)n / sum, Floats{});
    for (int i = 0; i < n; ++i) c.counts[i] = c.counts[i] * unit;
}

// ---- scales ----------------------------------------------------------------------------------

struct LaneScales {
    Floats d, dmin, scale[MAX_SUB_BLOCKS], minimum[MAX_SUB_BLOCKS];

    void take(Ints where, const LaneScales &other, int n_sub) {
        d = select(where, other.d, d);
        dmin = select(where, other.dmin, dmin);
        for (int j = 0; j < n_sub; ++j) {
            scale[j] = select(where, other.scale[j], scale[j]);
            minimum[j] = select(where, other.minimum[j], minimum[j]);
        }
    }

    void set(int lane, const Scales &scales, int n_sub) {
        d[lane] = scales.d;
        dmin[lane] = scales.dmin;
        for (int j = 0; j < n_sub; ++j) {
            scale[j][lane] = scales.scale[j];
            minimum[j][lane] = scales.minimum[j];
        }
    }

    Scales get(int lane, int n_sub) const {
        Scales scales{d[lane], dmin[lane], {}, {}};
        for (int j = 0; j < n_sub; ++j) {
            scales.scale[j] = scale[j][lane];
            scales.minimum[j] = minimum[j][lane];
        }
        return scales;
    }
};

static inline Floats as_float16(Floats v) { return widen_f16(narrow_f16(v)); }
static inline Floats reciprocal(Floats v) { return select(v != 0.0f, 1.0f / v, Floats{}); }
static inline Floats within(Floats v, float low, float high) { return min(max(v, splat(low)), splat(high)); }

// ---- codebooks: what the codes of weights stand for ------------------------------------------

struct Range {
    float first, last;

    explicit Range(const Format &format) : first(format.first), last(format.last) {}
    Floats value(Floats level) const { return within(round_even(level), first, last); }
    Ints code(Floats level) const { return truncate(value(level) - first); }
};

struct Table {
    const float *levels;
    float middles[15]; // from there on the upper one of two levels is nearer

    explicit Table(const Format &format) : levels(format.levels) {
        for (int k = 0; k < 15; ++k) middles[k] = (levels[k] + levels[k + 1]) / 2;
    }
    Floats value(Floats level) const {
        Floats nearest = splat(levels[0]);
        for (int k = 0; k < 15; ++k) nearest = select(level < middles[k], nearest, splat(levels[k + 1]));
        return nearest;
    }
    Ints code(Floats level) const {
        Ints code = splat(15);
        for (int k = 0; k < 15; ++k) code += level < middles[k]; // -1 where it is
        return code;
    }
};

// ---- the search ------------------------------------------------------------------------------

// Sub-blocks with minima start with d and their scales changed by these.
constexpr float FACTORS[] = {0.87f, 0.93f, 1.0f, 1.07f, 1.15f};
// Where d is all there is, the largest weight meets a number this many half levels beyond the last one; where there
// is a minimum, too, so much is cut off at either end.
constexpr int FIRST_CUT = -1, LAST_CUT = 2, FIRST_STRETCH = -2, LAST_STRETCH = 13;
constexpr int N_ROUNDS = 4;

// How the codes of the scale and the minimum of a sub-block move, that of the opposite scale if `opposite`.
struct Change {
    float scale, minimum;
    bool opposite;
};

// What to try for each sub-block.
struct Changes {
    static constexpr int MOST = 49;
    Change list[MOST];
    int n = 0;

    // How far codes move without minima: less where weights are whole numbers and scales are coarse, further where
    // scales have 8 bits; and how far those of scales and minima do together, the first time and later.
    static constexpr int REACH = 4, COARSE_REACH = 2, FINE_REACH = 7;
    static constexpr int FIRST_REACH = 1, REACH_WITH_MINIMA = 3;

    Changes(const Format &format, bool first) {
        if (format.is_alone()) return;
        if (format.has_minima()) {
            const int reach = first ? FIRST_REACH : REACH_WITH_MINIMA;
            for (int scale = -reach; scale <= reach; ++scale)
                for (int code = -reach; code <= reach; ++code) list[n++] = {(float)scale, -(float)code, false};
        } else {
            const bool is_fine = format.highest_scale - format.lowest_scale >= 64;
            const int reach = format.levels ? REACH : is_fine ? FINE_REACH : COARSE_REACH;
            for (int scale = -reach; scale <= reach; ++scale) list[n++] = {(float)scale, 0, false};
            if (first && format.levels && format.lowest_scale < 0) // they are uneven: the other sign may fit better
                for (int scale = -reach; scale <= reach; ++scale) list[n++] = {(float)scale, 0, true};
        }
    }

    // Beyond the end the last one, which does no harm again.
    const Change &operator[](int i) const { return list[i < n ? i : n - 1]; }
};

template <class Codebook, bool has_minima, Judge judge> class Search {
  public:
    // reference: errors of the blocks that the scales are from
    Search(const Format &format, const Columns &columns, Errors reference)
        : format_(format), book_(format), first_(format, true), later_(format, false), c_(columns),
          of_own_(reciprocal(reference.own)), of_plain_(reciprocal(reference.plain)), smallest_(cost(reference)) {
        limits_ = {select(c_.counted, limit(reference.own), Floats{}), limit(reference.plain)};
    }

    // Improves the scales of a block wherever it can.
    void run(LaneScales &scales) {
        const LaneScales reference = scales;
        if (format_.is_alone()) {
            start_alone(reference, scales);
        } else if constexpr (has_minima) {
            for (float factor : FACTORS) attempt(changed(reference, factor), first_, scales);
        } else {
            attempt(reference, first_, scales);
        }
        for (int round = 0; round < N_ROUNDS; ++round)
            if (!attempt(fitted(scales), later_, scales)) return;
    }

    // The codes of weight i of each block.
    Ints codes(const LaneScales &scales, int i) const {
        const int j = i / format_.size;
        return book_.code((c_.x[i] - offset(scales, j)) * reciprocal(step(scales, j)));
    }

    Ints within_limits(Errors errors) const { return errors <= limits_; }

  private:
    static constexpr int TRIALS = 3; // side by side

    Floats step(const LaneScales &scales, int j) const { return scales.d * scales.scale[j]; }
    Floats offset(const LaneScales &scales, int j) const {
        if constexpr (has_minima) return scales.dmin * scales.minimum[j];
        else return Floats{};
    }

    // What is minimized: each error in units of the reference's.
    Floats cost(Errors errors) const { return errors.own * of_own_ + errors.plain * of_plain_; }

    // Errors of a sub-block with the best codes for each of these scales.
    template <int n> void errors(int j, const Floats *steps, const Floats *offsets, Errors *sums) const {
        Floats inverse[n];
        for (int k = 0; k < n; ++k) {
            inverse[k] = reciprocal(steps[k]);
            sums[k] = Errors{};
        }
        for (int i = j * format_.size; i < (j + 1) * format_.size; ++i)
            for (int k = 0; k < n; ++k) {
                const Floats x = c_.x[i];
                if constexpr (has_minima) {
                    const Floats value = book_.value((x - offsets[k]) * inverse[k]);
                    add<judge>(sums[k], c_.counts[i], steps[k] * value + offsets[k] - x);
                } else {
                    add<judge>(sums[k], c_.counts[i], steps[k] * book_.value(x * inverse[k]) - x);
                }
            }
    }

    // Tries other scales, moved and with what a move makes of them; takes them where they are better than
    // all so far. Returns whether any are.
    bool attempt(LaneScales tried, const Changes &changes, LaneScales &best) {
        const Errors errors = move(tried, changes);
        const Ints better = (cost(errors) < smallest_) & (errors <= limits_);
        smallest_ = select(better, cost(errors), smallest_);
        best.take(better, tried, format_.n_sub);
        return any(better);
    }

    // Gives sub-block after sub-block the best scale nearby. Returns the errors of the blocks.
    Errors move(LaneScales &scales, const Changes &changes) const {
        Errors of_sub_blocks[MAX_SUB_BLOCKS], sum{};
        for (int j = 0; j < format_.n_sub; ++j) {
            const Floats its_step = step(scales, j), its_offset = offset(scales, j);
            errors<1>(j, &its_step, &its_offset, of_sub_blocks + j);
            sum = sum + of_sub_blocks[j];
        }
        if (changes.n == 0) return sum;
        for (int j = 0; j < format_.n_sub; ++j) sum = move_one(scales, j, changes, of_sub_blocks[j], sum);
        return sum;
    }

    // That of one sub-block: now it has these errors, and the block this sum. No error of the block gets larger
    // than it is and than it may be.
    Errors move_one(LaneScales &scales, int j, const Changes &changes, Errors now, Errors sum) const {
        const Errors highest = max(limits_, sum);
        const Floats scale = scales.scale[j], minimum = scales.minimum[j];
        Errors least = now;
        for (int first = 0; first < changes.n; first += TRIALS) {
            Floats tried[TRIALS], minima[TRIALS], steps[TRIALS], offsets[TRIALS];
            for (int k = 0; k < TRIALS; ++k) {
                const Change &change = changes[first + k];
                tried[k] = within((change.opposite ? -scale : scale) + change.scale, format_.lowest_scale,
                                  format_.highest_scale);
                minima[k] = within(minimum + change.minimum, format_.lowest_minimum, 0.0f);
                steps[k] = scales.d * tried[k];
                offsets[k] = scales.dmin * minima[k];
            }
            Errors found[TRIALS];
            errors<TRIALS>(j, steps, offsets, found);
            for (int k = 0; k < TRIALS; ++k) {
                const Ints better = (cost(found[k]) < cost(least)) & (sum + (found[k] - now) <= highest);
                least = select(better, found[k], least);
                scales.scale[j] = select(better, tried[k], scales.scale[j]);
                scales.minimum[j] = select(better, minima[k], scales.minimum[j]);
            }
        }
        return sum + (least - now);
    }

    // With all codes as they are, the d and dmin of least squares.
    LaneScales fitted(const LaneScales &scales) const {
        Floats ux{}, uu{}, uv{}, vv{}, vx{};
        for (int j = 0; j < format_.n_sub; ++j) {
            const Floats its_offset = offset(scales, j), inverse = reciprocal(step(scales, j));
            Floats xq{}, qq{}, q{}, one{}, x{}; // sums of w x value, w value^2, …
            for (int i = j * format_.size; i < (j + 1) * format_.size; ++i) {
                const Floats w = c_.counts[i] + 1.0f;
                const Floats value = book_.value((has_minima ? c_.x[i] - its_offset : c_.x[i]) * inverse);
                const Floats weighted = w * value;
                xq += weighted * c_.x[i];
                qq += weighted * value;
                if constexpr (has_minima) {
                    q += weighted;
                    one += w;
                    x += w * c_.x[i];
                }
            }
            const Floats scale = scales.scale[j], minimum = scales.minimum[j];
            ux += scale * xq;
            uu += scale * scale * qq;
            if constexpr (has_minima) {
                uv += scale * minimum * q;
                vv += minimum * minimum * one;
                vx += minimum * x;
            }
        }
        LaneScales fit = scales;
        if constexpr (has_minima) {
            const Floats determinant = uu * vv - uv * uv;
            const Ints solvable = determinant > 1e-6f * uu * vv;
            fit.d = as_float16(select(solvable, (ux * vv - vx * uv) / determinant, scales.d));
            fit.dmin = as_float16(select(solvable, (uu * vx - uv * ux) / determinant, scales.dmin));
        } else {
            fit.d = as_float16(ux / uu);
        }
        return fit;
    }

    // ---- starts ----

    LaneScales changed(LaneScales scales, float factor) const {
        scales.d = as_float16(scales.d * factor);
        for (int j = 0; j < format_.n_sub; ++j)
            scales.scale[j] = within(round_even(scales.scale[j] / factor), format_.lowest_scale, format_.highest_scale);
        return scales;
    }

    void start_alone(const LaneScales &reference, LaneScales &best) {
        LaneScales start = reference;
        if constexpr (has_minima) {
            const float n_steps = format_.last - format_.first;
            for (int low = FIRST_CUT; low <= LAST_CUT; ++low)
                for (int high = FIRST_CUT; high <= LAST_CUT; ++high) {
                    start.d = as_float16(reference.d * (1.0f - 0.5f * (low + high) / n_steps));
                    start.dmin = as_float16(reference.dmin + reference.d * (0.5f * low));
                    attempt(fitted(start), first_, best);
                }
        } else {
            const float gap = format_.levels ? format_.levels[1] - format_.levels[0] : 1.0f;
            for (int sign = 1; sign >= -1; sign -= 2)
                for (int beyond = FIRST_STRETCH; beyond <= LAST_STRETCH; ++beyond) {
                    const float factor = format_.first / (format_.first - 0.5f * beyond * gap);
                    start.d = as_float16(reference.d * (sign * factor));
                    attempt(fitted(start), first_, best);
                }
        }
    }

    const Format &format_;
    const Codebook book_;
    const Changes first_, later_;
    const Columns &c_;
    const Floats of_own_, of_plain_;
    Floats smallest_; // cost so far
    Errors limits_;
};

// ---- a group of blocks -----------------------------------------------------------------------

struct Group {
    const Quantizer &quantizer;
    Columns columns;
    int n_blocks;   // at most LANES; the lanes behind have the last one again
    uint8_t *blocks;

    const Format &format() const { return *quantizer.format; }
    uint8_t *block(int lane) const { return blocks + (lane < n_blocks ? lane : n_blocks - 1) * format().bytes; }
};

// What a reader of a lane's block sees, for all lanes.
template <class BlockOf> static inline void dequantize(const Group &group, BlockOf block_of, Floats *values) {
    float buffer[LANES * SUPER_BLOCK];
    const float *lanes[LANES];
    const int n = group.format().block();
    for (int lane = 0; lane < LANES; ++lane) {
        group.quantizer.dequantize(block_of(lane), 1, buffer + lane * n);
        lanes[lane] = buffer + lane * n;
    }
    load_blocks(lanes, n, values);
}

template <Judge judge, class BlockOf> static inline Errors errors_of(const Group &group, BlockOf block_of) {
    const Format &format = group.format();
    Floats values[SUPER_BLOCK];
    dequantize(group, block_of, values);
    Errors sum{};
    for (int j = 0; j < format.n_sub; ++j) {
        Errors of_sub_block{};
        for (int i = j * format.size; i < (j + 1) * format.size; ++i)
            add<judge>(of_sub_block, group.columns.counts[i], values[i] - group.columns.x[i]);
        sum = sum + of_sub_block;
    }
    return sum;
}

template <class Codebook, bool has_minima, Judge judge> static void improve_group(const Group &group) {
    const Format &format = group.format();
    const Errors reference = errors_of<judge>(group, [&](int lane) { return group.block(lane); });
    LaneScales scales{};
    for (int lane = 0; lane < LANES; ++lane) {
        Scales its{};
        format.read(group.block(lane), its);
        scales.set(lane, its, format.n_sub);
    }
    Search<Codebook, has_minima, judge> search(format, group.columns, reference);
    search.run(scales);

    uint8_t codes[SUPER_BLOCK][LANES];
    alignas(4) uint8_t found[LANES][sizeof(BlockQ6_K)]; // the largest
    for (int i = 0; i < format.block(); ++i) store_bytes(codes[i], search.codes(scales, i));
    for (int lane = 0; lane < LANES; ++lane) {
        uint8_t its_codes[SUPER_BLOCK];
        for (int i = 0; i < format.block(); ++i) its_codes[i] = codes[i][lane];
        __builtin_memset(found[lane], 0, format.bytes);
        format.write(scales.get(lane, format.n_sub), its_codes, found[lane]);
    }
    const Ints better = search.within_limits(errors_of<judge>(group, [&](int lane) { return found[lane]; }));
    for (int lane = 0; lane < group.n_blocks; ++lane)
        if (better[lane]) __builtin_memcpy(group.block(lane), found[lane], format.bytes);
}

static float mean_square(const float *row, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += row[i] * row[i];
    return sum / (float)n;
}

} // namespace

void improve(const Quantizer &quantizer, const float *x, const float *importance, int64_t n, int64_t n_blocks,
             void *blocks) {
    const Format &format = *quantizer.format;
    const int size = format.block();
    Group group{quantizer, {}, 0, (uint8_t *)blocks};
    Floats mean_of_row{};
    int64_t row = -1;
    float its_mean = 0;
    for (int64_t first = 0; first < n_blocks; first += LANES, group.blocks += LANES * format.bytes) {
        group.n_blocks = n_blocks - first < LANES ? (int)(n_blocks - first) : LANES;
        const float *weights[LANES], *columns[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t start = (first + (lane < group.n_blocks ? lane : group.n_blocks - 1)) * size;
            weights[lane] = x + start;
            columns[lane] = importance + start % n;
            if (importance && format.mean == Mean::of_row && row != start / n) {
                row = start / n;
                its_mean = mean_square(x + row * n, n);
            }
            mean_of_row[lane] = its_mean;
        }
        load_blocks(weights, size, group.columns.x);
        if (importance) {
            load_blocks(columns, size, group.columns.counts);
            set_weighted(format, mean_of_row, group.columns);
        } else {
            set_unweighted(format, group.columns);
        }
        set_units(size, group.columns);
        if (format.levels) improve_group<Table, false, Judge::squares>(group);
        else if (!format.has_minima()) improve_group<Range, false, Judge::squares>(group);
        else if (format.magnitudes && !importance) improve_group<Range, true, Judge::magnitudes>(group);
        else improve_group<Range, true, Judge::squares>(group);
    }
}

} // namespace phi::PHI_ISA
