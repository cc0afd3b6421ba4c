#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
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

// Those this process may run on.
int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(int(std::thread::hardware_concurrency()), 1);
}

// What OMP_NUM_THREADS says or, where there is an OpenMP runtime, threadpoolctl has told it since.
int runtime_limit() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  const char* const text = std::getenv("OMP_NUM_THREADS");
  const int threads = text ? std::atoi(text) : 0;
  return threads > 0 ? threads : INT_MAX;
#endif
}

// How long a thread that has worked stays awake: the next job is often near, and waking takes some fifty
// microseconds.
constexpr auto drowsy = std::chrono::microseconds(200);

// Work that waits for threads; it lies with its caller.
struct Job {
  void (*work)(void*, int);
  void* context;
  int threads;  // at most, the caller's among them
  // Guarded by the pool's mutex.
  int begun = 1;
  Job* next = nullptr;
  // Of the pool's threads; once it is zero again, the job may be gone.
  std::atomic<int> running{0};
};

// Threads that sleep between jobs. It is never destroyed: they may outlive every other object.
class Pool {
 public:
  void run(Job& job) {
    bool few;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      grow(job.threads - 1);
      job.next = jobs_;
      jobs_ = &job;
      posted_++;
      wanted_ = job.threads - 1;
      few = awake_ < wanted_;
    }
    if (few) wake();
    job.work(job.context, 0);
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      remove(job);
    }
    for (Wait wait; job.running.load(std::memory_order_acquire);) wait.once();
  }

  bool awake() const { return awake_ > 0; }

 private:
  // Starting a thread may fail: there are fewer then.
  void grow(int size) {
    try {
      for (; size_ < size; size_++) std::thread([this] { serve(); }).detach();
    } catch (const std::exception&) {
    }
  }

  void remove(Job& job) {
    for (Job** at = &jobs_; *at; at = &(*at)->next) {
      if (*at != &job) continue;
      *at = job.next;
      return;
    }
  }

  // Takes some ten microseconds where a thread sleeps; so whoever has been woken wakes two more.
  void wake() {
    if (asleep_ > 0) wakened_.notify_one();
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      while (!jobs_) rest(lock);
      Job& job = *jobs_;
      const int thread = job.begun++;
      const bool few = awake_ < job.threads - job.begun;
      if (job.begun == job.threads) remove(job);
      job.running.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      for (int i = 0; few && i < 2; i++) wake();
      job.work(job.context, thread);
      lock.lock();
      remove(job);  // nothing is left for others
      job.running.fetch_sub(1, std::memory_order_release);
    }
  }

  // Until there is a job: awake at first, if not more are than the last job wanted, then asleep.
  void rest(std::unique_lock<std::mutex>& lock) {
    const auto until = Clock::now() + drowsy;
    awake_++;
    while (!jobs_ && awake_ <= wanted_ && Clock::now() < until) {
      const unsigned posted = posted_;
      lock.unlock();
      for (Wait wait(100); posted_ == posted && Clock::now() < until;) wait.once();
      lock.lock();
    }
    awake_--;
    asleep_++;
    wakened_.wait(lock, [&] { return jobs_; });
    asleep_--;
  }

  std::mutex mutex_;
  std::condition_variable wakened_;
  Job* jobs_ = nullptr;  // with room for more threads
  int size_ = 0, wanted_ = 0;
  // Changed with the mutex held, read without.
  std::atomic<int> awake_{0}, asleep_{0};  // threads without work
  std::atomic<unsigned> posted_{0};        // jobs, so far
};

Pool& pool = *new Pool;

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

bool is_oversubscribed() { return oversubscribed; }

void Wait::give_way() {
  constexpr int most_yields = 20'000;
  if (yields_ < most_yields) {
    yields_++;
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

bool alert(double seconds) {
  thread_local Clock::time_point last;
  const auto before = last;
  last = Clock::now();
  // A call may take as long as a thread stays awake after it, and the last one may have taken several times what is
  // expected of this.
  return pool.awake() || last - before < 2 * drowsy + std::chrono::duration<double>(8 * seconds);
}

void share(int threads, void (*work)(void*, int), void* context) {
  // A forked child may have inherited a locked pool.
  if (threads == 1 || in_forked_child) return work(context, 0);
  Job job{work, context, threads};
  pool.run(job);
}

std::string explain() {
  std::string text = "processors " + std::to_string(processors());
  const int most = runtime_limit();
  text += ", OpenMP limit " + (most < INT_MAX ? std::to_string(most) : std::string("none"));
#if !defined(_OPENMP)
  text += " (built without OpenMP)";
#endif
  text += ", CPU quota " + (quota() ? std::to_string(quota()) : std::string("none"));
  text += ", requested " + (requested ? std::to_string(requested) : std::string("automatic"));
  if (in_forked_child) text += ", forked child: one thread";
  return text;
}

}  // namespace pyfastnn::threads
