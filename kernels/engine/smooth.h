// A block of W columns: its moduli u (n1, W), their averages, and rows of such averages; see plan.h for the bands.
#pragma once
#include <algorithm>
#include <type_traits>

#include "fft.h"
#include "plan.h"
#include "simd.h"

namespace {

// Visit the blocks of some columns, each with its width as a type, and its first column.
template <class Visit> SC_INLINE void each_block(int columns, int width, const Visit &visit) {
  for (int c = 0, w; c < columns; c += w) {
    const int most = std::min(width, columns - c);
    if (most >= (w = 8)) visit(std::integral_constant<int, 8>(), c);
    else if (most >= (w = 6)) visit(std::integral_constant<int, 6>(), c);
    else if (most >= (w = 4)) visit(std::integral_constant<int, 4>(), c);
    else if (most >= (w = 3)) visit(std::integral_constant<int, 3>(), c);
    else if (most >= (w = 2)) visit(std::integral_constant<int, 2>(), c);
    else visit(std::integral_constant<int, 1>(), c), w = 1;
  }
}

// Transform W neighbouring columns in place, whose rows lie `step` apart, and take the moduli.
template <int W, class T, class R> SC_INLINE void column_moduli(const Fft<T> &fft, Complex<R> *z, long step, R *u) {
  inverse(fft, z, 1, step, W);
  for (int r = 0; r < fft.n; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) {
      const Complex<R> &y = z[r * step + w];
      u[r * W + w] = root(R(y.x * y.x + y.y * y.y));
    }
}

// The sum of u[w] taps[w], a tap for each vector or for each of its points.
template <int W, int points, class T, class R> SC_INLINE R weighted(const R *u, const T *taps) {
  R sum{};
#pragma GCC unroll 8
  for (int w = 0; w < W; w++) {
    if constexpr (points > 1) {
      R tap;
      std::memcpy(&tap, taps + w * points, sizeof tap);
      sum += u[w] * tap;
    } else {
      sum += u[w] * taps[w];
    }
  }
  return sum;
}

// smooth (outputs, stride): the columns c .. c + W - 1 of it are the matrix times u. Narrow blocks are summed in several
// parts, because a sum waits for itself.
template <int W, class T, class R> void smooth_columns(const Matrix<T> &matrix, const R *u, long c, long stride, R *smooth) {
  constexpr int parts = W >= 6 ? 1 : W >= 3 ? 2 : 4;
  for (const Band &band : matrix.bands) {
    const T *taps = matrix.taps.data() + band.taps;
    const R *p = u + long(band.start) * W;
    R *to = smooth + band.out * stride + c, sum[parts][W];
    for (int w = 0; w < W; w++) {
      sum[0][w] = band.more ? to[w] : R{};
      for (int q = 1; q < parts; q++) sum[q][w] = R{};
    }
    int i = 0;
    for (; i + parts <= band.length; i += parts)
#pragma GCC unroll 4
      for (int q = 0; q < parts; q++, p += W)
#pragma GCC unroll 8
        for (int w = 0; w < W; w++) sum[q][w] += p[w] * taps[i + q];
    for (; i < band.length; i++, p += W)
      for (int w = 0; w < W; w++) sum[0][w] += p[w] * taps[i];
    for (int w = 0; w < W; w++) {
      for (int q = 1; q < parts; q++) sum[0][w] += sum[q][w];
      to[w] = sum[0][w];
    }
  }
}

// The same along a line, whose rows follow each other in time: smooth (outputs) grows. A vector holds `points` of them.
template <int W, int points, class T, class R> void smooth_line(const Lowpass<T> &lowpass, const R *u, long block, R *smooth) {
  const Matrix<T> &matrix = lowpass.axes[0];
  const Grid<T> &grid = *lowpass.grid;
  const long blocks = grid.blocks();
  const uint32_t *live = lowpass.live.data() + block;
  for (int r = 0; r < grid.n1; r++, u += W, live += blocks)
    for (uint32_t i = live[0]; i < live[1]; i++) {
      const Band &band = matrix.bands[lowpass.order[i]];
      const T *taps = matrix.taps.data() + band.taps + (long(r) * grid.n2 + block * grid.block() - band.start);
      smooth[band.out] += weighted<W, points>(u, taps);
    }
}

// Moments: weighted sums over every `vectors` vectors, at smooth (points / block, moments). A block of W vectors holds several.
template <int W, int B, class T, class R> void sum_signals(const Lowpass<T> &lowpass, const R *u, long block, R *smooth) {
  const Grid<T> &grid = *lowpass.grid;
  const int moments = lowpass.moments;
  for (int r = 0; r < grid.n1; r++) {
    R *to = smooth + (r * grid.blocks() + block) * (W / B) * moments;
    for (int part = 0; part < W / B; part++, u += B)
      for (int q = 0; q < moments; q++) *to++ = weighted<B, 1>(u, lowpass.basis.data() + q * B);
  }
}

// The same where lanes are points: V sums at a time are taken across the lanes.
template <int W, int B, int moments, class T, class R> void sum_points(const Lowpass<T> &lowpass, const R *u, long block, T *smooth) {
  constexpr int V = sizeof(R) / sizeof(T), many = V / moments;
  const Grid<T> &grid = *lowpass.grid;
  T *to[many > 0 ? many : 1];
  R tile[V];
  for (int i = 0; i < V; i++) tile[i] = R{};
  int count = 0;
  const auto flush = [&] {
    const R sums = totals<T, V>(tile);
    for (int i = 0; i < count; i++) std::memcpy(to[i], reinterpret_cast<const T *>(&sums) + i * moments, sizeof(T) * moments);
    count = 0;
  };
  for (int r = 0; r < grid.n1; r++)
    for (int part = 0; part < W / B; part++, u += B) {
      to[count] = smooth + ((r * grid.blocks() + block) * (W / B) + part) * moments;
#pragma GCC unroll 8
      for (int q = 0; q < moments; q++) tile[count * moments + q] = weighted<B, V>(u, lowpass.basis.data() + q * B * V);
      if (++count == many) flush();
    }
  if (count) flush();
}

// K rows of `from` (K, pitch) times the matrix: `to` (K, outputs). Few rows are summed in several parts.
template <int K, class T, class R> SC_INLINE void smooth_rows(const Matrix<T> &matrix, const R *from, long pitch, R *to) {
  constexpr int parts = K >= 4 ? 2 : 4;
  for (const Band &band : matrix.bands) {
    const T *taps = matrix.taps.data() + band.taps;
    const R *p = from + band.start;
    R sum[parts][K];
    for (int k = 0; k < K; k++) {
      sum[0][k] = band.more ? to[long(k) * matrix.outputs + band.out] : R{};
      for (int q = 1; q < parts; q++) sum[q][k] = R{};
    }
    int i = 0;
    for (; i + parts <= band.length; i += parts, p += parts)
#pragma GCC unroll 4
      for (int q = 0; q < parts; q++)
#pragma GCC unroll 8
        for (int k = 0; k < K; k++) sum[q][k] += p[k * pitch + q] * taps[i + q];
    for (; i < band.length; i++, p++)
      for (int k = 0; k < K; k++) sum[0][k] += p[k * pitch] * taps[i];
    for (int k = 0; k < K; k++) {
      for (int q = 1; q < parts; q++) sum[0][k] += sum[q][k];
      to[long(k) * matrix.outputs + band.out] = sum[0][k];
    }
  }
}

}  // namespace
