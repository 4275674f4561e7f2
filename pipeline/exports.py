"""A feature cube as one Parquet file, for tools that know tables: a row a sample, whole shards in a row group.

Where a path is one number, there is a column for each (and for each of its channels), named by its labels:
``j1=0,theta1=22.5,j2=1,theta2=45``. Where it is a map or a line, all numbers of a sample are one column of the Arrow
type ``fixed_shape_tensor``: its shape and dims are in the type, and tools that do not know it see a list of numbers,
the last dim changing fastest. The file's metadata has the cube's attributes, and the coordinates of what is no sample.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.features import FIELD_FEATURES, is_cut_inside
from scattercube.pipeline.plan import SHARD_NBYTES, in_words
from scattercube.pipeline.reading import (
    arrays_of,
    block,
    blocks,
    column,
    columns_of,
    feature_cube,
    path_names,
    place_of,
)
from scattercube.pipeline.stores.files import explained

if TYPE_CHECKING:
    import xarray as xr

MOST_COLUMNS = 5000  # of paths: readers of Parquet take whole footers, and their time grows with the columns
PREFIX = "scattercube."  # of the keys of the file's metadata
_FIRST = ("sample_id", "label", "target", "split", "source")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    n_rows, n_columns
        Of the table.
    nbytes
        Of the file.
    """

    n_rows: int
    n_columns: int
    nbytes: int


def export(cube: "str | Path | xr.Dataset", out: Path) -> Exported:
    """Write a feature cube as a Parquet file, which is there when it is complete; one that was there is replaced.

    All samples are written, with their ``status``. Numbers are those of the cube: NaN where a sample is not ok. Memory
    is that of a few shards.

    Raises
    ------
    PlanError
        A sample is a field, which is no row of a table; or the disk may be too small.
    StoreError
        The cube is damaged or not there, or the file cannot be written.
    """
    opened = feature_cube(cube)
    _refuse_what_cannot_be(opened, out)
    arrays = {name: _columns(opened, name) for name in arrays_of(opened)}
    columns = {name: column(opened, name) for name in _ordered(columns_of(opened))} | {
        "status": column(opened, "status")
    }
    kinds = {name: _kind(values) for name, values in columns.items()}
    fields = [pa.field(name, kinds[name], metadata=_about(opened[name])) for name in columns]
    schema = pa.schema(fields + [field for found in arrays.values() for field in found], metadata=_metadata(opened))
    texts = [name for name in columns if kinds[name] == pa.string()]  # a dictionary of numbers would be a copy of them
    options = {"compression": "zstd", "use_dictionary": texts, "write_statistics": list(columns)}
    with _whole_file(out) as partial, parquet.ParquetWriter(partial, schema, **options) as writer:
        for rows in _groups(opened):
            held = [pa.array(values[rows], kinds[name], from_pandas=False) for name, values in columns.items()]
            for name, found in arrays.items():
                held += _cells(block(opened, name, rows, columns["status"][rows]), found)
            writer.write_table(pa.Table.from_arrays(held, schema=schema), row_group_size=max(1, len(held[0])))
    return Exported(opened.sizes["sample"], len(schema), out.stat().st_size)


def _columns(cube: "xr.Dataset", name: str) -> list[pa.Field]:
    """The columns of an array of numbers."""
    variable = cube[name]
    dims, shape = [str(dim) for dim in variable.dims[1:]], variable.shape[1:]
    kind, about = pa.from_numpy_dtype(variable.dtype), _about(variable)
    if set(dims) <= {"channel", "path"} and prod(shape) <= MOST_COLUMNS:
        names = path_names(cube)
        table = {str(label): coord.values for label, coord in cube.coords.items() if coord.dims == ("path",)}
        labels = [{label: str(values[path]) for label, values in table.items()} for path in range(len(names))]
        channels = [str(channel) for channel in cube["channel"].values] if "channel" in dims else [""]
        prefix = "" if name == "scattering" else f"{name}:"
        return [
            pa.field(
                prefix + (f"channel={channel}," if channel else "") + names[path],
                kind,
                metadata=about | labels[path] | ({"channel": channel} if channel else {}),
            )
            for channel in channels
            for path in range(len(names))
        ]
    return [pa.field(name, pa.fixed_shape_tensor(kind, shape, dim_names=dims), metadata=about)]


