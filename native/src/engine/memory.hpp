// Memory that is not what a std::vector gives: aligned for vector instructions, and not touched before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace phi {

// Zeros, from an address that is a multiple of 64. The system gives the pages when they are first touched, so
// the cache of a long context costs nothing until the text is long.
template <class T> class ZeroedArray {
  public:
    explicit ZeroedArray(size_t n) : bytes_(n * sizeof(T)), memory_(std::calloc(bytes_ + alignment, 1)) {
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        data_ = reinterpret_cast<T *>((address + alignment - 1) / alignment * alignment);
    }

    bool allocated() const { return memory_ != nullptr; }
    T *data() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    static constexpr size_t alignment = 64;
    struct Free {
        void operator()(void *memory) const { std::free(memory); }
    };
    size_t bytes_;
    std::unique_ptr<void, Free> memory_;
    T *data_;
};

} // namespace phi
