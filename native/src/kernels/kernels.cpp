// Fills the table of kernels for the instruction set that this file is compiled for: once for each of them.
//
// Nothing here may call an inline function or template from outside namespace phi::PHI_ISA: the linker keeps
// one copy of those, and it could be one with instructions that the machine does not have.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns about its own AVX-512 headers, where _mm512_undefined_ps() is just that.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "kernels.hpp"

#include "attention.hpp"
#include "float_matmul.hpp"
#if defined(PHI_ISA_avx512)
#include "quantized_avx512.hpp"
#elif defined(PHI_ISA_avx2)
#include "quantized_avx2.hpp"
#elif defined(PHI_ISA_neon_i8mm)
#include "quantized_i8mm.hpp"
#elif defined(PHI_ISA_neon)
#include "quantized_dotprod.hpp"
#else
#include "quantized_scalar.hpp"
#endif
#if !defined(PHI_ISA_scalar)
#include "quantized_matmul.hpp"
#endif
#include "vector_ops.hpp"

namespace phi::PHI_ISA {

// One for each Type, in the order of the enumeration.
static constexpr Matmul matmuls[] = {
    float_matmul<InPlace<float>>, float_matmul<InPlace<Half>>, float_matmul<InPlace<Bfloat16>>,
    quantized_matmul<BlockQ8_0>, quantized_matmul<BlockQ4_0>, quantized_matmul<BlockQ4_1>,
    quantized_matmul<BlockQ5_0>, quantized_matmul<BlockQ5_1>,
    quantized_matmul<BlockQ2_K>, quantized_matmul<BlockQ3_K>, quantized_matmul<BlockQ4_K>,
    quantized_matmul<BlockQ5_K>, quantized_matmul<BlockQ6_K>,
    quantized_matmul<BlockIQ4_NL>, quantized_matmul<BlockIQ4_XS>,
    quantized_matmul<BlockIQ3_S>, quantized_matmul<BlockIQ3_XXS>,
    quantized_matmul<BlockIQ2_S>, quantized_matmul<BlockIQ2_XS>, quantized_matmul<BlockIQ2_XXS>,
    quantized_matmul<BlockIQ1_M>, quantized_matmul<BlockIQ1_S>,
    quantized_matmul<BlockTQ1_0>, quantized_matmul<BlockTQ2_0>,
    quantized_matmul<BlockMXFP4>, float_matmul<Dequantized<quantizer_nvfp4, BLOCK_NVFP4>>,
    float_matmul<Dequantized<quantizer_q1_0, BLOCK_Q1_0>>, float_matmul<Dequantized<quantizer_q2_0, BLOCK_Q2_0>>,
};
static_assert(sizeof matmuls / sizeof *matmuls == N_TYPES);

extern const Kernels table;
const Kernels table = {
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .add = add,
    .swiglu = swiglu,
    .gelu = gelu,
    .rotate = rotate,
    .store_key = store_key,
    .store_value = store_value,
    .quantize = quantize,
    .attend = attend,
    .matmul = matmuls,
};

} // namespace phi::PHI_ISA
