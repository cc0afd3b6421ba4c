// The training schedules, but for that of split.hpp, and which shapes of network and batch take which. The threads only
// decide between two that compute the same sums, so that the same seed gives the same bits on any number of them.
#include "schedules.hpp"
#include "split.hpp"

namespace pyfastnn {
namespace {

// Rows [begin, end) of these, as far as there are.
Rows part_of(Rows rows, index begin, index end) {
  return {rows.at + begin, rows.first + begin, std::min(rows.count, end) - begin};
}

// Gradients of parts of a batch, the first of them where their sum belongs.
template <class T>
class PartialGradients {
 public:
  PartialGradients(index count, const KernelTable<T>& kernels, Parameters<T>& parameters, Arena& arena)
      : kernels_(kernels), parameters_(parameters), gradients_{parameters.gradient} {
    while (this->count() < count) gradients_.push_back({arena.take<T>(parameters.size), parameters.begin});
  }

  index count() const { return index(gradients_.size()); }
  Segment<T> of(index part) const { return gradients_[size_t(part)]; }

  // Adds [offset, offset + size) of one to another.
  void add(index part, index to, index offset, index size) {
    kernels_.add_rows(1, size, 0, of(part).at(offset), of(to).at(offset));
  }

  // Adds up [offset, offset + size) of parts 0, step, 2 step... below `end`, pairwise, and updates the parameters.
  void update(const Batch<T>& batch, index end, index step, index offset, index size) {
    for (; step < end; step *= 2) {
      for (index part = 0; part + step < end; part += 2 * step) add(part + step, part, offset, size);
    }
    parameters_.update(batch.rule, batch.numbers, offset, size);
  }

  // The same on the share of a thread in all parameters.
  void update_share(const Batch<T>& batch, index end, index step, int thread, int threads) {
    constexpr index line = 64 / sizeof(T);
    const index lines = parameters_.size / line, low = share_begin(lines, thread, threads) * line;
    update(batch, end, step, low, share_begin(lines, thread + 1, threads) * line - low);
  }

 private:
  const KernelTable<T>& kernels_;
  Parameters<T>& parameters_;
  std::vector<Segment<T>> gradients_;
};

// A step in two stages.
template <class T>
class Halves : public Schedule<T> {
 public:
  using Schedule<T>::Schedule;

  index stages() const final { return 2; }
  void stage(index number, const Batch<T>& batch, int thread, int threads) final {
    number ? after(batch, thread, threads) : before(batch, thread, threads);
  }

  virtual void before(const Batch<T>&, int thread, int threads) = 0;
  virtual void after(const Batch<T>&, int thread, int threads) = 0;
};

// The share of a thread in a batch: blocks of rows whose losses are summed together.
template <class T>
Rows share_of(const Batch<T>& batch, int thread, int threads) {
  const index blocks = loss_blocks(batch.rows);
  const auto begin = [&](int share) { return std::min(batch.rows, share_begin(blocks, share, threads) * loss_rows); };
  return part_of(batch.all(), begin(thread), begin(thread + 1));
}

// Part `number` of `count` of a batch: such blocks, of which the last one may have few rows, as evenly as may be.
template <class T>
Rows rows_of(const Batch<T>& batch, index number, index count) {
  const auto begin = [&](index part) {
    return std::min(batch.rows, (2 * batch.rows * part + count * loss_rows) / (2 * count * loss_rows) * loss_rows);
  };
  return part_of(batch.all(), begin(number), number + 1 < count ? begin(number + 1) : batch.rows);
}

// Common to the schedules whose threads split the rows of the batch for forward, loss and deltas.
template <class T>
class ByRows : public Halves<T> {
 public:
  ByRows(const Task<T>& task, Arena& arena)
      : Halves<T>(task, arena),
        tile_blocks_((task.network.padded_size * index(sizeof(T)) > (4 << 20) ? 1024 : max_tile_rows) / loss_rows) {
    this->workers_.push_back(std::make_unique<Worker<T>>(task.network, task.batch, task.gathered, arena));
  }

 protected:
  // Of the rows of one worker.
  void forward_and_back(const Batch<T>& batch, Rows rows, Parameters<T>& parameters, int thread, int worker = 0) {
    Worker<T>& own = this->worker(worker);
    const Tiles tiles(loss_blocks(rows.count), 1, tile_blocks_);
    for (index number = 0; number < tiles.count; number++) {
      const Rows tile = part_of(rows, tiles.begin(number) * loss_rows, tiles.begin(number + 1) * loss_rows);
      own.gather(tile);
      own.forward(0, tile, parameters, this->scratch(thread));
      own.output_delta(tile, batch.scale, this->losses_of(batch, tile.first - batch.first));
      own.propagate(0, tile, parameters, this->scratch(thread));
    }
  }

