// The point of a grid that is nearest to some weights, out of the list of those near their rounded levels.
// The error of every weight with every level goes into a table in registers; then LANES points at a time look
// theirs up and add them, weight after weight, as the reference adds: the same floats, the same winner.
#pragma once

#include "../lookup.hpp"
#include "grids.hpp"

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

// What levels stand for in a table, the same for each weight: 1, 3, 5, ...; with a shift -1, 0, 1 + shift.
template <int group, int entries> static inline Table<group, entries> odd_values() {
    Table<group, entries> table;
    for (int k = 0; k < table.SIZE; ++k)
        table.parts[k] = to_floats(2 * ((lane_numbers() + k * LANES) & (entries - 1)) + 1);
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

// Of the points near a combination, the one with the smallest error; the first of equals.
template <int group, int entries>
static inline int best_near(const Grid &grid, int combination, const Table<group, entries> &errors) {
    const int32_t start = grid.start[combination], length = grid.length[combination];
    Floats best = splat(__builtin_inff());
    Ints places{};
    for (int first = 0; first < length; first += LANES) {
        const Floats sum = sums(errors, load<Ints>(grid.near_words + start + first));
        places = select(sum < best, lane_numbers() + first, places);
        best = select(sum < best, sum, best);
    }
    unsigned winners = lane_bits(best == smallest(best));
    int place = length;
    for (; winners; winners &= winners - 1) {
        const int candidate = places[__builtin_ctz(winners)];
        place = candidate < place ? candidate : place;
    }
    return grid.near_points[start + place];
}

} // namespace phi::PHI_ISA
