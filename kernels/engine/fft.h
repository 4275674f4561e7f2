// Transforms of lines whose elements are complex numbers of type C (vectors of lanes); see plan.h for their tables.
#pragma once
#include "butterflies.h"
#include "plan.h"

// One pass over `lines` lines: element e of line l is z[l * line + e * step].
template <class T, class C, int R> void pass(C *z, long line, long step, int lines, int n, int block, const T *turns) {
  const int blocks = n / (block * R);
  const long leap = block * step;
  for (int j = 0; j < block; j++) {
    for (int g = 0; g < blocks; g++) {
      C *p = z + (long(g) * block * R + j) * step;
      for (int l = 0; l < lines; l++, p += line) {
        C v[R];
        v[0] = p[0];
#pragma GCC unroll 16
        for (int m = 1; m < R; m++) v[m] = block > 1 ? turned(p[m * leap], turns[2 * m - 2], turns[2 * m - 1]) : p[m * leap];
        Dft<T, R>::go(v);
#pragma GCC unroll 16
        for (int m = 0; m < R; m++) p[m * leap] = v[m];
      }
    }
    turns += 2 * (R - 1);
  }
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
      case 7: pass<T, C, 7>(z, line, step, lines, fft.n, block, turns); break;
      case 8: pass<T, C, 8>(z, line, step, lines, fft.n, block, turns); break;
      case 9: pass<T, C, 9>(z, line, step, lines, fft.n, block, turns); break;
      case 11: pass<T, C, 11>(z, line, step, lines, fft.n, block, turns); break;
      case 13: pass<T, C, 13>(z, line, step, lines, fft.n, block, turns); break;
      case 16: pass<T, C, 16>(z, line, step, lines, fft.n, block, turns); break;
    }
    block *= fft.radix[i];
  }
}
