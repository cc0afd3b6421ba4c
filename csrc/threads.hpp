// The only file, with threads.cpp, that knows how work is spread over threads (OpenMP or nothing).
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "kernels.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyfastnn::threads {

// Threads that a call made now may use: the least of the processors this process may run on, the
// CPU quota of its container, OMP_NUM_THREADS (or what threadpoolctl says) and set_limit; one
// in a forked child, where the OpenMP runtime would hang.
int limit();
void set_limit(int threads);  // 0: automatic
// For tests: set_limit alone decides, so that threads can be more than there are processors.
void oversubscribe(bool on);
std::string explain();  // the figures behind limit(), for people

// f(i, thread) for every i in [0, count), claimed one by one, so that a thread that the system has
// taken away holds nobody up. f must not throw.
template <class F>
void for_each(index count, int threads, F f) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (index i = 0; i < count; i++) f(i, omp_get_thread_num());
    return;
  }
#endif
  (void)threads;
  for (index i = 0; i < count; i++) f(i, 0);
}

// f(thread, threads) once on each thread of a team of at most `threads`. f must not throw.
template <class F>
void team(int threads, F f) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    f(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  f(0, 1);
}

using Clock = std::chrono::steady_clock;

// Where a team waits for its last member: spinning for some microseconds, then giving way, since a
// member that is not on a processor may need this one.
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
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
      if (spins < 4000)
        relax();
      else
        std::this_thread::yield();
    }
  }

 private:
  static void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

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
  static bool crowd() { return now() < until; }

  static void met() {
    const Clock::rep least = Clock::duration(std::chrono::milliseconds(100)).count(), most = 16 * least;
    pause = now() < until + pause ? std::min<Clock::rep>(2 * pause, most) : least;
    until = now() + pause;
  }

 private:
  static Clock::rep now() { return Clock::now().time_since_epoch().count(); }

  inline static std::atomic<Clock::rep> until{0}, pause{0};
};

// One thread or a team, for steps so short that the processor decides: what a team gains it may lose again
// on the way from one core to another. Both are tried, and the faster one goes on until it is time to try again.
class Pace {
 public:
  struct Turn {
    bool team;
    index steps;
  };

  // Who takes the next of `left` steps, and how many.
  Turn next(index left) {
    const index turn = turns_++ % again;
    if (turn == 0) {
      alone_ = team_ = unknown;
      return {false, (left + 7) / 8};
    }
    // A team's first turn is slow: threads start, and fill their caches.
    return {turn <= 3 || team_ < alone_, left};
  }

  void took(Turn turn, double seconds) {
    double& best = turn.team ? team_ : alone_;
    best = std::min(best, seconds / double(turn.steps));
  }

 private:
  static constexpr index again = 256;
  static constexpr double unknown = 1e9;

  index turns_ = 0;
  double alone_ = unknown, team_ = unknown;  // seconds a step
};

// Steps [number, steps) by a team: step(number, thread, active, barrier) on each of its active threads, where
// barrier() waits for all of them once inside the step; they meet at its end too where `barrier_after`.
// What steps compute must not depend on `active`. join(thread) is called on each thread but the first
// when a team forms. Denormals are flushed meanwhile.
//
// A neighbour that takes a processor would hold up the whole team at every barrier. So when thread 0
// has waited much longer than it worked, the team dissolves and thread 0 goes on alone for a while.
template <class Join, class Step>
void run_steps(int most_threads, index number, index steps, bool barrier_after, Join join, Step step) {
  constexpr auto tolerated = std::chrono::microseconds(300);

  const auto alone = [&] {
    const FlushDenormals flush;
    do step(number, 0, 1, [] {});
    while (++number < steps && (most_threads == 1 || Neighbours::crowd()));
  };

  const auto together = [&] {
    Barrier barrier;
    std::atomic<index> end{steps};  // set before barrier(), read after it
    index reached = number;
    team(most_threads, [&](int thread, int threads) {
      const FlushDenormals flush;
      if (thread) join(thread);
      bool late = false;
      index own = number;
      auto left = Clock::now();  // the last barrier
      const auto wait = [&] {
        const auto arrived = Clock::now();
        barrier.wait(threads);
        const auto worked = arrived - left;
        left = Clock::now();
        late = late || (left - arrived > tolerated && left - arrived > worked / 2);
      };
      while (own < end) {
        step(own++, thread, threads, [&] {
          if (thread == 0 && late) end = own;
          wait();
        });
        if (barrier_after) wait();
      }
      if (thread) return;
      reached = own;
      if (late) Neighbours::met();
    });
    number = reached;
  };

  while (number < steps) {
    if (most_threads == 1 || Neighbours::crowd())
      alone();
    else
      together();
  }
}

}  // namespace pyfastnn::threads
