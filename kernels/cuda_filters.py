"""Banks as the CUDA engine reads them: the filters, the rows of their boxes, and all weights, one after the other."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from scattercube.kernels.device import Constant
from scattercube.kernels.filterbank import Bank, Box, Shape

_WEIGHT = {"float32": 1e-6, "float64": 1e-12}  # of a filter's peak: smaller weights are left out
_ALIAS_WEIGHT = 4  # times as much may go where fewer aliases are left
_FILTER = np.dtype([(name, np.int32) for name in ("origin1", "origin2", "height", "width", "first", "a", "b", "c")])
_ROW = np.dtype([(name, np.int32) for name in ("begin", "end", "weights", "unused")])


@dataclass(frozen=True, eq=False)
class Filters:
    """A packed bank.

    Parameters
    ----------
    filters, rows
        As struct Filter and struct Row in scattering.cu: (filters, 8) and (rows of all filters, 4) int32.
    weights
        Of all rows, divided by the points of the grid that is read: spectra are not normalised on the device.
    aliases
        How many rows, and columns, of a box fold onto one of the grid, at most.
    """

    filters: Constant
    rows: Constant
    weights: Constant
    aliases: Shape

    def __len__(self) -> int:
        return len(self.filters.host)

    @classmethod
    def of(cls, bank: Bank) -> Self:
        """Pack a bank."""
        filters = np.zeros(len(bank), _FILTER)
        rows: list[tuple[int, int, int, int]] = []
        weights, n_weights, is_line = [], 0, len(bank.grid) == 1
        dtype, scale = bank.boxes[0].weights.dtype, 1 / math.prod(bank.grid)
        boxes = [_trimmed(box, bank.out) for box in bank.boxes]
        for f, box in zip(filters, boxes, strict=True):
            table = np.atleast_2d(box.weights * dtype.type(scale))
            heard = np.atleast_2d(abs(box.weights) > _WEIGHT[dtype.name] * abs(box.weights).max())
            places = zip((0, *box.origin)[-2:], (1, *bank.grid)[-2:], strict=True)
            f["origin1"], f["origin2"] = (o % n for o, n in places)
            f["height"], f["width"] = table.shape
            f["first"] = n_weights if is_line else len(rows)
            for values, some in zip(table, heard, strict=True):
                ends = np.flatnonzero(some)
                begin, end = (int(ends[0]), int(ends[-1]) + 1) if len(ends) else (0, 0)
                if is_line:
                    begin, end = 0, len(values)
                rows.append((begin, end, n_weights - begin, 0))
                weights.append(values[begin:end])
                n_weights += end - begin
        sizes = np.max([box.weights.shape for box in boxes], axis=0)
        aliases = [int(-(-size // n)) for size, n in zip(sizes, bank.out, strict=True)]
        return cls(
            Constant(filters.view(np.int32).reshape(len(bank), -1)),
            Constant(np.array(rows, _ROW).view(np.int32).reshape(len(rows), -1)),
            Constant(np.concatenate(weights).astype(dtype)),
            (1, *aliases)[-2:],
        )


def _trimmed(box: Box, out: Shape) -> Box:
    """Drop what is nothing beside a filter's peak at the ends of its box; a little more if fewer aliases are left."""
    if not box.weights.any():
        return box
    magnitude = abs(box.weights) / abs(box.weights).max()
    nothing = _WEIGHT[box.weights.dtype.name]
    windows = []
    for axis, n in enumerate(out):
        profile = magnitude.max(axis=tuple(other for other in range(magnitude.ndim) if other != axis))
        heard = np.flatnonzero(profile > nothing)
        begin, end = int(heard[0]), int(heard[-1]) + 1
        excess = (end - begin) % n if end - begin > n else 0
        first, last = begin, end
        while excess and min(profile[first], profile[last - 1]) < _ALIAS_WEIGHT * nothing:
            first, last = (first + 1, last) if profile[first] < profile[last - 1] else (first, last - 1)
            excess -= 1
        if excess == 0:
            begin, end = first, last
        windows.append(slice(begin, end))
    origin = tuple(o + window.start for o, window in zip(box.origin, windows, strict=True))
    return Box(origin, np.ascontiguousarray(box.weights[tuple(windows)]))
