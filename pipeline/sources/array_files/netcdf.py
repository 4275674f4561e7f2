"""The classic format of netCDF, in its three versions: a head, and arrays as plain bytes behind it.

NetCDF Classic Format Specification, with the CDF-5 variant; https://docs.unidata.ucar.edu/netcdf-c. The head is parsed
here because a library would read every array, and take a file that breaks off for a shorter one.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.array_files import raw
from scattercube.pipeline.sources.array_files.forms import TEXT, Box, Form, Read, packing

MAGIC = b"CDF"
SEQUENTIAL = True
_LAST = "last netCDF"
_MOST = 1 << 16  # dimensions, attributes or variables in one list
_LONGEST = 1 << 24  # bytes of one name or attribute
_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12
_TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}


def forms(archive: Archive, name: str) -> Mapping[str, Form]:
    """Return the variables of a member. Raises RecordError where it is none, or does not hold what its head says."""
    known: tuple[str, Mapping[str, Form]] | None = archive.learnt.get(_LAST)
    if known and known[0] == name:
        return known[1]
    with archive.open(name) as stream:
        found = _Head(stream, name).forms(archive.nbytes(name))
    archive.learnt[_LAST] = name, found  # only of the last member: there may be millions
    return found


def form(archive: Archive, name: str, path: str) -> Form | None:
    """Return a variable, or None where there is none of that name. Raises RecordError."""
    return forms(archive, name).get(path)


def box(archive: Archive, name: str, form: Form, where: Box, *, fill: bool) -> Read:
    """Read a part of a variable; text comes as one string for each row of characters."""
    values, damage = raw.box(archive, name, form, where, fill=fill)
    return (np.char.rstrip(values, "\0 ") if form.dtype == TEXT else values), damage


class _Head:
    """A reader of the head, from its first byte to its last."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        magic = stream.read(4)
        if magic[:3] != MAGIC or magic[3] not in (1, 2, 5):
            raise RecordError("unreadable", f"{name}: no netCDF file: it begins with {magic!r}")
        self._count_code = ">q" if magic[3] == 5 else ">i"
        self._offset_code = ">i" if magic[3] == 1 else ">q"

    def forms(self, nbytes: int) -> dict[str, Form]:
        """Return the variables. Raises RecordError where the file of so many bytes cannot hold them."""
        n_records = self._number(self._count_code)
        if n_records < 0:
            raise self._broken("the number of records was never written; it was cut off while it was made")
        dims = [(self._text(), self._count()) for _ in range(self._list(_DIMENSIONS))]
        self._attributes()  # of the file
        read = [self._variable(dims) for _ in range(self._list(_VARIABLES))]
        records = [own for *_, own, is_record in read if is_record]
        # With one record variable there is no padding between its records.
        step = records[0] if len(records) == 1 else sum(-(-own // 4) * 4 for own in records)
        found = {}
        for path, axes, dtype, attributes, offset, own, is_record in read:
            shape = tuple(n_records if is_record and axis == 0 else dims[dim][1] for axis, dim in enumerate(axes))
            last = offset + (max(n_records - 1, 0) * step + own * min(n_records, 1) if is_record else own)
            if offset < 0 or last > nbytes:
                raise self._broken(f"{path} ends at byte {last}, the file at {nbytes}; is it complete?")
            names = tuple(dims[dim][0] for dim in axes)
            found[path] = self._form(path, shape, names, dtype, attributes, offset, step if is_record else None)
        return found

    def _form(
        self,
        path: str,
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        dtype: np.dtype,
        attributes: Mapping[str, Any],
        offset: int,
        step: int | None,
    ) -> Form:
        inner = math.prod(shape[1:]) * dtype.itemsize
        if dtype.kind == "S":  # characters: the last axis is the length of a text
            texts, width = (shape[:-1], shape[-1]) if len(shape) > (step is not None) else (shape, 1)
            place = raw.Place(offset, np.dtype(f"S{max(width, 1)}"), inner if step is None else step)
            return Form(path, texts, TEXT, dims[: len(texts)], place=place)
        units = attributes.get("units", b"")
        return Form(
            path,
            shape,
            dtype.newbyteorder("="),
            dims,
            packing=packing(path, dtype.newbyteorder("="), attributes, filled=True),
            units=units.decode("utf-8", "replace") if isinstance(units, bytes) else "",
            place=raw.Place(offset, dtype, inner if step is None else step),
        )

    def _variable(self, dims: list[tuple[str, int]]) -> tuple[str, list[int], np.dtype, dict[str, Any], int, int, bool]:
        path = self._text()
        axes = [self._count() for _ in range(self._count(_MOST))]
        if any(dim >= len(dims) for dim in axes):
            raise self._broken(f"{path} has a dimension that is not there")
        attributes = self._attributes()
        dtype = self._dtype()
        self._number(self._count_code)  # its size, which is too small a field for large ones
        offset = self._number(self._offset_code)
        is_record = bool(axes) and dims[axes[0]][1] == 0
        own = math.prod(dims[dim][1] for dim in axes[is_record:]) * dtype.itemsize
        return path, axes, dtype, attributes, offset, own, is_record

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._list(_ATTRIBUTES)):
            name, dtype = self._text(), self._dtype()
            content = self._bytes(self._count() * dtype.itemsize)
            found[name] = (
                content if dtype.kind == "S" else np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
            )
        return found

    def _list(self, kind: int) -> int:
        tag, count = self._number(">i"), self._count(_MOST)
        if (tag, count) != (0, 0) and tag != kind:
            raise self._broken(f"a list of kind {tag} stands where one of kind {kind} should")
        return count

    def _dtype(self) -> np.dtype:
        code = self._number(">i")
        if code not in _TYPES:
            raise self._broken(f"unknown type {code}")
        return np.dtype(_TYPES[code])

    def _text(self) -> str:
        return self._bytes(self._count(_LONGEST)).decode("utf-8", "backslashreplace")

    def _count(self, limit: int | None = None) -> int:
        number = self._number(self._count_code)
        if number < 0 or (limit is not None and number > limit):
            raise self._broken(f"it counts {number}")
        return number

    def _bytes(self, nbytes: int) -> bytes:
        """Read so many bytes, and what fills them up to a multiple of four."""
        if nbytes > _LONGEST:
            raise self._broken(f"a name or attribute of {nbytes} bytes")
        content = self._stream.read(-(-nbytes // 4) * 4)
        if len(content) < nbytes:
            raise self._broken("it ends inside its head")
        return content[:nbytes]

    def _number(self, code: str) -> int:
        number: int = struct.unpack(code, self._stream.read(struct.calcsize(code)))[0]
        return number

    def _broken(self, why: str) -> RecordError:
        return RecordError("unreadable", f"{self._name}: {why}")
