"""The emulator: right kernels give the same in every schedule, wrong ones are found out."""

import numpy as np
import pytest

from tests.cuda import emulation
from tests.cuda.emulation import (
    CompileError,
    LaunchError,
    Module,
    compiler_problem,
    count_barriers,
    guarded,
    schedule,
    without_barrier,
)

pytestmark = pytest.mark.skipif(bool(compiler_problem()), reason=str(compiler_problem()))
SCHEDULES = pytest.mark.parametrize("order", emulation.SCHEDULES)

HEAD = """
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) unsigned char shared_memory_[]; \\
  T *name = reinterpret_cast<T *>(shared_memory_)
#endif
"""
SUM = (
    HEAD
    + """
// Sums of a block: a tree in shared memory.  __syncthreads() in a comment is none.
extern "C" __global__ void __launch_bounds__(256) sums(const float *__restrict__ x, float *__restrict__ y, int n) {
  DYNAMIC_SHARED(float, part);
  const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  part[t] = i < n ? x[i] : 0.f;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) part[t] += part[t + half];
    __syncthreads();
  }
  if (t == 0) y[blockIdx.x] = part[0];
}
"""
)
TRANSPOSE = """
#define TILE 8
template <int N> struct Transpose {
  static __device__ __forceinline__ void go(const float2 *in, float2 *out, int n_tiles) {
    __shared__ float2 tile[N][N + 1];
    const int width = gridDim.x * N;
    for (int k = 0; k < n_tiles; k++) {
      const int row = (blockIdx.y * n_tiles + k) * N, column = blockIdx.x * N;
      __syncthreads();
      tile[threadIdx.y][threadIdx.x] = in[(row + threadIdx.y) * width + column + threadIdx.x];
      __syncthreads();
      out[(column + threadIdx.y) * (gridDim.y * n_tiles * N) + row + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
    }
  }
};
extern "C" __global__ void transpose(const float2 *in, float2 *out, int n_tiles) {
  Transpose<TILE>::go(in, out, n_tiles);
}
"""
WARPS = """
extern "C" __global__ void warp_sums(const double *x, double *y, int by_xor) {
  double v = x[threadIdx.x];
#pragma unroll
  for (int d = 16; d > 0; d /= 2)
    v += by_xor ? __shfl_xor_sync(0xffffffffu, v, d) : __shfl_down_sync(0xffffffffu, v, d);
  if (by_xor) y[threadIdx.x] = v;
  else if (threadIdx.x % 32 == 0) y[threadIdx.x / 32] = v;
}
extern "C" __global__ void neighbours(const int *x, int4 *y) {
  const int t = threadIdx.x;
  if (t % 32 >= 16) {  // half a warp, by a mask of its own
    y[t].x = __shfl_sync(0xffff0000u, x[t], 3, 8);
    y[t].y = __shfl_down_sync(0xffff0000u, x[t], 3, 8);
    y[t].z = __shfl_up_sync(0xffff0000u, x[t], 3, 8);
    y[t].w = __shfl_xor_sync(0xffff0000u, x[t], 5, 8);
  }
}
"""


def outcomes(source, name, *launch, options=(), shape, dtype=np.float32, **keywords):
    """What the kernel writes, its second argument, in each schedule: an array, or the error."""
    kernel = Module(source, options, (name,)).get_function(name)
    grid, block, (first, *rest) = launch
    found = []
    for order in emulation.SCHEDULES:
        y = np.full(shape, np.nan, dtype)
        with schedule(order):
            try:
                kernel(grid, block, (first, y, *rest), **keywords)
                found.append(y)
            except LaunchError as error:
                found.append(error)
    return found


def are(found, expected):
    """One truth value per outcome: whether it is the expected array."""
    return [isinstance(y, np.ndarray) and np.allclose(y, expected, rtol=1e-5, atol=1e-6) for y in found]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def summed(rng, source=SUM):
    x = rng.standard_normal(700).astype(np.float32)
    expected = np.pad(x, (0, 68)).reshape(-1, 256).sum(1)
    return are(outcomes(source, "sums", (3,), (256,), (x, np.int32(700)), shape=3, shared_mem=1024), expected)


