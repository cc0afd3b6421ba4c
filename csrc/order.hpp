// The order of the samples in an epoch, drawn from a bit generator of NumPy.
#pragma once

#include "kernels.hpp"

namespace pyfastnn {

// What the capsule of a bit generator points to: the interface that NumPy documents in numpy/random/bitgen.h.
struct BitGenerator {
  void* state;
  std::uint64_t (*next_uint64)(void*);
  std::uint32_t (*next_uint32)(void*);
  double (*next_double)(void*);
  std::uint64_t (*next_raw)(void*);
};

// order (count < 2^32) = Generator.permutation(count), from the same numbers of the generator, whose lock the
// caller holds.
void permutation(const BitGenerator&, index count, std::int64_t* order);

}  // namespace pyfastnn
