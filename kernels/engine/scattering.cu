// The scattering engine on a CUDA device: one source for grids (images) and lines (signals), single and double precision.
//
// A module is this source behind #defines for one grid of N1 × N2 points (see cuda_modules.py for all of them). A line of n points
// is a grid as well, n = N1 N2: its frequency k = k1 + N1 k2 stands at (k1, k2), its sample u = u1 N2 + u2 at (u1, u2), and between
// the transforms along the two axes every value is turned by exp(2 pi i k1 u2 / n).
//
// Spectra are those of real signals, unnormalised, half of them stored: (signals, M1, M2/2 + 1), of lines (signals, M/2 + 1). What is
// missing is the conjugate of what stands at the mirrored frequency.
//
// Transforms are those of transforms.h: `to_reversed` leaves element t of a line at its place, `to_natural` undoes that.
//
// Kernels whose grid fits a block's shared memory work on whole signals: `extend_whole`, `wavelet_whole`. Else a grid is cut:
// `wavelet_rows` gathers and transforms rows, `wavelet_columns` (`extend_columns`) columns, with the modulus and what follows it, and
// `spectrum_rows` ends the transform forth, `average_paths` the averages. `bands_whole`, `bands_columns` and `average_lines` serve the
// joint transform: signals without their modulus, and averages of what becomes of them.

#include "transforms.h"

constexpr int N = N1 * N2;
constexpr int PITCH = N2 | 1;  // of rows in shared memory; odd, so that columns do not fall into one bank
constexpr int HALF1 = N1 / 2 + 1, HALF2 = N2 / 2 + 1;

// --- Transforms ---

SC_INLINE int element1(int place) { return Ordered<N1, RADICES1>::of(place); }  // the inverse of place1
SC_INLINE int place1(int t) { return Reversed<1, RADICES1>::of(t); }
SC_INLINE int place2(int t) { return Reversed<1, RADICES2>::of(t); }

__constant__ Turns<N1> turns1;
__constant__ Turns<N2> turns2;

// All passes over lines whose element e of line l is z[at(l, e)]. `first_in` reads what the first pass takes, `last_out` writes what the
// last one gives.
template <int lines, int... Rs> struct Passes {
  template <class At, class In, class Out> SC_INLINE void to_natural(cplx *z, const cplx *turns, At at, In first_in, Out last_out) {
    Chain<Points<Rs...>::value, 1, Rs...>::natural(
        lines, turns, first_in, [&](int l, int e) { return z[at(l, e)]; }, [&](int l, int e, cplx a) { z[at(l, e)] = a; }, last_out);
  }
  template <class At, class In, class Out> SC_INLINE void to_reversed(cplx *z, const cplx *turns, At at, In first_in, Out last_out) {
    Chain<Points<Rs...>::value, 1, Rs...>::reversed(
        lines, turns, first_in, [&](int l, int e) { return z[at(l, e)]; }, [&](int l, int e, cplx a) { z[at(l, e)] = a; }, last_out);
  }
};
template <int lines> using Along1 = Passes<lines, RADICES1>;
template <int lines> using Along2 = Passes<lines, RADICES2>;

// 1 / 2^e, exactly, for |e| <= 126 (1022)
SC_INLINE float inverse_of_power(float power) {
  union { float value; unsigned bits; } inverse = {power};
  inverse.bits = 0x7f000000u - inverse.bits;
  return inverse.value;
}
SC_INLINE double inverse_of_power(double power) {
  union { double value; unsigned long long bits; } inverse = {power};
  inverse.bits = 0x7fe0000000000000ull - inverse.bits;
  return inverse.value;
}
SC_INLINE real modulus(cplx a) { return square_root(a.x * a.x + a.y * a.y); }

// --- Filters: a spectrum's box, times weights, folded onto the grid ---

struct alignas(16) Filter { int origin1, origin2, height, width, first, unused[3]; };  // first: of its rows; of a line's, of its weights
struct alignas(16) Row { int begin, end, weights, unused; };  // the columns that are not zero, and where the weight of column 0 would stand

struct Source {  // spectra of signals
  const cplx *X;
  int M1, M2;
  const Filter *filters;
  const Row *rows;
  const real *weights;
};

// Add the weighted elements of P signals that stand at `at`, conjugate where they stand for what is mirrored.
template <int P>
SC_INLINE void add_weighted(const Source &source, const int *offsets, int at, real weight, bool mirrored, cplx *sum) {
  const real imaginary = mirrored ? -weight : weight;
#pragma unroll
  for (int q = 0; q < P; q++) {
    const cplx v = source.X[offsets[q] + at];
    sum[q].x += weight * v.x;
    sum[q].y += imaginary * v.y;
  }
}

