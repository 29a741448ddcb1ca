// Causal attention in one pass over the keys: softmax(q·k) · v with a running maximum and total.
//
// For every query: keys come in blocks of 32. When a block raises the maximum, what was gathered so far is
// scaled down. Blocks begin at fixed positions and a key that is not seen adds nothing, so the result of a
// query does not depend on the tile it is in.
#pragma once

#include "cache_rows.hpp"
#include "kernels.hpp"
#include "lanes.hpp"

namespace phi::PHI_ISA {

inline constexpr int score_lanes = key_block / Lanes::count; // vectors that hold the scores of a block
inline constexpr float minus_infinity = -__builtin_inff();

// The running state of one query.
struct QueryState {
    float *sum;    // (value_stride): values weighted by e^(score - maximum)
    float maximum; // of the scores so far
    float total;   // of the weights
};

// How many queries meet a key together, so that it is loaded once: their sums need registers.
#if defined(PHI_ISA_avx512)
inline constexpr int queries_together = 4;
#elif defined(PHI_ISA_avx2) || defined(PHI_ISA_neon)
inline constexpr int queries_together = 2;
#else
inline constexpr int queries_together = 1;
#endif

// Scores of one block: each lane is a key, and dimensions are added one after the other.
template <int queries, class Element>
void block_scores(const float *const *query, const Element *keys, int head_size, float (*scores)[key_block]) {
    Lanes sums[queries][score_lanes];
    for (int i = 0; i < queries; ++i)
        for (int j = 0; j < score_lanes; ++j) sums[i][j] = zero();
    for (int dimension = 0; dimension < head_size; ++dimension)
        for (int j = 0; j < score_lanes; ++j) {
            const Lanes key = load(keys + dimension * key_block + j * Lanes::count);
            for (int i = 0; i < queries; ++i)
                sums[i][j] = multiply_add(broadcast(query[i][dimension]), key, sums[i][j]);
        }
    for (int i = 0; i < queries; ++i)
        for (int j = 0; j < score_lanes; ++j) store(scores[i] + j * Lanes::count, sums[i][j]);
}

// Turns scores into weights e^(score - maximum) and updates maximum and total. Returns the factor by which
// the earlier sums shrink.
inline float block_weights(float *scores, QueryState &state) {
    Lanes most = load(scores);
    for (int i = 1; i < score_lanes; ++i) most = maximum(most, load(scores + i * Lanes::count));
    const float largest_score = largest(most);
    const float new_maximum = largest_score > state.maximum ? largest_score : state.maximum;
    Lanes block_total = zero();
    for (int i = 0; i < score_lanes; ++i) {
        const Lanes weights = exponential(load(scores + i * Lanes::count) - broadcast(new_maximum));
        store(scores + i * Lanes::count, weights);
        block_total = block_total + weights;
    }
    float shrink[Lanes::count];
    store(shrink, exponential(broadcast(state.maximum - new_maximum)));
    state.total = state.total * shrink[0] + sum(block_total);
    state.maximum = new_maximum;
    return shrink[0];
}

// The keys of a block that a query sees.
struct KeyRange {
    int first, last; // first … last - 1
    bool operator==(const KeyRange &) const = default;
};

// sum = sum * shrink + weights · values, from dimension `start` on and for `vectors` vectors of dimensions, which
// stay in registers.
template <int queries, int vectors, class Element>
void add_values_to(QueryState *states, int start, const float *shrink, const float (*weights)[key_block],
                   const Element *values, KeyRange range, int stride) {
    Lanes sums[queries][vectors];
    for (int i = 0; i < queries; ++i)
        for (int j = 0; j < vectors; ++j)
            sums[i][j] = load(states[i].sum + start + j * Lanes::count) * broadcast(shrink[i]);
    for (int key = range.first; key < range.last; ++key)
        for (int j = 0; j < vectors; ++j) {
            const Lanes value = load(values + key * stride + start + j * Lanes::count);
            for (int i = 0; i < queries; ++i) sums[i][j] = multiply_add(broadcast(weights[i][key]), value, sums[i][j]);
        }
    for (int i = 0; i < queries; ++i)
        for (int j = 0; j < vectors; ++j) store(states[i].sum + start + j * Lanes::count, sums[i][j]);
}

template <int queries, class Element>
void add_values(QueryState *states, const float *shrink, const float (*weights)[key_block], const Element *values,
                KeyRange range, int stride) {
    constexpr int vectors = 6; // of 96 dimensions all with AVX-512, half with AVX2, a quarter with NEON
    int start = 0;
    for (; start + vectors * Lanes::count <= stride; start += vectors * Lanes::count)
        add_values_to<queries, vectors>(states, start, shrink, weights, values, range, stride);
    for (; start < stride; start += Lanes::count)
        add_values_to<queries, 1>(states, start, shrink, weights, values, range, stride);
}

// Some queries meet one block of keys, of which they see the same.
template <int queries, class Element>
void queries_block(const AttentionTile &tile, int first_query, const Element *keys, const Element *values,
                   KeyRange range, QueryState *states) {
    const float *query[queries];
    for (int i = 0; i < queries; ++i) {
        const int token = (first_query + i) / tile.members, member = (first_query + i) % tile.members;
        query[i] = tile.queries + token * tile.query_stride + member * tile.format.head_size;
    }
    float scores[queries][key_block], shrink[queries];
    block_scores<queries>(query, keys, tile.format.head_size, scores);
    for (int i = 0; i < queries; ++i) {
        for (int key = 0; key < range.first; ++key) scores[i][key] = minus_infinity;
        for (int key = range.last; key < key_block; ++key) scores[i][key] = minus_infinity;
        shrink[i] = block_weights(scores[i], states[first_query + i]);
    }
    add_values<queries>(states + first_query, shrink, scores, values, range, tile.format.padded);
}

inline int64_t first_key_seen(const AttentionTile &tile, int64_t position) {
    return position >= tile.window ? position - tile.window + 1 : 0;
}

// What a query sees of the block that begins at `start`.
inline KeyRange keys_seen(const AttentionTile &tile, int query, int64_t start) {
    const int64_t position = tile.position + query / tile.members;
    const int64_t first = first_key_seen(tile, position) - start, end = position + 1 - start;
    return {static_cast<int>(first > 0 ? first : 0), static_cast<int>(end < key_block ? end : key_block)};
}

// All queries of the tile meet one block.
template <class Element>
void tile_block(const AttentionTile &tile, int64_t start, const Element *keys, const Element *values,
                QueryState *states) {
    const int queries = tile.tokens * tile.members;
    for (int query = 0, done; query < queries; query += done) {
        const KeyRange range = keys_seen(tile, query, start);
        done = queries_together;
        // Ranges only move forward: if the first and the last are the same, all are.
        if (query + done <= queries && keys_seen(tile, query + done - 1, start) == range) {
            if (range.first < range.last) queries_block<queries_together>(tile, query, keys, values, range, states);
        } else {
            done = 1;
            if (range.first < range.last) queries_block<1>(tile, query, keys, values, range, states);
        }
    }
}

template <class Element> void to_floats(const Element *elements, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += Lanes::count) store(out + i, load(elements + i));
}

