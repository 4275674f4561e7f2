#include "plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace {

constexpr long kColumnCache = 36 << 10;  // bytes of a level-1 cache that a block of columns may fill

constexpr int kLargestVector = 16;
constexpr double kPi = 3.141592653589793238462643383279503;

template <class T> void turn(std::vector<T> &turns, double part) {
  turns.push_back(T(std::cos(2 * kPi * part)));
  turns.push_back(T(std::sin(2 * kPi * part)));
}

int64_t modulo(int64_t k, int64_t n) { return ((k % n) + n) % n; }
int64_t floored(int64_t k, int64_t n) { return (k - modulo(k, n)) / n; }
int64_t rounded(int64_t k, int64_t n) { return (k + n - 1) / n * n; }

// Cycles per element of a pass, as measured with vectors of 512 and of 256 bits: the first has no turns.
struct Pass {
  int radix;
  double first, later;
};
constexpr Pass kPasses[] = {{16, 8.4, 11.1}, {13, 11.6, 15.9}, {12, 5.8, 9.1}, {11, 10.9, 13.6}, {10, 6.3, 9.3},
                            {9, 5.9, 10.6},  {8, 5.6, 7.8},    {7, 5.1, 8.9},  {6, 3.8, 6.9},    {5, 4.3, 7.5},
                            {4, 3.1, 5.5},   {3, 3.0, 5.3},    {2, 2.3, 4.6}};

struct Radices {
  double cost;
  std::vector<int> radix;
};

// The passes of a transform of n points, or what remains of it, that cost least.
Radices cheapest(int n, bool first, int most = 16) {
  if (n == 1) return {0, {}};
  Radices best{1e9, {}};
  for (const Pass &pass : kPasses) {
    if (n % pass.radix || pass.radix > most) continue;
    Radices rest = cheapest(n / pass.radix, false, first ? 16 : pass.radix);
    rest.cost += first ? pass.first : pass.later;
    if (rest.cost >= best.cost) continue;
    rest.radix.insert(rest.radix.begin(), pass.radix);
    best = rest;
  }
  return best;
}

}  // namespace

template <class T> bool Fft<T>::possible(int n) {
  for (int r : {2, 3, 5, 7, 11, 13})
    while (n % r == 0) n /= r;
  return n == 1;
}

template <class T> Fft<T>::Fft(int size) : n(size), place(size), source(size) {
  radix = cheapest(size, true).radix;
  for (int t = 0; t < n; t++) {
    int block = 1, digits = t, left = n;
    for (int r : radix) {
      left /= r;
      place[t] += digits / left * block;
      digits %= left;
      block *= r;
    }
    source[place[t]] = t;
  }
  int block = 1;
  for (int r : radix) {
    first.push_back(turns.size());
    for (int j = 1; j < block; j++)
      for (int m = 1; m < r; m++) turn(turns, double(j) * m / (double(block) * r));
    block *= r;
  }
}

template <class T>
Grid<T>::Grid(bool is_line, int a, int b, int lanes, bool across_points)
    : line(is_line), n1(a), n2(b), across(across_points ? lanes : 0), stride(across ? rounded(b, lanes) : b), width(1),
      columns(a), rows(b) {
  const int vectors = across ? stride / lanes : n2;
  for (int w : {8, 4, 2})
    if (vectors % w == 0 && (2l * w * n1 * lanes * long(sizeof(T)) <= kColumnCache || (w == 2 && !across))) {
      width = w;
      break;
    }
  if (!line || n1 == 1) return;
  const auto angle = [&](long k1, long u2) { return double(k1 * u2) / double(points()); };
  for (long k1 = 0; !across && k1 < n1; k1++)
    for (long u2 = 0; u2 < n2; u2++) turn(turns, angle(k1, u2));
  for (long k1 = 0; across && k1 < n1; k1 += across)
    for (long u2 = 0; u2 < n2; u2++)
      for (double quarter : {0.0, 0.25})
        for (int lane = 0; lane < across; lane++) turns.push_back(T(std::cos(2 * kPi * (angle(k1 + lane, u2) - quarter))));
}