// X × psi, folded, for P signals at X + offsets[q]: put(q, k1, k2, value) for `height` rows of the grid from `begin` on.
#if LINE
template <int P, int height, class Put> SC_INLINE void gather(const Source &source, int filter, const int *offsets, int begin, Put put) {
  // Points at once: the more loads travel, the less is waited.
  constexpr int batch = P > 4 || THREADS > 896 ? 1 : P > 1 || THREADS > 512 ? 2 : 4, count = height * N2;
  const Filter f = source.filters[filter];
  const int origin = f.origin2 % N;
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += batch * THREADS) {
    cplx sum[batch][P];
#pragma unroll
    for (int i = 0; i < batch; i++) {
      const int t = first + i * THREADS, k1 = begin + t % height;
      int j = k1 + N1 * (t / height) - origin;
      j += j < 0 ? N : 0;
      const bool inside = t < count && k1 < N1;
#pragma unroll
      for (int q = 0; q < P; q++) sum[i][q] = {0, 0};
#pragma unroll
      for (int a = 0; a < ALIASES2; a++, j += N) {
        if (inside && j < f.width) {
          int c = f.origin2 + j;
          c -= c >= source.M2 ? source.M2 : 0;
          const bool mirrored = 2 * c > source.M2;
          const int at = mirrored ? source.M2 - c : c;
          add_weighted<P>(source, offsets, at, source.weights[f.first + j], mirrored, sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < batch; i++) {
      const int t = first + i * THREADS;
#pragma unroll
      for (int q = 0; q < P; q++)
        if (t < count) put(q, begin + t % height, t / height, sum[i][q]);
    }
  }
}
#else
// What the rows of a box have at those of the grid: `begin`, `end`, `weights` of Row, and where the row of the spectrum starts, and the
// mirrored one.
struct alignas(16) Reading { int begin, end, weights, direct; };

template <int P, int height, class Put> SC_INLINE void gather(const Source &source, int filter, const int *offsets, int begin, Put put) {
  __shared__ Reading readings[ALIASES1][height];
  __shared__ int mirrored_rows[ALIASES1][height];
  const Filter f = source.filters[filter];
  const int half = source.M2 / 2 + 1;
  for (int t = threadIdx.x; t < ALIASES1 * height; t += THREADS) {
    int i = begin + t % height - f.origin1 % N1;
    i += (i < 0 ? N1 : 0) + t / height * N1;
    int r = f.origin1 + i;
    r -= r >= source.M1 ? source.M1 : 0;
    Reading reading = {0, 0, 0, r * half};
    if (i < f.height && begin + t % height < N1) {
      const Row row = source.rows[f.first + i];
      reading = {row.begin, row.end, row.weights, r * half};
    }
    readings[t / height][t % height] = reading;
    mirrored_rows[t / height][t % height] = (r ? source.M1 - r : 0) * half;
  }
  __syncthreads();
  // A thread keeps to its columns, so that what concerns these is found once, and takes several rows at once: the more loads travel,
  // the less is waited.
  constexpr int width = N2 < THREADS ? N2 : THREADS, groups = THREADS / width, batch = P > 2 ? 1 : 2;
  const int group = threadIdx.x / width;
  if (group < groups)
#pragma unroll 1
    for (int k2 = threadIdx.x % width; k2 < N2; k2 += width) {
      int j = k2 - f.origin2 % N2, column[ALIASES2];
      bool mirrored[ALIASES2];
      j += j < 0 ? N2 : 0;
#pragma unroll
      for (int a = 0; a < ALIASES2; a++) {
        int c = f.origin2 + j + a * N2;
        c -= c >= source.M2 ? source.M2 : 0;
        mirrored[a] = 2 * c > source.M2;
        column[a] = mirrored[a] ? source.M2 - c : c;
      }
#pragma unroll 1
      for (int first = group; first < height; first += batch * groups) {
        cplx sum[batch][P];
#pragma unroll
        for (int i = 0; i < batch; i++) {
          const int row = min(first + i * groups, height - 1);
#pragma unroll
          for (int q = 0; q < P; q++) sum[i][q] = {0, 0};
#pragma unroll
          for (int a1 = 0; a1 < ALIASES1; a1++) {
            const Reading reading = readings[a1][row];
            const int other = mirrored_rows[a1][row];
#pragma unroll
            for (int a2 = 0; a2 < ALIASES2; a2++) {
              const int c = j + a2 * N2;
              if (c >= reading.begin && c < reading.end) {
                const int at = (mirrored[a2] ? other : reading.direct) + column[a2];
                add_weighted<P>(source, offsets, at, source.weights[reading.weights + c], mirrored[a2], sum[i]);
              }
            }
          }
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
#pragma unroll
          for (int q = 0; q < P; q++)
            if (first + i * groups < height) put(q, begin + first + i * groups, k2, sum[i][q]);
        }
      }
    }
}
#endif

// --- Averages ---

// Where the averages of a signal go: row `row` of its image, times the image's unit.
struct Output {
  real *S;
  const real *unit;
  int n_paths;
};
SC_INLINE real *coefficients(const Output &out, int image, int row) { return out.S + ((long long)image * out.n_paths + row) * OUTPUTS; }

#if LINE
#if AVERAGE == MOMENTS
__constant__ alignas(16) real basis[BLOCK][N_MOMENTS] = BASIS;
#endif
// Blocks of samples (or samples) are counted from output to output: the one r behind output o is number r (blocks / steps) + o.
constexpr int BLOCKS = N / BLOCK, BLOCK_STEP = STRIDE / BLOCK > 0 ? STRIDE / BLOCK : 1, STEPS = BLOCKS / BLOCK_STEP;
SC_INLINE int counted(int block) { return block % BLOCK_STEP * STEPS + block / BLOCK_STEP; }

#if AVERAGE == MOMENTS
struct alignas(16) Four { real v[4]; };  // of a table, read at once; there are four moments, or eight

// The moments of |y| in a block: u(i) reads its samples. Moment m stands at m BLOCKS + its number.
template <class U, class To> SC_INLINE void moments_of_block(U u, int block, To to) {
  real sum[N_MOMENTS];
#pragma unroll
  for (int m = 0; m < N_MOMENTS; m++) sum[m] = 0;
  constexpr int unrolled = BLOCK < 8 ? BLOCK : 8;  // more would take registers that there are not
#pragma unroll unrolled
  for (int i = 0; i < BLOCK; i++) {
    const real a = u(i);
#pragma unroll
    for (int m = 0; m < N_MOMENTS; m++) sum[m] += basis[i][m] * a;
  }
#pragma unroll
  for (int m = 0; m < N_MOMENTS; m++) to[m * BLOCKS + counted(block)] = sum[m];
}
#endif

// u(r) reads |y| at a sample of the line; kept(i) its moments; put(o, value) takes an output.
template <class U, class Kept, class Put> SC_INLINE void average_of_line(U u, Kept kept, const real *kernel, Put put) {
#if AVERAGE == SAMPLING
  for (int o = threadIdx.x; o < OUTPUTS; o += THREADS) put(o, u(FIRST + o * STRIDE));
#elif AVERAGE == WEIGHTS
  __shared__ real part[32];
  real sum = 0;
  for (int r = threadIdx.x; r < N; r += THREADS) sum += kernel[r] * u(r);
#pragma unroll
  for (int m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, m);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < THREADS / 32; w++) sum += part[w];
    put(0, sum);
  }
  __syncthreads();
#else
  // Tap d is that of the block d + FIRST_TAP behind the one where an output lies.
  for (int o = threadIdx.x; o < OUTPUTS; o += THREADS) {
    int b = (FIRST + o * STRIDE) / BLOCK + FIRST_TAP;
    b += b < 0 ? BLOCKS : 0;
    real sum = 0;
#pragma unroll 4
    for (int d = 0; d < N_TAPS; d++) {
#if AVERAGE == MOMENTS
      const int at = counted(b);
#pragma unroll
      for (int m = 0; m < N_MOMENTS; m += 4) {
        const Four weights = reinterpret_cast<const Four *>(kernel)[(d * N_MOMENTS + m) / 4];
#pragma unroll
        for (int i = 0; i < 4; i++) sum += weights.v[i] * kept((m + i) * BLOCKS + at);
      }
#else
      sum += kernel[d] * u(b);
#endif
      b = b + 1 == BLOCKS ? 0 : b + 1;
    }
    put(o, sum);
  }
#endif
}
#else
__constant__ real taps1[N_TAPS1] = TAPS1;
__constant__ real taps2[N_TAPS2] = TAPS2;
// Outputs o … o + count − 1 along an axis: in(r) reads its sample r, put(k, value) takes the k-th of them.
template <int n, int n_taps, int count, class In, class Put> SC_INLINE void average_along(const real *taps, int start, In in, Put put) {
  constexpr int total = n_taps + STRIDE * (count - 1), unrolled = total <= 160 ? total : 4;
  real sum[count];
#pragma unroll
  for (int k = 0; k < count; k++) sum[k] = 0;
  int r = start % n;
#pragma unroll unrolled
  for (int i = 0; i < total; i++) {
    const real u = in(r);
    r = r + 1 == n ? 0 : r + 1;
#pragma unroll
    for (int k = 0; k < count; k++) {
      const int tap = i - k * STRIDE;
      if (tap >= 0 && tap < n_taps) sum[k] += taps[tap] * u;
    }
  }
#pragma unroll
  for (int k = 0; k < count; k++) put(k, sum[k]);
}
constexpr int NEIGHBOURS = STRIDE > 16 ? 1 : OUT1 % 4 == 0 ? 4 : OUT1 % 3 == 0 ? 3 : OUT1 % 2 == 0 ? 2 : 1;  // outputs that a thread finds
#endif

