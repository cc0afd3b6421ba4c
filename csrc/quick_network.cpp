// Methods of a network: predictions, and the loss with its gradient.
#include "quick.hpp"

#include <structmember.h>

#include "networks.hpp"
#include "quick_kernels.hpp"

namespace pyfastnn {
namespace {

struct BoundNetwork {
  PyObject_HEAD;
  const Plan* plan;
  PyObject *owner, *params, *backend;  // owner: of the plan
};

void destroy(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  const auto* const bound = reinterpret_cast<BoundNetwork*>(self);
  for (PyObject* each : {bound->owner, bound->params, bound->backend}) Py_XDECREF(each);
  type->tp_free(self);
  Py_DECREF(type);
}

// Whether x and y, with at least one row, and weights or None are ready to be samples of the network.
bool are_samples(const BoundNetwork& bound, PyObject* x, PyObject* y, PyObject* weight) {
  const Lists* const lists = lists_of(bound.backend);
  const ReadyMatrix input = ready_matrix(x);
  return lists && input.rows && bound.plan->visit([&](auto& network, auto zero) {
    const ReadyMatrix outputs{type_number<decltype(zero)>, input.rows, network.layers.back().outputs};
    return input.type == outputs.type && input.columns == network.layers.front().inputs &&
           targets_fit(lists->loss_facts[size_t(bound.plan->loss())], outputs, y, true) &&
           weights_fit(weight, input.type, input.rows);
  });
}

PyObject* takes(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const auto* const bound = reinterpret_cast<const BoundNetwork*>(self);
  try {
    return PyBool_FromLong(count == 3 && are_samples(*bound, arguments[0], arguments[1], arguments[2]));
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

PyTypeObject* bound_network_type() {
  static PyMethodDef methods[] = {
      {"takes", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(takes)), METH_FASTCALL,
       "takes(x, y, sample_weight): whether these are ready to be samples of the network, one at least."},
      {nullptr, nullptr, 0, nullptr}};
  static PyType_Slot slots[] = {
      {Py_tp_dealloc, reinterpret_cast<void*>(destroy)}, {Py_tp_methods, methods}, {0, nullptr}};
  static PyType_Spec spec = {"pyfastnn._core.BoundNetwork", int(sizeof(BoundNetwork)), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

// Null where there is none.
py::object attribute_of(PyObject* object, PyObject* name) {
  auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
  if (found) return found;
  if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
  PyErr_Clear();
  return {};
}

// Where the objects of a class that names the attribute in its __slots__ keep it.
struct Slot {
  PyTypeObject* type;  // null: there is no such class
  Py_ssize_t offset;

  PyObject* of(PyObject* object) const {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
  }
};

// That of this class or one it derives from; which then lives for ever.
Slot slot_of(PyTypeObject* type, PyObject* name) {
  const py::object found = attribute_of(reinterpret_cast<PyObject*>(type), name);
  if (!found || Py_TYPE(found.ptr()) != &PyMemberDescr_Type) return {};
  const auto* const descriptor = reinterpret_cast<const PyMemberDescrObject*>(found.ptr());
  if (descriptor->d_member->type != T_OBJECT_EX) return {};
  Py_INCREF(PyDescr_TYPE(descriptor));
  return {PyDescr_TYPE(descriptor), descriptor->d_member->offset};
}

// What the network, an object of Python, has been bound to; null where that is not for the backend.
py::object binding_of(PyObject* network, PyObject* backend) {
  static PyObject* const name = PyUnicode_InternFromString("_bound");
  static Slot slot{};  // of MLP
  if (!slot.type) slot = slot_of(Py_TYPE(network), name);
  // Objects of a derived class may have another attribute of this name.
  const py::object found = Py_TYPE(network) == slot.type ? py::reinterpret_borrow<py::object>(slot.of(network))
                                                         : attribute_of(network, name);
  const bool right = found && Py_TYPE(found.ptr()) == bound_network_type() &&
                     reinterpret_cast<BoundNetwork*>(found.ptr())->backend == backend;
  return right ? found : py::object();
}

template <class T>
PyObject* predict(const Network<T>& network, PyObject* params, PyObject* x, PyObject* out) {
  const ReadyMatrix input = ready_matrix(x);
  const index inputs = network.layers.front().inputs, outputs = network.layers.back().outputs;
  if (input.type != type_number<T> || input.columns != inputs) return nullptr;
  py::object result = target(out, params, {input.rows, outputs}, {x, params});
  if (!result) return nullptr;
  const T *params_data = data_of<T>(params), *x_data = data_of<T>(x);
  T* const result_data = data_of<T>(result.ptr());
  without_lock(double(input.rows) * double(network.compact_size),
               [&] { pyfastnn::predict(network, params_data, x_data, input.rows, result_data); });
  return result.release().ptr();
}

PyObject* predict(PyObject* backend, Values values) {
  const py::object binding = binding_of(values[0], backend);
  if (!binding) return nullptr;
  const auto* const bound = reinterpret_cast<const BoundNetwork*>(binding.ptr());
  return bound->plan->visit([&](auto& network, auto) { return predict(network, bound->params, values[1], values[2]); });
}

PyObject* loss_and_gradient(PyObject* backend, Values values) {
  PyObject *x = values[1], *y = values[2], *sample_weight = values[3], *out = values[4];
  const py::object binding = binding_of(values[0], backend);
  if (!binding) return nullptr;
  const auto* const bound = reinterpret_cast<const BoundNetwork*>(binding.ptr());
  if (!are_samples(*bound, x, y, sample_weight)) return nullptr;
  const Array params = array(bound->params);
  const py::object gradient = target(out, bound->params, {params.size()}, {x, y, sample_weight, bound->params});
  if (!gradient) return nullptr;
  const double value =
      bound->plan->loss_and_gradient(params, array(x), array(y), optional_array(sample_weight), array(gradient.ptr()));
  return PyTuple_Pack(2, py::float_(value).ptr(), gradient.ptr());
}

}  // namespace

std::vector<QuickFunction> quick_methods() {
  return {{"predict", "self x out", predict}, {"loss_and_gradient", "self x y sample_weight out", loss_and_gradient}};
}

py::object bound_network(py::object plan, py::array params, py::object backend) {
  PyTypeObject* const type = bound_network_type();
  auto* const bound = reinterpret_cast<BoundNetwork*>(type->tp_alloc(type, 0));
  if (!bound) throw py::error_already_set();
  bound->plan = plan.cast<const Plan*>();
  bound->owner = plan.release().ptr();
  bound->params = params.release().ptr();
  bound->backend = backend.release().ptr();
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(bound));
}

}  // namespace pyfastnn
