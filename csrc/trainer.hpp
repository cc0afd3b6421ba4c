// One batch through a network: the pieces that the training schedules are made of.
#pragma once

#include <algorithm>
#include <vector>

#include "memory.hpp"
#include "plan.hpp"

namespace pyfastnn {

// A number for each of the padded parameters from offset `begin` on.
template <class T>
struct Segment {
  T* data;
  index begin;

  T* at(index offset) const { return data + (offset - begin); }
};

// Parameters, their gradient and what the optimizer remembers, all padded; of a whole network or of
// its tail from offset `begin` on.
template <class T>
struct Parameters {
  index begin, size;
  Segment<T> values, gradient;
  std::vector<Segment<T>> slots;

  Parameters(index begin_, index end, int slot_count, Arena& arena)
      : begin(begin_),
        size(end - begin),
        values{arena.take<T>(size), begin},
        gradient{arena.take<T>(size), begin},
        slots(size_t(slot_count)) {
    for (Segment<T>& slot : slots) slot = {arena.take<T>(size), begin};
  }

  // Copies everything but the gradient from parameters that hold this range too.
  void copy_from(const Parameters& whole) {
    std::copy_n(whole.values.at(begin), size, values.data);
    for (size_t i = 0; i < slots.size(); i++) std::copy_n(whole.slots[i].at(begin), size, slots[i].data);
  }

  // One step of the rule on [offset, offset + count), whose gradient is there or elsewhere.
  void update(const Rule<T>* rule, const double* numbers, index offset, index count) {
    update(rule, numbers, offset, count, gradient.at(offset));
  }
  void update(const Rule<T>* rule, const double* numbers, index offset, index count, const T* g) {
    if (!rule) return;
    T* part[max_slots] = {};
    for (size_t i = 0; i < slots.size(); i++) part[i] = slots[i].at(offset);
    rule->apply(count, values.at(offset), g, part, numbers);
  }
};

// Numbers order[i] of `from` to i < count. Those that come next begin to arrive: the order goes on until `reach`.
template <class U>
inline void gather_numbers(index count, const U* from, const std::int64_t* order, index reach, U* to) {
  constexpr index ahead = 64;
  for (index i = 0; i < count; i++) {
    __builtin_prefetch(from + order[std::min(i + ahead, reach - 1)], 0, 2);
    to[i] = from[order[i]];
  }
}

// Rows [at, at + count) of a worker, for samples [first, first + count) of the order.
struct Rows {
  index at, first, count;
};

// Samples [first, first + rows) of the order, and what a step on them takes.
template <class T>
struct Batch {
  index number, first, rows;
  double scale;         // turns the sum of weighted losses into the loss
  const Rule<T>* rule;  // null: leave the parameters alone
  const double* numbers;

  // In a worker that has room for all of them.
  Rows all() const { return {0, first, rows}; }
};

// What is copied of samples that are not taken as they lie.
struct Gathered {
  bool y, labels, weight;

  template <class T>
  explicit Gathered(const Samples<T>& s)
      : y(s.order && s.y), labels(s.order && s.labels), weight(s.order && s.weight) {}
  bool any() const { return y || labels; }
  bool operator==(const Gathered& other) const {
    return y == other.y && labels == other.labels && weight == other.weight;
  }
};

// What forward and backward keep of up to `rows` samples: activations and deltas, padded. Samples that are taken as
// they lie are read where they are; of others, targets are gathered, rows of x too if they are short, else read through
// pointers.
template <class T>
class Worker {
 public:
  // With `transposing`, propagate() multiplies by weights that transpose() has prepared.
  Worker(const Network<T>& network, index rows, Gathered gathered, Arena& arena, bool transposing = false)
      : network_(network),
        rows_(rows),
        copies_(network.layers.front().inputs * index(sizeof(T)) <= 128 || network.layers.front().transposed),
        x_(arena.take<T>(copies_ && gathered.any() ? rows * network.layers.front().inputs : 0)),
        next_(rows * network.layers.front().inputs * index(sizeof(T)) <= 256 * 1024 ? rows : 0),
        x_rows_(arena.take<const T*>(!copies_ && gathered.any() ? rows + next_ : 0)) {
    for (const Layer<T>& layer : network.layers) {
      // add_up() writes the last row to its width too.
      const index size = (rows - 1) * layer.stride + std::max(layer.stride, layer.width);
      a_.push_back(arena.take<T>(size));
      d_.push_back(arena.take<T>(size));
      z_.push_back(arena.take<T>(layer.slope_from_input ? size : 0));
    }
    for (size_t i = 0; transposing && i < network.layers.size(); i++) {
      const Layer<T>& layer = network.layers[i];
      transposed_.push_back(arena.take<T>(i && !layer.transposed ? layer.outputs * network.layers[i - 1].width : 0));
    }
    y_ = arena.take<T>(gathered.y ? rows * network.layers.back().stride : 0);
    labels_ = arena.take<std::int64_t>(gathered.labels ? rows : 0);
    weight_ = arena.take<T>(gathered.weight ? rows : 0);
  }

