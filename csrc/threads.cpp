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
std::atomic<bool> in_forked_child{false}, oversubscribed{false};

struct ForkGuard {
  ForkGuard() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif
  }
} fork_guard;

// Processors that `quota` of every `period` microseconds amount to, rounded up; 0: no quota.
int processors_of(double quota, double period) { return quota > 0 && period > 0 ? int(std::ceil(quota / period)) : 0; }

// The least CPU quota of this process's control group (version 2) and those above it, or that of its container
// (version 1), in processors; 0: none.
int read_quota() {
  std::string group;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);)
    if (line.compare(0, 3, "0::") == 0) group = line.substr(3);
  int least = 0;
  for (;; group.resize(group.rfind('/'))) {
    double quota = 0, period = 0;
    // "max 100000" fails to parse as numbers: no quota.
    std::ifstream("/sys/fs/cgroup" + group + "/cpu.max") >> quota >> period;
    const int here = processors_of(quota, period);
    if (here && (!least || here < least)) least = here;
    if (group.rfind('/') == std::string::npos) break;
  }
  double quota = 0, period = 0;
  std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
  std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  return least ? least : processors_of(quota, period);
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
  if (oversubscribed) return std::max<int>(requested, 1);
  int threads = std::min(processors(), runtime_limit());
  if (quota()) threads = std::min(threads, quota());
  if (requested) threads = std::min<int>(threads, requested);
  return std::max(threads, 1);
}

void set_limit(int threads) { requested = threads; }

void oversubscribe(bool on) { oversubscribed = on; }

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
