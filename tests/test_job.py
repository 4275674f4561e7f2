"""The whole job on small archives, without Prefect: resume, identical bytes, refusals, bad records."""

import json
import platform
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from scattercube.pipeline import plan
from scattercube.pipeline.errors import EntryError, PlanError, SourceError, SpecError, StoreError
from scattercube.pipeline.job import Job, run
from scattercube.pipeline.stores.opening import store_at
from tests.synthetic import contents


def photographs(folder: Path, n_each: int = 12, size: int = 32) -> Path:
    """Two classes that only structure tells apart: stripes along y and along x, in noise."""
    rng = np.random.default_rng(0)
    for label, axis in (("across", 0), ("along", 1)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(n_each):
            phase = rng.uniform(0, 6.3) + np.indices((size, size))[axis] * 1.2
            values = 128 + 60 * np.sin(phase) + rng.normal(0, 20, (size, size))
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / label / f"{number:02}.png")
    return folder


def cube_bytes(root: Path) -> dict[str, bytes]:
    """Every file of the Zarr stores under a root, without the times at which they were made."""
    groups = {run.with_suffix("") for run in root.rglob("*.run")}
    return {
        f"{group.relative_to(root)}/{name}": content
        for group in sorted(groups)
        for name, content in contents(store_at(str(group))).items()
    }


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    """Cut even these archives into several shards."""
    monkeypatch.setattr(plan, "SMALL_SHARD_NBYTES", 1 << 14)


@pytest.fixture
def archive(tmp_path):
    return photographs(tmp_path / "photos")


def job(archive, root, **options):
    return Job(entry=str(archive), store=str(root), **({"serial": True} | options))


def phases(outcome):
    return {phase["name"]: phase["n_done"] for phase in outcome.phases}


def test_archive_to_page_and_nothing_new(archive, tmp_path):
    outcome = run(job(archive, tmp_path / "store"))
    places = outcome.prepared.places
    assert outcome.fitted.scores["heads"]["ridge"]["accuracy"] > 0.9
    assert outcome.fitted.scores["baseline"]["ridge"]["accuracy"] < 0.8
    assert "<html" in Path(places.page).read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*") if file.is_file()}
    again = run(job(archive, tmp_path / "store"))
    assert again.nothing_new
    assert again.fitted.scores == outcome.fitted.scores
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*") if file.is_file()}
    assert after == before, "not a file is touched"


def test_dask_writes_the_same_bytes_as_the_serial_loop(archive, tmp_path):
    """All of it: the cube's shards, coordinates and metadata; and the scores that come out."""
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, workers: 2, memory: 1GiB}")
    serial = run(job(archive, tmp_path / "serial"))
    dask = run(job(archive, tmp_path / "dask", serial=False, cluster=str(cluster)))
    assert cube_bytes(tmp_path / "serial") == cube_bytes(tmp_path / "dask")
    scores = [{k: v for k, v in one.fitted.scores.items() if k != "seconds"} for one in (serial, dask)]
    assert scores[0] == scores[1]


def test_the_cube_has_every_coordinate_with_units(archive, tmp_path):
    outcome = run(job(archive, tmp_path / "store", set=("J=3", "L=4"), until="extract"))
    cube = xr.open_zarr(outcome.prepared.places.cube)
    assert cube["scattering"].dims == ("sample", "path", "y", "x")
    assert dict(cube.sizes) == {"sample": 24, "path": 1 + 3 * 4 + 3 * 16, "y": 4, "x": 4}
    assert cube["scattering"].dtype == np.float32
    on_sample = {"sample_id", "label", "split", "source"}
    on_path = {"order", "j1", "theta1", "xi1", "sigma1", "scale1", "j2", "theta2", "xi2", "sigma2", "scale2"}
    assert on_sample | on_path <= set(cube.coords)
    units = {name: cube[name].attrs["units"] for name in (*on_path, "y", "x")}
    assert units["xi1"] == "cycles/pixel"
    assert units["theta2"] == "degree"
    assert units["scale1"] == units["sigma2"] == units["y"] == "pixel"
    for attribute in ("spec", "entry", "spec_digest", "entry_digest", "filter_digest", "versions", "input_checksums"):
        assert cube.attrs[attribute], attribute
    assert {"created", "history", "title"} <= set(cube.attrs)
    assert json.loads(cube.attrs["host"])["name"] == platform.node()
    (version,) = outcome.prepared.places.cube_store.versions()
    assert re.fullmatch(rf"\d+ samples; [\d.e-]+ s of work, on {re.escape(platform.node())}", version.note)
    (event, *_) = outcome.prepared.places.cube_store.events()
    assert event["nbytes_in"] == event["n_samples"] * 32 * 32, "bytes as stored, not as computed with"
    chosen = cube.scattering.sel(path=((cube.order == 2) & (cube.scale2 >= 4) & (cube.scale1 < 2)).compute())
    assert chosen.sizes["path"] == 16
    assert np.isfinite(cube["scattering"]).all()
    assert (cube["status"] == 0).all()


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(archive, tmp_path, monkeypatch):
    undisturbed = run(job(archive, tmp_path / "whole"))
    from scattercube.pipeline import extract

    written, step = [], extract._step

    def interrupted(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments[-1])
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(job(archive, tmp_path / "cut"))
    cut = replace(undisturbed.prepared.places, root=str(tmp_path / "cut"))
    assert not Path(cut.cube, "zarr.json").exists()
    read = len(cut.chunk_store.events())
    assert read > 0
    resumed = run(job(archive, tmp_path / "cut"))
    planned = resumed.prepared.plan
    assert phases(resumed)["extract"] == len(planned.feature_grid.keys) - 3
    assert phases(resumed)["ingest"] == len(planned.signal_grid.keys) - read
    assert cube_bytes(tmp_path / "cut") == cube_bytes(tmp_path / "whole")


