#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(PHI_HAS_neon) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(PHI_HAS_neon) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace phi {

const char *name(Isa isa) {
    switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::neon: return "neon";
    case Isa::neon_i8mm: return "neon_i8mm";
    }
    return "unknown";
}

#ifdef PHI_HAS_neon
// Every 64-bit ARM has NEON, but not the products of bytes. The bits are those of Linux's hwcap.h, which older
// systems do not name yet.
struct ByteProducts {
    bool dotprod, i8mm;
};
static ByteProducts byte_products() {
#if defined(__linux__)
    constexpr unsigned long hwcap_asimddp = 1ul << 20, hwcap2_i8mm = 1ul << 13;
    return {(getauxval(AT_HWCAP) & hwcap_asimddp) != 0, (getauxval(AT_HWCAP2) & hwcap2_i8mm) != 0};
#elif defined(__APPLE__)
    const auto has = [](const char *feature) {
        int value = 0;
        size_t size = sizeof value;
        return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
    };
    return {has("hw.optional.arm.FEAT_DotProd"), has("hw.optional.arm.FEAT_I8MM")};
#else
    return {};
#endif
}
#endif

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
    const ByteProducts has = byte_products();
    if (has.dotprod) isas.push_back(Isa::neon);
    if (has.dotprod && has.i8mm) isas.push_back(Isa::neon_i8mm);
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
