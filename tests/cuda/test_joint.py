"""Joint time–frequency scattering on the CUDA engine, emulated: against the primitives in double precision."""

import numpy as np
import pytest

from scattercube.kernels import bands, cuda_modules, fused_cuda_joint, time_frequency
from scattercube.kernels.time_frequency import TimeFrequencyScattering
from tests.conftest import relative_error
from tests.cuda.emulated import apart, compile_all, noise
from tests.cuda.emulation import SCHEDULES, barriers, schedule

EQUAL = {"float32": 3e-6, "float64": 1e-11}

CASES = [
    (3, 2, 128, {"Q": 4}, 0),
    (3, 1, 200, {"Q": 2, "format": "time", "dtype": "float64"}, 0),
    (3, 1, 2000, {"Q": 2, "T": 64}, 24000),
]
"""J, J_fr, samples, more; the last are those of the shared memory of a block, 0 for a device's."""


@pytest.fixture
def on_device(emulated, monkeypatch):
    for module in (time_frequency, bands):
        monkeypatch.setattr(module, "device_of", lambda x: "cuda")


def schedules(plan, n):
    places, _ = plan._places(n)
    stages = range(len(plan._stages))
    return [
        plan._first(n, places),
        *(plan._second(n, i, places) for i in stages),
        *(plan._averages(n, i) for i in stages),
    ]


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(("J", "J_fr", "N", "parameters", "shared_nbytes"), CASES)
def test_joint_transforms(monkeypatch, J, J_fr, N, parameters, shared_nbytes):
    if shared_nbytes:
        monkeypatch.setattr(cuda_modules, "SHARED_NBYTES", shared_nbytes)
    S = TimeFrequencyScattering(J, J_fr, N, **parameters)
    assert S._fused_cuda
    assert S._fused_cuda._along_time._modules[0].whole == (not shared_nbytes)
    compile_all(schedules(S._fused_cuda, 3))
    twin = TimeFrequencyScattering(J, J_fr, N, **parameters | {"dtype": "float64"})
    vars(twin).update(_fused_cuda=None)
    x = noise(S, 3)
    with monkeypatch.context() as patch:  # by the primitives of the CPU
        for module in (time_frequency, bands):
            patch.setattr(module, "device_of", lambda x: "cpu")
        expected = twin(x.astype(np.float64))
    found = S(x)
    assert found.dtype == S.dtype
    assert relative_error(found, expected) <= EQUAL[S.dtype.name]
    for order in ("reversed", "shuffled"):
        with schedule(order):
            np.testing.assert_array_equal(found, S(x), strict=True)
    with apart():
        np.testing.assert_array_equal(found, S(x), strict=True)
    each = sum(n * S._fused_cuda._along_time.spectrum_nbytes(j) for j, n in S._fused_cuda._groups.items())
    monkeypatch.setattr(fused_cuda_joint, "_SPECTRA_NBYTES", 2 * each)
    assert relative_error(S(x), found) <= EQUAL[S.dtype.name] / 10


@pytest.mark.usefixtures("on_device")
def test_averages_of_lines_need_their_barrier():
    plan = TimeFrequencyScattering(3, 2, 128, Q=4)._fused_cuda
    stage, n = plan._stages[0], 2
    module = plan._along_time._modules[plan._time._level(stage.j)]
    assert module.average_nbytes
    Z = np.random.default_rng(0).random((stage.bank.n_outputs, n, *module.n), dtype=np.float32)

    def averages():
        out = np.full((n, plan._n_rows, plan._n_times), np.nan, np.float32)
        plan._averages(n, 0).run(np, Z, np.ones(n, np.float32), out)
        return out[:, stage.rows]

    with barriers() as lines:
        expected = averages()
    assert np.isfinite(expected).all()
    (line,) = lines
    found = []
    for order in SCHEDULES:
        with schedule(order), barriers(without_line=line):
            found.append(averages())
    assert not all(np.array_equal(one, expected) for one in found)
