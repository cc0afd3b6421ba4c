// Threads that take the steps of an epoch together, and decide while they do whether that pays.
#pragma once

#include <vector>

#include "threads.hpp"

namespace pyfastnn::threads {

// Where the share of a thread begins, of `count` units; thread 0, which others must not keep waiting, has
// the largest. It ends where the next one begins.
inline index share_begin(index count, index thread, index threads) { return (count * thread + threads - 1) / threads; }
// Whether one of the shares begins with this unit.
inline bool begins_share(index unit, index count, index threads) {
  return share_begin(count, unit * threads / count, threads) == unit;
}

// Units of work that the threads of a team claim one by one: first those of their own share, which their caches know,
// then what slower threads have left of theirs.
class Claims {
 public:
  explicit Claims(int threads) : claimed_(size_t(threads)) {}

  // f(unit) for the units in [0, count) that fall to this thread.
  template <class F>
  void each(index count, int thread, int threads, F f) {
    for (int i = 0; i < threads; i++) {
      const int share = (thread + i) % threads;
      const index begin = share_begin(count, share, threads), end = share_begin(count, share + 1, threads);
      std::atomic<index>& claimed = claimed_[size_t(share)].units;
      for (index unit; (unit = begin + claimed.fetch_add(1, std::memory_order_relaxed)) < end;) f(unit);
    }
  }
  // Before the next ones, when no thread is claiming.
  void forget() {
    for (Line& line : claimed_) line.units.store(0, std::memory_order_relaxed);
  }

 private:
  struct alignas(64) Line {
    std::atomic<index> units{0};
  };
  std::vector<Line> claimed_;
};

// Where a team waits for its last member.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (Wait wait; phase_.load(std::memory_order_acquire) == phase;) wait.once();
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

// Denormal numbers count as zero on this thread while this object lives: they cost a hundred times
// the normal ones, and vanishing gradients are full of them.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (1u << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#else
  FlushDenormals() {}
#endif
};

// Whether a neighbour has lately taken a processor that a team needed. When the next team meets that
// again soon, it is twice as long until another one may form.
class Neighbours {
 public:
  static bool crowd() { return Clock::now().time_since_epoch().count() < until; }
  static void forget() { credit = until = pause = 0; }

