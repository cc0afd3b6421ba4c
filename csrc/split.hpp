// The training schedule that splits layers between threads, instead of the rows of a batch.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "schedules.hpp"

namespace pyfastnn {

// Split layers, then a replicated tail (all above them small). Threads own inputs of a layer, in parts that the shape
// fixes: their sums towards its outputs, and their weights. The sums, added in pairs, are exchanged; what follows is
// computed by every thread for itself. With few rows, layers are split two by two: the inputs of the upper one are
// outputs of the lower one, and belong to the same threads with their weights. Backward, sums towards its inputs are
// exchanged if there are two more below. Else, a first layer of many inputs is split. So no weights below the tail
// cross from one core to another, and a step of one or two split layers has one barrier.
template <class T>
class SplitThenTail final : public Schedule<T> {
 public:
  static bool suits(const Task<T>& task) { return !split_layers(task).empty(); }

  SplitThenTail(const Task<T>& task, Arena& arena) : Schedule<T>(task, arena) {
    index parts = 0;
    for (const size_t layer : split_layers(task)) {
      groups_.emplace_back(task.network.layers, layer, task.batch, arena);
      parts = std::max(parts, groups_.back().parts.count);
    }
    most_threads_ = int(std::min<index>(parts, task.threads));
    for (int i = 0; i < most_threads_; i++) {
      this->workers_.push_back(std::make_unique<Worker<T>>(task.network, task.batch, task.gathered, arena));
      tails_.emplace_back(task.network.layers[groups_.back().layer].biases, task.network.padded_size, task.slots,
                          arena);
    }
  }

  int most_threads() const override { return most_threads_; }

  void start() override { tails_[0].copy_from(this->parameters); }

  void join(int thread) override { tails_[size_t(thread)].copy_from(tails_[0]); }

  // The groups forward, and from the last one backward.
  index stages() const override { return 2 * count(); }

  void stage(index number, const Batch<T>& batch, int thread, int threads) override {
    Worker<T>& worker = this->worker(thread);
    if (number < count()) {
      if (number == 0)
        worker.gather(batch.all(), first_input(thread, threads));
      else
        add_up(groups_[size_t(number - 1)], batch, thread, threads, this->parameters);
      forward(groups_[size_t(number)], batch, thread, threads);
    } else {
      const Group& group = groups_[size_t(2 * count() - 1 - number)];
      if (number == count())
        tail(group, batch, thread, threads);
      else
        deltas(group, groups_[size_t(2 * count() - number)], batch, thread, threads);
      backward(group, batch, thread, threads);
    }
  }

  // There are two buffers of sums, in turn: a thread that is ahead writes the other one.
  bool barrier_after() const override { return false; }

  void finish() override {
    Parameters<T>&whole = this->parameters, &tail = tails_[0];
    std::copy_n(tail.values.data, tail.size, whole.values.at(tail.begin));
    std::copy_n(tail.gradient.data, tail.size, whole.gradient.at(tail.begin));
    for (size_t i = 0; i < tail.slots.size(); i++)
      std::copy_n(tail.slots[i].data, tail.size, whole.slots[i].at(tail.begin));
  }

 private:
  // Of a first layer, parts of at least so many inputs; else of these or twice as many outputs of the layer below:
  // whole panels of any instruction set.
  static constexpr index part_inputs = 192, part_outputs = 32, most_parts = 16;

  // A matrix from each part.
  struct Exchange {
    index size;
    T* data;

    Exchange(index size_, index parts, Arena& arena) : size(size_), data(arena.take<T>(parts * size)) {}
    T* of(index part) const { return data + part * size; }
  };

  // The inputs of a layer, cut.
  struct Cut {
    index inputs, unit, units, count;

    Cut(const std::vector<Layer<T>>& layers, size_t layer)
        : inputs(layers[layer].inputs),
          unit(layer ? (inputs >= 256 ? 2 : 1) * part_outputs : 1),
          units((inputs + unit - 1) / unit),
          count(std::min(layer ? units : inputs / part_inputs, most_parts)) {}

