"""Reader of picture files: PNG, JPEG, and TIFF with several pages. Pixels are as stored: no EXIF rotation."""

import io
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError, said_by
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.pictures.sampling import Header
from scattercube.pipeline.sources.reader import Window

SINGLE = (".png", ".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")
SUFFIXES = SINGLE + _TIFF
_FORMATS = ("PNG", "JPEG")
_PNG = b"\x89PNG\r\n\x1a\n"
# Pillow's mode: what it is decoded to, channels, dtype
_MODES = {
    "1": ("L", 1, np.uint8),
    "L": ("L", 1, np.uint8),
    "LA": ("L", 1, np.uint8),
    "I;16": ("I;16", 1, np.uint16),
    "I;16B": ("I;16", 1, np.uint16),
    "I": ("I", 1, np.int32),
    "F": ("F", 1, np.float32),
    "P": ("RGB", 3, np.uint8),
    "PA": ("RGB", 3, np.uint8),
    "RGB": ("RGB", 3, np.uint8),
    "RGBA": ("RGB", 3, np.uint8),
    "CMYK": ("RGB", 3, np.uint8),
    "YCbCr": ("RGB", 3, np.uint8),
}


class _Last(threading.local):
    key: tuple[str | int, ...] = ()
    image: np.ndarray


_last = _Last()


def head(entry: Entry, archive: Archive, name: str) -> Header:
    """Return size, dtype and channels of a picture, without its pixels. Raises RecordError."""
    with archive.open(name) as stream, _decoding(name):
        if name.lower().endswith(_TIFF):
            return _tiff_header(stream)
        return _picture_header(stream)


def head_of(content: bytes, where: str) -> Header:
    """Return size, dtype and channels of a PNG or JPEG in memory, without its pixels. Raises RecordError."""
    with _decoding(where):
        return _picture_header(io.BytesIO(content))


def picture(content: bytes, where: str) -> np.ndarray:
    """Decode a PNG or JPEG in memory, as ``(y, x)`` or ``(y, x, channel)``. Raises RecordError."""
    with _decoding(where):
        return _picture(content)


