#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>

namespace phi {

const char *name(Isa isa) {
    switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::neon: return "neon";
    }
    return "unknown";
}

std::vector<Isa> available_isas() {
    std::vector<Isa> isas{Isa::scalar};
#ifdef PHI_HAS_avx2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
        __builtin_cpu_supports("bmi2"))
        isas.push_back(Isa::avx2);
#endif
#ifdef PHI_HAS_avx512
    if (isas.back() == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
        isas.push_back(Isa::avx512);
#endif
#ifdef PHI_HAS_neon
    isas.push_back(Isa::neon);
#endif
    return isas;
}

static Isa choose() {
    const std::vector<Isa> isas = available_isas();
    const char *forced = std::getenv("PHICOURSE_ISA");
    if (forced == nullptr || *forced == '\0') return isas.back();
    std::string known;
    for (Isa isa : isas) {
        if (std::string(forced) == name(isa)) return isa;
        known += known.empty() ? name(isa) : std::string(", ") + name(isa);
    }
    throw std::runtime_error("PHICOURSE_ISA=" + std::string(forced) + " cannot run here; this machine has " + known);
}

Isa active_isa() {
    static const Isa isa = choose();
    return isa;
}

} // namespace phi
