// Epochs, and single batches, by the schedule that suits them.
#include "schedules.hpp"

namespace pyfastnn {
namespace {

// The sum of the sample weights of a batch.
template <class T>
double total_weight(const Samples<T>& samples, index first, index rows) {
  if (!samples.weight) return double(rows);
  double total = 0;
  for (index r = first; r < first + rows; r++) total += double(samples.weight[Worker<T>::sample(samples, r)]);
  return total;
}

// Multiply-adds of a step, in numbers of four bytes. To update a parameter counts as eight, and eight for each slot.
template <class T>
double step_work(const Network<T>& network, index batch, index slots) {
  return (3.0 * double(batch) + passage(double(1 + slots))) * double(network.compact_size) * sizeof(T) / 4;
}

// Below, a team may be slower than one thread: some 50 us.
constexpr double doubtful_work = 5e6;

// Threads that pay: two for a step of some microseconds, more if that leaves each of them some.
template <class T>
int team_size(const Network<T>& network, index batch, index slots, double steps) {
  const double step = step_work(network, batch, slots);
  const int paying = std::max(int(std::min(step / 1.5e5, 1e6)), step < 1.2e5 ? 1 : 2);
  return std::min(paying, threads_for<T>(step * steps, epoch_cost));
}

// How long that much work may wait for other threads to wake up: an eighth of what it takes without them,
// but not so long that they must be busy elsewhere.
threads::Clock::duration patience(double work) {
  const double seconds = std::min(work / 1e11 / 8, 1e-3);
  return std::chrono::duration_cast<threads::Clock::duration>(std::chrono::duration<double>(seconds));
}

// All batches of the samples in turn, with steps of a rule by its numbers unless it is null; returns their mean loss.
template <class T>
double run(Schedule<T>& schedule, const Samples<T>& samples, const Rule<T>* rule, const double* numbers) {
  const index batch = schedule.task.batch;
  const int threads = schedule.most_threads();
  const Network<T>& network = schedule.task.network;
  const double outputs = network.mean_over_outputs ? double(network.layers.back().outputs) : 1.0;
  const index count = (samples.count + batch - 1) / batch;
  double total = 0, total_weights = 0;
  const auto join = [&](int thread) { schedule.join(thread); };
  const auto step = [&](index at, int thread, int active, auto barrier) {
    const index first = at * batch, rows = std::min(batch, samples.count - first);
    const double weight = total_weight(samples, first, rows);
    // The scale is that of batch_scale in backends/plan.py.
    const Batch<T> now{at,   first,
                       rows, weight != 0 ? 1 / (weight * outputs) : 0.0,
                       rule, rule ? numbers + at * rule->numbers : nullptr};
    for (index number = 0; number < schedule.stages(); number++) {
      if (number) barrier();
      schedule.stage(number, now, thread, active);
    }
    if (thread) return;
    total += weight * schedule.loss(now);
    total_weights += weight;
  };
  threads::Team team(schedule.barrier_after(), join, step);
  schedule.start();
  const double work = step_work(network, batch, schedule.task.slots);
  const bool doubtful = threads > 1 && work < doubtful_work && !threads::is_oversubscribed();
  for (index first = 0; first < count;) {
    const threads::Pace::Turn turn = doubtful ? schedule.pace.next(count - first) : threads::Pace::Turn{true, count};
    const auto start = threads::Clock::now();
    team.run(turn.team ? threads : 1, first, first + turn.steps, patience(work * double(turn.steps)));
    if (doubtful)
      schedule.pace.took(turn, std::chrono::duration<double>(threads::Clock::now() - start).count(), team.complete());
    first += turn.steps;
  }
  schedule.finish();
  return total / total_weights;
}

}  // namespace

template <class T>
Spare<T>::~Spare() {
  delete kept_.load();
}

template <class T>
std::unique_ptr<Schedule<T>> Spare<T>::take() {
  return std::unique_ptr<Schedule<T>>(kept_.exchange(nullptr));
}

template <class T>
void Spare<T>::give(std::unique_ptr<Schedule<T>> schedule) {
  delete kept_.exchange(schedule.release());
}

namespace {

template <class T>
std::unique_ptr<Schedule<T>> schedule_from(Spare<T>& spare, const Task<T>& task) {
  std::unique_ptr<Schedule<T>> schedule = spare.take();
  return schedule && schedule->suits(task) ? std::move(schedule) : schedule_for<T>(task);
}

}  // namespace

template <class T>
double loss_and_gradient(const Network<T>& network, Spare<T>& spare, const T* params, const Samples<T>& samples,
                         T* gradient) {
  const Task<T> task{network, samples.count, team_size(network, samples.count, 0, 1), 0, Gathered(samples)};
  auto schedule = schedule_from<T>(spare, task);
  schedule->begin(samples);
  network.pad(params, schedule->parameters.values.data);
  const double loss = run<T>(*schedule, samples, nullptr, nullptr);
  network.unpad(schedule->parameters.gradient.data, gradient);
  spare.give(std::move(schedule));
  return loss;
}

template <class T>
Training<T>::Training(const Network<T>& network, Spare<T>& spare, T* params, T* const* slots, const Rule<T>& rule,
                      index batch)
    : network_(network), spare_(spare), params_(params), rule_(rule), batch_(batch) {
  std::copy_n(slots, rule.slots, slots_);
}

template <class T>
Training<T>::~Training() {
  if (schedule_) spare_.give(std::move(schedule_));
}

template <class T>
double Training<T>::epoch(const Samples<T>& samples, const double* numbers) {
  const int threads = team_size(network_, batch_, rule_.slots, double(samples.count) / double(batch_));
  const Task<T> task{network_, batch_, threads, rule_.slots, Gathered(samples)};
  if (!schedule_ || !schedule_->suits(task)) {
    pull();
    newest_ = Newest::given;
    schedule_ = schedule_from<T>(spare_, task);
  }
  schedule_->begin(samples);
  Parameters<T>& parameters = schedule_->parameters;
  if (newest_ == Newest::given) {
    network_.pad(params_, parameters.values.data);
    for (int i = 0; i < rule_.slots; i++) network_.pad(slots_[i], parameters.slots[size_t(i)].data);
  }
  newest_ = Newest::padded;
  return run<T>(*schedule_, samples, &rule_, numbers);
}

template <class T>
void Training<T>::pull() {
  if (newest_ != Newest::padded) return;
  const Parameters<T>& parameters = schedule_->parameters;
  network_.unpad(parameters.values.data, params_);
  for (int i = 0; i < rule_.slots; i++) network_.unpad(parameters.slots[size_t(i)].data, slots_[i]);
  newest_ = Newest::both;
}

#define INSTANTIATE(T)                                                                              \
  template class Spare<T>;                                                                          \
  template double loss_and_gradient(const Network<T>&, Spare<T>&, const T*, const Samples<T>&, T*); \
  template class Training<T>;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace pyfastnn
