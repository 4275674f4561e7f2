// Solid harmonic scattering of volumes on a CUDA device: one source for single and double precision.
//
// The source stands behind #defines for volumes of D × H × W points along z, y, x (see fused_cuda_volumes.py for all of them). Four
// kernels:
//
//   begin    x: sums of its powers, and the spectra of its planes
//   along_z  spectra of planes: forth along z, times what a wavelet has along z, back along z; for all m = 0 … l of a degree l
//   planes   back along y and x, squares summed over m, roots; sums of their powers, and the spectra of the planes of what goes on
//   finish   the sums over all planes
//
// A spectrum of planes P is (fields, D, H, W/2 + 1), of which what no later wavelet reaches is not written; it is conjugate, so that
// transforms have the sign + in both directions. Between `along_z` and `planes`, Q holds for each job and m the planes (D, height, width)
// of the frequencies |ky| <= height/2, 0 <= kx < width that the job reaches.
//
// The wavelets ±m are the real and the imaginary part of (wx + i wy)^m times a factor of wz and |w|² alone, so that one complex plane has
// the responses to both. A wavelet is odd along some axes. At the Nyquist frequency of such an axis, which has no opposite, it responds
// with i times what it should; what is reached an odd number of times so is transformed apart. Along z it stands in a plane D of Q.

#include "transforms.h"

constexpr int D = DEPTH, H = HEIGHT, W = WIDTH;
constexpr int PITCH = W | 1;  // of rows in shared memory; odd, so that columns do not fall into one bank
constexpr int HALF = W / 2 + 1, PLANE = H * HALF;

// --- Transforms ---

template <int n, int... Rs> struct Places {
  int element[n];  // the element at a place
  constexpr Places() : element() {
    for (int t = 0; t < n; t++) element[Reversed<1, Rs...>::of(t)] = t;
  }
};

__constant__ Turns<D> turns_z;
__constant__ Turns<H> turns_y;
__constant__ Turns<W> turns_x;
__constant__ Places<H, RADICES_Y> places_y;
__constant__ Places<W, RADICES_X> places_x;

template <int n, int R, int... Rs> struct Line {
  static constexpr int first = R, butterflies = n / R;
  static constexpr bool single = sizeof...(Rs) == 0;
  typedef Chain<n, 1, R, Rs...> All;
  typedef Chain<n, R, Rs...> Rest;  // all but the first
};
typedef Line<D, RADICES_Z> Z;
typedef Line<H, RADICES_Y> Y;
typedef Line<W, RADICES_X> X;

// --- Jobs: what all wavelets of a scale and a degree make of a field ---

struct alignas(16) Job {
  int source, degree, offset, axial;  // the field in P; where the job's planes are in Q; its first weight along z
  int bank, height, width, nyquist;   // nyquist: 1 if that of z is reached and D is even, plus 2 if that of y or x is so
  int slot, target, rows, columns;    // of its sums; of its spectrum, or -1, of which |ky| <= rows, kx < columns are kept
};
SC_INLINE int planes_of(const Job &job) { return D + (job.nyquist & 1); }

// --- The sums of powers ---

constexpr double EXPONENTS[] = {POWERS};
constexpr int N_POWERS = sizeof(EXPONENTS) / sizeof(double);
__constant__ double exponents[N_POWERS] = {POWERS};

SC_INLINE float power(float a, float q) { return powf(a, q); }
SC_INLINE double power(double a, double q) { return pow(a, q); }

// Add the powers of |a|, given a² as well; with its sign where a power is odd.
template <int i, class T> SC_INLINE void add_powers(T *sums, real a, real square) {
  if constexpr (i < N_POWERS) {
    constexpr double q = EXPONENTS[i];
    if constexpr (q == 0.5) sums[i] += square_root(a < 0 ? -a : a);
    else if constexpr (q == 1) sums[i] += a;
    else if constexpr (q == 2) sums[i] += square;
    else if constexpr (q == 3) sums[i] += a * square;
    else if constexpr (q == 4) sums[i] += square * square;
    else {
      constexpr bool is_odd = q < 1e9 && q == double((long long)q) && (long long)q % 2 == 1;
      const real raised = power(a < 0 ? -a : a, real(q));
      sums[i] += is_odd && a < 0 ? -raised : raised;
    }
    add_powers<i + 1>(sums, a, square);
  }
}

