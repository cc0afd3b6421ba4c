// Training: two schedules, chosen by the shape of the network and the batch, never by the threads,
// so that the same seed gives the same bits on any number of them.
//
// Rows, then weights (general): the threads split the rows of the batch for forward, loss and
// deltas; after a barrier they split the rows of each weight matrix for its gradient over the whole
// batch, and its update. No gradient is copied or added up.
//
// Tiles (few parameters, many rows): tiles of the batch run forward and backward in the cache, each
// adding to one of up to 16 gradients that the shape assigns to it; these are summed pairwise, in an
// order that is fixed too.
#include <algorithm>
#include <memory>
#include <numeric>

#include "dense.hpp"
#include "plan.hpp"
#include "threads.hpp"

namespace pyfastnn {
namespace {

constexpr index tile_rows = 96;       // of the tiles schedule
constexpr index loss_rows = 16;       // of the general schedule: rows whose losses are summed together
constexpr index most_gradients = 16;  // of the tiles schedule

// What forward and backward keep of up to `rows` samples. Activations and deltas are padded; outputs,
// targets and the derivative of the loss lie in rows of `outputs`.
template <class T>
struct Workspace {
  std::vector<Buffer<T>> a, d, z;
  Buffer<T> out, out_delta, y, weight;
  Buffer<std::int64_t> labels;
  std::vector<const T*> x_rows;

  Workspace(const Network<T>& network, const Samples<T>& samples, index rows)
      : out(rows * network.layers.back().outputs),
        out_delta(rows * network.layers.back().outputs),
        y(samples.y ? rows * network.layers.back().outputs : 0),
        weight(samples.weight ? rows : 0),
        labels(samples.labels ? rows : 0),
        x_rows(size_t(rows)) {
    for (const Layer<T>& layer : network.layers) {
      a.emplace_back(rows * layer.stride);
      d.emplace_back(rows * layer.stride);
      z.emplace_back(layer.slope_from_input ? rows * layer.stride : 0);
    }
  }
};

template <class T>
class Trainer {
 public:
  Trainer(const Network<T>& network, const Samples<T>& samples, index batch, int threads)
      : network_(network),
        samples_(samples),
        batch_(batch),
        tiled_(network.padded_size * index(sizeof(T)) <= 64 * 1024 && batch >= 4 * tile_rows),
        params_(network.padded_size),
        losses_((batch + loss_rows - 1) / loss_rows) {
    const index tiles = (batch + tile_rows - 1) / tile_rows;
    for (index i = 0; i < (tiled_ ? std::min(tiles, most_gradients) : 1); i++)
      gradients_.emplace_back(network.padded_size);
    for (int i = 0; i < (tiled_ ? threads : 1); i++)
      workspaces_.push_back(std::make_unique<Workspace<T>>(network, samples, tiled_ ? tile_rows : batch));
    for (int i = 0; i < threads; i++) scratch_.emplace_back(scratch_size<T>);
  }

  T* params() { return params_.data(); }
  T* gradient() { return gradients_[0].data(); }

  // Loss and gradient of samples [first, first + rows), and their update; called by the whole team.
  // Returns the loss to thread 0.
  template <class Update>
  double step(index first, index rows, int thread, int threads, Update update) {
    const double scale = batch_scale(first, rows);
    return tiled_ ? step_by_tiles(first, rows, scale, thread, threads, update)
                  : step_by_rows(first, rows, scale, thread, threads, update);
  }

 private:
  // What turns the sum of weighted losses into the loss: see batch_scale in backends/plan.py.
  double batch_scale(index first, index rows) const {
    double total = double(rows);
    if (samples_.weight) {
      total = 0;
      for (index r = first; r < first + rows; r++) total += double(samples_.weight[sample(r)]);
    }
    const double outputs = network_.mean_over_outputs ? double(network_.layers.back().outputs) : 1.0;
    return total != 0 ? 1 / (total * outputs) : 0.0;
  }

  index sample(index position) const { return samples_.order ? index(samples_.order[position]) : position; }

