"""The bytes of a shard: inner chunks behind each other, Blosc each, and at the end the index that says where they are.

These are the bytes that zarr-python writes, made here for two reasons. It takes half the time, and that of writing a
file; and a published shard whose last rows are empty can be extended. A reader asks for the index of a shard and then
for chunks, and the file may be replaced between: so an extended shard begins with all bytes that were published, old
index included, and chunks that changed stand behind them, before the new index. Whichever index a reader holds, what it
names is there. What is no longer named is dead weight, at most one inner chunk row and an index for each extension.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Self

import google_crc32c
import numpy as np
from numcodecs.blosc import SHUFFLE, Blosc

COMPRESSION = {"cname": "lz4", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
_BLOSC = Blosc("lz4", 1, SHUFFLE, 0)
_INDEX_CODECS = ["bytes", "crc32c"]
_CRC_NBYTES = 4
_NOWHERE = 2**64 - 1  # in an index: there is no such inner chunk


@dataclass(frozen=True)
class Coding:
    """How one file of an array is encoded, as its Zarr metadata say.

    Attributes
    ----------
    dtype
        Of the numbers, little-endian.
    shape
        Of what one file holds: a shard, or a chunk where the array has no shards.
    chunk
        Of an inner chunk; None where the array has no shards.
    fill
        What stands where the array does not reach.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None
    fill: Any

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """Read it from an array's ``zarr.json``.

        Raises
        ------
        ValueError
            The array is encoded in another way than this module writes.
        """
        dtype = np.dtype(str(metadata["data_type"])).newbyteorder("<")
        shape = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        codecs, chunk = metadata["codecs"], None
        if _names(codecs) == ["sharding_indexed"]:
            sharding = codecs[0]["configuration"]
            codecs, chunk = sharding["codecs"], tuple(sharding["chunk_shape"])
            little = _little(sharding["index_codecs"][0], 8)
            if _names(sharding["index_codecs"]) != _INDEX_CODECS or not little:
                raise ValueError(f"its shards are indexed by {sharding['index_codecs']}; this version writes crc32c")
            if sharding.get("index_location", "end") != "end":
                raise ValueError("the index of its shards stands at the start; this version writes it at the end")
        wanted = {**COMPRESSION, "typesize": dtype.itemsize}
        if (
            _names(codecs) != ["bytes", "blosc"]
            or not _little(codecs[0], dtype.itemsize)
            or (codecs[1]["configuration"] != wanted)
        ):
            raise ValueError(f"it is encoded by {codecs}; this version writes little-endian bytes, Blosc {wanted}")
        fill = metadata["fill_value"]
        if isinstance(fill, list | tuple):
            number: Any = complex(*map(float, fill))
        else:
            number = float(fill) if isinstance(fill, str) else fill
        return cls(dtype, shape, chunk, np.array(number, dtype)[()])

    @property
    def counts(self) -> tuple[int, ...]:
        """How many inner chunks a shard has along each axis."""
        assert self.chunk is not None
        return tuple(n // c for n, c in zip(self.shape, self.chunk, strict=True))

    def encode(self, values: np.ndarray) -> list[bytes]:
        """Encode one file: all of a shard or chunk, or what of it the array reaches."""
        if self.chunk is None:
            return [self._pack(values, self.shape)]
        index = np.full((*self.counts, 2), _NOWHERE, "<u8")
        return self._put_together(index, values, first=0, old=b"")

    def extended(self, old: bytes, first: int, values: np.ndarray) -> list[bytes]:
        """Put rows behind the first so many of a shard; raises ValueError where that is damaged.

        Parameters
        ----------
        old
            All bytes of the shard as it was published. They stay, in front.
        first
            How many of its rows are in use.
        values
            The rows behind them, up to the end of the shard or of the array.
        """
        return self._put_together(self._index(old), values, first, old)

    def _put_together(self, index: np.ndarray, values: np.ndarray, first: int, old: bytes) -> list[bytes]:
        """Encode the inner chunks that have rows from ``first`` on, and name them in the index."""
        assert self.chunk is not None
        parts, at, rows = [old] if old else [], len(old), self.chunk[0]
        for place in _order(self.counts):
            start = place[0] * rows
            box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place[1:], self.chunk[1:], strict=True))
            new = values[(slice(max(start - first, 0), max(start + rows - first, 0)), *box)]
            if not new.size:
                continue  # nothing of it is new, or the array does not reach it
            kept = max(first - start, 0)
            if kept:
                nbytes = slice(int(index[place][0]), int(index[place].sum()))
                chunk = np.full(self.chunk, self.fill, self.dtype)
                chunk[:kept] = self._unpack(old[nbytes], self.chunk)[:kept]
                chunk[(slice(kept, kept + len(new)), *map(slice, new.shape[1:]))] = new
                packed = self._pack(chunk, self.chunk)
            else:
                packed = self._pack(new, self.chunk)
            index[place] = at, len(packed)
            at += len(packed)
            parts.append(packed)
        encoded = index.tobytes()
        return [*parts, encoded + google_crc32c.value(encoded).to_bytes(_CRC_NBYTES, "little")]

    def _pack(self, values: np.ndarray, shape: tuple[int, ...]) -> bytes:
        if values.shape != shape:
            whole = np.full(shape, self.fill, self.dtype)
            whole[tuple(map(slice, values.shape))] = values
            values = whole
        packed: bytes = _BLOSC.encode(np.ascontiguousarray(values, self.dtype))
        return packed

    def _unpack(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(_BLOSC.decode(content), self.dtype).reshape(shape)

    def _index(self, content: bytes) -> np.ndarray:
        nbytes = 16 * prod(self.counts)
        encoded, crc = content[-nbytes - _CRC_NBYTES : -_CRC_NBYTES], content[-_CRC_NBYTES:]
        if len(encoded) != nbytes or google_crc32c.value(encoded) != int.from_bytes(crc, "little"):
            raise ValueError("the index of the shard does not match its checksum")
        return np.frombuffer(encoded, "<u8").reshape(*self.counts, 2).copy()


@cache
def _order(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the places of the inner chunks of a shard in the order in which they are written: Morton's.

    The bits of the numbers along each axis take turns, the lowest first and the first axis first; an axis whose numbers
    have no more bits is left out.
    """
    places = np.indices(counts).reshape(len(counts), -1)
    bits, codes, bit = [(count - 1).bit_length() for count in counts], np.zeros(places.shape[1], np.int64), 0
    for level in range(max(bits, default=0)):
        for axis, n_bits in enumerate(bits):
            if level < n_bits:
                codes |= ((places[axis] >> level) & 1) << bit
                bit += 1
    return tuple(map(tuple, places[:, np.argsort(codes)].T.tolist()))


def _names(codecs: list[Any]) -> list[str]:
    return [codec if isinstance(codec, str) else codec["name"] for codec in codecs]


def _little(codec: Any, itemsize: int) -> bool:
    """Whether numbers are little-endian; of single bytes nothing is said."""
    configuration = {} if isinstance(codec, str) else codec.get("configuration", {})
    return itemsize == 1 or configuration.get("endian") == "little"
