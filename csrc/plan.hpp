// A network laid out for the training schedules: weights in panels, and every row of them and of activations
// padded to whole vectors, so that hardly a kernel meets an edge or packs what it multiplies by.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <variant>
#include <vector>

#include "kernels.hpp"

namespace pyfastnn {

// Rows [low, high) and columns [first, end) of weights as they lie.
struct Block {
  index low, high, first, end;
};

template <class T>
struct Layer {
  index inputs, outputs;
  index width;            // outputs rounded up to whole vectors
  bool transposed;        // weights (outputs, inputs) in whole rows: as columns they would leave most lanes empty
  Panels panels;          // the weights; of transposed ones a single panel
  index stride;           // of a row of activations: width, kept off the powers of two; or outputs, without padding
  index weights, biases;  // offsets into the padded parameters
  const Activation<T>* activation;
  bool slope_from_input;

  // All weights; rows [low, high) as they lie; inputs [low, high); outputs [low, high) of weights that are not
  // transposed, low at the beginning of a panel.
  Block all() const { return rows(0, panels.rows); }
  Block rows(index low, index high) const { return {low, high, 0, panels.width}; }
  Block of_inputs(index low, index high) const { return transposed ? columns(low, high) : rows(low, high); }
  Block columns(index low, index high) const {
    return {0, panels.rows, low, high < (transposed ? inputs : outputs) ? high : panels.width};
  }

  // f(offset, count) of the pieces of the padded weights that make up a block.
  template <class F>
  void for_block(Block block, F f) const {
    const index W = panels.panel_width;
    for (index panel = block.first / W; panel * W < block.end; panel++) {
      const index width = panels.width_of(panel), from = std::max<index>(block.first - panel * W, 0),
                  to = std::min(block.end - panel * W, width);
      if (to - from == width)
        f(weights + panels.begin(panel, block.low), (block.high - block.low) * width);
      else
        for (index row = block.low; row < block.high; row++) f(weights + panels.begin(panel, row) + from, to - from);
    }
  }
};

// What never changes: shapes, offsets, kernels. Shared by all calls, of all threads.
template <class T>
struct Network {
  const KernelTable<T>* kernels;
  std::vector<Layer<T>> layers;
  const Loss<T>* loss;
  bool matched;            // the loss with the output activation: dl/dz = a - y
  bool mean_over_outputs;  // else sum
  index padded_size = 0, compact_size = 0;
  index widest = 0, row_elements = 0;  // outputs of a layer; inputs and outputs of all

  Network(const KernelTable<T>&, const std::vector<index>& sizes, const std::vector<int>& activations,
          const std::vector<bool>& slopes_from_input, int loss, bool matched, bool mean_over_outputs);

  // Between the flat parameters that Python sees and the padded ones.
  void pad(const T* compact, T* padded) const;
  void unpad(const T* padded, T* compact) const;
};

// Whether a step of these layer sizes is faster in vectors of `narrow` lanes than in ones of `wide`: these would
// stay half empty, mostly.
bool narrow_suits(const std::vector<index>& sizes, index narrow, index wide);

using AnyNetwork = std::variant<std::monostate, Network<float>, Network<double>>;

// Samples, and in which order they are taken: rows of x (inputs), of y (outputs) or labels.
template <class T>
struct Samples {
  const T* x;
  const T* y;                  // null with labels
  const std::int64_t* labels;  // null with y
  const T* weight;             // null: 1
  const std::int64_t* order;   // null: as they lie
  index count;
};

// out (count, outputs) = the network at x (count, inputs), with the parameters as Python sees them.
template <class T>
void predict(const Network<T>&, const T* params, const T* x, index count, T* out);

template <class T>
class Schedule;

// The workspace of the last training call, for the next one. Calls at the same time have one each, of which
// one is kept.
template <class T>
class Spare {
 public:
  Spare() = default;
  Spare(const Spare&) = delete;
  ~Spare();

  std::unique_ptr<Schedule<T>> take();
  void give(std::unique_ptr<Schedule<T>>);

 private:
  std::atomic<Schedule<T>*> kept_{nullptr};
};

// The loss of all samples as one batch, and its gradient.
template <class T>
double loss_and_gradient(const Network<T>&, Spare<T>&, const T* params, const Samples<T>&, T* gradient);

// Epochs one after another, whose parameters stay padded in between. params and the slots are compact, and are
// brought up to date by pull().
template <class T>
class Training {
 public:
  Training(const Network<T>&, Spare<T>&, T* params, T* const* slots, const Rule<T>&, index batch);
  Training(const Training&) = delete;
  ~Training();

  // One pass over the samples in batches, the last one maybe short, by the rule's numbers for each step; returns the
  // mean loss on the way.
  double epoch(const Samples<T>&, const double* numbers);
  void pull();
  // What was given counts again: somebody may have changed it.
  void push() { newest_ = Newest::given; }

 private:
  enum class Newest { given, both, padded };

  const Network<T>& network_;
  Spare<T>& spare_;
  T *const params_, *slots_[max_slots] = {};
  const Rule<T>& rule_;
  const index batch_;
  std::unique_ptr<Schedule<T>> schedule_;
  Newest newest_ = Newest::given;
};

}  // namespace pyfastnn
