"""Zarr stores as archives, versions 2 and 3: arrays by path. What they hold comes from elsewhere and is not trusted.

Zarr itself would unpack a chunk to whatever size comes out, load Python objects where an array declares such a codec,
and read a chunk that is not there as its fill value. So metadata are looked at before Zarr sees them, and chunks pass
through a store of our own, which reads from any archive and never writes.
"""

import base64
import builtins
import json
import math
import re
import struct
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from scattercube.pipeline.errors import RecordError, ScattercubeError, said_by
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.archives.containers import MAX_MEMBER_NBYTES
from scattercube.pipeline.sources.array_files.forms import ABSENT, TEXT, Box, Form, Read, packing, refuse_bomb
from scattercube.pipeline.sources.array_files.packed import unpacked_nbytes

T = TypeVar("T")
_V3_CODECS = {"bytes", "transpose", "crc32c", "blosc", "gzip", "zstd", "vlen-utf8"}
_V2_CODECS = {"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma"}
_V2_FILTERS = {"shuffle", "delta", "fixedscaleoffset", "quantize", "bitround", "vlen-utf8"}
_INDEX_CODECS = ["bytes", "crc32c"]
_ABSENT_CHUNK = (1 << 64) - 1
_ROOM = 8  # how many times its size a chunk may take on its way: filters may widen numbers
_TEXT_NBYTES = 64 << 20  # of a chunk of text
SEQUENTIAL = False
_NUMBERS = re.compile(r"[<>|]?[biuf][1248]|[<>|]?[SU]\d{1,4}|bool|u?int(8|16|32|64)|float(16|32|64)")
_LONGEST_DOCUMENT = 16 << 20
_REMEMBERED = 64  # stores and arrays


