#pragma once

#include <pybind11/pybind11.h>

#include "plan.hpp"

namespace pyfastnn {

// What the capsule of a plan points to: the network, and the plan object that keeps it alive.
struct QuickPlan {
  const AnyNetwork* network;
  pybind11::object owner;
};

// Adds the METH_FASTCALL functions to the module.
void add_fast_functions(PyObject* module);

}  // namespace pyfastnn
