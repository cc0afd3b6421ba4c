#include "quick.hpp"

#include <structmember.h>

#include <algorithm>
#include <new>
#include <string>

namespace py = pybind11;

namespace pyfastnn {
namespace {

using py::detail::array_proxy;
using py::detail::npy_api;

py::handle context_choice, process_choice;  // kept for ever

constexpr index most_parameters = 8;

// A function of Python, and its quick way. It behaves as that function does, as a method too.
struct Shortcut {
  PyObject_HEAD;
  vectorcallfunc call;
  QuickWay way;
  PyObject *function, *names, *dict;  // names: of the parameters; dict: what functools.update_wrapper sets
  index positional;                   // parameters that need no name
  PyObject* defaults[most_parameters];
};

Shortcut* of(PyObject* self) { return reinterpret_cast<Shortcut*>(self); }

// Whether the arguments of a call have all found their place, and no parameter is left without a value.
bool placed(const Shortcut& shortcut, PyObject* const* arguments, index positional, PyObject* names,
            PyObject** values) {
  const index count = PyTuple_GET_SIZE(shortcut.names), named = names ? PyTuple_GET_SIZE(names) : 0;
  if (positional > shortcut.positional) return false;
  std::copy_n(arguments, positional, values);
  std::copy(shortcut.defaults + positional, shortcut.defaults + count, values + positional);
  for (index i = 0; i < named; i++) {
    // Names in a call are interned, as those of parameters are.
    index at = positional;
    while (at < count && PyTuple_GET_ITEM(shortcut.names, at) != PyTuple_GET_ITEM(names, i)) at++;
    if (at == count) return false;
    values[at] = arguments[positional + i];
  }
  return std::all_of(values, values + count, [](PyObject* value) { return value; });
}

PyObject* call_shortcut(PyObject* self, PyObject* const* arguments, size_t flags, PyObject* names) {
  const Shortcut& shortcut = *of(self);
  PyObject* values[most_parameters];
  if (placed(shortcut, arguments, PyVectorcall_NARGS(flags), names, values)) {
    try {
      PyObject* const result = shortcut.way(values);
      if (result || PyErr_Occurred()) return result;
    } catch (py::error_already_set& error) {
      error.restore();
      return nullptr;
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
    }
  }
  return PyObject_Vectorcall(shortcut.function, arguments, flags, names);
}

void destroy_shortcut(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  for (PyObject* each : {of(self)->function, of(self)->names, of(self)->dict}) Py_XDECREF(each);
  for (PyObject* each : of(self)->defaults) Py_XDECREF(each);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* bind_shortcut(PyObject* self, PyObject* object, PyObject*) {
  if (object) return PyMethod_New(self, object);
  Py_INCREF(self);
  return self;
}

PyObject* show_shortcut(PyObject* self) { return PyObject_Repr(of(self)->function); }

// Pickled and copied by name, as functions are.
PyObject* reduce_shortcut(PyObject* self, PyObject*) {
  return PyObject_GetAttrString(of(self)->function, "__qualname__");
}

PyTypeObject* shortcut_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Shortcut, call), READONLY, nullptr},
                                  {"__dictoffset__", T_PYSSIZET, offsetof(Shortcut, dict), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyGetSetDef properties[] = {{"__dict__", PyObject_GenericGetDict, nullptr, nullptr, nullptr},
                                     {nullptr, nullptr, nullptr, nullptr, nullptr}};
  static PyMethodDef methods[] = {{"__reduce__", reduce_shortcut, METH_NOARGS, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(destroy_shortcut)},
                                {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_descr_get, reinterpret_cast<void*>(bind_shortcut)},
                                {Py_tp_repr, reinterpret_cast<void*>(show_shortcut)},
                                {Py_tp_members, members},
                                {Py_tp_getset, properties},
                                {Py_tp_methods, methods},
                                {0, nullptr}};
  static PyType_Spec spec = {"pyfastnn._core.Shortcut", int(sizeof(Shortcut)), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
                                 Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             slots};
  static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

QuickFunction quick_function(const std::string& name) {
  std::vector<QuickFunction> all = quick_kernels();
  all.push_back(quick_predict());
  for (const QuickFunction& each : all) {
    if (name == each.name) return each;
  }
  throw py::value_error("no quick way of " + name);
}

// The bytes of a ready array of numbers of 4 or 8 bytes.
size_t bytes_of(PyObject* ready) {
  const auto* const array = array_proxy(ready);
  const int type = py::detail::array_descriptor_proxy(array->descr)->type_num;
  size_t bytes = type == type_number<float> ? sizeof(float) : sizeof(double);
  for (int i = 0; i < array->nd; i++) bytes *= size_t(array->dimensions[i]);
  return bytes;
}

bool overlap(PyObject* one, PyObject* other) {
  const auto p = reinterpret_cast<std::uintptr_t>(array_proxy(one)->data),
             q = reinterpret_cast<std::uintptr_t>(array_proxy(other)->data);
  return p < q + bytes_of(other) && q < p + bytes_of(one);
}

// Of a ready array NumPy's number of its dtype, else -1.
int ready_type(PyObject* object) {
  const npy_api& api = npy_api::get();
  if (Py_TYPE(object) != api.PyArray_Type_) return -1;
  constexpr int needed = npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_ALIGNED_;
  if ((array_proxy(object)->flags & needed) != needed) return -1;
  const auto* const dtype = py::detail::array_descriptor_proxy(array_proxy(object)->descr);
  return dtype->byteorder == '=' ? dtype->type_num : -1;
}

}  // namespace

py::object with_quick_way(py::object function) {
  const QuickFunction quick = quick_function(py::cast<std::string>(function.attr("__name__")));
  const py::object code = function.attr("__code__");
  const auto positional = py::cast<index>(code.attr("co_argcount"));
  const auto count = positional + py::cast<index>(code.attr("co_kwonlyargcount"));
  const py::tuple names(code.attr("co_varnames")[py::slice(0, count, 1)]);
  if (count > most_parameters || py::cast<std::string>(py::str(" ").attr("join")(names)) != quick.parameters)
    throw py::value_error(std::string("the parameters of ") + quick.name + " must be: " + quick.parameters);

  auto* const shortcut = reinterpret_cast<Shortcut*>(shortcut_type()->tp_alloc(shortcut_type(), 0));
  if (!shortcut) throw py::error_already_set();
  auto result = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(shortcut));
  shortcut->call = call_shortcut;
  shortcut->way = quick.way;
  shortcut->positional = positional;
  const py::object by_place = function.attr("__defaults__"), by_name = function.attr("__kwdefaults__");
  const index last = by_place.is_none() ? 0 : index(py::len(by_place));
  for (index i = 0; i < count; i++) {
    py::object value;
    if (i >= positional && !by_name.is_none() && by_name.contains(names[size_t(i)]))
      value = by_name[names[size_t(i)]];
    else if (i < positional && i >= positional - last)
      value = by_place[py::int_(i - (positional - last))];
    shortcut->defaults[i] = value.release().ptr();
  }
  shortcut->names = names.inc_ref().ptr();
  shortcut->function = function.release().ptr();
  return result;
}

