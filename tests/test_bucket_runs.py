"""Whole runs whose store is an object store: what they do on a disk, and in a sentence what is missing."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr

import scattercube
from scattercube.flows.cli import execute
from scattercube.pipeline import plan
from scattercube.pipeline.job import Job, Outcome, run
from scattercube.pipeline.places import Places
from scattercube.pipeline.sources.archives import objects
from scattercube.pipeline.stores.files import files_at, read_file
from scattercube.pipeline.stores.opening import open_cube
from tests.test_job import photographs


@pytest.fixture(autouse=True)
def several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even these archives into several shards."""
    monkeypatch.setattr(plan, "SMALL_SHARD_NBYTES", 1 << 14)


@pytest.fixture(params=["zarr", "icechunk"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "icechunk":
        pytest.importorskip("icechunk", reason="Icechunk is an extra")
    return request.param


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Sixteen images, and a file that is none."""
    folder = photographs(tmp_path / "photos", n_each=8, size=16)
    (folder / "along" / "broken.png").write_bytes(b"no picture")
    return folder


def brought_up(archive: Path, store: str | Path, **options: Any) -> Outcome:
    return run(Job(entry=str(archive), store=str(store), **{"serial": True, "set": ("J=1", "L=4")} | options))


def objects_of(places: Places) -> dict[str, bytes]:
    """Every object of an entry, but leases."""
    files = files_at(f"{places.root}/{places.entry_name}")
    return {name: files.read(name) or b"" for name in files.names() if ".lease/" not in name}


def scores_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.fitted is not None
    assert outcome.fitted.scores is not None
    return {name: value for name, value in outcome.fitted.scores.items() if name != "seconds"}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = execute([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_run_is_what_it_is_on_a_disk_and_grows_like_it(archive, tmp_path, bucket, backend):
    def both(until: str) -> list[Outcome]:
        found = [brought_up(archive, root, backend=backend, until=until) for root in (tmp_path / "store", bucket)]
        here, there = (one.prepared.places for one in found)
        assert here.chunk_store.content_digest() == there.chunk_store.content_digest()
        assert here.cube_store.content_digest() == there.cube_store.content_digest()
        cubes = [open_cube(place).drop_attrs(deep=False).load() for place in (here.cube, there.cube)]
        xr.testing.assert_identical(*cubes)
        assert "label" in cubes[1].coords
        return found

    here, there = both("fit")
    assert scores_of(here) == scores_of(there)
    places = there.prepared.places
    before = objects_of(places)
    assert {"entry.yaml", "ledger.parquet"} < set(before)
    again = brought_up(archive, bucket, backend=backend, until="fit")
    assert again.nothing_new
    assert objects_of(places) == before, "not an object is touched"
    shutil.copy(archive / "along" / "03.png", archive / "along" / "zz.png")
    both("extract")
    assert [version.n_rows for version in places.cube_store.versions()] == [17, 18]
    assert list(places.cube_store.verify()) == []


def test_workers_write_to_a_bucket(archive, tmp_path, bucket):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{kind: local, workers: 2, threads: 1, memory: 1GiB}")
    here = brought_up(archive, tmp_path / "store", until="extract").prepared.places
    there = brought_up(archive, bucket, until="extract", serial=False, cluster=str(cluster)).prepared.places
    assert {event["worker"] for event in there.cube_store.events()}.isdisjoint({f"pid {os.getpid()}"})
    assert here.cube_store.content_digest() == there.cube_store.content_digest()
    assert list(there.cube_store.verify()) == []


def test_every_command_takes_addresses(archive, tmp_path, bucket, capsys):
    where = ("--store", f"{bucket}/", "--set", "J=1", "--set", "L=4")
    assert call(capsys, "plan", archive, *where)[0] == 0
    assert list(files_at(bucket).names()) == [], "a plan leaves nothing behind"
    assert "writable" in call(capsys, "doctor", "--store", bucket)[1]
    assert list(files_at(bucket).names()) == []
    assert call(capsys, "fit", archive, *where, "--direct", "--serial")[0] == 0
    code, said, _ = call(capsys, "quarantine", "list", archive, *where, "--json")
    (record,) = json.loads(said)
    assert (code, record["sample_id"].rpartition("/")[2]) == (0, "broken.png")
    photographs(tmp_path / "mended", n_each=1, size=16)
    (tmp_path / "mended" / "along" / "00.png").rename(archive / "along" / "broken.png")
    code, said, _ = call(capsys, "quarantine", "retry", archive, *where, "--direct", "--serial")
    assert code == 0
    cube, page = (line.split()[1] for line in said.splitlines() if line.startswith(("cube ", "page ")))
    assert cube.startswith(f"{bucket}/photos/features/")
    assert f"scattercube.open_cube(&#34;{cube}&#34;)" in (read_file(page) or b"").decode()
    assert "nothing of photos" in call(capsys, "quarantine", "list", archive, *where)[1]
    code, said, _ = call(capsys, "run", archive, *where, "--direct", "--serial")
    assert (code, "nothing new" in said) == (0, True)

    code, said, _ = call(capsys, "catalog", "--store", bucket, "--json")
    (produced,) = json.loads(said)
    assert (produced["path"], produced["freshness"]) == (cube, "fresh")
    assert produced["samples"] == {"ok": 17, "superseded": 1}
    assert produced["nbytes"] == sum(files_at(cube).size(name) or 0 for name in files_at(cube).names())
    assert eval(produced["how_to_open"], {"scattercube": scattercube}).sizes["sample"] == 18
    code, said, _ = call(capsys, "verify", bucket, "--json")
    assert (code, json.loads(said)) == (0, {f"{bucket}/photos/chunks": [], cube: []})
    assert "give a cube" in call(capsys, "verify", f"{bucket}/none")[2]
    here = brought_up(archive, tmp_path / "store", until="fit").prepared.places
    code, said, _ = call(capsys, "diff", here.cube, cube)
    assert (code, said) == (0, "the same: 17 samples are in both\n")
    assert call(capsys, "export", cube, tmp_path / "cube.parquet")[0] == 0
    assert len(pd.read_parquet(tmp_path / "cube.parquet")) == 18

    heads = f"{page.rpartition('/')[0]}/heads"
    assert call(capsys, "apply", f"{heads}/ridge", here.cube, "--out", tmp_path / "there.csv")[0] == 0
    assert call(capsys, "apply", f"{here.heads}/ridge", cube, "--out", tmp_path / "here.csv")[0] == 0
    assert len(pd.read_csv(tmp_path / "there.csv")) == 17
    files_at(f"{heads}/ridge").remove("head.npz")
    code, _, told = call(capsys, "apply", f"{heads}/ridge", cube)
    assert (code, "head.npz is absent" in told) == (5, True)
    for command in (("export", cube), ("apply", f"{heads}/ridge", cube, "--out")):
        code, _, told = call(capsys, *command, f"{bucket}/x.parquet")
        assert (code, "a URL; give a file on this machine" in told) == (2, True)


@pytest.mark.parametrize("command", ["run", "plan", "quarantine list", "catalog", "verify", "doctor"])
def test_without_credentials_a_sentence_says_what_to_set(archive, bucket, command, capsys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(objects, "RETRIES", 0)
    what = {"catalog": ("--store", bucket), "doctor": ("--store", bucket), "verify": (bucket,)}
    code, said, told = call(capsys, *command.split(), *what.get(command, (archive, "--store", bucket)))
    assert code == (1 if command == "doctor" else 5)
    said = " ".join((said if command == "doctor" else told).split())
    assert "no credentials in the environment; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in said
    assert "anonymous" not in said
    if command != "doctor":
        assert len(told.strip().splitlines()) == 1, told


@pytest.mark.parametrize("chosen", ["zarr", "icechunk"])
def test_a_bucket_that_is_absent_is_named_before_the_work(archive, bucket, chosen, capsys):
    if chosen == "icechunk":
        pytest.importorskip("icechunk", reason="Icechunk is an extra")
    nowhere = bucket.replace("bucket", "nowhere")
    code, _, told = call(capsys, "run", archive, "--store", nowhere, "--direct", "--serial", "--backend", chosen)
    assert code == 5
    assert nowhere in told
    assert re.search("make (it|the bucket), or correct the address", told)
    assert len(told.strip().splitlines()) == 1, told
