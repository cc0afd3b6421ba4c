#include "dense.hpp"

#include <vector>

#include "memory.hpp"

namespace pyfastnn {

template <class T>
T* scratch_for(int threads, index size) {
  thread_local Memory memory;
  const size_t wanted = size_t(threads * size) * sizeof(T);
  if (memory.size() < wanted) {
    memory = {};
    memory = Memory(wanted);
  }
  return reinterpret_cast<T*>(memory.data());
}

template <class T>
void dense_forward(const KernelTable<T>& kernels, LayerShape s, const T* x, const T* w, const T* b,
                   const Activation<T>& activation, T* z, T* a) {
  const int threads = threads_for<T>(multiply_adds(s));
  const Tiles tiles(s.rows, threads);
  T* const scratch = scratch_for<T>(threads);
  T* const sums = z ? z : a;
  threads::for_each(tiles.count, threads, [&](index tile, int thread) {
    const index first = tiles.begin(tile), rows = tiles.begin(tile + 1) - first;
    T* const out = sums + first * s.outputs;
    kernels.gemm({rows, s.outputs, s.inputs, x + first * s.inputs, s.inputs, w, s.outputs, b, 0, out, s.outputs,
                  scratch + thread * scratch_size<T>});
    activation.value(rows, s.outputs, s.outputs, out, a + first * s.outputs);
  });
}

namespace {

// out = d w^T on rows [first, first + rows).
template <class T>
void propagate(const KernelTable<T>& kernels, LayerShape s, index first, index rows, const T* d, const T* w, T* out,
               T* scratch) {
  // By the rows of the whole call: the sum is another.
  if (s.rows == 1) return kernels.dots(s.inputs, s.outputs, d, w, out);
  kernels.gemm_bt({rows, s.inputs, s.outputs, d + first * s.outputs, s.outputs, w, s.outputs, nullptr, 0,
                   out + first * s.inputs, s.inputs, scratch});
}

}  // namespace

template <class T>
void activation_delta(const KernelTable<T>& kernels, LayerShape s, const T* d, const T* w, const T* slopes,
                      const Activation<T>& activation, T* out) {
  const int threads = threads_for<T>(multiply_adds(s));
  const Tiles tiles(s.rows, threads);
  T* const scratch = scratch_for<T>(threads);
  threads::for_each(tiles.count, threads, [&](index tile, int thread) {
    const index first = tiles.begin(tile), rows = tiles.begin(tile + 1) - first, offset = first * s.inputs;
    propagate(kernels, s, first, rows, d, w, out, scratch + thread * scratch_size<T>);
    activation.delta(rows, s.inputs, s.inputs, out + offset, slopes + offset, out + offset);
  });
}

template <class T>
void dense_backward(const KernelTable<T>& kernels, LayerShape s, const T* x, const T* w, const T* d, T* dw, T* db,
                    T* dx) {
  const int threads = threads_for<T>(multiply_adds(s) * (dx ? 2 : 1));
  const Tiles weights(s.inputs, threads), rows(s.rows, threads);
  T* const scratch = scratch_for<T>(threads);
  const index tasks = weights.count + (dx ? rows.count : 0) + 1;
  threads::for_each(tasks, threads, [&](index task, int thread) {
    T* const own = scratch + thread * scratch_size<T>;
    if (task < weights.count) {
      const index first = weights.begin(task), count = weights.begin(task + 1) - first;
      kernels.gemm_at({count, s.outputs, s.rows, x + first, s.inputs, d, s.outputs, nullptr, 0, dw + first * s.outputs,
                       s.outputs, own});
    } else if (task + 1 < tasks) {
      const index tile = task - weights.count, first = rows.begin(tile);
      propagate(kernels, s, first, rows.begin(tile + 1) - first, d, w, dx, own);
    } else {
      std::fill_n(db, s.outputs, T(0));
      kernels.add_rows(s.rows, s.outputs, s.outputs, d, db);
    }
  });
}

template <class T>
double output_delta(const KernelTable<T>& kernels, index rows, index outputs, const T* a, const Targets<T>& targets,
                    double scale, const Loss<T>& loss, const Activation<T>& activation, bool matched, T* d) {
  // Blocks fixed by the shape, summed in their order: the same bits whatever the threads.
  constexpr index block = 256;
  const index blocks = (rows + block - 1) / block;
  std::vector<double> sums(blocks);
  threads::for_each(blocks, threads_for<T>(32.0 * double(rows) * double(outputs)), [&](index i, int) {
    const index first = i * block, count = std::min(block, rows - first), offset = first * outputs;
    T* const out = d ? d + offset : nullptr;
    const LossRows<T> part{count,
                           outputs,
                           a + offset,
                           outputs,
                           targets.y ? targets.y + offset : nullptr,
                           outputs,
                           targets.weight ? targets.weight + first : nullptr,
                           scale,
                           matched,
                           out};
    if (targets.labels) {
      sums[i] = kernels.label_cross_entropy(part, targets.labels + first);
      return;
    }
    sums[i] = loss.rows(part);
    if (out && !matched) activation.delta(count, outputs, outputs, out, a + offset, out);
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return scale * sum;
}

#define INSTANTIATE(T)                                                                                               \
  template T* scratch_for<T>(int, index);                                                                            \
  template void dense_forward(const KernelTable<T>&, LayerShape, const T*, const T*, const T*, const Activation<T>&, \
                              T*, T*);                                                                               \
  template void activation_delta(const KernelTable<T>&, LayerShape, const T*, const T*, const T*,                    \
                                 const Activation<T>&, T*);                                                          \
  template void dense_backward(const KernelTable<T>&, LayerShape, const T*, const T*, const T*, T*, T*, T*);         \
  template double output_delta(const KernelTable<T>&, index, index, const T*, const Targets<T>&, double,             \
                               const Loss<T>&, const Activation<T>&, bool, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace pyfastnn
