// Compares the square root that is made of multiply-adds to the processor's own, and prints the numbers at which they
// differ: test_roots.py. In vectors of 64 bytes, for which it may be used, on a processor that need not have them.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <type_traits>
#include <utility>

#include "kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyfastnn {
namespace {

#include "coefficients.inl"
#include "simd.inl"
#include "vmath.inl"

template <class T>
void compare(const T (&x)[lanes<T>]) {
  T root[lanes<T>];
  store<T>(root, multiplied_root<T>(load<T>(x)));
  for (int i = 0; i < lanes<T>; i++) {
    const T expected = std::sqrt(x[i]);
    if (std::memcmp(&expected, &root[i], sizeof(T)))
      std::printf("%a: %a, not %a\n", double(x[i]), double(root[i]), double(expected));
  }
}

// So many numbers from that of `first` on, in the order of their bits.
template <class T>
void from(T first, long count) {
  typename Simd<T>::Bits bits;
  std::memcpy(&bits, &first, sizeof(T));
  for (long i = 0; i < count; i += lanes<T>) {
    T x[lanes<T>];
    for (int lane = 0; lane < lanes<T>; lane++, bits++) std::memcpy(x + lane, &bits, sizeof(T));
    compare<T>(x);
  }
}

void run() {
  constexpr long binade = 1 << 23;
  from<float>(1, 2 * binade);  // those of the other exponents are these, scaled
  for (float first : {0.f, 0x1p-126f, 0x1p-101f, 0x1p-100f, 0x1p126f}) from<float>(first, binade / 8);
  from<float>(0x1.ffffe2p127f, 16);  // up to infinity

  for (double first : {0., 0x1p-1022, 0x1p-961, 0x1p-960, 1., 2., 0x1p1022}) from<double>(first, binade / 8);
  from<double>(0x1.ffffffffffff9p1023, 8);
  std::mt19937_64 random(0);
  for (int i = 0; i < 500'000; i++) {
    // What lies a unit beside a square: its root is about half a unit beside a number, or a quarter.
    double x[lanes<double>];
    for (double& each : x) {
      const double root = 0x1p26 + double(random() >> 38);
      each = std::nextafter(root * root, random() % 2 ? 0. : INFINITY);
    }
    compare<double>(x);
  }
}

}  // namespace
}  // namespace pyfastnn

int main() { pyfastnn::run(); }