def transposed(rng, source=TRANSPOSE):
    x = rng.standard_normal((48, 24)) + 1j * rng.standard_normal((48, 24))
    x = x.astype(np.complex64)
    launch = (3, 2), (8, 8), (x, np.int32(3))
    return are(outcomes(source, "transpose", *launch, shape=(24, 48), dtype=np.complex64), x.T)


def test_sums_of_a_block_are_the_same_in_every_schedule(rng):
    assert summed(rng) == [True] * 3


def test_a_transpose_through_static_shared_memory_is_the_same_in_every_schedule(rng):
    assert transposed(rng) == [True] * 3


@pytest.mark.parametrize(("source", "case"), [(SUM, summed), (TRANSPOSE, transposed)])
@pytest.mark.parametrize("n", [0, 1])
def test_without_any_one_barrier_some_schedule_goes_wrong(rng, source, case, n):
    assert count_barriers(source) == 2
    assert not all(case(rng, without_barrier(source, n)))


@SCHEDULES
def test_sums_of_a_warp(rng, order):
    module = Module(WARPS, (), ("warp_sums", "neighbours"))
    x = rng.standard_normal(96)
    one, all_ = np.zeros(3), np.zeros(96)
    with schedule(order):
        module.get_function("warp_sums")((1,), (96,), (x, one, np.int32(0)))
        module.get_function("warp_sums")((1,), (96,), (x, all_, np.int32(1)))
    np.testing.assert_allclose(one, x.reshape(3, 32).sum(1))
    np.testing.assert_allclose(all_, np.repeat(one, 32))


@SCHEDULES
def test_shuffles_within_segments_of_part_of_a_warp(order):
    x, y = np.arange(64, dtype=np.int32), np.full((64, 4), -7, np.int32)
    with schedule(order):
        Module(WARPS, (), ("warp_sums", "neighbours")).get_function("neighbours")((1,), (64,), (x, y))
    t = np.arange(64)
    lane, segment = t % 8, t // 8 * 8
    expected = np.stack(
        [segment + 3, np.where(lane < 5, t + 3, t), np.where(lane < 3, t, t - 3), segment + (lane ^ 5)], 1
    )
    expected[t % 32 < 16] = -7
    np.testing.assert_array_equal(y, expected)


FAULTY = (
    HEAD
    + """
extern "C" __global__ void touch(int *y, int at, int write) {
  DYNAMIC_SHARED(int, part);
  if (threadIdx.x == 1 && write) part[at] = 5;
  if (threadIdx.x == 1 && !write) y[0] = part[at];
}
extern "C" __global__ void diverge(int first) {
  if (threadIdx.x >= first) __syncthreads();
}
extern "C" __global__ void two_barriers(int first) {
  if (threadIdx.x >= first) __syncthreads();
  else
    __syncthreads();
}
extern "C" __global__ void lost_lane() {
  if (threadIdx.x == 3) __syncthreads();
  else __syncwarp();
}
extern "C" __global__ void not_in_mask() { __syncwarp(0xf0); }
extern "C" __global__ void global(int *y, int at) { y[at] = 1; }
extern "C" __global__ void deep(int *y) {
  volatile int large[1 << 18];
  for (int i = 0; i < 1 << 18; i++) large[i] = i;
  y[0] = large[y[0]];
}
extern "C" __global__ void divide(int *y) { y[0] = y[0] / y[1]; }
extern "C" __global__ void unwritten(int *y) {
  DYNAMIC_SHARED(int, part);
  __shared__ int fixed[4];
  y[blockIdx.x * 2] = part[0];
  y[blockIdx.x * 2 + 1] = fixed[1];
  part[0] = fixed[1] = 1;
}
"""
)
FAULTS = ("touch", "diverge", "two_barriers", "lost_lane", "not_in_mask", "global", "deep", "divide", "unwritten")


@pytest.fixture(scope="module")
def faulty():
    return Module(FAULTY, (), FAULTS).get_function


