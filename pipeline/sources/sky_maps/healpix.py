"""Maps of the sphere (HEALPix, in tables of FITS files) as images: tiles in gnomonic projection.

Tiles lie around the centres of a coarser HEALPix grid, so that they cover the sphere about evenly. Their pixels are
interpolated between those of the map's four nearest that are known, and missing where these have less than half of the
weight. Górski et al., ApJ 622 (2005) 759, describe the grid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.policies import Beside, Healpix, Sky
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.pictures.sampling import finished, or_why
from scattercube.pipeline.sources.reader import Layout, Window
from scattercube.pipeline.sources.sky_maps import flags, wcs
from scattercube.pipeline.sources.sky_maps.fits import Column, Fits, opened
from scattercube.pipeline.sources.sky_maps.fits_headers import Hdu, decoding, whole

if TYPE_CHECKING:
    from astropy_healpix import HEALPix

UNSEEN = -1.6375e30
_LARGEST = 1 << 10  # NSIDE of a grid of tiles: twelve million
_WIDEST = 0.85  # radians from the centre to a corner of a pixel of nside 1; as 1/nside, and a little less, of others
_KEPT_NBYTES = 64 << 20  # of a map that is held in memory
_GAP = 64  # rows of a table that are read along rather than seeking
_FRAMES = {"G": "galactic", "C": "icrs", "galactic": "galactic", "icrs": "icrs"}
_AXES = {"galactic": ("GLON-TAN", "GLAT-TAN"), "icrs": ("RA---TAN", "DEC--TAN"), "": ("XLON-TAN", "XLAT-TAN")}


@dataclass(frozen=True)
class Map:
    """A map of the sphere, and the tiles that an entry makes of it.

    Attributes
    ----------
    nside, order
        Of the map: ``nested`` or ``ring``.
    pixels
        The column with the numbers of the pixels, where not all are there.
    frame
        ``galactic``, ``icrs``, or nothing where it is not known.
    n_tiles_side
        The nside of the grid of tiles.
    """

    hdu: Hdu
    column: Column
    pixels: Column | None
    name: str
    unit: str
    nside: int
    order: str
    frame: str
    tile: int
    resolution: float
    n_tiles_side: int
    keywords: dict[str, str | float]

    @property
    def n_tiles(self) -> int:
        """How many tiles there are."""
        return 12 * self.n_tiles_side**2

    @property
    def dtype(self) -> np.dtype:
        """Of the tiles."""
        return np.dtype(np.float64 if self.column.dtype.itemsize > 4 else np.float32)

    def text(self, tile: int) -> str:
        """Return where the pixels of a tile lie; see `wcs`."""
        longitude, latitude = _centres(self.n_tiles_side)
        kinds, middle = _AXES[self.frame], (self.tile + 1) / 2
        values: dict[str, Any] = {"CRPIX1": middle, "CRPIX2": middle}
        values |= {"CD1_1": -self.resolution / 60, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": self.resolution / 60}
        values |= {"CTYPE1": kinds[0], "CTYPE2": kinds[1]}
        values |= {"CRVAL1": float(longitude[tile]), "CRVAL2": float(latitude[tile])}
        return wcs.text_from(values | ({"RADESYS": "ICRS"} if self.frame == "icrs" else {}))


def header(sky: Sky, file: Fits, called: str | None = None) -> Map:
    """Return the first map in a file, or the one whose HDU is called so. Raises RecordError where there is none."""
    for hdu in file.hdus:
        if hdu.kind == "table" and "NSIDE" in hdu.header and called in (None, hdu.name):
            with decoding(file.name, hdu.index):
                return _map(sky, file, hdu)
    there = ", ".join(f"{hdu.index} {hdu.name or hdu.kind}" for hdu in file.hdus)
    raise RecordError("wrong-shape", f"{file.name}: no HEALPix map {called or ''} among its HDUs: {there}")


def _map(sky: Sky, file: Fits, hdu: Hdu) -> Map:
    options = sky.healpix
    assert options is not None
    head, columns = hdu.header, file.columns(hdu)
    nside, order = whole(head, "NSIDE"), str(head.get("ORDERING", "")).strip().upper()
    if order not in ("RING", "NESTED", "NEST") or not 1 <= nside <= 1 << 20 or (order != "RING" and nside & nside - 1):
        raise RecordError(
            "unreadable", f"ORDERING {order!r}, NSIDE {nside}; expected RING, or NESTED of a power of two"
        )
    index = next((name for name in columns if name.upper() in ("PIXEL", "PIX")), None)
    values = [name for name in columns if name != index]
    wanted = options.column or (values[0] if values else "")
    name = next((name for name in values if name.upper() == wanted.upper()), None)
    if name is None:
        raise RecordError("missing", f"no column {wanted!r}; there are: {', '.join(columns)}")
    n_pixels = columns[name].repeat * whole(head, "NAXIS2")
    if columns[name].dtype.kind not in "iuf" or (index is None and n_pixels != 12 * nside**2):
        raise RecordError(
            "wrong-shape",
            f"column {name}: {n_pixels} values of dtype {columns[name].dtype}; NSIDE {nside} has {12 * nside**2}",
        )
    frame = _FRAMES.get(str(head.get("COORDSYS", "")).strip().upper()[:1], options.frame or "")
    unit = next((head.get(f"TUNIT{n}", "") for n in range(1, 1000) if head.get(f"TTYPE{n}") == name), "")
    return Map(
        hdu,
        columns[name],
        columns[index] if index else None,
        name,
        str(unit).strip(),
        nside,
        "ring" if order == "RING" else "nested",
        frame,
        options.tile,
        options.resolution,
        options.nside or _bounded(options),
        file.keywords(hdu, sky.keywords),
    )


def _bounded(options: Healpix) -> int:
    nside = fine_enough(np.deg2rad(options.tile * options.resolution / 60))
    if nside > _LARGEST:
        raise EntryError(
            f"sky.healpix: tiles of {options.tile}·{options.resolution:g}' leave gaps in a grid of nside {_LARGEST}, "
            "the largest; raise tile or resolution, or set nside and leave gaps"
        )
    return nside


def fine_enough(width: float) -> int:
    """Return the least NSIDE, a power of two, around whose centres tiles so wide (in radians) leave no gaps."""
    return 1 << max(0, math.ceil(math.log2(2 * _WIDEST / width)))


def layout(found: Map) -> Layout:
    """Return what the tiles of a map look like."""
    size, angle = (found.tile, found.tile), (found.resolution, found.resolution)
    note = "" if found.frame else "it does not say whose sphere it is (COORDSYS): the tiles have no ra and dec"
    return Layout(("y", "x"), size, found.dtype, (), angle, ("arcmin", "arcmin"), found.dtype, note)


def read(
    entry: Entry, archive: Archive, name: str, layout: Layout, items: list[int], window: Window
) -> Iterator[np.ndarray | RecordError]:
    """Yield the window of some tiles of a map, or why they cannot be had."""
    sky = entry.sky or Sky()
    try:
        file = opened(archive, name)
        found = header(sky, file)
        if sky.checksum:
            file.verify(found.hdu)
    except RecordError as failure:
        yield from [failure] * len(items)
        return
    for item in items:
        if item < found.n_tiles:
            yield or_why(name, partial(_tile, entry, archive, file, found, layout, item, window))
        else:
            yield RecordError("missing", f"{name}: tile {item}; there are {found.n_tiles}")


def _tile(
    entry: Entry, archive: Archive, file: Fits, found: Map, layout: Layout, item: int, window: Window
) -> np.ndarray:
    import astropy.units as u

    y, x = np.mgrid[window]
    longitude, latitude = wcs.world(found.text(item), y.ravel(), x.ravel())
    # What names the pixels, and their shares: (4, pixels of the tile).
    pixels, shares = _grid(found.nside, found.order).bilinear_interpolation_weights(longitude * u.deg, latitude * u.deg)
    values, known = _values(file, found, pixels)
    values = np.where(known & (values > 0.99 * UNSEEN), values.astype(np.float64), np.nan)
    sky = entry.sky or Sky()
    for beside in (sky.mask, sky.weight):
        if beside:
            values[_bad(sky, beside, archive, file, found, pixels)] = np.nan
    # Of what is known of the four, where that is at least half: so a mask stays as wide as it is.
    there = np.isfinite(values)
    total = np.where(there, shares, 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tile = np.where(there, values * shares, 0).sum(axis=0) / np.where(total < 0.5, np.nan, total)
    tile = tile.reshape(y.shape)
    return finished(tile.astype(found.dtype), layout, entry.sample)


def _bad(sky: Sky, beside: Beside, archive: Archive, file: Fits, found: Map, pixels: np.ndarray) -> np.ndarray:
    """Which pixels of a map another map refuses."""
    member = flags.other_member(beside, file.name)
    if member is None:
        return np.zeros(pixels.shape, bool)
    other = opened(archive, member)
    assert sky.healpix is not None
    first = sky.model_copy(update={"healpix": sky.healpix.model_copy(update={"column": None}), "keywords": {}})
    mask = header(first, other, beside.hdu if isinstance(beside.hdu, str) else None)
    if mask.nside != found.nside:
        raise RecordError("wrong-shape", f"{member}: NSIDE {mask.nside}; the map has {found.nside}")
    if sky.checksum:
        other.verify(mask.hdu)
    if mask.order != found.order:
        grid = _grid(found.nside, found.order)
        pixels = _grid(found.nside, mask.order).lonlat_to_healpix(*grid.healpix_to_lonlat(pixels))
    values, known = _values(other, mask, pixels)
    return np.asarray(flags.bad(beside, values) | ~known)


def _values(file: Fits, found: Map, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of some pixels of a map, and which of them it has."""
    wanted, where = np.unique(pixels, return_inverse=True)
    n_rows, known = whole(found.hdu.header, "NAXIS2"), np.ones(len(wanted), bool)
    if found.pixels:
        if "pixels" not in file.kept:
            there = file.cells(found.hdu, found.pixels, 0, n_rows).ravel().astype(np.int64)
            file.kept["pixels"] = np.argsort(there, kind="stable"), np.sort(there, kind="stable")
        order, there = file.kept["pixels"]
        at = np.searchsorted(there, wanted).clip(0, max(0, len(there) - 1))
        known = there[at] == wanted if len(there) else ~known
        wanted = order[at] if len(there) else wanted[:0]
    rows, within = np.divmod(wanted, found.column.repeat)
    kept = found.hdu.nbytes <= _KEPT_NBYTES
    if kept and found.name not in file.kept:
        file.kept[found.name] = file.cells(found.hdu, found.column, 0, n_rows)
    values = file.kept[found.name][rows, within] if kept else _scattered(file, found, rows, within)
    return values[where].reshape(pixels.shape), known[where].reshape(pixels.shape)


