"""The CUDA engine for volumes, emulated: against NumPy in double precision, and bit for bit against itself."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scattercube.kernels import fused_cuda_volumes, solid_harmonic
from scattercube.kernels.device import CUDA_OPTIONS
from scattercube.kernels.fused_cuda_volumes import Module
from scattercube.kernels.solid_harmonic import HarmonicScattering3D
from tests.conftest import relative_error
from tests.cuda.budget import ARCHITECTURES, budgets, nvrtc_problem
from tests.cuda.emulated import apart, compile_all
from tests.cuda.emulation import LaunchError, count_barriers, schedule, without_barrier

EQUAL = {"float32": 3e-6, "float64": 1e-11}
"""Relative L2 distance from NumPy in double precision, for each power; ten times that for a path by itself."""

KERNELS = ("begin", "along_z", "planes", "finish")


@pytest.fixture
def on_device(emulated, monkeypatch):
    """Take NumPy arrays for arrays on a device."""
    monkeypatch.setattr(solid_harmonic, "device_of", lambda x: "cuda")


def planned(*arguments, **parameters):
    """A transform that has a plan, whose kernels are compiled at once."""
    S = HarmonicScattering3D(*arguments, **parameters)
    compile_all([S._fused_cuda._schedule(1)])
    return S


def noise(S, batch, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, *S.shape)).astype(S.dtype)


def portable(S, x):
    """S(x) by NumPy in double precision."""
    twin = HarmonicScattering3D(S.J, S.shape, S.L, S.sigma_0, S.integral_powers, S.max_order, "float64")
    vars(twin).update(_fused=None, _fused_cuda=None)
    return twin(x.astype(np.float64))


def agrees(actual, S, x):
    expected, n_powers = portable(S, x), len(S.integral_powers)
    assert actual.shape == expected.shape
    assert actual.dtype == S.dtype
    limit = EQUAL[S.dtype.name]
    for i in range(n_powers):  # powers are of very different size
        assert relative_error(actual[:, i::n_powers], expected[:, i::n_powers]) <= limit
    for path in range(n_powers, len(S.paths)):
        assert relative_error(actual[:, path], expected[:, path]) <= 10 * limit, S.paths[path]


def stays_the_same(S, x):
    """Return the coefficients, once they are known to be the same bits in any order and with arrays apart."""
    found = S(x)
    for order in ("reversed", "shuffled"):
        with schedule(order, seed=1):
            np.testing.assert_array_equal(found, S(x), strict=True)
    with apart():
        np.testing.assert_array_equal(found, S(x), strict=True)
    return found


CASES = [
    (2, (16, 18, 20), {"L": 3}, 3),
    (2, (16, 18, 20), {"L": 3, "dtype": "float64"}, 1),
    (1, (8, 10, 12), {"L": 2}, 2),
    (1, (9, 11, 13), {"L": 2, "dtype": "float64"}, 2),
    (2, (15, 21, 27), {"L": 3, "sigma_0": 1.5}, 2),
    (1, (12, 33, 20), {"L": 4, "dtype": "float64"}, 2),
    (1, (33, 20, 14), {"L": 4}, 1),
    (1, (16, 16, 16), {"L": 1, "integral_powers": (0.5, 1.0, 2.0, 3.0, 1.5, 4.0, 5.0, 6.0)}, 2),
    (2, (16, 18, 20), {"L": 0}, 3),
    (2, (16, 16, 18), {"L": 2, "max_order": 3, "dtype": "float64"}, 2),
    (3, (18, 16, 16), {"L": 1, "max_order": 4, "integral_powers": (1.0,)}, 1),
    (2, (16, 16, 18), {"L": 2, "max_order": 1}, 2),
    (2, (7, 26, 22), {"L": 3, "max_order": 0, "integral_powers": (0.5, 1.0, 2.5, 3.0, 5.0)}, 3),
    (0, (4, 5, 6), {"L": 6, "dtype": "float64"}, 2),
    (0, (1, 5, 3), {"L": 4, "sigma_0": 0.5, "integral_powers": (1.0,), "max_order": 1, "dtype": "float64"}, 2),
    (0, (2, 2, 2), {"L": 3, "sigma_0": 0.6, "dtype": "float64"}, 2),
    (0, (5, 1, 2), {"L": 2, "sigma_0": 0.5, "dtype": "float64"}, 2),
    (0, (6, 4, 1), {"L": 2, "sigma_0": 0.5, "dtype": "float64"}, 2),
    (1, (50, 16, 22), {"L": 3, "sigma_0": 0.7}, 1),
    (2, (24, 20, 18), {"L": 3, "sigma_0": 2.5, "integral_powers": (0.5, 4.0)}, 2),
    (2, (24, 36, 48), {"L": 3, "dtype": "float64"}, 1),
    (1, (32, 64, 64), {"L": 2}, 1),
    (1, (6, 120, 128), {"L": 1}, 1),
]


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(("J", "shape", "parameters", "batch"), CASES)
def test_coefficients(J, shape, parameters, batch):
    S = planned(J, shape, **parameters)
    x = noise(S, batch)
    agrees(stays_the_same(S, x), S, x)


@st.composite
def problems(draw):
    shape = tuple(draw(st.integers(4, 16)) for _ in range(3))
    sigma_0 = draw(st.sampled_from([0.6, 1.0, 1.37]))
    J = draw(st.integers(0, int(np.log2(min(shape) / sigma_0))))
    powers = tuple(draw(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]), min_size=1, max_size=3, unique=True)))
    return J, shape, draw(st.integers(0, 3)), sigma_0, powers, draw(st.integers(0, 3))


@pytest.mark.usefixtures("on_device")
@given(problems(), st.sampled_from(["float32", "float64"]), st.integers(1, 3))
@settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_size(problem, dtype, batch):
    S = planned(*problem, dtype=dtype)
    x = noise(S, batch, seed=batch)
    agrees(stays_the_same(S, x), S, x)


@pytest.mark.usefixtures("on_device")
def test_bits_depend_neither_on_the_batch_nor_on_blocks_nor_on_groups(monkeypatch):
    S = planned(2, (12, 10, 14), L=2)
    x = noise(S, 4)
    x[2] *= 1e9  # of neighbours, however large
    together = S(x)
    np.testing.assert_array_equal(S(x[1]), together[1], strict=True)
    monkeypatch.setattr(fused_cuda_volumes, "block_nbytes", lambda device: 30_000)
    plan = fused_cuda_volumes.plan(*S._plan_parameters())
    assert plan._at_once == 1
    assert all(len(steps) > 1 for steps, _ in plan._orders)
    assert plan.nbytes(4) < S._fused_cuda.nbytes(1)
    vars(S)["_fused_cuda"] = plan
    np.testing.assert_array_equal(S(x), together, strict=True)


@pytest.mark.usefixtures("on_device")
def test_what_may_be_given():
    S = planned(1, (8, 6, 10), L=1)
    x = np.random.default_rng(3).integers(-99, 99, (2, 3, *S.shape))
    expected = S(x.astype(np.float32))
    assert expected.shape == (2, 3, *S.output_shape)
    for same in (x, x.astype(np.int8), x.astype(np.float64), np.asfortranarray(x.astype(np.float32))):
        np.testing.assert_array_equal(S(same), expected, strict=True)
    assert S(x[:, :0]).shape == (2, 0, *S.output_shape)
    np.testing.assert_array_equal(S(np.zeros(S.shape)), np.zeros(S.output_shape))
    small = S(x[0, 0] * np.float32(2**-40)) * 2 ** (40 * S.paths.columns["power"])
    np.testing.assert_allclose(small, expected[0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        S(np.full(S.shape, np.inf))


@pytest.mark.parametrize("shape", [(8, 8, 34), (8, 17, 8), (38, 8, 8), (8, 200, 200), (8, 128, 255)])
def test_shapes_that_the_engine_lacks_are_left_to_the_primitives(shape):
    S = HarmonicScattering3D(1, shape, L=1)
    assert S._fused_cuda is None
    assert S.nbytes(2, "cuda") > 0


def test_the_projection_is_what_a_call_asks_for():
    S = HarmonicScattering3D(2, (16, 18, 20), L=3)
    plan, unit = S._fused_cuda, 4
    assert S.nbytes(3, "cuda") == 3 * (len(S.paths) * 4 + unit) + plan._schedule(3).nbytes
    assert S.nbytes(10**6, "cuda") < 10**6 * (len(S.paths) * 4 + unit) + 2**29


# --- Barriers ---

BARRIERS = (1, (18, 20, 18), {"L": 2, "max_order": 2, "integral_powers": (1.0,)})
"""Two passes along each axis, what is apart at Nyquist frequencies, and what is not."""


def n_barriers():
    module = HarmonicScattering3D(*BARRIERS[:2], **BARRIERS[2])._fused_cuda._module
    return count_barriers(module.source)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("n", range(n_barriers()))
def test_without_any_one_barrier_some_schedule_goes_wrong(n):
    J, shape, parameters = BARRIERS
    S, faulty = planned(J, shape, **parameters), HarmonicScattering3D(J, shape, **parameters)
    module = faulty._fused_cuda._module
    vars(module)["source"] = without_barrier(module.source, n)
    compile_all([faulty._fused_cuda._schedule(1)])
    x = noise(S, 1)
    expected = S(x)

    def is_right(order):
        with schedule(order, seed=2):
            try:
                return np.array_equal(faulty(x), expected)
            except LaunchError:
                return False

    assert not all(map(is_right, ("natural", "reversed", "shuffled")))


# --- What a block takes ---


@pytest.mark.skipif(bool(nvrtc_problem()), reason=str(nvrtc_problem()))
@pytest.mark.parametrize(
    ("shape", "dtype", "registers"),
    [
        ((12, 12, 12), "float32", 96),
        ((32, 32, 32), "float32", 80),
        ((48, 48, 48), "float32", 80),
        ((64, 64, 64), "float32", 80),
        ((96, 96, 96), "float32", 80),
        # A plane is a block's alone there, and a thread keeps 32 and more of its values.
        ((100, 90, 77), "float32", 128),
        ((128, 128, 128), "float32", 128),
        ((128, 120, 112), "float32", 128),
        ((160, 160, 160), "float32", 128),
        ((64, 64, 64), "float64", 255),
        ((112, 112, 112), "float64", 255),
        ((33, 35, 39), "float64", 255),
    ],
)
def test_nothing_spills(shape, dtype, registers):
    module = Module.of(shape, (0.5, 1.0, 2.0), np.dtype(dtype))
    for architecture in ARCHITECTURES[1:2]:
        found = budgets(module.source, CUDA_OPTIONS, architecture)
        assert set(found) == set(KERNELS)
        for name, budget in found.items():
            assert budget.stack_nbytes == budget.spill_stores_nbytes == budget.spill_loads_nbytes == 0, (name, budget)
            assert budget.registers <= registers, (name, budget)
            assert budget.shared_nbytes <= fused_cuda_volumes._STATIC_NBYTES
