// The search for better scales of the types with grids: see best_search.cpp.
// A scale is judged with the best point for each group of weights: that of the nearest levels, or one near them.
// To read, with the mathematics: phicourse/quantize/codebooks.py
#include "best_search.hpp"
#include "grid_search.hpp"

namespace phi::PHI_ISA {
namespace {

constexpr int MAX_GROUPS = 8; // in a sub-block

// The groups of a block as the lists of near points want them, block after block, and room for a load behind the last.
struct InOrder {
    float x[LANES * SUPER_BLOCK + LANES], w[LANES * SUPER_BLOCK + LANES];

    void set(const Floats *columns, const Floats *weights) {
        store_columns<SUPER_BLOCK>(columns, x);
        store_columns<SUPER_BLOCK>(weights, w);
    }
};

// What an error of each weight costs.
static inline void set_weights(const Columns &c, Floats weight_of_own, Floats *w) {
    for (int i = 0; i < SUPER_BLOCK; ++i) w[i] = c.counts[i] * weight_of_own + 1.0f;
}

// Levels of a group, and the points for them.
template <int group, int n_levels> struct Levels {
    static constexpr int ENTRIES = entries_of(n_levels);
    const Grid &grid;
    const int size, groups; // of a sub-block
    float middles[n_levels - 1];
    Table<group, ENTRIES> values;

    explicit Levels(const Format &format)
        : grid(*find_grid(format.grid->grid)), size(format.size), groups(format.size / group) {
        for (int k = 0; k < n_levels - 1; ++k) middles[k] = (grid.levels[k] + grid.levels[k + 1]) / 2.0f;
        float all[LANES < ENTRIES ? ENTRIES : LANES] = {};
        for (int k = 0; k < LANES || k < ENTRIES; ++k) all[k] = k % ENTRIES < n_levels ? grid.levels[k % ENTRIES] : 0;
        for (int k = 0; k < values.SIZE; ++k) values.parts[k] = load<Floats>(all + k * LANES % ENTRIES);
    }

    // The combination of the nearest levels, and where no weight is so close to the middle between two that rounding
    // errors could make the other one nearer.
    Ints combination(const Floats *x, Floats inverse, Floats shift, Ints &sure) const {
        Floats number{}, closest = splat(1.0f);
        for (int i = group - 1; i >= 0; --i) {
            const Floats exact = x[i] * inverse - shift;
            Floats level = splat(n_levels - 1.0f);
            for (int k = 0; k < n_levels - 1; ++k) {
                const Floats above = exact - middles[k];
                level = level - select(above < 0.0f, splat(1.0f), Floats{});
                closest = min(abs(above), closest);
            }
            number = number * (float)n_levels + level;
        }
        sure = closest > 1e-3f;
        return truncate(number);
    }

    // The points of the groups of sub-block j: x are its weights in columns, `in_order` those of the whole blocks.
    void nearest(int j, const Floats *x, const InOrder &in_order, Floats scale, float shift, Ints *words) const {
        const Ints moderate = (scale > 1e-30f) & (scale < 1e30f); // errors keep their relative precision
        const Floats inverse = reciprocal(scale);
        Searches<MAX_GROUPS> searches;
        for (int g = 0; g < groups; ++g) {
            Ints sure;
            const Ints number = combination(x + j * size + g * group, inverse, splat(shift), sure);
            searches.add(grid, g, number, splat(-1), sure & moderate);
        }
        float scales[LANES];
        store(scales, scale);
        Table<group, ENTRIES> shifted = values;
        for (int k = 0; k < values.SIZE; ++k) shifted.parts[k] = values.parts[k] + shift;
        searches.run(grid, [&](int place) {
            const int lane = place % LANES, first = lane * SUPER_BLOCK + j * size + place / LANES * group;
            return errors(shifted, in_order.x + first, in_order.w + first, scales[lane]);
        });
        for (int g = 0; g < groups; ++g) words[g] = load<Ints>(searches.words + g * LANES);
    }

    Ints level(int i, Ints word) const { return word >> 4 * i & (ENTRIES - 1); }
};

// ---- signs apart -----------------------------------------------------------------------------

// Which of 8 weights takes the wrong sign, so that the number of minus signs is even: the one whose error costs least,
// the first of equals. -1 where the number is even.
static inline Ints cheapest_where_odd(const Floats *x, const Floats *w) {
    Floats least = w[0] * abs(x[0]);
    Ints cheapest{}, odd = x[0] < 0.0f;
    for (int i = 1; i < 8; ++i) {
        const Floats cost = w[i] * abs(x[i]);
        cheapest = select(cost < least, splat(i), cheapest);
        least = min(cost, least);
        odd ^= x[i] < 0.0f;
    }
    return cheapest | ~odd;
}

// Magnitudes are on a grid. Where a weight takes the wrong sign, its magnitude is negative.
template <int group, int n_levels> class SignedGrid {
  public:
    static constexpr int TRIALS = 1;
    struct Rounded {
        const SignedGrid &book;
        int first; // weight of the sub-block
        Ints words[MAX_GROUPS];

        Ints word(int i) const { return words[(i - first) / group]; }
        Floats value(int i) const {
            const Floats magnitude = book.levels_.values.look_up(i % group, word(i) >> 4 * (i % group));
            return from_bits(bits(magnitude) ^ book.sign(i));
        }
        Ints code(int i) const {
            return book.levels_.level(i % group, word(i)) | (book.signs_[i] & splat((int32_t)GRID_SIGN));
        }
    };

    SignedGrid(const Format &format, const Columns &c, Floats weight_of_own) : levels_(format), unit_(format.unit) {
        Floats w[SUPER_BLOCK];
        set_weights(c, weight_of_own, w);
        const bool even = format.grid->kind == GridCodes::even_signs;
        for (int first = 0; first < SUPER_BLOCK; first += 8) {
            const Ints wrong = even ? cheapest_where_odd(c.x + first, w + first) : splat(-1);
            for (int i = first; i < first + 8; ++i) {
                const Ints negative = (c.x[i] < 0.0f) ^ (wrong == i - first);
                signs_[i] = negative;
                magnitudes_[i] = select(negative, -c.x[i], c.x[i]);
            }
        }
        in_order_.set(magnitudes_, w);
    }

    Floats scale(Floats code) const { return (2.0f * code + 1.0f) * unit_; }

    Rounded round(int j, Floats step, Floats) const {
        Rounded rounded{*this, j * levels_.size, {}};
        levels_.nearest(j, magnitudes_, in_order_, step, 0, rounded.words);
        return rounded;
    }

  private:
    Ints sign(int i) const { return signs_[i] & INT32_MIN; }

    const Levels<group, n_levels> levels_;
    const float unit_;
    Floats magnitudes_[SUPER_BLOCK];
    Ints signs_[SUPER_BLOCK];
    InOrder in_order_;
};

// ---- shifted up or down ----------------------------------------------------------------------

constexpr float DELTA = 0.125f;

// Weights with their signs are on a grid; all values of a group, or of a sub-block, are shifted up or down.
class ShiftedGrid {
    static constexpr int GROUP = 8;

