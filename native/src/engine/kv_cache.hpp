// Keys and values of all positions and layers, laid out for the attention kernel.
#pragma once

#include "../kernels/kernels.hpp"
#include "config.hpp"
#include "memory.hpp"

#include <algorithm>
#include <string>

namespace phi {

inline constexpr Type cache_types[] = {Type::F32, Type::F16, Type::BF16, Type::Q8_0, Type::Q4_0};

// Throws std::invalid_argument for a type that a cache cannot have.
inline CacheFormat cache_format(Type type, int64_t head_size) {
    std::string known;
    for (Type each : cache_types) known += (known.empty() ? "" : ", ") + std::string(type_info(each).name);
    detail::require(std::ranges::find(cache_types, type) != std::end(cache_types),
                    "cache_type must be one of " + known + ", not " + std::string(type_info(type).name));
    const TypeInfo &info = type_info(type);
    const int64_t step = std::max<int64_t>(info.block, 16); // a vector has 16 floats at most
    const int64_t padded = (head_size + step - 1) / step * step;
    const int64_t key_size = info.block > 1 ? padded : head_size;
    return {type, static_cast<int>(head_size), static_cast<int>(padded), info.row_bytes(padded),
            key_block * info.row_bytes(key_size)};
}

class KVCache {
  public:
    // Throws std::invalid_argument where the memory cannot be had.
    KVCache(const Config &config, int64_t n_ctx, Type type)
        : format_(cache_format(type, config.head_size)), n_layers_(config.own_layers()),
          n_kv_heads_(config.n_kv_heads), blocks_((n_ctx + key_block - 1) / key_block),
          keys_(zeros(format_.key_block_bytes)), values_(zeros(format_.row_bytes * key_block)) {}

    const CacheFormat &format() const { return format_; }
    size_t bytes() const { return keys_.bytes() + values_.bytes(); }

    // Of one head: (blocks of 32 positions, key_block_bytes) and (positions, row_bytes).
    uint8_t *keys(int64_t layer, int64_t head) const {
        return keys_.data() + first_block(layer, head) * format_.key_block_bytes;
    }
    uint8_t *values(int64_t layer, int64_t head) const {
        return values_.data() + first_block(layer, head) * key_block * format_.row_bytes;
    }

    // The first `positions` of another cache of the same shape.
    void copy(const KVCache &other, int64_t positions) {
        const int64_t blocks = (positions + key_block - 1) / key_block, heads = n_layers_ * n_kv_heads_;
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t key = head * blocks_ * format_.key_block_bytes;
            const int64_t value = head * blocks_ * key_block * format_.row_bytes;
            std::copy_n(other.keys_.data() + key, blocks * format_.key_block_bytes, keys_.data() + key);
            std::copy_n(other.values_.data() + value, positions * format_.row_bytes, values_.data() + value);
        }
    }

  private:
    int64_t first_block(int64_t layer, int64_t head) const { return (layer * n_kv_heads_ + head) * blocks_; }

    // For all blocks of all heads.
    ZeroedArray<uint8_t> zeros(int64_t block_bytes) const {
        int64_t size = n_layers_ * n_kv_heads_; // at most 2^28, see check(Config)
        if (__builtin_mul_overflow(size, blocks_, &size) || __builtin_mul_overflow(size, block_bytes, &size) ||
            size > PTRDIFF_MAX / 2)
            refuse();
        try {
            return ZeroedArray<uint8_t>(static_cast<size_t>(size));
        } catch (const std::bad_alloc &) {
            refuse();
        }
    }

    [[noreturn]] void refuse() const {
        throw std::invalid_argument("there is no memory for the keys and values of " +
                                    std::to_string(blocks_ * key_block) + " positions: choose a smaller n_ctx");
    }

    CacheFormat format_;
    int64_t n_layers_, n_kv_heads_, blocks_;
    ZeroedArray<uint8_t> keys_, values_;
};

} // namespace phi
