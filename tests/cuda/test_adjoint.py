"""The adjoint on the CUDA engine, emulated: against the primitives in double precision, and bit against bit."""

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scattercube.kernels import cuda_modules, device, fused_cuda_adjoint
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from tests.conftest import relative_error
from tests.cuda.budget import budgets, nvrtc_problem
from tests.cuda.emulated import Case, apart, barrier_is_needed, compile_all, noise, portable, text_of
from tests.cuda.emulation import LaunchError, barriers, compiler_problem, count_barriers, schedule
from tests.test_adjoint import check_along_a_direction

EQUAL = {"float32": 5e-6, "float64": 1e-11}
"""Relative L2 distance from the primitives in double precision, for noise: the modulus has no derivative at 0."""

pytestmark = pytest.mark.usefixtures("emulated")


def planned(case):
    """The transform of a case, with the plan of its adjoint."""
    with pytest.MonkeyPatch.context() as patch:
        if case.shared_nbytes:
            patch.setattr(cuda_modules, "SHARED_NBYTES", case.shared_nbytes)
        S = case.transform()
        assert S._fused_cuda_adjoint
    return S


def pair(S, batch, seed=0):
    """A batch, and weights of its coefficients, that cannot be written to."""
    g = np.random.default_rng(seed + 1).standard_normal((batch, *S.output_shape)).astype(S.dtype)
    g.flags.writeable = False
    return noise(S, batch, seed), g


def agrees(S, x, g):
    """Assert that a gradient is that of the primitives, and the same bits in any order and with arrays apart."""
    found = S.adjoint(x, g)
    expected = portable(S).adjoint(x.astype(np.float64), g.astype(np.float64))
    assert found.shape == expected.shape
    assert found.dtype == S.dtype
    assert relative_error(found, expected) <= EQUAL[S.dtype.name]
    with schedule("shuffled", seed=1):
        np.testing.assert_array_equal(found, S.adjoint(x, g), strict=True)
    with schedule("reversed"):
        np.testing.assert_array_equal(found, S.adjoint(x, g), strict=True)
    with apart():
        np.testing.assert_array_equal(found, S.adjoint(x, g), strict=True)


SMALL = 12000
CASES = [
    Case(Scattering2D, 2, (12, 20), {}, 3),
    Case(Scattering2D, 2, (13, 22), {"L": 3, "padding": "kymatio", "dtype": "float64"}),
    Case(Scattering2D, 1, (9, 7), {"L": 3, "max_order": 1, "dtype": "float64"}, 9),
    Case(Scattering2D, 1, (10, 13), {"L": 2, "padding": "support", "max_order": 0}, 5),
    Case(Scattering2D, 3, (24, 16), {"L": 2, "padding": "periodic", "max_order": 3}),
    Case(Scattering2D, 1, (15, 30), {"L": 3, "max_order": 1, "wavelet": "meyer"}),
    Case(Scattering2D, 5, (64, 32), {"L": 1, "padding": "periodic"}, 1),  # outputs far apart
    Case(Scattering1D, 3, 200, {"Q": 4}, 3),
    Case(Scattering1D, 3, 77, {"Q": (2, 2), "padding": "support", "max_order": 3, "dtype": "float64"}),
    Case(Scattering1D, 2, 90, {"Q": 4, "T": 0, "dtype": "float64"}, 3),
    Case(Scattering1D, 2, 96, {"T": 0, "stride": 2, "padding": "periodic"}),
    Case(Scattering1D, 2, 128, {"Q": 2, "T": "global", "max_order": 3}, 9),
    Case(Scattering1D, 3, 120, {"Q": (1, 2), "T": 21.5, "stride": 4, "dtype": "float64"}),
    Case(Scattering1D, 6, 64, {"Q": 2}, 1),  # one output
    Case(Scattering1D, 0, 7 * 13, {"padding": "periodic"}, 10),  # no half of a row
    Case(Scattering1D, 2, 120, {"max_order": 0}, 2),
    Case(Scattering2D, 2, (32, 50), {}, 3, SMALL),
    Case(Scattering2D, 1, (33, 53), {"L": 2, "padding": "kymatio", "dtype": "float64"}, 1, SMALL),
    Case(Scattering2D, 1, (32, 50), {"max_order": 0}, 2, SMALL),
    Case(Scattering2D, 3, (56, 56), {"L": 2, "padding": "periodic", "max_order": 3}, 2, 9000),
    Case(Scattering2D, 1, (16, 16), {"L": 2}, 3, 5960),  # whole forth, but not back
    Case(Scattering1D, 4, 5000, {"max_order": 3}, 1, 24000),
    Case(Scattering1D, 1, 900, {"Q": (3, 2), "dtype": "float64", "padding": "periodic"}, 2, SMALL),
    Case(Scattering1D, 2, 1650, {"Q": 2, "T": 0, "padding": "kymatio"}, 2, SMALL),
    Case(Scattering1D, 2, 1500, {"Q": 2, "T": "global", "max_order": 3}, 2, SMALL),
    Case(Scattering1D, 2, 1200, {"max_order": 0}, 2, 9000),
    Case(Scattering1D, 0, 45 * 45, {"Q": 2, "padding": "periodic"}, 2, SMALL),
]


