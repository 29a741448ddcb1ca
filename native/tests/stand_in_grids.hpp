// Grids for tests and benchmarks, which run without the gguf package: as large as the true ones, with points
// spread over all combinations of levels. They quantize worse, that is all.
#pragma once

#include "quantize/quantize.hpp"

#include <vector>

struct StandIn {
    phi::Type type;
    int n_points, group;
    std::vector<int8_t> levels; // what they stand for
    int step;                   // point i is the combination with number i * step, modulo all
};

inline const std::vector<StandIn> STAND_INS = {
    {phi::Type::IQ3_S, 512, 4, {1, 3, 5, 7, 9, 11, 13, 15}, 1001},
    {phi::Type::IQ3_XXS, 256, 4, {4, 12, 20, 28, 36, 44, 52, 62}, 1001},
    {phi::Type::IQ2_S, 1024, 8, {8, 25, 43}, 1000},
    {phi::Type::IQ2_XS, 512, 8, {8, 25, 43}, 1000},
    {phi::Type::IQ2_XXS, 256, 8, {8, 25, 43}, 1000},
    {phi::Type::IQ1_S, 2048, 8, {-1, 0, 1}, 1000}, // also the grid of IQ1_M
};

// [n_points][group]
inline std::vector<int8_t> points_of(const StandIn &grid) {
    const int n_levels = static_cast<int>(grid.levels.size());
    int all = 1;
    for (int i = 0; i < grid.group; ++i) all *= n_levels;
    std::vector<int8_t> points;
    for (int point = 0; point < grid.n_points; ++point)
        for (int i = 0, number = point * grid.step % all; i < grid.group; ++i, number /= n_levels)
            points.push_back(grid.levels[number % n_levels]);
    return points;
}

inline void set_stand_in_grids() {
    for (const StandIn &grid : STAND_INS) phi::set_grid(grid.type, points_of(grid).data(), grid.n_points, grid.group);
}

inline bool needs_importance(phi::Type type) {
    return type == phi::Type::IQ2_XS || type == phi::Type::IQ2_XXS || type == phi::Type::IQ1_S;
}
