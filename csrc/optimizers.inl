// Updates of a range of parameters. Formulas and sources: pyfastnn/optimizers.py.

template <class T>
void sgd(index count, T* w, const T* g, T rate) {
  map<T>(count, w, [=](Vec<T> p, Vec<T> d) { return p - rate * d; }, w, g);
}

template <class T>
void momentum(index count, T* w, const T* g, T* velocity, T rate, T momentum, bool nesterov) {
  map<T>(count, velocity, [=](Vec<T> v, Vec<T> d) { return momentum * v + d; }, velocity, g);
  if (nesterov)
    map<T>(count, w, [=](Vec<T> p, Vec<T> v, Vec<T> d) { return p - rate * (momentum * v + d); }, w, velocity, g);
  else
    map<T>(count, w, [=](Vec<T> p, Vec<T> v) { return p - rate * v; }, w, velocity);
}

template <class T>
void adam(index count, T* w, const T* g, T* m, T* v, T rate, T epsilon, T keep1, T keep2) {
  const auto step = [=](Vec<T>& p, Vec<T> d, Vec<T>& first, Vec<T>& second) {
    first = first + keep1 * (d - first);
    second = second + keep2 * (d * d - second);
    p = p - rate * first / (square_root(second) + epsilon);
  };
  index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) {
    Vec<T> p = load<T>(w + i), first = load<T>(m + i), second = load<T>(v + i);
    step(p, load<T>(g + i), first, second);
    store<T>(w + i, p);
    store<T>(m + i, first);
    store<T>(v + i, second);
  }
  if (i < count) {
    const index rest = count - i;
    Vec<T> p = load_part<T>(w + i, rest), first = load_part<T>(m + i, rest), second = load_part<T>(v + i, rest);
    step(p, load_part<T>(g + i, rest), first, second);
    store_part<T>(w + i, p, rest);
    store_part<T>(m + i, first, rest);
    store_part<T>(v + i, second, rest);
  }
}
