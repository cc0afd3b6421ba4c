// The kernels of an instruction set on NumPy arrays, which have been checked: unpack, release the interpreter lock,
// call.
#pragma once

#include <pybind11/numpy.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "dense.hpp"
#include "dispatch.hpp"
#include "plan.hpp"

namespace pyfastnn {

namespace py = pybind11;

// Releasing the interpreter lock costs more than it gives below about five microseconds of work.
constexpr double quick_multiply_adds = 3e5;

using Array = py::array;
using OptionalArray = std::optional<py::array>;

inline Array array(PyObject* object) { return py::reinterpret_borrow<Array>(object); }
inline OptionalArray optional_array(PyObject* object) {
  return object == Py_None ? OptionalArray() : OptionalArray(array(object));
}

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

inline LayerShape layer_shape(const Array& rows, const Array& w) { return {rows.shape(0), w.shape(0), w.shape(1)}; }

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

  void dense_update(const Array& x, Array w, Array b, const Array& d, double rate) const {
    by_dtype(x, [&](auto zero) {
      using T = decltype(zero);
      const LayerShape shape = layer_shape(x, w);
      T *w_data = output<T>(w), *b_data = output<T>(b);
      without_lock(work(shape),
                   [&] { pyfastnn::dense_update(table<T>(), shape, input<T>(x), input<T>(d), rate, w_data, b_data); });
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

  bool is_elementwise(int activation) const { return set_->f32->activations[activation].elementwise; }
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

}  // namespace pyfastnn