  template <class Update>
  double step_by_rows(index first, index rows, double scale, int thread, int threads, Update update) {
    Workspace<T>& work = *workspaces_[0];
    // Whole blocks of loss_rows to each thread.
    const index blocks = (rows + loss_rows - 1) / loss_rows;
    const index begin = blocks * thread / threads * loss_rows;
    const index end = std::min(rows, blocks * (thread + 1) / threads * loss_rows);
    T* const scratch = scratch_[size_t(thread)].data();
    for (index at = begin; at < end; at += max_tile_rows) {
      const index count = std::min(max_tile_rows, end - at);
      gather(work, at, first + at, count);
      forward(work, at, count, scratch);
      for (index block = at; block < at + count; block += loss_rows)
        losses_.data()[block / loss_rows] = output_delta(work, block, std::min(loss_rows, end - block), scale);
      spread_delta(work, at, count);
      propagate(work, at, count, scratch);
    }
    barrier_.wait(threads);
    T* const g = gradient();
    for (size_t i = 0; i < network_.layers.size(); i++) {
      const Layer<T>& layer = network_.layers[i];
      const index low = layer.inputs * thread / threads, high = layer.inputs * (thread + 1) / threads;
      weight_gradient(work, i, low, high, rows, g, false, scratch);
      update(layer.weights + low * layer.width, (high - low) * layer.width);
      if (index(i) % threads == thread) {
        bias_gradient(work, i, rows, g, false);
        update(layer.biases, layer.width);
      }
    }
    const double loss = thread ? 0 : std::accumulate(losses_.data(), losses_.data() + blocks, 0.0);
    barrier_.wait(threads);
    return scale * loss;
  }

  template <class Update>
  double step_by_tiles(index first, index rows, double scale, int thread, int threads, Update update) {
    Workspace<T>& work = *workspaces_[size_t(thread)];
    T* const scratch = scratch_[size_t(thread)].data();
    const index tiles = (rows + tile_rows - 1) / tile_rows, slots = std::min(tiles, most_gradients);
    for (index slot = slots * thread / threads; slot < slots * (thread + 1) / threads; slot++) {
      T* const g = gradients_[size_t(slot)].data();
      for (index tile = tiles * slot / slots; tile < tiles * (slot + 1) / slots; tile++) {
        const index at = tile * tile_rows, count = std::min(tile_rows, rows - at);
        const bool add = tile > tiles * slot / slots;
        gather(work, 0, first + at, count);
        forward(work, 0, count, scratch);
        losses_.data()[tile] = output_delta(work, 0, count, scale);
        spread_delta(work, 0, count);
        propagate(work, 0, count, scratch);
        for (size_t i = 0; i < network_.layers.size(); i++) {
          weight_gradient(work, i, 0, network_.layers[i].inputs, count, g, add, scratch);
          bias_gradient(work, i, count, g, add);
        }
      }
    }
    barrier_.wait(threads);
    constexpr index line = 64 / sizeof(T);
    const index lines = network_.padded_size / line;
    const index low = lines * thread / threads * line, high = lines * (thread + 1) / threads * line;
    for (index half = 1; half < slots; half *= 2) {
      for (index slot = 0; slot + half < slots; slot += 2 * half)
        network_.kernels->add_rows(1, high - low, 0, gradients_[size_t(slot + half)].data() + low,
                                   gradients_[size_t(slot)].data() + low);
    }
    update(low, high - low);
    const double loss = thread ? 0 : std::accumulate(losses_.data(), losses_.data() + tiles, 0.0);
    barrier_.wait(threads);
    return scale * loss;
  }

  void gather(Workspace<T>& work, index at, index first, index rows) const {
    const index inputs = network_.layers.front().inputs, outputs = network_.layers.back().outputs;
    for (index r = 0; r < rows; r++) {
      const index from = sample(first + r);
      work.x_rows[size_t(at + r)] = samples_.x + from * inputs;
      if (samples_.labels)
        work.labels.data()[at + r] = samples_.labels[from];
      else
        std::copy_n(samples_.y + from * outputs, outputs, work.y.data() + (at + r) * outputs);
      if (samples_.weight) work.weight.data()[at + r] = samples_.weight[from];
    }
  }

