// The register tile of the matrix products: a few rows of a by a few vectors of b's columns; of little depth all rows.
//
// a is only ever broadcast, so it can be read where it lies: row-major, transposed, or through pointers
// to the rows of a shuffled batch. Vectors run across the columns of c, and every element is
// summed in the order of depth.

INLINE index clamp(index x, index most) { return x < 0 ? 0 : x > most ? most : x; }

// Where element (i, k) of a is, seen from the first row and depth of a block.
template <class T>
struct RowsOfA {  // i stride + k, or offset + k in pointers[i]
  static constexpr bool transposed = false;
  const T* const* pointers;  // unless null, there is no data
  const T* data;
  index stride;  // of pointers: the offset
  INLINE RowsOfA of(const Gemm<T>& g) {
    return g.a_rows ? RowsOfA{g.a_rows, nullptr, g.a_offset} : RowsOfA{nullptr, g.a, g.lda};
  }
  RowsOfA from(index i, index k) const {
    return pointers ? RowsOfA{pointers + i, nullptr, stride + k} : RowsOfA{nullptr, data + i * stride + k, stride};
  }
  const T* row(index i) const { return pointers ? pointers[i] + stride : data + i * stride; }
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
struct ColumnPointers {  // i in rows[k]
  static constexpr bool transposed = true;
  const T* const* rows;
  index offset, next;
  INLINE ColumnPointers of(const Gemm<T>& g) { return {g.a_rows, g.a_offset, g.a_next}; }
  ColumnPointers from(index i, index k) const { return {rows + k, offset + i, next}; }
  const T* column(index k) const { return rows[k] + offset; }
  // What the next product reads in place of column(k) begins to arrive: with each column, since many lines at once
  // would keep the multiply-adds waiting.
  __attribute__((always_inline)) void fetch(index k) const { __builtin_prefetch(rows[next + k] + offset); }
};

// Vectors of a tile's rows at most, and how many rows it has then: they keep their sums in registers, 32 of them
// with AVX-512 and on arm64, else 16. As rows, a takes a distance each, for which there are other
// registers, 16 at most. Below 8 sums they wait for each other, so 10 rows of one vector are better one tile than two.
// Columns of a take no addresses, but are of little depth, mostly: see row_blocks.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int widest = 4;
template <class A, int Vectors>
constexpr int tallest = Vectors == 4   ? 6
                        : Vectors == 2 ? (A::transposed ? 6 : 8)
                                       : (A::transposed ? 12 : 10);
#else
constexpr int widest = 2;
template <class A, int Vectors>
constexpr int tallest = Vectors == 2 ? 6 : 8;
#endif

// What becomes of a tile's sums: c = start + sums, or where it descends c -= rate sums.
template <class T>
struct Result {
  const T* start;  // null: zero
  index start_stride;
  T* c;
  index ldc;
  index pairs;  // how far pairs of vectors are apart
  bool descends;
  T rate;
  index last;  // how many columns of the last vector there are

