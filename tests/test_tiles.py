"""Tiles: the features of a field are those of the whole, wherever it is cut and whatever lies beyond its border."""

from functools import cache

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import scattercube
from scattercube.kernels import Scattering1D, Scattering2D
from scattercube.pipeline.errors import PlanError, SpecError
from scattercube.pipeline.spec import ImageSpec, SignalSpec
from scattercube.pipeline.tiles import Axis, beyond, gather

BOUNDARIES = ("reflect", "symmetric", "periodic", "zero", "edge")
NUMPY_MODE = {"periodic": "wrap", "zero": "constant"}
# of tiles against the whole: relative error over all paths, and of the worst path
TOLERANCE = {"float32": (1e-6, 1e-5), "float64": (1e-12, 1e-11)}


@settings(deadline=None)
@given(
    size=st.integers(1, 30),
    start=st.integers(-40, 40),
    count=st.integers(1, 60),
    boundary=st.sampled_from(BOUNDARIES),
)
def test_beyond_the_border_lies_what_numpy_would_pad(size, start, count, boundary):
    values = np.arange(1.0, size + 1)
    padded = np.pad(values, 100, NUMPY_MODE.get(boundary, boundary)) if size > 1 or boundary != "reflect" else None
    index = beyond(np.arange(start, start + count), size, boundary)
    found = np.where(index >= 0, values[index], 0)
    expected = np.ones(count) if padded is None else padded[100 + start : 100 + start + count]
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 15)),
    firsts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    boundary=st.sampled_from(BOUNDARIES),
    lead=st.booleans(),
)
def test_what_is_gathered_is_the_padded_field(sizes, firsts, boundary, lead):
    field = np.arange(np.prod(sizes), dtype="f4").reshape(sizes) + 1
    field = np.stack([field, -field]) if lead else field
    axes = [Axis(size, 2, 6, 4, boundary) for size in sizes]
    firsts = [first % axis.total for first, axis in zip(firsts, axes, strict=True)]
    asked = []

    def read(window):
        asked.append(window)
        return field[(Ellipsis, *window)]

    index = [axis.index(first) for axis, first in zip(axes, firsts, strict=True)]
    found = gather(read, index)
    rows, columns = (np.concatenate(parts) for parts in index)
    by_rows = np.where(rows[:, None] < 0, 0, field[..., rows, :])
    expected = np.where(columns < 0, 0, by_rows[..., columns])
    np.testing.assert_array_equal(found, expected)
    cells = [(slice(a.start, a.stop), slice(b.start, b.stop)) for a, b in asked]
    assert sum((a.stop - a.start) * (b.stop - b.start) for a, b in cells) <= field[..., 0, 0].size * np.prod(sizes)


def test_a_periodic_tile_at_the_end_reads_both_ends_only():
    axis = Axis(10_000, 8, 80, 16, "periodic")
    read = []
    gather(lambda window: read.append(window[0]) or np.zeros(window[0].stop - window[0].start), [axis.index(0)])
    assert sum(part.stop - part.start for part in read) == axis.padded
    assert len(read) == 2


@cache
def noise(shape, dtype):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def whole(x, spec, boundary):
    """The transform of an array that was padded by hand, by more than anything reaches."""
    n_axes = len(spec.signal_dims)
    kind, scale = (Scattering2D, spec.J) if n_axes == 2 else (Scattering1D, spec.J)
    options = spec.model_dump(exclude={"transform", "boundary", "min_coverage", "padding"})
    probe = kind(shape=(64 << scale,) * n_axes, padding="support", **options)
    before, stride = probe.halo, probe.stride
    after = [before + (-(size + before)) % stride for size in x.shape]
    widths = [(before, end) for end in after]
    modes = [boundary] * n_axes if isinstance(boundary, str) else boundary
    for axis, mode in enumerate(modes):
        pad = [(0, 0)] * n_axes
        pad[axis] = widths[axis]
        x = np.pad(x, pad, NUMPY_MODE.get(mode, mode))
    padded = kind(shape=x.shape, padding="support", **options)(x)
    inside = [slice(before // stride, n // stride - end // stride) for n, end in zip(x.shape, after, strict=True)]
    return padded[(Ellipsis, *inside)]


def errors(found, expected):
    by_path = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, expected, strict=True)]
    return np.linalg.norm(found - expected) / np.linalg.norm(expected), max(by_path)


def assert_alike(found, expected, dtype):
    assert found.shape == expected.shape
    overall, worst = errors(found, expected)
    assert overall <= TOLERANCE[dtype][0]
    assert worst <= TOLERANCE[dtype][1]


chunks = st.lists(st.integers(1, 200), min_size=1, max_size=6)


def cut(size, parts):
    """Chunks of a size, from random ones."""
    ends = sorted({min(end, size) for end in np.cumsum(parts).tolist()} | {size})
    return tuple(np.diff([0, *ends]).tolist())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=chunks, columns=chunks, dtype=st.sampled_from(["float32", "float64"]), boundary=st.sampled_from(BOUNDARIES))