// --- The transform forth ---

// Real columns of the grid in pairs, as complex ones: column c and c + COLUMN_PAIRS.
constexpr bool PAIRED = N2 % 2 == 0;
constexpr int COLUMN_PAIRS = PAIRED ? N2 / 2 : N2;

// Write row k1 of the conjugate spectrum, z(k2), to a signal's stored half.
template <class Z> SC_INLINE void write_spectrum(cplx *X, int k1, int k2, Z z) {
  const bool own = k1 == 0 || 2 * k1 == N1;  // its own mirror image
#if LINE
  const int k = k1 + N1 * k2;
  if (2 * k <= N) X[k] = {z.x, -z.y};
  else if (!own) X[N - k] = z;
#else
  if (2 * k2 <= N2) X[k1 * HALF2 + k2] = {z.x, -z.y};
  const int m2 = k2 ? N2 - k2 : 0;
  if (!own && 2 * m2 <= N2) X[(N1 - k1) * HALF2 + m2] = z;
#endif
}
constexpr int SPECTRUM = LINE ? N / 2 + 1 : N1 * HALF2;  // elements of a stored spectrum

#if WHOLE
// --- Whole signals in a block: SIGNALS of them, at z + q N1 PITCH ---

constexpr int IMAGE = N1 * PITCH;
struct Target { cplx *X; int image, row; };  // of a signal: where its spectrum goes, whose it is, its row; -1 where a block has none