def test_another_spec_is_another_cube_over_the_same_chunks(archive, tmp_path):
    first = run(job(archive, tmp_path / "store", until="extract"))
    second = run(job(archive, tmp_path / "store", until="extract", set=("J=1",)))
    assert phases(second)["ingest"] == 0
    assert phases(second)["extract"] > 0
    assert first.prepared.places.cube != second.prepared.places.cube
    assert Path(first.prepared.places.cube).exists()


def test_a_limit_is_a_store_of_its_own(archive, tmp_path):
    outcome = run(job(archive, tmp_path / "store", limit=6, until="extract"))
    cube = xr.open_zarr(outcome.prepared.places.cube)
    assert cube.sizes["sample"] == 6
    assert set(cube["label"].values) == {"across", "along"}


def test_a_bad_record_is_named_and_marked_and_the_run_goes_on(archive, tmp_path):
    bad = archive / "along" / "03.png"
    bad.write_bytes(bad.read_bytes()[:200])
    packed = tmp_path / "photos.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(archive, arcname="photos")
    outcome = run(job(packed, tmp_path / "store"))
    cube = xr.open_zarr(outcome.prepared.places.cube)
    status = cube["status"].values
    assert status.sum() == 1
    (row,) = np.flatnonzero(status)
    assert "along/03.png" in str(cube["source"].values[row])
    assert np.isnan(cube["scattering"].values[row]).all()
    assert np.isfinite(cube["scattering"].values[status == 0]).all()
    page = Path(outcome.prepared.places.page).read_text()
    assert "03.png" in page
    assert "unreadable" in page


def test_nan_pixels_are_quarantined(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 16, 16)).astype("f4")
    values[2, 3, 4] = np.nan
    np.save(tmp_path / "fields.npy", values)
    outcome = run(job(tmp_path / "fields.npy", tmp_path / "store", set=("J=2",)))
    cube = xr.open_zarr(outcome.prepared.places.cube)
    assert cube["status"].values.tolist() == [0, 0, 1, 0, 0, 0]
    assert "nothing to fit" in outcome.fitted.nothing or outcome.fitted.scores is None


def test_a_sample_that_overflows_is_quarantined(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 16, 16))
    values[1, 2, 3] = 1e39  # finite as read, in float64
    values[4] = 3e38  # finite in float32 too, and its squares need not be
    np.save(tmp_path / "fields.npy", values)
    outcome = run(job(tmp_path / "fields.npy", tmp_path / "store", set=("J=2",)))
    cube = xr.open_zarr(outcome.prepared.places.cube)
    assert cube["status"].values.tolist() == [0, 1, 0, 0, 0, 0]
    assert np.isnan(cube["scattering"].values[1]).all()
    assert np.isfinite(cube["scattering"].values[[0, 2, 3, 4, 5]]).all()
    assert "values too large for float32" in Path(outcome.prepared.places.page).read_text()


