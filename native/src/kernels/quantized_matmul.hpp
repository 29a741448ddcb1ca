// Products with quantized weights where an instruction set has panels: two or three tokens one by one where that is
// faster, more of them with panels. The instruction set brings one_token(), TileOf, and the numbers of tokens.
#pragma once

#include "panel.hpp"

namespace phi::PHI_ISA {

template <class Block>
void quantized_matmul(const Matrix &weight, int64_t first, int64_t last, const Activations &x, float *out,
                      ptrdiff_t stride, void *scratch) {
    if (x.tokens > panel_tokens)
        return panel_matmul<Block, TileOf<Block>, least_tokens, panel_tokens>(weight, first, last, x, out, stride,
                                                                              scratch);
    if (x.tokens >= few_tokens<Block>())
        return few_tokens_matmul<Block, TileOf<Block>, least_tokens, panel_tokens>(weight, first, last, x, out, stride,
                                                                                   scratch);
    for (int token = 0; token < x.tokens; ++token)
        one_token<Block>(weight, first, last, vector_of<Block>(x, token), out + token * stride, scratch);
}

} // namespace phi::PHI_ISA
