"""Moduli across bands on the compiled engine against the portable primitive."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels.bands import BandBank, modulus_across
from scattercube.kernels.device import Constant
from scattercube.kernels.engine import library

pytestmark = pytest.mark.skipif(
    library.active_engine() == "portable", reason="the engine was not compiled, or is not wanted"
)
EQUAL = {"float32": 1e-6, "float64": 1e-14}


def complex_noise(generator, dtype, *shape):
    pair = generator.standard_normal((2, *shape)).astype(dtype)
    return pair[0] + 1j * pair[1]


def portable(Y, bank):
    """The same, left to the primitive."""
    twin = BandBank(bank.kernels, bank.smoothing)
    vars(twin)["fused"] = None
    return modulus_across(Y, twin)


def random_bank(generator, dtype, rows, bands, outputs):
    """Kernels of which some entries at the ends of rows are zero, and a sparse smoothing."""
    kernels = complex_noise(generator, dtype, rows, bands)
    first, last = np.sort(generator.integers(0, bands + 1, (2, rows)), axis=0)
    place = np.arange(bands)
    kernels[(place < first[:, None]) | (place >= last[:, None])] = 0
    smoothing = generator.standard_normal((outputs, rows)).astype(dtype) * (generator.random((outputs, rows)) < 0.5)
    return BandBank(Constant(kernels), Constant(smoothing))


def unsmoothed(bank):
    return BandBank(bank.kernels, Constant(np.eye(len(bank.kernels.host), dtype=bank.smoothing.host.dtype)))


def paired(bank):
    """A bank that has the conjugate of every kernel too."""
    kernels, smoothing = bank.kernels.host, bank.smoothing.host
    return BandBank(
        Constant(np.concatenate([kernels, kernels.conj()])), Constant(np.hstack([smoothing, smoothing[::-1]]))
    )


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (40, 30, 12))),
    lanes=st.integers(1, 150),
    dtype=st.sampled_from(["float32", "float64"]),
    threads=st.integers(1, 3),
    has_conjugates=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_engine_equals_the_primitive(sizes, lanes, dtype, threads, has_conjugates, seed):
    generator = np.random.default_rng(seed)
    bank = random_bank(generator, dtype, *sizes)
    if has_conjugates:
        bank = paired(bank)
    Y = complex_noise(generator, dtype, sizes[1], 2, lanes)
    expected = portable(Y, bank)
    found = modulus_across(Y, bank, threads)
    assert found.shape == expected.shape == (sizes[2], 2, lanes)
    assert found.dtype == dtype
    largest = abs(bank.smoothing.host).sum(axis=1).max() * abs(portable(Y, unsmoothed(bank))).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=EQUAL[dtype] * max(largest, 1e-30))


def test_what_lies_side_by_side_does_not_matter():
    """Each lane has the bits it has alone, wherever it stands, and real bands count as complex ones."""
    generator = np.random.default_rng(0)
    bank = random_bank(generator, "float32", 20, 9, 5)
    Y = generator.standard_normal((9, 77)).astype("float32")
    whole = modulus_across(Y, bank)
    np.testing.assert_array_equal(modulus_across(Y[:, 13:50], bank, threads=2), whole[:, 13:50])
    np.testing.assert_array_equal(modulus_across(Y.astype("complex64"), bank, threads=3), whole)
    np.testing.assert_array_equal(modulus_across(np.asfortranarray(Y), bank), whole)
