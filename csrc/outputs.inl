// Layers of few outputs, whose weights are transposed: vectors run along their inputs.

// What is read of a product, not to be loaded again after each store.
template <class T>
struct DotOperands {
  const T* a;
  index lda;
  const T* b;
  index ldb, depth;
};

// Dot products of the first `Rows` rows of a with each of `Outputs` rows of b, in 64 bytes of lanes each, folded to one
// vector each.
template <class T, int Rows, int Outputs>
INLINE void row_dots(DotOperands<T> g, Vec<T>* folded) {
  constexpr int L = lanes<T>, vectors = Wide<T>::vectors;
  Wide<T> sum[Rows][Outputs] = {};
  index k = 0;
  const auto add = [&](int v, auto read) {
    Vec<T> x[Rows];
    UNROLL for (int i = 0; i < Rows; i++) x[i] = read(g.a + i * g.lda + k + v * L);
    UNROLL for (int j = 0; j < Outputs; j++) {
      const Vec<T> y = read(g.b + j * g.ldb + k + v * L);
      UNROLL for (int i = 0; i < Rows; i++) sum[i][j].part[v] += x[i] * y;
    }
  };
  const auto whole = [](const T* p) { return load<T>(p); };
  for (; k + vectors * L <= g.depth; k += vectors * L) {
    UNROLL for (int v = 0; v < vectors; v++) add(v, whole);
  }
  UNROLL for (int v = 0; v < vectors; v++) {
    const index left = g.depth - k - v * L;
    if (left >= L)
      add(v, whole);
    else if (left > 0)
      add(v, [&](const T* p) { return load_part<T>(p, left); });
  }
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Outputs; j++) folded[i * Outputs + j] = fold_vectors<T>(sum[i][j], plus<T>);
  }
}

// The same of rows of a single vector: nothing is summed.
template <class T, int Rows, int Outputs>
INLINE void short_row_dots(DotOperands<T> g, Vec<T>* folded) {
  const auto read = [&](const T* p) { return g.depth == lanes<T> ? load<T>(p) : load_part<T>(p, g.depth); };
  Vec<T> y[Outputs];
  UNROLL for (int j = 0; j < Outputs; j++) y[j] = read(g.b + j * g.ldb);
  UNROLL for (int i = 0; i < Rows; i++) {
    const Vec<T> x = read(g.a + i * g.lda);
    UNROLL for (int j = 0; j < Outputs; j++) folded[i * Outputs + j] = Vec<T>{} + x * y[j];
  }
}

// Rows whose dot products are summed at once, in eight chains or so; and the ones of which a vector holds the results.
template <class T, int Outputs>
constexpr int dots_at_once = Outputs * Wide<T>::vectors < 8 ? 8 / (Outputs * Wide<T>::vectors) : 1;
template <class T, int Outputs>
constexpr int dots_together = lanes<T> / Outputs / dots_at_once<T, Outputs> * dots_at_once<T, Outputs>;

// c = start + the dot products of as many rows; start: that of each row, as often as a vector holds it.
template <class T, int Outputs, int Rows, int AtOnce>
INLINE void dots_of_rows(DotOperands<T> g, Vec<T> start, T* c, index ldc) {
  Vec<T> folded[power_of_two_from(Rows * Outputs)] = {};
  if (g.depth <= lanes<T>) {
    short_row_dots<T, Rows, Outputs>(g, folded);
  } else {
    UNROLL for (int i = 0; i < Rows; i += AtOnce) {
      row_dots<T, AtOnce, Outputs>(g, folded + i * Outputs);
      g.a += AtOnce * g.lda;
    }
  }
  // Plus zero, as of the lanes that short rows leave empty in longer vectors: minus zeros end as the same zero then.
  const Vec<T> sums = start + (Vec<T>{} + sums_of<T, lanes<T> / 2>(folded));
  if (ldc == Outputs) {
    __builtin_memcpy(c, &sums, Rows * Outputs * sizeof(T));
  } else {
    UNROLL for (int i = 0; i < Rows; i++)
        __builtin_memcpy(c + i * ldc, reinterpret_cast<const T*>(&sums) + i * Outputs, Outputs * sizeof(T));
  }
}

