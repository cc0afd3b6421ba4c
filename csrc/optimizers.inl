// One struct per update rule: apply(w, g, slots, numbers) on vectors of parameters. The numbers of a
// step are what pyfastnn/optimizers.py computes; formulas and sources are there. `second`: of two vectors in turn,
// which root() treats in two ways.

struct GradientDescent {
  static constexpr const char* name = "sgd";
  static constexpr int slots = 0, numbers = 1;
  template <class T>
  INLINE Vec<T> apply(Vec<T> w, Vec<T> g, Vec<T>*, const T* numbers, bool) {
    return w - numbers[0] * g;
  }
};

struct Momentum {
  static constexpr const char* name = "momentum";
  static constexpr int slots = 1, numbers = 2;
  template <class T>
  INLINE Vec<T> apply(Vec<T> w, Vec<T> g, Vec<T>* slot, const T* numbers, bool) {
    slot[0] = numbers[1] * slot[0] + g;
    return w - numbers[0] * slot[0];
  }
};

struct Nesterov {
  static constexpr const char* name = "nesterov";
  static constexpr int slots = 1, numbers = 2;
  template <class T>
  INLINE Vec<T> apply(Vec<T> w, Vec<T> g, Vec<T>* slot, const T* numbers, bool) {
    slot[0] = numbers[1] * slot[0] + g;
    return w - numbers[0] * (numbers[1] * slot[0] + g);
  }
};

struct AdaptiveMoments {
  static constexpr const char* name = "adam";
  static constexpr int slots = 2, numbers = 4;
  template <class T>
  INLINE Vec<T> apply(Vec<T> w, Vec<T> g, Vec<T>* slot, const T* numbers, bool second) {
    slot[0] = slot[0] + numbers[2] * (g - slot[0]);
    slot[1] = slot[1] + numbers[3] * (g * g - slot[1]);
    return w - numbers[0] * slot[0] / (root<T>(slot[1], second) + numbers[1]);
  }
};

template <class T, class R>
void apply_rule(index count, T* w, const T* g, T* const* slots, const double* numbers) {
  T rounded[R::numbers];
  for (int i = 0; i < R::numbers; i++) rounded[i] = T(numbers[i]);
  Vec<T> slot[R::slots + 1];
  index i = 0;
  const auto step = [&](bool second) __attribute__((always_inline)) {
    UNROLL for (int s = 0; s < R::slots; s++) slot[s] = load<T>(slots[s] + i);
    store<T>(w + i, R::template apply<T>(load<T>(w + i), load<T>(g + i), slot, rounded, second));
    UNROLL for (int s = 0; s < R::slots; s++) store<T>(slots[s] + i, slot[s]);
    i += lanes<T>;
  };
  while (i + 2 * lanes<T> <= count) {
    step(false);
    step(true);
  }
  if (i + lanes<T> <= count) step(false);
  if (const index rest = count - i) {
    UNROLL for (int s = 0; s < R::slots; s++) slot[s] = load_part<T>(slots[s] + i, rest);
    const Vec<T> x = load_part<T>(w + i, rest), gradient = load_part<T>(g + i, rest);
    store_part<T>(w + i, R::template apply<T>(x, gradient, slot, rounded, false), rest);
    UNROLL for (int s = 0; s < R::slots; s++) store_part<T>(slots[s] + i, slot[s], rest);
  }
}

template <class T>
constexpr Rule<T> rules[] = {
    {GradientDescent::name, GradientDescent::slots, GradientDescent::numbers, true, apply_rule<T, GradientDescent>},
    {Momentum::name, Momentum::slots, Momentum::numbers, false, apply_rule<T, Momentum>},
    {Nesterov::name, Nesterov::slots, Nesterov::numbers, false, apply_rule<T, Nesterov>},
    {AdaptiveMoments::name, AdaptiveMoments::slots, AdaptiveMoments::numbers, false, apply_rule<T, AdaptiveMoments>},
};
