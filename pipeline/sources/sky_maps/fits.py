"""FITS files: windows of their images, cells of their tables, and what their checksums say.

astropy unpacks tiles and parses headers. All other bytes are read and scaled here: astropy has no error for a file that
ends early or whose checksums are wrong, and takes no notice of ``BLANK = 0``, nor of BLANK in unsigned integers.
"""

import io
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.archives.containers import MAX_MEMBER_NBYTES
from scattercube.pipeline.sources.archives.streams import Positioned
from scattercube.pipeline.sources.sky_maps.fits_headers import (
    BLOCK,
    RAW,
    Hdu,
    decoding,
    exactly,
    parsing,
    tile_shape,
    walk,
    whole,
)

_STEP_NBYTES = BLOCK << 9  # summed at once
_CELLS = {"L": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "A": "S", "E": ">f4", "D": ">f8"}
_OTHER_CELLS = {"X": 0.125, "C": 8, "M": 16, "P": 8, "Q": 16}  # bytes of those that are stepped over
_KEPT = 4  # open files per thread: an image, its mask, its weights, and one more
_TRUSTING = ("PLIO_1", "HCOMPRESS_1")  # whose decoders believe what a tile says of its size
_HEAD_NBYTES = 14  # of their tiles, at least


@dataclass(frozen=True)
class Column:
    """A column of a table: ``repeat`` values of ``dtype`` (as stored) from byte ``offset`` of each row."""

    offset: int
    repeat: int
    dtype: np.dtype
    scale: float = 1.0
    zero: float = 0.0
    null: int | None = None


