"""What a kernel takes on a GPU: one that spills and ones that do not, for each architecture."""

import pytest

from tests.cuda.budget import ARCHITECTURES, CompileError, budgets, nvrtc_problem
from tests.cuda.test_emulation import ARGUMENTS, FAULTY, SUM, TRANSPOSE, WARPS

pytestmark = pytest.mark.skipif(bool(nvrtc_problem()), reason=str(nvrtc_problem()))

KERNELS = """
extern "C" __global__ void simple(const float *x, float *y) {
  __shared__ float part[64];
  part[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = part[63 - threadIdx.x];
}
extern "C" __global__ void indexed(const int *x, float *y) {
  float large[300];
  for (int i = 0; i < 300; i++) large[i] = y[i];
  for (int i = 0; i < 300; i++) large[x[i]] += large[x[i + 1]];
  for (int i = 0; i < 300; i++) y[i] = large[i];
}
// More is alive than the 64 registers that a block of 1024 threads leaves to each.
extern "C" __global__ void __launch_bounds__(1024) crowded(const float *x, float *y) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; i++) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; i++) y[i * 1024 + threadIdx.x] = v[i] * v[(i * 5 + 7) % 96] + v[(i * 11 + 3) % 96];
}
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_arrays_off_registers_and_spills_are_seen(architecture):
    found = budgets(KERNELS, architecture=architecture)
    assert set(found) == {"simple", "indexed", "crowded"}
    simple, indexed, crowded = found["simple"], found["indexed"], found["crowded"]
    assert simple.stack_nbytes == simple.spill_stores_nbytes == simple.spill_loads_nbytes == 0
    assert 0 < simple.registers <= 32
    assert simple.shared_nbytes == 256
    assert indexed.stack_nbytes >= 1200
    assert indexed.shared_nbytes == 0
    assert crowded.registers <= 64
    assert min(crowded.stack_nbytes, crowded.spill_stores_nbytes, crowded.spill_loads_nbytes) > 0


def test_macros_reach_the_source_and_its_errors_the_caller(tmp_path):
    (tmp_path / "size.h").write_text("#define SIZE (2 * HALF)\n")
    source = '#include "size.h"\nextern "C" __global__ void k(int *y) { __shared__ int a[SIZE]; a[*y] = 1; *y = a[1]; }'
    assert budgets(source, ("-DHALF=12", f"-I{tmp_path}"))["k"].shared_nbytes == 96
    with pytest.raises(CompileError, match=r"HALF"):
        budgets(source, (f"-I{tmp_path}",))
    with pytest.raises(CompileError, match="architecture"):
        budgets(KERNELS, architecture="sm_999")


@pytest.mark.parametrize("source", [SUM, TRANSPOSE, WARPS, FAULTY, "#define CONSTANT 1\n" + ARGUMENTS])
def test_what_the_emulator_runs_compiles_for_a_gpu(source):
    assert budgets(source)
