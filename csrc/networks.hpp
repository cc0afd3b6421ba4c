// Networks on NumPy arrays, which have been checked.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "arrays.hpp"
#include "plan.hpp"

namespace pyfastnn {

template <class T>
Samples<T> samples_of(const Array& x, const Array& y, const OptionalArray& weight, const std::int64_t* order) {
  const bool labels = y.dtype().kind() == 'i';
  return {input<T>(x),
          labels ? nullptr : input<T>(y),
          labels ? input<std::int64_t>(y) : nullptr,
          weight ? input<T>(*weight) : nullptr,
          order,
          x.shape(0)};
}

using AnyTraining = std::variant<std::unique_ptr<Training<float>>, std::unique_ptr<Training<double>>>;

// f(training, T{}) with the training in its dtype.
template <class F>
auto visit(const AnyTraining& any, F f) {
  if (const auto* training = std::get_if<std::unique_ptr<Training<float>>>(&any)) return f(**training, 0.0f);
  return f(*std::get<std::unique_ptr<Training<double>>>(any), 0.0);
}

// A network laid out for one instruction set and dtype; with any_width, maybe a narrower one than was given.
class Plan {
 public:
  Plan(const Kernels& kernels, const Array& like, const std::vector<index>& sizes, const std::vector<int>& activations,
       const std::vector<bool>& slopes_from_input, int loss, bool matched, bool mean_over_outputs, bool any_width)
      : loss_(loss) {
    by_dtype(like, [&](auto zero) {
      using T = decltype(zero);
      network_ = Network<T>(any_width ? kernels.table_for<T>(sizes) : kernels.table<T>(), sizes, activations,
                            slopes_from_input, loss, matched, mean_over_outputs);
    });
  }

  // f(network, T{}) with the network in its dtype.
  template <class F>
  auto visit(F f) const {
    if (const auto* network = std::get_if<Network<float>>(&network_)) return f(*network, 0.0f);
    return f(std::get<Network<double>>(network_), 0.0);
  }

  int loss() const { return loss_; }

  void predict(const Array& params, const Array& x, Array out) const {
    visit([&](auto& network, auto zero) {
      using T = decltype(zero);
      T* to = output<T>(out);
      const index count = x.shape(0);
      without_lock(double(count) * double(network.compact_size),
                   [&] { pyfastnn::predict(network, input<T>(params), input<T>(x), count, to); });
    });
  }

  double loss_and_gradient(const Array& params, const Array& x, const Array& y, const OptionalArray& weight,
                           Array gradient) const {
    return visit([&](auto& network, auto zero) {
      using T = decltype(zero);
      const Samples<T> samples = samples_of<T>(x, y, weight, nullptr);
      T* to = output<T>(gradient);
      return without_lock(3 * double(samples.count) * double(network.compact_size), [&] {
        return pyfastnn::loss_and_gradient(network, spare<T>(), input<T>(params), samples, to);
      });
    });
  }

  AnyTraining training(Array params, std::vector<Array> slots, index batch, int rule) const {
    return visit([&](auto& network, auto zero) -> AnyTraining {
      using T = decltype(zero);
      T* slot_data[max_slots] = {};
      for (size_t i = 0; i < slots.size(); i++) slot_data[i] = output<T>(slots[i]);
      return std::make_unique<Training<T>>(network, spare<T>(), output<T>(params), slot_data,
                                           network.kernels->rules[rule], batch);
    });
  }

 private:
  template <class T>
  Spare<T>& spare() const {
    if constexpr (sizeof(T) == sizeof(float))
      return spare_f32_;
    else
      return spare_f64_;
  }

  const int loss_;  // its number
  AnyNetwork network_;
  mutable Spare<float> spare_f32_;
  mutable Spare<double> spare_f64_;
};

}  // namespace pyfastnn
