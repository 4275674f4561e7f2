"""Reader of FITS images: whole, cropped, in patches, or cut out around positions; each sample knows where it is.

A member's items are the planes of its images, in the order of the file. Of what is compressed by tiles, or lies in a
large mosaic, only what a window touches is read. Maps of the sphere are in `healpix`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.policies import Beside, Sky
from scattercube.pipeline.sources import labels
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.pictures.sampling import Header, corners, finished, layout, or_why, split_by_position
from scattercube.pipeline.sources.reader import Columns, Layout, Window
from scattercube.pipeline.sources.sky_maps import cutouts, flags, healpix, wcs
from scattercube.pipeline.sources.sky_maps.fits import Fits, opened
from scattercube.pipeline.sources.sky_maps.fits_headers import Hdu, decoding

_STEMS, _PACKED = (".fits", ".fit", ".fts"), ("", ".gz", ".bz2", ".xz", ".fz")
SUFFIXES = (*(stem + packed for stem in _STEMS for packed in _PACKED), ".fz")
_OWN = ("item", "y0", "x0", "table_row", "ra", "dec", "pixel_scale", "wcs", "hdu", "plane", "unit")
_BAND_NBYTES = 64 << 20  # of a band that is read for all patches in it


@dataclass(frozen=True)
class Image:
    """The planes of an HDU: what a reader knows of them without pixels.

    Attributes
    ----------
    dtype
        Of the samples: floating where pixels may be missing.
    wcs
        See `wcs.text_of`.
    keywords
        The values of the entry's keywords.
    """

    hdu: int
    name: str
    n_planes: int
    height: int
    width: int
    dtype: np.dtype
    unit: str
    wcs: str
    keywords: dict[str, str | float]


@dataclass(frozen=True)
class Member:
    """The images of a member, in the order of the file; and the positions that cut-outs are around."""

    images: tuple[Image, ...]
    note: str = ""
    positions: cutouts.Positions | None = field(default=None, repr=False)

    def place(self, item: int) -> tuple[Image, int] | None:
        """Return the image and the plane of an item; None where there are fewer."""
        for image in self.images:
            if item < image.n_planes:
                return image, item
            item -= image.n_planes
        return None


@dataclass(frozen=True)
class SkyImages:
    """FITS files; see `Reader`, whose members these are."""

    suffixes: tuple[str, ...] = SUFFIXES
    single: tuple[str, ...] = ()
    offsets: tuple[str, ...] = ("y0", "x0", "table_row")

    def header(self, entry: Entry, archive: Archive, name: str) -> Member | healpix.Map:
        """Return which images a file holds, and what its headers say of them. Raises RecordError."""
        sky, file = entry.sky or Sky(), opened(archive, name)
        if sky.healpix:
            return healpix.header(sky, file)
        found = _member(sky, file, placed=True)
        return replace(found, positions=cutouts.positions(entry, archive, (*_OWN, *sky.keywords)))

    def layout(self, entry: Entry, header: Member | healpix.Map) -> Layout:
        """Return what samples look like when the archive's files look like this one. Raises EntryError."""
        sky = entry.sky or Sky()
        if isinstance(header, healpix.Map):
            return healpix.layout(header)
        columns = header.positions.columns if header.positions else {}
        known = {"hdu", "plane", "unit", *sky.keywords, *columns}
        if sky.label and sky.label not in known and "label" not in columns:
            raise EntryError(f"sky.label: no column {sky.label!r}; there are: {', '.join(sorted(known))}")
        first = header.images[0]
        height, width = sky.cutouts.size if sky.cutouts else (first.height, first.width)
        found = layout(Header(height, width, first.dtype), entry.sample)
        return Layout(found.dims, found.shape, found.dtype, source_dtype=found.source_dtype, note=header.note)

    def needs_header(self, entry: Entry, name: str) -> bool:
        """The head says how many images there are, and where."""
        return True

    def samples(self, entry: Entry, header: Member | healpix.Map | None) -> Columns:
        """List the samples of a member: its planes, their patches, or the positions that fall in them."""
        sky = entry.sky or Sky()
        if sky.healpix:
            assert not isinstance(header, Member)
            return _tiles(sky, header)
        assert not isinstance(header, healpix.Map)
        if header is None:
            nothing = Image(0, "", 1, 1, 1, np.dtype(float), "", "", _no_keywords(sky))
            return _rows(entry, nothing, 0, cutouts.unknown(entry))
        starts = accumulate((image.n_planes for image in header.images), initial=0)
        parts = [
            _rows(entry, image, start, header.positions) for start, image in zip(starts, header.images, strict=False)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def read(
        self, entry: Entry, archive: Archive, name: str, layout: Layout, rows: Mapping[str, np.ndarray], window: Window
    ) -> Iterator[np.ndarray | RecordError]:
        """Yield the window of some samples of a member. Patches side by side are read at once."""
        items = rows["item"].tolist()
        sky = entry.sky or Sky()
        if sky.healpix:
            yield from healpix.read(entry, archive, name, layout, items, window)
            return
        try:
            head = _member(sky, opened(archive, name), placed=False)
        except RecordError as failure:
            yield from [failure] * len(items)
            return
        zeros = [0] * len(items)
        y0, x0 = (rows[axis].tolist() if axis in rows else zeros for axis in ("y0", "x0"))
        changes = [i for i in range(len(items)) if i == 0 or (items[i], y0[i]) != (items[i - 1], y0[i - 1])]
        for first, last in pairwise([*changes, len(items)]):
            place = head.place(items[first])
            if place is None:
                lost = RecordError("missing", f"{name}: item {items[first]} is no longer there")
                yield from [lost] * (last - first)
            else:
                source = _Source(entry, archive, name, *place)
                yield from source.band(layout, y0[first], x0[first:last], window)


@dataclass(frozen=True)
class _Source:
    """A plane of an image of a member."""

    entry: Entry
    archive: Archive
    name: str
    image: Image
    plane: int

    def band(self, layout: Layout, y0: int, x0: list[int], window: Window) -> Iterator[np.ndarray | RecordError]:
        """Yield a window of each of the samples that begin in one row."""
        width = window[1].stop - window[1].start
        start, stop = min(x0), max(x0) + layout.signal_shape[1]
        nbytes = (window[0].stop - window[0].start) * (stop - start) * self.image.dtype.itemsize
        if len(x0) > 1 and nbytes <= _BAND_NBYTES and width * len(x0) * 2 >= stop - start:
            try:
                self._refuse_other_size(layout, y0, max(x0))
                rows = slice(y0 + window[0].start, y0 + window[0].stop)
                band = self._pixels(rows, slice(start + window[1].start, max(x0) + window[1].stop))
                for x in x0:
                    piece = band[:, x - start : x - start + width]
                    yield or_why(self.name, partial(finished, piece, layout, self.entry.sample))
                return
            except RecordError:
                pass  # one bad place does not spoil the others
        for x in x0:
            yield or_why(self.name, partial(self._sample, layout, y0, x, window))

    def _sample(self, layout: Layout, y0: int, x0: int, window: Window) -> np.ndarray:
        sample, image = self.entry.sample, self.image
        if sample.resize:
            whole = self._pixels(slice(0, image.height), slice(0, image.width))
            return finished(whole, layout, sample)[window]
        if sample.crop:
            y0, x0 = ((n - size) // 2 for n, size in zip((image.height, image.width), layout.signal_shape, strict=True))
        self._refuse_other_size(layout, y0, x0)
        rows, columns = (slice(at + part.start, at + part.stop) for at, part in zip((y0, x0), window, strict=True))
        return finished(self._pixels(rows, columns), layout, sample)

    def _refuse_other_size(self, layout: Layout, y0: int, x0: int) -> None:
        (height, width), image = layout.signal_shape, self.image
        exact = bool(self.entry.sample.exact) and not (self.entry.sky and self.entry.sky.cutouts)
        too_small = image.height < y0 + height or image.width < x0 + width or min(y0, x0) < 0
        if too_small or (exact and (image.height, image.width) != (height, width)):
            wanted = f"{'expected' if exact else 'need at least'} {height}×{width}"
            raise RecordError("wrong-shape", f"HDU {image.hdu} is {image.height}×{image.width}; {wanted}")

    def _pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a window of the image; what its mask and weights refuse is NaN."""
        sky = self.entry.sky or Sky()
        file = opened(self.archive, self.name)
        hdu = file.hdus[self.image.hdu]
        if sky.checksum:
            file.verify(hdu)
        pixels = file.plane(hdu, self.plane, rows, columns).astype(self.image.dtype, copy=False)
        for beside in (sky.mask, sky.weight):
            if beside and (values := self._beside(beside, hdu, rows, columns, sky.checksum)) is not None:
                pixels[flags.bad(beside, values)] = np.nan
        return pixels

    def _beside(self, beside: Beside, hdu: Hdu, rows: slice, columns: slice, checksum: bool) -> np.ndarray | None:
        """Read the same window of the image that goes with this one; None where there is none."""
        member = flags.other_member(beside, self.name)
        if member is None:
            return None
        file = opened(self.archive, member)
        other = _other(beside, file, hdu)
        if other.shape[-2:] != hdu.shape[-2:] or other.n_planes not in (hdu.n_planes, 1):
            raise RecordError("wrong-shape", f"{member}: HDU {other.index} is {other.shape}, the image {hdu.shape}")
        if checksum:
            file.verify(other)
        return file.plane(other, self.plane if other.n_planes > 1 else 0, rows, columns)


def _other(beside: Beside, file: Fits, hdu: Hdu) -> Hdu:
    """Return the HDU that goes with an image."""
    if isinstance(beside.hdu, int):
        found = [other for other in file.hdus if other.index == hdu.index + beside.hdu]
    else:
        found = [other for other in file.hdus if other.name.upper() == beside.hdu.upper()]
        found = [other for other in found if other.version == hdu.version] if len(found) > 1 else found
    if len(found) != 1 or not found[0].n_planes:
        raise RecordError("missing", f"{file.name}: no image in HDU {beside.hdu} for HDU {hdu.index}")
    return found[0]


def _chosen(sky: Sky, hdu: Hdu) -> bool:
    """Whether an HDU is to be read: one of those named, or any that is not the mask or weight of others."""
    names = [name.upper() for name in sky.hdus or () if isinstance(name, str)]
    if sky.hdus is not None:
        return hdu.index in sky.hdus or hdu.name.upper() in names
    beside = [part.hdu.upper() for part in (sky.mask, sky.weight) if part and isinstance(part.hdu, str)]
    return hdu.name.upper() not in beside


def _member(sky: Sky, file: Fits, placed: bool) -> Member:
    """Return the images of a file, with or without their places on the sky. Raises RecordError where it has none."""
    images, left = [], []
    for hdu in file.hdus:
        if _chosen(sky, hdu) and hdu.n_planes:
            with decoding(file.name, hdu.index):
                images.append(_image(sky, file, hdu, wcs.text_of(hdu.header) if placed else ""))
        elif _chosen(sky, hdu) and (hdu.nbytes or sky.hdus):
            left.append(f"{hdu.index} ({hdu.name or hdu.kind})")
    if not images:
        there = ", ".join(f"{hdu.index} {hdu.name or hdu.kind} {hdu.shape}" for hdu in file.hdus)
        which = f" called {', '.join(map(str, sky.hdus))}" if sky.hdus else ""
        raise RecordError("wrong-shape", f"{file.name}: no image of two dims{which} among its HDUs: {there}")
    return Member(tuple(images), f"HDUs without an image are left out: {', '.join(left)}" if left else "")


def _image(sky: Sky, file: Fits, hdu: Hdu, text: str) -> Image:
    dtype = hdu.dtype
    if (sky.mask or sky.weight) and dtype.kind in "iu":
        dtype = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    unit = str(hdu.header.get("BUNIT", "")).strip()
    (height, width), words = hdu.shape[-2:], file.keywords(hdu, sky.keywords)
    return Image(hdu.index, hdu.name or str(hdu.index), hdu.n_planes, height, width, dtype, unit, text, words)


def _rows(entry: Entry, image: Image, first: int, found: cutouts.Positions | None) -> Columns:
    """List the samples of the planes of an image, whose first is item ``first``; the same for each plane."""
    sky, sample, shape = entry.sky or Sky(), entry.sample, (image.height, image.width)
    own: Columns = {}
    step, size = (1.0, 1.0), shape
    if sky.cutouts:
        size = sky.cutouts.size
        assert found is not None
        rows, y0, x0 = cutouts.corners(found, sky.cutouts, image.wcs, shape)
        own = {"y0": y0, "x0": x0, "table_row": rows} | {name: values[rows] for name, values in found.columns.items()}
    elif sample.patches:
        size = sample.patches.size
        y0, x0 = corners(Header(*shape, image.dtype), sample)
        own = {"y0": y0, "x0": x0}
        if position := entry.split.position:
            own["split"] = split_by_position(position, y0, x0, size, shape["yx".index(position.axis)])
    else:
        size = sample.crop.size if sample.crop else sample.resize.size if sample.resize else shape
        if sample.resize:
            step = shape[0] / size[0], shape[1] / size[1]
        start = [
            (n - length) // 2 if sample.crop else (by - 1) / 2 for n, length, by in zip(shape, size, step, strict=True)
        ]
        y0, x0 = np.array(start[:1]), np.array(start[1:])
    texts = [wcs.regrid(image.wcs, at, step) if image.wcs else "" for at in zip(y0.tolist(), x0.tolist(), strict=True)]
    centre = (at + by * (length - 1) / 2 for at, by, length in zip((y0, x0), step, size, strict=True))
    own["ra"], own["dec"] = wcs.positions(image.wcs, *centre)
    own["pixel_scale"] = np.full(len(y0), wcs.pixel_scale(image.wcs) * np.sqrt(step[0] * step[1]))
    own["wcs"] = np.array(texts, dtype=object)
    own |= _same(sky, len(y0), {"hdu": image.name, "unit": image.unit}, image.keywords)
    n_planes, n_each = image.n_planes, len(y0)
    columns = {"item": np.repeat(np.arange(first, first + n_planes), n_each)}
    columns |= {name: np.tile(values, n_planes) for name, values in own.items()}
    columns["plane"] = np.repeat(np.arange(n_planes), n_each)
    if sky.label == "plane":
        columns["label"] = columns["plane"].astype(str).astype(object)
    return columns


def _tiles(sky: Sky, found: healpix.Map | None) -> Columns:
    """List the tiles of a map of the sphere; one row where nothing is known of it."""
    if found is None:
        ra, dec, texts = np.full(1, np.nan), np.full(1, np.nan), [""]
    else:
        ra, dec, texts = healpix.places(found)
    n_tiles, resolution = len(ra), found.resolution * 60 if found else np.nan
    keywords = found.keywords if found else _no_keywords(sky)
    columns = {"item": np.arange(n_tiles), "ra": ra, "dec": dec, "pixel_scale": np.full(n_tiles, resolution)}
    columns["wcs"] = np.array(texts, dtype=object)
    words = {"hdu": found.hdu.name or str(found.hdu.index), "unit": found.unit} if found else {"hdu": "", "unit": ""}
    columns |= _same(sky, n_tiles, words, keywords)
    return columns | {"plane": np.zeros(n_tiles, np.int64)}


def _same(sky: Sky, n: int, words: Mapping[str, str], keywords: Mapping[str, str | float]) -> Columns:
    """Return columns that say the same of n samples; ``label`` is among them, where it is one of these."""
    columns: Columns = {}
    for name, value in [*words.items(), *keywords.items()]:
        column = name if name in words else labels.free_name(name, {*_OWN, *columns}, [])
        columns[column] = np.full(n, value, dtype=object if isinstance(value, str) else np.float64)
        if name == sky.label:
            columns["label"] = np.full(n, str(value), dtype=object)
    return columns


def _no_keywords(sky: Sky) -> dict[str, str | float]:
    return {key: np.nan if kind == "number" else "" for key, kind in sky.keywords.items()}
