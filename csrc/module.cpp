// Python bindings: unpack the arrays, release the interpreter lock, call. No mathematics, and no
// checks: pyfastnn/kernels.py has made them, and this module is private.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <variant>

#include "dense.hpp"
#include "dispatch.hpp"
#include "fast.hpp"
#include "order.hpp"
#include "plan.hpp"
#include "teams.hpp"

namespace py = pybind11;

namespace pyfastnn {
namespace {

using Array = py::array;
using OptionalArray = std::optional<py::array>;

template <class F>
auto without_lock(double work, F f) {
  if (work < quick_multiply_adds) return f();
  py::gil_scoped_release release;
  return f();
}

// f(float{}) or f(double{}), as the array's dtype says.
template <class F>
auto by_dtype(const Array& array, F f) {
  return array.itemsize() == index(sizeof(float)) ? f(float{}) : f(double{});
}

template <class T>
const T* input(const Array& array) {
  return static_cast<const T*>(array.data());
}
template <class T>
T* output(Array& array) {
  return static_cast<T*>(array.mutable_data());
}
template <class T>
T* output(OptionalArray& array) {
  return array ? output<T>(*array) : nullptr;
}

LayerShape layer_shape(const Array& rows, const Array& w) { return {rows.shape(0), w.shape(0), w.shape(1)}; }

class Kernels {
 public:
  explicit Kernels(const std::string& isa) {
    std::string present;
    for (const InstructionSet& set : instruction_sets()) {
      if (set.name == isa) set_ = &set;
      present += (present.empty() ? "" : ", ") + set.name;
    }
    if (!set_) throw py::value_error("no instruction set '" + isa + "' on this machine; present: " + present);
  }

  template <class T>
  const KernelTable<T>& table() const {
    return set_->table<T>();
  }

  // Of the instruction sets up to this one that give the same bits, the one for a network of these sizes.
  template <class T>
  const KernelTable<T>& table_for(const std::vector<index>& sizes) const {
    const index lanes = table<T>().lanes;
    for (const InstructionSet& set : instruction_sets()) {
      const KernelTable<T>& narrow = set.table<T>();
      if (set.fused && set_->fused && narrow.lanes < lanes && narrow_suits(sizes, narrow.lanes, lanes)) return narrow;
    }
    return table<T>();
  }

  void dense_forward(const Array& x, const Array& w, const Array& b, int activation, OptionalArray z, Array a) const {
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const LayerShape shape = layer_shape(x, w);
      T *z_data = output<T>(z), *a_data = output<T>(a);
      without_lock(work(shape), [&] {
        pyfastnn::dense_forward(table<T>(), shape, input<T>(x), input<T>(w), input<T>(b),
                                table<T>().activations[activation], z_data, a_data);
      });
    });
  }

  void activation_delta(const Array& d, const Array& w, const Array& s, int activation, Array out) const {
    by_dtype(d, [&](auto zero) {
      using T = decltype(zero);
      const LayerShape shape = layer_shape(d, w);
      T* out_data = output<T>(out);
      without_lock(work(shape), [&] {
        pyfastnn::activation_delta(table<T>(), shape, input<T>(d), input<T>(w), input<T>(s),
                                   table<T>().activations[activation], out_data);
      });
    });
  }

