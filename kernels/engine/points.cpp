// The loops of the engine for signals so large that V of them side by side would leave the cache: the V lanes of a vector
// are neighbouring points of one signal.
//
// Each axis is transformed while the lanes lie along the other one; between the two, tiles of V × V points are transposed.
// A spectrum is kept in strips of V neighbouring k1, so that filters read it vector by vector, along k2.
#include "lanes.h"

#include "fft.h"
#include "simd.h"
#include "smooth.h"
#include "team.h"

namespace {

template <class T, int V> struct Points {
  typedef typename Lanes<T, V>::type R;
  typedef Complex<R> C;

  SC_INLINE R load(const T *p) {
    R r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  SC_INLINE void store(T *p, R r) { std::memcpy(p, &r, sizeof r); }
  // The last points of a row may not fill a vector: `count` of them are there.
  SC_INLINE R load_some(const T *p, long count) {
    if (count >= V) return load(p);
    R r{};
    std::memcpy(&r, p, sizeof(T) * size_t(count));
    return r;
  }
  SC_INLINE void store_some(T *p, R r, long count) {
    if (count >= V) store(p, r);
    else std::memcpy(p, &r, sizeof(T) * size_t(count));
  }

  static long vectors(const Grid<T> &grid) { return grid.stride / V; }      // of a row
  static long pitch(const Grid<T> &grid) { return vectors(grid) | 1; }      // of a row of z: odd, to spread over the cache
  static int strips(const Grid<T> &grid) { return (grid.n1 + V - 1) / V; }  // vectors of k1, of which a spectrum holds half

  // --- Filtering ---

  // Which lanes of two vectors of a spectrum are read: the first as it stands, the same mirrored, or any.
  enum Order { kStraight, kMirrored, kAny };
  typedef typename Mask<T, V>::I I;

  template <Order order> SC_INLINE R lanes(const T *first, long next, I any) {
    if constexpr (order == kStraight) return load(first);
    else return __builtin_shuffle(load(first), load(first + next), order == kMirrored ? Mask<T, V>::backwards() + 1 : any);
  }

  template <Order order> SC_INLINE void multiply(const Run &run, const T *weights, const T *X, const int *place, C *to) {
    const T *w = weights + long(run.weight) * V, *x = X + run.from;
    const I any = (run.conjugate ? Mask<T, V>::backwards() : Mask<T, V>::forwards()) + run.shift;
    const T sign = run.conjugate ? T(-1) : T(1);
    const long step = run.step, next = run.next, skip = run.skip;
    const bool more = run.kind == Run::kMore;
    for (const T *end = w + long(run.length) * V; w != end; w += V, x += step, place += skip) {
      C &z = to[*place];
      const R a = load(w), b = order == kStraight ? a : order == kMirrored ? -a : sign * a;
      const R re = lanes<order>(x + V, next, any), im = lanes<order>(x, next, any);
      z = more ? C{z.x + a * re, z.y + b * im} : C{a * re, b * im};
    }
  }

  static void gather(const Filter<T> &filter, int strip, const T *X, const int *place, C *to) {
    const T *weights = filter.weights.data();
    for (uint32_t i = filter.begin[strip]; i < filter.begin[strip + 1]; i++) {
      const Run &run = filter.runs[i];
      const int *where = place + run.to;
      if (run.kind == Run::kClear)
        for (int t = 0; t < run.length; t++) to[where[t]] = C{};
      else if (run.shift == run.conjugate) run.conjugate ? multiply<kMirrored>(run, weights, X, where, to) : multiply<kStraight>(run, weights, X, where, to);
      else multiply<kAny>(run, weights, X, where, to);
    }
  }

  // Turn points (k1 = strip V + lane, u2) of a line by +2 pi k1 u2 / n, or by the opposite.
  template <bool forward> SC_INLINE C turned_point(const Grid<T> &grid, C a, int strip, int u2) {
    const T *turn = grid.turns.data() + (long(strip) * grid.n2 + u2) * 2 * V;
    const R c = load(turn), s = forward ? -load(turn + V) : load(turn + V);
    return {a.x * c - a.y * s, a.x * s + a.y * c};
  }

  // All strips: z (n1, pitch), where the transform along axis 0 is still to come.
  static size_t strips_bytes(const Grid<T> &grid) {
    return Space::bytes<C>((grid.n1 + 1) * pitch(grid)) + Space::bytes<C>(grid.stride);
  }
  static C *make_strips(const Grid<T> &grid, const Filter<T> &filter, const T *X, Space &space) {
    C *z = space.take<C>((grid.n1 + 1) * pitch(grid)), *line = space.take<C>(grid.stride);
    std::memset(static_cast<void *>(line + grid.n2), 0, sizeof(C) * (grid.stride - grid.n2));
    for (int strip = 0; strip < strips(grid); strip++) make_strip(grid, filter, strip, X, line, z);
    return z;
  }

  // Strip k1 .. k1 + V - 1: filter, transform along axis 1, write as rows k1 of z, where the transform along axis 0 wants them.
  static void make_strip(const Grid<T> &grid, const Filter<T> &filter, int strip, const T *X, C *line, C *z) {
    const int rows = std::min(V, grid.n1 - strip * V);
    const int *place = grid.columns.place.data() + strip * V;
    const long step = pitch(grid);
    if (filter.begin[strip] == filter.begin[strip + 1]) {
      for (int i = 0; i < rows; i++) std::memset(static_cast<void *>(z + place[i] * step), 0, sizeof(C) * vectors(grid));
      return;
    }
    gather(filter, strip, X, grid.rows.place.data(), line);
    inverse(grid.rows, line, grid.n2, 1, 1);
    for (int b = 0; b < vectors(grid); b++)
      grid.turns.empty() ? put_tile<false>(grid, line, strip, b, z) : put_tile<true>(grid, line, strip, b, z);
  }

  // What lies behind n2 is zero, and rows behind n1 go to the one that z has beyond its last.
  template <bool turning> SC_INLINE void put_tile(const Grid<T> &grid, const C *line, int strip, int b, C *z) {
    const int *place = grid.columns.place.data() + strip * V;
    const long step = pitch(grid);
    R re[V], im[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) {
      const int u2 = b * V + i;
      C a = line[u2];
      if (turning && u2 < grid.n2) a = turned_point<false>(grid, a, strip, u2);
      re[i] = a.x;
      im[i] = a.y;
    }
    transpose<T, V>(re);
    transpose<T, V>(im);
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) z[place[i] * step + b] = {re[i], im[i]};
  }

  // --- Smoothing ---

  template <int W> SC_INLINE void take(const Lowpass<T> &lowpass, const R *u, int c, R *smooth) {
    if (!lowpass.grid->line) return smooth_columns<W>(lowpass.axes[0], u, c, vectors(*lowpass.grid), smooth);
    if constexpr (W % 3)  // of a line
      lowpass.moments ? take_moments<W, W>(lowpass, u, c / W, reinterpret_cast<T *>(smooth)) : smooth_line<W, V>(lowpass, u, c / W, smooth);
  }

  template <int W, int B> SC_INLINE void take_moments(const Lowpass<T> &lowpass, const R *u, long block, T *smooth) {
    if constexpr (B > 1)
      if (lowpass.vectors < B) return take_moments<W, B / 2>(lowpass, u, block, smooth);
    if constexpr (V >= 8)
      if (lowpass.moments == 8) return sum_points<W, B, 8>(lowpass, u, block, smooth);
    if constexpr (V >= 4) sum_points<W, B, 4>(lowpass, u, block, smooth);
  }

  static long smooth_size(const Lowpass<T> &lowpass) {
    if (lowpass.moments) return (lowpass.sums() + V - 1) / V + 1;  // what lies behind the last is read with taps of zero
    return lowpass.grid->line ? lowpass.axes[0].outputs : lowpass.axes[0].outputs * vectors(*lowpass.grid);
  }
  static void begin(const Lowpass<T> &lowpass, R *smooth) {
    const long size = smooth_size(lowpass);
    if (lowpass.moments) std::memset(static_cast<void *>(smooth + size - 2), 0, sizeof(R) * 2);
    else if (lowpass.grid->line) std::memset(static_cast<void *>(smooth), 0, sizeof(R) * size);
  }
  // Outputs of axis 0 go to the lanes for the smoothing along axis 1: (strips, stride), and then (strips, m2).
  static constexpr int kStrips = 2;  // at a time
  static long turned_size(const Lowpass<T> &lowpass) { return lowpass.grid->line ? 0 : long(kStrips) * lowpass.grid->stride; }
  static long averages_size(const Lowpass<T> &lowpass) {
    return lowpass.grid->line ? 0 : long(kStrips) * (lowpass.axes[1].outputs + V);
  }

  SC_INLINE void put_totals(const R *sums, int count, T scale, T *out) {
    R tile[V];
    for (int i = 0; i < V; i++) tile[i] = i < count ? sums[i] : R{};
    const R all = scale * totals<T, V>(tile);
    std::memcpy(out, &all, sizeof(T) * count);
  }

  // Sums of moments times taps, V outputs at a time. What lies behind a band meets taps of zero, behind the last, zeros.
  static void sum_moments(const Matrix<T> &matrix, const T *moments, T scale, T *out) {
    R tile[V];
    int count = 0;
    for (const Band &band : matrix.bands) {
      const T *taps = matrix.taps.data() + band.taps, *from = moments + band.start;
      R sum[4] = {};
      int i = 0;
      for (; i + 4 * V <= band.length; i += 4 * V)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) sum[k] += load(from + i + k * V) * load(taps + i + k * V);
      for (; i < band.length; i += V) sum[0] += load(from + i) * load(taps + i);
      const R all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      if (band.more) {
        tile[count - 1] += all;
        continue;
      }
      if (count == V) {
        put_totals(tile, V, scale, out + band.out - V);
        count = 0;
      }
      tile[count++] = all;
    }
    put_totals(tile, count, scale, out + matrix.outputs - count);
  }

