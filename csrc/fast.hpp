#pragma once

#include <pybind11/numpy.h>

#include "plan.hpp"

namespace pyfastnn {

// Releasing the interpreter lock costs more than it gives below about five microseconds of work.
constexpr double quick_multiply_adds = 3e5;

// Adds the METH_FASTCALL functions to the module.
void add_fast_functions(PyObject* module);

// f(x, out or None) -> the outputs of the network, which `plan` keeps, with these parameters; None where x or out are
// not what the slow checks would pass without a word, or are many. quick_method looks for it, and asks whether
// everywhere[0] is the backend.
pybind11::object bound_quick(const AnyNetwork&, pybind11::object plan, pybind11::array params,
                             pybind11::list everywhere, pybind11::object backend);

// A method(self, x, out=None) that first tries the bound_quick in that attribute of self, and else calls the function.
pybind11::object quick_method(pybind11::str attribute, pybind11::object function);

}  // namespace pyfastnn
