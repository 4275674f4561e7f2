"""Stores by their place: which back-end keeps one, to write, and to read as a Dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    store: Store = PlainStore(str(place))
    if not store.versions() and next(files_at(store.url).names("snapshots/"), None) is not None:
        store = store_at(store.url, "icechunk")
    return store.open(version)
