// Rows of weights to rows of blocks and back, on any instruction set and any number of threads.
#pragma once

#include "../isa.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>

namespace phi {

enum class Type {
    F32, F16, BF16,
    Q8_0, Q4_0, Q4_1, Q5_0, Q5_1,
    Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,
    IQ4_NL, IQ4_XS,
    IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS,
    IQ1_M, IQ1_S,
    TQ1_0, TQ2_0,
    MXFP4, NVFP4,
    Q1_0, Q2_0,
};

struct TypeInfo {
    Type type;
    std::string_view name;
    int64_t block; // weights in a block
    int64_t bytes; // bytes of a block

    int64_t row_bytes(int64_t n) const { return n / block * bytes; }
};

// All types, in the order of the enumeration.
std::span<const TypeInfo> type_infos();
const TypeInfo &type_info(Type type);

// Throws std::invalid_argument, which lists the known names.
const TypeInfo &type_info(std::string_view name);

// Hands over the points of a type's grid, [n_points][group], once; nothing works with an i-quant that has one
// before that. Throws std::invalid_argument where the type has no grid or the values cannot be it.
void set_grid(Type type, const int8_t *values, int64_t n_points, int64_t group);

// Throws std::invalid_argument where the type has a grid that has not been set.
void check_grid(const TypeInfo &info);

// A weight is infinite or not a number.
class NonFiniteError : public std::runtime_error {
  public:
    NonFiniteError(int64_t row, int64_t column, float value);
    const int64_t row, column;
};

// reference: llama.cpp's bytes; best: smaller errors in the same format, see best_search.cpp.
enum class Search { reference, best };

// Whether a type can be searched better than llama.cpp does.
bool has_better_search(Type type);

// Quantizes `rows` rows of n weights to `type`. The source's type is F32, F16 or BF16; out has
// rows * type_info(type).row_bytes(n) bytes. The bytes depend neither on the threads nor on the
// instruction set. `importance` has n numbers that say how much each column counts, none of them negative or
// infinite; nullptr: all the same, and the quantizer follows its own rules. Throws NonFiniteError, and
// std::invalid_argument where the block does not divide n, a type cannot do without importance or has no better
// search, or its grid has not been set. Returns the number of the first block with a scale that its field cannot
// hold and that became infinite, if there is one.
std::optional<int64_t> quantize(Type type, Type source, const void *x, int64_t rows, int64_t n, void *out, int threads,
                                Isa isa = active_isa(), const float *importance = nullptr,
                                Search search = Search::reference);

// The float32 values of rows of blocks of any type. Throws std::invalid_argument where the block does
// not divide n or the type's grid has not been set.
void dequantize(Type type, const void *data, int64_t rows, int64_t n, float *out, int threads,
                Isa isa = active_isa());

} // namespace phi
