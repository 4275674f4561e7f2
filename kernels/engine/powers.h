// Sums of powers of the points of a field, in double precision but for a few vectors at a time.
#pragma once
#include <algorithm>
#include <vector>

#include "simd.h"

namespace {

constexpr int kChunk = 32;  // vectors that are summed in their own precision

template <class T, int V> class Sums {
  typedef typename Lanes<T, V>::type R;

 public:
  explicit Sums(const std::vector<double> &powers) : powers_(powers), totals_(powers.size() * V) {}
  // Add powers of |x|, with the sign that x^q has.
  void add_values(const R *x, long count) {
    for (long i = 0; i < count; i += kChunk) add<true>(x + i, int(std::min<long>(kChunk, count - i)));
  }
  // Take the root of U^2, and add powers of U.
  void add_roots(R *u, long count) {
    for (long i = 0; i < count; i += kChunk) {
      const int n = int(std::min<long>(kChunk, count - i));
      for (int k = 0; k < n; k++) u[i + k] = root(u[i + k]);
      add<false>(u + i, n);
    }
  }
  void write(double *out) const {
    for (size_t i = 0; i < powers_.size(); i++) {
      out[i] = 0;
      for (int lane = 0; lane < V; lane++) out[i] += totals_[i * V + lane];
    }
  }

 private:
  const std::vector<double> &powers_;
  std::vector<double> totals_;
  template <bool is_signed> void add(const R *u, int n) {
    for (size_t i = 0; i < powers_.size(); i++) {
      const double q = powers_[i];
      const bool odd = is_signed && std::fmod(q, 2) == 1;
      const R sum = q == 0.5   ? some<is_signed>(u, n, odd, [](R a) { return root(a); })
                    : q == 1   ? some<is_signed>(u, n, odd, [](R a) { return a; })
                    : q == 1.5 ? some<is_signed>(u, n, odd, [](R a) { return a * root(a); })
                    : q == 2   ? some<is_signed>(u, n, odd, [](R a) { return a * a; })
                    : q == 3   ? some<is_signed>(u, n, odd, [](R a) { return a * a * a; })
                               : some<is_signed>(u, n, odd, [q](R a) {
                                   for (int lane = 0; lane < V; lane++) a[lane] = std::pow(a[lane], T(q));
                                   return a;
                                 });
      for (int lane = 0; lane < V; lane++) totals_[i * V + lane] += double(sum[lane]);
    }
  }
  template <bool is_signed, class Power> SC_INLINE R some(const R *u, int n, bool odd, Power power) {
    R sum{};
    for (int i = 0; i < n; i++) {
      const R magnitude = is_signed ? (u[i] < 0 ? -u[i] : u[i]) : u[i], term = power(magnitude);
      sum += is_signed && odd ? (u[i] < 0 ? -term : term) : term;
    }
    return sum;
  }
};

}  // namespace
