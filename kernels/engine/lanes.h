// The operations of the engine for one precision and one number of lanes, as each instruction set offers them.
//
// Fields U (groups, …) and spectra X (groups, …) are laid out as plan.h says; X holds Fourier coefficients,
// X[k] = mean of x exp(-2 pi i k u / n). A group is V signals, or one signal where the lanes are points.
#pragma once
#include "plan.h"
#include "team.h"

// Where averages go. Signal q, which is lane q % V of group q / V, belongs to image q % images and to the row
// rows[q / images] of out (images, paths, outputs). Rows below zero and images from `present` on are not written.
template <class T> struct Target {
  T *out;
  const int32_t *rows;
  const T *scale;                // per image, a factor of what is written
  int64_t paths;
  int images, present;
  T *where(long q, long outputs) const {
    const long image = q % images, row = rows[q / images];
    return row < 0 || image >= present ? nullptr : out + (image * paths + row) * outputs;
  }
  T scale_of(long q) const { return scale[q % images]; }
};

template <class T> struct Operations {
  int lanes;
  // A field of images, or one signal: U[r, c] = scale[b] x[b, rows[r] + columns[c]], images of `size` points; zero past `present`.
  void (*extend)(const Grid<T> *grid, const T *x, const T *scale, int images, int present, int64_t size, const int32_t *rows,
                const int32_t *columns, T *U);
  void (*spectrum)(const Grid<T> *grid, const T *U, T *X, int64_t groups, Worker &worker);
  // |x * psi| of filters first + f and groups g, as output group f * groups + g: their spectra to Y and their averages to
  // target, if given.
  void (*wavelet)(const Bank<T> *bank, int first, int filters, const Lowpass<T> *lowpass, const T *X, int64_t groups, T *Y,
                  const Target<T> *target, Worker &worker);
  void (*average)(const Lowpass<T> *lowpass, const T *U, int64_t groups, const Target<T> *target, Worker &worker);
  // The same averages of lines, from their spectra.
  void (*hear)(const Tones<T> *tones, const T *X, int64_t groups, const Target<T> *target, Worker &worker);
  // x * psi itself, as fields of its real and of its imaginary parts: Y (f * groups + g, 2, n1, n2). None where lanes are signals.
  void (*convolve)(const Bank<T> *bank, int first, int filters, const T *X, int64_t groups, T *Y, Worker &worker);
};

// How lanes are used: many signals, few signals (vectors of half the size), points.
enum Use { kMany, kFew, kPoints };

// Where these stand: lanes.cpp, points.cpp.
template <class T> Operations<T> signals(bool few);
template <class T> Operations<T> points();

// One operation of a schedule. Offsets are bytes of its memory.
struct Step {
  enum Call : int32_t { kSpectrum, kWavelet, kAverage, kHear, kConvolve, kAcross } call;
  int32_t first, filters;        // of a bank; across bands, filters are the parts of a number, 1 where it is real
  int32_t awaited;               // the next operation needs this one
  int64_t groups;                // across bands, lanes
  int64_t source, deeper;        // what is read; where spectra or fields go, or below zero
  int64_t averages;              // where the averages of one image go, or below zero: to the output
  const int32_t *rows;           // which rows they are there, or none
  const void *plan;              // a grid, bank, low-pass, tones or filters across bands
  const void *lowpass;           // beside a bank
};
