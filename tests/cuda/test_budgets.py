"""What the engine's kernels take on a GPU, for the works that are measured; ``-s`` prints it.

A kernel that spills, or of whose blocks too few fit a multiprocessor, is right and slow: no other test sees it.
"""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from scattercube.flows.bench import WORKS, Work
from scattercube.kernels import device
from scattercube.kernels.cuda_modules import Module
from tests.cuda.budget import budgets, nvrtc_problem

pytestmark = pytest.mark.skipif(bool(nvrtc_problem()), reason=str(nvrtc_problem()))

REGISTERS = 1 << 16  # of a multiprocessor
MOST_REGISTERS = 128  # of a thread
SPILT_NBYTES = 0  # of a thread, at most, where registers are few that another block may fit
SHARED_NBYTES = 227 << 10
UNASKED_NBYTES = 48 << 10  # of shared memory, static and dynamic, what a launch may have without asking
SYSTEM_NBYTES = 1 << 10  # of shared memory, for each block


def launches_of(works):
    """One launch of every kernel that works use: {grid: {name: launch}}. Where taps alone differ grids are the same."""
    found = {}
    for S in [work.make() for work in works]:
        for launch in S._fused_cuda._schedule(1).launches:
            key = (launch.source.source,)
            if isinstance(launch.source, Module):
                average = [launch.source.defines.get(name) for name in ("AVERAGE", "BLOCK", "N_MOMENTS")]
                key = launch.source.shape, launch.source.threads, *average
            found.setdefault(key, {}).setdefault(launch.name, launch)
    return found


def asked(launch):
    """The dynamic shared memory that a kernel asks for before it is launched; 0 where it does not."""
    kernel = SimpleNamespace(max_dynamic_shared_size_bytes=0)
    module = SimpleNamespace(get_function=lambda name: kernel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_module", lambda *key: module)
        device.compiled.__wrapped__(None, 0, launch.source.source, launch.name, launch.shared_nbytes)
    return kernel.max_dynamic_shared_size_bytes


def problems(works, architecture):
    """Say what is wrong with the kernels of works, and print what all take."""
    launches = [launch for kernels in launches_of(works).values() for launch in kernels.values()]
    sources = list(dict.fromkeys(launch.source.source for launch in launches))
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda source: budgets(source, device.CUDA_OPTIONS, architecture), sources)
        found = dict(zip(sources, compiled, strict=True))
    wrong = []
    for launch in launches:
        module = launch.source
        budget, threads = found[module.source][launch.name], module.threads
        shared = launch.shared_nbytes + budget.shared_nbytes
        taken = -(-budget.registers * 32 // 256) * 256 * threads // 32  # are handed out by 256 to a warp
        n_blocks = min(REGISTERS // taken, SHARED_NBYTES // (shared + SYSTEM_NBYTES), 2048 // threads)
        wanted = int(module.defines["BLOCKS_PER_SM"]) if launch.name == "wavelet_whole" else 1
        grid = "×".join(map(str, module.shape)) if isinstance(module, Module) else ""
        row = (
            f"{architecture} {grid:>9} {launch.name:16} {threads:4} threads "
            f"{budget.registers:3} registers {shared:6} bytes shared {n_blocks:2} of {wanted:2} blocks "
            f"{budget.stack_nbytes:3} stack {budget.spill_stores_nbytes:3} spilt"
        )
        print(row)
        if not (
            max(budget.stack_nbytes, budget.spill_stores_nbytes) <= SPILT_NBYTES
            and budget.registers <= MOST_REGISTERS
            and wanted <= n_blocks
            and (shared <= UNASKED_NBYTES or asked(launch) >= launch.shared_nbytes)
        ):
            wrong.append(row)
    return "\n".join(wrong)


def test_the_works_on_an_h100():
    assert not problems([work for work in WORKS if work.transform != "HarmonicScattering3D"], "sm_90")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_120"])
def test_a_small_work_on_others(architecture):
    assert not problems(WORKS[:1], architecture)


def test_what_a_block_has_beside_what_it_asks_for_counts():
    """Little less than what need not be asked for, and a little static shared memory, are more than that."""
    assert not problems([Work("", "Scattering2D", {"J": 2, "shape": (48, 92)}, 1)], "sm_90")