 private:
  // Blocks of loss_rows that go through the layers together: they stay in the second-level cache, unless the weights
  // do not and should rather be read seldom.
  const index tile_blocks_;
};

// Rows, then weights (general). After the rows the threads split the rows of each weight matrix for its gradient
// over the whole batch, and its update. No gradient is copied or added up.
template <class T>
class RowsThenWeights final : public ByRows<T> {
 public:
  using ByRows<T>::ByRows;

  void before(const Batch<T>& batch, int thread, int threads) override {
    this->forward_and_back(batch, share_of(batch, thread, threads), this->parameters, thread);
  }

  void after(const Batch<T>& batch, int thread, int threads) override {
    for (size_t i = 0; i < this->task.network.layers.size(); i++) {
      this->update(batch, i, this->share_of_rows(i, thread, threads), thread, threads);
    }
  }
};

// Layer by layer (few rows, many weights). Rows, then weights, has too few blocks of rows for all threads. Here the
// threads split every layer: its outputs forward; backward its inputs, whose weights each then updates, as it has just
// read them. The sums are the same in both schedules.
template <class T>
class LayerByLayer final : public Schedule<T> {
 public:
  static bool suits(const Task<T>& task) {
    return loss_blocks(task.batch) < task.threads && task.batch <= 64 && task.network.layers.size() > 1 &&
           task.network.compact_size * index(sizeof(T)) >= 256 * 1024;
  }

  LayerByLayer(const Task<T>& task, Arena& arena) : Schedule<T>(task, arena) {
    this->workers_.push_back(std::make_unique<Worker<T>>(task.network, task.batch, task.gathered, arena));
  }

  // Samples; layers forward; loss; layers backward.
  index stages() const override { return 2 * count() + 2; }

  void stage(index number, const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = this->worker();
    const Rows share = share_of(batch, thread, threads);
    if (number == 0) {
      worker.gather(share);
    } else if (number <= count()) {
      forward(size_t(number - 1), batch, thread, threads);
    } else if (number == count() + 1) {
      if (!share.count) return;
      worker.activate(size_t(count() - 1), share);
      worker.output_delta(share, batch.scale, this->losses_of(batch, share.at));
    } else {
      backward(size_t(2 * count() + 1 - number), batch, thread, threads);
    }
  }

 private:
  index count() const { return index(this->task.network.layers.size()); }

  void forward(size_t i, const Batch<T>& batch, int thread, int threads) {
    const Layer<T>& layer = this->task.network.layers[i];
    const auto begin = [&](int share) {
      return std::min(layer.outputs, share_begin(layer.panels.count(), share, threads) * layer.panels.panel_width);
    };
    const index low = begin(thread), high = begin(thread + 1);
    if (low == high) return;
    this->worker().sums(i, batch.all(), low, high, this->parameters, this->scratch(thread));
    if (index(i) + 1 < count()) this->worker().activate(i, batch.all(), low, high);
  }

  void backward(size_t i, const Batch<T>& batch, int thread, int threads) {
    const auto& layers = this->task.network.layers;
    const index low = inputs_begin(layers[i], thread, threads), high = inputs_begin(layers[i], thread + 1, threads);
    if (i && low < high) this->worker().propagate(i, batch.all(), low, high, this->parameters, this->scratch(thread));
    if (!layers[i].transposed) this->update(batch, i, layers[i].rows(low, high), thread, threads);
    // Of transposed weights every thread reads all rows: they wait for the next stage.
    if (i + 1 < layers.size() && layers[i + 1].transposed)
      this->update(batch, i + 1, this->share_of_rows(i + 1, thread, threads), thread, threads);
  }

  // In whole vectors of any instruction set: each thread writes whole ones, and none of its neighbour's.
  static index inputs_begin(const Layer<T>& layer, int thread, int threads) {
    constexpr index line = 64 / sizeof(T);
    return std::min(layer.inputs, share_begin((layer.inputs + line - 1) / line, thread, threads) * line);
  }
};

// Parts (some hundred kilobytes of weights, many rows). Rows, then weights, moves activations, deltas and weights
// between the cores. Here a gradient is mostly smaller than those, so the shape cuts the batch into parts. Threads
// that divide them evenly each take their parts from rows to gradients, and only these cross; any other number of
// threads splits rows, then weights, part by part. Parts are summed pairwise; that of an odd one is added to
// the one before it at once where a thread has both.
template <class T>
class Parts final : public ByRows<T> {
 public:
  static bool suits(const Task<T>& task) {
    // Rows of weights in whole cache lines: as they are padded at most, but the same for every instruction set.
    constexpr index line = 64 / sizeof(T);
    index lines = 0;
    for (const Layer<T>& layer : task.network.layers) lines += layer.inputs * ((layer.outputs + line - 1) / line);
    return lines * 64 <= 512 * 1024 && task.batch >= many_rows;
  }

