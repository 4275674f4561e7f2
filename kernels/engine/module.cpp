// What Python calls, through ctypes: plans made and freed, the operations, and what this
// processor can run.
//
// Every function is plain C; pointers are addresses of contiguous arrays. Names end in _f for float and _d for double.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "lanes.h"
#include "volumes.h"

namespace {

const Operations<float> &operations(int use, float) {
  static const Operations<float> all[] = {signals<float>(false), signals<float>(true), points<float>()};
  return all[use];
}
const Operations<double> &operations(int use, double) {
  static const Operations<double> all[] = {signals<double>(false), signals<double>(true), points<double>()};
  return all[use];
}

// Memory may be lacking, and nothing may be thrown through C.
template <class Make> auto guarded(Make make) -> decltype(make()) {
  try {
    return make();
  } catch (const std::bad_alloc &) {
    return nullptr;
  }
}

std::mutex idle_mutex;
std::vector<std::pair<size_t, char *>> idle;

thread_local bool rehearsing = false;  // operations ask for their workspaces and get none
thread_local size_t largest = 0;       // that was asked for

}  // namespace

char *borrow(size_t bytes, size_t *got) {
  if (rehearsing) {
    largest = std::max(largest, bytes);
    return nullptr;
  }
  {
    const std::lock_guard<std::mutex> lock(idle_mutex);
    for (size_t i = 0; i < idle.size(); i++)
      if (idle[i].first >= bytes) {
        const auto [size, base] = idle[i];
        idle.erase(idle.begin() + long(i));
        *got = size;
        return base;
      }
    if (!idle.empty()) {  // too small: a larger one takes its place
      std::free(idle.back().second);
      idle.pop_back();
    }
  }
  *got = (bytes + 4095) / 4096 * 4096;
  return static_cast<char *>(std::aligned_alloc(4096, *got));
}

void give_back(char *base, size_t bytes) {
  if (!base) return;
  const std::lock_guard<std::mutex> lock(idle_mutex);
  idle.emplace_back(bytes, base);
}

void release() {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  for (const auto &space : idle) std::free(space.second);
  idle.clear();
}

