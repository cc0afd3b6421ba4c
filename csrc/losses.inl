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

// The sum over one row of l(a, y), whose order no instruction set changes; d = factor times the
// derivative where d is not null.
template <class T, class L>
T loss_row(index columns, const T* a, const T* y, T factor, bool matched, T* d) {
  Wide<T> sum = load_wide<T>(a, 0, T(0));
  for (index j = 0; j < columns; j += Wide<T>::count) {
    const index count = columns - j;
    const Wide<T> x = load_wide<T>(a + j, count, T(0)), t = load_wide<T>(y + j, count, T(0));
    Wide<T> value, delta;
    UNROLL for (int v = 0; v < x.vectors; v++) {
      value.part[v] = L::template value<T>(x.part[v], t.part[v]);
      if (matched)
        delta.part[v] = factor * (x.part[v] - t.part[v]);
      else
        delta.part[v] = factor * L::template gradient<T>(x.part[v], t.part[v]);
    }
    if (count < Wide<T>::count) value = load_wide<T>(reinterpret_cast<const T*>(&value), count, T(0));
    UNROLL for (int v = 0; v < x.vectors; v++) sum.part[v] += value.part[v];
    if (d) store_wide<T>(d + j, delta, count);
  }
  return fold<T>(sum, [](T p, T q) { return p + q; });
}

template <class T, class L>
double loss_rows(index rows, index columns, const T* a, const T* y, const T* weight, double scale, bool matched, T* d) {
  double sum = 0;
  for (index r = 0; r < rows; r++) {
    const double w = weight ? double(weight[r]) : 1.0;
    sum += w * double(loss_row<T, L>(columns, a + r * columns, y + r * columns, T(scale * w), matched,
                                     d ? d + r * columns : nullptr));
  }
  return sum;
}

template <class T>
double label_cross_entropy(index rows, index columns, const T* a, const std::int64_t* labels, const T* weight,
                           double scale, T* d) {
  double sum = 0;
  for (index r = 0; r < rows; r++, a += columns) {
    const double w = weight ? double(weight[r]) : 1.0;
    sum -= w * double(log_bounded<T>(broadcast<T>(a[labels[r]]))[0]);
    if (!d) continue;
    const T factor = T(scale * w);
    map<T>(columns, d, [factor](Vec<T> x) { return factor * x; }, a);
    d[labels[r]] = factor * (a[labels[r]] - T(1));
    d += columns;
  }
  return sum;
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
