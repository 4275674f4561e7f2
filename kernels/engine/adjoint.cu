// The scattering engine backwards: the gradient of sum S(x) g with respect to x. Stands behind scattering.cu, in one module with it.
//
// The gradient with respect to a real signal is one, its slopes. What comes from the paths that go on is kept as half a spectrum H, which
// has the slopes sum over k of H[k] exp(2 pi i k u / N): of what the filters give only the Hermitian part counts. The gradient with respect
// to x * psi, transformed forth and not normalised, is C, (signals, filters, N1, N2) for images, (signals, filters, N) for lines.
//
// `slopes_whole` adds what averages and H give. `wavelet_adjoint_whole` takes slopes, or the weights g themselves where a path ends, to C;
// `spectra_adjoint` sums C over filters into H of the spectrum that was read; `extend_adjoint` sums what continues a sample. Large grids go
// by `slopes_rows` and `slopes_columns`; by `wavelet_rows`, `wavelet_adjoint_columns` and `wavelet_adjoint_rows`.
//
// Slopes are (signals, N1, N2): u1 at its place, u2 at its own, but for large lines, where it stands in order.

SC_INLINE float inverse_root(float a) { return rsqrtf(a); }
SC_INLINE double inverse_root(double a) { return rsqrt(a); }

SC_INLINE int element2(int place) { return Ordered<N2, RADICES2>::of(place); }
constexpr bool AT_PLACES = WHOLE || !LINE;
SC_INLINE int sample2(int column) { return AT_PLACES ? element2(column) : column; }

// The conjugate of a y / |y|, and 0 where y = 0, also where squares vanish.
SC_INLINE cplx conjugate_along(cplx y, real a) {
  constexpr real least = sizeof(real) == 4 ? 1e-30 : 1e-290, unit = sizeof(real) == 4 ? 1e24 : 1e180;
  real square = y.x * y.x + y.y * y.y;
  if (square < least) {
    y = {y.x * unit, y.y * unit};
    square = y.x * y.x + y.y * y.y;
  }
  const real w = square == 0 ? 0 : inverse_root(square);
  return {y.x * w * a, -y.y * w * a};
}

// --- Averages, backwards ---
//
// What the weights of averages give: put(q, place of u1, column, value) for all samples of `width` columns from `begin` on, of which there
// are `count`, of so many signals; of(q) is where the weights of signal q stand. `spare` is shared memory of a block's own.

#if LINE
constexpr int APART = OUTPUTS == 1 ? BLOCKS : BLOCK_STEP, TURNS = BLOCKS / APART;  // blocks between outputs, and such steps on the circle

#if AVERAGE == MOMENTS || AVERAGE == TAPS
// Every tap that meets a block of samples, and the output that it is of.
template <class Take> SC_INLINE void taps_of_block(int block, Take take) {
  const int behind = (block + 2 * BLOCKS - FIRST / BLOCK - FIRST_TAP) % BLOCKS;
  int o = behind / APART;
#pragma unroll 4
  for (int d = behind % APART; d < N_TAPS; d += APART) {
    if (o < OUTPUTS) take(d, o);
    o = o ? o - 1 : TURNS - 1;
  }
}
#endif

