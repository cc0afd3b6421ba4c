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

  std::uint32_t next() const { return next_uint32(state); }
};

// NumPy's PCG64, which gives each number of 64 bits in two halves: PCG XSL RR 128/64 of O'Neill, PCG: A Family of
// Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation (2014). Compiled into what
// draws from it, it takes half the time.
struct Pcg64 {
  using Wide = unsigned __int128;

  std::uint32_t next() {
    has_upper = !has_upper;
    if (!has_upper) return upper;
    constexpr Wide multiplier = Wide(0x2360ed051fc65da4) << 64 | 0x4385df649fccf645;
    state = state * multiplier + increment;
    const auto folded = std::uint64_t(state >> 64) ^ std::uint64_t(state);
    const auto turns = unsigned(state >> 122);
    const std::uint64_t number = folded >> turns | folded << (-turns & 63);
    upper = std::uint32_t(number >> 32);
    return std::uint32_t(number);
  }

  Wide state, increment;
  std::uint32_t upper;  // half of the last number
  bool has_upper;       // it comes next
};

// order (count < 2^32) = Generator.permutation(count), from the same numbers of the generator, whose lock the
// caller holds.
void permutation(const BitGenerator&, index count, std::int64_t* order);
void permutation(Pcg64&, index count, std::int64_t* order);

}  // namespace pyfastnn
