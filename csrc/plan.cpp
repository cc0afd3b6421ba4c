#include "plan.hpp"

#include <algorithm>

#include "dense.hpp"

namespace pyfastnn {
namespace {

index round_up(index size, index unit) { return (size + unit - 1) / unit * unit; }

// Whether the weights of layer i are transposed. From eight inputs on, vectors along them are filled. A first layer's
// inputs are not padded, and of shuffled samples have to be copied: only if it is all there is, and does not copy much.
// The same for every instruction set, since sums take another order then.
bool is_transposed(const std::vector<index>& sizes, size_t i) {
  constexpr index most_copied = 256;
  const bool suits = i > 0 || (sizes.size() == 2 && sizes[0] <= most_copied);
  return suits && sizes[i] >= 8 && sizes[i + 1] <= most_transposed;
}

// Vectors that the products of a step take for each row of the batch: forward, gradients, deltas.
index vectors(const std::vector<index>& sizes, index lanes) {
  const auto filled = [&](index size) { return round_up(size, lanes) / lanes; };
  index count = 0;
  for (size_t i = 0; i + 1 < sizes.size(); i++) {
    const index across = sizes[i + 1] * filled(sizes[i]);
    count += 2 * (is_transposed(sizes, i) ? across : sizes[i] * filled(sizes[i + 1]));
    if (i) count += across;
  }
  return count;
}

}  // namespace

bool narrow_suits(const std::vector<index>& sizes, index narrow, index wide) {
  // Measured with AVX2 and AVX-512: a quarter more of them takes no more time.
  return 4 * vectors(sizes, narrow) <= 5 * vectors(sizes, wide);
}

template <class T>
Network<T>::Network(const KernelTable<T>& table, const std::vector<index>& sizes, const std::vector<int>& activations,
                    const std::vector<bool>& slopes_from_input, int loss_id, bool matched_, bool mean)
    : kernels(&table),
      loss(&table.losses[loss_id]),
      matched(matched_),
      mean_over_outputs(mean),
      row_elements(sizes[0]) {
  for (size_t i = 0; i + 1 < sizes.size(); i++) {
    Layer<T> layer{};
    layer.inputs = sizes[i];
    layer.outputs = sizes[i + 1];
    layer.width = layer.stride = round_up(layer.outputs, table.lanes);
    // Rows a multiple of 256 bytes apart would meet in few sets of the first-level cache.
    if (layer.stride * sizeof(T) >= 512 && layer.stride * sizeof(T) % 256 == 0) layer.stride += 64 / sizeof(T);
    layer.transposed = is_transposed(sizes, i);
    const index row = round_up(layer.inputs, table.lanes);
    layer.panels =
        layer.transposed ? Panels{layer.outputs, row, row} : Panels{layer.inputs, layer.width, 2 * table.lanes};
    layer.weights = padded_size;
    layer.biases = layer.weights + layer.panels.rows * layer.panels.width;
    padded_size = round_up(layer.biases + layer.width, 64 / sizeof(T));
    compact_size += (layer.inputs + 1) * layer.outputs;
    widest = std::max(widest, layer.outputs);
    row_elements += layer.outputs;
    layer.activation = &table.activations[activations[i]];
    layer.slope_from_input = slopes_from_input[i];
    // Results of dot products, which a loss and most functions take element by element. Padded, they would be padding
    // mostly.
    if (layer.transposed && i + 2 == sizes.size() && layer.activation->elementwise) layer.stride = layer.outputs;
    layers.push_back(layer);
  }
}

namespace {

// f(rows, columns, offset into the compact weights, offset into the padded parameters, row stride there) for pieces
// of every panel of weights. Few rows side by side: a panel from end to end would be pieces of distant pages.
template <class T, class F>
void for_pieces(const Layer<T>& layer, F f) {
  constexpr index most_rows = 8;
  const Panels& panels = layer.panels;
  for_ranges(layer.inputs, layer.width, [&](index begin, index count) {
    for (index row = begin; row < begin + count; row += most_rows) {
      for (index p = 0; p < panels.count(); p++) {
        const index first = p * panels.panel_width;
        f(std::min(most_rows, begin + count - row), std::min(panels.panel_width, layer.outputs - first),
          row * layer.outputs + first, layer.weights + panels.begin(p, row), panels.width_of(p));
      }
    }
  });
}

}  // namespace

template <class T>
void Network<T>::pad(const T* compact, T* padded) const {
  for (const Layer<T>& layer : layers) {
    if (layer.transposed)
      kernels->transpose(layer.inputs, layer.outputs, compact, layer.outputs, padded + layer.weights,
                         layer.panels.width);
    else
      for_pieces(layer, [&](index rows, index columns, index from, index to, index width) {
        kernels->spread(rows, columns, compact + from, layer.outputs, padded + to, width);
      });
    compact += layer.inputs * layer.outputs;
    kernels->spread(1, layer.outputs, compact, 0, padded + layer.biases, 0);
    compact += layer.outputs;
  }
}

template <class T>
void Network<T>::unpad(const T* padded, T* compact) const {
  for (const Layer<T>& layer : layers) {
    if (layer.transposed) {
      const T* const from = padded + layer.weights;
      for (index i = 0; i < layer.inputs; i++) {
        for (index j = 0; j < layer.outputs; j++) compact[i * layer.outputs + j] = from[j * layer.panels.width + i];
      }
    } else {
      for_pieces(layer, [&](index rows, index columns, index to, index from, index width) {
        for (index row = 0; row < rows; row++)
          std::copy_n(padded + from + row * width, columns, compact + to + row * layer.outputs);
      });
    }
    compact += layer.inputs * layer.outputs;
    std::copy_n(padded + layer.biases, layer.outputs, compact);
    compact += layer.outputs;
  }
}

template <class T>
void predict(const Network<T>& network, const T* params, const T* x, index count, T* out) {
  // Multiply-adds, and passages, which stand for the activation functions too.
  const double work =
      double(count) * double(network.compact_size) + passage(double(count) * double(network.row_elements));
  const int threads = threads_for<T>(work);
  const Tiles tiles(count, threads, max_tile_rows);
  const index tile_size = max_tile_rows * network.widest;
  // Two rows of tiles in turn: the outputs of one layer are the inputs of the next.
  T* const scratch = scratch_for<T>(threads, scratch_size<T> + 2 * tile_size);
  const auto predict_rows = [&](index first, index rows, T* own) {
    Gemm<T> product{};
    product.rows = rows;
    product.a = x + first * network.layers.front().inputs;
    product.b = params;
    product.scratch = own;
    for (size_t i = 0; i < network.layers.size(); i++) {
      const Layer<T>& layer = network.layers[i];
      const bool last = i + 1 == network.layers.size();
      product.c = last ? out + first * layer.outputs : own + scratch_size<T> + index(i % 2) * tile_size;
      product.depth = product.lda = layer.inputs;
      product.columns = product.ldb = product.ldc = layer.outputs;
      product.start = product.b + layer.inputs * layer.outputs;
      network.kernels->gemm(product);
      layer.activation->value(product.rows, layer.outputs, layer.outputs, product.c, product.c);
      product.a = product.c;
      product.b = product.start + layer.outputs;
    }
  };
  if (tiles.count == 1) return predict_rows(0, count, scratch);  // without divisions, which a row would notice
  threads::for_each(tiles.count, threads, [&](index tile, int thread) {
    const index first = tiles.begin(tile);
    predict_rows(first, tiles.begin(tile + 1) - first, scratch + thread * (scratch_size<T> + 2 * tile_size));
  });
}

template struct Network<float>;
template struct Network<double>;
template void predict(const Network<float>&, const float*, const float*, index, float*);
template void predict(const Network<double>&, const double*, const double*, index, double*);

}  // namespace pyfastnn
