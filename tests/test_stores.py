"""What every store does, whichever back-end keeps it and wherever: nothing is seen early, lost, or read wrong."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey, Grid
from scattercube.pipeline.stores.opening import Backend, open_cube, store_at
from scattercube.pipeline.stores.protocol import (
    IDENTITY,
    OK,
    PARTIAL,
    QUARANTINED,
    REMOVED,
    ROWS,
    SUPERSEDED,
    Store,
)

BACKENDS: tuple[Backend, ...] = ("zarr", "icechunk")
GRID = Grid.of_samples(10, shard=4, chunk=2)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "icechunk":
        pytest.importorskip("icechunk", reason="Icechunk is an extra")
    return request.param


@pytest.fixture(params=["folder", "s3"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store can be: an address below which there is nothing."""
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


@pytest.fixture
def make(backend: Backend, ground: str) -> Callable[..., Store]:
    """Open the store of a name, as another process would."""

    def open_store(name: str = "cube") -> Store:
        return pickle.loads(pickle.dumps(store_at(f"{ground}/{name}", backend)))

    return open_store


def labels(n: int, seeds: Sequence[int] = ()) -> list[str]:
    """The names of samples; of rows that have a seed of their own, another."""
    return [f"näme {i}" + (f" of {seeds[i]}" if i < len(seeds) and seeds[i] else "") for i in range(n)]


def template(
    n: int = 10, grid: Grid = GRID, rows: Any = None, seeds: Sequence[int] = (), **identity: Any
) -> xr.Dataset:
    """Describe a store of samples, of all of a version's rows."""
    (shard, *beside), (chunk, *within) = grid.shard, grid.chunk
    dims = ("sample", *grid.dims[1:], "path")
    shape = (n, *grid.sizes[1:], 3)
    values = xr.Variable(dims, np.broadcast_to(np.float32(), shape), {"units": "1"})
    values.encoding = {"chunks": (chunk, *within, 3), "shards": (shard, *beside, 3)}
    status = xr.Variable(("sample",), np.broadcast_to(np.uint8(), (n,)))
    status.encoding = {"chunks": (shard if len(grid.dims) == 1 else n,)}
    names = np.array(labels(n, seeds), dtype=object)
    column = {"chunks": (min(n, 8),)}
    coords = {
        "label": ("sample", names, {}, column),
        "x": ("sample", np.where(np.arange(n) % 3, np.arange(n) / 7, np.nan), {"units": "m"}, column),
        "order": ("path", np.arange(3, dtype="i1"), {"units": "1"}),
    }
    identity = {"format": 1, "spec": "a", **identity, ROWS: n if rows is None else rows}
    return xr.Dataset(
        {"values": values, "status": status},
        coords,
        {IDENTITY: json.dumps(identity), "title": f"a test of {n}", "n": np.int64(n)},
    )


def numbers(rows: slice, seed: int = 0) -> np.ndarray:
    """The values of some rows: (row, 3)."""
    found = [np.random.default_rng([seed, row]).normal(size=3) for row in range(rows.start, rows.stop)]
    return np.array(found, "f4").reshape(-1, 3)


def codes(rows: slice) -> np.ndarray:
    return np.array([(OK, OK, QUARANTINED, OK, PARTIAL)[row % 5] for row in range(rows.start, rows.stop)], np.uint8)


def shard(grid: Grid, key: ChunkKey, seed: int = 0) -> dict[str, np.ndarray]:
    rows = grid.region(key)["sample"]
    return {"values": numbers(rows, seed), "status": codes(rows)}


def write(store: Store, grid: Grid, keys: Any = None, seed: int = 0) -> None:
    """Write and record keys, each in a store as it comes out of a pickle."""
    done = [
        (key, pickle.loads(pickle.dumps(store)).write(key, shard(grid, key, seed)))
        for key in (grid.keys if keys is None else keys)
    ]
    events = [{"key": str(key), "digest": written.digest, "not_ok": []} for key, written in done]
    store.record(events, [written.change for _, written in done])


