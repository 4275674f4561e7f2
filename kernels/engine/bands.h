// Filters across bands, the moduli of what they give and averages of these, as bands.cpp runs them.
#pragma once
#include "plan.h"
#include "team.h"

// U[r] = |sum_b kernels[r, b] Y[b]|, Z[o] = sum_r smoothing[o, r] U[r], at every one of some lanes: points of time of signals.
template <class T> struct BandBank {
  struct Row {
    int first, last;             // bands that are met
    size_t kernel;               // of the first one
    size_t outputs, end;         // to which the modulus is added
  };
  struct Share { int output; T weight; };
  int bands, outputs;
  std::vector<Row> rows;
  std::vector<T> kernels;        // pairs of real and imaginary parts
  std::vector<Share> shares;
  // Entries of a kernel's row below `drop` times the largest of all, at the ends of the row, are left out.
  BandBank(int rows, int bands, int outputs, const T *kernels, const T *smoothing, double drop);
  size_t workspace() const;
  // Y (bands, lanes) complex, Z (outputs, lanes).
  void modulus(const T *Y, int64_t lanes, T *Z, Worker &worker) const;
};
