// Vectors of VECTOR_BYTES by compiler extension. Everything here has internal linkage.

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using Bits = std::uint32_t;
};
template <>
struct Simd<double> {
  using Bits = std::uint64_t;
};

template <class T>
constexpr int lanes = VECTOR_BYTES / sizeof(T);
template <class T>
using Vec __attribute__((vector_size(VECTOR_BYTES))) = T;
template <class T>
using UnalignedVec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias)) = T;
template <class T>
using BitsVec __attribute__((vector_size(VECTOR_BYTES))) = typename Simd<T>::Bits;

template <class T>
INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const UnalignedVec<T>*>(p);
}
template <class T>
INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<UnalignedVec<T>*>(p) = x;
}
template <class T>
INLINE Vec<T> broadcast(T s) {
  return s - Vec<T>{};
}

// The first count < lanes elements; the others are zero.
template <class T>
INLINE Vec<T> load_part(const T* p, index count) {
  Vec<T> x{};
  __builtin_memcpy(&x, p, size_t(count) * sizeof(T));
  return x;
}
template <class T>
INLINE void store_part(T* p, Vec<T> x, index count) {
  __builtin_memcpy(p, &x, size_t(count) * sizeof(T));
}

// out[i] = f(x[i]...) elementwise.
template <class T, class F, class... X>
INLINE void map(index count, T* out, F f, const X*... x) {
  index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) store<T>(out + i, f(load<T>(x + i)...));
  if (i < count) store_part<T>(out + i, f(load_part<T>(x + i, count - i)...), count - i);
}

// minimum and maximum of a bound and x; where x is NaN, NaN. GCC compiles the comparison to a
// compare and a blend, hence the intrinsics, whose second operand is the result on NaN.
#if defined(__AVX512F__) && VECTOR_BYTES == 64
#define VECTOR_MINMAX(T, suffix)                                                          \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return _mm512_min_##suffix(bound, x); } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return _mm512_max_##suffix(bound, x); } \
  INLINE Vec<T> square_root(Vec<T> x) { return _mm512_sqrt_##suffix(x); }
VECTOR_MINMAX(float, ps)
VECTOR_MINMAX(double, pd)
#elif defined(__AVX__) && VECTOR_BYTES == 32
#define VECTOR_MINMAX(T, suffix)                                                          \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return _mm256_min_##suffix(bound, x); } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return _mm256_max_##suffix(bound, x); } \
  INLINE Vec<T> square_root(Vec<T> x) { return _mm256_sqrt_##suffix(x); }
VECTOR_MINMAX(float, ps)
VECTOR_MINMAX(double, pd)
#elif defined(__SSE2__) && VECTOR_BYTES == 16
#define VECTOR_MINMAX(T, suffix)                                                       \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return _mm_min_##suffix(bound, x); } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return _mm_max_##suffix(bound, x); } \
  INLINE Vec<T> square_root(Vec<T> x) { return _mm_sqrt_##suffix(x); }
VECTOR_MINMAX(float, ps)
VECTOR_MINMAX(double, pd)
#else
#define VECTOR_MINMAX(T, root)                                                    \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return bound < x ? bound : x; } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return bound > x ? bound : x; } \
  INLINE Vec<T> square_root(Vec<T> x) {                                           \
    for (int i = 0; i < lanes<T>; i++) x[i] = root(x[i]);                         \
    return x;                                                                     \
  }
VECTOR_MINMAX(float, __builtin_sqrtf)
VECTOR_MINMAX(double, __builtin_sqrt)
#endif

// A register's worth of lanes that is the same on every machine: row reductions summed in it have
// the same bits on every instruction set.
template <class T>
struct Wide {
  static constexpr int vectors = 64 / VECTOR_BYTES;
  static constexpr int count = 64 / sizeof(T);
  Vec<T> part[vectors];
};

template <class T>
INLINE Wide<T> load_wide(const T* p, index count, T fill) {
  Wide<T> wide;
  if (count >= Wide<T>::count) {
    UNROLL for (int v = 0; v < Wide<T>::vectors; v++) wide.part[v] = load<T>(p + v * lanes<T>);
  } else {
    UNROLL for (int v = 0; v < Wide<T>::vectors; v++) wide.part[v] = broadcast<T>(fill);
    __builtin_memcpy(&wide, p, size_t(count) * sizeof(T));
  }
  return wide;
}

template <class T>
INLINE void store_wide(T* p, const Wide<T>& wide, index count) {
  __builtin_memcpy(p, &wide, size_t(count < Wide<T>::count ? count : Wide<T>::count) * sizeof(T));
}

// Lanes folded by halves, in an order that no instruction set changes.
template <class T, class F>
INLINE T fold(const Wide<T>& wide, F f) {
  T lane[Wide<T>::count];
  __builtin_memcpy(lane, &wide, sizeof lane);
  UNROLL for (int half = Wide<T>::count / 2; half > 0; half /= 2) {
    UNROLL for (int i = 0; i < half; i++) lane[i] = f(lane[i], lane[i + half]);
  }
  return lane[0];
}
