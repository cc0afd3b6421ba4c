// Rows of up to four elements that lie behind one another: several to a vector, since one would leave most lanes
// empty.

constexpr int row_lanes = 4;  // what a row gets of a vector

// Products with few columns: an element is the sum of interleaved ones, as many as 64 bytes have rows of b, folded by
// halves.

// To each lane of vector V of rows of b the element of a that multiplies it.
template <class T, int V, int... Lane>
INLINE Vec<T> repeat_elements(Vec<T> a, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(a, a, ((V * lanes<T> + Lane) / row_lanes)...);
}
// Rows of `Columns`, one behind the other, to their lanes; those past the columns get anything.
template <class T, int Columns, int... Lane>
INLINE Vec<T> spread_rows(Vec<T> b, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(b, b, (Lane / row_lanes * Columns + Lane % row_lanes)...);
}

// `Rows` rows of a from `row` on by b (depth, Columns).
template <class T, int Columns, int Rows>
INLINE void few_columns_of(const Gemm<T>& g, index row) {
  constexpr index L = lanes<T>, vectors = Wide<T>::vectors;
  constexpr auto each = std::make_integer_sequence<int, L>{};
  const T* a[Rows];
  UNROLL for (int i = 0; i < Rows; i++) a[i] = g.a + (row + i) * g.lda;
  Wide<T> sum[Rows] = {};
  // The next L rows of b, in row_lanes vectors, or the `count` of them that there are.
  const auto add = [&](index k, index count, auto read_a, auto read_b) {
    Vec<T> x[Rows];
    UNROLL for (int i = 0; i < Rows; i++) x[i] = read_a(a[i] + k);
    const auto add_vector = [&](auto number) {
      constexpr int v = decltype(number)::value;
      constexpr index row_of_b = v * L / row_lanes, column = v * L % row_lanes;  // where the vector begins
      constexpr index row_of_wide = v / vectors * (Wide<T>::count / row_lanes);
      if (row_of_wide >= count) return;
      const Vec<T> w = spread_rows<T, Columns>(read_b((k + row_of_b) * Columns + column), each);
      UNROLL for (int i = 0; i < Rows; i++) sum[i].part[v % vectors] += repeat_elements<T, v>(x[i], each) * w;
    };
    add_vector(std::integral_constant<int, 0>{});
    add_vector(std::integral_constant<int, 1>{});
    add_vector(std::integral_constant<int, 2>{});
    add_vector(std::integral_constant<int, 3>{});
  };
  // So many elements are read past L rows.
  constexpr index past = (row_lanes - Columns) * (L > row_lanes ? L / row_lanes : 1);
  const index size = g.depth * Columns;
  index k = 0;
  for (; (k + L) * Columns + past <= size; k += L)
    add(k, L, [](const T* p) { return load<T>(p); }, [&](index at) { return load<T>(g.b + at); });
  for (; k < g.depth; k += L) {
    add(
        k, g.depth - k, [&](const T* p) { return load_part<T>(p, clamp(g.depth - k, L)); },
        [&](index at) { return load_part<T>(g.b + at, clamp(size - at, L)); });
  }
  Vec<T> start[L < row_lanes ? row_lanes / L : 1] = {};
  if (g.start) {
    UNROLL for (int j = 0; j < Columns; j += L)
        __builtin_memcpy(start + j / L, g.start + j, (Columns - j < L ? Columns - j : L) * sizeof(T));
  }
  UNROLL for (int i = 0; i < Rows; i++) {
    auto& part = sum[i].part;
    UNROLL for (int half = vectors / 2; half * L >= row_lanes; half /= 2) {
      UNROLL for (int v = 0; v < half; v++) part[v] += part[v + half];
    }
    if constexpr (L >= 4 * row_lanes) part[0] = fold_half<T, 2 * row_lanes>(part[0], plus<T>, each);
    if constexpr (L >= 2 * row_lanes) part[0] = fold_half<T, row_lanes>(part[0], plus<T>, each);
    UNROLL for (int j = 0; j < Columns; j += L) {
      const Vec<T> total = start[j / L] + part[j / L];
      __builtin_memcpy(g.c + (row + i) * g.ldc + j, &total, (Columns - j < L ? Columns - j : L) * sizeof(T));
    }
  }
}

template <class T, int Columns>
void rows_by_few(const Gemm<T>& g) {
  index row = 0;
  for (; row + 4 <= g.rows; row += 4) few_columns_of<T, Columns, 4>(g, row);
  for (; row < g.rows; row++) few_columns_of<T, Columns, 1>(g, row);
}

template <class T>
void few_columns(const Gemm<T>& g) {
  static constexpr void (*by_columns[])(const Gemm<T>&) = {rows_by_few<T, 2>, rows_by_few<T, 3>, rows_by_few<T, 4>};
  by_columns[g.columns - 2](g);
}

// Dot products of a with each row of b, which has `Depth` elements; in the order of dots_tile.
template <class T, int Depth, int... Lane>
INLINE void short_dots(const Gemm<T>& g, T start, std::integer_sequence<int, Lane...> each) {
  constexpr int L = lanes<T>, rows = L / row_lanes;  // of b in a vector
  const auto elements = [](Vec<T> b) {
    return __builtin_shufflevector(b, Vec<T>{},
                                   (Lane % row_lanes < Depth ? Lane / row_lanes * Depth + Lane % row_lanes : L)...);
  };
  const Vec<T> a = Vec<T>{(Lane % row_lanes < Depth ? g.a[Lane % row_lanes] : T(0))...};
  const index size = g.columns * Depth;
  const auto sums = [&](index first, auto read) {
    Vec<T> x[4];
    UNROLL for (int v = 0; v < 4; v++) x[v] = Vec<T>{} + elements(read((first + v * rows) * Depth)) * a;
    exchange<T, 2>(x[0], x[1], each);
    exchange<T, 2>(x[2], x[3], each);
    Vec<T> y[2] = {x[0] + x[1], x[2] + x[3]};
    exchange<T, 1>(y[0], y[1], each);
    // Of the vectors 0, 2, 1, 3 in turn, four lanes a row.
    const Vec<T> mixed = y[0] + y[1];
    return start +
           __builtin_shufflevector(mixed, mixed, (Lane % rows * 4 + (Lane / rows * 2 + Lane / rows / 2) % 4)...);
  };
  index i = 0;
  for (; (i + 3 * rows) * Depth + L <= size; i += L)
    store<T>(g.c + i, sums(i, [&](index at) { return load<T>(g.b + at); }));
  for (; i < g.columns; i += L) {
    const auto part = [&](index at) { return load_part<T>(g.b + at, clamp(size - at, L)); };
    store_part<T>(g.c + i, sums(i, part), clamp(g.columns - i, L));
  }
}

template <class T, int Depth>
void short_dots(const Gemm<T>& g, T start) {
  short_dots<T, Depth>(g, start, std::make_integer_sequence<int, lanes<T>>{});
}
