// Elementary functions of vectors, to a few units in the last place (float tanh: 6). NaN gives NaN; results below
// about 1.5 times the smallest normal number are flushed to zero. Coefficients: coefficients.inl.

template <class T>
struct Constants;
template <>
struct Constants<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float exp_infinite = 89, exp_underflow = -86.98f;
  static constexpr float tiny = 1.17549435e-38f, root_tiny = 1.08420217e-19f;
  static constexpr float small_square = 0x1p-100f, scale = 0x1p32f;
  static constexpr std::uint32_t inverse_root = 0x5f375a86;
};
template <>
struct Constants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0.693145751953125, ln2_low = 1.42860682030941723212e-6;
  static constexpr double exp_infinite = 710, exp_underflow = -708.0;
  static constexpr double tiny = 2.2250738585072014e-308, root_tiny = 1.4916681462400413e-154;
  static constexpr double small_square = 0x1p-960, scale = 0x1p64;
  static constexpr std::uint64_t inverse_root = 0x5fe6eb50c7b537a9;
};

#define BY_TYPE(name)                         \
  template <class T>                          \
  INLINE const auto& name() {                 \
    if constexpr (sizeof(T) == sizeof(float)) \
      return coefficients::name##_f32;        \
    else                                      \
      return coefficients::name##_f64;        \
  }
BY_TYPE(exp)
BY_TYPE(log)
BY_TYPE(log1p)
BY_TYPE(tail)
#undef BY_TYPE

template <class T, int Count>
INLINE Vec<T> polynomial(const double (&c)[Count], Vec<T> x) {
  Vec<T> p = broadcast<T>(T(c[Count - 1]));
  UNROLL for (int i = Count - 2; i >= 0; i--) p = p * x + T(c[i]);
  return p;
}

template <class T>
constexpr typename Simd<T>::Bits sign_bit = typename Simd<T>::Bits(1) << (8 * sizeof(T) - 1);

template <class T>
INLINE Vec<T> absolute(Vec<T> x) {
  return (Vec<T>)((BitsVec<T>)x & ~sign_bit<T>);
}
template <class T>
INLINE Vec<T> with_sign(Vec<T> magnitude, Vec<T> sign) {
  return (Vec<T>)((BitsVec<T>)magnitude | ((BitsVec<T>)sign & sign_bit<T>));
}

// 2^(k + shift) for z = k + magic.
template <class T>
INLINE Vec<T> power_of_two(Vec<T> z, int shift) {
  using C = Constants<T>;
  const auto bias = typename Simd<T>::Bits((1 << (8 * sizeof(T) - C::mantissa_bits - 2)) - 1 + shift);
  return (Vec<T>)(((BitsVec<T>)z + bias) << C::mantissa_bits);
}

// x = k ln 2 + r, |r| <= ln 2 / 2: returns exp(r) - 1 and z = k + magic.
template <class T>
INLINE Vec<T> reduced_expm1(Vec<T> x, Vec<T>& z) {
  using C = Constants<T>;
  z = x * T(1.4426950408889634) + C::magic;
  const Vec<T> k = z - C::magic;
  const Vec<T> r = (x - k * C::ln2_high) - k * C::ln2_low;
  return polynomial<T>(exp<T>(), r) * (r * r) + r;
}

// exp(x) for x >= exp_underflow. Past the overflow, where 2^k would lose its exponent, it is bounded to infinity.
template <class T>
INLINE Vec<T> normal_exponential(Vec<T> x) {
  Vec<T> z;
  const Vec<T> p = reduced_expm1<T>(minimum(broadcast(Constants<T>::exp_infinite), x), z) + T(1);
  // Twice p by half the power: 2^128 would be infinite already.
  return (p + p) * power_of_two<T>(z, -1);
}

template <class T>
INLINE Vec<T> exponential(Vec<T> x) {
  return x < Constants<T>::exp_underflow ? Vec<T>{} : normal_exponential<T>(x);
}

template <class T>
INLINE Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + normal_exponential<T>(maximum(broadcast(Constants<T>::exp_underflow), -x)));
}

INLINE Vec<float> hyperbolic_tangent(Vec<float> x) {
  // Past 9.01 it is one: by the ratio to x of there, the quotient exceeds one. Before, a rounding error may do that.
  const Vec<float> u = minimum(broadcast(9.01f * 9.01f), x * x);
  const Vec<float> t =
      x * polynomial<float>(coefficients::tanh_top_f32, u) / polynomial<float>(coefficients::tanh_bottom_f32, u);
  return minimum(broadcast(1.f), maximum(broadcast(-1.f), t));
}

INLINE Vec<double> hyperbolic_tangent(Vec<double> x) {
  // expm1(2|x|) / (expm1(2|x|) + 2): no cancellation near zero. Past 20 it rounds to one.
  const Vec<double> u = minimum(broadcast(20.), absolute<double>(x));
  Vec<double> z;
  const Vec<double> p = reduced_expm1<double>(u + u, z);
  const Vec<double> power = power_of_two<double>(z, 0);
  const Vec<double> e = power * p + (power - 1.);
  return with_sign<double>(e / (e + 2.), x);
}

