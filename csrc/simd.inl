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

// The same vector in a register, for several operations: else each of them may load it again, which takes longer than
// what they do with it.
template <class T>
INLINE Vec<T> kept(Vec<T> x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// The same address, of unknown origin to the compiler: it computes those of other rows from it when it needs them,
// instead of all ahead of a loop, for which there are not registers enough.
template <class T>
INLINE T* opaque(T* address) {
  asm("" : "+r"(address));
  return address;
}

template <class T>
INLINE Vec<T> broadcast(T s) {
  return s - Vec<T>{};
}

template <class T, int... Lane>
INLINE BitsVec<T> lane_numbers(std::integer_sequence<int, Lane...>) {
  return BitsVec<T>{Lane...};
}

// True in the first count <= lanes lanes.
template <class T>
INLINE auto first_of(index count) {
  using Bits = typename Simd<T>::Bits;
  return lane_numbers<T>(std::make_integer_sequence<int, lanes<T>>{}) < Bits(count);
}

// The first count <= lanes elements; the others are zero.
template <class T>
INLINE Vec<T> load_part(const T* p, index count) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4)
    return _mm512_maskz_loadu_ps(__mmask16(mask), p);
  else
    return _mm512_maskz_loadu_pd(__mmask8(mask), p);
#elif defined(__AVX__) && VECTOR_BYTES == 32
  const auto mask = __m256i(first_of<T>(count));
  if constexpr (sizeof(T) == 4)
    return _mm256_maskload_ps(p, mask);
  else
    return _mm256_maskload_pd(p, mask);
#else
  Vec<T> x{};
  __builtin_memcpy(&x, p, size_t(count) * sizeof(T));
  return x;
#endif
}
template <class T>
INLINE void store_part(T* p, Vec<T> x, index count) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16(mask), x);
  else
    _mm512_mask_storeu_pd(p, __mmask8(mask), x);
#elif defined(__AVX__) && VECTOR_BYTES == 32
  // By halves: a masked store takes a Zen 3 twelve cycles.
  if (count == lanes<T>) return store<T>(p, x);
  if constexpr (sizeof(T) == 4) {
    __m128 rest = _mm256_castps256_ps128(x);
    if (count & 4) {
      _mm_storeu_ps(p, rest);
      p += 4;
      rest = _mm256_extractf128_ps(x, 1);
    }
    if (count & 2) {
      __builtin_memcpy(p, &rest, 2 * sizeof(T));
      p += 2;
      rest = _mm_movehl_ps(rest, rest);
    }
    if (count & 1) *p = rest[0];
  } else {
    __m128d rest = _mm256_castpd256_pd128(x);
    if (count & 2) {
      _mm_storeu_pd(p, rest);
      p += 2;
      rest = _mm256_extractf128_pd(x, 1);
    }
    if (count & 1) *p = rest[0];
  }
#else
  __builtin_memcpy(p, &x, size_t(count) * sizeof(T));
#endif
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
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return _mm512_max_##suffix(bound, x); }
VECTOR_MINMAX(float, ps)
VECTOR_MINMAX(double, pd)
#elif defined(__AVX__) && VECTOR_BYTES == 32
#define VECTOR_MINMAX(T, suffix)                                                          \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return _mm256_min_##suffix(bound, x); } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return _mm256_max_##suffix(bound, x); }
VECTOR_MINMAX(float, ps)
VECTOR_MINMAX(double, pd)
#elif defined(__SSE2__) && VECTOR_BYTES == 16
#define VECTOR_MINMAX(T, suffix)                                                       \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return _mm_min_##suffix(bound, x); } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return _mm_max_##suffix(bound, x); }
VECTOR_MINMAX(float, ps)
VECTOR_MINMAX(double, pd)
#else
#define VECTOR_MINMAX(T)                                                          \
  INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) { return bound < x ? bound : x; } \
  INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) { return bound > x ? bound : x; }
VECTOR_MINMAX(float)
VECTOR_MINMAX(double)
#endif

// x in the first count < lanes lanes, y in the others.
template <class T>
INLINE Vec<T> first_lanes(index count, Vec<T> x, Vec<T> y) {
  return first_of<T>(count) ? x : y;
}

// A register's worth of lanes that is the same on every machine: row reductions summed in it have
// the same bits on every instruction set.
template <class T>
struct Wide {
  static constexpr int vectors = 64 / VECTOR_BYTES;
  static constexpr int count = 64 / sizeof(T);
  Vec<T> part[vectors];
};

template <class T>
INLINE Wide<T> broadcast_wide(T x) {
  Wide<T> wide;
  UNROLL for (int v = 0; v < wide.vectors; v++) wide.part[v] = broadcast<T>(x);
  return wide;
}

// x in the first count lanes, fill in the others.
template <class T>
INLINE Wide<T> first_lanes(index count, Wide<T> x, T fill) {
  UNROLL for (int v = 0; v < x.vectors; v++) {
    const index left = count - v * lanes<T>;
    if (left < lanes<T>) x.part[v] = first_lanes<T>(left < 0 ? 0 : left, x.part[v], broadcast<T>(fill));
  }
  return x;
}

// The first count elements, and anything past them; `reach` >= count elements may be read.
template <class T>
INLINE Wide<T> load_wide(const T* p, index count, index reach) {
  Wide<T> wide;
  UNROLL for (int v = 0; v < wide.vectors; v++) {
    const index left = count - v * lanes<T>;
    if (reach - v * lanes<T> >= lanes<T>)
      wide.part[v] = load<T>(p + v * lanes<T>);
    else if (left > 0)
      wide.part[v] = load_part<T>(p + v * lanes<T>, left);
    else
      wide.part[v] = Vec<T>{};
  }
  return wide;
}

// The first count elements; up to `reach` >= count may be overwritten.
template <class T>
INLINE void store_wide(T* p, const Wide<T>& wide, index count, index reach) {
  UNROLL for (int v = 0; v < wide.vectors; v++) {
    const index left = count - v * lanes<T>;
    if (left <= 0) return;
    if (reach - v * lanes<T> >= lanes<T>)
      store<T>(p + v * lanes<T>, wide.part[v]);
    else
      store_part<T>(p + v * lanes<T>, wide.part[v], left);
  }
}

template <class T, int Half, class F, int... Lane>
INLINE Vec<T> fold_half(Vec<T> x, F f, std::integer_sequence<int, Lane...>) {
  return f(x, __builtin_shufflevector(x, x, (Lane ^ Half)...));
}

template <class T, int Half, class F>
INLINE T fold(Vec<T> x, F f) {
  if constexpr (Half == 0)
    return x[0];
  else
    return fold<T, Half / 2>(fold_half<T, Half>(x, f, std::make_integer_sequence<int, lanes<T>>{}), f);
}

// Lanes folded by halves, in an order that no instruction set changes: first the vectors, then what is left of them.
template <class T, class F>
INLINE Vec<T> fold_vectors(Wide<T> wide, F f) {
  UNROLL for (int half = wide.vectors / 2; half > 0; half /= 2) {
    UNROLL for (int v = 0; v < half; v++) wide.part[v] = f(wide.part[v], wide.part[v + half]);
  }
  return wide.part[0];
}

template <class T, class F>
INLINE T fold(Wide<T> wide, F f) {
  return fold<T, lanes<T> / 2>(fold_vectors<T>(wide, f), f);
}

template <class T>
constexpr auto plus = [](Vec<T> x, Vec<T> y) { return x + y; };

template <class T>
INLINE T sum_of(const Wide<T>& wide) {
  return fold<T>(wide, plus<T>);
}
