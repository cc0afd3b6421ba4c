// Functions that Python calls for so little work that a frame of Python, or pybind11's conversion of the arguments,
// would take as long. Each has a quick way on bare objects, for calls in which nothing needs a second look, beside the
// function in Python, which takes all others and says what is wrong.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

namespace pyfastnn {

// Of the function's parameters, in their order: a default where the call names none.
using Values = PyObject* const*;
// A new reference; null with an error set; or null without one, where the function in Python is to be called. The
// backend is that in use, which lives until the end of the call.
using QuickWay = PyObject* (*)(PyObject* backend, Values);

struct QuickFunction {
  const char *name, *parameters;  // as in Python, the parameters with a space between them
  QuickWay way;
};
std::vector<QuickFunction> quick_kernels();
std::vector<QuickFunction> quick_methods();

// What the quick methods need of a network with its parameters, planned for a backend.
pybind11::object bound_network(pybind11::object plan, pybind11::array params, pybind11::object backend);

// The function, whose name is that of a QuickFunction, behind its quick way.
pybind11::object with_quick_way(pybind11::object function);

// Where the choice of a backend is found: a ContextVar with the default None, and a list of the choice of the process.
void follow_choice(pybind11::object context_choice, pybind11::list process_choice);

}  // namespace pyfastnn
