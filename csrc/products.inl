// Matrix products. Blocks of b's columns, then of its depth, stay in the second-level cache while the rows of
// a go by. b is read in whole vectors: where it lies when that is cheap and inside b, else from a packed
// copy. Blocking, packing and threads change no bit of the result.

// b where it lies, from its column n and its depth k on.
template <class A, class T>
INLINE ColumnsOfB<T> columns_of_b(const Gemm<T>& g, index n, index k) {
  constexpr index W = 2 * lanes<T>;
  if (A::transposed || !g.panels) return {g.b + k * g.ldb + n, g.ldb, W};
  return {g.b + g.panels->begin(n / W, g.panel_row + k), g.panels->width_of(n / W), g.panels->rows * W};
}

// Blocks of nearly equal size that are at most `most`, and multiples of `unit`.
INLINE index even_blocks(index size, index most, index unit) {
  if (size <= most) return size;
  const index blocks = (size + most - 1) / most;
  return ((size + blocks - 1) / blocks + unit - 1) / unit * unit;
}

// The depth of a block of b that is read where it lies. Where the second-level cache does not hold it, rows that follow
// one another come sooner than columns; so by rows, if the result, which each block adds to, stays near.
template <class T>
INLINE index depth_in_place(const Gemm<T>& g) {
  const bool near = g.depth * g.columns <= 4 * packed_size<T>;
  if (near || g.panels || g.descends || g.rows * g.columns > packed_size<T>) return g.depth;
  constexpr index least = 64;
  return even_blocks(g.depth, g.columns < packed_size<T> / least ? packed_size<T> / g.columns : least, 1);
}

// Whether rows so many elements apart meet in few places of the caches, if a vector or two of each are read: in one
// where it is a multiple of 4 KB. Those of pointers have no stride. (Measured on Zen 3. Of vectors of 64 bytes four are
// read.)
template <class T>
INLINE bool meet(index stride, index bytes) {
  return widest == 2 && stride && stride * index(sizeof(T)) % bytes == 0;
}

// Whether packing b pays: where it overflows the first-level cache, or its rows meet there, and it is used often
// enough.
template <class A, class T>
INLINE bool pays_to_pack(const Gemm<T>& g) {
  if (g.ldb <= 2 * lanes<T> || g.depth * g.ldb * index(sizeof(T)) <= 28 * 1024) return false;
  if (meet<T>(g.ldb, 4096)) return g.rows > tallest<A, 2> && g.depth >= 8;
  if (g.depth < 24) return false;
  const bool by_rows = depth_in_place(g) < g.depth;
  return g.rows >= (by_rows || !meet<T>(g.ldb, 256) ? 96 : g.depth > 512 || meet<T>(g.ldb, 2048) ? 24 : 48);
}

// One row against the V vectors of columns from column n on, the last one maybe in part: they hide the latency of each
// other's sums. b is read where it lies.
template <class T, int V>
void row_tile(const Gemm<T>& g, const T* a, index n, index columns) {
  constexpr index L = lanes<T>;
  ColumnsOfB<T> b = columns_of_b<RowsOfA<T>>(g, n, 0);
  const index last = clamp(columns - n - (V - 1) * L, L);
  const auto whole = [](const T* p, int) { return load<T>(p); };
  const auto part = [&](const T* p, int j) { return j < V - 1 ? load<T>(p) : load_part<T>(p, last); };
  Vec<T> sum[V];
  UNROLL for (int j = 0; j < V; j++) sum[j] = g.start ? part(g.start + n + j * L, j) : Vec<T>{};
  index k = 0;
  const auto add = [&](index end, auto read) {
#pragma GCC unroll 4
    for (; k < end; k++, b.data += b.stride) {
      UNROLL for (int j = 0; j < V; j++) sum[j] += a[k] * read(b.data + j / 2 * b.pairs + j % 2 * L, j);
    }
  };
  // A whole vector reaches L - last elements into the next rows; so near its end, past the end of b.
  add(clamp(g.depth - (L - last), g.depth), whole);
  add(g.depth, part);
  T* const c = g.c + n;
  UNROLL for (int j = 0; j < V - 1; j++) store<T>(c + j * L, sum[j]);
  if (last == L)
    store<T>(c + (V - 1) * L, sum[V - 1]);
  else
    store_part<T>(c + (V - 1) * L, sum[V - 1], last);
}

