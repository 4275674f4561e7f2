"""HDF5, which is also netCDF-4: datasets by path. A file is never trusted to name another file.

HDF5 follows external links, external storage and virtual datasets to any path on this machine, unpacks a chunk to
whatever size comes out, and takes as much memory as a text of variable length claims to need. So links are resolved
here one by one, sizes are looked at before HDF5 is asked, and what has variable length is read without it.
"""

import io
import math
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice, product
from typing import Any

import h5py
import numpy as np

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.archives.containers import MAX_MEMBER_NBYTES
from scattercube.pipeline.sources.array_files.forms import ABSENT, TEXT, Box, Form, Read, packing, refuse_bomb
from scattercube.pipeline.sources.array_files.packed import DEFLATE_FREE_NBYTES, unpacked_nbytes

SEQUENTIAL = False
_CACHE_NBYTES = 32 << 20  # of unpacked chunks
_MOST_OBJECTS = 10_000
_LONGEST_CHAIN = 16  # of soft links
_ATTRIBUTES = (
    *("_FillValue", "missing_value", "scale_factor", "add_offset"),
    *("valid_range", "valid_min", "valid_max", "_Unsigned"),
)
_KNOWN_FILTERS = {32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32015: "Zstandard", 32026: "Blosc2"}
_DEFLATE, _SHUFFLE, _FLETCHER32, _SZIP, _NBIT, _SCALEOFFSET = range(1, 7)
_LONGEST_TEXT = 1 << 12
_LARGEST_HEAP = 64 << 20
_LONGEST_ATTRIBUTE = 1 << 16
_MOST_SCALES = 1 << 10  # datasets of a group that are asked whether they are coordinates
_NO_VALUES = "This is a netCDF dimension but not a netCDF variable"


class _File:
    """An open file; it is closed when its thread lets go of it, or ends."""

    def __init__(self, archive: Archive, name: str) -> None:
        self.forms: dict[str, Form] = {}
        self.stream = archive.random(name)
        try:
            self.nbytes = self.stream.seek(0, io.SEEK_END)
            self.root = h5py.File(self.stream, "r", rdcc_nbytes=_CACHE_NBYTES)
        except BaseException:
            self.stream.close()
            raise

    def __del__(self) -> None:
        for thing in (getattr(self, "root", None), getattr(self, "stream", None)):
            if thing is not None:
                with suppress(Exception):  # of a damaged file
                    thing.close()


class _Last(threading.local):
    """The file that a thread read last stays open, for the next part of it."""

    key: tuple[Any, ...] = ()
    file: _File | None = None


_last = _Last()


def forms(archive: Archive, name: str) -> Mapping[str, Form]:
    """Return the datasets of numbers or text in a member by path, but none that only a link leads to."""
    found: dict[str, Form] = {}
    with _file(archive, name) as file:
        groups, seen = [("", file.root["/"])], set()
        while groups:
            prefix, group = groups.pop()
            for key in group:
                if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                    continue
                thing, path = group[key], f"{prefix}{key}"
                place = h5py.h5o.get_info(thing.id).addr
                if place in seen:
                    continue
                seen.add(place)
                if len(seen) > _MOST_OBJECTS:
                    raise RecordError("too-large", f"more than {_MOST_OBJECTS} objects; name one in arrays.variable")
                if isinstance(thing, h5py.Group):
                    groups.append((f"{path}/", thing))
                elif isinstance(thing, h5py.Dataset) and thing.shape is not None:
                    with suppress(Exception):  # not one of ours; who asks for it by name is told why
                        if not _text(_attribute(thing, "NAME")).startswith(_NO_VALUES):
                            found[path] = _form(path, thing, file)
    return found


def form(archive: Archive, name: str, path: str) -> Form | None:
    """Return a dataset, or None where there is none of that name.

    Raises
    ------
    RecordError
        The member is damaged, or the dataset is of a kind that is never read.
    """
    with _file(archive, name) as file:
        if path not in file.forms:
            dataset = _find(file.root, path, 0)
            if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
                return None
            file.forms[path] = _form(path, dataset, file)
        return file.forms[path]


