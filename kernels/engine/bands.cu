// Moduli across bands: smoothed |Y * psi| of filters across the bands of a joint transform, for every lane: a time of a signal.
//
// A block takes 32 lanes, one for each thread of a warp, and the outputs of a group; what leads to them, rows of convolutions, stays in
// shared memory. Lane l lies at (l / inner) outer + l % inner.

#include "transforms.h"

constexpr int LANES = 32, WARPS = THREADS / LANES;

struct alignas(16) Group { int first_output, end_output, first_row, end_row; };
struct alignas(16) Span { int begin, end, first, unused; };  // of bands (of rows), and where the first of their weights stands

SC_INLINE cplx as_complex(cplx a) { return a; }
SC_INLINE cplx as_complex(real a) { return {a, 0}; }

template <class T>
SC_INLINE void across(const T *Y, int lanes, int inner, long long outer, long long band, int bands, const Group *groups, const Span *rows,
                      const cplx *kernels, const Span *outputs, const real *smoothing, real *Z, long long outer_out, long long output) {
  DYNAMIC_SHARED(cplx, y);                                      // (bands, LANES)
  real *moduli = reinterpret_cast<real *>(y + bands * LANES);  // (rows of the group, LANES)
  const Group group = groups[blockIdx.y];
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, l = blockIdx.x * LANES + lane;
  const int at = min(l, lanes - 1);
  const T *from = Y + at / inner * outer + at % inner;
  for (int b = warp; b < bands; b += WARPS) y[b * LANES + lane] = as_complex(from[b * band]);
  __syncthreads();
  for (int r = group.first_row + warp; r < group.end_row; r += WARPS) {
    const Span row = rows[r];
    cplx sum = {0, 0};
#pragma unroll 4
    for (int b = row.begin; b < row.end; b++) {
      const cplx w = kernels[row.first + b - row.begin], a = y[b * LANES + lane];
      sum.x += w.x * a.x - w.y * a.y;
      sum.y += w.x * a.y + w.y * a.x;
    }
    moduli[(r - group.first_row) * LANES + lane] = square_root(sum.x * sum.x + sum.y * sum.y);
  }
  __syncthreads();
  real *to = Z + at / inner * outer_out + at % inner;
  for (int o = group.first_output + warp; o < group.end_output; o += WARPS) {
    const Span span = outputs[o];
    real sum = 0;
#pragma unroll 4
    for (int r = span.begin; r < span.end; r++) sum += smoothing[span.first + r - span.begin] * moduli[(r - group.first_row) * LANES + lane];
    if (l < lanes) to[o * output] = sum;
  }
}

// grid (blocks of LANES lanes, groups)
#define ACROSS(name, T)                                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS) name(                                                                       \
      const T *__restrict__ Y, int lanes, int inner, long long outer, long long band, int bands, const Group *__restrict__ groups,  \
      const Span *__restrict__ rows, const cplx *__restrict__ kernels, const Span *__restrict__ outputs,                            \
      const real *__restrict__ smoothing, real *__restrict__ Z, long long outer_out, long long output) {                            \
    across<T>(Y, lanes, inner, outer, band, bands, groups, rows, kernels, outputs, smoothing, Z, outer_out, output);                \
  }
ACROSS(across_complex, cplx)
ACROSS(across_real, real)

// grid (signals): a row of n numbers of each.
extern "C" __global__ void __launch_bounds__(THREADS) copy_row(const real *__restrict__ from, long long outer, int n, real *__restrict__ to,
                                                               long long outer_out) {
  for (int t = threadIdx.x; t < n; t += THREADS) to[blockIdx.x * outer_out + t] = from[blockIdx.x * outer + t];
}
