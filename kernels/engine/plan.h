// What is known before any signal arrives: transforms, filters and low-passes arranged for the loops of lanes.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

// An inverse Fourier transform of n points: mixed radices, in place, its input with digits reversed.
template <class T> struct Fft {
  int n;
  std::vector<int> radix;
  std::vector<int> place;        // where input k goes before the first pass
  std::vector<int> source;       // which input stands there: the inverse
  std::vector<T> turns;          // per pass: (j = 1 .. block-1, m = 1 .. R-1) -> cos, sin of 2 pi j m / (block R)
  std::vector<size_t> first;     // where the turns of each pass start
  explicit Fft(int n);
  static bool possible(int n);
};

// A grid of (n1, n2) points; or a line of n = n1 n2 points, point u = u2 + n2 u1, frequency k = k1 + n1 k2, whose transform
// is that of the grid with a turn exp(2 pi i k1 u2 / n) between the two axes.
//
// Vectors hold either one point of V signals (lanes.cpp), or V neighbouring points of one signal (points.cpp):
//
//             lanes = signals                     lanes = points
//   field     (n1, n2, V)                         (n1, n2)
//   spectrum  (n1/2 + 1, n2, 2, V)                strips (n1/2 + 1, rounded up, over V; pitch, 2, V), pitch = n2 | 1
//   a line's  (n/2 + 1, 2, V)                     the same
//
// A spectrum is that of a real field, so half of it is kept. Lane i of strip s is k1 = s V + i; what lies behind n1/2 are
// numbers too. Its parts stand exchanged, the imaginary one first, as the transform forth leaves them.
template <class T> struct Grid {
  bool line;
  int n1, n2;
  int across;                    // points in a vector; 0 where the lanes are signals
  int stride;                    // points of a row, with those that fill its last vector
  int width;                     // columns, or vectors of columns, that are transformed together; on a line a divisor of their number
  Fft<T> columns, rows;          // along axis 0, with places for a whole number of vectors, and along axis 1
  std::vector<T> turns;          // a line's: (k1, u2) -> cos, sin; or (k1 / V, u2, 2, V) where the lanes are points
  Grid(bool line, int n1, int n2, int lanes, bool across);
  int64_t points() const { return int64_t(n1) * n2; }
  int64_t half() const;                                            // points of a spectrum with what pads it
  int64_t strips() const { return (n1 / 2 + across) / across; }    // of a spectrum
  int64_t pitch() const { return n2 | 1; }                         // vectors of a strip: odd, to spread over the cache
  int64_t block() const { return width * (across ? across : 1); }  // points of a row that are smoothed together
  int64_t blocks() const { return (n2 + block() - 1) / block(); }  // of a row
};

// Points of one row of an output spectrum, and where their coefficients are read. Where the lanes are points, a vector of them
// lies across two of the source's, lanes `shift` .. `shift` + V - 1 of both, and backwards where it is mirrored.
struct Run {
  int32_t to, skip, length;      // points to, to + skip, …
  int64_t from;                  // point of the half spectrum; or the first of the two vectors
  int64_t next;                  // from there to the second
  int32_t step;                  // from one point to the next
  uint32_t weight;               // of the first point
  enum Kind : uint8_t { kClear, kFirst, kMore } kind;  // nothing to read; the first alias at these points; one more
  bool conjugate;                // the coefficients are mirrored
  uint8_t shift;
  bool takes(const Run &point);  // as one more; else it starts a run of its own
};

// Memory of vectors that are read whole: it starts on a cache line.
template <class T> struct Aligned {
  typedef T value_type;
  static constexpr std::align_val_t kLine{64};
  Aligned() = default;
  template <class U> Aligned(const Aligned<U> &) {}
  T *allocate(size_t count) { return static_cast<T *>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T *memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const Aligned &) const { return true; }
  bool operator!=(const Aligned &) const { return false; }
};
template <class T> using Vectors = std::vector<T, Aligned<T>>;

