// Inverse discrete Fourier transforms of a few points in registers, one source for CPU lanes and for CUDA.
//
// A complex number is any type C with members x and y (a float, a double or a vector of either) and C{x, y}. `Dft<R>::go`
// replaces v[0..R-1] by y[k] = sum_m v[m] exp(+2 pi i k m / R), in natural order. R is 2, 3, 4, 5, 8, 9, 16 or an odd prime.
#pragma once

#ifndef SC_INLINE
#define SC_INLINE static inline __attribute__((always_inline))
#endif

template <class C> SC_INLINE C add(C a, C b) { return {a.x + b.x, a.y + b.y}; }
template <class C> SC_INLINE C sub(C a, C b) { return {a.x - b.x, a.y - b.y}; }
template <class C> SC_INLINE C times_i(C a) { return {-a.y, a.x}; }
// a times exp(i phi), given c = cos(phi) and s = sin(phi)
template <class C, class T> SC_INLINE C turned(C a, T c, T s) { return {a.x * c - a.y * s, a.x * s + a.y * c}; }

// Sine and cosine for compile-time roots of unity, |x| <= pi.
constexpr double constant_sin(double x) {
  double term = x, sum = x;
  for (int k = 1; k < 16; k++) { term *= -x * x / ((2 * k) * (2 * k + 1)); sum += term; }
  return sum;
}
constexpr double constant_cos(double x) {
  double term = 1, sum = 1;
  for (int k = 1; k < 16; k++) { term *= -x * x / ((2 * k - 1) * (2 * k)); sum += term; }
  return sum;
}
template <class T, int R> struct Roots {
  T c[R], s[R];
  constexpr Roots() : c(), s() {
    for (int k = 0; k < R; k++) {
      const double angle = 6.283185307179586476925286766559 * (2 * k > R ? k - R : k) / R;
      c[k] = T(constant_cos(angle));
      s[k] = T(constant_sin(angle));
    }
  }
};

// An odd prime: the sums and differences of v[m] and v[R-m] enter R/2 cosine and R/2 sine sums.
template <class T, int R> struct Dft {
  template <class C> SC_INLINE void go(C *v) {
    constexpr Roots<T, R> root{};
    constexpr int H = R / 2;
    C plus[H], minus[H], zero = v[0], total = v[0];
#pragma GCC unroll 16
    for (int m = 0; m < H; m++) {
      plus[m] = add(v[m + 1], v[R - 1 - m]);
      minus[m] = sub(v[m + 1], v[R - 1 - m]);
      total = add(total, plus[m]);
    }
    v[0] = total;
#pragma GCC unroll 16
    for (int k = 1; k <= H; k++) {
      C even = zero, odd = {minus[0].x * root.s[k], minus[0].y * root.s[k]};
#pragma GCC unroll 16
      for (int m = 0; m < H; m++) {
        const T c = root.c[k * (m + 1) % R];
        even.x += c * plus[m].x;
        even.y += c * plus[m].y;
        if (m > 0) {
          const T s = root.s[k * (m + 1) % R];
          odd.x += s * minus[m].x;
          odd.y += s * minus[m].y;
        }
      }
      odd = times_i(odd);
      v[k] = add(even, odd);
      v[R - k] = sub(even, odd);
    }
  }
};

template <class T> struct Dft<T, 2> {
  template <class C> SC_INLINE void go(C *v) {
    const C a = v[0];
    v[0] = add(a, v[1]);
    v[1] = sub(a, v[1]);
  }
};

template <class T> struct Dft<T, 4> {
  template <class C> SC_INLINE void go(C *v) {
    const C a = add(v[0], v[2]), b = sub(v[0], v[2]), c = add(v[1], v[3]), d = times_i(sub(v[1], v[3]));
    v[0] = add(a, c);
    v[2] = sub(a, c);
    v[1] = add(b, d);
    v[3] = sub(b, d);
  }
};

template <class T> struct Dft<T, 8> {
  template <class C> SC_INLINE void go(C *v) {
    const T h = T(0.70710678118654752440);
    C even[4] = {v[0], v[2], v[4], v[6]}, odd[4] = {v[1], v[3], v[5], v[7]};
    Dft<T, 4>::go(even);
    Dft<T, 4>::go(odd);
    const C w1 = {h * (odd[1].x - odd[1].y), h * (odd[1].x + odd[1].y)};
    const C w2 = times_i(odd[2]);
    const C w3 = {-h * (odd[3].x + odd[3].y), h * (odd[3].x - odd[3].y)};
    v[0] = add(even[0], odd[0]);
    v[4] = sub(even[0], odd[0]);
    v[1] = add(even[1], w1);
    v[5] = sub(even[1], w1);
    v[2] = add(even[2], w2);
    v[6] = sub(even[2], w2);
    v[3] = add(even[3], w3);
    v[7] = sub(even[3], w3);
  }
};

// R = A B: B transforms of A points, turns, A transforms of B points.
template <class T, int A, int B> struct Product {
  template <class C> SC_INLINE void go(C *v) {
    constexpr Roots<T, A * B> root{};
    C y[A * B];
#pragma GCC unroll 16
    for (int b = 0; b < B; b++) {
      C u[A];
#pragma GCC unroll 16
      for (int a = 0; a < A; a++) u[a] = v[a * B + b];
      Dft<T, A>::go(u);
#pragma GCC unroll 16
      for (int k = 0; k < A; k++) y[k * B + b] = k && b ? turned(u[k], root.c[k * b % (A * B)], root.s[k * b % (A * B)]) : u[k];
    }
#pragma GCC unroll 16
    for (int k = 0; k < A; k++) {
      Dft<T, B>::go(y + k * B);
#pragma GCC unroll 16
      for (int b = 0; b < B; b++) v[k + A * b] = y[k * B + b];
    }
  }
};
template <class T> struct Dft<T, 9> : Product<T, 3, 3> {};
template <class T> struct Dft<T, 16> : Product<T, 4, 4> {};