template <class T, int... Below>
INLINE void row_block(const Gemm<T>& g, const T* a, index columns, std::integer_sequence<int, Below...>) {
  static constexpr void (*tiles[])(const Gemm<T>&, const T*, index, index) = {row_tile<T, Below + 1>...};
  constexpr index most = sizeof...(Below);
  for (index n = 0; n < columns;) {
    index vectors = clamp((columns - n + lanes<T> - 1) / lanes<T>, most);
    // A panel of one vector has rows of its own length.
    if (g.panels && vectors > 1) vectors -= vectors % 2;
    tiles[vectors - 1](g, a, n, columns);
    n += vectors * lanes<T>;
  }
}

template <class T>
INLINE void row_product(const Gemm<T>& g, const T* a, index columns) {
  constexpr std::make_integer_sequence<int, 8> tiles{};  // the vectors of each, less one
  const index depth = depth_in_place(g);
  if (depth == g.depth) return row_block(g, a, columns, tiles);
  Gemm<T> block = g;
  for (index k = 0; k < g.depth; k += depth) {
    block.depth = clamp(g.depth - k, depth);
    row_block(block, a + k, columns, tiles);
    block.b += depth * g.ldb;
    block.start = g.c;
  }
}

// The vectors of a tile where so many columns are left.
template <class T>
INLINE int vectors_of(index columns) {
  constexpr index L = lanes<T>;
  return widest == 4 && columns > 3 * L ? 4 : columns > L ? 2 : 1;
}

