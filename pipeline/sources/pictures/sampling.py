"""Readers of images: from pictures of any size to samples of one shape and dtype, by the policy of the entry."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from scattercube.pipeline.catalog import Entry, Position
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.policies import Sample
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.reader import Columns, Layout, Window

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # red, green, blue; ITU-R BT.601-7, section 2.5.1


@dataclass(frozen=True)
class Header:
    """What a reader knows of a member without its pixels.

    Attributes
    ----------
    n_items
        Number of images in the member, all of this size.
    n_channels
        1 for grey; alpha does not count.
    dtype
        Of the decoded pixels, in native byte order.
    channels
        The names of channels that are no colours, and so never become luminance.
    """

    height: int
    width: int
    dtype: np.dtype
    n_channels: int = 1
    n_items: int = 1
    alpha: bool = False
    channels: tuple[str, ...] = ()


Decode = Callable[[Entry, Archive, str, Sequence[int], Window | None], Iterator[np.ndarray | RecordError]]
"""Yield a window of some items of a member, all of them where it is None, as ``(y, x)`` or ``(y, x, channel)``.

One thing an item: an image, or why it cannot be had.
"""


@dataclass(frozen=True)
class Pictures:
    """A kind of files that hold images; see `Reader`, whose members these are.

    Attributes
    ----------
    head
        Size, dtype and number of the images in a member, without pixels. Raises RecordError.
    decode
        See `Decode`.
    by_window
        Whether a window costs little more than its share of the image.
    """

    suffixes: tuple[str, ...]
    single: tuple[str, ...]
    head: Callable[[Entry, Archive, str], Header]
    decode: Decode
    by_window: bool = False
    offsets: tuple[str, ...] = ("y0", "x0")

    def header(self, entry: Entry, archive: Archive, name: str) -> Header:
        """Return size, dtype and number of the images in a member. Raises RecordError."""
        return self.head(entry, archive, name)

    def layout(self, entry: Entry, header: Header) -> Layout:
        """Return what samples look like when the archive's images look like this one. Raises EntryError."""
        return layout(header, entry.sample)

    def needs_header(self, entry: Entry, name: str) -> bool:
        """Patches are counted by the size of the image, items in files that may have several."""
        return entry.sample.patches is not None or not name.lower().endswith(self.single)

    def samples(self, entry: Entry, header: Header | None) -> Columns:
        """List the samples of a member: its images, or the patches of each, row by row."""
        if entry.sample.patches is None:
            return {"item": np.arange(header.n_items if header else 1)}
        y0, x0 = corners(header, entry.sample) if header else (np.zeros(1, np.int64),) * 2
        n_items = header.n_items if header else 1
        columns = {
            "item": np.repeat(np.arange(n_items), len(y0)),
            "y0": np.tile(y0, n_items),
            "x0": np.tile(x0, n_items),
        }
        if position := entry.split.position:
            extent = (header.width if position.axis == "x" else header.height) if header else 0
            columns["split"] = split_by_position(
                position, columns["y0"], columns["x0"], entry.sample.patches.size, extent
            )
        return columns

    def read(
        self, entry: Entry, archive: Archive, name: str, layout: Layout, rows: Mapping[str, np.ndarray], window: Window
    ) -> Iterator[np.ndarray | RecordError]:
        """Yield the window of some samples of a member. An image is decoded once for all of its patches in a row."""
        items, patches = rows["item"].tolist(), entry.sample.patches is not None
        starts = list(zip(rows["y0"].tolist(), rows["x0"].tolist(), strict=True)) if patches else [(0, 0)] * len(items)
        if self.by_window if patches else entry.sample.exact and window != layout.whole:
            for item, start in zip(items, starts, strict=True):
                with_item = partial(self._window, entry, archive, name, item, start, layout, window)
                yield or_why(name, with_item)
            return
        changes = [index for index, item in enumerate(items) if index == 0 or item != items[index - 1]]
        found = self.decode(entry, archive, name, [items[index] for index in changes], None)
        plain = _is_as_stored(layout, entry.sample) and window == layout.whole
        for first, last in pairwise([*changes, len(items)]):
            image = next(found)
            if plain and isinstance(image, np.ndarray) and image.shape == layout.shape and image.dtype == layout.dtype:
                yield from [image] * (last - first)
                continue
            for y0, x0 in starts[first:last]:
                yield or_why(name, partial(cut, image, layout, entry.sample, y0, x0, window))

    def _window(
        self,
        entry: Entry,
        archive: Archive,
        name: str,
        item: int,
        start: tuple[int, int],
        layout: Layout,
        window: Window,
    ) -> np.ndarray:
        """Read no more than a window of a sample that starts somewhere in its image. Raises RecordError."""
        head = self.head(entry, archive, name)
        _refuse_other_size((head.height, head.width), layout, entry.sample, *start)
        here = tuple(slice(at + part.start, at + part.stop) for at, part in zip(start, window, strict=True))
        for piece in self.decode(entry, archive, name, [item], here):
            if isinstance(piece, RecordError):
                raise piece
            return finished(piece, layout, entry.sample)
        raise RecordError("missing", f"item {item}; it has {head.n_items}")