def _groups(cube: "xr.Dataset") -> Iterator[slice]:
    """Yield the samples of each row group: shards, several where they are small, for a footer names every column."""
    per_sample = max(1, sum(cube[name].nbytes for name in arrays_of(cube)) // max(1, cube.sizes["sample"]))
    shards = blocks(cube)
    at_once = max(1, SHARD_NBYTES // (per_sample * (shards[0].stop - shards[0].start))) if shards else 1
    for first in range(0, len(shards), at_once):
        yield slice(shards[first].start, shards[min(first + at_once, len(shards)) - 1].stop)


def _cells(values: np.ndarray, fields: list[pa.Field]) -> list[pa.Array]:
    """A block of numbers (sample, …) as the columns of its array."""
    flat = values.reshape(len(values), -1)
    kind = fields[0].type
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        return [pa.ExtensionArray.from_storage(kind, storage)]
    return [pa.array(line) for line in np.ascontiguousarray(flat.T)]


def _ordered(names: tuple[str, ...]) -> list[str]:
    return [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]


def _kind(values: np.ndarray) -> pa.DataType:
    return pa.string() if values.dtype.kind == "O" else pa.from_numpy_dtype(values.dtype)


def _about(variable: "xr.DataArray") -> dict[str, str]:
    """The attributes of a variable, as the metadata of its column."""
    return {str(name): _text(value) for name, value in variable.attrs.items()}


def _metadata(cube: "xr.Dataset") -> dict[str, str]:
    """What the cube says of itself, and the coordinates of its other dims, each a JSON object of columns."""
    variable = cube["scattering"]
    found = {PREFIX + str(name): _text(value) for name, value in cube.attrs.items()}
    found[PREFIX + "dims"] = json.dumps([str(dim) for dim in variable.dims])
    found[PREFIX + "shape"] = json.dumps(list(variable.shape))
    for dim in variable.dims[1:]:
        columns = {str(name): coord for name, coord in cube.coords.items() if coord.dims == (dim,)}
        table = {
            name: [None if value != value else value for value in coord.values.tolist()]
            for name, coord in columns.items()
        }
        units = {name: coord.attrs["units"] for name, coord in columns.items() if "units" in coord.attrs}
        found[f"{PREFIX}coordinates.{dim}"] = json.dumps({"values": table, "units": units}, ensure_ascii=False)
    return found


def _text(value: Any) -> str:
    """An attribute as text: texts as they are, all else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value.tolist() if isinstance(value, np.ndarray | np.generic) else value, ensure_ascii=False)


def _refuse_what_cannot_be(cube: "xr.Dataset", out: Path) -> None:
    variable = cube["scattering"]
    n_features = prod(variable.shape[1:])
    if is_cut_inside(variable) or n_features > FIELD_FEATURES:
        raise PlanError(
            f"{place_of(cube)}: a sample has {n_features:,} numbers, in tiles: a field, and no row of a table; read it "
            "with xarray.open_zarr, and export what you make of it"
        )
    needed = sum(cube[name].nbytes for name in arrays_of(cube))
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PlanError(
            f"{out}: the table may take {in_words(needed)} and {in_words(free)} are free in {folder}; choose another "
            "place, or export a part: xr.open_zarr(…).sel(…) and scattercube.pipeline.exports.export"
        )


@contextmanager
def _whole_file(out: Path) -> Iterator[Path]:
    """Give a place beside a file, and put what was written there in its place: it is there whole, or as it was."""
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        if out.is_dir():
            raise StoreError(f"{out}: a folder; give the name of a file, for example {out / 'cube.parquet'}")
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(out)
    except (OSError, pa.ArrowException) as failure:
        raise explained(str(out), "write", failure) from failure
    finally:
        with suppress(OSError):  # it is in place, or there is no such folder
            partial.unlink()
