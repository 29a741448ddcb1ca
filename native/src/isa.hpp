// Which instruction set runs: found once at start, or forced by the environment variable PHICOURSE_ISA.
#pragma once

#include <string>
#include <vector>

namespace phi {

enum class Isa { scalar, avx2, avx512, neon, neon_i8mm };

const char *name(Isa isa);

// Instruction sets that were compiled in and that this machine can run, slowest first.
std::vector<Isa> available_isas();

// The one in use. Throws std::runtime_error when PHICOURSE_ISA names one that is not available.
Isa active_isa();

} // namespace phi
