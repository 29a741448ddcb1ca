// Causal attention in one pass over the keys: softmax(q·k) · v with a running maximum and total.
//
// For every query: keys come in blocks of 32. When a block raises the maximum, what was gathered so far is
// scaled down. Blocks begin at fixed positions and a key that is not seen adds nothing, so the result of a
// query does not depend on the tile it is in.
#pragma once

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

// Scores of one block: each lane is a key, and dimensions are added one after the other.
template <class Element> void block_scores(const float *query, const Element *keys, int head_size, float *scores) {
    Lanes sums[score_lanes];
    for (int i = 0; i < score_lanes; ++i) sums[i] = zero();
    for (int dimension = 0; dimension < head_size; ++dimension) {
        const Lanes q = broadcast(query[dimension]);
        for (int i = 0; i < score_lanes; ++i)
            sums[i] = multiply_add(q, load(keys + dimension * key_block + i * Lanes::count), sums[i]);
    }
    for (int i = 0; i < score_lanes; ++i) store(scores + i * Lanes::count, sums[i]);
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

// sum = sum * shrink + weights · values for `vectors` vectors of dimensions, which stay in registers.
template <int vectors, class Element>
void add_values_to(float *sum, float shrink, const float *weights, const Element *values, int first, int last,
                   int stride) {
    Lanes sums[vectors];
    for (int i = 0; i < vectors; ++i) sums[i] = load(sum + i * Lanes::count) * broadcast(shrink);
    for (int key = first; key < last; ++key) {
        const Lanes weight = broadcast(weights[key]);
        for (int i = 0; i < vectors; ++i)
            sums[i] = multiply_add(weight, load(values + key * stride + i * Lanes::count), sums[i]);
    }
    for (int i = 0; i < vectors; ++i) store(sum + i * Lanes::count, sums[i]);
}

template <class Element>
void add_values(float *sum, float shrink, const float *weights, const Element *values, int first, int last,
                int stride) {
    constexpr int vectors = 6; // of 96 dimensions all with AVX-512, half with AVX2
    int done = 0;
    for (; done + vectors * Lanes::count <= stride; done += vectors * Lanes::count)
        add_values_to<vectors>(sum + done, shrink, weights, values + done, first, last, stride);
    for (; done < stride; done += Lanes::count)
        add_values_to<1>(sum + done, shrink, weights, values + done, first, last, stride);
}

// One query meets one block of keys, of which it sees first … last - 1.
template <class Element>
void query_block(const AttentionTile &tile, const float *query, const Element *keys, const Element *values, int first,
                 int last, float *scores, QueryState &state) {
    block_scores(query, keys, tile.head_size, scores);
    for (int key = 0; key < first; ++key) scores[key] = minus_infinity;
    for (int key = last; key < key_block; ++key) scores[key] = minus_infinity;
    const float shrink = block_weights(scores, state);
    add_values(state.sum, shrink, scores, values, first, last, tile.value_stride);
}

inline int64_t first_key_seen(const AttentionTile &tile, int64_t position) {
    return position >= tile.window ? position - tile.window + 1 : 0;
}

// All queries of the tile meet the block that begins at `start`.
template <class Element>
void tile_block(const AttentionTile &tile, int64_t start, const Element *keys, const Element *values, float *scores,
                QueryState *states) {
    for (int token = 0; token < tile.tokens; ++token) {
        const int64_t position = tile.position + token;
        int64_t first = first_key_seen(tile, position) - start, last = position + 1 - start;
        first = first > 0 ? first : 0;
        last = last < key_block ? last : key_block;
        if (first >= last) continue;
        for (int member = 0; member < tile.members; ++member) {
            const float *query = tile.queries + token * tile.query_stride + member * tile.head_size;
            query_block(tile, query, keys, values, static_cast<int>(first), static_cast<int>(last), scores,
                        states[token * tile.members + member]);
        }
    }
}

inline void to_floats(const Half *halves, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += Lanes::count) store(out + i, load(halves + i));
}

// Halves become floats first where there are enough queries to make that worth while.
inline void cached_block(const AttentionTile &tile, int64_t start, int64_t filled, const Half *keys, const Half *values,
                         float *scratch, QueryState *states) {
    float *scores = scratch, *float_keys = scores + key_block, *float_values = float_keys + key_block * tile.head_size;
    if (tile.tokens * tile.members < 4) return tile_block(tile, start, keys, values, scores, states);
    to_floats(keys, key_block * tile.head_size, float_keys);
    to_floats(values, filled * tile.value_stride, float_values);
    tile_block(tile, start, float_keys, float_values, scores, states);
}

inline void cached_block(const AttentionTile &tile, int64_t start, int64_t, const float *keys, const float *values,
                         float *scratch, QueryState *states) {
    tile_block(tile, start, keys, values, scratch, states);
}

template <class Element> void attend_to(const AttentionTile &tile) {
    const Element *keys = static_cast<const Element *>(tile.keys), *values = static_cast<const Element *>(tile.values);
    const int queries = tile.tokens * tile.members;
    QueryState states[tile_queries];
    float *scratch = tile.scratch;
    for (int i = 0; i < queries; ++i, scratch += tile.value_stride) {
        states[i] = {scratch, minus_infinity, 0.0f};
        for (int j = 0; j < tile.value_stride; ++j) scratch[j] = 0.0f;
    }
    const int64_t end = tile.position + tile.tokens, first = first_key_seen(tile, tile.position);
    for (int64_t start = first / key_block * key_block; start < end; start += key_block) {
        const int64_t filled = end - start < key_block ? end - start : key_block;
        cached_block(tile, start, filled, keys + start * tile.head_size, values + start * tile.value_stride, scratch, states);
    }
    for (int i = 0; i < queries; ++i) {
        float *out = tile.out + i / tile.members * tile.out_stride + i % tile.members * tile.head_size;
        for (int j = 0; j < tile.head_size; ++j) out[j] = states[i].sum[j] / states[i].total;
    }
}

inline void attend(const AttentionTile &tile) {
    tile.cache_type == CacheType::F16 ? attend_to<Half>(tile) : attend_to<float>(tile);
}

} // namespace phi::PHI_ISA