  Result from(index row) const {
    Result below = *this;
    if (start) below.start += row * start_stride;
    below.c += row * ldc;
    return below;
  }
  bool in_panels() const { return pairs > 2 * lanes<T>; }
  bool starts_by_rows() const { return start && start_stride; }  // else from the same row, or zero
  // Whether what a tile writes to is worth fetching while the one before it is computed: what it adds to, and where
  // that is a vector or two a row anything.
  bool arrives(index depth) const { return depth >= 64 && (widest == 2 || descends || start == c); }
  __attribute__((always_inline)) void fetch(index rows, int vectors) const {
    T* row = c;
    for (index i = 0; i < rows; i++, row = opaque(row + ldc)) {
      for (int j = 0; j < vectors; j++) __builtin_prefetch(vector(row, j), 1);
    }
  }
  // Where vector j of the row at `row` is.
  template <class Row>
  Row* vector(Row* row, int j) const {
    return row + j / 2 * pairs + j % 2 * lanes<T>;
  }
};

// Columns of b, whose pairs of vectors are `pairs` apart.
template <class T>
struct ColumnsOfB {
  const T* data;
  index stride, pairs;
};

// Rows x (Vectors lanes) of a b. If a has rows, the first is `row` and the others are so far `apart` from it: one
// address is raised, not all.
template <class T, int Rows, int Vectors, class A>
INLINE void tile(index depth, A a, const T* row, const index* apart, ColumnsOfB<T> b, const Result<T>& result) {
  constexpr int L = lanes<T>;
  const bool whole = result.last == L;
  const auto read = [&](const T* start, int j) {
    const T* const at = result.vector(start, j);
    return whole || j < Vectors - 1 ? load<T>(at) : load_part<T>(at, result.last);
  };
  Vec<T> sum[Rows][Vectors];
  if (!result.start) {
    UNROLL for (int i = 0; i < Rows; i++) { UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = Vec<T>{}; }
  } else if (result.start_stride) {
    const T* start = result.start;
    UNROLL for (int i = 0; i < Rows; i++, start = opaque(start + result.start_stride)) {
      UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = read(start, j);
    }
  } else {
    UNROLL for (int j = 0; j < Vectors; j++) {
      const Vec<T> x = read(result.start, j);
      UNROLL for (int i = 0; i < Rows; i++) sum[i][j] = x;
    }
  }
#pragma GCC unroll 4
  for (index k = 0; k < depth; k++) {
    Vec<T> panel[Vectors];
    UNROLL for (int j = 0; j < Vectors; j++) panel[j] = load<T>(b.data + k * b.stride + j / 2 * b.pairs + j % 2 * L);
    const T* column = nullptr;
    if constexpr (A::transposed) column = opaque(a.column(k));
    if constexpr (std::is_same_v<A, ColumnPointers<T>>) a.fetch(k);
    UNROLL for (int i = 0; i < Rows; i++) {
      const T x = A::transposed ? column[i] : row[apart[i] + k];
      UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] += x * panel[j];
    }
  }
  T* row_of_c = result.c;
  UNROLL for (int i = 0; i < Rows; i++, row_of_c = opaque(row_of_c + result.ldc)) {
    // One expression, without a branch inside: else it might not be fused.
    if (result.descends) {
      UNROLL for (int j = 0; j < Vectors; j++) {
        T* const to = result.vector(row_of_c, j);
        store<T>(to, load<T>(to) - result.rate * sum[i][j]);
      }
      continue;
    }
    UNROLL for (int j = 0; j < Vectors; j++) {
      T* const to = result.vector(row_of_c, j);
      if (whole || j < Vectors - 1)
        store<T>(to, sum[i][j]);
      else
        store_part<T>(to, sum[i][j], result.last);
    }
  }
}

// Rows in blocks of nearly equal height: the first `taller` of them have a row more.
struct RowBlocks {
  index count, height, taller;

  INLINE RowBlocks of(index rows, index count) {
    if (!count) return {};
    // Of 32 bits, a division takes many processors a quarter of the time.
    const index height = rows >> 32 ? rows / count : index(std::uint32_t(rows) / std::uint32_t(count));
    return {count, height, rows - height * count};
  }
};

// Blocks for tiles of so many vectors, as few as may be. But a tile of many sums takes long to begin and to end: of
// little depth, tiles of four rows, whose sums just do not wait for each other, are faster by up to a fifth. (Measured
// on Zen 3 with vectors of 32 bytes, and on Zen 4 with those of 64. Blocks of two heights are two calls, so few rows
// are rather cut into equal ones.)
template <class A, int Vectors>
INLINE RowBlocks row_blocks(index rows, index depth) {
  constexpr index most = tallest<A, Vectors>, low = 4;
  const RowBlocks least = RowBlocks::of(rows, (rows + most - 1) / most);
  if (Vectors > 1 && depth >= 8 && depth < 48 && rows / low > least.count) {
    const RowBlocks more = RowBlocks::of(rows, rows / low);
    if (rows > 4 * most || least.taller || !more.taller) return more;
  }
  return least;
}

// How far the next tile is from one: rows of a (of columns, elements), and elements of b, of the result and of what it
// starts from.
struct Step {
  index a, b, c, start;
};

