import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import to_host
from scattercube.kernels.bands import Bands, modulus_across, modulus_across_adjoint
from scattercube.kernels.time_frequency import TimeFrequencyScattering
from tests.conftest import relative_error

PARITY = {"float32": 1e-5, "float64": 1e-6}


# --- The transform written out from its definition, on a circle in time and among silent bands ---


def naive_bank(J, Q):
    ratio, least = 2 ** (1 / Q), 0.1 / 2**J
    xi = max(1 / (1 + 2 ** (3 / Q)), 0.35)
    sigma = xi * (ratio - 1) / (ratio + 1) / math.sqrt(math.log(2))
    bank = []
    if sigma > least:
        bank.append((xi, sigma))
        while sigma > least * ratio:
            xi, sigma = xi / ratio, sigma / ratio
            bank.append((xi, sigma))
    else:
        xi = sigma
    return bank + [(xi * (1 - q / Q), least) for q in range(1, Q)]


def naive_j(xi, sigma):
    return math.floor(-math.log2(min(abs(xi) + 5 * sigma, 0.5))) - 1


def naive_filter(xi, sigma, n):
    """A Morlet wavelet, or for ξ = 0 a Gaussian, in space on a circle of n samples, of unit L1 norm."""
    copies = math.ceil(2 / sigma / n)
    t = np.arange(n) + n * np.arange(-copies, copies + 1)[:, None]
    gaussian = np.exp(-2 * (math.pi * sigma * t) ** 2)
    psi = gaussian * np.exp(2j * math.pi * xi * t)
    if xi:
        psi = psi - psi.sum() / gaussian.sum() * gaussian
    psi = psi.sum(axis=0)
    return psi / abs(psi).sum()


def naive_convolve(x, h, step):
    """Circular convolution along the last axis, then every step-th sample; ``h`` is given on a finer grid."""
    finer = len(h) // x.shape[-1]
    return np.fft.ifft(np.fft.fft(x) * np.fft.fft(finer * h[::finer]))[..., ::step]


def naive_joint(x, J, J_fr, Q, Q_fr, T, F, n_places=512):
    """{(order, n2, n_fr): (places, times)} of a periodic signal."""
    log2_T, log2_F = int(math.log2(T)), int(math.log2(F))
    first, second, up = naive_bank(J, Q[0]), naive_bank(J, Q[1]), naive_bank(J_fr, Q_fr)
    across = [(0, 0.1 / 2**J_fr), *up, *((-xi, sigma) for xi, sigma in up)]
    phi, phi_fr = naive_filter(0, 0.1 / T, len(x)), naive_filter(0, 0.1 / F, n_places)
    level = [min(naive_j(*psi), log2_T) for psi in first]
    U1 = [abs(naive_convolve(x, naive_filter(*psi, len(x)), 2**r)) for psi, r in zip(first, level, strict=True)]
    S1 = [naive_convolve(u, phi, 2 ** (log2_T - r)).real for u, r in zip(U1, level, strict=True)]
    stacks = [(1, -1, np.array(S1), log2_T)]
    for n2, psi2 in enumerate(second):
        j2 = naive_j(*psi2)
        r2 = min(j2, log2_T)
        below = [(u, r) for u, r, psi in zip(U1, level, first, strict=True) if naive_j(*psi) < j2]
        if below:
            h = naive_filter(*psi2, len(x))
            stacks.append((2, n2, np.array([naive_convolve(u, h, 2 ** (r2 - r)) for u, r in below]), r2))
    S = {(0, -1, -1): naive_convolve(x, phi, 2**log2_T).real[None]}
    for order, n2, Y, r2 in stacks:
        silent = np.pad(Y, ((0, n_places - len(Y)), (0, 0))).T
        for n_fr, (xi, sigma) in enumerate(across):
            if order == 1 and xi < 0:
                continue
            k = min(naive_j(xi, sigma), log2_F) if xi else log2_F
            U = abs(naive_convolve(silent, naive_filter(xi, sigma, n_places), 2**k))
            if xi:
                U = naive_convolve(U, phi_fr, 2 ** (log2_F - k)).real
            S[order, n2, n_fr] = U.T if order == 1 else naive_convolve(U.T, phi, 2 ** (log2_T - r2)).real
    return S