def decode(
    entry: Entry, archive: Archive, name: str, items: Sequence[int], window: Window | None
) -> Iterator[np.ndarray | RecordError]:
    """Yield the pages ``items`` of a picture as ``(y, x)`` or ``(y, x, channel)``, or why one cannot be had.

    A picture is decoded whole. Each thread keeps the last picture: the next call may ask for more patches of it.
    """
    content: bytes | None = None
    for item in items:
        try:
            key: tuple[str | int, ...] = (str(archive.path), name, *archive.signature(name), int(item))
            if _last.key != key:
                content = archive.read(name) if content is None else content
                with _decoding(name):
                    image = _tiff_page(content, int(item)) if name.lower().endswith(_TIFF) else _picture(content)
                image.flags.writeable = False  # others will see it
                _last.key, _last.image = key, image
            yield _last.image if window is None else _last.image[window]
        except RecordError as failure:
            yield failure


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into a RecordError: the list of what they raise has no end."""
    try:
        yield
    except RecordError as failure:
        raise RecordError(failure.reason, f"{name}: {failure}") from failure
    except UnidentifiedImageError as failure:
        raise RecordError(
            "unreadable", f"{name}: is no {' or '.join(_FORMATS)}, or its first bytes are damaged"
        ) from failure
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as failure:
        raise RecordError("too-large", f"{name}: {failure}") from failure
    except Exception as failure:
        raise RecordError("unreadable", f"{name}: {said_by(failure)}") from failure


def _bound(n_pixels: int) -> None:
    if n_pixels < 1:
        raise RecordError("wrong-shape", "it has no pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and n_pixels > limit:
        raise RecordError("too-large", f"{n_pixels} pixels; PIL.Image.MAX_IMAGE_PIXELS allows {limit}")


def _mode(image: Image.Image) -> tuple[str, int, type]:
    if image.mode not in _MODES:
        raise RecordError("unreadable", f"colour mode {image.mode}; known: {', '.join(_MODES)}")
    return _MODES[image.mode]


def _picture_header(stream: BinaryIO) -> Header:
    with Image.open(stream, formats=_FORMATS) as image:
        _, n_channels, dtype = _mode(image)
        _bound(image.width * image.height)
        alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        return Header(image.height, image.width, np.dtype(dtype), n_channels, alpha=alpha)


def _picture(content: bytes) -> np.ndarray:
    _check_png(content)
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _bound(image.width * image.height)
        mode, _, dtype = _mode(image)
        image.load()
        # A palette may carry transparency in a form that only RGBA takes without a warning.
        plain = image.convert("RGBA") if image.mode == "P" else image
        return np.asarray(plain.convert(mode) if plain.mode != mode else plain, dtype)


def _check_png(content: bytes) -> None:
    """Raise RecordError where pixels do not fit the checksum of their chunk, which Pillow steps over."""
    at = len(_PNG)
    while content.startswith(_PNG) and (head := content[at : at + 8]):
        nbytes, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = at + 8 + nbytes
        said = int.from_bytes(content[end : end + 4], "big")
        if kind == b"IDAT" and zlib.crc32(memoryview(content)[at + 4 : end]) != said:
            raise RecordError("unreadable", f"the checksum of its IDAT chunk at byte {at} does not fit")
        if kind == b"IEND":
            return
        at = end + 4


def _tiff_header(stream: BinaryIO) -> Header:
    import tifffile

    with tifffile.TiffFile(stream) as pages:
        height, width, n_channels, alpha = _tiff_shape(pages.pages[0])
        dtype = _tiff_dtype(pages.pages[0])
        return Header(height, width, dtype, n_channels, len(pages.pages), alpha)


def _tiff_page(content: bytes, item: int) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as pages:
        page = pages.pages[item]
        height, width, n_channels, _ = _tiff_shape(page)
        dtype = _tiff_dtype(page)
        try:
            image = page.asarray()
        except ValueError as failure:
            if "imagecodecs" not in str(failure):
                raise
            image = _tiff_page_by_pillow(content, item)  # LZW, JPEG, …: codecs that tifffile leaves to another package
    if page.axes == "SYX" and image.shape[0] == page.shape[0]:
        image = np.moveaxis(image, 0, 2)
    image = image.astype(dtype, copy=False)
    if image.shape[:2] != (height, width):
        raise RecordError("unreadable", f"decodes to {image.shape}; its header says {height}×{width}")
    if image.ndim == 3:
        return image[..., 0] if n_channels == 1 else image[..., :n_channels]
    return image


def _tiff_page_by_pillow(content: bytes, item: int) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
        image.seek(item)
        image.load()
        return np.asarray(image)


def _tiff_shape(page: Any) -> tuple[int, int, int, bool]:
    """Height, width, channels without alpha, and whether there was alpha."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise RecordError("wrong-shape", f"axes {page.axes} of shape {page.shape}; expected YX, YXS or SYX")
    sizes = dict(zip(page.axes, page.shape, strict=True))
    _bound(sizes["Y"] * sizes["X"])
    n_samples, n_alpha = sizes.get("S", 1), sum(int(kind) in (1, 2) for kind in page.extrasamples)
    return sizes["Y"], sizes["X"], n_samples - n_alpha, n_alpha > 0


def _tiff_dtype(page: Any) -> np.dtype:
    """The native dtype of the pixels; one bit becomes a byte."""
    if page.dtype is None or page.dtype.kind not in "buif" or page.colormap is not None:
        raise RecordError("unreadable", f"pixels of dtype {page.dtype}, photometric {page.photometric!r}")
    return np.dtype(np.uint8) if page.dtype.kind == "b" else np.dtype(page.dtype).newbyteorder("=")
