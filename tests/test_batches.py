"""Batches: every wanted row once, over all ranks; the same again; shuffled; arrays that a training can take."""

import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import scattercube
from scattercube.pipeline.batches import iter_batches
from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.stores.opening import open_cube
from scattercube.pipeline.stores.protocol import ABSENT, PARTIAL, QUARANTINED, REMOVED, SUPERSEDED
from tests.small_cubes import make_cube, numbers

STATUS = np.array([0, 0, QUARANTINED, 0, PARTIAL, ABSENT, 0, 0, SUPERSEDED, REMOVED] * 4, np.uint8)
N = len(STATUS)
OK_ROWS = np.flatnonzero(STATUS == 0)


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    target = np.arange(N, dtype=float)
    path = tmp_path_factory.mktemp("batches") / "cube"
    return make_cube(path, N, status=STATUS, coverage=True, columns={"target": target})


def rows(cube, batch, **options):
    return np.concatenate([found["sample"] for found in iter_batches(cube, batch, **options)])


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 50),
    world=st.integers(1, 5),
    shuffle=st.booleans(),
    window=st.integers(1, 9),
    epoch=st.integers(0, 3),
    prefetch=st.sampled_from([0, 2]),
)
def test_all_ranks_together_yield_every_row_that_is_ok_once(cube, batch, world, shuffle, window, epoch, prefetch):
    seen, counts = [], []
    for rank in range(world):
        options = {"rank": rank, "world": world, "shuffle": shuffle, "window": window, "epoch": epoch}
        found = list(iter_batches(str(cube), batch, prefetch=prefetch, **options))
        assert all(len(each["sample"]) == batch for each in found[:-1])
        seen += [each["sample"] for each in found]
        counts.append(sum(len(each["sample"]) for each in found))
    assert np.array_equal(np.sort(np.concatenate(seen)), OK_ROWS)
    assert max(counts) - min(counts) <= 1


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 8), world=st.integers(1, 3), shuffle=st.booleans())
def test_ranks_that_drop_the_last_have_equally_many_whole_batches(cube, batch, world, shuffle):
    options = {"world": world, "shuffle": shuffle, "drop_last": True, "prefetch": 0}
    if batch * world > len(OK_ROWS):
        with pytest.raises(PlanError, match="do not fill a batch"):
            iter_batches(cube, batch, **options)
        return
    found = [[each["sample"] for each in iter_batches(cube, batch, rank=rank, **options)] for rank in range(world)]
    assert {len(each) for each in found} == {len(OK_ROWS) // (batch * world)}
    every = np.concatenate([rows for each in found for rows in each])
    assert len(np.unique(every)) == len(every) == len(OK_ROWS) // (batch * world) * batch * world


def test_numbers_and_columns_are_those_of_the_rows(cube):
    expected, opened = numbers(N, (4, 2, 3)), open_cube(str(cube))
    for found in iter_batches(cube, 5, columns=("label", "target")):
        np.testing.assert_array_equal(found["scattering"], expected[found["sample"]])
        assert found["label"].tolist() == opened["label"].values[found["sample"]].tolist()
        np.testing.assert_array_equal(found["target"], found["sample"].astype(float))
        assert set(found) == {"scattering", "label", "target", "sample"}


def test_partial_samples_come_where_asked_for_with_their_coverage(cube):
    found = list(iter_batches(cube, 7, partial=True, columns=()))
    seen = np.concatenate([each["sample"] for each in found])
    assert np.array_equal(np.sort(seen), np.flatnonzero(np.isin(STATUS, (0, PARTIAL))))
    for each in found:
        assert np.array_equal(each["coverage"] == 0, np.isnan(each["scattering"]))


def test_where_takes_some(cube):
    opened = open_cube(str(cube))
    chosen = opened["label"] == "class 1"
    seen = rows(opened, 4, where=chosen)
    assert np.array_equal(np.sort(seen), np.flatnonzero(chosen.values & (STATUS == 0)))
    assert np.array_equal(np.sort(rows(opened, 4, where=chosen.values)), np.sort(seen))


def test_arrays_are_contiguous_writable_and_nobody_elses(cube):
    batches = list(iter_batches(cube, 5, shuffle=False))
    copies = [each["scattering"].copy() for each in batches]
    for each in batches:
        values = each["scattering"]
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert values.flags.owndata
        values[:] = -1
    again = [each["scattering"] for each in iter_batches(cube, 5, shuffle=False)]
    for before, now in zip(copies, again, strict=True):
        np.testing.assert_array_equal(before, now)


def test_seed_and_epoch_decide_the_order(cube):
    first = rows(cube, 4, seed=1, epoch=2)
    assert np.array_equal(rows(cube, 4, seed=1, epoch=2, prefetch=0), first)
    assert not np.array_equal(rows(cube, 4, seed=1, epoch=3), first)
    assert not np.array_equal(rows(cube, 4, seed=2, epoch=2), first)
    assert np.array_equal(rows(cube, 4, shuffle=False), OK_ROWS)


def test_a_batch_mixes_the_shards_of_its_window(tmp_path):
    """Sorted by class, a cube would else train on one class after the other: half the classes are in a batch."""
    path = make_cube(tmp_path / "cube", 600, shard=10, chunk=10, dims=("path",), inner=(4,))
    shards = [each["sample"] // 10 for each in iter_batches(path, 20, window=15)]
    assert np.mean([len(set(batch.tolist())) for batch in shards[:-8]]) > 10
    narrow = [each["sample"] // 10 for each in iter_batches(path, 20, window=1)]
    assert np.mean([len(set(batch.tolist())) for batch in narrow]) < 6


def test_an_epoch_is_not_biased(tmp_path):
    """Over many epochs each row is as often in the first quarter as any other."""
    path = make_cube(tmp_path / "cube", 40, shard=5, chunk=5, dims=("path",), inner=(4,))
    opened = open_cube(str(path)).load()
    counts: Counter[int] = Counter()
    for epoch in range(300):
        counts.update(rows(opened, 10, epoch=epoch, window=3, prefetch=0)[:10].tolist())
    assert max(abs(counts[row] - 75) for row in range(40)) < 5 * np.sqrt(75 * 0.75)


def test_each_shard_is_read_once(cube, monkeypatch):
    from scattercube.pipeline import batches

    read, regions = batches.block, []

    def counted(opened, name, samples, status, *rest):
        regions.append((samples.start // 6, (samples.stop - 1) // 6))
        return read(opened, name, samples, status, *rest)

    monkeypatch.setattr(batches, "block", counted)
    rows(cube, 4)
    assert sorted(first for first, _ in regions) == sorted({*(OK_ROWS // 6).tolist()})
    assert all(first == last for first, last in regions)


def test_no_thread_is_left_behind(cube):
    before = threading.active_count()
    batches = iter_batches(cube, 2)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_memory_is_that_of_the_window(tmp_path):
    inner, n, shard, batch, window = (4, 32, 32), 960, 32, 16, 4
    values = np.broadcast_to(numbers(1, inner), (n, *inner))
    path = make_cube(tmp_path / "cube", n, shard=shard, chunk=8, inner=inner, values=values)
    row_nbytes = values[0].nbytes
    opened = open_cube(str(path))
    next(iter_batches(opened, batch)).clear()  # what is imported and kept for ever
    tracemalloc.start()
    try:
        for _ in iter_batches(opened, batch, window=window):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    stated = ((window + 6) * shard + 5 * batch) * row_nbytes
    assert (window + 1) * shard * row_nbytes < peak < stated < n * row_nbytes / 2


def test_a_dataset_in_memory_works_too(cube):
    opened = open_cube(str(cube)).load()
    codes = np.unique(opened["label"].values, return_inverse=True)[1]
    opened = opened.assign_coords(code=("sample", codes))
    for found in scattercube.iter_batches(opened, 6, columns=("code",)):
        assert np.array_equal(found["code"], codes[found["sample"]])


def test_lost_numbers_are_an_error_in_the_reader(tmp_path):
    path = make_cube(tmp_path / "cube")
    (path / "scattering" / "c" / "1" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="scattering"):
        list(iter_batches(path, 4))
    values = numbers(20, (4, 2, 3))
    values[3, 0, 0, 0] = np.nan
    path = make_cube(tmp_path / "other", values=values)
    with pytest.raises(StoreError, match="näme 3 is not finite, though its status is ok"):
        list(iter_batches(path, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0: at least 1"),
        ({"rank": 2, "world": 2}, "rank=2: of world=2"),
        ({"columns": ("speaker",)}, "no column 'speaker'.*label"),
        ({"where": np.ones(3, bool)}, "where: bool"),
        ({"where": np.zeros(N, bool)}, "none of 40 samples is wanted"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"batch": 10**13}, "are available; use a smaller window"),
    ],
)
def test_what_cannot_be_is_refused_at_once(cube, options, message):
    with pytest.raises(PlanError, match=message):
        iter_batches(cube, **({"batch": 4} | options))


def test_what_is_no_cube_is_refused(tmp_path, cube):
    with pytest.raises(StoreError, match="no published store"):
        iter_batches(tmp_path / "none", 4)
    with pytest.raises(StoreError, match="a cube has scattering and status"):
        iter_batches(xr.Dataset({"a": 1}), 4)
