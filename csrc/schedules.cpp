// Training: three schedules, chosen by the shape of the network and the batch, never by the threads,
// so that the same seed gives the same bits on any number of them.
#include <memory>
#include <numeric>

#include "dense.hpp"
#include "teams.hpp"
#include "trainer.hpp"

namespace pyfastnn {
namespace {

using threads::share_begin;

// What a schedule is laid out for.
template <class T>
struct Task {
  const Network<T>& network;
  index batch;
  int threads, slots;
  Gathered gathered;
};

}  // namespace

// A schedule is two halves of a step with a barrier between, called by every thread of the team.
template <class T>
class Schedule {
 public:
  Schedule(const Task<T>& task_, Arena& arena)
      : task(task_), parameters(0, task_.network.padded_size, task_.slots, arena) {}
  virtual ~Schedule() = default;

  bool suits(const Task<T>& other) const {
    return task.batch == other.batch && task.threads == other.threads && task.slots == other.slots &&
           task.gathered == other.gathered;
  }
  // A call begins, on the thread that made it.
  void begin(const Samples<T>& samples) {
    scratch_ = scratch_for<T>(task.threads);
    for (auto& worker : workers_) worker->take(samples);
  }

  virtual void before(const Batch<T>&, int thread, int threads) = 0;
  virtual void after(const Batch<T>&, int thread, int threads) = 0;
  // The batch's loss, once thread 0 is through `after`.
  virtual double loss(const Batch<T>&) const = 0;
  // Whether a step needs a barrier at its end too.
  virtual bool barrier_after() const { return true; }
  // Spreads the parameters to what threads keep of their own, and gathers them again.
  virtual void start() {}
  virtual void finish() {}
  // Brings what a thread keeps of its own up to date, when it comes (back) to a team.
  virtual void join(int) {}

  const Task<T> task;
  Parameters<T> parameters;
  threads::Pace pace;
  Memory memory;  // of all arrays here

 protected:
  // One for all threads, or one for each, as the schedule has it.
  std::vector<std::unique_ptr<Worker<T>>> workers_;

  T* scratch(int thread) { return scratch_ + thread * scratch_size<T>; }