@dataclass(frozen=True)
class _Place:
    """What the metadata of an array say of how its chunks are stored.

    Attributes
    ----------
    chunk, inner
        The shapes of what one file holds, and of what is unpacked at once: less, where files are shards.
    compressor
        The name of the codec that decides how large an unpacked chunk is; empty for none.
    trailer
        Bytes behind a packed chunk.
    index_at_end
        Of shards: where their index is.
    limit
        Bytes that an unpacked chunk may take.
    """

    version: int
    chunk: tuple[int, ...]
    inner: tuple[int, ...]
    compressor: str
    trailer: int
    index_at_end: bool
    limit: int

    @property
    def is_sharded(self) -> bool:
        """Whether files are shards of several chunks."""
        return self.chunk != self.inner

    @property
    def index_nbytes(self) -> int:
        """Bytes of the index of a shard, with its checksum."""
        return 16 * math.prod(whole // part for whole, part in zip(self.chunk, self.inner, strict=True)) + 4

    def pieces(self, where: str, content: bytes) -> Iterator[bytes]:
        """Yield the packed chunks of a file. Raises RecordError where it breaks off."""
        if not self.is_sharded:
            yield content
            return
        index = content[-self.index_nbytes :] if self.index_at_end else content[: self.index_nbytes]
        if len(index) < self.index_nbytes:
            raise RecordError("unreadable", f"{where}: breaks off after {len(content)} bytes")
        for at, nbytes in np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist():
            if at != _ABSENT_CHUNK:
                yield content[at : at + nbytes]


def forms(archive: Archive, name: str) -> Mapping[str, Form]:
    """Return the arrays of a store by path. Raises RecordError where it is damaged."""
    found = {}
    for path in _inventory(archive, name)[0]:
        try:
            known = form(archive, name, path)
        except RecordError:
            continue  # not one of ours; who asks for it by name is told why
        if known is not None:
            found[path] = known
    return found


def form(archive: Archive, name: str, path: str) -> Form | None:
    """Return an array, or None where there is none of that name. Raises RecordError where it is never read."""
    paths, nbytes = _inventory(archive, name)
    if path not in paths:
        return None
    version = paths[path]
    try:
        described = _v3(path, archive, name) if version == 3 else _v2(path, archive, name)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as failure:
        raise RecordError("unreadable", f"{name}: {path}: metadata that make no sense: {failure!r}") from failure
    refuse_bomb(f"{name}: {path}", math.prod(described.shape) * max(described.dtype.itemsize, 1), nbytes)
    return described


def box(archive: Archive, name: str, form: Form, where: Box, *, fill: bool) -> Read:
    """Read a part of an array, all of it or nothing."""
    try:
        values = _array(archive, name, form, fill)[where]
        if form.dtype == TEXT:
            return np.array([str(text) for text in np.ravel(values)], object).reshape(np.shape(values)), None
        return np.asarray(values).astype(form.dtype, copy=False), None
    except RecordError as failure:
        return np.empty(0), failure
    except ScattercubeError:
        raise
    except Exception as failure:  # what codecs raise has no end
        why = f"{name}: {form.path}: {said_by(failure)}"
        return np.empty(0), RecordError("unreadable", why)


def _inventory(archive: Archive, name: str) -> tuple[dict[str, int], int]:
    """Return the arrays by path with the version of their metadata, and the bytes of all files."""
    key = (str(archive.path), name, *archive.signature(name))
    if (known := _inventories.get(key)) is None:
        paths, nbytes = {}, 0
        for part, size in archive.parts(name):
            folder, _, file = part.rpartition("/")
            nbytes += size
            if file == ".zarray" or (
                file == "zarr.json" and _document(archive, name, part).get("node_type") == "array"
            ):
                paths[folder] = 2 if file == ".zarray" else 3
        return _remember(_inventories, key, (dict(sorted(paths.items())), nbytes))
    return known


_inventories: dict[tuple[Any, ...], tuple[dict[str, int], int]] = {}
_arrays: dict[tuple[Any, ...], Any] = {}
_lock = Lock()


def _remember(memory: dict[tuple[Any, ...], T], key: tuple[Any, ...], value: T) -> T:
    with _lock:
        while len(memory) >= _REMEMBERED:
            del memory[next(iter(memory))]
        memory[key] = value
    return value


def _document(archive: Archive, name: str, key: str) -> dict[str, Any]:
    content = archive.read_range(archive.part(name, key), 0, None)
    if len(content) > _LONGEST_DOCUMENT:
        raise RecordError("too-large", f"{name}/{key}: {len(content)} bytes of metadata")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as failure:
        raise RecordError("unreadable", f"{name}/{key}: no JSON: {failure}") from failure
    return found if isinstance(found, dict) else {}


def _v3(path: str, archive: Archive, name: str) -> Form:
    document = _document(archive, name, f"{path}/zarr.json".lstrip("/"))
    data_type, codecs = document["data_type"], document["codecs"]
    chunk = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    inner, index_at_end = chunk, True
    if document["chunk_grid"]["name"] != "regular" or document.get("storage_transformers"):
        raise RecordError("unreadable", f"{name}: {path}: chunks that are not a regular grid")
    if codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        inner, index_at_end = tuple(shard["chunk_shape"]), shard.get("index_location", "end") == "end"
        _refuse_codecs(f"{name}: {path}", [codec["name"] for codec in codecs[1:]], set())
        _refuse_codecs(f"{name}: {path}", [codec["name"] for codec in shard["index_codecs"]], set(_INDEX_CODECS))
        if [codec["name"] for codec in shard["index_codecs"]] != _INDEX_CODECS:
            raise RecordError("unreadable", f"{name}: {path}: an index of shards without a checksum")
        codecs = shard["codecs"]
    names = [codec["name"] for codec in codecs]
    _refuse_codecs(f"{name}: {path}", names, _V3_CODECS)
    compressor = [codec for codec in names if codec in ("blosc", "gzip", "zstd")]
    attributes = document.get("attributes", {})
    dims = document.get("dimension_names") or ()
    dtype = TEXT if data_type == "string" else np.dtype(_plain(data_type))
    shapes = tuple(document["shape"]), chunk, inner
    place = _place(f"{name}: {path}", 3, shapes, dtype, compressor, 4 * names.count("crc32c"), index_at_end)
    return _form(path, shapes[0], dtype, dims, attributes, place)


def _v2(path: str, archive: Archive, name: str) -> Form:
    document = _document(archive, name, f"{path}/.zarray".lstrip("/"))
    side = f"{path}/.zattrs".lstrip("/")
    attributes = _document(archive, name, side) if archive.part(name, side) in archive else {}
    filters = [codec["id"] for codec in document.get("filters") or ()]
    compressor = [codec["id"] for codec in (document["compressor"],) if codec]
    _refuse_codecs(f"{name}: {path}", filters, _V2_FILTERS)
    _refuse_codecs(f"{name}: {path}", compressor, _V2_CODECS)
    is_text = document["dtype"] == "|O" and filters == ["vlen-utf8"]
    dtype = TEXT if is_text else np.dtype(_plain(document["dtype"]))
    dims = attributes.get("_ARRAY_DIMENSIONS") or ()
    if dims and document.get("fill_value") is not None:  # xarray, which alone writes dims, means a missing value
        attributes = {"_FillValue": document["fill_value"]} | attributes
    shapes = tuple(document["shape"]), tuple(document["chunks"]), tuple(document["chunks"])
    place = _place(f"{name}: {path}", 2, shapes, dtype, compressor, 0, True)
    return _form(path, shapes[0], dtype, dims, attributes, place)


def _plain(data_type: Any) -> str:
    """Return the name of a dtype of numbers; refuse all others."""
    if not isinstance(data_type, str) or not _NUMBERS.fullmatch(data_type):
        raise ValueError(f"dtype {data_type}; expected numbers (Python objects are never loaded)")
    return data_type


def _refuse_codecs(where: str, names: Iterable[str], known: set[str]) -> None:
    for codec in names:
        if codec not in known:
            raise RecordError(
                "unreadable",
                f"{where}: codec {codec}; known here: {', '.join(sorted(known)) or 'none behind shards'}, "
                "and none that loads Python objects",
            )


def _place(
    where: str,
    version: int,
    shapes: tuple[tuple[int, ...], ...],
    dtype: np.dtype,
    compressor: list[str],
    trailer: int,
    index_at_end: bool,
) -> _Place:
    """Check the sizes that metadata promise. Raises RecordError."""
    shape, chunk, inner = shapes
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, *chunk)) or 0 in (*chunk, *inner):
        raise ValueError(f"shape {shape} in chunks of {chunk} and {inner}")
    if not len(shape) == len(chunk) == len(inner) or any(c % i for c, i in zip(chunk, inner, strict=True)):
        raise ValueError(f"shape {shape} in chunks of {chunk} and {inner}")
    if len(compressor) > 1:
        raise RecordError("unreadable", f"{where}: compressed more than once")
    nbytes = math.prod(chunk) * max(dtype.itemsize, 1)
    if nbytes > MAX_MEMBER_NBYTES:
        raise RecordError("too-large", f"{where}: chunks of {nbytes} bytes; the largest are {MAX_MEMBER_NBYTES}")
    limit = _TEXT_NBYTES if dtype == TEXT else _ROOM * math.prod(inner) * dtype.itemsize + 64
    return _Place(version, chunk, inner, (compressor or [""])[0], trailer, index_at_end, limit)


