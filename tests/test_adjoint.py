"""The gradients of whole transforms, by finite differences and by what a gradient must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import to_host
from scattercube.kernels.scattering import Scattering1D, Scattering2D
from tests.conftest import relative_error
from tests.test_scattering2d import noise

PADDINGS = ["minimal", "support", "kymatio", "periodic"]
AVERAGES = [(None, None), (8, 4), (5.5, None), (0, None), (0, 4), ("global", None)]


def check_along_a_direction(S, seed=0):
    """Σ S(x)·g changes along v as ⟨adjoint(x, g), v⟩ says, by central differences."""
    x, v = noise(2, *S.shape, dtype="float64", seed=seed), noise(2, *S.shape, dtype="float64", seed=seed + 1)
    g = noise(2, *S.output_shape, dtype="float64", seed=seed + 2)
    h = 1e-5
    measured = ((S(x + h * v) - S(x - h * v)) * g).sum() / (2 * h)
    gradient = S.adjoint(x, g)
    assert gradient.shape == x.shape
    assert gradient.dtype == S.dtype
    assert (gradient * v).sum() == pytest.approx(measured, rel=1e-5, abs=1e-6 * np.linalg.norm(g))


@pytest.mark.parametrize("max_order", range(4))
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("T", "stride"), AVERAGES)
def test_gradient_of_a_signal(max_order, padding, T, stride):
    check_along_a_direction(Scattering1D(4, 96, (3, 1), T, stride, max_order, padding, "float64"))


@pytest.mark.parametrize("max_order", range(4))
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradient_of_an_image(max_order, padding):
    check_along_a_direction(Scattering2D(3, (16, 24), 3, max_order, padding, "float64"))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(8, 40), st.integers(8, 40), st.integers(0, 2**32 - 3))
def test_gradient_of_any_size(J, H, W, seed):
    check_along_a_direction(Scattering2D(J, (H, W), 2, 2, dtype="float64"), seed)
    check_along_a_direction(Scattering1D(J, H, (2, 1), dtype="float64"), seed)


TRANSFORMS = [
    Scattering1D(4, 80, (3, 1), dtype="float64"),
    Scattering1D(3, 80, T="global", dtype="float64"),
    Scattering2D(2, (12, 17), 3, dtype="float64"),
]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(TRANSFORMS), st.floats(-3, 3), st.floats(-3, 3))
def test_the_gradient_is_linear_in_the_weights(S, a, b):
    x = noise(2, *S.shape, dtype="float64")
    g, h = (noise(2, *S.output_shape, dtype="float64", seed=seed) for seed in (1, 2))
    expected = a * S.adjoint(x, g) + b * S.adjoint(x, h)
    np.testing.assert_allclose(S.adjoint(x, a * g + b * h), expected, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(TRANSFORMS), st.lists(st.integers(0, 3), max_size=3))
def test_leading_dimensions_are_kept(S, lead):
    x, g = noise(*lead, *S.shape, dtype="float64"), noise(*lead, *S.output_shape, dtype="float64", seed=1)
    gradient = S.adjoint(x, g)
    assert gradient.shape == x.shape
    for index in np.ndindex(*lead):
        np.testing.assert_allclose(gradient[index], S.adjoint(x[index], g[index]), atol=1e-12)


@pytest.mark.parametrize(
    ("S", "batch"), [(Scattering1D(6, 3000, (4, 1), max_order=3), 70), (Scattering2D(3, (40, 33), 4), 300)]
)
def test_a_batch_equals_its_parts_whatever_the_blocks(xp, S, batch):
    x, g = noise(batch, *S.shape), noise(batch, *S.output_shape, seed=1)
    together = to_host(S.adjoint(xp(x), xp(g)))
    for i in (0, batch // 2, batch - 1):
        assert relative_error(together[i], to_host(S.adjoint(xp(x[i]), xp(g[i])))) < 1e-4


def test_single_precision_is_near_double_precision():
    x, g = noise(64, 48), noise(1 + 3 * 4 + 3 * 16, 8, 6, seed=1)
    single, double = (Scattering2D(3, (64, 48), 4, dtype=dtype).adjoint(x, g) for dtype in ("float32", "float64"))
    assert single.dtype == np.float32
    assert relative_error(single, double) < 1e-4


def test_the_gradient_of_energy_is_that_of_a_homogeneous_function():
    """S(ax) = a·S(x) for a > 0, so that x·∇½‖S(x)‖² = ‖S(x)‖² (Euler)."""
    for S in TRANSFORMS:
        x = noise(*S.shape, dtype="float64")
        y = S(x)
        assert (x * S.adjoint(x, y)).sum() == pytest.approx((y**2).sum(), rel=1e-10)


def test_nothing_moves_where_the_input_is_zero():
    for S in TRANSFORMS:
        zero, g = np.zeros(S.shape), np.ones(S.output_shape)
        g[S.paths.columns["order"] == 0] = 0
        np.testing.assert_array_equal(S.adjoint(zero, g), zero)


def test_weights_that_do_not_fit_are_refused():
    S = Scattering1D(3, 64)
    x, g = np.zeros((2, 64)), np.zeros((2, *S.output_shape))
    for wrong in (g[0], g[:, :-1], g[None]):
        with pytest.raises(ValueError, match=r"g has shape .* needs \(2, "):
            S.adjoint(x, wrong)
    with pytest.raises(TypeError, match="g has dtype complex128"):
        S.adjoint(x, g.astype(complex))
    g[1, 2, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"g is not finite in float32 at 1 of \d+ values, the first at index \(1, 2, 3\)"
    ):
        S.adjoint(x, g)