struct Codes {}; // in place of an element: the cache is coded

// Elements meet the queries as they lie there; they become floats first where there are enough queries to make
// that worth while. Codes always become floats.
template <class Element>
void cached_block(const AttentionTile &tile, int64_t start, int64_t filled, float *scratch, QueryState *states) {
    const CacheFormat &format = tile.format;
    const uint8_t *keys = tile.blocks + start / key_block * tile.block_stride;
    const uint8_t *values = keys + format.key_block_bytes;
    float *float_keys = scratch, *float_values = float_keys + key_block * format.padded;
    if constexpr (std::is_same_v<Element, Codes>) {
        coded_keys_to_floats(format, keys, float_keys);
        cache_quantizer(format.type).dequantize(values, filled * format.padded / BLOCK, float_values);
    } else {
        const auto *key_elements = reinterpret_cast<const Element *>(keys);
        const auto *value_elements = reinterpret_cast<const Element *>(values);
        if (std::is_same_v<Element, float> || tile.tokens * tile.members <= 2 * queries_together)
            return tile_block(tile, start, key_elements, value_elements, states);
        to_floats(key_elements, key_block * format.head_size, float_keys);
        to_floats(value_elements, filled * format.padded, float_values);
    }
    tile_block<float>(tile, start, float_keys, float_values, states);
}

template <class Element> void attend_to(const AttentionTile &tile) {
    const int queries = tile.tokens * tile.members;
    QueryState states[tile_queries];
    float *scratch = tile.scratch;
    for (int i = 0; i < queries; ++i, scratch += tile.format.padded) {
        states[i] = {scratch, minus_infinity, 0.0f};
        for (int j = 0; j < tile.format.padded; ++j) scratch[j] = 0.0f;
    }
    const int64_t end = tile.position + tile.tokens, first = first_key_seen(tile, tile.position);
    for (int64_t start = first / key_block * key_block; start < end; start += key_block) {
        const int64_t filled = end - start < key_block ? end - start : key_block;
        cached_block<Element>(tile, start, filled, scratch, states);
    }
    for (int i = 0; i < queries; ++i) {
        float *out = tile.out + i / tile.members * tile.out_stride + i % tile.members * tile.format.head_size;
        for (int j = 0; j < tile.format.head_size; ++j) out[j] = states[i].sum[j] / states[i].total;
    }
}

inline void attend(const AttentionTile &tile) {
    switch (tile.format.type) {
    case Type::F32: return attend_to<float>(tile);
    case Type::F16: return attend_to<Half>(tile);
    case Type::BF16: return attend_to<Bfloat16>(tile);
    default: return attend_to<Codes>(tile);
    }
}

} // namespace phi::PHI_ISA
