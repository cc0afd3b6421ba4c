#include "dense.hpp"

#include <numeric>
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

namespace {

// Part of a result: rows [row, row + rows), columns [column, column + columns).
struct Block {
  index row, rows, column, columns;
};

// Whether threads had better split the columns of a product's result than its rows. Writing to one row, they fetch what
// follows their part of it from each other; by rows, each reads the whole right operand. That is most of the work where
// it is large beside the result or the caches.
bool by_columns(index rows, index depth, index columns) {
  return 5 * rows <= depth || depth * columns >= index(1) << 20;
}
// For d w^T, which transposes the right operand too.
bool inputs_by_columns(LayerShape s) { return s.rows <= 64 || by_columns(s.rows, s.outputs, s.inputs); }

// A result (rows, columns) in blocks of at most `most_rows`, as many for each thread.
struct Grid {
  Grid(index rows, index columns, int threads, bool split_columns, index most_rows = tall)
      : across_(split_columns ? parts(columns / unit, threads) : 1),
        columns_(columns),
        down_(rows, threads / across_, most_rows) {}

  index count() const { return across_ * down_.count; }
  Block block(index i) const {
    const index tile = i / across_, row = down_.begin(tile), column = edge(i % across_);
    return {row, down_.begin(tile + 1) - row, column, edge(i % across_ + 1) - column};
  }

 private:
  static constexpr index unit = 64;
  // The most that divide the threads evenly.
  static int parts(index most, int threads) {
    int count = int(std::clamp<index>(most, 1, threads));
    while (threads % count) count--;
    return count;
  }
  index edge(index part) const {
    return part < across_ ? (columns_ * part / across_ + unit / 2) / unit * unit : columns_;
  }

  const int across_;
  const index columns_;
  const Tiles down_;
};

// Rows of a result at once: where it is most of the work, so many that the activation soon finds them again.
index rows_at_once(index depth, index columns) {
  return depth < 8 ? std::clamp<index>((index(1) << 18) / std::max<index>(columns, 1), 64, tall) : tall;
}

// map(rows, columns, offset) on a block of arrays whose rows have `stride` elements: all at once, or row by row.
template <class F>
void map_block(const Block& block, index stride, F map) {
  const index first = block.row * stride + block.column;
  if (block.columns == stride) return map(block.rows, stride, first);
  for (index row = 0; row < block.rows; row++) map(1, block.columns, first + row * stride);
}

// out = d w^T.
template <class T>
void propagate(const KernelTable<T>& kernels, LayerShape s, const Block& block, const T* d, const T* w, T* out,
               T* scratch) {
  w += block.column * s.outputs;
  out += block.row * s.inputs + block.column;
  // By the shape of the whole call, since the order of the sums changes. Transposing w costs as much as the dot
  // products of some rows, fewer where a row of w exceeds 4 KB and may meet the next one in the caches. And few inputs
  // would fill part of a vector only.
  const index bytes = s.outputs * index(sizeof(T));
  const index few = bytes >= 1024 && bytes <= 4096 ? 12
                    : s.outputs >= 128             ? 8
                    : s.outputs >= 16              ? 4
                    : s.outputs > 1                ? 1
                                                   : 0;
  const bool few_inputs = s.inputs > 0 && s.inputs <= most_transposed && s.outputs >= 16;
  const Gemm<T> product{
      block.rows, block.columns, s.outputs, d + block.row * s.outputs, s.outputs, w, s.outputs, nullptr, 0,
      out,        s.inputs,      scratch};
  // few_outputs gives the same sums, of several rows at once; but it reads all of w for each few rows of d, too often
  // where that is long.
  const bool by_few = few_inputs && s.rows > few && s.outputs < 128;
  (by_few ? kernels.few_outputs : few_inputs || s.rows <= few ? kernels.gemm_dots : kernels.gemm_bt)(product);
}

}  // namespace

template <class T>
void dense_forward(const KernelTable<T>& kernels, LayerShape s, const T* x, const T* w, const T* b,
                   const Activation<T>& activation, T* z, T* a) {
  const int threads = threads_for<T>(work(s));
  const Grid grid(s.rows, s.outputs, threads, activation.elementwise && by_columns(s.rows, s.inputs, s.outputs),
                  rows_at_once(s.inputs, s.outputs));
  T* const scratch = scratch_for<T>(threads);
  T* const sums = z ? z : a;
  threads::for_each(grid.count(), threads, [&](index i, int thread) {
    const Block block = grid.block(i);
    kernels.gemm({block.rows, block.columns, s.inputs, x + block.row * s.inputs, s.inputs, w + block.column, s.outputs,
                  b + block.column, 0, sums + block.row * s.outputs + block.column, s.outputs,
                  scratch + thread * scratch_size<T>});
    map_block(block, s.outputs, [&](index rows, index columns, index offset) {
      activation.value(rows, columns, columns, sums + offset, a + offset);
    });
  });
}

template <class T>
void activation_delta(const KernelTable<T>& kernels, LayerShape s, const T* d, const T* w, const T* slopes,
                      const Activation<T>& activation, T* out) {
  const int threads = threads_for<T>(work(s));
  const Grid grid(s.rows, s.inputs, threads, activation.elementwise && inputs_by_columns(s),
                  rows_at_once(s.outputs, s.inputs));
  T* const scratch = scratch_for<T>(threads);
  threads::for_each(grid.count(), threads, [&](index i, int thread) {
    const Block block = grid.block(i);
    propagate(kernels, s, block, d, w, out, scratch + thread * scratch_size<T>);
    map_block(block, s.inputs, [&](index rows, index columns, index offset) {
      activation.delta(rows, columns, columns, out + offset, slopes + offset, out + offset);
    });
  });
}

