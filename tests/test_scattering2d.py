import itertools
import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.kernels import Scattering2D, to_host
from tests import naive
from tests.conftest import TOLERANCE, relative_error

DATA = Path(__file__).parent / "data"
REFERENCE = np.load(DATA / "reference_2d.npz")
CONFIGS = [entry["config"] for entry in json.loads(str(REFERENCE["configs_json"]))]


def noise(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- Against outside numbers ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("i", range(len(CONFIGS)))
def test_parity_with_reference_vectors(xp, i, dtype):
    S = Scattering2D(**{**CONFIGS[i], "shape": tuple(CONFIGS[i]["shape"])}, padding="kymatio", dtype=dtype)
    actual = S(xp(REFERENCE[f"x{i}"].astype(dtype)))
    assert actual.dtype == dtype
    assert actual.shape == REFERENCE[f"S{i}"].shape
    # The reference's filters are rounded to single precision, so that double precision cannot come closer than that.
    assert relative_error(to_host(actual), REFERENCE[f"S{i}"]) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parity_with_the_peers_own_test_data(dtype):
    data = np.load(DATA / "kymatio_test_2d.npz")
    actual = Scattering2D(int(data["J"]), data["x"].shape[-2:], padding="kymatio", dtype=dtype)(data["x"])
    np.testing.assert_allclose(actual, data["Sx"], rtol=1e-5, atol=1e-8)


@st.composite
def problems(draw):
    J = draw(st.integers(1, 3))
    shape = (draw(st.integers(2**J, 30)), draw(st.integers(2**J, 30)))
    return J, shape, draw(st.integers(1, 5)), draw(st.integers(0, 2)), draw(st.sampled_from(sorted(TOLERANCE)))


def check_against_naive(J, shape, L, max_order, dtype):
    S = Scattering2D(J, shape, L=L, max_order=max_order, dtype=dtype)
    x = noise(*shape, dtype=dtype)
    before = [(((size + 2**J) // 2**J + 1) * 2**J - size) // 2 for size in shape]
    expected = naive.scattering(x, J, L, max_order, S.phi_hat().shape, before)
    for position, size, b in zip(S.positions, shape, before, strict=True):
        np.testing.assert_array_equal(position, 2**J * np.arange(1, size // 2**J + 1) - b)
    assert S.output_shape == (len(expected), shape[0] // 2**J, shape[1] // 2**J)
    assert relative_error(S(x), np.stack(list(expected.values()))) < TOLERANCE[dtype]
    for row, path in enumerate(expected):
        labels = [(S.paths.columns[f"j{m}"][row], S.paths.columns[f"theta{m}"][row]) for m in range(1, len(path) + 1)]
        assert S.paths.columns["order"][row] == len(path)
        np.testing.assert_allclose(labels, list(path), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(problems())
def test_any_size_and_order_equals_the_definition(problem):
    check_against_naive(*problem)


@pytest.mark.parametrize("max_order", [3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_high_orders_equal_the_definition(max_order, dtype):
    check_against_naive(4, (20, 17), 2, max_order, dtype)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 4), st.integers(0, 3))
def test_a_torus_equals_the_definition(J, periods, L, max_order):
    shape = tuple(2**J * n for n in periods)
    S = Scattering2D(J, shape, L, max_order, padding="periodic", dtype="float64")
    x = noise(*shape, dtype="float64")
    bank = {(j, t): (j, naive.morlet(shape, j, a, L)) for j in range(J) for t, a in enumerate(naive.angles(L))}
    expected = naive.cascade(x, [bank], naive.lowpass(shape, J), max_order, 2**J)
    assert S.output_shape == (len(expected), *periods)
    assert relative_error(S(x), np.stack(list(expected.values()))) < TOLERANCE["float64"]
    for positions, n in zip(S.positions, periods, strict=True):
        np.testing.assert_array_equal(positions, 2**J * np.arange(n))


# --- The border ---


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("padding", ["support", "minimal"])
def test_a_tile_cut_with_its_halo_equals_the_whole(dtype, error, padding):
    J, x = 3, noise(256, 256, dtype=dtype)
    whole = Scattering2D(J, (256, 256), padding="support", dtype=dtype)
    halo, stride = whole.halo, 2**J
    cut = x[96 - halo : 160 + halo, 64 - halo : 128 + halo]
    tile = Scattering2D(J, cut.shape, padding=padding, dtype=dtype)
    inner = slice(halo // stride, halo // stride + 64 // stride)
    expected = whole(x)[:, 96 // stride : 160 // stride, 64 // stride : 128 // stride]
    assert relative_error(tile(cut)[:, inner, inner], expected) < error
    np.testing.assert_array_equal(
        tile.positions[0][inner] + 96 - halo, whole.positions[0][96 // stride : 160 // stride]
    )


def test_half_the_halo_is_too_little():
    """The test above can fail."""
    x = noise(256, 256, dtype="float64")
    whole = Scattering2D(3, (256, 256), padding="support", dtype="float64")
    tile = Scattering2D(3, (128, 128), padding="minimal", dtype="float64")
    assert relative_error(tile(x[64:192, 64:192])[:, 3:13, 3:13], whole(x)[:, 11:21, 11:21]) > 1e-8


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (5, 9), (8, 8), (33, 19)])
def test_support_padding_reflects_as_often_as_it_takes(shape):
    J = int(math.log2(min(shape)))
    S = Scattering2D(J, shape, L=2, padding="support", dtype="float64")
    assert S.halo % 2**J == 0
    x = noise(*shape, dtype="float64")
    # The same image continued by hand, further than S does, and cut back to the image's pixels.
    far = S.halo + 2 ** (J + 1)
    wide = np.pad(x, far, mode="reflect")
    W = Scattering2D(J, wide.shape, L=2, padding="support", dtype="float64")
    first = far // 2**J
    expected = W(wide)[:, first : first + S.output_shape[1], first : first + S.output_shape[2]]
    assert S.output_shape[1:] == tuple(-(-size // 2**J) for size in shape)
    np.testing.assert_array_equal(S.positions[0], 2**J * np.arange(S.output_shape[1]))
    assert relative_error(S(x), expected) < 1e-10


@pytest.mark.parametrize("padding", ["minimal", "support", "kymatio"])
@pytest.mark.parametrize("shape", [(96, 96), (101, 90)])
def test_positions_are_where_a_ramp_has_its_value(padding, shape):
    S = Scattering2D(3, shape, max_order=0, padding=padding, dtype="float64")
    rows, columns = np.indices(shape, dtype=np.float64)
    inner = slice(2, -3)
    scale = math.pi / 3.1415 if padding == "kymatio" else 1.0
    np.testing.assert_allclose(S(rows)[0, inner, 5] / scale, S.positions[0][inner], atol=1e-3)
    np.testing.assert_allclose(S(columns)[0, 5, inner] / scale, S.positions[1][inner], atol=1e-3)


def test_positions_carry_the_offset_below_one_stride():
    np.testing.assert_array_equal(Scattering2D(3, (30, 32)).positions[0], [3, 11, 19])
    np.testing.assert_array_equal(Scattering2D(3, (30, 32)).positions[1], [0, 8, 16, 24])


# --- What a scattering transform must be ---


@settings(deadline=None, max_examples=20)
@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 3))
def test_a_shift_by_the_stride_shifts_the_result(down, right, max_order):
    S = Scattering2D(3, (40, 24), L=3, max_order=max_order, padding="periodic", dtype="float64")
    x = noise(40, 24, dtype="float64")
    expected = np.roll(S(x), (down, right), axis=(-2, -1))
    np.testing.assert_allclose(S(np.roll(x, (8 * down, 8 * right), axis=(0, 1))), expected, atol=1e-13)


def test_transposing_the_image_mirrors_the_angles():
    S = Scattering2D(3, (40, 40), L=8, dtype="float64")
    x = noise(40, 40, dtype="float64")
    columns = S.paths.columns
    label = [
        tuple(np.nan_to_num(columns[c][row], nan=-1) for c in ("j1", "theta1", "j2", "theta2"))
        for row in range(len(S.paths))
    ]
    mirrored = [
        (j1, (90 - t1) % 180 if j1 >= 0 else -1, j2, (90 - t2) % 180 if j2 >= 0 else -1) for j1, t1, j2, t2 in label
    ]
    permutation = [label.index(path) for path in mirrored]
    assert relative_error(S(x.T), S(x).transpose(0, 2, 1)[permutation]) < 1e-12


def test_turning_the_image_by_90_degrees_turns_the_angles():
    S = Scattering2D(2, (33, 33), L=4, padding="support", dtype="float64")
    x = noise(33, 33, dtype="float64")
    columns = S.paths.columns
    label = [
        tuple(np.nan_to_num(columns[c][row], nan=-1) for c in ("j1", "theta1", "j2", "theta2"))
        for row in range(len(S.paths))
    ]
    turned = [
        (j1, (t1 + 90) % 180 if j1 >= 0 else -1, j2, (t2 + 90) % 180 if j2 >= 0 else -1) for j1, t1, j2, t2 in label
    ]
    permutation = [label.index(path) for path in turned]
    assert relative_error(S(np.rot90(x)), np.rot90(S(x), axes=(1, 2))[permutation]) < 1e-9


def test_stripes_answer_at_their_own_label():
    S = Scattering2D(3, (64, 64), L=8, max_order=1)
    y, x = np.indices((64, 64))
    for j in (0, 1, 2):
        for theta in (0.0, 22.5, 90.0, 157.5):
            frequency = 0.375 / 2**j
            wave = np.cos(2 * np.pi * frequency * (x * np.cos(np.deg2rad(theta)) + y * np.sin(np.deg2rad(theta))))
            strongest = S(wave)[1:, 2:-2, 2:-2].mean(axis=(1, 2)).argmax() + 1
            assert S.paths.columns["j1"][strongest] == j
            assert S.paths.columns["theta1"][strongest] == theta


def test_energy_falls_with_the_order():
    S = Scattering2D(4, (64, 64), L=4, max_order=4)
    coefficients = S(noise(8, 64, 64))
    energy = [(coefficients[:, S.paths.columns["order"] == m] ** 2).sum() for m in range(1, 5)]
    assert all(high > 2 * low for high, low in itertools.pairwise(energy))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 2), st.sampled_from([1, 2, 3]))
def test_distances_do_not_grow_beyond_the_littlewood_paley_bound(seed, difference, max_order):
    S = Scattering2D(3, (48, 48), L=4, max_order=max_order, dtype="float64")
    x = noise(48, 48, dtype="float64", seed=seed)
    y = x + difference * noise(48, 48, dtype="float64", seed=seed + 1)
    n = S.phi_hat().shape[0]
    before = int(8 - S.positions[0][0])
    padded = np.pad(x - y, [(before, n - 48 - before)] * 2, mode="reflect")
    bound = S.littlewood_paley().max() ** (max_order + 1)
    assert 8**2 * ((S(x) - S(y)) ** 2).sum() <= bound * (padded**2).sum()


def test_coefficients_scale_with_the_image():
    S = Scattering2D(2, (16, 16), L=4)
    x = noise(16, 16)
    for scale in (1e-30, 1e30):  # the squares of these overflow or vanish in single precision
        assert relative_error(S(np.float32(scale) * x) / np.float32(scale), S(x)) < TOLERANCE["float32"]


# --- Batches, types, memory ---


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(sorted(TOLERANCE)))
def test_leading_dimensions_are_kept(lead, dtype):
    S = Scattering2D(2, (12, 9), L=3, dtype=dtype)
    x = noise(*lead, 12, 9, dtype=dtype)
    actual = S(x)
    assert actual.shape == (*lead, *S.output_shape)
    assert actual.dtype == dtype
    for index in np.ndindex(*lead):
        np.testing.assert_allclose(actual[index], S(x[index]), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("shape", "J", "max_order", "batch"), [((28, 28), 3, 2, 300), ((40, 33), 4, 3, 60), ((288, 160), 4, 2, 5)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_equals_its_images_whatever_the_blocks(xp, shape, J, max_order, batch, dtype):
    S = Scattering2D(J, shape, L=4, max_order=max_order, dtype=dtype)
    x = noise(batch, *shape, dtype=dtype)
    together = to_host(S(xp(x)))
    for i in (0, batch // 2, batch - 1):
        assert relative_error(together[i], to_host(S(xp(x[i])))) < 0.1 * TOLERANCE[dtype]


def test_the_same_call_gives_the_same_bits():
    S = Scattering2D(3, (28, 28))
    x = noise(70, 28, 28)
    np.testing.assert_array_equal(S(x), S(x.copy()))


def test_the_input_is_left_alone_and_may_be_strided():
    S = Scattering2D(2, (16, 12), L=4)
    x = noise(3, 12, 2, 16)
    view = x.transpose(0, 2, 3, 1)[:, ::-1]
    kept = x.copy()
    np.testing.assert_array_equal(S(view), S(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool", "float16", "float64", ">f4"])
def test_real_input_of_any_type_is_converted(dtype):
    S = Scattering2D(2, (16, 16), L=4)
    x = (noise(2, 16, 16) * 40 + 100).astype(dtype)
    actual = S(x)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, S(x.astype(np.float32)))


def peak_nbytes(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "J", "max_order", "batch"),
    [
        ((28, 28), 3, 2, 1),
        ((28, 28), 3, 2, 500),
        ((32, 32), 2, 1, 200),
        ((40, 40), 4, 3, 100),
        ((24, 24), 2, 0, 50),
        ((300, 200), 4, 2, 3),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_projected_memory_is_what_is_allocated(shape, J, max_order, batch, dtype):
    S = Scattering2D(J, shape, max_order=max_order, dtype=dtype)
    x = noise(batch, *shape, dtype=dtype)
    vars(S)["_fused"] = None  # of the primitives; what the compiled engine takes, tracemalloc does not see
    S(x[:1])  # what is imported or cached on first use
    bookkeeping = 64 * 1024
    assert peak_nbytes(lambda: S(x)) == pytest.approx(S.nbytes(batch), rel=0.2, abs=bookkeeping)


def test_memory_grows_with_the_batch_by_the_result_alone():
    S = Scattering2D(2, (32, 32))
    one = math.prod(S.output_shape) * 4
    assert S.nbytes(10_000) - S.nbytes(5_000) == 5_000 * one


# --- What is refused ---


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"J": 0}, "J=0: must be at least 1"),
        (
            {"J": 6},
            "J=6 needs images of at least 64 pixels per axis, shape is \\(32, 48\\); the largest possible J is 5",
        ),
        ({"L": 0}, "L=0"),
        ({"max_order": -1}, "max_order=-1"),
        ({"padding": "zero"}, "padding='zero'"),
        ({"padding": "periodic", "shape": (32, 46)}, "46 is no multiple of the stride 4; 44 and 48 fit"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"shape": (32,)}, "expected \\(H, W\\)"),
        ({"shape": (1, 32)}, "no J fits"),
    ],
)
def test_impossible_parameters_name_themselves(parameters, message):
    with pytest.raises(ValueError, match=message):
        Scattering2D(**{"J": 2, "shape": (32, 48), **parameters})


def test_parameters_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match=r"J=2\.5: expected an integer"):
        Scattering2D(2.5, (32, 32))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((16, 15)), ValueError, "expected \\(…, 16, 16\\)"),
        (np.zeros(16), ValueError, "shape \\(16,\\)"),
        (np.zeros((16, 16), complex), TypeError, "complex128"),
        (np.zeros((16, 16), object), TypeError, "object"),
        ([[0.0] * 16] * 16, TypeError, "list"),
    ],
)
def test_wrong_images_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        Scattering2D(2, (16, 16), L=2)(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_counted_and_placed(xp, value):
    S = Scattering2D(2, (16, 16), L=2)
    x = noise(2, 900, 16, 16, dtype="float64")
    x[1, 700, 3, 5] = x[1, 899, 0, 0] = value
    with pytest.raises(ValueError, match=r"2 of 460800 values, the first at index \(1, 700, 3, 5\)"):
        S(xp(x))


def test_import_loads_nothing_heavy():
    heavy = ["cupy", "xarray", "dask", "matplotlib", "pandas", "scipy.stats"]
    code = f"import sys, scattercube.kernels; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
