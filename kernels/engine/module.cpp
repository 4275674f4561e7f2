// What Python calls, through ctypes: plans made and freed, lists of operations, and what this processor can run.
//
// Every function is plain C; pointers are addresses of contiguous arrays. Names end in _f for float and _d for double.
#include <cstring>
#include <new>

#include "bands.h"
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

template <class T>
void run(const Operations<T> &operations, const Step *steps, int64_t count, char *base, const Target<T> &out, Worker &worker) {
  static const T one = 1;
  for (const Step *step = steps; step < steps + count; step++) {
    const T *source = reinterpret_cast<const T *>(base + step->source);
    T *deeper = step->deeper < 0 ? nullptr : reinterpret_cast<T *>(base + step->deeper);
    Target<T> target = out;
    if (step->averages >= 0) target = {reinterpret_cast<T *>(base + step->averages), nullptr, &one, 0, 1, 1};
    target.rows = step->rows;
    worker.awaited = step->awaited;
    switch (step->call) {
      case Step::kSpectrum:
        operations.spectrum(static_cast<const Grid<T> *>(step->plan), source, deeper, step->groups, worker);
        break;
      case Step::kWavelet:
        operations.wavelet(static_cast<const Bank<T> *>(step->plan), step->first, step->filters,
                           static_cast<const Lowpass<T> *>(step->lowpass), source, step->groups, deeper,
                           step->rows ? &target : nullptr, worker);
        break;
      case Step::kAverage:
        operations.average(static_cast<const Lowpass<T> *>(step->plan), source, step->groups, &target, worker);
        break;
      case Step::kHear:
        operations.hear(static_cast<const Tones<T> *>(step->plan), source, step->groups, &target, worker);
        break;
      case Step::kConvolve:
        operations.convolve(static_cast<const Bank<T> *>(step->plan), step->first, step->filters, source, step->groups, deeper,
                            worker);
        break;
      case Step::kAcross:
        static_cast<const BandBank<T> *>(step->plan)->modulus(source, step->filters, step->groups, deeper, &target, worker);
        break;
    }
  }
}

}  // namespace

#pragma GCC visibility push(default)
// `count` images in blocks of `images`, each block by one thread in memory of its own: `between` bytes, and a workspace. An image has
// `size` samples and `each` coefficients.
template <class T>
static void run_blocks(const Operations<T> &engine, const Grid<T> *grid, const T *x, const T *scale, const T *unit, int images,
                       int64_t count, int64_t size, const int32_t *rows, const int32_t *columns, const Step *steps, int64_t n_steps,
                       char *memory, int64_t between, int64_t workspace, T *out, int64_t each, int64_t paths, int threads) {
  std::atomic<int64_t> next{0};
  Team::run(threads, memory, size_t(between + workspace), [&](Worker &mine) {
    for (int64_t first; (first = images * next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const int present = int(std::min<int64_t>(images, count - first));
      engine.extend(grid, x + first * size, scale + first, images, present, size, rows, columns, reinterpret_cast<T *>(mine.memory));
      const Target<T> target{out + first * each, nullptr, unit + first, paths, images, present};
      Team::run(1, mine.memory + between, size_t(workspace),
                [&](Worker &alone) { run<T>(engine, steps, n_steps, mine.memory, target, alone); });
    }
  });
}

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

int sc_possible(int n) { return Fft<float>::possible(n); }

#define SC_API(T, X)                                                                                                          \
  int sc_lanes_##X(int use) { return operations(use, T()).lanes; }                                                            \
  void *sc_grid_##X(int use, int line, int n1, int n2) {                                                                      \
    return guarded([&] { return new Grid<T>(line, n1, n2, operations(use == kFew ? kMany : use, T()).lanes, use == kPoints); }); \
  }                                                                                                                           \
  void sc_free_grid_##X(void *grid) { delete static_cast<Grid<T> *>(grid); }                                                  \
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
  void sc_free_lowpass_##X(void *lowpass) { delete static_cast<Lowpass<T> *>(lowpass); }                                      \
  void sc_extend_##X(int use, const void *grid, const T *x, const T *scale, int images, int present, int64_t size,            \
                     const int32_t *rows, const int32_t *columns, T *U) {                                                     \
    operations(use, T()).extend(static_cast<const Grid<T> *>(grid), x, scale, images, present, size, rows, columns, U);       \
  }                                                                                                                           \
  int64_t sc_workspace_##X(int use, const Step *steps, int64_t count) {                                                       \
    Worker worker{nullptr, nullptr};                                                                                          \
    run<T>(operations(use, T()), steps, count, nullptr, {}, worker);                                                          \
    return int64_t((worker.asked + kPage - 1) / kPage * kPage);                                                               \
  }                                                                                                                           \
  void sc_run_##X(int use, const Step *steps, int64_t count, char *memory, char *workspaces, int64_t workspace, T *out,       \
                  const T *scale, int64_t paths, int images, int present, int threads) {                                      \
    const Target<T> target{out, nullptr, scale, paths, images, present};                                                      \
    Team::run(threads, workspaces, size_t(workspace),                                                                         \
              [&](Worker &worker) { run<T>(operations(use, T()), steps, count, memory, target, worker); });                   \
  }                                                                                                                           \
  void sc_run_blocks_##X(int use, const void *grid, const T *x, const T *scale, const T *unit, int images, int64_t count,     \
                         int64_t size, const int32_t *rows, const int32_t *columns, const Step *steps, int64_t n_steps,       \
                         char *memory, int64_t between, int64_t workspace, T *out, int64_t each, int64_t paths, int threads) { \
    run_blocks<T>(operations(use, T()), static_cast<const Grid<T> *>(grid), x, scale, unit, images, count, size, rows,        \
                  columns, steps, n_steps, memory, between, workspace, out, each, paths, threads);                            \
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

#define SC_BANDS(T, X)                                                                                                        \
  void *sc_band_bank_##X(int rows, int bands, int outputs, const T *kernels, const T *smoothing, double drop) {               \
    return guarded([&] { return new BandBank<T>(rows, bands, outputs, kernels, smoothing, drop); });                          \
  }                                                                                                                           \
  void sc_free_band_bank_##X(void *bank) { delete static_cast<BandBank<T> *>(bank); }                                         \
  int64_t sc_band_workspace_##X(const void *bank) { return int64_t(static_cast<const BandBank<T> *>(bank)->workspace()); }    \
  void sc_across_##X(const void *bank, const T *Y, int parts, int64_t lanes, T *Z, char *workspaces, int threads) {           \
    const BandBank<T> &b = *static_cast<const BandBank<T> *>(bank);                                                           \
    Team::run(threads, workspaces, b.workspace(), [&](Worker &worker) { b.modulus(Y, parts, lanes, Z, nullptr, worker); });   \
  }

SC_BANDS(float, f)
SC_BANDS(double, d)
}
