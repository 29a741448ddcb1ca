// Keys and values of all positions and layers, laid out for the attention kernel.
#pragma once

#include "../kernels/kernels.hpp"
#include "config.hpp"
#include "memory.hpp"

namespace phi {

class KVCache {
  public:
    // Throws std::invalid_argument where the memory cannot be had.
    KVCache(const Config &config, int64_t n_ctx, CacheType type)
        : type_(type), element_size_(type == CacheType::F16 ? sizeof(Half) : sizeof(float)),
          head_size_(config.head_size), value_stride_((config.head_size + 15) / 16 * 16),
          n_kv_heads_(config.n_kv_heads), positions_((n_ctx + key_block - 1) / key_block * key_block),
          keys_(checked_size(config.n_layers, head_size_)), values_(checked_size(config.n_layers, value_stride_)) {
        if (!keys_.allocated() || !values_.allocated()) refuse();
    }

    CacheType type() const { return type_; }
    int value_stride() const { return static_cast<int>(value_stride_); }

    // Of one head: (positions / 32, head_size, 32) and (positions, value_stride).
    void *keys(int64_t layer, int64_t head) const {
        return keys_.data() + index(layer, head) * head_size_ * element_size_;
    }
    void *values(int64_t layer, int64_t head) const { return value(layer, head, 0); }

    // Where the dimensions of one key begin; they are key_block apart.
    void *key(int64_t layer, int64_t head, int64_t position) const {
        const int64_t block = position / key_block * key_block;
        return static_cast<std::byte *>(keys(layer, head)) + (block * head_size_ + position - block) * element_size_;
    }
    void *value(int64_t layer, int64_t head, int64_t position) const {
        return values_.data() + (index(layer, head) + position) * value_stride_ * element_size_;
    }

  private:
    int64_t index(int64_t layer, int64_t head) const { return (layer * n_kv_heads_ + head) * positions_; }

    // In bytes.
    size_t checked_size(int64_t n_layers, int64_t head_size) const {
        int64_t size = n_layers * n_kv_heads_; // at most 2^28, see check(Config)
        if (__builtin_mul_overflow(size, positions_, &size) || __builtin_mul_overflow(size, head_size, &size) ||
            size > PTRDIFF_MAX / 8)
            refuse();
        return static_cast<size_t>(size * element_size_);
    }

    [[noreturn]] void refuse() const {
        throw std::invalid_argument("there is no memory for the keys and values of " + std::to_string(positions_) +
                                    " positions: choose a smaller n_ctx");
    }

    CacheType type_;
    int64_t element_size_, head_size_, value_stride_, n_kv_heads_, positions_;
    ZeroedArray<std::byte> keys_, values_;
};

} // namespace phi
