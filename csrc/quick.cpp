#include "quick.hpp"

#include <structmember.h>

#include <algorithm>
#include <new>
#include <string>

#include "kernels.hpp"

namespace py = pybind11;

namespace pyfastnn {
namespace {

py::handle context_choice, process_choice;  // kept for ever

constexpr index most_parameters = 8;

// A function of Python, and its quick way. It behaves as that function does, as a method too.
struct Shortcut {
  PyObject_HEAD;
  vectorcallfunc call;
  QuickWay way;
  PyObject *function, *names;        // names: of the parameters
  PyObject *dict, *weak_references;  // dict: what functools.update_wrapper sets
  index positional;                  // parameters that need no name
  PyObject* defaults[most_parameters];
};

Shortcut* of(PyObject* self) { return reinterpret_cast<Shortcut*>(self); }

// Whether the arguments of a call have all found their place, and no parameter is left without a value.
bool placed(const Shortcut& shortcut, PyObject* const* arguments, index positional, PyObject* names,
            PyObject** values) {
  const index count = PyTuple_GET_SIZE(shortcut.names), named = names ? PyTuple_GET_SIZE(names) : 0;
  if (positional > shortcut.positional) return false;
  for (index i = 0; i < count; i++) values[i] = i < positional ? arguments[i] : shortcut.defaults[i];
  for (index i = 0; i < named; i++) {
    // Names in a call are interned, as those of parameters are.
    index at = positional;
    while (at < count && PyTuple_GET_ITEM(shortcut.names, at) != PyTuple_GET_ITEM(names, i)) at++;
    if (at == count) return false;
    values[at] = arguments[positional + i];
  }
  return std::all_of(values, values + count, [](PyObject* value) { return value; });
}

// None where nobody has chosen yet.
py::object backend_in_use() {
  PyObject* choice = nullptr;
  if (PyContextVar_Get(context_choice.ptr(), nullptr, &choice)) throw py::error_already_set();
  auto chosen = py::reinterpret_steal<py::object>(choice);
  return chosen.is_none() ? py::reinterpret_borrow<py::object>(PyList_GET_ITEM(process_choice.ptr(), 0)) : chosen;
}

PyObject* call_shortcut(PyObject* self, PyObject* const* arguments, size_t flags, PyObject* names) {
  const Shortcut& shortcut = *of(self);
  PyObject* values[most_parameters];
  if (placed(shortcut, arguments, PyVectorcall_NARGS(flags), names, values)) {
    try {
      const py::object backend = backend_in_use();
      PyObject* const result = shortcut.way(backend.ptr(), values);
      if (result || PyErr_Occurred()) return result;
    } catch (py::error_already_set& error) {
      error.restore();
      return nullptr;
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
      return nullptr;
    }
  }
  return PyObject_Vectorcall(shortcut.function, arguments, flags, names);
}

void destroy_shortcut(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_ClearWeakRefs(self);
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
  static PyMemberDef members[] = {
      {"__vectorcalloffset__", T_PYSSIZET, offsetof(Shortcut, call), READONLY, nullptr},
      {"__dictoffset__", T_PYSSIZET, offsetof(Shortcut, dict), READONLY, nullptr},
      {"__weaklistoffset__", T_PYSSIZET, offsetof(Shortcut, weak_references), READONLY, nullptr},
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
  for (const auto& list : {quick_kernels(), quick_methods()}) {
    for (const QuickFunction& each : list) {
      if (name == each.name) return each;
    }
  }
  throw py::value_error("no quick way of " + name);
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

}  // namespace pyfastnn
