import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scattercube.kernels import Scattering2D
from scattercube.kernels.filterbank import Box, crop, fold
from scattercube.kernels.morlet import Morlet, gaussian_box
from tests import naive


@st.composite
def boxes(draw):
    """A box that fits a grid, and a grid that is coarser by an even or odd factor per axis."""
    coarse, factors, origin, shape = [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        coarse.append(2 * draw(st.integers(1, 4)))
        factors.append(draw(st.sampled_from([1, 2, 3])))
        n = coarse[-1] * factors[-1]
        low = draw(st.integers(-(n // 2), n // 2 - 1))
        origin.append(low)
        shape.append(draw(st.integers(1, n // 2 - low)))
    weights = draw(hnp.arrays(np.float64, tuple(shape), elements=st.floats(-1, 1, width=32)))
    return Box(tuple(origin), weights), tuple(np.multiply(coarse, factors)), tuple(coarse)


@settings(deadline=None)
@given(boxes())
def test_folding_samples_the_filter_in_space(case):
    box, grid, coarse = case
    every = tuple(slice(None, None, N // n) for N, n in zip(grid, coarse, strict=True))
    in_space = np.fft.ifftn(box.dense(grid))[every] * math.prod(grid) / math.prod(coarse)
    np.testing.assert_allclose(np.fft.ifftn(fold(box, coarse).dense(coarse)), in_space, atol=1e-12)


@settings(deadline=None)
@given(boxes())
def test_cropping_keeps_the_low_frequencies(case):
    box, grid, coarse = case
    cropped = np.fft.fftshift(crop(box, coarse).dense(coarse))
    middle = tuple(slice(N // 2 - n // 2, N // 2 + n - n // 2) for N, n in zip(grid, coarse, strict=True))
    np.testing.assert_array_equal(cropped, np.fft.fftshift(box.dense(grid))[middle])


@pytest.mark.parametrize(("L", "shape", "J"), [(8, (24, 40), 3), (4, (32, 20), 2), (5, (33, 18), 2), (1, (16, 16), 1)])
def test_closed_form_spectra_are_those_of_filters_sampled_in_space(L, shape, J):
    S = Scattering2D(J, shape, L=L, dtype="float64")
    grid = S.phi_hat().shape
    for j in range(J):
        for t, alpha in enumerate(naive.angles(L)):
            expected = np.fft.fft2(naive.morlet(grid, j, alpha, L))
            np.testing.assert_allclose(S.psi_hat(j, t), expected, atol=1e-11)
    np.testing.assert_allclose(S.phi_hat(), np.fft.fft2(naive.lowpass(grid, J)), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padding", ["minimal", "support", "kymatio"])
def test_wavelets_have_zero_mean_whatever_the_truncation(dtype, padding):
    S = Scattering2D(3, (40, 56), L=6, padding=padding, dtype=dtype)
    assert max(abs(S.psi_hat(j, t)[0, 0]) for j in range(3) for t in range(6)) < 1e-12
    constant = S(np.full((40, 56), 3.0, dtype=dtype))
    assert abs(constant[1:]).max() < (1e-6 if dtype == "float32" else 1e-12)
    amplitude = math.pi / 3.1415 if padding == "kymatio" else 1.0
    np.testing.assert_allclose(constant[0], 3 * amplitude, rtol=1e-6)


@pytest.mark.parametrize("j", [0, 1, 2])
def test_wavelets_peak_at_their_label(j):
    L = 8
    S = Scattering2D(3, (504, 504), L=L, max_order=1, dtype="float64")
    n = S.phi_hat().shape[0]
    frequencies = np.fft.fftfreq(n)
    for t in range(L):
        row = S.paths.rows[(j,)][t]
        spectrum = abs(S.psi_hat(j, t))
        y, x = (frequencies[k] for k in np.unravel_index(spectrum.argmax(), spectrum.shape))
        # The Gaussian that takes the mean away pushes the peak outwards, by 2.9 % since σξ = 0.6π; bins are 1/n wide.
        assert math.hypot(x, y) == pytest.approx(1.029 * S.paths.columns["xi1"][row], abs=1 / n)
        angle = math.degrees(math.atan2(y, x)) % 180
        tolerance = math.degrees(1 / n / math.hypot(x, y))
        assert abs((angle - S.paths.columns["theta1"][row] + 90) % 180 - 90) < tolerance


@pytest.mark.parametrize("j", [1, 2, 3])
def test_sigma_is_the_width_across_the_stripes(j):
    S = Scattering2D(4, (96, 96), L=8, dtype="float64")
    row = S.paths.rows[(j,)][3]
    sigma, xi = S.paths.columns["sigma1"][row], 2 * math.pi * S.paths.columns["xi1"][row]
    assert S.paths.columns["theta1"][row] == 90  # the wave vector along y
    y = np.arange(int(2 * sigma) + 1)
    K = math.exp(-((sigma * xi) ** 2) / 2)
    gaussian = abs(np.fft.ifft2(S.psi_hat(j, 3)))[y, 0] / np.sqrt(1 + K**2 - 2 * K * np.cos(xi * y))
    curvature = np.polyfit(y, np.log(gaussian), 2)[0]
    assert curvature == pytest.approx(-1 / (2 * sigma**2), rel=1e-6)


def test_subsampling_by_its_scale_aliases_little_of_a_wavelets_energy():
    S = Scattering2D(4, (240, 240), L=8, dtype="float64")
    omega = 2 * math.pi * np.fft.fftfreq(S.phi_hat().shape[0])
    for j in range(1, 4):
        for t in range(8):
            wavelet = Morlet.at(j, t, 8)
            y, x = (
                abs(omega - wavelet.xi * c) <= math.pi / 2**j
                for c in (math.cos(wavelet.alpha), math.sin(wavelet.alpha))
            )
            energy = S.psi_hat(j, t) ** 2
            assert energy[np.ix_(y, x)].sum() > 0.99 * energy.sum()


@pytest.mark.parametrize(("J", "L"), [(2, 8), (3, 8), (4, 6)])
def test_littlewood_paley_sum(J, L):
    S = Scattering2D(J, (64, 80), L=L, dtype="float64")
    grid = S.phi_hat().shape
    wavelets = sum(abs(np.fft.fft2(naive.morlet(grid, j, a, L))) ** 2 for j in range(J) for a in naive.angles(L))
    mirrored = wavelets[np.ix_(-np.arange(grid[0]) % grid[0], -np.arange(grid[1]) % grid[1])]
    expected = abs(np.fft.fft2(naive.lowpass(grid, J))) ** 2 + (wavelets + mirrored) / 2
    actual = S.littlewood_paley()
    np.testing.assert_allclose(actual, expected, atol=1e-10)
    assert actual[0, 0] == pytest.approx(1, abs=1e-10)
    assert actual.max() < 1.1  # the transform is nearly non-expansive
    y, x = (2 * math.pi * np.fft.fftfreq(n) for n in grid)
    assert actual[np.hypot(y[:, None], x) < 3 * math.pi / 4].min() > 0.5  # and loses no frequency but the corners


def test_gaussian_box_is_the_spectrum_of_a_sampled_gaussian():
    n, sigma = 24, 0.8
    u = np.arange(n) + n * np.arange(-3, 4)[:, None]
    sampled = np.exp(-(u**2) / (2 * sigma**2)).sum(axis=0) / (sigma * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(gaussian_box(sigma, n).dense((n,)), np.fft.fft(sampled).real, atol=1e-12)


def test_digest_names_the_filters():
    def digest(*args, **kwargs):
        return Scattering2D(*args, **kwargs).filter_digest

    first = digest(2, (16, 20), L=4)
    assert first == digest(2, (16, 20), L=4)
    assert len(first) == 12
    others = [
        digest(2, (16, 20), L=4, dtype="float64"),
        digest(2, (16, 20), L=4, padding="kymatio"),
        digest(2, (20, 16), L=4),
        digest(2, (16, 21), L=4),
        digest(2, (16, 20), L=3),
        digest(3, (16, 20), L=4),
        digest(2, (16, 20), L=4, max_order=1),
    ]
    assert len({first, *others}) == 8