  void forward(Workspace<T>& work, index at, index rows, T* scratch) {
    const size_t last = network_.layers.size() - 1;
    for (size_t i = 0; i <= last; i++) {
      const Layer<T>& layer = network_.layers[i];
      T* const a = work.a[i].data() + at * layer.stride;
      T* const z = layer.slope_from_input ? work.z[i].data() + at * layer.stride : a;
      Gemm<T> product{rows,
                      layer.outputs,
                      layer.inputs,
                      nullptr,
                      0,
                      params() + layer.weights,
                      layer.width,
                      params() + layer.biases,
                      0,
                      z,
                      layer.stride,
                      scratch,
                      true};
      set_rows_of_inputs(product, work, i, at);
      (i ? network_.kernels->gemm : network_.kernels->gemm_rows)(product);
      if (i < last) {
        layer.activation->value(rows, layer.stride, z, a);
      } else {
        T* const out = work.out.data() + at * layer.outputs;
        network_.kernels->squeeze(rows, layer.outputs, layer.stride, a, out);
        layer.activation->value(rows, layer.outputs, out, out);
      }
    }
  }

  // The inputs of layer i from row `at` on: the outputs of the layer below, or the samples.
  void set_rows_of_inputs(Gemm<T>& product, Workspace<T>& work, size_t i, index at) const {
    if (i) {
      product.lda = network_.layers[i - 1].stride;
      product.a = work.a[i - 1].data() + at * product.lda;
    } else {
      product.a_rows = work.x_rows.data() + at;
    }
  }

  double output_delta(Workspace<T>& work, index at, index rows, double scale) const {
    const Layer<T>& layer = network_.layers.back();
    const index outputs = layer.outputs, offset = at * outputs;
    const T* const a = work.out.data() + offset;
    const T* const weight = samples_.weight ? work.weight.data() + at : nullptr;
    T* const d = work.out_delta.data() + offset;
    if (samples_.labels)
      return network_.kernels->label_cross_entropy(rows, outputs, a, work.labels.data() + at, weight, scale, d);
    // Without weights the block is one long row.
    const index long_rows = weight ? rows : 1, columns = weight ? outputs : rows * outputs;
    const double sum =
        network_.loss->rows(long_rows, columns, a, work.y.data() + offset, weight, scale, network_.matched, d);
    if (!network_.matched) layer.activation->delta(rows, outputs, d, a, d);
    return sum;
  }

  void spread_delta(Workspace<T>& work, index at, index rows) const {
    const Layer<T>& layer = network_.layers.back();
    network_.kernels->spread(rows, layer.outputs, layer.stride, work.out_delta.data() + at * layer.outputs,
                             work.d.back().data() + at * layer.stride);
  }

  // The deltas of the hidden layers, from the last one down.
  void propagate(Workspace<T>& work, index at, index rows, T* scratch) {
    for (size_t i = network_.layers.size() - 1; i > 0; i--) {
      const Layer<T>&layer = network_.layers[i], &below = network_.layers[i - 1];
      T* const d = work.d[i - 1].data() + at * below.stride;
      T* const s = (below.slope_from_input ? work.z : work.a)[i - 1].data() + at * below.stride;
      network_.kernels->gemm_bt({rows, layer.inputs, layer.outputs, work.d[i].data() + at * layer.stride, layer.stride,
                                 params() + layer.weights, layer.width, nullptr, 0, d, below.stride, scratch, true});
      below.activation->delta(rows, below.stride, d, s, d);
    }
  }

