// The point of a grid that is nearest to some weights, out of the list of those near their rounded levels.
// The error of every weight with every level goes into a table in registers; then LANES points at a time look
// theirs up and add them, weight after weight, as the reference adds: the same floats, the same winner.
#pragma once

#include "../lookup.hpp"
#include "format.hpp"

namespace phi::PHI_ISA {

// A table with `entries` places for each of `group` weights, as the words of a Grid number them.
template <int group, int entries> struct Table {
    static constexpr int SIZE = group * entries / LANES;
    static_assert(SIZE >= 1);
    Floats parts[SIZE];

    // What the place of weight i in each word has; the place is in the lowest bits.
    Floats look_up(int i, Ints place) const {
        if constexpr (entries <= LANES) return permute(parts[i * entries / LANES], place);
        else return select((place & LANES) != 0, permute(parts[2 * i + 1], place), permute(parts[2 * i], place));
    }
};

// What levels stand for, the same for each weight: first, first + step, first + 2 step, ...
template <int group, int entries> static inline Table<group, entries> evenly_spaced(float first, float step) {
    Table<group, entries> table;
    for (int k = 0; k < table.SIZE; ++k)
        table.parts[k] = first + step * to_floats((lane_numbers() + k * LANES) & (entries - 1));
    return table;
}

// A number for each weight of a group at all its places. Reads up to LANES - 1 numbers behind those.
template <int entries> static inline Floats spread(const float *numbers, int part) {
    return permute(load<Floats>(numbers + part * LANES / entries), lane_numbers() / entries);
}

// Table of w (scale * value - x)^2 for the weights x of a group.
template <int group, int entries>
static inline Table<group, entries> errors(const Table<group, entries> &values, const float *x, const float *w,
                                           float scale) {
    Table<group, entries> table;
    for (int k = 0; k < table.SIZE; ++k) {
        const Floats difference = scale * values.parts[k] - spread<entries>(x, k);
        table.parts[k] = spread<entries>(w, k) * difference * difference;
    }
    return table;
}

// Sums over the weights of each word's point, the first weight first.
template <int group, int entries> static inline Floats sums(const Table<group, entries> &table, Ints words) {
    Floats sum = table.look_up(0, words);
    for (int i = 1; i < group; ++i) sum += table.look_up(i, words >> 4 * i);
    return sum;
}

// The words of the points of a list -> the one with the smallest error; the first of equals.
template <int group, int entries>
static inline int32_t best_of_many(const int32_t *words, int length, const Table<group, entries> &errors) {
    Floats best = splat(__builtin_inff());
    Ints places{};
    for (int first = 0; first < length; first += LANES) {
        const Floats sum = sums(errors, load<Ints>(words + first));
        places = select(sum < best, lane_numbers() + first, places);
        best = min(sum, best);
    }
    int place = length;
    for (unsigned winners = lanes_equal(best, smallest(best)); winners; winners &= winners - 1) {
        const int candidate = places[__builtin_ctz(winners)];
        place = candidate < place ? candidate : place;
    }
    return words[place];
}

// ---- many searches ---------------------------------------------------------------------------

// Groups of sub-blocks whose points are to be found. Lane: sub-block; place: group * LANES + lane
template <int groups> struct Searches {
    static constexpr int COUNT = groups * LANES;
    int32_t numbers[COUNT], words[COUNT]; // at each place: the combination, and in the end the word of its point
    // Places to be searched: with a list that fits into a vector, with a longer one, with the full one.
    int32_t few[COUNT + LANES], many[COUNT + LANES], full[COUNT + LANES];
    int n_few = 0, n_many = 0, n_full = 0;

    // The combinations of a group. Where they are points, or not wanted, that is all.
    // sure: whether each level is the nearest to its weight, so that a list without the impossible will do
    // Returns where they are no points.
    Ints add(const Grid &grid, int group, Ints number, Ints wanted, Ints sure) {
        const Ints word = gather(grid.word, number), place = lane_numbers() + group * LANES;
        store(numbers + group * LANES, number);
        store(words + group * LANES, word);
        const Ints searched = (word >= 0) & wanted;
        const Ints fits = searched & sure & (word <= LANES), others = searched & ~fits;
        n_few += store_some(few + n_few, place, fits);
        if (any(others)) {
            n_many += store_some(many + n_many, place, others & sure);
            n_full += store_some(full + n_full, place, others & ~sure);
        }
        return word >= 0;
    }

    // Up to LANES searches whose lists fit into a vector. Their smallest errors are found together: to find one
    // alone takes steps that wait for each other.
    template <class ErrorsAt> void run_few(const Grid &grid, const int32_t *places, int count, ErrorsAt errors_at) {
        Floats error[LANES] = {};
        for (int i = 0; i < count; ++i) {
            const Ints list = load<Ints>(grid.near + grid.list[numbers[places[i]]]);
            error[i] = min(sums(errors_at(places[i]), list), splat(__builtin_inff())); // for what is no number
        }
        float smallest[LANES];
        store(smallest, smallest_of_each(error));
        for (int i = 0; i < count; ++i) {
            const int32_t *list = grid.near + grid.list[numbers[places[i]]];
            words[places[i]] = list[__builtin_ctz(lanes_equal(error[i], smallest[i]))];
        }
    }

    // errors_at(place): the table of errors
    template <class ErrorsAt> void run(const Grid &grid, ErrorsAt errors_at) {
        for (int first = 0; first < n_few; first += LANES)
            run_few(grid, few + first, n_few - first < LANES ? n_few - first : LANES, errors_at);
        for (int i = 0; i < n_many; ++i) {
            const int place = many[i], length = words[place];
            words[place] = best_of_many(grid.near + grid.list[numbers[place]], length, errors_at(place));
        }
        for (int i = 0; i < n_full; ++i) {
            const int place = full[i], number = numbers[place];
            words[place] = best_of_many(grid.near + grid.full[number], grid.full_length[number], errors_at(place));
        }
    }
};

// Which points words stand for.
template <int group, int n_levels> static inline Ints points_of(const Grid &grid, Ints words) {
    Ints number{};
    for (int i = group - 1; i >= 0; --i)
        number = number * n_levels + (words >> 4 * i & (entries_of(n_levels) - 1));
    return gather(grid.point, number);
}

// Which point the levels of a group are, their codes as in GridCodes.
template <int group, int n_levels> static inline int point_of(const Grid &grid, const uint8_t *codes) {
    int number = 0;
    for (int i = group - 1; i >= 0; --i) number = number * n_levels + codes[i] % GRID_SIGN;
    return grid.point[number];
}

} // namespace phi::PHI_ISA
