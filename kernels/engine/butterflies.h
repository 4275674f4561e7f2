// Inverse discrete Fourier transforms of a few points in registers, one source for CPU lanes and for CUDA.
//
// A complex number is any type C with members x and y (a float, a double or a vector of either) and C{x, y}. `Dft<R>::go`
// reads its input v[m] as get(m) and writes y[k] = sum_m v[m] exp(+2 pi i k m / R) as put(k, y[k]), each once, the first as late
// and the second as early as it can, so that few registers are taken. All is read before anything is written. R is 2, 4, an odd
// prime or a product further down.
#pragma once

#ifndef SC_INLINE
#define SC_INLINE static inline __attribute__((always_inline))
#define SC_LAMBDA __attribute__((always_inline))
#define SC_UNROLL _Pragma("GCC unroll 24")
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
  template <class C, class Get, class Put> SC_INLINE void go(Get get, Put put) {
    constexpr Roots<T, R> root{};
    constexpr int H = R / 2;
    const C zero = get(0);
    C plus[H], minus[H], total = zero;
    SC_UNROLL
    for (int m = 0; m < H; m++) {
      const C a = get(m + 1), b = get(R - 1 - m);
      plus[m] = add(a, b);
      minus[m] = sub(a, b);
      total = add(total, plus[m]);
    }
    put(0, total);
    SC_UNROLL
    for (int k = 1; k <= H; k++) {
      C even = zero, odd = {minus[0].x * root.s[k], minus[0].y * root.s[k]};
      SC_UNROLL
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
      put(k, add(even, odd));
      put(R - k, sub(even, odd));
    }
  }
};

template <class T> struct Dft<T, 1> {
  template <class C, class Get, class Put> SC_INLINE void go(Get get, Put put) { put(0, get(0)); }
};

template <class T> struct Dft<T, 2> {
  template <class C, class Get, class Put> SC_INLINE void go(Get get, Put put) {
    const C a = get(0), b = get(1);
    put(0, add(a, b));
    put(1, sub(a, b));
  }
};

template <class T> struct Dft<T, 4> {
  template <class C, class Get, class Put> SC_INLINE void go(Get get, Put put) {
    const C v0 = get(0), v2 = get(2), a = add(v0, v2), b = sub(v0, v2);
    const C v1 = get(1), v3 = get(3), c = add(v1, v3), d = times_i(sub(v1, v3));
    put(0, add(a, c));
    put(2, sub(a, c));
    put(1, add(b, d));
    put(3, sub(b, d));
  }
};

// a times exp(2 pi i k / R)
template <class T, int R, class C> SC_INLINE C rooted(C a, int k) {
  constexpr Roots<T, R> root{};
  const T h = T(0.70710678118654752440);
  if (k == 0) return a;
  if (4 * k == R) return times_i(a);
  if (8 * k == R) return {h * (a.x - a.y), h * (a.x + a.y)};
  if (8 * k == 3 * R) return {-h * (a.x + a.y), h * (a.x - a.y)};
  return turned(a, root.c[k], root.s[k]);
}

// R = A B: B transforms of A points, turns, A transforms of B points.
template <class T, int A, int B> struct Product {
  template <class C, class Get, class Put> SC_INLINE void go(Get get, Put put) {
    C y[A * B];
    SC_UNROLL
    for (int b = 0; b < B; b++)
      Dft<T, A>::template go<C>([&](int a) SC_LAMBDA { return get(a * B + b); },
                                [&](int k, C u) SC_LAMBDA { y[k * B + b] = rooted<T, A * B>(u, k * b); });
    SC_UNROLL
    for (int k = 0; k < A; k++)
      Dft<T, B>::template go<C>([&](int b) SC_LAMBDA { return y[k * B + b]; },
                                [&](int b, C u) SC_LAMBDA { put(k + A * b, u); });
  }
};
template <class T> struct Dft<T, 8> : Product<T, 2, 4> {};
template <class T> struct Dft<T, 9> : Product<T, 3, 3> {};
template <class T> struct Dft<T, 16> : Product<T, 4, 4> {};

// A multiple of B, one more than one of A.
constexpr int unit(int A, int B) {
  int k = B;
  while (k % A != 1) k += B;
  return k;
}

// R = A B without a common factor: where v[(B a + A b) mod R] stands at (a, b), and y[k] at (k mod A, k mod B), there are no turns.
template <class T, int A, int B> struct Coprime {
  template <class C, class Get, class Put> SC_INLINE void go(Get get, Put put) {
    constexpr int R = A * B, of_a = unit(A, B), of_b = unit(B, A);
    C y[R];
    SC_UNROLL
    for (int b = 0; b < B; b++)
      Dft<T, A>::template go<C>([&](int a) SC_LAMBDA { return get((B * a + A * b) % R); },
                                [&](int k, C u) SC_LAMBDA { y[k * B + b] = u; });
    SC_UNROLL
    for (int k = 0; k < A; k++)
      Dft<T, B>::template go<C>([&](int b) SC_LAMBDA { return y[k * B + b]; },
                                [&](int b, C u) SC_LAMBDA { put((k * of_a + b * of_b) % R, u); });
  }
};
template <class T> struct Dft<T, 6> : Coprime<T, 2, 3> {};
template <class T> struct Dft<T, 10> : Coprime<T, 5, 2> {};
template <class T> struct Dft<T, 12> : Coprime<T, 3, 4> {};
template <class T> struct Dft<T, 24> : Coprime<T, 3, 8> {};
