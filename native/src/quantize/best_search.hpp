// The search for better scales, for all codebooks: see best_search.cpp, which has those of single weights, and
// best_grids.cpp. Lane: a block.
#pragma once

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

// ---- blocks side by side ---------------------------------------------------------------------

struct Columns {
    Floats x[SUPER_BLOCK];
    Floats counts[SUPER_BLOCK]; // how much an error counts for the type's own search, in units of the block's mean
    Ints counted;               // where any does
    bool weighted;              // whether importance is known
};

// The numbers of one block a lane: number i of each to columns[i].
static inline void load_blocks(const float *const *blocks, int size, Floats *columns) {
    for (int i = 0; i < size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) columns[i + lane] = load<Floats>(blocks[lane] + i);
        transpose(columns + i);
    }
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

// ---- the search ------------------------------------------------------------------------------

// Sub-blocks with minima start with d and their scales changed by these.
constexpr float FACTORS[] = {0.87f, 0.93f, 1.0f, 1.07f, 1.15f};
// Where d is all there is, the largest weight meets a number this many half levels beyond the last one; where there
// is a minimum, too, so much is cut off at either end.
constexpr int FIRST_CUT = -1, LAST_CUT = 2, FIRST_STRETCH = -2, LAST_STRETCH = 13;
constexpr int N_ROUNDS = 4;
// What the type's own error counts, where the plain one counts 1, each in units of the reference's; and how much more one
// of them does where it is beyond its limit.
constexpr float OWN_WEIGHT = 1.5f, SHIFT = 2;

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

    // How far codes of scales and minima move together, the first time and later.
    static constexpr int FIRST_REACH = 1, REACH_WITH_MINIMA = 3;

    // weighted: whether importance is known
    Changes(const Format &format, bool first, bool weighted) {
        if (format.is_alone()) return;
        if (format.has_minima()) {
            const int reach = first ? FIRST_REACH : REACH_WITH_MINIMA;
            for (int scale = -reach; scale <= reach; ++scale)
                for (int code = -reach; code <= reach; ++code) list[n++] = {(float)scale, -(float)code, false};
        } else {
            const int reach = first ? format.first_reach : format.reach;
            for (int scale = -reach; scale <= reach; ++scale) list[n++] = {(float)scale, 0, false};
            if (first && (format.opposite == Opposite::always || (format.opposite == Opposite::weighted && weighted)))
                for (int scale = -reach; scale <= reach; ++scale) list[n++] = {(float)scale, 0, true};
        }
    }

    // Beyond the end the last one, which does no harm again.
    const Change &operator[](int i) const { return list[i < n ? i : n - 1]; }
};

