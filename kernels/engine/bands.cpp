// Complex numbers stay as they come, pairs of neighbouring lanes: with y such pairs, (a + i b) y = a y + i (b y), and the
// multiplication by i is put off until all bands are summed.
#include "bands.h"

#include <cmath>

#include "simd.h"

namespace {

constexpr int kVectors = 4;  // of pairs, that are summed together

template <class T> struct Across {
  static constexpr int V = kBytes / int(sizeof(T)), kLanes = kVectors * V / 2;
  typedef typename Lanes<T, V>::type R;
  typedef typename Mask<T, V>::I I;

  static I every_second(int first) {
    I mask;
    for (int i = 0; i < V; i++) mask[i] = 2 * i + first;
    return mask;
  }

  // Lanes from .. from + count - 1.
  static void block(const BandBank<T> &bank, const T *Y, int64_t lanes, int64_t from, int64_t count, T *Z, Space &space) {
    R *y = space.take<R>(long(bank.bands) * kVectors), *z = space.take<R>(long(bank.outputs) * (kVectors / 2));
    for (int b = 0; b < bank.bands; b++) {
      T *to = reinterpret_cast<T *>(y + b * kVectors);
      std::memcpy(to, Y + 2 * (b * lanes + from), sizeof(T) * 2 * size_t(count));
      std::memset(to + 2 * count, 0, sizeof(T) * 2 * size_t(kLanes - count));
    }
    std::memset(static_cast<void *>(z), 0, sizeof(R) * size_t(bank.outputs) * (kVectors / 2));
    for (const auto &row : bank.rows) {
      R straight[kVectors] = {}, turned[kVectors] = {};
      const T *kernel = bank.kernels.data() + row.kernel;
      const R *p = y + row.first * kVectors;
      for (int b = row.first; b < row.last; b++, kernel += 2)
#pragma GCC unroll 4
        for (int w = 0; w < kVectors; w++, p++) {
          straight[w] += *p * kernel[0];
          turned[w] += *p * kernel[1];
        }
      R U[kVectors / 2];
#pragma GCC unroll 4
      for (int w = 0; w < kVectors; w += 2) {
        const R re = __builtin_shuffle(straight[w], straight[w + 1], every_second(0)) -
                     __builtin_shuffle(turned[w], turned[w + 1], every_second(1));
        const R im = __builtin_shuffle(straight[w], straight[w + 1], every_second(1)) +
                     __builtin_shuffle(turned[w], turned[w + 1], every_second(0));
        U[w / 2] = root(R(re * re + im * im));
      }
      for (size_t s = row.outputs; s < row.end; s++) {
        const auto &share = bank.shares[s];
        for (int w = 0; w < kVectors / 2; w++) z[share.output * (kVectors / 2) + w] += U[w] * share.weight;
      }
    }
    for (int o = 0; o < bank.outputs; o++)
      std::memcpy(Z + o * lanes + from, z + o * (kVectors / 2), sizeof(T) * size_t(count));
  }
};

}  // namespace

template <class T>
BandBank<T>::BandBank(int n_rows, int n_bands, int n_outputs, const T *all, const T *smoothing, double drop)
    : bands(n_bands), outputs(n_outputs) {
  const auto magnitude = [&](int r, int b) {
    const T *k = all + 2 * (size_t(r) * size_t(bands) + size_t(b));
    return std::hypot(double(k[0]), double(k[1]));
  };
  double largest = 0;
  for (int r = 0; r < n_rows; r++)
    for (int b = 0; b < bands; b++) largest = std::max(largest, magnitude(r, b));
  for (int r = 0; r < n_rows; r++) {
    Row row{0, bands, kernels.size(), shares.size(), 0};
    while (row.first < row.last && magnitude(r, row.first) <= drop * largest) row.first++;
    while (row.first < row.last && magnitude(r, row.last - 1) <= drop * largest) row.last--;
    const T *k = all + 2 * size_t(r) * size_t(bands);
    kernels.insert(kernels.end(), k + 2 * row.first, k + 2 * row.last);
    for (int o = 0; o < outputs; o++)
      if (const T weight = smoothing[size_t(o) * size_t(n_rows) + size_t(r)]; weight != T(0)) shares.push_back({o, weight});
    row.end = shares.size();
    rows.push_back(row);
  }
}

template <class T> size_t BandBank<T>::workspace() const {
  typedef typename Across<T>::R R;
  const size_t bytes = Space::bytes<R>(long(bands) * kVectors) + Space::bytes<R>(long(outputs) * (kVectors / 2));
  return (bytes + kPage - 1) / kPage * kPage;
}

template <class T> void BandBank<T>::modulus(const T *Y, int64_t lanes, T *Z, Worker &worker) const {
  constexpr int64_t step = Across<T>::kLanes;
  each((lanes + step - 1) / step, worker, workspace(), [&](long job, Space &space) {
    Across<T>::block(*this, Y, lanes, job * step, std::min(step, lanes - job * step), Z, space);
  });
}

template struct BandBank<float>;
template struct BandBank<double>;
