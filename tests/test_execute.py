"""The loop: serial and Dask give the same store, failures are retried or named, and nothing finished is done again.

Failures come from a table: key → what happens at each attempt (None succeeds, an exception is raised). Invocations are
counted in files, because attempts may run in other processes.
"""

import errno
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from scattercube.pipeline import execute
from scattercube.pipeline.errors import ChunkError, SpecError
from scattercube.pipeline.execute import Cluster, Stage, StepEvent, connect, load_cluster
from scattercube.pipeline.plan import ChunkKey, Grid
from scattercube.pipeline.store import Store
from tests.test_store import shard, template

GRID = Grid(n_samples=40, shard=2, chunk=1)


def step(store, counts, failures, key):
    """Write a shard, unless the table says that this attempt fails."""
    with (counts / str(key)).open("a") as file:
        file.write("x")
    attempt = (counts / str(key)).stat().st_size
    outcomes = failures.get(str(key), ())
    outcome = outcomes[attempt - 1] if attempt <= len(outcomes) else None
    if outcome == "die":
        os._exit(1)
    if outcome is not None:
        raise outcome
    digest = store.write(key, shard(GRID, key))
    return StepEvent(
        key=str(key), digest=digest, read_s=0.0, compute_s=0.0, write_s=0.001, nbytes_in=0, nbytes_out=24, n_samples=2
    )


def make_stage(folder: Path, failures=None) -> Stage:
    counts = folder / "counts"
    counts.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "cube")
    stage = Stage("test", store, lambda: template(GRID), GRID.keys, partial(step, store, counts, failures or {}))
    store.create(stage.template())
    return stage


def invocations(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (folder / "counts").iterdir()}


def contents(store: Store) -> dict[str, bytes]:
    return {str(f.relative_to(store.path)): f.read_bytes() for f in sorted(store.path.rglob("*")) if f.is_file()}


@dataclass
class Watch:
    seen: list = field(default_factory=list)

    def begin(self, stage, n_keys, n_done):
        self.seen.append((stage, n_keys, n_done))

    def step(self, event):
        self.seen.append(event.key)


@pytest.fixture(scope="module")
def client():
    with connect(Cluster(workers=2, memory="1GiB")) as client:
        yield client


@pytest.fixture(params=["serial", "dask"])
def where(request):
    return None if request.param == "serial" else request.getfixturevalue("client")


def test_serial_and_dask_write_the_same_bytes(tmp_path, client):
    serial, dask = make_stage(tmp_path / "serial"), make_stage(tmp_path / "dask")
    assert execute.run(serial, serial.keys) == len(GRID.keys)
    assert execute.run(dask, dask.keys, client) == len(GRID.keys)
    for stage in (serial, dask):
        stage.store.publish()
    assert contents(serial.store) == contents(dask.store)
    digests = [{e["key"]: e["digest"] for e in stage.store.events()} for stage in (serial, dask)]
    assert digests[0] == digests[1]


def test_every_key_runs_once_and_the_observer_sees_it(tmp_path, where):
    stage, watch = make_stage(tmp_path), Watch()
    execute.run(stage, stage.keys, where, watch)
    assert sorted(watch.seen) == sorted(str(key) for key in stage.keys)
    assert invocations(tmp_path) == {str(key): 1 for key in stage.keys}
    assert execute.run(stage, stage.keys, where) == 0, "nothing is left to do"
    assert invocations(tmp_path) == {str(key): 1 for key in stage.keys}


def test_a_passing_failure_is_retried(tmp_path, where, monkeypatch):
    stage = make_stage(tmp_path, {"sample=6": [OSError(errno.EIO, "blip"), None]})
    execute.run(stage, stage.keys, where)
    assert invocations(tmp_path)["sample=6"] == 2
    (event,) = [e for e in stage.store.events() if e["key"] == "sample=6"]
    assert event["attempt"] == 2
    assert stage.store.missing(stage.keys) == ()


@pytest.mark.parametrize(
    ("failure", "times"),
    [(ValueError("wrong"), 1), (OSError(errno.ENOSPC, "disk full"), 1), (OSError(errno.EIO, "bad"), 3)],
)
def test_a_lasting_failure_names_the_key_and_keeps_the_rest(tmp_path, where, failure, times):
    stage = make_stage(tmp_path, {"sample=10": [failure] * 5})
    with pytest.raises(ChunkError, match="test sample=10: "):
        execute.run(stage, stage.keys, where)
    assert invocations(tmp_path)["sample=10"] == times
    missing = stage.store.missing(stage.keys)
    assert ChunkKey.parse("sample=10") in missing
    done = len(stage.keys) - len(missing)
    assert done >= 5, "the keys before it are in the journal"
    mended = make_stage(tmp_path)
    assert execute.run(mended, mended.keys, where) == len(missing)
    assert mended.store.missing(mended.keys) == ()


def test_a_worker_that_dies_once_costs_nothing(tmp_path, client):
    stage = make_stage(tmp_path, {"sample=4": ["die", None]})
    assert execute.run(stage, stage.keys, client) == len(GRID.keys)
    assert stage.store.missing(stage.keys) == ()


def test_the_window_stays_bounded(tmp_path, client, monkeypatch):
    """However many keys there are, only a few tasks are with the scheduler at a time."""
    stage, largest = make_stage(tmp_path), 0
    submit = execute._Window.submit

    def counted(window, *arguments):
        nonlocal largest
        future = submit(window, *arguments)
        largest = max(largest, len(window.groups))
        return future

    monkeypatch.setattr(execute._Window, "submit", counted)
    execute.run(stage, stage.keys, client)
    assert 0 < largest <= execute.WINDOW * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: lokal", "kind"),
        ("workers: 0", "workers"),
        ("memory: lots", "memory"),
        ("wrkers: 2", "unknown key 'wrkers'; known keys: kind, workers"),
        ("kind: address", "`address` goes with"),
        ("[1, 2]", "expected a mapping"),
        ("{", "not YAML"),
    ],
)
def test_a_bad_cluster_file_names_the_field(tmp_path, text, message):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        load_cluster(file)


def test_measurements_are_in_the_journal(tmp_path, where):
    stage = make_stage(tmp_path)
    execute.run(stage, stage.keys, where)
    for event in stage.store.events():
        assert event["stage"] == "test"
        assert event["peak_nbytes"] > 10e6
        assert event["started"] > 1.7e9
    assert np.sum([event["n_samples"] for event in stage.store.events()]) == GRID.n_samples