@pytest.fixture(scope="module", autouse=True)
def transforms():
    """The transforms of all cases, compiled."""
    if compiler_problem():
        return {}
    made = {str(case): planned(case) for case in CASES}
    compile_all(S._fused_cuda_adjoint._schedule(1) for S in made.values())
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(transforms, case):
    S = transforms[str(case)]
    assert S._fused_cuda_adjoint._modules[0].engine.whole != (case.shared_nbytes > 0)
    agrees(S, *pair(S, case.batch))


def test_a_block_may_hold_less_back_than_forth(transforms):
    S = transforms[str(Case(Scattering2D, 1, (16, 16), {"L": 2}, 3, 5960))]
    assert S._fused_cuda._modules[0].whole
    assert not S._fused_cuda_adjoint._modules[0].engine.whole


@pytest.mark.parametrize("case", [case for case in CASES if "dtype" in case.parameters], ids=str)
def test_gradients_are_the_derivatives_of_the_engine(transforms, case):
    check_along_a_direction(transforms[str(case)])


# --- Any ---


@st.composite
def works(draw):
    padding, max_order = draw(st.sampled_from(["minimal", "support", "kymatio", "periodic"])), draw(st.integers(0, 3))
    parameters = {"padding": padding, "max_order": max_order, "dtype": draw(st.sampled_from(["float32", "float64"]))}
    batch, shared_nbytes = draw(st.integers(1, 9)), draw(st.sampled_from([0, 0, 6000]))
    if draw(st.booleans()):
        J, N = draw(st.integers(0, 3)), draw(st.integers(8, 200))
        N = N // 8 * 8 if padding == "periodic" else N
        parameters["Q"] = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        parameters |= draw(st.sampled_from([{}, {"T": 0}, {"T": "global"}, {"T": 7.5}, {"stride": 1}]))
        return Case(Scattering1D, J, N, parameters, batch, shared_nbytes)
    shape = tuple(draw(st.integers(4, 30)) for _ in range(2))
    shape = tuple(size // 4 * 4 for size in shape) if padding == "periodic" else shape
    parameters["L"] = draw(st.integers(1, 3))
    return Case(Scattering2D, draw(st.integers(1, 2)), shape, parameters, batch, shared_nbytes)


@given(works())
@settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_gradient(case):
    with pytest.MonkeyPatch.context() as patch:
        if case.shared_nbytes:
            patch.setattr(cuda_modules, "SHARED_NBYTES", case.shared_nbytes)
        S = case.transform()
        assume(S._fused_cuda_adjoint)
    compile_all([S._fused_cuda_adjoint._schedule(1)])
    agrees(S, *pair(S, case.batch, seed=case.batch))


# --- One image, the same bits ---

SOME = [CASES[0], CASES[7], CASES[16], CASES[21]]
some_cases = pytest.mark.parametrize("case", SOME, ids=str)


@some_cases
def test_bits_depend_neither_on_the_batch_nor_on_its_blocks(monkeypatch, transforms, case):
    S = transforms[str(case)]
    x, g = pair(S, 5)
    x = x.copy()
    x[2] *= 1e9  # of neighbours, however large
    together = S.adjoint(x, g)
    for i in range(5):
        np.testing.assert_array_equal(together[i], S.adjoint(x[i], g[i]), strict=True)
    parts = S, S._fused_cuda, S._fused_cuda_adjoint._modules
    whole, plan = (fused_cuda_adjoint.Plan(*parts) for _ in range(2))
    assert [some.stop - some.start for some in whole._blocks(5)] == [5]
    together_nbytes = whole.nbytes(5)
    monkeypatch.setattr(fused_cuda_adjoint, "_BETWEEN_NBYTES", 2 * plan._most((), 1)[0])
    monkeypatch.setitem(vars(S), "_fused_cuda_adjoint", plan)
    assert [some.stop - some.start for some in plan._blocks(5)] == [1, 2, 2]
    assert plan.nbytes(1) < plan.nbytes(5) == plan.nbytes(2) < together_nbytes
    np.testing.assert_array_equal(together, S.adjoint(x, g), strict=True)


@pytest.mark.parametrize("case", SOME[:2], ids=str)
def test_the_size_of_the_input_does_not_matter(transforms, case):
    S = transforms[str(case)]
    x, g = pair(S, 2)
    expected = S.adjoint(x, g)
    for factor in (2.0**-100, 2.0**90):
        np.testing.assert_array_equal(S.adjoint(x * np.float32(factor), g), expected, strict=True)
    weights, zero = g.copy(), np.zeros_like(x)
    weights[:, S.paths.columns["order"] == 0] = 0
    np.testing.assert_array_equal(S.adjoint(zero, weights), zero)


@pytest.mark.parametrize(("case", "factor"), [(CASES[2], 2.0**-600), (CASES[5], 2.0**-80)], ids=str)
def test_where_moduli_are_tiny_they_have_their_gradients(transforms, case, factor):
    """Beside a unit that is no one's: their squares are no numbers."""
    S = transforms[str(case)]
    x, g = pair(S, 1)
    found = np.empty_like(x)
    S._fused_cuda_adjoint((x * factor).astype(S.dtype), np.ones(1, S.dtype), g, found)
    assert relative_error(found, S.adjoint(x, g)) <= EQUAL[S.dtype.name]


@pytest.mark.parametrize("case", SOME[:1], ids=str)
def test_shapes_types_and_strides_of_what_is_given(transforms, case):
    S = transforms[str(case)]
    rng = np.random.default_rng(3)
    x, g = rng.integers(-99, 99, (2, 3, *S.shape)), rng.integers(-9, 9, (2, 3, *S.output_shape))
    expected = S.adjoint(x.astype(np.float32), g.astype(np.float32))
    assert expected.shape == x.shape
    for same in (np.int8, np.float64):
        np.testing.assert_array_equal(S.adjoint(x.astype(same), g.astype(same)), expected, strict=True)
    strided = (np.asfortranarray(array.astype(np.float32)) for array in (x, g))
    np.testing.assert_array_equal(S.adjoint(*strided), expected, strict=True)
    assert S.adjoint(x[:, :0], g[:, :0]).shape == (2, 0, *S.shape)


@pytest.mark.parametrize("case", SOME[:1], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_refused_as_by_the_primitives(transforms, case, bad, which):
    S = transforms[str(case)]
    given = [np.zeros((2, *S.shape)), np.zeros((2, *S.output_shape))]
    given[which][1].flat[-1] = bad
    with pytest.raises(ValueError, match="not finite") as ours, np.errstate(over="ignore"):
        S.adjoint(*given)
    with pytest.raises(ValueError, match="not finite") as theirs:
        portable(S, "float32").adjoint(*given)
    assert str(ours.value) == str(theirs.value)


def test_without_a_plan_the_primitives_serve():
    prime = Scattering2D(1, (34, 8), 2, padding="periodic", dtype="float64")
    assert prime._fused_cuda is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_modules, "SHARED_NBYTES", 2048 + 160 * 9 * 8)
        wide = Scattering2D(1, (160, 128), 2, padding="periodic")
        assert wide._fused_cuda  # whose columns leave no room
        assert wide._fused_cuda_adjoint is None
    for S in (prime, wide):
        assert S._fused_cuda_adjoint is None
        x, g = pair(S, 1)
        np.testing.assert_array_equal(S.adjoint(x, g), portable(S, S.dtype.name).adjoint(x, g))


# --- Barriers ---


def outcome(plan, x, g):
    """The gradient, or None where the emulator refuses what a kernel does."""
    gradient = np.full_like(x, np.nan)
    try:
        plan(x, np.ones(len(x), x.dtype), g, gradient)
    except LaunchError:
        return None
    return gradient


def test_without_any_one_barrier_some_order_goes_wrong(transforms):
    met, needed = set(), set()
    for case in [*SOME, *(case for case in CASES if case.parameters.get("max_order") == 0)]:
        S = transforms[str(case)]
        plan, (x, g) = S._fused_cuda_adjoint, pair(S, case.batch)
        text = text_of(plan._modules[0].source)
        begin = text.index("// The scattering engine backwards")
        first = text[:begin].count("\n") + 1
        with barriers() as lines:
            expected = outcome(plan, x, g)
        ours = {line for line in lines if line >= first}
        met |= {line - first for line in ours}
        run = partial(outcome, plan, x, g)
        needed |= {line - first for line in ours if barrier_is_needed(run, expected, line)}
    assert needed == met
    assert len(met) == count_barriers(text[begin:])


# --- What the kernels take on a GPU ---


@pytest.mark.skipif(bool(nvrtc_problem()), reason=str(nvrtc_problem()))
@pytest.mark.parametrize(
    "case",
    [
        Case(Scattering2D, 2, (32, 32), {}),
        Case(Scattering2D, 4, (256, 256), {"L": 1}),
        Case(Scattering1D, 8, 2**13, {}),
        Case(Scattering1D, 2, 2**16, {"dtype": "float64"}),
    ],
    ids=str,
)
def test_no_kernel_spills(case):
    modules = case.transform()._fused_cuda_adjoint._modules
    for module in modules[:2]:
        for name, budget in budgets(module.source, device.CUDA_OPTIONS).items():
            if "adjoint" in name or "slopes" in name:
                assert budget.spill_stores_nbytes == budget.spill_loads_nbytes == budget.stack_nbytes == 0
                assert budget.registers * module.threads <= 1 << 16