// From |y| in the real parts, at reversed places: averages, and the spectrum for what goes on.
SC_INLINE void finish_whole(cplx *z, const Target *targets, const Output &out, const real *kernel, const cplx *twiddles, bool goes_on) {
#if LINE
#pragma unroll 1
  for (int q = 0; q < SIGNALS; q++) {
    cplx *y = z + q * IMAGE;
    const Target target = targets[q];
    if (target.row < 0) continue;
    real *S = coefficients(out, target.image, target.row);
    const real unit = out.unit[target.image];
    auto sample = [&](int r) { return y[place1(r / N2) * PITCH + place2(r % N2)].x; };
#if AVERAGE == MOMENTS
    // The moments stand in the imaginary parts.
    struct { cplx *y; SC_INLINE_MEMBER real &operator[](int i) const { return y[i / N2 * PITCH + i % N2].y; } } moments = {y};
#pragma unroll 1
    for (int t = threadIdx.x; t < BLOCKS; t += THREADS) {
      const int place = t % N1, c = t / N1 * BLOCK;  // neighbours read neighbouring rows, which lie in different banks
      moments_of_block([&](int i) { return y[place * PITCH + place2(c + i)].x; }, (element1(place) * N2 + c) / BLOCK, moments);
    }
    __syncthreads();
    average_of_line(sample, [&](int i) { return moments[i]; }, kernel, [&](int o, real a) { S[o] = a * unit; });
#else
    average_of_line(sample, [](int) { return real(0); }, kernel, [&](int o, real a) { S[o] = a * unit; });
#endif
  }
#else
  // Along columns, into the imaginary parts of the first rows; then along these.
  constexpr int per = OUT1 / NEIGHBOURS;
#pragma unroll 1
  for (int t = threadIdx.x; t < SIGNALS * per * N2; t += THREADS) {
    const int c = t % N2, o = t / N2 % per * NEIGHBOURS;
    cplx *y = z + t / N2 / per * IMAGE + c;
    average_along<N1, N_TAPS1, NEIGHBOURS>(taps1, START1 + STRIDE * o, [&](int r) { return y[place1(r) * PITCH].x; },
                                           [&](int k, real a) { y[(o + k) * PITCH].y = a; });
  }
  __syncthreads();
#pragma unroll 1
  for (int t = threadIdx.x; t < SIGNALS * OUTPUTS; t += THREADS) {
    const int o2 = t % OUT2, o1 = t / OUT2 % OUT1, q = t / OUTPUTS;
    const cplx *y = z + q * IMAGE + o1 * PITCH;
    const Target target = targets[q];
    if (target.row >= 0)
      average_along<N2, N_TAPS2, 1>(taps2, START2 + STRIDE * o2, [&](int r) { return y[place2(r)].y; }, [&](int, real a) {
        coefficients(out, target.image, target.row)[o1 * OUT2 + o2] = a * out.unit[target.image];
      });
  }
#endif
  if (!goes_on) return;
  __syncthreads();
  // Columns forth, two real ones at a time, conjugate.
  constexpr int pairs = SIGNALS * COLUMN_PAIRS;
  auto column = [](int l, int e) { return l / COLUMN_PAIRS * IMAGE + e * PITCH + l % COLUMN_PAIRS; };
  auto pair = [&](int l, int e) {
    const cplx *y = z + column(l, e);
    return cplx{y[0].x, PAIRED ? -y[COLUMN_PAIRS].x : real(0)};
  };
  Along1<pairs>::to_natural(z, turns1.w, column, pair, [&](int l, int e, cplx a) { z[column(l, e)] = a; });
  if (PAIRED) {
#pragma unroll 1
    for (int t = threadIdx.x; t < pairs * HALF1; t += THREADS) {
      const int l = t % pairs, k = t / pairs;
      const cplx a = z[column(l, k)], b = z[column(l, k ? N1 - k : 0)];
      z[column(l, k)] = {real(0.5) * (a.x + b.x), real(0.5) * (a.y - b.y)};
      z[column(l, k) + COLUMN_PAIRS] = {real(-0.5) * (a.y + b.y), real(0.5) * (a.x - b.x)};
    }
    __syncthreads();
  }
  // The first half of the rows forth.
  auto row = [](int l, int e) { return l / HALF1 * IMAGE + l % HALF1 * PITCH + e; };
  auto turned_row = [&](int l, int e) {
    const cplx a = z[row(l, e)];
#if LINE
    const cplx w = twiddles[l % HALF1 * N2 + e];
    return turned(a, w.x, w.y);
#else
    return a;
#endif
  };
  Along2<SIGNALS * HALF1>::to_natural(z, turns2.w, row, turned_row, [&](int l, int e, cplx a) { z[row(l, e)] = a; });
#pragma unroll 1
  for (int t = threadIdx.x; t < SIGNALS * HALF1 * N2; t += THREADS) {
#if LINE
    const int k1 = t % HALF1, k2 = t / HALF1 % N2, q = t / HALF1 / N2;
#else
    const int k2 = t % N2, k1 = t / N2 % HALF1, q = t / N2 / HALF1;
#endif
    if (targets[q].row >= 0) write_spectrum(targets[q].X, k1, k2, z[q * IMAGE + k1 * PITCH + k2]);
  }
}

