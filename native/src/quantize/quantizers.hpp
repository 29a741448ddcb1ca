// The quantizers of one instruction set: each family's source defines its own.
#pragma once

#include "quantizer_table.hpp"

// An instruction set that differs from another in kernels only has the quantizers of that one.
#ifndef PHI_QUANTIZERS
#define PHI_QUANTIZERS PHI_ISA
#endif

namespace phi::PHI_QUANTIZERS {

// Index of the first weight that is infinite or not a number, n where there is none.
int64_t find_non_finite(const float *x, int64_t n);

// best_search.cpp, see QuantizerTable
void improve(const Quantizer &quantizer, const float *x, const float *importance, int64_t n, int64_t n_blocks,
             void *blocks);

// float_types.cpp
extern const Quantizer quantizer_f32, quantizer_f16, quantizer_bf16;
// legacy.cpp
extern const Quantizer quantizer_q8_0, quantizer_q4_0, quantizer_q4_1, quantizer_q5_0, quantizer_q5_1;
// low_k_quants.cpp
extern const Quantizer quantizer_q2_k, quantizer_q3_k;
// k_quants.cpp
extern const Quantizer quantizer_q4_k, quantizer_q5_k, quantizer_q6_k;
// nonlinear.cpp
extern const Quantizer quantizer_iq4_nl, quantizer_iq4_xs;
// lattice.cpp
extern const Quantizer quantizer_iq3_s, quantizer_iq3_xxs, quantizer_iq2_s, quantizer_iq2_xs, quantizer_iq2_xxs;
// iq1.cpp
extern const Quantizer quantizer_iq1_m, quantizer_iq1_s;
// ternary.cpp
extern const Quantizer quantizer_tq1_0, quantizer_tq2_0;
// small_floats.cpp
extern const Quantizer quantizer_mxfp4, quantizer_nvfp4;
// one_and_two_bits.cpp
extern const Quantizer quantizer_q1_0, quantizer_q2_0;

} // namespace phi::PHI_QUANTIZERS

namespace phi::PHI_ISA {
using namespace PHI_QUANTIZERS;
}
