// Whether the scales that were stored are numbers: float16 ends at 65,504, and a larger one becomes infinite.
#pragma once

#include "quantize.hpp"

namespace phi {

// Number of the first block with a scale, a minimum or a stored weight that is infinite or not a number; n_blocks
// where there is none. To read, the same in NumPy: phicourse/gguf/verify.py
int64_t find_not_finite(Type type, const void *blocks, int64_t n_blocks);

} // namespace phi