  // Goes on with these samples.
  void take(const Samples<T>& samples) { samples_ = samples; }

  // Below, scratch is that of the calling thread.

  // Rows of samples, whose x this worker reads from column `low` on.
  void gather(Rows rows, index low = 0) {
    if (!samples_.order) return fetch(rows, low);
    const index inputs = network_.layers.front().inputs, outputs = network_.layers.back().outputs;
    const std::int64_t* const from = samples_.order + rows.first;
    const index left = samples_.count - rows.first;
    if (copies_) {
      network_.kernels->gather(rows.count, samples_.count, inputs, samples_.x, from, left, x_ + rows.at * inputs,
                               inputs);
    } else {
      const auto row = [&](index r) { return samples_.x + from[std::min(r, left - 1)] * inputs; };
      for (index r = 0; r < rows.count; r++) x_rows_[rows.at + r] = row(r);
      for (index r = 0; next_ && r < rows.count; r++) x_rows_[next_ + rows.at + r] = row(next_ + r);
    }
    if (samples_.y) {
      const index stride = network_.layers.back().stride;
      network_.kernels->gather(rows.count, samples_.count, outputs, samples_.y, from, left, y_ + rows.at * stride,
                               stride);
    } else {
      gather_numbers(rows.count, samples_.labels, from, left, labels_ + rows.at);
    }
    if (samples_.weight) gather_numbers(rows.count, samples_.weight, from, left, weight_ + rows.at);
  }

  // The sums of layer i over inputs [low, high), without bias, to c (rows, width), or added, summed up, to what is
  // there; then of at most max_row_depth inputs, and not of transposed weights.
  void part_of_sums(size_t i, Rows rows, index low, index high, Parameters<T>& p, bool add, T* c, T* scratch) const {
    const Layer<T>& layer = network_.layers[i];
    Gemm<T> product{rows.count, layer.outputs, high - low, nullptr, 0, p.values.at(layer.weights), 0, nullptr, 0,
                    c,          layer.width,   scratch,    true};
    set_inputs(product, i, rows, low);
    if (layer.transposed) {
      product.b += low;
      product.ldb = layer.panels.width;
      return network_.kernels->few_outputs(product);
    }
    product.panels = &layer.panels;
    product.panel_row = low;
    product.descends = add;
    product.rate = -1;
    network_.kernels->gemm(product);
  }

  // The activations of layer i from such sums, each a term, or added up first with that of the next part.
  void add_up(size_t i, Rows rows, index count, const Term<T>* terms, Parameters<T>& p) {
    const Layer<T>& layer = network_.layers[i];
    network_.kernels->add_terms(rows.count, layer.width, p.values.at(layer.biases), count, terms, sums_of(i, rows.at),
                                layer.stride);
    activate(i, rows);
  }