// Sums of a block's threads, in an order that is always the same.
SC_INLINE void write_sums(double *sums, double *to) {
  constexpr int warps = PLANE_THREADS / 32;
  __shared__ double part[N_POWERS][warps];
#pragma unroll
  for (int i = 0; i < N_POWERS; i++) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], lanes);
    if (threadIdx.x % 32 == 0) part[i][threadIdx.x / 32] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x < N_POWERS) {
    double sum = 0;
    for (int w = 0; w < warps; w++) sum += part[threadIdx.x][w];
    to[threadIdx.x] = sum;
  }
}

// --- Planes in shared memory: z[row * PITCH + column] ---

// Real rows travel in pairs, row r and r + H/2, as the real and the imaginary part of a complex one.
constexpr bool PAIRED = H % 2 == 0;
constexpr int PER = PAIRED ? 2 : 1, PAIRS = H / PER;

// A thread keeps, for the last pass along x, the real values of both rows: value (i PER + h) X::first + m is that of element m of
// butterfly s of row `line + h PAIRS`, where s and line are those of the thread's i-th pair of butterflies.
constexpr int VISITS = (PAIRS * X::butterflies + PLANE_THREADS - 1) / PLANE_THREADS, KEPT = VISITS * PER * X::first;
template <class Visit> SC_INLINE void visit_rows(Visit visit) {
#pragma unroll
  for (int i = 0; i < VISITS; i++) {
    const int t = threadIdx.x + i * PLANE_THREADS;
    if (PAIRS * X::butterflies % PLANE_THREADS == 0 || t < PAIRS * X::butterflies) visit(i, t % PAIRS, t / PAIRS * X::first);
  }
}

SC_INLINE bool is_mirrored(int column) { return column > 0 && 2 * column != W; }  // has an opposite

// The last pass along y of a column: of a complex plane; or of a real one, whose rows are paired from now on.
template <bool real_plane, int L, int R> SC_INLINE void put_column(cplx *z, int column, bool conjugate, int first, const cplx (&v)[R]) {
  if constexpr (real_plane) {
#pragma unroll
    for (int r = 0; r < R / 2; r++) {
      const cplx a = v[r], b = v[r + R / 2];
      cplx *row = z + (first + r * L) * PITCH;
      row[column] = {a.x - b.y, a.y + b.x};
      if (is_mirrored(column)) row[W - column] = {a.x + b.y, b.x - a.y};
    }
  } else {
#pragma unroll
    for (int r = 0; r < R; r++) z[(first + r * L) * PITCH + column] = {v[r].x, conjugate ? -v[r].y : v[r].y};
  }
}

// The first butterfly s along y of a column.
template <bool real_plane, int R> SC_INLINE void put_transform(cplx *z, const cplx (&f)[R], int column, bool conjugate, int s) {
  auto get = [&](int r) { return f[r]; };
  if constexpr (Y::single) {
    cplx v[R];
    Dft<real, R>::template go<cplx>(get, [&](int r, cplx a) { v[r] = a; });
    put_column<real_plane, 1>(z, column, conjugate, 0, v);
  } else {
    Dft<real, R>::template go<cplx>(get, [&](int r, cplx a) { z[(s * R + r) * PITCH + column] = a; });
  }
}

// Where frequency k of column kx = b stands in a plane of Q, or -1.
SC_INLINE int place_in(const Job &job, int k, int b, int limit) {
  return (k < 0 ? -k : k) <= limit ? (k < 0 ? k + job.height : k) * job.width + b : -1;
}
// (x + i y)^m
SC_INLINE cplx power_of(real x, real y, int m) {
  cplx p = {1, 0};
#pragma unroll 1
  for (int i = 0; i < m; i++) p = turned(p, x, y);
  return p;
}

