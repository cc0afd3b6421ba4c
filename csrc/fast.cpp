// What Python calls before and around the shortest of kernels, where pybind11's conversion of the
// arguments would cost as much as the work: METH_FASTCALL functions on bare array objects.
#include "fast.hpp"

#include <pybind11/numpy.h>
#include <structmember.h>

#include <array>
#include <new>

namespace py = pybind11;

namespace pyfastnn {
namespace {

using py::detail::array_proxy;

// A C-contiguous, aligned ndarray of native float32 or float64: its type number, else -1.
int ready_type(PyObject* object) {
  const auto& api = py::detail::npy_api::get();
  if (Py_TYPE(object) != api.PyArray_Type_) return -1;
  constexpr int needed = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array_proxy(object)->flags & needed) != needed) return -1;
  const auto* dtype = py::detail::array_descriptor_proxy(array_proxy(object)->descr);
  const int type = dtype->type_num;
  const bool is_float = type == py::detail::npy_api::NPY_FLOAT_ || type == py::detail::npy_api::NPY_DOUBLE_;
  return is_float && dtype->byteorder == '=' ? type : -1;
}

// fits("nk km m", x, w, b): whether all are ready arrays of one dtype, with a letter a dimension,
// where equal letters are equal lengths. The slow checks in Python say what is wrong where it is not.
PyObject* fits(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  const char* pattern = count ? PyUnicode_AsUTF8(arguments[0]) : nullptr;
  if (!pattern) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "fits(pattern, *arrays)");
    return nullptr;
  }
  std::array<Py_ssize_t, 128> lengths;
  lengths.fill(-1);
  const int type = count > 1 ? ready_type(arguments[1]) : -1;
  if (type < 0) Py_RETURN_FALSE;
  for (Py_ssize_t i = 1; i < count; i++) {
    if (i > 1 && ready_type(arguments[i]) != type) Py_RETURN_FALSE;
    const auto* array = array_proxy(arguments[i]);
    int rank = 0;
    for (; *pattern && *pattern != ' '; pattern++, rank++) {
      Py_ssize_t& length = lengths[size_t(*pattern) & 127];
      if (rank >= array->nd || (length >= 0 && length != array->dimensions[rank])) Py_RETURN_FALSE;
      length = array->dimensions[rank];
    }
    if (rank != array->nd) Py_RETURN_FALSE;
    pattern += *pattern == ' ';
  }
  if (*pattern) Py_RETURN_FALSE;
  Py_RETURN_TRUE;
}

template <class T>
bool within(const T* x, Py_ssize_t rows, Py_ssize_t columns, double low, double high, bool unit_rows) {
  for (Py_ssize_t r = 0; r < rows; r++, x += columns) {
    bool inside = true;
    double sum = 0;
    for (Py_ssize_t j = 0; j < columns; j++) {
      inside = inside && x[j] >= low && x[j] <= high;
      sum += double(x[j]);
    }
    if (!inside || (unit_rows && !(sum > 0.9995 && sum < 1.0005))) return false;
  }
  return true;
}

// in_range(matrix, low, high, unit_rows): whether every number of a ready matrix is in [low, high] and, if asked,
// the sum of each row near 1. The slow checks look again where it is not.
PyObject* in_range(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "in_range(matrix, low, high, unit_rows)");
    return nullptr;
  }
  const double low = PyFloat_AsDouble(arguments[1]), high = PyFloat_AsDouble(arguments[2]);
  const int unit_rows = PyObject_IsTrue(arguments[3]);
  if (PyErr_Occurred()) return nullptr;
  const int type = ready_type(arguments[0]);
  const auto* array = array_proxy(arguments[0]);
  if (type < 0 || array->nd != 2) Py_RETURN_FALSE;
  const Py_ssize_t rows = array->dimensions[0], columns = array->dimensions[1];
  const bool right = type == py::detail::npy_api::NPY_FLOAT_
                         ? within(reinterpret_cast<const float*>(array->data), rows, columns, low, high, unit_rows)
                         : within(reinterpret_cast<const double*>(array->data), rows, columns, low, high, unit_rows);
  return PyBool_FromLong(right);
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto p = reinterpret_cast<std::uintptr_t>(a), q = reinterpret_cast<std::uintptr_t>(b);
  return p < q + b_bytes && q < p + a_bytes;
}

