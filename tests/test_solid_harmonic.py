import itertools
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import to_host
from scattercube.kernels.engine.library import active_engine
from scattercube.kernels.harmonics import Harmonics
from scattercube.kernels.solid_harmonic import HarmonicScattering3D
from tests.conftest import TOLERANCE, relative_error

DATA = Path(__file__).parent / "data"
REFERENCE = np.load(DATA / "reference_3d.npz")
CONFIGS = [entry["config"] for entry in json.loads(str(REFERENCE["configs_json"]))]


def noise(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def portable(S, x):
    """S(x) without the compiled engine."""
    fused, S._fused = S._fused, None
    try:
        return S(x)
    finally:
        S._fused = fused


needs_engine = pytest.mark.skipif(active_engine() == "portable", reason="no compiled engine")


def lump(shape, width, centre):
    """A Gaussian density of integral 1 on a periodic volume."""
    distances = [(np.arange(n) - c + n / 2) % n - n / 2 for n, c in zip(shape, centre, strict=True)]
    z, y, x = (np.exp(-(d**2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width) for d in distances)
    return z[:, None, None] * y[:, None] * x


# --- The definition, slow and obvious: complex spherical harmonics, written out, on whole grids ---


def spherical_harmonics(degree, z, y, x):
    """r^l Y_lm for m = −l … l (Condon–Shortley phase)."""
    r2, plus = z**2 + y**2 + x**2, x + 1j * y
    pi, sqrt = math.pi, math.sqrt
    positive = {
        0: [sqrt(1 / pi) / 2 + 0 * plus],
        1: [sqrt(3 / pi) / 2 * z + 0 * plus, -sqrt(3 / (2 * pi)) / 2 * plus],
        2: [
            sqrt(5 / pi) / 4 * (3 * z**2 - r2) + 0 * plus,
            -sqrt(15 / (2 * pi)) / 2 * plus * z,
            sqrt(15 / (2 * pi)) / 4 * plus**2,
        ],
        3: [
            sqrt(7 / pi) / 4 * (5 * z**3 - 3 * z * r2) + 0 * plus,
            -sqrt(21 / pi) / 8 * plus * (5 * z**2 - r2),
            sqrt(105 / (2 * pi)) / 4 * plus**2 * z,
            -sqrt(35 / pi) / 8 * plus**3,
        ],
    }[degree]
    return [(-1) ** m * Y.conj() for m, Y in enumerate(positive) if m] + positive


NORM = (1 / (2 * math.pi * math.sqrt(0.5)), 1 / (4 * math.sqrt(3 * math.pi)))
NORM += (1 / (6 * math.pi * math.sqrt(2.5)), 1 / (16 * math.sqrt(7 * math.pi)))


def naive_modulus(x, degree, width):
    omega = [2 * math.pi / n * np.concatenate([np.arange((n + 1) // 2), np.arange(-(n // 2), 0)]) for n in x.shape]
    z, y, x_ = np.meshgrid(*(width * w for w in omega), indexing="ij")
    gaussian = NORM[degree] * (2 * math.pi) ** 1.5 * (-1j) ** degree * np.exp(-(z**2 + y**2 + x_**2) / 2)
    spectrum = np.fft.fftn(x)
    return np.sqrt(sum(abs(np.fft.ifftn(spectrum * gaussian * Y)) ** 2 for Y in spherical_harmonics(degree, z, y, x_)))


def naive_scattering(x, J, L, sigma_0, powers, max_order):
    x = x.astype(np.float64)
    rows = [(x if q % 1 == 0 else abs(x)) ** q for q in powers]
    for order in range(1, max_order + 1):
        for scales in itertools.combinations(range(J + 1), order):
            for degree in range(L + 1):
                U = x
                for j in scales:
                    U = naive_modulus(U, degree, sigma_0 * 2**j)
                rows += [U**q for q in powers]
    return np.array([row.sum() for row in rows])


# --- Against outside numbers and against the definition ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("i", range(len(CONFIGS)))
def test_parity_with_reference_vectors(xp, i, dtype):
    S = HarmonicScattering3D(**{**CONFIGS[i], "shape": tuple(CONFIGS[i]["shape"])}, dtype=dtype)
    actual, expected = S(xp(REFERENCE[f"x{i}"].astype(dtype))), REFERENCE[f"S{i}"]
    assert actual.dtype == dtype
    peers = to_host(actual)[..., len(S.integral_powers) :].reshape(expected.shape)
    assert relative_error(peers, expected) < 1e-6
    np.testing.assert_allclose(peers, expected, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parity_with_the_peers_own_test_data(dtype):
    data = np.load(DATA / "kymatio_test_3d.npz")
    S = HarmonicScattering3D(
        int(data["J"]), data["x"].shape[1:], int(data["L"]), integral_powers=data["integral_powers"], dtype=dtype
    )
    assert np.abs(S(data["x"]) - data["Sx"]).sum() / np.abs(data["Sx"]).sum() < 1e-6


@st.composite
def problems(draw):
    shape = tuple(draw(st.integers(4, 13)) for _ in range(3))
    sigma_0 = draw(st.sampled_from([0.6, 1.0, 1.37]))
    J = draw(st.integers(0, int(math.log2(min(shape) / sigma_0))))
    powers = tuple(draw(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]), min_size=1, max_size=3, unique=True)))
    return (
        shape,
        J,
        draw(st.integers(0, 3)),
        sigma_0,
        powers,
        draw(st.integers(0, 3)),
        draw(st.sampled_from(["float32", "float64"])),
    )


def check_against_definition(shape, J, L, sigma_0, powers, max_order, dtype):
    S = HarmonicScattering3D(J, shape, L, sigma_0, powers, max_order, dtype)
    x = noise(*shape, dtype=dtype)
    actual, expected = S(x), naive_scattering(x, J, L, sigma_0, powers, max_order)
    assert S.output_shape == expected.shape
    assert relative_error(actual, expected) < TOLERANCE[dtype]
    for i in range(len(powers)):  # powers are of very different size, and order 0 cancels
        mine, definition = (S_[len(powers) + i :: len(powers)] for S_ in (actual, expected))
        np.testing.assert_allclose(
            mine, definition, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(definition, default=0)
        )


@settings(deadline=None, max_examples=60)
@given(problems())
def test_any_size_equals_the_definition(problem):
    check_against_definition(*problem)


@pytest.mark.parametrize("shape", [(30, 20, 26), (21, 33, 24)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_wavelets_that_keep_few_frequencies_equal_the_definition(shape, dtype):
    assert Harmonics.of(3, 10.0, shape, np.dtype(dtype)).band.kept < tuple(n // 2 for n in shape)
    check_against_definition(shape, 2, 3, 2.5, (0.5, 1.0, 2.0), 2, dtype)


@pytest.mark.parametrize("max_order", [3, 4])
def test_high_orders_equal_the_definition(max_order):
    check_against_definition((10, 9, 12), 3, 2, 1.0, (1.0, 2.0), max_order, "float64")


# --- The compiled engine ---

AGREEMENT = {"float32": 3e-6, "float64": 1e-12}


def check_against_portable(shape, J, L, sigma_0, powers, max_order, dtype):
    S = HarmonicScattering3D(J, shape, L, sigma_0, powers, max_order, dtype)
    assert S._fused
    x = noise(3, *shape, dtype=dtype)
    actual, expected = S(x), portable(S, x)
    for i in range(len(powers)):
        assert relative_error(actual[:, i :: len(powers)], expected[:, i :: len(powers)]) < AGREEMENT[dtype]
    np.testing.assert_array_equal(S(x, threads=3), actual)
    np.testing.assert_array_equal(S(x[1]), actual[1])


@needs_engine
@settings(deadline=None, max_examples=100)
@given(problems())
def test_the_engine_equals_the_portable_version(problem):
    check_against_portable(*problem)


@needs_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "J", "L", "sigma_0", "powers", "max_order"),
    [
        ((64, 64, 64), 2, 3, 1.0, (0.5, 1.0, 2.0), 2),
        ((48, 40, 36), 3, 2, 1.0, (1.0,), 4),
        ((33, 35, 21), 2, 3, 1.0, (0.5, 1.0, 1.5, 2.0, 3.0, 0.7), 3),
        ((50, 16, 22), 1, 6, 0.7, (1.0, 2.0), 2),
        ((24, 20, 18), 2, 3, 2.5, (0.5, 4.0), 2),
        ((1, 5, 3), 0, 4, 0.5, (1.0,), 1),
        ((6, 32, 1), 0, 4, 0.5, (1.0,), 1),
    ],
)
def test_the_engine_equals_the_portable_version_on_larger_volumes(shape, J, L, sigma_0, powers, max_order, dtype):
    check_against_portable(shape, J, L, sigma_0, powers, max_order, dtype)


@needs_engine
def test_threads_and_batches_change_no_bit():
    S = HarmonicScattering3D(2, (18, 16, 20))
    x = noise(200, 18, 16, 20)
    alone = np.array([S(volume) for volume in x])
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(S(x, threads=threads), alone)


@needs_engine
def test_sums_of_many_voxels_are_exact_in_single_precision():
    S = HarmonicScattering3D(0, (128, 120, 125), L=0, max_order=0, integral_powers=(1.0, 2.0, 0.5))
    x = np.abs(noise(*S.shape)) + 1
    np.testing.assert_allclose(S(x), [(x.astype(float) ** q).sum() for q in S.integral_powers], rtol=1e-7)


@pytest.mark.parametrize("shape", [(17, 8, 10), (8, 19, 10), (8, 10, 34)])
def test_the_portable_version_serves_where_the_engine_cannot(shape):
    assert HarmonicScattering3D(1, shape)._fused is None
    check_against_definition(shape, 1, 2, 1.0, (1.0, 2.0), 2, "float32")


# --- The wavelets ---


@pytest.mark.parametrize("degree", range(7))
def test_the_wavelets_of_a_degree_are_alike_in_all_directions(degree):
    """Unsöld's theorem: Σ_m |Y_lm|² is (2l + 1)/4π; so also beyond the degrees that are written out above."""
    width, shape = 3.0, (25, 21, 23)
    wavelets = Harmonics.of(degree, width, shape, np.dtype("float64"))
    z, y, x = wavelets.band.frequencies()
    r2 = width**2 * (z**2 + y**2 + x**2)
    energy = sum(
        (axial.host * wavelet.planar.host) ** 2
        for axial, pair in zip(wavelets.axial, wavelets.wavelets, strict=True)
        for wavelet in pair
    )
    if degree % 2:
        c = 1 / (2 ** ((degree + 3) / 2) * math.sqrt(math.pi * (2 * degree + 1)) * math.factorial((degree + 1) // 2))
    else:
        c = 1 / (2 * math.pi * math.sqrt(degree + 0.5) * math.prod(range(degree + 1, 0, -2)))
    expected = c**2 * (2 * math.pi) ** 3 * (2 * degree + 1) / (4 * math.pi) * r2**degree * np.exp(-r2)
    np.testing.assert_allclose(energy, expected, rtol=1e-9, atol=1e-15)
    assert (energy[0, 0, 0] == 0) == (degree > 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_band_ends_where_the_wavelets_do(dtype):
    floor = {"float32": 1e-6, "float64": 1e-12}[dtype]
    for degree in range(5):
        band = Harmonics.of(degree, 4.0, (96,) * 3, np.dtype(dtype)).band
        r = 4.0 * 2 * np.pi / 96 * (band.kept[2] + np.array([-1, 0]))
        inside, outside = r**degree * np.exp(-(r**2) / 2) / max(degree, 1) ** (degree / 2) * np.exp(degree / 2)
        assert outside < floor < inside


# --- What the coefficients must be ---


@pytest.mark.parametrize("width", [1.2, 2.0])
def test_a_gaussian_has_the_coefficients_that_can_be_worked_out(width):
    """A wavelet turns a Gaussian of width g into another: the sum of its modulus is (s/√(s² + g²))^l."""
    S = HarmonicScattering3D(1, (64, 64, 64), L=4, sigma_0=2.0, integral_powers=(1.0,), max_order=1)
    columns, actual = S.paths.columns, S(lump(S.shape, width, (30, 33, 35.5)))
    s = columns["scale1"][1:]
    np.testing.assert_allclose(actual[1:], (s / np.hypot(s, width)) ** columns["l"][1:], rtol=1e-4)
    assert actual[0] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 12, 17)])
def test_circular_shifts_change_nothing(dtype, error, shape):
    S = HarmonicScattering3D(2, shape, dtype=dtype)
    x = noise(*shape, dtype=dtype) + 1
    assert relative_error(S(np.roll(x, (3, -4, 1), axis=(0, 1, 2))), S(x)) < error


# Where two axes are at Nyquist at once, a wavelet that is odd along both has one sign on the whole edge.
@pytest.mark.parametrize(("n", "sigma_0", "error"), [(15, 1.0, 1e-12), (24, 3.0, 1e-12), (16, 1.0, 1e-6)])
def test_turning_and_mirroring_the_grid_changes_nothing(n, sigma_0, error):
    S = HarmonicScattering3D(2, (n, n, n), sigma_0=sigma_0, dtype="float64")
    x = noise(n, n, n, dtype="float64")
    assert relative_error(S(x[::-1]), S(x)) < error
    for axes in itertools.combinations(range(3), 2):
        assert relative_error(S(np.rot90(x, axes=axes)), S(x)) < error


def test_turning_by_any_angle_changes_little_where_the_grid_is_fine():
    S = HarmonicScattering3D(1, (48, 48, 48), sigma_0=2.0, integral_powers=(1.0, 2.0))
    places = np.random.default_rng(0).uniform(-5, 5, (5, 3))
    turn = np.linalg.qr(noise(3, 3, dtype="float64"))[0]
    molecule, turned, stretched = (
        sum(lump(S.shape, 1.5, 24 + place) for place in moved)
        for moved in (places, places @ turn, places * (1, 1, 1.1))
    )
    assert relative_error(S(turned), S(molecule)) < 1e-4
    assert relative_error(S(stretched), S(molecule)) > 1e-3


def test_far_apart_lumps_add_up():
    S = HarmonicScattering3D(0, (72, 36, 36), sigma_0=2.0, integral_powers=(1.0, 2.0), max_order=1)
    one, other = lump(S.shape, 1.5, (18, 18, 18)), 2 * lump(S.shape, 2.5, (54, 17, 19))
    np.testing.assert_allclose(S(one + other), S(one) + S(other), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-36, 1e36), st.sampled_from(["float32", "float64"]))
def test_coefficients_are_homogeneous_of_their_power_in_any_physical_unit(factor, dtype):
    S = HarmonicScattering3D(1, (9, 8, 10), L=2, integral_powers=(0.5, 1.0), dtype=dtype)
    x, power = noise(9, 8, 10, dtype=dtype), S.paths.columns["power"]
    g = noise(len(S.paths), dtype=dtype, seed=1)
    factor = np.dtype(dtype).type(factor)
    there = S(factor * x)
    np.testing.assert_allclose(
        there, factor.astype(float) ** power * S(x), rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype] * there.max()
    )
    g = (factor.astype(float) ** (1 - power) * g).astype(dtype)
    assert relative_error(S.adjoint(factor * x, g), S.adjoint(x, noise(len(S.paths), dtype=dtype, seed=1))) < 1e-3


def test_nothing_gives_nothing():
    S = HarmonicScattering3D(2, (16, 16, 16))
    assert not S(np.zeros(S.shape)).any()
    flat = S(np.full(S.shape, 3.0))
    assert flat[S.paths.columns["l"] > 0].max() < 1e-1  # the square root of what rounding leaves
    np.testing.assert_allclose(flat[:3], [3**0.5 * 4096, 3 * 4096, 9 * 4096], rtol=1e-6)


# --- Labels ---


def test_every_coefficient_is_labelled():
    S = HarmonicScattering3D(2, (16, 16, 16), L=1, sigma_0=1.5, integral_powers=(1.0, 2.0), max_order=3)
    columns = S.paths.columns
    assert len(S.paths) == 2 + (3 + 3 + 1) * 2 * 2
    assert {len(values) for values in columns.values()} == {len(S.paths)}
    assert set(columns) == set(S.paths.units) == set(S.paths.descriptions)
    rows = list(zip(*(columns[name].tolist() for name in ("order", "j1", "j2", "j3", "l", "power")), strict=True))
    assert len(set(rows)) == len(rows)
    assert rows[:3] == [(0, -1, -1, -1, -1, 1.0), (0, -1, -1, -1, -1, 2.0), (1, 0, -1, -1, 0, 1.0)]
    assert rows[-1] == (3, 0, 1, 2, 1, 2.0)
    for path, numbers in S.paths.rows.items():
        for degree, power in np.ndindex(numbers.shape):
            row = rows[numbers[degree, power]]
            assert row[0] == len(path)
            assert row[1 : 1 + len(path)] == path
            assert row[4:] == (degree if path else -1, S.integral_powers[power])
    for m in (1, 2, 3):
        np.testing.assert_array_equal(
            columns[f"scale{m}"], np.where(columns[f"j{m}"] < 0, np.nan, 1.5 * 2.0 ** columns[f"j{m}"])
        )
        assert S.paths.units[f"scale{m}"] == "voxel"


def test_the_label_names_the_scale_that_answers():
    """U² of degree l summed over a lattice of waves is largest at √l = s|ω|."""
    S = HarmonicScattering3D(3, (64, 8, 8), L=1, sigma_0=1.0, integral_powers=(2.0,), max_order=1)
    columns = S.paths.columns
    for j, cycles in ((1, 5), (2, 3), (3, 1)):
        wave = np.broadcast_to(np.cos(2 * np.pi * cycles / 64 * np.arange(64))[:, None, None], S.shape)
        answers = np.where(columns["l"] == 1, S(wave), 0)
        assert columns["j1"][answers.argmax()] == j


def test_the_digest_tells_filters_apart():
    digests = {
        HarmonicScattering3D(1, shape, L, sigma_0).filter_digest
        for shape, L, sigma_0 in itertools.product([(8, 8, 8), (8, 9, 8)], [1, 2], [1.0, 1.1])
    }
    assert len(digests) == 8
    assert HarmonicScattering3D(1, (8, 8, 8), 1, 1.0).filter_digest in digests


# --- The adjoint ---


@pytest.mark.parametrize("shape", [(8, 6, 10), (7, 9, 5), (12, 7, 8)])
@pytest.mark.parametrize("width", [0.7, 1.3, 2.5])
@pytest.mark.parametrize("degree", range(4))
def test_the_adjoint_of_the_wavelets_passes_the_dot_product_test(shape, width, degree):
    wavelets = Harmonics.of(degree, width, shape, np.dtype("float64"))
    x, y, w = noise(3, 1, *shape, dtype="float64")
    w = abs(w)
    X, Y = (wavelets.band.spectrum(v) for v in (x, y))
    # ⟨y, Aᵀ w A x⟩ is symmetric, and for y = x and w = 1 it is ‖A x‖².
    there, back = (y * wavelets.adjoint(X, w)).sum(), (x * wavelets.adjoint(Y, w)).sum()
    assert there == pytest.approx(back, rel=1e-12, abs=1e-13)
    assert (x * wavelets.adjoint(X, np.ones_like(w))).sum() == pytest.approx(
        (wavelets.modulus(X) ** 2).sum(), rel=1e-12
    )
    assert (x * wavelets.adjoint(X, w)).sum() == pytest.approx((w * wavelets.modulus(X) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("J", "shape", "parameters"),
    [
        (2, (8, 10, 9), {}),
        (1, (8, 8, 8), {"sigma_0": 0.7, "integral_powers": (1.0, 2.0, 1.5)}),
        (2, (9, 7, 11), {"L": 2, "max_order": 3, "integral_powers": (0.7, 3.0)}),
        (2, (24, 20, 18), {"sigma_0": 2.0, "L": 1, "max_order": 1}),
        (0, (6, 5, 4), {"max_order": 0, "integral_powers": (1.0, 0.5, 2.0, 3.0)}),
    ],
)
def test_the_adjoint_is_the_derivative(J, shape, parameters):
    S = HarmonicScattering3D(J, shape, dtype="float64", **parameters)
    x, direction = noise(2, 2, *shape, dtype="float64")
    g = noise(2, len(S.paths), dtype="float64", seed=1) / (1e-3 + S(x[0]))
    step = 1e-7
    slope = ((S(x + step * direction) - S(x - step * direction)) * g).sum() / (2 * step)
    actual = S.adjoint(x, g)
    assert actual.shape == x.shape
    assert actual.dtype == np.float64
    assert (actual * direction).sum() == pytest.approx(slope, rel=1e-6)


def test_the_adjoint_is_linear_in_what_it_is_given_and_falls_apart_by_sample(xp):
    S = HarmonicScattering3D(1, (6, 8, 7), L=2)
    x, g = noise(5, 2, 6, 8, 7), noise(5, 2, len(S.paths), seed=1)
    together = to_host(S.adjoint(xp(x), xp(g)))
    assert together.dtype == np.float32
    np.testing.assert_allclose(together[3, 1], S.adjoint(x[3, 1], g[3, 1]), rtol=1e-4, atol=1e-5)
    exact = HarmonicScattering3D(1, (6, 8, 7), L=2, dtype="float64")  # y/|y| is steep where |y| is small
    x, g, h = (values.astype("float64") for values in (x, g, noise(5, 2, len(S.paths), seed=2)))
    both, one, other = (to_host(exact.adjoint(xp(x), xp(weights))) for weights in (g + h, g, h))
    np.testing.assert_allclose(both, one + other, rtol=1e-9, atol=1e-9)


def test_the_adjoint_is_zero_where_the_modulus_is():
    S = HarmonicScattering3D(1, (6, 8, 7), L=2, integral_powers=(0.5, 1.0))
    gradient = S.adjoint(np.zeros(S.shape), np.ones(len(S.paths)))
    np.testing.assert_array_equal(gradient, 1)  # of Σ x, order 0


# --- Batches, memory, and what is refused ---


@pytest.mark.parametrize("lead", [(), (1,), (0,), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_leading_dimensions(xp, lead, dtype):
    S = HarmonicScattering3D(1, (9, 8, 6), L=2, dtype=dtype)
    x = noise(*lead, 9, 8, 6, dtype=dtype)
    actual = to_host(S(xp(x)))
    assert actual.shape == (*lead, *S.output_shape)
    assert actual.dtype == dtype
    for index in np.ndindex(*lead):
        np.testing.assert_allclose(actual[index], S(x[index]), rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_batch_equals_its_volumes_whatever_the_blocks():
    S = HarmonicScattering3D(1, (8, 8, 8), L=2)
    x = noise(300, 8, 8, 8)
    together = S(x)
    for i in (0, 127, 128, 299):
        assert relative_error(together[i], S(x[i])) < 1e-6


def test_the_input_is_left_alone_and_may_be_strided():
    S = HarmonicScattering3D(1, (8, 9, 7), L=2)
    x = noise(3, 9, 2, 7, 8)
    view = x.transpose(0, 2, 4, 1, 3)[:, ::-1]
    kept = x.copy()
    np.testing.assert_array_equal(S(view), S(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool", "float16", "float64", ">f4"])
def test_real_input_of_any_type_is_converted(dtype):
    S = HarmonicScattering3D(1, (8, 8, 8), L=1)
    x = (noise(2, 8, 8, 8) * 40 + 100).astype(dtype)
    actual = S(x)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, S(x.astype(np.float32)))


def peak_nbytes(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "parameters", "batch"),
    [
        ((8, 8, 8), {}, 600),
        ((16, 16, 16), {"J": 2}, 1),
        ((48, 40, 36), {"J": 2}, 2),
        ((33, 31, 35), {"J": 2, "max_order": 3}, 1),
        ((40, 40, 40), {"L": 1, "max_order": 1}, 3),
        ((50, 50, 50), {"J": 2, "sigma_0": 2.5, "L": 2}, 1),
        ((24, 24, 24), {"max_order": 0}, 100),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_projected_memory_is_what_is_allocated(shape, parameters, batch, dtype, threads):
    S = HarmonicScattering3D(**{"J": 1, **parameters}, shape=shape, dtype=dtype)
    if threads is None:
        S._fused, threads = None, 1
    elif S._fused is None:
        pytest.skip(f"no compiled engine for {shape}")
    x = noise(batch, *shape, dtype=dtype)
    S(x[:1])  # what is imported or cached on first use
    bookkeeping = 64 * 1024
    assert peak_nbytes(lambda: S(x, threads)) == pytest.approx(
        S.nbytes(batch, threads=threads), rel=0.2, abs=bookkeeping
    )


def test_memory_grows_with_the_batch_by_the_result_alone():
    S = HarmonicScattering3D(1, (16, 16, 16))
    assert S.nbytes(10_000) - S.nbytes(5_000) == 5_000 * len(S.paths) * 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"J": -1}, "J=-1: must be at least 0"),
        ({"J": 4}, r"J=4 and sigma_0=1 need volumes of at least 16 voxels per axis, shape is \(16, 12, 20\); lower J"),
        ({"sigma_0": 3.5}, "at least 14 voxels"),
        ({"L": -1}, "L=-1"),
        ({"max_order": -1}, "max_order=-1"),
        ({"sigma_0": 0}, "sigma_0=0: must be a positive"),
        ({"sigma_0": float("nan")}, "sigma_0=nan"),
        ({"integral_powers": ()}, r"integral_powers=\(\): expected positive numbers, at least one"),
        ({"integral_powers": (1, -2)}, r"integral_powers=\(1, -2\)"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"shape": (16, 16)}, r"shape=\(16, 16\): expected \(D, H, W\)"),
        ({"shape": (16, 0, 16)}, "shape=0"),
    ],
)
def test_impossible_parameters_name_themselves(parameters, message):
    with pytest.raises(ValueError, match=message):
        HarmonicScattering3D(**{"J": 2, "shape": (16, 12, 20), **parameters})


@pytest.mark.parametrize("name", ["J", "L", "max_order"])
def test_parameters_that_count_are_integers(name):
    with pytest.raises(TypeError, match=rf"{name}=1\.5: expected an integer"):
        HarmonicScattering3D(**{"J": 1, "shape": (8, 8, 8), name: 1.5})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((8, 8, 7)), ValueError, r"expected \(…, 8, 8, 8\)"),
        (np.zeros((8, 8)), ValueError, r"shape \(8, 8\)"),
        (np.zeros((8, 8, 8), complex), TypeError, "complex128"),
        ([[[0.0] * 8] * 8] * 8, TypeError, "list"),
        (np.full((8, 8, 8), np.nan), ValueError, r"512 of 512 values, the first at index \(0, 0, 0\)"),
        (np.full((8, 8, 8), 1e300), ValueError, "not finite in float32"),
    ],
)
def test_wrong_volumes_are_refused(x, error, message):
    S = HarmonicScattering3D(1, (8, 8, 8), L=1)
    with pytest.raises(error, match=message):
        S(x)
    with pytest.raises(error, match=message):
        S.adjoint(x, np.zeros(len(S.paths)))


@pytest.mark.parametrize("shape", [(27,), (2, 26), (3, 26)])
def test_a_gradient_of_the_wrong_shape_is_refused(shape):
    S = HarmonicScattering3D(1, (8, 8, 8), L=1, integral_powers=(1.0, 2.0), max_order=2)
    with pytest.raises(ValueError, match="g has shape"):
        S.adjoint(np.zeros((4, 8, 8, 8)), np.zeros(shape))
