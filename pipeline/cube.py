"""The schema: dims, coordinates, units and attributes of the chunk store and of the feature cube.

Both templates are plain xarray Datasets whose data variables are virtual (one NaN seen everywhere): what counts is
their dims, shapes, dtypes and attributes. An analyst needs nothing of this project to read what they become.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from scattercube.kernels import Scattering2D
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.plan import Grid, Plan, extent
from scattercube.pipeline.sources import Listing
from scattercube.pipeline.spec import Spec, digest
from scattercube.pipeline.store import ABSENT, IDENTITY, OK, QUARANTINED

FORMAT = 1  # raised when a cube of the new code cannot be continued by the old
_STATUS = {
    "long_name": "state of the sample",
    "flag_values": [OK, QUARANTINED, ABSENT],
    "flag_meanings": "ok quarantined absent",
}
_DESCRIPTIONS = {
    "sample_id": "unique and stable name of the sample",
    "label": "class of the sample, from the catalogue entry",
    "split": "part of the evaluation: train, test, unused, or empty where assigned at fit time",
    "source": "archive and member that the sample was read from",
    "member": "name inside the archive",
    "item": "index inside the member",
}


def chunk_template(entry: Entry, listing: Listing, plan: Plan) -> xr.Dataset:
    """Describe the chunk store: ``signal`` (sample, [channel,] y, x) in the source's dtype, and ``status`` (sample)."""
    columns = dict(listing.columns)
    columns["source"] = np.array([f"{listing.uri}/{member}" for member in columns["member"]], dtype=object)
    coords: dict[str, Any] = {name: ("sample", values, _sample_attrs(name)) for name, values in columns.items()}
    if listing.channels:
        coords["channel"] = ("channel", np.array(listing.channels, dtype=object))
    for dim, size in zip(listing.dims[-2:], listing.shape[-2:], strict=True):
        coords[dim] = (dim, np.arange(size, dtype=np.float64), {"units": "pixel", "long_name": f"{dim} in the sample"})
    identity = {
        "format": FORMAT,
        "entry": entry.digest,
        "members": digest({name: values.tolist() for name, values in listing.columns.items()}),
        # Not its place: a copy elsewhere is the same archive.
        "archive": {name: value for name, value in listing.checksum.items() if name != "path"},
        "shape": list(plan.signal_shape),
        "dtype": str(listing.dtype),
        "grid": extent(plan.signal_grid),
    }
    variables = _variables(
        "signal", {"long_name": "sample as read"}, listing.dims, plan.signal_shape, listing.dtype, plan.signal_grid
    )
    attrs = _provenance(entry, identity, f"ingested from {listing.uri}")
    attrs["input_checksums"] = json.dumps(listing.checksum, sort_keys=True)
    attrs["notes"] = "\n".join(listing.notes)
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def feature_template(chunks: xr.Dataset, entry: Entry, spec: Spec, plan: Plan, transform: Scattering2D) -> xr.Dataset:
    """Describe the feature cube: ``scattering`` (sample, [channel,] path, y, x) and ``status`` (sample), all labelled.

    Every coordinate of a sample comes over from the chunk store, so the cube stands on its own.
    """
    coords: dict[str, Any] = {
        str(name): ("sample", variable.values, variable.attrs)
        for name, variable in chunks.coords.items()
        if variable.dims == ("sample",) and name not in ("member", "item")
    }
    if "channel" in chunks.coords:
        coords["channel"] = ("channel", chunks["channel"].values)
    for name, values in transform.paths.columns.items():
        units, description = transform.paths.units[name], transform.paths.descriptions[name]
        coords[name] = ("path", values, {"units": units, "long_name": description})
    for dim, positions in zip(("y", "x"), transform.positions, strict=True):
        coords[dim] = (dim, positions, {"units": "pixel", "long_name": f"{dim} of the coefficient, in input pixels"})
    identity = {
        "format": FORMAT,
        "spec": spec.digest,
        "chunks": digest(json.loads(chunks.attrs[IDENTITY])),
        "shape": list(plan.feature_shape),
        "grid": extent(plan.feature_grid),
    }
    attrs = _provenance(entry, identity, f"scattering of {chunks.attrs['title']}")
    attrs |= {
        "spec": spec.to_yaml(),
        "spec_digest": spec.digest,
        "filter_digest": transform.filter_digest,
        "input_checksums": chunks.attrs["input_checksums"],
        "references": "Bruna and Mallat, Invariant scattering convolution networks, IEEE TPAMI 35 (2013), 1872-1886",
    }
    dims = (*map(str, chunks["signal"].dims[1:-2]), "path", "y", "x")
    meaning = {"long_name": "scattering coefficient", "units": "unit of signal"}
    variables = _variables("scattering", meaning, dims, plan.feature_shape, np.dtype(spec.dtype), plan.feature_grid)
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = ("scattercube", "numpy", "scipy", "zarr", "xarray", "dask", "prefect", "scikit-learn", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _provenance(entry: Entry, identity: Mapping[str, Any], what: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "title": entry.title,
        "licence": entry.licence,
        "entry": entry.to_yaml(),
        "entry_digest": entry.digest,
        IDENTITY: json.dumps(identity, sort_keys=True),
        "versions": json.dumps(versions()),
        "created": now,
        "history": f"{now} scattercube {version('scattercube')}: {what}",
        "Conventions": "CF-1.11",
    }


def _sample_attrs(name: str) -> dict[str, str]:
    if name in ("y0", "x0"):
        return {"units": "pixel", "long_name": f"{name[0]} of the sample's first pixel in its image"}
    return {"long_name": _DESCRIPTIONS.get(name, f"{name}, from the catalogue entry")}


def _variables(
    name: str, attrs: Mapping[str, Any], dims: Sequence[str], shape: tuple[int, ...], dtype: np.dtype, grid: Grid
) -> dict[str, xr.Variable]:
    """One array cut along ``sample`` and its status, without contents."""
    inner = shape[1:]
    values = xr.Variable(("sample", *dims), np.broadcast_to(np.zeros((), dtype), shape), attrs)
    values.encoding = {"chunks": (grid.chunk, *inner), "shards": (grid.shard, *inner)}
    status = xr.Variable(("sample",), np.broadcast_to(np.uint8(), shape[:1]), _STATUS)
    status.encoding = {"chunks": (grid.shard,)}  # one byte a sample: what is written at once is small enough to read
    return {name: values, "status": status}
