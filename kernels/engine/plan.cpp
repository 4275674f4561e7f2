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
constexpr int kLargestRadix = 24;
constexpr Pass kPasses[] = {{24, 7.5, 9.9}, {16, 8.4, 11.1}, {13, 11.6, 15.9}, {12, 5.8, 9.1},
                            {11, 10.9, 13.6}, {10, 6.3, 9.3}, {9, 5.9, 10.6}, {8, 5.6, 7.8},   {7, 5.1, 8.9},
                            {6, 3.8, 6.9},   {5, 4.3, 7.5}, {4, 3.1, 5.5},   {3, 3.0, 5.3},   {2, 2.3, 4.6}};

struct Radices {
  double cost;
  std::vector<int> radix;
};

// The passes of a transform of n points, or what remains of it, that cost least.
Radices cheapest(int n, bool first, int most = kLargestRadix) {
  if (n == 1) return {0, {}};
  Radices best{1e9, {}};
  for (const Pass &pass : kPasses) {
    if (n % pass.radix || pass.radix > most) continue;
    Radices rest = cheapest(n / pass.radix, false, first ? kLargestRadix : pass.radix);
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
  if (across) columns.place.resize(rounded(n1, lanes), n1);
  for (int w : {8, 6, 4, 3, 2}) {
    const bool near = 2l * w * n1 * lanes * long(sizeof(T)) <= kColumnCache || (w == 2 && !across);
    // Columns are transformed forth in pairs; the blocks of a line are of equal size.
    if (w <= vectors && near && (line ? vectors % w == 0 && w % 3 : w % 2 == 0 || w == vectors)) {
      width = w;
      break;
    }
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
  if (across) return strips() * pitch() * across;
  return line ? points() / 2 + 1 : int64_t(n1 / 2 + 1) * n2;
}

bool Run::takes(const Run &point) {
  if (point.kind != kind || point.conjugate != conjugate || point.next != next || point.shift != shift) return false;
  const int64_t onward = point.to - (to + int64_t(length - 1) * skip), further = point.from - (from + int64_t(length - 1) * step);
  if (length > 1 ? onward != skip || further != step : onward <= 0) return false;
  skip = int32_t(onward);
  step = int32_t(further);
  length++;
  return true;
}

template <class T>
template <class Weight, class Where>
void Filter<T>::add(std::vector<Run> &runs_here, char *covered, int64_t first, int64_t skip, int64_t end, int lanes, Weight weight,
                    Where where) {
  bool open = false;
  const auto some = [&](int64_t t) {
    for (int v = 0; v < lanes; v++)
      if (weight(t, v) != T(0)) return true;
    return false;
  };
  end = first + rounded(end - first, skip);
  while (end > first && !some(end - skip)) end -= skip;
  while (first < end && !some(first)) first += skip;  // what is zero in every lane at the ends is left out
  for (int64_t t = first; t < end; t += skip) {
    Run point = where(t);
    point.kind = covered[point.to] ? Run::kMore : Run::kFirst;
    covered[point.to] = 1;
    if (!open || !runs_here.back().takes(point)) {
      point.weight = uint32_t(weights.size() / lanes);
      runs_here.push_back(point);
    }
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
      if (end > c) runs.push_back({c, 1, end - c, 0, 0, 0, 0, Run::kClear, false, 0});
    }
    runs.insert(runs.end(), rows[r].begin(), rows[r].end());
  }
  begin.push_back(uint32_t(runs.size()));
}

namespace {

Run at(int64_t to, int64_t from, bool conjugate, int64_t next = 0, int64_t shift = 0) {
  return {int32_t(to), 1, 1, from, next, 0, 0, Run::kFirst, conjugate, uint8_t(shift)};
}

}  // namespace

template <class T>
Filter<T>::Filter(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box,
                  int lanes) {
  if (grid.across) points(grid, source, origin, extent, box);
  else signals(grid, source, origin, extent, box, lanes);
}

template <class T>
void Filter<T>::signals(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box,
                        int lanes) {
  const int64_t n = grid.points(), N = source.points(), N1 = source.n1, N2 = source.n2;
  std::vector<std::vector<Run>> rows(grid.n1);
  std::vector<char> covered(rows.size() * grid.n2, 0);
  const int step = grid.line ? grid.n1 : 1;
  for (int64_t i = 0; i < (grid.line ? std::min<int64_t>(step, extent[0]) : extent[0]); i++) {
    const int64_t points = grid.line ? (extent[0] - i + step - 1) / step : extent[1];
    const int64_t row = modulo(origin[0] + i, grid.n1), r = modulo(origin[0] + i, N1);
    const auto weight = [&](int64_t t, int v) { return box[(grid.line ? i + t * step : i * extent[1] + t) * lanes + v]; };
    const auto where = [&](int64_t t) {
      if (grid.line) {
        const int64_t k = origin[0] + i + t * step, s = modulo(k, N);
        return at(modulo(k, n) / grid.n1, std::min(s, N - s), 2 * s > N);
      }
      const int64_t c = origin[1] + t;
      if (2 * r > N1) return at(modulo(c, grid.n2), (N1 - r) * N2 + modulo(-c, N2), true);
      return at(modulo(c, grid.n2), r * N2 + modulo(c, N2), false);
    };
    add(rows[row], covered.data() + row * grid.n2, 0, 1, points, lanes, weight, where);
  }
  close(rows, covered, grid.n2);
}

// A vector is V frequencies f + lane along k1 of the source, which is periodic: of each period w, the lower half of them is
// read as it stands, the upper half as mirrored conjugates. Each is a run, with zeros in the other's lanes. N1 / 2 is its own
// mirror, and counts with the upper half: where V divides it, a vector begins there.
template <class T>
void Filter<T>::points(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box) {
  const int64_t V = grid.across, n1 = grid.n1, n2 = grid.n2, N1 = source.n1, N2 = source.n2, last = origin[0] + extent[0];
  std::vector<std::vector<Run>> rows((n1 + V - 1) / V);
  std::vector<char> covered(rows.size() * n2, 0);
  // On a line, t counts f = r V + n1 t, and points whose f agree modulo N1 lie in one strip.
  int64_t apart = 1;
  while (grid.line && apart * n1 % N1) apart++;
  for (int64_t r = 0; r < int64_t(rows.size()); r++) {
    const int64_t p0 = floored(origin[0] - r * V - V + 1, n1), p1 = floored(last - 1 - r * V, n1) + 1;
    for (int64_t p = p0; p < (grid.line ? p0 + 1 : p1); p++)
      for (int64_t half = 0; half < 2 * ((V + N1 - 2) / N1 + 1); half++) {  // those that V frequencies can meet
        const auto frequency = [&](int64_t t) { return r * V + n1 * (grid.line ? t : p); };
        const auto period = [&](int64_t f) { return floored(f, N1) + half / 2; };
        const bool mirrored = half % 2;
        const auto is_here = [&](int64_t f, int v) {
          const int64_t k = f + v;
          return r * V + v < n1 && k >= origin[0] && k < last && floored(k, N1) == period(f) &&
                 (2 * modulo(k, N1) >= N1) == mirrored;
        };
        bool lanes[kLargestVector] = {}, any = grid.line;  // of a grid, the same along a row
        for (int v = 0; v < V && !grid.line; v++) any |= lanes[v] = is_here(frequency(0), v);
        if (!any) continue;
        const auto weight = [&](int64_t t, int v) {
          const int64_t k = frequency(t) + v;
          if (grid.line) return is_here(k - v, v) ? box[k - origin[0]] : T(0);
          return lanes[v] ? box[(k - origin[0]) * extent[1] + t] : T(0);
        };
        const auto where = [&](int64_t t) {
          const int64_t f = frequency(t), w = period(f), c = grid.line ? t : origin[1] + t;
          const int64_t k1 = mirrored ? (w + 1) * N1 - f - (V - 1) : f - w * N1;  // of the lane that is lowest
          const int64_t k2 = mirrored ? (grid.line ? -w - 1 : -c) : (grid.line ? w : c);
          const auto vector = [&](int64_t strip) {
            return (std::clamp<int64_t>(strip, 0, source.strips() - 1) * source.pitch() + modulo(k2, N2)) * 2 * V;
          };
          const int64_t a = vector(floored(k1, V)), b = vector(floored(k1, V) + 1);  // of one that lacks, no lane is read
          return at(modulo(c, n2), a, mirrored, b - a, modulo(k1, V));
        };
        for (int64_t t0 = 0; t0 < apart; t0++)
          add(rows[r], covered.data() + r * n2, grid.line ? p0 + t0 : t0, apart, grid.line ? p1 : extent[1], int(V), weight, where);
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
  if (10 * (end - start) >= 9 * n) return {0, n};  // nearly all: as one piece
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
Tones<T>::Tones(const Grid<T> *g, const T *re, const T *im, int m, int n) : grid(g), outputs(m), bins(n) {
  const int64_t V = grid->across, n1 = grid->n1;
  if (!V) {
    for (int64_t i = 0; i < int64_t(m) * n; i++) weights.insert(weights.end(), {im[i], re[i]});
    return;
  }
  const auto mirrored = [&](int64_t k) { return 2 * (k % n1) > n1; };
  const auto strip_of = [&](int64_t k) { return mirrored(k) ? n1 - k % n1 : k % n1; };  // times V, and the lane
  const auto vector = [&](int64_t k) {
    return (strip_of(k) / V * grid->pitch() + (mirrored(k) ? grid->n2 - 1 - k / n1 : k / n1)) * 2 * V;
  };
  for (int64_t k = 0; k < n; k++) where.push_back(vector(k));
  std::sort(where.begin(), where.end());
  where.erase(std::unique(where.begin(), where.end()), where.end());
  weights.resize(m * where.size() * 2 * V);
  for (int64_t k = 0; k < n; k++) {
    const int64_t place = std::lower_bound(where.begin(), where.end(), vector(k)) - where.begin();
    for (int64_t o = 0; o < m; o++) {
      T *w = weights.data() + (o * int64_t(where.size()) + place) * 2 * V + strip_of(k) % V;
      w[0] += mirrored(k) ? -im[o * n + k] : im[o * n + k];
      w[V] += re[o * n + k];
    }
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