def grow(store: Store, first: int, n: int, seed: int = 0, note: str = "", rows: Any = None) -> Grid:
    """Add a version of ``n`` rows to the first so many."""
    grid = Grid.of_samples(n, shard=4, chunk=2).behind(first)
    store.begin(template(n, rows=rows), first)
    write(store, grid, store.missing(grid.keys), seed)
    store.publish(note)
    return grid


def check(cube: xr.Dataset, n: int, status: np.ndarray | None = None, seed: int = 0) -> None:
    """Compare a Dataset with what was written."""
    np.testing.assert_array_equal(cube["values"].values, numbers(slice(0, n), seed))
    np.testing.assert_array_equal(cube["status"].values, codes(slice(0, n)) if status is None else status)
    assert cube["label"].values.tolist() == labels(n)
    np.testing.assert_array_equal(cube["x"].values, template(n)["x"].values)
    assert cube["order"].values.tolist() == [0, 1, 2]


class TestOneVersion:
    def test_no_reader_sees_it_before_it_is_published(self, make):
        store = make()
        assert not store.published
        assert store.attributes() == {}
        assert store.versions() == []
        store.begin(template())
        write(store, GRID)
        assert not make().published
        with pytest.raises(StoreError, match="no published store"):
            open_cube(store.url)
        with pytest.raises(StoreError, match="no published store"):
            store.open()
        np.testing.assert_array_equal(make().read("values", slice(0, 10)), numbers(slice(0, 10)))
        store.publish("ten samples")
        assert make().published
        check(open_cube(store.url), 10)
        check(make().open(), 10)
        (version,) = make().versions()
        assert (version.number, version.n_rows, version.note) == (1, 10, "ten samples")
        assert version.created.endswith("+00:00")
        assert make().attributes()["title"] == "a test of 10"
        assert open_cube(store.url)["values"].attrs["units"] == "1"
        store.publish("again")
        assert len(make().versions()) == 1

    def test_opens_with_plain_xarray(self, tmp_path):
        store = store_at(str(tmp_path / "cube"))
        store.begin(template())
        write(store, GRID)
        store.publish()
        code = (
            "import sys, xarray; c = xarray.open_zarr(sys.argv[1]); assert dict(c.sizes) == {'sample': 10, 'path': 3};"
            "assert {'order', 'label'} < set(c.coords); assert not [m for m in sys.modules if 'scattercube' in m];"
            "assert float(abs(c['values']).sum()) > 0"
        )
        subprocess.run([sys.executable, "-W", "error", "-I", "-c", code, store.url], check=True)

    def test_missing_is_what_is_not_recorded(self, make):
        store = make()
        assert store.missing(GRID.keys) == GRID.keys
        store.begin(template())
        assert store.missing(GRID.keys) == GRID.keys
        first, *rest = GRID.keys
        store.write(first, shard(GRID, first))
        assert make().missing(GRID.keys) == GRID.keys, "written is not yet recorded"
        write(store, GRID, [first])
        assert list(make().missing(GRID.keys)) == rest
        write(store, GRID, [first], seed=0)
        (event,) = make().events()
        assert event["key"] == str(first)
        assert event["version"] == 1

    def test_a_repeated_write_gives_the_same(self, make):
        store = make()
        store.begin(template())
        key = GRID.keys[1]
        one, other = (make().write(key, shard(GRID, key)).digest for _ in range(2))
        assert one == other
        assert one != make().write(key, shard(GRID, key, seed=1)).digest

    def test_the_same_identity_resumes_and_another_is_refused_with_the_difference(self, make):
        store = make()
        store.begin(template())
        write(store, GRID, GRID.keys[:2])
        other = make()
        other.begin(template())
        assert list(other.missing(GRID.keys)) == list(GRID.keys[2:])
        with pytest.raises(StoreError, match="spec is a, this run has b"):
            make().begin(template(spec="b"))
        write(other, GRID, other.missing(GRID.keys))
        other.publish()
        make().begin(template())
        assert make().published
        with pytest.raises(StoreError, match="spec is a, this run has b"):
            make().begin(template(spec="b"))
        with pytest.raises(StoreError, match="rows is 10, this run has 11"):
            make().begin(template(11))
        check(make().open(), 10)

    def test_other_rows_that_were_only_begun_are_given_up(self, make):
        store = make()
        store.begin(template(rows="before"))
        write(store, GRID, seed=1)
        other = make()
        other.begin(template(7, rows="after"))
        grid = Grid.of_samples(7, shard=4, chunk=2)
        assert other.missing(grid.keys) == grid.keys
        with pytest.raises(StoreError):
            other.read("values", slice(0, 4))
        write(other, grid)
        other.publish()
        check(make().open(), 7)

    def test_a_newer_format_is_refused(self, make):
        store = make()
        store.begin(template(format=7))
        write(store, GRID)
        store.publish()
        with pytest.raises(StoreError, match="format 7, of a newer scattercube"):
            make().begin(template())

    def test_a_write_that_is_not_one_whole_shard_is_refused(self, make):
        store = make()
        store.begin(template())
        for start, rows, dtype in [(0, 3, "f4"), (2, 4, "f4"), (8, 4, "f4"), (4, 4, "f8"), (0, 8, "f4"), (12, 0, "f4")]:
            arrays = {"values": np.zeros((rows, 3), dtype), "status": np.zeros(rows, "u1")}
            with pytest.raises(StoreError, match="one write is one whole shard"):
                store.write(ChunkKey((("sample", start),)), arrays)
        with pytest.raises(StoreError):
            make().read("values", slice(0, 4))

    def test_what_is_absent_is_never_read_as_fill_values(self, make):
        store = make()
        store.begin(template())
        write(store, GRID, GRID.keys[1:])
        assert make().read("values", slice(4, 8)).shape == (4, 3)
        for name in ("values", "status"):
            with pytest.raises(StoreError):
                make().read(name, slice(2, 5))
        with pytest.raises(StoreError):
            make().read("nonsense", slice(2, 5))

    def test_columns_are_read(self, make):
        store = make()
        store.begin(template())
        found = make().read("label", slice(3, 6))
        assert found.tolist() == ["näme 3", "näme 4", "näme 5"]
        assert found.dtype == object

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(n=st.integers(1, 40), chunk=st.integers(1, 7), per_shard=st.integers(1, 4))
    def test_every_grid_writes_and_reads_back(self, tmp_path_factory, n, chunk, per_shard):
        grid = Grid.of_samples(n, shard=chunk * per_shard, chunk=chunk)
        store = store_at(str(tmp_path_factory.mktemp("grid") / "cube"))
        store.begin(template(n, grid))
        write(store, grid)
        store.publish()
        check(xr.open_zarr(store.url), n)
        assert list(store.verify()) == []


