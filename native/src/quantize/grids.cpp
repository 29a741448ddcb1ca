#include "grids.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace phi {

namespace {

struct Shape {
    const char *name;
    int n_points, group, n_levels;
    int shells; // how many different distances count as near
};

constexpr std::array<Shape, 6> SHAPES = {{
    {"IQ3_S", 512, 4, 8, 3},
    {"IQ3_XXS", 256, 4, 8, 2},
    {"IQ2_S", 1024, 8, 3, 1},
    {"IQ2_XS", 512, 8, 3, 2},
    {"IQ2_XXS", 256, 8, 3, 2},
    {"IQ1_S", 2048, 8, 3, 3},
}};

using Levels = std::array<int, 8>; // as many as the group has, zeros behind them

struct Storage {
    std::vector<int8_t> values;
    std::vector<uint16_t> numbers;
    std::vector<int32_t> point, word, list, full, full_length, near;
    Grid grid;
};

std::array<std::unique_ptr<Storage>, SHAPES.size()> storages;
std::array<std::atomic<const Grid *>, SHAPES.size()> grids;
std::mutex setting;

} // namespace

[[noreturn]] static void refuse(const Shape &shape, const std::string &why) {
    throw std::invalid_argument("the grid of " + std::string(shape.name) + " " + why);
}

// ---- levels ----------------------------------------------------------------------------------

// What the levels stand for: the different values, from the lowest up.
static std::vector<int8_t> different_values(const Shape &shape, const std::vector<int8_t> &values) {
    std::vector<int8_t> different = values;
    std::sort(different.begin(), different.end());
    different.erase(std::unique(different.begin(), different.end()), different.end());
    if (different.size() != static_cast<size_t>(shape.n_levels))
        refuse(shape, "has " + std::to_string(shape.n_levels) + " different values, got " +
                          std::to_string(different.size()));
    return different;
}

// The levels of each point: how many of the different values are smaller than its own.
static std::vector<Levels> levels_of(const Shape &shape, const std::vector<int8_t> &values,
                                     const std::vector<int8_t> &different) {
    std::vector<Levels> points(shape.n_points);
    for (size_t i = 0; i < values.size(); ++i) {
        const auto place = std::lower_bound(different.begin(), different.end(), values[i]);
        points[i / shape.group][i % shape.group] = static_cast<int>(place - different.begin());
    }
    return points;
}

static int combinations(const Shape &shape) {
    int count = 1;
    for (int i = 0; i < shape.group; ++i) count *= shape.n_levels;
    return count;
}

static int number_of(const Shape &shape, const Levels &levels) {
    int number = 0;
    for (int i = shape.group - 1; i >= 0; --i) number = number * shape.n_levels + levels[i];
    return number;
}

static Levels levels_of_number(const Shape &shape, int number) {
    Levels levels{};
    for (int i = 0; i < shape.group; ++i, number /= shape.n_levels) levels[i] = number % shape.n_levels;
    return levels;
}

static int32_t word_of(const Shape &shape, const Levels &levels) {
    uint32_t word = 1u << 31;
    for (int i = 0; i < shape.group; ++i)
        word |= ((i * entries_of(shape.n_levels) + levels[i]) % 16u) << 4 * i;
    return static_cast<int32_t>(word);
}

static uint16_t numbers_of(const Shape &shape, const Levels &levels) {
    unsigned numbers = 0;
    for (int i = 0; i < shape.group; ++i) numbers |= static_cast<unsigned>(levels[i]) << 16 / shape.group * i;
    return static_cast<uint16_t>(numbers);
}

// ---- neighbours ------------------------------------------------------------------------------

