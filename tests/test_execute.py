"""The loop: serial and Dask give the same store, failures are retried or named, and nothing finished is done again.

Failures come from a table: key → what happens at each attempt (None succeeds, an exception is raised). Invocations are
counted in files, because attempts may run in other processes.
"""

import errno
import json
import os
import pickle
import time
import tracemalloc
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from scattercube.pipeline import execute
from scattercube.pipeline.blas import OneThread
from scattercube.pipeline.clusters import Cluster, connect, load_cluster
from scattercube.pipeline.errors import ChunkError, SpecError
from scattercube.pipeline.keys import ChunkKey, Grid
from scattercube.pipeline.stage import Stage, StepEvent
from scattercube.pipeline.stores.opening import store_at
from tests.synthetic import contents
from tests.test_stores import shard, template

GRID = Grid.of_samples(40, shard=2, chunk=1)


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
    digest, change = store.write(key, shard(GRID, key))
    return StepEvent(str(key), digest, 0.0, 0.0, 0.001, nbytes_in=0, nbytes_out=24, n_samples=2, change=change)


def make_stage(folder: Path, failures=None) -> Stage:
    counts = folder / "counts"
    counts.mkdir(parents=True, exist_ok=True)
    store = store_at(str(folder / "cube"))
    steps = partial(step, store, counts, failures or {})
    stage = Stage("test", store, {}, lambda: template(40, GRID), GRID.keys, steps)
    stage.begin()
    return stage


def invocations(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (folder / "counts").iterdir()}


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


@pytest.fixture(scope="module")
def threads():
    """One worker that takes three keys at a time: they overlap."""
    with connect(Cluster(workers=1, threads=3, memory="1GiB")) as client:
        yield client


@pytest.fixture(params=["client", "threads"])
def cluster(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["serial", "client", "threads"])
def where(request):
    return None if request.param == "serial" else request.getfixturevalue(request.param)


def test_serial_and_dask_write_the_same_bytes(tmp_path, cluster):
    serial, dask = make_stage(tmp_path / "serial"), make_stage(tmp_path / "dask")
    assert execute.run(serial, serial.keys) == len(GRID.keys)
    assert execute.run(dask, dask.keys, cluster) == len(GRID.keys)
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
    assert not stage.store.missing(stage.keys)


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
    assert not mended.store.missing(mended.keys)


def test_a_worker_that_dies_once_costs_nothing(tmp_path, cluster):
    stage = make_stage(tmp_path, {"sample=4": ["die", None]})
    assert execute.run(stage, stage.keys, cluster) == len(GRID.keys)
    assert not stage.store.missing(stage.keys)


def test_a_key_that_kills_its_worker_is_named_and_no_neighbour_of_it(tmp_path, threads, monkeypatch):
    monkeypatch.setattr(threads.cluster.scheduler, "allowed_failures", 1)
    stage = make_stage(tmp_path, {"sample=10": ["die"] * 50})
    with pytest.raises(ChunkError, match="test sample=10: its worker died each time it ran"):
        execute.run(stage, stage.keys, threads)
    assert [str(key) for key in stage.store.missing(stage.keys)] == ["sample=10"]
    assert invocations(tmp_path)["sample=10"] == 4, "twice among others, twice alone"


PHASES = ("read", "compute", "write")


def phased_step(store, folder, failing, key):
    """Read, compute and write slowly, and note when; in one phase of one key, fail."""
    times = []
    for phase in PHASES:
        times.append(time.monotonic())
        time.sleep(0.04)
        if failing == (str(key), phase):
            raise ValueError(f"cannot {phase}")
    digest, change = store.write(key, shard(GRID, key))
    times.append(time.monotonic())
    (folder / str(key)).write_text(json.dumps(times))
    parts = np.diff(times).tolist()
    return StepEvent(str(key), digest, *parts, nbytes_in=0, nbytes_out=24, n_samples=2, change=change)


def phased_stage(folder, failing=None):
    notes = folder / "times"
    notes.mkdir(parents=True)
    store = store_at(str(folder / "cube"))
    stage = Stage("test", store, {}, lambda: template(40, GRID), GRID.keys, partial(phased_step, store, notes, failing))
    stage.begin()
    return stage, notes


def test_keys_of_one_worker_overlap(tmp_path, threads):
    """While one is read another is computed and a third is written; never more than there are threads."""
    stage, notes = phased_stage(tmp_path)
    assert execute.run(stage, stage.keys, threads) == len(GRID.keys)
    times = [json.loads(file.read_text()) for file in notes.iterdir()]
    at_a_time = [sum(a <= moment < d for a, _, _, d in times) for moment, *_ in times]
    assert max(at_a_time) == 3
    span = max(d for *_, d in times) - min(a for a, *_ in times)
    assert sum(d - a for a, _, _, d in times) > 1.5 * span
    assert len({event["worker"] for event in stage.store.events()}) == 1


@pytest.mark.parametrize("phase", PHASES)
def test_whatever_phase_fails_what_was_before_is_kept(tmp_path, where, phase):
    stage, _ = phased_stage(tmp_path, ("sample=20", phase))
    with pytest.raises(ChunkError, match=f"test sample=20: ValueError: cannot {phase}"):
        execute.run(stage, stage.keys, where)
    missing = [dict(key.offsets)["sample"] for key in stage.store.missing(stage.keys)]
    assert min(missing) == 20
    journal = [event["key"] for event in stage.store.events()]
    assert len(journal) == len(set(journal)) == len(GRID.keys) - len(missing)
    digests = {event["key"]: event["digest"] for event in stage.store.events()}
    for key in (key for key in stage.keys if str(key) in digests):
        values = stage.store.read("values", GRID.region(key))
        np.testing.assert_array_equal(values, shard(GRID, key)["values"])


