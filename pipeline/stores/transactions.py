"""What one commit of a run holds besides shards: where the version stands, and the template of its arrays."""

import json
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Self

import zarr

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.documents import plain_attributes
from scattercube.pipeline.stores.repositories import MANIFEST_SHARDS
from scattercube.pipeline.stores.states import VERSIONS

if TYPE_CHECKING:
    import xarray as xr
    from icechunk import Session

_ELSEWHERE = "choose another --store, or remove this one to make it anew"
_STATE, _EVENTS = "scattercube", "events"  # what commits carry, as JSON


@dataclass(frozen=True)
class State:
    """Where a version stands. Every commit of a run carries it.

    Attributes
    ----------
    version, n_rows
        Its number, and how many rows it has.
    first
        How many of them are published already.
    arrays
        The names of what is written by keys.
    tail
        Whether the rows behind ``first`` are written where they share a shard with rows before it.
    final
        Whether this is what ``publish`` committed.
    token
        What tells the version from others of its number that were given up.
    """

    version: int
    n_rows: int
    first: int
    arrays: Sequence[str]
    tail: bool = False
    final: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Read the state of a commit back; None for the empty snapshot that a repository begins with."""
        return cls(**json.loads(metadata[_STATE])) if _STATE in metadata else None

    def next(self, n_rows: int, arrays: Sequence[str]) -> "State":
        """Return the state in which the version behind this one begins."""
        return State(self.version + 1, n_rows, self.n_rows, arrays)

    def metadata(self, events: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
        """Return the metadata of a commit."""
        return {_STATE: json.dumps(asdict(self)), _EVENTS: json.dumps(list(events), separators=(",", ":"))}


def events_in(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the events that a commit made part of the version."""
    events: list[dict[str, Any]] = json.loads(metadata[_EVENTS])
    return events


def splits(template: "xr.Dataset") -> dict[str, int]:
    """Return how many shards along ``sample`` one manifest of each array lists."""
    lengths = {}
    for name, variable in template.data_vars.items():
        shard = variable.encoding.get("shards") or variable.encoding["chunks"]
        beside = prod(ceil(size / n) for size, n in zip(variable.shape[1:], shard[1:], strict=True))
        lengths[str(name)] = max(1, MANIFEST_SHARDS // beside)
    return lengths


def grow(session: "Session", template: "xr.Dataset", first: int) -> None:
    """Add the rows of the next version: longer arrays, and the coordinates of what is new.

    Raises
    ------
    StoreError
        The arrays are not those of the version before.
    """
    import xarray as xr

    group = zarr.open_group(session.store, mode="r+")
    names = {str(name) for name in template.variables}
    if other := names ^ set(group.array_keys()):
        raise StoreError(f"only one of the version before and this run has {', '.join(sorted(other))}; {_ELSEWHERE}")
    for name, variable in template.data_vars.items():
        array = _array(group, name)
        held = (array.metadata.dimension_names, array.dtype, array.shape[1:], array.chunks, array.shards)
        wanted: tuple[Any, ...] = (variable.dims, variable.dtype, variable.shape[1:], variable.encoding["chunks"])
        wanted += (variable.encoding.get("shards"),)
        if [*map(str, held)] != [*map(str, wanted)] and array.shards:
            raise StoreError(f"{name} is stored as {held}, this run has {wanted}; {_ELSEWHERE}")
    rows = [name for name, coordinate in template.coords.items() if "sample" in coordinate.dims]
    new = template.coords.to_dataset()[rows].isel(sample=slice(first, None)).drop_encoding().drop_attrs()
    if rows and new.sizes["sample"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # xarray's, of what is compared below
            new.to_zarr(session.store, append_dim="sample", zarr_format=3, consolidated=False)
    for name, variable in template.data_vars.items():
        _array(group, name).resize(variable.shape)
    try:
        columns = xr.open_zarr(session.store, consolidated=False, chunks=None)
    except (ValueError, OverflowError) as failure:  # new times have no place among the old ones
        raise StoreError(
            f"the stored columns cannot hold the values of the new rows: {failure}; {_ELSEWHERE}"
        ) from failure
    for name in rows:
        held_rows, wanted_rows = columns[name].variable, template[name].variable
        if not held_rows[:first].equals(wanted_rows[:first]):
            raise StoreError(f"{name} of samples that are published is no longer what it was; {_ELSEWHERE}")
        if not held_rows[first:].equals(wanted_rows[first:]):  # xarray gives new times the units of the old ones
            raise StoreError(f"{name}: the stored column cannot hold the values of the new rows; {_ELSEWHERE}")
    kept = (VERSIONS, "coordinates")  # the second is xarray's list of them
    before = {name: group.attrs[name] for name in kept if name in group.attrs}
    group.attrs.put({**plain_attributes(template.attrs), **before})


def _array(group: zarr.Group, name: Any) -> Any:
    return group[str(name)]