template <int signals, int width, class Of, class Put>
SC_INLINE void average_adjoint(Of of, const real *kernel, real *, int begin, int count, Put put) {
#if AVERAGE == MOMENTS
  constexpr int per = width / BLOCK;
#pragma unroll 1
  for (int t = threadIdx.x; t < signals * N1 * per; t += THREADS) {
    const int place = t % N1, c = t / N1 % per * BLOCK, q = t / N1 / per;  // neighbours meet neighbouring rows, in different banks
    if (c >= count) continue;
    const real *g = of(q);
    real moments[N_MOMENTS];
#pragma unroll
    for (int m = 0; m < N_MOMENTS; m++) moments[m] = 0;
    taps_of_block((element1(place) * N2 + begin + c) / BLOCK, [&](int d, int o) {
      const real a = g[o];
#pragma unroll
      for (int m = 0; m < N_MOMENTS; m++) moments[m] += kernel[d * N_MOMENTS + m] * a;
    });
    constexpr int unrolled = BLOCK < 8 ? BLOCK : 8;  // more would take registers that there are not
#pragma unroll unrolled
    for (int i = 0; i < BLOCK; i++) {
      real sum = 0;
#pragma unroll
      for (int m = 0; m < N_MOMENTS; m++) sum += basis[i][m] * moments[m];
      put(q, place, AT_PLACES ? place2(c + i) : c + i, sum);
    }
  }
#else
#pragma unroll 1
  for (int t = threadIdx.x; t < signals * N1 * width; t += THREADS) {
    const int c = t % width, place = t / width % N1, q = t / width / N1;
    if (c >= count) continue;
    const real *g = of(q);
    const int u = element1(place) * N2 + sample2(begin + c);
    real sum = 0;
#if AVERAGE == SAMPLING
    const int o = (u - FIRST) / STRIDE;
    if (u >= FIRST && u == FIRST + o * STRIDE && o < OUTPUTS) sum = g[o];
#elif AVERAGE == WEIGHTS
    sum = kernel[u] * g[0];
#else
    taps_of_block(u, [&](int d, int o) { sum += kernel[d] * g[o]; });
#endif
    put(q, place, c, sum);
  }
#endif
}
#else
constexpr int TURNS1 = N1 / STRIDE, TURNS2 = N2 / STRIDE;
constexpr int REACH = (N_TAPS1 + STRIDE - 1) / STRIDE;  // outputs that a sample adds to, along a column
constexpr int FOLLOWERS = TURNS1 % 4 == 0 ? 4 : TURNS1 % 3 == 0 ? 3 : TURNS1 % 2 == 0 ? 2 : 1;  // samples of a thread, STRIDE apart

template <int signals, int width, class Of, class Put>
SC_INLINE void average_adjoint(Of of, const real *, real *spare, int begin, int count, Put put) {
  // Along rows; the taps are copied, as neighbours take different ones.
  real *rows = spare, *taps = spare + signals * OUT1 * width;
  for (int t = threadIdx.x; t < N_TAPS2; t += THREADS) taps[t] = taps2[t];
  __syncthreads();
#pragma unroll 1
  for (int t = threadIdx.x; t < signals * OUT1 * width; t += THREADS) {
    const int c = t % width, o1 = t / width % OUT1;
    if (c >= count) continue;
    const real *g = of(t / width / OUT1) + o1 * OUT2;
    const int behind = (sample2(begin + c) + N2 - START2) % N2;
    int o = behind / STRIDE;
    real sum = 0;
#pragma unroll 4
    for (int d = behind % STRIDE; d < N_TAPS2; d += STRIDE) {
      if (o < OUT2) sum += taps[d] * g[o];
      o = o ? o - 1 : TURNS2 - 1;
    }
    rows[t] = sum;
  }
  __syncthreads();
  // Along columns.
  constexpr int per = TURNS1 / FOLLOWERS, total = REACH + FOLLOWERS - 1, unrolled = total <= 32 ? total : 1;
#pragma unroll 1
  for (int t = threadIdx.x; t < signals * STRIDE * per * width; t += THREADS) {
    const int c = t % width, r = t / width % STRIDE, first = t / width / STRIDE % per * FOLLOWERS, q = t / width / STRIDE / per;
    if (c >= count) continue;
    const real *from = rows + q * OUT1 * width + c;
    real sum[FOLLOWERS];
#pragma unroll
    for (int n = 0; n < FOLLOWERS; n++) sum[n] = 0;
#pragma unroll unrolled
    for (int i = 0; i < total; i++) {
      int o = first + i - (REACH - 1);
      o += o < 0 ? TURNS1 : 0;
      const real a = o < OUT1 ? from[o * width] : real(0);
#pragma unroll
      for (int n = 0; n < FOLLOWERS; n++) {
        const int steps = n - i + REACH - 1, d = r + steps * STRIDE;
        if (steps >= 0 && steps < REACH && d < N_TAPS1) sum[n] += taps1[d] * a;
      }
    }
#pragma unroll
    for (int n = 0; n < FOLLOWERS; n++) {
      const int u1 = START1 + r + (first + n) * STRIDE;
      put(q, place1(u1 < N1 ? u1 : u1 - N1), c, sum[n]);
    }
  }
}
#endif

