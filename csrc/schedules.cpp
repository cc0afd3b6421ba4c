// The three training schedules, chosen by the shape of the network and the batch, never by the threads,
// so that the same seed gives the same bits on any number of them.
#include "schedules.hpp"

#include <numeric>

namespace pyfastnn {
namespace {

using threads::share_begin;

// Rows, then weights (general). The threads split the rows of the batch for forward, loss and deltas,
// then the rows of each weight matrix for its gradient over the whole batch, and its update. No
// gradient is copied or added up.
template <class T>
class RowsThenWeights final : public Schedule<T> {
 public:
  RowsThenWeights(const Task<T>& task, Arena& arena)
      : Schedule<T>(task, arena),
        tile_blocks_((task.network.padded_size * index(sizeof(T)) > (4 << 20) ? 1024 : max_tile_rows) / block_rows),
        losses_(arena.take<double>((task.batch + block_rows - 1) / block_rows)) {
    this->workers_.push_back(std::make_unique<Worker<T>>(task.network, task.batch, task.gathered, arena));
  }

  void before(const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = *this->workers_[0];
    const index blocks = (batch.rows + block_rows - 1) / block_rows;
    const index begin = share_begin(blocks, thread, threads) * block_rows;
    const index end = std::min(batch.rows, share_begin(blocks, thread + 1, threads) * block_rows);
    const Tiles tiles((end - begin + block_rows - 1) / block_rows, 1, tile_blocks_);
    for (index tile = 0; tile < tiles.count; tile++) {
      const index at = begin + tiles.begin(tile) * block_rows;
      const index rows = std::min(end, begin + tiles.begin(tile + 1) * block_rows) - at;
      worker.gather(at, batch.first + at, rows);
      worker.forward(0, at, rows, this->parameters, this->scratch(thread));
      for (index block = at; block < at + rows; block += block_rows)
        losses_[block / block_rows] =
            worker.output_delta(block, batch.first + block, std::min(block_rows, at + rows - block), batch.scale);
      worker.propagate(at, rows, this->parameters, this->scratch(thread));
    }
  }

  void after(const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = *this->workers_[0];
    Parameters<T>& p = this->parameters;
    for (size_t i = 0; i < this->task.network.layers.size(); i++) {
      const Layer<T>& layer = this->task.network.layers[i];
      const index low = share_begin(layer.inputs, thread, threads),
                  high = share_begin(layer.inputs, thread + 1, threads);
      worker.update_weights(batch, i, low, high, p, this->scratch(thread));
      if (int(i) % threads != thread) continue;
      worker.bias_gradient(i, batch.rows, false, p.gradient);
      p.update(batch.rule, batch.numbers, layer.biases, layer.width);
    }
  }

  double loss(const Batch<T>& batch) const override {
    const index blocks = (batch.rows + block_rows - 1) / block_rows;
    return batch.scale * std::accumulate(losses_, losses_ + blocks, 0.0);
  }

 private:
  static constexpr index block_rows = 16;  // rows whose losses are summed together, by one thread

  // Blocks that go through the layers together: they stay in the second-level cache, unless the weights do not
  // and should rather be read seldom.
  const index tile_blocks_;
  double* losses_;
};

// Tiles (few parameters, many rows). Tiles of the batch run forward and backward in the cache, each
// adding to one of up to 16 gradients that the shape assigns to it; these are then summed pairwise.
template <class T>
class Tiles96 final : public Schedule<T> {
 public:
  static bool suits(const Task<T>& task) {
    return task.network.compact_size * index(sizeof(T)) <= 48 * 1024 && task.batch >= 4 * tile_rows;
  }

  Tiles96(const Task<T>& task, Arena& arena)
      : Schedule<T>(task, arena), losses_(arena.take<double>(tile_count(task.batch))) {
    for (index i = 0; i < gradient_count(task.batch); i++)
      gradients_.push_back({arena.take<T>(task.network.padded_size), 0});
    for (int i = 0; i < task.threads; i++)
      this->workers_.push_back(std::make_unique<Worker<T>>(task.network, tile_rows, task.gathered, arena, true));
  }

