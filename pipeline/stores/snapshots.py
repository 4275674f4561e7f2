"""One snapshot of an Icechunk repository, or a session that will be the next: its arrays, and which shards it has."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey
from scattercube.pipeline.stores.contents import digest_of
from scattercube.pipeline.stores.shards import Coding
from scattercube.pipeline.stores.transactions import State

if TYPE_CHECKING:
    from icechunk import Session


@dataclass(frozen=True)
class Snapshot:
    """A session and where its version stands.

    Attributes
    ----------
    url
        Where the repository is, for messages.
    session
        To read from, or to write to.
    state
        What the snapshot's commit says of the version.
    """

    url: str
    session: "Session"
    state: State

    def array(self, name: str) -> Any:
        """Return one array, which may be written where the session may."""
        mode = "r" if self.session.read_only else "r+"
        return zarr.open_array(self.session.store, path=name, mode=mode, zarr_format=3)

    def box(self, name: str, key: ChunkKey) -> dict[str, slice]:
        """Return the part of an array that belongs to a key, by dims. Raises StoreError where it is not one shard."""
        array, starts, state, box = self.array(name), dict(key.offsets), self.state, {}
        for dim, size, length in zip(
            array.metadata.dimension_names, array.shape, array.shards or array.chunks, strict=True
        ):
            start, first = starts.get(dim, 0), state.first if dim == "sample" else 0
            if not first <= start < size or (start % length and start != first):
                raise StoreError(
                    f"{self.url}/{name} {key}: no shard begins at {dim} {start}; one write is one whole shard, which "
                    f"begins at {first} or at a multiple of {length} behind it, below {size}"
                )
            box[dim] = slice(start, min(start // length * length + length, size))
        return box

    def write(self, name: str, key: ChunkKey, values: np.ndarray) -> None:
        """Write one key of an array. Raises StoreError where the values are not exactly that."""
        array, box = self.array(name), tuple(self.box(name, key).values())
        expected = tuple(s.stop - s.start for s in box)
        if values.shape != expected or values.dtype != array.dtype:
            raise StoreError(
                f"{self.url}/{name} {key}: got {values.dtype}{values.shape}; one write is one whole shard of "
                f"{array.shards or array.chunks}, here {array.dtype}{expected}"
            )
        lengths = array.shards or array.chunks
        if any(s.start % n for s, n in zip(box, lengths, strict=True)):  # the rows before are in the same shard
            array[box] = values
            return
        # Zarr would take twice the time for the same bytes.
        prototype = default_buffer_prototype()
        coding = Coding.of(json.loads(array.metadata.to_buffer_dict(prototype)["zarr.json"].to_bytes()))
        content = prototype.buffer.from_bytes(b"".join(coding.encode(values)))
        shard = array.metadata.encode_chunk_key(tuple(s.start // n for s, n in zip(box, lengths, strict=True)))
        sync((array.store_path / shard).set(content))

    def read(self, name: str, wanted: Mapping[str, slice]) -> np.ndarray:
        """Read a region of an array, by dims. Raises StoreError where a shard of it is absent."""
        array = self.array(name)
        dims = zip(array.metadata.dimension_names, array.shape, strict=True)
        box = tuple(slice(*wanted.get(dim, slice(None)).indices(size)[:2]) for dim, size in dims)
        self._refuse_absent(name, array, box)
        values = np.asarray(array[box])
        return values.astype(object) if values.dtype.kind in "TU" else values

    def set_status(self, rows: Mapping[int, int]) -> None:
        """Give rows a status, chunk by chunk."""
        array = self.array("status")
        index, codes = np.fromiter(rows, np.int64, len(rows)), np.fromiter(rows.values(), np.uint8, len(rows))
        (length,) = array.chunks
        for chunk in np.unique(index // length).tolist():
            inside, start = index // length == chunk, chunk * length
            values = np.array(array[start : start + length])
            values[index[inside] - start] = codes[inside]
            array[start : start + length] = values

    def content(self, key: ChunkKey, now: "Snapshot") -> str:
        """Digest the numbers of a key of this version as another has them; later ones may change the status only."""
        names = (name for name in self.state.arrays if name != "status" or len(key.offsets) == 1)
        return digest_of((self if name == "status" else now).read(name, self.box(name, key)) for name in names)

    def n_keys(self) -> int:
        """Return how many keys the version's own rows have: as many as the array that is cut most has shards."""
        found = [0]
        for array in map(self.array, self.state.arrays):
            lengths = array.shards or array.chunks
            counts = [ceil(size / length) for size, length in zip(array.shape, lengths, strict=True)]
            found.append((counts[0] - self.state.first // lengths[0]) * prod(counts[1:]))
        return max(found) if self.state.n_rows > self.state.first else 0

    def _refuse_absent(self, name: str, array: Any, box: tuple[slice, ...]) -> None:
        """Zarr would read what is absent as zeros or NaN, without a word."""
        lengths, encode = array.shards or array.chunks, array.metadata.encode_chunk_key
        touched = product(*(range(s.start // n, -(-s.stop // n)) for s, n in zip(box, lengths, strict=True)))
        # Not by Icechunk's own `chunk_type`, which holds the interpreter's lock while it waits for the object store.
        gap = next((shard for shard in touched if not sync((array.store_path / encode(shard)).exists())), None)
        if shard := gap or self._unwritten_tail(name, lengths, box[0] if box else slice(0, 0)):
            raise StoreError(
                f"{self.url}/{name}: shard {shard} is not there: it was not recorded; run the command again"
            )

    def _unwritten_tail(self, name: str, lengths: tuple[int, ...], rows: slice) -> tuple[int, ...] | None:
        """Return the shard that is there for the sake of the rows before it, where rows behind them are asked for."""
        first = self.state.first
        if name not in self.state.arrays or self.state.tail or not first % lengths[0]:
            return None
        shared = first // lengths[0]
        asked = max(rows.start, first) < min(rows.stop, (shared + 1) * lengths[0])
        return (shared, *(0 for _ in lengths[1:])) if asked else None