  // Deltas [low, high) of layer i times their weights, a part of the sums that the deltas below are made of: to c
  // (rows, width of the layer below). low at the beginning of a panel.
  void part_of_deltas(size_t i, Rows rows, index low, index high, Parameters<T>& p, T* c, T* scratch) const {
    const Layer<T>& layer = network_.layers[i];
    const Panels panels{layer.panels.rows, layer.width - low, layer.panels.panel_width};
    Gemm<T> product{rows.count,
                    layer.inputs,
                    high - low,
                    d_[i] + rows.at * layer.stride + low,
                    layer.stride,
                    p.values.at(layer.weights) + low * layer.panels.rows,
                    0,
                    nullptr,
                    0,
                    c,
                    network_.layers[i - 1].width,
                    scratch,
                    true};
    product.panels = &panels;
    network_.kernels->gemm_bt(product);
  }

  // The deltas of layer i from such products, terms as above.
  void add_up_deltas(size_t i, Rows rows, index count, const Term<T>* terms) {
    const Layer<T>& layer = network_.layers[i];
    T* const d = d_[i] + rows.at * layer.stride;
    network_.kernels->add_terms(rows.count, layer.width, nullptr, count, terms, d, layer.stride);
    layer.activation->delta(rows.count, layer.outputs, layer.stride, d, sums_of(i, rows.at), d);
  }

  // Layers `from` and above.
  void forward(size_t from, Rows rows, Parameters<T>& p, T* scratch) {
    for (size_t i = from; i < network_.layers.size(); i++) {
      sums(i, rows, 0, network_.layers[i].outputs, p, scratch);
      activate(i, rows);
    }
  }

  // Of layer i, outputs [low, high) before the activation function; low at the beginning of a panel.
  void sums(size_t i, Rows rows, index low, index high, Parameters<T>& p, T* scratch) {
    const Layer<T>& layer = network_.layers[i];
    const Panels panels{layer.panels.rows, layer.width - low, layer.panels.panel_width};
    Gemm<T> product{rows.count,
                    high - low,
                    layer.inputs,
                    nullptr,
                    0,
                    p.values.at(layer.weights) + low * layer.panels.rows,
                    0,
                    p.values.at(layer.biases) + low,
                    0,
                    sums_of(i, rows.at) + low,
                    layer.stride,
                    scratch,
                    true};
    set_inputs(product, i, rows, 0);
    if (layer.transposed) {
      product.ldb = layer.panels.width;
      network_.kernels->few_outputs(product);
    } else {
      product.panels = &panels;
      network_.kernels->gemm(product);
    }
  }

  // The outputs of layer i from its sums.
  void activate(size_t i, Rows rows) { activate(i, rows, 0, network_.layers[i].outputs); }
  // Outputs [low, high) of an elementwise function.
  void activate(size_t i, Rows rows, index low, index high) {
    const Layer<T>& layer = network_.layers[i];
    const T* const z = sums_of(i, rows.at) + low;
    T* const a = a_[i] + rows.at * layer.stride + low;
    in_columns(rows.count, high - low, layer.outputs, layer.stride, [&](index count, index stride, index offset) {
      layer.activation->value(count, high - low, stride, z + offset, a + offset);
    });
  }

  // The derivatives of the weighted losses, times scale, become the last layer's deltas; the sum of those losses in
  // each block of rows goes to `losses`.
  void output_delta(Rows rows, double scale, double* losses) {
    const Layer<T>& layer = network_.layers.back();
    const index offset = rows.at * layer.stride;
    const bool gathered = samples_.order != nullptr;
    T* const d = d_.back() + offset;
    const T *y = nullptr, *weight = nullptr;
    if (samples_.y) y = gathered ? y_ + offset : samples_.y + rows.first * layer.outputs;
    if (samples_.weight) weight = gathered ? weight_ + rows.at : samples_.weight + rows.first;
    const LossRows<T> part{rows.count,
                           layer.outputs,
                           a_.back() + offset,
                           layer.stride,
                           y,
                           gathered ? layer.stride : layer.outputs,
                           weight,
                           scale,
                           network_.matched,
                           d,
                           losses,
                           gathered ? 0 : (samples_.count - rows.first - rows.count) * layer.outputs};
    if (samples_.labels)
      return network_.kernels->label_cross_entropy(part, gathered ? labels_ + rows.at : samples_.labels + rows.first);
    network_.loss->rows(part);
    if (!network_.matched) layer.activation->delta(rows.count, layer.outputs, layer.stride, d, part.a, d);
  }