  void before(const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = *this->workers_[size_t(thread)];
    worker.transpose(this->parameters);
    T* const scratch = this->scratch(thread);
    const index tiles = tile_count(batch.rows), slots = gradient_count(batch.rows);
    for (index slot = share_begin(slots, thread, threads); slot < share_begin(slots, thread + 1, threads); slot++) {
      for (index tile = tiles * slot / slots; tile < tiles * (slot + 1) / slots; tile++) {
        const index at = tile * tile_rows, rows = std::min(tile_rows, batch.rows - at);
        const bool add = tile > tiles * slot / slots;
        worker.gather(0, batch.first + at, rows);
        worker.forward(0, 0, rows, this->parameters, scratch);
        losses_[tile] = worker.output_delta(0, batch.first + at, rows, batch.scale);
        worker.propagate(0, rows, this->parameters, scratch);
        for (size_t i = 0; i < this->task.network.layers.size(); i++) {
          worker.weight_gradient(i, 0, this->task.network.layers[i].inputs, rows, add, gradients_[size_t(slot)],
                                 scratch);
          worker.bias_gradient(i, rows, add, gradients_[size_t(slot)]);
        }
      }
    }
  }

  void after(const Batch<T>& batch, int thread, int threads) override {
    constexpr index line = 64 / sizeof(T);
    const index lines = this->task.network.padded_size / line, slots = gradient_count(batch.rows);
    const index low = share_begin(lines, thread, threads) * line;
    const index count = share_begin(lines, thread + 1, threads) * line - low;
    for (index half = 1; half < slots; half *= 2) {
      for (index slot = 0; slot + half < slots; slot += 2 * half)
        this->task.network.kernels->add_rows(1, count, 0, gradients_[size_t(slot + half)].at(low),
                                             gradients_[size_t(slot)].at(low));
    }
    std::copy_n(gradients_[0].at(low), count, this->parameters.gradient.at(low));
    this->parameters.update(batch.rule, batch.numbers, low, count);
  }

  double loss(const Batch<T>& batch) const override {
    return batch.scale * std::accumulate(losses_, losses_ + tile_count(batch.rows), 0.0);
  }

 private:
  static constexpr index tile_rows = 96, most_gradients = 16;
  static index tile_count(index rows) { return (rows + tile_rows - 1) / tile_rows; }
  static index gradient_count(index rows) { return std::min(tile_count(rows), most_gradients); }

  std::vector<Segment<T>> gradients_;
  double* losses_;
};

// Inputs, then a replicated tail (many inputs, everything above small). Each thread owns parts of the
// inputs, of a size that the shape fixes: their sums towards the first layer, and afterwards their
// weights. The sums are exchanged; what follows is computed by every thread for itself. Weights of the
// first layer never cross from one core to another, and a step has one barrier.
template <class T>
class InputsThenTail final : public Schedule<T> {
 public:
  static bool suits(const Task<T>& task) {
    const auto& layers = task.network.layers;
    const index first = layers[0].inputs * layers[0].outputs, tail = task.network.compact_size - first;
    return layers.size() > 1 && layers[0].inputs >= 2 * part_inputs && task.batch <= max_tile_rows &&
           first >= 16 * tail;
  }

  InputsThenTail(const Task<T>& task, Arena& arena)
      : Schedule<T>(task, arena),
        parts_(std::min<index>(task.network.layers[0].inputs / part_inputs, 16)),
        sums_stride_(task.batch * task.network.layers[0].width),
        sums_{arena.take<T>(parts_ * sums_stride_), arena.take<T>(parts_ * sums_stride_)} {
    for (int i = 0; i < task.threads; i++) {
      this->workers_.push_back(std::make_unique<Worker<T>>(task.network, task.batch, task.gathered, arena));
      tails_.emplace_back(task.network.layers[0].biases, task.network.padded_size, task.slots, arena);
    }
  }

