"""The schema: dims, coordinates, units and attributes of the chunk store and of the feature cube.

Both templates are plain xarray Datasets whose data variables are virtual (one NaN seen everywhere): what counts is
their dims, shapes, dtypes and attributes. An analyst needs nothing of this project to read what they become.
"""

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.identity import of_chunks, of_cube
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.plan import Plan
from scattercube.pipeline.sources import Listing
from scattercube.pipeline.spec import Spec, digest
from scattercube.pipeline.stores.contents import lasting
from scattercube.pipeline.stores.protocol import ABSENT, IDENTITY, OK, PARTIAL, QUARANTINED, REMOVED, ROWS, SUPERSEDED
from scattercube.pipeline.transforms import Transform, output_units

_STATUS = {
    "long_name": "state of the sample",
    "flag_values": [OK, QUARANTINED, ABSENT, PARTIAL, SUPERSEDED, REMOVED],
    "flag_meanings": "ok quarantined absent partial superseded removed",
}
_REFERENCES = {
    "scattering2d": "Bruna and Mallat, Invariant scattering convolution networks, IEEE TPAMI 35 (2013), 1872-1886",
    "scattering1d": "Andén and Mallat, Deep scattering spectrum, IEEE TSP 62 (2014), 4114-4128",
    "time_frequency": "Andén, Lostanlen and Mallat, Joint time-frequency scattering, IEEE TSP 67 (2019), 3704-3718",
    "solid_harmonic": "Eickenberg, Exarchakis, Hirn and Mallat, Solid harmonic wavelet scattering, NeurIPS 30 (2017)",
}
COLUMN_ROWS = 1 << 13  # of a column that are read together, at least
MOST_POSITIONS = 1 << 16  # values of a coordinate that only counts: of longer axes, the spacing says as much
_DESCRIPTIONS = {
    "sample_id": "unique and stable name of the sample",
    "label": "class of the sample, from the catalogue entry",
    "split": "part of the evaluation: train, test, unused, or empty where assigned at fit time",
    "source": "archive and member that the sample was read from",
    "member": "name inside the archive",
    "item": "index inside the member",
}


def chunk_template(entry: Entry, listing: Listing, plan: Plan) -> xr.Dataset:
    """Describe the chunk store: ``signal`` (sample, [channel,] …) in the reader's dtype, and ``status`` (sample)."""
    layout, columns = listing.layout, dict(listing.columns)
    columns.setdefault("source", listing.sources)
    rows = {"chunks": _rows(plan.signal_grid)}
    coords: dict[str, Any] = {
        name: ("sample", values, _sample_attrs(name, entry), rows) for name, values in columns.items()
    }
    if layout.channels:
        coords["channel"] = ("channel", np.array(layout.channels, dtype=object))
    for dim, size, step, unit in zip(
        layout.signal_dims, layout.signal_shape, layout.spacing, layout.units, strict=True
    ):
        if size <= MOST_POSITIONS:
            attrs = {"units": unit, "long_name": f"{dim} in the sample"}
            coords[dim] = (dim, np.arange(size, dtype=np.float64) * step, attrs)
    identity = of_chunks(entry, layout, plan) | {
        ROWS: {
            "samples": plan.signal_shape[0],
            "members": digest({name: values.tolist() for name, values in columns.items() if name != "source"}),
            # Not its place: a copy elsewhere is the same archive.
            "archive": {name: value for name, value in listing.checksum.items() if name != "path"},
        },
    }
    about = {"long_name": "sample as read", "spacing": list(layout.spacing), "spacing_units": list(layout.units)}
    arrays = {"signal": xr.Variable(plan.signal_dims, _nothing(layout.dtype, plan.signal_shape), about)}
    attrs = _provenance(entry, identity, f"ingested from {listing.uri}")
    attrs["input_checksums"] = json.dumps(listing.checksum, sort_keys=True)
    attrs["notes"] = "\n".join(listing.notes)
    return xr.Dataset(_cut(arrays, plan.signal_grid), coords=coords, attrs=attrs)