    index begin(index part) const { return std::min(inputs, units * part / count * unit); }
    // Where the inputs of a thread begin.
    index begin_of(int thread, int threads) const { return begin(share_begin(count, thread, threads)); }
    // Whether the larger share of two threads is not much more than half.
    bool is_balanced() const { return 3 * begin_of(1, 2) <= 2 * inputs; }
  };

  // A layer whose inputs are split, with the layer below it unless it is the first one.
  struct Group {
    const size_t layer;
    const Cut parts;
    const bool addable;              // the sums of one part to those of another; which may have one unit more
    const Exchange sums[2], deltas;  // deltas: towards the inputs of the layer below

    Group(const std::vector<Layer<T>>& layers, size_t layer_, index batch, Arena& arena)
        : layer(layer_),
          parts(layers, layer),
          addable(!layers[layer].transposed && parts.begin(1) < max_row_depth<T>),
          sums{{batch * layers[layer].width, parts.count, arena}, {batch * layers[layer].width, parts.count, arena}},
          deltas(layer > 1 ? batch * layers[layer - 2].width : 0, parts.count, arena) {}

    // Whether the sums of a part are added to those of the part before it, with which it is a pair of one thread.
    bool adds(index part, int threads) const {
      return addable && part % 2 && !begins_share(part, parts.count, threads);
    }
    const Exchange& sums_of(const Batch<T>& batch) const { return sums[batch.number % 2]; }
  };

  struct Terms {
    index count;
    Term<T> of[most_parts / 2];
  };

  // Those whose inputs are split; none where that does not suit.
  static std::vector<size_t> split_layers(const Task<T>& task) {
    const auto& layers = task.network.layers;
    const index size = task.network.compact_size;
    const auto weights = [&](size_t i) { return layers[i].inputs * layers[i].outputs; };
    index head = 0;
    const auto others_are_small = [&](index times) { return head >= times * (size - head); };
    std::vector<size_t> split;
    const index most_rows = layers.size() > 1 && layers[1].outputs <= 32 ? many_rows - 1 : 64;
    if (task.batch <= most_rows && (task.batch + 8) * size >= 100'000) {
      for (size_t i = 1; i < layers.size() && layers[i].inputs > part_outputs && Cut(layers, i).is_balanced() &&
                         layers[i].outputs <= 4 * layers[i].inputs && !others_are_small(8);
           i += 2) {
        head += weights(i - 1) + weights(i);
        split.push_back(i);
      }
      if (others_are_small(4)) return split;
    }
    head = weights(0);
    if (layers.size() > 1 && layers[0].inputs >= 2 * part_inputs && task.batch <= max_tile_rows && others_are_small(16))
      return {0};
    return {};
  }

  // Every two parts, added up, are a term; unless the sums of one were added to those of the other.
  template <class Added>
  static Terms terms(const Exchange& exchange, index parts, Added is_added) {
    Terms terms{(parts + 1) / 2, {}};
    for (index part = 0; part < parts; part += 2) {
      const bool single = part + 1 == parts || is_added(part + 1);
      terms.of[part / 2] = {exchange.of(part), single ? nullptr : exchange.of(part + 1)};
    }
    return terms;
  }

  index count() const { return index(groups_.size()); }

  // Of a split first layer, the first input of this thread's.
  index first_input(int thread, int threads) const {
    const Group& first = groups_[0];
    return first.layer ? 0 : first.parts.begin_of(thread, threads);
  }

