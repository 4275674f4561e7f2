// Runs the kernels of an unchanged CUDA source on the CPU, so that they can be tested where there is no GPU.
//
// Each thread of a block is a fiber that runs until it waits, at __syncthreads, __syncwarp or a shuffle; the scheduler then runs the
// next one, in an order that the launch chooses. A kernel that needs no more than its own barriers gives the same result in every
// order. Shared memory is filled with 0xff before each block, which reads as NaN or -1, and dynamic shared memory ends at a page
// that nothing may touch. A fault within a kernel ends the launch and is returned as its message.
//
// Blocks run one after another, and so do the threads: atomics are plain additions. One host thread launches at a time.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
// Thread-local variables of a library lie side by side and can be found, and so poisoned, whatever function or template has them.
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(cuda_on_cpu::dynamic_shared)

struct int2 { int x, y; };
struct int3 { int x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };
struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct double3 { double x, y, z; };
struct alignas(16) double4 { double x, y, z, w; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline double3 make_double3(double x, double y, double z) { return {x, y, z}; }
inline double4 make_double4(double x, double y, double z, double w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

constexpr int n_lanes = 32;
constexpr size_t stack_nbytes = 64 << 10, guard_nbytes = 64 << 10;
constexpr size_t far_nbytes = 16 << 20;  // an index that is far off should still fault, and not hit other memory
constexpr unsigned char poison = 0xff;

enum class State { ready, at_barrier, in_warp, ended };
enum Schedule { natural, reversed, shuffled };

using Context = void *[5];

struct Fiber {
  Context context;
  State state;
  uint3 index;
  int line;          // of the source, where it waits
  unsigned mask;     // the lanes that it waits for
  int source;        // the lane whose value it wants
  uint64_t offered, received;
};

// The stacks of the fibers, kept from one launch to the next and shared by all libraries, as to make them takes longest.
struct Stacks {
  char *begin;
  uint64_t n;
};

struct Launch {
  unsigned grid[3], block[3];
  uint64_t shared_nbytes;
  Stacks *stacks;
  int schedule;
  unsigned seed;
  int without_line;     // the barrier there does nothing
  unsigned char *seen;  // of each line: whether a thread came to a barrier there
};

constexpr int most_lines = 1 << 16;
static int without_line;
static unsigned char *seen;
static unsigned char *dynamic_shared;
static Fiber *fibers, *running;
static unsigned n_fibers;
static Stacks *stacks;
static Context scheduler;
static ucontext_t creator;
static void (*kernel)();
static void **arguments;
static unsigned random_state;
static char fault[256], message[512];
static thread_local char shared_anchor[16];

// ------------------------------------------------------------------------------------------------------------- fibers

// GCC's own setjmp keeps three registers and leaves the others to the compiler: a switch is a few instructions, on any processor.
// noipa, as callers must not conclude from its code that it leaves some register alone: other fibers do not.
[[noreturn]] __attribute__((noipa)) static void jump(Context &to) { __builtin_longjmp(to, 1); }
__attribute__((noipa)) static void switch_context(Context &from, Context &to) {
  if (!__builtin_setjmp(from)) jump(to);
}

// A fiber runs the kernel once per block; the first switch to it returns to its creator at once.
static void live() {
  Fiber *self = running;
  ucontext_t unused;
  if (!__builtin_setjmp(self->context)) swapcontext(&unused, &creator);
  for (;;) {
    kernel();
    self->state = State::ended;
    switch_context(self->context, scheduler);
  }
}

__attribute__((noipa)) static void wait_as(State state, int line) {
  running->state = state;
  running->line = line;
  switch_context(running->context, scheduler);
}

static char *reserve(size_t nbytes) {
  void *p = mmap(nullptr, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fputs("cuda_on_cpu: no address space\n", stderr);
    abort();
  }
  return static_cast<char *>(p);
}

static size_t stacks_nbytes() { return far_nbytes + stacks->n * (guard_nbytes + stack_nbytes); }
static char *stack_of(unsigned i) { return stacks->begin + far_nbytes + i * (guard_nbytes + stack_nbytes) + guard_nbytes; }

static void create_fibers() {
  n_fibers = blockDim.x * blockDim.y * blockDim.z;
  fibers = static_cast<Fiber *>(calloc(n_fibers, sizeof(Fiber)));
  if (stacks->n < n_fibers) {
    if (stacks->n) munmap(stacks->begin, stacks_nbytes());
    stacks->n = n_fibers;
    stacks->begin = reserve(stacks_nbytes());
    for (unsigned i = 0; i < n_fibers; i++) mprotect(stack_of(i), stack_nbytes, PROT_READ | PROT_WRITE);
  }
  for (unsigned i = 0; i < n_fibers; i++) {
    running = &fibers[i];
    running->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_of(i);
    context.uc_stack.ss_size = stack_nbytes - i % 32 * 192;  // that not all stacks begin in the same set of the cache
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    swapcontext(&creator, &context);
  }
  running = nullptr;
}

// ---------------------------------------------------------------------------------------------------------- scheduler

static unsigned random_below(unsigned n) {
  random_state = random_state * 1664525u + 1013904223u;
  return unsigned((uint64_t(random_state) * n) >> 32);
}

static void arrange(unsigned *order, unsigned n, int schedule) {
  for (unsigned i = 0; i < n; i++) order[i] = schedule == reversed ? n - 1 - i : i;
  if (schedule != shuffled) return;
  for (unsigned i = n; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
}

static unsigned warp_of(unsigned i) { return i - i % n_lanes; }

// Let the lanes go on that fiber i waits for, if they are all there. A lane gets poison from one that takes no part.
static bool release_lanes(unsigned i) {
  const unsigned first = warp_of(i), mask = fibers[i].mask;
  const unsigned n = n_fibers - first < n_lanes ? n_fibers - first : n_lanes;
  unsigned there = 0;
  for (unsigned lane = 0; lane < n; lane++) {
    const Fiber &f = fibers[first + lane];
    if (!(mask >> lane & 1) || f.state == State::ended) continue;
    if (f.state != State::in_warp || f.mask != mask || f.line != fibers[i].line) return false;
    there |= 1u << lane;
  }
  for (unsigned lane = 0; lane < n; lane++) {
    Fiber &f = fibers[first + lane];
    if (!(there >> lane & 1)) continue;
    if (there >> f.source & 1) f.received = fibers[first + f.source].offered;
    else memset(&f.received, poison, sizeof f.received);
    f.state = State::ready;
  }
  return true;
}

// Called when no fiber is ready: make some so. False when the block has ended, or is stuck, and then `fault` says how.
static bool release() {
  unsigned n_ended = 0, n_at_barrier = 0, n_in_warp = 0;
  const Fiber *at_barrier = nullptr, *in_warp = nullptr, *elsewhere = nullptr;
  bool released = false;
  for (unsigned i = 0; i < n_fibers; i++) {
    const Fiber &f = fibers[i];
    if (f.state == State::ended) n_ended++;
    if (f.state == State::at_barrier) {
      n_at_barrier++;
      if (!at_barrier) at_barrier = &f;
      else if (at_barrier->line != f.line) elsewhere = &f;
    }
    if (f.state == State::in_warp) {
      if (release_lanes(i)) released = true;
      else n_in_warp++, in_warp = &f;
    }
  }
  if (released) return true;
  if (n_in_warp) {
    snprintf(fault, sizeof fault, "%u threads wait in the warp operation of line %d for lanes that never come to it", n_in_warp,
             in_warp->line);
    return false;
  }
  if (!n_at_barrier) return false;
  if (n_ended) {
    snprintf(fault, sizeof fault, "divergent barrier: %u of %u threads wait at line %d, the others have ended", n_at_barrier, n_fibers,
             at_barrier->line);
    return false;
  }
  if (elsewhere) {
    snprintf(fault, sizeof fault, "divergent barrier: some threads wait at line %d, others at line %d", at_barrier->line, elsewhere->line);
    return false;
  }
  for (unsigned i = 0; i < n_fibers; i++) fibers[i].state = State::ready;
  return true;
}

static bool run_block(unsigned *order, int schedule) {
  for (unsigned i = 0; i < n_fibers; i++) fibers[i].state = State::ready;
  do {
    arrange(order, n_fibers, schedule);
    for (unsigned i = 0; i < n_fibers; i++) {
      running = &fibers[order[i]];
      if (running->state != State::ready) continue;
      threadIdx = running->index;
      switch_context(scheduler, running->context);
      if (*fault) return false;
      // A warp does not wait for others: where it is complete, those of its lanes that come first in the order go on.
      if (running->state == State::in_warp && release_lanes(order[i])) i = -1;
    }
  } while (release());
  return !*fault;
}

// ------------------------------------------------------------------------------------------------------ shared memory

struct Range { unsigned char *begin; size_t nbytes; };

// What this library keeps in thread-local variables, which are its __shared__ ones and the anchor.
static Range static_shared() {
  Range found = {nullptr, 0};
  auto visit = [](dl_phdr_info *library, size_t, void *result) {
    unsigned char *begin = static_cast<unsigned char *>(library->dlpi_tls_data);
    auto *anchor = reinterpret_cast<unsigned char *>(shared_anchor);
    for (int i = 0; begin && i < library->dlpi_phnum; i++) {
      const auto &header = library->dlpi_phdr[i];
      if (header.p_type != PT_TLS || anchor < begin || anchor >= begin + header.p_memsz) continue;
      *static_cast<Range *>(result) = {begin, header.p_memsz};
      return 1;
    }
    return 0;
  };
  *static_cast<volatile char *>(shared_anchor) = 0;  // the block of variables exists from the first use on
  dl_iterate_phdr(visit, &found);
  return found;
}

// Dynamic shared memory: its end, rounded up to 16 bytes, is that of a page, and nothing around its pages can be accessed.
struct DynamicShared {
  unsigned char *all, *inner, *begin;
  size_t inner_nbytes, nbytes;

  explicit DynamicShared(size_t nbytes_) : nbytes(nbytes_) {
    const size_t page = sysconf(_SC_PAGESIZE), aligned = (nbytes + 15) / 16 * 16;
    inner_nbytes = (aligned + page - 1) / page * page;
    all = reinterpret_cast<unsigned char *>(reserve(inner_nbytes + 2 * far_nbytes));
    inner = all + far_nbytes;
    mprotect(inner, inner_nbytes, PROT_READ | PROT_WRITE);
    begin = inner + inner_nbytes - aligned;
  }
  ~DynamicShared() { munmap(all, inner_nbytes + 2 * far_nbytes); }
  void refill() { memset(inner, poison, inner_nbytes); }

  // What lies between the memory and the pages without access keeps its filling; a write there is found here.
  bool overrun() const {
    for (const unsigned char *p = inner; p < inner + inner_nbytes; p++) {
      if ((p >= begin && p < begin + nbytes) || *p == poison) continue;
      snprintf(fault, sizeof fault, "a write at byte %lld of %zu bytes of dynamic shared memory", (long long)(p - begin), nbytes);
      return true;
    }
    return false;
  }
  bool owns(const void *address) const { return address >= all && address < inner + inner_nbytes + far_nbytes; }
};

// ------------------------------------------------------------------------------------------------------------- faults

static const DynamicShared *shared_memory;
static const int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction handlers_before[4];
static stack_t signal_stack_before;
alignas(16) static char signal_stack[64 << 10];

static void describe_access(const char *at) {
  if (shared_memory->owns(at))
    snprintf(fault, sizeof fault, "thread (%u, %u, %u) accesses byte %lld of %zu bytes of dynamic shared memory", threadIdx.x, threadIdx.y,
             threadIdx.z, (long long)(at - (const char *)shared_memory->begin), shared_memory->nbytes);
  else if (at >= stacks->begin && at < stacks->begin + stacks_nbytes())
    snprintf(fault, sizeof fault, "thread (%u, %u, %u) needs more than %zu bytes of stack", threadIdx.x, threadIdx.y, threadIdx.z,
             stack_nbytes);
  else
    snprintf(fault, sizeof fault, "thread (%u, %u, %u) accesses memory that is not its own, or not aligned for its type, at %p",
             threadIdx.x, threadIdx.y, threadIdx.z, (const void *)at);
}

static void on_signal(int number, siginfo_t *info, void *) {
  if (!running) {  // not ours: take the handlers away, and the instruction faults again
    signal(number, SIG_DFL);
    return;
  }
  if (number == SIGSEGV || number == SIGBUS) describe_access(static_cast<const char *>(info->si_addr));
  else
    snprintf(fault, sizeof fault, "thread (%u, %u, %u) %s", threadIdx.x, threadIdx.y, threadIdx.z,
             number == SIGFPE ? "divides an integer by zero" : "executes a trap");
  jump(scheduler);
}

static void catch_faults() {
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &signal_stack_before);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // left by a jump, so never to be blocked
  for (int i = 0; i < 4; i++) sigaction(fault_signals[i], &action, &handlers_before[i]);
}

static void stop_catching_faults() {
  for (int i = 0; i < 4; i++) sigaction(fault_signals[i], &handlers_before[i], nullptr);
  sigaltstack(&signal_stack_before, nullptr);
}

// ------------------------------------------------------------------------------------------------------------- launch

// Run all blocks; returns null, or what went wrong.
static const char *launch(const char *name, void (*body)(), const Launch &how, void **values) {
  kernel = body;
  arguments = values;
  random_state = how.seed;
  stacks = how.stacks;
  without_line = how.without_line;
  seen = how.seen;
  *fault = 0;
  gridDim = {how.grid[0], how.grid[1], how.grid[2]};
  blockDim = {how.block[0], how.block[1], how.block[2]};
  DynamicShared shared(how.shared_nbytes);
  const Range statics = static_shared();
  shared_memory = &shared;
  dynamic_shared = shared.begin;
  const unsigned n_blocks = gridDim.x * gridDim.y * gridDim.z;
  create_fibers();
  auto *thread_order = static_cast<unsigned *>(malloc(n_fibers * sizeof(unsigned)));
  auto *block_order = static_cast<unsigned *>(malloc(n_blocks * sizeof(unsigned)));
  arrange(block_order, n_blocks, how.schedule);
  catch_faults();
  for (unsigned b = 0; b < n_blocks && !*fault; b++) {
    const unsigned i = block_order[b];
    blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
    shared.refill();
    memset(statics.begin, poison, statics.nbytes);
    if (run_block(thread_order, how.schedule)) shared.overrun();
  }
  running = nullptr;
  stop_catching_faults();
  free(block_order);
  free(thread_order);
  free(fibers);
  if (!*fault) return nullptr;
  snprintf(message, sizeof message, "%s, block (%u, %u, %u): %s", name, blockIdx.x, blockIdx.y, blockIdx.z, fault);
  return message;
}

template <class T> T argument(int i) {
  alignas(T) unsigned char copy[sizeof(T)];
  memcpy(copy, arguments[i], sizeof(T));
  return *reinterpret_cast<T *>(copy);
}
template <class... T, size_t... I> void call_with(void (*function)(T...), std::index_sequence<I...>) { function(argument<T>(I)...); }
template <class... T> void call(void (*function)(T...)) { call_with(function, std::make_index_sequence<sizeof...(T)>()); }

// A letter for the kind of a parameter and its size: p pointer, c pointer to const, i, u, f, and s for a struct.
template <class T> char kind_of() {
  if (std::is_pointer<T>::value) return std::is_const<typename std::remove_pointer<T>::type>::value ? 'c' : 'p';
  if (std::is_floating_point<T>::value) return 'f';
  if (!std::is_integral<T>::value) return 's';
  return std::is_signed<T>::value ? 'i' : 'u';
}
template <class... T> const char *signature(void (*)(T...)) {
  static char text[16 * sizeof...(T) + 1];
  char *end = text;
  const int written[] = {0, (end += snprintf(end, 16, "%c%zu ", kind_of<T>(), sizeof(T)), 0)...};
  (void)written;
  return text;
}

// ---------------------------------------------------------------------------------------------- what the kernels call

template <class T> T shuffle(unsigned mask, T value, int source, int line) {
  static_assert(std::is_arithmetic<T>::value, "a shuffle moves one number");
  Fiber *self = running;
  const unsigned lane = unsigned(self - fibers) % n_lanes;
  if (!(mask >> lane & 1)) {
    snprintf(fault, sizeof fault, "thread (%u, %u, %u) is not in the mask of its warp operation at line %d", self->index.x,
             self->index.y, self->index.z, line);
    jump(scheduler);
  }
  self->mask = mask;
  self->source = source;
  memcpy(&self->offered, &value, sizeof value);
  wait_as(State::in_warp, line);
  memcpy(&value, &self->received, sizeof value);
  return value;
}

static int lane() { return int(running - fibers) % n_lanes; }
static int segment(int width) { return lane() / width * width; }

}  // namespace cuda_on_cpu

inline void __syncthreads(int line = __builtin_LINE()) {
  if (line >= 0 && line < cuda_on_cpu::most_lines) cuda_on_cpu::seen[line] = 1;
  if (line != cuda_on_cpu::without_line) cuda_on_cpu::wait_as(cuda_on_cpu::State::at_barrier, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  cuda_on_cpu::shuffle(mask, 0, cuda_on_cpu::lane(), line);
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::segment(width) + (source & (width - 1)), line);
}
// A lane that would read beyond its segment gets its own value.
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const int source = cuda_on_cpu::lane() - int(delta);
  return cuda_on_cpu::shuffle(mask, value, source < cuda_on_cpu::segment(width) ? cuda_on_cpu::lane() : source, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const int source = cuda_on_cpu::lane() + int(delta);
  return cuda_on_cpu::shuffle(mask, value, source >= cuda_on_cpu::segment(width) + width ? cuda_on_cpu::lane() : source, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const int source = cuda_on_cpu::lane() ^ bits;
  return cuda_on_cpu::shuffle(mask, value, source >= cuda_on_cpu::segment(width) + width ? cuda_on_cpu::lane() : source, line);
}

template <class T> T atomicAdd(T *address, typename std::common_type<T>::type value) {
  const T before = *address;
  *address += value;
  return before;
}
template <class T> T __ldg(const T *address) { return *address; }
// The pairs of types that CUDA has: another, such as int and float, is ambiguous there and so here.
#define CUDA_ON_CPU_MIN_MAX(A, B)                                       \
  constexpr std::common_type<A, B>::type min(A a, B b) { return b < a ? b : a; } \
  constexpr std::common_type<A, B>::type max(A a, B b) { return a < b ? b : a; }
#define CUDA_ON_CPU_INTEGER_MIN_MAX(T) \
  CUDA_ON_CPU_MIN_MAX(T, T)            \
  CUDA_ON_CPU_MIN_MAX(T, unsigned T)   \
  CUDA_ON_CPU_MIN_MAX(unsigned T, T)   \
  CUDA_ON_CPU_MIN_MAX(unsigned T, unsigned T)
CUDA_ON_CPU_INTEGER_MIN_MAX(int)
CUDA_ON_CPU_INTEGER_MIN_MAX(long)
CUDA_ON_CPU_INTEGER_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(float, float)
CUDA_ON_CPU_MIN_MAX(float, double)
CUDA_ON_CPU_MIN_MAX(double, float)
CUDA_ON_CPU_MIN_MAX(double, double)
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
[[noreturn]] inline void __trap() { __builtin_trap(); }

// Exact at the multiples of a quarter turn.
inline void sincospi(double x, double *sine, double *cosine) {
  const double quarters = rint(2 * x), angle = 3.14159265358979323846 * (x - quarters / 2);
  const double s = sin(angle), c = cos(angle);
  switch (int(quarters - 4 * floor(quarters / 4))) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s;
  }
}
inline void sincospif(float x, float *sine, float *cosine) {
  double s, c;
  sincospi(x, &s, &c);
  *sine = float(s);
  *cosine = float(c);
}
inline double sinpi(double x) { double s, c; sincospi(x, &s, &c); return s; }
inline double cospi(double x) { double s, c; sincospi(x, &s, &c); return c; }
inline float sinpif(float x) { return float(sinpi(x)); }
inline float cospif(float x) { return float(cospi(x)); }

// The entry points of one kernel in the library; the source's text stands in a namespace `source`.
#define CUDA_ON_CPU_KERNEL(name)                                                                              \
  extern "C" __attribute__((visibility("default"))) const char *signature_of_##name() {                       \
    return cuda_on_cpu::signature(source::name);                                                                      \
  }                                                                                                           \
  extern "C" __attribute__((visibility("default"))) const char *launch_##name(const cuda_on_cpu::Launch *how, \
                                                                             void **arguments) {              \
    return cuda_on_cpu::launch(#name, [] { cuda_on_cpu::call(source::name); }, *how, arguments);                      \
  }
