// The register tile of the matrix products: a few rows of a by one or two vectors of b's columns.
//
// a is only ever broadcast, so it can be read where it lies: row-major, transposed, or through pointers
// to the rows of a shuffled batch. Vectors run across the columns of c, and every element is
// summed in the order of depth.

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

// As ColumnMajor, in packed blocks of `stride` rows: the next rows are those of the next block.
template <class T, int Stride>
struct PackedColumns {
  static constexpr bool transposed = true;
  const T* data;
  index block;
  PackedColumns from(index, index) const { return {data + block, block}; }
  const T* column(index k) const { return data + k * Stride; }
};

// Rows of a tile, which keep their sums in registers: 32 of them with AVX-512 and on arm64, else 16. As rows, a
// takes an address each, for which there are other registers, 16 at most.
#if defined(__AVX512F__) || defined(__aarch64__)
template <class A, int Vectors>
constexpr int tallest = A::transposed ? 12 : 8;
#else
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
  bool descends;
  T rate;
  index last;  // how many columns of the last vector there are

  Result from(index row) const {
    return {start ? start + row * start_stride : nullptr, start_stride, c + row * ldc, ldc, descends, rate, last};
  }
};

// Rows x (Vectors lanes) of a b.
template <class T, int Rows, int Vectors, class A>
INLINE void tile(index depth, A a, const T* b, index ldb, const Result<T>& result) {
  constexpr int L = lanes<T>;
  const bool whole = result.last == L;
  const auto read = [&](const T* row, int j) {
    return whole || j < Vectors - 1 ? load<T>(row + j * L) : load_part<T>(row + j * L, result.last);
  };
  Vec<T> sum[Rows][Vectors];
  UNROLL for (int i = 0; i < Rows; i++) {
    UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] =
        result.start ? read(result.start + i * result.start_stride, j) : Vec<T>{};
  }
  const T* row[Rows] = {};
  if constexpr (!A::transposed) {
    UNROLL for (int i = 0; i < Rows; i++) row[i] = a.row(i);
  }
#pragma GCC unroll 4
  for (index k = 0; k < depth; k++) {
    Vec<T> panel[Vectors];
    UNROLL for (int j = 0; j < Vectors; j++) panel[j] = load<T>(b + k * ldb + j * L);
    const T* column = nullptr;
    if constexpr (A::transposed) column = a.column(k);
    UNROLL for (int i = 0; i < Rows; i++) {
      const T x = A::transposed ? column[i] : row[i][k];
      UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] += x * panel[j];
    }
  }
  UNROLL for (int i = 0; i < Rows; i++) {
    T* const to = result.c + i * result.ldc;
    // One expression, without a branch inside: else it might not be fused.
    if (result.descends) {
      UNROLL for (int j = 0; j < Vectors; j++) store<T>(to + j * L, load<T>(to + j * L) - result.rate * sum[i][j]);
      continue;
    }
    UNROLL for (int j = 0; j < Vectors; j++) {
      if (whole || j < Vectors - 1)
        store<T>(to + j * L, sum[i][j]);
      else
        store_part<T>(to + j * L, sum[i][j], result.last);
    }
  }
}

// Rows in blocks of nearly equal height, at most `most`: the first `taller` of them have a row more.
struct RowBlocks {
  index count, height, taller;

  INLINE RowBlocks of(index rows, index most) {
    const index count = (rows + most - 1) / most;
    return {count, count ? rows / count : 0, count ? rows % count : 0};
  }
};

// Tiles below one another, in one call: of little depth, each takes no longer than a call.
template <class T, class A, int Rows, int Vectors>
void column_of_tiles(index count, index depth, A a, const T* b, index ldb, Result<T> result) {
  const bool adds = depth >= 64 && (result.descends || result.start == result.c);
  for (; count > 0; count--, a = a.from(Rows, 0)) {
    const Result<T> next = result.from(Rows);
    // What the next tile adds to arrives meanwhile.
    if (adds && count > 1) {
      UNROLL for (int i = 0; i < Rows; i++) {
        UNROLL for (int j = 0; j < Vectors; j++) __builtin_prefetch(next.c + i * next.ldc + j * lanes<T>, 1);
      }
    }
    tile<T, Rows, Vectors>(depth, a, b, ldb, result);
    result = next;
  }
}

// For tiles of every height, from one row on.
template <class T, class A, int Vectors, class = std::make_integer_sequence<int, tallest<A, Vectors>>>
struct Tiles;
template <class T, class A, int Vectors, int... Below>
struct Tiles<T, A, Vectors, std::integer_sequence<int, Below...>> {
  static constexpr void (*of[])(index, index, A, const T*, index,
                                Result<T>) = {column_of_tiles<T, A, Below + 1, Vectors>...};
};