def split_by_position(
    position: Position, y0: np.ndarray, x0: np.ndarray, size: tuple[int, int], extent: int
) -> np.ndarray:
    """Return the split of patches: train wholly before the gap, test wholly behind it, unused else.

    Parameters
    ----------
    extent
        The size of their image along the axis, in pixels.
    """
    start = x0 if position.axis == "x" else y0
    stop = start + size["yx".index(position.axis)]
    boundary = position.boundary * extent
    train, test = stop <= boundary - position.gap / 2, start >= boundary + position.gap / 2
    return np.select([train, test], ["train", "test"], "unused").astype(object)


def layout(header: Header, sample: Sample) -> Layout:
    """Return what samples look like when the archive's images look like this one.

    Raises
    ------
    EntryError
        Luminance is asked of something else than three colours.
    """
    frame = sample.crop or sample.resize or sample.patches
    size = frame.size if frame else (header.height, header.width)
    real = np.dtype(np.float32)
    dtype = real if sample.resize else header.dtype
    note = "the alpha channel is dropped" if header.alpha else ""
    if header.n_channels == 1:
        return Layout(("y", "x"), size, dtype, source_dtype=header.dtype, note=note)
    if header.channels or sample.channels == "keep":
        rgb = ("red", "green", "blue")
        plain = rgb if header.n_channels == 3 else tuple(f"channel{index}" for index in range(header.n_channels))
        names = header.channels or plain
        shape = (len(names), *size)
        return Layout(("channel", "y", "x"), shape, dtype, names, source_dtype=header.dtype, note=note)
    if header.n_channels != 3:
        raise EntryError(f"sample.channels: luminance of {header.n_channels} channels is not defined; write keep")
    return Layout(("y", "x"), size, real, source_dtype=header.dtype, note=note)