  void start() override { tails_[0].copy_from(this->parameters); }

  void join(int thread) override { tails_[size_t(thread)].copy_from(tails_[0]); }

  void before(const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = *this->workers_[size_t(thread)];
    worker.gather(0, batch.first, batch.rows);
    for (index part = share_begin(parts_, thread, threads); part < share_begin(parts_, thread + 1, threads); part++)
      worker.first_sums(0, batch.rows, begin(part), begin(part + 1), this->parameters,
                        sums(batch) + part * sums_stride_, this->scratch(thread));
  }

  void after(const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = *this->workers_[size_t(thread)];
    Parameters<T>& tail = tails_[size_t(thread)];
    T* const scratch = this->scratch(thread);
    worker.first_layer(0, batch.rows, parts_, sums(batch), sums_stride_, tail);
    worker.forward(1, 0, batch.rows, tail, scratch);
    const double sum = worker.output_delta(0, batch.first, batch.rows, batch.scale);
    if (thread == 0) loss_ = batch.scale * sum;
    worker.propagate(0, batch.rows, tail, scratch);
    const auto& layers = this->task.network.layers;
    for (size_t i = 0; i < layers.size(); i++) {
      if (i) worker.weight_gradient(i, 0, layers[i].inputs, batch.rows, false, tail.gradient, scratch);
      worker.bias_gradient(i, batch.rows, false, tail.gradient);
    }
    tail.update(batch.rule, batch.numbers, tail.begin, tail.size);
    const index low = begin(share_begin(parts_, thread, threads)),
                high = begin(share_begin(parts_, thread + 1, threads));
    worker.update_weights(batch, 0, low, high, this->parameters, scratch);
  }

  double loss(const Batch<T>&) const override { return loss_; }

  // Sums are written to two buffers in turn: a thread that is ahead writes the other one.
  bool barrier_after() const override { return false; }

  void finish() override {
    Parameters<T>&whole = this->parameters, &tail = tails_[0];
    std::copy_n(tail.values.data, tail.size, whole.values.at(tail.begin));
    std::copy_n(tail.gradient.data, tail.size, whole.gradient.at(tail.begin));
    for (size_t i = 0; i < tail.slots.size(); i++)
      std::copy_n(tail.slots[i].data, tail.size, whole.slots[i].at(tail.begin));
  }

 private:
  static constexpr index part_inputs = 192;

  index begin(index part) const { return this->task.network.layers[0].inputs * part / parts_; }
  T* sums(const Batch<T>& batch) { return sums_[batch.number % 2]; }

  const index parts_, sums_stride_;
  T* sums_[2];
  std::vector<Parameters<T>> tails_;
  double loss_ = 0;
};

// Made twice: the first one tells how large a block it takes.
template <class Kind, class T>
std::unique_ptr<Schedule<T>> laid_out(const Task<T>& task) {
  Arena counted;
  Kind(task, counted);
  Memory memory(counted.size());
  Arena arena(memory);
  auto schedule = std::make_unique<Kind>(task, arena);
  schedule->memory = std::move(memory);
  return schedule;
}

}  // namespace

template <class T>
std::unique_ptr<Schedule<T>> schedule_for(const Task<T>& task) {
  if (Tiles96<T>::suits(task)) return laid_out<Tiles96<T>>(task);
  if (InputsThenTail<T>::suits(task)) return laid_out<InputsThenTail<T>>(task);
  return laid_out<RowsThenWeights<T>>(task);
}

template std::unique_ptr<Schedule<float>> schedule_for(const Task<float>&);
template std::unique_ptr<Schedule<double>> schedule_for(const Task<double>&);

}  // namespace pyfastnn