// --- Slopes of real signals ---

// What stands at (k1, k2) of a signal's spectrum; k1 in the first half.
SC_INLINE cplx read_spectrum(const cplx *H, int k1, int k2) {
#if LINE
  const int k = k1 + N1 * k2;
  const bool stored = 2 * k <= N;
  const cplx a = H[stored ? k : N - k];
#else
  const bool stored = 2 * k2 <= N2;
  const cplx a = H[stored ? k1 * HALF2 + k2 : (k1 ? N1 - k1 : 0) * HALF2 + N2 - k2];
#endif
  return {a.x, stored ? a.y : -a.y};
}

// Two columns of Hermitian ones as one: put(0, …) takes what stands at k, put(1, …) what stands at N1 - k.
template <class Put> SC_INLINE void pair_columns(int k, cplx a, cplx b, Put put) {
  if (k == 0 || 2 * k == N1) {
    put(0, cplx{a.x, b.x});
  } else {
    put(0, cplx{a.x - b.y, a.y + b.x});
    put(1, cplx{a.x + b.y, b.x - a.y});
  }
}

#if WHOLE
struct Path { const real *g, *slopes; };  // of a signal: the weights of its averages; its slopes
SC_INLINE void find_paths(Path *paths, int first, int signals, int prefixes, int filter, int filters, const int *rows, const real *g,
                          int n_paths, const real *slopes) {
  for (int q = threadIdx.x; q < SIGNALS; q += THREADS) {
    const int s = min(first + q, signals - 1), image = s / prefixes, path = filter * prefixes + s % prefixes;
    paths[q] = {g + ((long long)image * n_paths + rows[path]) * OUTPUTS, slopes + ((long long)image * filters * prefixes + path) * N};
  }
}

// grid (groups of SIGNALS signals): slopes from the weights of averages, rows[prefix] of each image, and from H where there is one.
extern "C" __global__ void __launch_bounds__(THREADS, ADJOINT_BLOCKS_PER_SM) slopes_whole(
    const cplx *__restrict__ H, int signals, int prefixes, const int *__restrict__ rows, const real *__restrict__ g, int n_paths,
    const real *__restrict__ kernel, const cplx *__restrict__ twiddles, real *__restrict__ slopes) {
  DYNAMIC_SHARED(cplx, z);
  __shared__ Path paths[SIGNALS];
  const int first = blockIdx.x * SIGNALS;
  find_paths(paths, first, signals, prefixes, 0, 1, rows, g, n_paths, slopes);
  constexpr int pairs = SIGNALS * COLUMN_PAIRS;
  auto column = [](int l, int e) { return l / COLUMN_PAIRS * IMAGE + e * PITCH + l % COLUMN_PAIRS; };
  if (H) {
#pragma unroll 4
    for (int t = threadIdx.x; t < SIGNALS * HALF1 * N2; t += THREADS) {
#if LINE
      const int k1 = t % HALF1, k2 = t / HALF1 % N2, q = t / HALF1 / N2;
#else
      const int k2 = t % N2, k1 = t / N2 % HALF1, q = t / N2 / HALF1;
#endif
      z[q * IMAGE + k1 * PITCH + k2] = read_spectrum(H + (long long)min(first + q, signals - 1) * SPECTRUM, k1, k2);
    }
    __syncthreads();
    auto row = [](int l, int e) { return l / HALF1 * IMAGE + l % HALF1 * PITCH + e; };
    auto get_row = [&](int l, int e) { return z[row(l, e)]; };
    Along2<SIGNALS * HALF1>::to_reversed(z, turns2.w, row, get_row, [&](int l, int e, cplx a) {
#if LINE
      const cplx w = twiddles[l % HALF1 * N2 + e];
      a = turned(a, w.x, w.y);
#endif
      z[row(l, e)] = a;
    });
#pragma unroll 1
    for (int t = threadIdx.x; t < pairs * HALF1; t += THREADS) {
      const int l = t % pairs, k = t / pairs;
      const cplx a = z[column(l, k)], b = PAIRED ? z[column(l, k) + COLUMN_PAIRS] : cplx{0, 0};
      pair_columns(k, a, b, [&](int mirrored, cplx c) { z[column(l, mirrored ? N1 - k : k)] = c; });
    }
    __syncthreads();
    auto get = [&](int l, int e) { return z[column(l, e)]; };
    Along1<pairs>::to_reversed(z, turns1.w, column, get, [&](int l, int e, cplx a) { z[column(l, e)] = a; });
  } else {
    for (int t = threadIdx.x; t < SIGNALS * IMAGE; t += THREADS) z[t] = {0, 0};
    __syncthreads();
  }
  auto value = [&](int q, int place, int c) -> real & {
    cplx &a = z[q * IMAGE + place * PITCH + (PAIRED ? c % COLUMN_PAIRS : c)];
    return PAIRED && c >= COLUMN_PAIRS ? a.y : a.x;
  };
  average_adjoint<SIGNALS, N2>([&](int q) { return paths[q].g; }, kernel, reinterpret_cast<real *>(z + SIGNALS * IMAGE), 0, N2,
                               [&](int q, int place, int c, real a) { value(q, place, c) += a; });
  __syncthreads();
#pragma unroll 4
  for (int t = threadIdx.x; t < SIGNALS * N; t += THREADS)
    if (first + t / N < signals) slopes[(long long)first * N + t] = value(t / N, t / N2 % N1, t % N2);
}

