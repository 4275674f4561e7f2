// The loops of the engine. All of the engine is compiled once for each instruction set.
//
// V signals lie side by side at every point of a grid, one in each lane of a vector, and no operation ever crosses lanes:
// what a lane computes depends neither on its neighbours nor on V, nor on which thread does it.
#include "lanes.h"

#include "fft.h"
#include "simd.h"
#include "smooth.h"
#include "team.h"

namespace {

constexpr long kCache = 24 << 10;  // bytes of a level-1 cache that a block of rows may fill

template <class T, int V> struct Signals {
  typedef typename Lanes<T, V>::type R;
  typedef Complex<R> C;

  static long pitch(const Grid<T> &grid) { return grid.n2 | 1; }

  // --- Filtering: the product with a filter, folded onto the rows of the output's spectrum ---

  template <bool more, int lanes> SC_INLINE void multiply(const Run &run, const T *weights, const C *X, const int *place, C *to) {
    const T *w = weights + long(run.weight) * lanes;
    const C *from = X + run.from;
    const T sign = run.conjugate ? T(-1) : T(1);
    for (int i = 0; i < run.length; i++, from += run.step, w += lanes) {
      C &z = to[place[i * run.skip]];
      if constexpr (lanes == 1) {
        const T a = *w, b = sign * a;
        z = more ? C{z.x + a * from->x, z.y + b * from->y} : C{a * from->x, b * from->y};
      } else {
        R a;
        std::memcpy(&a, w, sizeof a);
        const R b = sign * a;
        z = more ? C{z.x + a * from->x, z.y + b * from->y} : C{a * from->x, b * from->y};
      }
    }
  }

  template <int lanes> static void gather(const Filter<T> &filter, int row, const C *X, const int *place, C *to) {
    for (uint32_t i = filter.begin[row]; i < filter.begin[row + 1]; i++) {
      const Run &run = filter.runs[i];
      if (run.kind == Run::kClear)
        for (int t = 0; t < run.length; t++) to[place[run.to + t]] = C{};
      else if (run.kind == Run::kFirst)
        multiply<false, lanes>(run, filter.weights.data(), X, place + run.to, to);
      else
        multiply<true, lanes>(run, filter.weights.data(), X, place + run.to, to);
    }
  }

  // Rows `p` .. of z, in the order in which the transform along axis 0 wants them.
  static void make_rows(const Grid<T> &grid, const Filter<T> &filter, int lanes, const C *X, C *z, int p, int count) {
    const long step = pitch(grid);
    bool some = false;
    for (int q = p; q < p + count; q++) {
      const int row = grid.columns.source[q];
      C *to = z + q * step;
      if (filter.begin[row] == filter.begin[row + 1]) {
        std::memset(static_cast<void *>(to), 0, sizeof(C) * grid.n2);
        continue;
      }
      some = true;
      if (lanes == 1) gather<1>(filter, row, X, grid.rows.place.data(), to);
      else gather<V>(filter, row, X, grid.rows.place.data(), to);
    }
    if (!some) return;
    inverse(grid.rows, z + p * step, step, 1, count);
    if (grid.turns.empty()) return;
    for (int q = p; q < p + count; q++) {
      const T *turn = grid.turns.data() + 2l * grid.columns.source[q] * grid.n2;
      C *row = z + q * step;
      for (int c = 0; c < grid.n2; c++) row[c] = turned(row[c], turn[2 * c], turn[2 * c + 1]);
    }
  }

  // --- Smoothing ---

  static long smooth_size(const Lowpass<T> &lowpass) {
    if (lowpass.moments) return lowpass.sums();
    return lowpass.grid->line ? lowpass.axes[0].outputs : long(lowpass.axes[0].outputs) * lowpass.grid->n2;
  }

  template <int W, int B> SC_INLINE void take_moments(const Lowpass<T> &lowpass, const R *u, long block, R *smooth) {
    if constexpr (B > 1)
      if (lowpass.vectors < B) return take_moments<W, B / 2>(lowpass, u, block, smooth);
    sum_signals<W, B>(lowpass, u, block, smooth);
  }

  template <int W> SC_INLINE void take(const Lowpass<T> &lowpass, const R *u, int c, R *smooth) {
    if (!lowpass.grid->line) return smooth_columns<W>(lowpass.axes[0], u, c, lowpass.grid->n2, smooth);
    if constexpr (W % 3)  // of a line
      lowpass.moments ? take_moments<W, W>(lowpass, u, c / W, smooth) : smooth_line<W, 1>(lowpass, u, c / W, smooth);
  }

  static void begin(const Lowpass<T> &lowpass, R *smooth) {
    if (lowpass.grid->line && !lowpass.moments) std::memset(static_cast<void *>(smooth), 0, sizeof(R) * lowpass.axes[0].outputs);
  }

  static void finish(const Lowpass<T> &lowpass, R *smooth, R *averages, const Target<T> &target, long group) {
    const R *result = smooth;
    if (lowpass.moments) {
      smooth_rows<1>(lowpass.axes[0], smooth, 0, averages);
      result = averages;
    } else if (!lowpass.grid->line) {
      const Matrix<T> &matrix = lowpass.axes[1];
      const int m1 = lowpass.axes[0].outputs;
      int o = 0;
      for (; o + 4 <= m1; o += 4) smooth_rows<4>(matrix, smooth + long(o) * matrix.n, matrix.n, averages + long(o) * matrix.outputs);
      for (; o < m1; o++) smooth_rows<1>(matrix, smooth + long(o) * matrix.n, 0, averages + long(o) * matrix.outputs);
      result = averages;
    }
    write(result, lowpass.outputs(), target, group);
  }

  SC_INLINE void write(const R *result, long outputs, const Target<T> &target, long group) {
    for (int v = 0; v < V; v++) {
      const T *lane = reinterpret_cast<const T *>(result) + v;
      if (T *out = target.where(group * V + v, outputs))
        for (long o = 0; o < outputs; o++) out[o] = target.scale_of(group * V + v) * lane[o * V];
    }
  }

  // --- Forward transforms ---

  // The forward transform is the inverse one between two exchanges of real and imaginary parts. Two real columns travel as
  // one complex column; half of axis 0's frequencies remain, as rows.
  struct Forth {
    C *z = nullptr, *rows = nullptr, *row = nullptr;

    static long pairs(const Grid<T> &grid) { return std::max(1, grid.width / 2); }
    static size_t bytes(const Grid<T> &grid) {
      return Space::bytes<C>(grid.n1 * pairs(grid)) + Space::bytes<C>((grid.n1 / 2 + 1) * pitch(grid)) + Space::bytes<C>(grid.n2);
    }
    Forth() = default;
    Forth(const Grid<T> &grid, Space &space)
        : z(space.take<C>(grid.n1 * pairs(grid))), rows(space.take<C>((grid.n1 / 2 + 1) * pitch(grid))),
          row(space.take<C>(grid.n2)) {}

    // Columns c, c + 1, … of a field: those of even place from `a` on, those of odd place from `b` on, if there are any.
    void columns(const Grid<T> &grid, const R *a, const R *b, long step, int count, int c) {
      const T h = T(0.5) / T(grid.points());
      const int n1 = grid.n1;
      for (int r = 0; r < n1; r++) {
        C *p = z + long(grid.columns.place[r]) * count;
        for (int w = 0; w < count; w++) p[w] = {b ? b[r * step + 2 * w] : R{}, a[r * step + 2 * w]};
      }
      inverse(grid.columns, z, 1, count, count);
      for (int k = 0; k <= n1 / 2; k++) {
        const C *p = z + long(k) * count, *q = z + long(k ? n1 - k : 0) * count;
        C *to = rows + k * pitch(grid) + c;
        for (int w = 0; w < count; w++) {  // of x + i y: X = (Z + Z*)/2, Y = (Z - Z*)/2i; Z = p.y + i p.x, Z* = q.y - i q.x
          to[2 * w] = {h * (p[w].y + q[w].y), h * (p[w].x - q[w].x)};
          if (b) to[2 * w + 1] = {h * (p[w].x + q[w].x), h * (q[w].y - p[w].y)};
        }
      }
    }

    // The other axis, and the frequencies at their places.
    void finish(const Grid<T> &grid, C *to) {
      const long n1 = grid.n1, n2 = grid.n2, n = grid.points();
      for (long k = 0; k <= n1 / 2; k++) {
        const C *from = rows + k * pitch(grid);
        const T *turn = grid.turns.empty() ? nullptr : grid.turns.data() + 2 * k * n2;
        for (long c = 0; c < n2; c++) {
          const C x = from[c], y = turn ? turned(x, turn[2 * c], -turn[2 * c + 1]) : x;
          row[grid.rows.place[c]] = {y.y, y.x};
        }
        inverse(grid.rows, row, n2, 1, 1);
        if (!grid.line) {
          for (long c = 0; c < n2; c++) to[k * n2 + c] = {row[c].y, row[c].x};
          continue;
        }
        for (long c = 0; c < n2; c++) {
          const long frequency = k + n1 * c;
          if (2 * frequency <= n) to[frequency] = {row[c].y, row[c].x};
          else to[n - frequency] = {row[c].y, -row[c].x};
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
    if constexpr (W > 1) forth->columns(grid, u, u + 1, W, W / 2, c);
    if constexpr (W > 1 && W % 2) forth->columns(grid, u + W - 1, nullptr, W, 1, c + W - 1);
    if constexpr (W > 1) return;
    else if (c % 2) forth->columns(grid, u, block, 1, 1, c - 1);
    else if (c + 1 == grid.n2) forth->columns(grid, u, nullptr, 1, 1, c);
  }

  static void wavelet(const Bank<T> *bank, int first, int filters, const Lowpass<T> *lowpass, const T *X, int64_t groups, T *Y,
                     const Target<T> *target, Worker &worker) {
    const Grid<T> &grid = *bank->grid;
    if (!target) lowpass = nullptr;
    const long half = bank->source->half(), n_smooth = lowpass ? smooth_size(*lowpass) : 0;
    const long n_averages = lowpass ? lowpass->outputs() : 0, n_u = long(grid.n1) * std::max(2, grid.width);
    const size_t bytes = Space::bytes<C>(grid.n1 * pitch(grid)) + Space::bytes<R>(n_u) + Space::bytes<R>(n_smooth) +
                         Space::bytes<R>(n_averages) + (Y ? Forth::bytes(grid) : 0);
    each(filters * groups, worker, bytes, [&](long job, Space &space) {
      const long group = job % groups;
      const Filter<T> &filter = bank->filters[first + job / groups];
      const C *from = reinterpret_cast<const C *>(X) + group * half;
      C *z = space.take<C>(grid.n1 * pitch(grid));
      R *u = space.take<R>(n_u), *smooth = space.take<R>(n_smooth), *averages = space.take<R>(n_averages);
      Forth on = Y ? Forth(grid, space) : Forth(), *forth = Y ? &on : nullptr;
      const int rows = int(std::max<long>(1, kCache / long(sizeof(C) * grid.n2)));
      for (int p = 0; p < grid.n1; p += rows) make_rows(grid, filter, bank->lanes, from, z, p, std::min(rows, grid.n1 - p));
      if (lowpass) begin(*lowpass, smooth);
      each_block(grid.n2, grid.width, [&](auto width, int c) { make_columns<width>(grid, lowpass, z, c, u, forth, smooth); });
      if (forth) forth->finish(grid, reinterpret_cast<C *>(Y) + job * grid.half());
      if (lowpass) finish(*lowpass, smooth, averages, *target, job);
    });
  }

  template <int W> static void read_columns(const Lowpass<T> &lowpass, const R *U, int c, R *u, R *smooth) {
    const Grid<T> &grid = *lowpass.grid;
    for (int r = 0; r < grid.n1; r++) std::memcpy(static_cast<void *>(u + r * W), U + long(r) * grid.n2 + c, sizeof(R) * W);
    take<W>(lowpass, u, c, smooth);
  }

  static void average(const Lowpass<T> *lowpass, const T *U, int64_t groups, const Target<T> *target, Worker &worker) {
    const Grid<T> &grid = *lowpass->grid;
    const size_t bytes = Space::bytes<R>(long(grid.n1) * grid.width) + Space::bytes<R>(smooth_size(*lowpass)) +
                         Space::bytes<R>(lowpass->outputs());
    each(groups, worker, bytes, [&](long g, Space &space) {
      const R *from = reinterpret_cast<const R *>(U) + g * grid.points();
      R *u = space.take<R>(long(grid.n1) * grid.width), *smooth = space.take<R>(smooth_size(*lowpass));
      R *averages = space.take<R>(lowpass->outputs());
      begin(*lowpass, smooth);
      each_block(grid.n2, grid.width, [&](auto width, int c) { read_columns<width>(*lowpass, from, c, u, smooth); });
      finish(*lowpass, smooth, averages, *target, g);
    });
  }

  static void hear(const Tones<T> *tones, const T *X, int64_t groups, const Target<T> *target, Worker &worker) {
    each(groups, worker, Space::bytes<R>(tones->outputs), [&](long g, Space &space) {
      const C *from = reinterpret_cast<const C *>(X) + g * tones->grid->half();
      R *sums = space.take<R>(tones->outputs);
      for (int o = 0; o < tones->outputs; o++) {
        const T *weights = tones->weights.data() + 2l * o * tones->bins;
        R sum[4] = {};
        for (int k = 0; k < tones->bins; k++, weights += 2) {
          sum[k % 2] += weights[1] * from[k].x;
          sum[2 + k % 2] += weights[0] * from[k].y;
        }
        sums[o] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
      write(sums, tones->outputs, *target, g);
    });
  }

  static void spectrum(const Grid<T> *plan, const T *field, T *X, int64_t groups, Worker &worker) {
    const Grid<T> &grid = *plan;
    const long n2 = grid.n2;
    each(groups, worker, Forth::bytes(grid), [&](long g, Space &space) {
      const R *from = reinterpret_cast<const R *>(field) + g * grid.points();
      Forth forth(grid, space);
      for (long c = 0, pairs; c < n2; c += 2 * pairs) {
        pairs = std::max(1l, std::min(Forth::pairs(grid), (n2 - c) / 2));
        forth.columns(grid, from + c, c + 1 < n2 ? from + c + 1 : nullptr, n2, int(pairs), int(c));
      }
      forth.finish(grid, reinterpret_cast<C *>(X) + g * grid.half());
    });
  }

  static void extend(const Grid<T> *grid, const T *x, const T *scale, int images, int present, int64_t size, const int32_t *rows,
                    const int32_t *columns, T *U) {
    const int n1 = grid->line ? 1 : grid->n1;
    const long n2 = grid->points() / n1;
    for (long r = 0; r < n1; r++)
      for (int v = 0; v < V; v++) {
        const int image = v % images;
        T *to = U + r * n2 * V + v;
        const T *from = x + image * size + rows[r], factor = image < present ? scale[image] : T(0);
        for (long c = 0; c < n2; c++) to[c * V] = image < present ? factor * from[columns[c]] : T(0);
      }
  }

  static constexpr Operations<T> operations() { return {V, extend, spectrum, wavelet, average, hear, nullptr}; }
};

}  // namespace

template <class T> Operations<T> signals(bool few) {
  constexpr int most = kBytes / sizeof(T);
  return few ? Signals<T, most / 2>::operations() : Signals<T, most>::operations();
}
template Operations<float> signals(bool);
template Operations<double> signals(bool);