  // Rows [low, high) of the gradient of the weights of layer i over the first `rows` samples.
  void weight_gradient(Workspace<T>& work, size_t i, index low, index high, index rows, T* g, bool add, T* scratch) {
    const Layer<T>& layer = network_.layers[i];
    for (index first = low; first < high; first += max_tile_rows) {
      T* const c = g + layer.weights + first * layer.width;
      Gemm<T> product{std::min(max_tile_rows, high - first),
                      layer.outputs,
                      rows,
                      nullptr,
                      0,
                      work.d[i].data(),
                      layer.stride,
                      add ? c : nullptr,
                      layer.width,
                      c,
                      layer.width,
                      scratch,
                      true};
      set_rows_of_inputs(product, work, i, 0);
      product.a += i ? first : 0;
      product.a_offset = first;
      (i ? network_.kernels->gemm_at : network_.kernels->gemm_at_rows)(product);
    }
  }

  void bias_gradient(Workspace<T>& work, size_t i, index rows, T* g, bool add) const {
    const Layer<T>& layer = network_.layers[i];
    if (!add) std::fill_n(g + layer.biases, layer.width, T(0));
    network_.kernels->add_rows(rows, layer.width, layer.stride, work.d[i].data(), g + layer.biases);
  }

  const Network<T>& network_;
  const Samples<T>& samples_;
  const index batch_;
  const bool tiled_;
  Buffer<T> params_;
  Buffer<double> losses_;  // of blocks of rows, or of tiles
  std::vector<Buffer<T>> gradients_, scratch_;
  std::vector<std::unique_ptr<Workspace<T>>> workspaces_;
  threads::Barrier barrier_;
};

// Threads that pay: a step shorter than about 5 microseconds a thread is all waiting.
template <class T>
int team_size(const Network<T>& network, index batch, double steps) {
  const double step = 3.0 * double(batch) * double(network.compact_size) * sizeof(T) / 4;
  const double worthwhile = std::min(step / 2.5e5, 1e6);
  return std::clamp(int(worthwhile), 1, threads_for<T>(step * steps));
}

}  // namespace

template <class T>
double loss_and_gradient(const Network<T>& network, const T* params, const Samples<T>& samples, T* gradient) {
  const int threads = team_size(network, samples.count, 1);
  Trainer<T> trainer(network, samples, samples.count, threads);
  network.pad(params, trainer.params());
  double loss = 0;
  threads::team(threads, [&](int thread, int actual) {
    const threads::FlushDenormals flush;
    const double own = trainer.step(0, samples.count, thread, actual, [](index, index) {});
    if (thread == 0) loss = own;
  });
  network.unpad(trainer.gradient(), gradient);
  return loss;
}

template <class T>
double train_epoch(const Network<T>& network, T* params, T* const* slots, const Samples<T>& samples, index batch,
                   const Steps<T>& steps) {
  const index count = (samples.count + batch - 1) / batch;
  const int threads = team_size(network, batch, double(count));
  Trainer<T> trainer(network, samples, batch, threads);
  network.pad(params, trainer.params());
  std::vector<Buffer<T>> memory;
  T* memories[max_slots] = {};
  for (int i = 0; i < steps.rule->slots; i++) {
    memory.emplace_back(network.padded_size);
    network.pad(slots[i], memories[i] = memory.back().data());
  }
  double total = 0;
  threads::team(threads, [&](int thread, int actual) {
    const threads::FlushDenormals flush;
    for (index step = 0; step < count; step++) {
      const index first = step * batch, rows = std::min(batch, samples.count - first);
      const double* const numbers = steps.numbers + step * max_numbers;
      const double loss = trainer.step(first, rows, thread, actual, [&](index offset, index size) {
        T* part[max_slots] = {};
        for (int i = 0; i < steps.rule->slots; i++) part[i] = memories[i] + offset;
        steps.rule->apply(size, trainer.params() + offset, trainer.gradient() + offset, part, numbers);
      });
      if (thread == 0) total += double(rows) * loss;
    }
  });
  network.unpad(trainer.params(), params);
  for (int i = 0; i < steps.rule->slots; i++) network.unpad(memories[i], slots[i]);
  return total / double(samples.count);
}

#define INSTANTIATE(T)                                                                   \
  template double loss_and_gradient(const Network<T>&, const T*, const Samples<T>&, T*); \
  template double train_epoch(const Network<T>&, T*, T* const*, const Samples<T>&, index, const Steps<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace pyfastnn