template <class T, int Outputs>
void few_outputs_of(const Gemm<T>& g) {
  if constexpr (Outputs <= lanes<T>) {
    constexpr int at_once = dots_at_once<T, Outputs>, together = dots_together<T, Outputs>;
    Vec<T> start{};
    UNROLL for (int i = 0; i < lanes<T>; i++) start[i] = g.start ? g.start[i % Outputs] : T(0);
    DotOperands<T> operands{g.a, g.lda, g.b, g.ldb, g.depth};
    T* c = g.c;
    const index ldc = g.ldc;
    index rows = g.rows;
    for (; rows >= together; rows -= together, operands.a += together * operands.lda, c += together * ldc)
      dots_of_rows<T, Outputs, together, at_once>(operands, start, c, ldc);
    for (; rows > 0; rows--, operands.a += operands.lda, c += ldc)
      dots_of_rows<T, Outputs, 1, 1>(operands, start, c, ldc);
  } else {
    Gemm<T> half = g;
    few_outputs_of<T, Outputs / 2>(half);
    half.b += Outputs / 2 * g.ldb;
    if (half.start) half.start += Outputs / 2;
    half.c += Outputs / 2;
    few_outputs_of<T, Outputs - Outputs / 2>(half);
  }
}

template <class T>
void few_outputs(const Gemm<T>& g) {
  static constexpr void (*by_outputs[])(const Gemm<T>&) = {few_outputs_of<T, 1>, few_outputs_of<T, 2>,
                                                           few_outputs_of<T, 3>, few_outputs_of<T, 4>};
  static_assert(sizeof by_outputs / sizeof *by_outputs == most_transposed);
  by_outputs[g.columns - 1](g);
}

// Rows x Vectors of c = start + a^T b, in twice as many sums: else they would wait for each other. Unless Whole, the
// last vector reaches past the columns of b.
template <class T, int Rows, int Vectors, bool Whole>
INLINE void outputs_tile(const Gemm<T>& g, index row, index n) {
  constexpr int L = lanes<T>;
  Vec<T> sum[2][Rows][Vectors] = {};
  if (g.start) {
    UNROLL for (int i = 0; i < Rows; i++) {
      UNROLL for (int j = 0; j < Vectors; j++) sum[0][i][j] = load<T>(g.start + (row + i) * g.start_stride + n + j * L);
    }
  }
  const T *a = g.a + row, *b = g.b + n;
  const auto add = [&](auto& to) {
    UNROLL for (int i = 0; i < Rows; i++) {
      UNROLL for (int j = 0; j < Vectors; j++) {
        const T* const at = b + j * L;
        const index left = g.columns - n - j * L;
        to[i][j] += a[i] * (Whole || left >= L ? load<T>(at) : load_part<T>(at, left));
      }
    }
    a += g.lda;
    b += g.ldb;
  };
  index k = 0;
  for (; k + 2 <= g.depth; k += 2) {
    add(sum[0]);
    add(sum[1]);
  }
  if (k < g.depth) add(sum[0]);
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Vectors; j++) {
      T* const to = g.c + (row + i) * g.ldc + n + j * L;
      const Vec<T> total = sum[0][i][j] + sum[1][i][j];
      if (g.descends)
        store<T>(to, load<T>(to) - g.rate * total);
      else
        store<T>(to, total);
    }
  }
}

template <class T, int Rows, bool Whole>
INLINE void outputs_tiles(const Gemm<T>& g, index row) {
  constexpr index L = lanes<T>;
  for (index n = 0; n < g.columns; n += 2 * L) {
    if (n + L < g.columns)
      outputs_tile<T, Rows, 2, Whole>(g, row, n);
    else
      outputs_tile<T, Rows, 1, Whole>(g, row, n);
  }
}

template <class T, bool Whole>
void few_outputs_at_of(const Gemm<T>& g) {
  index row = 0;
  if constexpr (widest == 4) {  // registers for the sums of four rows
    for (; row + 4 <= g.rows; row += 4) outputs_tiles<T, 4, Whole>(g, row);
  }
  for (; row + 2 <= g.rows; row += 2) outputs_tiles<T, 2, Whole>(g, row);
  if (row < g.rows) outputs_tiles<T, 1, Whole>(g, row);
}

template <class T>
void few_outputs_at(const Gemm<T>& g) {
  (g.padded || g.columns % lanes<T> == 0 ? few_outputs_at_of<T, true> : few_outputs_at_of<T, false>)(g);
}