// grid (filters, groups of SIGNALS signals): from |x * psi| of `signals` spectra, `prefixes` of each image, to C (signals, filters, …). Its
// slopes are those of (images, filters, prefixes), or come from the weights of averages alone, rows[filter, prefix].
extern "C" __global__ void __launch_bounds__(THREADS, ADJOINT_BLOCKS_PER_SM) wavelet_adjoint_whole(
    const cplx *__restrict__ X, int M1, int M2, const Filter *__restrict__ bank, const Row *__restrict__ bank_rows,
    const real *__restrict__ weights, int signals, int prefixes, const int *__restrict__ rows, const real *__restrict__ g, int n_paths,
    const real *__restrict__ kernel, const cplx *__restrict__ twiddles, const real *__restrict__ slopes, cplx *__restrict__ C) {
  DYNAMIC_SHARED(cplx, z);
  __shared__ Path paths[SIGNALS];
  const Source source = {X, M1, M2, bank, bank_rows, weights};
  const int f = blockIdx.x, filters = gridDim.x, first = blockIdx.y * SIGNALS, stored = LINE ? M2 / 2 + 1 : M1 * (M2 / 2 + 1);
  find_paths(paths, first, signals, prefixes, f, filters, rows, g, n_paths, slopes);
  int offsets[SIGNALS];
#pragma unroll
  for (int q = 0; q < SIGNALS; q++) offsets[q] = min(first + q, signals - 1) * stored;
  invert_whole(z, source, f, offsets, twiddles, [&](int at, cplx a) { z[at] = a; });
  auto steer = [&](int q, int place, int c, real a) {
    cplx &y = z[q * IMAGE + place * PITCH + c];
    y = conjugate_along(y, a);
  };
  if (slopes) {
#pragma unroll 4
    for (int t = threadIdx.x; t < SIGNALS * N; t += THREADS) steer(t / N, t / N2 % N1, t % N2, paths[t / N].slopes[t % N]);
  } else {
    average_adjoint<SIGNALS, N2>([&](int q) { return paths[q].g; }, kernel, reinterpret_cast<real *>(z + SIGNALS * IMAGE), 0, N2, steer);
  }
  __syncthreads();
  auto column = [](int l, int e) { return l / N2 * IMAGE + e * PITCH + l % N2; };
  auto get_column = [&](int l, int e) { return z[column(l, e)]; };
  Along1<SIGNALS * N2>::to_natural(z, turns1.w, column, get_column, [&](int l, int e, cplx a) { z[column(l, e)] = a; });
  auto row = [](int l, int e) { return l * PITCH + e; };
  auto turned_row = [&](int l, int e) {
    const cplx a = z[row(l, e)];
#if LINE
    const cplx w = twiddles[l % N1 * N2 + e];
    return turned(a, w.x, w.y);
#else
    return a;
#endif
  };
  cplx *to = C + ((long long)first * filters + f) * N;
  const int apart = filters * N, n = min(SIGNALS, signals - first);
#if LINE
  Along2<SIGNALS * N1>::to_natural(z, turns2.w, row, turned_row, [&](int l, int e, cplx a) {
    if (l / N1 < n) to[l / N1 * apart + l % N1 + N1 * e] = {a.x, -a.y};
  });
#else
  Along2<SIGNALS * N1>::to_natural(z, turns2.w, row, turned_row, [&](int l, int e, cplx a) { z[row(l, e)] = a; });
#pragma unroll 4
  for (int t = threadIdx.x; t < n * N; t += THREADS) {
    const cplx a = z[t / N2 * PITCH + t % N2];
    to[t / N * apart + t % N] = {a.x, -a.y};
  }
#endif
}

