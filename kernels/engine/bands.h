// Filters across bands, the moduli of what they give and averages of these, as bands.cpp runs them.
#pragma once
#include "lanes.h"

// U[r] = |sum_b kernels[r, b] Y[b]|, Z[o] = sum_r smoothing[o, r] U[r], at every one of some lanes: points of time of signals.
template <class T> struct BandBank {
  struct Row {
    int first, last;             // bands that are met
    size_t kernel;               // of the first one
    size_t outputs, conjugate, end;  // to which the modulus is added, and that of the row whose kernel is the conjugate, if any
  };
  struct Share { int output; T weight; };
  int bands, outputs;
  std::vector<Row> rows;
  std::vector<T> kernels;        // pairs of real and imaginary parts
  std::vector<Share> shares;
  // What is below `drop` times the largest is left out: entries at the ends of a kernel's row, differences of conjugate rows,
  // entries of the smoothing.
  BandBank(int rows, int bands, int outputs, const T *kernels, const T *smoothing, double drop);
  size_t workspace() const;
  // Y (bands, parts, lanes): real and imaginary parts, or real ones alone; Z (outputs, lanes), or rows of a target's first image.
  void modulus(const T *Y, int parts, int64_t lanes, T *Z, const Target<T> *target, Worker &worker) const;
};
