// What a block format can say, as far as a search for better scales needs to know.
// The same in NumPy, to read: phicourse/quantize/formats.py
#pragma once

#include "grids.hpp"

#include <cstdint>

namespace phi {

constexpr int MAX_SUB_BLOCKS = 16;

// All that a block stores except the codes of its weights. A reader computes d * scale * value + dmin * minimum.
struct Scales {
    float d, dmin;                 // as float16 keeps them; d is 1 where a format has none
    float scale[MAX_SUB_BLOCKS];   // codes of the scales, see ScaleCodes
    float minimum[MAX_SUB_BLOCKS]; // what the codes of the minima stand for
};

// What the codes of scales stand for.
enum class ScaleCodes {
    numbers,       // themselves
    odd,           // 2 code + 1, times the format's unit
    powers_of_two, // half of 2^(code - 127)
    small_floats,  // half of an unsigned 8-bit float
};

// How much an error counts for the type's own search, where no importance is known.
enum class Counts {
    equal,
    magnitude,
    square,
    magnitude_and_root, // magnitude of the weight, and root of the mean square of its sub-block
    square_and_mean,    // and a quarter of the `Mean`
};

// And where it is: importance * sqrt(mean square + x^2), or the importance alone.
enum class Mean { none, of_row, of_block, twice_of_block };

// Whether scales of the other sign are tried, too: where codes are uneven, one may fit better.
enum class Opposite { never, weighted, always };

// What the types with grids do differently. Their codes of weights are levels of the grid, plus GRID_SIGN where the
// weight is negative or, without signs, the group is shifted down.
struct GridCodes {
    GridName grid;
    int group, n_levels;
    enum { signs, even_signs, shifts_of_groups, shifts_of_sub_blocks } kind;
};

constexpr uint8_t GRID_SIGN = 128;

struct Format {
    int n_sub, size;                   // sub-blocks in a block, weights in each
    int64_t bytes;                     // of a block
    float first, last;                 // values of the lowest and the highest code
    float lowest_scale, highest_scale; // codes; 1 and 1 where a block has nothing but d
    float lowest_minimum;              // whole numbers from there to 0; 1 where dmin is all there is, 0 for none
    Counts counts;
    Mean mean;
    void (*read)(const void *block, Scales &scales);
    void (*write)(const Scales &scales, const uint8_t *codes, void *block); // codes in the order of the weights
    const float *levels = nullptr; // what 16 codes stand for, upwards; nullptr: whole numbers from first to last
    bool magnitudes = false;       // the type's own search, without importance, adds up magnitudes, not squares
    int first_reach = 2, reach = 2; // how far the codes of scales move at once without minima, the first time and later
    Opposite opposite = Opposite::never;
    ScaleCodes scale_codes = ScaleCodes::numbers;
    float unit = 1;                // of odd scales
    bool has_d = true;
    const GridCodes *grid = nullptr;

    int block() const { return n_sub * size; }
    bool is_alone() const { return lowest_scale == highest_scale; } // nothing to choose for a sub-block
    bool has_minima() const { return lowest_minimum != 0; }
};

} // namespace phi