// A new array (rows, columns) of the dtype of `like`.
PyObject* new_matrix(PyObject* like, Py_ssize_t rows, Py_ssize_t columns) {
  const auto& api = py::detail::npy_api::get();
  PyObject* descr = array_proxy(like)->descr;
  Py_INCREF(descr);  // the call takes a reference
  const Py_intptr_t shape[] = {rows, columns};
  return api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, 2, shape, nullptr, nullptr, 0, nullptr);
}

template <class T>
constexpr int type_number =
    std::is_same_v<T, float> ? py::detail::npy_api::NPY_FLOAT_ : py::detail::npy_api::NPY_DOUBLE_;

// Rows that are predicted without releasing the interpreter lock, which costs as much as they do; else None. The
// parameters are a ready array of the network's dtype.
template <class T>
PyObject* quick_predict(const Network<T>& network, PyObject* params, PyObject* x, PyObject* out) {
  if (ready_type(x) != type_number<T>) Py_RETURN_NONE;
  const auto* input = array_proxy(x);
  if (input->nd != 2) Py_RETURN_NONE;
  const index rows = input->dimensions[0], inputs = network.layers.front().inputs;
  const index outputs = network.layers.back().outputs;
  if (input->dimensions[1] != inputs || double(rows) * double(network.compact_size) > quick_multiply_adds)
    Py_RETURN_NONE;
  const T* const parameters = reinterpret_cast<const T*>(array_proxy(params)->data);
  if (out == Py_None) {
    out = new_matrix(x, rows, outputs);
    if (!out) return nullptr;
  } else {
    if (ready_type(out) != type_number<T>) Py_RETURN_NONE;
    const auto* target = array_proxy(out);
    const size_t bytes = size_t(rows * outputs) * sizeof(T);
    if (target->nd != 2 || target->dimensions[0] != rows || target->dimensions[1] != outputs ||
        !(target->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) ||
        overlap(target->data, bytes, input->data, size_t(rows * inputs) * sizeof(T)) ||
        overlap(target->data, bytes, parameters, size_t(network.compact_size) * sizeof(T)))
      Py_RETURN_NONE;
    Py_INCREF(out);
  }
  try {
    predict(network, parameters, reinterpret_cast<const T*>(input->data), rows,
            reinterpret_cast<T*>(array_proxy(out)->data));
  } catch (const std::bad_alloc&) {
    Py_DECREF(out);
    return PyErr_NoMemory();
  }
  return out;
}

PyObject* quick_predict(const AnyNetwork& any, PyObject* params, PyObject* x, PyObject* out) {
  if (const auto* network = std::get_if<Network<float>>(&any)) return quick_predict(*network, params, x, out);
  return quick_predict(std::get<Network<double>>(any), params, x, out);
}

// quick(x, out): what quick_predict returns for a network with its parameters, planned for a backend.
struct Quick {
  PyObject_HEAD;
  vectorcallfunc call;
  const AnyNetwork* network;
  PyObject *plan, *params, *everywhere, *backend;
};

// method(object, x, out=None): what the Quick in an attribute of the object returns, while everywhere[0] is its
// backend; where there is none, or that is None, or the arguments are others, what the function returns. A frame of
// Python, and what it looks up, would take as long as a small network.
struct QuickMethod {
  PyObject_HEAD;
  vectorcallfunc call;
  PyObject *attribute, *function, *dict;  // dict: what functools.update_wrapper sets
};

template <class Object, PyObject* Object::*... Parts>
void destroy(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  (Py_XDECREF(reinterpret_cast<Object*>(self)->*Parts), ...);
  type->tp_free(self);
  Py_DECREF(type);
}

template <class Object>
Object* create(PyTypeObject* type) {
  auto* const object = reinterpret_cast<Object*>(type->tp_alloc(type, 0));
  if (!object) throw py::error_already_set();
  return object;
}

PyObject* call_quick(PyObject* self, PyObject* const* arguments, size_t flags, PyObject* names) {
  if (PyVectorcall_NARGS(flags) != 2 || names) {
    PyErr_SetString(PyExc_TypeError, "quick(x, out)");
    return nullptr;
  }
  const auto* const quick = reinterpret_cast<const Quick*>(self);
  return quick_predict(*quick->network, quick->params, arguments[0], arguments[1]);
}