  // Transposes the weights for `propagate`, once for all of its calls on these parameters.
  void transpose(Parameters<T>& p) {
    for (size_t i = 1; i < network_.layers.size(); i++) {
      const Layer<T>& layer = network_.layers[i];
      if (layer.transposed) continue;
      const index width = network_.layers[i - 1].width;
      for (index panel = 0; panel < layer.panels.count(); panel++) {
        const index first = panel * layer.panels.panel_width;
        network_.kernels->transpose(layer.inputs, std::min(layer.panels.panel_width, layer.outputs - first),
                                    p.values.at(layer.weights) + layer.panels.begin(panel, 0),
                                    layer.panels.width_of(panel), transposed_[i] + first * width, width);
      }
    }
  }

  // The deltas of the layers below the last one, down to layer `lowest`.
  void propagate(size_t lowest, Rows rows, Parameters<T>& p, T* scratch) {
    for (size_t i = network_.layers.size() - 1; i > lowest; i--)
      propagate(i, rows, 0, network_.layers[i].inputs, p, scratch);
  }

  // The deltas of inputs [low, high) of layer i; low at the beginning of a vector.
  void propagate(size_t i, Rows rows, index low, index high, Parameters<T>& p, T* scratch) {
    const Layer<T>&layer = network_.layers[i], &below = network_.layers[i - 1];
    T* const d = d_[i - 1] + rows.at * below.stride + low;
    const T* const s = sums_of(i - 1, rows.at) + low;
    const T* const weights = p.values.at(layer.weights);
    const T* const ready = layer.transposed ? weights : transposed_.empty() ? nullptr : transposed_[i];
    Gemm<T> product{rows.count,
                    high - low,
                    layer.outputs,
                    d_[i] + rows.at * layer.stride,
                    layer.stride,
                    ready ? ready + low : weights,
                    below.width,
                    nullptr,
                    0,
                    d,
                    below.stride,
                    scratch,
                    true};
    if (!ready) product.panels = &layer.panels;
    product.panel_row = low;
    (ready ? network_.kernels->gemm : network_.kernels->gemm_bt)(product);
    in_columns(rows.count, high - low, layer.inputs, below.stride, [&](index count, index stride, index offset) {
      below.activation->delta(count, high - low, stride, d + offset, s + offset, d + offset);
    });
  }

  // A block of the weights of layer i updated with its gradient over the batch.
  void update_weights(const Batch<T>& batch, size_t i, Block block, Parameters<T>& p, T* scratch) {
    const Layer<T>& layer = network_.layers[i];
    const Rows all = batch.all();
    if (batch.rule && batch.rule->descends && batch.rows <= max_depth)
      return weight_product(i, block, all, nullptr, p.values.at(layer.weights), batch.numbers, scratch);
    if (batch.rule && !layer.transposed && batch.rows < few_rows) return update_panels(batch, i, block, p, scratch);
    weight_gradient(i, block, all, false, p.gradient, scratch);
    layer.for_block(block, [&](index offset, index count) { p.update(batch.rule, batch.numbers, offset, count); });
  }

  // The same of biases [low, high) of layer i, whole vectors.
  void update_biases(const Batch<T>& batch, size_t i, index low, index high, Parameters<T>& p) {
    bias_gradient(i, batch.all(), low, high, false, p.gradient);
    p.update(batch.rule, batch.numbers, network_.layers[i].biases + low, high - low);
  }
  void update_biases(const Batch<T>& batch, size_t i, Parameters<T>& p) {
    update_biases(batch, i, 0, network_.layers[i].width, p);
  }

  // The gradient of a block of the weights of layer i, over rows of samples; added to what is there, or not.
  void weight_gradient(size_t i, Block block, Rows rows, bool add, Segment<T> gradient, T* scratch) {
    T* const g = gradient.at(network_.layers[i].weights);
    weight_product(i, block, rows, add ? g : nullptr, g, nullptr, scratch);
  }

