"""Cubes as Parquet: the same rows and numbers, for pyarrow and pandas, and everything that says what they are."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from scattercube.pipeline import exports
from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.exports import export
from scattercube.pipeline.stores.opening import open_cube
from scattercube.pipeline.stores.protocol import PARTIAL, QUARANTINED
from tests.small_cubes import NAMES, make_cube, numbers

STATUS = np.array([0, 0, QUARANTINED, 0, PARTIAL, 0, 0] * 3, np.uint8)
N = len(STATUS)
SCALARS = {"dims": ("path",), "inner": (4,)}


def test_a_path_that_is_one_number_is_a_column(tmp_path):
    target = np.linspace(0, 1, N)
    path = make_cube(tmp_path / "cube", N, status=STATUS, columns={"target": target}, **SCALARS)
    done = export(path, tmp_path / "cube.parquet")
    table = pd.read_parquet(tmp_path / "cube.parquet")
    assert list(table.columns) == ["sample_id", "label", "target", "status", *NAMES]
    assert done.n_rows == N == len(table)
    assert done.n_columns == len(table.columns)
    cube = open_cube(str(path))
    np.testing.assert_array_equal(table[NAMES].to_numpy(), cube["scattering"].values)
    assert table[NAMES].dtypes.unique().tolist() == [np.dtype("f4")]
    for name in ("sample_id", "label", "target", "status"):
        assert table[name].tolist() == cube[name].values.tolist()


def test_columns_of_paths_know_their_labels(tmp_path):
    path = make_cube(tmp_path / "cube", N, **SCALARS)
    export(path, tmp_path / "cube.parquet")
    field = parquet.read_schema(tmp_path / "cube.parquet").field(NAMES[3])
    assert {field.metadata[key] for key in (b"order", b"j2")} == {b"2", b"1"}
    assert field.metadata[b"xi1"] == b"0.3"


def test_channels_are_in_the_names(tmp_path):
    path = make_cube(tmp_path / "cube", N, dims=("channel", "path"), inner=(2, 4))
    export(path, tmp_path / "cube.parquet")
    table = pd.read_parquet(tmp_path / "cube.parquet")
    names = [f"channel={channel},{name}" for channel in ("red", "green") for name in NAMES]
    np.testing.assert_array_equal(table[names].to_numpy(), numbers(N, (2, 4)).reshape(N, -1))


@pytest.mark.parametrize(("dims", "inner"), [(("path", "y", "x"), (4, 2, 3)), (("channel", "path", "time"), (2, 4, 3))])
def test_maps_and_lines_are_tensors(tmp_path, dims, inner):
    path = make_cube(tmp_path / "cube", N, status=STATUS, dims=dims, inner=inner, coverage=True)
    export(path, tmp_path / "cube.parquet")
    table, cube = parquet.read_table(tmp_path / "cube.parquet"), open_cube(str(path))
    for name in ("scattering", "coverage"):
        column = table[name].combine_chunks()
        assert (tuple(column.type.shape), tuple(column.type.dim_names)) == (inner, dims)
        np.testing.assert_array_equal(column.to_numpy_ndarray(), cube[name].values)
    lists = pd.read_parquet(tmp_path / "cube.parquet")["scattering"]
    np.testing.assert_array_equal(np.stack(lists).reshape(N, *inner), cube["scattering"].values)


def test_the_file_says_what_it_is(tmp_path):
    path = make_cube(tmp_path / "cube", N, history="made by a test")
    export(path, tmp_path / "cube.parquet")
    said = {
        key.decode(): value.decode() for key, value in parquet.read_schema(tmp_path / "cube.parquet").metadata.items()
    }
    cube = open_cube(str(path))
    for name in ("spec", "entry", "versions", "input_checksums", "history", "title"):
        assert said[f"scattercube.{name}"] == cube.attrs[name]
    assert json.loads(said["scattercube.dims"]) == ["sample", "path", "y", "x"]
    assert json.loads(said["scattercube.shape"]) == [N, 4, 2, 3]
    paths = json.loads(said["scattercube.coordinates.path"])
    assert paths["values"]["order"] == [0, 1, 1, 2]
    assert paths["values"]["theta1"] == [None, 22.5, 22.5, 22.5]
    assert paths["units"]["theta1"] == "degree"
    assert json.loads(said["scattercube.coordinates.x"])["values"]["x"] == [0, 2, 4]


def test_a_row_group_is_whole_shards(tmp_path, monkeypatch):
    path = make_cube(tmp_path / "cube", 40, shard=6, chunk=3)
    export(path, tmp_path / "cube.parquet")
    assert parquet.ParquetFile(tmp_path / "cube.parquet").num_row_groups == 1, "small shards stand together"
    monkeypatch.setattr(exports, "SHARD_NBYTES", 2 * 6 * 4 * 2 * 3 * 4)
    export(path, tmp_path / "cube.parquet")
    file = parquet.ParquetFile(tmp_path / "cube.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [12, 12, 12, 4]


def test_names_that_would_be_double_are_numbered(tmp_path):
    path = make_cube(tmp_path / "cube", N, **SCALARS)
    cube = open_cube(str(path)).load()
    cube["j1"][:], cube["j2"][:] = 0, -1
    export(cube, tmp_path / "cube.parquet")
    names = parquet.read_schema(tmp_path / "cube.parquet").names
    assert len(set(names)) == len(names)
    assert "j1=0,theta1=22.5,path=2" in names


def test_a_file_is_whole_or_as_it_was(tmp_path):
    out = tmp_path / "cube.parquet"
    export(make_cube(tmp_path / "cube", N), out)
    before = out.read_bytes()
    broken = make_cube(tmp_path / "broken", N)
    (broken / "scattering" / "c" / "2" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError):
        export(broken, out)
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir() if "parquet" in file.name) == ["cube.parquet"]
    export(make_cube(tmp_path / "other", 5), out)
    assert parquet.read_table(out).num_rows == 5


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    field = make_cube(tmp_path / "field", 2, inner=(4, 4, 4), tiles=(2, 2))
    with pytest.raises(PlanError, match="a field, and no row of a table"):
        export(field, tmp_path / "field.parquet")
    cube = make_cube(tmp_path / "cube", N)
    with pytest.raises(StoreError, match="a folder; give the name of a file"):
        export(cube, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        export(cube, tmp_path / "file" / "cube.parquet")
    monkeypatch.setattr(exports.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(PlanError, match="are free in"):
        export(cube, tmp_path / "cube.parquet")


def test_wide_tables_become_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "MOST_COLUMNS", 3)
    export(make_cube(tmp_path / "cube", N, **SCALARS), tmp_path / "cube.parquet")
    column = parquet.read_table(tmp_path / "cube.parquet")["scattering"]
    assert isinstance(column.type, pa.FixedShapeTensorType)
    np.testing.assert_array_equal(column.combine_chunks().to_numpy_ndarray(), numbers(N, (4,)))
