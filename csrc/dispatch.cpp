#include "dispatch.hpp"

namespace pyfastnn {

#define DECLARE(isa)                                   \
  extern const KernelTable<float> kernels_##isa##_f32; \
  extern const KernelTable<double> kernels_##isa##_f64;
#define ENTRY(isa, fused) \
  InstructionSet { #isa, &kernels_##isa##_f32, &kernels_##isa##_f64, fused }

DECLARE(baseline)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> present = [] {
    std::vector<InstructionSet> list{ENTRY(baseline, false)};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(ENTRY(avx2, true));
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
      list.push_back(ENTRY(avx512, true));
#endif
    return list;
  }();
  return present;
}

}  // namespace pyfastnn
