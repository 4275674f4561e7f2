// What the kernels of the CUDA engine share: numbers, shared memory, and transforms in place, by passes of butterflies, a thread each.
//
// `reversed` leaves element t of a line at Reversed<1, Rs...>::of(t), where the digits of t, in the radices Rs of the passes, stand in
// reverse; `natural` undoes that. Both have the sign + in the exponent: to transform forth, spectra are carried conjugate.
#pragma once

#define SC_INLINE static __device__ __forceinline__
#define SC_INLINE_MEMBER __device__ __forceinline__
#define SC_LAMBDA
#define SC_UNROLL _Pragma("unroll")
#include "butterflies.h"

typedef REAL real;
struct alignas(2 * sizeof(real)) cplx { real x, y; };

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(16) unsigned char shared_memory_[]; \
  T *name = reinterpret_cast<T *>(shared_memory_)
#endif

#ifdef THREADS
#define SC_THREADS THREADS
#else
#define SC_THREADS blockDim.x
#endif

SC_INLINE float square_root(float a) { return sqrtf(a); }
SC_INLINE double square_root(double a) { return sqrt(a); }

// exp(2 pi i k / n), for constant memory: that is fast where the threads of a warp ask for the same, and neighbours work on neighbouring
// lines, at the same element.
template <int n> struct Turns {
  cplx w[n];
  constexpr Turns() : w() {
    constexpr Roots<real, n> root{};
    for (int k = 0; k < n; k++) w[k] = {root.c[k], root.s[k]};
  }
};

template <int... Rs> struct Points { static constexpr int value = 1; };
template <int R, int... Rs> struct Points<R, Rs...> { static constexpr int value = R * Points<Rs...>::value; };

template <int L, int... Rs> struct Reversed { static constexpr int of(int) { return 0; } };
template <int L, int R, int... Rs> struct Reversed<L, R, Rs...> {
  static constexpr int of(int t) {
    constexpr int rest = Points<Rs...>::value;
    return t / rest * L + Reversed<L * R, Rs...>::of(t % rest);
  }
};
template <int n, int... Rs> struct Ordered { static constexpr int of(int) { return 0; } };  // undoes Reversed<1, Rs...>, for n points
template <int n, int R, int... Rs> struct Ordered<n, R, Rs...> {
  static constexpr int of(int place) { return place % R * (n / R) + Ordered<n / R, Rs...>::of(place / R); }
};

// One pass over lines of n points: in(line, element), out(line, element, value).
template <int n, int L, int R, bool turn_before, class In, class Out>
SC_INLINE void pass(int lines, const cplx *turns, In in, Out out) {
  constexpr int count = n / R;
#pragma unroll 1
  for (unsigned t = threadIdx.x; t < unsigned(lines * count); t += SC_THREADS) {
    const int line = t % unsigned(lines), s = t / unsigned(lines), j = s % L, first = s / L * (L * R) + j, step = j * (count / L);
    Dft<real, R>::template go<cplx>(
        [&](int m) {
          const cplx a = in(line, first + m * L);
          if (!turn_before || L == 1 || m == 0) return a;
          const cplx w = turns[m * step];
          return turned(a, w.x, w.y);
        },
        [&](int m, cplx a) {
          if (!turn_before && L > 1 && m > 0) {
            const cplx w = turns[m * step];
            a = turned(a, w.x, w.y);
          }
          out(line, first + m * L, a);
        });
  }
  __syncthreads();
}

// Passes of the radices Rs where those before have made transforms of L points. The first that is done reads by `in`, the last that is
// done writes by `out`, the others by `get` and `put`.
template <int n, int L, int... Rs> struct Chain {
  template <class In, class Get, class Put, class Out> SC_INLINE void natural(int, const cplx *, In, Get, Put, Out) {}
  template <class In, class Get, class Put, class Out> SC_INLINE void reversed(int, const cplx *, In, Get, Put, Out) {}
};
template <int n, int L, int R, int... Rs> struct Chain<n, L, R, Rs...> {
  template <class In, class Get, class Put, class Out>
  SC_INLINE void natural(int lines, const cplx *turns, In in, Get get, Put put, Out out) {
    if constexpr (sizeof...(Rs) == 0) {
      pass<n, L, R, true>(lines, turns, in, out);
    } else {
      pass<n, L, R, true>(lines, turns, in, put);
      Chain<n, L * R, Rs...>::natural(lines, turns, get, get, put, out);
    }
  }
  template <class In, class Get, class Put, class Out>
  SC_INLINE void reversed(int lines, const cplx *turns, In in, Get get, Put put, Out out) {
    if constexpr (sizeof...(Rs) == 0) {
      pass<n, L, R, false>(lines, turns, in, out);
    } else {
      Chain<n, L * R, Rs...>::reversed(lines, turns, in, get, put, put);
      pass<n, L, R, false>(lines, turns, get, out);
    }
  }
};
