// Arrays as the kernels take them, looked at as bare objects. Ready: an ndarray, no subclass, C-contiguous, aligned, of
// native numbers. All inline, since a call takes as long as what it does.
#pragma once

#include <pybind11/numpy.h>

#include <initializer_list>

#include "kernels.hpp"

namespace pyfastnn {

namespace py = pybind11;
using py::detail::array_proxy;
using py::detail::npy_api;

// NumPy's number of a dtype.
template <class T>
constexpr int type_number = std::is_same_v<T, float>    ? npy_api::NPY_FLOAT_
                            : std::is_same_v<T, double> ? npy_api::NPY_DOUBLE_
                                                        : npy_api::NPY_INT64_;

template <class T>
T* data_of(PyObject* ready) {
  return reinterpret_cast<T*>(array_proxy(ready)->data);
}

// The number of a ready array's dtype; -1 where it is none.
inline int ready_type(PyObject* object) {
  if (Py_TYPE(object) != npy_api::get().PyArray_Type_) return -1;
  constexpr int needed = npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_ALIGNED_;
  if ((array_proxy(object)->flags & needed) != needed) return -1;
  const auto* const dtype = py::detail::array_descriptor_proxy(array_proxy(object)->descr);
  return dtype->byteorder == '=' ? dtype->type_num : -1;
}

struct ReadyMatrix {
  int type = -1;  // type_number of float or double; -1: it is none
  index rows = 0, columns = 0;
};

inline ReadyMatrix ready_matrix(PyObject* object) {
  const int type = ready_type(object);
  const auto* const array = array_proxy(object);
  if ((type != type_number<float> && type != type_number<double>) || array->nd != 2) return {};
  return {type, array->dimensions[0], array->dimensions[1]};
}

inline bool is_ready(PyObject* object, int type, std::initializer_list<index> shape) {
  if (ready_type(object) != type) return false;
  const auto* const array = array_proxy(object);
  if (array->nd != int(shape.size())) return false;
  const auto* dimension = array->dimensions;
  for (index size : shape) {  // few: std::equal would call memcmp
    if (size != *dimension++) return false;
  }
  return true;
}

// Where a ready array of numbers of 4 or 8 bytes lies.
struct Extent {
  explicit Extent(PyObject* ready) : begin(data_of<char>(ready)) {
    index size = ready_type(ready) == type_number<float> ? sizeof(float) : sizeof(double);
    for (int i = 0; i < array_proxy(ready)->nd; i++) size *= array_proxy(ready)->dimensions[i];
    end = begin + size;
  }
  bool overlaps(Extent other) const { return begin < other.end && other.begin < end; }

  const char *begin, *end;
};

// Whether a ready array may be written to and shares no memory with others, which are ready, or None.
inline bool is_apart(PyObject* written, std::initializer_list<PyObject*> others) {
  if (!(array_proxy(written)->flags & npy_api::NPY_ARRAY_WRITEABLE_)) return false;
  const Extent extent(written);
  for (PyObject* other : others) {
    if (other != Py_None && extent.overlaps(Extent(other))) return false;
  }
  return true;
}

inline py::object new_array(PyObject* like, std::initializer_list<index> shape) {
  const npy_api& api = npy_api::get();
  PyObject* const dtype = array_proxy(like)->descr;
  Py_INCREF(dtype);  // the call takes a reference
  PyObject* const array = api.PyArray_NewFromDescr_(api.PyArray_Type_, dtype, int(shape.size()), shape.begin(), nullptr,
                                                    nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(array);
}

// Where a result of the dtype of the ready array `like` goes: a new array, or the one `given` that is not None. Null
// where that is not ready, of another shape, or not apart from the others.
inline py::object target(PyObject* given, PyObject* like, std::initializer_list<index> shape,
                         std::initializer_list<PyObject*> others) {
  if (given == Py_None) return new_array(like, shape);
  const bool right = is_ready(given, ready_type(like), shape) && is_apart(given, others);
  return py::reinterpret_borrow<py::object>(right ? given : nullptr);
}

}  // namespace pyfastnn