// The first pass along y: weighted frequencies of a plane of Q, and with them those opposite.
template <bool real_plane>
SC_INLINE void load_columns(cplx *z, const Job &job, const int *limits, cplx step, const cplx *from, int m) {
  constexpr int R = Y::first;
  const unsigned width = job.width;
  const bool odd = job.degree % 2;
#pragma unroll 1
  for (unsigned t = threadIdx.x; t < width * Y::butterflies; t += PLANE_THREADS) {
    const int b = t % width, s = t / width, base = places_y.element[s * R], limit = limits[b];
    auto frequency = [&](int r) {
      const int a = base + r * Y::butterflies;
      return 2 * a >= H ? a - H : a;
    };
    cplx f[R], h[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int at = place_in(job, frequency(r), b, limit);
      f[r] = at < 0 ? cplx{0, 0} : from[at];
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      const cplx a = f[r];
      if constexpr (real_plane) {
        f[r] = odd ? times_i(a) : a;
      } else {
        const cplx p = power_of((2 * b == W ? -b : b) * step.x, frequency(r) * step.y, m);
        f[r] = turned(a, p.x, p.y);
        h[r] = odd ? turned(a, -p.x, p.y) : turned(a, p.x, -p.y);
      }
    }
    put_transform<real_plane>(z, f, b, false, s);
    if (!real_plane && is_mirrored(b)) put_transform<false>(z, h, W - b, true, s);
  }
  __syncthreads();
}

// The same, before any pass, where Nyquist frequencies are reached. `part`: 1 for what responds with i times what it should; `border`: the
// plane D of Q, if it counts, and `minus` if with the other sign.
SC_INLINE void load_with_nyquist(cplx *z, const Job &job, const int *limits, cplx step, const cplx *from, const cplx *border, bool minus,
                                 int m, int part) {
  const unsigned width = job.width;
#pragma unroll 1
  for (unsigned t = threadIdx.x; t < width * H; t += PLANE_THREADS) {
    const int b = t % width, e = t / width, a = places_y.element[e], k = 2 * a >= H ? a - H : a, at = place_in(job, k, b, limits[b]);
    const bool at_y = 2 * k == -H, at_x = 2 * b == W;
    // The real part of p is m times odd along x; the imaginary part once along y, and m - 1 times along x.
    const bool re = (at_x && m % 2) == part, im = (at_y != (at_x && m % 2 == 0)) == part;
    const cplx p = power_of((at_x ? -b : b) * step.x, k * step.y, m), zero = {0, 0};
    const cplx q = {re || m == 0 ? p.x : real(0), im ? p.y : real(0)};
    const real sign = job.degree % 2 ? real(-1) : real(1), conjugate = at_y ? real(1) : real(-1);
    const cplx v = at < 0 ? zero : from[at];
    cplx f = turned(v, q.x, q.y), h = turned(v, sign * q.x, conjugate * sign * q.y);
    if (border && at >= 0) {  // as it is odd along z, what is to go apart and what is not are exchanged
      const real own = minus ? real(-1) : real(1), opposite = m % 2 ? -own : own;
      const cplx g = {re && m > 0 ? real(0) : p.x, im ? real(0) : p.y}, u = border[at];
      f = add(f, turned(u, own * g.x, own * g.y));
      h = add(h, turned(u, opposite * g.x, conjugate * opposite * g.y));
    }
    z[e * PITCH + b] = f;
    if (is_mirrored(b)) z[e * PITCH + W - b] = h;
  }
  __syncthreads();
}