  // The same added, summed up, to what is there; at most max_depth rows.
  void add_weight_gradient(size_t i, Block block, Rows rows, Segment<T> gradient, T* scratch) {
    const double rate = -1;
    weight_product(i, block, rows, nullptr, gradient.at(network_.layers[i].weights), &rate, scratch);
  }

  // Of biases [low, high), whole vectors; or of all.
  void bias_gradient(size_t i, Rows rows, index low, index high, bool add, Segment<T> gradient) const {
    const Layer<T>& layer = network_.layers[i];
    T* const sums = gradient.at(layer.biases) + low;
    if (!add) std::fill_n(sums, high - low, T(0));
    const index columns = std::min(high - low, layer.stride);
    network_.kernels->add_rows(rows.count, columns, layer.stride, d_[i] + rows.at * layer.stride + low, sums);
  }
  void bias_gradient(size_t i, Rows rows, bool add, Segment<T> gradient) const {
    bias_gradient(i, rows, 0, network_.layers[i].width, add, gradient);
  }

  // Of all weights and biases.
  void gradients(Rows rows, bool add, Segment<T> gradient, T* scratch) {
    for (size_t i = 0; i < network_.layers.size(); i++) {
      weight_gradient(i, network_.layers[i].all(), rows, add, gradient, scratch);
      bias_gradient(i, rows, add, gradient);
    }
  }

  static index sample(const Samples<T>& samples, index position) {
    return samples.order ? index(samples.order[position]) : position;
  }

 private:
  // Of samples: from here on a product of inputs and deltas packs the former, once for all columns.
  static constexpr index few_rows = 48;

  // update_weights for few rows of samples. The gradient is little work then, and would be most of what moves through
  // the caches; so one of some panels after another has the same place, and is used at once.
  void update_panels(const Batch<T>& batch, size_t i, Block block, Parameters<T>& p, T* scratch) {
    const Layer<T>& layer = network_.layers[i];
    const index rows = block.high - block.low, panel_width = layer.panels.panel_width;
    const index at_once = std::max<index>(packed_size<T> / 4 / std::max<index>(rows * panel_width, 1), 1) * panel_width;
    // Somewhere in the gradient that is this block's.
    T* const gradient = p.gradient.at(layer.weights) + block.low * layer.width + block.first * rows;
    Gemm<T> product = inputs_by_deltas(i, block, batch.all(), scratch);
    const T* const deltas = product.b;
    for (index first = block.first; first < block.end; first += at_once) {
      const index width = std::min(at_once, block.end - first);
      const Panels panels{rows, width, panel_width};
      product.columns = std::min(width, layer.outputs - first);
      product.b = deltas + (first - block.first);
      product.c = gradient;
      product.panels = &panels;
      network_.kernels->gemm_at(product);
      for (index panel = 0; panel < panels.count(); panel++)
        p.update(batch.rule, batch.numbers, layer.weights + layer.panels.begin(first / panel_width + panel, block.low),
                 rows * panels.width_of(panel), gradient + panels.begin(panel, 0));
    }
  }

  // A block of c (inputs, width) = start + inputs^T deltas, or with a rate c -= *rate inputs^T deltas; of c^T
  // where the weights are transposed.
  void weight_product(size_t i, Block block, Rows rows, const T* start, T* c, const double* rate, T* scratch) {
    const Layer<T>& layer = network_.layers[i];
    if (layer.transposed) return transposed_weight_product(i, block, rows, start, c, rate);
    const index begin = block.first * layer.inputs;
    const Panels panels{layer.inputs, block.end - block.first, layer.panels.panel_width};
    Gemm<T> product = inputs_by_deltas(i, block, rows, scratch);
    product.start = start ? start + begin : nullptr;
    product.c = c + begin;
    product.panels = &panels;
    product.panel_row = block.low;
    product.descends = rate != nullptr;
    product.rate = rate ? T(*rate) : T(0);
    network_.kernels->gemm_at(product);
  }

