// The scales of MXFP4 and NVFP4, by their codes.
#pragma once

#include "../simd.hpp"

namespace phi::PHI_ISA {

// 2^(e - 127) / 2: e - 1 as the exponent of a float, whose two smallest are subnormal.
static inline Floats half_of_power(Ints e) {
    return from_bits(select(e < 2, 0x00200000 + e * 0x00200000, (e - 1) << 23));
}

// Half of what the codes stand for; the highest bit does not count, and 127 (no number) is read as 0.
static inline Floats half_of_ue4m3(Ints code) {
    const Floats small = to_floats(code & 7) * 0x1p-10f;
    const Floats normal = from_bits(((code & 127) + ((127 - 8) << 3)) << 20);
    return select(code == 127, Floats{}, select((code & 0x78) == 0, small, normal));
}

} // namespace phi::PHI_ISA
