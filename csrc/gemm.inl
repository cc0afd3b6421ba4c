// Matrix products by a register tile of up to 6 rows x 2 vectors, or 8 rows x 1 vector.
//
// a is only ever broadcast, so it is read where it lies: row-major, transposed, or through pointers
// to the rows of a shuffled batch. b is read in whole vectors: where it lies when that is cheap and inside
// its rows, else from a packed panel. Vectors run across the columns of c, and every element is
// summed in the order of depth: blocking, packing and threads change no bit of the result.

constexpr index wide_rows = 6, narrow_rows = 8;

INLINE index clamp(index x, index most) { return x < 0 ? 0 : x > most ? most : x; }

// Where element (i, k) of a is, seen from the first row and depth of a block.
template <class T>
struct RowMajor {  // i stride + k
  static constexpr bool transposed = false;
  const T* data;
  index stride;
  INLINE RowMajor of(const Gemm<T>& g) { return {g.a, g.lda}; }
  RowMajor from(index i, index k) const { return {data + i * stride + k, stride}; }
  const T* row(index i) const { return data + i * stride; }
};
template <class T>
struct ColumnMajor {  // k stride + i
  static constexpr bool transposed = true;
  const T* data;
  index stride;
  INLINE ColumnMajor of(const Gemm<T>& g) { return {g.a, g.lda}; }
  ColumnMajor from(index i, index k) const { return {data + k * stride + i, stride}; }
  const T* column(index k) const { return data + k * stride; }
};
template <class T>
struct RowPointers {  // k in rows[i]
  static constexpr bool transposed = false;
  const T* const* rows;
  index offset;
  INLINE RowPointers of(const Gemm<T>& g) { return {g.a_rows, g.a_offset}; }
  RowPointers from(index i, index k) const { return {rows + i, offset + k}; }
  const T* row(index i) const { return rows[i] + offset; }
};
template <class T>
struct ColumnPointers {  // i in rows[k]
  static constexpr bool transposed = true;
  const T* const* rows;
  index offset;
  INLINE ColumnPointers of(const Gemm<T>& g) { return {g.a_rows, g.a_offset}; }
  ColumnPointers from(index i, index k) const { return {rows + k, offset + i}; }
  const T* column(index k) const { return rows[k] + offset; }
};

// What becomes of a tile's sums: c = start + sums, or where it descends c -= rate sums.
template <class T>
struct Result {
  const T* start;  // null: zero
  index start_stride;
  T* c;
  index ldc;
  bool descends;
  T rate;

  Result from(index row) const {
    return {start ? start + row * start_stride : nullptr, start_stride, c + row * ldc, ldc, descends, rate};
  }
};

// Rows x (Vectors lanes) of a b. Pairs of vectors of b are `pairs` apart.
template <class T, int Rows, int Vectors, class A>
INLINE void tile(index depth, A a, const T* b, index ldb, Result<T> result, index pairs = 0) {
  constexpr int L = lanes<T>;
  Vec<T> sum[Rows][Vectors];
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] =
        result.start ? load<T>(result.start + i * result.start_stride + j * L) : Vec<T>{};
  }
  const T* row[Rows] = {};
  if constexpr (!A::transposed) {
    UNROLL for (int i = 0; i < Rows; i++) row[i] = a.row(i);
  }
#pragma GCC unroll 4
  for (index k = 0; k < depth; k++) {
    Vec<T> panel[Vectors];
    UNROLL for (int j = 0; j < Vectors; j++) panel[j] = load<T>(b + k * ldb + j / 2 * pairs + j % 2 * L);
    const T* column = nullptr;
    if constexpr (A::transposed) column = a.column(k);
    UNROLL for (int i = 0; i < Rows; i++) {
      const T x = A::transposed ? column[i] : row[i][k];
      UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] += x * panel[j];
    }
  }
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Vectors; j++) {
      T* const to = result.c + i * result.ldc + j * L;
      store<T>(to, result.descends ? load<T>(to) - result.rate * sum[i][j] : sum[i][j]);
    }
  }
}

// The tile of a height up to Most.
template <class T, int Vectors, int Most, class A>
INLINE void tile_of_height(index height, index depth, A a, const T* b, index ldb, Result<T> result) {
  if (height == Most) return tile<T, Most, Vectors>(depth, a, b, ldb, result);
  if constexpr (Most > 1) tile_of_height<T, Vectors, Most - 1>(height, depth, a, b, ldb, result);
}

