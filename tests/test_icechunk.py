"""The Icechunk back-end: what is its own. What every back-end does is held in test_stores.py."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.stores.protocol import IDENTITY, QUARANTINED, REMOVED, ROWS, SUPERSEDED

icechunk = pytest.importorskip("icechunk", reason="the extra `icechunk` is not installed")
from scattercube.pipeline.stores import repositories  # noqa: E402
from scattercube.pipeline.stores.icechunk_store import IcechunkStore  # noqa: E402

SHARD, CHUNK, WIDTH = 4, 2, 300  # what is small is no file of its own


def numbers(n: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(n, WIDTH)).astype(np.float32)


def template(n: int, **identity: object) -> xr.Dataset:
    values = xr.Variable(("sample", "path"), np.broadcast_to(np.float32(), (n, WIDTH)), {"units": "1"})
    values.encoding = {"chunks": (CHUNK, WIDTH), "shards": (SHARD, WIDTH)}
    status = xr.Variable(("sample",), np.broadcast_to(np.uint8(), (n,)))
    status.encoding = {"chunks": (SHARD,)}
    rows = {"chunks": (2 * SHARD,)}
    coords = {
        "label": (
            "sample",
            np.array([f"näme {'x' * i}" for i in range(n)], dtype=object),
            {"long_name": "class"},
            rows,
        ),
        "energy": ("sample", np.arange(n) / 3, {"units": "eV"}, rows),
        "seen": ("sample", np.arange(n) % 2 == 0, {}, rows),
        "order": ("path", np.arange(WIDTH)),
    }
    held = {"format": 3, "spec": "a", ROWS: {"samples": n}} | identity
    return xr.Dataset({"values": values, "status": status}, coords, {IDENTITY: json.dumps(held), "title": f"{n} rows"})


def grid(n: int, first: int = 0) -> Grid:
    return Grid.of_samples(n, SHARD, CHUNK).behind(first)


def finish(store: IcechunkStore, n: int, first: int = 0, keys: slice = slice(None)) -> None:
    """Write and record some of the keys of a version that is begun."""
    done = [write(store, n, first, key) for key in store.missing(grid(n, first).keys)[keys]]
    store.record([event for event, _ in done], [change for _, change in done])


def write(store, n, first, key, status=0):
    region = grid(n, first).region(key)["sample"]
    codes = np.full(region.stop - region.start, status, np.uint8)
    written = store.write(key, {"values": numbers(n)[region], "status": codes})
    return {"key": str(key), "digest": written.digest, "not_ok": []}, written.change


def publish(store: IcechunkStore, n: int, first: int = 0, marks: dict[int, int] | None = None) -> None:
    store.begin(template(n), first)
    store.mark(marks or {})
    finish(store, n, first)
    store.publish(f"{n} rows")


@pytest.fixture
def store(tmp_path: Path) -> IcechunkStore:
    return IcechunkStore(str(tmp_path / "a" / "cube"))


def seen_by_an_analyst(store: IcechunkStore, **at: str) -> xr.Dataset:
    """What the docstring of the module says, and nothing else."""
    session = icechunk.Repository.open(icechunk.local_filesystem_storage(store.url)).readonly_session(
        **(at or {"branch": "main"})
    )
    return xr.open_zarr(session.store, consolidated=False)


class TestVersions:
    def test_a_reader_without_us_sees_what_is_published_and_nothing_else(self, store: IcechunkStore) -> None:
        assert not store.published
        assert store.attributes() == {}
        assert store.versions() == []
        store.begin(template(6))
        finish(store, 6, keys=slice(0, 1))
        with pytest.raises(StoreError, match="1 of 2 keys are not recorded"):
            store.publish()
        with pytest.raises(FileNotFoundError):
            seen_by_an_analyst(store)
        finish(store, 6)
        store.publish()
        cube = seen_by_an_analyst(store)
        np.testing.assert_array_equal(cube["values"], numbers(6))
        assert cube["label"].values.tolist() == template(6)["label"].values.tolist()
        assert cube["seen"].dtype == bool
        assert cube.attrs["title"] == "6 rows"

    def test_time_travel(self, store: IcechunkStore) -> None:
        sizes, first = (6, 7, 13), 0
        for n in sizes:
            publish(store, n, first, {first - 1: SUPERSEDED} if first else None)
            first = n
        versions = store.versions()
        assert [(v.number, v.n_rows, v.note) for v in versions] == [
            (1, 6, "6 rows"),
            (2, 7, "7 rows"),
            (3, 13, "13 rows"),
        ]
        for number, n in enumerate(sizes, 1):
            marked = [before - 1 for before in sizes[: number - 1]]
            for cube in (
                store.open(str(number)),
                store.open(versions[number - 1].name),
                seen_by_an_analyst(store, tag=f"v{number}"),
            ):
                np.testing.assert_array_equal(cube["values"], numbers(n))
                assert np.flatnonzero(cube["status"] == SUPERSEDED).tolist() == marked
                for name in ("label", "energy", "seen", "order"):
                    assert cube[name].variable.equals(template(n)[name].variable)
                assert cube["label"].attrs == {"long_name": "class"}
                assert cube.attrs["title"] == f"{n} rows"
        assert store.open().sizes["sample"] == 13
        assert list(store.verify()) == []
        with pytest.raises(StoreError, match="has no version 4; it has 1 to 3"):
            store.open("4")

    def test_versions_share_their_shards(self, store: IcechunkStore) -> None:
        publish(store, 40)
        chunks = set((Path(store.url) / "chunks").glob("*"))
        publish(store, 44, 40)
        repository = repositories.opened(store.url)
        assert chunks <= set((Path(store.url) / "chunks").glob("*"))
        assert repository.list_tags() == {"v1", "v2"}
        assert repository.list_branches() == {"main"}

    def test_a_version_of_marks_only(self, store: IcechunkStore) -> None:
        publish(store, 6)
        store.begin(template(6, **{ROWS: {"samples": 6, "archive": "other"}}), 6)
        store.mark({2: REMOVED, 5: REMOVED})
        store.mark({2: REMOVED, 5: REMOVED})
        assert store.read("status", slice(0, 6)).tolist() == [0, 0, REMOVED, 0, 0, REMOVED]
        assert len(store.missing(grid(6, 6).keys)) == 0
        store.publish()
        assert store.open("1")["status"].values.tolist() == [0] * 6
        assert store.open()["status"].values.tolist() == [0, 0, REMOVED, 0, 0, REMOVED]

    @pytest.mark.parametrize("mark_first", [True, False])
    def test_marks_in_a_shard_that_is_extended_stay(self, store: IcechunkStore, mark_first: bool) -> None:
        """The key's shard of the status holds the rows before it as they were when it was written."""
        publish(store, 6)
        store.begin(template(8), 6)
        key = grid(8, 6).keys[0]
        if mark_first:
            event, change = write(store, 8, 6, key, QUARANTINED)
            store.mark({4: REMOVED, 1: REMOVED})
            store.record([event], [change])
        else:
            event, change = write(store, 8, 6, key, QUARANTINED)
            store.record([event], [change])
            store.mark({4: REMOVED, 1: REMOVED})
        expected = [0, REMOVED, 0, 0, REMOVED, 0, QUARANTINED, QUARANTINED]
        assert store.read("status", slice(0, 8)).tolist() == expected
        store.publish()
        assert store.open()["status"].values.tolist() == expected
        assert list(store.verify()) == []

    def test_another_version_that_was_begun_is_given_up(self, store: IcechunkStore) -> None:
        publish(store, 6)
        store.begin(template(9), 6)
        finish(store, 9, 6, slice(0, 1))
        store.begin(template(11), 6)
        assert len(store.missing(grid(11, 6).keys)) == 2
        store.begin(template(6))
        assert store.published
        store.begin(template(11), 6)
        finish(store, 11, 6)
        store.publish()
        np.testing.assert_array_equal(store.open()["values"], numbers(11))
        assert {event["key"] for event in store.events()} == {"sample=0", "sample=4", "sample=6", "sample=8"}

    def test_rows_must_be_those_that_are_published(self, store: IcechunkStore) -> None:
        with pytest.raises(StoreError, match="has 0 published rows, and this run begins behind 6"):
            store.begin(template(9), 6)
        publish(store, 6)
        with pytest.raises(StoreError, match="has 6 published rows, and this run begins behind 0: rows is"):
            store.begin(template(9), 0)
        with pytest.raises(StoreError, match=r"holds another cube: spec is a, this run has b; choose another --store"):
            store.begin(template(9, spec="b"), 6)
        with pytest.raises(
            StoreError, match="is of format 3, of a newer scattercube; this one writes format 2: upgrade"
        ):
            store.begin(template(9, format=2), 6)
        wide = template(9)
        wide["values"].encoding["shards"] = (2 * SHARD, WIDTH)
        with pytest.raises(StoreError, match="values is stored as"):
            store.begin(wide, 6)
        with pytest.raises(StoreError, match="only one of the version before and this run has energy"):
            store.begin(template(9).drop_vars("energy"), 6)
        store.begin(template(9), 6)  # what was refused has left nothing
        finish(store, 9, 6)
        store.publish()
        np.testing.assert_array_equal(store.open()["values"], numbers(9))


