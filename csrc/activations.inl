// One struct per activation: value(z) -> a and delta(d, s) -> d f', where s is a, or z for the
// activations whose slope is no function of the output. Masks select; they never multiply.
// Formulas and sources: pyfastnn/activations.py.

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return sigmoid<T>(z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    return d * (a * (T(1) - a));
  }
};

struct Tanh {
  static constexpr const char* name = "tanh";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return hyperbolic_tangent(z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    return d * (T(1) - a * a);
  }
};

struct Relu {
  static constexpr const char* name = "relu";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return maximum(Vec<T>{}, z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    return a > T(0) ? d : Vec<T>{};
  }
};

struct LeakyRelu {
  static constexpr const char* name = "leaky_relu";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return maximum(T(0.01) * z, z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    return a > T(0) ? d : T(0.01) * d;
  }
};

struct Elu {
  static constexpr const char* name = "elu";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    // exp(z) - 1 = 2 t / (1 - t), t = tanh(z / 2): no cancellation for z <= 0.
    const Vec<T> t = hyperbolic_tangent(T(0.5) * minimum(Vec<T>{}, z));
    return z > T(0) ? z : (t + t) / (T(1) - t);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    return a > T(0) ? d : d * (T(1) + a);
  }
};

struct Softplus {
  static constexpr const char* name = "softplus";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return maximum(Vec<T>{}, z) + log_one_plus<T>(exponential<T>(-absolute<T>(z)));
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    // 1 - exp(-a) = 2 t / (1 + t), t = tanh(a / 2): no cancellation for a >= 0.
    const Vec<T> t = hyperbolic_tangent(T(0.5) * a);
    return d * ((t + t) / (T(1) + t));
  }
};

struct Gelu {
  static constexpr const char* name = "gelu";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return maximum(broadcast<T>(-40), z) * normal_cdf<T>(z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> z) {
    const Vec<T> bounded = minimum(broadcast<T>(40), maximum(broadcast<T>(-40), z));
    const Vec<T> density = T(0.3989422804014327) * exponential<T>(T(-0.5) * (bounded * bounded));
    return d * (normal_cdf<T>(z) + bounded * density);
  }
};

struct Silu {
  static constexpr const char* name = "silu";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return maximum(broadcast<T>(-800), z) * sigmoid<T>(z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> z) {
    const Vec<T> s = sigmoid<T>(z);
    const Vec<T> bounded = minimum(broadcast<T>(800), maximum(broadcast<T>(-800), z));
    return d * (s + bounded * s * (T(1) - s));
  }
};

struct Exp {
  static constexpr const char* name = "exp";
  template <class T>
  INLINE Vec<T> value(Vec<T> z) {
    return exponential<T>(z);
  }
  template <class T>
  INLINE Vec<T> delta(Vec<T> d, Vec<T> a) {
    return d * a;
  }
};

template <class T, class A>
constexpr Activation<T> elementwise() {
  return {A::name, true,
          [](index rows, index, index stride, const T* z, T* a) {
            map<T>(rows * stride, a, [](Vec<T> x) { return A::template value<T>(x); }, z);
          },
          [](index rows, index, index stride, const T* d, const T* s, T* out) {
            map<T>(rows * stride, out, [](Vec<T> x, Vec<T> y) { return A::template delta<T>(x, y); }, d, s);
          }};
}

// Nothing to do in place.
template <class T>
void identity_value(index rows, index, index stride, const T* z, T* a) {
  if (a != z) map<T>(rows * stride, a, [](Vec<T> x) { return x; }, z);
}
template <class T>
void identity_delta(index rows, index columns, index stride, const T* d, const T*, T* out) {
  identity_value<T>(rows, columns, stride, d, out);
}

// What vectors may write of a row: past its end only where there is room, since the next row may still
// have to be read.
template <class T>
INLINE index room_of_row(index columns, index stride) {
  return stride >= (columns + lanes<T> - 1) / lanes<T> * lanes<T> ? stride : columns;
}

// A row of any length. The exponentials of its last part stay in registers: to load what has been stored in part takes
// as long as all else.
template <class T>
INLINE void softmax_of_row(index columns, const T* z, T* a, index end, index room) {
  constexpr T lowest = T(-__builtin_inf());
  constexpr index step = Wide<T>::count;
  const auto read = [&](index j) {
    return first_lanes<T>(columns - j, load_wide<T>(z + j, columns - j, end - j), lowest);
  };
  Wide<T> top = broadcast_wide<T>(lowest), sum = broadcast_wide<T>(0), x;
  for (index j = 0; j < columns; j += step) {
    x = read(j);
    UNROLL for (int v = 0; v < x.vectors; v++) top.part[v] = maximum(top.part[v], x.part[v]);
  }
  const T largest = fold<T>(top, [](Vec<T> x, Vec<T> y) { return y > x ? y : x; });
  const auto add = [&](index j) {
    x = read(j);
    UNROLL for (int v = 0; v < x.vectors; v++) {
      x.part[v] = exponential<T>(x.part[v] - largest);
      sum.part[v] += x.part[v];
    }
  };
  const index last = (columns - 1) / step * step;
  for (index j = 0; j < last; j += step) {
    add(j);
    store_wide<T>(a + j, x, step, step);
  }
  add(last);
  const T scale = T(1) / sum_of<T>(sum);
  UNROLL for (int v = 0; v < x.vectors; v++) x.part[v] = x.part[v] * scale;
  if (VECTOR_BYTES == 64 && room - last < step) {
    // Not under a mask, for which the next row would wait.
    T rest[step];
    store_wide<T>(rest, x, step, step);
    __builtin_memcpy(a + last, rest, size_t(columns - last) * sizeof(T));
  } else {
    store_wide<T>(a + last, x, columns - last, room - last);
  }
  for (index j = 0; j < last; j += lanes<T>) store<T>(a + j, load<T>(a + j) * scale);
}