// A filter, or filters side by side in the lanes: real weights in a box of frequencies. Where the lanes are points, a row is
// V neighbouring k1, a point of it one k2, and the lanes of a mirrored run are read backwards.
template <class T> struct Filter {
  std::vector<Run> runs;
  std::vector<uint32_t> begin;   // of each row, and the end; a row without runs is zero
  Vectors<T> weights;
  // `box` (rows, columns, lanes), or (points, lanes) on a line, starts at the signed frequency `origin`.
  Filter(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box, int lanes);

 private:
  void signals(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box, int lanes);
  void points(const Grid<T> &grid, const Grid<T> &source, const int64_t *origin, const int64_t *extent, const T *box);
  // Add what `weight(t, lane)` is at the points t = first, first + skip, … of one row; `where(t)` is a run of that one.
  template <class Weight, class Where>
  void add(std::vector<Run> &runs, char *covered, int64_t first, int64_t skip, int64_t end, int lanes, Weight weight, Where where);
  void close(std::vector<std::vector<Run>> &rows, const std::vector<char> &covered, int length);
};

template <class T> struct Bank {
  const Grid<T> *source, *grid;
  int lanes;                     // weights of a point: 1, the same in every lane, or V
  std::vector<Filter<T>> filters;
};

// A matrix whose rows are zero outside a circular band: `out` is the sum of taps[i] U[start + i] over its bands (at most two).
struct Band {
  int out, start, length;
  bool more;                     // adds to what a former band of the same output gave
  size_t taps;
};

template <class T> struct Matrix {
  int outputs, n;
  std::vector<Band> bands;
  std::vector<T> taps;           // `pad` zeros around every band, so that a block of points may overlap its ends
  // Entries at the ends of a row, of together less than `drop` times the row's sum of magnitudes, are left out.
  Matrix(const T *dense, int outputs, int n, double drop, int pad);
  // Row o is `kernel` (n, circular) shifted to samples[o].
  Matrix(const T *kernel, const int64_t *samples, int outputs, int n, double drop, int pad);

 private:
  void add(int out, int64_t start, int64_t length, size_t first_tap);
};

// A low-pass and the choice of samples. Along a line it is either one matrix; or, where it varies little over some
// neighbouring points, two steps: `moments` sums of these, weighted by the rows of `basis`, and a matrix of the sums.
template <class T> struct Lowpass {
  const Grid<T> *grid;
  std::vector<Matrix<T>> axes;   // along axis 0 and axis 1; a line has one
  int moments = 0, vectors = 1;  // 0, 4 or 8; a divisor of grid->width
  std::vector<T> basis;          // (moments, points of `vectors` vectors)
  std::vector<uint32_t> live;    // a line's, without moments: first of `order` at each block of each row, and the end
  std::vector<uint32_t> order;   // bands by the block they meet
  Lowpass(const Grid<T> *grid, const T *first, int m1, const T *second, int m2, double drop);  // second: none on a line
  // Output o is the sum of kernel[u - samples[o]] U[u]; with moments, u and samples count them.
  Lowpass(const Grid<T> *line, const T *basis, int moments, int vectors, const T *kernel, const int64_t *samples, int outputs,
          double drop);
  int64_t part() const { return vectors * (grid->across ? grid->across : 1); }  // points whose moments are taken
  int64_t sums() const { return grid->points() / part() * moments; }
  int64_t outputs() const { return int64_t(axes[0].outputs) * (axes.size() > 1 ? axes[1].outputs : 1); }

 private:
  void meet();
};

// A low-pass of a line as few frequencies of its spectrum: output o is the sum over k of real[o][k] Re X[k] + imag[o][k] Im X[k].
// Where the lanes are points, the weights are those of the vectors in which the frequencies stand.
template <class T> struct Tones {
  const Grid<T> *grid;
  int outputs, bins;
  std::vector<int64_t> where;    // of the vectors
  Vectors<T> weights;            // (outputs, bins, 2), or (outputs, vectors, 2, V), the imaginary ones first
  Tones(const Grid<T> *line, const T *real, const T *imag, int outputs, int bins);
};
