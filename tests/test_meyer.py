import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import to_host
from scattercube.kernels.device import namespace
from scattercube.kernels.filterbank import fold
from scattercube.kernels.meyer import Meyer2D, TightFrame, meyer_bank, meyer_spectrum
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from tests.conftest import relative_error

DOUBLE = np.dtype("float64")
ROUNDING = {"float32": 1e-6, "float64": 1e-12}


def noise(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def frames(draw):
    """J, a shape whose sizes are multiples of 2^J, and the bank's other parameter; one or two dimensions."""
    J = draw(st.integers(1, 5))
    if draw(st.booleans()):
        return {"J": J, "shape": (draw(st.integers(1, 9)) << J,), "Q": draw(st.integers(1, 20))}
    J = min(J, 3)
    return {
        "J": J,
        "shape": (draw(st.integers(1, 5)) << J, draw(st.integers(1, 5)) << J),
        "L": draw(st.integers(3, 12)),
    }


def boxes(frame, truncation=1e-14):
    """Every wavelet's scale and its box on the frame's grid."""
    return [(j, psi.box(frame.shape, truncation, DOUBLE)) for j, group in enumerate(frame.psi) for psi in group]


def energy(arrays):
    return sum(np.sum(abs(to_host(a)).astype(np.float64) ** 2) for a in arrays)


# --- The sum of squares ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(deadline=None)
@given(frames())
def test_squared_spectra_sum_to_one(dtype, parameters):
    np.testing.assert_allclose(TightFrame(**parameters, dtype=dtype).littlewood_paley(), 1, atol=ROUNDING[dtype])


@settings(deadline=None)
@given(frames())
def test_the_sum_is_that_of_the_folded_filters(parameters):
    """The same sum, written out over dense spectra, on the grid and on every coarser one that a cascade meets."""
    frame = TightFrame(**parameters)
    low = [meyer_spectrum(2**frame.J, n) for n in frame.shape]
    for r in range(frame.J):
        grid = tuple(n >> r for n in frame.shape)
        psi_hats = [fold(box, grid).dense(grid) for j, box in boxes(frame) if j >= r]
        power = np.sum(np.square(psi_hats), axis=0)
        mirrored = power[np.ix_(*(-np.arange(n) % n for n in grid))]
        phis = [spectrum[np.arange(n) - n * (2 * np.arange(n) > n)] for spectrum, n in zip(low, grid, strict=True)]
        phi = phis[0] if len(phis) == 1 else np.outer(*phis)
        np.testing.assert_allclose(phi**2 + (power + mirrored) / 2, 1, atol=1e-12)


@settings(deadline=None)
@given(frames(), st.data())
def test_a_folded_bank_is_the_bank_of_the_coarser_grid(parameters, data):
    frame = TightFrame(**parameters)
    r = data.draw(st.integers(0, frame.J - 1))
    grid = tuple(n >> r for n in frame.shape)
    coarse = TightFrame(**{**parameters, "J": frame.J - r, "shape": grid})
    assert [len(group) for group in coarse.psi] == [len(group) for group in frame.psi[r:]]
    fine_boxes = [box for j, box in boxes(frame) if j >= r]
    for fine, (_, box) in zip(fine_boxes, boxes(coarse), strict=True):
        np.testing.assert_allclose(fold(fine, grid).dense(grid), box.dense(grid), atol=1e-12)
    for n, m in zip(frame.shape, grid, strict=True):
        kept = np.fft.fftshift(meyer_spectrum(2**frame.J, n))[n // 2 - m // 2 : n // 2 + (m + 1) // 2]
        np.testing.assert_allclose(np.fft.fftshift(meyer_spectrum(2.0 ** (frame.J - r), m)), kept, atol=1e-12)


@settings(deadline=None)
@given(frames())
def test_a_scales_grid_holds_its_wavelets_without_aliases(parameters):
    frame = TightFrame(**parameters)
    for j, box in boxes(frame):
        assert all(hi - lo <= n >> j for (lo, hi), n in zip(box.spans, frame.shape, strict=True))
        assert np.sum(np.square(box.dense(frame.shape))[(0,) * len(frame.shape)]) == 0  # the mean


# --- The wavelets ---


@pytest.mark.parametrize("j", [0, 1, 2])
def test_one_wavelet_an_octave_is_meyers(j):
    """Daubechies (1992), section 4.2, on positive frequencies; its ψ peaks between 2π/3 and 8π/3, so at scale −1."""
    grid = 240

    def nu(t):
        t = np.minimum(np.maximum(t, 0), 1)
        return 35 * t**4 - 84 * t**5 + 70 * t**6 - 20 * t**7

    omega = 2 * np.pi * np.arange(2 * grid) / grid * 2 ** (j + 1)
    rise = np.sin(np.pi / 2 * nu(3 * omega / (2 * np.pi) - 1)) * (omega <= 4 * np.pi / 3)
    fall = np.cos(np.pi / 2 * nu(3 * omega / (4 * np.pi) - 1)) * (omega > 4 * np.pi / 3)
    expected = math.sqrt(2) * (rise + fall).reshape(2, grid).sum(axis=0)
    psi = meyer_bank(4, 1)[j]
    np.testing.assert_allclose(psi.box(grid, 1e-14, DOUBLE).dense((grid,)), expected, atol=1e-12)


@pytest.mark.parametrize(("J", "Q"), [(3, 1), (6, 1), (6, 3), (8, 8), (2, 8), (10, 12), (7, 16)])
def test_labels_of_constant_q_wavelets(J, Q):
    n_points = 1 << (J + 10)
    bank = meyer_bank(J, Q)
    assert [psi.n for psi in bank] == list(range(len(bank)))
    assert all(a.xi > b.xi and a.j <= b.j for a, b in pairwise(bank))
    assert sorted({psi.j for psi in bank}) == list(range(J))
    for psi in bank:
        box = psi.box(n_points, 1e-12, DOUBLE)
        power = np.square(box.weights)
        k = box.origin[0] + np.arange(len(power))
        flat = k[power > power.max() * (1 - 1e-9)]
        assert power.max() == pytest.approx(2, rel=1e-6)
        assert (flat[0] + flat[-1]) / 2 == pytest.approx(psi.xi * n_points, rel=0.01)
        band = np.count_nonzero(power >= 1) / n_points
        assert band / (2 * math.sqrt(math.log(2))) == pytest.approx(psi.sigma, abs=2 / n_points)
        assert 2.0 ** -(psi.j + 2) < psi.outer.cutoff <= 2.0 ** -(psi.j + 1)
    octaves = [psi for psi in bank if psi.inner.cutoff * 2 ** (J + 1) >= 2 ** math.ceil(math.log2(Q)) * (1 + 1e-9)]
    assert len(octaves) == max(0, Q * (J - math.ceil(math.log2(Q))) - 1)
    ratios = [psi.xi / psi.sigma for psi in octaves]
    np.testing.assert_allclose(ratios, ratios[:1] * len(ratios), rtol=1e-9)
    spacing = [a.xi / b.xi for a, b in pairwise(octaves)]
    np.testing.assert_allclose(spacing, 2 ** (1 / Q), rtol=1e-9)


@pytest.mark.parametrize("L", [3, 4, 5, 8])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_labels_of_oriented_wavelets(j, L):
    grid = (720, 960)
    for theta in range(L):
        psi = Meyer2D.at(j, theta, L, 3)
        spectrum = psi.box(grid, 1e-12, DOUBLE).dense(grid)
        direction = math.cos(psi.alpha), math.sin(psi.alpha)
        assert spectrum.max() == pytest.approx(math.sqrt(2), rel=1e-6)

        def along(omega, spectrum=spectrum, direction=direction):
            """The spectrum at the bin next to a point of the ray along the wave vector."""
            bins = (round(omega / (2 * math.pi) * c * n) for c, n in zip(direction, grid, strict=True))
            return spectrum[tuple(k % n for k, n in zip(bins, grid, strict=True))]

        assert along(psi.xi) == pytest.approx(math.sqrt(2), rel=1e-3)
        assert along(-psi.xi) == 0
        # On an axis, the squared spectrum is half its peak where the Gaussian's is.
        if psi._nearness > 1 - 1e-9:
            band = psi.outer.cutoff - psi.inner.cutoff
            assert psi.sigma == pytest.approx(math.sqrt(math.log(2)) / (math.pi * band))
            assert along(2 * math.pi * psi.outer.cutoff) ** 2 == pytest.approx(1, abs=0.1)
            assert along(2 * math.pi * psi.inner.cutoff) ** 2 == pytest.approx(1, abs=0.1)


def test_a_trimmed_box_has_lost_nothing():
    psi = Meyer2D.at(1, 2, 8, 3)
    whole, cut = psi.box((96, 80), 0, DOUBLE), psi.box((96, 80), 1e-3, DOUBLE)
    assert cut.weights.size < whole.weights.size
    np.testing.assert_allclose(cut.dense((96, 80)), whole.dense((96, 80)), atol=1.5e-3)


# --- The transform ---


@pytest.mark.parametrize("parameters", [{"J": 3, "shape": (72,), "Q": 4}, {"J": 2, "shape": (20, 28), "L": 5}])
def test_coefficients_are_samples_of_convolutions(parameters):
    frame = TightFrame(**parameters, dtype="float64")
    axes = tuple(range(-len(frame.shape), 0))
    x = noise(2, 3, *frame.shape)
    X = np.fft.fftn(x, axes=axes)
    low, details = frame.analyse(x)
    for group, coefficients in zip(frame.psi, details, strict=True):
        for f, psi in enumerate(group):
            y = np.fft.ifftn(X * psi.box(frame.shape, 1e-14, DOUBLE).dense(frame.shape), axes=axes)
            every = (..., *(slice(None, None, 2**psi.j),) * len(axes))
            actual = np.moveaxis(coefficients, 2, 0)[f]
            np.testing.assert_allclose(actual, 2 ** (psi.j * len(axes) / 2) * y[every], atol=1e-12)
    phis = [meyer_spectrum(2**frame.J, n) for n in frame.shape]
    smooth = np.fft.ifftn(X * (phis[0] if len(phis) == 1 else np.outer(*phis)), axes=axes).real
    every = (..., *(slice(None, None, 2**frame.J),) * len(axes))
    np.testing.assert_allclose(low, 2 ** (frame.J * len(axes) / 2) * smooth[every], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(deadline=None)
@given(parameters=frames(), leading=st.lists(st.integers(0, 3), max_size=2), seed=st.integers(0, 99))
def test_energy_is_kept_and_the_signal_comes_back(dtype, parameters, leading, seed):
    frame = TightFrame(**parameters, dtype=dtype)
    x = noise(*leading, *frame.shape, dtype=dtype, seed=seed)
    low, details = frame.analyse(x)
    back = frame.reconstruct(low, details)
    assert low.dtype == back.dtype == dtype
    assert back.shape == x.shape
    assert energy([low, *details]) == pytest.approx(energy([x]), rel=ROUNDING[dtype])
    np.testing.assert_allclose(back, x, atol=6 * ROUNDING[dtype])
    if x.size:
        assert relative_error(back, x) < ROUNDING[dtype]


@pytest.mark.parametrize("parameters", [{"J": 3, "shape": (64,), "Q": 4}, {"J": 2, "shape": (16, 24), "L": 4}])
def test_every_namespace(xp, parameters):
    frame = TightFrame(**parameters)
    x = noise(2, *frame.shape, dtype="float32")
    low, details = frame.analyse(xp(x))
    assert all(namespace(c) is namespace(xp(x)) for c in [low, *details])
    assert relative_error(to_host(frame.reconstruct(low, details)), x) < ROUNDING["float32"]


@settings(deadline=None)
@given(frames())
def test_reconstruction_is_the_adjoint(parameters):
    frame = TightFrame(**parameters, dtype="float64")
    x = noise(*frame.shape)
    low, details = frame.analyse(x)
    other = noise(*low.shape, seed=1)
    others = [noise(*d.shape, seed=2) + 1j * noise(*d.shape, seed=3) for d in details]
    pairs = zip([low, *details], [other, *others], strict=True)
    product = sum(np.vdot(a, b).real for a, b in pairs)
    assert np.vdot(x, frame.reconstruct(other, others)) == pytest.approx(product, abs=1e-10)


def test_integers_are_converted():
    frame = TightFrame(2, (16,), Q=2)
    x = np.arange(16)
    assert relative_error(frame.reconstruct(*frame.analyse(x)), x) < ROUNDING["float32"]
    assert frame.analyse(x > 4)[0].dtype == np.float32


# --- What is refused ---


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"J": 0, "shape": (16,)}, "J=0"),
        ({"J": -1, "shape": (16, 16)}, "J=-1"),
        ({"J": 2, "shape": (16,), "Q": 0}, "Q=0"),
        ({"J": 2, "shape": (18,)}, "multiple of 4"),
        ({"J": 2, "shape": (0,)}, "multiple of 4"),
        ({"J": 2, "shape": (16, 18)}, "multiple of 4"),
        ({"J": 2, "shape": (16, 16), "L": 2}, "L ≥ 3"),
        ({"J": 2, "shape": (16, 16, 16)}, r"\(N,\) or \(H, W\)"),
        ({"J": 2, "shape": ()}, r"\(N,\) or \(H, W\)"),
        ({"J": 2, "shape": (16,), "dtype": "float16"}, "float16"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        TightFrame(**parameters)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros(16, dtype=complex), TypeError, "complex128"),
        (np.zeros((16, 2)), ValueError, r"\(16, 2\)"),
        (np.full(16, np.nan), ValueError, "finite"),
        (np.full(16, 1e300), ValueError, "finite"),
        ([0.0] * 16, TypeError, "list"),
    ],
)
def test_signals_that_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        TightFrame(2, (16,)).analyse(x)


@pytest.mark.parametrize(
    ("transform", "parameters", "message"),
    [
        (Scattering1D, {"J": 0, "shape": 16}, "J=0"),
        (Scattering1D, {"J": 2, "shape": 16, "padding": "support"}, "support"),
        (Scattering2D, {"J": 2, "shape": (16, 16), "padding": "kymatio"}, "kymatio"),
        (Scattering2D, {"J": 2, "shape": (16, 16), "L": 2}, "L=2"),
        (Scattering2D, {"J": 2, "shape": (16, 16), "wavelet": "haar"}, "haar"),
    ],
)
def test_what_scattering_with_meyers_wavelets_refuses(transform, parameters, message):
    with pytest.raises(ValueError, match=message):
        transform(**{"wavelet": "meyer", **parameters})