constexpr index few_softmax = 16;

// The same of up to lanes<T> rows of at most so many columns, each a vector here: nothing is folded, and no lanes are
// left empty.
template <class T>
INLINE void softmax_of_rows(index rows, index columns, index stride, const T* z, T* a, index room) {
  constexpr index L = lanes<T>, step = Wide<T>::count;
  T x[few_softmax * L], by_rows[L * few_softmax];
  transpose_matrix<T>(rows, columns, z, stride, x, L);
  Vec<T> top = load<T>(x), sum[few_softmax];
  for (index j = 1; j < columns; j++) top = maximum(top, load<T>(x + j * L));
  for (index j = 0; j < columns; j++) {
    sum[j] = exponential<T>(load<T>(x + j * L) - top);
    store<T>(x + j * L, sum[j]);
  }
  // In the order of softmax_of_row.
  index left = columns;
  for (index half = few_softmax / 2; half > 0; half /= 2) {
    for (index i = 0; i + half < left; i++) sum[i] += sum[i + half];
    left = clamp(left, half);
  }
  const Vec<T> scale = T(1) / sum[0];
  for (index j = 0; j < columns; j++) store<T>(x + j * L, load<T>(x + j * L) * scale);
  transpose_matrix<T>(columns, rows, x, L, by_rows, few_softmax);
  for (index r = 0; r < rows; r++) {
    for (index j = 0; j < columns; j += step)
      store_wide<T>(a + r * stride + j, load_wide<T>(by_rows + r * few_softmax + j, step, step), columns - j, room - j);
  }
}

// A NaN or +infinity makes its whole row NaN through the sum.
template <class T>
void softmax_value(index rows, index columns, index stride, const T* z, T* a) {
  const index room = room_of_row<T>(columns, stride), at_once = columns <= few_softmax ? lanes<T> : 1;
  for (index r = 0; r < rows && columns; r += at_once, z += at_once * stride, a += at_once * stride) {
    const index left = rows - r;
    if (at_once > 1 && left > 1)
      softmax_of_rows<T>(clamp(left, at_once), columns, stride, z, a, room);
    else
      softmax_of_row<T>(columns, z, a, left * stride, room);
  }
}

template <class T>
void softmax_delta(index rows, index columns, index stride, const T* d, const T* a, T* out) {
  constexpr index step = Wide<T>::count;
  const index room = room_of_row<T>(columns, stride);
  for (index r = 0; r < rows; r++, d += stride, a += stride, out += stride) {
    const index end = (rows - r) * stride;
    Wide<T> sum = broadcast_wide<T>(0);
    for (index j = 0; j < columns; j += step) {
      const Wide<T> x = first_lanes<T>(columns - j, load_wide<T>(d + j, columns - j, end - j), T(0));
      const Wide<T> y = first_lanes<T>(columns - j, load_wide<T>(a + j, columns - j, end - j), T(0));
      UNROLL for (int v = 0; v < x.vectors; v++) sum.part[v] += x.part[v] * y.part[v];
    }
    const T mean = sum_of<T>(sum);
    for (index j = 0; j < columns; j += step) {
      Wide<T> x = load_wide<T>(d + j, columns - j, end - j);
      const Wide<T> y = load_wide<T>(a + j, columns - j, end - j);
      UNROLL for (int v = 0; v < x.vectors; v++) x.part[v] = y.part[v] * (x.part[v] - mean);
      store_wide<T>(out + j, x, columns - j, room - j);
    }
  }
}

template <class T>
constexpr Activation<T> activations[] = {
    {"identity", true, identity_value<T>, identity_delta<T>},
    elementwise<T, Sigmoid>(),
    elementwise<T, Tanh>(),
    elementwise<T, Relu>(),
    elementwise<T, LeakyRelu>(),
    elementwise<T, Elu>(),
    elementwise<T, Softplus>(),
    elementwise<T, Gelu>(),
    elementwise<T, Silu>(),
    elementwise<T, Exp>(),
    {"softmax", false, softmax_value<T>, softmax_delta<T>},
};
