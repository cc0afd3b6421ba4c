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

// The softmax of each row. A NaN or +infinity makes its whole row NaN through the sum.
template <class T>
void softmax_value(index rows, index columns, index stride, const T* z, T* a) {
  constexpr T lowest = T(-__builtin_inf());
  constexpr index step = Wide<T>::count;
  const index room = room_of_row<T>(columns, stride);
  for (index r = 0; r < rows; r++, z += stride, a += stride) {
    const index end = (rows - r) * stride;
    Wide<T> top = broadcast_wide<T>(lowest), sum = broadcast_wide<T>(0);
    for (index j = 0; j < columns; j += step) {
      const Wide<T> x = first_lanes<T>(columns - j, load_wide<T>(z + j, columns - j, end - j), lowest);
      UNROLL for (int v = 0; v < x.vectors; v++) top.part[v] = maximum(top.part[v], x.part[v]);
    }
    const T largest = fold<T>(top, [](Vec<T> x, Vec<T> y) { return y > x ? y : x; });
    for (index j = 0; j < columns; j += step) {
      Wide<T> x = first_lanes<T>(columns - j, load_wide<T>(z + j, columns - j, end - j), lowest);
      UNROLL for (int v = 0; v < x.vectors; v++) {
        x.part[v] = exponential<T>(x.part[v] - largest);
        sum.part[v] += x.part[v];
      }
      store_wide<T>(a + j, x, columns - j, room - j);
    }
    const T scale = T(1) / sum_of<T>(sum);
    for (index j = 0; j < columns; j += step) {
      Wide<T> x = load_wide<T>(a + j, columns - j, end - j);
      UNROLL for (int v = 0; v < x.vectors; v++) x.part[v] = x.part[v] * scale;
      store_wide<T>(a + j, x, columns - j, room - j);
    }
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
