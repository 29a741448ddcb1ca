// Memory that is not what a std::vector gives: aligned for vector instructions, and not touched before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace phi {

// Zeros, from an address that is a multiple of 64. The system gives the pages when they are first touched, so
// the cache of a long context costs nothing until the text is long, and room for many tokens no time until they come.
template <class T> class ZeroedArray {
  public:
    // Throws std::bad_alloc.
    explicit ZeroedArray(size_t n) : bytes_(n * sizeof(T)), memory_(std::calloc(bytes_ + alignment, 1)) {
        if (memory_ == nullptr) throw std::bad_alloc();
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        data_ = reinterpret_cast<T *>((address + alignment - 1) / alignment * alignment);
        use_large_pages();
    }

    T *data() const { return data_; }
    T &operator[](size_t i) const { return data_[i]; }
    size_t bytes() const { return bytes_; }

  private:
    static constexpr size_t alignment = 64;

    // Asks for pages of 2 MB, where the system has them: the processor knows the places of more bytes then.
    void use_large_pages() const {
#if defined(MADV_HUGEPAGE)
        constexpr uintptr_t page = 4096, large_page = 2 << 20;
        const uintptr_t first = (reinterpret_cast<uintptr_t>(data_) + page - 1) / page * page;
        const uintptr_t end = (reinterpret_cast<uintptr_t>(data_) + bytes_) / page * page;
        if (bytes_ >= 2 * large_page) madvise(reinterpret_cast<void *>(first), end - first, MADV_HUGEPAGE);
#endif
    }

    struct Free {
        void operator()(void *memory) const { std::free(memory); }
    };
    size_t bytes_;
    std::unique_ptr<void, Free> memory_;
    T *data_;
};

} // namespace phi