def box(archive: Archive, name: str, form: Form, where: Box, *, fill: bool) -> Read:
    """Read a part of a dataset, all of it or nothing."""
    try:
        with _file(archive, name) as file:
            dataset = _find(file.root, form.path, 0)
            _refuse_chunks(file, dataset, form, where, fill)
            if form.dtype != TEXT:
                return np.asarray(dataset[where]).astype(form.dtype, copy=False), None
            return _texts(file, dataset, form, where), None
    except RecordError as failure:
        return np.empty(0), failure


@contextmanager
def _file(archive: Archive, name: str) -> Iterator[_File]:
    """Open a member. Whatever HDF5 raises on damaged bytes becomes a RecordError that says of which member."""
    try:
        with archive.errors(name):
            key = (str(archive.path), name, *archive.signature(name))
            if _last.key != key or _last.file is None:
                _last.key, _last.file = (), None
                _last.file = _File(archive, name)
                _last.key = key
            yield _last.file
    except RecordError as failure:
        text = str(failure)
        raise RecordError(failure.reason, text if text.startswith(name) else f"{name}: {text}") from failure
    except BaseException:
        _last.key, _last.file = (), None  # nobody knows what it remembers of what could not be fetched
        raise


def _find(file: Any, path: str, depth: int) -> Any:
    """Follow a path inside the file, link by link; None where it ends nowhere."""
    if depth > _LONGEST_CHAIN:
        raise RecordError("unreadable", f"{path}: more than {_LONGEST_CHAIN} links lead to each other")
    parts, here = [part for part in path.split("/") if part], file["/"]
    for index, part in enumerate(parts):
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise RecordError("unreadable", f"{path}: a link to another file, {link.filename}; it is not followed")
        if isinstance(link, h5py.SoftLink):
            start = "" if link.path.startswith("/") else "/".join(parts[:index])
            return _find(file, "/".join([start, link.path, *parts[index + 1 :]]), depth + 1)
        here = here[part]
    return here


def _form(path: str, dataset: Any, file: _File) -> Form:
    """Describe a dataset. Raises RecordError where it is of a kind that is never read."""
    if dataset.is_virtual or dataset.external:
        raise RecordError("unreadable", f"{path}: its values are in other files, which are not followed; repack it")
    text = h5py.check_string_dtype(dataset.dtype) is not None
    plain = np.dtype(dataset.dtype.str) if dataset.dtype.kind in "buif" else None
    if not text and (plain is None or plain.itemsize > 8):
        raise RecordError("unreadable", f"{path}: dtype {dataset.dtype}; expected numbers (objects are never loaded)")
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(index) for index in range(creation.get_nfilters())]
    if sum(code not in (_SHUFFLE, _FLETCHER32, _NBIT, _SCALEOFFSET) for code, *_ in filters) > 1:
        raise RecordError("unreadable", f"{path}: compressed more than once; repack it with h5repack -f GZIP=4")
    for code, _, _, label in filters:
        if not h5py.h5z.filter_avail(code):
            called = _KNOWN_FILTERS.get(code) or label.decode("utf-8", "replace") or "of no name"
            raise RecordError(
                "unreadable",
                f"{path}: compressed by a filter that is not here, {code} ({called}); repack it with "
                "h5repack -f GZIP=4, or set HDF5_PLUGIN_PATH",
            )
    chunk, stored = dataset.chunks, min(dataset.id.get_storage_size(), file.nbytes)
    promised = math.prod(dataset.shape) * dataset.dtype.itemsize
    if chunk is not None:
        refuse_bomb(path, promised, stored)
    elif promised > file.nbytes:
        raise RecordError("unreadable", f"{path}: {promised} bytes of values in {file.nbytes} bytes; is it complete?")
    dims = _dimensions(dataset)
    if text:
        return Form(path, dataset.shape, TEXT, dims)
    assert plain is not None
    native = np.dtype(np.uint8) if plain.kind == "b" else plain.newbyteorder("=")
    attributes = {key: _attribute(dataset, key) for key in _ATTRIBUTES if key in dataset.attrs}
    if unknown := [key for key, value in attributes.items() if value is None]:
        raise RecordError("unreadable", f"{path}: {unknown[0]} is of variable length, which is not read")
    return Form(
        path,
        dataset.shape,
        native,
        dims,
        run=chunk[0] if chunk else 1,
        packing=packing(path, native, attributes, filled=True),
        units=_text(_attribute(dataset, "units")),
    )


