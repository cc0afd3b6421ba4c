#pragma once

struct _object;

namespace pyfastnn {

// Adds the METH_FASTCALL functions to the module.
void add_fast_functions(_object* module);

}  // namespace pyfastnn