  void dense_backward(const Array& x, const Array& w, const Array& d, Array dw, Array db, OptionalArray dx) const {
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const LayerShape shape = layer_shape(x, w);
      T *dw_data = output<T>(dw), *db_data = output<T>(db), *dx_data = output<T>(dx);
      without_lock(2 * work(shape), [&] {
        pyfastnn::dense_backward(table<T>(), shape, input<T>(x), input<T>(w), input<T>(d), dw_data, db_data, dx_data);
      });
    });
  }

  double output_delta(const Array& a, const Array& y, const OptionalArray& weight, double scale, int loss,
                      int activation, bool matched, OptionalArray d) const {
    return by_dtype(a, [&](auto zero) {
      using T = decltype(zero);
      const bool labels = y.dtype().kind() == 'i';
      const Targets<T> targets{labels ? nullptr : input<T>(y), labels ? input<std::int64_t>(y) : nullptr,
                               weight ? input<T>(*weight) : nullptr};
      const index rows = a.shape(0), outputs = a.shape(1);
      T* d_data = output<T>(d);
      return without_lock(32 * double(rows) * double(outputs), [&] {
        return pyfastnn::output_delta(table<T>(), rows, outputs, input<T>(a), targets, scale, table<T>().losses[loss],
                                      table<T>().activations[activation], matched, d_data);
      });
    });
  }

  void update(int rule, Array w, const Array& g, std::vector<Array> slots, const std::vector<double>& numbers) const {
    by_dtype(w, [&](auto zero) {
      using T = decltype(zero);
      T *w_data = output<T>(w), *slot_data[max_slots] = {};
      for (size_t i = 0; i < slots.size(); i++) slot_data[i] = output<T>(slots[i]);
      const index size = w.size();
      without_lock(double(size), [&] {
        for_ranges(size, 1, [&](index first, index count) {
          T* part[max_slots] = {};
          for (size_t i = 0; i < slots.size(); i++) part[i] = slot_data[i] + first;
          table<T>().rules[rule].apply(count, w_data + first, input<T>(g) + first, part, numbers.data());
        });
      });
    });
  }

  // Multiply-adds a second in the dtype of the array, over about `work` of them.
  double multiply_add_rate(const Array& like, double work, int threads) const {
    return by_dtype(like, [&](auto zero) {
      const auto& kernels = table<decltype(zero)>();
      const auto rounds = index(work / double(kernels.multiply_adds_per_round));
      return double(rounds) * double(kernels.multiply_adds_per_round) /
             seconds_of(threads, rounds, [&](index share, int) { return kernels.multiply_add_rounds(share); });
    });
  }

  // Bytes a second of reading the rows of a float32 array, one row a thread, `passes` times in all.
  double read_rate(const Array& rows, index passes) const {
    const index count = rows.shape(1);
    const float* data = input<float>(rows);
    const double seconds = seconds_of(int(rows.shape(0)), passes, [&](index share, int thread) {
      float sum = 0;
      for (index pass = 0; pass < share; pass++) sum += set_->f32->read_all(count, data + thread * count);
      return sum;
    });
    return double(passes) * double(count) * sizeof(float) / seconds;
  }

  std::vector<std::string> activations() const { return names(set_->f32->activations, set_->f32->activation_count); }
  std::vector<std::string> losses() const { return names(set_->f32->losses, set_->f32->loss_count); }
  std::vector<std::string> rules() const { return names(set_->f32->rules, set_->f32->rule_count); }

 private:
  // Wall time of f(share, thread) on shares of `count` that add up to it.
  template <class F>
  static double seconds_of(int threads, index count, F f) {
    constexpr index shares = 64;
    py::gil_scoped_release release;
    std::atomic<double> sink{0};  // keeps the results, and with them the work, alive
    const auto start = std::chrono::steady_clock::now();
    threads::for_each(shares, threads, [&](index i, int thread) {
      sink = double(f(count * (i + 1) / shares - count * i / shares, thread));
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  template <class Entry>
  static std::vector<std::string> names(const Entry* entries, int count) {
    std::vector<std::string> list;
    for (int i = 0; i < count; i++) list.emplace_back(entries[i].name);
    return list;
  }

  const InstructionSet* set_ = nullptr;
};

// A network laid out for one instruction set and dtype; with any_width, maybe a narrower one than was given.
template <class T>
Samples<T> samples_of(const Array& x, const Array& y, const OptionalArray& weight, const std::int64_t* order) {
  const bool labels = y.dtype().kind() == 'i';
  return {input<T>(x),
          labels ? nullptr : input<T>(y),
          labels ? input<std::int64_t>(y) : nullptr,
          weight ? input<T>(*weight) : nullptr,
          order,
          x.shape(0)};
}

using AnyTraining = std::variant<std::unique_ptr<Training<float>>, std::unique_ptr<Training<double>>>;

class Plan {
  // f(network, T{}) with the network in its dtype.
  template <class F>
  auto visit(F f) const {
    if (const auto* network = std::get_if<Network<float>>(&network_)) return f(*network, 0.0f);
    return f(std::get<Network<double>>(network_), 0.0);
  }

 public:
  Plan(const Kernels& kernels, const Array& like, const std::vector<index>& sizes, const std::vector<int>& activations,
       const std::vector<bool>& slopes_from_input, int loss, bool matched, bool mean_over_outputs, bool any_width) {
    by_dtype(like, [&](auto zero) {
      using T = decltype(zero);
      network_ = Network<T>(any_width ? kernels.table_for<T>(sizes) : kernels.table<T>(), sizes, activations,
                            slopes_from_input, loss, matched, mean_over_outputs);
    });
  }

  static py::object quick(py::object self, Array params, py::list everywhere, py::object backend) {
    const AnyNetwork& network = self.cast<const Plan&>().network_;
    return bound_quick(network, std::move(self), std::move(params), std::move(everywhere), std::move(backend));
  }

  void predict(const Array& params, const Array& x, Array out) const {
    visit([&](auto& network, auto zero) {
      using T = decltype(zero);
      T* to = output<T>(out);
      const index count = x.shape(0);
      without_lock(double(count) * double(network.compact_size),
                   [&] { pyfastnn::predict(network, input<T>(params), input<T>(x), count, to); });
    });
  }

  double loss_and_gradient(const Array& params, const Array& x, const Array& y, const OptionalArray& weight,
                           Array gradient) const {
    return visit([&](auto& network, auto zero) {
      using T = decltype(zero);
      const Samples<T> samples = samples_of<T>(x, y, weight, nullptr);
      T* to = output<T>(gradient);
      return without_lock(3 * double(samples.count) * double(network.compact_size), [&] {
        return pyfastnn::loss_and_gradient(network, spare<T>(), input<T>(params), samples, to);
      });
    });
  }

  AnyTraining training(Array params, std::vector<Array> slots, index batch, int rule) const {
    return visit([&](auto& network, auto zero) -> AnyTraining {
      using T = decltype(zero);
      T* slot_data[max_slots] = {};
      for (size_t i = 0; i < slots.size(); i++) slot_data[i] = output<T>(slots[i]);
      return std::make_unique<Training<T>>(network, spare<T>(), output<T>(params), slot_data,
                                           network.kernels->rules[rule], batch);
    });
  }

 private:
  template <class T>
  Spare<T>& spare() const {
    if constexpr (sizeof(T) == sizeof(float))
      return spare_f32_;
    else
      return spare_f64_;
  }

  AnyNetwork network_;
  mutable Spare<float> spare_f32_;
  mutable Spare<double> spare_f64_;
};

// A fit under way. It keeps the arrays that it was given.
class Fit {
 public:
  Fit(const Plan& plan, Array params, std::vector<Array> slots, index batch, int rule)
      : params_(params), slots_(slots), training_(plan.training(params, slots, batch, rule)) {}

  double epoch(const Array& x, const Array& y, const OptionalArray& weight, const OptionalArray& order,
               const Array& numbers) {
    return std::visit([&](auto& training) { return epoch_of(*training, x, y, weight, order, numbers); }, training_);
  }

  void pull() {
    py::gil_scoped_release release;
    std::visit([](auto& training) { training->pull(); }, training_);
  }

  void push() {
    std::visit([](auto& training) { training->push(); }, training_);
  }

 private:
  template <class T>
  static double epoch_of(Training<T>& training, const Array& x, const Array& y, const OptionalArray& weight,
                         const OptionalArray& order, const Array& numbers) {
    const Samples<T> samples = samples_of<T>(x, y, weight, order ? input<std::int64_t>(*order) : nullptr);
    const double* steps = input<double>(numbers);
    py::gil_scoped_release release;
    return training.epoch(samples, steps);
  }

  Array params_;
  std::vector<Array> slots_;
  AnyTraining training_;
};

// The caller holds the lock of the bit generator.
py::array_t<std::int64_t> permutation_of(const py::capsule& generator, index count) {
  const auto* const bits = static_cast<const BitGenerator*>(PyCapsule_GetPointer(generator.ptr(), "BitGenerator"));
  if (!bits) throw py::error_already_set();
  py::array_t<std::int64_t> order(count);
  std::int64_t* const to = order.mutable_data();
  without_lock(64 * double(count), [&] { pyfastnn::permutation(*bits, count, to); });
  return order;
}

std::vector<std::string> instruction_set_names() {
  std::vector<std::string> list;
  for (const InstructionSet& set : instruction_sets()) list.push_back(set.name);
  return list;
}

}  // namespace
}  // namespace pyfastnn