#else
// --- Large grids ---

// grid (row groups, signals): rows of the first half of H transformed, to B (signals, HALF1, N2).
extern "C" __global__ void __launch_bounds__(THREADS) slopes_rows(const cplx *__restrict__ H, const cplx *__restrict__ twiddles,
                                                                  cplx *__restrict__ B) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * ROWS, end = min(begin + ROWS, HALF1);
  const cplx *from = H + (long long)blockIdx.y * SPECTRUM;
#pragma unroll 4
  for (int t = threadIdx.x; t < ROWS * N2; t += THREADS) {
    const int k1 = LINE ? t % ROWS : t / N2, k2 = LINE ? t / ROWS : t % N2;
    z[k1 * PITCH + (LINE ? place2(k2) : k2)] = begin + k1 < end ? read_spectrum(from, begin + k1, k2) : cplx{0, 0};
  }
  __syncthreads();
  auto row = [](int l, int e) { return l * PITCH + e; };
  auto get = [&](int l, int e) { return z[row(l, e)]; };
  auto put = [&](int l, int e, cplx a) { z[row(l, e)] = a; };
#if LINE
  Along2<ROWS>::to_natural(z, turns2.w, row, get, put);
#else
  Along2<ROWS>::to_reversed(z, turns2.w, row, get, put);
#endif
  cplx *to = B + (long long)blockIdx.y * HALF1 * N2 + begin * N2;
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

// grid (column groups, signals): slopes from the weights of averages, rows[prefix] of each image, and from B where there is one.
extern "C" __global__ void __launch_bounds__(THREADS, ADJOINT_BLOCKS_PER_SM) slopes_columns(
    const cplx *__restrict__ B, int prefixes, const int *__restrict__ rows, const real *__restrict__ g, int n_paths,
    const real *__restrict__ kernel, real *__restrict__ slopes) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * COLUMNS, count = min(COLUMNS, N2 - begin), s = blockIdx.y;
  constexpr int pairs = COLUMNS / 2;
  auto column = [](int l, int e) { return e * STEP + l; };
  if (B) {
    const cplx *from = B + (long long)s * HALF1 * N2 + begin;
#pragma unroll 1
    for (int t = threadIdx.x; t < pairs * HALF1; t += THREADS) {
      const int l = t % pairs, k = t / pairs;
      const cplx a = l < count ? from[k * N2 + l] : cplx{0, 0}, b = l + pairs < count ? from[k * N2 + l + pairs] : cplx{0, 0};
      pair_columns(k, a, b, [&](int mirrored, cplx c) { z[column(l, mirrored ? N1 - k : k)] = c; });
    }
    __syncthreads();
    auto get = [&](int l, int e) { return z[column(l, e)]; };
    Along1<pairs>::to_reversed(z, turns1.w, column, get, [&](int l, int e, cplx a) { z[column(l, e)] = a; });
  } else {
    for (int t = threadIdx.x; t < N1 * STEP; t += THREADS) z[t] = {0, 0};
    __syncthreads();
  }
  auto value = [&](int place, int c) -> real & {
    cplx &a = z[place * STEP + c % pairs];
    return c >= pairs ? a.y : a.x;
  };
  const real *weights = g + ((long long)(s / prefixes) * n_paths + rows[s % prefixes]) * OUTPUTS;
  average_adjoint<1, COLUMNS>([&](int) { return weights; }, kernel, reinterpret_cast<real *>(z + N1 * STEP), begin, count,
                              [&](int, int place, int c, real a) { value(place, c) += a; });
  __syncthreads();
  real *to = slopes + (long long)s * N + begin;
