"""Tests of how arrays are cut: every row belongs to one key, also where a version begins inside a shard."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scattercube.pipeline.keys import ChunkKey, Grid

sizes = st.integers(1, 40)


@st.composite
def grids(draw):
    n_dims = draw(st.integers(1, 3))
    chunk = tuple(draw(st.integers(1, 4)) for _ in range(n_dims))
    shard = tuple(size * draw(st.integers(1, 4)) for size in chunk)
    shape = tuple(draw(st.integers(1, 40)) for _ in range(n_dims))
    return Grid(("sample", "y", "x")[:n_dims], shape, shard, chunk, draw(st.integers(0, shape[0])))


@given(grids())
def test_keys_cover_what_is_behind_the_first_rows_once(grid):
    seen = np.zeros(grid.sizes, int)
    for key in grid.keys:
        region = grid.region(key)
        seen[tuple(region.values())] += 1
        for (start, part), shard in zip([(s.start, s) for s in region.values()], grid.shard, strict=True):
            assert start // shard == (part.stop - 1) // shard  # inside one shard
    assert (seen[: grid.first] == 0).all()
    assert (seen[grid.first :] == 1).all()


@given(grids())
def test_keys_and_their_numbers_are_each_others_inverse(grid):
    keys = list(grid.keys)
    assert [grid.number(key) for key in keys] == list(range(len(keys)))
    assert [ChunkKey.parse(str(key)) for key in keys] == keys
    aligned = {grid.shard[0] * n for n in range(grid.sizes[0] // grid.shard[0] + 1)} | {grid.first}
    for start in range(grid.sizes[0]):
        other = ChunkKey((("sample", start), *((dim, 0) for dim in grid.dims[1:])))
        assert (grid.number(other) is not None) == (start in aligned and start >= grid.first)


def test_a_version_that_begins_inside_a_shard():
    grid = Grid.of_samples(10, shard=4, chunk=2).behind(5)
    assert [str(key) for key in grid.keys] == ["sample=5", "sample=8"]
    assert [grid.region(key)["sample"] for key in grid.keys] == [slice(5, 8), slice(8, 10)]
    assert len(grid.behind(10).keys) == 0
    assert [str(key) for key in grid.keys.without(["sample=5", "sample=4"])] == ["sample=8"]
