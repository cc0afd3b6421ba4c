// Copies of operands: vectors of b side by side, transposed or not, and columns of a.

// Rows of depth that are copied side by side: panel by panel or block by block, a piece of each would be read from
// distant pages.
constexpr index strip = 8;

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
    const index rows = clamp(columns - j, L);
    for (index k = 0; k < depth; k += L) {
      const index count = clamp(depth - k, L);
      const T* const from = b + j * ldb + k;
      Vec<T> x[L];
      if (rows == L && count == L) {
        UNROLL for (int i = 0; i < L; i++) x[i] = load<T>(from + i * ldb);
      } else {
        UNROLL for (int i = 0; i < L; i++) x[i] = i < rows ? load_part<T>(from + i * ldb, count) : Vec<T>{};
      }
      transpose<T>(x);
      T* const row = to + k * stride + j;
      UNROLL for (int i = 0; i < L; i++) {
        if (i < count) store<T>(row + i * stride, x[i]);
      }
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

// Blocks of rows of a transposed a, each to (depth, Stride), Stride being the height of the tallest tile. `inside`
// rows may be read.
template <class T, int Stride, class A>
INLINE void pack_columns(const RowBlocks& blocks, index inside, index depth, A a, T* packed) {
  for (index k = 0; k < depth; k += strip) {
    const index end = clamp(depth, k + strip);
    index row = 0;
    for (index block = 0; block < blocks.count; block++) {
      const index height = blocks.height + (block < blocks.taller);
      T* to = packed + (block * depth + k) * Stride;
      for (index at = k; at < end; at++, to += Stride) {
        const T* const from = a.column(at) + row;
        if (inside - row >= Stride) {
          __builtin_memcpy(to, from, Stride * sizeof(T));
        } else {
          for (index i = 0; i < height; i++) to[i] = from[i];
        }
      }
      row += height;
    }
  }
}

// Rows order[i] of `from`, copied by copy(to, row). Those that come next are fetched ahead.
template <class T, class F>
INLINE void gather_rows(index count, index columns, const T* from, const std::int64_t* order, index reach, T* to,
                        index to_stride, F copy) {
  constexpr index ahead = 16;
  const index fetching = clamp(reach - ahead, count);
  index i = 0;
  for (; i < fetching; i++, to += to_stride) {
    const T* const next = from + order[i + ahead] * columns;
    __builtin_prefetch(next);
    __builtin_prefetch(next + columns - 1);
    copy(to, from + order[i] * columns);
  }
  for (; i < count; i++, to += to_stride) copy(to, from + order[i] * columns);
}

template <class T, int... Below>
INLINE void gather(index count, index columns, const T* from, const std::int64_t* order, index reach, T* to,
                   index to_stride, std::integer_sequence<int, Below...>) {
  constexpr index L = lanes<T>;
  // Of a few columns: a copy of a size that the compiler knows is a move or two.
  const auto gather_few = [&](auto size) {
    if (columns == size.value)
      gather_rows(count, columns, from, order, reach, to, to_stride,
                  [&](T* to_row, const T* row) { __builtin_memcpy(to_row, row, size.value * sizeof(T)); });
  };
  if (columns < L) return (gather_few(std::integral_constant<int, Below + 1>{}), ...);
  // Vectors from the first column on, one to the last column.
  const index last = columns - L;
  gather_rows(count, columns, from, order, reach, to, to_stride, [&](T* to_row, const T* row) {
    for (index j = 0; j < last; j += L) store<T>(to_row + j, load<T>(row + j));
    store<T>(to_row + last, load<T>(row + last));
  });
}

template <class T>
void gather(index count, index columns, const T* from, const std::int64_t* order, index reach, T* to, index to_stride) {
  gather(count, columns, from, order, reach, to, to_stride, std::make_integer_sequence<int, lanes<T> - 1>{});
}
