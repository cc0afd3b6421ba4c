#pragma once

#include <pybind11/pybind11.h>

#include "plan.hpp"

namespace pyfastnn {

// Releasing the interpreter lock costs more than it gives below about five microseconds of work.
constexpr double quick_multiply_adds = 3e5;

// What the capsule of a plan points to: the network, and the plan object that keeps it alive.
struct QuickPlan {
  const AnyNetwork* network;
  pybind11::object owner;
};

// Adds the METH_FASTCALL functions to the module.
void add_fast_functions(PyObject* module);

}  // namespace pyfastnn
