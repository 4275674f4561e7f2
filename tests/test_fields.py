"""Fields through the pipeline: the cube of an archive is that of the whole arrays, cut or not, with gaps or not."""

import numpy as np
import pytest
import xarray as xr

from scattercube.kernels import Scattering2D
from scattercube.pipeline import plan
from scattercube.pipeline.errors import PlanError
from scattercube.pipeline.job import Job, prepare, run
from scattercube.pipeline.stores.protocol import OK, PARTIAL, QUARANTINED

SHAPE = (3, 200, 184)


@pytest.fixture
def small_tiles(monkeypatch):
    """Everything is a field, and its tiles and shards are small."""
    monkeypatch.setattr(plan, "FIELD_NBYTES", 1 << 10)
    monkeypatch.setattr(plan, "TILE_SIDES", {1: 1 << 8, 2: 1 << 6})
    monkeypatch.setattr(plan, "TILE_HALOS", 3)
    monkeypatch.setattr(plan, "SHARD_NBYTES", 1 << 16)


def entry(folder, values, **fields):
    np.save(folder / "fields.npy", values)
    lines = [f"{name}: {value}" for name, value in fields.items()]
    text = ["name: fields", "title: fields", "licence: CC0-1.0", "reader: arrays", f"location: {folder / 'fields.npy'}"]
    (folder / "fields.yaml").write_text("\n".join([*text, *lines]))
    return Job(entry=str(folder / "fields.yaml"), store=str(folder / "store"), until="extract", serial=True)


def noise(dtype="f4"):
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


@pytest.mark.parametrize("serial", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cube_is_that_of_the_whole(tmp_path, small_tiles, dtype, serial):
    x = noise("f8")
    job = entry(tmp_path, x, spec=f"{{J: 2, L: 4, padding: support, dtype: {dtype}}}")
    outcome = run(job.model_copy(update={"serial": serial}))
    planned = outcome.prepared.plan
    assert len(planned.feature_grid.keys) > 8
    assert len(planned.signal_grid.keys) > 8
    assert (
        planned.feature_grid.shard[1] > planned.axes[0].n_out or planned.feature_grid.shard[2] > planned.axes[1].n_out
    )
    cube = xr.open_zarr(outcome.prepared.places.cube)
    S = Scattering2D(2, SHAPE[1:], L=4, padding="support", dtype=dtype)
    expected = S(x)
    error = np.linalg.norm(cube["scattering"] - expected) / np.linalg.norm(expected)
    assert error <= {"float32": 1e-6, "float64": 1e-12}[dtype]
    assert cube["status"].values.tolist() == [OK] * 3
    np.testing.assert_array_equal(cube["y"], S.positions[0])
    assert cube["y_border"].values.sum() == 2 * S.halo // 4
    assert run(job).nothing_new


def test_a_boundary_without_tiles(tmp_path):
    """On a circle, a shift by whole strides shifts the coefficients."""
    values = []
    for name, x in (("as-it-is", noise()), ("shifted", np.roll(noise(), 8, axis=1))):
        (tmp_path / name).mkdir()
        job = entry(tmp_path / name, x, spec="{J: 2, padding: support, boundary: periodic}")
        values.append(xr.open_zarr(run(job).prepared.places.cube)["scattering"].values)
    np.testing.assert_allclose(values[1], np.roll(values[0], 2, axis=2), atol=1e-5)


@pytest.mark.parametrize("tiled", [False, True])
def test_gaps_have_a_coverage(tmp_path, tiled, request):
    if tiled:
        request.getfixturevalue("small_tiles")
    x = noise()
    x[1, 40:70, 50:90] = np.nan
    fields = {"sample": "{exact: true, missing: true}", "spec": "{J: 2, L: 4, padding: support, min_coverage: 0.4}"}
    outcome = run(entry(tmp_path, x, **fields))
    cube = xr.open_zarr(outcome.prepared.places.cube)
    coverage, values = cube["coverage"].values, cube["scattering"].values
    assert (coverage[[0, 2]] == 1).all()
    assert cube["status"].values.tolist() == [OK, PARTIAL, OK]
    np.testing.assert_array_equal(np.isnan(values), coverage < np.float32(0.4))
    assert np.isnan(values[1]).mean() == pytest.approx(30 * 40 / (200 * 184), rel=0.6)
    expected = Scattering2D(2, SHAPE[1:], L=4, padding="support")(noise())
    seen = coverage == 1
    assert np.linalg.norm((values - expected)[seen]) <= 1e-6 * np.linalg.norm(expected[seen])


def test_nothing_but_gaps_is_quarantined(tmp_path):
    x = noise()
    x[2] = np.nan
    job = entry(tmp_path, x, sample="{exact: true, missing: true}", spec="{J: 2, L: 4, padding: support}")
    outcome = run(job)
    cube = xr.open_zarr(outcome.prepared.places.cube)
    assert cube["status"].values.tolist() == [OK, OK, QUARANTINED]
    assert np.isnan(cube["scattering"].values[2]).all()
    (record,) = [record for event in outcome.prepared.places.cube_store.events() for record in event["bad"]]
    assert (record["sample_id"], record["reason"]) == ("fields.npy#2", "non-finite")
    assert "all are missing" in record["message"]


def test_a_field_that_breaks_off_is_quarantined_and_the_others_go_on(tmp_path, small_tiles):
    job = entry(tmp_path, noise(), spec="{J: 2, L: 4, padding: support}")
    whole = (tmp_path / "fields.npy").read_bytes()
    prepared = prepare(job)
    (tmp_path / "fields.npy").write_bytes(whole[: -4 * 184 * 20])  # twenty rows of the last field are missing
    with pytest.raises(Exception, match=r"promises|complete"):
        prepare(job)
    (tmp_path / "fields.npy").write_bytes(whole)
    bad = np.frombuffer(whole, np.uint8).copy()
    values = bad[-4 * 184 * 20 :].view("f4")
    values[5] = np.nan
    (tmp_path / "fields.npy").write_bytes(bad.tobytes())
    outcome = run(job)
    cube = xr.open_zarr(outcome.prepared.places.cube)
    assert cube["status"].values.tolist() == [OK, OK, QUARANTINED]
    assert np.isnan(cube["scattering"].values[2]).all()
    assert np.isfinite(cube["scattering"].values[:2]).all()
    named = [record for event in outcome.prepared.places.chunk_store.events() for record in event["bad"]]
    assert {record["sample_id"] for record in named} == {"fields.npy#2"}
    assert prepared.plan.signal_shape == (3, 200, 184)


def test_missing_values_need_room(tmp_path):
    with pytest.raises(PlanError, match="padding=support"):
        prepare(entry(tmp_path, noise(), sample="{exact: true, missing: true}"))


def test_what_is_too_large_for_a_worker_is_refused_with_the_remedy(tmp_path, monkeypatch):
    job = entry(tmp_path, noise(), spec="{J: 2}")
    monkeypatch.setattr("scattercube.pipeline.clusters.machine", lambda: (2, 100 << 20))
    with pytest.raises(PlanError, match="padding=support"):
        prepare(job)
