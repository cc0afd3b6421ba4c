// Compiled once per instruction set, with VECTOR_BYTES and ISA_NAME defined by CMakeLists.txt.
//
// Exports exactly one symbol per dtype. Nothing else may have external linkage, or the linker could
// keep the copy of a function that only new processors can run: hence the unnamed namespace around
// every definition, no standard library functions, and constant initialisation throughout.
#include "kernels.hpp"

#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyfastnn {
namespace {

#include "coefficients.inl"
#include "simd.inl"
#include "vmath.inl"
#include "tiles.inl"
#include "packing.inl"
#include "activations.inl"
#include "losses.inl"
#include "optimizers.inl"
#include "few.inl"
#include "dots.inl"
#include "outputs.inl"
#include "products.inl"
#include "limits.inl"

template <class T>
constexpr KernelTable<T> make_table() {
  return {gemm<T, RowsOfA<T>, false>,
          gemm_at<T>,
          gemm<T, RowsOfA<T>, true>,
          gemm_dots<T>,
          few_outputs<T>,
          few_outputs_at<T>,
          transpose_matrix<T>,
          spread<T>,
          gather<T>,
          lanes<T>,
          add_rows<T>,
          add_terms<T>,
          activations<T>,
          int(sizeof activations<T> / sizeof *activations<T>),
          losses<T>,
          int(sizeof losses<T> / sizeof *losses<T>),
          label_cross_entropy<T>,
          rules<T>,
          int(sizeof rules<T> / sizeof *rules<T>),
          multiply_add_rounds<T>,
          multiply_add_chains * lanes<T>,
          read_all<T>};
}

}  // namespace

#define TABLE_NAME_(isa, dtype) kernels_##isa##_##dtype
#define TABLE_NAME(isa, dtype) TABLE_NAME_(isa, dtype)
extern const KernelTable<float> TABLE_NAME(ISA_NAME, f32);
extern const KernelTable<double> TABLE_NAME(ISA_NAME, f64);
constexpr KernelTable<float> TABLE_NAME(ISA_NAME, f32) = make_table<float>();
constexpr KernelTable<double> TABLE_NAME(ISA_NAME, f64) = make_table<double>();

}  // namespace pyfastnn