// Rows [0, rows) in blocks of nearly equal height, at most `most`; f(first, height).
template <class F>
INLINE void balanced_blocks(index rows, index most, F f) {
  const index blocks = (rows + most - 1) / most;
  for (index block = 0, first = 0; block < blocks; block++) {
    const index height = rows / blocks + (block < rows % blocks);
    f(first, height);
    first += height;
  }
}

// All rows of one panel of columns; block(number, first) is where the rows of a block start.
template <class T, int Vectors, int Most, class Block>
INLINE void panel_product(index rows, index depth, Block block, const T* b, index ldb, Result<T> result) {
  const bool adds = depth >= 64 && (result.descends || result.start == result.c);
  index number = 0;
  balanced_blocks(rows, Most, [&](index first, index height) {
    // The rows of c that the next block adds to, while there is enough to do meanwhile.
    const T* next = result.c + (first + height) * result.ldc;
    for (index i = 0; adds && i < Most; i++, next += result.ldc) {
      UNROLL for (int j = 0; j < Vectors; j++) __builtin_prefetch(next + j * lanes<T>, 1);
    }
    tile_of_height<T, Vectors, Most>(height, depth, block(number++, first), b, ldb, result.from(first));
  });
}

// a to blocks of wide_rows, each (depth, wide_rows): read in one stream, and off the powers of two.
template <class T, class A>
INLINE void pack_rows(index rows, index depth, A a, T* packed) {
  balanced_blocks(rows, wide_rows, [&](index first, index height) {
    if constexpr (A::transposed) {
      for (index k = 0; k < depth; k++, packed += wide_rows) {
        const T* from = a.column(k) + first;
        if (first + wide_rows <= rows)
          __builtin_memcpy(packed, from, wide_rows * sizeof(T));
        else
          for (index i = 0; i < height; i++) packed[i] = from[i];
      }
    } else {
      const T* from[wide_rows];
      UNROLL for (index i = 0; i < wide_rows; i++) from[i] = a.row(first + (i < height ? i : 0));
      for (index k = 0; k < depth; k++, packed += wide_rows) {
        UNROLL for (index i = 0; i < wide_rows; i++) packed[i] = from[i][k];
      }
    }
  });
}

// b (depth, columns) to vectors side by side. `inside` rows may be read past the last column.
template <class T, int Vectors>
INLINE void pack_panel(index depth, index inside, index columns, const T* b, index ldb, T* panel) {
  constexpr int L = lanes<T>;
  index k = 0;
  for (; k < inside; k++, b += ldb, panel += Vectors * L) {
    UNROLL for (int j = 0; j < Vectors; j++) store<T>(panel + j * L, load<T>(b + j * L));
  }
  for (; k < depth; k++, b += ldb, panel += Vectors * L) {
    for (index j = 0; j < Vectors * L; j++) panel[j] = j < columns ? b[j] : T(0);
  }
}

template <class T, int Half, int... Lane>
INLINE void exchange(Vec<T>& x, Vec<T>& y, std::integer_sequence<int, Lane...>) {
  constexpr int L = lanes<T>;
  const Vec<T> low = __builtin_shufflevector(x, y, (Lane & Half ? Lane - Half + L : Lane)...);
  const Vec<T> high = __builtin_shufflevector(x, y, (Lane & Half ? Lane + L : Lane + Half)...);
  x = low;
  y = high;
}

// A square of vectors, by exchanging its off-diagonal blocks at every scale.
template <class T, int Half = 1>
INLINE void transpose(Vec<T> (&x)[lanes<T>]) {
  if constexpr (Half < lanes<T>) {
    UNROLL for (int i = 0; i < lanes<T>; i++) {
      if (!(i & Half)) exchange<T, Half>(x[i], x[i + Half], std::make_integer_sequence<int, lanes<T>>{});
    }
    transpose<T, 2 * Half>(x);
  }
}

// Rows of b (columns, depth) to columns of `to` (depth, reach), reach being whole vectors; zeros in the
// columns past the last row.
template <class T>
INLINE void transpose_rows(index depth, index columns, index reach, const T* b, index ldb, T* to, index stride) {
  constexpr int L = lanes<T>;
  for (index j = 0; j < reach; j += L) {
    index k = 0;
    if (j + L <= columns) {
      for (; k + L <= depth; k += L) {
        Vec<T> x[L];
        UNROLL for (int i = 0; i < L; i++) x[i] = load<T>(b + (j + i) * ldb + k);
        transpose<T>(x);
        UNROLL for (int i = 0; i < L; i++) store<T>(to + (k + i) * stride + j, x[i]);
      }
    }
    for (; k < depth; k++) {
      for (index i = j; i < j + L; i++) to[k * stride + i] = i < columns ? b[i * ldb + k] : T(0);
    }
  }
}

