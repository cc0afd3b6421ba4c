// Dot products: of rows with one vector, a product with one row or one column.

// Lane i: the sum of the lanes of x[i], folded by halves as by sum_of. Count is a power of two, at most 2 Half.
template <class T, int Half, int Count>
INLINE Vec<T> sums_of(Vec<T> (&x)[Count]) {
  if constexpr (Half == 0) {
    return x[0];
  } else {
    constexpr int left = Count < Half ? Count : Half;
    Vec<T> sum[left];
    UNROLL for (int i = 0; i < left; i++) {
      Vec<T> low = x[i], high = x[Count > Half ? i + Half : i];
      exchange<T, Half>(low, high, std::make_integer_sequence<int, lanes<T>>{});
      sum[i] = low + high;
    }
    return sums_of<T, Half / 2>(sum);
  }
}

// `Rows` dot products, in 64 bytes of lanes each, whatever the instruction set.
template <class T, int Rows>
INLINE void dots_of(index depth, const T* w, index ldw, const T* x, T start, T* out) {
  constexpr index L = lanes<T>, step = Wide<T>::count;
  Wide<T> sum[Rows] = {};
  index k = 0;
  const auto add = [&](auto read) {
    UNROLL for (int v = 0; v < Wide<T>::vectors; v++) {
      const Vec<T> part = read(x + k + v * L, v);
      UNROLL for (int i = 0; i < Rows; i++) sum[i].part[v] += part * read(w + i * ldw + k + v * L, v);
    }
  };
  for (; k + step <= depth; k += step) add([](const T* p, int) { return load<T>(p); });
  if (k < depth) add([&](const T* p, int v) { return load_part<T>(p, clamp(depth - k - v * L, L)); });
  Vec<T> folded[Rows];
  UNROLL for (int i = 0; i < Rows; i++) folded[i] = fold_vectors<T>(sum[i], plus<T>);
  store_part<T>(out, start + sums_of<T, L / 2>(folded), Rows);
}

template <class T>
void dots(index rows, index depth, const T* w, index ldw, const T* x, T start, T* out) {
  constexpr int several = lanes<T> < 4 ? lanes<T> : 4;
  index i = 0;
  for (; i + several <= rows; i += several) dots_of<T, several>(depth, w + i * ldw, ldw, x, start, out + i);
  for (; i + 2 <= rows; i += 2) dots_of<T, 2>(depth, w + i * ldw, ldw, x, start, out + i);
  for (; i < rows; i++) dots_of<T, 1>(depth, w + i * ldw, ldw, x, start, out + i);
}
