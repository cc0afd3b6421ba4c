// What a training schedule is, of which schedules.cpp has five and split.hpp one; training.cpp runs them.
#pragma once

#include <memory>
#include <numeric>
#include <vector>

#include "dense.hpp"
#include "memory.hpp"
#include "teams.hpp"
#include "trainer.hpp"

namespace pyfastnn {

using threads::begins_share;
using threads::share_begin;

// From so many rows on a batch may be cut into parts; below, layers may be split.
constexpr index many_rows = 128;

// What a schedule is laid out for.
template <class T>
struct Task {
  const Network<T>& network;
  index batch;
  int threads, slots;
  Gathered gathered;
};

// A schedule cuts a step into stages, one after another, each called by every thread of the team; they meet in between.
template <class T>
class Schedule {
 public:
  Schedule(const Task<T>& task_, Arena& arena)
      : task(task_),
        parameters(0, task_.network.padded_size, task_.slots, arena),
        losses_{arena.take<double>(loss_blocks(task_.batch)), arena.take<double>(loss_blocks(task_.batch))} {}
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

  // How many of the threads it is laid out for find something to do.
  virtual int most_threads() const { return task.threads; }
  virtual index stages() const = 0;
  virtual void stage(index number, const Batch<T>&, int thread, int threads) = 0;
  // The batch's loss, once thread 0 is through all stages.
  double loss(const Batch<T>& batch) const {
    const double* const losses = losses_of(batch, 0);
    return batch.scale * std::accumulate(losses, losses + loss_blocks(batch.rows), 0.0);
  }
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

  Worker<T>& worker(int thread = 0) { return *workers_[size_t(thread)]; }
  T* scratch(int thread) { return scratch_ + thread * scratch_size<T>; }

  // The share of a thread in the weights of layer i, as they lie.
  Block share_of_rows(size_t i, int thread, int threads) const {
    const Layer<T>& layer = task.network.layers[i];
    const index rows = layer.panels.rows;
    return layer.rows(share_begin(rows, thread, threads), share_begin(rows, thread + 1, threads));
  }
  // Of the weights of layer i a block updated by the one worker, by one of the threads the biases.
  void update(const Batch<T>& batch, size_t i, Block block, int thread, int threads) {
    worker().update_weights(batch, i, block, parameters, scratch(thread));
    if (int(i) % threads == thread) worker().update_biases(batch, i, parameters);
  }
  // Where the losses of rows from `row` on, a multiple of loss_rows, go. In turn: a thread that is ahead writes the
  // other ones.
  double* losses_of(const Batch<T>& batch, index row) const { return losses_[batch.number % 2] + row / loss_rows; }

 private:
  double* const losses_[2];
  T* scratch_ = nullptr;
};

// The one that suits the shapes.
template <class T>
std::unique_ptr<Schedule<T>> schedule_for(const Task<T>&);

}  // namespace pyfastnn
