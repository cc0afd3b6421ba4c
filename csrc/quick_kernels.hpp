// What the quick ways need to know of a backend and of the lists of activations and losses.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "ready.hpp"

namespace pyfastnn {

enum class Pair { undefined, defined, matched };  // of a loss and an output activation

struct LossFacts {
  std::optional<std::pair<double, double>> interval;  // of targets
  bool classes;                                       // labels, or rows that sum to 1
  bool mean_over_outputs;
  std::vector<Pair> pairs;  // by the number of the activation
};

// Numbers by name, and facts by number.
struct Lists {
  const Kernels& kernels;
  const py::dict activations, losses;
  const std::vector<bool> slopes_from_input;
  const std::vector<LossFacts> loss_facts;
};

// Those of the backend, an object of Python; null where it has none.
const Lists* lists_of(PyObject* backend);

// Whether y, labels or a ready matrix, can be the targets of outputs of that shape and type; with `flat`, values of a
// single output (rows,) too.
bool targets_fit(const LossFacts&, ReadyMatrix outputs, PyObject* y, bool flat = false);

// Whether these, or None, can be the weights of so many samples of that type.
bool weights_fit(PyObject* weight, int type, index samples);

}  // namespace pyfastnn
