"""Tiles of fields: which part of a field an output needs, and what lies beyond the border.

A field is one sample that is too large for one piece of work. Its features are cut into tiles; each is computed from
its share of the field and a halo around it, which the filters' supports give: so the features are those of the whole,
to the precision at which filters are cut off, wherever the tiles end. Tiles start on the grid of the outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.axes import good_size
from scattercube.pipeline.spec import Boundary

Index = NDArray[np.intp]
Read = Callable[[tuple[slice, ...]], NDArray[Any]]
"""Return a region of a field, (…, lengths of the slices)."""


@dataclass(frozen=True)
class Axis:
    """How one axis of a field is cut.

    Attributes
    ----------
    size
        Values of the field.
    stride, halo
        Of the transform, in values.
    n_out
        Outputs of a tile.
    boundary
        What lies beyond the ends.
    margin
        Values beyond the halo that are needed where some are missing.
    """

    size: int
    stride: int
    halo: int
    n_out: int
    boundary: Boundary
    margin: int = 0

    @property
    def total(self) -> int:
        """Outputs of the field; the one number i lies at the value stride·i."""
        return ceil(self.size / self.stride)

    @property
    def padded(self) -> int:
        """Values of a tile and its halo: all tiles have one size, also where they reach beyond the border."""
        return good_size(self.n_out * self.stride + 2 * self.halo, self.stride)

    def index(self, first: int, n_tiles: int = 1) -> Index:
        """Return which values of the field some tiles, the first with this output, need; −1 stands for a zero.

        (padded + 2·margin,) for one, and n_out·stride more for each more.
        """
        start = first * self.stride - self.halo - self.margin
        length = self.padded + 2 * self.margin + (n_tiles - 1) * self.n_out * self.stride
        return beyond(np.arange(start, start + length), self.size, self.boundary)

    def tiles(self, n: int) -> list[tuple[slice, slice]]:
        """Cut ``n`` outputs, and what `index` gives for them, into tiles: the values of each, and its outputs."""
        length = self.padded + 2 * self.margin
        firsts = range(0, n, self.n_out)
        return [
            (slice(first * self.stride, first * self.stride + length), slice(first, min(first + self.n_out, n)))
            for first in firsts
        ]


def beyond(index: Index, size: int, boundary: Boundary) -> Index:
    """Return which values of an axis stand at these places, those beyond its ends included; −1 stands for a zero.

    ``reflect``: mirrored at the last value; ``symmetric``: behind it; ``periodic``: on a circle; ``edge``: the last
    value repeated; as `numpy.pad` has them.
    """
    match boundary:
        case "reflect":
            last = size - 1
            return last - abs(index % max(2 * last, 1) - last)
        case "symmetric":
            folded = index % (2 * size)
            return np.minimum(folded, 2 * size - 1 - folded)
        case "periodic":
            return index % size
        case "edge":
            return index.clip(0, size - 1)
        case "zero":
            return np.where((index >= 0) & (index < size), index, -1)


def gather(read: Read, indices: Sequence[Index]) -> NDArray[Any]:
    """Return the values of a field at these places along its axes, (…, lengths of the indices).

    What is needed is read in as few pieces as hold it: along a periodic axis both ends, and not what lies between.
    """
    return assemble([read(window) for window in windows(indices)], indices)


def windows(indices: Sequence[Index]) -> list[tuple[slice, ...]]:
    """Return the regions of a field that hold all of these places, the last axis changing fastest."""
    return list(product(*(_runs(_wanted(index)) for index in indices)))


def assemble(pieces: Sequence[NDArray[Any]], indices: Sequence[Index]) -> NDArray[Any]:
    """Return the values at these places from the pieces in the regions of `windows`."""
    wanted = [_wanted(index) for index in indices]
    field = _joined(list(pieces), [len(_runs(one)) for one in wanted])
    for axis, (index, one) in enumerate(zip(indices, wanted, strict=True), start=field.ndim - len(indices)):
        place = np.searchsorted(one, index)
        if not np.array_equal(place, np.arange(field.shape[axis])):
            field = field.take(place.clip(0, len(one) - 1), axis)
        if (outside := index < 0).any():
            field = field if field.flags.writeable else field.copy()
            np.moveaxis(field, axis, 0)[outside] = 0
    return field


def _wanted(index: Index) -> Index:
    return np.unique(index[index >= 0])


def _runs(values: Index) -> list[slice]:
    """Cut ascending values into runs without gaps."""
    gaps = np.flatnonzero(np.diff(values) > 1) + 1
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(values, gaps) if len(run)]


def _joined(pieces: list[NDArray[Any]], counts: list[int]) -> NDArray[Any]:
    """Put pieces together that are ordered like the product of their places along each axis."""
    for axis, count in zip(range(-1, -len(counts) - 1, -1), reversed(counts), strict=True):
        pieces = [
            pieces[start] if count == 1 else np.concatenate(pieces[start : start + count], axis)
            for start in range(0, len(pieces), count)
        ]
    (whole,) = pieces
    return whole
