"""Reader of arrays: npy, npz and IDX; HDF5, netCDF, Zarr and Parquet. Images, signals in time, or volumes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.sources import labels
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.archives.containers import packed_suffix
from scattercube.pipeline.sources.array_files import grids
from scattercube.pipeline.sources.array_files.forms import Form
from scattercube.pipeline.sources.array_files.grids import Grid
from scattercube.pipeline.sources.pictures import images
from scattercube.pipeline.sources.pictures.sampling import Header, Pictures, or_why
from scattercube.pipeline.sources.reader import Columns, Layout, Window

_LOOKED_AT = 16  # encoded images, where the first are damaged
_WHOLE_NBYTES = 16 << 20  # an image up to this size is rather read once than patch by patch
_UNITS = {"time": "sample", "z": "voxel", "y": "voxel", "x": "voxel"}


@dataclass(frozen=True)
class ArrayFiles:
    """A kind of files that hold arrays; see `Reader`, whose members these are."""

    suffixes: tuple[str, ...]
    single: tuple[str, ...] = ()
    offsets: tuple[str, ...] = ("y0", "x0", "start")

    def header(self, entry: Entry, archive: Archive, name: str) -> Grid | Header:
        """Return which array it is, its shape and dtype; of encoded images, the first's head. Raises RecordError."""
        found = grids.grid(entry, archive, name)
        return _head_of_images(archive, name, found) if isinstance(found, Form) else found

    def layout(self, entry: Entry, header: Grid | Header) -> Layout:
        """Return what samples look like when the archive's arrays look like this one. Raises EntryError."""
        if isinstance(header, Header):
            if entry.sample.patches or (entry.arrays and entry.arrays.signal_dims != ("y", "x")):
                raise EntryError("sample: encoded images in a table differ in size; take exact, crop or resize")
            return _PICTURES.layout(entry, header)
        note = header.note
        if header.signal == ("y", "x"):
            made = _PICTURES.layout(entry, picture(header))
            steps = [header.steps.get(dim, (1.0, "pixel")) for dim in header.signal]
            if entry.sample.resize:
                return replace(made, note=note)
            return replace(made, spacing=tuple(s for s, _ in steps), units=tuple(u for _, u in steps), note=note)
        rate = entry.arrays.rate if entry.arrays else None
        usual = (1 / rate, "s") if rate else (1.0, "sample")
        steps = [usual if dim == "time" else header.steps.get(dim, (1.0, "voxel")) for dim in header.signal]
        names = header.channels or tuple(f"channel{index}" for index in range(header.n_channels))
        length = _length(entry)
        shape = header.shape if length is None else (length,)
        if length == 0:
            raise EntryError(f"sample: less than one value at {rate} Hz")
        return Layout(
            dims=("channel", *header.signal) if names else header.signal,
            shape=(len(names), *shape) if names else shape,
            dtype=header.dtype,
            channels=names,
            spacing=tuple(step for step, _ in steps),
            units=tuple(unit for _, unit in steps),
            source_dtype=header.dtype,
            note=note,
        )

    def needs_header(self, entry: Entry, name: str) -> bool:
        """Every member says by itself how many items it has."""
        return True

    def samples(self, entry: Entry, header: Grid | Header | None) -> Columns:
        """List the samples of a member: its items, the patches of each, or the windows of each.

        Windows have ``start`` (int64, in values) and ``t0`` (float64, in s).
        """
        if not isinstance(header, Grid):
            columns = _PICTURES.samples(entry, header)
        elif header.signal == ("y", "x"):
            columns = _PICTURES.samples(entry, picture(header))
        else:
            columns = {"item": np.arange(header.n_items)}
        if entry.sample.segments and (entry.arrays and entry.arrays.rate):
            columns = _windows(entry, columns["item"], header.shape[0] if isinstance(header, Grid) else 0)
        for path, kind in (entry.arrays.columns if entry.arrays else {}).items():
            column = labels.free_name(path.rpartition("/")[2], columns, [])
            values = (
                header.columns[path] if isinstance(header, Grid) else np.array([np.nan if kind == "number" else ""])
            )
            mine = values[columns["item"]]
            columns[column] = _numbers(path, mine) if kind == "number" else grids.texts(mine)
        return columns

    def read(
        self, entry: Entry, archive: Archive, name: str, layout: Layout, rows: Mapping[str, np.ndarray], window: Window
    ) -> Iterator[np.ndarray | RecordError]:
        """Yield the window of some samples of a member; items that follow each other are read together."""
        if layout.signal_dims == ("y", "x"):
            yield from _pictures(entry, archive, name).read(entry, archive, name, layout, rows, window)
            return
        items = rows["item"].tolist()
        try:
            found = grids.grid(entry, archive, name)
            if not isinstance(found, Grid):
                raise RecordError("wrong-shape", f"{name}: encoded images; the archive's first member has an array")
            _refuse_other(entry, found, layout)
        except RecordError as failure:
            yield from [RecordError(failure.reason, _named(name, failure))] * len(items)
            return
        fill = _fill(entry)
        if entry.sample.exact:
            for values in grids.read(archive, name, found, items, window, fill=fill):
                yield or_why(name, partial(_finished, values, layout, entry.sample.missing))
            return
        starts = rows["start"].tolist() if entry.sample.segments else [_middle(found, layout)] * len(items)
        for item, start in zip(items, starts, strict=True):
            yield or_why(name, partial(_cut, entry, archive, name, found, layout, item, start, window[0]))


