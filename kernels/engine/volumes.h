// Solid harmonic scattering of volumes, as volumes.cpp runs it.
//
// A volume is (d, h, w) points along z, y, x; of its spectrum the half kz = 0 .. d/2 is kept, as vectors of V neighbouring ky:
// X (depth, ceil(h / V), w, 2, V), X[k] = mean of x exp(-2 pi i k u / n), where no wavelet that is to come is live.
#pragma once
#include "plan.h"

// The real solid harmonics of a degree l and a width, their polar axis along x: for m = 0 .. l and the real and imaginary
// part of (w_y + i w_z)^m, i^l planar(ky, kz) sum_i rho2(ky, kz)^i axial_i(kx). A frequency at Nyquist counts as -pi.
template <class T> struct Harmonics {
  int degree, depth;             // depth: how many kz >= 0 are reached
  bool nyquist[3];               // of z, y, x: a frequency that is reached and has no opposite
  std::vector<T> axial;          // (m, i <= (l - m) / 2, w)
  std::vector<T> planar;         // (2 l + 1, depth, h): m = 0, then two of each m; zero where not reached
  std::vector<T> rho2;           // (depth, h rounded up to V)
  std::vector<char> live;        // (depth, ceil(h / V)): something is reached
  int terms(int m) const { return (degree - m) / 2 + 1; }
};

// A path of scales, in the order in which a tree of them is walked: its children, if any, follow until `end`.
struct Node {
  int32_t scale, end, row;       // row: of out, for degree 0
};

template <class T> struct Volumes {
  int d, h, w, degrees;
  Fft<T> z, y, x;
  std::vector<double> powers;
  std::vector<Node> nodes;
  std::vector<Harmonics<T>> harmonics;  // (scale, degree)
  Volumes(int d, int h, int w, int degrees, const double *powers, int n_powers, const Node *nodes, int n_nodes);
  void add(int degree, int depth, int nyquist, const T *axial, const T *planar, const T *rho2);
  // Bytes that `scatter` needs for so many volumes at once.
  int64_t bytes(int64_t count, int threads) const;
  // Sums over all voxels of U^q, (count, paths), of volumes x times scale; memory starts on a cache line.
  void scatter(const T *x, const T *scale, int64_t count, double *out, int64_t paths, char *memory, int threads) const;
};