// Columns [first, end) of the result, over one block of depth. columns(n) are b's from column n on, target(n)
// where the result goes. a's columns are packed to `packed`, unless it is null.
template <class T, class A, class Columns, class Target>
INLINE void multiply(index rows, index depth, index first, index end, A a, T* packed, Columns columns, Target target) {
  constexpr index L = lanes<T>, W = 2 * L;
  const auto vectors = [&](index n) { return vectors_of<T>(end - n); };
  // `count` tiles of `height` rows, from `row` and column n on.
  const auto run = [&](index n, index count, Step step, index height, index row, auto read) {
    using Read = decltype(read);
    const int v = vectors(n);
    (v == 4   ? Tiles<T, Read, widest>::of
     : v == 2 ? Tiles<T, Read, 2>::of
              : Tiles<T, Read, 1>::of)[height - 1]({count, step, depth, read, columns(n), target(n).from(row)});
  };
  // All blocks, panel by panel; read(block, row) is where a block is read, `apart` from block to block, unless zero: as
  // far as its rows.
  const auto by_panels = [&](const RowBlocks& blocks, index first_row, index apart, auto read) {
    const index height = blocks.height, taller = height + 1, below = blocks.taller * taller;
    for (index n = first; n < end; n += vectors(n) * L) {
      const Result<T> to = target(n);
      const auto step = [&](index rows) {
        return Step{apart ? apart : rows, 0, rows * to.ldc, rows * to.start_stride};
      };
      if (blocks.taller) run(n, blocks.taller, step(taller), taller, first_row, read(0, 0));
      if (blocks.count > blocks.taller)
        run(n, blocks.count - blocks.taller, step(height), height, first_row + below, read(blocks.taller, below));
    }
  };

  if constexpr (A::transposed) {
    constexpr int most = tallest<A, widest>;
    for (index row = 0; packed && row < rows; row += packed_rows) {
      const RowBlocks blocks = row_blocks<A, widest>(clamp(rows - row, packed_rows), depth);
      pack_columns<T, most>(blocks, rows - row, depth, a.from(row, 0), packed);
      by_panels(blocks, row, most * depth,
                [&](index block, index) { return ColumnMajor<T>{packed + block * most * depth, most}; });
    }
    if (packed) return;
  }
  if constexpr (!A::transposed) {
    // Of wider results, a tile would write to distant lines of row after row. (Measured on Zen 4.)
    constexpr index most_bytes = widest * VECTOR_BYTES >= 256 ? 4095 : 256;
    const bool is_narrow = (end - first) * index(sizeof(T)) <= most_bytes;
    const bool is_shallow = depth > 0 && depth <= shallow && rows > tallest<A, 1> && !a.pointers;
    if (is_narrow && is_shallow && !target(first).descends && !target(first).starts_by_rows()) {
      for (index n = first; n < end; n += vectors(n) * L)
        (vectors(n) == 4   ? Shallow<T, widest>::of
         : vectors(n) == 2 ? Shallow<T, 2>::of
                           : Shallow<T, 1>::of)[depth - 1](rows, a, columns(n), target(n));
      return;
    }
  }
  const int v = vectors(first);
  const RowBlocks blocks = v == 4   ? row_blocks<A, widest>(rows, depth)
                           : v == 2 ? row_blocks<A, 2>(rows, depth)
                                    : row_blocks<A, 1>(rows, depth);
  // Either a panel of b stays in the first-level cache while the rows of a go by, which come from the second, or a
  // block of rows while the panels go by. Of little depth, most of the work is to write the result: row by row, unless
  // its rows are short or it lies in panels itself.
  const index panel_bytes = v * L * depth * index(sizeof(T)), a_bytes = rows * depth * index(sizeof(T)),
              row_bytes = (end - first) * index(sizeof(T));
  const bool row_by_row = depth < 48 && row_bytes >= 1024 && rows * row_bytes > (depth < 16 ? 16 : 1024) * 1024 &&
                          !target(first).in_panels();
  if (end - first <= W || (!row_by_row && a_bytes <= (panel_bytes <= 32 * 1024 ? 512 : 128) * 1024))
    return by_panels(blocks, 0, 0, [&](index, index row) { return a.from(row, 0); });
  // Panels of the widest tiles lie at equal distances.
  constexpr index G = widest * L;
  const index equal = (end - first) / G;
  Step across{};
  if (equal > 1) {
    const Result<T> here = target(first), beside = target(first + G);
    across = {0, columns(first + G).data - columns(first).data, beside.c - here.c,
              here.start ? beside.start - here.start : 0};
  }
  for (index block = 0, row = 0; block < blocks.count; block++) {
    const index height = blocks.height + (block < blocks.taller);
    if (equal) run(first, equal, across, height, row, a.from(row, 0));
    for (index n = first + equal * G; n < end; n += vectors(n) * L) run(n, 1, {}, height, row, a.from(row, 0));
    row += height;
  }
}

// b's columns [n, n + V lanes) at depth [k, k + depth) to `panel`.
template <class T, int V, bool TransposedB>
INLINE void pack(const Gemm<T>& g, index n, index k, index depth, T* panel) {
  constexpr index L = lanes<T>;
  const index columns = clamp(g.columns - n, V * L);
  if constexpr (TransposedB) {
    if (g.panels)
      transpose_panels<T>(*g.panels, g.panel_row + n, k, depth, columns, V * L, g.b, panel);
    else
      transpose_rows<T>(depth, columns, V * L, g.b + n * g.ldb + k, g.ldb, panel, V * L);
  } else {
    // Vectors that cross the end of a row of b read the next row; past this row, the end of b.
    const index past = n + V * L - g.columns, rows_past = g.padded || past <= 0 ? 0 : (past + g.ldb - 1) / g.ldb;
    pack_panel<T, V>(depth, clamp(g.depth - rows_past - k, depth), columns, g.b + k * g.ldb + n, g.ldb, panel);
  }
}

// b's columns [first, end) at depth [k, k + depth) to panels.
template <class T, bool TransposedB>
INLINE void pack_block(const Gemm<T>& g, index first, index end, index k, index depth, T* packed) {
  constexpr index L = lanes<T>, W = 2 * L;
  const index at_once = TransposedB ? depth : strip;
  for (index row = 0; row < depth; row += at_once) {
    const index rows = clamp(depth - row, at_once);
    for (index n = first; n < end; n += W) {
      T* const panel = packed + (n - first) * depth;
      if (end - n > L)
        pack<T, 2, TransposedB>(g, n, k + row, rows, panel + row * W);
      else
        pack<T, 1, TransposedB>(g, n, k + row, rows, panel + row * L);
    }
  }
}

