// The quantizers of one instruction set: each family's source defines its own.
#pragma once

#include "quantizer_table.hpp"

namespace phi::PHI_ISA {

// Index of the first weight that is infinite or not a number, n where there is none.
int64_t find_non_finite(const float *x, int64_t n);

// float_types.cpp
extern const Quantizer quantizer_f32, quantizer_f16, quantizer_bf16;
// legacy.cpp
extern const Quantizer quantizer_q8_0, quantizer_q4_0;
// low_k_quants.cpp
extern const Quantizer quantizer_q2_k, quantizer_q3_k;
// k_quants.cpp
extern const Quantizer quantizer_q4_k, quantizer_q5_k, quantizer_q6_k;

} // namespace phi::PHI_ISA