class TestGrowth:
    # Behind whole shards and chunks, and inside; into the same shard, up to its end, and far beyond.
    @pytest.mark.parametrize(("first", "n"), [(8, 13), (9, 11), (11, 25), (1, 2)])
    def test_rows_are_added_behind(self, make, first, n):
        store = make()
        grow(store, 0, first, note="one")
        reader = make().open()
        grow(make(), first, n, note="two")
        check(reader, first)
        check(make().open(), n)
        check(make().open("1"), first)
        assert [(v.number, v.n_rows, v.note) for v in make().versions()] == [(1, first, "one"), (2, n, "two")]
        assert make().attributes()["title"] == f"a test of {n}"
        assert make().attributes()["n"] == n
        assert list(make().verify()) == []
        with pytest.raises(StoreError, match="no version 3"):
            make().open("3")

    def test_a_version_begun_shows_nothing(self, make):
        store = make()
        grow(store, 0, 10)
        grid = Grid.of_samples(14, shard=4, chunk=2).behind(10)
        store.begin(template(14), 10)
        assert not make().published
        assert list(make().missing(grid.keys)) == list(grid.keys)
        assert [str(key) for key in grid.keys] == ["sample=10", "sample=12"]
        check(make().open(), 10)
        assert make().read("label", slice(8, 14)).tolist()[-1] == "näme 13"
        np.testing.assert_array_equal(make().read("values", slice(0, 10)), numbers(slice(0, 10)))
        for name, rows in product_of(("values", "status"), (slice(9, 11), slice(10, 12), slice(12, 14))):
            with pytest.raises(StoreError):
                make().read(name, rows)
        write(store, grid, grid.keys[:1])
        np.testing.assert_array_equal(make().read("values", slice(0, 12)), numbers(slice(0, 12)))
        np.testing.assert_array_equal(make().read("status", slice(0, 12)), codes(slice(0, 12)))
        check(make().open(), 10)
        resumed = make()
        resumed.begin(template(14), 10)
        assert [str(key) for key in resumed.missing(grid.keys)] == ["sample=12"]
        write(resumed, grid, resumed.missing(grid.keys))
        check(make().open(), 10)
        resumed.publish()
        check(make().open(), 14)

    def test_a_version_that_was_begun_of_other_rows_is_given_up(self, make):
        store = make()
        grow(store, 0, 10)
        store.begin(template(20, rows="before"), 10)
        grid = Grid.of_samples(20, shard=4, chunk=2).behind(10)
        write(store, grid, seed=5)
        other = make()
        other.begin(template(13, rows="after"), 10)
        small = Grid.of_samples(13, shard=4, chunk=2).behind(10)
        assert other.missing(small.keys) == small.keys
        for name, rows in product_of(("values", "status"), (slice(10, 12), slice(12, 13))):
            with pytest.raises(StoreError):
                make().read(name, rows)
        with pytest.raises(StoreError, match="begun"):
            store.write(grid.keys[0], shard(grid, grid.keys[0], seed=5))
        check(make().open(), 10)
        write(other, small)
        other.publish()
        check(make().open(), 13)
        grow(make(), 13, 21)
        check(make().open(), 21)
        check(make().open("2"), 13)
        assert list(make().verify()) == []

    def test_what_is_begun_is_let_go_where_nothing_is_new_after_all(self, make):
        store = make()
        grow(store, 0, 10)
        store.begin(template(12), 10)
        make().begin(template(10), 10)
        assert make().published
        check(make().open(), 10)

    def test_published_rows_cannot_be_written(self, make):
        store = make()
        grow(store, 0, 10)
        key = GRID.keys[1]
        with pytest.raises(StoreError):
            make().write(key, shard(GRID, key, seed=1))
        store.begin(template(14), 10)
        with pytest.raises(StoreError, match="whole shard"):
            store.write(key, shard(GRID, key, seed=1))
        check(make().open(), 10)

    def test_other_arrays_and_other_published_rows_are_refused(self, make):
        store = make()
        grow(store, 0, 10)
        with pytest.raises(StoreError, match="published"):
            make().begin(template(14), 9)
        coarse = template(14, Grid.of_samples(14, shard=8, chunk=2))
        with pytest.raises(StoreError, match="values is"):
            make().begin(coarse, 10)
        other = template(14)
        other = other.assign_coords(label=("sample", np.array(["x"] * 14, object), {}, other["label"].encoding))
        with pytest.raises(StoreError, match="label of samples that are published"):
            make().begin(other, 10)
        check(make().open(), 10)
        grow(make(), 10, 14)
        check(make().open(), 14)

    def test_the_digest_is_that_of_the_numbers(self, make):
        one, other, third = make("one"), make("other"), make("third")
        for store, seed in ((one, 0), (other, 0), (third, 1)):
            grow(store, 0, 10, seed)
        assert one.content_digest() == other.content_digest() != third.content_digest()
        before = one.content_digest()
        grow(one, 10, 13)
        grow(other, 10, 13)
        assert one.content_digest() == other.content_digest() != before