// What is packed, and the blocks of a product.
struct Blocking {
  bool pack_a;
  index pack_from;  // b's columns from here on are packed: all, none, or those past the last tile of whole vectors
  index tail;       // so many rows at its end are packed, all of their columns
  index depth, columns;
};

template <class T, class A, bool TransposedB>
INLINE Blocking blocking_of(const Gemm<T>& g, index last_column) {
  constexpr index L = lanes<T>, W = 2 * L, G = widest * L;
  const bool b_panels = !A::transposed && g.panels;
  // Measured: a of rows is better read where it lies, of columns if few vectors use it.
  const bool pack_b = TransposedB || (!b_panels && pays_to_pack<A>(g));
  const bool pack_a = A::transposed && g.rows >= 24 &&
                      (g.depth >= 128 || (g.depth >= 12 && meet<T>(g.lda, 4096)) ? g.columns >= 4 * W
                                                                                 : g.depth >= 48 && g.columns >= 8 * G);
  // Vectors that cross the end of a row read the next one, and from the last rows of b would reach past it. So these
  // are packed, if to add them up by themselves is less work than to pack the last columns.
  const index past = pack_b || g.padded ? 0 : (L - g.columns % L) % L;
  const bool by_rows =
      !A::transposed && past && 3 * g.rows * g.columns < g.depth * (g.columns % G) && g.columns < packed_size<T> / L;
  const index tail = by_rows ? (past + g.ldb - 1) / g.ldb : 0;
  const index pack_from = pack_b ? 0 : !past || by_rows ? last_column : g.columns / G * G;
  // A single tile's b is not used again.
  const bool several = g.rows > tallest<A, 2>;
  constexpr index most_depth = A::transposed ? max_depth : max_row_depth<T>;
  const index in_place = A::transposed || pack_b ? g.depth : depth_in_place(g);
  if (in_place < g.depth) return {false, pack_from, tail, clamp(in_place, most_depth), last_column};
  // A transposed b is used by few rows while a panel of it is in the first-level cache. (Measured on Zen 4; with
  // vectors of 64 bytes it gained nothing.)
  constexpr index near = 24 * 1024 / sizeof(T);
  if (TransposedB && widest == 2 && g.rows <= 64 && g.depth * last_column > near)
    return {false, 0, 0, even_blocks(g.depth, near / G, W), G};
  const index depth =
      even_blocks(g.depth, TransposedB || several ? most_depth : packed_size<T> / G, TransposedB ? W : 1);
  constexpr index most_packed = A::transposed ? packed_beside_a<T> : packed_size<T>;
  if (several && depth * last_column <= most_packed) return {pack_a, pack_from, tail, depth, last_column};
  const index most_columns = several ? most_packed / depth / G * G : G;
  return {pack_a, pack_from, tail, depth, even_blocks(last_column, most_columns, G)};
}

