// NumPy's bit generators, objects of Python, from which the orders of samples are drawn.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <utility>

#include "order.hpp"

namespace pyfastnn {

namespace py = pybind11;

// A lock of Python, held.
class Held {
 public:
  explicit Held(py::object lock) : lock_(std::move(lock)) { lock_.attr("acquire")(); }
  Held(const Held&) = delete;
  ~Held() {
    PyObject* const result = PyObject_CallMethod(lock_.ptr(), "release", nullptr);
    if (!result) PyErr_WriteUnraisable(lock_.ptr());  // somebody else has released it
    Py_XDECREF(result);
  }

 private:
  const py::object lock_;
};

// A bit generator, held by its lock, for permutations of so many places in all.
class Draws {
 public:
  Draws(py::object bit_generator, double places)
      : bit_generator_(std::move(bit_generator)),
        capsule_(bit_generator_.attr("capsule")),
        held_(bit_generator_.attr("lock")),
        bits_(static_cast<const BitGenerator*>(PyCapsule_GetPointer(capsule_.ptr(), "BitGenerator"))) {
    if (!bits_) throw py::error_already_set();
    if (places < many || !is_pcg64(bit_generator_)) return;
    state_ = bit_generator_.attr("state");
    const py::dict inside = state_["state"];
    own_ = Pcg64{wide(inside["state"]), wide(inside["inc"]), py::cast<std::uint32_t>(state_["uinteger"]),
                 py::cast<int>(state_["has_uint32"]) != 0};
  }
  Draws(const Draws&) = delete;

  // Needs no interpreter lock.
  void permutation(index count, std::int64_t* order) {
    own_ ? pyfastnn::permutation(*own_, count, order) : pyfastnn::permutation(*bits_, count, order);
  }

  // To be called after the last one. NumPy's code looks for signals on the way, whose handlers may raise; the state
  // is given back all the same.
  void give_back() {
    if (!own_) return;
    try {
      set_state();
    } catch (py::error_already_set&) {
      set_state();
      throw;
    }
  }

 private:
  static constexpr double many = 8192;  // to copy a state and to give it back takes as long as some thousand places

  // Not a class derived from it, whose state may be another.
  static bool is_pcg64(const py::object& bit_generator) {
    static const py::handle pcg64 = py::module_::import("numpy.random").attr("PCG64").cast<py::object>().release();
    return py::type::handle_of(bit_generator).is(pcg64);
  }

  void set_state() {
    const auto upper = std::uint64_t(own_->state >> 64), lower = std::uint64_t(own_->state);
    state_["state"]["state"] = py::int_(upper) << py::int_(64) | py::int_(lower);
    state_["has_uint32"] = int(own_->has_upper);
    state_["uinteger"] = own_->upper;
    bit_generator_.attr("state") = state_;
  }

  static Pcg64::Wide wide(const py::int_& number) {
    const auto upper = py::cast<std::uint64_t>(number >> py::int_(64));
    return Pcg64::Wide(upper) << 64 | py::cast<std::uint64_t>(number & py::int_(~std::uint64_t(0)));
  }

  const py::object bit_generator_, capsule_;
  const Held held_;
  const BitGenerator* const bits_;
  py::dict state_;
  std::optional<Pcg64> own_;  // in the place of a PCG64
};

}  // namespace pyfastnn
