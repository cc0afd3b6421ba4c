// Fits on NumPy arrays, which have been checked.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "draws.hpp"
#include "networks.hpp"
#include "teams.hpp"

namespace pyfastnn {

// A fit under way. It keeps the arrays that it was given. The state is an OptimizerState of pyfastnn/optimizers.py,
// whose steps it counts on.
class Fit {
 public:
  using Figures = std::pair<std::vector<double>, std::vector<double>>;  // losses and seconds of epochs

  Fit(const Plan& plan, Array params, index batch, int rule, py::object state)
      : params_(params),
        slots_(py::cast<std::vector<Array>>(state.attr(names().slots))),
        state_(std::move(state)),
        batch_(batch),
        training_(plan.training(params_, slots_, batch, rule)) {}

  double epoch(const Array& x, const Array& y, const OptionalArray& weight, const OptionalArray& order) {
    const index steps = steps_of(x);
    const Array numbers = state_.attr(names().numbers)(steps);
    const double loss = visit(training_, [&](auto& training, auto zero) {
      using T = decltype(zero);
      const auto samples = samples_of<T>(x, y, weight, order ? input<std::int64_t>(*order) : nullptr);
      const double* const numbers_data = input<double>(numbers);
      py::gil_scoped_release release;
      return training.epoch(samples, numbers_data);
    });
    count(steps);
    return loss;
  }

  // Each epoch in an order drawn from a bit generator or, where that is None, as the samples lie; the seconds are
  // without the drawing. Between some, it looks for signals, such as of an impatient user.
  Figures epochs(const Array& x, const Array& y, const OptionalArray& weight, index total,
                 const py::object& bit_generator) {
    constexpr double interval = 0.02;       // seconds, about, between two looks
    constexpr double most_steps = 1 << 14;  // between two looks, for whose numbers there must be memory
    const std::unique_ptr<std::int64_t[]> order(bit_generator.is_none() ? nullptr : new std::int64_t[x.shape(0)]);
    Figures figures;
    double slice = 1;  // epochs
    for (index done = 0; done < total;) {
      const index now = std::min(total - done, std::max(index(slice), index(1)));
      const auto start = threads::Clock::now();
      run(x, y, weight, now, bit_generator, order.get(), figures);
      done += now;
      const double seconds = std::chrono::duration<double>(threads::Clock::now() - start).count();
      slice = std::min(interval * double(now) / seconds, most_steps / double(steps_of(x)));
      if (PyErr_CheckSignals()) throw py::error_already_set();
    }
    return figures;
  }

  void pull() {
    py::gil_scoped_release release;
    visit(training_, [](auto& training, auto) { training.pull(); });
  }

  void push() {
    visit(training_, [](auto& training, auto) { training.push(); });
  }

 private:
  // Of the state's attributes.
  struct Names {
    py::handle slots = PyUnicode_InternFromString("slots"), numbers = PyUnicode_InternFromString("numbers"),
               step = PyUnicode_InternFromString("step");
  };
  static const Names& names() {
    static const Names kept;
    return kept;
  }

  index steps_of(const Array& x) const { return (x.shape(0) + batch_ - 1) / batch_; }
  void count(index steps) { state_.attr(names().step) = py::int_(py::cast<index>(state_.attr(names().step)) + steps); }

  // So many epochs, whose figures it adds.
  void run(const Array& x, const Array& y, const OptionalArray& weight, index epochs, const py::object& bit_generator,
           std::int64_t* order, Figures& figures) {
    const index steps = steps_of(x);
    const Array numbers = state_.attr(names().numbers)(epochs * steps);
    std::optional<Draws> draws;
    if (order) draws.emplace(bit_generator, double(epochs) * double(x.shape(0)));
    visit(training_, [&](auto& training, auto zero) {
      const auto samples = samples_of<decltype(zero)>(x, y, weight, order);
      const double* const numbers_data = input<double>(numbers);
      const index stride = steps * numbers.shape(1);
      py::gil_scoped_release release;
      for (index i = 0; i < epochs; i++) {
        if (order) draws->permutation(samples.count, order);
        const auto start = threads::Clock::now();
        figures.first.push_back(training.epoch(samples, numbers_data + i * stride));
        figures.second.push_back(std::chrono::duration<double>(threads::Clock::now() - start).count());
      }
    });
    count(epochs * steps);
    if (draws) draws->give_back();
  }

  const Array params_;
  const std::vector<Array> slots_;
  const py::object state_;
  const index batch_;
  AnyTraining training_;
};

// Epochs that nobody watches; see Fit::epochs.
inline Fit::Figures fit(const Plan& plan, const Array& params, const Array& x, const Array& y,
                        const OptionalArray& weight, index epochs, index batch, int rule, const py::object& state,
                        const py::object& rng) {
  Fit under_way(plan, params, batch, rule, state);
  struct Pulled {
    ~Pulled() { fit.pull(); }
    Fit& fit;
  } pulled{under_way};
  return under_way.epochs(x, y, weight, epochs, rng.is_none() ? rng : py::object(rng.attr("bit_generator")));
}

}  // namespace pyfastnn
