import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import to_host
from scattercube.kernels.scattering import Scattering1D
from tests import naive
from tests.conftest import TOLERANCE, relative_error
from tests.test_scattering2d import noise, peak_nbytes

DATA = Path(__file__).parent / "data"
REFERENCE = np.load(DATA / "reference_1d.npz")
CONFIGS = [entry["config"] for entry in json.loads(str(REFERENCE["configs_json"]))]


# --- Against outside numbers ---


def reference_transform(i, dtype):
    config = dict(CONFIGS[i])
    Q = config.pop("Q")
    return Scattering1D(**config, Q=tuple(Q) if isinstance(Q, list) else Q, padding="kymatio", dtype=dtype)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("i", range(len(CONFIGS)))
def test_parity_with_reference_vectors(xp, i, dtype, error):
    S = reference_transform(i, dtype)
    actual = S(xp(REFERENCE[f"x{i}"].astype(dtype)))
    expected = REFERENCE[f"S{i}"]
    assert actual.dtype == dtype
    assert actual.shape == (expected.shape[:2] if CONFIGS[i].get("T") == "global" else expected.shape)
    assert relative_error(to_host(actual).reshape(expected.shape), expected) < error


@pytest.mark.parametrize("i", range(len(CONFIGS)))
def test_labels_and_their_order_are_the_references(i):
    columns = reference_transform(i, "float32").paths.columns
    np.testing.assert_array_equal(columns["order"], REFERENCE[f"meta_order{i}"])
    for name in ("xi", "sigma", "j", "n"):
        for m, expected in enumerate(REFERENCE[f"meta_{name}{i}"].T, start=1):
            present = columns["order"] >= m
            np.testing.assert_allclose(columns[f"{name}{m}"][present], expected[present])
            assert np.isnan(expected[~present]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parity_with_the_peers_own_test_data(dtype):
    data = np.load(DATA / "kymatio_test_1d.npz")
    S = Scattering1D(int(data["J"]), data["x"].shape[-1], int(data["Q"]), padding="kymatio", dtype=dtype)
    np.testing.assert_allclose(S(data["x"]), data["Sx"], rtol=1e-5, atol=1e-8)


@st.composite
def problems(draw):
    J = draw(st.integers(0, 5))
    N = draw(st.integers(max(2, 2**J), 120))
    T = draw(st.one_of(st.none(), st.just(0), st.floats(1, N)))
    scale = T or 2**J
    largest = 2**J if T == 0 else 1 << (math.floor(scale).bit_length() - 1)
    return {
        "J": J,
        "shape": N,
        "Q": (draw(st.integers(1, 5)), draw(st.integers(1, 2))),
        "T": T,
        "stride": draw(st.sampled_from([None, *(2**k for k in range(largest.bit_length()))])),
        "max_order": draw(st.integers(0, 2)),
        "padding": draw(st.sampled_from(["minimal", "support"])),
        "dtype": draw(st.sampled_from(sorted(TOLERANCE))),
    }


def check_against_naive(J, shape, Q, T, stride, max_order, padding, dtype):
    S = Scattering1D(J, shape, Q, T, stride, max_order, padding, dtype)
    x = noise(shape, dtype=dtype)
    stride = stride or (1 if T == 0 else 2 ** math.floor(math.log2(T or 2**J)))
    axis = S._axes[0]
    expected = naive.line_scattering(x, J, Q, 2**J if T is None else T, stride, max_order, axis.padded, axis.before)
    assert S.output_shape == (len(expected), math.ceil(shape / stride))
    np.testing.assert_array_equal(S.positions[0], stride * np.arange(math.ceil(shape / stride)))
    # A signal may nearly vanish in the mean: what filters leave out is a part of the signal, not of its coefficients.
    error = np.linalg.norm(S(x) - np.stack(list(expected.values())))
    assert error < 10 * TOLERANCE[dtype] * np.linalg.norm([np.linalg.norm(x), *map(np.linalg.norm, expected.values())])
    columns = S.paths.columns
    for row, path in enumerate(expected):
        assert tuple(int(columns[f"n{m}"][row]) for m in range(1, columns["order"][row] + 1)) == path


@settings(deadline=None, max_examples=40)
@given(problems())
def test_any_size_scale_and_order_equals_the_definition(problem):
    check_against_naive(**problem)


@pytest.mark.parametrize("max_order", [3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_high_orders_equal_the_definition(max_order, dtype):
    check_against_naive(6, 100, (2, 1), None, None, max_order, "minimal", dtype)


# On a circle of 2^J samples the lowest wavelets would lie below the first frequency.
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(1, 6), st.sampled_from([None, 0, 3.5]), st.integers(0, 3))
def test_a_circle_equals_the_definition(J, periods, T, max_order):
    N = 16 * periods
    S = Scattering1D(J, N, (2, 1), T, max_order=max_order, padding="periodic", dtype="float64")
    x = noise(N, dtype="float64")
    banks = [
        {n: (j, naive.line_morlet(N, xi, s)) for n, (xi, s, j) in enumerate(naive.line_bank(J, q))} for q in (2, 1)
    ]
    phi = None if T == 0 else naive.line_lowpass(N, T or 2**J)
    expected = naive.cascade(x, banks, phi, max_order, S.stride)
    assert S.output_shape == (len(expected), N // S.stride)
    assert relative_error(S(x), np.stack(list(expected.values()))) < 10 * TOLERANCE["float64"]


# --- The border and the average ---


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("padding", ["support", "minimal"])
@pytest.mark.parametrize(("T", "stride"), [(None, None), (40, 8), (0, 4)])
def test_a_tile_cut_with_its_halo_equals_the_whole(dtype, error, padding, T, stride):
    x = noise(4096, dtype=dtype)
    whole = Scattering1D(5, 4096, (4, 1), T, stride, padding="support", dtype=dtype)
    halo, stride = whole.halo, whole.stride
    assert halo % stride == 0
    cut = x[1600 - halo : 2080 + halo]
    tile = Scattering1D(5, len(cut), (4, 1), T, stride, padding=padding, dtype=dtype)
    inner = slice(halo // stride, (halo + 480) // stride)
    expected = whole(x)[:, 1600 // stride : 2080 // stride]
    assert relative_error(tile(cut)[:, inner], expected) < error
    np.testing.assert_array_equal(
        tile.positions[0][inner] + 1600 - halo, stride * np.arange(1600 // stride, 2080 // stride)
    )


def test_a_third_of_the_halo_is_too_little():
    """The test above can fail."""
    x = noise(4096, dtype="float64")
    whole = Scattering1D(5, 4096, (4, 1), padding="support", dtype="float64")
    cut = whole.halo // 96 * 32
    tile = Scattering1D(5, 480 + 2 * cut, (4, 1), padding="minimal", dtype="float64")
    actual = tile(x[1600 - cut : 2080 + cut])[:, cut // 32 : (cut + 480) // 32]
    assert relative_error(actual, whole(x)[:, 50:65]) > 1e-6


@pytest.mark.parametrize(("J", "N"), [(0, 1), (0, 2), (2, 4), (3, 9), (4, 50)])
def test_support_padding_reflects_as_often_as_it_takes(J, N):
    S = Scattering1D(J, N, (2, 1), padding="support", dtype="float64")
    x = noise(N, dtype="float64")
    far = S.halo + 2 ** (J + 1)
    wide = np.pad(x, far, mode="reflect")
    W = Scattering1D(J, len(wide), (2, 1), padding="support", dtype="float64")
    first = far // 2**J
    assert relative_error(S(x), W(wide)[:, first : first + S.output_shape[1]]) < 1e-10


@pytest.mark.parametrize("N", [512, 1000])
@pytest.mark.parametrize("padding", ["minimal", "support", "kymatio"])
def test_positions_are_where_a_ramp_has_its_value(padding, N):
    S = Scattering1D(4, N, max_order=0, padding=padding, dtype="float64")
    inner = slice(8, -9)  # half the smoothed length of a ramp turns round at the ends
    np.testing.assert_allclose(S(np.arange(N))[0, inner], S.positions[0][inner], atol=1e-3)


def test_positions_are_seconds_where_the_sampling_rate_is_known():
    S = Scattering1D(4, 100, sampling_rate=50)
    np.testing.assert_allclose(S.positions[0], 16 / 50 * np.arange(7))
    assert S.paths.units["xi1"] == "Hz"
    np.testing.assert_allclose(S.paths.columns["xi1"], 50 * Scattering1D(4, 100).paths.columns["xi1"])


@pytest.mark.parametrize("padding", ["minimal", "support", "periodic"])
@pytest.mark.parametrize("stride", [1, 4, None])
def test_the_global_average_is_the_mean_over_the_signal(padding, stride):
    """Of each path at its own subsampling, which T = 0 shows where that is its stride."""
    N, x = 96, noise(3, 96, dtype="float64")
    parameters = {"Q": (3, 1), "padding": padding, "dtype": "float64"}
    mean = Scattering1D(4, N, T="global", stride=stride, **parameters)
    assert mean.output_shape == (len(mean.paths),)
    assert mean.positions == ()
    actual = mean(x)
    columns = mean.paths.columns
    last = np.where(columns["order"] == 2, columns["j2"], columns["j1"])
    levels = np.clip(last, 0, (stride or 16).bit_length() - 1)
    for level in np.unique(levels):
        U = Scattering1D(4, N, T=0, stride=1 << level, **parameters)
        rows = levels == level
        np.testing.assert_allclose(actual[:, rows], U(x)[:, rows].mean(axis=-1), rtol=1e-8)
    np.testing.assert_allclose(actual[:, 0], x.mean(axis=1), atol=1e-12)


def test_the_peers_global_average_is_a_sum():
    S = Scattering1D(3, 64, T="global", padding="kymatio", max_order=0, dtype="float64")
    assert S(np.ones(64)) == pytest.approx([128])


@pytest.mark.parametrize("stride", [1, 4, 16, 64])
def test_a_smaller_stride_shows_more_of_the_same_curve(stride):
    x = noise(2, 1024, dtype="float64")
    S = Scattering1D(6, 1024, (4, 1), stride=stride, dtype="float64", max_order=1)
    coarse = Scattering1D(6, 1024, (4, 1), dtype="float64", max_order=1)
    every = 64 // stride
    # What a coarser modulus folds is below the filters' own tails.
    assert relative_error(S(x)[..., ::every], coarse(x)) < 1e-2
    np.testing.assert_array_equal(S.positions[0][::every], coarse.positions[0])


# --- What a scattering transform must be ---


@settings(deadline=None, max_examples=20)
@given(st.integers(-200, 200), st.sampled_from([None, 24, 0, "global"]), st.integers(0, 3))
def test_a_shift_by_the_stride_shifts_the_result(shift, T, max_order):
    S = Scattering1D(4, 192, (3, 1), T, max_order=max_order, padding="periodic", dtype="float64")
    x = noise(192, dtype="float64")
    actual, expected = S(np.roll(x, shift * S.stride)), S(x)
    if T != "global":
        expected = np.roll(expected, shift, axis=-1)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_a_tone_answers_at_its_own_label():
    S = Scattering1D(7, 4096, max_order=1, sampling_rate=8000)
    xi = S.paths.columns["xi1"]
    for row in range(1, len(S.paths), 5):
        tone = np.sin(2 * np.pi * xi[row] * np.arange(4096) / 8000)
        strongest = 1 + S(tone)[1:, 8:-8].mean(axis=1).argmax()
        assert xi[strongest] == pytest.approx(xi[row], rel=0.1)


def test_energy_falls_with_the_order():
    S = Scattering1D(7, 2048, (4, 1), max_order=4)
    coefficients = S(noise(8, 2048))
    energy = [(coefficients[:, S.paths.columns["order"] == m] ** 2).sum() for m in range(1, 5)]
    assert all(high > 2 * low for high, low in itertools.pairwise(energy))


@pytest.mark.parametrize("Q", [1, 4, 8])
def test_littlewood_paley_sum_is_that_of_the_sampled_filters(Q):
    S = Scattering1D(5, 256, (Q, 1), padding="periodic", dtype="float64")
    for order, q in ((1, Q), (2, 1)):
        wavelets = [np.fft.fft(naive.line_morlet(256, xi, sigma)) for xi, sigma, _ in naive.line_bank(5, q)]
        for n, psi_hat in enumerate(wavelets):
            np.testing.assert_allclose(S.psi_hat(n, order), psi_hat, atol=1e-10)
        energy = sum(abs(psi_hat) ** 2 for psi_hat in wavelets)
        expected = abs(np.fft.fft(naive.line_lowpass(256, 32))) ** 2 + (energy + energy[-np.arange(256)]) / 2
        np.testing.assert_allclose(S.littlewood_paley(order), expected, atol=1e-9)


def test_coefficients_scale_with_the_signal():
    S = Scattering1D(4, 256)
    x = noise(256)
    for scale in (1e-30, 1e30):  # the squares of these overflow or vanish in single precision
        assert relative_error(S(np.float32(scale) * x) / np.float32(scale), S(x)) < TOLERANCE["float32"]


# --- Batches, types, memory ---


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 3), max_size=3), st.sampled_from(sorted(TOLERANCE)), st.sampled_from([None, 0, "global"])
)
def test_leading_dimensions_are_kept(lead, dtype, T):
    S = Scattering1D(3, (50,), (2, 1), T, dtype=dtype)
    x = noise(*lead, 50, dtype=dtype)
    actual = S(x)
    assert actual.shape == (*lead, *S.output_shape)
    assert actual.dtype == dtype
    for index in np.ndindex(*lead):
        np.testing.assert_allclose(actual[index], S(x[index]), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("N", "J", "max_order", "batch"), [(300, 5, 3, 200), (5000, 8, 2, 7), (100_000, 6, 1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_equals_its_signals_whatever_the_blocks(xp, N, J, max_order, batch, dtype):
    S = Scattering1D(J, N, (4, 1), max_order=max_order, dtype=dtype)
    x = noise(batch, N, dtype=dtype)
    together = to_host(S(xp(x)))
    for i in (0, batch // 2, batch - 1):
        assert relative_error(together[i], to_host(S(xp(x[i])))) < 0.1 * TOLERANCE[dtype]
    np.testing.assert_array_equal(together, to_host(S(xp(x))))


def test_the_input_is_left_alone_and_may_be_strided():
    S = Scattering1D(3, 64)
    x = noise(3, 64, 2)
    view, kept = x.transpose(0, 2, 1)[:, ::-1], x.copy()
    np.testing.assert_array_equal(S(view), S(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool", "float16", "float64", ">f4"])
def test_real_input_of_any_type_is_converted(dtype):
    S = Scattering1D(3, 64)
    x = (noise(2, 64) * 40 + 100).astype(dtype)
    actual = S(x)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, S(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("N", "batch", "parameters"),
    [
        (1024, 1, {"J": 6}),
        (1024, 300, {"J": 6}),
        (8192, 16, {"J": 6, "max_order": 3, "Q": (4, 1)}),
        (8192, 16, {"J": 6, "max_order": 0}),
        (8192, 8, {"J": 5, "max_order": 1, "T": 0, "stride": 4}),
        (8192, 16, {"J": 7, "T": "global"}),
        (65536, 2, {"J": 10, "T": 64, "stride": 16}),
        (65536, 3, {"J": 10, "padding": "periodic"}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_projected_memory_is_what_is_allocated(N, batch, parameters, dtype):
    S = Scattering1D(shape=N, dtype=dtype, **parameters)
    x = noise(batch, N, dtype=dtype)
    vars(S)["_fused"] = None  # of the primitives; what the compiled engine takes, tracemalloc does not see
    S(x[:1])  # what is imported or cached on first use
    bookkeeping = 64 * 1024
    assert peak_nbytes(lambda: S(x)) == pytest.approx(S.nbytes(batch), rel=0.2, abs=bookkeeping)


def test_memory_grows_with_the_batch_by_the_result_alone():
    S = Scattering1D(6, 1024)
    assert S.nbytes(10_000) - S.nbytes(5_000) == 5_000 * math.prod(S.output_shape) * 4


def test_digest_names_the_filters():
    def digest(J=4, N=200, Q=(3, 1), **kwargs):
        return Scattering1D(J, N, Q, **kwargs).filter_digest

    first = digest()
    assert first == digest()
    assert len(first) == 12
    others = [
        digest(dtype="float64"),
        digest(padding="kymatio"),
        digest(padding="support"),
        digest(N=201),
        digest(J=3),
        digest(Q=(4, 1)),
        digest(Q=(3, 2)),
        digest(T=17),
        digest(T=0),
        digest(T="global"),
        digest(stride=4),
        digest(max_order=1),
    ]
    assert len({first, *others}) == 13


# --- What is refused ---


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"J": -1}, "J=-1: must be at least 0"),
        ({"J": 9}, "J=9 needs signals of at least 512 samples, shape is \\(500,\\); the largest possible J is 8"),
        ({"Q": 0}, "Q=0: must be at least 1"),
        ({"Q": (8, 1, 1)}, "Q=\\(8, 1, 1\\): expected the wavelets per octave"),
        ({"T": 501}, 'T=501: .* 1 to the 500 samples .* "global"'),
        ({"T": 0.5}, "T=0.5"),
        ({"T": -1}, "T=-1"),
        ({"T": math.nan}, "T=nan"),
        ({"stride": 3}, "stride=3: must be a power of two, at most 16"),
        ({"stride": 32}, "stride=32: must be a power of two, at most 16"),
        ({"stride": 0}, "stride=0"),
        ({"T": 0, "stride": 32}, "stride=32: .* at most 16"),
        ({"max_order": -1}, "max_order=-1"),
        ({"padding": "zero"}, "padding='zero'"),
        ({"padding": "periodic"}, "500 is no multiple of the stride 16; 496 and 512 fit"),
        ({"dtype": "int32"}, "dtype='int32'"),
        ({"shape": (10, 10)}, "expected N or \\(N,\\)"),
        ({"shape": 0}, "shape=0"),
        ({"sampling_rate": 0}, "sampling_rate=0"),
    ],
)
def test_impossible_parameters_name_themselves(parameters, message):
    with pytest.raises(ValueError, match=message):
        Scattering1D(**{"J": 4, "shape": 500, **parameters})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"J": 2.5}, r"J=2\.5"), ({"Q": 1.5}, r"Q=1\.5"), ({"T": "all"}, "T='all'"), ({"stride": 2.0}, r"stride=2\.0")],
)
def test_parameters_of_the_wrong_type_name_themselves(parameters, message):
    with pytest.raises(TypeError, match=message):
        Scattering1D(**{"J": 4, "shape": 500, **parameters})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros(63), ValueError, "x has shape \\(63,\\): expected \\(…, 64\\)"),
        (np.zeros(()), ValueError, "shape \\(\\)"),
        (np.zeros(64, complex), TypeError, "complex128"),
        (np.zeros(64, object), TypeError, "object"),
        ([0.0] * 64, TypeError, "list"),
    ],
)
def test_wrong_signals_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        Scattering1D(3, 64)(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_counted_and_placed(xp, value):
    x = noise(2, 900, 64, dtype="float64")
    x[1, 700, 5] = x[1, 899, 0] = value
    with pytest.raises(ValueError, match=r"2 of 115200 values, the first at index \(1, 700, 5\)"):
        Scattering1D(3, 64)(xp(x))
