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

// The lower or upper halves of every 16 bytes of two vectors, lane by lane.
template <class T, bool Upper, int... Lane>
INLINE Vec<T> interleave(Vec<T> x, Vec<T> y, std::integer_sequence<int, Lane...>) {
  constexpr int Q = 16 / sizeof(T);
  return __builtin_shufflevector(x, y, (Lane / Q * Q + (Upper * Q + Lane % Q) / 2 + Lane % 2 * lanes<T>)...);
}

// Squares of 16 bytes of vectors, transposed.
template <class T>
INLINE void transpose_squares(Vec<T> (&x)[lanes<T>]) {
  constexpr int Q = 16 / sizeof(T);
  constexpr std::make_integer_sequence<int, lanes<T>> all{};
  UNROLL for (int round = 1; round < Q; round *= 2) {
    UNROLL for (int first = 0; first < lanes<T>; first += Q) {
      Vec<T> y[Q];
      UNROLL for (int i = 0; i < Q / 2; i++) {
        y[2 * i] = interleave<T, false>(x[first + i], x[first + i + Q / 2], all);
        y[2 * i + 1] = interleave<T, true>(x[first + i], x[first + i + Q / 2], all);
      }
      UNROLL for (int i = 0; i < Q; i++) x[first + i] = y[i];
    }
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

// Off-diagonal blocks of a square of vectors exchanged, from Half lanes to below End.
template <class T, int Half, int End>
INLINE void exchange_blocks(Vec<T> (&x)[lanes<T>]) {
  if constexpr (Half < End) {
    UNROLL for (int i = 0; i < lanes<T>; i++) {
      if (!(i & Half)) exchange<T, Half>(x[i], x[i + Half], std::make_integer_sequence<int, lanes<T>>{});
    }
    exchange_blocks<T, 2 * Half, End>(x);
  }
}

// A vector of two halves.
template <class T, int... Lane>
INLINE Vec<T> load_halves(const T* low, const T* high, std::integer_sequence<int, Lane...>) {
  typedef T HalfVec __attribute__((vector_size(VECTOR_BYTES / 2)));
  HalfVec x, y;
  __builtin_memcpy(&x, low, sizeof x);
  __builtin_memcpy(&y, high, sizeof y);
  return __builtin_shufflevector(x, y, Lane...);
}

// A square of vectors at `from`, transposed, to `to`.
template <class T>
INLINE void transpose_square(const T* from, index ldb, T* to, index stride) {
  constexpr int L = lanes<T>, square = 16 / sizeof(T);
  Vec<T> x[L];
  if constexpr (L > square) {
    // Loaded in halves, the largest blocks have changed places.
    UNROLL for (int i = 0; i < L; i++) {
      const T* const half = from + i % (L / 2) * ldb + i / (L / 2) * (L / 2);
      x[i] = load_halves<T>(half, half + L / 2 * ldb, std::make_integer_sequence<int, L>{});
    }
    exchange_blocks<T, square, L / 2>(x);
  } else {
    UNROLL for (int i = 0; i < L; i++) x[i] = load<T>(from + i * ldb);
  }
  transpose_squares<T>(x);
  UNROLL for (int i = 0; i < L; i++) store<T>(to + i * stride, x[i]);
}

// Of a part of one: rows of so many columns, to as many whole vectors, filled with zeros.
template <class T>
void transpose_part(index rows, index columns, const T* from, index ldb, T* to, index stride) {
  constexpr int L = lanes<T>;
  Vec<T> x[L];
  UNROLL for (int i = 0; i < L; i++) x[i] = i < rows ? load_part<T>(from + i * ldb, columns) : Vec<T>{};
  exchange_blocks<T, 16 / sizeof(T), L>(x);
  transpose_squares<T>(x);
  UNROLL for (int i = 0; i < L; i++) {
    if (i < columns) store<T>(to + i * stride, x[i]);
  }
}

// Rows of b (columns, depth) to columns of `to` (depth, reach), reach being whole vectors; zeros in the
// columns past the last row.
template <class T>
INLINE void transpose_rows(index depth, index columns, index reach, const T* b, index ldb, T* to, index stride) {
  constexpr int L = lanes<T>;
  for (index j = 0; j < reach; j += L, b += L * ldb, to += L) {
    const index rows = clamp(columns - j, L);
    index k = 0;
    for (; rows == L && k + L <= depth; k += L) transpose_square<T>(b + k, ldb, to + k * stride, stride);
    for (; k < depth; k += L) transpose_part<T>(rows, clamp(depth - k, L), b + k, ldb, to + k * stride, stride);
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
        if constexpr (std::is_same_v<A, ColumnPointers<T>>) a.from(row, 0).fetch(at);
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

// A row's ends, of one shorter than a vector its beginning, to the first-level cache (3) or the second (2). And what is
// between, unless that is so long that the processor follows it.
template <class T, int Level>
INLINE void fetch_row(const T* row, index columns) {
  constexpr index line = 64 / sizeof(T), longest = 16 * line;
  __builtin_prefetch(row, 0, Level);
  if (columns >= lanes<T>) __builtin_prefetch(row + columns - 1, 0, Level);
  if (columns > longest) return;
  for (index j = line; j < columns - line; j += line) __builtin_prefetch(row + j, 0, Level);
}

// Rows order[i] of `from`, copied by copy(to, row). Those that come next are fetched ahead: from memory to the
// second-level cache, which waits for more lines at a time than the first, and from there to that. (Measured on Zen 4:
// rows of 96 bytes of 200 MB take 6 instead of 18 ns.)
template <class T, class F>
INLINE void gather_rows(index count, index rows, index columns, const T* from, const std::int64_t* order, index reach,
                        T* to, index to_stride, F copy) {
  constexpr index far = 64, near = 8;
  index i = 0;
  const auto go_on = [&](index end, auto fetches_far, auto fetches_near) {
    for (; i < end; i++, to += to_stride) {
      if constexpr (fetches_far.value) fetch_row<T, 2>(from + order[i + far] * columns, columns);
      if constexpr (fetches_near.value) fetch_row<T, 3>(from + order[i + near] * columns, columns);
      copy(to, from + order[i] * columns);
    }
  };
  constexpr std::true_type yes;
  constexpr std::false_type no;
  constexpr index much = (index(4) << 20) / index(sizeof(T));  // the second-level cache holds less
  if (rows * columns > much) go_on(clamp(reach - far, count), yes, yes);
  go_on(clamp(reach - near, count), no, yes);
  go_on(count, no, no);
}

template <class T, int... Below>
INLINE void gather(index count, index rows, index columns, const T* from, const std::int64_t* order, index reach, T* to,
                   index to_stride, std::integer_sequence<int, Below...>) {
  constexpr index L = lanes<T>;
  // Of a few columns: a copy of a size that the compiler knows is a move or two.
  const auto gather_few = [&](auto size) {
    if (columns == size.value)
      gather_rows(count, rows, columns, from, order, reach, to, to_stride,
                  [&](T* to_row, const T* row) { __builtin_memcpy(to_row, row, size.value * sizeof(T)); });
  };
  if (columns < L) return (gather_few(std::integral_constant<int, Below + 1>{}), ...);
  // Vectors from the first column on, one to the last column.
  const index last = columns - L;
  gather_rows(count, rows, columns, from, order, reach, to, to_stride, [&](T* to_row, const T* row) {
    for (index j = 0; j < last; j += L) store<T>(to_row + j, load<T>(row + j));
    store<T>(to_row + last, load<T>(row + last));
  });
}

template <class T>
void gather(index count, index rows, index columns, const T* from, const std::int64_t* order, index reach, T* to,
            index to_stride) {
  gather(count, rows, columns, from, order, reach, to, to_stride, std::make_integer_sequence<int, lanes<T> - 1>{});
}