  // How long a team has worked and then waited for its last member; returns whether it shall dissolve. Good work
  // earns credit, an eighth of its time, which a member that is late now and then uses up.
  static bool met(Clock::duration worked, Clock::duration waited) {
    const Clock::rep usual = std::max(ticks(100), worked.count() / 2);
    const Clock::rep late = std::max<Clock::rep>(waited.count() - usual, 0);
    credit = std::min(credit + worked.count() / 8 - late, ticks(5'000));
    if (credit >= 0) return false;
    credit = ticks(200);
    const Clock::rep now = Clock::now().time_since_epoch().count();
    pause = now < until + pause ? std::min<Clock::rep>(2 * pause, ticks(1'600'000)) : ticks(25'000);
    until = now + pause;
    return true;
  }

 private:
  static constexpr Clock::rep ticks(int microseconds) {
    return Clock::duration(std::chrono::microseconds(microseconds)).count();
  }

  // Of all teams, and roughly: two that change one of them at once may lose a change.
  inline static std::atomic<Clock::rep> credit{0}, until{0}, pause{0};
};

// One thread or a team, for steps so short that the processor decides: what a team gains it may lose again
// on the way from one core to another. Both are tried for some turns, of which the first does not count: it fills
// caches, and is repeated until the team is complete, unless that takes too long. The one with the lesser median goes
// on until it is time to try again.
class Pace {
 public:
  struct Turn {
    bool team;
    index steps;
  };

  // Who takes the next of `left` steps, and how many.
  Turn next(index left) {
    turn_ = (turn_ + 1) % again;
    if (turn_ >= 2 * trials) return {team_pays_, left};
    return {turn_ >= trials, std::min(left, std::max<index>(left / 8, 8))};
  }

  void took(Turn turn, double seconds, bool complete) {
    if (turn_ >= 2 * trials) return;
    if (turn_ == trials && !complete && repeated_ < most_repeated) {
      repeated_++;
      turn_--;
      return;
    }
    repeated_ = 0;
    times_[turn_ / trials][turn_ % trials] = seconds / double(turn.steps);
    if (turn_ == 2 * trials - 1) team_pays_ = median(times_[1]) < 0.97 * median(times_[0]);
  }

 private:
  static constexpr int trials = 4, again = 32, most_repeated = 8;

  static double median(double (&times)[trials]) {
    std::sort(times + 1, times + trials);
    return times[trials / 2];
  }

  int turn_ = -1, repeated_ = 0;
  double times_[2][trials];  // a step of one thread, and of a team
  bool team_pays_ = false;
};

// The steps of an epoch, by one thread or several.
//
// Thread 0 begins alone, and goes on with those who have woken up by the end of a step: a team grows by rounds, of
// which all members meet at the end. A neighbour that takes a processor would hold up the whole team at every
// barrier. So when thread 0 has waited much longer than it worked, the team dissolves and thread 0
// goes on alone for a while.
//
// step(number, thread, active, barrier) runs on each of `active` threads, where barrier() waits for all of
// them, once or more inside the step; they meet at its end too where `barrier_after`. What steps compute must not
// depend on `active`. join(thread) is called on a thread but the first when it begins a round. Denormals are flushed
// meanwhile.
template <class Join, class Step>
class Team {
 public:
  Team(bool barrier_after, Join join, Step step) : barrier_after_(barrier_after), join_(join), step_(step) {}

  // Whether all threads took the last of the steps.
  bool complete() const { return complete_; }

  // Steps [first, last) by at most so many threads. At the start, others are waited for until `patience` is over.
  void run(int most_threads, index first, index last, Clock::duration patience) {
    most_threads_ = most_threads;
    number_ = first;
    while (number_ < last) {
      if (most_threads_ == 1 || Neighbours::crowd())
        alone(last);
      else
        together(last, patience);
    }
  }

 private:
  void alone(index last) {
    const FlushDenormals flush;
    complete_ = most_threads_ == 1;
    do step_(number_, 0, 1, [] {});
    while (++number_ < last && (most_threads_ == 1 || Neighbours::crowd()));
  }

  void together(index last, Clock::duration patience) {
    arrived_ = 1;
    active_ = 0;
    share(most_threads_, [&](int thread) {
      const FlushDenormals flush;
      if (thread == 0)
        lead(last, patience);
      else
        follow();
    });
  }

  void lead(index last, Clock::duration patience) {
    const auto start = Clock::now();
    for (Wait wait; arrived_ < most_threads_ && Clock::now() - start < patience;) wait.once();
    bool late = false;
    while (number_ < last && !late) {
      const int active = arrived_;
      complete_ = active == most_threads_;
      end_ = last;
      active_ = active;
      late = round(0, active);
    }
    active_ = over;
  }

  void follow() {
    const int thread = arrived_++;
    for (int active = thread;;) {
      // Every round has more members than the one before.
      const int before = active;
      for (Wait wait; (active = active_) <= before;) wait.once();
      if (active == over) return;
      join_(thread);
      round(thread, active);
    }
  }

  // Returns, to thread 0, whether it has waited for too long.
  bool round(int thread, int active) {
    bool late = false;
    index number = number_;
    auto left = Clock::now();  // the last barrier
    const auto wait = [&] {
      if (active == 1) return;
      const auto arrived = Clock::now();
      barrier_.wait(active);
      const auto worked = arrived - left;
      left = Clock::now();
      // A round's first step is slow: threads join, and fill their caches.
      if (thread == 0 && number > number_ + 1) late = late || Neighbours::met(worked, left - arrived);
    };
    while (number < end_) {
      step_(number++, thread, active, [&] {
        if (thread == 0 && (late || arrived_ > active)) end_ = number;
        wait();
      });
      if (barrier_after_) wait();
    }
    barrier_.wait(active);
    if (thread == 0) number_ = number;
    return late;
  }

  static constexpr int over = 1 << 30;

  const bool barrier_after_;
  Join join_;
  Step step_;
  Barrier barrier_;
  int most_threads_ = 1;
  bool complete_ = false;
  index number_ = 0;             // of the next step, between rounds
  std::atomic<index> end_{0};    // of the round: set before a barrier or active_, read after it
  std::atomic<int> arrived_{1};  // threads that are there, thread 0 among them
  std::atomic<int> active_{0};   // those of the round, which were the first to arrive; or over
};

}  // namespace pyfastnn::threads