#pragma unroll 4
  for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS)
    if (t % COLUMNS < count) to[t / COLUMNS * N2 + t % COLUMNS] = value(t / COLUMNS, t % COLUMNS);
}

// grid (column groups, signals × filters): columns of A (signals, filters, N1, N2) transformed, the gradient taken, and transformed forth,
// in place. Its slopes are those of (images, filters, prefixes), or come from the weights of averages alone, rows[filter, prefix].
extern "C" __global__ void __launch_bounds__(THREADS, ADJOINT_BLOCKS_PER_SM) wavelet_adjoint_columns(
    cplx *__restrict__ A, int prefixes, int filters, const int *__restrict__ rows, const real *__restrict__ g, int n_paths,
    const real *__restrict__ kernel, const real *__restrict__ slopes) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * COLUMNS, count = min(COLUMNS, N2 - begin), s = blockIdx.y / filters, image = s / prefixes;
  const int path = blockIdx.y % filters * prefixes + s % prefixes;
  cplx *here = A + (long long)blockIdx.y * N;
  invert_columns(z, here, begin, [&](int at, cplx a) { z[at] = a; });
  auto steer = [&](int, int place, int c, real a) {
    cplx &y = z[place * STEP + c];
    y = conjugate_along(y, a);
  };
  if (slopes) {
    const real *from = slopes + ((long long)image * filters * prefixes + path) * N + begin;
#pragma unroll 4
    for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS) {
      const int c = t % COLUMNS;
      if (c < count) steer(0, t / COLUMNS, c, from[t / COLUMNS * N2 + c]);
    }
  } else {
    const real *weights = g + ((long long)image * n_paths + rows[path]) * OUTPUTS;
    average_adjoint<1, COLUMNS>([&](int) { return weights; }, kernel, reinterpret_cast<real *>(z + N1 * STEP), begin, count, steer);
  }
  __syncthreads();
  auto column = [](int l, int e) { return e * STEP + l; };
  auto get = [&](int l, int e) { return z[column(l, e)]; };
  Along1<COLUMNS>::to_natural(z, turns1.w, column, get, [&](int l, int e, cplx a) { z[column(l, e)] = a; });
#pragma unroll 4
  for (int t = threadIdx.x; t < N1 * COLUMNS; t += THREADS)
    if (t % COLUMNS < count) here[t / COLUMNS * N2 + begin + t % COLUMNS] = z[t / COLUMNS * STEP + t % COLUMNS];
}

// grid (row groups, signals × filters): rows of A transformed forth, to C; of images, C may be A.
extern "C" __global__ void __launch_bounds__(THREADS) wavelet_adjoint_rows(const cplx *A, const cplx *__restrict__ twiddles, cplx *C) {
  DYNAMIC_SHARED(cplx, z);
  const int begin = blockIdx.x * ROWS, end = min(begin + ROWS, N1);
  rows_forth(z, A + (long long)blockIdx.y * N, begin, end, twiddles);
  cplx *to = C + (long long)blockIdx.y * N;
#pragma unroll 4
  for (int t = threadIdx.x; t < ROWS * N2; t += THREADS) {
    const int k1 = LINE ? t % ROWS : t / N2, k2 = LINE ? t / ROWS : t % N2;
    const cplx a = z[k1 * PITCH + (LINE ? place2(k2) : k2)];
    if (begin + k1 < end) to[LINE ? begin + k1 + N1 * k2 : (begin + k1) * N2 + k2] = {a.x, -a.y};
  }
}
#endif

// --- Sums over filters ---

constexpr int TOGETHER = 4;  // signals that a thread sums for

