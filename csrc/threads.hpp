// The only file, with threads.cpp, that knows how work is spread over threads (OpenMP or nothing).
#pragma once

#include <string>

#include "kernels.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pyfastnn::threads {

// Threads that a call made now may use: the least of the processors this process may run on, the
// CPU quota of its control group, OMP_NUM_THREADS (or what threadpoolctl says) and set_limit; one
// in a forked child, where the OpenMP runtime would hang.
int limit();
void set_limit(int threads);  // 0: automatic
std::string explain();        // the figures behind limit(), for people

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

}  // namespace pyfastnn::threads
