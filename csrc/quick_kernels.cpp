// The functions of pyfastnn/kernels.py, for arrays that are ready and names that are known.
#include "quick_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "quick.hpp"

namespace pyfastnn {
namespace {

// x (rows, inputs) and w (inputs, outputs) that are ready.
struct ReadyLayer {
  int type = -1;  // type_number of float or double; -1: they are not, or do not match
  LayerShape shape{};
};

ReadyLayer ready_layer(PyObject* x, PyObject* w) {
  const ReadyMatrix input = ready_matrix(x), weights = ready_matrix(w);
  if (weights.type != input.type || weights.rows != input.columns) return {};
  return {input.type, {input.rows, weights.rows, weights.columns}};
}

// The number of a name in the dict; -1 where it is no str or not there.
int number_of(const py::dict& numbers, PyObject* name) {
  if (!PyUnicode_CheckExact(name)) return -1;
  PyObject* const number = PyDict_GetItemWithError(numbers.ptr(), name);
  if (!number && PyErr_Occurred()) throw py::error_already_set();
  return number ? int(PyLong_AsLong(number)) : -1;
}

template <class T>
bool within(index count, const T* x, std::pair<double, double> interval) {
  const T low = T(interval.first), high = T(interval.second);
  int outside = 0;
  for (index i = 0; i < count; i++) outside |= !(x[i] >= low) | !(x[i] <= high);
  return !outside;
}

// Whether the sum of each row is near 1.
template <class T>
bool has_unit_rows(ReadyMatrix matrix, const T* x) {
  constexpr int chains = 4;
  for (index r = 0; r < matrix.rows; r++, x += matrix.columns) {
    double sum[chains] = {};
    index j = 0;
    for (; j + chains <= matrix.columns; j += chains) {
      for (int i = 0; i < chains; i++) sum[i] += double(x[j + i]);
    }
    for (; j < matrix.columns; j++) sum[0] += double(x[j]);
    const double total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (!(total > 0.9995 && total < 1.0005)) return false;
  }
  return true;
}

template <class T>
bool targets_fit(const LossFacts& loss, ReadyMatrix matrix, const T* y) {
  return (!loss.interval || within(matrix.rows * matrix.columns, y, *loss.interval)) &&
         (!loss.classes || has_unit_rows(matrix, y));
}

// Whether none is negative, and the sum is well between the limits within which it may be.
template <class T>
bool weights_fit(index samples, const T* weight) {
  double total = 0;
  int negative = 0;
  for (index i = 0; i < samples; i++) {
    negative |= !(weight[i] >= 0);
    total += double(weight[i]);
  }
  using Limits = std::numeric_limits<T>;
  return !negative && total >= 2 * double(Limits::min()) && total <= double(Limits::max()) / 2;
}

PyObject* forward(PyObject* backend, Values values) {
  PyObject *x = values[0], *w = values[1], *b = values[2], *out = values[4], *z = values[5];
  const Lists* const lists = lists_of(backend);
  const auto [type, shape] = ready_layer(x, w);
  if (!lists || type < 0) return nullptr;
  const int f = number_of(lists->activations, values[3]);
  if (f < 0 || !is_ready(b, type, {shape.outputs})) return nullptr;
  if (z != Py_None && !target(z, x, {shape.rows, shape.outputs}, {x, w, b})) return nullptr;
  py::object a = target(out, x, {shape.rows, shape.outputs}, {x, w, b, z});
  if (!a) return nullptr;
  lists->kernels.dense_forward(array(x), array(w), array(b), f, optional_array(z), array(a.ptr()));
  return a.release().ptr();
}

PyObject* delta(PyObject* backend, PyObject* d1, PyObject* w1, PyObject* a0, PyObject* activation, PyObject* out,
                PyObject* z0) {
  const Lists* const lists = lists_of(backend);
  const ReadyMatrix d = ready_matrix(d1), w = ready_matrix(w1);
  if (!lists || d.type < 0 || w.type != d.type || w.columns != d.columns) return nullptr;
  const int f = number_of(lists->activations, activation);
  if (f < 0 || !lists->kernels.is_elementwise(f) || !is_ready(a0, d.type, {d.rows, w.rows})) return nullptr;
  if (z0 != Py_None ? !is_ready(z0, d.type, {d.rows, w.rows}) : lists->slopes_from_input[size_t(f)]) return nullptr;
  py::object result = target(out, d1, {d.rows, w.rows}, {d1, w1, a0, z0});
  if (!result) return nullptr;
  PyObject* const slopes = lists->slopes_from_input[size_t(f)] ? z0 : a0;
  lists->kernels.activation_delta(array(d1), array(w1), array(slopes), f, array(result.ptr()));
  return result.release().ptr();
}

PyObject* activation_delta(PyObject* backend, Values values) {
  return delta(backend, values[0], values[1], values[2], values[3], values[4], values[5]);
}

PyObject* sigmoid_delta(PyObject* backend, Values values) {
  static PyObject* const sigmoid = PyUnicode_InternFromString("sigmoid");
  return delta(backend, values[0], values[1], values[2], sigmoid, values[3], Py_None);
}

PyObject* backward(PyObject* backend, Values values) {
  PyObject *x = values[0], *w = values[1], *d = values[2], *need_dx = values[3];
  const Lists* const lists = lists_of(backend);
  const auto [type, shape] = ready_layer(x, w);
  if (!lists || type < 0) return nullptr;
  if (!is_ready(d, type, {shape.rows, shape.outputs}) || !PyBool_Check(need_dx)) return nullptr;
  const py::object dw = new_array(x, {shape.inputs, shape.outputs}), db = new_array(x, {shape.outputs});
  const py::object dx = need_dx == Py_True ? new_array(x, {shape.rows, shape.inputs}) : py::none();
  lists->kernels.dense_backward(array(x), array(w), array(d), array(dw.ptr()), array(db.ptr()),
                                optional_array(dx.ptr()));
  return PyTuple_Pack(3, dw.ptr(), db.ptr(), dx.ptr());
}

PyObject* output(PyObject* backend, Values values) {
  PyObject *a = values[0], *y = values[1], *out = values[4], *sample_weight = values[5];
  const Lists* const lists = lists_of(backend);
  const ReadyMatrix outputs = ready_matrix(a);
  if (!lists || outputs.type < 0 || !outputs.rows || sample_weight != Py_None) return nullptr;
  const int l = number_of(lists->losses, values[2]), f = number_of(lists->activations, values[3]);
  if (l < 0 || f < 0) return nullptr;
  const LossFacts& loss = lists->loss_facts[size_t(l)];
  if (loss.pairs[size_t(f)] == Pair::undefined || !targets_fit(loss, outputs, y)) return nullptr;
  const py::object d = target(out, a, {outputs.rows, outputs.columns}, {a, y});
  if (!d) return nullptr;
  const double total = double(outputs.rows) * (loss.mean_over_outputs ? double(outputs.columns) : 1);
  const double value = lists->kernels.output_delta(array(a), array(y), {}, total ? 1 / total : 0, l, f,
                                                   loss.pairs[size_t(f)] == Pair::matched, array(d.ptr()));
  return PyTuple_Pack(2, py::float_(value).ptr(), d.ptr());
}

PyObject* update(PyObject* backend, Values values) {
  PyObject *x = values[0], *w = values[1], *b = values[2], *d = values[3];
  const Lists* const lists = lists_of(backend);
  const auto [type, shape] = ready_layer(x, w);
  if (!lists || type < 0) return nullptr;
  if (!is_ready(b, type, {shape.outputs}) || !is_ready(d, type, {shape.rows, shape.outputs})) return nullptr;
  if (!PyFloat_Check(values[4]) || !is_apart(w, {x, b, d}) || !is_apart(b, {x, d})) return nullptr;
  const double rate = PyFloat_AS_DOUBLE(values[4]);
  if (!(rate >= 0 && rate < INFINITY)) return nullptr;
  lists->kernels.dense_update(array(x), array(w), array(b), array(d), rate);
  Py_RETURN_NONE;
}

}  // namespace

const Lists* lists_of(PyObject* backend) {
  // The last ones found. The reference keeps another backend from taking the place of this one in memory.
  static PyObject* known = nullptr;
  static const Lists* known_lists = nullptr;
  if (known == backend) return known_lists;
  const py::object found = py::getattr(backend, "_lists", py::none());
  const Lists* const lists = py::isinstance<Lists>(found) ? found.cast<const Lists*>() : nullptr;
  Py_INCREF(backend);
  PyObject* const before = std::exchange(known, backend);
  known_lists = lists;
  Py_XDECREF(before);  // last, since that may call anything
  return lists;
}

bool targets_fit(const LossFacts& loss, ReadyMatrix a, PyObject* y, bool flat) {
  if (loss.classes && is_ready(y, type_number<std::int64_t>, {a.rows})) {
    const auto* const labels = data_of<std::int64_t>(y);
    return std::all_of(labels, labels + a.rows, [&](std::int64_t label) { return label >= 0 && label < a.columns; });
  }
  const bool is_flat = flat && a.columns == 1 && !loss.classes && is_ready(y, a.type, {a.rows});
  if (!is_flat && !is_ready(y, a.type, {a.rows, a.columns})) return false;
  return a.type == type_number<float> ? targets_fit(loss, a, data_of<float>(y))
                                      : targets_fit(loss, a, data_of<double>(y));
}

bool weights_fit(PyObject* weight, int type, index samples) {
  if (weight == Py_None) return true;
  if (!is_ready(weight, type, {samples})) return false;
  return type == type_number<float> ? weights_fit(samples, data_of<float>(weight))
                                    : weights_fit(samples, data_of<double>(weight));
}

std::vector<QuickFunction> quick_kernels() {
  return {{"dense_forward", "x w b activation out z", forward},
          {"activation_delta", "d1 w1 a0 activation out z0", activation_delta},
          {"sigmoid_delta", "d1 w1 a0 out", sigmoid_delta},
          {"dense_backward", "x w d need_dx", backward},
          {"dense_update", "x w b d learning_rate", update},
          {"output_delta", "a y loss activation out sample_weight", output}};
}

}  // namespace pyfastnn
