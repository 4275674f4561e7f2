"""The store: nothing is seen before it is published, nothing is written but whole shards, nothing is lost."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey, Grid
from scattercube.pipeline.store import IDENTITY, Store, open_cube

GRID = Grid.of_samples(10, shard=4, chunk=2)


def template(grid=GRID, **identity):
    (n,), (shard,), (chunk,) = grid.sizes, grid.shard, grid.chunk
    values = xr.Variable(("sample", "path"), np.broadcast_to(np.float32(), (n, 3)), {"units": "1"})
    values.encoding = {"chunks": (chunk, 3), "shards": (shard, 3)}
    status = xr.Variable(("sample",), np.broadcast_to(np.uint8(), (n,)))
    status.encoding = {"chunks": (shard,)}
    labels = np.array([f"näme {i}" for i in range(n)], dtype=object)
    return xr.Dataset(
        {"values": values, "status": status},
        coords={"label": ("sample", labels), "order": ("path", np.arange(3, dtype="i1"), {"units": "1"})},
        attrs={IDENTITY: json.dumps({"spec": "a", **identity}), "title": "a test"},
    )


def shard(grid, key, seed=0):
    region = grid.region(key)["sample"]
    n = region.stop - region.start
    rng = np.random.default_rng(seed + region.start)
    return {"values": rng.normal(size=(n, 3)).astype("f4"), "status": np.zeros(n, np.uint8)}


def filled(path, grid=GRID):
    store = Store(path)
    store.create(template(grid))
    for key in grid.keys:
        store.record({"key": str(key), "digest": store.write(key, shard(grid, key))})
    return store


def test_no_reader_sees_a_store_before_it_is_published(tmp_path):
    store = filled(tmp_path / "cube")
    with pytest.raises(StoreError, match="no published store"):
        open_cube(store.path)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(store.path, chunks=None)
    store.publish()
    cube = open_cube(store.path)
    expected = np.concatenate([shard(GRID, key)["values"] for key in GRID.keys])
    np.testing.assert_array_equal(cube["values"], expected)
    assert cube["label"].values.tolist() == [f"näme {i}" for i in range(10)]
    assert cube["values"].attrs["units"] == "1"
    assert cube.attrs["title"] == "a test"


def test_opens_with_plain_xarray(tmp_path):
    store = filled(tmp_path / "cube")
    store.publish()
    code = (
        "import sys, xarray as xr; c = xr.open_zarr(sys.argv[1]); assert dict(c.sizes) == {'sample': 10, 'path': 3};"
        "assert 'order' in c.coords and 'label' in c.coords; assert not [m for m in sys.modules if 'scattercube' in m]"
    )
    subprocess.run([sys.executable, "-W", "error", "-I", "-c", code, store.path], check=True)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), chunk=st.integers(1, 7), per_shard=st.integers(1, 4))
def test_every_grid_writes_and_reads_back(tmp_path_factory, n, chunk, per_shard):
    grid = Grid.of_samples(n, shard=chunk * per_shard, chunk=chunk)
    store = filled(tmp_path_factory.mktemp("grid") / "cube", grid)
    store.publish()
    expected = np.concatenate([shard(grid, key)["values"] for key in grid.keys])
    np.testing.assert_array_equal(open_cube(store.path)["values"], expected)
    regions = [grid.region(key)["sample"] for key in grid.keys]
    assert sum(region.stop - region.start for region in regions) == n
    files = [file for file in (store.path / "values" / "c").rglob("*") if file.is_file()]
    assert len(files) == len(grid.keys), "one file a shard"


@pytest.mark.parametrize(
    ("start", "rows", "dtype"), [(0, 3, "f4"), (2, 4, "f4"), (8, 4, "f4"), (4, 4, "f8"), (0, 8, "f4")]
)
def test_a_write_that_is_not_one_whole_shard_is_refused(tmp_path, start, rows, dtype):
    store = Store(tmp_path / "cube")
    store.create(template())
    with pytest.raises(StoreError, match="one write is one whole shard"):
        store.write(ChunkKey((("sample", start),)), {"values": np.zeros((rows, 3), dtype)})
    assert not (store.path / "values" / "c").exists()


def test_missing_is_what_the_journal_does_not_name(tmp_path):
    store = Store(tmp_path / "cube")
    store.create(template())
    first, *rest = GRID.keys
    store.record({"key": str(first), "digest": "x"})
    assert list(store.missing(GRID.keys)) == rest
    store.record({"key": str(first), "digest": "y"})
    assert [event["digest"] for event in store.events()] == ["y"], "the last word on a key counts"


def test_a_torn_last_line_is_cut_off(tmp_path):
    store = Store(tmp_path / "cube")
    store.create(template())
    store.record({"key": "sample=0", "digest": "x"})
    with store.journal.open("ab") as file:
        file.write(b'{"key":"sample=4","dig')
    assert [event["key"] for event in store.events()] == ["sample=0"]
    store.record({"key": "sample=8", "digest": "z"})
    assert [event["key"] for event in store.events()] == ["sample=0", "sample=8"]


def test_the_same_identity_resumes_and_another_is_refused_with_the_difference(tmp_path):
    store = filled(tmp_path / "cube")
    orphan = store.path / "values" / "c" / "0.abc.partial"
    orphan.write_bytes(b"half a shard")
    store.create(template())
    assert not store.missing(GRID.keys)
    assert not orphan.exists()
    with pytest.raises(StoreError, match="spec is a, this run has b"):
        store.create(template(spec="b"))


def test_a_template_that_was_cut_off_is_written_again(tmp_path):
    store = Store(tmp_path / "cube")
    store.run_folder.mkdir()
    (store.path / "values").mkdir(parents=True)
    (store.path / "values" / "zarr.json").write_text("{")
    store.create(template())
    first = GRID.keys[0]
    store.write(first, shard(GRID, first))
    np.testing.assert_array_equal(store.read("values", GRID.region(first)), shard(GRID, first)["values"])


def test_the_digest_is_that_of_the_numbers(tmp_path):
    one, other = filled(tmp_path / "one"), filled(tmp_path / "other")
    assert [e["digest"] for e in one.events()] == [e["digest"] for e in other.events()]
    different = one.write(GRID.keys[0], shard(GRID, GRID.keys[0], seed=1))
    assert different != other.events()[0]["digest"]


def test_an_unwritable_place_says_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        Store(tmp_path / "file" / "cube").create(template())


def test_a_damaged_shard_says_which(tmp_path):
    store = filled(tmp_path / "cube")
    file = store.path / "values" / "c" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-40] + bytes(40))
    with pytest.raises(StoreError, match=r"read values sample 4:8.*damaged"):
        store.read("values", slice(4, 8))


def test_an_absent_shard_is_not_read_as_zeros(tmp_path):
    store = Store(tmp_path / "cube")
    store.create(template())
    for key in GRID.keys:
        zeros = {name: np.zeros_like(values) for name, values in shard(GRID, key).items()}
        store.write(key, zeros)
    assert not store.read("values", slice(0, 10)).any(), "a shard of zeros is there"
    (store.path / "values" / "c" / "1" / "0").unlink()
    assert store.read("values", slice(0, 4)).shape == (4, 3)
    with pytest.raises(StoreError, match="c/1/0: the shard is not there"):
        store.read("values", slice(2, 5))


def test_what_no_run_has_made_is_left_alone(tmp_path):
    precious = tmp_path / "cube" / "photo.png"
    precious.parent.mkdir()
    precious.write_bytes(b"precious")
    with pytest.raises(StoreError, match="holds something that no run has made"):
        Store(tmp_path / "cube").create(template())
    assert precious.read_bytes() == b"precious"


def test_a_store_that_was_removed_by_hand_is_made_anew(tmp_path):
    store = filled(tmp_path / "cube")
    store.publish()
    shutil.rmtree(store.path)
    store.create(template(spec="b"))
    assert store.missing(GRID.keys) == GRID.keys
    for key in GRID.keys:
        store.write(key, shard(GRID, key))
    store.publish()
    assert open_cube(store.path).sizes["sample"] == 10


def test_a_lost_status_is_not_read_as_ok(tmp_path):
    store = filled(tmp_path / "cube")
    (store.path / "status" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="the shard is not there"):
        store.read("status", slice(0, 4))


def test_a_damaged_journal_says_so(tmp_path):
    store = filled(tmp_path / "cube")
    store.journal.write_bytes(bytes(20) + b"\n")
    with pytest.raises(StoreError, match="journal"):
        store.missing(GRID.keys)
