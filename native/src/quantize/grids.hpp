// The grids of the i-quants: few combinations of levels, chosen so that 4 or 8 weights are one index.
// They are read out of the gguf package, see phicourse/quantize/grids.py, and handed over at run time.
#pragma once

#include <cstdint>

namespace phi {

enum class GridName { IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_S };

// A combination of levels l0, l1, ... has the number l0 + n_levels l1 + n_levels^2 l2 + ...
// Its word has four bits for each level, the first lowest: the place of level l of weight i in a table with
// `entries` places for each weight, i * entries + l modulo 16. The highest bit is set: words are negative.
//
// The reference takes the best of all points in the nearest shells around a combination. Many of them can never
// be that: another point is nearer in some levels and the same in the others. Lists leave those out. That holds
// where no other level is nearer to a weight than the combination's own; else the full list is needed.
struct Grid {
    const int8_t *values; // [n_points][group] what a reader multiplies with the scale; group: 4 or 8 weights
    int32_t first_word;   // of point 0
    // [n_levels^group]
    const int32_t *point; // which point the combination is, or -1
    const int32_t *word;  // its word if it is a point, or the length of its list
    const int32_t *list;  // where its list starts
    const int32_t *full;  // where the full list starts
    const int32_t *full_length;
    // lists of the words of points near a combination, by distance, then by index
    const int32_t *near;
    // [n_points] the points in 16 bits: the number of each weight's level, the first lowest; and what the levels are
    const uint16_t *numbers;
    int8_t levels[16];
};

// Places in a table for each weight: the levels, rounded up to a power of two.
constexpr int entries_of(int n_levels) { return n_levels <= 4 ? 4 : 8; }

// Lists start at multiples of this, and the last point is repeated up to there: any vector can load them.
constexpr int NEAR_STRIDE = 16;

// nullptr where it has not been set
const Grid *find_grid(GridName name);

// values: [n_points][group]. Finds the neighbours of all combinations that are no points. Threads may call this
// at the same time; the same points again change nothing. Throws std::invalid_argument where the values cannot
// be this grid, or where it has been set to other ones.
void set_grid(GridName name, const int8_t *values, int64_t n_points, int64_t group);

} // namespace phi
