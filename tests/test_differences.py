"""Comparing cubes: the same is the same, and whatever differs is found, counted and named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scattercube.pipeline.differences import diff
from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.stores.opening import open_cube
from scattercube.pipeline.stores.protocol import PARTIAL, QUARANTINED, REMOVED, SUPERSEDED
from tests.small_cubes import NAMES, make_cube, numbers

N = 20


def test_the_same_is_the_same_however_it_is_cut(tmp_path):
    status = np.array([0, QUARANTINED, PARTIAL, 0] * 5, np.uint8)
    one = make_cube(tmp_path / "one", N, status=status, coverage=True)
    other = make_cube(tmp_path / "other", N, status=status, coverage=True, shard=8, chunk=4, created="later")
    found = diff(one, other)
    assert found.same
    assert found.n_common == N
    assert (found.defined, found.made, found.orders, found.incomparable) == ({}, {}, [], "")


@settings(max_examples=6, deadline=None)
@given(row=st.integers(0, N - 1), path=st.integers(0, 3), factor=st.sampled_from([1.0000002, 1.5, np.nan]))
def test_one_number_that_differs_is_found(tmp_path_factory, row, path, factor):
    folder = tmp_path_factory.mktemp("one")
    values = numbers(N, (4, 2, 3))
    made = values.copy()
    made[row, path, 1, 2] *= np.float32(factor)
    one = make_cube(folder / "one", N, values=values)
    other = make_cube(folder / "other", N, values=made)
    if np.isnan(factor):
        with pytest.raises(StoreError, match="not finite, though its status is ok"):
            diff(one, other)
        return
    found = diff(one, other)
    assert not found.same
    assert (found.numbers.n, found.numbers.first) == (1, (f"näme {row}",))
    (touched,) = [each for each in found.orders if each.n_differ]
    assert touched.order == [0, 1, 1, 2][path]
    assert touched.worst_path == NAMES[path]
    assert touched.largest == pytest.approx(abs(float(made[row, path, 1, 2]) - float(values[row, path, 1, 2])))
    of_order = np.array([0, 1, 1, 2]) == touched.order
    expected = np.linalg.norm((made - values)[row]) / np.linalg.norm(values[row, of_order])
    assert touched.relative == pytest.approx(expected, rel=1e-6)


def test_small_differences_are_tolerated_where_asked(tmp_path):
    values = numbers(N, (4, 2, 3))
    one = make_cube(tmp_path / "one", N, values=values)
    other = make_cube(tmp_path / "other", N, values=values * np.float32(1.00001))
    assert diff(one, other).numbers.n == N
    assert diff(one, other, tolerance=1e-4).same
    assert diff(one, other, tolerance=1e-6).numbers.n == N
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(PlanError, match="tolerance="):
            diff(one, other, tolerance=tolerance)


def test_rows_match_by_name_in_any_order(tmp_path):
    values, order = numbers(N, (4, 2, 3)), np.random.default_rng(0).permutation(N)
    ids = np.array([f"näme {i}" for i in range(N)], dtype=object)
    one = make_cube(tmp_path / "one", N, values=values)
    labels = np.array([f"class {i % 3}" for i in range(N)], dtype=object)
    kept = order[:15]
    other = make_cube(
        tmp_path / "other", 15, values=values[kept], ids=ids[kept], columns={"label": labels[kept]}, shard=4, chunk=2
    )
    found = diff(one, other)
    assert (found.n_common, found.only_a.n, found.only_b.n, found.numbers.n) == (15, 5, 0, 0)
    assert set(found.only_a.first) == set(ids[order[15:]])
    assert not found.columns
    assert not found.same


def test_status_columns_and_superseded_rows(tmp_path):
    before = np.zeros(N, np.uint8)
    after = before.copy()
    after[2], after[5], after[7] = QUARANTINED, PARTIAL, REMOVED
    labels = np.array([f"class {i % 3}" for i in range(N)], dtype=object)
    changed = labels.copy()
    changed[9] = "another"
    one = make_cube(tmp_path / "one", N, status=before)
    other = make_cube(tmp_path / "other", N, status=after, columns={"label": changed})
    found = diff(one, other)
    assert {name: each.first for name, each in found.status.items()} == {"0 → 1": ("näme 2",), "0 → 3": ("näme 5",)}
    assert found.columns["label"].first == ("näme 9",)
    assert found.only_a.first == ("näme 7",)
    assert found.numbers.first == ("näme 5",)
    assert sum(each.n_gaps for each in found.orders) == 8, "one NaN a path and row"
    ids = np.array([f"näme {i}" for i in range(N)], dtype=object)
    ids[1] = ids[0]
    double = before.copy()
    double[0] = SUPERSEDED
    third = make_cube(tmp_path / "third", N, status=double, ids=ids)
    assert diff(one, third).n_common == N - 1, "the row that superseded another is the sample"
    with pytest.raises(StoreError, match="two samples are named 'näme 0'"):
        diff(one, make_cube(tmp_path / "fourth", N, ids=ids))


def test_other_specs_are_told_apart_and_not_compared_where_paths_differ(tmp_path):
    one = make_cube(tmp_path / "one", N)
    other = make_cube(tmp_path / "other", N, spec="transform: scattering2d\nJ: 3\n", filter_digest="g")
    found = diff(one, other)
    assert found.defined == {"spec.J": (2, 3), "filter_digest": ("f", "g")}
    assert not found.same
    assert not found.incomparable, "the numbers are of paths with the same labels"
    third = make_cube(tmp_path / "third", N, inner=(4, 2, 2))
    found = diff(one, third)
    assert found.defined["size of x"] == (3, 2)
    assert "x" in found.incomparable
    assert not found.orders


def test_what_made_them_is_shown_and_alone_makes_no_difference(tmp_path):
    one = make_cube(tmp_path / "one", N)
    other = make_cube(
        tmp_path / "other", N, versions='{"numpy": "3"}', input_checksums='{"path": "/b", "nbytes": 10, "mtime_ns": 6}'
    )
    found = diff(one, other)
    assert found.same
    assert found.made == {
        "version of numpy": ("2", "3"),
        "input.path": ("/data/a.tar", "/b"),
        "input.mtime_ns": (5, 6),
    }


def test_fields_are_compared_a_shard_at_a_time(tmp_path):
    values = numbers(2, (4, 8, 8))
    changed = values.copy()
    changed[1, 3, 7, 7] += 1
    one = make_cube(tmp_path / "one", 2, inner=(4, 8, 8), values=values, tiles=(4, 4))
    other = make_cube(tmp_path / "other", 2, inner=(4, 8, 8), values=changed, tiles=(2, 8))
    found = diff(one, other)
    assert found.numbers.first == ("näme 1",)
    assert found.orders[-1].largest == pytest.approx(1, rel=1e-5)
    same = make_cube(tmp_path / "same", 2, inner=(4, 8, 8), values=values, tiles=(2, 8))
    assert diff(one, same).same


def test_other_precisions_are_compared(tmp_path):
    one = make_cube(tmp_path / "one", N)
    other = open_cube(str(one)).load()
    other["scattering"] = other["scattering"].astype("f8")
    found = diff(one, other)
    assert found.defined == {"dtype": ("float32", "float64")}
    assert found.numbers.n == 0
