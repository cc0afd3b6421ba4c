// Small kernels that run into one limit of the machine each; what results are compared with.

// Independent vectors of fused multiply-adds: more than the pipelines hold, fewer than there are registers.
constexpr int multiply_add_chains = widest == 4 ? 24 : 12;

template <class T>
T multiply_add_rounds(index rounds) {
  constexpr int chains = multiply_add_chains;
  Vec<T> sum[chains];
  // No chain begins at one: there it would stay, and the compiler knows that and leaves it out.
  for (int i = 0; i < chains; i++) sum[i] = broadcast<T>(T(i) + T(0.5));
  const Vec<T> factor = broadcast<T>(T(0.999)), term = broadcast<T>(T(0.001));
  for (index r = 0; r < rounds; r++) {
    UNROLL for (int i = 0; i < chains; i++) sum[i] = sum[i] * factor + term;
  }
  Vec<T> total = sum[0];
  for (int i = 1; i < chains; i++) total += sum[i];
  return total[0];
}

// Reads every element once.
template <class T>
T read_all(index count, const T* x) {
  constexpr int chains = 8, step = chains * lanes<T>;
  Vec<T> sum[chains] = {};
  for (index i = 0; i + step <= count; i += step) {
    UNROLL for (int j = 0; j < chains; j++) sum[j] += load<T>(x + i + j * lanes<T>);
  }
  Vec<T> total = sum[0];
  for (int i = 1; i < chains; i++) total += sum[i];
  return total[0];
}
