"""The joint transform on the compiled engine against the portable primitives."""

import copy
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from scattercube.kernels.time_frequency import TimeFrequencyScattering
from tests.conftest import relative_error
from tests.test_fused_cpu import EQUAL, compiled, noise

NEAR = {"float32": 3e-7, "float64": 3e-14}
"""Relative L2 distance of the engine from the primitives, where signals are not so short that most of them cancels."""


def portable(S):
    """The same transform, left to the primitives along time and across bands."""
    twin = copy.deepcopy(S)
    vars(twin)["_fused"] = None
    for stage in (twin._order_1, *twin._stages):
        vars(stage.bank)["fused"] = None
    return twin


@st.composite
def works(draw):
    padding = draw(st.sampled_from(["minimal", "support", "kymatio", "periodic"]))
    J, Q = draw(st.integers(0, 6)), (draw(st.integers(1, 8)), draw(st.integers(1, 2)))
    n_nominal = (J + 1) * Q[0]
    J_fr = draw(st.integers(0, min(4, n_nominal.bit_length() - 1)))
    N = draw(st.integers(max(2**J, 16), draw(st.sampled_from([200, 6000]))))  # of fewer, most cancels
    T = draw(st.none() | st.floats(1, N))
    F = draw(st.none() | st.floats(1, 2**J_fr if padding == "kymatio" else n_nominal))
    if padding == "periodic":
        unit = 2 ** max(J, math.floor(math.log2(T or 1)))
        N = max(1, N // unit) * unit
        T = T and min(T, N)
    more = {"Q_fr": draw(st.integers(1, 2)), "format": draw(st.sampled_from(["time", "joint"]))}
    return (J, J_fr, N), {"Q": Q, "T": T, "F": F, "padding": padding, **more}


@compiled
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(works(), st.sampled_from(["float32", "float64"]), st.sampled_from([1, 2, 7]), st.integers(1, 3))
@example(((8, 3, 2**14), {"padding": "kymatio"}), "float32", 1, 2)
@example(((4, 2, 7 * 11 * 13 * 16), {"Q": 2, "padding": "periodic", "format": "joint"}), "float32", 2, 1)  # odd radices
@example(((4, 2, 16), {"Q": 2, "padding": "periodic"}), "float64", 3, 2)  # grids smaller than a vector
@example(((0, 0, 1), {"Q": 1, "padding": "periodic"}), "float32", 2, 1)
@example(((3, 1, 17 * 8), {"Q": 2, "padding": "periodic"}), "float32", 2, 2)  # 17: the primitives serve
def test_the_engine_equals_the_primitives(work, dtype, batch, threads):
    arguments, parameters = work
    S = TimeFrequencyScattering(*arguments, dtype=dtype, **parameters)
    assume(batch * math.prod(S.output_shape) * S._time._grid(0)[0] < 1 << 29)
    x = noise(batch, *S.shape, dtype=dtype)
    actual = S(x, threads=threads)
    assert actual.shape == (batch, *S.output_shape)
    assert actual.dtype == dtype
    expected = portable(S)(x)
    assert np.linalg.norm(actual - expected) <= EQUAL[dtype] * np.linalg.norm(expected)


@compiled
def test_lines_with_a_large_prime_factor_are_left_to_the_primitives():
    assert TimeFrequencyScattering(3, 1, 17 * 8, Q=2, padding="periodic")._fused is None
    assert TimeFrequencyScattering(3, 1, 13 * 8, Q=2, padding="periodic")._fused is not None


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", ["time", "joint"])
@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ((8, 3, 2**14), {"padding": "kymatio"}),
        ((6, 3, 3001), {"Q": (8, 2), "T": 16, "F": 2}),
        ((5, 2, 1000), {"Q": 4, "Q_fr": 2, "F": 7}),
        ((4, 2, 201), {"Q": 4, "T": 150, "padding": "support"}),
        ((2, 0, 48), {"Q": 1, "F": 1}),
    ],
)
def test_the_engine_is_near_the_primitives(arguments, parameters, format, dtype):
    S = TimeFrequencyScattering(*arguments, format=format, dtype=dtype, **parameters)
    x = noise(2, *S.shape, dtype=dtype)
    assert S._fused
    assert relative_error(S(x), portable(S)(x)) < NEAR[dtype]


@compiled
def test_every_coefficient_is_near_that_of_double_precision():
    """A mean over all hides what a few faint paths have."""
    S = TimeFrequencyScattering(6, 3, 3000)
    exact = portable(TimeFrequencyScattering(6, 3, 3000, dtype="float64"))
    x = noise(2, 3000)
    expected = exact(x.astype("float64"))
    rows = abs(S(x) - expected).max(axis=(0, 2)) / abs(expected).max(axis=(0, 2))
    assert rows.max() < 3e-6


@compiled
def test_memory_grows_with_the_batch_by_the_result_alone():
    S = TimeFrequencyScattering(5, 2, 500, Q=4)
    assert S.nbytes(1000, threads=2) - S.nbytes(500, threads=2) == 500 * math.prod(S.output_shape) * 4
    assert S.nbytes(0) == 0