// Tiles below or beside one another.
template <class T, class A>
struct RowOfTiles {
  index count;
  Step step;
  index depth;
  A a;  // of the first tile, as what follows
  ColumnsOfB<T> b;
  Result<T> result;
};

// In one call: of little depth, each takes no longer than a call. By reference: a copy on the stack would be made in
// vectors, which wait until the numbers just written have left for the cache.
template <class T, class A, int Rows, int Vectors>
void row_of_tiles(const RowOfTiles<T, A>& tiles) {
  const Step step = tiles.step;
  const index depth = tiles.depth;
  A a = tiles.a;
  ColumnsOfB<T> b = tiles.b;
  Result<T> result = tiles.result;
  const bool arrives = result.arrives(depth);
  const T* row = nullptr;
  index apart[Rows] = {};
  const auto find_rows = [&] {
    if constexpr (!A::transposed) {
      row = a.row(0);
      UNROLL for (int i = 0; i < Rows; i++) apart[i] = a.row(i) - row;
    }
  };
  find_rows();
  for (index count = tiles.count; count > 0; count--) {
    Result<T> next = result;
    next.c += step.c;
    if (next.start) next.start += step.start;
    if (arrives && count > 1) next.fetch(Rows, Vectors);
    tile<T, Rows, Vectors>(depth, a, row, apart, b, result);
    if constexpr (A::transposed) {
      a = a.from(step.a, 0);
    } else if (!a.pointers) {
      row += step.a * a.stride;
    } else if (count > 1) {
      a = a.from(step.a, 0);
      find_rows();
    }
    b.data += step.b;
    result = next;
  }
}

// For tiles of every height, from one row on.
template <class T, class A, int Vectors, class = std::make_integer_sequence<int, tallest<A, Vectors>>>
struct Tiles;
template <class T, class A, int Vectors, int... Below>
struct Tiles<T, A, Vectors, std::integer_sequence<int, Below...>> {
  static constexpr void (*of[])(const RowOfTiles<T, A>&) = {row_of_tiles<T, A, Below + 1, Vectors>...};
};

// Depth up to which b's vectors stay in registers while all rows of a go by.
constexpr int shallow = 4;

// All rows x (Vectors lanes) of a product of so little depth, from one row of start or zero. By reference as above.
template <class T, int Depth, int Vectors>
void shallow_rows(index rows, const RowsOfA<T>& a, const ColumnsOfB<T>& b, const Result<T>& result) {
  constexpr int L = lanes<T>;
  const Result<T> to = result;  // what vectors are stored to could be anything else
  const T* x_row = a.row(0);
  const index a_stride = a.stride;
  const index last = to.last;
  Vec<T> panel[Depth][Vectors], start[Vectors];
  UNROLL for (int j = 0; j < Vectors; j++) {
    UNROLL for (int k = 0; k < Depth; k++) panel[k][j] = load<T>(b.data + k * b.stride + j / 2 * b.pairs + j % 2 * L);
    start[j] = Vec<T>{};
    if (to.start)
      start[j] =
          j < Vectors - 1 || last == L ? load<T>(to.vector(to.start, j)) : load_part<T>(to.vector(to.start, j), last);
  }
  T* c = to.c;
  for (index row = 0; row < rows; row++, c += to.ldc, x_row += a_stride) {
    T x[Depth];
    UNROLL for (int k = 0; k < Depth; k++) x[k] = x_row[k];
    UNROLL for (int j = 0; j < Vectors; j++) {
      Vec<T> sum = start[j];
      UNROLL for (int k = 0; k < Depth; k++) sum += x[k] * panel[k][j];
      if (j < Vectors - 1 || last == L)
        store<T>(to.vector(c, j), sum);
      else
        store_part<T>(to.vector(c, j), sum, last);
    }
  }
}

// By depth, from one on.
template <class T, int Vectors, class = std::make_integer_sequence<int, shallow>>
struct Shallow;
template <class T, int Vectors, int... Below>
struct Shallow<T, Vectors, std::integer_sequence<int, Below...>> {
  static constexpr void (*of[])(index, const RowsOfA<T>&, const ColumnsOfB<T>&,
                                const Result<T>&) = {shallow_rows<T, Below + 1, Vectors>...};
};