// grid (groups of SIGNALS images): x (images, H, W) is continued, averaged into `row`, transformed forth into X.
extern "C" __global__ void __launch_bounds__(THREADS) extend_whole(
    const real *__restrict__ x, int H, int W, const int *__restrict__ index1, const int *__restrict__ index2, int images, int row,
    real *__restrict__ S, const real *__restrict__ unit, int n_paths, const real *__restrict__ kernel, const cplx *__restrict__ twiddles, cplx *__restrict__ X) {
  DYNAMIC_SHARED(cplx, z);
  const Output out = {S, unit, n_paths};
  __shared__ Target targets[SIGNALS];
  const int first = blockIdx.x * SIGNALS;
  for (int q = threadIdx.x; q < SIGNALS; q += THREADS) {
    const int s = first + q;
    targets[q] = {X + (long long)s * SPECTRUM, min(s, images - 1), s < images ? row : -1};
  }
#pragma unroll 1
  for (int t = threadIdx.x; t < N; t += THREADS) {
    const int u1 = t / N2, u2 = t % N2;
    const int from = LINE ? index2[t] : index1[u1] * W + index2[u2];
#pragma unroll
    for (int q = 0; q < SIGNALS; q++)
    {
      const int image = min(first + q, images - 1);
      z[q * IMAGE + place1(u1) * PITCH + place2(u2)].x = x[(long long)image * H * W + from] * inverse_of_power(unit[image]);
    }
  }
  __syncthreads();
  finish_whole(z, targets, out, kernel, twiddles, X != nullptr);
}

// x * psi for the signals at X + offsets[q]: put(where it belongs, value) for every point, at reversed places.
template <class Put>
SC_INLINE void invert_whole(cplx *z, const Source &source, int filter, const int *offsets, const cplx *twiddles, Put put) {
  gather<SIGNALS, N1>(source, filter, offsets, 0, [&](int q, int k1, int k2, cplx a) { z[q * IMAGE + k1 * PITCH + k2] = a; });
  __syncthreads();
  auto row = [](int l, int e) { return l * PITCH + e; };
  auto get_row = [&](int l, int e) { return z[row(l, e)]; };
  Along2<SIGNALS * N1>::to_reversed(z, turns2.w, row, get_row, [&](int l, int e, cplx a) {
#if LINE
    const cplx w = twiddles[l % N1 * N2 + e];
    a = turned(a, w.x, w.y);
#endif
    z[row(l, e)] = a;
  });
  auto column = [](int l, int e) { return l / N2 * IMAGE + e * PITCH + l % N2; };
  auto get_column = [&](int l, int e) { return z[column(l, e)]; };
  Along1<SIGNALS * N2>::to_reversed(z, turns1.w, column, get_column, [&](int l, int e, cplx a) { put(column(l, e), a); });
}

// grid (filters, groups of SIGNALS signals): |x * psi| of `signals` spectra, `prefixes` of each image; averages go to rows[filter, prefix],
// spectra to deeper (images, filters, prefixes).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) wavelet_whole(
    const cplx *__restrict__ X, int M1, int M2, const Filter *__restrict__ bank, const Row *__restrict__ bank_rows,
    const real *__restrict__ weights, int signals, int prefixes, const int *__restrict__ out_rows, real *__restrict__ S,
    const real *__restrict__ unit, int n_paths, const real *__restrict__ kernel, const cplx *__restrict__ twiddles,
    cplx *__restrict__ deeper) {
  DYNAMIC_SHARED(cplx, z);
  const Source source = {X, M1, M2, bank, bank_rows, weights};
  const Output out = {S, unit, n_paths};
  const int f = blockIdx.x, filters = gridDim.x, stored = LINE ? M2 / 2 + 1 : M1 * (M2 / 2 + 1);
  __shared__ Target targets[SIGNALS];
  const int first = blockIdx.y * SIGNALS;
  for (int q = threadIdx.x; q < SIGNALS; q += THREADS) {
    const int s = min(first + q, signals - 1), image = s / prefixes, prefix = s % prefixes;
    const int row = first + q < signals ? out_rows[f * prefixes + prefix] : -1;
    targets[q] = {deeper + ((long long)(image * filters + f) * prefixes + prefix) * SPECTRUM, image, row};
  }
  int offsets[SIGNALS];
#pragma unroll
  for (int q = 0; q < SIGNALS; q++) offsets[q] = min(first + q, signals - 1) * stored;
  invert_whole(z, source, f, offsets, twiddles, [&](int at, cplx a) { z[at].x = modulus(a); });
  finish_whole(z, targets, out, kernel, twiddles, deeper != nullptr);
}