  Parts(const Task<T>& task, Arena& arena)
      : ByRows<T>(task, arena), gradients_(part_count(task.batch), *task.network.kernels, this->parameters, arena) {}

  void before(const Batch<T>& batch, int thread, int threads) override {
    if (!own_parts(threads))
      return this->forward_and_back(batch, share_of(batch, thread, threads), this->parameters, thread);
    const index end = share_begin(parts(), thread + 1, threads);
    for (index part = share_begin(parts(), thread, threads); part < end; part++) {
      this->forward_and_back(batch, rows_of(batch, part, parts()), this->parameters, thread);
      for (size_t i = 0; i < this->task.network.layers.size(); i++) {
        weight_gradient(batch, i, this->task.network.layers[i].all(), part, own_pairs(threads), thread);
        bias_gradient(batch, i, part, own_pairs(threads));
      }
    }
  }

  void after(const Batch<T>& batch, int thread, int threads) override {
    if (own_parts(threads)) return gradients_.update_share(batch, parts(), own_pairs(threads) ? 2 : 1, thread, threads);
    const auto update = [&](index offset, index size) { gradients_.update(batch, parts(), 2, offset, size); };
    for (size_t i = 0; i < this->task.network.layers.size(); i++) {
      const Layer<T>& layer = this->task.network.layers[i];
      const Block block = this->share_of_rows(i, thread, threads);
      for (index part = 0; part < parts(); part++) weight_gradient(batch, i, block, part, true, thread);
      layer.for_block(block, update);
      if (int(i) % threads != thread) continue;
      for (index part = 0; part < parts(); part++) bias_gradient(batch, i, part, true);
      update(layer.biases, layer.width);
    }
  }

 private:
  static constexpr index most_parts = 8;

  // A power of two; their rows grow with the batch too.
  static index part_count(index rows) {
    index parts = 2;
    while (parts < most_parts && rows >= parts * parts * many_rows) parts *= 2;
    return parts;
  }

  index parts() const { return gradients_.count(); }
  bool own_parts(int threads) const { return parts() % threads == 0; }
  bool own_pairs(int threads) const { return parts() > threads; }

  // Of a block of the weights of layer i; with `pairs`, that of an odd part goes to the part before it.
  void weight_gradient(const Batch<T>& batch, size_t i, Block block, index part, bool pairs, int thread) {
    const Rows rows = rows_of(batch, part, parts());
    const bool odd = pairs && part % 2;
    if (odd && rows.count <= max_depth)
      return this->worker().add_weight_gradient(i, block, rows, gradients_.of(part - 1), this->scratch(thread));
    this->worker().weight_gradient(i, block, rows, false, gradients_.of(part), this->scratch(thread));
    if (odd)
      this->task.network.layers[i].for_block(
          block, [&](index offset, index size) { gradients_.add(part, part - 1, offset, size); });
  }

  void bias_gradient(const Batch<T>& batch, size_t i, index part, bool pairs) {
    const Layer<T>& layer = this->task.network.layers[i];
    const Rows rows = rows_of(batch, part, parts());
    this->worker().bias_gradient(i, rows, false, gradients_.of(part));
    if (pairs && part % 2) gradients_.add(part, part - 1, layer.biases, layer.width);
  }

  PartialGradients<T> gradients_;
};

// Replicas (hardly any parameters, some rows). Two parts again, but each of two threads has the parameters for itself:
// it adds up both gradients, and updates all parameters. So only gradients cross, and a step has one barrier.
template <class T>
class Replicas final : public ByRows<T> {
 public:
  static bool suits(const Task<T>& task) {
    return task.network.compact_size * index(sizeof(T)) <= 4 * 1024 && task.batch >= many_rows;
  }

