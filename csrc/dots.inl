// Products with a transposed b as dot products: nothing is transposed, and no lane stays empty where there is one row
// or one column, or few.

// x in the lanes whose numbers lack a bit, y in those that have it. (Of __builtin_shufflevector GCC makes a shuffle,
// for which there are fewer units.)
template <class T, int Bit, int... Lane>
INLINE Vec<T> blend(Vec<T> x, Vec<T> y, std::integer_sequence<int, Lane...> each) {
#if defined(__AVX__) && VECTOR_BYTES == 32
  constexpr int mask = ((Lane & Bit ? 1 << Lane : 0) | ...);
  if constexpr (sizeof(T) == sizeof(float))
    return _mm256_blend_ps(x, y, mask);
  else
    return _mm256_blend_pd(x, y, mask);
#else
  return (lane_numbers<T>(each) & Bit) != 0 ? y : x;
#endif
}

// In the lanes that lack the bit: the sum of x there and in the lane that has it; in the others that of y.
template <class T, int Bit, int... Lane>
INLINE Vec<T> fold_pair(Vec<T> x, Vec<T> y, std::integer_sequence<int, Lane...> each) {
  constexpr int L = lanes<T>;
  const Vec<T> others = __builtin_shufflevector(x, y, (Lane & Bit ? Lane - Bit + L : Lane + Bit)...);
  return blend<T, Bit>(x, y, each) + others;
}

// Lane i: the sum of the lanes of x[i], folded by halves as by sum_of. Count is a power of two, at most 2 Half.
template <class T, int Half, int Count>
INLINE Vec<T> sums_of(Vec<T> (&x)[Count]) {
  if constexpr (Half == 0) {
    return x[0];
  } else {
    constexpr int left = Count < Half ? Count : Half;
    Vec<T> sum[left];
    UNROLL for (int i = 0; i < left; i++) sum[i] =
        fold_pair<T, Half>(x[i], x[Count > Half ? i + Half : i], std::make_integer_sequence<int, lanes<T>>{});
    return sums_of<T, Half / 2>(sum);
  }
}

constexpr int power_of_two_from(int least) {
  int power = 1;
  while (power < least) power *= 2;
  return power;
}

// Rows x Columns dot products, in 64 bytes of lanes each, whatever the instruction set.
template <class T, int Rows, int Columns>
void dots_tile(const Gemm<T>& g, index row, index column, T start) {
  constexpr index L = lanes<T>, step = Wide<T>::count;
  constexpr int count = power_of_two_from(Rows * Columns);
  const T *a[Rows], *b[Columns];
  UNROLL for (int i = 0; i < Rows; i++) a[i] = g.a + (row + i) * g.lda;
  UNROLL for (int j = 0; j < Columns; j++) b[j] = g.b + (column + j) * g.ldb;
  Wide<T> sum[Rows][Columns] = {};
  index k = 0;
  const auto add = [&](auto read) {
    UNROLL for (int v = 0; v < Wide<T>::vectors; v++) {
      Vec<T> x[Rows];
      UNROLL for (int i = 0; i < Rows; i++) x[i] = kept<T>(read(a[i] + k + v * L, v));
      UNROLL for (int j = 0; j < Columns; j++) {
        Vec<T> y = read(b[j] + k + v * L, v);
        if constexpr (Rows > 1) y = kept<T>(y);
        UNROLL for (int i = 0; i < Rows; i++) sum[i][j].part[v] += x[i] * y;
      }
    }
  };
  for (; k + step <= g.depth; k += step) add([](const T* p, int) { return load<T>(p); });
  if (k < g.depth) add([&](const T* p, int v) { return load_part<T>(p, clamp(g.depth - k - v * L, L)); });
  Vec<T> folded[count] = {};
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Columns; j++) folded[i * Columns + j] = fold_vectors<T>(sum[i][j], plus<T>);
  }
  const Vec<T> sums = start + sums_of<T, L / 2>(folded);
  T* const c = g.c + row * g.ldc + column;
  if constexpr (Rows == 1) return store_part<T>(c, sums, Columns);
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Columns; j++) c[i * g.ldc + j] = sums[i * Columns + j];
  }
}

template <class T, int Columns, int... Tile>
INLINE void dots_by_tiles(const Gemm<T>& g, T start, std::integer_sequence<int, Tile...>) {
  constexpr index rows = sizeof...(Tile) / Columns;
  static constexpr void (*tiles[])(const Gemm<T>&, index, index,
                                   T) = {dots_tile<T, Tile / Columns + 1, Tile % Columns + 1>...};
  for (index j = 0; j < g.columns; j += Columns) {
    const index columns = clamp(g.columns - j, Columns);
    for (index i = 0; i < g.rows; i += rows)
      tiles[(clamp(g.rows - i, rows) - 1) * Columns + columns - 1](g, i, j, start);
  }
}

// c = start + a b^T. The sums of a tile are kept in registers, and fit into a vector when these are folded.
template <class T>
void dots(const Gemm<T>& g, T start) {
  constexpr int L = lanes<T>;
  if constexpr (L < 4) {
    dots_by_tiles<T, L>(g, start, std::make_integer_sequence<int, L>{});
  } else {
    static constexpr void (*by_depth[])(const Gemm<T>&, T) = {short_dots<T, 1>, short_dots<T, 2>, short_dots<T, 3>,
                                                              short_dots<T, 4>};
    if (g.rows == 1 && g.depth > 0 && g.depth <= row_lanes && g.ldb == g.depth) return by_depth[g.depth - 1](g, start);
    constexpr int rows = L < 8 ? 2 : L / 4, columns = L < 8 ? 2 : Wide<T>::vectors > 1 ? 3 : 4;
    if (g.rows > 1) return dots_by_tiles<T, columns>(g, start, std::make_integer_sequence<int, rows * columns>{});
    dots_by_tiles<T, 4>(g, start, std::make_integer_sequence<int, 4>{});
  }
}

template <class T>
void gemm_dots(const Gemm<T>& g) {
  dots(g, T(0));
}