def _head_of_images(archive: Archive, name: str, form: Form) -> Header:
    """Return the head of the first encoded image that can be read. Raises RecordError where there is none."""
    from scattercube.pipeline.sources.array_files import parquet

    first: RecordError | None = None
    for item, content in enumerate(parquet.encoded(archive, name, form, range(min(form.shape[0], _LOOKED_AT)))):
        try:
            if isinstance(content, RecordError):
                raise content
            return replace(images.head_of(content, f"{name}: row {item}"), n_items=form.shape[0])
        except RecordError as failure:
            first = first or failure
    raise first or RecordError("wrong-shape", f"{name}: no rows")


def heads_of_images(entry: Entry, archive: Archive, name: str, n: int) -> list[Header]:
    """Return the heads of the first encoded images of a member; those that are damaged are left out."""
    from scattercube.pipeline.sources.array_files import parquet

    found, heads = grids.grid(entry, archive, name), []
    if isinstance(found, Form):
        for content in parquet.encoded(archive, name, found, range(min(found.shape[0], n))):
            with suppress(RecordError):
                if not isinstance(content, RecordError):
                    heads.append(images.head_of(content, name))
    return heads


def picture(grid: Grid) -> Header:
    """Return the head of arrays that are images."""
    height, width = grid.shape
    return Header(height, width, grid.dtype, grid.n_channels or 1, grid.n_items, channels=grid.channels)


def _head(entry: Entry, archive: Archive, name: str) -> Header:
    """Return the head of a member that holds images. Raises RecordError."""
    found = grids.grid(entry, archive, name)
    return _head_of_images(archive, name, found) if isinstance(found, Form) else picture(found)


def _decode(
    entry: Entry, archive: Archive, name: str, items: Sequence[int], window: Window | None
) -> Iterator[np.ndarray | RecordError]:
    """Yield a window of some images as ``(y, x)`` or ``(y, x, channel)``, or why there is none."""
    try:
        found = grids.grid(entry, archive, name)
    except RecordError as failure:
        yield from [failure] * len(items)
        return
    if isinstance(found, Form):
        yield from _decoded(archive, name, found, items, window)
        return
    whole = tuple(slice(0, size) for size in found.shape)
    for image in grids.read(archive, name, found, items, window or whole, fill=_fill(entry)):
        if isinstance(image, RecordError) or image.ndim == 2:
            yield image
        else:
            yield image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)


def _decoded(
    archive: Archive, name: str, form: Form, items: Sequence[int], window: Window | None
) -> Iterator[np.ndarray | RecordError]:
    """Yield encoded images that stand in a column."""
    from scattercube.pipeline.sources.array_files import parquet

    for item, content in zip(items, parquet.encoded(archive, name, form, items), strict=True):
        if isinstance(content, RecordError):
            yield content
            continue
        try:
            image = images.picture(content, f"{name}: row {item}")
            yield image if window is None else image[window]
        except RecordError as failure:
            yield failure


_PICTURES = Pictures((), (), _head, _decode)
_BY_WINDOW = replace(_PICTURES, by_window=True)


