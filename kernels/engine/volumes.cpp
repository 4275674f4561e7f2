// Solid harmonic scattering of volumes: one wavelet modulus after another, what is between them in cache.
//
// From a spectrum to |x * psi|: every plane kz is transformed along x, the lanes along y, once for all wavelets that share
// their axial factor; tiles of V x V points are transposed; then, for V columns x at a time, it is transformed along y and z,
// squared, summed, rooted and, where a path goes on, transformed forward along z and y again, all in cache. Real fields
// travel in pairs through z, as real and imaginary part: two wavelets, or two rows y of one; or the two parts of the response
// to a wavelet that is not odd at the Nyquist frequency of an axis along which it should be.
#include "volumes.h"

#include <algorithm>

#include "fft.h"
#include "powers.h"
#include "simd.h"
#include "team.h"

namespace {

long ceiling(long n, long step) { return (n + step - 1) / step; }

template <class T, int V> class Solid {
  typedef typename Lanes<T, V>::type R;
  typedef Complex<R> C;

 public:
  explicit Solid(const Volumes<T> &plan)
      : v_(plan), columns_(ceiling(plan.w, V)), rows_(ceiling(plan.h, V)), pitch_(plan.h | 1) {}

  int64_t bytes(int64_t count, int threads) const { return count * spectrum_bytes(0) + threads * work_bytes(); }

  void scatter(const T *x, const T *scale, int64_t count, double *out, int64_t paths, char *memory, int threads) const {
    const int64_t n_powers = int64_t(v_.powers.size()), size = int64_t(v_.d) * v_.h * v_.w;
    char *spaces = memory + count * spectrum_bytes(0);
    const std::vector<Job> all = jobs();
    const size_t bytes = size_t(work_bytes());
    Team::run(threads, spaces, bytes, [&](Worker &worker) {
      each(count, worker, bytes, [&](long i, Space &space) {
        start(x + i * size, scale[i], out + i * paths, reinterpret_cast<C *>(memory + i * spectrum_bytes(0)), Work(*this, space));
      });
      each(long(all.size()) * count, worker, bytes, [&](long i, Space &space) {
        const Job &job = all[i / count];
        descend(job.node, job.node + 1, job.degree, reinterpret_cast<const C *>(memory + i % count * spectrum_bytes(0)),
                out + i % count * paths, n_powers, 0, Work(*this, space));
      });
    });
  }

 private:
  const Volumes<T> &v_;
  const long columns_, rows_, pitch_;  // vectors along x, along y; vectors between two kz of a slab of planes, odd

  struct Job {
    int node, degree;
  };

  // What one thread works in.
  struct Work {
    C *lines;         // (columns, m, depth, h): transformed along x, the lanes along x; or a field along z and y
    T *side;          // (m, depth, 2, h rounded up): at the Nyquist frequency of x, where m is odd
    C *first, *second;  // (depth, h): of a column of lanes
    R *field;         // (h, d)
    C *line;
    C *spectra;
    int64_t bytes;
    Work(const Solid &s, Space &space) {
      const Volumes<T> &v = s.v_;
      long depth = 0, planes = 0;
      for (const Harmonics<T> &h : v.harmonics) {
        depth = std::max<long>(depth, h.depth);
        planes = std::max<long>(planes, (h.degree + 1l) * h.depth);
      }
      lines = space.template take<C>(s.columns_ * planes * v.h);
      side = space.template take<T>(2 * planes * s.rows_ * V);
      first = space.template take<C>(depth * s.pitch_);
      second = space.template take<C>(depth * s.pitch_);
      field = space.template take<R>(long(v.h) * v.d);
      line = space.template take<C>(std::max({v.d, v.h, v.w}));
      spectra = space.template take<C>(0);
      bytes = int64_t(space.used());
    }
  };

  const Harmonics<T> &harmonics(int scale, int degree) const { return v_.harmonics[scale * v_.degrees + degree]; }
  bool goes_on(int node) const { return v_.nodes[node].end > node + 1; }
  int last_degree() const { return v_.degrees - 1; }

  // Of the spectrum that wavelets of a scale read.
  int64_t spectrum_bytes(int scale) const {
    return v_.nodes.empty() ? 0 : int64_t(sizeof(C)) * harmonics(scale, last_degree()).depth * rows_ * v_.w;
  }

  int64_t work_bytes() const {
    int64_t deeper = 0;
    if (!v_.nodes.empty()) deepest(0, int(v_.nodes.size()), 0, deeper);
    Space none(nullptr);
    return ceiling(Work(*this, none).bytes + deeper, kPage) * kPage;
  }
  void deepest(int node, int end, int64_t used, int64_t &most) const {
    for (; node < end; node = v_.nodes[node].end)
      if (goes_on(node)) {
        const int64_t here = used + spectrum_bytes(v_.nodes[node + 1].scale);
        most = std::max(most, here);
        deepest(node + 1, v_.nodes[node].end, here, most);
      }
  }

  // Trees below the root, for each degree, the costliest first.
  std::vector<Job> jobs() const {
    std::vector<Job> all;
    for (int node = 0; node < int(v_.nodes.size()); node = v_.nodes[node].end)
      for (int degree = 0; degree <= last_degree(); degree++) all.push_back({node, degree});
    const auto cost = [&](const Job &job) {
      double sum = 0;
      for (int node = job.node; node < v_.nodes[job.node].end; node++)
        sum += harmonics(v_.nodes[node].scale, job.degree).depth * (3.0 * job.degree + 2) + v_.d;
      return sum;
    };
    std::stable_sort(all.begin(), all.end(), [&](const Job &a, const Job &b) { return cost(a) > cost(b); });
    return all;
  }

  // --- The tree of paths ---

  // Order 0, and the spectrum X.
  void start(const T *x, T scale, double *out, C *X, const Work &work) const {
    const Harmonics<T> *next = v_.nodes.empty() ? nullptr : &harmonics(0, last_degree());
    Sums<T, V> sums(v_.powers);
    for (long c = 0; c < columns_; c++) {
      const size_t width = sizeof(T) * std::min<long>(V, v_.w - c * V);
      for (int z = 0; z < v_.d; z++)
        for (int y = 0; y < v_.h; y++) {
          R &to = work.field[y * v_.d + z] = R{};
          std::memcpy(&to, x + (long(z) * v_.h + y) * v_.w + c * V, width);
          to *= scale;
        }
      sums.add_values(work.field, long(v_.h) * v_.d);
      if (next) forward_planes(*next, next->depth, c, work);
    }
    sums.write(out);
    if (next) forward_lines(*next, next->depth, work, X);
  }

  // All paths from `node` until `end`, of one degree; X is the spectrum that they read.
  void descend(int node, int end, int degree, const C *X, double *out, int64_t n_powers, int64_t used, const Work &work) const {
    for (int last; node < end; node = last) {
      last = v_.nodes[node].end;
      const Node &here = v_.nodes[node];
      const Harmonics<T> &wavelets = harmonics(here.scale, degree);
      const Harmonics<T> *next = goes_on(node) ? &harmonics(v_.nodes[node + 1].scale, degree) : nullptr;
      const long planes = (degree + 1l) * wavelets.depth;
      Sums<T, V> sums(v_.powers);
      back_lines(wavelets, X, work);
      for (long c = 0; c < columns_; c++) {
        energy(wavelets, c, work);
        sums.add_roots(work.field, long(v_.h) * v_.d);
        if (next) forward_planes(*next, planes, c, work);
      }
      sums.write(out + here.row + degree * n_powers);
      if (!next) continue;
      C *deeper = reinterpret_cast<C *>(reinterpret_cast<char *>(work.spectra) + used);
      forward_lines(*next, planes, work, deeper);
      descend(node + 1, last, degree, deeper, out, n_powers, used + spectrum_bytes(v_.nodes[node + 1].scale), work);
    }
  }

  // --- Back: from a spectrum to the squares of what the wavelets respond ---

  SC_INLINE R load(const T *p) {
    R r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }

  // A tile, of which so many vectors are there and wanted.
  SC_INLINE void exchange(const C *from, int present, C *to, int wanted) {
    R re[V], im[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) {
      re[i] = i < present ? from[i].x : R{};
      im[i] = i < present ? from[i].y : R{};
    }
    transpose<T, V>(re);
    transpose<T, V>(im);
#pragma GCC unroll 16
    for (int i = 0; i < V; i++)
      if (i < wanted) to[i] = {re[i], im[i]};
  }
  static void transpose_tile(const C *from, long present, C *to, long wanted) {
    if (present >= V && wanted >= V) exchange(from, V, to, V);
    else exchange(from, int(std::min<long>(present, V)), to, int(std::min<long>(wanted, V)));
  }

  void back_lines(const Harmonics<T> &wavelets, const C *X, const Work &work) const {
    const int *place = v_.x.place.data(), w = v_.w;
    for (int kz = 0; kz < wavelets.depth; kz++)
      for (long strip = 0; strip < rows_; strip++) {
        if (!wavelets.live[kz * rows_ + strip]) continue;
        const C *from = X + (kz * rows_ + strip) * w;
        const R rho2 = load(wavelets.rho2.data() + (kz * rows_ + strip) * V);
        const T *axial = wavelets.axial.data();
        for (int m = 0; m <= wavelets.degree; m++) {
          const int terms = wavelets.terms(m);
          for (int k = 0; k < w; k++) {
            R weight = R{} + axial[long(terms - 1) * w + k];
            for (int i = terms - 2; i >= 0; i--) weight = weight * rho2 + axial[long(i) * w + k];
            work.line[place[k]] = {from[k].x * weight, from[k].y * weight};
          }
          axial += long(terms) * w;
          if (wavelets.nyquist[2] && (wavelets.degree - m) % 2) {
            C &z = work.line[place[w / 2]];
            T *side = work.side + 2 * (long(m) * wavelets.depth + kz) * rows_ * V + strip * V;
            std::memcpy(side, &z.x, sizeof z.x);
            std::memcpy(side + rows_ * V, &z.y, sizeof z.y);
            z = C{};
          }
          inverse(v_.x, work.line, w, 1, 1);
          C *to = work.lines + (long(m) * wavelets.depth + kz) * v_.h + strip * V;
          for (long c = 0; c < columns_; c++)
            transpose_tile(work.line + c * V, w - c * V, to + c * (wavelets.degree + 1) * wavelets.depth * v_.h, v_.h - strip * V);
        }
      }
  }

  // Rows kz of the part of a wavelet with `planar`, transformed along y; times i if wanted.
  template <bool times_i> void back_planes(const Harmonics<T> &wavelets, const C *from, const T *planar, C *to) const {
    const int *place = v_.y.place.data();
    for (int kz = 0; kz < wavelets.depth; kz++, to += pitch_, from += v_.h, planar += v_.h) {
      for (long strip = 0; strip < rows_; strip++) {
        const int end = int(std::min<long>(v_.h, (strip + 1) * V));
        if (wavelets.live[kz * rows_ + strip])
          for (int k = int(strip) * V; k < end; k++) {
            const R re = from[k].x * planar[k], im = from[k].y * planar[k];
            to[place[k]] = times_i ? C{-im, re} : C{re, im};
          }
        else
          for (int k = int(strip) * V; k < end; k++) to[place[k]] = C{};
      }
      inverse(v_.y, to, v_.h, 1, 1);
    }
  }

  // The same for a wavelet that is odd along an axis at whose Nyquist frequency it is not zero: what is reached an odd number
  // of times so responds with i times a real field, and goes to `second`.
  void back_nyquist(const Harmonics<T> &wavelets, const bool *odd, const C *from, const T *side, const T *planar,
                    long column, const Work &work) const {
    const int *place = v_.y.place.data();
    R alternating;
    for (int lane = 0; lane < V; lane++) alternating[lane] = column * V + lane >= v_.w ? 0 : lane % 2 ? -1 : 1;
    for (int kz = 0; kz < wavelets.depth; kz++, from += v_.h, planar += v_.h, side += 2 * rows_ * V) {
      C *parts[2] = {work.first + kz * pitch_, work.second + kz * pitch_};
      for (int k = 0; k < v_.h; k++) {
        C main{}, border{};
        if (wavelets.live[kz * rows_ + k / V]) {
          main = {from[k].x * planar[k], from[k].y * planar[k]};
          if (odd[2]) border = {alternating * (side[k] * planar[k]), alternating * (side[rows_ * V + k] * planar[k])};
        }
        const bool swap = (odd[0] && 2 * kz == v_.d) != (odd[1] && 2 * k == v_.h);
        parts[swap][place[k]] = main;
        parts[!swap][place[k]] = border;
      }
      for (C *part : parts) inverse(v_.y, part, v_.h, 1, 1);
    }
  }

  // Transform a line (a + q, conj(a - q)) along z. What is true of real fields holds for i times them with a sign.
  inline __attribute__((always_inline)) void pack(const Harmonics<T> &wavelets, int kz, C a, C q, C *line, const int *place) const {
    line[place[kz]] = add(a, q);
    const C other = sub(a, q);
    if (kz && 2 * kz < v_.d) line[place[v_.d - kz]] = wavelets.degree % 2 ? C{-other.x, other.y} : C{other.x, -other.y};
  }
  void back_line(const Harmonics<T> &wavelets, C *line) const {
    const int *place = v_.z.place.data();
    for (int kz = wavelets.depth; kz <= v_.d - wavelets.depth; kz++) line[place[kz]] = C{};
    inverse(v_.z, line, v_.d, 1, 1);
  }

  // Add |y|^2 of the complex fields whose spectra are in `first` and `second`.
  template <bool fresh> void square_pairs(const Harmonics<T> &wavelets, const Work &work) const {
    const int *place = v_.z.place.data();
    for (int y = 0; y < v_.h; y++) {
      for (int kz = 0; kz < wavelets.depth; kz++)
        pack(wavelets, kz, work.first[kz * pitch_ + y], work.second[kz * pitch_ + y], work.line, place);
      back_line(wavelets, work.line);
      R *to = work.field + long(y) * v_.d;
      for (int z = 0; z < v_.d; z++) {
        const C a = work.line[z];
        const R square = a.x * a.x + a.y * a.y;
        to[z] = fresh ? square : to[z] + square;
      }
    }
  }

  // The same of the real field whose spectrum is in `first`, two rows at a time.
  template <bool fresh> void square_rows(const Harmonics<T> &wavelets, const Work &work) const {
    const int *place = v_.z.place.data();
    for (int y = 0; y < v_.h; y += 2) {
      const bool two = y + 1 < v_.h;
      for (int kz = 0; kz < wavelets.depth; kz++) {
        const C *from = work.first + kz * pitch_ + y;
        pack(wavelets, kz, from[0], two ? times_i(from[1]) : C{}, work.line, place);
      }
      back_line(wavelets, work.line);
      R *one = work.field + long(y) * v_.d, *other = two ? one + v_.d : one;
      if (two && wavelets.degree % 2) std::swap(one, other);
      for (int z = 0; z < v_.d; z++) {
        const C a = work.line[z];
        const R x2 = a.x * a.x, y2 = a.y * a.y;
        if (two) {
          one[z] = fresh ? x2 : one[z] + x2;
          other[z] = fresh ? y2 : other[z] + y2;
        } else {
          one[z] = fresh ? x2 + y2 : one[z] + (x2 + y2);
        }
      }
    }
  }

  // field: the sum of the squares of all wavelets' responses, at V columns.
  void energy(const Harmonics<T> &wavelets, long column, const Work &work) const {
    const long planes = wavelets.depth, size = planes * v_.h;
    const C *from = work.lines + column * (wavelets.degree + 1) * size;
    const T *planar = wavelets.planar.data(), *side = work.side;
    for (int m = 0; m <= wavelets.degree; m++, from += size, side += 2 * planes * rows_ * V) {
      const int parts = m ? 2 : 1;
      bool odd[2][3], apart[2] = {false, false};
      for (int part = 0; part < parts; part++) {
        const bool is_odd[3] = {part == 1, (m - part) % 2 == 1, (wavelets.degree - m) % 2 == 1};
        for (int axis = 0; axis < 3; axis++) apart[part] |= odd[part][axis] = is_odd[axis] && wavelets.nyquist[axis];
      }
      if (m && !apart[0] && !apart[1]) {
        back_planes<false>(wavelets, from, planar, work.first);
        back_planes<true>(wavelets, from, planar + size, work.second);
        square_pairs<false>(wavelets, work);
        planar += 2 * size;
        continue;
      }
      for (int part = 0; part < parts; part++, planar += size) {
        if (apart[part]) {
          back_nyquist(wavelets, odd[part], from, side, planar, column, work);
          m ? square_pairs<false>(wavelets, work) : square_pairs<true>(wavelets, work);
        } else {
          back_planes<false>(wavelets, from, planar, work.first);
          m ? square_rows<false>(wavelets, work) : square_rows<true>(wavelets, work);
        }
      }
    }
  }

  // --- Forward: real and imaginary parts are exchanged meanwhile, so that the inverse transforms serve ---

  // V columns of the field, along z, two rows at a time, and y, to their place among the lines, `planes` for each column.
  void forward_planes(const Harmonics<T> &next, long planes, long column, const Work &work) const {
    const int *along_z = v_.z.place.data(), *along_y = v_.y.place.data();
    const T half = T(0.5) / (T(v_.d) * T(v_.h) * T(v_.w));
    for (int y = 0; y < v_.h; y += 2) {
      const bool two = y + 1 < v_.h;
      const R *one = work.field + long(y) * v_.d, *other = two ? one + v_.d : nullptr;
      for (int z = 0; z < v_.d; z++) work.line[along_z[z]] = {two ? other[z] : R{}, one[z]};
      inverse(v_.z, work.line, v_.d, 1, 1);
      for (int kz = 0; kz < next.depth; kz++) {  // of z = one + i other; see spectrum() in points.cpp
        const C a = work.line[kz], b = work.line[kz ? v_.d - kz : 0];
        C *to = work.first + kz * pitch_;
        to[along_y[y]] = {half * (a.x - b.x), half * (a.y + b.y)};
        if (two) to[along_y[y + 1]] = {half * (b.y - a.y), half * (a.x + b.x)};
      }
    }
    C *to = work.lines + column * planes * v_.h;
    for (int kz = 0; kz < next.depth; kz++) {
      C *line = work.first + kz * pitch_;
      inverse(v_.y, line, v_.h, 1, 1);
      std::memcpy(static_cast<void *>(to + long(kz) * v_.h), line, sizeof(C) * v_.h);
    }
  }

  void forward_lines(const Harmonics<T> &next, long planes, const Work &work, C *X) const {
    const int *place = v_.x.place.data(), w = v_.w;
    const long step = planes * v_.h;
    for (int kz = 0; kz < next.depth; kz++)
      for (long strip = 0; strip < rows_; strip++) {
        if (!next.live[kz * rows_ + strip]) continue;
        for (long c = 0; c < columns_; c++) {
          C tile[V];
          transpose_tile(work.lines + c * step + long(kz) * v_.h + strip * V, v_.h - strip * V, tile, V);
          for (int i = 0; i < V && c * V + i < w; i++) work.line[place[c * V + i]] = tile[i];
        }
        inverse(v_.x, work.line, w, 1, 1);
        C *to = X + (kz * rows_ + strip) * w;
        for (int k = 0; k < w; k++) to[k] = {work.line[k].y, work.line[k].x};
      }
  }
};

template <class T> using Engine = Solid<T, kBytes / sizeof(T)>;

}  // namespace

