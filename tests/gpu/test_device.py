"""Every transform on a CUDA device against NumPy in double precision, and what callers may rely on there.

Everything whose name has ``quick`` in it together takes seconds, also under a memory checker: ``-k quick``.
"""

import math
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from scattercube import kernels
from scattercube.kernels import to_device, to_host
from scattercube.kernels.device import namespace
from tests.conftest import relative_error
from tests.gpu.gauge import device_problem, errors, peak_nbytes, poison, within

pytestmark = pytest.mark.gpu

BATCH = 3
BATCH_TOLERANCE = 1e-6  # what the batch, or the layout of an input, may change by rounding
ADJOINT_TOLERANCE = {"float32": 5e-5, "float64": 1e-9}  # y/|y| is steep where |y| is small
STEEPER = {"float32": 1e-2, "float64": 1e-9}  # and the derivative of √U where U is: of volumes
BOOKKEEPING = 1 << 20  # bytes that no projection counts
DTYPES = ("float32", "float64")

IMAGES: dict[str, dict[str, Any]] = {
    "quick-image": {"J": 2, "shape": (16, 20), "L": 4},
    **{f"image-{padding}": {"J": 3, "shape": (40, 48), "L": 6, "padding": padding}
       for padding in ("minimal", "support", "kymatio", "periodic")},
    **{f"image-meyer-{padding}": {"J": 3, "shape": (48, 64), "wavelet": "meyer", "padding": padding}
       for padding in ("minimal", "periodic")},
    **{f"image-J{J}": {"J": J, "shape": (64, 64)} for J in range(1, 5)},
    **{f"image-J{J}-kymatio": {"J": J, "shape": (32, 32), "padding": "kymatio"} for J in range(1, 5)},
    **{f"image-order{m}": {"J": 3, "shape": (32, 24), "L": 3, "max_order": m} for m in range(4)},
    "image-order4": {"J": 4, "shape": (32, 32), "L": 2, "max_order": 4},
    "image-odd": {"J": 3, "shape": (37, 53)},
    "image-odd-support": {"J": 2, "shape": (29, 31), "padding": "support"},
    "image-odd-kymatio": {"J": 2, "shape": (35, 61), "padding": "kymatio"},
    "image-long": {"J": 2, "shape": (5, 301), "L": 5},
    "image-one-angle": {"J": 2, "shape": (28, 28), "L": 1},
    "image-all-of-it": {"J": 5, "shape": (32, 32)},
    "image-256": {"J": 4, "shape": (256, 256)},
    "image-256-kymatio": {"J": 4, "shape": (256, 256), "padding": "kymatio"},
}  # fmt: skip
SIGNALS: dict[str, dict[str, Any]] = {
    "quick-signal": {"J": 4, "shape": 300, "Q": 4},
    "quick-signal-raw": {"J": 3, "shape": 128, "Q": 2, "T": 0},
    "quick-signal-global": {"J": 4, "shape": 256, "Q": 4, "T": "global"},
    **{f"signal-{padding}": {"J": 6, "shape": 2**11, "padding": padding}
       for padding in ("minimal", "support", "kymatio", "periodic")},
    **{f"signal-meyer-{padding}": {"J": 5, "shape": 2**10, "Q": 4, "wavelet": "meyer", "padding": padding}
       for padding in ("minimal", "periodic")},
    **{f"signal-order{m}": {"J": 6, "shape": 1000, "Q": (4, 2), "max_order": m} for m in range(4)},
    "signal-raw-strided": {"J": 5, "shape": 512, "Q": 4, "T": 0, "stride": 8},
    "signal-raw-order3": {"J": 4, "shape": 200, "Q": (2, 1), "T": 0, "max_order": 3},
    "signal-global-kymatio": {"J": 5, "shape": 700, "Q": 4, "T": "global", "padding": "kymatio"},
    "signal-T": {"J": 6, "shape": 2000, "T": 100.0},
    "signal-T-long": {"J": 4, "shape": 1024, "Q": 2, "T": 512},
    "signal-stride": {"J": 7, "shape": 2**11, "Q": 6, "stride": 4},
    "signal-odd": {"J": 5, "shape": 1237, "Q": 12},
    "signal-two-banks": {"J": 7, "shape": 2**12, "Q": (8, 2)},
    "signal-J0": {"J": 0, "shape": 64, "Q": 1},
    "signal-2^15": {"J": 9, "shape": 2**15, "padding": "kymatio"},
}  # fmt: skip
VOLUMES: dict[str, dict[str, Any]] = {
    "quick-volume": {"J": 1, "shape": (8, 10, 12), "L": 2},
    "volume-cube": {"J": 2, "shape": (32, 32, 32), "L": 3},
    "volume-odd": {"J": 2, "shape": (15, 21, 27), "L": 3, "sigma_0": 1.5},
    "volume-mixed": {"J": 1, "shape": (12, 33, 20), "L": 4},
    "volume-powers": {"J": 1, "shape": (16, 16, 16), "L": 1, "integral_powers": (0.5, 1.0, 2.0, 3.0)},
    "volume-L0": {"J": 2, "shape": (16, 18, 20), "L": 0},
    **{f"volume-order{m}": {"J": 2, "shape": (16, 16, 18), "L": 2, "max_order": m} for m in range(4)},
}
JOINT: dict[str, dict[str, Any]] = {
    **{f"quick-joint-{format}": {"J": 4, "J_fr": 1, "shape": 256, "Q": 4, "format": format}
       for format in ("time", "joint")},
    **{f"joint-{format}-{padding}": {"J": 7, "J_fr": 3, "shape": 2**12, "format": format, "padding": padding}
       for format in ("time", "joint") for padding in ("minimal", "support", "kymatio", "periodic")},
    "joint-odd": {"J": 6, "J_fr": 2, "shape": 1501, "Q": (12, 2), "Q_fr": 2},
    "joint-T-F": {"J": 6, "J_fr": 2, "shape": 2**11, "Q": 6, "T": 200, "F": 6},
    "joint-F1": {"J": 5, "J_fr": 0, "shape": 2**10, "Q": 4, "F": 1, "format": "joint"},
}  # fmt: skip
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (transform, parameters)
    for transform, table in {
        "Scattering2D": IMAGES,
        "Scattering1D": SIGNALS,
        "HarmonicScattering3D": VOLUMES,
        "TimeFrequencyScattering": JOINT,
    }.items()
    for name, parameters in table.items()
}
QUICK = [name for name in CONFIGURATIONS if name.startswith("quick")]
"""One for each kind of result: what callers may rely on is tested with these."""