// The weight of a filter at row r and column c of the spectra that are read; 0 outside of its box.
SC_INLINE real weight_at(const Source &source, const Filter &f, int r, int c) {
  int j = c - f.origin2;
  j += j < 0 ? source.M2 : 0;
#if LINE
  return j < f.width ? source.weights[f.first + j] : real(0);
#else
  int i = r - f.origin1;
  i += i < 0 ? source.M1 : 0;
  if (i >= f.height || j >= f.width) return 0;
  const Row row = source.rows[f.first + i];
  return j >= row.begin && j < row.end ? source.weights[row.weights + j] : real(0);
#endif
}

// grid (points, groups of TOGETHER signals): the Hermitian part of the sum over filters of what C gives, to the half spectra H, of which no
// filter touches more than `height` rows, half of them from the end, and `width` columns. Added to what stands there, or put there.
extern "C" __global__ void __launch_bounds__(THREADS) spectra_adjoint(
    const cplx *__restrict__ C, int M1, int M2, const Filter *__restrict__ bank, const Row *__restrict__ bank_rows,
    const real *__restrict__ weights, int filters, int height, int width, int signals, int added, cplx *__restrict__ H) {
  const Source source = {nullptr, M1, M2, bank, bank_rows, weights};
  const int t = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * TOGETHER, n = min(TOGETHER, signals - first);
  if (t >= height * width) return;
  int r = t / width;
  const int c = t % width;
  r = 2 * r <= height ? r : M1 - (height - r);
  const int mirrored_r = r ? M1 - r : 0, mirrored_c = c ? M2 - c : 0;
  const int at = LINE ? c % N : r % N1 * N2 + c % N2, mirrored_at = LINE ? mirrored_c % N : mirrored_r % N1 * N2 + mirrored_c % N2;
  const cplx *from = C + (long long)first * filters * N;
  cplx sum[TOGETHER];
#pragma unroll
  for (int q = 0; q < TOGETHER; q++) sum[q] = {0, 0};
#pragma unroll 2
  for (int f = 0; f < filters; f++) {
    const Filter filter = bank[f];
    const real w = weight_at(source, filter, r, c), v = weight_at(source, filter, mirrored_r, mirrored_c);
    const cplx *of = from + (long long)f * N;
    if (w != 0)
#pragma unroll
      for (int q = 0; q < TOGETHER; q++)
        if (q < n) {
          const cplx a = of[(long long)q * filters * N + at];
          sum[q].x += w * a.x;
          sum[q].y += w * a.y;
        }
    if (v != 0)
#pragma unroll
      for (int q = 0; q < TOGETHER; q++)
        if (q < n) {
          const cplx a = of[(long long)q * filters * N + mirrored_at];
          sum[q].x += v * a.x;
          sum[q].y -= v * a.y;
        }
  }
  const int half = M2 / 2 + 1, stored = LINE ? half : M1 * half;
#pragma unroll
  for (int q = 0; q < TOGETHER; q++)
    if (q < n) {
      cplx &to = H[(long long)(first + q) * stored + (LINE ? c : r * half + c)];
      const cplx before = added ? to : cplx{0, 0};
      to = {before.x + real(0.5) * sum[q].x, before.y + real(0.5) * sum[q].y};
    }
}

// grid (samples, images): slopes of the continued images summed for each sample, (images, H, W): those at rows from begins1[h] on, times N2,
// and columns from begins2[w] on.
extern "C" __global__ void __launch_bounds__(THREADS) extend_adjoint(const real *__restrict__ slopes, const int *__restrict__ begins1,
                                                                     const int *__restrict__ rows, const int *__restrict__ begins2,
                                                                     const int *__restrict__ columns, int H, int W,
                                                                     real *__restrict__ gradient) {
  const int t = blockIdx.x * THREADS + threadIdx.x;
  if (t >= H * W) return;
  const real *from = slopes + (long long)blockIdx.y * N;
  real sum = 0;
#pragma unroll 1
  for (int i = begins1[t / W]; i < begins1[t / W + 1]; i++)
#pragma unroll 1
    for (int j = begins2[t % W]; j < begins2[t % W + 1]; j++) sum += from[rows[i] + columns[j]];
  gradient[(long long)blockIdx.y * H * W + t] = sum;
}