  // What a block of inputs^T deltas of layer i is computed from; where it goes is left open.
  Gemm<T> inputs_by_deltas(size_t i, Block block, Rows rows, T* scratch) const {
    const Layer<T>& layer = network_.layers[i];
    Gemm<T> product{block.high - block.low,
                    std::min(block.end, layer.outputs) - block.first,
                    rows.count,
                    nullptr,
                    0,
                    d_[i] + rows.at * layer.stride + block.first,
                    layer.stride,
                    nullptr,
                    0,
                    nullptr,
                    0,
                    scratch,
                    true};
    set_inputs(product, i, rows, block.low);
    return product;
  }

  void transposed_weight_product(size_t i, Block block, Rows rows, const T* start, T* c, const double* rate) {
    const Layer<T>& layer = network_.layers[i];
    const Matrix inputs = inputs_of(i, rows, block.first);
    const index width = layer.panels.width, begin = block.low * width + block.first;
    Gemm<T> product{block.high - block.low,
                    std::min(block.end, layer.inputs) - block.first,
                    rows.count,
                    d_[i] + rows.at * layer.stride + block.low,
                    layer.stride,
                    inputs.data,
                    inputs.stride,
                    start ? start + begin : nullptr,
                    width,
                    c + begin,
                    width,
                    nullptr,
                    i > 0};
    product.descends = rate != nullptr;
    product.rate = rate ? T(*rate) : T(0);
    network_.kernels->few_outputs_at(product);
  }

  // Samples of the next step, taken as they lie, begin to arrive if rows of x are long: from column `low` on the
  // processor itself follows them. Shorter ones, of which a product reads several at once, it finds in time. Inlined,
  // or the compiler could leave out a call that changes nothing.
  __attribute__((always_inline)) void fetch(Rows rows, index low) const {
    constexpr index line = 64 / sizeof(T), lines = 4;
    const index inputs = network_.layers.front().inputs;
    if (inputs <= lines * line) return;
    const index first = rows.first + rows_, last = std::min(first + rows.count, samples_.count);
    for (index i = 0; i < lines; i++) {
      for (index r = first; r < last; r++) __builtin_prefetch(samples_.x + r * inputs + low + i * line);
    }
  }

  // Where the sums of layer i from row `at` on go; and then what its slopes come from: these, or the outputs in their
  // place.
  T* sums_of(size_t i, index at) {
    const Layer<T>& layer = network_.layers[i];
    return (layer.slope_from_input ? z_ : a_)[i] + at * layer.stride;
  }

  // f(rows, stride, offset) on `columns` of rows: all at once if there are no more, else row by row, since the others
  // may be another thread's.
  template <class F>
  static void in_columns(index rows, index columns, index all, index stride, F f) {
    if (columns == all) return f(rows, stride, 0);
    for (index r = 0; r < rows; r++) f(1, columns, r * stride);
  }

  struct Matrix {
    const T* data;
    index stride;
  };

  // The inputs of layer i from number `low` on, unless they are samples behind pointers: the outputs of the layer
  // below, or the samples.
  Matrix inputs_of(size_t i, Rows rows, index low) const {
    const index stride = i ? network_.layers[i - 1].stride : network_.layers[0].inputs;
    if (i) return {a_[i - 1] + rows.at * stride + low, stride};
    return {(samples_.order ? x_ + rows.at * stride : samples_.x + rows.first * stride) + low, stride};
  }
  void set_inputs(Gemm<T>& product, size_t i, Rows rows, index low) const {
    if (!i && samples_.order && !copies_) {
      product.a_rows = x_rows_ + rows.at;
      product.a_next = next_;
      product.a_offset = low;
      return;
    }
    const Matrix inputs = inputs_of(i, rows, low);
    product.a = inputs.data;
    product.lda = inputs.stride;
  }

  const Network<T>& network_;
  Samples<T> samples_{};
  const index rows_;
  const bool copies_;  // rows of x, else pointers to them
  T* const x_;
  const index next_;  // how far in x_rows_ those of the next step are, if they stay in the caches until then; else zero
  const T** const x_rows_;
  std::vector<T*> a_, d_, z_, transposed_;
  T *y_, *weight_;
  std::int64_t* labels_;
};

}  // namespace pyfastnn