#pragma GCC visibility push(default)
extern "C" {

// Whether this processor has an instruction set; asked of the baseline library before another is loaded.
int sc_supports(const char *name) {
  if (!std::strcmp(name, "baseline")) return 1;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#endif
  return 0;
}

// Give back the memory that idle workspaces hold.
void sc_release() { release(); }

// From sc_rehearse on, operations of the calling thread get no memory, and those of no groups thus do nothing;
// sc_rehearsed ends that and returns the bytes of the largest workspace that was asked for.
void sc_rehearse() {
  rehearsing = true;
  largest = 0;
}
int64_t sc_rehearsed() {
  rehearsing = false;
  return int64_t(largest);
}

int sc_possible(int n) { return Fft<float>::possible(n); }

#define SC_API(T, X)                                                                                                          \
  int sc_lanes_##X(int use) { return operations(use, T()).lanes; }                                                            \
  void *sc_grid_##X(int use, int line, int n1, int n2) {                                                                      \
    return guarded([&] { return new Grid<T>(line, n1, n2, operations(use == kFew ? kMany : use, T()).lanes, use == kPoints); }); \
  }                                                                                                                           \
  void sc_free_grid_##X(void *grid) { delete static_cast<Grid<T> *>(grid); }                                                  \
  int64_t sc_field_##X(const void *grid) { return static_cast<const Grid<T> *>(grid)->field(); }                              \
  int64_t sc_half_##X(const void *grid) { return static_cast<const Grid<T> *>(grid)->half(); }                                \
  void *sc_bank_##X(const void *source, const void *grid, int lanes) {                                                        \
    return guarded([&] { return new Bank<T>{static_cast<const Grid<T> *>(source), static_cast<const Grid<T> *>(grid), lanes, {}}; }); \
  }                                                                                                                           \
  void *sc_add_filter_##X(void *bank, const int64_t *origin, const int64_t *extent, const T *box) {                           \
    return guarded([&] {                                                                                                      \
      Bank<T> &b = *static_cast<Bank<T> *>(bank);                                                                             \
      b.filters.emplace_back(*b.grid, *b.source, origin, extent, box, b.lanes);                                               \
      return bank;                                                                                                            \
    });                                                                                                                       \
  }                                                                                                                           \
  void sc_free_bank_##X(void *bank) { delete static_cast<Bank<T> *>(bank); }                                                  \
  void *sc_lowpass_##X(const void *grid, const T *first, int m1, const T *second, int m2, double drop) {                      \
    return guarded([&] { return new Lowpass<T>(static_cast<const Grid<T> *>(grid), first, m1, second, m2, drop); });          \
  }                                                                                                                           \
  int sc_width_##X(const void *grid) { return static_cast<const Grid<T> *>(grid)->width; }                                    \
  void *sc_line_lowpass_##X(const void *grid, const T *basis, int moments, int vectors, const T *kernel,                      \
                            const int64_t *samples, int outputs, double drop) {                                               \
    return guarded([&] {                                                                                                      \
      return new Lowpass<T>(static_cast<const Grid<T> *>(grid), basis, moments, vectors, kernel, samples, outputs, drop);     \
    });                                                                                                                       \
  }                                                                                                                           \
  void *sc_tones_##X(const void *grid, const T *real, const T *imag, int outputs, int bins) {                                 \
    return guarded([&] { return new Tones<T>(static_cast<const Grid<T> *>(grid), real, imag, outputs, bins); });              \
  }                                                                                                                           \
  void sc_free_tones_##X(void *tones) { delete static_cast<Tones<T> *>(tones); }                                              \
  int sc_hear_##X(int use, const void *tones, const T *spectrum, int64_t groups, T *out, const int32_t *rows,                 \
                  const T *scale, int64_t paths, int images, int present, int threads) {                                      \
    const Target<T> target{out, rows, scale, paths, images, present};                                                         \
    return operations(use, T()).hear(static_cast<const Tones<T> *>(tones), spectrum, groups, &target, threads);               \
  }                                                                                                                           \
  void sc_free_lowpass_##X(void *lowpass) { delete static_cast<Lowpass<T> *>(lowpass); }                                      \
  int sc_extend_##X(int use, const void *grid, const T *x, const T *scale, int images, int present, int64_t size,             \
                    const int32_t *rows, const int32_t *columns, T *U) {                                                      \
    return operations(use, T()).extend(static_cast<const Grid<T> *>(grid), x, scale, images, present, size, rows, columns, U); \
  }                                                                                                                           \
  int sc_spectrum_##X(int use, const void *grid, const T *U, T *spectrum, int64_t groups, int threads) {                      \
    return operations(use, T()).spectrum(static_cast<const Grid<T> *>(grid), U, spectrum, groups, threads);                   \
  }                                                                                                                           \
  int sc_wavelet_##X(int use, const void *bank, int first, int filters, const void *lowpass, const T *spectrum,               \
                     int64_t groups, T *deeper, T *out, const int32_t *rows, const T *scale, int64_t paths, int images,   \
                     int present, int threads) {                                                                              \
    const Target<T> target{out, rows, scale, paths, images, present};                                                         \
    return operations(use, T()).wavelet(static_cast<const Bank<T> *>(bank), first, filters,                                   \
                                        static_cast<const Lowpass<T> *>(lowpass), spectrum, groups, deeper, out ? &target : nullptr, \
                                        threads);                                                                             \
  }                                                                                                                           \
  int sc_average_##X(int use, const void *lowpass, const T *U, int64_t groups, T *out, const int32_t *rows, const T *scale,   \
                     int64_t paths, int images, int present, int threads) {                                                   \
    const Target<T> target{out, rows, scale, paths, images, present};                                                         \
    return operations(use, T()).average(static_cast<const Lowpass<T> *>(lowpass), U, groups, &target, threads);               \
  }

SC_API(float, f)
SC_API(double, d)

#define SC_VOLUMES(T, X)                                                                                                      \
  void *sc_volumes_##X(int d, int h, int w, int degrees, const double *powers, int n_powers, const int32_t *nodes, int n_nodes) { \
    return guarded([&] { return new Volumes<T>(d, h, w, degrees, powers, n_powers, reinterpret_cast<const Node *>(nodes), n_nodes); }); \
  }                                                                                                                           \
  void *sc_add_harmonics_##X(void *volumes, int degree, int depth, int nyquist, const T *axial, const T *planar, const T *rho2) { \
    return guarded([&] {                                                                                                      \
      static_cast<Volumes<T> *>(volumes)->add(degree, depth, nyquist, axial, planar, rho2);                                   \
      return volumes;                                                                                                         \
    });                                                                                                                       \
  }                                                                                                                           \
  void sc_free_volumes_##X(void *volumes) { delete static_cast<Volumes<T> *>(volumes); }                                      \
  int64_t sc_volumes_nbytes_##X(const void *volumes, int64_t count, int threads) {                                            \
    return static_cast<const Volumes<T> *>(volumes)->bytes(count, threads);                                                   \
  }                                                                                                                           \
  void sc_scatter_volumes_##X(const void *volumes, const T *x, const T *scale, int64_t count, double *out, int64_t paths,     \
                              char *memory, int threads) {                                                                    \
    static_cast<const Volumes<T> *>(volumes)->scatter(x, scale, count, out, paths, memory, threads);                          \
  }

SC_VOLUMES(float, f)
SC_VOLUMES(double, d)
}