def feature_template(chunks: xr.Dataset, entry: Entry, spec: Spec, plan: Plan) -> xr.Dataset:
    """Describe the feature cube: ``scattering`` (sample, [channel,] path, …) and ``status`` (sample), all labelled.

    Where values may be missing, ``coverage`` stands beside ``scattering``. Every coordinate of a sample comes over from
    the chunk store, so the cube stands on its own.
    """
    transform = plan.transform(spec)
    coords: dict[str, Any] = {
        str(name): ("sample", variable.values, variable.attrs, {"chunks": _rows(plan.feature_grid)})
        for name, variable in chunks.coords.items()
        if variable.dims == ("sample",) and name not in ("member", "item")
    }
    if "channel" in chunks.coords:
        coords["channel"] = ("channel", chunks["channel"].values)
    coords |= path_coordinates(transform) | position_coordinates(plan, transform)
    held = json.loads(chunks.attrs[IDENTITY])
    identity = of_cube(spec, plan, lasting(held)) | {ROWS: held[ROWS]}
    attrs = _provenance(entry, identity, f"scattering of {chunks.attrs['title']}")
    attrs |= {
        "spec": spec.to_yaml(),
        "spec_digest": spec.digest,
        "filter_digest": transform.filter_digest,
        "input_checksums": chunks.attrs["input_checksums"],
        "references": _REFERENCES[spec.transform],
    }
    nothing = _nothing(np.dtype(spec.dtype), plan.feature_shape)
    meaning = {"long_name": "scattering coefficient", "units": "unit of signal"}
    arrays = {"scattering": xr.Variable(plan.feature_dims, nothing, meaning)}
    if plan.masked:
        seen = {"long_name": "share of the coefficient's surroundings whose values were there", "units": "1"}
        arrays["coverage"] = xr.Variable(plan.feature_dims, nothing, seen)
    return xr.Dataset(_cut(arrays, plan.feature_grid), coords=coords, attrs=attrs)


def path_coordinates(transform: Transform) -> dict[str, Any]:
    """Return the labels of the coefficients."""
    paths = transform.paths
    return {
        name: ("path", values, {"units": paths.units[name], "long_name": paths.descriptions[name]})
        for name, values in paths.columns.items()
    }


def position_coordinates(plan: Plan, transform: Transform) -> dict[str, Any]:
    """Return where coefficients lie along each dim behind ``path``, and which of them the border influences."""
    coords: dict[str, Any] = {}
    dims = plan.feature_dims[plan.feature_dims.index("path") + 1 :]
    units = output_units(dims, plan.sampling_rate)
    sizes = dict(zip(plan.signal_dims, plan.signal_shape, strict=True))
    for dim, values in zip(dims, plan.positions(transform), strict=True):
        coords[dim] = (dim, values, {"units": units[dim], "long_name": f"{dim} of the coefficient"})
        if transform.halo is not None and dim in sizes:
            positions = values * (plan.sampling_rate or 1)
            seen = (positions < transform.halo) | (positions > sizes[dim] - 1 - transform.halo)
            about = {"long_name": f"whether what lies beyond the border along {dim} may influence the coefficient"}
            coords[f"{dim}_border"] = (dim, seen, about)
    return coords


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = ("scattercube", "numpy", "scipy", "zarr", "xarray", "dask", "prefect", "scikit-learn", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def host() -> dict[str, str]:
    """Return what is said of the machine that a run was started on."""
    return {
        "name": platform.node(),
        "cpu": platform.processor() or platform.machine(),
        "platform": platform.platform(),
    }


def _provenance(entry: Entry, identity: Mapping[str, Any], what: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "title": entry.title,
        "licence": entry.licence,
        "entry": entry.to_yaml(),
        "entry_digest": entry.digest,
        IDENTITY: json.dumps(identity, sort_keys=True),
        "versions": json.dumps(versions()),
        "host": json.dumps(host()),
        "created": now,
        "history": f"{now} scattercube {version('scattercube')}: {what}",
        "Conventions": "CF-1.11",
    }


def _sample_attrs(name: str, entry: Entry) -> dict[str, str]:
    if name == "target" and entry.labels and (table := entry.labels.table):
        about = {"long_name": f"{table.target}, from the catalogue entry: what heads predict"}
        return about | ({"units": table.unit} if table.unit else {})
    if name in ("y0", "x0"):
        return {"units": "pixel", "long_name": f"{name[0]} of the sample's first pixel in its image"}
    return {"long_name": _DESCRIPTIONS.get(name, f"{name}, from the catalogue entry")}


def _rows(grid: Grid) -> tuple[int]:
    """How many samples are in one chunk of a column: whole shards, so that a shard's rows are in one.

    All of 10^6 names would be decoded for each shard that reads its own.
    """
    return (grid.shard[0] * -(-COLUMN_ROWS // grid.shard[0]),)


def _nothing(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array that takes no memory, whose numbers are never read."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _cut(arrays: dict[str, xr.Variable], grid: Grid) -> dict[str, xr.Variable]:
    """Say how arrays are cut, and add the status of their samples."""
    shard, chunk = dict(zip(grid.dims, grid.shard, strict=True)), dict(zip(grid.dims, grid.chunk, strict=True))
    for variable in arrays.values():
        variable.encoding = {
            "chunks": tuple(chunk.get(str(dim), size) for dim, size in variable.sizes.items()),
            "shards": tuple(shard.get(str(dim), size) for dim, size in variable.sizes.items()),
        }
    status = xr.Variable(("sample",), _nothing(np.dtype(np.uint8), grid.sizes[:1]), _STATUS)
    # One byte a sample: what is written at once is small enough to read. Of fields it is written last, at once.
    status.encoding = {"chunks": grid.shard[:1] if len(grid.dims) == 1 else _rows(grid)}
    return arrays | {"status": status}
