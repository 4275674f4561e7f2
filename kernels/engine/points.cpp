// The loops of the engine for signals so large that V of them side by side would leave the cache: the V lanes of a vector
// are neighbouring points of one signal.
//
// Each axis is transformed while the lanes lie along the other one; between the two, tiles of V × V points are transposed.
// A spectrum is kept as two planes X[k2][k1], k1 = 0 .. n1/2 along the lanes; a line's as X[k], k = k1 + n1 k2 likewise.
#include "lanes.h"

#include "fft.h"
#include "simd.h"
#include "smooth.h"

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

  static long vectors(const Grid<T> &grid) { return grid.stride / V; }      // of a row of a field
  static long pitch(const Grid<T> &grid) { return vectors(grid) | 1; }      // of a row of z: odd, to spread over the cache
  static int strips(const Grid<T> &grid) { return (grid.n1 + V - 1) / V; }  // vectors of k1

  // --- Filtering ---

  template <bool more, bool backwards> SC_INLINE void multiply(const Run &run, const T *weights, const T *real, const T *imag,
                                                              const int *place, C *to) {
    const T *w = weights + long(run.weight) * V, *x = real + run.from, *y = imag + run.from;
    for (int i = 0; i < run.length; i++, w += V, x += run.step, y += run.step) {
      C &z = to[place[i]];
      const R a = load(w), re = backwards ? reversed<T, V>(load(x)) : load(x), im = backwards ? -reversed<T, V>(load(y)) : load(y);
      z = more ? C{z.x + a * re, z.y + a * im} : C{a * re, a * im};
    }
  }

  static void gather(const Filter<T> &filter, int strip, const T *real, const T *imag, const int *place, C *to) {
    for (uint32_t i = filter.begin[strip]; i < filter.begin[strip + 1]; i++) {
      const Run &run = filter.runs[i];
      const int *where = place + run.to;
      const T *w = filter.weights.data();
      if (run.kind == Run::kClear)
        for (int t = 0; t < run.length; t++) to[where[t]] = C{};
      else if (run.kind == Run::kFirst)
        run.conjugate ? multiply<false, true>(run, w, real, imag, where, to) : multiply<false, false>(run, w, real, imag, where, to);
      else
        run.conjugate ? multiply<true, true>(run, w, real, imag, where, to) : multiply<true, false>(run, w, real, imag, where, to);
    }
  }

  // Turn points (k1 = strip V + lane, u2) of a line by +2 pi k1 u2 / n, or by the opposite.
  template <bool forward> SC_INLINE C turned_point(const Grid<T> &grid, C a, int strip, int u2) {
    const T *turn = grid.turns.data() + (long(strip) * grid.n2 + u2) * 2 * V;
    const R c = load(turn), s = forward ? -load(turn + V) : load(turn + V);
    return {a.x * c - a.y * s, a.x * s + a.y * c};
  }

  // Strip k1 .. k1 + V - 1: filter, transform along axis 1, write as rows k1 of z, where the transform along axis 0 wants them.
  static void make_strip(const Grid<T> &grid, const Filter<T> &filter, int strip, const T *real, const T *imag, C *line, C *z) {
    const int rows = std::min(V, grid.n1 - strip * V);
    const int *place = grid.columns.place.data() + strip * V;
    const long step = pitch(grid);
    if (filter.begin[strip] == filter.begin[strip + 1]) {
      for (int i = 0; i < rows; i++) std::memset(static_cast<void *>(z + place[i] * step), 0, sizeof(C) * vectors(grid));
      return;
    }
    gather(filter, strip, real, imag, grid.rows.place.data(), line);
    inverse(grid.rows, line, grid.n2, 1, 1);
    const bool turning = !grid.turns.empty();
    for (int b = 0; b < vectors(grid); b++) {
      const bool whole = (b + 1) * V <= grid.n2 && rows == V;
      if (turning) whole ? put_tile<true, true>(grid, line, strip, b, z) : put_tile<true, false>(grid, line, strip, b, z);
      else whole ? put_tile<false, true>(grid, line, strip, b, z) : put_tile<false, false>(grid, line, strip, b, z);
    }
  }

  template <bool turning, bool whole> SC_INLINE void put_tile(const Grid<T> &grid, const C *line, int strip, int b, C *z) {
    const int *place = grid.columns.place.data() + strip * V;
    const long step = pitch(grid);
    R re[V], im[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) {
      const int u2 = b * V + i;
      const bool there = whole || u2 < grid.n2;
      C a = there ? line[u2] : C{};
      if (turning && there) a = turned_point<false>(grid, a, strip, u2);
      re[i] = a.x;
      im[i] = a.y;
    }
    transpose<T, V>(re);
    transpose<T, V>(im);
#pragma GCC unroll 16
    for (int i = 0; i < V; i++)
      if (whole || strip * V + i < grid.n1) z[place[i] * step + b] = {re[i], im[i]};
  }

  // --- Smoothing ---

  template <int W> SC_INLINE void take(const Lowpass<T> &lowpass, const R *u, int c, R *smooth) {
    if (lowpass.moments) take_moments<W, W>(lowpass, u, c / W, reinterpret_cast<T *>(smooth));
    else if (lowpass.grid->line) smooth_line<W, V>(lowpass, u, c / W, smooth);
    else smooth_columns<W>(lowpass.axes[0], u, c, vectors(*lowpass.grid), smooth);
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
  // Outputs of axis 0 go to the lanes for the smoothing along axis 1: (strips of outputs, stride) and (strips, m2).
  static long turned_size(const Lowpass<T> &lowpass) { return lowpass.grid->line ? 0 : lowpass.grid->stride; }
  static long averages_size(const Lowpass<T> &lowpass) { return lowpass.grid->line ? 0 : lowpass.axes[1].outputs; }

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
    for (int first = 0; first < m1; first += V) {
      for (long b = 0; b < vectors(grid); b++) {
        R *tile = turned + b * V;
        for (int i = 0; i < V; i++) tile[i] = first + i < m1 ? smooth[(first + i) * vectors(grid) + b] : R{};
        transpose<T, V>(tile);
      }
      smooth_rows<1>(lowpass.axes[1], turned, averages);
      for (int i = 0; i < V && first + i < m1; i++)
        for (int p = 0; p < m2; p++) out[long(first + i) * m2 + p] = scale * averages[p][i];
    }
  }

  // --- Forward transforms ---

  // Points (u2 .. u2 + V - 1, k1 in the lanes) of a strip, real and imaginary parts exchanged, to where axis 1 wants them.
  SC_INLINE void put(const Grid<T> &grid, C *line, int strip, int u2, const R *re, const R *im) {
    for (int i = 0; i < V && u2 + i < grid.n2; i++) {
      C a = {re[i], im[i]};
      if (!grid.turns.empty()) a = turned_point<true>(grid, a, strip, u2 + i);
      line[grid.rows.place[u2 + i]] = {a.y, a.x};
    }
  }

  // Two real vectors of columns travel as one complex vector through axis 0; its half of frequencies goes to the lanes.
  struct Forth {
    C *z = nullptr, *lines = nullptr;  // (n1), and (halves, u2)

    static int halves(const Grid<T> &grid) { return (grid.n1 / 2 + V) / V; }  // vectors of k1 = 0 .. n1/2
    static long step(const Grid<T> &grid) { return grid.stride | 1; }
    static size_t bytes(const Grid<T> &grid) { return Space::bytes<C>(grid.n1) + Space::bytes<C>(halves(grid) * step(grid)); }
    Forth() = default;
    Forth(const Grid<T> &grid, Space &space) : z(space.take<C>(grid.n1)), lines(space.take<C>(halves(grid) * step(grid))) {}

    // Vectors of columns c, at `a`, and c + 1, at `b` if there is one; rows lie `stride` vectors apart.
    void columns(const Grid<T> &grid, const R *a, const R *b, long stride, long c) {
      const T h = T(0.5) / T(grid.points());
      const int n1 = grid.n1;
      for (int r = 0; r < n1; r++) z[grid.columns.place[r]] = {b ? b[r * stride] : R{}, a[r * stride]};
      inverse(grid.columns, z, n1, 1, 1);
      for (int strip = 0; strip < halves(grid); strip++) {
        R re[V], im[V], re2[V], im2[V];
        for (int i = 0; i < V; i++) {  // of x + i y: X = (Z + Z*)/2, Y = (Z - Z*)/2i; Z = p.y + i p.x, Z* = q.y - i q.x
          const int k = strip * V + i;
          if (k >= n1) { re[i] = im[i] = re2[i] = im2[i] = R{}; continue; }
          const C p = z[k], q = z[k ? n1 - k : 0];
          re[i] = h * (p.y + q.y);
          im[i] = h * (p.x - q.x);
          re2[i] = h * (p.x + q.x);
          im2[i] = h * (q.y - p.y);
        }
        transpose<T, V>(re);
        transpose<T, V>(im);
        put(grid, lines + strip * step(grid), strip, int(c) * V, re, im);
        if (!b) continue;
        transpose<T, V>(re2);
        transpose<T, V>(im2);
        put(grid, lines + strip * step(grid), strip, int(c + 1) * V, re2, im2);
      }
    }

    // The other axis, and the frequencies at their places in the two planes.
    void finish(const Grid<T> &grid, T *real) {
      const int n1 = grid.n1, n2 = grid.n2;
      const long half = grid.half(), n = grid.points(), pitch = long(halves(grid)) * V;
      const long end = V + (grid.line ? n / 2 + 1 : n2 * pitch);
      T *imag = real + half;
      for (T *plane : {real, imag}) {  // what is read with weights of zero must be numbers
        std::memset(plane, 0, sizeof(T) * V);
        std::memset(plane + end, 0, sizeof(T) * (half - end));
      }
      for (int strip = 0; strip < halves(grid); strip++) {
        C *line = lines + strip * step(grid);
        inverse(grid.rows, line, n2, 1, 1);
        for (int k2 = 0; k2 < n2; k2++) {
          const R re = line[k2].y, im = line[k2].x;
          if (grid.line && n1 % V) {  // lanes behind n1 must not be written
            for (int i = 0; i < V && strip * V + i < n1; i++) {
              const long k = strip * V + i + long(n1) * k2, mirror = 2 * k > n;
              real[V + (mirror ? n - k : k)] = re[i];
              imag[V + (mirror ? n - k : k)] = mirror ? -im[i] : im[i];
            }
            continue;
          }
          const long k = grid.line ? strip * V + long(n1) * k2 : k2 * pitch + strip * V;
          if (!grid.line || 2 * k <= n) {
            store(real + V + k, re);
            store(imag + V + k, im);
          }
          if (grid.line && 2 * (k + V - 1) > n) {  // the mirrored conjugates of frequencies beyond n/2
            store(real + 1 + n - k, reversed<T, V>(re));
            store(imag + 1 + n - k, -reversed<T, V>(im));
          }
        }
      }
    }
  };

  // --- The operations ---

  template <int W>
  static void make_columns(const Grid<T> &grid, const Lowpass<T> *lowpass, C *z, int c, R *u, Forth *forth, R *smooth) {
    R *block = W == 1 ? u + c % 2 * grid.n1 : u;  // single columns wait for their partners
    column_moduli<W>(grid.columns, z + c, pitch(grid), block);
    if (lowpass) take<W>(*lowpass, block, c, smooth);
    if (!forth) return;
    if constexpr (W > 1)
      for (int w = 0; w < W; w += 2) forth->columns(grid, u + w, u + w + 1, W, c + w);
    else if (c % 2) forth->columns(grid, u, block, 1, c - 1);
    else if (c + 1 == vectors(grid)) forth->columns(grid, u, nullptr, 1, c);
  }

  static int wavelet(const Bank<T> *bank, int first, int filters, const Lowpass<T> *lowpass, const T *X, int64_t groups, T *Y,
                     const Target<T> *target, int threads) {
    const Grid<T> &grid = *bank->grid;
    if (!target) lowpass = nullptr;
    const long half = bank->source->half(), n_smooth = lowpass ? smooth_size(*lowpass) : 0, n_u = long(grid.n1) * std::max(2, grid.width);
    const long n_turned = lowpass ? turned_size(*lowpass) : 0, n_averages = lowpass ? averages_size(*lowpass) : 0;
    const size_t bytes = Space::bytes<C>(grid.n1 * pitch(grid)) + Space::bytes<C>(grid.n2) + Space::bytes<R>(n_u) +
                         Space::bytes<R>(n_smooth) + Space::bytes<R>(n_turned) + Space::bytes<R>(n_averages) +
                         (Y ? Forth::bytes(grid) : 0);
    return each(filters * groups, threads, bytes, [&](long job, Space &space) {
      const long group = job / filters, output = job % filters * groups + group;
      const Filter<T> &filter = bank->filters[first + job % filters];
      const T *real = X + group * 2 * half, *imag = real + half;
      C *z = space.take<C>(grid.n1 * pitch(grid)), *line = space.take<C>(grid.n2);
      R *u = space.take<R>(n_u), *smooth = space.take<R>(n_smooth);
      R *turned = space.take<R>(n_turned), *averages = space.take<R>(n_averages);
      Forth on = Y ? Forth(grid, space) : Forth(), *forth = Y ? &on : nullptr;
      for (int strip = 0; strip < strips(grid); strip++) make_strip(grid, filter, strip, real, imag, line, z);
      if (lowpass) begin(*lowpass, smooth);
      for (int c = 0; c < vectors(grid); c += grid.width) switch (grid.width) {
          case 8: make_columns<8>(grid, lowpass, z, c, u, forth, smooth); break;
          case 4: make_columns<4>(grid, lowpass, z, c, u, forth, smooth); break;
          case 2: make_columns<2>(grid, lowpass, z, c, u, forth, smooth); break;
          default: make_columns<1>(grid, lowpass, z, c, u, forth, smooth);
        }
      if (forth) forth->finish(grid, Y + output * 2 * grid.half());
      if (lowpass) finish(*lowpass, smooth, turned, averages, *target, output);
    });
  }

  template <int W> static void read_columns(const Lowpass<T> &lowpass, const R *U, int c, R *u, R *smooth) {
    const Grid<T> &grid = *lowpass.grid;
    for (int r = 0; r < grid.n1; r++)
      for (int w = 0; w < W; w++) u[r * W + w] = U[r * vectors(grid) + c + w];
    take<W>(lowpass, u, c, smooth);
  }

  static int average(const Lowpass<T> *lowpass, const T *U, int64_t groups, const Target<T> *target, int threads) {
    const Grid<T> &grid = *lowpass->grid;
    const size_t bytes = Space::bytes<R>(long(grid.n1) * grid.width) + Space::bytes<R>(smooth_size(*lowpass)) +
                         Space::bytes<R>(turned_size(*lowpass)) + Space::bytes<R>(averages_size(*lowpass));
    return each(groups, threads, bytes, [&](long g, Space &space) {
      const R *from = reinterpret_cast<const R *>(U) + g * (grid.field() / V);
      R *u = space.take<R>(long(grid.n1) * grid.width), *smooth = space.take<R>(smooth_size(*lowpass));
      R *turned = space.take<R>(turned_size(*lowpass)), *averages = space.take<R>(averages_size(*lowpass));
      begin(*lowpass, smooth);
      for (int c = 0; c < vectors(grid); c += grid.width) switch (grid.width) {
          case 8: read_columns<8>(*lowpass, from, c, u, smooth); break;
          case 4: read_columns<4>(*lowpass, from, c, u, smooth); break;
          case 2: read_columns<2>(*lowpass, from, c, u, smooth); break;
          default: read_columns<1>(*lowpass, from, c, u, smooth);
        }
      finish(*lowpass, smooth, turned, averages, *target, g);
    });
  }

  static int hear(const Tones<T> *tones, const T *X, int64_t groups, const Target<T> *target, int threads) {
    return each(groups, threads, 1, [&](long g, Space &) {
      const long half = tones->grid->half();
      const T *real = X + g * 2 * half + V, *imag = real + half;
      T *out = target->where(g, tones->outputs);
      if (!out) return;
      R tile[V];
      for (int o = 0; o < tones->outputs; o++) {
        const T *re = tones->real.data() + long(o) * tones->stride, *im = tones->imag.data() + long(o) * tones->stride;
        R sum{}, other{};
        for (int k = 0; k < tones->bins; k += V) {  // what lies behind the last meets weights of zero
          sum += load(re + k) * load(real + k);
          other += load(im + k) * load(imag + k);
        }
        tile[o % V] = sum + other;
        if (o % V == V - 1 || o + 1 == tones->outputs) put_totals(tile, o % V + 1, target->scale_of(g), out + o / V * V);
      }
    });
  }

  static int spectrum(const Grid<T> *plan, const T *field, T *X, int64_t groups, int threads) {
    const Grid<T> &grid = *plan;
    const long columns = vectors(grid);
    return each(groups, threads, Forth::bytes(grid), [&](long g, Space &space) {
      const R *from = reinterpret_cast<const R *>(field) + g * (grid.field() / V);
      Forth forth(grid, space);
      for (long c = 0; c < columns; c += 2)
        forth.columns(grid, from + c, c + 1 < columns ? from + c + 1 : nullptr, columns, c);
      forth.finish(grid, X + g * 2 * grid.half());
    });
  }

  static int extend(const Grid<T> *grid, const T *x, const T *scale, int images, int present, int64_t size, const int32_t *rows,
                    const int32_t *columns, T *U) {
    for (int image = 0; image < images; image++)
      for (int r = 0; r < grid->n1; r++) {
        T *to = U + image * grid->field() + long(r) * grid->stride;
        const T *from = x + image * size + (grid->line ? 0 : rows[r]), factor = image < present ? scale[image] : T(0);
        const int32_t *column = columns + (grid->line ? long(r) * grid->n2 : 0);
        for (int c = 0; c < grid->stride; c++) to[c] = c < grid->n2 && image < present ? factor * from[column[c]] : T(0);
      }
    return 0;
  }

  static constexpr Operations<T> operations() { return {V, true, extend, spectrum, wavelet, average, hear}; }
};

}  // namespace

template <class T> Operations<T> points() { return Points<T, kBytes / sizeof(T)>::operations(); }
template Operations<float> points();
template Operations<double> points();
