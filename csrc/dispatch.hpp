// Which instruction sets were compiled in, and which of them this processor has.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace pyfastnn {

struct InstructionSet {
  std::string name;
  const KernelTable<float>* f32;
  const KernelTable<double>* f64;
  bool fused;  // multiply-adds round once: all of these give the same bits

  template <class T>
  const KernelTable<T>& table() const {
    if constexpr (sizeof(T) == sizeof(float))
      return *f32;
    else
      return *f64;
  }
};

// Those that run on this processor, the best last. Never empty.
const std::vector<InstructionSet>& instruction_sets();

}  // namespace pyfastnn