PYBIND11_MODULE(_core, m) {
  using pyfastnn::Kernels;
  m.attr("compiler") = PYFASTNN_COMPILER;
  pyfastnn::add_fast_functions(m.ptr());
  m.def("quick_method", pyfastnn::quick_method, "quick_method(attribute, function) -> method");
  m.def("instruction_sets", pyfastnn::instruction_set_names, "Those of this machine, the best last.");
  m.def("permutation", pyfastnn::permutation_of, "Generator.permutation(n) from the capsule of its bit generator.");
  m.def("set_thread_limit", pyfastnn::threads::set_limit, "0: automatic.");
  m.def(
      "oversubscribe",
      [](bool on) {
        pyfastnn::threads::oversubscribe(on);
        pyfastnn::threads::Neighbours::forget();
      },
      "For tests: more threads than there are processors, and teams as if none had met a neighbour.");
  m.def("thread_limit", pyfastnn::threads::limit);
  m.def("explain_threads", pyfastnn::threads::explain);
  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&>())
      .def("activations", &Kernels::activations)
      .def("losses", &Kernels::losses)
      .def("rules", &Kernels::rules)
      .def("dense_forward", &Kernels::dense_forward)
      .def("activation_delta", &Kernels::activation_delta)
      .def("dense_backward", &Kernels::dense_backward)
      .def("output_delta", &Kernels::output_delta)
      .def("update", &Kernels::update)
      .def("multiply_add_rate", &Kernels::multiply_add_rate)
      .def("read_rate", &Kernels::read_rate);
  py::class_<pyfastnn::Plan>(m, "Plan")
      .def(py::init<const Kernels&, const py::array&, const std::vector<pyfastnn::index>&, const std::vector<int>&,
                    const std::vector<bool>&, int, bool, bool, bool>())
      .def("quick", &pyfastnn::Plan::quick)
      .def("predict", &pyfastnn::Plan::predict)
      .def("loss_and_gradient", &pyfastnn::Plan::loss_and_gradient);
  py::class_<pyfastnn::Fit>(m, "Fit")
      .def(py::init<const pyfastnn::Plan&, py::array, std::vector<py::array>, pyfastnn::index, int>(),
           py::keep_alive<1, 2>())
      .def("epoch", &pyfastnn::Fit::epoch)
      .def("pull", &pyfastnn::Fit::pull)
      .def("push", &pyfastnn::Fit::push);
}
