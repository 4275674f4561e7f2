"""Readers of arrays on disk: IDX (MNIST's format), npy, and npz, which is a zip of npy."""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.sources.archive import Archive
from scattercube.pipeline.sources.sampling import Header

IDX_SUFFIXES = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz", ".idx1", ".idx3", ".idx1.gz", ".idx3.gz")
NPY_SUFFIXES = (".npy", ".npy.gz")
_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK_NBYTES = 4 << 20  # read at once
_STEP_NBYTES = 1 << 18  # lost at most where a compressed stream breaks


@dataclass(frozen=True)
class _Form:
    """Where an array begins in its member, and its shape and dtype as stored."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def header(entry: Entry, archive: Archive, name: str) -> Header:
    """Return number, size and dtype of the images in an array. Raises RecordError."""
    form = _form(archive, name)
    if form.dtype.kind in "SU":
        raise RecordError("unreadable", f"{name}: text of dtype {form.dtype}; expected numbers")
    axis = entry.arrays.channel_axis if entry.arrays else None
    dims = {None: "yx", "first": "cyx", "last": "yxc"}[axis]
    n_axes = len(form.shape) - len(dims)
    if n_axes not in (0, 1) or 0 in form.shape[n_axes:]:
        raise RecordError(
            "wrong-shape",
            f"{name}: shape {form.shape}; expected ([sample,] {', '.join(dims)})"
            f"{'' if axis else '; where there are channels, declare arrays.channel_axis'}",
        )
    sizes = dict(zip(dims, form.shape[n_axes:], strict=True))
    native = np.dtype(np.uint8) if form.dtype.kind == "b" else form.dtype.newbyteorder("=")
    n_items = form.shape[0] if n_axes else 1
    return Header(sizes["y"], sizes["x"], native, sizes.get("c", 1), n_items)


def read(entry: Entry, archive: Archive, name: str, items: Sequence[int]) -> Iterator[np.ndarray | RecordError]:
    """Yield the images ``items`` of an array as ``(y, x)`` or ``(y, x, channel)``, or why one cannot be had.

    Ascending items read the member once, also over several calls.
    """
    try:
        head, form = header(entry, archive, name), _form(archive, name)
    except RecordError as failure:
        yield from [failure] * len(items)
        return
    first = entry.arrays is not None and entry.arrays.channel_axis == "first"
    inner = form.shape[-3:] if head.n_channels > 1 or entry.arrays else form.shape[-2:]
    row_nbytes = math.prod(inner) * form.dtype.itemsize
    broken: tuple[int, RecordError] | None = None
    for start, stop in _runs(np.asarray(items), max(1, _BLOCK_NBYTES // row_nbytes)):
        rows = np.empty((0, *inner), form.dtype)
        if stop > head.n_items:
            broken = (head.n_items, RecordError("missing", f"{name}: item {stop - 1}; it has {head.n_items}"))
        elif broken is None or start < broken[0]:
            content, damage = _content(archive, name, form.offset + start * row_nbytes, (stop - start) * row_nbytes)
            n_whole = len(content) // row_nbytes
            rows = content[: n_whole * row_nbytes].view(form.dtype).reshape(-1, *inner)
            broken = (start + n_whole, damage) if damage else broken
        rows = rows.astype(head.dtype, copy=False)
        rows = np.moveaxis(rows, 1, 3) if first else rows
        yield from (row[..., 0] if entry.arrays and head.n_channels == 1 else row for row in rows)
        if broken:
            yield from [broken[1]] * (stop - start - len(rows))


def vector(archive: Archive, name: str) -> np.ndarray:
    """Return a whole array of labels. Raises EntryError where it has not one dimension, RecordError where damaged."""
    form = _form(archive, name)
    if len(form.shape) != 1:
        raise EntryError(f"labels: {name} has shape {form.shape}; expected one dimension")
    content = archive.read(name)
    values = np.frombuffer(content, form.dtype, form.shape[0], form.offset)
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values


def shape(archive: Archive, name: str) -> tuple[int, ...]:
    """Return the shape of an array from its head. Raises RecordError."""
    return _form(archive, name).shape


def _runs(items: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Cut items into ranges that follow each other, none longer than this."""
    for run in np.split(items, np.flatnonzero(np.diff(items) != 1) + 1):
        if len(run):
            first, last = int(run[0]), int(run[-1]) + 1
            yield from ((start, min(start + longest, last)) for start in range(first, last, longest))


def _content(archive: Archive, name: str, offset: int, nbytes: int) -> tuple[np.ndarray, RecordError | None]:
    """Read bytes; where the stream breaks, what came before, and the reason."""
    content = np.empty(nbytes, np.uint8)
    received = 0
    try:
        with archive.stream(name) as kept:
            stream = cast(io.BufferedIOBase, kept)
            stream.seek(offset)
            while received < nbytes:
                count = stream.readinto(content[received : received + _STEP_NBYTES].data)
                if not count:
                    raise EOFError(f"ends after {offset + received} of at least {offset + nbytes} bytes")
                received += count
    except RecordError as failure:
        return content[:received], failure
    return content, None


def _form(archive: Archive, name: str) -> _Form:
    """Parse the head of an array. Raises RecordError where it promises more than the member can hold."""
    known = archive.learnt.get(name)
    if isinstance(known, _Form):
        return known
    with archive.open(name) as stream:
        form = (_npy_form if name.lower().endswith(NPY_SUFFIXES) else _idx_form)(stream, name)
    if form.dtype.kind not in "buifSU":
        raise RecordError(
            "unreadable", f"{name}: dtype {form.dtype}; expected numbers or text (Python objects are never loaded)"
        )
    promised = form.offset + math.prod(form.shape) * form.dtype.itemsize
    believed = archive.nbytes(name)
    if promised > believed:
        raise RecordError(
            "unreadable", f"{name}: its header promises {promised} bytes, it has at most {believed}; is it complete?"
        )
    archive.learnt[name] = form
    return form


def _idx_form(stream: BinaryIO, name: str) -> _Form:
    zeros, code, n_dims = struct.unpack(">HBB", stream.read(4))
    if zeros or code not in _IDX_DTYPES:
        raise RecordError("unreadable", f"{name}: no IDX file: it begins with {zeros:04x} {code:02x}")
    shape = struct.unpack(f">{n_dims}I", stream.read(4 * n_dims))
    return _Form(4 + 4 * n_dims, shape, np.dtype(_IDX_DTYPES[code]))


def _npy_form(stream: BinaryIO, name: str) -> _Form:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise RecordError("unreadable", f"{name}: npy version {version}; arrays of numbers have 1.0 or 2.0")
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = parse(stream)
    if fortran_order and len(shape) > 1:
        raise RecordError("unreadable", f"{name}: in Fortran order; save numpy.ascontiguousarray of it")
    return _Form(stream.tell(), shape, dtype)
