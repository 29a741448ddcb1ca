// What the tests of kernels and engine share: checks that count failures, and random numbers.
#pragma once

#include "isa.hpp"

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

using Floats = std::vector<float>;

inline int failures = 0;

inline void check(bool holds, const std::string &what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

inline void check_close(double got, double expected, double tolerance, const std::string &what) {
    const double error = got > expected ? got - expected : expected - got;
    check(error <= tolerance, what + ": got " + std::to_string(got) + ", expected " + std::to_string(expected) +
                                  " within " + std::to_string(tolerance)); // false for NaN
}

// The action must throw an Error whose text contains `part`.
template <class Error, class Action> void check_throws(const Action &action, const std::string &part) {
    try {
        action();
        check(false, "no error, expected: " + part);
    } catch (const Error &error) {
        const std::string text = error.what();
        check(text.find(part) != std::string::npos, "error \"" + text + "\" does not say: " + part);
    }
}

// Evenly distributed numbers (splitmix64), the same on every machine.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    // From -1 up to 1.
    float number() { return static_cast<float>(static_cast<int64_t>(bits() >> 40) - (1 << 23)) * 0x1p-23f; }

    Floats numbers(int64_t n, float scale) {
        Floats out(n);
        for (float &value : out) value = number() * scale;
        return out;
    }

  private:
    uint64_t state_;
};

inline int report(const char *name) {
    if (failures == 0) std::printf("%s: all checks passed\n", name);
    return failures == 0 ? 0 : 1;
}