CASES = [
    (4, 2, 320, (4, 1), 1, None, None),
    (4, 3, 256, (3, 2), 1, 8, 2),
    (5, 2, 192, (2, 1), 2, 16, 4),
    (3, 1, 200, (8, 1), 1, 6, 5),
    (4, 2, 64, (2, 1), 1, 64, 8),
    (2, 0, 48, (1, 1), 1, None, None),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("J", "J_fr", "N", "Q", "Q_fr", "T", "F"), CASES)
def test_it_is_its_definition(J, J_fr, N, Q, Q_fr, T, F, dtype):
    x = np.random.default_rng(N).standard_normal(N)
    expected = naive_joint(x, J, J_fr, Q, Q_fr, T or 2**J, F or 2**J_fr)
    stride = 2 ** int(math.log2(F or 2**J_fr))
    common = {"Q": Q, "Q_fr": Q_fr, "T": T, "F": F, "padding": "periodic", "dtype": dtype}
    S = TimeFrequencyScattering(J, J_fr, N, **common)
    rows = S.paths.rows
    assert {(0, -1, -1) if not k else (len(k), *(-1, *k)[-2:]) for k in rows} == set(expected)
    actual = S(x)
    tolerance = {"float32": 3e-6, "float64": 1e-10}[dtype]
    for key, values in expected.items():
        here = rows[tuple(n for n in key[1:] if n >= 0)]
        assert S.paths.columns["order"][here].tolist() == [key[0]] * len(here)
        if key[0]:
            assert S.paths.columns["n1"][here].tolist() == [stride * i for i in range(len(here))]
        np.testing.assert_allclose(actual[here], values[: len(here)], atol=tolerance * abs(values).max())
    joint = TimeFrequencyScattering(J, J_fr, N, format="joint", **common)
    values = np.array([values[: joint.output_shape[1]] for key, values in expected.items() if key[0]])
    np.testing.assert_allclose(joint(x), values, atol=tolerance * abs(values).max())