#if LINE
// grid (groups of SIGNALS signals): x * psi itself, of the first filter, to Y (bands, images, N), the prefixes being bands from first_band on.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) bands_whole(
    const cplx *__restrict__ X, int M1, int M2, const Filter *__restrict__ bank, const Row *__restrict__ bank_rows,
    const real *__restrict__ weights, int signals, int prefixes, int first_band, const cplx *__restrict__ twiddles, cplx *__restrict__ Y) {
  DYNAMIC_SHARED(cplx, z);
  const Source source = {X, M1, M2, bank, bank_rows, weights};
  const int first = blockIdx.x * SIGNALS;
  int offsets[SIGNALS];
#pragma unroll
  for (int q = 0; q < SIGNALS; q++) offsets[q] = min(first + q, signals - 1) * (M2 / 2 + 1);
  invert_whole(z, source, 0, offsets, twiddles, [&](int at, cplx a) { z[at] = a; });
#pragma unroll 4
  for (int t = threadIdx.x; t < SIGNALS * N; t += THREADS) {
    const int s = first + t / N, u = t % N;
    if (s < signals)
      Y[((long long)(first_band + s % prefixes) * (signals / prefixes) + s / prefixes) * N + u] =
          z[t / N * IMAGE + place1(u / N2) * PITCH + place2(u % N2)];
  }
}
#endif

#else
// --- Large grids: rows and columns in kernels of their own, (paths, N1, N2) between them ---
//
// The columns of a line's grid are neighbouring samples, and stand in order; those of an image need not, and stand at their places.

// grid (row groups, filters, signals): gather and transform ROWS rows, to A (signals, filters, N1, N2).
extern "C" __global__ void __launch_bounds__(THREADS) wavelet_rows(
    const cplx *__restrict__ X, int M1, int M2, const Filter *__restrict__ bank, const Row *__restrict__ bank_rows,
    const real *__restrict__ weights, const cplx *__restrict__ twiddles, cplx *__restrict__ A) {
  DYNAMIC_SHARED(cplx, z);
  const Source source = {X, M1, M2, bank, bank_rows, weights};
  const int begin = blockIdx.x * ROWS, end = min(begin + ROWS, N1), f = blockIdx.y;
  const int stored = LINE ? M2 / 2 + 1 : M1 * (M2 / 2 + 1);
  const int offsets[1] = {(int)blockIdx.z * stored};
  auto row = [](int l, int e) { return l * PITCH + e; };
  auto get = [&](int l, int e) { return z[row(l, e)]; };
  auto put = [&](int l, int e, cplx a) { z[row(l, e)] = a; };
  gather<1, ROWS>(source, f, offsets, begin, [&](int, int k1, int k2, cplx a) { put(k1 - begin, LINE ? place2(k2) : k2, a); });
  __syncthreads();
#if LINE
  Along2<ROWS>::to_natural(z, turns2.w, row, get, put);
#else
  Along2<ROWS>::to_reversed(z, turns2.w, row, get, put);
#endif
  cplx *to = A + ((long long)blockIdx.z * gridDim.y + f) * N + begin * N2;
#pragma unroll 4
  for (int t = threadIdx.x; t < (end - begin) * N2; t += THREADS) {
    cplx a = z[t / N2 * PITCH + t % N2];
#if LINE
    const cplx w = twiddles[begin * N2 + t];
    a = turned(a, w.x, w.y);
#endif
    to[t] = a;
  }
}

// From |y| of COLUMNS columns in the real parts, z[place of u1][column]: averages along the columns to V (images: OUT1 × N2; lines: the
// moments of blocks, or |y| itself), and the spectrum to B (HALF1, N2).
constexpr int STEP = COLUMNS | 1;
SC_INLINE void finish_columns(cplx *z, int begin, real *V, cplx *B) {
  const int count = min(COLUMNS, N2 - begin);
#if LINE && AVERAGE == MOMENTS
  constexpr int per = COLUMNS / BLOCK;
#pragma unroll 1
  for (int t = threadIdx.x; t < N1 * per; t += THREADS) {
    const int place = t % N1, c = t / N1 * BLOCK;  // neighbours read neighbouring rows, which lie in different banks
    if (c < count)
      moments_of_block([&](int i) { return z[place * STEP + c + i].x; }, (element1(place) * N2 + begin + c) / BLOCK, V);
  }
#elif LINE
#pragma unroll 4
  for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS)
    if (t % COLUMNS < count) V[t / COLUMNS * N2 + begin + t % COLUMNS] = z[place1(t / COLUMNS) * STEP + t % COLUMNS].x;