static int distance(const Levels &a, const Levels &b) {
    int sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

// The points in the nearest shells, by distance, then by index.
static std::vector<int> near(const Shape &shape, const std::vector<Levels> &points, const Levels &levels) {
    std::vector<std::vector<int>> at(distance({}, {7, 7, 7, 7}) + 1); // the largest distance there can be
    for (int i = 0; i < shape.n_points; ++i) at[distance(points[i], levels)].push_back(i);
    std::vector<int> found;
    for (int shells = 0; const std::vector<int> &shell : at) {
        if (shell.empty()) continue;
        found.insert(found.end(), shell.begin(), shell.end());
        if (++shells == shape.shells) break;
    }
    return found;
}

// Is each level of `a` that differs from that of `b` nearer to the combination's, on the same side of it?
static bool rules_out(const Levels &a, const Levels &b, const Levels &levels) {
    for (size_t i = 0; i < levels.size(); ++i) {
        const int from_a = a[i] - levels[i], from_b = b[i] - levels[i];
        if (from_a != from_b && (std::abs(from_a) >= std::abs(from_b) || from_a * from_b < 0)) return false;
    }
    return true;
}

// Those that no other of them rules out. They are sorted by distance: who rules out comes first.
static std::vector<int> possible(const std::vector<int> &near, const std::vector<Levels> &points,
                                 const Levels &levels) {
    std::vector<int> kept;
    for (int b : near)
        if (std::none_of(kept.begin(), kept.end(), [&](int a) { return rules_out(points[a], points[b], levels); }))
            kept.push_back(b);
    return kept;
}

// Returns where the list starts.
static int32_t append(Storage &storage, const Shape &shape, const std::vector<int> &list,
                      const std::vector<Levels> &points) {
    const size_t start = storage.near.size();
    const size_t length = (list.size() + NEAR_STRIDE - 1) / NEAR_STRIDE * NEAR_STRIDE;
    for (size_t i = 0; i < length; ++i)
        storage.near.push_back(word_of(shape, points[list[std::min(i, list.size() - 1)]]));
    return static_cast<int32_t>(start);
}

// ---- the whole -------------------------------------------------------------------------------

static void set_points(Storage &storage, const Shape &shape, const std::vector<Levels> &points) {
    storage.point.assign(combinations(shape), -1);
    for (std::vector<int32_t> *of_all : {&storage.word, &storage.list, &storage.full, &storage.full_length})
        of_all->assign(storage.point.size(), 0);
    for (int i = 0; i < shape.n_points; ++i) {
        const int number = number_of(shape, points[i]);
        const int same = storage.point[number];
        if (same >= 0) refuse(shape, "has points " + std::to_string(same) + " and " + std::to_string(i) + " alike");
        storage.point[number] = i;
        storage.word[number] = word_of(shape, points[i]);
    }
    if (storage.point[0] < 0) refuse(shape, "lacks the point of the lowest levels");
}

static void set_lists(Storage &storage, const Shape &shape, const std::vector<Levels> &points) {
    std::vector<std::vector<int>> of_all(storage.point.size());
    for (size_t number = 0; number < of_all.size(); ++number) {
        if (storage.point[number] >= 0) continue;
        const Levels levels = levels_of_number(shape, static_cast<int>(number));
        of_all[number] = near(shape, points, levels);
        const std::vector<int> list = possible(of_all[number], points, levels);
        storage.word[number] = static_cast<int32_t>(list.size());
        storage.list[number] = append(storage, shape, list, points);
    }
    for (size_t number = 0; number < of_all.size(); ++number) { // behind the others, as they are needed seldom
        storage.full_length[number] = static_cast<int32_t>(of_all[number].size());
        if (storage.point[number] < 0) storage.full[number] = append(storage, shape, of_all[number], points);
    }
}

static std::unique_ptr<Storage> build(const Shape &shape, std::vector<int8_t> values) {
    const std::vector<int8_t> different = different_values(shape, values);
    const std::vector<Levels> points = levels_of(shape, values, different);
    auto storage = std::make_unique<Storage>();
    Storage &s = *storage;
    s.values = std::move(values);
    for (const Levels &levels : points) s.numbers.push_back(numbers_of(shape, levels));
    set_points(s, shape, points);
    set_lists(s, shape, points);
    s.grid = {.values = s.values.data(),
              .first_word = word_of(shape, points[0]),
              .point = s.point.data(),
              .word = s.word.data(),
              .list = s.list.data(),
              .full = s.full.data(),
              .full_length = s.full_length.data(),
              .near = s.near.data(),
              .numbers = s.numbers.data(),
              .levels = {}};
    for (size_t i = 0; i < s.values.size(); ++i)
        s.grid.levels[points[i / shape.group][i % shape.group]] = s.values[i];
    return storage;
}

const Grid *find_grid(GridName name) { return grids[static_cast<size_t>(name)].load(std::memory_order_acquire); }

void set_grid(GridName name, const int8_t *values, int64_t n_points, int64_t group) {
    const auto slot = static_cast<size_t>(name);
    const Shape &shape = SHAPES[slot];
    if (n_points != shape.n_points || group != shape.group)
        refuse(shape, "has " + std::to_string(shape.n_points) + " points of " + std::to_string(shape.group) +
                          " values, got " + std::to_string(n_points) + " of " + std::to_string(group));
    const std::lock_guard lock(setting);
    std::vector<int8_t> all(values, values + n_points * group);
    if (storages[slot] && storages[slot]->values != all) refuse(shape, "has been set to other points");
    if (storages[slot]) return;
    storages[slot] = build(shape, std::move(all));
    grids[slot].store(&storages[slot]->grid, std::memory_order_release);
}

} // namespace phi
