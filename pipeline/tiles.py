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

Index = Sequence[NDArray[np.intp] | range]
"""Which values of an axis stand side by side, part by part: ranges inside the field, and what is beyond its border."""

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

    def reach(self, n_tiles: int) -> int:
        """Return how many values some tiles that follow each other need."""
        return self.padded + 2 * self.margin + (n_tiles - 1) * self.n_out * self.stride

    def index(self, first: int, n_tiles: int = 1) -> Index:
        """Return which values of the field some tiles, the first with this output, need; −1 stands for a zero."""
        start = first * self.stride - self.halo - self.margin
        stop = start + self.reach(n_tiles)
        inside = range(max(start, 0), min(stop, self.size))
        before, behind = np.arange(start, min(stop, 0)), np.arange(max(start, self.size), stop)
        parts: Index = [beyond(before, self.size, self.boundary), inside, beyond(behind, self.size, self.boundary)]
        return [part for part in parts if len(part)]

    def tiles(self, n: int) -> list[tuple[slice, slice]]:
        """Cut ``n`` outputs, and what `index` gives for them, into tiles: the values of each, and its outputs."""
        length = self.reach(1)
        firsts = range(0, n, self.n_out)
        return [
            (slice(first * self.stride, first * self.stride + length), slice(first, min(first + self.n_out, n)))
            for first in firsts
        ]


def beyond(index: NDArray[np.intp], size: int, boundary: Boundary) -> NDArray[np.intp]:
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
    return list(product(*(spans(index) for index in indices)))


def spans(index: Index) -> list[slice]:
    """Return the ranges of an axis that hold all of these places, ascending."""
    runs = []
    for part in index:
        if isinstance(part, range):
            runs.append((part.start, part.stop))
        elif len(values := np.unique(part[part >= 0])):
            gaps = np.flatnonzero(np.diff(values) > 1) + 1
            runs += [(int(run[0]), int(run[-1]) + 1) for run in np.split(values, gaps)]
    held: list[slice] = []
    for start, stop in sorted(runs):
        if held and start <= held[-1].stop:
            held[-1] = slice(held[-1].start, max(stop, held[-1].stop))
        else:
            held.append(slice(start, stop))
    return held


def assemble(pieces: Sequence[NDArray[Any]], indices: Sequence[Index]) -> NDArray[Any]:
    """Return the values at these places from the pieces in the regions of `windows`."""
    held = [spans(index) for index in indices]
    field = _joined(list(pieces), [len(own) for own in held])
    for axis, (index, own) in enumerate(zip(indices, held, strict=True), start=field.ndim - len(indices)):
        starts = np.array([part.start for part in own])
        shifts = starts - np.cumsum([0, *(part.stop - part.start for part in own)])[:-1]  # into what has no gaps
        parts = [_part(field, axis, part, starts, shifts) for part in index]
        field = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
    return field


def _part(
    field: NDArray[Any], axis: int, part: NDArray[np.intp] | range, starts: NDArray[np.intp], shifts: NDArray[np.intp]
) -> NDArray[Any]:
    """Return the values at some places along one axis, of which the field holds the spans with these starts."""
    if isinstance(part, range):
        first = part.start - int(shifts[np.searchsorted(starts, part.start, "right") - 1])
        return field[(slice(None),) * axis + (slice(first, first + len(part)),)]
    place = part - shifts[(np.searchsorted(starts, part, "right") - 1).clip(0)]
    found = field.take(np.where(part < 0, 0, place), axis)
    np.moveaxis(found, axis, 0)[part < 0] = 0
    return found


def _joined(pieces: list[NDArray[Any]], counts: list[int]) -> NDArray[Any]:
    """Put pieces together that are ordered like the product of their places along each axis."""
    for axis, count in zip(range(-1, -len(counts) - 1, -1), reversed(counts), strict=True):
        pieces = [
            pieces[start] if count == 1 else np.concatenate(pieces[start : start + count], axis)
            for start in range(0, len(pieces), count)
        ]
    (whole,) = pieces
    return whole