#else
#pragma unroll 1
  for (int t = threadIdx.x; t < OUT1 / NEIGHBOURS * COLUMNS; t += THREADS) {
    const int c = t % COLUMNS, o = t / COLUMNS * NEIGHBOURS;
    if (c < count)
      average_along<N1, N_TAPS1, NEIGHBOURS>(taps1, START1 + STRIDE * o, [&](int r) { return z[place1(r) * STEP + c].x; },
                                             [&](int k, real a) { V[(o + k) * N2 + begin + c] = a; });
  }
#endif
  if (!B) return;
  __syncthreads();
  constexpr int pairs = COLUMNS / 2;
  auto column = [](int l, int e) { return e * STEP + l; };
  auto pair = [&](int l, int e) {
    const cplx *y = z + column(l, e);
    return cplx{y[0].x, -y[pairs].x};
  };
  Along1<pairs>::to_natural(z, turns1.w, column, pair, [&](int l, int e, cplx a) { z[column(l, e)] = a; });
#pragma unroll 1
  for (int t = threadIdx.x; t < pairs * HALF1; t += THREADS) {
    const int l = t % pairs, k = t / pairs;
    const cplx a = z[column(l, k)], b = z[column(l, k ? N1 - k : 0)];
    cplx *to = B + k * N2 + begin + l;
    if (l < count) to[0] = {real(0.5) * (a.x + b.x), real(0.5) * (a.y - b.y)};
    if (l + pairs < count) to[pairs] = {real(-0.5) * (a.y + b.y), real(0.5) * (a.x - b.x)};
  }
}

// grid (column groups, images): x is continued; V and B as above, one for each image.
extern "C" __global__ void __launch_bounds__(THREADS) extend_columns(const real *__restrict__ x, int H, int W,
                                                                     const int *__restrict__ index1, const int *__restrict__ index2,
                                                                     const real *__restrict__ unit, real *__restrict__ V,
                                                                     cplx *__restrict__ B) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * COLUMNS, image = blockIdx.y;
  const real *from = x + (long long)image * H * W, inverse = inverse_of_power(unit[image]);
#pragma unroll 1
  for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS) {
    const int u1 = t / COLUMNS, c = t % COLUMNS, u2 = min(begin + c, N2 - 1);
    z[place1(u1) * STEP + c].x = from[LINE ? index2[u1 * N2 + u2] : index1[u1] * W + index2[u2]] * inverse;
  }
  __syncthreads();
  finish_columns(z, begin, V + (long long)image * AVERAGED, B ? B + (long long)image * HALF1 * N2 : nullptr);
}

// COLUMNS columns of a path's (N1, N2) transformed: put(where it belongs, value) for every point, at reversed places.
template <class Put> SC_INLINE void invert_columns(cplx *z, const cplx *A, int begin, Put put) {
#pragma unroll 4
  for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS) {
    const int c = t % COLUMNS;
    z[t / COLUMNS * STEP + c] = begin + c < N2 ? A[t / COLUMNS * N2 + begin + c] : cplx{0, 0};
  }
  __syncthreads();
  auto column = [](int l, int e) { return e * STEP + l; };
  auto get = [&](int l, int e) { return z[column(l, e)]; };
  Along1<COLUMNS>::to_reversed(z, turns1.w, column, get, [&](int l, int e, cplx a) { put(column(l, e), a); });
}

// grid (column groups, paths): columns of A transformed; modulus; V and B as above, one for each path.
extern "C" __global__ void __launch_bounds__(THREADS) wavelet_columns(const cplx *__restrict__ A, real *__restrict__ V,
                                                                      cplx *__restrict__ B) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * COLUMNS, path = blockIdx.y;
  invert_columns(z, A + (long long)path * N, begin, [&](int at, cplx a) { z[at].x = modulus(a); });
  finish_columns(z, begin, V + (long long)path * AVERAGED, B ? B + (long long)path * HALF1 * N2 : nullptr);
}

#if LINE
// grid (column groups, signals): x * psi itself, from A (images, prefixes, N1, N2) to Y (bands, images, N), the prefixes being bands from
// first_band on.
extern "C" __global__ void __launch_bounds__(THREADS) bands_columns(const cplx *__restrict__ A, int prefixes, int first_band,
                                                                    cplx *__restrict__ Y) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * COLUMNS, s = blockIdx.y;
  invert_columns(z, A + (long long)s * N, begin, [&](int at, cplx a) { z[at] = a; });
  cplx *to = Y + ((long long)(first_band + s % prefixes) * (gridDim.y / prefixes) + s / prefixes) * N + begin;
#pragma unroll 4
  for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS)
    if (begin + t % COLUMNS < N2) to[t / COLUMNS * N2 + t % COLUMNS] = z[place1(t / COLUMNS) * STEP + t % COLUMNS];
}
#endif