void follow_choice(py::object context, py::list process) {
  context_choice = context.release();
  process_choice = process.release();
}

PyObject* backend_in_use() {
  PyObject* choice = nullptr;
  if (PyContextVar_Get(context_choice.ptr(), nullptr, &choice)) throw py::error_already_set();
  Py_DECREF(choice);  // the context keeps it, or the variable its default
  if (choice == Py_None) choice = PyList_GET_ITEM(process_choice.ptr(), 0);
  return choice == Py_None ? nullptr : choice;
}

ReadyMatrix ready_matrix(PyObject* object) {
  const int type = ready_type(object);
  const auto* const array = array_proxy(object);
  if ((type != type_number<float> && type != type_number<double>) || array->nd != 2) return {};
  return {type, array->dimensions[0], array->dimensions[1]};
}

bool is_ready(PyObject* object, int type, std::initializer_list<index> shape) {
  if (ready_type(object) != type) return false;
  const auto* const array = array_proxy(object);
  return array->nd == int(shape.size()) && std::equal(shape.begin(), shape.end(), array->dimensions);
}

bool is_apart(PyObject* written, std::initializer_list<PyObject*> others) {
  return (array_proxy(written)->flags & npy_api::NPY_ARRAY_WRITEABLE_) &&
         std::none_of(others.begin(), others.end(),
                      [&](PyObject* other) { return other != Py_None && overlap(written, other); });
}

py::object target(PyObject* given, PyObject* like, std::initializer_list<index> shape,
                  std::initializer_list<PyObject*> others) {
  const npy_api& api = npy_api::get();
  if (given != Py_None) {
    const bool right = is_ready(given, ready_type(like), shape) && is_apart(given, others);
    return py::reinterpret_borrow<py::object>(right ? given : nullptr);
  }
  PyObject* const dtype = array_proxy(like)->descr;
  Py_INCREF(dtype);  // the call takes a reference
  auto result = py::reinterpret_steal<py::object>(api.PyArray_NewFromDescr_(
      api.PyArray_Type_, dtype, int(shape.size()), shape.begin(), nullptr, nullptr, 0, nullptr));
  if (!result) throw py::error_already_set();
  return result;
}

}  // namespace pyfastnn
