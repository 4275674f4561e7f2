"""The headers of a FITS file: which HDUs there are, checked against the size of the file before anything is read.

FITS Standard 4.0, https://fits.gsfc.nasa.gov/fits_standard.html; sections are its.
"""

import math
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np

from scattercube.pipeline.errors import RecordError, ScattercubeError, said_by
from scattercube.pipeline.sources.archives.containers import RATIO_FREE_NBYTES, packed_suffix

BLOCK = 2880
RAW = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_MAX_HEADER_NBYTES = 8 << 20
_MAX_HDUS = 1 << 14
_MAX_TILE_RATIO = 1 << 14  # pixels' bytes per packed byte; a row of 20,000 equal pixels takes 8 bytes
# Unsigned integers, and signed bytes, are stored with these zeros; section 5.2.5, table 11.
_SHIFTED = {(8, -128): "i1", (16, 1 << 15): "u2", (32, 1 << 31): "u4", (64, 1 << 63): "u8"}

_lock = threading.Lock()


@dataclass(frozen=True)
class Hdu:
    """A header and what follows it.

    Attributes
    ----------
    kind
        ``image``, ``tiles`` (an image that is compressed by tiles), ``table`` or ``other``.
    shape
        Of the image, last axis first, as NumPy has it; empty where there is none.
    start, data, nbytes
        First byte of the header and of the data, and the size of the data without what pads them.
    name, version
        EXTNAME and EXTVER.
    """

    index: int
    kind: str
    shape: tuple[int, ...]
    bitpix: int
    scale: float
    zero: float
    blank: int | None
    start: int
    data: int
    nbytes: int
    header: Any = field(repr=False, compare=False)
    name: str = ""
    version: int = 1

    @property
    def n_planes(self) -> int:
        """How many images of two dims there are."""
        return math.prod(self.shape[:-2]) if len(self.shape) > 1 and all(self.shape) else 0

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels once they are scaled, in native byte order; floating where some may be missing (BLANK)."""
        raw = np.dtype(RAW[self.bitpix]).newbyteorder("=")
        if self.bitpix < 0:
            return raw
        if self.blank is None and self.scale == 1:
            if self.zero == 0:
                return raw
            if (self.bitpix, self.zero) in _SHIFTED:
                return np.dtype(_SHIFTED[self.bitpix, int(self.zero)])
        return np.dtype(np.float32 if self.bitpix <= 16 else np.float64)


def walk(stream: BinaryIO, name: str, believed: int) -> Iterator[Hdu]:
    """List the HDUs, and make sure that the file goes as far as they say."""
    offset = 0
    for index in range(_MAX_HDUS):
        stream.seek(offset)
        block = exactly(stream, BLOCK)
        if index and not block.strip(b"\0 "):
            return  # the end, or blocks that fill a tape
        sign = b"XTENSION" if index else b"SIMPLE  "
        if not block.startswith(sign):
            what = f"HDU {index} should begin at byte {offset}" if index else "no FITS file"
            raise RecordError("unreadable", f"{name}: {what}; there is {block[:16]!r}; is it complete?")
        hdu = _hdu(index, _header(stream, name, index, block), offset, stream.tell(), name)
        end = hdu.data + hdu.nbytes
        _believe(name, hdu, end, believed)
        if hdu.nbytes:
            stream.seek(end - 1)
            if not stream.read(1):
                raise RecordError("unreadable", f"{name}: HDU {index} goes on to byte {end}, the file does not")
        yield hdu
        offset = hdu.data + -(-hdu.nbytes // BLOCK) * BLOCK
    raise RecordError("too-large", f"{name}: more than {_MAX_HDUS} HDUs")


def _header(stream: BinaryIO, name: str, index: int, block: bytes) -> Any:
    """Read the rest of a header whose first block is known."""
    from astropy.io import fits

    content = bytearray(block)
    while not re.search(rb"^(?:.{80})*END {77}", block, re.DOTALL):
        if len(block) < BLOCK or len(content) > _MAX_HEADER_NBYTES:
            raise RecordError("unreadable", f"{name}: the header of HDU {index} has no END")
        block = exactly(stream, BLOCK)
        content += block
    if len(block) < BLOCK:
        raise RecordError("unreadable", f"{name}: the file ends in the header of HDU {index}")
    text = content.decode("ascii", "replace").replace("\ufffd", "?")
    with decoding(name), parsing():
        return fits.Header.fromstring(text)


def _hdu(index: int, header: Any, start: int, data: int, name: str) -> Hdu:
    """Return what the structural keywords say; sections 4.4.1 and 7. Raises RecordError where they say nonsense."""
    with decoding(name, index), parsing():
        bitpix, axes = whole(header, "BITPIX"), _axes(header, "NAXIS")
        if bitpix not in RAW:
            raise RecordError("unreadable", f"BITPIX {bitpix}")
        groups = bool(axes) and axes[-1] == 0 and header.get("GROUPS") is True
        size = math.prod(axes[:-1] if groups else axes) if axes else 0
        n_groups, extra = whole(header, "GCOUNT", 1), whole(header, "PCOUNT", 0)
        nbytes = abs(bitpix) // 8 * n_groups * (extra + size) if axes else 0
        sort = "IMAGE" if index == 0 else str(header["XTENSION"]).strip().upper()
        tiles = sort == "BINTABLE" and header.get("ZIMAGE") is True
        if tiles:
            bitpix, axes = whole(header, "ZBITPIX"), _axes(header, "ZNAXIS")
            _check_tiles(header, bitpix, axes, nbytes)
        elif sort != "IMAGE" or groups:
            axes = ()
        image = sort == "IMAGE" and not groups
        kind = "tiles" if tiles else "image" if image else "table" if sort == "BINTABLE" else "other"
        scale, zero, blank = header.get("BSCALE", 1), header.get("BZERO", 0), header.get("BLANK")
        if not all(isinstance(value, int | float) for value in (scale, zero)):
            raise RecordError("unreadable", f"BSCALE {scale!r}, BZERO {zero!r}")
        blank = None if bitpix < 0 or not isinstance(blank, int) else blank
        called = str(header.get("EXTNAME", "")).strip(), header.get("EXTVER", 1)
        return Hdu(index, kind, axes, bitpix, scale, zero, blank, start, data, nbytes, header, *called)


def _check_tiles(header: Any, bitpix: int, axes: tuple[int, ...], nbytes: int) -> None:
    if bitpix not in RAW:
        raise RecordError("unreadable", f"ZBITPIX {bitpix}")
    # astropy knows these conventions only in part: it would read such pixels wrong.
    if beyond := {"ZMASKCMP", "ZSCALE", "ZZERO"} & set(header):
        raise RecordError("unreadable", f"{' and '.join(sorted(beyond))} as keywords of compressed tiles")
    tile = tile_shape(header, axes)
    n_tiles = math.prod(-(-axis // size) for axis, size in zip(axes, tile, strict=True))
    if n_tiles != whole(header, "NAXIS2"):
        raise RecordError("unreadable", f"{header['NAXIS2']} tiles of {tile} for {axes} pixels, which takes {n_tiles}")
    unpacked = math.prod(axes) * abs(bitpix) // 8
    if unpacked > max(RATIO_FREE_NBYTES, nbytes * _MAX_TILE_RATIO):
        raise RecordError("too-large", f"{nbytes} bytes unpack to {unpacked}; refused as a bomb")


def tile_shape(header: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tile, last axis first; section 10.1.1. Without ZTILE a tile is a row."""
    sizes = [whole(header, f"ZTILE{n}", shape[-1] if n == 1 else 1) for n in range(1, len(shape) + 1)]
    return tuple(max(1, size) for size in reversed(sizes))