def _scattered(file: Fits, found: Map, rows: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Read cells here and there, the rows that are near each other at once."""
    order = np.argsort(rows, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(rows[order]) > _GAP) + 1)
    read = []
    for part in parts:
        first = rows[part[0]]
        cells = file.cells(found.hdu, found.column, int(first), int(rows[part[-1]]) + 1)
        read.append(cells[rows[part] - first, within[part]])
    values = np.concatenate(read)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return values[back]


def places(found: Map) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return right ascension and declination (ICRS, degrees) of the centres of all tiles, and their texts."""
    longitude, latitude = _centres(found.n_tiles_side)
    texts = [found.text(tile) for tile in range(found.n_tiles)]
    if not found.frame:
        return np.full(found.n_tiles, np.nan), np.full(found.n_tiles, np.nan), texts
    return *wcs.to_icrs(longitude, latitude, found.frame), texts


def _grid(nside: int, order: str) -> "HEALPix":
    from astropy_healpix import HEALPix

    return HEALPix(nside, order)


@lru_cache(maxsize=4)
def _centres(nside: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres of the pixels of a grid in ring order, in degrees."""
    longitude, latitude = _grid(nside, "ring").healpix_to_lonlat(np.arange(12 * nside**2))
    return longitude.deg, latitude.deg
