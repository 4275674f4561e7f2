"""Archives that change: only what is new is read, changed files become new rows, nothing is lost or doubled."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.growth import Ledger, Retries
from scattercube.pipeline.job import Job, prepare, run
from scattercube.pipeline.quarantine import quarantined
from scattercube.pipeline.stores.protocol import OK, QUARANTINED, REMOVED, SUPERSEDED

SIZE = 16


def image(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(5):
        np.save(folder / f"{number}.npy", image(number))
    return folder


def job(archive, **more):
    given = {"until": "extract", "serial": True, "set": ("J=2",), "store": str(archive.parent / "store")}
    return Job(entry=str(archive), **(given | more))


class Watch:
    """An observer that counts the samples of each stage."""

    def __init__(self):
        self.read = {"ingest": 0, "extract": 0}

    def begin(self, stage, n_keys, n_done):
        pass

    def step(self, event):
        self.read[event.stage] += event.n_samples


def brought_up(archive, **more):
    """Run, and return what was done and the two stores, opened by xarray alone."""
    watch = Watch()
    outcome = run(job(archive, **more), observer=watch)
    places = outcome.prepared.places
    return outcome, watch.read, xr.open_zarr(places.chunks).load(), xr.open_zarr(places.cube).load()


def anew(archive, tmp_path, name):
    """The cube of an archive in its present state, made at once."""
    *_, cube = brought_up(archive, store=str(tmp_path / name))
    return cube


def same_as(cube, fresh):
    """Whether the live rows of a cube that grew are those of one that was made at once, whatever their order."""
    live = cube.isel(sample=np.isin(cube["status"], (OK, QUARANTINED)))
    assert sorted(live["sample_id"].values) == sorted(fresh["sample_id"].values)
    order = {name: index for index, name in enumerate(live["sample_id"].values)}
    live = live.isel(sample=[order[name] for name in fresh["sample_id"].values])
    for name in ("scattering", "status", "source"):
        np.testing.assert_array_equal(live[name], fresh[name])


def test_new_files_are_appended_and_only_they_are_read(archive, tmp_path):
    _, read, _, before = brought_up(archive)
    assert read == {"ingest": 5, "extract": 5}
    outcome, read, *_ = brought_up(archive)
    assert outcome.nothing_new
    assert read == {"ingest": 0, "extract": 0}
    np.save(archive / "05.npy", image(5))  # in the middle of the archive's order
    outcome, read, chunks, cube = brought_up(archive)
    assert not outcome.nothing_new
    assert read == {"ingest": 1, "extract": 1}
    assert cube["sample_id"].values.tolist() == [f"{name}.npy#0" for name in (0, 1, 2, 3, 4, "05")]
    np.testing.assert_array_equal(cube["scattering"][:5], before["scattering"])
    np.testing.assert_array_equal(chunks["signal"][5], image(5))
    same_as(cube, anew(archive, tmp_path, "fresh"))
    assert [version.n_rows for version in outcome.prepared.places.cube_store.versions()] == [5, 6]


def test_a_changed_file_is_a_new_row_and_a_removed_one_is_marked(archive, tmp_path):
    brought_up(archive)
    np.save(archive / "1.npy", image(11))
    (archive / "3.npy").unlink()
    _, read, chunks, cube = brought_up(archive)
    assert read == {"ingest": 1, "extract": 1}
    for store in (chunks, cube):
        assert store["status"].values.tolist() == [OK, SUPERSEDED, OK, REMOVED, OK, OK]
        assert store["sample_id"].values.tolist()[-1] == "1.npy#0"
    same_as(cube, anew(archive, tmp_path, "fresh"))
    np.save(archive / "3.npy", image(3))  # it comes back
    _, read, _, cube = brought_up(archive)
    assert read == {"ingest": 1, "extract": 1}
    same_as(cube, anew(archive, tmp_path, "again"))


def test_a_removed_file_alone_makes_a_version_and_no_work(archive):
    brought_up(archive)
    (archive / "0.npy").unlink()
    outcome, read, _, cube = brought_up(archive)
    assert not outcome.nothing_new
    assert read == {"ingest": 0, "extract": 0}
    assert cube["status"].values.tolist() == [REMOVED, OK, OK, OK, OK]
    assert brought_up(archive)[0].nothing_new


def test_a_file_that_was_merely_touched_is_no_new_sample(archive):
    outcome, *_ = brought_up(archive)
    for file in archive.iterdir():
        os.utime(file, (1, 1))
    outcome, read, *_ = brought_up(archive)
    assert outcome.nothing_new
    assert read == {"ingest": 0, "extract": 0}
    assert len(outcome.prepared.places.chunk_store.versions()) == 1
    Path(outcome.prepared.places.ledger).unlink()  # without the ledger everything is compared, and the same
    assert brought_up(archive)[0].nothing_new


def test_a_mended_file_takes_the_place_of_the_quarantined_row(archive):
    whole = (archive / "2.npy").read_bytes()
    (archive / "2.npy").write_bytes(whole[:-40])
    outcome, _, _, cube = brought_up(archive)
    assert cube["status"].values.tolist() == [OK, OK, QUARANTINED, OK, OK]
    assert (outcome.n_bad, outcome.n_samples) == (1, 5)
    (archive / "2.npy").write_bytes(whole)
    outcome, read, _, cube = brought_up(archive)
    assert read == {"ingest": 1, "extract": 1}
    assert cube["status"].values.tolist() == [OK, OK, SUPERSEDED, OK, OK, OK]
    assert outcome.n_bad == 0


def test_reading_again_in_vain_is_counted(archive):
    good = (archive / "2.npy").read_bytes()
    (archive / "2.npy").write_bytes(good[:-40])
    places = brought_up(archive)[0].prepared.places
    (found,) = quarantined(places)
    assert found.attempts == 1
    brought_up(archive)  # it looks as it did: nothing is tried
    assert quarantined(places) == [found]
    for attempts in (2, 3):
        outcome, read, *_ = brought_up(archive, retry=True)
        assert outcome.nothing_new
        assert read == {"ingest": 0, "extract": 0}
        (again,) = quarantined(places)
        assert again.attempts == attempts
        assert again.last >= found.last
    os.utime(archive / "2.npy", (1, 1))  # touched, read again, and still bad
    brought_up(archive)
    assert [record.attempts for record in quarantined(places)] == [4]
    prepare(job(archive, retry=True))  # a plan leaves nothing behind
    assert [record.attempts for record in quarantined(places)] == [4]
    (archive / "2.npy").write_bytes(good)
    brought_up(archive)
    assert not quarantined(places)
    assert not Ledger.of(Path(places.ledger).read_bytes()).retries


def test_a_ledger_reads_back_and_a_damaged_one_knows_nothing():
    known = Ledger({"a": "1", "b": "2"}, {"b": Retries(3, 1.5)})
    assert Ledger.of(known.content()) == known
    other = io.BytesIO()
    pd.DataFrame({"member": ["a"], "mark": ["1"]}, dtype="str").to_parquet(other)
    for content in (known.content()[:-9], other.getvalue(), b"", None):
        assert Ledger.of(content) == Ledger({})


def test_members_that_come_to_a_tar(archive, tmp_path):
    tar = tmp_path / "archive.tar"

    def pack():
        with tarfile.open(tar, "w") as file:
            for member in sorted(archive.iterdir()):
                file.add(member, member.name)

    pack()
    brought_up(tar)
    np.save(archive / "00.npy", image(7))  # in front: all the others move
    pack()
    _, read, _, cube = brought_up(tar)
    assert read == {"ingest": 1, "extract": 1}
    same_as(cube, anew(tar, tmp_path, "fresh"))


def test_a_cube_that_comes_late_or_lags_behind(archive, tmp_path):
    run(job(archive, until="ingest"))
    np.save(archive / "1.npy", image(11))
    np.save(archive / "5.npy", image(5))
    run(job(archive, until="ingest"))
    *_, cube = brought_up(archive)  # its first version has rows that are superseded already
    assert cube["status"].values.tolist() == [OK, SUPERSEDED, OK, OK, OK, OK, OK]
    same_as(cube, anew(archive, tmp_path, "fresh"))
    for number in (6, 7):  # two versions of the chunk store, one of the cube
        np.save(archive / f"{number}.npy", image(number))
        (archive / f"{number - 6}.npy").unlink()
        run(job(archive, until="ingest"))
    outcome, read, _, cube = brought_up(archive)
    assert read == {"ingest": 0, "extract": 2}
    assert len(outcome.prepared.places.cube_store.versions()) == 2
    same_as(cube, anew(archive, tmp_path, "later"))


def test_many_appends_leave_one_dense_cube(archive, tmp_path):
    brought_up(archive)
    for number in range(5, 15):
        np.save(archive / f"{number}.npy", image(number))
        brought_up(archive)
    outcome, _, _, cube = brought_up(archive)
    assert cube.sizes["sample"] == 15
    assert len(outcome.prepared.places.cube_store.versions()) == 11
    same_as(cube, anew(archive, tmp_path, "fresh"))
    shards = [file for file in Path(outcome.prepared.places.cube, "scattering").rglob("*") if file.is_file()]
    assert len(shards) == 1 + 1  # one shard and the array's document


def test_a_version_that_was_begun_is_finished_as_it_was_begun(archive, tmp_path, monkeypatch):
    brought_up(archive)
    np.save(archive / "5.npy", image(5))

    def killed(self, note=""):
        raise KeyboardInterrupt

    prepared = prepare(job(archive))
    with monkeypatch.context() as patch:
        patch.setattr(type(prepared.places.chunk_store), "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(job(archive))
    np.save(archive / "6.npy", image(6))
    _, read, _, cube = brought_up(archive)
    assert cube.sizes["sample"] == 6
    assert read["ingest"] == 0  # it was recorded
    _, read, _, cube = brought_up(archive)
    assert read == {"ingest": 1, "extract": 1}
    same_as(cube, anew(archive, tmp_path, "fresh"))


def test_labels_that_say_something_else_are_refused(archive):
    entry = archive.parent / "entry.yaml"
    labels = {0: "a", 1: "b"}
    table = archive.parent / "labels.csv"

    def write():
        table.write_text("file,label\n" + "".join(f"{n}.npy,{labels.get(n, 'c')}\n" for n in range(6)))

    entry.write_text(
        f"name: grown\ntitle: t\nlicence: CC0-1.0\nreader: arrays\nlocation: {archive}\nspec: {{J: 2}}\n"
        f"labels: {{table: {{file: labels.csv, key: file, label: label}}}}\n"
    )
    write()
    given = job(archive).model_copy(update={"entry": str(entry)})
    run(given)
    labels[1] = "z"
    write()
    with pytest.raises(StoreError, match=r"label of 1 samples.*1\.npy#0 has 'b', now 'z'"):
        run(given)


def test_a_choice_of_samples_does_not_grow(archive):
    run(job(archive, limit=3))
    assert run(job(archive, limit=3)).nothing_new
    shutil.copy(archive / "0.npy", archive / "00.npy")
    with pytest.raises(StoreError, match="--limit"):
        run(job(archive, limit=3))
