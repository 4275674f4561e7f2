"""The bytes of a shard: inner chunks behind each other, Blosc each, and at the end the index that says where they are.

These are the bytes that zarr-python writes, made here for two reasons. It takes half the time, and that of writing a
file; and a published shard whose last rows are empty can be extended. A reader asks for the index of a shard and then
for chunks, and the file may be replaced between. So an extended shard leaves in place whatever the last two indexes
before its own name, and chunks that changed go into the room between, where it is large enough, or behind. A reader is
misled only if a shard is extended three times while it reads one chunk; and a shard that grows a row at a time takes
about what it takes as a whole, and a few rows of inner chunks.

To know what to leave in place, and to extend again what a killed writer has extended already, a shard keeps the indexes
before its own, in front of it, where no reader looks, and who has extended it last. An extended shard is, from its
start: inner chunks and room between them, the indexes kept, their `_FOOTER`, the index.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
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
_N_HELD = 2  # indexes that an extended shard leaves valid
_FOOTER = struct.Struct("<8s16sII")  # a mark, the signature of the writer, how many indexes are kept, checksum of all
_MARK = b"extended"
_BLOSC_HEADER = struct.Struct("<4xI4xI")  # bytes before and after compression


@dataclass(frozen=True)
class _Ending:
    """What stands behind the inner chunks of a shard: its index, those before, who has extended it (b"": nobody)."""

    index: np.ndarray
    held: tuple[np.ndarray, ...] = ()
    writer: bytes = b""


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
        """How many inner chunks a file has along each axis: one, where the array has no shards."""
        return tuple(n // c for n, c in zip(self.shape, self.chunk or self.shape, strict=True))

    def touched(self, box: tuple[slice, ...]) -> list[range]:
        """Return which inner chunks a box of a file has something of, along each axis."""
        return [_cells(along, n) for along, n in zip(box, self.chunk or self.shape, strict=True)]

    def encode(self, values: np.ndarray) -> list[bytes]:
        """Encode one file: all of a shard or chunk, or what of it the array reaches."""
        if self.chunk is None:
            return [self._pack(values, self.shape)]
        index, parts, at = np.full((*self.counts, 2), _NOWHERE, "<u8"), [], 0
        for place, packed in self._inner_chunks(values):
            index[place] = at, len(packed)
            at += len(packed)
            parts.append(packed)
        return [*parts, _with_checksum(index)]

    def decode(self, content: bytes, box: tuple[slice, ...], out: np.ndarray) -> None:
        """Read a box of one file, of which all bytes are given, into an array of that shape and this dtype.

        Raises
        ------
        ValueError, RuntimeError
            The bytes are damaged; what is in ``out`` is void.
        """
        chunk, whole = self.chunk or self.shape, memoryview(content)
        index = None if self.chunk is None else self._index(content)
        for place, inside, there in cut(box, chunk):
            target = out[there]
            offset, nbytes = (0, len(content)) if index is None else index[place].tolist()
            if offset == _NOWHERE:
                target[...] = self.fill
                continue
            packed = whole[offset : offset + nbytes]
            if len(packed) != nbytes:
                raise ValueError("the index of the shard names bytes behind its end")
            if target.shape == chunk and target.flags.c_contiguous:
                _unpack_into(packed, target)
            else:
                unpacked = np.empty(chunk, self.dtype)
                _unpack_into(packed, unpacked)
                target[...] = unpacked[inside]

    def extended(self, old: bytes, first: int, values: np.ndarray, writer: str) -> bytes:
        """Put rows behind the first so many of a shard; raises ValueError where that is damaged.

        Parameters
        ----------
        old
            All bytes of the shard, as it was published or as this writer has extended it: both give the same.
        first
            How many of its rows are in use.
        values
            The rows behind them, up to the end of the shard or of the array.
        writer
            Who extends it: a name of the version that is written.
        """
        ending, signature = self._ending(old), _signature(writer)
        held = ending.held if ending.writer == signature else (*ending.held, ending.index)[-_N_HELD:]
        regions = _merged(np.concatenate([index.reshape(-1, 2) for index in held]))
        if regions and regions[-1][1] > len(old):
            raise ValueError("the index of the shard names bytes behind its end")
        index = held[-1].copy()
        whole = -(-first // self._rows)  # what is behind was begun by somebody, and given up
        index[whole:] = _NOWHERE
        content = bytearray(regions[-1][1] if regions else 0)
        for start, stop in regions:
            content[start:stop] = old[start:stop]
        for place, packed in self._inner_chunks(values, first, held[-1], old):
            at = _room(regions, len(packed))
            content[at : at + len(packed)] = packed
            index[place] = at, len(packed)
        kept = b"".join(each.tobytes() for each in held)
        footer = _FOOTER.pack(_MARK, signature, len(held), google_crc32c.value(kept + signature))
        return b"".join((content, kept, footer, _with_checksum(index)))

    def is_extended_by(self, end: bytes, writer: str) -> bool:
        """Whether a shard, of which the last `ending_nbytes` are given, has the rows that a writer put behind."""
        return self._ending(end).writer == _signature(writer)

    @property
    def ending_nbytes(self) -> int:
        """How many bytes at most stand behind the inner chunks of a shard."""
        return (1 + _N_HELD) * 16 * prod(self.counts) + _CRC_NBYTES + _FOOTER.size

    @property
    def _rows(self) -> int:
        assert self.chunk is not None
        return self.chunk[0]

    def _inner_chunks(
        self, values: np.ndarray, first: int = 0, index: np.ndarray | None = None, old: bytes = b""
    ) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Encode the inner chunks that have rows from ``first`` on; rows before are in ``old``, where an index says."""
        assert self.chunk is not None
        for place in _order(self.counts):
            start = place[0] * self._rows
            box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place[1:], self.chunk[1:], strict=True))
            new = values[(slice(max(start - first, 0), max(start + self._rows - first, 0)), *box)]
            if not new.size:
                continue  # nothing of it is new, or the array does not reach it
            kept = max(first - start, 0)
            if kept:
                assert index is not None
                nbytes = slice(int(index[place][0]), int(index[place].sum()))
                chunk = np.empty(self.chunk, self.dtype)
                _unpack_into(memoryview(old)[nbytes], chunk)
                chunk[kept:] = self.fill
                chunk[(slice(kept, kept + len(new)), *map(slice, new.shape[1:]))] = new
                new = chunk
            yield place, self._pack(new, self.chunk)

    def _pack(self, values: np.ndarray, shape: tuple[int, ...]) -> bytes:
        if values.shape != shape:
            whole = np.full(shape, self.fill, self.dtype)
            whole[tuple(map(slice, values.shape))] = values
            values = whole
        packed: bytes = _BLOSC.encode(np.ascontiguousarray(values, self.dtype))
        return packed

    def _ending(self, content: bytes) -> _Ending:
        """Read what stands behind the inner chunks; ``content`` is a shard, or its last bytes."""
        index, nbytes = self._index(content), 16 * prod(self.counts)
        content = content[: -nbytes - _CRC_NBYTES]
        if len(content) < _FOOTER.size:
            return _Ending(index)
        content, footer = content[: -_FOOTER.size], content[-_FOOTER.size :]
        mark, writer, n_held, checksum = _FOOTER.unpack(footer)
        kept = content[len(content) - n_held * nbytes :] if n_held * nbytes <= len(content) else b""
        if mark != _MARK or not 0 < n_held <= _N_HELD or google_crc32c.value(kept + writer) != checksum:
            return _Ending(index)
        held = (self._read_index(kept[i * nbytes : (i + 1) * nbytes]) for i in range(n_held))
        return _Ending(index, tuple(held), writer)

    def _index(self, content: bytes) -> np.ndarray:
        """Read the index at the end of a shard, or of its last bytes."""
        nbytes = 16 * prod(self.counts)
        encoded, crc = content[-nbytes - _CRC_NBYTES : -_CRC_NBYTES], content[-_CRC_NBYTES:]
        if len(encoded) != nbytes or google_crc32c.value(encoded) != int.from_bytes(crc, "little"):
            raise ValueError("the index of the shard does not match its checksum")
        return self._read_index(encoded)

    def _read_index(self, encoded: bytes) -> np.ndarray:
        return np.frombuffer(encoded, "<u8").reshape(*self.counts, 2)


