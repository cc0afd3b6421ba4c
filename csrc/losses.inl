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

// `rows` of them from row r, and `columns` from column j.
template <class T>
INLINE LossRows<T> part_of(LossRows<T> g, index r, index rows, index j, index columns) {
  g.rows = rows;
  g.columns = columns;
  g.a += r * g.stride + j;
  g.y += r * g.y_stride + j;
  if (g.weight) g.weight += r;
  if (g.d) g.d += r * g.stride + j;
  return g;
}

// Adds the losses of rows of up to one Wide, of so many vectors, all of which may be accessed whole.
template <class T, class L, int Vectors = 1>
INLINE void add_vectors(LossRows<T> g, index weight_step, Wide<T>& sum) {
  if constexpr (Vectors < Wide<T>::vectors) {
    if (g.columns > Vectors * lanes<T>) return add_vectors<T, L, Vectors + 1>(g, weight_step, sum);
  }
  T weight = 1, factor = T(g.scale);
  // Not a one that the compiler knows of: it would fuse the square of mse, not rounded, with the sum below.
  __asm__("" : "+m"(weight));
  for (index r = 0; r < g.rows; r++, g.a += g.stride, g.y += g.y_stride) {
    if (g.weight) {
      weight = g.weight[r * weight_step];
      factor = T(g.scale * double(weight));
    }
    UNROLL for (int v = 0; v < Vectors; v++) {
      const Vec<T> a = load<T>(g.a + v * lanes<T>), y = load<T>(g.y + v * lanes<T>);
      Vec<T> value = L::template value<T>(a, y);
      if (v == Vectors - 1) value = first_lanes<T>(g.columns - v * lanes<T>, value, Vec<T>{});
      sum.part[v] += weight * value;
      if (g.d)
        store<T>(g.d + r * g.stride + v * lanes<T>, factor * (g.matched ? a - y : L::template gradient<T>(a, y)));
    }
  }
}

// By way of copies, since what vectors are stored to could be anything else. A function of its own: it is called for
// rows by the dozen.
template <class T, class L>
__attribute__((noinline)) void add_losses(const LossRows<T>& g, index weight_step, Wide<T>& sum) {
  Wide<T> total = sum;
  add_vectors<T, L>(g, weight_step, total);
  sum = total;
}

// The same where vectors of a row would reach too far: from copies, and back.
template <class T, class L>
INLINE void add_row_at_end(LossRows<T> g, Wide<T>& sum) {
  T a[Wide<T>::count] = {}, y[Wide<T>::count] = {}, d[Wide<T>::count];
  __builtin_memcpy(a, g.a, size_t(g.columns) * sizeof(T));
  __builtin_memcpy(y, g.y, size_t(g.columns) * sizeof(T));
  T* const to = g.d;
  g.a = a;
  g.y = y;
  if (to) g.d = d;
  add_losses<T, L>(g, 0, sum);
  if (to) __builtin_memcpy(to, d, size_t(g.columns) * sizeof(T));
}

// Of rows `stride` apart, with `beyond` elements after them, the first ones from which `room` elements are inside.
INLINE index rows_inside(index rows, index stride, index beyond, index room) {
  const index missing = room > beyond ? (room - beyond + stride - 1) / stride - 1 : 0;
  return missing < rows ? rows - missing : 0;
}