  static void finish(const Lowpass<T> &lowpass, const R *smooth, R *turned, R *averages, const Target<T> &target, long group) {
    const Grid<T> &grid = *lowpass.grid;
    T *out = target.where(group, lowpass.outputs());
    if (!out) return;
    const T scale = target.scale_of(group);
    const int m1 = lowpass.axes[0].outputs, m2 = grid.line ? 1 : lowpass.axes[1].outputs;
    if (lowpass.moments) {
      sum_moments(lowpass.axes[0], reinterpret_cast<const T *>(smooth), scale, out);
      return;
    }
    if (grid.line) {
      for (int first = 0; first < m1; first += V) put_totals(smooth + first, std::min(V, m1 - first), scale, out + first);
      return;
    }
    for (int first = 0; first < m1; first += kStrips * V)
      if (m1 - first > V) finish_strips<kStrips>(lowpass, smooth, first, turned, averages, scale, out);
      else finish_strips<1>(lowpass, smooth, first, turned, averages, scale, out);
  }

  // Outputs first .. first + K V - 1 of axis 0.
  template <int K>
  static void finish_strips(const Lowpass<T> &lowpass, const R *smooth, int first, R *turned, R *averages, T scale, T *out) {
    const Grid<T> &grid = *lowpass.grid;
    const int m1 = lowpass.axes[0].outputs, m2 = lowpass.axes[1].outputs;
    for (int k = 0; k < K; k++)
      for (long b = 0; b < vectors(grid); b++) {
        R *tile = turned + k * grid.stride + b * V;
        for (int i = 0; i < V; i++) {
          const int o = first + k * V + i;
          tile[i] = o < m1 ? smooth[o * vectors(grid) + b] : R{};
        }
        transpose<T, V>(tile);
      }
    smooth_rows<K>(lowpass.axes[1], turned, grid.stride, averages);
    for (int k = 0; k < K; k++)
      for (int p = 0; p < m2; p += V) {
        R *tile = averages + k * m2 + p, next[V];  // what lies behind m2 comes to lanes that are not written
        for (int i = 0; i < V; i++) next[i] = scale * tile[i];
        transpose<T, V>(next);
        for (int i = 0; i < V && first + k * V + i < m1; i++) {
          T *to = out + long(first + k * V + i) * m2 + p;
          if (p + V <= m2) store(to, next[i]);
          else for (int q = 0; p + q < m2; q++) to[q] = next[i][q];
        }
      }
  }