template <class T>
void transpose_matrix(index rows, index columns, const T* from, index from_stride, T* to, index to_stride) {
  transpose_rows<T>(columns, rows, (rows + lanes<T> - 1) / lanes<T> * lanes<T>, from, from_stride, to, to_stride);
}

// As transpose_rows on b in panels, from its row `row` and its column k on.
template <class T>
INLINE void transpose_panels(const Panels& panels, index row, index k, index depth, index columns, index reach,
                             const T* b, T* to) {
  for (index end = k + depth; k < end;) {
    const index p = k / panels.panel_width, at = k % panels.panel_width;
    const index count = clamp(end - k, panels.panel_width - at);
    transpose_rows<T>(count, columns, reach, b + panels.begin(p, row) + at, panels.width_of(p), to, reach);
    k += count;
    to += count * reach;
  }
}

template <class T>
INLINE void copy_columns(index rows, index columns, const T* from, index from_stride, T* to, index to_stride) {
  for (index i = 0; i < rows; i++, from += from_stride, to += to_stride)
    for (index j = 0; j < columns; j++) to[j] = from[j];
}

// One row against all whole vectors of columns, most of them eight at a time: a row has no other rows
// to hide the latency of its sums behind. Returns how many columns that were.
template <class T, class A>
INLINE index row_product(const Gemm<T>& g, A a, index columns) {
  constexpr index W = 2 * lanes<T>;
  index n = 0;
  const auto tiles_of = [&](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    for (; n + V * lanes<T> <= columns; n += V * lanes<T>) {
      const T* b = g.b + n;
      index ldb = g.ldb, pairs = W;
      if (g.panels) {
        b = g.b + g.panels->begin(n / W, g.panel_row);
        ldb = g.panels->width_of(n / W);
        pairs = g.panels->rows * W;
      }
      tile<T, 1, V>(g.depth, a, b, ldb, {g.start ? g.start + n : nullptr, 0, g.c + n, 0, g.descends, g.rate}, pairs);
    }
  };
  tiles_of(std::integral_constant<int, 8>{});
  tiles_of(std::integral_constant<int, 4>{});
  tiles_of(std::integral_constant<int, 2>{});
  tiles_of(std::integral_constant<int, 1>{});
  return n;
}

// Columns [0, last_column), which are g.columns or, of a padded product, whole vectors.
template <class T, class A, bool TransposedB>
INLINE void product(const Gemm<T>& g, index last_column) {
  constexpr index L = lanes<T>, W = 2 * L;
  const Panels* const b_panels = A::transposed ? nullptr : g.panels;
  const Panels* const c_panels = A::transposed ? g.panels : nullptr;
  T* const panel = g.scratch;
  T* const edge = panel + max_depth * W;  // result columns past the last whole vector, padded
  T* const packed_rows = edge + max_tile_rows * W;
  const A whole_a = A::of(g);

  const index edge_columns = g.padded || g.columns % L == 0 ? 0 : g.columns % W;
  const index edge_first = g.columns - edge_columns;

  // Measured: packing pays where b overflows the first-level cache and is used often enough.
  const bool tall = g.rows >= 24;
  const bool pack_b = !b_panels && tall && g.depth >= 24 && g.ldb > W && g.depth * g.ldb * index(sizeof(T)) > 28 * 1024;
  const index enough = b_panels ? 1024 : 4 * W;
  const bool pack_a = tall && g.depth >= 128 && g.columns >= enough;
  const bool blocked = TransposedB || pack_b || edge_columns || (b_panels && tall);

  // A null start stays out of the loop: compiled to masked loads, it would fault at every row.
  if (edge_columns) __builtin_memset(edge, 0, size_t(g.rows * W) * sizeof(T));
  if (edge_columns && g.start) copy_columns(g.rows, edge_columns, g.start + edge_first, g.start_stride, edge, W);

  index k = 0;
  do {  // once even for depth 0: c = start
    const index blocks = blocked ? (g.depth - k + max_depth - 1) / max_depth : 1;
    // Whole panels of a transposed b, as far as may be.
    const index even = blocks ? (g.depth - k + blocks - 1) / blocks : 0;
    const index depth = TransposedB ? clamp((even + W - 1) / W * W, g.depth - k) : even;
    const A a = whole_a.from(0, k);
    if (pack_a) pack_rows<T>(g.rows, depth, a, packed_rows);
    for (index n = 0; n < last_column; n += W) {
      const bool at_edge = edge_columns && n == edge_first;
      const index c_offset = c_panels ? c_panels->begin(n / W, g.panel_row) : n;
      T* const c = at_edge ? edge : g.c + c_offset;
      const index ldc = at_edge ? W : c_panels ? c_panels->width_of(n / W) : g.ldc;
      const bool first = k == 0 && !at_edge;
      const T* const start = !first ? c : g.start ? g.start + c_offset : nullptr;
      const index start_stride = first && !c_panels ? g.start_stride : ldc;
      const Result<T> result{start, start_stride, c, ldc, g.descends, g.rate};

      const auto multiply = [&](auto vectors) {
        constexpr int V = decltype(vectors)::value;
        const index columns = clamp(g.columns - n, V * L);
        const T* b = g.b + (TransposedB ? n * g.ldb + k : k * g.ldb + n);
        index ldb = g.ldb;
        if (TransposedB || pack_b || at_edge) {
          if constexpr (TransposedB) {
            if (b_panels)
              transpose_panels<T>(*b_panels, g.panel_row + n, k, depth, columns, V * L, g.b, panel);
            else
              transpose_rows<T>(depth, columns, V * L, b, ldb, panel, V * L);
          } else {
            // Vectors that cross the end of a row of b read the next row; past this row, the end of b.
            const index rows_past = (n + V * L - g.columns + g.ldb - 1) / g.ldb;
            const index inside = at_edge ? clamp(g.depth - rows_past - k, depth) : depth;
            pack_panel<T, V>(depth, inside, columns, b, ldb, panel);
          }
          b = panel;
          ldb = V * L;
        } else if (b_panels) {
          b = g.b + b_panels->begin(n / W, g.panel_row + k);
          ldb = b_panels->width_of(n / W);
        }
        if (pack_a)
          panel_product<T, V, wide_rows>(
              g.rows, depth,
              [&](index number, index) { return ColumnMajor<T>{packed_rows + number * wide_rows * depth, wide_rows}; },
              b, ldb, result);
        else
          panel_product<T, V, V == 2 ? wide_rows : narrow_rows>(
              g.rows, depth, [&](index, index row) { return a.from(row, 0); }, b, ldb, result);
      };
      if (last_column - n > L)
        multiply(std::integral_constant<int, 2>{});
      else
        multiply(std::integral_constant<int, 1>{});
    }
    k += depth;
  } while (k < g.depth);

  if (edge_columns) copy_columns(g.rows, edge_columns, edge, W, g.c + edge_first, g.ldc);
}