LARGE: dict[str, tuple[str, dict[str, Any], int]] = {
    "image-32": ("Scattering2D", {"J": 2, "shape": (32, 32)}, 512),
    "image-64": ("Scattering2D", {"J": 3, "shape": (64, 64)}, 128),
    "image-256": ("Scattering2D", {"J": 4, "shape": (256, 256)}, 16),
    "signal-2^13": ("Scattering1D", {"J": 6, "shape": 2**13}, 64),
    "signal-2^16": ("Scattering1D", {"J": 8, "shape": 2**16}, 16),
    "volume-64": ("HarmonicScattering3D", {"J": 2, "shape": (64, 64, 64), "L": 3}, 4),
    "joint-2^14": ("TimeFrequencyScattering", {"J": 8, "J_fr": 3, "shape": 2**14}, 4),
}
"""Batches whose memory is worth projecting."""


@pytest.fixture(autouse=True)
def _device():
    if problem := device_problem():
        pytest.skip(problem)


@lru_cache(maxsize=4)
def make(name: str, dtype: str = "float32") -> Any:
    transform, parameters = CONFIGURATIONS[name]
    return getattr(kernels, transform)(**parameters, dtype=dtype)


def noise(name: str, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Draw numbers, the same for a name and a shape, that single precision holds exactly."""
    rng = np.random.default_rng(zlib.crc32(repr((name, shape)).encode()))
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def inputs(name: str, dtype: str = "float32", batch: int = BATCH) -> np.ndarray:
    return noise(name, batch, *make(name, dtype).shape, dtype=dtype)


def on_device(x: np.ndarray) -> Any:
    return to_device(x, "cuda")


@lru_cache(maxsize=4)
def exact(name: str) -> np.ndarray:
    """The coefficients of `inputs` by NumPy, in double precision."""
    return make(name, "float64")(inputs(name, "float64"))


# --- Numbers ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_coefficients_are_those_of_numpy_in_double_precision(name, dtype):
    S, x = make(name, dtype), inputs(name, dtype)
    poison(S.nbytes(len(x), "cuda"))
    y = S(on_device(x))
    assert y.dtype == dtype
    assert y.shape == (len(x), *S.output_shape)
    error, worst = errors(to_host(y), exact(name))
    assert within(error, worst, dtype), f"error {error:.1e}, in the worst path {worst:.1e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_adjoint_is_that_of_numpy(name, dtype):
    S, x = make(name, dtype), inputs(name, dtype)
    g = noise(f"{name} adjoint", len(x), *S.output_shape, dtype=dtype)
    gradient = S.adjoint(on_device(x), on_device(g))
    assert gradient.dtype == dtype
    assert gradient.shape == x.shape
    expected = make(name, "float64").adjoint(x.astype("float64"), g.astype("float64"))
    tolerance = STEEPER if name in VOLUMES else ADJOINT_TOLERANCE
    assert relative_error(to_host(gradient), expected) < tolerance[dtype]


@pytest.mark.parametrize("name", QUICK)
def test_a_large_batch_equals_its_parts(name):
    S, x = make(name), inputs(name, batch=65)
    together = to_host(S(on_device(x)))
    for i in (0, 31, 64):
        assert relative_error(together[i], S(x[i])) < 3e-6
        assert relative_error(to_host(S(on_device(x[i]))), together[i]) < BATCH_TOLERANCE


@pytest.mark.parametrize("name", QUICK)
def test_two_calls_give_the_same_bits(name):
    S, x = make(name), on_device(inputs(name))
    first = to_host(S(x))
    poison(S.nbytes(len(x), "cuda"))
    np.testing.assert_array_equal(to_host(S(x)), first)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
@pytest.mark.parametrize("name", QUICK)
def test_the_unit_of_an_input_is_of_no_consequence(name, unit):
    S, x = make(name), inputs(name)
    if "volume" in name:
        unit = math.copysign(abs(unit) ** 0.3, unit)  # whose squares single precision must hold
    x = (x * np.float32(unit)).astype("float32")
    expected = make(name, "float64")(x.astype("float64"))
    error, worst = errors(to_host(S(on_device(x))), expected)
    assert within(error, worst, "float32"), f"error {error:.1e}, in the worst path {worst:.1e}"


# --- Arrays ---


@pytest.mark.parametrize("name", QUICK)
def test_the_result_is_an_array_of_cupy_on_the_device_of_the_input(name):
    S, x = make(name), on_device(inputs(name))
    g = on_device(noise(name, len(x), *S.output_shape))
    for y in (S(x), S.adjoint(x, g)):
        assert namespace(y).__name__ == "cupy"
        assert y.device == x.device


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("name", QUICK)
def test_leading_dimensions_stay(name, leading):
    S = make(name)
    x = noise(name, *leading, *S.shape)
    y = to_host(S(on_device(x)))
    assert y.shape == (*leading, *S.output_shape)
    flat = to_host(S(on_device(x.reshape(-1, *S.shape))))
    assert relative_error(y.reshape(flat.shape), flat) < BATCH_TOLERANCE


@pytest.mark.parametrize("leading", [(0,), (2, 0)])
@pytest.mark.parametrize("name", QUICK)
def test_an_empty_batch_has_no_coefficients(name, leading):
    S = make(name)
    x, g = (on_device(np.empty((*leading, *shape), np.float32)) for shape in (S.shape, S.output_shape))
    assert S(x).shape == g.shape
    assert S.adjoint(x, g).shape == x.shape


@pytest.mark.parametrize("kind", ["int16", "uint8", "bool", "float16", "float64"])
@pytest.mark.parametrize("name", QUICK)
def test_numbers_of_other_types_are_converted(name, kind):
    S = make(name)
    x = (100 * abs(inputs(name))).astype("int16").clip(0, 200) % (2 if kind == "bool" else 256)
    y = S(on_device(x.astype(kind)))
    assert y.dtype == S.dtype
    assert errors(to_host(y), to_host(S(on_device(x.astype("float32")))))[0] < BATCH_TOLERANCE


@pytest.mark.parametrize("name", QUICK)
def test_any_layout_of_the_input_gives_the_same(name):
    S = make(name)
    x = on_device(inputs(name, batch=6))
    wide = on_device(np.concatenate([inputs(name, batch=6)] * 2, axis=-1))
    expected = to_host(S(x))
    layouts = {
        "every second": (x[::2], expected[::2]),
        "backwards": (x[::-1], expected[::-1]),
        "columns first": (x.copy(order="F"), expected),
        "batch last": (namespace(x).moveaxis(x, 0, -1).copy().transpose(-1, *range(x.ndim - 1)), expected),
        "a part of longer rows": (wide[..., : S.shape[-1]], expected),
        "one, again and again": (namespace(x).broadcast_to(x[:1], x.shape), np.repeat(expected[:1], 6, axis=0)),
    }
    for layout, (array, values) in layouts.items():
        assert relative_error(to_host(S(array)), values) < BATCH_TOLERANCE, layout


@pytest.mark.parametrize("kind", ["float32", "float64", "int16"])
@pytest.mark.parametrize("name", QUICK)
def test_inputs_stay_as_they_are(name, kind):
    S = make(name)
    before = (100 * inputs(name)).astype(kind)
    weights = noise(name, len(before), *S.output_shape)
    x, g = on_device(before.copy()), on_device(weights.copy())
    S(x)
    S.adjoint(x, g)
    np.testing.assert_array_equal(to_host(x), before)
    np.testing.assert_array_equal(to_host(g), weights)


# --- Refusals, in the words of NumPy's ---


def refusal(S: Any, x: Any) -> tuple[type, str]:
    with pytest.raises((TypeError, ValueError)) as caught:
        S(x)
    return caught.type, str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("name", QUICK)
def test_what_is_not_finite_is_refused_in_the_same_words(name, bad):
    S, x = make(name), inputs(name, "float64")
    x[-1].flat[7] = x[1].flat[-1] = bad
    kind, words = refusal(S, on_device(x))
    assert (kind, words) == refusal(S, x)
    assert "2 of" in words
    S(on_device(inputs(name)))  # and the next call works


@pytest.mark.parametrize("name", QUICK)
def test_wrong_shapes_and_types_are_refused_in_the_same_words(name):
    S, x = make(name), inputs(name)
    for wrong in (x[..., :-1], x.reshape(-1), x.astype("complex64")):
        assert refusal(S, on_device(wrong)) == refusal(S, wrong)


# --- Memory ---


@pytest.mark.parametrize("name", LARGE)
def test_the_projected_memory_is_what_a_call_takes(name):
    transform, parameters, batch = LARGE[name]
    S = getattr(kernels, transform)(**parameters)
    x = on_device(noise(name, batch, *S.shape))
    peak, projected = peak_nbytes(lambda: S(x)), S.nbytes(batch, "cuda")
    assert projected / 2 - BOOKKEEPING < peak < 2 * projected + BOOKKEEPING, f"{peak / projected:.2f} × projected"
