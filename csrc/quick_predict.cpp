// MLP.predict for few rows.
#include "arrays.hpp"
#include "quick.hpp"
#include "ready.hpp"

namespace pyfastnn {
namespace {

// A network with its parameters, planned for a backend.
struct BoundNetwork {
  PyObject_HEAD;
  const AnyNetwork* network;
  PyObject *plan, *params, *backend;
};

void destroy(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  const auto* const bound = reinterpret_cast<BoundNetwork*>(self);
  for (PyObject* each : {bound->plan, bound->params, bound->backend}) Py_XDECREF(each);
  type->tp_free(self);
  Py_DECREF(type);
}

PyTypeObject* bound_network_type() {
  static PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(destroy)}, {0, nullptr}};
  static PyType_Spec spec = {"pyfastnn._core.BoundNetwork", int(sizeof(BoundNetwork)), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

template <class T>
PyObject* predict_few(const Network<T>& network, PyObject* params, PyObject* x, PyObject* out) {
  const ReadyMatrix input = ready_matrix(x);
  const index inputs = network.layers.front().inputs, outputs = network.layers.back().outputs;
  if (input.type != type_number<T> || input.columns != inputs) return nullptr;
  // Without releasing the interpreter lock, which costs as much as they do.
  if (double(input.rows) * double(network.compact_size) > quick_multiply_adds) return nullptr;
  py::object result = target(out, x, {input.rows, outputs}, {x, params});
  if (!result) return nullptr;
  predict(network, data_of<T>(params), data_of<T>(x), input.rows, data_of<T>(result.ptr()));
  return result.release().ptr();
}

PyObject* predict_way(Values values) {
  static PyObject* const attribute = PyUnicode_InternFromString("_bound");
  PyObject *self = values[0], *x = values[1], *out = values[2];
  const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(self, attribute));
  if (!found) PyErr_Clear();
  if (!found || Py_TYPE(found.ptr()) != bound_network_type()) return nullptr;
  const auto* const bound = reinterpret_cast<const BoundNetwork*>(found.ptr());
  if (bound->backend != backend_in_use()) return nullptr;
  if (const auto* network = std::get_if<Network<float>>(bound->network))
    return predict_few(*network, bound->params, x, out);
  return predict_few(std::get<Network<double>>(*bound->network), bound->params, x, out);
}

}  // namespace

QuickFunction quick_predict() { return {"predict", "self x out", predict_way}; }

py::object bound_network(const AnyNetwork& network, py::object plan, py::array params, py::object backend) {
  PyTypeObject* const type = bound_network_type();
  auto* const bound = reinterpret_cast<BoundNetwork*>(type->tp_alloc(type, 0));
  if (!bound) throw py::error_already_set();
  bound->network = &network;
  bound->plan = plan.release().ptr();
  bound->params = params.release().ptr();
  bound->backend = backend.release().ptr();
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(bound));
}

}  // namespace pyfastnn