template <class T, class A, bool TransposedB>
void gemm(const Gemm<T>& whole) {
  Gemm<T> g = whole;
  index last_column = g.padded ? (g.columns + lanes<T> - 1) / lanes<T> * lanes<T> : g.columns;
  if constexpr (!A::transposed && !TransposedB) {
    if (g.rows == 1) {
      const index done = row_product(g, A::of(g), last_column);
      if (done == last_column) return;
      // Less than a vector is left, of a product that is not padded.
      last_column = g.columns -= done;
      g.b += done;
      g.c += done;
      if (g.start) g.start += done;
    }
  }
  product<T, A, TransposedB>(g, last_column);
}

template <class T>
void spread(index rows, index columns, const T* from, index from_stride, T* to, index to_stride) {
  const index whole = columns / lanes<T> * lanes<T>, rest = columns - whole;
  for (index r = 0; r < rows; r++, from += from_stride, to += to_stride) {
    for (index j = 0; j < whole; j += lanes<T>) store<T>(to + j, load<T>(from + j));
    if (!rest) continue;
    // Only near the end would a whole vector reach past the last row.
    const bool inside = (rows - 1 - r) * from_stride + rest >= lanes<T>;
    const Vec<T> x = inside ? load<T>(from + whole) : load_part<T>(from + whole, rest);
    store<T>(to + whole, first_lanes<T>(rest, x, Vec<T>{}));
  }
}

// Four interleaved sums of rows, added up in one order: adding is slower than loading.
template <class T>
void add_rows(index rows, index columns, index stride, const T* x, T* sums) {
  constexpr int chains = 4;
  index j = 0;
  for (; j + lanes<T> <= columns; j += lanes<T>) {
    Vec<T> sum[chains] = {load<T>(sums + j)};
    index r = 0;
    for (; r + chains <= rows; r += chains) {
      UNROLL for (int i = 0; i < chains; i++) sum[i] += load<T>(x + (r + i) * stride + j);
    }
    for (; r < rows; r++) sum[0] += load<T>(x + r * stride + j);
    store<T>(sums + j, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  for (; j < columns; j++) {
    T sum[chains] = {sums[j]};
    for (index r = 0; r < rows; r++) sum[r < rows / chains * chains ? r % chains : 0] += x[r * stride + j];
    sums[j] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}