@pytest.mark.parametrize(("at", "write"), [(10, 1), (-1, 1), (12, 0), (12, 1), (10**6, 1), (-1200, 0)])
def test_access_beyond_dynamic_shared_memory_is_an_error(faulty, at, write):
    y = np.zeros(1, np.int32)
    with pytest.raises(LaunchError, match=rf"touch, block \(0, 0, 0\): .* byte {at * 4} of 40"):
        faulty("touch")((2,), (4,), (y, np.int32(at), np.int32(write)), shared_mem=40)


@pytest.mark.parametrize("at", [10, 11, -1, -1000])
def test_a_read_just_beyond_dynamic_shared_memory_gives_poison(faulty, at):
    """40 bytes are rounded up to 48, and stand at the end of a page."""
    y = np.zeros(1, np.int32)
    faulty("touch")((2,), (4,), (y, np.int32(at), np.int32(0)), shared_mem=40)
    assert y[0] == -1


def test_a_launch_after_an_error_is_a_launch_as_any(faulty, rng):
    with pytest.raises(LaunchError):
        faulty("touch")((1,), (4,), (np.zeros(1, np.int32), np.int32(4000), np.int32(1)), shared_mem=16)
    y = np.zeros(1, np.int32)
    faulty("touch")((1,), (4,), (y, np.int32(3), np.int32(1)), shared_mem=16)
    assert y[0] == 0


@SCHEDULES
def test_a_divergent_barrier_is_an_error(faulty, order):
    with (
        schedule(order),
        pytest.raises(LaunchError, match=r"diverge, block .*: divergent barrier: 59 of 64 .* line 13"),
    ):
        faulty("diverge")((2, 2), (64,), (np.int32(5),))
    with schedule(order), pytest.raises(LaunchError, match=r"two_barriers, .*: divergent barrier: .* at line 1"):
        faulty("two_barriers")((2, 2), (64,), (np.int32(5),))
    with schedule(order):
        faulty("diverge")((2, 2), (64,), (np.int32(0),))
        faulty("diverge")((2, 2), (64,), (np.int32(64),))


def test_a_warp_that_waits_for_a_lost_lane_is_an_error(faulty):
    with pytest.raises(LaunchError, match="31 threads wait in the warp operation of line 22"):
        faulty("lost_lane")((1,), (32,), ())
    with pytest.raises(LaunchError, match=r"thread \(0, 0, 0\) is not in the mask"):
        faulty("not_in_mask")((1,), (32,), ())


def test_other_faults_are_errors(faulty):
    y = guarded(np.zeros(7, np.int32))
    faulty("global")((1,), (1,), (y, np.int32(6)))
    assert y.tolist() == [0] * 6 + [1]
    with pytest.raises(LaunchError, match="memory that is not its own"):
        faulty("global")((1,), (1,), (y, np.int32(7)))
    with pytest.raises(LaunchError, match="needs more than 65536 bytes of stack"):
        faulty("deep")((1,), (2,), (y,))
    with pytest.raises(LaunchError, match="divides an integer by zero"):
        faulty("divide")((1,), (1,), (np.zeros(2, np.int32),))


def test_shared_memory_that_no_thread_has_written_is_poison_in_every_block(faulty):
    y = np.zeros(6, np.int32)
    faulty("unwritten")((3,), (1,), (y,), shared_mem=4)
    assert (y == -1).all()
    assert np.isnan(y.view(np.float32)).all()


ARGUMENTS = """
struct Box { int2 origin; float scale; };
extern "C" __global__ void take(double *y, const float *x, int i, long long n, unsigned u, float f, double d,
                                Box box, bool b, float2 z) {
  const double all[] = {x[0], double(i), double(n), double(u), f, d, double(box.origin.x), double(box.origin.y),
                        box.scale, double(b), z.x, z.y, CONSTANT};
  for (int k = 0; k < sizeof all / sizeof *all; k++) y[k] = all[k];
}
extern "C" __global__ void where(int *y) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  atomicAdd(&y[block * blockDim.x * blockDim.y * blockDim.z + thread], 1 + block * 100 + thread);
}
extern "C" __global__ void mathematics(const float *x, float *y) {
  const int i = threadIdx.x;
  float s, c;
  sincospif(x[i], &s, &c);
  y[4 * i] = s, y[4 * i + 1] = c, y[4 * i + 2] = rsqrtf(fabsf(x[i]));
  y[4 * i + 3] = fmaf(__ldg(x + i), min(2, i), max(float(i), 1.5f));
}
"""
BOX = np.dtype([("origin", np.int32, 2), ("scale", np.float32)])