def product_of(*choices):
    from itertools import product

    return list(product(*choices))


class TestMarks:
    def test_the_status_of_published_rows_changes_with_a_version(self, make):
        store = make()
        grow(store, 0, 10)
        reader = make().open()
        grid = Grid.of_samples(13, shard=4, chunk=2).behind(10)
        store.begin(template(13), 10)
        store.mark({1: SUPERSEDED, 2: REMOVED, 9: REMOVED})
        store.mark({1: SUPERSEDED})
        check(make().open(), 10)
        write(store, grid)
        make().mark({3: SUPERSEDED})
        store.publish()
        now = codes(slice(0, 13))
        now[[1, 3]], now[[2, 9]] = SUPERSEDED, REMOVED
        check(make().open(), 13, now)
        np.testing.assert_array_equal(make().read("status", slice(0, 13)), now)
        check(reader, 10)
        check(make().open("1"), 10)
        assert list(make().verify()) == []

    def test_marks_alone_make_a_version(self, make):
        store = make()
        grow(store, 0, 10)
        before = make().content_digest()
        for rows in ({4: REMOVED}, {4: REMOVED, 0: SUPERSEDED}):
            store = make()
            store.begin(template(10, rows=str(rows)), 10)
            store.mark(rows)
            store.publish()
        now = codes(slice(0, 10))
        now[4] = REMOVED
        check(make().open("2"), 10, now)
        now[0] = SUPERSEDED
        check(make().open(), 10, now)
        check(make().open("1"), 10)
        assert make().content_digest() != before
        assert list(make().verify()) == []

    def test_only_published_rows_can_be_marked(self, make):
        store = make()
        grow(store, 0, 10)
        store.begin(template(13), 10)
        with pytest.raises(StoreError):
            store.mark({11: REMOVED})