// Columns [0, last_column), which are g.columns or, of a padded product, whole vectors.
template <class T, class A, bool TransposedB>
void product(const Gemm<T>& g, index last_column) {
  constexpr index L = lanes<T>, W = 2 * L;
  const Panels* const c_panels = A::transposed ? g.panels : nullptr;
  T* const packed_b = g.scratch;
  const A whole_a = A::of(g);
  const Blocking blocks = blocking_of<T, A, TransposedB>(g, last_column);

  for (index first = 0; first < last_column; first += blocks.columns) {
    const index end = clamp(last_column, first + blocks.columns);
    const index body = g.depth - blocks.tail;
    index k = 0;
    do {  // once even for depth 0: c = start
      const bool at_tail = k >= body;
      const index packed_first = at_tail || blocks.pack_from < first ? first : blocks.pack_from;
      const index depth = clamp((at_tail ? g.depth : body) - k, blocks.depth);
      if (packed_first < end) pack_block<T, TransposedB>(g, packed_first, end, k, depth, packed_b);
      const auto columns = [&](index n) -> ColumnsOfB<T> {
        if (n < packed_first) return columns_of_b<A>(g, n, k);
        return {packed_b + (n - packed_first) * depth, end - n > L ? W : L, depth * W};
      };
      const auto target = [&](index n) -> Result<T> {
        const index at = c_panels ? c_panels->begin(n / W, g.panel_row) : n;
        const index ldc = c_panels ? c_panels->width_of(n / W) : g.ldc;
        const T* const start = k ? g.c + at : g.start ? g.start + at : nullptr;
        const index rest = last_column - n;
        return {start,
                k || c_panels ? ldc : g.start_stride,
                g.c + at,
                ldc,
                c_panels ? c_panels->rows * W : W,
                g.descends,
                g.rate,
                rest < vectors_of<T>(rest) * L ? rest % L : L};
      };
      T* const packed_a = blocks.pack_a ? packed_b + packed_beside_a<T> : nullptr;
      multiply(g.rows, depth, first, end, whole_a.from(0, k), packed_a, columns, target);
      k += depth;
    } while (k < g.depth);
  }
}

// A column of a by a row of b: nothing to sum, only a result to write.
template <class T, class A>
void outer_product(const Gemm<T>& g) {
  constexpr index L = lanes<T>;
  const T* const column = A::of(g).column(0);
  for (index i = 0; i < g.rows; i++) {
    T* const c = g.c + i * g.ldc;
    // Added to zero as any sum.
    const auto term = [&](Vec<T> b) { return Vec<T>{} + column[i] * b; };
    index j = 0;
    for (; j + L <= g.columns; j += L) store<T>(c + j, term(load<T>(g.b + j)));
    if (j < g.columns) store_part<T>(c + j, term(load_part<T>(g.b + j, g.columns - j)), g.columns - j);
  }
}

// The transpose of a product of few columns with a transposed a: so vectors run along a's rows.
template <class T>
void transposed_product(const Gemm<T>& g) {
  constexpr index piece = 256;
  T columns[lanes<T> / 2 * piece];
  for (index first = 0; first < g.rows; first += piece) {
    const index count = clamp(g.rows - first, piece);
    product<T, ColumnMajor<T>, false>(
        {g.columns, count, g.depth, g.b, g.ldb, g.a + first, g.lda, nullptr, 0, columns, count, g.scratch}, count);
    for (index i = 0; i < count; i++) {
      for (index j = 0; j < g.columns; j++) g.c[(first + i) * g.ldc + j] = columns[j * count + i];
    }
  }
}

template <class T, class A, bool TransposedB>
void gemm(const Gemm<T>& g);

// One or few columns would leave most lanes empty, unless vectors run along another dimension; and elements of a column
// side by side are as well a row, also where the depth is one. Whether this was such a product.
template <class T, class A, bool TransposedB>
INLINE bool narrow_product(const Gemm<T>& g) {
  const bool one = g.columns == 1 && g.ldb == 1 && g.ldc == 1;
  if (g.padded) return false;
  if constexpr (TransposedB) {
    if (g.depth > 1 || g.lda > 1 || g.ldb > 1) return false;
    gemm<T, ColumnMajor<T>, false>(g);
  } else if constexpr (!A::transposed) {
    if (g.start_stride || g.a_rows) return false;
    if (one)
      dots<T>({1, g.rows, g.depth, g.b, g.depth, g.a, g.lda, nullptr, 0, g.c, g.rows, nullptr},
              g.start ? *g.start : T(0));
    else if (g.columns <= row_lanes && g.columns > 1 && g.depth >= 32 && g.ldb == g.columns)
      few_columns(g);
    else
      return false;
  } else if constexpr (std::is_same_v<A, ColumnMajor<T>>) {
    if (g.start) return false;
    if (one)
      row_product<T>({1, g.rows, g.depth, g.b, g.depth, g.a, g.lda, nullptr, 0, g.c, g.rows, g.scratch}, g.b, g.rows);
    else if (2 * g.columns <= lanes<T> && g.rows >= 4 * lanes<T> && g.depth >= 8)
      transposed_product(g);
    else
      return false;
  } else {
    return false;
  }
  return true;
}