def _attribute(thing: Any, name: str) -> Any:
    """Return an attribute; None where there is none, or it is one that must not be read."""
    if name not in thing.attrs:
        return None
    head = thing.attrs.get_id(name)
    plain = head.dtype.kind in "biufSU"
    return (
        thing.attrs[name] if plain and math.prod(head.shape or ()) * head.dtype.itemsize <= _LONGEST_ATTRIBUTE else None
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _dimensions(dataset: Any) -> tuple[str, ...]:
    """Return for each axis the path of the dataset with its coordinates; empty where there is none.

    Each such dataset, a scale, lists whom it serves; the list that goes the other way is of variable length.
    """
    found = [""] * len(dataset.shape)
    if "DIMENSION_LIST" not in dataset.attrs:
        return ()
    place, group = h5py.h5o.get_info(dataset.id).addr, dataset.parent
    groups = [group]
    while group.name != "/":
        group = group.parent
        groups.append(group)
    for group in groups:
        for key in islice(group, _MOST_SCALES):
            scale = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
            if not isinstance(scale, h5py.Dataset) or "REFERENCE_LIST" not in scale.attrs:
                continue
            if _text(_attribute(scale, "NAME")).startswith(_NO_VALUES):
                continue
            for user, axis in scale.attrs["REFERENCE_LIST"].tolist():
                if user and axis < len(found) and h5py.h5o.get_info(dataset.file[user].id).addr == place:
                    found[axis] = found[axis] or str(scale.name).strip("/")
    return tuple(found)


def _refuse_chunks(file: _File, dataset: Any, form: Form, where: Box, fill: bool) -> None:
    """Raise RecordError where chunks of a box were never written, or would unpack to more than they are."""
    chunk = dataset.chunks
    if chunk is None:
        if math.prod(form.shape) and not fill and not dataset.id.get_storage_size():
            raise RecordError("missing", f"{form.path}: never written; {ABSENT}")
        return
    nbytes = math.prod(chunk) * dataset.dtype.itemsize
    if nbytes > MAX_MEMBER_NBYTES:
        raise RecordError("too-large", f"{form.path}: chunks of {nbytes} bytes; the largest are {MAX_MEMBER_NBYTES}")
    creation = dataset.id.get_create_plist()
    codes = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    for start in _starts(where, chunk):
        stored = dataset.id.get_chunk_info_by_coord(start)
        if stored.byte_offset is None:
            if not fill:
                raise RecordError("missing", f"{form.path}: chunk {start} was never written; {ABSENT}")
            continue
        if stored.byte_offset + stored.size > file.nbytes:
            raise RecordError("unreadable", f"{form.path}: chunk {start} ends behind the file; is it complete?")
        refuse_bomb(f"{form.path}: chunk {start}", nbytes, stored.size)
        compressor = next((code for code in codes if code in (_DEFLATE, _SZIP)), None)
        if compressor == _SZIP or (compressor and stored.size > DEFLATE_FREE_NBYTES):
            _refuse_more(dataset, form, start, nbytes, codes.index(compressor))


def _refuse_more(dataset: Any, form: Form, start: tuple[int, ...], nbytes: int, place: int) -> None:
    """Raise RecordError where a chunk unpacks to more than it is: HDF5 itself would take the memory."""
    skipped, content = dataset.id.read_direct_chunk(start)
    if skipped >> place & 1:
        return
    code, packed, limit = dataset.id.get_create_plist().get_filter(place)[0], bytes(content), nbytes + 4  # a checksum
    received = int.from_bytes(packed[:4], "little") if code == _SZIP else unpacked_nbytes(packed, "zlib", limit)
    if received > limit:
        raise RecordError(
            "too-large", f"{form.path}: chunk {start} unpacks to more than its {nbytes} bytes; refused as a bomb"
        )


def _starts(where: Box, chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield where the chunks of a box begin."""
    return product(*(range(part.start // n * n, part.stop, n) for part, n in zip(where, chunk, strict=True)))


def _texts(file: _File, dataset: Any, form: Form, where: Box) -> np.ndarray:
    """Return texts. Those of variable length are looked up here: on a damaged heap HDF5 runs in circles."""
    if dataset.dtype.kind != "O":
        if dataset.dtype.itemsize > _LONGEST_TEXT:
            raise RecordError("too-large", f"{form.path}: texts of {dataset.dtype.itemsize} bytes")
        return np.asarray(dataset.asstr("utf-8", "replace")[where], object)
    address_nbytes, length_nbytes = file.root.id.get_create_plist().get_sizes()
    stored = np.dtype([("nbytes", "<u4"), ("address", f"<u{address_nbytes}"), ("index", "<u4")])
    references = _references(file, dataset, form, where, stored)
    heaps = {at: _heap(file, int(at), length_nbytes) for at in np.unique(references["address"]).tolist() if at}
    found = [
        heaps[at].get(index, b"")[:nbytes].decode("utf-8", "replace") if at and nbytes else ""
        for nbytes, at, index in references.ravel().tolist()
    ]
    if max(map(len, found), default=0) > _LONGEST_TEXT:
        raise RecordError("too-large", f"{form.path}: texts of more than {_LONGEST_TEXT} characters")
    return np.array([*found, ""], object)[:-1].reshape(references.shape)


def _heap(file: _File, address: int, length_nbytes: int) -> dict[int, bytes]:
    """Return the objects of a global heap by number: HDF5 File Format Specification 3.0, section III.E."""
    file.stream.seek(file.root.userblock_size + address)
    head = file.stream.read(8 + length_nbytes)
    nbytes = int.from_bytes(head[8:], "little")
    if head[:4] != b"GCOL" or not 0 < nbytes <= min(_LARGEST_HEAP, file.nbytes):
        raise RecordError("unreadable", f"no texts at byte {address}: the heap is damaged")
    content, at, found = file.stream.read(nbytes - len(head)), 0, {}
    while at + 8 + length_nbytes <= len(content):
        index = int.from_bytes(content[at : at + 2], "little")
        size = int.from_bytes(content[at + 8 : at + 8 + length_nbytes], "little")
        start = at + 8 + length_nbytes
        if index == 0:
            break  # what is free
        found[index] = content[start : start + size]
        at = start + -(-size // 8) * 8
    return found


def _references(file: _File, dataset: Any, form: Form, where: Box, stored: np.dtype) -> np.ndarray:
    """Return the lengths and places of texts of variable length in a box."""
    shape = dataset.chunks or dataset.shape
    found = np.zeros(tuple(part.stop - part.start for part in where), stored)
    for start, raw in _raw(file, dataset, form, where, stored.itemsize):
        if len(raw) != math.prod(shape) * stored.itemsize:
            raise RecordError("unreadable", f"{form.path}: breaks off")
        whole = np.frombuffer(raw, stored).reshape(shape)
        bounds = [(max(p.start, at), min(p.stop, at + n)) for p, at, n in zip(where, start, shape, strict=True)]
        there = tuple(slice(i - part.start, j - part.start) for (i, j), part in zip(bounds, where, strict=True))
        here = tuple(slice(i - at, j - at) for (i, j), at in zip(bounds, start, strict=True))
        found[there] = whole[here]
    return found


def _raw(file: _File, dataset: Any, form: Form, where: Box, size: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield the bytes, as HDF5 unpacks them, of what holds a box, and where that begins: a dataset, or its chunks."""
    if dataset.chunks is None:
        offset, nbytes = dataset.id.get_offset(), math.prod(dataset.shape) * size
        if offset is not None:
            file.stream.seek(offset)
            yield (0,) * len(dataset.shape), file.stream.read(nbytes)
        elif dataset.id.get_storage_size():
            raise RecordError("unreadable", f"{form.path}: texts in the head of their dataset; repack it with h5repack")
        return
    creation = dataset.id.get_create_plist()
    codes = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    nbytes = math.prod(dataset.chunks) * size
    for start in _starts(where, dataset.chunks):
        if dataset.id.get_chunk_info_by_coord(start).byte_offset is None:
            continue
        skipped, raw = dataset.id.read_direct_chunk(start)
        for index, code in reversed(list(enumerate(codes))):
            if skipped >> index & 1:
                continue
            if code == _FLETCHER32:
                raw = raw[:-4]
            elif code == _DEFLATE:
                raw = zlib.decompressobj().decompress(raw, nbytes + 4)
            elif code == _SHUFFLE:
                raw = np.frombuffer(raw, np.uint8).reshape(size, -1).T.tobytes()
            else:
                raise RecordError("unreadable", f"{form.path}: texts in a packing that is not read; use GZIP")
        yield start, raw