template <class T> int64_t Grid<T>::half() const {
  if (!across) return line ? points() / 2 + 1 : int64_t(n1 / 2 + 1) * n2;
  return 2 * across + (line ? rounded(points() / 2 + 1, across) : int64_t(n2) * rounded(n1 / 2 + 1, across));
}

template <class T>
template <class Weight, class Where>
void Filter<T>::add(std::vector<Run> &runs_here, char *covered, int64_t count, int lanes, Weight weight, Where where) {
  bool open = false;
  int64_t end = count;
  const auto some = [&](int64_t t) {
    for (int v = 0; v < lanes; v++)
      if (weight(t, v) != T(0)) return true;
    return false;
  };
  while (end > 0 && !some(end - 1)) end--;
  int64_t t = 0;
  while (t < end && !some(t)) t++;  // what is zero in every lane at the ends is left out
  for (; t < end; t++) {
    const auto [to, from, step] = where(t);
    const Run::Kind kind = covered[to] ? Run::kMore : Run::kFirst;
    covered[to] = 1;
    Run *last = open ? &runs_here.back() : nullptr;
    if (last && last->kind == kind && last->to + last->length == to && last->from + int64_t(last->length) * last->step == from &&
        last->step == step)
      last->length++;
    else
      runs_here.push_back({int32_t(to), 1, from, int32_t(step), uint32_t(weights.size() / lanes), kind, step < 0});
    open = true;
    for (int v = 0; v < lanes; v++) weights.push_back(weight(t, v));
  }
}

template <class T> void Filter<T>::close(std::vector<std::vector<Run>> &rows, const std::vector<char> &covered, int length) {
  for (size_t r = 0; r < rows.size(); r++) {
    begin.push_back(uint32_t(runs.size()));
    if (rows[r].empty()) continue;
    const char *there = covered.data() + r * length;
    for (int c = 0, end; c < length; c = end + 1) {
      for (end = c; end < length && !there[end];) end++;
      if (end > c) runs.push_back({c, end - c, 0, 0, 0, Run::kClear, false});
    }
    runs.insert(runs.end(), rows[r].begin(), rows[r].end());
  }
  begin.push_back(uint32_t(runs.size()));
}