// The other passes along y; the last is as of `put_column`.
template <bool real_plane, int L> SC_INLINE void end_columns(cplx *, int, int) {}
template <bool real_plane, int L, int R, int... Rs> SC_INLINE void end_columns(cplx *z, int lines, int width) {
  // The columns that are not zero: kx = 0 … width - 1, and, of a complex plane, those opposite at the end.
  auto column = [&](int line) { return line < width ? line : line + W - lines; };
  if constexpr (sizeof...(Rs) > 0) {
    auto at = [&](int line, int e) -> cplx & { return z[e * PITCH + column(line)]; };
    pass<H, L, R, true>(lines, turns_y.w, at, [&](int line, int e, cplx a) { at(line, e) = a; });
    end_columns<real_plane, L * R, Rs...>(z, lines, width);
  } else {
#pragma unroll 1
    for (unsigned t = threadIdx.x; t < unsigned(lines) * L; t += PLANE_THREADS) {
      const int line = t % unsigned(lines), j = t / unsigned(lines), c = column(line);
      cplx v[R];
      Dft<real, R>::template go<cplx>(
          [&](int m) {
            const cplx a = z[(j + m * L) * PITCH + c];
            if (m == 0) return a;
            const cplx w = turns_y.w[m * j];
            return turned(a, w.x, w.y);
          },
          [&](int m, cplx a) { v[m] = a; });
      put_column<real_plane, L>(z, c, line >= width, j, v);
    }
    __syncthreads();
  }
}
template <bool real_plane, int R, int... Rs> SC_INLINE void after_load(cplx *z, int lines, int width) {
  end_columns<real_plane, R, Rs...>(z, lines, width);
}

// Passes along x of which only columns < width and those opposite are not zero, and the squares of what they give.
template <bool real_plane> SC_INLINE void add_squares(cplx *z, int width, real *kept) {
  auto in = [&](int row, int e) { return e < width || e > W - width ? z[row * PITCH + e] : cplx{0, 0}; };
  auto get = [&](int row, int e) { return z[row * PITCH + e]; };
  auto put = [&](int row, int e, cplx a) { z[row * PITCH + e] = a; };
  X::Rest::reversed(real_plane ? PAIRS : H, turns_x.w, in, get, put, put);
  visit_rows([&](int i, int line, int first) {
#pragma unroll
    for (int h = 0; h < (real_plane ? 1 : PER); h++) {
      const int row = line + h * PAIRS;
      Dft<real, X::first>::template go<cplx>([&](int m) { return X::single ? in(row, m) : get(row, first + m); },
                                             [&](int m, cplx a) {
                                               real *to = kept + i * PER * X::first + m;
                                               if constexpr (real_plane) {
                                                 to[0] += a.x * a.x;
                                                 to[(PER - 1) * X::first] += a.y * a.y;
                                               } else {
                                                 to[h * X::first] += a.x * a.x + a.y * a.y;
                                               }
                                             });
    }
  });
  __syncthreads();
}

// The transform forth of the real plane that the threads keep, to the spectrum P of its plane.
SC_INLINE void transform_forth(cplx *z, const real *kept, int rows, int columns, cplx *P) {
  auto get = [&](int row, int e) { return z[row * PITCH + e]; };
  auto put = [&](int row, int e, cplx a) { z[row * PITCH + e] = a; };
  visit_rows([&](int i, int line, int first) {
    const real *from = kept + i * PER * X::first;
    Dft<real, X::first>::template go<cplx>([&](int m) { return cplx{from[m], PAIRED ? from[X::first + m] : real(0)}; },
                                           [&](int m, cplx a) { put(line, first + m, a); });
  });
  __syncthreads();
  X::Rest::natural(PAIRS, turns_x.w, get, get, put, put);
  auto in = [&](int column, int e) {
    const bool second = PAIRED && e >= PAIRS;
    const cplx *row = z + (second ? e - PAIRS : e) * PITCH;
    if (!PAIRED) return row[column];
    const cplx a = row[column], b = row[column ? W - column : 0];
    const real half = real(0.5);
    return second ? cplx{half * (a.y + b.y), half * (b.x - a.x)} : cplx{half * (a.x + b.x), half * (a.y - b.y)};
  };
  auto at = [&](int column, int e) -> cplx & { return z[e * PITCH + column]; };
  Y::All::reversed(columns, turns_y.w, in, at, [&](int column, int e, cplx a) { at(column, e) = a; },
                   [&](int column, int e, cplx a) {
                     const int k = places_y.element[e];
                     if (k <= rows || H - k <= rows) P[k * HALF + column] = a;
                   });
}

