// The unit of each array of a batch: a power of two just above its peak, 1 where all is zero, and NaN where a value is not finite.
//
// Peaks of PART values each are found first, then those of whole arrays. A unit lies between 2^LEAST and 2^MOST.

typedef REAL real;

// A NaN is greater than all.
static __device__ __forceinline__ real greater(real a, real b) { return b > a || b != b ? b : a; }

static __device__ __forceinline__ real peak_of_block(real peak) {
  __shared__ real peaks[THREADS / 32];
#pragma unroll
  for (int m = 16; m > 0; m /= 2) peak = greater(peak, __shfl_xor_sync(0xffffffffu, peak, m));
  if (threadIdx.x % 32 == 0) peaks[threadIdx.x / 32] = peak;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < THREADS / 32; w++) peak = greater(peak, peaks[w]);
  return peak;
}

// grid (parts, arrays): x (arrays, n) to peaks (arrays, parts).
extern "C" __global__ void __launch_bounds__(THREADS) peaks_of_parts(const real *__restrict__ x, long long n, real *__restrict__ peaks) {
  const real *from = x + blockIdx.y * n, zero = 0;
  const long long begin = blockIdx.x * (long long)PART;
  real peak = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < PART; i += THREADS) {
    const real a = begin + i < n ? from[begin + i] : zero, magnitude = a < 0 ? -a : a;
    peak = greater(peak, magnitude <= LARGEST ? magnitude : zero / zero);
  }
  peak = peak_of_block(peak);
  if (threadIdx.x == 0) peaks[blockIdx.y * (long long)gridDim.x + blockIdx.x] = peak;
}

// grid (arrays): peaks (arrays, parts) to units (arrays).
extern "C" __global__ void __launch_bounds__(THREADS) units_of_arrays(const real *__restrict__ peaks, int parts, real *__restrict__ units) {
  real peak = 0;
  for (int i = threadIdx.x; i < parts; i += THREADS) peak = greater(peak, peaks[blockIdx.x * (long long)parts + i]);
  peak = peak_of_block(peak);
  if (threadIdx.x > 0) return;
  int exponent = 0;
  if (peak > 0) frexp(peak, &exponent);
  exponent = exponent < LEAST ? LEAST : exponent > MOST ? MOST : exponent;
  const real one = 1;
  units[blockIdx.x] = peak == peak ? ldexp(one, exponent) : peak;
}