class TestFields:
    """Samples that are cut along other dims too: several keys make one, and its status is settled at the end."""

    GRID = Grid(("sample", "y", "x"), (2, 9, 7), (1, 4, 4), (1, 2, 4))

    def values(self, rows):
        rng = np.random.default_rng(3)
        return rng.normal(size=(4, 9, 7, 3)).astype("f4")[rows]

    def fill(self, store, grid, keys=None):
        for key in grid.keys if keys is None else keys:
            region = grid.region(key)
            values = self.values(slice(None))[region["sample"], region["y"], region["x"]]
            written = pickle.loads(pickle.dumps(store)).write(key, {"values": values})
            (_, sample), (_, y), (_, x) = key.offsets
            not_ok = [(sample, QUARANTINED if y else PARTIAL)] if x and sample % 2 else []
            store.record([{"key": str(key), "digest": written.digest, "not_ok": not_ok}], [written.change])

    def test_they_are_written_tile_by_tile_and_grow(self, make):
        store = make()
        store.begin(template(2, self.GRID))
        self.fill(store, self.GRID)
        window = {"sample": slice(1, 2), "y": slice(3, 6), "x": slice(2, 5)}
        np.testing.assert_array_equal(make().read("values", window), self.values(slice(1, 2))[:, 3:6, 2:5])
        store.settle(2)
        store.publish()
        reader = make().open()
        np.testing.assert_array_equal(make().open()["values"], self.values(slice(0, 2)))
        assert make().open()["status"].values.tolist() == [OK, QUARANTINED]
        grid = Grid(("sample", "y", "x"), (4, 9, 7), (1, 4, 4), (1, 2, 4)).behind(2)
        store = make()
        store.begin(template(4, self.GRID), 2)
        store.mark({0: REMOVED})
        self.fill(store, grid)
        with pytest.raises(StoreError):
            make().read("status", slice(1, 3))
        store.settle(4)
        store.settle(4)
        store.publish()
        np.testing.assert_array_equal(reader["values"], self.values(slice(0, 2)))
        assert reader["status"].values.tolist() == [OK, QUARANTINED]
        cube = make().open()
        np.testing.assert_array_equal(cube["values"], self.values(slice(0, 4)))
        assert cube["status"].values.tolist() == [REMOVED, QUARANTINED, OK, QUARANTINED]
        assert list(make().verify()) == []

    def test_any_window_is_read(self, make):
        """Much of a shard and little of it, of one and of several, at the border: all of them the same numbers."""
        store = make()
        store.begin(template(2, self.GRID))
        self.fill(store, self.GRID)
        store.settle(2)
        store.publish()
        rng, store = np.random.default_rng(0), make()
        for _ in range(40):
            starts = [int(rng.integers(n)) for n in (2, 9, 7)]
            window = [slice(a, int(rng.integers(a, n + 1))) for a, n in zip(starts, (2, 9, 7), strict=True)]
            found = store.read("values", dict(zip(("sample", "y", "x"), window, strict=True)))
            np.testing.assert_array_equal(found, self.values(slice(None))[tuple(window)])


