// Threads that do a list of operations together, each with a workspace of its own.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

constexpr size_t kPage = 4096;

// Every member calls the same operations in the same order; of each operation, it does the jobs that it comes to first.
class Team {
 public:
  // Let `work(worker)` run on so many threads at once; workspaces of `bytes` follow each other in `memory`.
  template <class Work> static void run(int threads, char *memory, size_t bytes, const Work &work);
  long next() { return next_.fetch_add(1, std::memory_order_relaxed); }
  // Wait until all members are here, and let them start from job 0 again.
  void meet() {
    const int members = members_.load(std::memory_order_relaxed), meeting = meeting_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      meeting_.store(meeting + 1, std::memory_order_release);
      return;
    }
    for (int turns = 0; meeting_.load(std::memory_order_acquire) == meeting;)
      if (++turns > kTurns) std::this_thread::yield();
  }

 private:
  static constexpr int kTurns = 4096;  // of waiting, some microseconds, before a processor is left to others
  std::atomic<long> next_{0};
  std::atomic<int> members_{0}, arrived_{0}, meeting_{0};
};

// A member of a team as operations see it; or one without a team, for whom they do nothing but say what they need.
struct Worker {
  Team *team;
  char *memory;
  size_t asked = 0;  // bytes of the largest workspace
  bool awaited = true;        // members wait for each other after an operation; else they go on to the next one's jobs
  long job = -1, before = 0;  // the next job, if it is known, and those of operations before that were not awaited
};

template <class Work> void Team::run(int threads, char *memory, size_t bytes, const Work &work) {
  Team team;
  const auto member = [&](int k) {
    while (!team.members_.load(std::memory_order_acquire)) std::this_thread::yield();
    Worker worker{&team, memory + size_t(k) * bytes};
    work(worker);
  };
  std::vector<std::thread> others;
  try {
    for (int k = 1; k < threads; k++) others.emplace_back(member, k);
  } catch (const std::exception &) {
    // The system gives no more threads: those that there are do it all.
  }
  team.members_.store(int(others.size()) + 1, std::memory_order_release);
  member(0);
  for (std::thread &other : others) other.join();
}

// Memory cut into arrays that start on cache lines.
class Space {
 public:
  explicit Space(char *base) : base_(base) {}
  void clear() { used_ = 0; }
  template <class E> E *take(long count) {
    E *p = reinterpret_cast<E *>(base_ + used_);
    used_ += bytes<E>(count);
    return p;
  }
  template <class E> static size_t bytes(long count) { return (count * sizeof(E) + 127) / 128 * 128; }
  size_t used() const { return used_; }

 private:
  char *base_;
  size_t used_ = 0;
};

// Do job(index, space) for every index, in workspaces of `bytes`. Each job writes outputs of its own, so that the number of
// threads changes no bit.
template <class Job> void each(long count, Worker &worker, size_t bytes, const Job &job) {
  if (!worker.team) {
    worker.asked = std::max(worker.asked, bytes);
    return;
  }
  Space space(worker.memory);
  if (worker.job < 0) worker.job = worker.team->next();
  for (; worker.job < worker.before + count; worker.job = worker.team->next(), space.clear()) job(worker.job - worker.before, space);
  worker.before += count;
  if (!worker.awaited) return;
  worker.job = -1;
  worker.before = 0;
  worker.team->meet();
}