PyTypeObject* quick_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Quick, call), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {
      {Py_tp_dealloc,
       reinterpret_cast<void*>(destroy<Quick, &Quick::plan, &Quick::params, &Quick::everywhere, &Quick::backend>)},
      {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
      {Py_tp_members, members},
      {0, nullptr}};
  static PyType_Spec spec = {"pyfastnn._core.Quick", int(sizeof(Quick)), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             slots};
  static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

PyObject* call_quick_method(PyObject* self, PyObject* const* arguments, size_t flags, PyObject* names) {
  static PyObject* const out_name = PyUnicode_InternFromString("out");
  const auto* const method = reinterpret_cast<const QuickMethod*>(self);
  const Py_ssize_t positional = PyVectorcall_NARGS(flags), named = names ? PyTuple_GET_SIZE(names) : 0;
  const bool only_out = named == 1 && positional == 2 && PyTuple_GET_ITEM(names, 0) == out_name;
  if (only_out || (named == 0 && (positional == 2 || positional == 3))) {
    const auto quick = py::reinterpret_steal<py::object>(PyObject_GetAttr(arguments[0], method->attribute));
    if (!quick) PyErr_Clear();
    if (quick && Py_TYPE(quick.ptr()) == quick_type()) {
      const auto* const q = reinterpret_cast<const Quick*>(quick.ptr());
      if (PyList_GET_ITEM(q->everywhere, 0) == q->backend) {
        PyObject* const out = positional + named == 3 ? arguments[2] : Py_None;
        PyObject* const result = quick_predict(*q->network, q->params, arguments[1], out);
        if (result != Py_None) return result;
        Py_DECREF(result);
      }
    }
  }
  return PyObject_Vectorcall(method->function, arguments, flags, names);
}

PyObject* bind_quick_method(PyObject* self, PyObject* object, PyObject*) {
  if (object) return PyMethod_New(self, object);
  Py_INCREF(self);
  return self;
}

PyObject* show_quick_method(PyObject* self) { return PyObject_Repr(reinterpret_cast<QuickMethod*>(self)->function); }

PyTypeObject* quick_method_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(QuickMethod, call), READONLY, nullptr},
                                  {"__dictoffset__", T_PYSSIZET, offsetof(QuickMethod, dict), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyGetSetDef properties[] = {{"__dict__", PyObject_GenericGetDict, nullptr, nullptr, nullptr},
                                     {nullptr, nullptr, nullptr, nullptr, nullptr}};
  static PyType_Slot slots[] = {
      {Py_tp_dealloc, reinterpret_cast<void*>(
                          destroy<QuickMethod, &QuickMethod::attribute, &QuickMethod::function, &QuickMethod::dict>)},
      {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
      {Py_tp_descr_get, reinterpret_cast<void*>(bind_quick_method)},
      {Py_tp_repr, reinterpret_cast<void*>(show_quick_method)},
      {Py_tp_members, members},
      {Py_tp_getset, properties},
      {0, nullptr}};
  static PyType_Spec spec = {"pyfastnn._core.QuickMethod", int(sizeof(QuickMethod)), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
                                 Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             slots};
  static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

template <class Function>
PyMethodDef method(const char* name, Function* function, const char* text) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, text};
}

PyMethodDef functions[] = {method("fits", fits, "fits(pattern, *arrays) -> bool"),
                           method("in_range", in_range, "in_range(matrix, low, high, unit_rows) -> bool"),
                           {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_fast_functions(PyObject* module) { PyModule_AddFunctions(module, functions); }

py::object bound_quick(const AnyNetwork& network, py::object plan, py::array params, py::list everywhere,
                       py::object backend) {
  auto* const quick = create<Quick>(quick_type());
  quick->call = call_quick;
  quick->network = &network;
  quick->plan = plan.release().ptr();
  quick->params = params.release().ptr();
  quick->everywhere = everywhere.release().ptr();
  quick->backend = backend.release().ptr();
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(quick));
}

py::object quick_method(py::str attribute, py::object function) {
  auto* const method = create<QuickMethod>(quick_method_type());
  method->call = call_quick_method;
  method->attribute = attribute.release().ptr();
  method->function = function.release().ptr();
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(method));
}

}  // namespace pyfastnn