def cut(
    box: tuple[slice, ...], cell: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Cut a box by a grid of cells of one shape; yield of each its number along each axis, and what the box has of it.

    That is said twice: from where the cell begins, and from where the box does.
    """
    axes = []
    for along, n in zip(box, cell, strict=True):
        bounds = [(i, max(along.start, i * n), min(along.stop, i * n + n)) for i in _cells(along, n)]
        axes.append([(i, slice(a - i * n, b - i * n), slice(a - along.start, b - along.start)) for i, a, b in bounds])
    for place in product(*axes):
        index, inside, there = zip(*place, strict=True)
        yield index, inside, there


def _cells(along: slice, n: int) -> range:
    """Return which cells of length ``n`` a part of an axis has something of."""
    return range(along.start // n, -(-along.stop // n))


def _unpack_into(packed: memoryview, target: np.ndarray) -> None:
    """Decode an inner chunk into an array of its size; its header is believed only where it says what must be."""
    if len(packed) < _BLOSC_HEADER.size:
        raise ValueError("a chunk is cut off")
    n_unpacked, n_packed = _BLOSC_HEADER.unpack_from(packed)
    if (n_unpacked, n_packed) != (target.nbytes, len(packed)):
        raise ValueError(f"a chunk of {target.nbytes} bytes says that it has {n_unpacked}, in {n_packed} bytes")
    _BLOSC.decode(packed, out=target)


def _with_checksum(index: np.ndarray) -> bytes:
    encoded = index.tobytes()
    checksum: int = google_crc32c.value(encoded)
    return encoded + checksum.to_bytes(_CRC_NBYTES, "little")


def _signature(writer: str) -> bytes:
    return hashlib.sha256(writer.encode()).digest()[:16]


def _merged(places: np.ndarray) -> list[tuple[int, int]]:
    """Return the regions of a file that offsets and lengths (n, 2) name, in order, those that touch as one."""
    regions: list[tuple[int, int]] = []
    for offset, nbytes in sorted((int(o), int(n)) for o, n in places.tolist() if o != _NOWHERE):
        if regions and offset <= regions[-1][1]:
            regions[-1] = (regions[-1][0], max(regions[-1][1], offset + nbytes))
        else:
            regions.append((offset, offset + nbytes))
    return regions


def _room(regions: list[tuple[int, int]], nbytes: int) -> int:
    """Return where so many bytes have room between regions or behind them, and take it: ``regions`` has it then."""
    at = number = 0
    for start, stop in regions:
        if start - at >= nbytes:
            break
        at, number = stop, number + 1
    regions.insert(number, (at, at + nbytes))
    if number + 1 < len(regions) and regions[number + 1][0] == at + nbytes:
        regions[number : number + 2] = [(at, regions[number + 1][1])]
    if number and regions[number - 1][1] == at:
        regions[number - 1 : number + 1] = [(regions[number - 1][0], regions[number][1])]
    return at


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