  public:
    static constexpr int TRIALS = 1;
    struct Rounded {
        const ShiftedGrid &book;
        int first;
        Ints words[MAX_GROUPS], down[MAX_GROUPS];

        int group(int i) const { return (i - first) / GROUP; }
        Floats value(int i) const {
            const Ints word = words[group(i)];
            const Floats shift = select(down[group(i)], splat(-DELTA), splat(DELTA));
            return book.levels_.values.look_up(i % GROUP, word >> 4 * (i % GROUP)) + shift;
        }
        Ints code(int i) const {
            return book.levels_.level(i % GROUP, words[group(i)]) | (down[group(i)] & splat((int32_t)GRID_SIGN));
        }
    };

    ShiftedGrid(const Format &format, const Columns &c, Floats weight_of_own)
        : levels_(format), shared_(format.grid->kind == GridCodes::shifts_of_sub_blocks), x_(c.x) {
        set_weights(c, weight_of_own, w_);
        in_order_.set(c.x, w_);
    }

    Floats scale(Floats code) const { return 2.0f * code + 1.0f; }

    Rounded round(int j, Floats step, Floats) const {
        Rounded rounded{*this, j * levels_.size, {}, {}};
        Ints down[MAX_GROUPS];
        Floats error[MAX_GROUPS], error_down[MAX_GROUPS];
        nearest(j, step, DELTA, rounded.words, error);
        nearest(j, step, -DELTA, down, error_down);
        if (shared_) {
            Floats sum{}, sum_down{};
            for (int g = 0; g < levels_.groups; ++g) {
                sum += error[g];
                sum_down += error_down[g];
            }
            for (int g = 0; g < levels_.groups; ++g) {
                error[g] = sum;
                error_down[g] = sum_down;
            }
        }
        for (int g = 0; g < levels_.groups; ++g) {
            rounded.down[g] = error_down[g] < error[g];
            rounded.words[g] = select(rounded.down[g], down[g], rounded.words[g]);
        }
        return rounded;
    }

  private:
    // The points with this shift, and the errors of the groups.
    void nearest(int j, Floats step, float shift, Ints *words, Floats *errors) const {
        levels_.nearest(j, x_, in_order_, step, shift, words);
        for (int g = 0; g < levels_.groups; ++g) {
            errors[g] = Floats{};
            for (int k = 0; k < GROUP; ++k) {
                const int i = j * levels_.size + g * GROUP + k;
                const Floats value = levels_.values.look_up(k, words[g] >> 4 * k) + shift;
                const Floats difference = step * value - x_[i];
                errors[g] += w_[i] * difference * difference;
            }
        }
    }

    const Levels<GROUP, 3> levels_;
    const bool shared_;
    const Floats *x_;
    Floats w_[SUPER_BLOCK];
    InOrder in_order_;
};

} // namespace

void improve_group_on_grid(const Group &group) {
    const GridCodes &grid = *group.format().grid;
    if (grid.kind > GridCodes::even_signs) improve_group<ShiftedGrid, false, Judge::squares>(group);
    else if (grid.group == 4) improve_group<SignedGrid<4, 8>, false, Judge::squares>(group);
    else improve_group<SignedGrid<8, 3>, false, Judge::squares>(group);
}

} // namespace phi::PHI_ISA
