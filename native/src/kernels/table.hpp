// Which table of kernels belongs to which instruction set.
#pragma once

#include "kernels.hpp"

#include <stdexcept>

namespace phi {

#if defined(PHI_HAS_scalar)
namespace scalar {
extern const Kernels table;
}
#endif
#if defined(PHI_HAS_avx2)
namespace avx2 {
extern const Kernels table;
}
#endif
#if defined(PHI_HAS_avx512)
namespace avx512 {
extern const Kernels table;
}
#endif
#if defined(PHI_HAS_neon)
namespace neon {
extern const Kernels table;
}
#endif
#if defined(PHI_HAS_neon_i8mm)
namespace neon_i8mm {
extern const Kernels table;
}
#endif

// Throws std::invalid_argument where the set was not compiled in.
inline const Kernels &kernels(Isa isa) {
    switch (isa) {
#if defined(PHI_HAS_scalar)
    case Isa::scalar: return scalar::table;
#endif
#if defined(PHI_HAS_avx2)
    case Isa::avx2: return avx2::table;
#endif
#if defined(PHI_HAS_avx512)
    case Isa::avx512: return avx512::table;
#endif
#if defined(PHI_HAS_neon)
    case Isa::neon: return neon::table;
#endif
#if defined(PHI_HAS_neon_i8mm)
    case Isa::neon_i8mm: return neon_i8mm::table;
#endif
    default: throw std::invalid_argument("no kernels for this instruction set");
    }
}

} // namespace phi