// grid (D, samples): planes of x / unit, and their spectra, if P is not null, as far as `rows` and `columns`.
extern "C" __global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS)
begin(const real *__restrict__ x, const real *__restrict__ units, int rows, int columns, cplx *__restrict__ P, double *__restrict__ partial,
      int slots) {
  DYNAMIC_SHARED(cplx, z);
  const int plane = blockIdx.x, sample = blockIdx.y;
  const real *from = x + ((long long)sample * D + plane) * (H * W), unit = units[sample];
  double sums[N_POWERS] = {};
#pragma unroll 1
  for (int t = threadIdx.x; t < H * W; t += PLANE_THREADS) {
    const real a = from[t] / unit;
    z[t / W * PITCH + t % W].x = a;
    add_powers<0>(sums, a, a * a);
  }
  write_sums(sums, partial + ((long long)sample * slots * D + plane) * N_POWERS);
  if (!P) return;
  real kept[KEPT];
  visit_rows([&](int i, int line, int first) {
#pragma unroll
    for (int h = 0; h < PER; h++) {
#pragma unroll
      for (int m = 0; m < X::first; m++)
        kept[(i * PER + h) * X::first + m] = z[(line + h * PAIRS) * PITCH + places_x.element[first + m]].x;
    }
  });
  __syncthreads();
  transform_forth(z, kept, rows, columns, P + ((long long)sample * D + plane) * PLANE);
}

// grid (blocks, samples): the columns blocks[b] = (job, first, how many) of a job. A column has its place in a plane of P and in one of Q,
// and w_x² + w_y² and the Gaussian of it; weights along z are (D + 1) for each m and power of the former, D of them in reversed order.
extern "C" __global__ void __launch_bounds__(LINE_THREADS)
along_z(const Job *__restrict__ jobs, const int4 *__restrict__ blocks, const int2 *__restrict__ places, const cplx *__restrict__ factors,
        const real *__restrict__ weights, const cplx *__restrict__ P, int sources, cplx *__restrict__ Q, int Q_size) {
  DYNAMIC_SHARED(cplx, spectrum);
  cplx *z = spectrum + D * COLUMNS;
  __shared__ int2 place[COLUMNS];
  __shared__ cplx factor[COLUMNS];
  const int4 block = blocks[blockIdx.x];
  const Job job = jobs[block.x];
  if (threadIdx.x < COLUMNS) {
    const int c = block.y + min(int(threadIdx.x), block.z - 1);
    place[threadIdx.x] = places[c];
    factor[threadIdx.x] = factors[c];
  }
  __syncthreads();
  const cplx *from = P + ((long long)blockIdx.y * sources + job.source) * D * PLANE;
  auto known = [&](int c, int e) { return spectrum[e * COLUMNS + c]; };
  auto know = [&](int c, int e, cplx a) { spectrum[e * COLUMNS + c] = a; };
  auto get = [&](int c, int e) { return z[e * COLUMNS + c]; };
  auto put = [&](int c, int e, cplx a) { z[e * COLUMNS + c] = a; };
  Z::All::reversed(COLUMNS, turns_z.w, [&](int c, int e) { return from[e * PLANE + place[c].x]; }, known, know,
                   [&](int c, int e, cplx a) { know(c, e, {a.x, -a.y}); });
  const int area = job.height * job.width;
  const real *table = weights + job.axial;
  cplx *to = Q + (long long)blockIdx.y * Q_size + job.offset;
#pragma unroll 1
  for (int m = 0; m <= job.degree; m++) {
    const int terms = (job.degree - m) / 2 + 1;
    auto weighted = [&](int c, int e, cplx a) {
      const cplx own = factor[c];
      real w = table[(terms - 1) * (D + 1) + e];
#pragma unroll 1
      for (int i = terms - 2; i >= 0; i--) w = w * own.x + table[i * (D + 1) + e];
      w *= own.y;
      return cplx{w * a.x, w * a.y};
    };
    Z::All::natural(COLUMNS, turns_z.w, [&](int c, int e) { return weighted(c, e, known(c, e)); }, get, put, [&](int c, int e, cplx a) {
      if (c < block.z) to[e * area + place[c].y] = a;
    });
    if (job.nyquist & 1 && (job.degree - m) % 2 && threadIdx.x < block.z)
      to[D * area + place[threadIdx.x].y] = weighted(threadIdx.x, D, known(threadIdx.x, NYQUIST_PLACE));
    to += planes_of(job) * area;
    table += terms * (D + 1);
  }
}