def _pictures(entry: Entry, archive: Archive, name: str) -> Pictures:
    """Return how images are read: patch by patch where an image is large, and any part of it can be had."""
    try:
        found = grids.grid(entry, archive, name)
    except RecordError:
        return _PICTURES
    large = isinstance(found, Grid) and found.item_nbytes > _WHOLE_NBYTES
    return _BY_WINDOW if large and not packed_suffix(name) else _PICTURES


def _fill(entry: Entry) -> bool:
    return entry.arrays is not None and entry.arrays.absent == "fill"


def _length(entry: Entry) -> int | None:
    """How many values a clip or segment has; None where as many as the first item."""
    frame = entry.sample.clip or entry.sample.segments
    rate = entry.arrays.rate if entry.arrays else None
    return round(frame.seconds * rate) if frame and rate else None


def _windows(entry: Entry, items: np.ndarray, length: int) -> Columns:
    """List the windows of items of this length along time; one that is too short has a row, which says so when read."""
    assert entry.sample.segments is not None
    assert entry.arrays is not None
    assert entry.arrays.rate is not None
    rate, size = entry.arrays.rate, _length(entry) or 1
    start = np.arange(0, max(0, length - size) + 1, max(1, round(entry.sample.segments.step * rate)))
    starts = np.tile(start, len(items))
    return {"item": np.repeat(items, len(start)), "start": starts, "t0": starts / rate}


def _numbers(path: str, values: np.ndarray) -> np.ndarray:
    try:
        return values.astype(np.float64)
    except ValueError as failure:
        raise EntryError(f"arrays.columns: {path} holds text ({failure}); declare it as text") from failure


def _named(name: str, failure: RecordError) -> str:
    text = str(failure)
    return text if text.startswith(name) else f"{name}: {text}"


def _refuse_other(entry: Entry, grid: Grid, layout: Layout) -> None:
    """Raise RecordError where items of a member are not like those of the archive's first."""
    first = layout.signal_shape
    fits = grid.shape == first if entry.sample.exact else entry.sample.clip or grid.shape[0] >= first[0]
    if not fits:
        wanted = "expected" if entry.sample.exact else "need at least"
        raise RecordError("wrong-shape", f"{_by(grid.shape)}; {wanted} {_by(first)}")
    if grid.n_channels != len(layout.channels):
        raise RecordError(
            "wrong-shape", f"{grid.n_channels} channels; the archive's first member has {len(layout.channels)}"
        )
    if grid.dtype != layout.source_dtype:
        raise RecordError("wrong-shape", f"dtype {grid.dtype}; the archive's first member has {layout.source_dtype}")


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _middle(grid: Grid, layout: Layout) -> int:
    """Return where a clip begins; before 0 where it is longer than what there is."""
    spare = grid.shape[0] - layout.signal_shape[0]
    return spare // 2 if spare >= 0 else -(-spare // 2)


def _cut(
    entry: Entry, archive: Archive, name: str, grid: Grid, layout: Layout, item: int, start: int, window: slice
) -> np.ndarray:
    """Return the window of a part of an item along time, with zeros beyond the ends. Raises RecordError."""
    (length,) = grid.shape
    if entry.sample.segments and length < start + layout.signal_shape[0]:
        raise RecordError("wrong-shape", f"{length} values; need at least {start + layout.signal_shape[0]}")
    sample = np.zeros((*layout.shape[:-1], window.stop - window.start), layout.dtype)
    first, last = max(0, start + window.start), min(length, start + window.stop)
    if first < last:
        (values,) = grids.read(archive, name, grid, [item], (slice(first, last),), fill=_fill(entry))
        at = first - start - window.start
        sample[..., at : at + last - first] = _finished(values, layout, entry.sample.missing)
    return sample


def _finished(values: np.ndarray | RecordError, layout: Layout, missing: bool) -> np.ndarray:
    """Return values of the layout's dtype, whose missing ones are NaN. Raises RecordError."""
    if isinstance(values, RecordError):
        raise values
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        if not missing:
            raise RecordError("non-finite", f"{np.count_nonzero(~finite)} values are not finite")
        values = np.where(finite, values, np.array(np.nan, values.dtype))
    return values.astype(layout.dtype, copy=False)