def _form(
    path: str, shape: tuple[int, ...], dtype: np.dtype, dims: Iterable[Any], attributes: dict[str, Any], place: _Place
) -> Form:
    folder = path.rpartition("/")[0]
    named = tuple(f"{folder}/{dim}".lstrip("/") if isinstance(dim, str) and dim else "" for dim in dims)
    if dtype.kind in "SU":
        return Form(path, shape, TEXT, named, place=place)
    native = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    fill = attributes.get("_FillValue")
    if isinstance(fill, str):
        attributes = attributes | {"_FillValue": _from_text(fill, native)}
    units = attributes.get("units")
    return Form(
        path,
        shape,
        native,
        named,
        run=place.chunk[0] if place.chunk else 1,
        packing=packing(path, native, attributes, filled=False),
        units=units if isinstance(units, str) else "",
        place=place,
    )


def _from_text(fill: str, dtype: np.dtype) -> float:
    """Read a fill value as JSON holds those that it has no numbers for; xarray writes base64 of a float64."""
    if fill in ("NaN", "Infinity", "-Infinity"):
        return float(fill)
    if dtype.kind == "f":
        return float(struct.unpack("<d", base64.b64decode(fill, validate=True))[0])
    return int(fill)


def _array(archive: Archive, name: str, form: Form, fill: bool) -> Any:
    key = (str(archive.path), name, *archive.signature(name), form.path, fill)
    if (known := _arrays.get(key)) is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not in the specification yet
            chunks = _Chunks(archive, name, form, fill)
            made = zarr.open_array(store=chunks, mode="r", zarr_format=form.place.version)
        return _remember(_arrays, key, made)
    return known


class _Chunks(Store):
    """One array of a store in an archive, as Zarr wants to see it: documents, and chunks that are safe to unpack."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, archive: Archive, name: str, form: Form, fill: bool) -> None:
        super().__init__(read_only=True)
        self._archive, self._name, self.form, self._fill = archive, name, form, fill

    def __eq__(self, other: object) -> bool:
        return self is other

    def _part(self, key: str) -> str:
        return self._archive.part(self._name, f"{self.form.path}/{key}".lstrip("/"))

    async def exists(self, key: str) -> bool:
        return self._part(key) in self._archive

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        part = self._part(key)
        is_document = key.startswith(("zarr.json", ".z"))
        if part not in self._archive:
            if is_document or self._fill:
                return None
            raise RecordError("missing", f"{self._name}: {self.form.path}: chunk {key} is not there; {ABSENT}")
        start, stop = 0, None
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, byte_range.end
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, self._archive.nbytes(part) - byte_range.suffix)
        content = self._archive.read_range(part, start, stop)
        if not is_document:
            place: _Place = self.form.place
            whole = byte_range is None
            index = 0 if not place.index_at_end else self._archive.nbytes(part) - place.index_nbytes
            if not place.is_sharded or whole or (start, len(content)) != (index, place.index_nbytes):
                where = f"{self._name}: {self.form.path}: chunk {key}"
                for piece in place.pieces(where, content) if whole else [content]:
                    _refuse_piece(where, piece, place)
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> builtins.list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError("archives are never written")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("archives are never written")

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError("not listed")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError("not listed")

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError("not listed")


def _refuse_piece(where: str, piece: bytes, place: _Place) -> None:
    """Raise RecordError where a chunk would unpack to more than it is, or breaks off."""
    packed = piece[: len(piece) - place.trailer]
    if (nbytes := unpacked_nbytes(packed, place.compressor, place.limit)) > place.limit:
        raise RecordError("too-large", f"{where}: unpacks to {nbytes} bytes or more; refused as a bomb")
    if place.compressor == "blosc" and int.from_bytes(packed[12:16], "little") != len(packed):
        raise RecordError("unreadable", f"{where}: {len(packed)} bytes; is it complete?")
