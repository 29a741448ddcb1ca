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
    const int64_t row_bytes = info.row_bytes(padded);
    const int64_t key_block_bytes = key_block * (info.block > 1 ? row_bytes : info.row_bytes(head_size));
    return {type, static_cast<int>(head_size), static_cast<int>(padded), row_bytes, key_block_bytes,
            key_block_bytes + key_block * row_bytes};
}

// A layer has its positions in blocks of 32, and a block has the heads one after the other: what one token reads of a
// short text lies together, in few pages. A large page has some hundred positions of a layer.
class KVCache {
  public:
    // Throws std::invalid_argument where the memory cannot be had.
    KVCache(const Config &config, int64_t n_ctx, Type type)
        : format_(cache_format(type, config.head_size)), n_layers_(config.own_layers()),
          block_stride_(config.n_kv_heads * format_.block_bytes), blocks_((n_ctx + key_block - 1) / key_block),
          memory_(zeros()) {}

    const CacheFormat &format() const { return format_; }
    size_t bytes() const { return memory_.bytes(); }

    // What a head keeps of the positions from 32 · block on: key_block_bytes of keys, then 32 values.
    uint8_t *block(int64_t layer, int64_t block, int64_t head) const {
        return memory_.data() + (layer * blocks_ + block) * block_stride_ + head * format_.block_bytes;
    }
    int64_t block_stride() const { return block_stride_; } // bytes from a head's block to its next

    // The first `positions` of another cache of the same shape, and what is behind them in their last block.
    void copy(const KVCache &other, int64_t positions) {
        const int64_t blocks = (positions + key_block - 1) / key_block;
        for (int64_t layer = 0; layer < n_layers_; ++layer)
            std::copy_n(other.block(layer, 0, 0), blocks * block_stride_, block(layer, 0, 0));
    }

  private:
    ZeroedArray<uint8_t> zeros() const {
        int64_t size = n_layers_;
        if (__builtin_mul_overflow(size, blocks_, &size) || __builtin_mul_overflow(size, block_stride_, &size) ||
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
    int64_t n_layers_, block_stride_, blocks_;
    ZeroedArray<uint8_t> memory_;
};

} // namespace phi