@pytest.fixture(scope="module")
def arguments():
    options = ("-DCONSTANT=12.5", "--use_fast_math", "-arch=sm_90")
    return Module(ARGUMENTS, options, ("take", "where", "mathematics")).get_function


def values():
    x = np.arange(10, dtype=np.float32)[4:]
    box = np.array(([7, -8], 9.5), BOX)
    numbers = np.int32(-3), np.int64(2**40), np.uint32(2**32 - 1), np.float32(0.5), np.float64(0.1), box, np.bool_(True)
    return [np.zeros(13), x, *numbers, np.complex64(1.5 - 2j)]


def test_arguments_arrive_by_their_types(arguments):
    args = values()
    arguments("take")((1,), (1,), tuple(args))
    expected = [4, -3, 2**40, 2**32 - 1, 0.5, 0.1, 7, -8, 9.5, 1, 1.5, -2, 12.5]
    assert args[0].tolist() == expected
    y = np.zeros(13)
    args[:2] = [y.ctypes.data, np.uint64(args[1].ctypes.data)]
    args[3], args[6], args[7] = 2**40, 0.1, args[7][()]
    arguments("take")((1,), (1,), tuple(args))
    assert y.tolist() == expected


@pytest.mark.parametrize(
    ("i", "value", "error"),
    [
        (0, np.zeros((13, 2))[:, 0], ValueError),
        (0, np.broadcast_to(np.zeros(1), (1,)), ValueError),
        (0, [0.0], TypeError),
        (1, np.float32(3), TypeError),
        (2, np.int64(3), TypeError),
        (2, 3, TypeError),
        (2, np.float32(3), TypeError),
        (3, np.int32(3), TypeError),
        (5, 0.5, TypeError),
        (5, np.int32(1), TypeError),
        (7, np.complex64(1), TypeError),
        (8, np.array([True]), TypeError),
    ],
)
def test_arguments_of_other_types_are_refused(arguments, i, value, error):
    args = values()
    args[i] = value
    with pytest.raises(error, match=f"take, argument {i}"):
        arguments("take")((1,), (1,), tuple(args))


def test_a_wrong_number_of_arguments_is_refused(arguments):
    with pytest.raises(TypeError, match="where takes 1 arguments, not 2"):
        arguments("where")((1,), (1,), (np.zeros(1, np.int32), np.int32(1)))


@SCHEDULES
@pytest.mark.parametrize(("grid", "block"), [((3,), (33,)), ((2, 3), (4, 5)), ((2, 1, 3), (3, 2, 4))])
def test_each_thread_of_each_block_runs_once(arguments, order, grid, block):
    n_blocks, n_threads = int(np.prod(grid)), int(np.prod(block))
    y = np.zeros((n_blocks, n_threads), np.int32)
    with schedule(order):
        arguments("where")(grid, block, (y,))
    np.testing.assert_array_equal(y, 1 + 100 * np.arange(n_blocks)[:, None] + np.arange(n_threads))


