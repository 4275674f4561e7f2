// What all loops share: vectors of lanes, square roots.
#pragma once
#include <cstdint>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#if defined(__AVX512VL__)
#include <immintrin.h>
#endif

#include "butterflies.h"
#include "lanes.h"

namespace {

#if defined(__AVX512VL__)
constexpr int kBytes = 64;  // of a vector
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T, int V> struct Lanes {
  typedef T type __attribute__((vector_size(sizeof(T) * V), may_alias));
};
// An integer as wide as a lane, for the masks of shuffles.
template <size_t bytes> struct Index;
template <> struct Index<4> { typedef int32_t type; };
template <> struct Index<8> { typedef int64_t type; };

template <class R> struct Complex { R x, y; };

// --- Lanes: reversed; tiles of V vectors transposed, or each summed to one lane, by log2 V rounds of interleaving ---

template <class T, int V> struct Mask {
  typedef typename Lanes<typename Index<sizeof(T)>::type, V>::type I;
  SC_INLINE I low() {  // a0 b0 a1 b1 …
    I mask;
    for (int i = 0; i < V; i++) mask[i] = i / 2 + (i % 2 ? V : 0);
    return mask;
  }
  SC_INLINE I high() { return low() + V / 2; }
  SC_INLINE I forwards() {
    I mask;
    for (int i = 0; i < V; i++) mask[i] = i;
    return mask;
  }
  SC_INLINE I backwards() {
    I mask;
    for (int i = 0; i < V; i++) mask[i] = V - 1 - i;
    return mask;
  }
};

template <class T, int V, class R> SC_INLINE R reversed(R a) { return __builtin_shuffle(a, Mask<T, V>::backwards()); }

template <class T, int V, class R> SC_INLINE void transpose(R *tile) {
#pragma GCC unroll 4
  for (int round = 1; round < V; round *= 2) {
    R next[V];
#pragma GCC unroll 16
    for (int i = 0; i < V / 2; i++) {
      next[2 * i] = __builtin_shuffle(tile[i], tile[i + V / 2], Mask<T, V>::low());
      next[2 * i + 1] = __builtin_shuffle(tile[i], tile[i + V / 2], Mask<T, V>::high());
    }
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) tile[i] = next[i];
  }
}

// Lane i of the result is the sum of tile[i]; each round adds halves of two vectors whose sums go to neighbouring lanes.
template <class T, int V, class R> SC_INLINE R totals(const R *tile) {
  R part[V];
  for (int i = 0; i < V; i++) part[i] = tile[i];
#pragma GCC unroll 4
  for (int n = V / 2; n; n /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < n; i++)
      part[i] = __builtin_shuffle(part[i], part[i + n], Mask<T, V>::low()) + __builtin_shuffle(part[i], part[i + n], Mask<T, V>::high());
  return part[0];
}

// --- Square roots. AVX-512 has an estimate of 14 bits; one Newton step makes it exact to a rounding, several times faster
// than the instruction. Signals are scaled to a maximum of 1, so that what lies below the floor is nothing. ---

template <class R> SC_INLINE R root(R s) {
  for (size_t i = 0; i < sizeof(R) / sizeof(s[0]); i++) s[i] = std::sqrt(s[i]);
  return s;
}
#if defined(__AVX512VL__)
template <class R> SC_INLINE R newton(R s, R estimate) {
  const R g = s * estimate, e = 0.5f - (0.5f * g) * estimate;
  return g + g * e;
}
SC_INLINE Lanes<float, 16>::type root(Lanes<float, 16>::type s) {
  return newton<Lanes<float, 16>::type>(s, (Lanes<float, 16>::type)_mm512_rsqrt14_ps(_mm512_max_ps((__m512)s, _mm512_set1_ps(1e-37f))));
}
SC_INLINE Lanes<float, 8>::type root(Lanes<float, 8>::type s) {
  return newton<Lanes<float, 8>::type>(s, (Lanes<float, 8>::type)_mm256_rsqrt14_ps(_mm256_max_ps((__m256)s, _mm256_set1_ps(1e-37f))));
}
#endif

}  // namespace
