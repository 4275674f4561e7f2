"""Joint time–frequency scattering on the CUDA engine, emulated: against the primitives in double precision."""

import numpy as np
import pytest

from scattercube.kernels import bands, cuda_modules, fused_cuda_joint, time_frequency
from scattercube.kernels.time_frequency import TimeFrequencyScattering
from tests.conftest import relative_error
from tests.cuda.emulated import apart, compile_all, noise, text_of
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


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(("J", "J_fr", "N", "parameters", "shared_nbytes"), CASES)
def test_joint_transforms(monkeypatch, J, J_fr, N, parameters, shared_nbytes):
    if shared_nbytes:
        monkeypatch.setattr(cuda_modules, "SHARED_NBYTES", shared_nbytes)
    S = TimeFrequencyScattering(J, J_fr, N, **parameters)
    assert S._fused_cuda
    assert S._fused_cuda._along_time._modules[0].whole == (not shared_nbytes)
    compile_all([S._fused_cuda._schedule(3)])
    twin = TimeFrequencyScattering(J, J_fr, N, **parameters | {"dtype": "float64"})
    vars(twin).update(_fused=None, _fused_cuda=None)
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
    S._fused_cuda._schedules.clear()
    np.testing.assert_array_equal(found, S(x), strict=True)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("kernel", ["average_lines", "across_real", "across_complex"])
def test_what_the_joint_transform_adds_needs_its_barriers(kernel):
    S = TimeFrequencyScattering(3, 2, 128, Q=4)
    plan, x = S._fused_cuda, noise(S, 2)
    source = next(launch.source.source for launch in plan._schedule(2).launches if launch.name == kernel)
    texts = text_of(source).splitlines()
    here = {n for n, text in enumerate(texts, 1) if "__syncthreads();" in text}
    begins = " average_lines(" if kernel == "average_lines" else "SC_INLINE void across("
    begin = next(n for n, text in enumerate(texts, 1) if begins in text)
    here = {n for n in here if n > begin}
    assert here
    expected = S(x)
    assert np.isfinite(expected).all()
    for line in here:
        found = []
        for order in SCHEDULES:
            with schedule(order), barriers(without_line=line):
                found.append(S(x))
        assert not all(np.array_equal(one, expected) for one in found)


@pytest.mark.usefixtures("on_device")
def test_banks_that_do_not_fit_a_block_are_left_to_products_of_matrices(monkeypatch):
    monkeypatch.setattr(cuda_modules, "SHARED_NBYTES", 8000)
    S = TimeFrequencyScattering(3, 2, 128, Q=4)
    assert S._fused_cuda is None