  // The layer below, as far as it is this thread's, and its parts of the sums.
  void forward(const Group& group, const Batch<T>& batch, int thread, int threads) {
    Worker<T>& worker = this->worker(thread);
    T* const scratch = this->scratch(thread);
    const Cut& parts = group.parts;
    const index own = share_begin(parts.count, thread, threads), end = share_begin(parts.count, thread + 1, threads);
    if (group.layer && own < end) {
      worker.sums(group.layer - 1, batch.all(), parts.begin(own), parts.begin(end), this->parameters, scratch);
      worker.activate(group.layer - 1, batch.all(), parts.begin(own), parts.begin(end));
    }
    for (index part = own; part < end; part++) {
      const bool add = group.adds(part, threads);
      worker.part_of_sums(group.layer, batch.all(), parts.begin(part), parts.begin(part + 1), this->parameters, add,
                          group.sums_of(batch).of(part - add), scratch);
    }
  }

  // The outputs of the group.
  void add_up(const Group& group, const Batch<T>& batch, int thread, int threads, Parameters<T>& biases) {
    const Terms sums =
        terms(group.sums_of(batch), group.parts.count, [&](index part) { return group.adds(part, threads); });
    this->worker(thread).add_up(group.layer, batch.all(), sums.count, sums.of, biases);
  }

  // What every thread does for itself: from the outputs of the last group to their deltas, and the update of what is
  // above.
  void tail(const Group& group, const Batch<T>& batch, int thread, int threads) {
    Worker<T>& worker = this->worker(thread);
    Parameters<T>& tail = tails_[size_t(thread)];
    T* const scratch = this->scratch(thread);
    const Rows all = batch.all();
    const auto& layers = this->task.network.layers;
    add_up(group, batch, thread, threads, tail);
    worker.forward(group.layer + 1, all, tail, scratch);
    double same_losses[loss_blocks(max_tile_rows)];  // as thread 0 has them
    worker.output_delta(all, batch.scale, thread ? same_losses : this->losses_of(batch, 0));
    worker.propagate(group.layer, all, tail, scratch);
    for (size_t i = group.layer; i < layers.size(); i++) {
      if (i > group.layer) worker.weight_gradient(i, layers[i].all(), all, false, tail.gradient, scratch);
      worker.bias_gradient(i, all, false, tail.gradient);
    }
    tail.update(batch.rule, batch.numbers, tail.begin, tail.size);
  }

  // The deltas of the group's outputs, from the group above. One thread updates its biases, for the next step.
  void deltas(const Group& group, const Group& above, const Batch<T>& batch, int thread, int threads) {
    const Terms sums = terms(above.deltas, above.parts.count, [](index) { return false; });
    this->worker(thread).add_up_deltas(group.layer, batch.all(), sums.count, sums.of);
    if (int(group.layer) % threads == thread) this->worker(thread).update_biases(batch, group.layer, this->parameters);
  }

  // Deltas of the layer below, as far as they are this thread's, and its parts of those below; then its weights.
  void backward(const Group& group, const Batch<T>& batch, int thread, int threads) {
    Worker<T>& worker = this->worker(thread);
    T* const scratch = this->scratch(thread);
    const size_t i = group.layer;
    const auto& layers = this->task.network.layers;
    const Cut& parts = group.parts;
    const index own = share_begin(parts.count, thread, threads), end = share_begin(parts.count, thread + 1, threads),
                low = parts.begin(own), high = parts.begin(end);
    if (low == high) return;
    if (i) worker.propagate(i, batch.all(), low, high, this->parameters, scratch);
    for (index part = own; i > 1 && part < end; part++)
      worker.part_of_deltas(i - 1, batch.all(), parts.begin(part), parts.begin(part + 1), this->parameters,
                            group.deltas.of(part), scratch);
    worker.update_weights(batch, i, layers[i].of_inputs(low, high), this->parameters, scratch);
    if (!i) return;
    const Block below = layers[i - 1].columns(low, high);
    worker.update_weights(batch, i - 1, below, this->parameters, scratch);
    worker.update_biases(batch, i - 1, below.first, below.end, this->parameters);
  }

  std::vector<Group> groups_;
  std::vector<Parameters<T>> tails_;
  int most_threads_;
};

}  // namespace pyfastnn