 private:
  T* scratch_ = nullptr;
};

namespace {

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

template <class T>
std::unique_ptr<Schedule<T>> schedule_for(const Task<T>& task) {
  if (Tiles96<T>::suits(task)) return laid_out<Tiles96<T>>(task);
  if (InputsThenTail<T>::suits(task)) return laid_out<InputsThenTail<T>>(task);
  return laid_out<RowsThenWeights<T>>(task);
}

// The sum of the sample weights of a batch.
template <class T>
double total_weight(const Samples<T>& samples, index first, index rows) {
  if (!samples.weight) return double(rows);
  double total = 0;
  for (index r = first; r < first + rows; r++) total += double(samples.weight[Worker<T>::sample(samples, r)]);
  return total;
}

// Multiply-adds of a step, in numbers of four bytes.
template <class T>
double step_work(const Network<T>& network, index batch) {
  return 3.0 * double(batch) * double(network.compact_size) * sizeof(T) / 4;
}

// Below, a team may be slower than one thread: some 50 us.
constexpr double doubtful_work = 5e6;

// Threads that pay: a step shorter than some microseconds a thread is all waiting.
template <class T>
int team_size(const Network<T>& network, index batch, double steps) {
  const double step = step_work(network, batch);
  return std::clamp(int(std::min(step / 1.5e5, 1e6)), 1, threads_for<T>(step * steps, epoch_cost));
}

// How long that much work may wait for other threads to wake up: an eighth of what it takes without them,
// but not so long that they must be busy elsewhere.
threads::Clock::duration patience(double work) {
  const double seconds = std::min(work / 1e11 / 8, 1e-3);
  return std::chrono::duration_cast<threads::Clock::duration>(std::chrono::duration<double>(seconds));
}

// All batches of the samples in turn, with steps of a rule by its numbers unless it is null; returns their mean loss.
template <class T>
double run(Schedule<T>& schedule, const Samples<T>& samples, const Rule<T>* rule, const double* numbers) {
  const index batch = schedule.task.batch;
  const int threads = schedule.task.threads;
  const Network<T>& network = schedule.task.network;
  const double outputs = network.mean_over_outputs ? double(network.layers.back().outputs) : 1.0;
  const index count = (samples.count + batch - 1) / batch;
  double total = 0, total_weights = 0;
  const auto join = [&](int thread) { schedule.join(thread); };
  const auto step = [&](index number, int thread, int active, auto barrier) {
    const index first = number * batch, rows = std::min(batch, samples.count - first);
    const double weight = total_weight(samples, first, rows);
    // The scale is that of batch_scale in backends/plan.py.
    const Batch<T> now{number, first,
                       rows,   weight != 0 ? 1 / (weight * outputs) : 0.0,
                       rule,   rule ? numbers + number * rule->numbers : nullptr};
    schedule.before(now, thread, active);
    barrier();
    schedule.after(now, thread, active);
    if (thread) return;
    total += weight * schedule.loss(now);
    total_weights += weight;
  };
  threads::Team team(schedule.barrier_after(), join, step);
  schedule.start();
  const bool doubtful = threads > 1 && step_work(network, batch) < doubtful_work;
  for (index first = 0; first < count;) {
    const threads::Pace::Turn turn = doubtful ? schedule.pace.next(count - first) : threads::Pace::Turn{true, count};
    const auto start = threads::Clock::now();
    team.run(turn.team ? threads : 1, first, first + turn.steps,
             patience(step_work(network, batch) * double(turn.steps)));
    if (doubtful) schedule.pace.took(turn, std::chrono::duration<double>(threads::Clock::now() - start).count());
    first += turn.steps;
  }
  schedule.finish();
  return total / total_weights;
}

}  // namespace

template <class T>
Spare<T>::~Spare() {
  delete kept_.load();
}

template <class T>
std::unique_ptr<Schedule<T>> Spare<T>::take() {
  return std::unique_ptr<Schedule<T>>(kept_.exchange(nullptr));
}

template <class T>
void Spare<T>::give(std::unique_ptr<Schedule<T>> schedule) {
  delete kept_.exchange(schedule.release());
}

namespace {

template <class T>
std::unique_ptr<Schedule<T>> schedule_from(Spare<T>& spare, const Task<T>& task) {
  std::unique_ptr<Schedule<T>> schedule = spare.take();
  return schedule && schedule->suits(task) ? std::move(schedule) : schedule_for<T>(task);
}

}  // namespace

template <class T>
double loss_and_gradient(const Network<T>& network, Spare<T>& spare, const T* params, const Samples<T>& samples,
                         T* gradient) {
  const Task<T> task{network, samples.count, team_size(network, samples.count, 1), 0, Gathered(samples)};
  auto schedule = schedule_from<T>(spare, task);
  schedule->begin(samples);
  network.pad(params, schedule->parameters.values.data);
  const double loss = run<T>(*schedule, samples, nullptr, nullptr);
  network.unpad(schedule->parameters.gradient.data, gradient);
  spare.give(std::move(schedule));
  return loss;
}

template <class T>
Training<T>::Training(const Network<T>& network, Spare<T>& spare, T* params, T* const* slots, const Rule<T>& rule,
                      index batch)
    : network_(network), spare_(spare), params_(params), rule_(rule), batch_(batch) {
  std::copy_n(slots, rule.slots, slots_);
}

template <class T>
Training<T>::~Training() {
  if (schedule_) spare_.give(std::move(schedule_));
}

template <class T>
double Training<T>::epoch(const Samples<T>& samples, const double* numbers) {
  const int threads = team_size(network_, batch_, double(samples.count) / double(batch_));
  const Task<T> task{network_, batch_, threads, rule_.slots, Gathered(samples)};
  if (!schedule_ || !schedule_->suits(task)) {
    pull();
    newest_ = Newest::given;
    schedule_ = schedule_from<T>(spare_, task);
  }
  schedule_->begin(samples);
  Parameters<T>& parameters = schedule_->parameters;
  if (newest_ == Newest::given) {
    network_.pad(params_, parameters.values.data);
    for (int i = 0; i < rule_.slots; i++) network_.pad(slots_[i], parameters.slots[size_t(i)].data);
  }
  newest_ = Newest::padded;
  return run<T>(*schedule_, samples, &rule_, numbers);
}

template <class T>
void Training<T>::pull() {
  if (newest_ != Newest::padded) return;
  const Parameters<T>& parameters = schedule_->parameters;
  network_.unpad(parameters.values.data, params_);
  for (int i = 0; i < rule_.slots; i++) network_.unpad(parameters.slots[size_t(i)].data, slots_[i]);
  newest_ = Newest::both;
}

#define INSTANTIATE(T)                                                                              \
  template class Spare<T>;                                                                          \
  template double loss_and_gradient(const Network<T>&, Spare<T>&, const T*, const Samples<T>&, T*); \
  template class Training<T>;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace pyfastnn
