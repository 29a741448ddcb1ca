// The table of one instruction set.
#include "quantizers.hpp"

namespace phi::PHI_ISA {

extern const QuantizerTable quantizer_table;

const QuantizerTable quantizer_table = {
    {
        &quantizer_f32, &quantizer_f16, &quantizer_bf16,
        &quantizer_q8_0, &quantizer_q4_0, &quantizer_q4_1, &quantizer_q5_0, &quantizer_q5_1,
        &quantizer_q2_k, &quantizer_q3_k, &quantizer_q4_k, &quantizer_q5_k, &quantizer_q6_k,
        &quantizer_iq4_nl, &quantizer_iq4_xs,
        &quantizer_iq3_s, &quantizer_iq3_xxs, &quantizer_iq2_s, &quantizer_iq2_xs, &quantizer_iq2_xxs,
        &quantizer_iq1_m, &quantizer_iq1_s,
        &quantizer_tq1_0, &quantizer_tq2_0,
        &quantizer_mxfp4, &quantizer_nvfp4,
        &quantizer_q1_0, &quantizer_q2_0,
    },
    find_non_finite,
    improve,
};

} // namespace phi::PHI_ISA