def test_a_full_disk_does_not_refuse_what_is_done(archive, tmp_path, monkeypatch):
    import shutil

    run(job(archive, tmp_path / "store"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    assert run(job(archive, tmp_path / "store")).nothing_new


def test_threads_share_the_memory_of_their_worker(archive, tmp_path):
    need = run(job(archive, tmp_path / "store", until="plan")).prepared.plan.worker_nbytes
    one, many = tmp_path / "one.yaml", tmp_path / "many.yaml"
    one.write_text(f"{{workers: 1, threads: 1, memory: {need + 1000}B}}")
    many.write_text(f"{{workers: 1, threads: 16, memory: {need + 1000}B}}")
    run(job(archive, tmp_path / "store", until="plan", serial=False, cluster=str(one)))
    with pytest.raises(PlanError, match="16 keys at a time"):
        run(job(archive, tmp_path / "store", until="plan", serial=False, cluster=str(many)))


def test_another_entry_is_refused_with_the_difference(archive, tmp_path):
    outcome = run(job(archive, tmp_path / "store", until="ingest"))
    other = tmp_path / "other.yaml"
    text = Path(outcome.prepared.places.entry_file).read_text()
    other.write_text(text.replace("exact: true", "crop: {size: [8, 8]}"))
    assert other.read_text() != text
    with pytest.raises(StoreError, match=r"holds another.*entry is \w+, this run has \w+.*shape"):
        run(job(other, tmp_path / "store", set=("J=1",)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"set": ("J=6",)}, PlanError, "J=6"),
        ({"set": ("Q=1",)}, SpecError, "unknown key 'Q'"),
        ({"set": ("J",)}, SpecError, "KEY=VALUE"),
        ({"set": ("J=[",)}, SpecError, "not YAML"),
        ({"set": ("J=&a [*a]",)}, SpecError, "alias"),
        ({"store": "~nobody-of-that-name/x"}, StoreError, "nobody-of-that-name"),
        ({"spec": "absent.yaml"}, SpecError, r"absent\.yaml"),
        ({"entry": "texturs"}, EntryError, "textures"),
        ({"store": "https://host/x"}, StoreError, "choose one of these"),
        ({"store": "s3://me:secret@bucket/x"}, StoreError, "^s3://…@bucket/x: .*cannot hold a password"),
        ({"store": "s3://bucket/x?secret=1"}, StoreError, r"^s3://bucket/x\?…: the path"),
        ({"store": "/proc/none"}, StoreError, "/proc/none"),
        ({"cluster": "absent.yaml"}, SpecError, r"absent\.yaml"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(archive, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(Job(**({"entry": str(archive), "store": str(tmp_path / "store"), "serial": True} | options)))
    assert not (tmp_path / "store").exists()


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty"):
        run(job(tmp_path / "empty", tmp_path / "store"))


def test_a_plan_that_needs_more_than_a_worker_has_is_refused(archive, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, workers: 1, memory: 100MiB}")
    with pytest.raises(PlanError, match="a worker needs about"):
        run(job(archive, tmp_path / "store", serial=False, cluster=str(cluster)))


def test_a_plan_that_the_disk_cannot_hold_is_refused(archive, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(PlanError, match="choose another --store"):
        run(job(archive, tmp_path / "store"))


@pytest.mark.gpu
def test_a_gpu_cluster_writes_the_same_cube(archive, tmp_path):
    from scattercube.kernels.device import cuda_problem

    if cuda_problem() is not None:
        pytest.skip(cuda_problem())
    cluster = Path(__file__).parents[1] / "deploy" / "clusters" / "one-gpu.yaml"
    serial = run(job(archive, tmp_path / "serial", until="extract"))
    cuda = run(job(archive, tmp_path / "cuda", until="extract", serial=False, cluster=str(cluster)))
    cubes = [xr.open_zarr(outcome.prepared.places.cube)["scattering"].values for outcome in (serial, cuda)]
    np.testing.assert_allclose(cubes[1], cubes[0], rtol=3e-5, atol=1e-6 * np.abs(cubes[0]).max())


def test_a_gpu_cluster_without_a_gpu_says_what_is_missing(archive, tmp_path):
    from scattercube.kernels.device import cuda_problem

    if cuda_problem() is None:
        pytest.skip("this machine has a GPU")
    cluster = Path(__file__).parents[1] / "deploy" / "clusters" / "one-gpu.yaml"
    with pytest.raises(PlanError, match="cluster kind cuda: "):
        run(job(archive, tmp_path / "store", serial=False, cluster=str(cluster)))
    assert not (tmp_path / "store").exists()