def _axes(header: Any, keyword: str) -> tuple[int, ...]:
    n_axes = whole(header, keyword)
    if n_axes > 999:
        raise RecordError("unreadable", f"{keyword} {n_axes}")
    return tuple(whole(header, f"{keyword}{n}") for n in range(n_axes, 0, -1))


def whole(header: Any, keyword: str, default: int | None = None) -> int:
    """A number that counts something; BITPIX alone may be negative."""
    value = header.get(keyword, default)
    if type(value) is not int or (value < 0 and not keyword.endswith("BITPIX")):
        raise RecordError("unreadable", f"{keyword} is {value!r}; expected a whole number")
    return value


def _believe(name: str, hdu: Hdu, end: int, believed: int) -> None:
    if end <= believed:
        return
    promise = f"{name}: HDU {hdu.index} promises data to byte {end}, "
    if packed_suffix(name):
        raise RecordError("too-large", f"{promise}of which {believed} are believed of so small a file; unpack it first")
    raise RecordError("unreadable", f"{promise}the file has {believed}; is it complete?")


def exactly(stream: BinaryIO, nbytes: int) -> bytes:
    """Read so many bytes, or all that are left."""
    parts = []
    while nbytes and (content := stream.read(nbytes)):
        parts.append(content)
        nbytes -= len(content)
    return b"".join(parts)


@contextmanager
def parsing(warned: Literal["error", "ignore"] = "error") -> Iterator[None]:
    """Let astropy work, and say what becomes of what it only warns of.

    The filters of warnings belong to the process, so this goes on in one thread at a time.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter(warned)
        warnings.filterwarnings("ignore", "Invalid 'BLANK' keyword")  # on floating pixels, where it has no meaning
        yield


@contextmanager
def decoding(name: str, hdu: int | None = None) -> Iterator[None]:
    """Turn whatever astropy raises on damaged bytes into a RecordError, and name the member, and HDU, in all of them.

    The list of what it raises has no end.
    """
    where = name if hdu is None else f"{name}: HDU {hdu}"
    try:
        yield
    except RecordError as failure:
        text = str(failure)
        raise RecordError(failure.reason, text if text.startswith(name) else f"{where}: {text}") from failure
    except ScattercubeError:
        raise
    except Exception as failure:
        raise RecordError("unreadable", f"{where}: {said_by(failure)}") from failure