template <class T>
void dense_backward(const KernelTable<T>& kernels, LayerShape s, const T* x, const T* w, const T* d, T* dw, T* db,
                    T* dx) {
  const int threads = threads_for<T>(work(s) * (dx ? 2 : 1));
  const Grid weights(s.inputs, s.outputs, threads, by_columns(s.inputs, s.rows, s.outputs));
  const Grid inputs(s.rows, s.inputs, threads, inputs_by_columns(s));
  T* const scratch = scratch_for<T>(threads);
  const index tasks = weights.count() + (dx ? inputs.count() : 0) + 1;
  threads::for_each(tasks, threads, [&](index task, int thread) {
    T* const own = scratch + thread * scratch_size<T>;
    if (task < weights.count()) {
      const Block block = weights.block(task);
      kernels.gemm_at({block.rows, block.columns, s.rows, x + block.row, s.inputs, d + block.column, s.outputs, nullptr,
                       0, dw + block.row * s.outputs + block.column, s.outputs, own});
    } else if (task + 1 < tasks) {
      propagate(kernels, s, inputs.block(task - weights.count()), d, w, dx, own);
    } else {
      std::fill_n(db, s.outputs, T(0));
      kernels.add_rows(s.rows, s.outputs, s.outputs, d, db);
    }
  });
}

template <class T>
void dense_update(const KernelTable<T>& kernels, LayerShape s, const T* x, const T* d, double rate, T* w, T* b) {
  const int threads = threads_for<T>(work(s));
  const Grid grid(s.inputs, s.outputs, threads, by_columns(s.inputs, s.rows, s.outputs));
  // The product itself can descend, and fetch meanwhile what another core may have of w.
  const bool at_once = s.outputs % kernels.lanes == 0 && s.rows <= max_depth;
  const Rule<T>* descent = kernels.rules;
  while (!descent->descends) descent++;
  // Else it gives pieces of the gradient, which are used while a cache has them.
  const index piece = std::max((index(1) << 16) / index(sizeof(T)), (s.outputs + 15) / 16 * 16);
  T* const scratch = scratch_for<T>(threads, scratch_size<T> + piece);
  const auto update_weights = [&](const Block& block, T* own, T* gradient) {
    Gemm<T> product{
        block.rows, block.columns, s.rows, x + block.row, s.inputs, d + block.column, s.outputs, nullptr, 0, w, 0, own};
    if (at_once) {
      product.c += block.row * s.outputs + block.column;
      product.ldc = s.outputs;
      product.padded = product.descends = true;
      product.rate = T(rate);
      return kernels.gemm_at(product);
    }
    product.c = gradient;
    product.ldc = block.columns;
    const index height = std::max<index>(piece / std::max<index>(block.columns, 1), 1);
    for (index row = block.row, end = row + block.rows; row < end; row += height, product.a += height) {
      product.rows = std::min(height, end - row);
      kernels.gemm_at(product);
      const T* g = gradient;
      map_block({row, product.rows, block.column, block.columns}, s.outputs,
                [&](index rows, index columns, index offset) {
                  descent->apply(rows * columns, w + offset, g, nullptr, &rate);
                  g += rows * columns;
                });
    }
  };
  threads::for_each(grid.count() + 1, threads, [&](index task, int thread) {
    T* const own = scratch + thread * (scratch_size<T> + piece);
    T* const gradient = own + scratch_size<T>;
    if (task < grid.count()) return update_weights(grid.block(task), own, gradient);
    std::fill_n(gradient, s.outputs, T(0));
    kernels.add_rows(s.rows, s.outputs, s.outputs, d, gradient);
    descent->apply(s.outputs, b, gradient, nullptr, &rate);
  });
}

template <class T>
double output_delta(const KernelTable<T>& kernels, index rows, index outputs, const T* a, const Targets<T>& targets,
                    double scale, const Loss<T>& loss, const Activation<T>& activation, bool matched, T* d) {
  // Blocks fixed by the shape, summed in their order: the same bits whatever the threads.
  constexpr index block = 16 * loss_rows;
  const index blocks = (rows + block - 1) / block;
  std::vector<double> sums(size_t(loss_blocks(rows)));
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
                           out,
                           sums.data() + first / loss_rows};
    if (targets.labels) return kernels.label_cross_entropy(part, targets.labels + first);
    loss.rows(part);
    if (out && !matched) activation.delta(count, outputs, outputs, out, a + offset, out);
  });
  return scale * std::accumulate(sums.begin(), sums.end(), 0.0);
}

#define INSTANTIATE(T)                                                                                               \
  template T* scratch_for<T>(int, index);                                                                            \
  template void dense_forward(const KernelTable<T>&, LayerShape, const T*, const T*, const T*, const Activation<T>&, \
                              T*, T*);                                                                               \
  template void activation_delta(const KernelTable<T>&, LayerShape, const T*, const T*, const T*,                    \
                                 const Activation<T>&, T*);                                                          \
  template void dense_backward(const KernelTable<T>&, LayerShape, const T*, const T*, const T*, T*, T*, T*);         \
  template void dense_update(const KernelTable<T>&, LayerShape, const T*, const T*, double, T*, T*);                 \
  template double output_delta(const KernelTable<T>&, index, index, const T*, const Targets<T>&, double,             \
                               const Loss<T>&, const Activation<T>&, bool, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace pyfastnn