  // --- Forward transforms ---

  // Points (u2 .. u2 + V - 1, k1 in the lanes) of a strip, real and imaginary parts exchanged, to where axis 1 wants them.
  template <bool turning, bool whole> SC_INLINE void put(const Grid<T> &grid, C *line, int strip, int u2, R *re, R *im) {
    transpose<T, V>(re);
    transpose<T, V>(im);
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) {
      if (!whole && u2 + i >= grid.n2) break;
      C a = {re[i], im[i]};
      if (turning) a = turned_point<true>(grid, a, strip, u2 + i);
      line[grid.rows.place[u2 + i]] = {a.y, a.x};
    }
  }

  // Two real vectors of columns travel as one complex vector through axis 0; its half of frequencies goes to the lanes.
  struct Forth {
    C *z = nullptr;      // (n1)
    C *lines = nullptr;  // the spectrum: its axis 1 is still in space

    static size_t bytes(const Grid<T> &grid) { return Space::bytes<C>(grid.n1); }
    Forth() = default;
    Forth(const Grid<T> &grid, Space &space, T *X) : z(space.take<C>(grid.n1)), lines(reinterpret_cast<C *>(X)) {}

    // Vectors of columns c, at `a`, and c + 1, at `b` if there is one; rows lie `stride` vectors apart.
    void columns(const Grid<T> &grid, const R *a, const R *b, long stride, long c) {
      const int n1 = grid.n1;
      for (int r = 0; r < n1; r++) z[grid.columns.place[r]] = {b ? b[r * stride] : R{}, a[r * stride]};
      inverse(grid.columns, z, n1, 1, 1);
      const bool whole = (c + (b ? 2 : 1)) * V <= grid.n2;
      for (int strip = 0; strip < grid.strips(); strip++) {
        if (whole && (strip + 1) * V <= n1) {
          if (grid.turns.empty()) part<false, true>(grid, z, lines, strip, c, b);
          else part<true, true>(grid, z, lines, strip, c, b);
        } else {
          if (grid.turns.empty()) part<false, false>(grid, z, lines, strip, c, b);
          else part<true, false>(grid, z, lines, strip, c, b);
        }
      }
    }

    // The two columns apart, of x + i y: X = (Z + Z*)/2, Y = (Z - Z*)/2i; Z = p.y + i p.x, Z* = q.y - i q.x.
    template <bool turning, bool whole> SC_INLINE void part(const Grid<T> &grid, const C *z, C *lines, int strip, long c, bool both) {
      const T h = T(0.5) / T(grid.points());
      const int n1 = grid.n1, k = strip * V;
      C *line = lines + strip * grid.pitch();
      R re[V], im[V], re2[V], im2[V];
#pragma GCC unroll 16
      for (int i = 0; i < V; i++) {
        const bool there = whole || k + i < n1;
        const C p = there ? z[k + i] : C{}, q = there ? z[k + i ? n1 - k - i : 0] : C{};
        re[i] = h * (p.y + q.y);
        im[i] = h * (p.x - q.x);
        re2[i] = h * (p.x + q.x);
        im2[i] = h * (q.y - p.y);
      }
      put<turning, whole>(grid, line, strip, int(c) * V, re, im);
      if (both) put<turning, whole>(grid, line, strip, int(c + 1) * V, re2, im2);
    }

    // The other axis.
    void finish(const Grid<T> &grid) { inverse(grid.rows, lines, grid.pitch(), 1, int(grid.strips())); }
  };

  // --- The operations ---

  template <int W>
  static void make_columns(const Grid<T> &grid, const Lowpass<T> *lowpass, C *z, int c, R *u, Forth *forth, R *smooth) {
    R *block = W == 1 ? u + c % 2 * grid.n1 : u;  // single columns wait for their partners
    column_moduli<W>(grid.columns, z + c, pitch(grid), block);
    if (lowpass) take<W>(*lowpass, block, c, smooth);
    if (!forth) return;
    if constexpr (W > 1)
      for (int w = 0; w < W; w += 2) forth->columns(grid, u + w, w + 1 < W ? u + w + 1 : nullptr, W, c + w);
    else if (c % 2) forth->columns(grid, u, block, 1, c - 1);
    else if (c + 1 == vectors(grid)) forth->columns(grid, u, nullptr, 1, c);
  }

  static void wavelet(const Bank<T> *bank, int first, int filters, const Lowpass<T> *lowpass, const T *X, int64_t groups, T *Y,
                     const Target<T> *target, Worker &worker) {
    const Grid<T> &grid = *bank->grid;
    if (!target) lowpass = nullptr;
    const long half = bank->source->half(), n_smooth = lowpass ? smooth_size(*lowpass) : 0, n_u = long(grid.n1) * std::max(2, grid.width);
    const long n_turned = lowpass ? turned_size(*lowpass) : 0, n_averages = lowpass ? averages_size(*lowpass) : 0;
    const size_t bytes = strips_bytes(grid) + Space::bytes<R>(n_u) + Space::bytes<R>(n_smooth) + Space::bytes<R>(n_turned) +
                         Space::bytes<R>(n_averages) + (Y ? Forth::bytes(grid) : 0);
    each(filters * groups, worker, bytes, [&](long job, Space &space) {
      C *z = make_strips(grid, bank->filters[first + job / groups], X + job % groups * 2 * half, space);
      R *u = space.take<R>(n_u), *smooth = space.take<R>(n_smooth);
      R *turned = space.take<R>(n_turned), *averages = space.take<R>(n_averages);
      Forth on = Y ? Forth(grid, space, Y + job * 2 * grid.half()) : Forth(), *forth = Y ? &on : nullptr;
      if (lowpass) begin(*lowpass, smooth);
      each_block(int(vectors(grid)), grid.width, [&](auto width, int c) { make_columns<width>(grid, lowpass, z, c, u, forth, smooth); });
      if (forth) forth->finish(grid);
      if (lowpass) finish(*lowpass, smooth, turned, averages, *target, job);
    });
  }

  static void convolve(const Bank<T> *bank, int first, int filters, const T *X, int64_t groups, T *Y, Worker &worker) {
    const Grid<T> &grid = *bank->grid;
    const long half = bank->source->half();
    each(filters * groups, worker, strips_bytes(grid), [&](long job, Space &space) {
      C *z = make_strips(grid, bank->filters[first + job / groups], X + job % groups * 2 * half, space);
      T *re = Y + job * 2 * grid.points(), *im = re + grid.points();
      each_block(int(vectors(grid)), grid.width, [&](auto width, int c) {
        inverse(grid.columns, z + c, 1, pitch(grid), width);
        for (int r = 0; r < grid.n1; r++)
          for (int w = c; w < c + width; w++) {
            const long to = long(r) * grid.n2 + w * V, count = grid.n2 - w * V;
            store_some(re + to, z[r * pitch(grid) + w].x, count);
            store_some(im + to, z[r * pitch(grid) + w].y, count);
          }
      });
    });
  }

  // Vectors of columns c .. c + W - 1 of a field.
  template <int W> static void read_columns(const Grid<T> &grid, const T *U, int c, R *u) {
    for (int r = 0; r < grid.n1; r++)
      for (int w = 0; w < W; w++) u[r * W + w] = load_some(U + long(r) * grid.n2 + (c + w) * V, grid.n2 - (c + w) * V);
  }

  static void average(const Lowpass<T> *lowpass, const T *U, int64_t groups, const Target<T> *target, Worker &worker) {
    const Grid<T> &grid = *lowpass->grid;
    const size_t bytes = Space::bytes<R>(long(grid.n1) * grid.width) + Space::bytes<R>(smooth_size(*lowpass)) +
                         Space::bytes<R>(turned_size(*lowpass)) + Space::bytes<R>(averages_size(*lowpass));
    each(groups, worker, bytes, [&](long g, Space &space) {
      const T *from = U + g * grid.points();
      R *u = space.take<R>(long(grid.n1) * grid.width), *smooth = space.take<R>(smooth_size(*lowpass));
      R *turned = space.take<R>(turned_size(*lowpass)), *averages = space.take<R>(averages_size(*lowpass));
      begin(*lowpass, smooth);
      each_block(int(vectors(grid)), grid.width, [&](auto width, int c) {
        read_columns<width>(grid, from, c, u);
        take<width>(*lowpass, u, c, smooth);
      });
      finish(*lowpass, smooth, turned, averages, *target, g);
    });
  }

  static void hear(const Tones<T> *tones, const T *X, int64_t groups, const Target<T> *target, Worker &worker) {
    each(groups, worker, 1, [&](long g, Space &) {
      const T *from = X + g * 2 * tones->grid->half(), *weights = tones->weights.data();
      T *out = target->where(g, tones->outputs);
      if (!out) return;
      R tile[V];
      for (int o = 0; o < tones->outputs; o++) {
        R sum{}, other{};
        for (const int64_t where : tones->where) {
          sum += load(weights) * load(from + where);
          other += load(weights + V) * load(from + where + V);
          weights += 2 * V;
        }
        tile[o % V] = sum + other;
        if (o % V == V - 1 || o + 1 == tones->outputs) put_totals(tile, o % V + 1, target->scale_of(g), out + o / V * V);
      }
    });
  }

  static void spectrum(const Grid<T> *plan, const T *field, T *X, int64_t groups, Worker &worker) {
    const Grid<T> &grid = *plan;
    each(groups, worker, Forth::bytes(grid) + Space::bytes<R>(2l * grid.n1), [&](long g, Space &space) {
      Forth forth(grid, space, X + g * 2 * grid.half());
      R *u = space.take<R>(2l * grid.n1);
      each_block(int(vectors(grid)), 2, [&](auto width, int c) {
        read_columns<width>(grid, field + g * grid.points(), c, u);
        forth.columns(grid, u, width > 1 ? u + 1 : nullptr, width, c);
      });
      forth.finish(grid);
    });
  }

  static void extend(const Grid<T> *grid, const T *x, const T *scale, int images, int present, int64_t size, const int32_t *rows,
                    const int32_t *columns, T *U) {
    for (int image = 0; image < images; image++)
      for (int r = 0; r < grid->n1; r++) {
        T *to = U + image * grid->points() + long(r) * grid->n2;
        const T *from = x + image * size + (grid->line ? 0 : rows[r]), factor = image < present ? scale[image] : T(0);
        const int32_t *column = columns + (grid->line ? long(r) * grid->n2 : 0);
        for (int c = 0; c < grid->n2; c++) to[c] = image < present ? factor * from[column[c]] : T(0);
      }
  }

  static constexpr Operations<T> operations() { return {V, extend, spectrum, wavelet, average, hear, convolve}; }
};

}  // namespace

template <class T> Operations<T> points() { return Points<T, kBytes / sizeof(T)>::operations(); }
template Operations<float> points();
template Operations<double> points();