// Losses are summed lane by lane in a block of rows; its sum goes on in double precision.
template <class T, class L>
void loss_of_rows(const LossRows<T>& g) {
  constexpr index step = Wide<T>::count;
  const index room = (g.columns + lanes<T> - 1) / lanes<T> * lanes<T>;
  const index in_a = rows_inside(g.rows, g.stride, 0, room), in_y = rows_inside(g.rows, g.y_stride, g.y_beyond, room);
  // Rows without gaps are as well a long one.
  const bool joined = g.stride == g.columns && g.y_stride == g.columns && !g.weight;
  const index inside = joined ? 0 : in_a < in_y ? in_a : in_y;
  double* to = g.sums;
  for (index first = 0; first < g.rows; first += loss_rows) {
    const index count = clamp(g.rows - first, loss_rows), rows = joined ? 1 : count;
    const index columns = joined ? count * g.columns : g.columns;
    Wide<T> sum = broadcast_wide<T>(0);
    // And a long row is short ones, of one weight. First what is left of all rows, whose vectors may reach into the
    // next row's.
    const index parts = (joined || !columns ? columns : columns - 1) / step, rest = columns - parts * step;
    const index fitting = !rest ? 0 : rest == step ? rows : clamp(inside - first, rows);
    if (fitting) add_losses<T, L>(part_of(g, first, fitting, parts * step, rest), 1, sum);
    for (index r = fitting; r < rows && rest; r++)
      add_row_at_end<T, L>(part_of(g, first + r, 1, parts * step, rest), sum);
    for (index r = 0; r < rows && parts; r++) {
      LossRows<T> part = part_of(g, first + r, parts, 0, step);
      part.stride = part.y_stride = step;
      add_losses<T, L>(part, 0, sum);
    }
    *to++ = double(sum_of<T>(sum));
  }
}

// Of up to one Wide of rows, from row `first` on: their logarithms at once.
template <class T>
INLINE void add_label_losses(const LossRows<T>& g, const std::int64_t* labels, index first, index count, Wide<T>& sum) {
  constexpr index step = Wide<T>::count;
  T chosen[step], weights[step] = {};
  for (T& p : chosen) p = 1;
  T factor = T(g.scale);
  const auto scale = [&](index row, index rows) {
    const index at = row * g.stride;
    map<T>(rows * g.stride, g.d + at, [&](Vec<T> x) { return factor * x; }, g.a + at);
  };
  // Rows of one weight all at once, with what lies between them.
  if (g.d && !g.weight) scale(first, count);
  for (index i = 0; i < count; i++) {
    const index r = first + i;
    weights[i] = g.weight ? g.weight[r] : T(1);
    if (g.d && g.weight) {
      factor = T(g.scale * double(weights[i]));
      scale(r, 1);
    }
    // It has been checked; should another thread have changed it since, some other column is taken.
    const index given = static_cast<const volatile std::int64_t*>(labels)[r];
    const index label = given >= 0 && given < g.columns ? given : 0, at = r * g.stride + label;
    chosen[i] = g.a[at];
    if (g.d) g.d[at] = factor * (chosen[i] - T(1));
  }
  const Wide<T> p = load_wide<T>(chosen, step, step), weight = load_wide<T>(weights, step, step);
  // As multiply-adds into one sum: the compiler could fuse a product with an addition of the fold.
  UNROLL for (int v = 0; v < p.vectors; v++) sum.part[v] -= weight.part[v] * log_bounded<T>(p.part[v]);
}

// Cross-entropy with integer labels.
template <class T>
void label_cross_entropy(const LossRows<T>& g, const std::int64_t* labels) {
  constexpr index step = Wide<T>::count;
  for (index first = 0; first < g.rows; first += loss_rows) {
    const index last = g.rows - first < loss_rows ? g.rows : first + loss_rows;
    Wide<T> sum = broadcast_wide<T>(0);
    for (index r = first; r < last; r += step) add_label_losses(g, labels, r, last - r < step ? last - r : step, sum);
    g.sums[first / loss_rows] = double(sum_of<T>(sum));
  }
}

template <class T>
constexpr Loss<T> losses[] = {
    {MeanSquare::name, loss_of_rows<T, MeanSquare>},
    {Quadratic::name, loss_of_rows<T, Quadratic>},
    {CrossEntropy::name, loss_of_rows<T, CrossEntropy>},
    {BinaryCrossEntropy::name, loss_of_rows<T, BinaryCrossEntropy>},
    {Huber::name, loss_of_rows<T, Huber>},
    {Poisson::name, loss_of_rows<T, Poisson>},
};