def corners(header: Header, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return ``y0`` and ``x0`` of the patches of one image, row by row; one corner where there are no patches.

    An image that is smaller than a patch has one corner too: reading it says what is wrong.
    """
    if sample.patches is None:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    (height, width), (dy, dx) = sample.patches.size, sample.patches.step
    if header.height < height or header.width < width:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    y0 = np.arange(0, header.height - height + 1, dy)
    x0 = np.arange(0, header.width - width + 1, dx)
    return np.repeat(y0, len(x0)), np.tile(x0, len(y0))


def cut(image: np.ndarray | RecordError, out: Layout, sample: Sample, y0: int, x0: int, window: Window) -> np.ndarray:
    """Return the window of one sample of an image ``(y, x)`` or ``(y, x, channel)``.

    Raises
    ------
    RecordError
        ``wrong-shape`` or ``non-finite``; or what is given in the place of the image.
    """
    if isinstance(image, RecordError):
        raise image
    height, width = out.signal_shape
    if sample.resize:
        return finished(image, out, sample)[..., window[0], window[1]]
    if sample.crop:
        y0, x0 = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    _refuse_other_size(image.shape[:2], out, sample, y0, x0)
    rows, columns = (slice(at + part.start, at + part.stop) for at, part in zip((y0, x0), window, strict=True))
    return finished(image[rows, columns], out, sample)


def or_why(name: str, make: Callable[[], np.ndarray]) -> np.ndarray | RecordError:
    """Make a sample, or say of which member it cannot be made, and why."""
    try:
        return make()
    except RecordError as failure:
        text = str(failure)
        return RecordError(failure.reason, text if text.startswith(name) else f"{name}: {text}")


def _is_as_stored(out: Layout, sample: Sample) -> bool:
    """Say whether an image of the layout's shape and dtype is a sample, and nothing of it need be looked at."""
    return bool(sample.exact) and not out.channels and out.dtype == out.source_dtype and out.dtype.kind in "iu"


def _refuse_other_size(size: tuple[int, ...], out: Layout, sample: Sample, y0: int, x0: int) -> None:
    (height, width), (image_height, image_width) = out.signal_shape, size
    too_small = image_height < y0 + height or image_width < x0 + width or min(y0, x0) < 0
    if too_small or (sample.exact and (image_height, image_width) != (height, width)):
        wanted = "expected" if sample.exact else "need at least"
        raise RecordError("wrong-shape", f"{image_height}×{image_width}; {wanted} {height}×{width}")


def finished(image: np.ndarray, out: Layout, sample: Sample) -> np.ndarray:
    """Bring pixels to the layout's channels and dtype, and to its size where it is resampled."""
    if image.dtype != out.source_dtype:
        raise RecordError("wrong-shape", f"dtype {image.dtype}; the archive's first image has {out.source_dtype}")
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        if not sample.missing:
            raise RecordError("non-finite", f"{np.count_nonzero(~finite)} pixels are not finite")
        image = np.where(finite, image, np.array(np.nan, image.dtype))
    image = _channels(image, out, sample)
    if sample.resize:
        height, width = out.signal_shape
        image = _resampled(_resampled(image.astype(np.float32), -2, height), -1, width)
    return image.astype(out.dtype, copy=False)


def _channels(image: np.ndarray, out: Layout, sample: Sample) -> np.ndarray:
    """Return ``(y, x)`` or ``(channel, y, x)`` as the layout wants it; grey among colour is colour of equal parts."""
    n_channels = image.shape[2] if image.ndim == 3 else 1
    if out.channels:
        if image.ndim == 2:
            return np.broadcast_to(image, (len(out.channels), *image.shape))
        if n_channels == len(out.channels):
            return np.moveaxis(image, 2, 0)
    elif image.ndim == 2:
        return image
    elif n_channels == 3 and sample.channels == "luminance":
        red, green, blue = (image[..., index] * weight for index, weight in enumerate(_LUMA))
        grey: np.ndarray = red + green + blue
        return grey if out.dtype.kind == "f" else np.rint(grey)  # colour among grey keeps to the dtype of the grey
    raise RecordError("wrong-shape", f"{n_channels} channels; the archive's first image has {len(out.channels) or 1}")


def _resampled(image: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Resample one axis: cubic convolution (Keys, IEEE TASSP 29 (1981), equation 15), widened where it must not alias.

    The sum runs tap by tap, not through a matrix product, whose bits would depend on the number of threads.
    """
    rows = np.moveaxis(image, axis, 0)
    step = len(rows) / size
    widening = max(step, 1.0)
    centre = (np.arange(size) + 0.5) * step - 0.5
    index = np.ceil(centre - 2 * widening).astype(int)[:, None] + np.arange(int(4 * widening) + 1)
    t = np.abs(index - centre[:, None]) / widening
    weight = np.where(t < 1, (1.5 * t - 2.5) * t**2 + 1, np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0))
    weight[(index < 0) | (index >= len(rows))] = 0
    weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    index = index.clip(0, len(rows) - 1)
    out = np.zeros((size, *rows.shape[1:]), np.float32)
    for tap in range(index.shape[1]):
        out += weight[:, tap].reshape(-1, *[1] * (out.ndim - 1)) * rows[index[:, tap]]
    return np.moveaxis(out, 0, axis)