// log(1 + e) for 0 <= e <= 1, as 2 atanh(e / (2 + e)).
template <class T>
INLINE Vec<T> log_one_plus(Vec<T> e) {
  const Vec<T> s = e / (T(2) + e), u = s * s;
  return s * u * polynomial<T>(log1p<T>(), u) + (s + s);
}

// log(max(x, tiny)), as k ln 2 + log(m) with 1/sqrt(2) <= m < sqrt(2).
template <class T>
INLINE Vec<T> log_bounded(Vec<T> x) {
  using C = Constants<T>;
  using Bits = typename Simd<T>::Bits;
  x = maximum(broadcast<T>(C::tiny), x);
  Bits root;
  const T half_root = T(0.70710678118654752);
  __builtin_memcpy(&root, &half_root, sizeof root);
  // Biased so that the shift is of a non-negative number and the magic sum below stays exact.
  constexpr Bits bias = Bits(1) << (8 * sizeof(T) - C::mantissa_bits - 2);
  const BitsVec<T> exponent = ((BitsVec<T>)x - root + (bias << C::mantissa_bits)) >> C::mantissa_bits;
  const Vec<T> m = (Vec<T>)((BitsVec<T>)x - ((exponent - bias) << C::mantissa_bits));
  const Vec<T> k = (Vec<T>)(exponent + (BitsVec<T>)broadcast<T>(C::magic)) - (C::magic + T(bias));
  const Vec<T> s = (m - T(1)) / (m + T(1)), u = s * s;
  const Vec<T> y = k * C::ln2_high + (s * u * polynomial<T>(log<T>(), u) + (k * C::ln2_low + (s + s)));
  return x < T(__builtin_inf()) ? y : x;
}

// sqrt(x) for x >= 0 by multiply-adds, rounded to nearest: tried at every float, and at all doubles whose roots lie so
// near to the middle between two that the last step could miss it (tests/roots.cpp).
template <class T>
INLINE Vec<T> multiplied_root(Vec<T> x) {
  using C = Constants<T>;
  const auto polished = [](Vec<T> e) { return polynomial<T>(coefficients::inverse_root_f32, e); };
  // Scaled up where x - s^2 below would underflow.
  const auto small = x < C::small_square;
  const Vec<T> y = small ? x * (C::scale * C::scale) : x;
  // r is 1/sqrt(y) to 3.5 %, by halving and negating the exponent (Lomont, Fast inverse square root, 2003). With
  // e = 1 - y r^2 it is r / sqrt(1 - e).
  Vec<T> r = (Vec<T>)(C::inverse_root - ((BitsVec<T>)y >> 1));
  Vec<T> e = T(1) - (y * r) * r;
  r += (r * e) * polished(e);
  if constexpr (sizeof(T) == sizeof(double)) {
    e = T(1) - (y * r) * r;
    r += (r * e) * (T(0.375) * e + T(0.5));
  }
  // A step of Newton's from a root that errs by some units in the last place (Markstein, IBM Journal of Research and
  // Development 34, 1990).
  const Vec<T> s = y * r, root = s + (T(0.5) * r) * (y - s * s);
  return x < T(__builtin_inf()) ? (small ? root * (1 / C::scale) : root) : x;
}

// sqrt(x), rounded to nearest. In 64 bytes the processor's own takes longer than multiply-adds, and keeps the divisions
// around it waiting; but AMD's (Zen 4) takes half the time of multiply-adds. Of doubles a little more: there one of two
// vectors goes each way, and both units work.
template <class T>
INLINE Vec<T> root(Vec<T> x, [[maybe_unused]] bool second) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if (!__builtin_cpu_is("amd") || (second && sizeof(T) == sizeof(double))) return multiplied_root<T>(x);
  if constexpr (sizeof(T) == sizeof(float))
    return _mm512_sqrt_ps(x);
  else
    return _mm512_sqrt_pd(x);
#elif defined(__x86_64__) && VECTOR_BYTES == 32
  if constexpr (sizeof(T) == sizeof(float))
    return _mm256_sqrt_ps(x);
  else
    return _mm256_sqrt_pd(x);
#elif defined(__x86_64__) && VECTOR_BYTES == 16
  if constexpr (sizeof(T) == sizeof(float))
    return _mm_sqrt_ps(x);
  else
    return _mm_sqrt_pd(x);
#else
  return multiplied_root<T>(x);
#endif
}

// P(Z <= z) of the standard normal distribution. In the left tail the rounding of z^2 / 2 costs z^2 / 2
// units in the last place, as one in z does.
template <class T>
INLINE Vec<T> normal_cdf(Vec<T> z) {
  const Vec<T> u = minimum(broadcast<T>(40), absolute<T>(z));
  const Vec<T> h = polynomial<T>(tail<T>(), (u - T(4)) / (u + T(4)));
  const Vec<T> upper = exponential<T>(T(-0.5) * (u * u)) * h / (T(1) + u);
  return z > T(0) ? T(1) - upper : upper;
}
