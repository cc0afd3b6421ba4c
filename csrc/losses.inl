// One struct per loss: value(a, y) and, unless it only ever meets its matched output activation,
// gradient(a, y) = d value / d a. Formulas and sources: pyfastnn/losses.py.

struct MeanSquare {
  static constexpr const char* name = "mse";
  template <class T>
  INLINE Vec<T> value(Vec<T> a, Vec<T> y) {
    return (a - y) * (a - y);
  }
  template <class T>
  INLINE Vec<T> gradient(Vec<T> a, Vec<T> y) {
    return T(2) * (a - y);
  }
};

struct Quadratic {
  static constexpr const char* name = "quadratic";
  template <class T>
  INLINE Vec<T> value(Vec<T> a, Vec<T> y) {
    return T(0.5) * ((a - y) * (a - y));
  }
  template <class T>
  INLINE Vec<T> gradient(Vec<T> a, Vec<T> y) {
    return a - y;
  }
};

struct Matched {
  template <class T>
  INLINE Vec<T> gradient(Vec<T> a, Vec<T> y) {
    return a - y;
  }
};

struct CrossEntropy : Matched {
  static constexpr const char* name = "cross_entropy";
  template <class T>
  INLINE Vec<T> value(Vec<T> a, Vec<T> y) {
    return -y * log_bounded<T>(a);
  }
};

struct BinaryCrossEntropy : Matched {
  static constexpr const char* name = "binary_cross_entropy";
  template <class T>
  INLINE Vec<T> value(Vec<T> a, Vec<T> y) {
    return -(y * log_bounded<T>(a) + (T(1) - y) * log_bounded<T>(T(1) - a));
  }
};

struct Huber {
  static constexpr const char* name = "huber";
  template <class T>
  INLINE Vec<T> value(Vec<T> a, Vec<T> y) {
    const Vec<T> r = absolute<T>(a - y);
    return r > T(1) ? r - T(0.5) : T(0.5) * r * r;
  }
  template <class T>
  INLINE Vec<T> gradient(Vec<T> a, Vec<T> y) {
    return minimum(broadcast<T>(1), maximum(broadcast<T>(-1), a - y));
  }
};

struct Poisson {
  static constexpr const char* name = "poisson";
  template <class T>
  INLINE Vec<T> value(Vec<T> a, Vec<T> y) {
    return a - y + y * (log_bounded<T>(y) - log_bounded<T>(a));
  }
  template <class T>
  INLINE Vec<T> gradient(Vec<T> a, Vec<T> y) {
    // An output that has underflowed must not make infinities: see losses.py.
    return T(1) - y / maximum(broadcast<T>(Constants<T>::root_tiny), a);
  }
};

// Rows whose losses are summed lane by lane; their sum goes on in double precision.
constexpr index rows_summed = 32;

template <class T, class L>
double loss_rows(const LossRows<T>& g) {
  double total = 0;
  Wide<T> sum = broadcast_wide<T>(0);
  T weight = 1, factor = T(g.scale);
  // On the first count <= Wide::count elements from column j; `reach` may be accessed.
  const auto add = [&](index r, index j, index count, index reach, index y_reach) {
    const Wide<T> x = load_wide<T>(g.a + r * g.stride + j, count, reach);
    const Wide<T> t = load_wide<T>(g.y + r * g.y_stride + j, count, y_reach);
    Wide<T> value, delta;
    UNROLL for (int v = 0; v < x.vectors; v++) {
      value.part[v] = L::template value<T>(x.part[v], t.part[v]);
      if (g.matched)
        delta.part[v] = factor * (x.part[v] - t.part[v]);
      else
        delta.part[v] = factor * L::template gradient<T>(x.part[v], t.part[v]);
    }
    value = first_lanes<T>(count, value, T(0));
    UNROLL for (int v = 0; v < x.vectors; v++) sum.part[v] += weight * value.part[v];
    if (g.d) store_wide<T>(g.d + r * g.stride + j, delta, count, reach);
  };
  constexpr index step = Wide<T>::count;
  const index whole = g.columns / step * step, rest = g.columns - whole;
  for (index r = 0; r < g.rows; r++) {
    if (g.weight) {
      weight = g.weight[r];
      factor = T(g.scale * double(weight));
    }
    for (index j = 0; j < whole; j += step) add(r, j, step, step, step);
    if (rest) {
      const index reach = (g.rows - r) * g.stride - whole, y_reach = (g.rows - r) * g.y_stride - whole;
      if (reach >= step && y_reach >= step)
        add(r, whole, rest, step, step);
      else
        add(r, whole, rest, reach, y_reach);
    }
    if (r % rows_summed == rows_summed - 1) {
      total += double(sum_of<T>(sum));
      sum = broadcast_wide<T>(0);
    }
  }
  return total + double(sum_of<T>(sum));
}

// Cross-entropy with integer labels: the logarithms of many rows at once.
template <class T>
double label_cross_entropy(const LossRows<T>& g, const std::int64_t* labels) {
  constexpr index step = Wide<T>::count;
  Wide<T> sum = broadcast_wide<T>(0);
  for (index first = 0; first < g.rows; first += step) {
    const index count = g.rows - first < step ? g.rows - first : step;
    T chosen[step], weights[step] = {};
    for (T& p : chosen) p = 1;
    for (index i = 0; i < count; i++) {
      const index r = first + i;
      const T* const a = g.a + r * g.stride;
      chosen[i] = a[labels[r]];
      weights[i] = g.weight ? g.weight[r] : T(1);
      if (!g.d) continue;
      const T factor = T(g.scale * double(weights[i]));
      T* const d = g.d + r * g.stride;
      const index end = (g.rows - r) * g.stride;
      for (index j = 0; j < g.columns; j += step) {
        Wide<T> x = load_wide<T>(a + j, g.columns - j, end - j);
        UNROLL for (int v = 0; v < x.vectors; v++) x.part[v] = factor * x.part[v];
        store_wide<T>(d + j, x, g.columns - j, end - j);
      }
      d[labels[r]] = factor * (a[labels[r]] - T(1));
    }
    const Wide<T> p = load_wide<T>(chosen, step, step), weight = load_wide<T>(weights, step, step);
    // As multiply-adds into one sum: the compiler could fuse a product with an addition of the fold below.
    UNROLL for (int v = 0; v < p.vectors; v++) sum.part[v] -= weight.part[v] * log_bounded<T>(p.part[v]);
  }
  return double(sum_of<T>(sum));
}

template <class T>
constexpr Loss<T> losses[] = {
    {MeanSquare::name, loss_rows<T, MeanSquare>},
    {Quadratic::name, loss_rows<T, Quadratic>},
    {CrossEntropy::name, loss_rows<T, CrossEntropy>},
    {BinaryCrossEntropy::name, loss_rows<T, BinaryCrossEntropy>},
    {Huber::name, loss_rows<T, Huber>},
    {Poisson::name, loss_rows<T, Poisson>},
};