  Replicas(const Task<T>& task, Arena& arena)
      : ByRows<T>(task, arena), other_(0, task.network.padded_size, task.slots, arena) {
    if (most_threads() > 1)
      this->workers_.push_back(std::make_unique<Worker<T>>(task.network, task.batch, task.gathered, arena));
    for (auto& gradients : gradients_) {
      for (Segment<T>& gradient : gradients) gradient = {arena.take<T>(task.network.padded_size), 0};
    }
  }

  int most_threads() const override { return std::min(int(parts), this->task.threads); }

  void join(int) override { other_.copy_from(this->parameters); }

  void before(const Batch<T>& batch, int thread, int threads) override {
    const index end = share_begin(parts, thread + 1, threads);
    for (index part = share_begin(parts, thread, threads); part < end; part++) {
      Rows rows = rows_of(batch, part, parts);
      rows.at = 0;
      this->forward_and_back(batch, rows, own(thread), thread, thread);
      this->worker(thread).gradients(rows, false, gradients_[batch.number % 2][part], this->scratch(thread));
    }
  }

  void after(const Batch<T>& batch, int thread, int) override {
    const auto& gradients = gradients_[batch.number % 2];
    const Term<T> both{gradients[0].data, gradients[1].data};
    Parameters<T>& parameters = own(thread);
    this->task.network.kernels->add_terms(1, parameters.size, nullptr, 1, &both, parameters.gradient.data,
                                          parameters.size);
    parameters.update(batch.rule, batch.numbers, 0, parameters.size);
  }

  // There are two buffers of gradients, in turn: a thread that is ahead writes the other one.
  bool barrier_after() const override { return false; }

 private:
  static constexpr index parts = 2;

  Parameters<T>& own(int thread) { return thread ? other_ : this->parameters; }

  Parameters<T> other_;
  Segment<T> gradients_[2][parts];
};

// Tiles (few parameters, many rows). Tiles of the batch run forward and backward in the cache, each
// adding to one of up to 16 gradients that the shape assigns to it; these are then summed pairwise.
template <class T>
class Tiles96 final : public Halves<T> {
 public:
  static bool suits(const Task<T>& task) {
    return task.network.compact_size * index(sizeof(T)) <= 48 * 1024 && task.batch >= 4 * tile_rows;
  }

  Tiles96(const Task<T>& task, Arena& arena)
      : Halves<T>(task, arena),
        gradients_(gradient_count(task.batch), *task.network.kernels, this->parameters, arena),
        claims_(task.threads) {
    for (int i = 0; i < task.threads; i++)
      this->workers_.push_back(std::make_unique<Worker<T>>(task.network, tile_rows, task.gathered, arena, true));
  }

  void before(const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = this->worker(thread);
    worker.transpose(this->parameters);
    T* const scratch = this->scratch(thread);
    const index tiles = tile_count(batch.rows), slots = gradient_count(batch.rows);
    claims_.each(slots, thread, threads, [&](index slot) {
      for (index tile = tiles * slot / slots; tile < tiles * (slot + 1) / slots; tile++) {
        const index at = tile * tile_rows;
        const Rows rows{0, batch.first + at, std::min(tile_rows, batch.rows - at)};
        const bool add = tile > tiles * slot / slots;
        worker.gather(rows);
        worker.forward(0, rows, this->parameters, scratch);
        worker.output_delta(rows, batch.scale, this->losses_of(batch, at));
        worker.propagate(0, rows, this->parameters, scratch);
        worker.gradients(rows, add, gradients_.of(slot), scratch);
      }
    });
  }

  void after(const Batch<T>& batch, int thread, int threads) override {
    if (thread == 0) claims_.forget();
    gradients_.update_share(batch, gradient_count(batch.rows), 1, thread, threads);
  }

 private:
  static constexpr index tile_rows = 96, most_gradients = 16;
  static index tile_count(index rows) { return (rows + tile_rows - 1) / tile_rows; }
  static index gradient_count(index rows) { return std::min(tile_count(rows), most_gradients); }

  PartialGradients<T> gradients_;
  threads::Claims claims_;
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
  if (SplitThenTail<T>::suits(task)) return laid_out<SplitThenTail<T>>(task);
  if (Replicas<T>::suits(task)) return laid_out<Replicas<T>>(task);
  if (Parts<T>::suits(task)) return laid_out<Parts<T>>(task);
  if (LayerByLayer<T>::suits(task)) return laid_out<LayerByLayer<T>>(task);
  return laid_out<RowsThenWeights<T>>(task);
}

template std::unique_ptr<Schedule<float>> schedule_for(const Task<float>&);
template std::unique_ptr<Schedule<double>> schedule_for(const Task<double>&);

}  // namespace pyfastnn
