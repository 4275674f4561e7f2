import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import cuda_problem, primitives, to_device, to_host
from scattercube.kernels.device import Constant, namespace
from scattercube.kernels.filterbank import Bank, Box, LineLowpass, Lowpass, Sampling
from tests.conftest import TOLERANCE

dtypes = st.sampled_from(["float32", "float64"])
lanes = st.sampled_from([(), (3,), (2, 3)])
seeds = st.integers(0, 2**32 - 1)


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
    return Bank(tuple(boxes), grid, out)


def smoothings(rng, n, dtype):
    """Each way to smooth a line of n = 8 · anything points, and the full circular kernel and samples it stands for."""
    phi = np.fft.fft(np.exp(-rng.uniform(0.05, 0.5) * np.minimum(np.arange(n), n - np.arange(n)) ** 2)).real
    step = int(rng.choice([1, 2, 4, 8]))
    first = int(rng.integers(0, n // step))
    n_out = int(rng.integers(1, n // step - first + 1))
    samples = step * (first + np.arange(n_out))
    yield Lowpass.of([phi], [samples], np.dtype(dtype)), phi, samples
    yield LineLowpass.of(phi, step, first, n_out, np.dtype(dtype)), phi, samples
    yield Sampling(n, slice(samples[0], samples[-1] + 1, step)), np.ones(n), samples


# --- Forward ---


def naive_wavelet(x, box, grid, out):
    """X ∗ ψ by the whole grid, then one sample in N/n."""
    axes = tuple(range(len(grid)))
    product = np.fft.fftn(x.astype(np.float64), axes=axes) * box.dense(grid).reshape(grid + (1,) * (x.ndim - len(grid)))
    every = tuple(slice(None, None, N // n) for N, n in zip(grid, out, strict=True))
    return np.fft.ifftn(product, axes=axes)[every]


@settings(deadline=None)
@given(grids(), dtypes, st.integers(1, 4), lanes, seeds)
def test_wavelet_is_filtering_then_sampling(grids, dtype, n_filters, lanes, seed):
    grid, out = grids
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(grid + lanes).astype(dtype)
    bank = random_bank(rng, grid, out, dtype, n_filters)
    y = primitives.wavelet(primitives.spectrum(x, len(grid)), bank)
    assert y.dtype == np.result_type(dtype, np.complex64)
    assert y.shape == (*out, n_filters, *lanes)
    for f, box in enumerate(bank.boxes):
        expected = naive_wavelet(x, box, grid, out)
        np.testing.assert_allclose(y[(slice(None),) * len(grid) + (f,)], expected, atol=20 * TOLERANCE[dtype])


@settings(deadline=None)
@given(grids(), st.integers(2, 5), seeds)
def test_some_filters_are_those_of_the_whole_bank(grids, n_filters, seed):
    grid, out = grids
    rng = np.random.default_rng(seed)
    bank = random_bank(rng, grid, out, "float64", n_filters)
    X = primitives.spectrum(rng.standard_normal((*grid, 3, 2)), len(grid))
    some = slice(1, int(rng.integers(2, n_filters + 1)))
    prefixes = slice(1, 3)
    whole = primitives.wavelet(X, bank)[(slice(None),) * len(grid) + (some, prefixes)]
    part = primitives.wavelet(primitives.some(X, prefixes), bank, some)
    np.testing.assert_allclose(part, whole, atol=1e-12)
    U = primitives.wavelet_modulus(primitives.some(X, prefixes), bank, some)
    np.testing.assert_allclose(U, abs(whole).reshape(*out, -1, 2), atol=1e-12)


@settings(deadline=None)
@given(grids(), dtypes, lanes, seeds)
def test_a_matrix_per_axis_is_circular_convolution_then_choice(grids, dtype, lanes, seed):
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
    S = primitives.smooth(U, lowpass)
    assert S.dtype == dtype
    assert lowpass.kept == kept
    np.testing.assert_allclose(S, expected, atol=50 * TOLERANCE[dtype])


@settings(deadline=None)
@given(st.integers(1, 9), dtypes, lanes, seeds)
def test_lines_are_smoothed_alike_by_a_matrix_and_in_fourier(blocks, dtype, lanes, seed):
    rng = np.random.default_rng(seed)
    n = 8 * blocks
    U = rng.standard_normal((n, *lanes)).astype(dtype)
    for lowpass, phi, samples in smoothings(rng, n, dtype):
        whole = np.fft.ifft(np.fft.fft(U.astype(np.float64), axis=0) * phi.reshape(-1, *(1 for _ in lanes)), axis=0)
        S = primitives.smooth(U, lowpass)
        assert S.dtype == dtype
        assert lowpass.kept == samples.shape
        np.testing.assert_allclose(S, whole.real[samples], atol=50 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("grid", "out"), [((24,), (6,)), ((12, 8), (6, 4))])
def test_coefficients_are_written_to_their_rows(xp, dtype, grid, out):
    rng = np.random.default_rng(0)
    nd = len(grid)
    bank = random_bank(rng, grid, out, dtype, 3)
    images = rng.standard_normal((5, *grid)).astype(dtype)
    lowpass = Lowpass.of([np.ones(n) for n in out], [np.arange(0, n, 2) for n in out], np.dtype(dtype))
    x = primitives.extend(xp(images), ())
    assert x.shape == (*grid, 1, 5)
    X = primitives.spectrum(x, nd)
    S = namespace(x).full((5, 9, *lowpass.kept), -1, dtype=dtype)
    primitives.scatter_last(X, bank, slice(0, 3), lowpass, S, np.array([7, 2, 4]))
    # An all-pass average is the choice of samples alone.
    every = to_host(abs(primitives.wavelet(X, bank)))[(slice(None, None, 2),) * nd]
    np.testing.assert_allclose(to_host(S)[:, [7, 2, 4]], np.moveaxis(every[..., 0, :], (-1, -2), (0, 1)), atol=1e-5)
    assert (to_host(S)[:, [0, 1, 3, 5, 6, 8]] == -1).all()


def test_a_circular_shift_by_the_stride_shifts_the_result():
    rng = np.random.default_rng(0)
    grid, out = (24, 16), (6, 4)
    bank = random_bank(rng, grid, out, "float64", 4)
    x = rng.standard_normal((24, 16))
    shifted = np.roll(x, (8, -4), axis=(0, 1))
    expected = np.roll(primitives.wavelet(primitives.spectrum(x, 2), bank), (2, -1), axis=(0, 1))
    np.testing.assert_allclose(primitives.wavelet(primitives.spectrum(shifted, 2), bank), expected, atol=1e-12)


def test_a_spectrum_holds_fourier_coefficients():
    y = np.arange(12)[:, None]
    x = np.broadcast_to(3 + 2 * np.cos(2 * math.pi * 5 * y / 12), (12, 8))
    expected = np.zeros((12, 8))
    expected[0, 0], expected[5, 0], expected[-5, 0] = 3, 1, 1
    np.testing.assert_allclose(primitives.spectrum(x, 2), expected, atol=1e-14)


# --- Adjoints: ⟨A x, g⟩ = ⟨x, A* g⟩ for the real inner product ---


def complex_noise(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def check_adjoint(forward, backward, x, g):
    left, right = (np.vdot(a, b).real for a, b in ((forward(x), g), (x, backward(g.copy()))))
    assert left == pytest.approx(right, abs=1e-12 * np.linalg.norm(forward(x)) * np.linalg.norm(g))


@settings(deadline=None)
@given(grids(), lanes, seeds)
def test_adjoint_of_the_spectrum(grids, lanes, seed):
    rng = np.random.default_rng(seed)
    nd, shape = len(grids[0]), grids[0] + lanes
    check_adjoint(
        lambda x: primitives.spectrum(x, nd),
        lambda g: primitives.spectrum_adjoint(g, nd),
        rng.standard_normal(shape),
        complex_noise(rng, *shape),
    )


@settings(deadline=None)
@given(grids(), st.integers(1, 4), lanes, seeds)
def test_adjoint_of_the_wavelets(grids, n_filters, lanes, seed):
    grid, out = grids
    rng = np.random.default_rng(seed)
    bank = random_bank(rng, grid, out, "float64", n_filters)
    some = slice(0, int(rng.integers(1, n_filters + 1)))

    def backward(g):
        total = np.zeros(grid + lanes, complex)
        primitives.wavelet_adjoint(g, bank, some, total)
        primitives.wavelet_adjoint(np.zeros_like(g), bank, some, total)  # adds to what is there
        return total

    X, g = complex_noise(rng, *grid, *lanes), complex_noise(rng, *out, some.stop, *lanes)
    check_adjoint(lambda X: primitives.wavelet(X, bank, some), backward, X, g)


@settings(deadline=None)
@given(st.integers(1, 9), lanes, seeds)
def test_adjoint_of_the_averages_of_lines(blocks, lanes, seed):
    rng = np.random.default_rng(seed)
    n = 8 * blocks
    for lowpass, _, samples in smoothings(rng, n, "float64"):
        check_adjoint(
            lambda U, lowpass=lowpass: primitives.smooth(U, lowpass),
            lambda g, lowpass=lowpass: primitives.smooth_adjoint(g, lowpass),
            rng.standard_normal((n, *lanes)),
            rng.standard_normal((len(samples), *lanes)),
        )


@settings(deadline=None)
@given(grids(), seeds)
def test_adjoint_of_the_average_that_is_written(grids, seed):
    grid, kept = grids
    rng = np.random.default_rng(seed)
    matrices = [rng.standard_normal((m, n)) for n, m in zip(grid, kept, strict=True)]
    lowpass = Lowpass(tuple(map(Constant, matrices)))
    rows = rng.permutation(6)[:4]

    def forward(U):
        out = np.zeros((2, 6, *kept))
        primitives.average(U, lowpass, out, rows)
        return out

    U, g = rng.standard_normal((*grid, 4, 2)), rng.standard_normal((2, 6, *kept))
    check_adjoint(forward, lambda g: primitives.average_adjoint(g, lowpass, rows), U, g)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=3), st.booleans(), seeds)
def test_adjoint_of_the_extension(axes, extended, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(size for size, _ in axes)
    indices = tuple(Constant(rng.integers(0, size, n)) for size, n in axes) if extended else ()
    check_adjoint(
        lambda x: primitives.extend(x, indices),
        lambda g: primitives.extend_adjoint(g, indices, shape),
        rng.standard_normal((3, *shape)),
        rng.standard_normal((*((n if extended else size) for size, n in axes), 1, 3)),
    )


def test_gradient_of_the_modulus_is_the_direction_and_zero_at_zero():
    y, G = np.array([3 + 4j, -2j, 0, 5]), np.array([10.0, 1, 7, -1])
    np.testing.assert_array_equal(primitives.modulus_adjoint(y, G), [6 + 8j, -1j, 0, -1])


# --- Devices ---


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
