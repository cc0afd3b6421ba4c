// Python bindings: unpack the arrays, release the interpreter lock, call. No mathematics, and no
// checks: pyfastnn/kernels.py has made them, and this module is private.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "dense.hpp"
#include "dispatch.hpp"

namespace py = pybind11;

namespace pyfastnn {
namespace {

using Array = py::array;
using OptionalArray = std::optional<py::array>;

// Releasing the interpreter lock costs more than it gives below a few microseconds of work.
constexpr double release_multiply_adds = 1e5;

template <class F>
auto without_lock(double work, F f) {
  if (work < release_multiply_adds) return f();
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
    if constexpr (sizeof(T) == sizeof(float))
      return *set_->f32;
    else
      return *set_->f64;
  }

  void dense_forward(const Array& x, const Array& w, const Array& b, int activation, OptionalArray z, Array a) const {
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const LayerShape shape = layer_shape(x, w);
      T *z_data = output<T>(z), *a_data = output<T>(a);
      without_lock(multiply_adds(shape), [&] {
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
      without_lock(multiply_adds(shape), [&] {
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
      without_lock(2 * multiply_adds(shape), [&] {
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
      return without_lock(8 * double(rows) * double(outputs), [&] {
        return pyfastnn::output_delta(table<T>(), rows, outputs, input<T>(a), targets, scale,
                                      table<T>().losses[loss], table<T>().activations[activation], matched, d_data);
      });
    });
  }

  void sgd(Array w, const Array& g, double rate) const {
    update(w, [&](auto* w_data, index first, index count) {
      using T = std::decay_t<decltype(*w_data)>;
      table<T>().sgd(count, w_data + first, input<T>(g) + first, T(rate));
    });
  }

  void momentum(Array w, const Array& g, Array velocity, double rate, double momentum, bool nesterov) const {
    update(w, [&](auto* w_data, index first, index count) {
      using T = std::decay_t<decltype(*w_data)>;
      table<T>().momentum(count, w_data + first, input<T>(g) + first, output<T>(velocity) + first, T(rate),
                          T(momentum), nesterov);
    });
  }

  void adam(Array w, const Array& g, Array m, Array v, double rate, double epsilon, double keep1, double keep2) const {
    update(w, [&](auto* w_data, index first, index count) {
      using T = std::decay_t<decltype(*w_data)>;
      table<T>().adam(count, w_data + first, input<T>(g) + first, output<T>(m) + first, output<T>(v) + first, T(rate),
                      T(epsilon), T(keep1), T(keep2));
    });
  }

  std::vector<std::string> activations() const { return names(set_->f32->activations, set_->f32->activation_count); }
  std::vector<std::string> losses() const { return names(set_->f32->losses, set_->f32->loss_count); }

 private:
  template <class F>
  static void update(Array& w, F f) {
    by_dtype(w, [&](auto zero) {
      auto* data = output<decltype(zero)>(w);
      const index size = w.size();
      without_lock(double(size), [&] { for_ranges(size, [&](index first, index count) { f(data, first, count); }); });
    });
  }

  template <class Entry>
  static std::vector<std::string> names(const Entry* entries, int count) {
    std::vector<std::string> list;
    for (int i = 0; i < count; i++) list.emplace_back(entries[i].name);
    return list;
  }

  const InstructionSet* set_ = nullptr;
};

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
  m.def("instruction_sets", pyfastnn::instruction_set_names, "Those of this machine, the best last.");
  m.def("set_thread_limit", pyfastnn::threads::set_limit, "0: automatic.");
  m.def("thread_limit", pyfastnn::threads::limit);
  m.def("explain_threads", pyfastnn::threads::explain);
  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&>())
      .def("activations", &Kernels::activations)
      .def("losses", &Kernels::losses)
      .def("dense_forward", &Kernels::dense_forward)
      .def("activation_delta", &Kernels::activation_delta)
      .def("dense_backward", &Kernels::dense_backward)
      .def("output_delta", &Kernels::output_delta)
      .def("sgd", &Kernels::sgd)
      .def("momentum", &Kernels::momentum)
      .def("adam", &Kernels::adam);
}