// Rows [begin, end) of a grid transformed forth, into z: k2 at its place for lines, in order for images.
SC_INLINE void rows_forth(cplx *z, const cplx *rows, int begin, int end, const cplx *twiddles) {
  const cplx *from = rows + begin * N2;
#pragma unroll 4
  for (int t = threadIdx.x; t < ROWS * N2; t += THREADS) {
    cplx a = {0, 0};
    if (t < (end - begin) * N2) {
      a = from[t];
#if LINE
      const cplx w = twiddles[begin * N2 + t];
      a = turned(a, w.x, w.y);
#endif
    }
    z[t / N2 * PITCH + t % N2] = a;
  }
  __syncthreads();
  auto row = [](int l, int e) { return l * PITCH + e; };
  auto get = [&](int l, int e) { return z[row(l, e)]; };
  auto put = [&](int l, int e, cplx a) { z[row(l, e)] = a; };
#if LINE
  Along2<ROWS>::to_reversed(z, turns2.w, row, get, put);
#else
  Along2<ROWS>::to_natural(z, turns2.w, row, get, put);
#endif
}

// grid (row groups, paths): rows of B (paths, HALF1, N2) transformed forth, to spectra (images, filters, prefixes) of paths in the order
// (images, prefixes, filters).
extern "C" __global__ void __launch_bounds__(THREADS) spectrum_rows(const cplx *__restrict__ B, int prefixes, int filters,
                                                                    const cplx *__restrict__ twiddles, cplx *__restrict__ X) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * ROWS, end = min(begin + ROWS, HALF1), path = blockIdx.y;
  rows_forth(z, B + (long long)path * HALF1 * N2, begin, end, twiddles);
  const int image = path / (prefixes * filters), prefix = path / filters % prefixes, f = path % filters;
  cplx *to = X + ((long long)(image * filters + f) * prefixes + prefix) * SPECTRUM;
#pragma unroll 4
  for (int t = threadIdx.x; t < ROWS * N2; t += THREADS) {
    const int k1 = LINE ? t % ROWS : t / N2, k2 = LINE ? t / ROWS : t % N2;
    if (begin + k1 < end) write_spectrum(to, begin + k1, k2, z[k1 * PITCH + (LINE ? place2(k2) : k2)]);
  }
}

// grid (paths): what is left to average. V holds a path's columns, averaged (images), or |y| (lines); paths in the order (images, prefixes,
// filters).
extern "C" __global__ void __launch_bounds__(THREADS) average_paths(const real *__restrict__ V, int prefixes, int filters,
                                                                    const int *__restrict__ out_rows, real *__restrict__ out,
                                                                    const real *__restrict__ units, int n_paths,
                                                                    const real *__restrict__ kernel) {
  const int path = blockIdx.x, image = path / (prefixes * filters), prefix = path / filters % prefixes, f = path % filters;
  real *S = coefficients({out, units, n_paths}, image, out_rows[f * prefixes + prefix]);
  const real unit = units[image], *v = V + (long long)path * AVERAGED;
#if LINE
#if AVERAGE == MOMENTS && MOMENTS_FIT
  DYNAMIC_SHARED(real, moments);
#pragma unroll 4
  for (int i = threadIdx.x; i < AVERAGED; i += THREADS) moments[i] = v[i];
  __syncthreads();
  auto kept = [&](int i) { return moments[i]; };
#else
  auto kept = [&](int i) { return v[i]; };
#endif
  average_of_line([&](int r) { return v[r]; }, kept, kernel, [&](int o, real a) { S[o] = a * unit; });
#else
#pragma unroll 1
  for (int t = threadIdx.x; t < OUTPUTS; t += THREADS) {
    const real *row = v + t / OUT2 * N2;
    average_along<N2, N_TAPS2, 1>(taps2, START2 + STRIDE * (t % OUT2), [&](int r) { return row[place2(r)]; },
                                  [&](int, real a) { S[t] = a * unit; });
  }
#endif
}
#endif

#if LINE && MOMENTS_FIT
// grid (lines): averages of real lines (outputs, images, N), to the rows from first_row on of each image.
extern "C" __global__ void __launch_bounds__(THREADS) average_lines(const real *__restrict__ lines, int images, int first_row,
                                                                    real *__restrict__ out, const real *__restrict__ units, int n_paths,
                                                                    const real *__restrict__ kernel) {
  const int image = blockIdx.x % images, row = first_row + blockIdx.x / images;
  const real *line = lines + (long long)blockIdx.x * N, unit = units[image];
  real *S = coefficients({out, units, n_paths}, image, row);
  auto sample = [&](int r) { return line[r]; };
#if AVERAGE == MOMENTS
  DYNAMIC_SHARED(real, moments);
#pragma unroll 1
  for (int b = threadIdx.x; b < BLOCKS; b += THREADS) moments_of_block([&](int i) { return sample(b * BLOCK + i); }, b, moments);
  __syncthreads();
  auto kept = [&](int i) { return moments[i]; };
#else
  auto kept = [](int) { return real(0); };
#endif
  average_of_line(sample, kept, kernel, [&](int o, real a) { S[o] = a * unit; });
}
#endif
