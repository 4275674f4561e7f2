"""The Zarr documents of a group: from a template, grown by rows, and as arrays that read and write by them.

The metadata of all arrays stand in the document of the group itself (consolidated), so that one file says what there
is. Arrays are opened by that document, and not by their own: what waits to be published is read like what is.
"""

import asyncio
import json
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore, MemoryStore, ObjectStore, StorePath, WrapperStore

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.buckets import ObjectFiles, is_broken_off, pauses
from scattercube.pipeline.stores.files import REMEDY, files_at
from scattercube.pipeline.stores.shards import Coding

if TYPE_CHECKING:
    import xarray as xr

# A chunk of zeros is written too: what is not there has not been written.
zarr.config.set({"array.write_empty_chunks": True})

ROOT_DOCUMENT = "zarr.json"
_CHUNK = re.compile(r"(?:^|/)c(?:[./]\d+)*$")
_MEANING = ("units", "calendar", "dtype", "scale_factor", "add_offset", "_FillValue")  # what numbers are decoded by


class Complete(WrapperStore[Any]):
    """A Zarr store in which a chunk that is absent is an error: Zarr would read zeros or NaN, without a word.

    Parameters
    ----------
    store
        The store.
    place
        Where it is, for messages.
    """

    def __init__(self, store: Any, place: str) -> None:
        super().__init__(store)
        self._place = place

    def _with_store(self, store: Any) -> "Complete":
        return Complete(store, self._place)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a file, or a range of them; None for a document that is absent."""
        content = await self._get(key, prototype, byte_range)
        if content is not None and not len(content) and _CHUNK.search(key):  # to Zarr, as good as absent
            raise StoreError(f"{self._place}/{key}: the file is cut off; the store is damaged: {REMEDY}")
        if content is None and _CHUNK.search(key):
            raise StoreError(
                f"{self._place}/{key}: the shard is not there, though it was written: remove {self._place} to make it "
                "anew"
            )
        return content

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        """Ask once more, and again, where an answer breaks off: the client of an object store does not."""
        for pause_s in pauses():
            try:
                return await self._store.get(key, prototype, byte_range)  # type: ignore[no-any-return]
            except Exception as failure:
                if not is_broken_off(failure):
                    raise
            await asyncio.sleep(pause_s)
        return await self._store.get(key, prototype, byte_range)  # type: ignore[no-any-return]


def zarr_store(place: str) -> Complete:
    """Return the Zarr store of a group, to read from."""
    files = files_at(place)
    if isinstance(files, ObjectFiles):
        return Complete(ObjectStore(files.client, read_only=True), place)
    return Complete(LocalStore(files.place, read_only=True), place)


def array_in(store: Any, name: str, metadata: Mapping[str, Any]) -> Any:
    """Open an array by the metadata given, whatever its own document says."""
    return zarr.Array(zarr.AsyncArray(ArrayV3Metadata.from_dict(dict(metadata)), StorePath(store, name)))


def metadata_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of all arrays in the document of a group, by name."""
    metadata: dict[str, Any] = document["consolidated_metadata"]["metadata"]
    return metadata


def write_template(store: Any, template: "xr.Dataset") -> None:
    """Write coordinates and attributes into a Zarr store, and arrays without a number."""
    template.coords.to_dataset().assign_attrs(template.attrs).to_zarr(store, zarr_format=3, consolidated=False)
    group = zarr.open_group(store, mode="r+")
    for name, variable in template.data_vars.items():
        group.create_array(
            str(name),
            shape=variable.shape,
            dtype=variable.dtype,
            chunks=variable.encoding["chunks"],
            shards=variable.encoding.get("shards"),
            compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="shuffle")],
            fill_value=np.nan if variable.dtype.kind == "f" else 0,
            dimension_names=[str(dim) for dim in variable.dims],
            attributes=plain_attributes(variable.attrs),
        )


def plain_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes as JSON has them: numbers may be NumPy's."""
    found: dict[str, Any] = json.loads(json.dumps(dict(attributes), default=lambda value: value.tolist()))
    return found


