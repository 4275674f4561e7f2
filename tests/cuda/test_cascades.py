"""The CUDA engine, emulated: against the primitives in double precision, and bit for bit against itself."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scattercube.kernels import fused_cuda
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from tests.conftest import relative_error
from tests.cuda.emulated import Case, apart, compile_all, noise, portable
from tests.cuda.emulation import compiler_problem, schedule

EQUAL = {"float32": 3e-6, "float64": 1e-11}
"""Relative L2 distance from the primitives in double precision; ten times that for a path by itself."""

pytestmark = pytest.mark.usefixtures("emulated")


def agrees(actual, S, x):
    """Assert that coefficients are those that the primitives find, as a whole and path by path."""
    expected = portable(S)(x.astype(np.float64))
    assert actual.shape == expected.shape
    assert actual.dtype == S.dtype
    limit = EQUAL[S.dtype.name]
    assert relative_error(actual, expected) <= limit
    paths = np.arange(len(S.paths))
    actual, expected = (np.moveaxis(array.reshape(len(x), len(paths), -1), 1, 0) for array in (actual, expected))
    assert max(relative_error(actual[p], expected[p]) for p in paths) <= 10 * limit


def stays_the_same(S, x):
    """Return the coefficients, once they are known to be the same bits in any order and with arrays apart."""
    with schedule("shuffled", seed=1):
        found = S(x)
    with schedule("reversed"):
        np.testing.assert_array_equal(found, S(x), strict=True)
    with apart():
        np.testing.assert_array_equal(found, S(x), strict=True)
    return found


SMALL = 12000
CASES = [
    Case(Scattering2D, 2, (12, 20), {}, 3),
    Case(Scattering2D, 2, (12, 20), {"dtype": "float64", "L": 3}, 7),
    Case(Scattering2D, 1, (9, 7), {"L": 3}, 1),
    Case(Scattering2D, 1, (9, 7), {"L": 3, "max_order": 0}, 5),
    Case(Scattering2D, 1, (10, 13), {"L": 2, "padding": "support", "max_order": 1}, 9),
    Case(Scattering2D, 1, (13, 22), {"L": 3, "padding": "kymatio", "dtype": "float64"}),
    Case(Scattering2D, 2, (24, 16), {"L": 3, "padding": "periodic", "wavelet": "meyer", "dtype": "float64"}),
    Case(Scattering2D, 3, (24, 16), {"L": 2, "padding": "periodic", "max_order": 3}),
    Case(Scattering2D, 5, (32, 64), {"L": 1, "padding": "periodic"}, 3),  # outputs far apart
    Case(Scattering1D, 4, 256, {"Q": 4}, 3),
    Case(Scattering1D, 2, 130, {"Q": (3, 2), "dtype": "float64"}, 9),
    Case(Scattering1D, 2, 77, {"Q": (2, 2), "padding": "support", "max_order": 3}),
    Case(Scattering1D, 2, 200, {"Q": 4, "padding": "kymatio"}),
    Case(Scattering1D, 2, 4 * 99, {"Q": 2, "padding": "periodic"}),
    Case(Scattering1D, 2, 90, {"Q": 4, "T": 0}, 3),
    Case(Scattering1D, 2, 96, {"T": 0, "stride": 2, "padding": "periodic", "dtype": "float64"}),
    Case(Scattering1D, 2, 128, {"Q": 2, "T": "global", "max_order": 3}, 9),
    Case(Scattering1D, 1, 64, {"Q": 2, "T": "global", "padding": "kymatio", "dtype": "float64"}),
    Case(Scattering1D, 3, 120, {"Q": (1, 2), "T": 21.5, "stride": 4}),
    Case(Scattering1D, 2, 512, {"Q": 4, "padding": "periodic", "wavelet": "meyer"}),
    Case(Scattering1D, 2, 120, {"max_order": 0}),
    Case(Scattering1D, 0, 50, {"Q": 3}),
    Case(Scattering1D, 0, 7 * 13, {"padding": "periodic"}, 10),  # no half of a row
    Case(Scattering2D, 2, (32, 50), {}, 3, SMALL),
    Case(Scattering2D, 1, (41, 30), {"L": 3, "dtype": "float64", "padding": "support"}, 2, SMALL),
    Case(Scattering2D, 1, (33, 53), {"L": 2, "padding": "kymatio", "max_order": 0}, 1, SMALL),
    Case(Scattering2D, 3, (56, 56), {"L": 2, "padding": "periodic", "max_order": 3}, 2, 7000),
    Case(Scattering1D, 4, 5000, {"max_order": 3}, 2, 24000),
    Case(Scattering1D, 1, 900, {"Q": (3, 2), "dtype": "float64", "padding": "periodic"}, 2, SMALL),
    Case(Scattering1D, 2, 1650, {"Q": 2, "T": 0, "padding": "kymatio"}, 2, SMALL),
    Case(Scattering1D, 2, 1500, {"Q": 2, "T": "global", "max_order": 3}, 2, SMALL),
    Case(Scattering1D, 3, 1999, {"Q": 2, "T": 500, "stride": 2}, 2, SMALL),
    Case(Scattering1D, 0, 45 * 45, {"Q": 2, "padding": "periodic"}, 2, SMALL),
    Case(Scattering2D, 1, (160, 200), {"L": 2}, 1),
    Case(Scattering1D, 2, 2**15, {"padding": "periodic"}, 1),
]
LARGE_BY_ITSELF = CASES[-2:]


@pytest.fixture(scope="module", autouse=True)
def transforms():
    """The transforms of all cases, compiled."""
    if compiler_problem():
        return {}
    made = {str(case): case.transform() for case in CASES}
    compile_all(S._fused_cuda._schedule(1) for S in made.values() if S._fused_cuda)
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_transforms(transforms, case):
    S = transforms[str(case)]
    assert S._fused_cuda
    assert S._fused_cuda._modules[0].whole != (case.shared_nbytes > 0 or case in LARGE_BY_ITSELF)
    x = noise(S, case.batch)
    agrees(stays_the_same(S, x), S, x)


def test_a_line_of_one_sample_whose_wavelets_are_nothing():
    S = Scattering1D(0, 1, padding="periodic")
    x = noise(S, 3)
    np.testing.assert_array_equal(S(x), portable(S)(x))


# --- Any ---


@st.composite
def lines(draw):
    J, max_order = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    T = draw(st.sampled_from([None, 0, "global", 7.5]))
    N = draw(st.integers(max(8, 2**J), 200))
    padding = draw(st.sampled_from(["minimal", "support", "kymatio", "periodic"]))
    N = N // 8 * 8 if padding == "periodic" else N
    parameters = {
        "Q": (draw(st.integers(1, 4)), draw(st.integers(1, 2))),
        "T": T,
        "stride": draw(st.sampled_from([None, 1])),
    }
    return Scattering1D, (J, N), parameters | {"padding": padding, "max_order": max_order}


@st.composite
def images(draw):
    J, max_order = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    padding = draw(st.sampled_from(["minimal", "support", "kymatio", "periodic"]))
    shape = tuple(draw(st.integers(4, 30)) for _ in range(2))
    shape = tuple(size // 4 * 4 for size in shape) if padding == "periodic" else shape
    return Scattering2D, (J, shape), {"L": draw(st.integers(1, 3)), "padding": padding, "max_order": max_order}


@given(lines() | images(), st.sampled_from(["float32", "float64"]), st.integers(1, 9), st.sampled_from([0, 0, 6000]))
@settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_transform(work, dtype, batch, shared_nbytes):
    make, arguments, parameters = work
    S = Case(make, *arguments, parameters | {"dtype": dtype}, batch, shared_nbytes).transform()
    assume(S._fused_cuda)
    compile_all([S._fused_cuda._schedule(1)])
    x = noise(S, batch, seed=batch)
    agrees(stays_the_same(S, x), S, x)


# --- One image, the same bits ---

SOME = [case for case in CASES if case.parameters.get("max_order") == 3]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_its_blocks(monkeypatch, transforms, case):
    S = transforms[str(case)]
    x = noise(S, 5).copy()
    x[2] *= 1e9  # of neighbours, however large
    together = S(x)
    for i, image in enumerate(x):
        np.testing.assert_array_equal(together[i], S(image), strict=True)
    plan = fused_cuda.Plan(S, S._fused_cuda._modules, S._fused_cuda._filters)
    widest = max(len(S._bank((j,))) * plan.spectrum_nbytes(j) for j in S._next(()))
    monkeypatch.setattr(fused_cuda, "_SPECTRA_NBYTES", 2 * widest)
    monkeypatch.setitem(vars(S), "_fused_cuda", plan)
    assert [some.stop - some.start for some in plan._blocks(5)] == [1, 2, 2]
    np.testing.assert_array_equal(together, S(x), strict=True)


def test_shapes_types_and_strides_of_what_is_given(transforms):
    S = transforms[str(CASES[0])]
    x = np.random.default_rng(3).integers(-99, 99, (2, 3, *S.shape))
    expected = S(x.astype(np.float32))
    assert expected.shape == (2, 3, *S.output_shape)
    for same in (x, x.astype(np.int8), x.astype(np.float64), np.asfortranarray(x.astype(np.float32))):
        np.testing.assert_array_equal(S(same), expected, strict=True)
    assert S(x[:, :0]).shape == (2, 0, *S.output_shape)
    np.testing.assert_array_equal(S(x[0, 0] * np.float32(2**-100)), expected[0, 0] * np.float32(2**-100))
    np.testing.assert_array_equal(S(np.zeros(S.shape)), np.zeros(S.output_shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused_as_by_the_primitives(transforms, bad):
    S = transforms[str(CASES[0])]
    x = np.zeros((3, *S.shape))
    x[1].flat[-1] = bad
    with pytest.raises(ValueError, match="not finite") as ours, np.errstate(over="ignore"):
        S(x)
    with pytest.raises(ValueError, match="not finite") as theirs:
        portable(S, "float32")(x)
    assert str(ours.value) == str(theirs.value)
