#pragma once

#include <pybind11/pybind11.h>

#include "plan.hpp"

namespace pyfastnn {

// Releasing the interpreter lock costs more than it gives below about five microseconds of work.
constexpr double quick_multiply_adds = 3e5;

// Adds the METH_FASTCALL functions to the module.
void add_fast_functions(PyObject* module);

// f(params, x, out or None) -> the outputs; None where x or out are not what the slow checks would pass without a
// word, or are many. The network must outlive it.
pybind11::object bound_quick_predict(const AnyNetwork&);

}  // namespace pyfastnn
