import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import cuda_problem, to_device, to_host
from scattercube.kernels.device import namespace
from scattercube.kernels.filterbank import Bank, Box, Lowpass
from scattercube.kernels.primitives import average, scatter_last, spectrum, wavelet_modulus
from tests.conftest import TOLERANCE

dtypes = st.sampled_from(["float32", "float64"])


@st.composite
def grids(draw):
    """(N, n) per axis, in one to three dimensions."""
    coarse = draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    return tuple(n * draw(st.sampled_from([1, 2, 4])) for n in coarse), tuple(coarse)


def random_bank(rng, grid, out, dtype, n_filters):
    boxes = []
    for _ in range(n_filters):
        shape = [int(rng.integers(1, N + 1)) for N in grid]
        origin = tuple(int(rng.integers(-(N // 2), N - w + 1)) for N, w in zip(grid, shape, strict=True))
        boxes.append(Box(origin, rng.standard_normal(shape).astype(dtype)))
    return boxes, Bank.of(boxes, grid, out)


def naive_modulus(x, box, grid, out):
    """|x ∗ ψ| by the whole grid, then one sample in N/n."""
    nd = len(grid)
    lanes = (1,) * (x.ndim - nd)
    axes = tuple(range(nd))
    product = np.fft.fftn(x.astype(np.float64), axes=axes) * box.dense(grid).reshape(grid + lanes)
    every = tuple(slice(None, None, N // n) for N, n in zip(grid, out, strict=True))
    return abs(np.fft.ifftn(product, axes=axes))[every]


@settings(deadline=None)
@given(grids(), dtypes, st.integers(1, 4), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 2**32 - 1))
def test_wavelet_modulus_is_filtering_then_sampling(grids, dtype, n_filters, lanes, seed):
    grid, out = grids
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(grid + lanes).astype(dtype)
    boxes, bank = random_bank(rng, grid, out, dtype, n_filters)
    # The blocks of the bank together hold every weight once.
    assert bank.weights.host.sum() == pytest.approx(sum(box.weights.sum() for box in boxes), abs=1e-3)
    X = spectrum(x, len(grid))
    U = wavelet_modulus(X, bank)
    assert U.dtype == dtype
    assert U.shape == (*out, n_filters, *lanes)
    for f, box in enumerate(boxes):
        expected = naive_modulus(x, box, grid, out)
        actual = U[(slice(None),) * len(grid) + (f,)]
        np.testing.assert_allclose(actual, expected, atol=20 * TOLERANCE[dtype])


@settings(deadline=None)
@given(grids(), dtypes, st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 2**32 - 1))
def test_average_is_circular_convolution_then_choice(grids, dtype, lanes, seed):
    grid, kept = grids
    nd = len(grid)
    rng = np.random.default_rng(seed)
    U = rng.standard_normal(grid + lanes).astype(dtype)
    spectra = [np.fft.fft(np.exp(-(np.fft.fftfreq(n) ** 2) * rng.uniform(1, 50))).real for n in grid]
    samples = [rng.integers(0, n, size=m) for n, m in zip(grid, kept, strict=True)]
    lowpass = Lowpass.of(spectra, samples, np.dtype(dtype))
    expected = np.fft.fftn(U.astype(np.float64), axes=tuple(range(nd)))
    for axis, s in enumerate(spectra):
        expected *= s.reshape((-1,) + (1,) * (expected.ndim - axis - 1))
    expected = np.fft.ifftn(expected, axes=tuple(range(nd))).real[np.ix_(*samples)]
    S = average(U, lowpass)
    assert S.dtype == dtype
    np.testing.assert_allclose(S, expected, atol=50 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scatter_last_is_the_average_of_the_modulus(xp, dtype):
    rng = np.random.default_rng(0)
    grid, out = (12, 8), (6, 4)
    _, bank = random_bank(rng, grid, out, dtype, 3)
    lowpass = Lowpass.of([np.ones(6), np.ones(4)], [np.arange(0, 6, 2), np.arange(0, 4, 2)], np.dtype(dtype))
    X = xp(spectrum(rng.standard_normal((12, 8, 5)).astype(dtype), 2))
    S = to_host(scatter_last(X, bank, lowpass))
    # An all-pass average is the choice of samples alone.
    np.testing.assert_allclose(S, to_host(wavelet_modulus(X, bank))[::2, ::2], atol=TOLERANCE[dtype])


def test_a_circular_shift_by_the_stride_shifts_the_result():
    rng = np.random.default_rng(0)
    grid, out = (24, 16), (6, 4)
    _, bank = random_bank(rng, grid, out, "float64", 4)
    x = rng.standard_normal((24, 16))
    shifted = np.roll(x, (8, -4), axis=(0, 1))
    expected = np.roll(wavelet_modulus(spectrum(x, 2), bank), (2, -1), axis=(0, 1))
    np.testing.assert_allclose(wavelet_modulus(spectrum(shifted, 2), bank), expected, atol=1e-12)


def test_a_spectrum_holds_fourier_coefficients():
    y = np.arange(12)[:, None]
    x = np.broadcast_to(3 + 2 * np.cos(2 * math.pi * 5 * y / 12), (12, 8))
    expected = np.zeros((12, 8))
    expected[0, 0], expected[5, 0], expected[-5, 0] = 3, 1, 1
    np.testing.assert_allclose(spectrum(x, 2), expected, atol=1e-14)


def test_host_arrays_stay_where_they_are():
    x = np.zeros(3)
    assert namespace(x) is np
    assert to_host(x) is x
    assert to_device(x, "cpu") is x


def test_a_missing_device_is_one_line_that_says_what_is_missing():
    problem = cuda_problem()
    if problem is None:
        pytest.skip("a CUDA device is here")
    assert "CuPy" in problem
    assert "\n" not in problem
    with pytest.raises(RuntimeError, match="CuPy"):
        to_device(np.zeros(3), "cuda")


def test_other_devices_and_other_arrays_are_refused():
    with pytest.raises(ValueError, match="device='tpu'"):
        to_device(np.zeros(3), "tpu")
    with pytest.raises(TypeError, match="list"):
        namespace([1.0])
