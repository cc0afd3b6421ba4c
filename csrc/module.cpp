// Python bindings: unpack the arrays, release the interpreter lock, call. No mathematics, and no
// checks: pyfastnn/kernels.py has made them, and this module is private.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "draws.hpp"
#include "fit.hpp"
#include "networks.hpp"
#include "quick.hpp"
#include "quick_kernels.hpp"
#include "teams.hpp"

namespace py = pybind11;

namespace pyfastnn {
namespace {

py::array_t<std::int64_t> permutation_of(const py::object& bit_generator, index count) {
  Draws draws(bit_generator, double(count));
  py::array_t<std::int64_t> order(count);
  std::int64_t* const to = order.mutable_data();
  without_lock(64 * double(count), [&] { draws.permutation(count, to); });
  draws.give_back();
  return order;
}

using LossTuple = std::tuple<std::optional<std::pair<double, double>>, bool, bool, std::vector<int>>;

Lists make_lists(const Kernels& kernels, py::dict activations, std::vector<bool> slopes_from_input, py::dict losses,
                 const std::vector<LossTuple>& facts) {
  std::vector<LossFacts> loss_facts;
  for (const auto& [interval, classes, mean_over_outputs, pairs] : facts) {
    LossFacts& each = loss_facts.emplace_back(LossFacts{interval, classes, mean_over_outputs, {}});
    for (int pair : pairs) each.pairs.push_back(Pair(pair));
  }
  return {kernels, std::move(activations), std::move(losses), std::move(slopes_from_input), std::move(loss_facts)};
}

std::vector<std::string> instruction_set_names() {
  std::vector<std::string> list;
  for (const InstructionSet& set : instruction_sets()) list.push_back(set.name);
  return list;
}

}  // namespace
}  // namespace pyfastnn

PYBIND11_MODULE(_core, m) {
  using pyfastnn::Kernels, pyfastnn::Lists, pyfastnn::make_lists;
  m.attr("compiler") = PYFASTNN_COMPILER;
  m.def("follow_choice", pyfastnn::follow_choice, "follow_choice(context_choice, process_choice)");
  m.def("with_quick_way", pyfastnn::with_quick_way, "The function, behind its quick way.");
  m.def("instruction_sets", pyfastnn::instruction_set_names, "Those of this machine, the best last.");
  m.def("permutation", pyfastnn::permutation_of, "Generator.permutation(n) from its bit generator.");
  m.def("set_thread_limit", pyfastnn::threads::set_limit, "0: automatic.");
  m.def(
      "oversubscribe",
      [](bool on) {
        pyfastnn::threads::oversubscribe(on);
        pyfastnn::threads::Neighbours::forget();
      },
      "For tests: more threads than there are processors, and teams as if none had met a neighbour.");
  m.def("thread_limit", pyfastnn::threads::limit);
  m.def("explain_threads", pyfastnn::threads::explain);
  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&>())
      .def("activations", &Kernels::activations)
      .def("losses", &Kernels::losses)
      .def("rules", &Kernels::rules)
      .def("dense_forward", &Kernels::dense_forward)
      .def("activation_delta", &Kernels::activation_delta)
      .def("dense_backward", &Kernels::dense_backward)
      .def("dense_update", &Kernels::dense_update)
      .def("output_delta", &Kernels::output_delta)
      .def("update", &Kernels::update)
      .def("multiply_add_rate", &Kernels::multiply_add_rate)
      .def("read_rate", &Kernels::read_rate);
  py::class_<Lists>(m, "Lists")
      .def(py::init(&make_lists), py::keep_alive<1, 2>(),
           "Lists(kernels, activations, slopes_from_input, losses, facts of each loss)");
  py::class_<pyfastnn::Plan>(m, "Plan")
      .def(py::init<const Kernels&, const py::array&, const std::vector<pyfastnn::index>&, const std::vector<int>&,
                    const std::vector<bool>&, int, bool, bool, bool>())
      .def("bound", pyfastnn::bound_network)
      .def("predict", &pyfastnn::Plan::predict)
      .def("loss_and_gradient", &pyfastnn::Plan::loss_and_gradient)
      .def("fit", pyfastnn::fit);
  py::class_<pyfastnn::Fit>(m, "Fit")
      .def(py::init<const pyfastnn::Plan&, py::array, pyfastnn::index, int, py::object>(), py::keep_alive<1, 2>())
      .def("epoch", &pyfastnn::Fit::epoch)
      .def("pull", &pyfastnn::Fit::pull)
      .def("push", &pyfastnn::Fit::push);
}
