"""Arrays that are stored as plain bytes: npy, and IDX, which is MNIST's format."""

import io
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.array_files.forms import TEXT, Box, Form, Read

IDX_SUFFIXES = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz", ".idx1", ".idx3", ".idx1.gz", ".idx3.gz")
NPY_SUFFIXES = (".npy", ".npy.gz")
_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_AT_ONCE_NBYTES = 1 << 18  # rather read at once, and thrown away in part, than row by row
_STEP_NBYTES = 1 << 18  # lost at most where a compressed stream breaks
SEQUENTIAL = True


@dataclass(frozen=True)
class Place:
    """Where an array begins in its member, its dtype as stored, and the bytes from entry to entry of its first axis."""

    offset: int
    dtype: np.dtype
    step: int


def forms(archive: Archive, name: str) -> Mapping[str, Form]:
    """Return the one array of a member, under no name. Raises RecordError."""
    found = form(archive, name, "")
    assert found is not None
    return {"": found}


def form(archive: Archive, name: str, path: str) -> Form | None:
    """Parse the head of an array. Raises RecordError where it promises more than the member can hold."""
    if path:
        return None
    known = archive.learnt.get(name)
    if isinstance(known, Form):
        return known
    with archive.open(name) as stream:
        found = (_npy if name.lower().endswith(NPY_SUFFIXES) else _idx)(stream, name)
    place: Place = found.place
    if place.dtype.kind not in "buifSU" or (place.dtype.kind == "f" and place.dtype.itemsize > 8):
        raise RecordError(
            "unreadable", f"{name}: dtype {place.dtype}; expected numbers or text (Python objects are never loaded)"
        )
    promised = place.offset + math.prod(found.shape) * place.dtype.itemsize
    believed = archive.nbytes(name)
    if promised > believed:
        raise RecordError(
            "unreadable", f"{name}: its header promises {promised} bytes, it has at most {believed}; is it complete?"
        )
    archive.learnt[name] = found
    return found


def box(archive: Archive, name: str, form: Form, where: Box, *, fill: bool) -> Read:
    """Read a part of an array; entries of the first axis that come before damage are kept."""
    place: Place = form.place
    shape, where = (form.shape, where) if form.shape else ((1,), (slice(0, 1),))
    inner = math.prod(shape[1:]) * place.dtype.itemsize
    start, stop = where[0].start, where[0].stop
    found = np.empty(tuple(part.stop - part.start for part in where), place.dtype)
    n_whole, failure = 0, None
    try:
        with archive.stream(name) as stream:
            if place.step == inner and where[1:] == tuple(slice(0, size) for size in shape[1:]):
                received = 0
                for count in _into(stream, place.offset + start * inner, found):
                    received += count
                    n_whole = received // max(inner, 1)
                n_whole = stop - start
            else:
                for index in range(start, stop):
                    _gather(stream, place.offset + index * place.step, shape[1:], where[1:], found[index - start, ...])
                    n_whole += 1
    except RecordError as met:
        failure = met
    values = found[:n_whole].reshape((n_whole, *found.shape[1:]) if form.shape or failure else ())
    if place.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return (values if place.dtype.kind in "SU" else values.astype(form.dtype, copy=False)), failure


def _gather(stream: BinaryIO, offset: int, shape: tuple[int, ...], where: Box, out: np.ndarray) -> None:
    """Read a part of an array that is stored without gaps: in one piece where that is not much more."""
    first = where[0] if where else slice(0, 1)
    inner = math.prod(shape[1:]) * out.dtype.itemsize
    nbytes = (first.stop - first.start) * inner
    if where[1:] == tuple(slice(0, size) for size in shape[1:]) or nbytes <= _AT_ONCE_NBYTES:
        rows = np.empty((first.stop - first.start, *shape[1:]), out.dtype)
        for _ in _into(stream, offset + first.start * inner, rows):
            pass
        out[...] = rows[(slice(None), *where[1:])].reshape(out.shape)
        return
    for row in range(first.start, first.stop):
        _gather(stream, offset + row * inner, shape[1:], where[1:], out[row - first.start, ...])


def _into(stream: BinaryIO, offset: int, out: np.ndarray) -> Iterator[int]:
    """Fill an array with bytes, and yield how many came each time. Raises EOFError where there are too few."""
    content = out.reshape(-1).view(np.uint8)
    received = 0
    stream.seek(offset)
    while received < len(content):
        count = cast(io.BufferedIOBase, stream).readinto(content[received : received + _STEP_NBYTES].data)
        if not count:
            raise EOFError(f"ends after {offset + received} of at least {offset + len(content)} bytes")
        received += count
        yield count


def made(shape: tuple[int, ...], offset: int, dtype: np.dtype) -> Form:
    """Return the form of an array that is stored without gaps."""
    step = math.prod(shape[1:]) * dtype.itemsize
    native = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    return Form("", shape, TEXT if dtype.kind in "SU" else native, place=Place(offset, dtype, step))


def _idx(stream: BinaryIO, name: str) -> Form:
    zeros, code, n_dims = struct.unpack(">HBB", stream.read(4))
    if zeros or code not in _IDX_DTYPES:
        raise RecordError("unreadable", f"{name}: no IDX file: it begins with {zeros:04x} {code:02x}")
    shape = struct.unpack(f">{n_dims}I", stream.read(4 * n_dims))
    return made(shape, 4 + 4 * n_dims, np.dtype(_IDX_DTYPES[code]))


def _npy(stream: BinaryIO, name: str) -> Form:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise RecordError("unreadable", f"{name}: npy version {version}; arrays of numbers have 1.0 or 2.0")
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = parse(stream)
    if fortran_order and len(shape) > 1:
        raise RecordError("unreadable", f"{name}: in Fortran order; save numpy.ascontiguousarray of it")
    return made(shape, stream.tell(), dtype)