// A codebook rounds the weights of a sub-block: round(j, step, offset).value(i) is what the best code of weight i
// stands for, and code(i) that code, for weights i of sub-block j. scale(code) is what the code of a scale stands for.
template <class Codebook, bool has_minima, Judge judge> class Search {
  public:
    // reference: errors of the blocks that the scales are from
    Search(const Format &format, const Columns &columns, Errors reference)
        : format_(format), unit_(OWN_WEIGHT * (reference.plain * reciprocal(reference.own))), c_(columns),
          book_(format, columns, unit_), first_(format, true, columns.weighted),
          later_(format, false, columns.weighted), weight_(unit_), smallest_(cost(reference, unit_)), lowest_(splat(__builtin_inff())) {
        limits_ = {select(c_.counted, limit(reference.own), Floats{}), limit(reference.plain)};
    }

    // Improves the scales of a block wherever it can.
    void run(LaneScales &scales) {
        const LaneScales reference = scales;
        LaneScales current = scales;
        if (format_.is_alone()) {
            start_alone(reference, current, scales);
        } else if constexpr (has_minima) {
            for (float factor : FACTORS) attempt(changed(reference, factor), first_, current, scales);
        } else {
            attempt(reference, first_, current, scales);
        }
        if (!format_.has_d) return;
        for (int round = 0; round < N_ROUNDS; ++round) {
            const Ints own = errors_.own > limits_.own, plain = errors_.plain > limits_.plain;
            weight_ = select(own & ~plain, weight_ * SHIFT, select(plain & ~own, weight_ / SHIFT, weight_));
            lowest_ = select(own ^ plain, splat(__builtin_inff()), lowest_);
            const bool lower = attempt(fitted(current), later_, current, scales);
            if (!lower && !any(own ^ plain)) return;
        }
    }

    // The codes of all weights: weight i of each block to codes[i].
    void round(const LaneScales &scales, uint8_t (*codes)[LANES]) const {
        for (int j = 0; j < format_.n_sub; ++j) {
            const auto rounded = book_.round(j, step(scales, j), offset(scales, j));
            for (int i = j * format_.size; i < (j + 1) * format_.size; ++i) store_bytes(codes[i], rounded.code(i));
        }
    }

    Ints within_limits(Errors errors) const { return errors <= limits_; }

  private:
    Floats step(const LaneScales &scales, int j) const { return scales.d * book_.scale(scales.scale[j]); }
    Floats offset(const LaneScales &scales, int j) const {
        if constexpr (has_minima) return scales.dmin * scales.minimum[j];
        else return Floats{};
    }

    // What is minimized: the sum of both errors.
    Floats cost(Errors errors, Floats weight) const { return errors.own * weight + errors.plain; }

    // Errors of a sub-block with the best codes for each of these scales.
    template <int n> void errors(int j, const Floats *steps, const Floats *offsets, Errors *sums) const {
        for (int k = 0; k < n; ++k) sums[k] = Errors{};
        round_all(j, steps, offsets, [&](const auto *rounded) {
            for (int i = j * format_.size; i < (j + 1) * format_.size; ++i)
                for (int k = 0; k < n; ++k) {
                    const Floats value = steps[k] * rounded[k].value(i);
                    add<judge>(sums[k], c_.counts[i], (has_minima ? value + offsets[k] : value) - c_.x[i]);
                }
        }, std::make_integer_sequence<int, n>());
    }

    template <class Use, int... k>
    void round_all(int j, const Floats *steps, const Floats *offsets, Use use, std::integer_sequence<int, k...>) const {
        const typename Codebook::Rounded rounded[] = {book_.round(j, steps[k], offsets[k])...};
        use(rounded);
    }

    // Tries other scales, and what a move makes of them; takes them where they are better than all so far. Where their
    // cost is lower than that of all so far, within the limits or not, the search goes on from there. Returns whether it
    // is anywhere.
    bool attempt(LaneScales tried, const Changes &changes, LaneScales &current, LaneScales &best) {
        const Errors errors = move(tried, changes);
        const Floats its_cost = cost(errors, unit_);
        const Ints lower = its_cost < lowest_, better = (its_cost < smallest_) & (errors <= limits_);
        lowest_ = select(lower, its_cost, lowest_);
        errors_ = select(lower, errors, errors_);
        current.take(lower, tried, format_.n_sub);
        smallest_ = select(better, its_cost, smallest_);
        best.take(better, tried, format_.n_sub);
        return any(lower);
    }

    // Gives each sub-block the best scale nearby. Returns the errors of the blocks.
    Errors move(LaneScales &scales, const Changes &changes) const {
        Errors sum{};
        for (int j = 0; j < format_.n_sub; ++j) sum = sum + move_one(scales, j, changes);
        return sum;
    }

    Errors move_one(LaneScales &scales, int j, const Changes &changes) const {
        Errors least;
        if (changes.n == 0) {
            const Floats its_step = step(scales, j), its_offset = offset(scales, j);
            errors<1>(j, &its_step, &its_offset, &least);
            return least;
        }
        constexpr int TRIALS = Codebook::TRIALS;
        const Floats scale = scales.scale[j], minimum = scales.minimum[j];
        Floats least_cost = splat(__builtin_inff());
        least = {least_cost, least_cost};
        for (int first = 0; first < changes.n; first += TRIALS) {
            Floats tried[TRIALS], minima[TRIALS], steps[TRIALS], offsets[TRIALS];
            for (int k = 0; k < TRIALS; ++k) {
                const Change &change = changes[first + k];
                tried[k] = within((change.opposite ? -scale : scale) + change.scale, format_.lowest_scale,
                                  format_.highest_scale);
                minima[k] = within(minimum + change.minimum, format_.lowest_minimum, 0.0f);
                steps[k] = scales.d * book_.scale(tried[k]);
                offsets[k] = scales.dmin * minima[k];
            }
            Errors found[TRIALS];
            errors<TRIALS>(j, steps, offsets, found);
            for (int k = 0; k < TRIALS; ++k) {
                const Floats its_cost = cost(found[k], weight_);
                const Ints better = its_cost < least_cost;
                least_cost = select(better, its_cost, least_cost);
                least = select(better, found[k], least);
                scales.scale[j] = select(better, tried[k], scales.scale[j]);
                scales.minimum[j] = select(better, minima[k], scales.minimum[j]);
            }
        }
        return least;
    }

    // With all codes as they are, the d and dmin of least squares.
    LaneScales fitted(const LaneScales &scales) const {
        const Floats its_weight = judge == Judge::magnitudes ? splat(1.0f) : weight_; // magnitudes are no squares
        Floats ux{}, uu{}, uv{}, vv{}, vx{};
        for (int j = 0; j < format_.n_sub; ++j) {
            const auto rounded = book_.round(j, step(scales, j), offset(scales, j));
            Floats xq{}, qq{}, q{}, one{}, x{}; // sums of w x value, w value^2, …
            for (int i = j * format_.size; i < (j + 1) * format_.size; ++i) {
                const Floats w = c_.counts[i] * its_weight + 1.0f, value = rounded.value(i), weighted = w * value;
                xq += weighted * c_.x[i];
                qq += weighted * value;
                if constexpr (has_minima) {
                    q += weighted;
                    one += w;
                    x += w * c_.x[i];
                }
            }
            const Floats scale = book_.scale(scales.scale[j]), minimum = scales.minimum[j];
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

    void start_alone(const LaneScales &reference, LaneScales &current, LaneScales &best) {
        LaneScales start = reference;
        if constexpr (has_minima) {
            const float n_steps = format_.last - format_.first;
            for (int low = FIRST_CUT; low <= LAST_CUT; ++low)
                for (int high = FIRST_CUT; high <= LAST_CUT; ++high) {
                    start.d = as_float16(reference.d * (1.0f - 0.5f * (low + high) / n_steps));
                    start.dmin = as_float16(reference.dmin + reference.d * (0.5f * low));
                    attempt(fitted(start), first_, current, best);
                }
        } else {
            const float gap = format_.levels ? format_.levels[1] - format_.levels[0] : 1.0f;
            for (int sign = 1; sign >= -1; sign -= 2)
                for (int beyond = FIRST_STRETCH; beyond <= LAST_STRETCH; ++beyond) {
                    const float factor = format_.first / (format_.first - 0.5f * beyond * gap);
                    start.d = as_float16(reference.d * (sign * factor));
                    attempt(fitted(start), first_, current, best);
                }
        }
    }

    const Format &format_;
    const Floats unit_; // what an own error counts, where a plain one counts 1
    const Columns &c_;
    const Codebook book_;
    const Changes first_, later_;
    Floats weight_;   // what it counts in moves
    Floats smallest_; // cost so far
    Floats lowest_;   // the same without limits, and the errors there
    Errors errors_{};
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
    search.round(scales, codes);
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

// best_grids.cpp: for the types with grids
void improve_group_on_grid(const Group &group);

} // namespace phi::PHI_ISA
