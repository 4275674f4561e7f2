"""Stores by their place: which back-end keeps one, to write, and to read as a Dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scattercube.pipeline.stores.documents import ROOT_DOCUMENT
from scattercube.pipeline.stores.files import files_at
from scattercube.pipeline.stores.plain import PlainStore
from scattercube.pipeline.stores.protocol import Store

if TYPE_CHECKING:
    import xarray as xr

Backend = Literal["zarr", "icechunk"]


def store_at(url: str, backend: Backend = "zarr") -> Store:
    """Return the store at a path or URL, there or not, as a back-end keeps it. Raises StoreError."""
    if backend == "zarr":
        return PlainStore(url)
    from scattercube.pipeline.stores.icechunk_store import IcechunkStore

    return IcechunkStore(url)


def backend_at(url: str) -> Backend | None:
    """Return which back-end keeps what is published or was begun at a path or URL; None where there is neither.

    Of a plain store only what is published counts.
    """
    files = files_at(url)
    if files.size(ROOT_DOCUMENT) is not None:
        return "zarr"
    return "icechunk" if next(files.names("snapshots/"), None) is not None else None


def open_cube(place: str | Path, version: str | None = None) -> "xr.Dataset":
    """Open a chunk store or feature cube lazily, whichever back-end keeps it.

    Of a plain store that is ``xarray.open_zarr``, but that a shard which is absent is an error and no NaN.

    Parameters
    ----------
    place
        A path or URL.
    version
        One that was published before, as ``Store.versions`` names it; by default the last.

    Raises
    ------
    StoreError
        Nothing is published there, or no such version.
    """
    url = PlainStore(str(place)).url
    return store_at(url, backend_at(url) or "zarr").open(version)