template <class T>
Volumes<T>::Volumes(int depth, int height, int width, int n_degrees, const double *q, int n_powers, const Node *first, int n_nodes)
    : d(depth), h(height), w(width), degrees(n_degrees), z(depth), y(height), x(width), powers(q, q + n_powers),
      nodes(first, first + n_nodes) {}

template <class T> void Volumes<T>::add(int degree, int depth, int nyquist, const T *axial, const T *planar, const T *rho2) {
  constexpr long V = kBytes / sizeof(T);
  const long rows = ceiling(h, V), size = long(depth) * h;
  Harmonics<T> one{degree, depth, {bool(nyquist & 1), bool(nyquist & 2), bool(nyquist & 4)}, {}, {}, {}, {}};
  long terms = 0;
  for (int m = 0; m <= degree; m++) terms += one.terms(m);
  one.axial.assign(axial, axial + terms * w);
  one.planar.assign(planar, planar + (2 * degree + 1) * size);
  one.rho2.assign(depth * rows * V, T(0));
  one.live.assign(depth * rows, 0);
  for (long kz = 0; kz < depth; kz++)
    for (long k = 0; k < h; k++) {
      one.rho2[kz * rows * V + k] = rho2[kz * h + k];
      if (planar[kz * h + k] != T(0)) one.live[kz * rows + k / V] = 1;
    }
  harmonics.push_back(std::move(one));
}

template <class T> int64_t Volumes<T>::bytes(int64_t count, int threads) const { return Engine<T>(*this).bytes(count, threads); }

template <class T>
void Volumes<T>::scatter(const T *volumes, const T *scale, int64_t count, double *out, int64_t paths, char *memory,
                         int threads) const {
  Engine<T>(*this).scatter(volumes, scale, count, out, paths, memory, threads);
}

template struct Volumes<float>;
template struct Volumes<double>;