class TestWriting:
    def test_forks_are_merged_in_any_order_and_from_any_process(self, store: IcechunkStore) -> None:
        store.begin(template(40))
        keys = store.missing(grid(40).keys)
        there = pickle.loads(pickle.dumps(store))
        done = [pickle.loads(pickle.dumps(write(there, 40, 0, key))) for key in keys]
        np.random.default_rng(1).shuffle(done)
        for part in (done[:3], done[3:]):  # the second were forked from a snapshot before the first
            store.record(*zip(*part, strict=True))
        assert len(there.missing(keys)) == 0
        np.testing.assert_array_equal(there.read("values", slice(0, 40)), numbers(40))

    def test_other_processes_find_what_is_recorded(self, store: IcechunkStore) -> None:
        publish(store, 6)
        there = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(there.read("values", slice(0, 6)), numbers(6))
        store.begin(template(13), 6)
        for name in ("values", "status"):
            with pytest.raises(StoreError, match=rf"{name}: shard \(1,.* is not there"):
                there.read(name, slice(5, 7))
            with pytest.raises(StoreError, match=r"shard \(2,"):
                there.read(name, slice(8, 9))
            assert len(there.read(name, slice(3, 6))) == 3
        assert there.read("label", slice(5, 13)).tolist() == template(13)["label"].values[5:].tolist()
        finish(store, 13, 6, slice(0, 1))
        np.testing.assert_array_equal(there.read("values", slice(3, 8)), numbers(13)[3:8])
        with pytest.raises(StoreError, match=r"shard \(2, 0\) is not there"):
            there.read("values", slice(7, 9))

    def test_what_is_not_one_shard_is_refused(self, store: IcechunkStore) -> None:
        publish(store, 6)
        store.begin(template(13), 6)
        first, second, last = grid(13, 6).keys
        everything = {"values": numbers(13), "status": np.zeros(13, np.uint8)}
        for key, rows in ((second, slice(8, 11)), (second, slice(8, 13)), (last, slice(9, 13))):
            with pytest.raises(StoreError, match="one write is one whole shard"):
                store.write(key, {name: values[rows] for name, values in everything.items()})
        with pytest.raises(StoreError, match=r"got float64\(2, 300\); .* here float32\(2, 300\)"):
            store.write(first, {"values": numbers(13)[6:8].astype(float), "status": np.zeros(2, np.uint8)})
        for start in (0, 4, 7, 9, 16):
            key = Grid.of_samples(20, 1, 1).keys[start]
            with pytest.raises(StoreError, match=f"no shard begins at sample {start}"):
                store.write(key, {name: values[start : start + 4] for name, values in everything.items()})

    def test_without_a_version_begun(self, store: IcechunkStore) -> None:
        key = grid(6).keys[0]
        for attempt in (
            lambda: write(store, 6, 0, key),
            lambda: store.record([{"key": "sample=0"}], [object()]),
            lambda: store.mark({0: REMOVED}),
            lambda: store.settle(6),
        ):
            with pytest.raises(StoreError, match="no version is begun"):
                attempt()
        store.mark({})
        with pytest.raises(StoreError, match="there is no store"):
            store.read("values", slice(0, 1))
        with pytest.raises(StoreError, match="no published store there"):
            store.open()
        publish(store, 6)
        with pytest.raises(StoreError, match="published meanwhile"):
            write(store, 6, 0, key)
        store.publish()  # again: nothing waits
        assert len(store.versions()) == 1

    def test_keys_without_what_they_wrote_are_not_recorded(self, store: IcechunkStore) -> None:
        store.begin(template(6))
        event, _ = write(store, 6, 0, grid(6).keys[0])
        for changes in ([], [None]):
            with pytest.raises(StoreError, match="came without all that they wrote"):
                store.record([event], changes)
        assert len(store.missing(grid(6).keys)) == 2

    def test_fields_settle(self, store: IcechunkStore) -> None:
        first = 0
        for n in (2, 3):
            cut = Grid(("sample", "y"), (n, 5), (1, 4), (1, 2), first)
            values = xr.Variable(("sample", "y"), np.broadcast_to(np.float32(), (n, 5)))
            values.encoding = {"chunks": (1, 2), "shards": (1, 4)}
            status = xr.Variable(("sample",), np.broadcast_to(np.uint8(), (n,)))
            status.encoding = {"chunks": (2,)}
            made = xr.Dataset({"values": values, "status": status}, attrs=template(n).attrs)
            made = made.assign_coords(sample_id=("sample", np.array([f"{i}" for i in range(n)], object)))
            store.begin(made, first)
            done = []
            for key in store.missing(cut.keys):
                region = cut.region(key)
                piece = np.full([s.stop - s.start for s in region.values()], region["sample"].start, np.float32)
                digest, change = store.write(key, {"values": piece})
                code = QUARANTINED if region["y"].start else 3
                not_ok = [(region["sample"].start, code)] if region["sample"].start != 1 else []
                done.append(({"key": str(key), "digest": digest, "not_ok": not_ok}, change))
            store.record(*zip(*done, strict=True))
            with pytest.raises(StoreError, match="status: shard"):
                store.read("status", slice(first, n))
            with pytest.raises(StoreError, match="not settled"):
                store.publish()
            store.settle(n)
            store.settle(n)
            store.publish()
            assert store.open()["status"].values.tolist() == [QUARANTINED, 0, QUARANTINED][:n]
            np.testing.assert_array_equal(store.open()["values"], np.repeat(np.arange(n)[:, None], 5, 1))
            first = n
        assert list(store.verify()) == []

    def test_two_drivers(self, store: IcechunkStore) -> None:
        """What one commits while the other has a transaction open is never lost; the other is told."""
        store.begin(template(6))
        other = pickle.loads(pickle.dumps(store))
        keys = grid(6).keys
        event, change = write(store, 6, 0, keys[0])

        session = store._history.writing()
        session.merge(change)
        finish(other, 6, keys=slice(1, 2))
        with (
            pytest.raises(StoreError, match="another process has committed to it meanwhile; stop the other run"),
            repositories.explained(store.url, "record"),
        ):
            session.commit("record")
        store.record([event], [change])
        assert len(store.missing(keys)) == 0

    def test_threads_record_at_once(self, store: IcechunkStore) -> None:
        store.begin(template(64))
        keys = list(store.missing(grid(64).keys))

        def run(part):
            there = pickle.loads(pickle.dumps(store))
            for key in part:
                there.record(*zip(write(there, 64, 0, key), strict=True))

        threads = [threading.Thread(target=run, args=(keys[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.missing(grid(64).keys)) == 0
        np.testing.assert_array_equal(store.read("values", slice(0, 64)), numbers(64))


class TestResume:
    @given(data=st.data())
    @settings(max_examples=8, deadline=None)
    def test_killed_anywhere(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        """Each call of the library that changes the repository may be the last one of a process."""
        store = IcechunkStore(str(tmp_path_factory.mktemp("killed") / "cube"))
        first, versions = 0, []
        for n in data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=3, unique=True).map(sorted)):
            marks = {first - 1: SUPERSEDED, 0: REMOVED} if first else {}
            for lifetime in [
                *data.draw(st.lists(st.integers(0, 14), max_size=3), label=f"calls of each run, {n}"),
                1000,
            ]:
                with pytest.MonkeyPatch.context() as patch:
                    killed = kill(patch, lifetime)
                    try:
                        store.begin(template(n), first)
                        if not store.published:
                            store.mark(marks)
                            for key in store.missing(grid(n, first).keys):
                                event, change = write(store, n, first, key)
                                store.record([event], [change])
                            store.publish(f"{n}")
                    except Killed:
                        pass
                store = pickle.loads(pickle.dumps(store))
                seen = [v.n_rows for v in store.versions()]
                assert seen in (versions, [*versions, n])
                if seen:
                    np.testing.assert_array_equal(store.open()["values"], numbers(seen[-1]))
                if not killed:
                    break
            versions.append(n)
            assert store.published
            assert [v.n_rows for v in store.versions()] == versions
            assert store.open()["status"].values.tolist().count(0) == n - len(
                {row for before in versions[:-1] for row in (before - 1, 0)}
            )
            first = n
        assert list(store.verify()) == []
        list(store.sweep())
        for version in store.versions():
            np.testing.assert_array_equal(store.open(version.name)["values"], numbers(version.n_rows))
        undisturbed = IcechunkStore(store.url + " again")
        first = 0
        for n in versions:
            publish(undisturbed, n, first, {first - 1: SUPERSEDED, 0: REMOVED} if first else {})
            first = n
        assert undisturbed.content_digest() == store.content_digest()

    def test_kill_9(self, store: IcechunkStore) -> None:
        code = (
            "import sys; from tests.test_icechunk import *\nstore = IcechunkStore(sys.argv[1])\n"
            "store.begin(template(200))\n"
            "print('begun', flush=True)\n"
            "for key in store.missing(grid(200).keys): store.record(*zip(write(store, 200, 0, key), strict=True))"
        )
        done = 0
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", code, store.url], stdout=subprocess.PIPE) as run:
                run.stdout.readline()
                time.sleep(0.15)
                run.send_signal(signal.SIGKILL)
            left = store.missing(grid(200).keys)
            assert done <= 50 - len(left)
            done = 50 - len(left)
            for key in grid(200).keys:
                region = grid(200).region(key)["sample"]
                if key not in set(left):
                    np.testing.assert_array_equal(store.read("values", region), numbers(200)[region])
        assert done
        finish(store, 200)
        store.publish()
        assert list(store.verify()) == []
        np.testing.assert_array_equal(store.open()["values"], numbers(200))

    def test_making_the_repository_was_cut_off(self, store: IcechunkStore) -> None:
        store.begin(template(6))
        for name in ("refs", "chunks", "manifests", "transactions"):
            subprocess.run(["rm", "-r", "-f", f"{store.url}/{name}"], check=True)
        (Path(store.url) / "config.yaml").unlink()
        for file in (Path(store.url) / "snapshots").iterdir():
            if file.name not in repositories.FIRST_SNAPSHOT:
                file.unlink()
        again = IcechunkStore(store.url)
        assert again.attributes() == {}
        publish(again, 6)
        np.testing.assert_array_equal(again.open()["values"], numbers(6))


class Killed(BaseException):
    pass


def kill(patch: pytest.MonkeyPatch, calls: int) -> list[str]:
    """Let the library's calls that change a repository fail, all but the first so many, before or after they did it."""
    left, killed = [calls], []

    def dying(name, call):
        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] == -1:
                killed.append(name)
            if left[0] < 0 and calls % 2:
                raise Killed(name)
            result = call(*args, **kwargs)
            if left[0] < 0:
                raise Killed(name)
            return result

        return wrapped

    changes = {icechunk.Repository: ("reset_branch", "create_branch", "delete_branch", "create_tag", "save_config")}
    for kind, names in (changes | {icechunk.Session: ("commit",)}).items():
        for name in names:
            patch.setattr(kind, name, dying(name, getattr(kind, name)))
    return killed


class TestTrouble:
    def test_damage_is_found(self, store: IcechunkStore) -> None:
        values = np.random.default_rng(2).normal(size=(8, 500)).astype(np.float32)
        made = template(8).drop_vars(["values", "order"])
        wide = xr.Variable(("sample", "path"), np.broadcast_to(np.float32(), values.shape))
        wide.encoding = {"chunks": (CHUNK, 500), "shards": (SHARD, 500)}
        store.begin(made.assign(values=wide))
        for key in grid(8).keys:
            region = grid(8).region(key)["sample"]
            digest, change = store.write(key, {"values": values[region], "status": np.zeros(4, np.uint8)})
            store.record([{"key": str(key), "digest": digest}], [change])
        store.publish()
        assert list(store.verify()) == []
        large = max((Path(store.url) / "chunks").iterdir(), key=lambda file: file.stat().st_size)
        content = large.read_bytes()
        large.write_bytes(content[:300] + bytes(byte ^ 255 for byte in content[300:304]) + content[304:])
        again = IcechunkStore(store.url)
        (sentence,) = again.verify()
        assert "sample=" in sentence
        large.write_bytes(content[:-8] + b"\0" * 8)  # in the index, which has a checksum
        with pytest.raises(StoreError, match=r"checksum do not match.*the store is damaged: choose another --store"):
            again.read("values", slice(0, 8))
        large.unlink()
        with pytest.raises(StoreError, match=r"cannot read values sample 0:8: .*the store is damaged"):
            again.read("values", slice(0, 8))
        assert len(list(again.verify())) == 1

    def test_a_folder_of_somebody_else(self, store: IcechunkStore) -> None:
        Path(store.url).mkdir(parents=True)
        (Path(store.url) / "mine").write_text("x")
        with pytest.raises(StoreError, match="something is there that no run has made: choose another --store"):
            store.begin(template(6))
        assert (Path(store.url) / "mine").read_text() == "x"

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for path in ("file", "file/cube"):
            with pytest.raises(StoreError, match="a file stands where a folder is needed: choose another --store"):
                IcechunkStore(str(tmp_path / path)).begin(template(6))

    def test_a_full_disk(self, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", small], capture_output=True).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        try:
            store = IcechunkStore(str(small / "cube"))
            store.begin(template(6))
            with pytest.raises(OSError, match="No space"):
                (small / "ballast").write_bytes(b"x" * 200_000)
            with pytest.raises(
                StoreError, match=r"the disk is full.*free some space and run the same command"
            ) as failure:
                finish(store, 6)
            assert failure.value.errno == 28
            (small / "ballast").unlink()
            finish(store, 6)
            store.publish()
            np.testing.assert_array_equal(store.open()["values"], numbers(6))
        finally:
            subprocess.run(["umount", "-l", small], check=True)

    def test_sweeping_removes_what_was_written_in_vain_only(self, store: IcechunkStore, monkeypatch) -> None:
        monkeypatch.setattr("scattercube.pipeline.stores.icechunk_store.SWEEP_MARGIN", timedelta(0))
        assert list(store.sweep()) == []
        publish(store, 6)
        store.begin(template(13), 6)
        event, change = write(store, 13, 6, grid(13, 6).keys[1])
        in_flight = len(list((Path(store.url) / "chunks").iterdir()))
        assert not any("chunks" in line for line in store.sweep())
        store.record([event], [change])
        for _ in range(3):
            write(store, 13, 6, grid(13, 6).keys[0])
        assert len(list((Path(store.url) / "chunks").iterdir())) > in_flight
        time.sleep(0.01)
        swept = list(IcechunkStore(store.url).sweep())
        assert any("chunks" in line for line in swept), swept
        assert len(list((Path(store.url) / "chunks").iterdir())) == in_flight
        finish(store, 13, 6)
        store.publish()
        assert list(store.verify()) == []
        assert [store.open(str(number)).sizes["sample"] for number in (1, 2)] == [6, 13]

    def test_without_the_extra(self, store: IcechunkStore) -> None:
        code = (
            "import sys; sys.modules['icechunk'] = None; from scattercube.pipeline.stores.icechunk_store import *\n"
            "try: IcechunkStore(sys.argv[1]).published\nexcept Exception as failure: print(type(failure), failure)"
        )
        done = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
        assert "Icechunk is not installed: pip install 'scattercube[icechunk]'" in done.stdout
        assert "StoreError" in done.stdout

    def test_nothing_is_said_on_the_standard_output(self, store: IcechunkStore) -> None:
        code = "import sys; from tests.test_icechunk import *; publish(IcechunkStore(sys.argv[1]), 6)"
        done = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")

    def test_columns_that_cannot_be_appended(self, store: IcechunkStore) -> None:
        """Xarray stores new times in the units of the old ones: a second has no place among days."""
        times = np.array(["2026-01-01", "2026-01-02", "2026-01-02T00:00:01"], "M8[us]")
        for n, first in ((2, 0), (3, 2)):
            made = template(n).assign_coords(time=("sample", times[:n]))
            if first:
                with pytest.raises(StoreError, match="cannot hold the values of the new rows"):
                    store.begin(made, first)
            else:
                store.begin(made, first)
                finish(store, n)
                store.publish()
        assert store.published


@pytest.fixture
def place(bucket: str) -> str:
    return f"{bucket}/cube"


class TestObjectStore:
    def test_versions(self, place: str) -> None:
        store = IcechunkStore(place)
        assert not store.published
        publish(store, 6)
        publish(pickle.loads(pickle.dumps(store)), 13, 6, {5: REMOVED})
        again = IcechunkStore(place)
        for version, n in zip(again.versions(), (6, 13), strict=True):
            np.testing.assert_array_equal(again.open(version.name)["values"], numbers(n))
        assert again.open()["status"].values.tolist() == [0] * 5 + [REMOVED] + [0] * 7
        assert list(again.verify()) == []

    def test_something_else_there(self, place: str) -> None:
        url = os.environ["AWS_ENDPOINT_URL"]
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket/below/cube/a", b"x", method="PUT")).close()
        with pytest.raises(StoreError, match=f"{place}: cannot create: .*something is there that no run has made"):
            IcechunkStore(place).begin(template(6))

    def test_no_bucket_and_no_credentials(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(StoreError, match=r"s3://nowhere/cube: .*correct the address"):
            IcechunkStore("s3://nowhere/cube").begin(template(6))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StoreError, match="no credentials in the environment: set AWS_ACCESS_KEY_ID"):
            IcechunkStore(place).begin(template(6))

    def test_other_object_stores(self) -> None:
        with pytest.raises(StoreError, match="gs://bucket/cube: Icechunk stores are folders or s3:// so far"):
            IcechunkStore("gs://bucket/cube").begin(template(6))