class TestModel:
    """Whatever is done in whatever order, and killed wherever: what is published is what the model has."""

    STEPS = st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 7)),
        st.tuples(st.just("key"), st.integers(0, 9)),
        st.tuples(st.just("lost"), st.integers(0, 9)),
        st.tuples(st.just("mark"), st.integers(0, 40)),
        st.tuples(st.just("kill"), st.booleans()),
        st.tuples(st.just("publish"), st.none()),
    )

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(steps=st.lists(STEPS, min_size=5, max_size=30))
    def test_a_folder(self, tmp_path_factory, steps):
        run_model(store_at(str(tmp_path_factory.mktemp("model") / "cube")), steps)

    @settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(steps=st.lists(STEPS, min_size=10, max_size=20))
    def test_every_back_end_and_ground(self, make, steps):
        run_model(make(f"model {np.random.default_rng().integers(1 << 40)}"), steps)


def run_model(store: Store, steps: Any) -> None:
    seeds: list[int] = []  # of each row that is published
    status = np.zeros(0, np.uint8)
    begun: tuple[list[int], dict[int, int]] | None = None  # the rows and marks of the version begun
    readers: list[tuple[bytes, list[int], np.ndarray, int]] = []  # pickled, or they would remember what they read
    n_begun = n_marked = 0
    for step, choice in steps:
        if step == "begin":
            n_begun += 1
            new = [*seeds, *[n_begun] * choice] if seeds or choice else [n_begun]
            begun = (new, {})
            store.begin(template(len(new), seeds=new, rows=f"{n_begun}"), len(seeds))
        elif step in ("key", "lost") and begun is not None:
            grid = Grid.of_samples(len(begun[0]), shard=4, chunk=2).behind(len(seeds))
            left = store.missing(grid.keys)
            if len(left):
                key = left[choice % len(left)]
                if step == "key":
                    write(store, grid, [key], seed=begun[0][-1])
                else:  # a worker that died before it said that it was done; numbers that are never seen
                    pickle.loads(pickle.dumps(store)).write(key, shard(grid, key, seed=99))
        elif step == "mark" and begun is not None and seeds:
            begun[1][choice % len(seeds)] = (SUPERSEDED, REMOVED)[choice % 2]
            store.mark(begun[1])
        elif step == "kill":
            torn = Path(f"{store.url}.run") / f"journal-{len(store.versions()) + 1}.jsonl"
            if choice and torn.exists():
                with torn.open("ab") as file:
                    file.write(b'{"key":"sample=4","dig')
            store = store_at(store.url, "zarr" if type(store).__name__ == "PlainStore" else "icechunk")
            if begun is not None:
                store.begin(template(len(begun[0]), seeds=begun[0], rows=f"{n_begun}"), len(seeds))
        elif step == "publish" and begun is not None:
            grid = Grid.of_samples(len(begun[0]), shard=4, chunk=2).behind(len(seeds))
            if len(left := store.missing(grid.keys)):
                write(store, grid, left, seed=begun[0][-1])
            store.publish(f"{n_begun}")
            status = np.concatenate([status, codes(slice(len(seeds), len(begun[0])))])
            status[list(begun[1])] = list(begun[1].values())
            n_marked += bool(begun[1])
            (seeds, _), begun = begun, None
            readers.append((pickle.dumps(store.open()), seeds, status.copy(), n_marked))
        for cube, held, was, marked in readers:
            read_back(pickle.loads(cube), held, was if n_marked - marked < 2 else None)
    for number, (_, held, was, _) in enumerate(readers, 1):
        read_back(store.open(str(number)), held, was)
    assert [version.n_rows for version in store.versions()] == [len(held) for _, held, _, _ in readers]
    assert list(store.verify()) == []
    assert store.published == (bool(readers) and begun is None)


def read_back(cube: xr.Dataset, seeds: list[int], status: np.ndarray | None) -> None:
    rows = [numbers(slice(row, row + 1), seed) for row, seed in enumerate(seeds)]
    np.testing.assert_array_equal(cube["values"].values, np.concatenate(rows))
    assert cube.coords["label"].values.tolist() == labels(len(seeds), seeds)
    if status is not None:  # of a plain store, what changes twice is gone
        np.testing.assert_array_equal(cube["status"].values, status)