# --- The peer ---


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "data" / "reference_jtfs.npz") as file:
        return dict(file), [entry["config"] for entry in json.loads(str(file["configs_json"]))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_parity_with_the_peer(reference, xp, i, dtype):
    arrays, configs = reference
    S = TimeFrequencyScattering(**configs[i], padding="kymatio", dtype=dtype)
    actual = S(xp(arrays[f"x{i}"]))
    assert actual.dtype == dtype
    assert actual.shape == arrays[f"S{i}"].shape == (2, *S.output_shape)
    assert relative_error(to_host(actual), arrays[f"S{i}"]) < PARITY[dtype]


@pytest.mark.parametrize("i", [0, 1, 2])
def test_labels_are_the_peers(reference, i):
    arrays, configs = reference
    S = TimeFrequencyScattering(**configs[i], padding="kymatio")
    columns = S.paths.columns
    meta = {name: arrays[f"meta_{name}{i}"] for name in ("order", "xi", "sigma", "j")}
    # The peer's labels are sorted by (order, n1, n2, n_fr); its coefficients stand as ours, by (order, n2, n_fr, n1).
    n1 = columns.get("n1", columns["order"])
    sort = np.lexsort((columns["n_fr"], columns["n2"], n1, columns["order"]))
    np.testing.assert_array_equal(columns["order"][sort], meta["order"])
    for name in ("xi", "sigma", "j"):
        for m in (1, 2):
            if f"{name}{m}" in columns:
                expected = meta[name][:, m - 1]
                actual = columns[f"{name}{m}"][sort].astype(float)
                actual[actual == -1] = np.nan
                np.testing.assert_allclose(actual, expected, rtol=1e-12)
    if configs[i]["format"] == "time":
        for m in (1, 2):
            n = columns[f"n{m}"][sort].astype(float)
            np.testing.assert_array_equal(np.where(n < 0, np.nan, n), arrays[f"meta_n{i}"][:, m - 1].astype(float))
        assert S.paths.units["xi_fr"] == "cycles/octave"
        np.testing.assert_allclose(columns["xi_fr"][sort] / configs[i]["Q"], arrays[f"meta_xi_fr{i}"], rtol=1e-12)
        np.testing.assert_array_equal(columns["spin"][sort][1:], arrays[f"meta_spin{i}"][1:])
        np.testing.assert_array_equal(columns["j_fr"][sort][1:], arrays[f"meta_j_fr{i}"][1:])


# --- What it tells ---


@pytest.mark.parametrize(("rises", "spin"), [(True, 1), (False, -1)])
def test_spin_tells_rising_from_falling(rises, spin):
    N = 2**13
    t = np.arange(N) / N
    cycles = 40 * 2 ** (6 * t) / (6 * math.log(2))  # from 40 to 2560 per signal, an octave in a sixth of it
    chirp = np.sin(2 * math.pi * cycles)
    S = TimeFrequencyScattering(8, 3, N, Q=8)
    x = chirp if rises else chirp[::-1]
    columns = S.paths.columns
    energy = {s: (S(x)[(columns["order"] == 2) & (columns["spin"] == s)] ** 2).sum() for s in (1, -1)}
    assert energy[spin] > 3 * energy[-spin]


def test_time_reversal_swaps_the_spins():
    N = 512
    S = TimeFrequencyScattering(5, 2, N, Q=4, padding="periodic", dtype="float64")
    x = np.random.default_rng(1).standard_normal(N)
    forward, backward = S(x), S(np.roll(x[::-1], 1))
    n_up = 3
    for key, rows in S.paths.rows.items():
        n_fr = key[-1] if len(key) == 2 else 0
        swapped = (key[0], n_fr + n_up if n_fr <= n_up else n_fr - n_up) if n_fr else key
        expected = np.roll(forward[S.paths.rows[swapped]][:, ::-1], 1, axis=1)
        np.testing.assert_allclose(backward[rows], expected, atol=1e-13)
        if n_fr:
            assert S.paths.columns["xi_fr"][rows[0]] == -S.paths.columns["xi_fr"][S.paths.rows[swapped][0]]


def test_a_circular_shift_by_the_stride_shifts_the_result():
    S = TimeFrequencyScattering(4, 2, 320, Q=4, format="joint", padding="periodic", dtype="float64")
    x = np.random.default_rng(2).standard_normal((2, 320))
    np.testing.assert_allclose(S(np.roll(x, 48, axis=1)), np.roll(S(x), 3, axis=-1), atol=1e-13)


def test_a_tile_with_its_halo_gives_the_values_of_the_whole():
    J, N = 3, 4096
    x = np.random.default_rng(3).standard_normal(N)
    whole = TimeFrequencyScattering(J, 2, N, Q=4, padding="support", dtype="float64")
    start, size = 2048, 128
    halo = whole.halo
    tile = TimeFrequencyScattering(J, 2, size + 2 * halo, Q=4, padding="support", dtype="float64")
    inner = tile(x[start - halo : start + size + halo])[:, halo // 8 : (halo + size) // 8]
    np.testing.assert_allclose(inner, whole(x)[:, start // 8 : (start + size) // 8], atol=1e-10)


def test_bands_and_times_have_their_places():
    S = TimeFrequencyScattering(5, 2, 1000, Q=4, format="joint", sampling_rate=8000.0)
    frequencies, times = S.positions
    assert S(np.zeros(1000)).shape == (len(S.paths), len(frequencies), len(times)) == S.output_shape
    one = TimeFrequencyScattering(5, 2, 1000, Q=4, sampling_rate=8000.0)
    (same,) = one.positions
    np.testing.assert_array_equal(times, same)
    np.testing.assert_allclose(np.diff(times), 32 / 8000)
    columns = one.paths.columns
    np.testing.assert_allclose(frequencies, columns["xi1"][one.paths.rows[0,]])
    assert frequencies[0] == pytest.approx(8000 / (1 + 2 ** (3 / 4)))
    assert one.paths.units["xi1"] == one.paths.units["xi2"] == "Hz"
    assert set(one.paths.units) == set(one.paths.descriptions) == set(columns)
    assert all(len(column) == len(one.paths) for column in columns.values())
    np.testing.assert_array_equal(np.sort(np.concatenate(list(one.paths.rows.values()))), np.arange(len(one.paths)))
    # Where nothing is averaged across bands, there is an output for each.
    fine = TimeFrequencyScattering(5, 2, 1000, Q=4, F=1)
    assert fine.paths.columns["n1"][fine.paths.rows[0,]].tolist() == list(range(len(fine._first)))


# --- Adjoint, memory, input ---


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_the_adjoint_across_bands_is_the_derivative(n_bands, lanes, seed, joint):
    rng = np.random.default_rng(seed)
    bands = Bands.of(12, 2, 1, 4, np.dtype("float64"))
    bank = bands.bank(bands.wavelets, n_bands, joint, np.dtype("float64"))
    Y, dY = rng.standard_normal((2, n_bands, lanes)) + 1j * rng.standard_normal((2, n_bands, lanes))
    g = rng.standard_normal((bank.n_outputs, lanes))
    h = 1e-6
    expected = ((modulus_across(Y + h * dY, bank) - modulus_across(Y - h * dY, bank)) * g).sum() / (2 * h)
    actual = (modulus_across_adjoint(Y, bank, g).conj() * dY).sum().real
    assert actual == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("format", ["time", "joint"])
@pytest.mark.parametrize("padding", ["minimal", "support", "kymatio", "periodic"])
def test_the_adjoint_is_the_derivative(padding, format):
    rng = np.random.default_rng(4)
    S = TimeFrequencyScattering(4, 2, 144, Q=(4, 2), F=3, T=8, format=format, padding=padding, dtype="float64")
    x, dx = rng.standard_normal((2, 2, 3, 144))
    g, g2 = rng.standard_normal((2, 2, 3, *S.output_shape))
    gradient = S.adjoint(x, g)
    h = 1e-6
    expected = ((S(x + h * dx) - S(x - h * dx)) * g).sum(axis=tuple(range(2, g.ndim))) / (2 * h)
    np.testing.assert_allclose((gradient * dx).sum(axis=2), expected, rtol=1e-5)
    np.testing.assert_allclose(S.adjoint(x, g + 2 * g2), gradient + 2 * S.adjoint(x, g2), atol=1e-12)
    single = TimeFrequencyScattering(4, 2, 144, Q=(4, 2), F=3, T=8, format=format, padding=padding).adjoint(x, g)
    assert single.dtype == np.float32
    assert relative_error(single, gradient) < 1e-4
    if format == "joint":  # order 0 alone has a slope at 0
        assert not S.adjoint(np.zeros(144), g[0, 0]).any()


@pytest.mark.parametrize(
    ("args", "kwargs", "batch"),
    [
        ((6, 3, 1024), {}, 1),
        ((6, 3, 1024), {}, 40),
        ((6, 3, 1024), {"dtype": "float64", "format": "joint"}, 5),
        ((8, 3, 2**14), {"padding": "kymatio"}, 2),
        ((5, 2, 3000), {"Q": (4, 2), "T": 8}, 7),
        ((8, 4, 2**14), {"T": 16, "F": 2}, 2),
        ((2, 2, 60), {}, 300),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("has_engine", [True, False])
def test_nbytes_predicts_the_peak(args, kwargs, batch, threads, has_engine):
    S = TimeFrequencyScattering(*args, **kwargs)
    if not has_engine:  # along time
        vars(S)["_fused"] = None
    x = np.random.default_rng(0).standard_normal((batch, args[2])).astype(S.dtype)
    S(x, threads=threads)
    tracemalloc.start()
    try:
        S(x, threads=threads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert S.nbytes(batch, threads=threads) == pytest.approx(peak, rel=0.2, abs=128 << 10)


@pytest.mark.parametrize("format", ["time", "joint"])
def test_threads_do_not_change_a_bit(format):
    S = TimeFrequencyScattering(6, 3, 2**12, Q=(8, 2), format=format)
    x = np.random.default_rng(0).standard_normal((3, 2**12)).astype("float32")
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(S(x, threads=threads), S(x))
    with pytest.raises(ValueError, match="threads"):
        S(x, threads=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiny_and_huge_signals_share_a_batch(dtype):
    S = TimeFrequencyScattering(5, 2, 600, Q=4, dtype=dtype)
    x = np.random.default_rng(0).standard_normal(600).astype(dtype)
    scales = np.ldexp(1.0, np.array([-90, 0, 90])).astype(dtype)
    together = S(x * scales[:, None])
    for scale, one in zip(scales, together, strict=True):
        np.testing.assert_allclose(one / scale, S(x), rtol=0, atol=4 * np.finfo(dtype).eps * S(x).max())


def test_any_leading_axes_and_any_real_numbers(xp):
    S = TimeFrequencyScattering(4, 2, 200, Q=4, dtype="float64")
    x = np.random.default_rng(5).integers(-100, 100, (2, 3, 200))
    expected = S(x)
    assert expected.shape == (2, 3, *S.output_shape)
    np.testing.assert_allclose(to_host(S(xp(x[0, 1].astype(np.int16)))), expected[0, 1], rtol=1e-9)
    assert S(np.zeros((0, 200))).shape == (0, *S.output_shape)
    assert S.adjoint(np.zeros((0, 200)), np.zeros((0, *S.output_shape))).shape == (0, 200)
    np.testing.assert_array_equal(S(x[0, 0] > 0), S((x[0, 0] > 0).astype(float)))
    assert S.filter_digest == TimeFrequencyScattering(4, 2, 200, Q=4, dtype="float64").filter_digest
    assert S.filter_digest != TimeFrequencyScattering(4, 2, 200, Q=4, F=2, dtype="float64").filter_digest


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"J": -1}, ValueError, "J=-1"),
        ({"J": 9}, ValueError, "J=9"),
        ({"J_fr": -1}, ValueError, "J_fr=-1"),
        ({"J_fr": 1.5}, TypeError, "J_fr=1.5"),
        ({"J_fr": 6}, ValueError, r"J_fr=6: 2\^J_fr = 64 exceeds .* = 40 bands; the largest possible J_fr is 5"),
        ({"Q": 0}, ValueError, "Q=0"),
        ({"Q_fr": 0}, ValueError, "Q_fr=0"),
        ({"T": 0}, ValueError, "T=0"),
        ({"T": "global"}, ValueError, "T='global'"),
        ({"T": 300}, ValueError, "T=300"),
        ({"F": 0.5}, ValueError, "F=0.5: must be from 1 to 40"),
        ({"F": 41}, ValueError, "F=41"),
        ({"F": 8, "padding": "kymatio"}, ValueError, "F=8: must be from 1 to 4 bands, 2\\^J_fr"),
        ({"F": "all"}, TypeError, "F='all'"),
        ({"format": "list"}, ValueError, "format='list'"),
        ({"padding": "zero"}, ValueError, "padding='zero'"),
        ({"dtype": "float16"}, ValueError, "float16"),
        ({"sampling_rate": -1.0}, ValueError, "sampling_rate"),
        ({"shape": (16, 16)}, ValueError, "shape"),
    ],
)
def test_parameters_out_of_range_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        TimeFrequencyScattering(**{"J": 4, "J_fr": 2, "shape": 256, **kwargs})


def test_bad_input_is_refused():
    S = TimeFrequencyScattering(4, 2, 200, Q=4)
    x = np.zeros((2, 200))
    with pytest.raises(TypeError, match="complex"):
        S(x + 0j)
    with pytest.raises(ValueError, match="expected"):
        S(np.zeros((200, 2)))
    with pytest.raises(ValueError, match="expected"):
        S(np.ones(()))
    x[1, 7] = np.nan
    with pytest.raises(ValueError, match=r"not finite .* \(1, 7\)"):
        S(x)
    with pytest.raises(ValueError, match="g has shape"):
        S.adjoint(np.zeros(200), np.zeros(3))
    with pytest.raises(TypeError, match="list"):
        S([0.0] * 200)
