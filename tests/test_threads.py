"""Threads of the portable primitives."""

import time

import numpy as np
import pytest

from scattercube.kernels import TimeFrequencyScattering
from scattercube.kernels.bands import _SERIAL_PRODUCT
from scattercube.kernels.threads import workers


@pytest.mark.parametrize("threads", [1, 3])
def test_work_is_done_in_order(threads):
    with workers(threads) as share:
        assert share(lambda a, b: a - b, range(50), range(0, 100, 2)) == [-n for n in range(50)]


def test_work_is_cut_evenly():
    with workers(3) as share:
        assert share.slices(7) == [slice(0, 2), slice(2, 4), slice(4, 7)]
        assert share.slices(1) == [slice(0, 1)]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_through(threads):
    with pytest.raises(ZeroDivisionError), workers(threads) as share:
        share(lambda n: 1 // n, [1, 0])


def test_products_across_bands_are_too_small_for_the_threads_of_blas():
    S = TimeFrequencyScattering(8, 3, 2**14, Q=8)
    for stage in (S._order_1, *S._stages):
        bank = stage.bank
        for n in (bank.n_bands, bank.n_outputs):
            assert len(bank.kernels.host) * n * bank.lanes_in_a_product <= _SERIAL_PRODUCT


def test_a_portable_joint_transform_keeps_to_one_thread(monkeypatch):
    """Measured in processor time: threads that BLAS starts would double it on two cores."""
    monkeypatch.setenv("SCATTERCUBE_ENGINE", "portable")
    S = TimeFrequencyScattering(8, 3, 2**13, Q=8)
    vars(S)["_fused"] = None
    for stage in (S._order_1, *S._stages):
        vars(stage.bank)["fused"] = None
    x = np.random.default_rng(0).standard_normal(2**13).astype("float32")
    g = np.ones_like(S(x))
    S.adjoint(x, g)
    processor, wall = time.process_time(), time.perf_counter()
    S(x)
    S.adjoint(x, g)
    assert time.process_time() - processor < 1.3 * (time.perf_counter() - wall) + 0.02
