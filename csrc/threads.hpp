// The only file, with threads.cpp, that knows where threads come from: a pool of our own.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>

#include "kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyfastnn::threads {

// Threads that a call made now may use: the least of the processors this process may run on, the
// CPU quota of its container, OMP_NUM_THREADS (or what threadpoolctl says) and set_limit; one
// in a forked child, which has no threads but its first.
int limit();
void set_limit(int threads);  // 0: automatic
// For tests: set_limit alone decides, so that threads can be more than there are processors, and teams form where they
// can.
void oversubscribe(bool on);
bool is_oversubscribed();
std::string explain();  // the figures behind limit(), for people

// Whether threads would come at once to some `seconds` of work, or are worth waking since this thread asks so often.
bool alert(double seconds);

using Clock = std::chrono::steady_clock;

// Waiting for another thread: on the processor at first, then giving way, since a thread that is
// not on a processor may need this one, and after some milliseconds nearly asleep.
class Wait {
 public:
  explicit Wait(int spins = 4000) : spins_(spins) {}

  void once() {
    if (spins_ > 0) {
      spins_--;
      relax();
    } else {
      give_way();
    }
  }

 private:
  void give_way();
  static void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  int spins_, yields_ = 0;
};

// work(context, 0) on this thread and, on as many of the pool's as wake up in time, work(context, 1) to
// work(context, threads - 1). Returns when all that have begun have ended: nobody begins once one of them has ended,
// and so nobody is waited for who has not come. Work must not throw. The last caller is served first.
void share(int threads, void (*work)(void* context, int thread), void* context);

template <class F>
void share(int threads, F f) {
  share(threads, [](void* context, int thread) { (*static_cast<F*>(context))(thread); }, &f);
}

// f(i, thread) for every i in [0, count), claimed one by one, so that a thread that the system has
// taken away, or not woken yet, holds nobody up. f must not throw.
template <class F>
void for_each(index count, int threads, F f) {
  if (threads == 1 || count < 2) {
    for (index i = 0; i < count; i++) f(i, 0);
    return;
  }
  std::atomic<index> next{0};
  share(threads, [&](int thread) {
    for (index i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i, thread);
  });
}

}  // namespace pyfastnn::threads