// grid (jobs × D, samples): limits (banks, W/2 + 1) are the |ky| that are reached, steps what kx and ky are multiplied by.
extern "C" __global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS)
planes(const Job *__restrict__ jobs, const int *__restrict__ limits, const cplx *__restrict__ steps, const cplx *__restrict__ Q, int Q_size,
       cplx *__restrict__ P, int targets, double *__restrict__ partial, int slots) {
  DYNAMIC_SHARED(cplx, z);
  const Job job = jobs[blockIdx.x / D];
  const int plane = blockIdx.x % D, sample = blockIdx.y, area = job.height * job.width;
  const cplx step = steps[job.bank];
  const cplx *from = Q + (long long)sample * Q_size + job.offset;
  limits += job.bank * HALF;
  real kept[KEPT] = {};
#pragma unroll 1
  for (int m = 0; m <= job.degree; m++) {
    const cplx *border = job.nyquist & 1 && (job.degree - m) % 2 ? from + D * area : nullptr;
    const int parts = m > 0 && (border || job.nyquist & 2) ? 2 : 1;
    const int lines = min(W, 2 * job.width - 1);
    if (PAIRED && m == 0 && !border) {
      load_columns<PAIRED>(z, job, limits, step, from + plane * area, m);
      after_load<PAIRED, RADICES_Y>(z, job.width, job.width);
      add_squares<PAIRED>(z, job.width, kept);
    } else {
#pragma unroll 1
      for (int part = 0; part < parts; part++) {
        if (border || parts > 1) {
          load_with_nyquist(z, job, limits, step, from + plane * area, border, plane % 2, m, part);
          end_columns<false, 1, RADICES_Y>(z, lines, job.width);
        } else {
          load_columns<false>(z, job, limits, step, from + plane * area, m);
          after_load<false, RADICES_Y>(z, lines, job.width);
        }
        add_squares<false>(z, job.width, kept);
      }
    }
    from += planes_of(job) * area;
  }
  real sums[N_POWERS] = {};
#pragma unroll
  for (int i = 0; i < KEPT; i++) {
    const real square = kept[i];
    kept[i] = square_root(square);
    add_powers<0>(sums, kept[i], square);
  }
  double total[N_POWERS];
#pragma unroll
  for (int i = 0; i < N_POWERS; i++) total[i] = sums[i];
  write_sums(total, partial + (((long long)sample * slots + job.slot) * D + plane) * N_POWERS);
  if (job.target < 0) return;
  transform_forth(z, kept, job.rows, job.columns, P + (((long long)sample * targets + job.target) * D + plane) * PLANE);
}

// grid (warps that make a sum each): out (samples, n_paths), power i of slot s in column rows[s] + i, times the unit's.
extern "C" __global__ void __launch_bounds__(FINISH_THREADS)
finish(const double *__restrict__ partial, int slots, int samples, const int *__restrict__ rows, const real *__restrict__ units,
       real *__restrict__ out, int n_paths) {
  const int t = blockIdx.x * (FINISH_THREADS / 32) + threadIdx.x / 32, i = t % N_POWERS, s = t / N_POWERS;
  if (s >= samples * slots) return;
  double sum = 0;
  for (int plane = threadIdx.x % 32; plane < D; plane += 32) sum += partial[((long long)s * D + plane) * N_POWERS + i];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  const int sample = s / slots;
  if (threadIdx.x % 32 == 0) out[(long long)sample * n_paths + rows[s % slots] + i] = real(sum * pow(double(units[sample]), exponents[i]));
}
