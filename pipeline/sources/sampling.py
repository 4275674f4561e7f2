"""From images of any size to samples of one shape and dtype, by the policy of the entry."""

from dataclasses import dataclass

import numpy as np

from scattercube.pipeline.catalog import Sample
from scattercube.pipeline.errors import EntryError, RecordError

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
    """

    height: int
    width: int
    dtype: np.dtype
    n_channels: int = 1
    n_items: int = 1
    alpha: bool = False


@dataclass(frozen=True)
class Layout:
    """Shape and dtype of every sample: ``(y, x)`` or ``(channel, y, x)``.

    Attributes
    ----------
    source_dtype
        What all images have; the dtype of the samples differs where luminance or resampling make real numbers.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    channels: tuple[str, ...]
    source_dtype: np.dtype


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
    if header.n_channels == 1:
        return Layout(("y", "x"), size, dtype, (), header.dtype)
    if sample.channels == "keep":
        rgb = ("red", "green", "blue")
        names = rgb if header.n_channels == 3 else tuple(f"channel{index}" for index in range(header.n_channels))
        return Layout(("channel", "y", "x"), (len(names), *size), dtype, names, header.dtype)
    if header.n_channels != 3:
        raise EntryError(f"sample.channels: luminance of {header.n_channels} channels is not defined; write keep")
    return Layout(("y", "x"), size, real, (), header.dtype)


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


def cut(image: np.ndarray, out: Layout, sample: Sample, y0: int, x0: int) -> np.ndarray:
    """Return one sample of an image ``(y, x)`` or ``(y, x, channel)``.

    Raises
    ------
    RecordError
        ``wrong-shape`` or ``non-finite``.
    """
    if image.dtype != out.source_dtype:
        raise RecordError("wrong-shape", f"dtype {image.dtype}; the archive's first image has {out.source_dtype}")
    height, width = out.shape[-2:]
    if sample.crop:
        y0, x0 = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if not sample.resize:
        too_small = image.shape[0] < y0 + height or image.shape[1] < x0 + width or min(y0, x0) < 0
        if too_small or (sample.exact and image.shape[:2] != (height, width)):
            wanted = "expected" if sample.exact else "need at least"
            raise RecordError("wrong-shape", f"{image.shape[0]}×{image.shape[1]}; {wanted} {height}×{width}")
        image = image[y0 : y0 + height, x0 : x0 + width]
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise RecordError("non-finite", f"{np.count_nonzero(~np.isfinite(image))} pixels are not finite")
    image = _channels(image, out, sample)
    if sample.resize:
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
