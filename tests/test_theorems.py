"""The theorems of scattering, as properties: energy, contraction, covariance, invariance, stability to deformations.

The theorems named are those of S. Mallat, "Group invariant scattering", Comm. Pure Appl. Math. 65 (2012).
``python -m tests.test_theorems`` prints the figures behind them.
"""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scattercube.kernels.meyer import TightFrame
from scattercube.kernels.scattering import Scattering1D, Scattering2D

WAVELETS = ("morlet", "meyer")
ENERGY = {"float32": 1e-5, "float64": 1e-12}
"""Relative error of a sum of energies that rounding may leave."""


@cache
def scattering(nd, J, size, max_order=2, wavelet="meyer", dtype="float64", **parameters):
    """A transform of periodic signals or square images."""
    kind, shape = (Scattering1D, size) if nd == 1 else (Scattering2D, (size, size))
    return kind(J, shape, max_order=max_order, padding="periodic", wavelet=wavelet, dtype=dtype, **parameters)


@cache
def tight_frame(J, shape, **parameters):
    return TightFrame(J, shape, dtype="float64", **parameters)


def camera(size):
    """A natural image, its mean taken away."""
    from skimage import data

    image = data.camera().astype(np.float64) / 255
    step = len(image) // size
    image = image.reshape(size, step, size, step).mean(axis=(1, 3))
    return image - image.mean()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


SIGNALS = {"camera": camera, "image of noise": lambda size: noise(size, size), "noise": lambda size: noise(size**2)}


def energy(x):
    return float(np.sum(abs(x).astype(np.float64) ** 2))


def volume(S):
    """Input samples for each output sample: the weight that makes a sum over outputs an integral."""
    return math.prod(S.shape) / math.prod(S.output_shape[1:])


def energies(S, x):
    """The energy of the coefficients of each order."""
    coefficients, order = S(x), S.paths.columns["order"]
    return [volume(S) * energy(coefficients[order == m]) for m in range(order.max() + 1)]


def tree(x, J, max_order, banks, rising):
    """The energy of each order, of what is left after the last, and of paths left out, by repeated wavelet transforms.

    A signal kept at one sample in 2^r meets the wavelets of scales 2^r and above; where ``rising``, a path goes on to
    larger scales only.
    """
    layer, orders, left_out = [(0, x[None])], [], 0.0
    for m in range(max_order + 1):
        low, deeper = 0.0, []
        for r, U in layer:
            smooth, details = tight_frame(J - r, U.shape[1:], **banks[min(m, len(banks) - 1)]).analyse(U)
            low += energy(smooth)
            for j, detail in enumerate(details):
                if rising and m and not j:
                    left_out += energy(detail)
                else:
                    deeper.append((r + j, abs(detail).reshape(-1, *detail.shape[2:])))
        orders.append(low)
        layer = deeper
    return orders, sum(energy(U) for _, U in layer), left_out


@st.composite
def cases(draw, max_order=2):
    """Parameters of a transform of periodic arrays, and how many such arrays to draw."""
    nd, J = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    size = draw(st.integers(1, 5 if nd == 1 else 2)) << J
    parameters = {"Q": (draw(st.integers(1, 5)), 1)} if nd == 1 else {"L": draw(st.integers(3, 5))}
    return {"nd": nd, "J": J, "size": size, "max_order": draw(st.integers(0, max_order)), **parameters}


def arrays(case):
    """Few values and plain ones, or noise."""
    shape = (case["size"],) * case["nd"]
    elements = st.floats(-1, 1, width=16, allow_subnormal=False)
    return hnp.arrays(np.float64, shape, elements=elements) | st.integers(0, 99).map(lambda s: noise(*shape, seed=s))


def banks(case):
    return [{"Q": q} for q in case["Q"]] if case["nd"] == 1 else [{"L": case["L"]}]


# --- Energy (Theorem 2.6) ---


@settings(deadline=None)
@given(st.data())
def test_orders_and_remainder_have_the_energy_of_the_signal(data):
    case = data.draw(cases(max_order=3))
    x = data.draw(arrays(case))
    orders, rest, _ = tree(x, case["J"], case["max_order"], banks(case), rising=False)
    assert sum(orders) + rest == pytest.approx(energy(x), rel=1e-12, abs=1e-20)