def test_mathematics(arguments):
    x = np.array([0.25, 0.5, 1.0, -1.5, 3.25, -0.7], np.float32)
    y = np.zeros((6, 4), np.float32)
    arguments("mathematics")((1,), (6,), (x, y))
    i = np.arange(6)
    expected = np.stack(
        [np.sin(np.pi * x), np.cos(np.pi * x), np.abs(x) ** -0.5, x * np.minimum(2, i) + np.maximum(i, 1.5)], 1
    )
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert y[1, 0] == 1
    assert y[1, 1] == y[2, 0] == y[3, 1] == 0


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((1,), (1025,), 0),
        ((1,), (32, 33), 0),
        ((1,), (1, 1, 65), 0),
        ((0,), (1,), 0),
        ((1, 65536), (1,), 0),
        ((1, 1, 1, 1), (1,), 0),
        ((1,), (1,), 48 * 1024 + 1),
        ((1,), (1,), -1),
    ],
)
def test_impossible_launches_are_refused(arguments, grid, block, shared):
    with pytest.raises(ValueError, match="where: "):
        arguments("where")(grid, block, (np.zeros(1, np.int32),), shared_mem=shared)


def test_the_limit_of_shared_memory_can_be_raised_to_that_of_the_device():
    kernel = Module(FAULTY, (), FAULTS).get_function("touch")
    args = np.zeros(1, np.int32), np.int32(227 * 256 - 1), np.int32(1)
    kernel.max_dynamic_shared_size_bytes = 232 * 1024
    kernel((1,), (2,), args, shared_mem=227 * 1024)
    with pytest.raises(ValueError, match="232448"):
        kernel((1,), (2,), args, shared_mem=227 * 1024 + 4)


def test_a_block_may_have_1024_threads(rng):
    x = rng.standard_normal(1024).astype(np.float32)
    found = outcomes(SUM, "sums", (1,), (1024,), (x, np.int32(1024)), shape=1, shared_mem=4096)
    assert are(found, x.sum()) == [True] * 3


def test_shuffled_orders_follow_the_seed(arguments):
    step = "y[y[0]++] = threadIdx.x;"
    source = f'extern "C" __global__ void queue(int *y) {{ {step} __syncthreads(); {step} }}'
    kernel = Module(source, (), ("queue",)).get_function("queue")

    def order(seed):
        y = np.ones(33, np.int32)
        with schedule("shuffled", seed):
            kernel((1,), (16,), (y,))
        return y[1:17].tolist(), y[17:].tolist()

    first, second = order(3)
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second
    assert order(3) == (first, second)
    assert order(4)[0] != first


def test_a_change_of_an_included_header_is_seen(tmp_path):
    source = '#include "value.h"\nextern "C" __global__ void get(int *y) { *y = VALUE; }'
    y = np.zeros(1, np.int32)
    for value in (3, 4):
        (tmp_path / "value.h").write_text(f"#pragma once\n#define VALUE {value}\n")
        Module(source, (f"-I{tmp_path}",), ("get",)).get_function("get")((1,), (1,), (y,))
        assert y[0] == value


def test_wrong_sources_names_and_schedules_are_refused():
    with pytest.raises(CompileError, match=r"source\.cu:2"):
        Module('extern "C" __global__ void k() {\n  nonsense;\n}', (), ("k",))
    with pytest.raises(KeyError, match="sum'"):
        Module(SUM, (), ("sums",)).get_function("sum")
    with pytest.raises(ValueError, match="natural, reversed, shuffled"), schedule("random"):
        pass


def test_barriers_are_counted_and_taken_out_one_by_one():
    source = "__syncthreads(); // __syncthreads();\nif (a) __syncthreads ( );\n/* __syncthreads();\n*/ b;"
    assert count_barriers(source) == 2
    assert without_barrier(source, 1) == source.replace("__syncthreads ( )", "(void(0))")
    with pytest.raises(IndexError, match="barrier 2 of a source that has 2"):
        without_barrier(source, 2)


def test_a_barrier_that_does_nothing_is_one_that_is_not_there(rng):
    lines = [i for i, text in enumerate(SUM.splitlines(), 1) if text.strip().startswith("__syncthreads()")]
    with emulation.barriers() as seen:
        assert summed(rng) == [True] * 3
    assert sorted(seen) == lines
    for n, line in enumerate(lines):
        with emulation.barriers(without_line=line) as seen:
            found = summed(np.random.default_rng(5))
        assert sorted(seen) == lines
        assert found == summed(np.random.default_rng(5), without_barrier(SUM, n))
