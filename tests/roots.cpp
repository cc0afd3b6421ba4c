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

// All doubles whose roots lie within 2^-46 units of m + 1/2, the middle between two numbers, 2^52 <= m < 2^53: of 2^54
// or 2^55 times their significands, (2 m + 1)^2 differs by less than 1024. The last step of multiplied_root errs by
// some 2^-50, so that others are rounded right. Odd squares are one more than a multiple of eight.
void from_middles() {
  for (int bits : {54, 55}) {
    for (int difference = -1023; difference < 1024; difference += 8) {
      const auto wanted = std::uint64_t(difference);
      std::uint64_t root = 1;  // of it modulo 2^k, by Hensel's lemma
      for (int k = 3; k < bits; k++) root += ((root * root - wanted) >> k & 1) << (k - 1);
      const std::uint64_t modulus = std::uint64_t(1) << bits;
      for (std::uint64_t odd : {root, modulus - root, root + modulus / 2, modulus / 2 - root}) {
        odd &= modulus - 1;
        const auto square = static_cast<unsigned __int128>(odd) * odd - static_cast<__int128>(difference);
        const double significand = double(std::uint64_t(square >> bits));
        if (odd < 1ull << 53 || odd >= 1ull << 54 || significand < 0x1p52 || significand >= 0x1p53) continue;
        double x[lanes<double>];
        for (int lane = 0; lane < lanes<double>; lane++)
          x[lane] = std::ldexp(significand, bits - 106 + 200 * (lane - lanes<double> / 2));
        compare<double>(x);
      }
    }
  }
}

void run() {
  constexpr long binade = 1 << 23;
  from<float>(1, 2 * binade);  // those of the other exponents are these, scaled
  for (float first : {0.f, 0x1p-126f, 0x1p-101f, 0x1p-100f, 0x1p126f}) from<float>(first, binade / 8);
  from<float>(0x1.ffffe2p127f, 16);  // up to infinity

  for (double first : {0., 0x1p-1022, 0x1p-961, 0x1p-960, 1., 2., 0x1p1022}) from<double>(first, binade / 8);
  from<double>(0x1.ffffffffffff9p1023, 8);
  from_middles();
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