@example(rows=[64, 64], columns=[7, 93, 50], dtype="float32", boundary="reflect")
@example(rows=[64, 64], columns=[150], dtype="float64", boundary="periodic")
def test_images_do_not_depend_on_their_chunks(rows, columns, dtype, boundary):
    x = noise((144, 152), dtype)
    spec = ImageSpec(J=2, L=3, max_order=3 if len(rows) == 2 else 2, padding="support", boundary=boundary, dtype=dtype)
    array = xr.DataArray(x, dims=("y", "x")).chunk({"y": cut(144, rows), "x": cut(152, columns)})
    found = scattercube.scatter(array, spec)["scattering"].values
    assert_alike(found, whole(x, spec, boundary), dtype)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(st.integers(1, 2500), min_size=1, max_size=6), dtype=st.sampled_from(["float32", "float64"]))
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_signals_do_not_depend_on_their_chunks(parts, dtype, boundary):
    x = noise((4001,), dtype)
    spec = SignalSpec(J=4, Q=(4, 1), T=16.0, padding="support", boundary=boundary, dtype=dtype)
    array = xr.DataArray(x, dims="time").chunk(time=cut(4001, parts))
    found = scattercube.scatter(array, spec)["scattering"].values
    assert_alike(found, whole(x, spec, boundary), dtype)


def test_a_boundary_for_each_axis():
    x = noise((96, 100), "float64")
    spec = ImageSpec(J=2, L=2, padding="support", boundary=("periodic", "zero"), dtype="float64")
    found = scattercube.scatter(xr.DataArray(x, dims=("y", "x")), spec)["scattering"].values
    assert_alike(found, whole(x, spec, ("periodic", "zero")), "float64")


def test_where_the_border_reaches_is_said():
    """Outputs that are not marked do not change with what lies beyond."""
    x = xr.DataArray(noise((120, 128), "float64"), dims=("lat", "lon"))
    one, other = (
        scattercube.scatter(x, {"J": 1, "padding": "support", "boundary": boundary, "dtype": "float64"})
        for boundary in ("zero", "periodic")
    )
    inside = one["scattering"].sel(lat=~one["lat_border"], lon=~one["lon_border"])
    assert inside.size > 0
    np.testing.assert_allclose(inside, other["scattering"].sel(lat=~one["lat_border"], lon=~one["lon_border"]), 1e-10)
    assert abs(one["scattering"] - other["scattering"]).max() > 1e-3


def test_labelled_like_its_input():
    """Coordinates of the input stand at the outputs, those of leading dims stay, and names are the input's own."""
    x = xr.DataArray(
        noise((2, 96, 100), "float32"),
        dims=("month", "lat", "lon"),
        coords={"month": [1, 2], "lat": np.linspace(50, 20, 96), "name": ("month", ["a", "b"])},
    )
    lazy = scattercube.scatter(x.chunk(month=1, lat=50), {"J": 2, "padding": "support"})
    assert lazy["scattering"].dims == ("month", "path", "lat", "lon")
    assert lazy["scattering"].chunks is not None
    assert lazy["scattering"].dtype == np.float32
    np.testing.assert_array_equal(lazy["lat"], x["lat"][::4])
    assert lazy["name"].values.tolist() == ["a", "b"]
    assert lazy["order"].dims == ("path",)
    moved = scattercube.scatter(x.transpose("lat", "month", "lon"), {"J": 2, "padding": "support"}, dims=("lat", "lon"))
    np.testing.assert_allclose(moved["scattering"], lazy["scattering"], atol=1e-5)


def test_hertz_and_seconds_where_the_rate_is_known():
    x = xr.DataArray(noise((2048,), "float32"), dims="time")
    cube = scattercube.scatter(x, {"transform": "scattering1d", "J": 5}, sampling_rate=8000)
    assert cube["xi1"].attrs["units"] == "Hz"
    assert cube["time"].attrs["units"] == "s"
    assert float(cube["time"][1] - cube["time"][0]) == 32 / 8000


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ({"J": 2}, PlanError, "padding: support"),
        ({"J": 2, "padding": "support", "transform": "scattering3d"}, SpecError, "scattering1d"),
        ({"J": 2, "orientations": 4}, SpecError, "unknown key 'orientations'"),
        ({"J": 2, "boundary": "zero"}, SpecError, "needs padding: support"),
        ({"transform": "solid_harmonic"}, PlanError, "takes 3 of the array's dims"),
        ({"J": 9, "padding": "support"}, PlanError, "J=9"),
    ],
)
def test_what_does_not_fit_is_said(spec, error, said):
    x = xr.DataArray(noise((96, 100), "float32"), dims=("y", "x")).chunk(y=48)
    with pytest.raises(error, match=said):
        scattercube.scatter(x, spec)


def test_leading_chunks_need_no_tiles():
    x = xr.DataArray(noise((3, 32, 32), "float32"), dims=("n", "y", "x"))
    lazy, direct = scattercube.scatter(x.chunk(n=1), {"J": 2}), scattercube.scatter(x, {"J": 2})
    np.testing.assert_allclose(lazy["scattering"], direct["scattering"], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(direct["scattering"], Scattering2D(2, (32, 32))(x.values))