@pytest.mark.parametrize(("nd", "parameters"), [(1, {"Q": (3, 2)}), (1, {"Q": (1, 1)}), (2, {"L": 4})])
def test_the_transform_is_made_of_repeated_wavelet_transforms(nd, parameters):
    J, size = 4, 96 if nd == 1 else 32
    S, x = scattering(nd, J, size, **parameters), noise(*((size,) * nd))
    rows, expected = S.paths.rows, np.full(S.output_shape, np.nan)

    def analyse(U, j, m):
        return tight_frame(J - j, U.shape[-nd:], **banks({"nd": nd, **parameters})[min(m, nd % 2)]).analyse(U)

    expected[rows[()]], details = analyse(x, 0, 0)
    for j1, detail in enumerate(details):
        expected[rows[j1,]], deeper = analyse(abs(detail), j1, 1)
        for j2, U in enumerate(deeper[1:], start=j1 + 1):
            expected[rows[j1, j2]], _ = analyse(abs(U), j2, 1)
    np.testing.assert_allclose(math.sqrt(volume(S)) * S(x), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", sorted(ENERGY))
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_the_transform_keeps_the_energy_of_rising_paths(dtype, data):
    case = data.draw(cases(max_order=3))
    S = scattering(**case, dtype=dtype)
    x = data.draw(arrays(case))
    orders, rest, left_out = tree(x, case["J"], case["max_order"], banks(case), rising=True)
    actual = energies(S, x)
    total = energy(x)
    assert actual == pytest.approx(orders[: len(actual)], rel=ENERGY[dtype], abs=ENERGY[dtype] * total + 1e-20)
    assert sum(actual) + rest + left_out == pytest.approx(total, rel=ENERGY[dtype], abs=1e-20)


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("signal", sorted(SIGNALS))
def test_energy_falls_with_the_order(signal, wavelet):
    x = SIGNALS[signal](64)
    parameters = {"L": 4} if x.ndim == 2 else {"Q": (1, 1)}
    S = scattering(x.ndim, 4 if x.ndim == 2 else 6, len(x), max_order=3, wavelet=wavelet, **parameters)
    _, *orders = energies(S, x)
    assert all(high > 2 * low for high, low in pairwise(orders))


# --- Contraction (Proposition 2.5) ---


@settings(deadline=None)
@given(st.data())
def test_the_transform_does_not_expand_distances(data):
    case = data.draw(cases())
    S = scattering(**case)
    x, y = data.draw(arrays(case)), data.draw(arrays(case))
    y = x + data.draw(st.sampled_from([1, 1e-3, 1e-6])) * y
    distance = math.sqrt(volume(S)) * np.linalg.norm(S(y) - S(x))
    assert distance <= np.linalg.norm(y - x) * (1 + 1e-9) + 1e-15


# --- Shifts (Theorem 2.10) ---


@pytest.mark.parametrize("wavelet", WAVELETS)
@settings(deadline=None)
@given(data=st.data())
def test_a_shift_by_the_stride_shifts_the_output(wavelet, data):
    case = data.draw(cases())
    S = scattering(**case, wavelet=wavelet)
    x = noise(*S.shape, seed=data.draw(st.integers(0, 9)))
    steps = tuple(data.draw(st.integers(0, 9)) for _ in S.shape)
    axes = tuple(range(-len(steps), 0))
    shifted = S(np.roll(x, np.multiply(steps, 2 ** case["J"]), axis=axes))
    np.testing.assert_allclose(shifted, np.roll(S(x), steps, axis=axes), atol=1e-12)


def shift_errors(nd, scales, wavelet):
    """‖S x_c − S x‖ / ‖S x‖ for an impulse shifted by one sample, for each J."""
    size, parameters = (4096, {"Q": (1, 1)}) if nd == 1 else (128, {"L": 4})
    x = np.zeros((size,) * nd)
    x[(size // 2 - 37,) * nd] = 1
    errors = []
    for J in scales:
        S = scattering(nd, J, size, wavelet=wavelet, **parameters)
        here = S(x)
        errors.append(float(np.linalg.norm(S(np.roll(x, 1, axis=-1)) - here) / np.linalg.norm(here)))
    return errors


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize(("nd", "scales"), [(1, range(2, 9)), (2, range(2, 6))])
def test_a_fixed_shift_matters_less_as_the_scale_grows(nd, scales, wavelet):
    errors = shift_errors(nd, scales, wavelet)
    assert all(high > low for high, low in pairwise(errors))
    constants = [error * 2**J for error, J in zip(errors, scales, strict=True)]  # as |c| / 2^J
    assert max(constants) < 2.2 * min(constants)


# --- Deformations (Theorem 2.12) ---


def deformation_constants(nd, wavelet, epsilon=1e-2, **parameters):
    """‖Φ x_τ − Φ x‖ / (‖x‖·‖∇τ‖∞) for waves an octave apart and τ(u) = εu: Φ = S, and Φ = the modulus of the spectrum.

    Waves stand under a Gaussian that is narrow beside the signal, so that it deforms a little and the wave alone much.
    """
    size, J, width, octaves = (4096, 7, 96.0, 5) if nd == 1 else (128, 4, 10.0, 4)
    S = scattering(nd, J, size, wavelet=wavelet, **parameters)
    u = np.meshgrid(*(np.arange(n) - n / 2 for n in S.shape), indexing="ij")
    along = u[0] if nd == 1 else math.cos(0.5) * u[1] + math.sin(0.5) * u[0]
    radius = np.sqrt(sum(axis**2 for axis in u))

    def wave(xi, scale):
        return np.exp(-((scale * radius / width) ** 2) / 2) * np.cos(xi * scale * along)

    def modulus(x):
        return abs(np.fft.fftn(x, norm="ortho"))

    scattered, fourier = [], []
    for octave in range(octaves):
        xi = 0.45 * math.pi / 2 ** (octaves - 1 - octave)
        x, deformed = wave(xi, 1.0), wave(xi, 1 - epsilon)
        unit = np.linalg.norm(x) * epsilon
        scattered.append(float(math.sqrt(volume(S)) * np.linalg.norm(S(deformed) - S(x)) / unit))
        fourier.append(float(np.linalg.norm(modulus(deformed) - modulus(x)) / unit))
    return scattered, fourier


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize(("nd", "parameters"), [(1, {"Q": (1, 1)}), (2, {"L": 8})])
def test_small_deformations_matter_little_at_any_frequency(nd, parameters, wavelet):
    scattered, fourier = deformation_constants(nd, wavelet, **parameters)
    assert max(scattered) < 1.6 * min(scattered)
    assert max(scattered) < 5
    assert fourier[-1] / fourier[-2] == pytest.approx(2, rel=0.15)  # in proportion to the frequency
    assert fourier[-1] > 4 * max(scattered)


# --- Filters ---


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize(("nd", "parameters"), [(1, {"Q": (8, 1)}), (1, {"Q": (1, 1)}), (2, {"L": 8}), (2, {"L": 3})])
def test_wavelets_have_no_mean_and_are_held_by_the_grid_of_their_scale(nd, parameters, wavelet):
    S = scattering(nd, 4, 512 if nd == 2 else 4096, wavelet=wavelet, **parameters)
    for groups in S._groups:
        for j, boxes in groups.items():
            for box in boxes:
                psi_hat = box.dense(S.shape)
                assert abs(psi_hat[(0,) * nd]) < 1e-12
                power = psi_hat**2
                for axis in range(nd):
                    # What lies outside the best place for the coarse grid's period, of the energy along one axis.
                    line = power.sum(axis=tuple(other for other in range(nd) if other != axis))
                    n = len(line) >> j
                    held = np.convolve(np.concatenate([line, line[: n - 1]]), np.ones(n), mode="valid").max()
                    assert 1 - held / line.sum() < (1e-12 if wavelet == "meyer" else 1e-2)


# --- The figures ---


def littlewood_paley_bounds(wavelet):
    """The least and the greatest Littlewood–Paley sum of some banks."""
    banks = [(1, {"Q": (1, 1)}), (1, {"Q": (8, 1)}), (1, {"Q": (16, 1)}), (2, {"L": 4}), (2, {"L": 8})]
    for nd, parameters in banks:
        S = scattering(nd, 4 if nd == 2 else 8, 256 if nd == 2 else 8192, 1, wavelet, **parameters)
        total = S.littlewood_paley()
        yield nd, parameters, float(total.min()), float(total.max())


def main():
    for wavelet in WAVELETS:
        print(f"\n{wavelet}")
        for nd, parameters, least, greatest in littlewood_paley_bounds(wavelet):
            print(f"  Littlewood-Paley {nd}-D {parameters}: {least:.6g} .. {greatest:.6g}")
        for name, signal in SIGNALS.items():
            x = signal(128)
            parameters = {"L": 8} if x.ndim == 2 else {"Q": (8, 1)}
            S = scattering(x.ndim, 4 if x.ndim == 2 else 8, len(x), 3, wavelet, **parameters)
            shares = ", ".join(f"{100 * e / energy(x):.3f}" for e in energies(S, x))
            print(f"  energy of orders 0..3, {name}: {shares} %")
            if wavelet == "meyer":
                for rising in (True, False) if x.ndim == 1 else (True,):
                    banks = [{"Q": 8}, {"Q": 1}] if x.ndim == 1 else [{"L": 8}]
                    orders, rest, left_out = tree(x, S.J, 2, banks, rising)
                    parts = [*orders, rest, left_out]
                    shares = ", ".join(f"{100 * e / energy(x):.3f}" for e in parts)
                    error = sum(parts) / energy(x) - 1
                    print(f"    orders 0..2, remainder, left out (rising={rising}): {shares} %; sum - 1 = {error:.1e}")
        for nd, scales in ((1, range(2, 9)), (2, range(2, 6))):
            print(f"  shift by 1, {nd}-D, J={list(scales)}:", *(f"{e:.4f}" for e in shift_errors(nd, scales, wavelet)))
        for nd, parameters in ((1, {"Q": (1, 1)}), (1, {"Q": (8, 1)}), (2, {"L": 8})):
            scattered, fourier = deformation_constants(nd, wavelet, **parameters)
            print(f"  deformation {nd}-D {parameters}:", *(f"{c:.2f}" for c in scattered))
            print("    Fourier modulus:", *(f"{c:.2f}" for c in fourier))


if __name__ == "__main__":
    main()
