"""Missing values: nothing changes where nothing is missing, and around gaps the rest speaks for them."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import scattercube
from scattercube.kernels import Scattering1D, Scattering2D
from scattercube.kernels.missing import CERTAINTY, Missing


def red_noise(shape, seed=0, mean=10.0, dtype="float64"):
    """Noise with a spectrum that falls as 1/f, of standard deviation 1."""
    rng = np.random.default_rng(seed)
    frequencies = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    k = np.sqrt(sum(f**2 for f in frequencies))
    x = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape)) / np.maximum(k, 1 / max(shape))).real
    return (x / x.std() + mean).astype(dtype)


def disks(shape, n, seed=1):
    rng = np.random.default_rng(seed)
    valid = np.ones(shape, bool)
    y, x = np.indices(shape)
    for _ in range(n):
        (cy, cx), r = rng.integers(0, shape), rng.integers(2, 10)
        valid &= (y - cy) ** 2 + (x - cx) ** 2 > r**2
    return valid


def with_gaps(S, x, valid):
    missing = Missing(S)
    with np.errstate(all="raise", under="ignore"):
        features, coverage = missing(missing.fill(np.where(valid, x, np.nan))[None], valid[None])
    return features[0], coverage[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_order", [0, 1, 2, 3])
def test_where_the_coverage_is_one_the_plain_transform_is_left(dtype, max_order):
    x, valid = red_noise((224, 240), dtype=dtype), disks((224, 240), 4)
    S = Scattering2D(max(2, max_order), x.shape, L=2, max_order=max_order, padding="periodic", dtype=dtype)
    features, coverage = with_gaps(S, x, valid)
    plain = S(x)
    full = coverage == 1
    assert 0.05 < full.mean() < 0.999
    error = np.linalg.norm((features - plain)[full]) / np.linalg.norm(plain[full])
    assert error <= {"float32": 1e-6, "float64": 1e-12}[dtype]
    for order in range(max_order + 1):
        rows = S.paths.columns["order"] == order
        scale = np.abs(plain[rows]).max()
        worst = np.abs(np.where(full, features - plain, 0)[rows]).max() / scale
        assert worst <= {"float32": 1e-5, "float64": 1e-10}[dtype]


def test_without_gaps_nothing_changes():
    x = red_noise((64, 64))
    S = Scattering2D(2, x.shape, padding="periodic", dtype="float64")
    features, coverage = with_gaps(S, x, np.ones_like(x, bool))
    assert (coverage == 1).all()
    np.testing.assert_allclose(features, S(x), rtol=1e-10, atol=1e-12)


def test_the_coverage_of_order_zero_is_the_average_of_the_mask():
    x, valid = red_noise((64, 64)), disks((64, 64), 5)
    S = Scattering2D(2, x.shape, max_order=0, padding="periodic", dtype="float64")
    _, coverage = with_gaps(S, x, valid)
    np.testing.assert_allclose(coverage[0], S(valid.astype(float))[0].clip(0, 1), atol=1e-9)


def test_the_coverage_of_a_path_is_that_of_its_envelope():
    """Against a direct sum over space, of one path and one output."""
    n, u = 256, 128
    valid = np.ones(n, bool)
    valid[100:118] = False
    S = Scattering1D(3, n, Q=1, padding="periodic", dtype="float64")
    _, coverage = with_gaps(S, red_noise((n,)), valid)
    row = int(np.flatnonzero(S.paths.columns["order"] == 1)[0])
    j = int(S.paths.columns["j1"][row])
    at = np.arange(n)
    distance = np.minimum(at, n - at)
    envelope = np.exp(-0.5 * (distance / S.widths[0][j]) ** 2)
    envelope /= envelope.sum()
    seen = np.array([(envelope[(at - v) % n] * valid).sum() for v in range(n)]) ** CERTAINTY
    assert coverage[row, u // 8] == pytest.approx(S(seen)[0][u // 8], abs=1e-6)


@pytest.mark.parametrize(
    ("least", "most", "rms", "bias"), [(0.9, 1.0, 0.12, 0.02), (0.75, 0.9, 0.3, 0.05), (0.5, 0.75, 0.55, 0.1)]
)
def test_around_gaps_the_estimate_is_close(least, most, rms, bias):
    """Errors in standard deviations of an order's coefficients, and their mean relative to the coefficients'."""
    x, valid = red_noise((256, 256), seed=3, mean=100.0), disks((256, 256), 25)
    S = Scattering2D(3, x.shape, padding="periodic", dtype="float64")
    features, coverage = with_gaps(S, x, valid)
    plain, filled = S(x), S(np.where(valid, x, 0))
    for order in (0, 1, 2):
        rows = (S.paths.columns["order"] == order)[:, None, None]
        some = rows & (coverage >= least) & (coverage < most)
        assert some.any()
        error = (features - plain)[some]
        assert np.sqrt(np.mean(error**2)) <= rms * plain[rows[:, 0, 0]].std()
        assert abs(error.mean()) <= bias * plain[some].mean()
        assert np.sqrt(np.mean((filled - plain)[some] ** 2)) > 5 * np.sqrt(np.mean(error**2)), "zeros are far worse"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), share=st.floats(0.0, 1.0), level=st.floats(-1e4, 1e4))
def test_nothing_but_numbers_and_nothing_of_what_was_hidden(seed, share, level):
    """A constant stays a constant; what stands behind the mask has no say."""
    rng = np.random.default_rng(seed)
    valid = rng.random((48, 48)) >= share
    S = Scattering2D(2, (48, 48), L=2, padding="periodic", dtype="float64")
    missing = Missing(S)
    filled = missing.fill(np.where(valid, level, np.nan))
    features, coverage = missing(filled[None], valid[None])
    assert ((coverage >= 0) & (coverage <= 1)).all()
    seen = coverage > 0.01
    assert np.isfinite(features[seen]).all()
    mean, rest = seen[0, 0], features[0, 1:][seen[0, 1:]]
    np.testing.assert_allclose(features[0, 0][mean], level, rtol=1e-6, atol=1e-9)
    assert (np.abs(rest) <= 1e-6 * max(abs(level), 1e-9)).all()
    if not valid.any():
        assert np.isnan(features).all()


def test_transforms_that_do_not_know_their_surroundings_are_refused():
    for S in (
        Scattering2D(2, (32, 32)),
        Scattering2D(2, (32, 32), padding="periodic", wavelet="meyer"),
        Scattering1D(3, 64, T=0, padding="periodic"),
    ):
        with pytest.raises(ValueError, match="missing values need"):
            Missing(S)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_with_gaps_are_those_of_the_whole(dtype):
    x, valid = red_noise((200, 208), mean=3.0, dtype=dtype), disks((200, 208), 12)
    array = xr.DataArray(np.where(valid, x, np.nan).astype(dtype), dims=("y", "x"))
    spec = {"J": 2, "L": 4, "padding": "support", "dtype": dtype, "min_coverage": 0.3}
    whole = scattercube.scatter(array, spec, missing=True)
    tiled = scattercube.scatter(array.chunk(y=50, x=104), spec, missing=True).compute()
    assert len(scattercube.scatter(array.chunk(y=50, x=104), spec, missing=True)["scattering"].chunks[1]) > 1
    tolerance = {"float32": 1e-5, "float64": 1e-9}[dtype]
    np.testing.assert_allclose(tiled["coverage"], whole["coverage"], atol=tolerance)
    seen = np.isfinite(whole["scattering"].values)
    assert 0.8 < seen.mean() < 1
    assert (np.isfinite(tiled["scattering"].values) == seen).mean() > 0.9999
    difference = np.where(seen, tiled["scattering"] - whole["scattering"], 0)
    assert np.linalg.norm(np.nan_to_num(difference)) <= tolerance * np.linalg.norm(whole["scattering"].values[seen])


def test_too_little_coverage_is_nan():
    x = red_noise((96, 96))
    x[:, 40:60] = np.nan
    array = xr.DataArray(x, dims=("y", "x"))
    for least in (0.2, 0.5, 0.9):
        cube = scattercube.scatter(array, {"J": 2, "padding": "support", "min_coverage": least}, missing=True)
        np.testing.assert_array_equal(np.isfinite(cube["scattering"]), cube["coverage"] >= np.float32(least))