class Fits:
    """A FITS file in an archive. Raises RecordError where it is damaged; see `opened`.

    Attributes
    ----------
    kept
        What readers keep of the file as long as it is open.
    """

    def __init__(self, archive: Archive, name: str) -> None:
        self.name = name
        self._archive = archive
        with archive.stream(name, head=True) as stream:
            self.hdus = tuple(walk(stream, name, archive.nbytes(name)))
        self.kept: dict[str, Any] = {}
        self._right: set[int] = set()
        self._list: Any = None

    def plane(self, hdu: Hdu, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """Return a window ``(y, x)`` of a plane of an image, in the HDU's dtype, no more of the file being unpacked.

        Raises
        ------
        RecordError
            ``unreadable`` or ``too-large``.
        """
        with decoding(self.name):
            read = self._unpacked if hdu.kind == "tiles" else self._stored
            return _scaled(read(hdu, plane, rows, columns), hdu)

    def verify(self, hdu: Hdu) -> None:
        """Compare an HDU with its DATASUM and CHECKSUM, where it has them. Raises RecordError."""
        if hdu.index in self._right or not ("DATASUM" in hdu.header or "CHECKSUM" in hdu.header):
            return
        remedy = "it was changed since it was written; sky.checksum: false reads it nevertheless"
        with decoding(self.name, hdu.index):
            said = str(hdu.header.get("DATASUM", "")).strip()
            head = self._sum(hdu.start, hdu.data)
            data = self._sum(hdu.data, hdu.data + -(-hdu.nbytes // BLOCK) * BLOCK)
            if said and said != str(_folded(data)):
                raise RecordError("unreadable", f"its DATASUM is {said}, that of its data {_folded(data)}; {remedy}")
            # Section 4.4.2.7: with the right CHECKSUM all bits of the sum over the whole HDU are set.
            if "CHECKSUM" in hdu.header and _folded(head + data) not in (0, 0xFFFFFFFF):
                raise RecordError("unreadable", f"it does not fit its CHECKSUM; {remedy}")
        self._right.add(hdu.index)

    def columns(self, hdu: Hdu) -> dict[str, Column]:
        """Return where the columns of a binary table are, by name. Raises RecordError."""
        header, offset = hdu.header, 0
        found: dict[str, Column] = {}
        with decoding(self.name):
            for index in range(1, whole(header, "TFIELDS") + 1):
                form = re.match(r"(\d*)([A-Z])", str(header[f"TFORM{index}"]).strip())
                if form is None or form[2] not in {*_CELLS, *_OTHER_CELLS}:
                    raise RecordError("unreadable", f"{self.name}: TFORM{index} = {header[f'TFORM{index}']!r}")
                repeat = int(form[1] or 1)
                if form[2] in _OTHER_CELLS:
                    offset += math.ceil(repeat * _OTHER_CELLS[form[2]])
                    continue
                dtype = np.dtype(f"S{repeat}" if form[2] == "A" else _CELLS[form[2]])
                column = Column(
                    offset,
                    1 if form[2] == "A" else repeat,
                    dtype,
                    float(header.get(f"TSCAL{index}", 1)),
                    float(header.get(f"TZERO{index}", 0)),
                    header.get(f"TNULL{index}"),
                )
                offset += column.repeat * dtype.itemsize
                found[str(header.get(f"TTYPE{index}", f"COLUMN{index}")).strip()] = column
        if offset != header["NAXIS1"]:
            raise RecordError("unreadable", f"{self.name}: columns of {offset} bytes in rows of {header['NAXIS1']}")
        return found

    def cells(self, hdu: Hdu, column: Column, start: int, stop: int) -> np.ndarray:
        """Return the cells of a column in some rows, in native byte order: ``(row, repeat)``, or texts ``(row,)``.

        Numbers are scaled, and NaN where they are null. Raises RecordError.
        """
        width = hdu.header["NAXIS1"]
        if (stop - start) * width > MAX_MEMBER_NBYTES:
            raise RecordError("too-large", f"{self.name}: {stop - start} rows of {width} bytes")
        nbytes = column.repeat * column.dtype.itemsize
        content = self._bytes(hdu.data + start * width, (stop - start) * width).reshape(-1, width)
        raw = np.ascontiguousarray(content[:, column.offset : column.offset + nbytes])
        if column.dtype.kind == "S":
            texts = [row.tobytes().split(b"\0")[0].decode("latin-1").rstrip() for row in raw]
            return np.array(texts, dtype=object)
        values = raw.view(column.dtype).astype(column.dtype.newbyteorder("="))
        if column.null is None and (column.scale, column.zero) == (1, 0):
            return values
        real = values * column.scale + column.zero
        return real if column.null is None else np.where(values == column.null, np.nan, real)

    def keywords(self, hdu: Hdu, wanted: Mapping[str, str]) -> dict[str, str | float]:
        """Return keywords of an HDU, or else of the first one: ``number`` (NaN where it is none) or ``text``."""
        found: dict[str, str | float] = {}
        with decoding(self.name):
            for key, kind in wanted.items():
                value = hdu.header.get(key, self.hdus[0].header.get(key, ""))
                number = float(value) if isinstance(value, int | float) else math.nan
                found[key] = number if kind == "number" else str(value).strip()
        return found

    def _stored(self, hdu: Hdu, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """Read a window of an image that is stored pixel by pixel: whole rows at once, else row by row."""
        raw, (height, width) = np.dtype(RAW[hdu.bitpix]), hdu.shape[-2:]
        shape = rows.stop - rows.start, columns.stop - columns.start
        _bound(self.name, math.prod(shape) * raw.itemsize)
        pixels = np.empty(shape, raw)
        first = plane * height * width
        with self._archive.stream(self.name) as stream:
            if shape[1] == width:
                _fill(stream, hdu.data + (first + rows.start * width) * raw.itemsize, pixels)
            else:
                for row, into in zip(range(rows.start, rows.stop), pixels, strict=True):
                    _fill(stream, hdu.data + (first + row * width + columns.start) * raw.itemsize, into)
        return pixels

    def _unpacked(self, hdu: Hdu, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """Unpack the tiles of a compressed image that a window touches."""
        tile = tile_shape(hdu.header, hdu.shape)[-2:]
        touched = [
            min(-(-part.stop // size) * size, axis) - part.start // size * size
            for part, size, axis in zip((rows, columns), tile, hdu.shape[-2:], strict=True)
        ]
        depth = math.prod(tile_shape(hdu.header, hdu.shape)[:-2])
        _bound(self.name, depth * math.prod(touched) * abs(hdu.bitpix) // 8)
        if self._list is None:
            from astropy.io import fits

            for other in self.hdus:
                if other.kind == "tiles" and (kind := str(other.header.get("ZCMPTYPE", "")).strip()) in _TRUSTING:
                    self._check_heads(other, kind)
            whole = self.hdus[-1]
            size = whole.data + -(-whole.nbytes // BLOCK) * BLOCK
            stream = io.BufferedReader(_Bytes(self._archive, self.name, size))
            with parsing():
                self._list = fits.open(stream, memmap=False, do_not_scale_image_data=True)
        with parsing():
            section = self._list[hdu.index].section
        leading = np.unravel_index(plane, hdu.shape[:-2]) if len(hdu.shape) > 2 else ()
        return np.asarray(section[(*(int(index) for index in leading), rows, columns)])

    def _check_heads(self, hdu: Hdu, kind: str) -> None:
        """Raise RecordError where a tile says another size of itself than it has.

        These decoders believe it: they read behind the tile, write behind their output, or return memory as it was.
        """
        header = hdu.header
        form = re.match(r"1?([PQ])([IB])", str(header.get("TFORM1", "")).strip())
        if form is None or str(header.get("TTYPE1", "")).strip() != "COMPRESSED_DATA":
            raise RecordError("unreadable", f"tiles of {kind} that are not bytes or words in the first column")
        width, n_tiles = header["NAXIS1"], header["NAXIS2"]
        cell, unit = np.dtype({"P": ">i4", "Q": ">i8"}[form[1]]), {"I": 2, "B": 1}[form[2]]
        if width < 2 * cell.itemsize:
            raise RecordError("unreadable", f"rows of {width} bytes in a table of tiles")
        rows = self._bytes(hdu.data, n_tiles * width).reshape(n_tiles, width)[:, : 2 * cell.itemsize]
        heap = hdu.data + whole(header, "THEAP", n_tiles * width)
        tile = tile_shape(header, hdu.shape)
        grid = [-(-axis // size) for axis, size in zip(hdu.shape, tile, strict=True)]
        for number, (count, offset) in enumerate(np.ascontiguousarray(rows).view(cell).tolist()):
            nbytes = count * unit
            if nbytes == 0:
                continue  # the tile is in another column
            if nbytes < _HEAD_NBYTES or offset < 0 or heap + offset + nbytes > hdu.data + hdu.nbytes:
                raise RecordError("unreadable", f"tile {number}, {kind}: {nbytes} bytes at byte {offset} of the heap")
            head = self._bytes(heap + offset, _HEAD_NBYTES)
            if kind == "PLIO_1":  # the number of words, and where those of the pixels begin
                said = head[:12].view(">i2").tolist()
                n_words, first = (said[2], 4) if said[2] > 0 else ((said[4] << 15) + said[3], said[1] + 1)
                right = 0 < n_words <= nbytes // 2 and 4 <= first <= n_words + 1
            else:  # a magic number, and the number of rows and columns
                places = zip(np.unravel_index(number, grid), tile, hdu.shape, strict=True)
                size = math.prod(min(length, axis - int(at) * length) for at, length, axis in places)
                sides = head[2:10].view(">i4").tolist()
                right = head[:2].tobytes() == b"\xdd\x99" and min(sides) > 0 and math.prod(sides) == size
            if not right:
                raise RecordError("unreadable", f"tile {number}, {kind}: its head does not fit its size")

    def _bytes(self, offset: int, nbytes: int) -> np.ndarray:
        content = np.empty(nbytes, np.uint8)
        with self._archive.stream(self.name) as stream:
            _fill(stream, offset, content)
        return content

    def _sum(self, start: int, stop: int) -> int:
        """The sum of 32-bit words, without the carry; section 4.4.2.7. What is missing at the file's end is zeros."""
        total = 0
        with self._archive.stream(self.name) as stream:
            for offset in range(start, stop, _STEP_NBYTES):
                stream.seek(offset)
                content = exactly(stream, min(_STEP_NBYTES, stop - offset))
                padded = content + bytes(-len(content) % 4)
                total += int(np.frombuffer(padded, ">u4").sum(dtype=np.uint64))
        return total


class _Bytes(Positioned):
    """A member as a file of known size; no handle stays open for it."""

    def __init__(self, archive: Archive, name: str, nbytes: int) -> None:
        super().__init__(nbytes)
        self._archive, self._name = archive, name

    def _read(self, start: int, stop: int) -> bytes:
        with self._archive.stream(self._name) as stream:
            stream.seek(start)
            content = stream.read(stop - start)
        if not content:
            raise EOFError(f"ends at byte {start}")
        return content


class _Opened(threading.local):
    def __init__(self) -> None:
        self.files: OrderedDict[tuple[Any, ...], Fits] = OrderedDict()


_opened = _Opened()


def opened(archive: Archive, name: str) -> Fits:
    """Return a FITS file whose headers are read; each thread keeps the last few. Raises RecordError."""
    key = (str(archive.path), name, *archive.signature(name))
    files = _opened.files
    if key not in files:
        files[key] = Fits(archive, name)
        while len(files) > _KEPT:
            files.popitem(last=False)
    files.move_to_end(key)
    return files[key]


def _bound(name: str, nbytes: int) -> None:
    if nbytes > MAX_MEMBER_NBYTES:
        raise RecordError("too-large", f"{name}: {nbytes} bytes at once, more than {MAX_MEMBER_NBYTES}")


def _fill(stream: BinaryIO, offset: int, pixels: np.ndarray) -> None:
    stream.seek(offset)
    into = pixels.view(np.uint8).reshape(-1).data
    received = 0
    while received < len(into):
        count = cast(io.BufferedIOBase, stream).readinto(into[received:])
        if not count:
            raise EOFError(f"ends at byte {offset + received}, {len(into) - received} bytes too early")
        received += count


def _folded(total: int) -> int:
    """Add the carry to a sum of 32-bit words."""
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _scaled(raw: np.ndarray, hdu: Hdu) -> np.ndarray:
    """Return physical values in the HDU's dtype: BSCALE · stored + BZERO, NaN where BLANK is stored."""
    dtype = hdu.dtype
    if (hdu.scale, hdu.zero) == (1, 0) and hdu.blank is None:
        return raw.astype(dtype, copy=False)
    if dtype.kind in "iu":  # by wrapping: the zero is half of the range
        return np.asarray(raw.astype(dtype) ^ np.array(1, dtype) << np.array(8 * dtype.itemsize - 1, dtype))
    values = raw.astype(np.float64) * hdu.scale + hdu.zero
    if hdu.blank is not None:
        values[raw == hdu.blank] = np.nan
    return values.astype(dtype, copy=False)
