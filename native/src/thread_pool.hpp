// A team of threads that stays: the caller is thread 0, the others wait for the next task.
//
// A forward pass is one task of many short phases, and a small model has thousands of phases a second. So
// threads spin for some microseconds before they sleep, both between tasks and at the barrier that ends a phase.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace phi {

class ThreadPool {
  public:
    explicit ThreadPool(int n_threads) : size_(n_threads < 1 ? 1 : n_threads), taken_(size_) {
        try {
            for (int thread = 1; thread < size_; ++thread) workers_.emplace_back([this, thread] { work(thread); });
        } catch (...) { // the system has no more threads
            stop();
            throw;
        }
    }

    ~ThreadPool() { stop(); }

    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int size() const { return size_; }

    // Calls task(thread) on every thread of the team and returns when all are done. An exception in any
    // of them is thrown again here; but a task that meets at barriers must not throw, the others would wait.
    void run(const std::function<void(int)> &task) {
        task_ = &task;
        error_ = nullptr;
        forget_parts();
        pending_.store(size_ - 1, std::memory_order_relaxed);
        start_task();
        guarded(task, 0);
        for (int left; (left = pending_.load(std::memory_order_acquire)) != 0;) wait_for_change(pending_, left);
        if (error_) std::rethrow_exception(error_);
    }

    // Inside a task: returns when every thread of the team has come here.
    void barrier() {
        if (size_ == 1) {
            forget_parts();
            return;
        }
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) {
            wait_for_change(phase_, phase);
            return;
        }
        arrived_.store(0, std::memory_order_relaxed);
        forget_parts();
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    }

    // Inside a task, called by every thread: one phase. Calls body(begin, end) until the parts, each of at most `grain`
    // items, cover 0 … n; then all threads meet. Each thread has a run of neighbouring items, so that what it asks
    // memory for ahead is its own; when it is through, it helps the others with theirs. The last parts of a run are
    // smaller: the thread that comes last keeps the others waiting for no more than one.
    template <class Body> void for_each(size_t n, size_t grain, const Body &body) {
        for (int i = 0; i < size_; ++i) {
            const size_t owner = (self + i) % size_, first = n * owner / size_, end = n * (owner + 1) / size_;
            for (Part part; (part = taken_[owner].take(grain, end - first)).begin < part.end;)
                body(first + part.begin, first + part.end);
        }
        barrier();
    }

  private:
    static constexpr int spins = 5000; // some 100 µs

    // Returns once `word` is no longer `old`.
    template <class T> static void wait_for_change(const std::atomic<T> &word, T old) {
        for (int spin = 0; spin < spins; ++spin) {
            if (word.load(std::memory_order_acquire) != old) return;
            pause();
        }
        word.wait(old, std::memory_order_acquire);
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    struct Part {
        size_t begin, end;
    };

    // How many items of a thread's run are taken; on a cache line of its own.
    struct alignas(64) Taken {
        std::atomic<size_t> items{0};

        // The next part of `n` items, empty where none are left.
        Part take(size_t grain, size_t n) {
            size_t begin = items.load(std::memory_order_relaxed), end;
            do {
                if (begin >= n) return {n, n};
                const size_t left = n - begin, least = (grain + 7) / 8;
                end = begin + std::min(std::clamp(left / 2, least, grain), left);
            } while (!items.compare_exchange_weak(begin, end, std::memory_order_relaxed));
            return {begin, end};
        }
    };

    void forget_parts() {
        for (Taken &taken : taken_) taken.items.store(0, std::memory_order_relaxed);
    }

    void start_task() {
        generation_.fetch_add(1, std::memory_order_release);
        generation_.notify_all();
    }

    void stop() {
        stop_ = true;
        start_task();
        for (auto &worker : workers_) worker.join();
    }

    void guarded(const std::function<void(int)> &task, int thread) {
        self = thread;
        try {
            task(thread);
        } catch (...) {
            std::lock_guard lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    void work(int thread) {
        for (uint32_t seen = 0;; ++seen) {
            wait_for_change(generation_, seen);
            if (stop_) return;
            guarded(*task_, thread);
            if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
        }
    }

    const int size_;
    const std::function<void(int)> *task_ = nullptr;
    std::exception_ptr error_;
    std::mutex error_mutex_;
    bool stop_ = false; // written before generation_, read after it
    // Each on a cache line of its own: threads write them while others spin on them.
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<int> pending_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::vector<Taken> taken_;
    static inline thread_local int self = 0; // which thread of the team this is
    std::vector<std::thread> workers_; // last: they use all of the above from the moment they start
};

} // namespace phi