def documents(template: "xr.Dataset") -> dict[str, bytes]:
    """Write a template into memory: every file of the store but the shards, by name."""
    held: dict[str, Any] = {}
    memory = MemoryStore(held)
    with warnings.catch_warnings():
        # Consolidated metadata is our commit point, knowingly ahead of the specification.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", category=UserWarning)
        write_template(memory, template)
        zarr.consolidate_metadata(memory)
    return {name: content.to_bytes() for name, content in held.items()}


def refuse_other_arrays(url: str, held: Mapping[str, Any], template: "xr.Dataset") -> None:
    """Raise StoreError where a template's variables are not those of a store that it adds rows to."""
    if set(held) != set(map(str, template.variables)):
        names, others = (", ".join(sorted(map(str, found))) for found in (held, template.variables))
        raise StoreError(f"{url}: has {names}, this run {others}")
    for name, variable in template.data_vars.items():
        coding = Coding.of(held[str(name)])
        sharded = coding.chunk is not None
        has = (coding.dtype, held[str(name)]["dimension_names"], held[str(name)]["shape"][1:])
        wants = (variable.dtype.newbyteorder("<"), [*map(str, variable.dims)], [*variable.shape[1:]])
        cut = (coding.shape, coding.chunk) if sharded else None
        wanted = (tuple(variable.encoding["shards"]), tuple(variable.encoding["chunks"])) if sharded else None
        if has != wants or cut != wanted:
            raise StoreError(f"{url}: {name} is {has}, shard and chunk {cut}; this run has {wants}, {wanted}; {REMEDY}")


def appended(
    url: str, name: str, metadata: Mapping[str, Any], variable: "xr.Variable", first: int, source: Any
) -> dict[str, bytes]:
    """Return the chunks of a column that rows behind the first so many are in, by their name.

    The chunk in which the new rows begin is written as a whole, and its rows before them are as they were: whoever
    reads it before or after reads the same of them.

    Parameters
    ----------
    metadata
        As they are stored, with the length that the column will have.
    variable
        All of its rows.
    source
        The Zarr store that has the rows before.

    Raises
    ------
    StoreError
        The new values are of another type, or rows before have other values than are stored.
    """
    import xarray as xr

    (length, *rest) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    begin = first // length * length
    if begin >= len(variable):
        return {}
    rows = xr.Variable(variable.dims, variable.values[begin:], variable.attrs, {"chunks": (length, *rest)})
    held: dict[str, Any] = {}
    memory = MemoryStore(held)
    as_data = xr.Dataset({"rows": rows})
    as_data.to_zarr(memory, zarr_format=3, consolidated=False)
    made: Any = zarr.open_group(memory, mode="r")["rows"]
    made_as, stored_as = made.metadata.to_dict(), dict(metadata)
    differ = [part for part in ("data_type", "dimension_names") if _plain(made_as[part]) != _plain(stored_as[part])]
    differ += [
        part for part in _MEANING if str(made_as["attributes"].get(part)) != str(stored_as["attributes"].get(part))
    ]
    if differ:
        raise StoreError(
            f"{url}: {name} has another {', '.join(differ)} than is stored; rows can only be added that are alike"
        )
    kept: dict[str, Any] = {}
    array = array_in(MemoryStore(kept), name, {**metadata, "shape": [len(variable), *metadata["shape"][1:]]})
    values = made[:]
    if first > begin:
        before = np.asarray(array_in(source, name, metadata)[begin:first])
        if not _same(before, values[: first - begin]):
            raise StoreError(
                f"{url}: {name} of samples that are published, among {begin} to {first}, is not what this run has; "
                f"rows can only be added behind them: {REMEDY}"
            )
    array[begin:] = values
    return {key: content.to_bytes() for key, content in kept.items() if _CHUNK.search(key)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    same = one == other
    if one.dtype.kind in "fc":
        same |= np.isnan(one) & np.isnan(other)
    return bool(np.all(same))
