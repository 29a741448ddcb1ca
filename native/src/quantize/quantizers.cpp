// The table of one instruction set.
#include "quantizers.hpp"

namespace phi::PHI_ISA {

extern const QuantizerTable quantizer_table;

const QuantizerTable quantizer_table = {
    {&quantizer_f32, &quantizer_f16, &quantizer_bf16, &quantizer_q8_0, &quantizer_q4_0,
     &quantizer_q2_k, &quantizer_q3_k,
     &quantizer_q4_k, &quantizer_q5_k, &quantizer_q6_k},
    find_non_finite,
};

} // namespace phi::PHI_ISA
