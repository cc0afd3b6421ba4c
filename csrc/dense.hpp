// The kernels of the contract on whole arrays: cut into tiles, spread over threads.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "threads.hpp"

namespace pyfastnn {

// A layer on a batch: x (rows, inputs), w (inputs, outputs), d and a (rows, outputs).
struct LayerShape {
  index rows, inputs, outputs;
};

// Multiply-adds of one product of the layer; what the caller needs to judge its cost.
inline double multiply_adds(LayerShape s) { return double(s.rows) * double(s.inputs) * double(s.outputs); }
// What it takes to read or write so many elements: some eight multiply-adds each, or three times as many where they
// leave the caches of a core.
inline double passage(double elements) { return (elements > 512 * 1024 ? 24 : 8) * elements; }
inline double work(LayerShape s) {
  const double rows = double(s.rows), inputs = double(s.inputs), outputs = double(s.outputs);
  return multiply_adds(s) + passage(rows * inputs + inputs * outputs + rows * outputs);
}

// a = f(x w + b). z, when not null, receives x w + b.
template <class T>
void dense_forward(const KernelTable<T>&, LayerShape, const T* x, const T* w, const T* b, const Activation<T>&, T* z,
                   T* a);

// out = (d w^T) f'(s), s and out (rows, inputs).
template <class T>
void activation_delta(const KernelTable<T>&, LayerShape, const T* d, const T* w, const T* s, const Activation<T>&,
                      T* out);

// dw = x^T d, db = column sums of d and, unless dx is null, dx = d w^T.
template <class T>
void dense_backward(const KernelTable<T>&, LayerShape, const T* x, const T* w, const T* d, T* dw, T* db, T* dx);

// w -= rate x^T d, b -= rate times the column sums of d.
template <class T>
void dense_update(const KernelTable<T>&, LayerShape, const T* x, const T* d, double rate, T* w, T* b);

// How many sums of losses so many rows have.
constexpr index loss_blocks(index rows) { return (rows + loss_rows - 1) / loss_rows; }

// The targets of a batch: y (rows, outputs), or labels (rows) of cross-entropy.
template <class T>
struct Targets {
  const T* y;
  const std::int64_t* labels;
  const T* weight;  // (rows); null: 1
};

// Returns scale sum_i weight_i l_i; d, unless null, is the derivative with respect to z.
template <class T>
double output_delta(const KernelTable<T>&, index rows, index outputs, const T* a, const Targets<T>&, double scale,
                    const Loss<T>&, const Activation<T>&, bool matched, T* d);

// Bytes times multiply-adds that several threads pay for, of a kernel and of an epoch: from some 10 and 100 us of
// serial work on, if threads come at once, and in any case from some 200 on.
constexpr double kernel_cost = 3e6, epoch_cost = 4e7, waking_cost = 8e7, seconds_per_cost = 200e-6 / waking_cost;

template <class T>
int threads_for(double multiply_adds, double least = kernel_cost) {
  const double cost = multiply_adds * sizeof(T);
  return cost >= waking_cost || (cost >= least && threads::alert(seconds_per_cost * cost)) ? threads::limit() : 1;
}

// [0, rows) in tiles of nearly equal height that feed every thread; tall ones, since each packs the weights anew.
constexpr index tall = 1024;
struct Tiles {
  index rows, count;

  Tiles(index rows_, int threads, index most = tall) : rows(rows_), count((rows_ + most - 1) / most) {
    if (threads > 1) count = std::min((count + threads - 1) / threads * threads, rows);
  }
  index begin(index tile) const { return rows * tile / count; }
};

// `size` elements for each of `threads` threads, aligned to 64 bytes where size is a multiple of it;
// kept by the calling thread for its next call. Contents are undefined.
template <class T>
T* scratch_for(int threads, index size = scratch_size<T>);

// f(first, count) over ranges of `rows` rows of `width` numbers: what only passes over them is bound by memory, and
// several threads pay only where they leave the caches of one core.
template <class F>
void for_ranges(index rows, index width, F f) {
  constexpr index range = index(1) << 16;
  const index height = std::max<index>(range / std::max<index>(width, 1), 1);
  const int threads = rows * width >= 4 * range ? threads::limit() : 1;
  threads::for_each((rows + height - 1) / height, threads,
                    [&](index i, int) { f(i * height, std::min(height, rows - i * height)); });
}

}  // namespace pyfastnn
