#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace pyfastnn::threads {
namespace {

std::atomic<int> requested{0};
std::atomic<bool> in_forked_child{false};

struct ForkGuard {
  ForkGuard() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif
  }
} fork_guard;

// The CPU quota of the container, as its root control group says, in processors, rounded up; 0: none.
int read_quota() {
  double quota = 0, period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period) {
    // "max 100000" fails to parse as numbers: no quota.
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? int(std::ceil(quota / period)) : 0;
}

int quota() {
  static const int value = read_quota();
  return value;
}

#if defined(_OPENMP)
int processors() { return omp_get_num_procs(); }
int runtime_limit() { return omp_get_max_threads(); }
#else
int processors() { return 1; }
int runtime_limit() { return 1; }
#endif

}  // namespace

int limit() {
  if (in_forked_child) return 1;
  int threads = std::min(processors(), runtime_limit());
  if (quota()) threads = std::min(threads, quota());
  if (requested) threads = std::min<int>(threads, requested);
  return std::max(threads, 1);
}

void set_limit(int threads) { requested = threads; }

std::string explain() {
#if defined(_OPENMP)
  std::string text = "OpenMP " + std::to_string(_OPENMP);
#else
  std::string text = "built without OpenMP";
#endif
  text += ", processors " + std::to_string(processors()) + ", runtime limit " + std::to_string(runtime_limit());
  text += ", CPU quota " + (quota() ? std::to_string(quota()) : std::string("none"));
  text += ", requested " + (requested ? std::to_string(requested) : std::string("automatic"));
  if (in_forked_child) text += ", forked child: one thread";
  return text;
}

}  // namespace pyfastnn::threads
