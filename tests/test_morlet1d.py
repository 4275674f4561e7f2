import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels.morlet import gaussian_spectrum, morlet_bank

DATA = Path(__file__).parent / "data"
F8 = np.dtype("float64")


def in_time(wavelet, n_points):
    """The sampled wavelet wound round a circle, of zero mean and unit L1 norm, from its definition."""
    copies = range(-math.ceil(1.5 / wavelet.sigma / n_points), math.ceil(1.5 / wavelet.sigma / n_points) + 1)
    t = np.arange(n_points) + n_points * np.array(copies)[:, None]
    gaussian = np.exp(-2 * (math.pi * wavelet.sigma * t) ** 2)
    wave = gaussian * np.exp(2j * math.pi * wavelet.xi * t)
    psi = (wave - wave.sum() / gaussian.sum() * gaussian).sum(axis=0)
    return psi / abs(psi).sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6), st.integers(1, 16), st.integers(16, 700), st.data())
def test_boxes_hold_the_spectrum_of_the_sampled_wavelet(J, Q, n_points, data):
    n_points = max(n_points, 2 ** (J + 1))
    wavelet = data.draw(st.sampled_from(morlet_bank(J, Q)))
    expected = np.fft.fft(in_time(wavelet, n_points)).real
    exact = wavelet.box(n_points, 1e-12, F8)
    np.testing.assert_allclose(exact.dense((n_points,)), expected, atol=1e-10)
    single = wavelet.box(n_points, 1e-6, np.dtype("float32"))
    assert single.weights.dtype == np.float32
    assert single.weights.size <= exact.weights.size
    dense = single.dense((n_points,))
    assert dense[0] == 0
    np.testing.assert_allclose(dense, expected, atol=3e-6 * max(1, abs(expected).max()))


@pytest.mark.parametrize(
    ("J", "Q", "n_points"), [(6, 1, 1024), (6, 8, 1024), (8, 12, 8192), (5, 2, 600), (10, 16, 2**15)]
)
def test_wavelets_have_zero_mean_unit_norm_and_peak_at_their_label(J, Q, n_points):
    for wavelet in morlet_bank(J, Q):
        psi_hat = wavelet.box(n_points, 1e-12, F8).dense((n_points,))
        assert psi_hat[0] == 0
        assert abs(np.fft.ifft(psi_hat)).sum() == pytest.approx(1, abs=1e-9)
        assert abs(psi_hat.argmax() / n_points - wavelet.xi) <= max(0.01 * wavelet.xi, 1 / n_points)


@pytest.mark.parametrize(("J", "Q"), [(6, 1), (6, 8), (9, 16)])
def test_subsampling_leaves_a_wavelet_below_the_border(J, Q):
    n_points = 2 ** (J + 3)
    f = abs(np.fft.fftfreq(n_points))
    for wavelet in morlet_bank(J, Q):
        psi_hat = wavelet.box(n_points, 1e-12, F8).dense((n_points,))
        if wavelet.j:
            border = 0.5 / 2**wavelet.j
            assert psi_hat[f >= border].max() < 1e-2 * psi_hat.max()
            assert wavelet.xi + 5 * wavelet.sigma <= border < 2 * (wavelet.xi + 5 * wavelet.sigma)


def test_a_wavelet_longer_than_the_circle_is_still_one():
    for wavelet in morlet_bank(6, 10):
        for n_points in (64, 75):
            box = wavelet.box(n_points, 1e-6, np.dtype("float32"))
            psi_hat = box.dense((n_points,)).astype(float)
            assert psi_hat[0] == 0
            assert abs(np.fft.ifft(psi_hat)).sum() == pytest.approx(1, abs=1e-5)


def test_a_bank_counted_by_hand():
    first, second = morlet_bank(6, 16), morlet_bank(6, 1)
    assert np.bincount([psi.j for psi in first]).tolist() == [18, 16, 15, 8, 4, 2]
    assert len(second) == 7
    assert sum(psi2.j > psi1.j for psi1 in first for psi2 in second) == 158
    assert [psi.n for psi in first] == list(range(63))
    np.testing.assert_allclose([psi.xi for psi in second], 0.35 / 2.0 ** np.arange(7))


def test_labels_are_the_peers():
    with np.load(DATA / "reference_1d.npz") as reference:
        for i, entry in enumerate(json.loads(str(reference["configs_json"]))):
            config = entry["config"]
            Q = config["Q"] if isinstance(config["Q"], list) else [config["Q"], 1]
            meta = [reference[f"meta_{name}{i}"] for name in ("n", "xi", "sigma", "j")]
            for m in range(meta[0].shape[1]):
                bank = morlet_bank(config["J"], Q[m])
                rows = np.flatnonzero(reference[f"meta_order{i}"] == m + 1)
                assert len(rows)
                for n, *label in zip(*(column[rows, m] for column in meta), strict=True):
                    psi = bank[int(n)]
                    assert (psi.xi, psi.sigma, psi.j) == pytest.approx(tuple(label), rel=1e-12)


def test_the_low_pass_is_a_gaussian_of_unit_norm():
    for sigma, n_points in ((0.1, 12), (0.1, 65), (0.1 / 16, 256), (0.1 / 64, 100), (0.4, 9)):
        phi_hat = gaussian_spectrum(sigma, n_points)
        t = np.arange(n_points) + n_points * np.arange(-60, 61)[:, None]
        phi = np.exp(-2 * (math.pi * sigma * t) ** 2).sum(axis=0)
        np.testing.assert_allclose(np.fft.ifft(phi_hat), phi / phi.sum(), atol=1e-14)


def test_impossible_banks_are_refused():
    with pytest.raises(ValueError, match="J=-1"):
        morlet_bank(-1, 1)
    with pytest.raises(ValueError, match="Q=0"):
        morlet_bank(2, 0)