template <class T>
Filter<T>::Filter(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box,
                  int lanes) {
  struct Place { int64_t to, from, step; };
  const int64_t n = grid.points(), N = source.points(), N1 = source.n1, N2 = source.n2;
  const int V = grid.across;
  std::vector<std::vector<Run>> rows(V ? (grid.n1 + V - 1) / V : grid.n1);
  std::vector<char> covered(rows.size() * grid.n2, 0);
  if (!V) {
    const int step = grid.line ? grid.n1 : 1;
    for (int64_t i = 0; i < (grid.line ? std::min<int64_t>(step, extent[0]) : extent[0]); i++) {
      const int64_t points = grid.line ? (extent[0] - i + step - 1) / step : extent[1];
      const int64_t row = modulo(origin[0] + i, grid.n1), r = modulo(origin[0] + i, N1);
      const auto weight = [&](int64_t t, int v) { return box[(grid.line ? i + t * step : i * extent[1] + t) * lanes + v]; };
      const auto where = [&](int64_t t) -> Place {
        if (grid.line) {
          const int64_t k = origin[0] + i + t * step, s = modulo(k, N);
          return {modulo(k, n) / grid.n1, 2 * s > N ? N - s : s, 2 * s > N ? -step : step};
        }
        const int64_t c = origin[1] + t;
        if (2 * r > N1) return {modulo(c, grid.n2), (N1 - r) * N2 + modulo(-c, N2), -1};
        return {modulo(c, grid.n2), r * N2 + modulo(c, N2), 1};
      };
      add(rows[row], covered.data() + row * grid.n2, points, lanes, weight, where);
    }
    close(rows, covered, grid.n2);
    return;
  }
  // A vector is V neighbouring frequencies f + lane. In each period w of the source, the lower half of them is read as it
  // stands, the upper half as mirrored conjugates, backwards: two runs, each with zeros in the other's lanes.
  const int64_t period = grid.line ? N : N1, pitch = rounded(N1 / 2 + 1, V), last = origin[0] + extent[0];
  for (int64_t r = 0; r < int64_t(rows.size()); r++) {
    const int64_t p0 = floored(origin[0] - r * V - V + 1, grid.n1), p1 = floored(last - 1 - r * V, grid.n1);
    const auto each_half = [&](int64_t first, int64_t end, auto visit) {
      for (int64_t w = floored(first, period); w <= floored(end - 1, period); w++)
        for (bool mirrored : {false, true}) visit(w, mirrored);
    };
    const auto belongs = [&](int64_t f, int64_t v, int64_t w, bool mirrored) {
      return r * V + v < grid.n1 && f >= origin[0] && f < last && floored(f, period) == w &&
             (2 * modulo(f, period) > period) == mirrored;
    };
    if (grid.line) {
      each_half(origin[0], last, [&](int64_t w, bool mirrored) {
        const auto f = [&](int64_t t) { return r * V + (p0 + t) * grid.n1; };
        const auto weight = [&](int64_t t, int v) { return belongs(f(t) + v, v, w, mirrored) ? box[f(t) + v - origin[0]] : T(0); };
        const auto where = [&](int64_t t) -> Place {
          const int64_t to = modulo(p0 + t, grid.n2);
          if (mirrored) return {to, V + (w + 1) * N - f(t) - (V - 1), -grid.n1};
          return {to, V + f(t) - w * N, grid.n1};
        };
        add(rows[r], covered.data() + r * grid.n2, p1 - p0 + 1, V, weight, where);
      });
      continue;
    }
    for (int64_t p = p0; p <= p1; p++) {
      const int64_t f = r * V + p * grid.n1;
      each_half(f, f + V, [&](int64_t w, bool mirrored) {
        const auto weight = [&](int64_t t, int v) {
          return belongs(f + v, v, w, mirrored) ? box[(f + v - origin[0]) * extent[1] + t] : T(0);
        };
        const auto where = [&](int64_t t) -> Place {
          const int64_t c = origin[1] + t, to = modulo(c, grid.n2);
          if (mirrored) return {to, V + modulo(-c, N2) * pitch + (w + 1) * N1 - f - (V - 1), -pitch};
          return {to, V + modulo(c, N2) * pitch + f - w * N1, pitch};
        };
        add(rows[r], covered.data() + r * grid.n2, extent[1], V, weight, where);
      });
    }
  }
  close(rows, covered, grid.n2);
}

// The shortest run around the peak of a circular row that leaves out less than `drop` of its sum of magnitudes.
template <class T> static std::pair<int64_t, int64_t> essential(const T *row, int64_t n, double drop) {
  double sum = 0;
  int64_t peak = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += std::fabs(double(row[i]));
    if (std::fabs(double(row[i])) > std::fabs(double(row[peak]))) peak = i;
  }
  const auto magnitude = [&](int64_t i) { return std::fabs(double(row[modulo(i, n)])); };
  int64_t start = peak, end = peak + 1;
  for (double kept = magnitude(peak); end - start < n && sum - kept > drop * sum;) {
    const bool before = magnitude(start - 1) >= magnitude(end);
    kept += before ? magnitude(--start) : magnitude(end++);
  }
  return {start, end - start};
}