template <class T, class A, bool TransposedB>
void gemm(const Gemm<T>& g) {
  if (narrow_product<T, A, TransposedB>(g)) return;
  const index last_column = g.padded ? (g.columns + lanes<T> - 1) / lanes<T> * lanes<T> : g.columns;
  if constexpr (!A::transposed && !TransposedB) {
    if (g.rows == 1 && !g.descends) return row_product(g, A::of(g).row(0), last_column);
  }
  if constexpr (A::transposed) {
    if (g.depth == 1 && !g.start && !g.padded) return outer_product<T, A>(g);
  }
  product<T, A, TransposedB>(g, last_column);
}

template <class T>
void gemm_at(const Gemm<T>& g) {
  (g.a_rows ? gemm<T, ColumnPointers<T>, false> : gemm<T, ColumnMajor<T>, false>)(g);
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

// Four interleaved sums of rows, added up in one order: adding is slower than loading. All but the first begin at
// minus zero, to which any number may be added without a change, minus zero too: one row is just added.
template <class T>
void add_rows(index rows, index columns, index stride, const T* x, T* sums) {
  constexpr int chains = 4;
  constexpr index L = lanes<T>;
  const auto whole = [](const T* p) { return load<T>(p); };
  // Of the vector at column j, which may be read whole in some rows, and in all of them by `read`.
  const auto total = [&](index j, index whole_rows, auto read) {
    const Vec<T> nothing = -Vec<T>{};
    Vec<T> sum[chains] = {read(sums + j), nothing, nothing, nothing};
    index r = 0;
    const auto add = [&](index end, auto by) {
      for (; r + chains <= end; r += chains) {
        UNROLL for (int i = 0; i < chains; i++) sum[i] += by(x + (r + i) * stride + j);
      }
    };
    add(whole_rows, whole);
    add(rows, read);
    for (; r < rows; r++) sum[0] += read(x + r * stride + j);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  };
  index j = 0;
  for (; j + L <= columns; j += L) store<T>(sums + j, total(j, rows, whole));
  if (j == columns) return;
  const index rest = columns - j;
  // A whole vector reaches L - rest elements into the next rows; so near the end, past the last one.
  const index whole_rows = rows > 1 ? rows - (L - rest + stride - 1) / stride : 0;
  store_part<T>(sums + j, total(j, whole_rows, [&](const T* p) { return load_part<T>(p, rest); }), rest);
}

// V vectors of a row of c.
template <class T, int V>
INLINE void add_terms_to(const T* start, index count, const Term<T>* terms, index at, T* c) {
  constexpr index L = lanes<T>;
  Vec<T> sum[V];
  UNROLL for (int v = 0; v < V; v++) sum[v] = start ? load<T>(start + v * L) : Vec<T>{};
  for (const Term<T>* term = terms; term < terms + count; term++) {
    const T* const one = term->one + at;
    if (term->another) {
      const T* const another = term->another + at;
      UNROLL for (int v = 0; v < V; v++) sum[v] += load<T>(one + v * L) + load<T>(another + v * L);
    } else {
      UNROLL for (int v = 0; v < V; v++) sum[v] += load<T>(one + v * L);
    }
  }
  UNROLL for (int v = 0; v < V; v++) store<T>(c + v * L, sum[v]);
}

template <class T>
void add_terms(index rows, index columns, const T* start, index count, const Term<T>* terms, T* c, index ldc) {
  constexpr index L = lanes<T>;
  for (index r = 0; r < rows; r++, c += ldc) {
    index j = 0;
    const auto add = [&](auto step) {
      constexpr int V = decltype(step)::value;
      for (; j + V * L <= columns; j += V * L)
        add_terms_to<T, V>(start ? start + j : nullptr, count, terms, r * columns + j, c + j);
    };
    add(std::integral_constant<int, 4>{});
    add(std::integral_constant<int, 2>{});
    add(std::integral_constant<int, 1>{});
  }
}