def test_only_metadata_travels(tmp_path):
    """What goes to a worker and what comes back is small, whatever the shard: nothing for Dask to hold or spill."""
    stage = make_stage(tmp_path)
    event = stage.step(stage.keys[0])
    assert len(pickle.dumps((stage.step, tuple(stage.keys[:1])))) < 2000
    assert len(pickle.dumps(event)) < 1000


def test_blas_has_one_thread_while_any_key_is_at_work():
    def found():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before, keys = found(), OneThread()
    assert before
    with keys:
        with keys:
            assert set(found()) == {1}
        assert set(found()) == {1}
    assert found() == before


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
    assert 0 < largest <= execute.WINDOW * sum(client.nthreads().values())


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
    assert np.sum([event["n_samples"] for event in stage.store.events()]) == GRID.sizes[0]


# --- Two stages at once ---


def sum_step(source, store, key):
    """Add up what the source has of the samples of a key, and of those before and behind: it must be there."""
    region = GRID.region(key)["sample"]
    values = source.read("values", slice(max(0, region.start - 1), min(40, region.stop + 1)))
    status = np.zeros(region.stop - region.start, np.uint8)
    here = np.full((len(status), 3), values.sum(dtype="f4"), "f4")
    digest, change = store.write(key, {"values": here, "status": status})
    return StepEvent(str(key), digest, 0.0, 0.001, 0.0, nbytes_in=0, nbytes_out=24, n_samples=2, change=change)


def neighbours(key):
    start = dict(key.offsets)["sample"]
    return [ChunkKey((("sample", s),)) for s in (start - 2, start, start + 2) if 0 <= s < 40]


def chained(folder: Path, failures=None) -> Stage:
    source = make_stage(folder / "source", failures)
    store = store_at(str(folder / "sums"))
    step = partial(sum_step, source.store, store)
    stage = Stage("sums", store, {}, lambda: template(40, GRID), GRID.keys, step, source, neighbours)
    stage.begin()
    return stage


def sums(stage: Stage) -> np.ndarray:
    return stage.store.read("values", slice(0, 40))[:, 0]


def test_a_key_runs_after_those_that_it_needs_and_each_once(tmp_path, where):
    stage = chained(tmp_path)
    watch = Watch()
    assert execute.run(stage, stage.keys[4:9], where, watch) == 5
    needed = {str(key) for key in stage.source.keys[3:10]}
    assert {event["key"] for event in stage.source.store.events()} == needed, "and no other"
    done = {event["key"] for event in stage.source.store.events()}
    assert execute.run(stage, stage.keys, where, watch) == len(GRID.keys) - 5
    assert invocations(tmp_path / "source") == {str(key): 1 for key in GRID.keys}
    assert not stage.store.missing(stage.keys)
    assert done < {event["key"] for event in stage.source.store.events()}
    values = np.concatenate([shard(GRID, key)["values"] for key in GRID.keys])
    expected = [values[max(0, s - 1) : s + 3].sum(dtype="f4") for s in range(0, 40, 2)]
    np.testing.assert_allclose(sums(stage)[::2], expected, rtol=1e-5)
    assert len(watch.seen) == 2 * len(GRID.keys)


def test_what_waits_for_a_key_that_fails_does_not_run(tmp_path, where):
    stage = chained(tmp_path, {"sample=20": [ValueError("no")] * 3})
    with pytest.raises(ChunkError, match="test sample=20"):
        execute.run(stage, stage.keys, where)
    left = {str(key) for key in stage.store.missing(stage.keys)}
    assert {"sample=18", "sample=20", "sample=22"} <= left
    mended = chained(tmp_path)
    execute.run(mended, mended.keys, where)
    assert not mended.store.missing(mended.keys)


def test_a_worker_that_dies_holds_nobody_up_for_good(tmp_path, cluster):
    stage = chained(tmp_path, {"sample=20": ["die"]})
    assert execute.run(stage, stage.keys, cluster) == len(GRID.keys)
    assert not stage.source.store.missing(GRID.keys)


@dataclass(frozen=True)
class Imagined:
    """A store of a million shards that has no shards: only keys come and go."""

    lines: list = field(default_factory=list)

    def missing(self, keys):
        return keys.without(self.lines)

    def record(self, events, changes):
        self.lines.extend(event["key"] for event in events)


def test_a_million_keys_cost_little_and_leave_the_driver_small(monkeypatch):
    """The serial loop over a step that does nothing: what is left is bookkeeping."""
    grid = Grid.of_samples(10**6, shard=1, chunk=1)
    event = StepEvent("", "", 0.0, 0.0, 0.0, 0, 0, 1)
    source = Stage("read", Imagined(), {}, lambda: None, grid.keys, lambda key: replace(event, key=str(key)))
    stage = Stage("scatter", Imagined(), {}, lambda: None, grid.keys, source.step, source, lambda key: [key])
    monkeypatch.setattr(execute, "attempt", lambda name, step, key: replace(step(key), stage=name))
    work = execute._Work(stage, stage.store.missing(stage.keys))
    tracemalloc.start()
    begin = time.perf_counter()
    for number, (done,) in enumerate(execute._serial(work)):
        assert done.stage == ("scatter" if number % 2 else "read")
        if number == 40_000:
            break
    seconds = time.perf_counter() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6
    assert seconds / 40_000 < 5e-3, "a loose bound: the figure is in the benchmarks"