template <class T> void Matrix<T>::add(int out, int64_t start, int64_t length, size_t first_tap) {
  start = modulo(start, n);
  const int64_t fits = std::min<int64_t>(length, n - start);
  bands.push_back({out, int(start), int(fits), false, first_tap});
  if (fits < length) bands.push_back({out, 0, int(length - fits), true, first_tap + size_t(fits)});
}

template <class T> Matrix<T>::Matrix(const T *dense, int m, int size, double drop, int pad) : outputs(m), n(size) {
  taps.assign(pad, T(0));
  for (int o = 0; o < outputs; o++) {
    const T *row = dense + int64_t(o) * n;
    const auto [start, length] = essential(row, n, drop);
    add(o, start, length, taps.size());
    for (int64_t i = start; i < start + length; i++) taps.push_back(row[modulo(i, n)]);
    taps.insert(taps.end(), pad, T(0));
  }
}

template <class T>
Matrix<T>::Matrix(const T *kernel, const int64_t *samples, int m, int size, double drop, int pad) : outputs(m), n(size) {
  const auto [start, length] = essential(kernel, n, drop);
  taps.assign(pad, T(0));
  for (int64_t i = start; i < start + length; i++) taps.push_back(kernel[modulo(i, n)]);
  taps.insert(taps.end(), pad, T(0));
  for (int o = 0; o < outputs; o++) add(o, samples[o] + start, length, size_t(pad));
}

template <class T>
Lowpass<T>::Lowpass(const Grid<T> *g, const T *first, int m1, const T *second, int m2, double drop) : grid(g) {
  axes.emplace_back(first, m1, grid->line ? int(grid->points()) : grid->n1, drop, int(grid->block()));
  if (grid->line) meet();
  else axes.emplace_back(second, m2, grid->n2, drop, 0);
}

template <class T>
Lowpass<T>::Lowpass(const Grid<T> *g, const T *weights, int m, int v, const T *kernel, const int64_t *samples, int outputs,
                    double drop)
    : grid(g), moments(m), vectors(v), basis(weights, weights + m * part()) {
  const int64_t n = moments ? sums() : grid->points();
  axes.emplace_back(kernel, samples, outputs, int(n), drop, int(std::max<int64_t>(grid->block(), kLargestVector)));
  if (!moments) meet();
}

template <class T> void Lowpass<T>::meet() {
  const int64_t blocks = grid->blocks(), block = grid->block();
  std::vector<std::vector<uint32_t>> those(grid->n1 * blocks);
  for (uint32_t b = 0; b < axes[0].bands.size(); b++) {
    const Band &band = axes[0].bands[b];
    for (int64_t point = band.start; point < band.start + band.length;) {
      const int64_t row = point / grid->n2, within = (point - row * grid->n2) / block;
      those[row * blocks + within].push_back(b);
      point = row * grid->n2 + std::min<int64_t>((within + 1) * block, grid->n2);
    }
  }
  for (const auto &some : those) {
    live.push_back(uint32_t(order.size()));
    order.insert(order.end(), some.begin(), some.end());
  }
  live.push_back(uint32_t(order.size()));
}

template <class T>
Tones<T>::Tones(const Grid<T> *g, const T *re, const T *im, int m, int n)
    : grid(g), outputs(m), bins(n), stride(int(rounded(n, kLargestVector))), real(size_t(m) * stride), imag(size_t(m) * stride) {
  for (int o = 0; o < m; o++) {
    std::copy(re + int64_t(o) * n, re + int64_t(o + 1) * n, real.begin() + int64_t(o) * stride);
    std::copy(im + int64_t(o) * n, im + int64_t(o + 1) * n, imag.begin() + int64_t(o) * stride);
  }
}

template struct Fft<float>;
template struct Fft<double>;
template struct Grid<float>;
template struct Grid<double>;
template struct Filter<float>;
template struct Filter<double>;
template struct Matrix<float>;
template struct Matrix<double>;
template struct Lowpass<float>;
template struct Lowpass<double>;
template struct Tones<float>;
template struct Tones<double>;
