// The moduli of a wavelet of spin +1 and of its mirror image, of spin -1, come from the same products: with y = a + i b and
// a kernel c + i d, the one sums (ac - bd) + i (ad + bc), the other (ac + bd) + i (bc - ad).
#include "bands.h"

#include <cmath>

#include "simd.h"

namespace {

template <class T> struct Across {
  static constexpr int V = kBytes / int(sizeof(T)), kVectors = 2, kLanes = kVectors * V;  // that are summed together
  typedef typename Lanes<T, V>::type R;

  // Lanes from .. from + count - 1.
  template <int parts>
  static void block(const BandBank<T> &bank, const T *Y, int64_t lanes, int64_t from, int64_t count, T scale, T *Z, Space &space) {
    R *y = space.take<R>(long(bank.bands) * parts * kVectors), *z = space.take<R>(long(bank.outputs) * kVectors);
    for (long b = 0; b < long(bank.bands) * parts; b++) copy(Y + b * lanes + from, count, reinterpret_cast<T *>(y + b * kVectors));
    std::memset(static_cast<void *>(z), 0, sizeof(R) * size_t(bank.outputs) * kVectors);
    for (const auto &row : bank.rows) {
      R ac[kVectors] = {}, ad[kVectors] = {}, bc[kVectors] = {}, bd[kVectors] = {};
      const T *kernel = bank.kernels.data() + row.kernel;
      const R *p = y + row.first * parts * kVectors;
      for (int b = row.first; b < row.last; b++, kernel += 2, p += parts * kVectors)
#pragma GCC unroll 2
        for (int w = 0; w < kVectors; w++) {
          ac[w] += p[w] * kernel[0];
          ad[w] += p[w] * kernel[1];
          if constexpr (parts == 1) continue;
          bc[w] += p[kVectors + w] * kernel[0];
          bd[w] += p[kVectors + w] * kernel[1];
        }
      R U[kVectors];
#pragma GCC unroll 2
      for (int w = 0; w < kVectors; w++) U[w] = modulus(ac[w] - bd[w], ad[w] + bc[w]);
      add(bank, U, row.outputs, row.conjugate, z);
      if (row.conjugate == row.end) continue;
#pragma GCC unroll 2
      for (int w = 0; w < kVectors; w++) U[w] = modulus(ac[w] + bd[w], bc[w] - ad[w]);
      add(bank, U, row.conjugate, row.end, z);
    }
    for (long o = 0; o < long(bank.outputs); o++) {
      for (int w = 0; w < kVectors; w++) z[o * kVectors + w] *= scale;
      std::memcpy(Z + o * lanes + from, z + o * kVectors, sizeof(T) * size_t(count));
    }
  }

  // Zeros stand behind the last lane.
  SC_INLINE void copy(const T *from, int64_t count, T *to) {
    if (count == kLanes) {
      std::memcpy(to, from, sizeof(T) * kLanes);
      return;
    }
    std::memcpy(to, from, sizeof(T) * size_t(count));
    std::memset(to + count, 0, sizeof(T) * size_t(kLanes - count));
  }

  SC_INLINE R modulus(R re, R im) { return root(R(re * re + im * im)); }

  SC_INLINE void add(const BandBank<T> &bank, const R *U, size_t first, size_t end, R *z) {
    for (size_t s = first; s < end; s++) {
      const auto &share = bank.shares[s];
#pragma GCC unroll 2
      for (int w = 0; w < kVectors; w++) z[share.output * kVectors + w] += U[w] * share.weight;
    }
  }
};

}  // namespace

template <class T>
BandBank<T>::BandBank(int n_rows, int n_bands, int n_outputs, const T *all, const T *smoothing, double drop)
    : bands(n_bands), outputs(n_outputs) {
  const auto entry = [&](int r, int b) { return all + 2 * (size_t(r) * size_t(bands) + size_t(b)); };
  const auto magnitude = [&](int r, int b) { return std::hypot(double(entry(r, b)[0]), double(entry(r, b)[1])); };
  double largest = 0, heaviest = 0;
  for (int r = 0; r < n_rows; r++)
    for (int b = 0; b < bands; b++) largest = std::max(largest, magnitude(r, b));
  for (size_t i = 0; i < size_t(outputs) * size_t(n_rows); i++) heaviest = std::max(heaviest, std::fabs(double(smoothing[i])));
  const auto conjugate = [&](int r, int q) {
    for (int b = 0; b < bands; b++) {
      const T *k = entry(r, b), *l = entry(q, b);
      if (std::hypot(double(k[0]) - l[0], double(k[1]) + l[1]) > drop * largest) return false;
    }
    return true;
  };
  const auto share = [&](int r) {
    for (int o = 0; o < outputs; o++)
      if (const T weight = smoothing[size_t(o) * size_t(n_rows) + size_t(r)]; std::fabs(double(weight)) > drop * heaviest)
        shares.push_back({o, weight});
    return shares.size();
  };
  std::vector<char> done(n_rows, 0);
  for (int r = 0; r < n_rows; r++) {
    if (done[r]) continue;
    Row row{0, bands, kernels.size(), shares.size(), 0, 0};
    while (row.first < row.last && magnitude(r, row.first) <= drop * largest) row.first++;
    while (row.first < row.last && magnitude(r, row.last - 1) <= drop * largest) row.last--;
    kernels.insert(kernels.end(), entry(r, row.first), entry(r, row.last));
    row.conjugate = row.end = share(r);
    for (int q = r + 1; q < n_rows && row.end == row.conjugate; q++)
      if (!done[q] && conjugate(r, q)) {
        done[q] = 1;
        row.end = share(q);
      }
    rows.push_back(row);
  }
}

template <class T> size_t BandBank<T>::workspace() const {
  typedef typename Across<T>::R R;
  constexpr int some = Across<T>::kVectors;
  const size_t bytes = Space::bytes<R>(2l * bands * some) + Space::bytes<R>(long(outputs) * some);
  return (bytes + kPage - 1) / kPage * kPage;
}

template <class T>
void BandBank<T>::modulus(const T *Y, int parts, int64_t lanes, T *Z, const Target<T> *target, Worker &worker) const {
  constexpr int64_t step = Across<T>::kLanes;
  each((lanes + step - 1) / step, worker, workspace(), [&](long job, Space &space) {
    const int64_t from = job * step, count = std::min(step, lanes - from);
    T *to = Z ? Z : target->where(0, lanes), scale = Z ? T(1) : target->scale_of(0);
    if (parts == 1) Across<T>::template block<1>(*this, Y, lanes, from, count, scale, to, space);
    else Across<T>::template block<2>(*this, Y, lanes, from, count, scale, to, space);
  });
}

template struct BandBank<float>;
template struct BandBank<double>;
