"""Small feature cubes for the tests of those who read them: written through the store, numbers known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scattercube.pipeline.keys import Grid
from scattercube.pipeline.stores.opening import Backend, store_at
from scattercube.pipeline.stores.protocol import IDENTITY, OK, PARTIAL

ORDERS = np.array([0, 1, 1, 2], np.int8)
PATHS = {
    "order": (ORDERS, "1"),
    "j1": (np.array([-1, 0, 1, 0], np.int8), "1"),
    "theta1": (np.array([np.nan, 22.5, 22.5, 22.5]), "degree"),
    "xi1": (np.array([np.nan, 0.3, 0.15, 0.3]), "cycles/pixel"),
    "j2": (np.array([-1, -1, -1, 1], np.int8), "1"),
}
NAMES = ["order=0", "j1=0,theta1=22.5", "j1=1,theta1=22.5", "j1=0,theta1=22.5,j2=1"]


def numbers(n: int, inner: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values (sample, …) float32; those of a sample do not depend on how many there are."""
    return np.stack([np.random.default_rng((seed, i)).normal(size=inner) for i in range(n)]).astype(np.float32)


def make_cube(
    path: Path,
    n: int = 20,
    *,
    shard: int = 6,
    chunk: int = 3,
    dims: tuple[str, ...] = ("path", "y", "x"),
    inner: tuple[int, ...] = (4, 2, 3),
    status: np.ndarray | None = None,
    values: np.ndarray | None = None,
    coverage: bool = False,
    columns: dict[str, np.ndarray] | None = None,
    ids: np.ndarray | None = None,
    tiles: tuple[int, ...] = (),
    backend: Backend = "zarr",
    **attrs: Any,
) -> Path:
    """Write and publish a feature cube; rows that are not ok are NaN, partial ones have one NaN.

    With ``tiles``, lengths along the last dims, it is cut like that of a field.
    """
    values = numbers(n, inner) if values is None else values.copy()
    status = np.zeros(n, np.uint8) if status is None else np.asarray(status, np.uint8)
    values[~np.isin(status, (OK, PARTIAL))] = np.nan
    values[status == PARTIAL, ..., 0] = np.nan
    cut = dims[len(dims) - len(tiles) :]
    grid = Grid(
        ("sample", *cut), (n, *inner[len(dims) - len(tiles) :]), (1 if tiles else shard, *tiles), (chunk, *tiles)
    )
    lengths = dict(zip(grid.dims, grid.shard, strict=True))
    read = dict(zip(cut, tiles, strict=True)) | {"sample": 1 if tiles else chunk}
    arrays = {"scattering": values} | ({"coverage": np.isfinite(values).astype("f4")} if coverage else {})
    variables = {}
    for name, array in arrays.items():
        variables[name] = xr.Variable(("sample", *dims), np.broadcast_to(array.dtype.type(), array.shape))
        sizes = variables[name].sizes
        variables[name].encoding = {
            "chunks": tuple(read.get(str(dim), size) for dim, size in sizes.items()),
            "shards": tuple(lengths.get(str(dim), size) for dim, size in sizes.items()),
        }
    variables["status"] = xr.Variable(("sample",), np.broadcast_to(np.uint8(), (n,)))
    variables["status"].encoding = {"chunks": (n if tiles else shard,)}
    names = np.array([f"näme {i}" for i in range(n)], dtype=object) if ids is None else ids
    found = {"sample_id": names, "label": np.array([f"class {i % 3}" for i in range(n)], dtype=object)}
    coords: dict[str, Any] = {name: ("sample", column) for name, column in (found | (columns or {})).items()}
    coords |= {name: ("path", column, {"units": unit}) for name, (column, unit) in PATHS.items()}
    for dim, size in zip(dims, inner, strict=True):
        if dim == "channel":
            coords[dim] = (dim, np.array(["red", "green", "blue"][:size], dtype=object))
        elif dim != "path":
            coords[dim] = (dim, 2.0 * np.arange(size), {"units": "pixel"})
    about = {
        IDENTITY: json.dumps({"format": 3, "spec": "a", "rows": n}),
        "title": "A small cube",
        "entry": "name: small\ntitle: A small cube\nlicence: CC0-1.0\nreader: images\nlocation: nowhere\n",
        "spec": "transform: scattering2d\nJ: 2\n",
        "filter_digest": "f",
        "versions": json.dumps({"numpy": "2"}),
        "input_checksums": json.dumps({"path": "/data/a.tar", "nbytes": 10, "mtime_ns": 5}),
        "created": "2026-11-26T10:00:00+00:00",
    }
    store = store_at(str(path), backend)
    store.begin(xr.Dataset(variables, coords=coords, attrs=about | attrs))
    for key in grid.keys:
        region = grid.region(key)
        box = tuple(region.get(dim, slice(None)) for dim in ("sample", *dims))
        written = {name: array[box] for name, array in arrays.items()}
        if not tiles:
            written["status"] = status[region["sample"]]
        not_ok = [(i, int(status[i])) for i in np.flatnonzero(status).tolist()] if tiles else []
        digest, change = store.write(key, written)
        store.record([{"key": str(key), "digest": digest, "not_ok": not_ok}], [change])
    if tiles:
        store.settle(n)
    store.publish()
    return path
