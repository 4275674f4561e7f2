"""Arrays in files as items: which array, what its axes are, and its values, some items at a time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.policies import Arrays
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.archives.bundles import is_bundle
from scattercube.pipeline.sources.array_files import raw
from scattercube.pipeline.sources.array_files.forms import IMAGE, Form, Format
from scattercube.pipeline.sources.reader import Window

HDF5_SUFFIXES = (".h5", ".hdf5", ".he5", ".nc4")
SUFFIXES = (*raw.NPY_SUFFIXES, *HDF5_SUFFIXES, ".nc", ".zarr", ".parquet")
_BLOCK_NBYTES = 4 << 20  # of items that are read at once
_MOST_BLOCK_NBYTES = 64 << 20  # of items that share a chunk
_MOST_VALUES = 1 << 24  # of an array of labels or coordinates
_AS_IS = Arrays()
_LAST = "last grid"


@dataclass(frozen=True)
class Grid:
    """The head of a member: an array, or several that are alike and channels together.

    Attributes
    ----------
    axes
        What each axis of the arrays is.
    signal
        The dims of an item's signal, in the order of samples.
    columns
        For each item, values of other arrays.
    steps
        For dims of the signal whose coordinates are evenly spaced, how far apart values are, and in what.
    """

    format: Format
    forms: tuple[Form, ...]
    axes: tuple[str, ...]
    signal: tuple[str, ...]
    columns: MappingProxyType[str, np.ndarray]
    steps: MappingProxyType[str, tuple[float, str]]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The sizes of the axes whose entries are items."""
        return tuple(size for axis, size in zip(self.axes, self.forms[0].shape, strict=True) if axis == "sample")

    @property
    def n_items(self) -> int:
        """Number of items."""
        return math.prod(self.sample_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item's signal."""
        sizes = dict(zip(self.axes, self.forms[0].shape, strict=True))
        return tuple(sizes[dim] for dim in self.signal)

    @property
    def n_channels(self) -> int:
        """Number of channels; 0 where there is no axis of channels."""
        if len(self.forms) > 1:
            return len(self.forms)
        return dict(zip(self.axes, self.forms[0].shape, strict=True)).get("channel", 0)

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of channels that are arrays of their own."""
        names = [form.path.rpartition("/")[2] for form in self.forms]
        distinct = len(set(names)) == len(names)
        return tuple(names if distinct else [form.path for form in self.forms]) if len(names) > 1 else ()

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values of all channels."""
        return np.result_type(*(form.value_dtype for form in self.forms))

    @property
    def item_nbytes(self) -> int:
        """Bytes of one item."""
        return math.prod(self.shape) * max(1, self.n_channels) * self.dtype.itemsize

    @property
    def note(self) -> str:
        """What a person should know of how stored numbers become values."""
        notes = {form.path: form.packing.note for form in self.forms if form.packing and form.packing.note}
        return "; ".join(f"{path}: {note}" for path, note in notes.items())


def is_raw(name: str) -> bool:
    """Whether a member is plain bytes with a head: npy or IDX."""
    return name.lower().endswith((*raw.NPY_SUFFIXES, *raw.IDX_SUFFIXES))


def format_of(archive: Archive, name: str) -> Format:
    """Return the format of a member. Libraries are loaded for files of their own only."""
    plain = name.lower()
    if is_raw(name):
        return raw
    if is_bundle(plain):
        from scattercube.pipeline.sources.array_files import zarrs

        return zarrs
    if plain.endswith(".parquet"):
        from scattercube.pipeline.sources.array_files import parquet

        return parquet
    if plain.endswith(".nc"):
        from scattercube.pipeline.sources.array_files import netcdf

        with archive.open(name) as stream:
            if stream.read(len(netcdf.MAGIC)) == netcdf.MAGIC:
                return netcdf
    from scattercube.pipeline.sources.array_files import hdf5

    return hdf5


def grid(entry: Entry, archive: Archive, name: str) -> Grid | Form:
    """Return what the head of a member says; a column of encoded images has no more than its form.

    Raises
    ------
    RecordError
        The member is damaged, or has not the array, or not in the shape, that the entry declares.
    EntryError
        Several arrays may be meant, and the entry does not say which.
    """
    key = (name, entry.arrays)
    known: tuple[Any, Grid | Form] | None = archive.learnt.get(_LAST)
    if known and known[0] == key:
        return known[1]
    made = _grid(entry, archive, name)
    archive.learnt[_LAST] = key, made  # only of the last member: there may be millions
    return made


def _grid(entry: Entry, archive: Archive, name: str) -> Grid | Form:
    options, found = entry.arrays or _AS_IS, format_of(archive, name)
    forms = _chosen(options, archive, name, found)
    if forms[0].dtype == IMAGE:
        return forms[0]
    if options.shape:
        if not name.lower().endswith(".parquet"):
            raise EntryError(f"arrays.shape: is for Parquet, whose lists have no shape; {name} says its own")
        forms = tuple(replace(form, shape=(form.shape[0], *options.shape)) for form in forms)
    for form in forms:
        if not form.numeric:
            raise RecordError("unreadable", f"{_called(name, form.path)}: text; expected numbers")
        if form.shape != forms[0].shape:
            raise RecordError(
                "wrong-shape",
                f"{name}: {form.path} is {form.shape}, {forms[0].path} {forms[0].shape}; channels are alike",
            )
    made = Grid(
        found, forms, _axes(options, name, forms[0]), options.signal_dims, MappingProxyType({}), MappingProxyType({})
    )
    columns = {path: per_item(archive, name, made, path) for path in options.columns}
    return replace(made, columns=MappingProxyType(columns), steps=MappingProxyType(_steps(archive, name, made)))


def _chosen(options: Arrays, archive: Archive, name: str, found: Format) -> tuple[Form, ...]:
    """Return the forms of the arrays that the entry names, or of the only one that fits."""
    if options.variables:
        return tuple(_named(archive, name, found, path) for path in options.variables)
    forms = found.forms(archive, name)
    if list(forms) == [""]:
        return (forms[""],)
    n_axes = {len(options.dims)} if options.dims else {n + (options.channel_axis is not None) for n in (2, 3)}
    fits = range(2, 9) if options.shape else n_axes  # a list of values is to get the shape
    fitting = [f for f in forms.values() if f.dtype == IMAGE or (f.numeric and len(f.shape) in fits)]
    wanted = f"numbers with {' or '.join(map(str, sorted(n_axes)))} axes"
    if not fitting:
        raise RecordError("wrong-shape", f"{name}: no array of {wanted}; it has {_list(forms.values())}")
    if len(fitting) > 1:
        raise EntryError(
            f"arrays.variable: {name} has several arrays of {wanted}: {_list(fitting)}; name the one, or "
            "those that are channels"
        )
    return (fitting[0],)


def _named(archive: Archive, name: str, found: Format, path: str) -> Form:
    form = found.form(archive, name, path.strip("/"))
    if form is None:
        forms = found.forms(archive, name)
        raise RecordError("missing", f"{name}: no array {path!r}; it has {_list(forms.values())}")
    return form


def _list(forms: Iterable[Form]) -> str:
    """Name some arrays with their shapes."""
    named = [f"{form.path or 'one of no name'} {'×'.join(map(str, form.shape)) or 'of one value'}" for form in forms]
    return ", ".join(named[:20]) + (", …" if len(named) > 20 else "") or "none"


def _called(name: str, path: str) -> str:
    return f"{name}: {path}" if path else name


def _axes(options: Arrays, name: str, form: Form) -> tuple[str, ...]:
    """Return what each axis is. Raises RecordError where there are more or fewer, or one is empty."""
    axes: tuple[str, ...]
    if options.dims:
        axes, expected = options.dims, f"({', '.join(options.dims)})"
    else:
        inner = {None: ("y", "x"), "first": ("channel", "y", "x"), "last": ("y", "x", "channel")}[options.channel_axis]
        axes = inner if len(form.shape) == len(inner) else ("sample", *inner)
        expected = f"([sample,] {', '.join(inner)}); name its axes in arrays.dims"
    if len(axes) != len(form.shape) or any(not n for n, axis in zip(form.shape, axes, strict=True) if axis != "sample"):
        hint = "" if options.dims or options.channel_axis else "; where there are channels, declare arrays.channel_axis"
        raise RecordError("wrong-shape", f"{_called(name, form.path)}: shape {form.shape}; expected {expected}{hint}")
    return axes


def _steps(archive: Archive, name: str, grid: Grid) -> dict[str, tuple[float, str]]:
    """Return the spacing of the dims whose coordinates the file has, where they are evenly spaced."""
    found = {}
    form = grid.forms[0]
    for axis, path, size in zip(grid.axes, form.dims or [""] * len(form.shape), form.shape, strict=True):
        if axis not in grid.signal or axis == "time" or not path or size < 2:
            continue
        other = grid.format.form(archive, name, path)
        if other is None or other.shape != (size,) or not other.numeric:
            continue
        values = _whole(archive, name, grid.format, other).astype(np.float64)
        step = (values[-1] - values[0]) / (size - 1)
        if step and np.allclose(np.diff(values), step, rtol=1e-3, atol=0):
            found[axis] = (abs(float(step)), other.units or "1")
    return found


def _whole(archive: Archive, name: str, found: Format, form: Form) -> np.ndarray:
    """Return all values of a small array. Raises RecordError."""
    if math.prod(form.shape) > _MOST_VALUES:
        raise RecordError("too-large", f"{_called(name, form.path)}: {form.shape}; at most {_MOST_VALUES} values")
    values, failure = found.box(archive, name, form, form.whole, fill=False)
    if failure:
        raise failure
    return form.packing.unpack(values) if form.packing else values


def vector(archive: Archive, name: str) -> np.ndarray:
    """Return a whole array of labels. Raises EntryError where it has not one dimension, RecordError where damaged."""
    found = format_of(archive, name)
    form = found.forms(archive, name).get("")
    if form is None or len(form.shape) != 1:
        raise EntryError(f"labels: {name} has shape {form.shape if form else None}; expected one dimension")
    return _whole(archive, name, found, form)


def per_item(archive: Archive, name: str, grid: Grid | Form, path: str) -> np.ndarray:
    """Return a value for each item from an array of the same member.

    It has the shape of the axes ``sample``, or belongs to one of several: it is then that axis's own coordinate, or
    has its dimension, or is the only one of that length.

    Raises
    ------
    RecordError
        There is no such array, it fits no axis, or it is damaged.
    """
    found = grid.format if isinstance(grid, Grid) else format_of(archive, name)
    form = _named(archive, name, found, path)
    if form.dtype == IMAGE:
        raise RecordError("wrong-shape", f"{_called(name, path)}: images; expected numbers or text")
    values = _whole(archive, name, found, form)
    if isinstance(grid, Form):  # a table: all columns have a value for each row
        if values.ndim != 1:
            raise RecordError("wrong-shape", f"{_called(name, path)}: lists; expected a value for each row")
        return values
    if values.shape == grid.sample_shape or (not grid.sample_shape and values.size == 1):
        return values.reshape(-1)
    own = [index for index, axis in enumerate(grid.axes) if axis == "sample"]
    dims = [(grid.forms[0].dims or ("",) * len(grid.axes))[index] for index in own]
    named = [place for place, dim in enumerate(dims) if dim and dim in (form.path, *form.dims)]
    alike = [place for place, size in enumerate(grid.sample_shape) if values.shape == (size,)]
    fitting = [place for place in named if place in alike] or alike
    if len(fitting) != 1:
        raise RecordError(
            "wrong-shape",
            f"{_called(name, path)}: shape {values.shape}; its items are {grid.sample_shape}, a value for each",
        )
    along = values.reshape([-1 if place == fitting[0] else 1 for place in range(len(own))])
    return np.broadcast_to(along, grid.sample_shape).reshape(-1)


def read(
    archive: Archive, name: str, grid: Grid, items: Sequence[int], window: Window, *, fill: bool
) -> Iterator[np.ndarray | RecordError]:
    """Yield a window of some items as ``([channel,] *signal)``, or why one cannot be had.

    Items that follow each other are read together. Where stored bytes break off, those that come before are whole.
    """
    broken: RecordError | None = None
    n_items = grid.n_items
    for start, stop in _runs(grid, items):
        if start >= n_items or start < 0:
            yield from [RecordError("missing", f"{name}: item {start}; it has {n_items}")] * (stop - start)
            continue
        if broken:
            yield from [broken] * (stop - start)
            continue
        values, failure = _run(archive, name, grid, start, stop, window, fill)
        yield from values
        rest = range(start + len(values), stop)
        if failure and grid.format.SEQUENTIAL:
            broken = failure
            yield from [failure] * len(rest)
        elif failure and stop - start == 1:
            yield failure
        elif failure:
            for item in rest:
                one, why = _run(archive, name, grid, item, item + 1, window, fill)
                yield why or one[0]


def _runs(grid: Grid, items: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut items into ranges that follow each other along the last axis of samples, and are stored together."""
    own = [index for index, axis in enumerate(grid.axes) if axis == "sample"]
    last = grid.sample_shape[-1] if own else 1
    chunk = grid.forms[0].run if own == [0] else 1
    fits = max(1, _BLOCK_NBYTES // grid.item_nbytes)
    longest = max(fits, chunk) if chunk * grid.item_nbytes <= _MOST_BLOCK_NBYTES else fits
    longest = max(chunk, longest // chunk * chunk) if longest > chunk else longest
    found = np.asarray(items)
    for run in np.split(found, np.flatnonzero(np.diff(found) != 1) + 1):
        start, end = (int(run[0]), int(run[-1]) + 1) if len(run) else (0, 0)
        while start < end:
            row = start // last * last
            stop = min(end, row + last, row + ((start - row) // longest + 1) * longest)
            yield start, max(stop, start + 1)
            start = max(stop, start + 1)


def _run(
    archive: Archive, name: str, grid: Grid, start: int, stop: int, window: Window, fill: bool
) -> tuple[np.ndarray, RecordError | None]:
    """Read the window of a range of items, ``(item, [channel,] *signal)``; fewer where damage comes between."""
    own = [index for index, axis in enumerate(grid.axes) if axis == "sample"]
    here = np.unravel_index(start, grid.sample_shape) if own else ()
    parts = {index: slice(int(at), int(at) + 1) for index, at in zip(own, here, strict=True)}
    if own:
        parts[own[-1]] = slice(int(here[-1]), int(here[-1]) + stop - start)
    windows = dict(zip(grid.signal, window, strict=True))
    channels = slice(0, grid.n_channels)
    where = tuple(
        parts[index] if axis == "sample" else channels if axis == "channel" else windows[axis]
        for index, axis in enumerate(grid.axes)
    )
    inner = [grid.axes.index(dim) for dim in ("channel", *grid.signal) if dim in grid.axes]
    found = []
    for form in grid.forms:
        values, failure = grid.format.box(archive, name, form, where, fill=fill)
        whole = tuple(part.stop - part.start for part in where)
        if failure and (own != [0] or len(grid.forms) > 1 or not values.size):
            return np.empty((0,)), failure
        if values.shape[1:] != whole[1:] or (not failure and values.shape != whole):
            return np.empty((0,)), RecordError("unreadable", f"{name}: {values.shape} came where {whole} should")
        values = values.transpose([*own, *inner]).reshape(-1, *(whole[axis] for axis in inner))
        found.append(form.packing.unpack(values) if form.packing else values)
    return found[0] if len(found) == 1 else np.stack(found, 1).astype(grid.dtype, copy=False), failure


def texts(values: np.ndarray) -> np.ndarray:
    """Return values as text, in an object array."""
    return np.array([str(value) for value in values.tolist()], object)
