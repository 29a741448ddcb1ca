// All quantizers, compiled once per instruction set.
#include "float_types.hpp"
#include "k_quants.hpp"
#include "legacy.hpp"
#include "quantizer_table.hpp"

namespace phi::PHI_ISA {

extern const QuantizerTable quantizer_table;

const QuantizerTable quantizer_table = {
    {quantize_f32, quantize_f16, quantize_bf16, quantize_q8_0, quantize_q4_0, quantize_q4_k, quantize_q5_k,
     quantize_q6_k},
    {dequantize_f32, dequantize_f16, dequantize_bf16, dequantize_q8_0, dequantize_q4_0,
     dequantize_affine<BlockQ4_K>, dequantize_affine<BlockQ5_K>, dequantize_q6_k},
    find_non_finite,
};

} // namespace phi::PHI_ISA
