// Transforms of lines whose elements are complex numbers of type C (vectors of lanes); see plan.h for their tables.
#pragma once
#include "butterflies.h"
#include "plan.h"

// `count` butterflies of R points that stand `leap` apart, along each of the lines.
template <class T, class C, int R, bool turning>
SC_INLINE void butterflies(C *z, long line, int lines, long leap, int count, const T *turns) {
  for (int g = 0; g < count; g++, z += leap * R) {
    C *p = z;
    for (int l = 0; l < lines; l++, p += line)
      Dft<T, R>::template go<C>(
          [&](int m) SC_LAMBDA {
            const C a = p[m * leap];
            return turning && m > 0 ? turned(a, turns[2 * m - 2], turns[2 * m - 1]) : a;
          },
          [&](int m, C a) SC_LAMBDA { p[m * leap] = a; });
  }
}

// One pass over `lines` lines: element e of line l is z[l * line + e * step].
template <class T, class C, int R> void pass(C *z, long line, long step, int lines, int n, int block, const T *turns) {
  const int count = n / (block * R);
  const long leap = block * step;
  butterflies<T, C, R, false>(z, line, lines, leap, count, turns);
  for (int j = 1; j < block; j++, turns += 2 * (R - 1))
    butterflies<T, C, R, true>(z + j * step, line, lines, leap, count, turns);
}

// y[u] = sum_k x[k] exp(+2 pi i k u / n), in place, along each of the lines; x[k] stands at element fft.place[k].
template <class T, class C> void inverse(const Fft<T> &fft, C *z, long line, long step, int lines) {
  int block = 1;
  for (size_t i = 0; i < fft.radix.size(); i++) {
    const T *turns = fft.turns.data() + fft.first[i];
    switch (fft.radix[i]) {
      case 2: pass<T, C, 2>(z, line, step, lines, fft.n, block, turns); break;
      case 3: pass<T, C, 3>(z, line, step, lines, fft.n, block, turns); break;
      case 4: pass<T, C, 4>(z, line, step, lines, fft.n, block, turns); break;
      case 5: pass<T, C, 5>(z, line, step, lines, fft.n, block, turns); break;
      case 6: pass<T, C, 6>(z, line, step, lines, fft.n, block, turns); break;
      case 7: pass<T, C, 7>(z, line, step, lines, fft.n, block, turns); break;
      case 8: pass<T, C, 8>(z, line, step, lines, fft.n, block, turns); break;
      case 9: pass<T, C, 9>(z, line, step, lines, fft.n, block, turns); break;
      case 10: pass<T, C, 10>(z, line, step, lines, fft.n, block, turns); break;
      case 11: pass<T, C, 11>(z, line, step, lines, fft.n, block, turns); break;
      case 12: pass<T, C, 12>(z, line, step, lines, fft.n, block, turns); break;
      case 13: pass<T, C, 13>(z, line, step, lines, fft.n, block, turns); break;
      case 16: pass<T, C, 16>(z, line, step, lines, fft.n, block, turns); break;
      case 24: pass<T, C, 24>(z, line, step, lines, fft.n, block, turns); break;
    }
    block *= fft.radix[i];
  }
}
