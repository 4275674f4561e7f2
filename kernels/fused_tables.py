"""What the compiled CPU engine knows of a cascade: its grids, low-passes and filters."""

import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.engine.library import Engine, active_engine
from scattercube.kernels.filterbank import Box, Lowpass, Shape
from scattercube.kernels.fused_averages import DROP, MOST_MOMENTS, line_taps, line_tones
from scattercube.kernels.fused_schedule import Block, Step
from scattercube.kernels.primitives import Smoothing

if TYPE_CHECKING:
    from scattercube.kernels.cascade import Cascade

SIGNALS, FEW_SIGNALS, POINTS = range(3)
"""How the lanes of vectors are used: for many signals, for few of them, for neighbouring points of one."""

ALIGNMENT = 64
_MOST_POINTS = 1 << 31  # the engine counts them in 32 bits
ROUNDING_NBYTES = 8 << 10  # of the arrays in a workspace, and of itself
_WEIGHT = {"float32": 1e-6, "float64": 1e-12}  # of a filter's peak: smaller weights are left out


def possible(cascade: "Cascade") -> bool:
    """Tell whether an engine is at hand that transforms the grids of a cascade: no large prime divides a length."""
    if active_engine() == "portable" or math.prod(cascade._grid(0)) >= _MOST_POINTS:
        return False
    sizes = {n for level in range(cascade._n_levels) for n in cascade._grid(level)}
    return all(map(Engine(cascade.dtype).possible, sizes))


def split(shape: Shape, use: int, vector: int) -> tuple[int, int]:
    """Return a grid, or the nearest two factors of a line, the first a multiple of a vector where it can be."""
    if len(shape) == 2:
        return shape[0], shape[1]
    (n,) = shape
    if n <= 256 and use == SIGNALS:
        return 1, n
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    factors = sorted({*small, *(n // k for k in small)})
    whole = [k for k in factors if k % vector == 0] or factors
    first = min(whole, key=lambda k: abs(math.log(2 * k * k / n)))  # short columns, several of which stay in cache
    return first, n // first


def aligned(nbytes: int) -> int:
    """Return how many bytes lie between arrays that start on cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Tables:
    """The grids, low-passes and filters of a cascade as the engine has them, which frees them with this object.

    Parameters
    ----------
    cascade
        What they are those of.
    points
        Whether vectors hold neighbouring points of one signal, rather than a point of several.

    Attributes
    ----------
    engine, dtype
        Its functions, and the type of numbers.
    use, lanes
        How lanes are used, and how many signals are taken at once.
    grids, lowpasses
        For each level, what the engine has planned.
    tones
        Likewise, the averages as sums over few frequencies; None where these are many.
    costs
        Of each low-pass, in operations per point.
    rows, columns
        The sample of an input behind each extended one: where its row starts, and its place there.
    """

    def __init__(self, cascade: "Cascade", points: bool) -> None:
        self.engine, self.dtype = Engine(cascade.dtype), cascade.dtype
        self._cascade: Any = weakref.proxy(cascade)
        self.use = POINTS if points else SIGNALS
        self.lanes: int = 1 if points else self.engine.lanes(SIGNALS)
        self._vector = self.engine.lanes(self.use) if points else 1
        shapes = [cascade._grid(level) for level in range(cascade._n_levels)]
        self.grids = [self._own("grid", self.engine.grid(self.use, len(s) == 1, *self._split(s))) for s in shapes]
        self.costs: list[float] = []
        self.lowpasses = list(map(self._lowpass, self.grids, shapes, cascade._lowpasses))
        self.tones = list(map(self._tones, self.grids, cascade._lowpasses))
        self._banks: dict[tuple[int, ...], int] = {}
        sizes = [axis.size for axis in cascade._axes]
        indices = [axis.index.astype(np.int32) for axis in cascade._axes]
        self.rows = indices[0] * np.int32(sizes[1]) if len(sizes) > 1 else np.zeros(1, np.int32)
        self.columns = indices[-1]

    def bank(self, path: tuple[int, ...], block: Block) -> int:
        """Return the bank that ends a path; at order 1, filters fill the lanes that images leave."""
        bank, level = self._cascade._bank(path), self._cascade._level(path[-1])
        above = self._cascade._level(path[-2]) if len(path) > 1 else 0
        side_by_side = block.lanes // block.images if len(path) == 1 else 1
        lanes = block.lanes if side_by_side > 1 else 1
        key = (id(bank), side_by_side, lanes)
        if key not in self._banks:
            handle = self._own("bank", self.engine.bank(self.grids[above], self.grids[level], lanes))
            boxes = [_trimmed(box, _WEIGHT[self.dtype.name]) for box in bank.boxes]
            for start in range(0, len(boxes), side_by_side):
                box = _beside(boxes[start : start + side_by_side], lanes, block.images) if lanes > 1 else boxes[start]
                origin, extent = np.array(box.origin), np.array(box.weights.shape)
                weights = np.ascontiguousarray(box.weights)
                made = self.engine.add_filter(handle, origin.ctypes.data, extent.ctypes.data, weights.ctypes.data)
                if not made:
                    raise MemoryError("no memory for the filters of the compiled engine")
            self._banks[key] = handle
        return self._banks[key]

    def field_nbytes(self, level: int, lanes: int) -> int:
        """Return the bytes of a field of a level, of so many signals."""
        return aligned(math.prod(self._cascade._grid(level)) * lanes * self.dtype.itemsize)

    def spectrum_nbytes(self, level: int, lanes: int) -> int:
        """Return the bytes of their spectra."""
        return aligned(2 * int(self.engine.half(self.grids[level])) * lanes * self.dtype.itemsize)

    # --- Steps that they take part in ---

    def order_0(self, X: int | None, rows: NDArray[np.int32]) -> Step:
        """Return the average of the extended field, at offset 0, or of its spectrum ``X`` where that is short."""
        tones = self.tones[0]
        if X is None or tones is None:
            return Step("average", 0, None, 1, rows, self.lowpasses[0])
        return Step("hear", X, None, 1, rows, tones)

    def wavelets(
        self,
        X: int,
        deeper: int | None,
        groups: int,
        rows: NDArray[np.int32],
        bank: int,
        first: int,
        count: int,
        level: int,
        averages: int | None = None,
    ) -> list[Step]:
        """Return what makes |x ∗ ψ| of spectra at ``X``: its averages, and its spectra at ``deeper`` where paths go on.

        Averages are taken from these spectra where that is short.
        """
        tones = None if deeper is None else self.tones[level]
        averaged = None if tones else rows
        steps = [Step("wavelet", X, deeper, groups, averaged, bank, first, count, self.lowpasses[level], averages)]
        if tones and deeper is not None:
            steps.append(Step("hear", deeper, None, groups * count, rows, tones, averages=averages))
        return steps

    def _own(self, kind: str, handle: int | None) -> int:
        return self.engine.own(self, kind, handle)

    def _split(self, shape: Shape) -> tuple[int, int]:
        return split(shape, self.use, self._vector)

    def _lowpass(self, grid: int, shape: Shape, low: Smoothing) -> int:
        drop = DROP[self.dtype.name]
        if isinstance(low, Lowpass):
            first, second = low.matrices[0].host, low.matrices[-1].host
            self.costs.append(0)  # few outputs, or bands along two axes
            handle = self.engine.lowpass(grid, first.ctypes.data, len(first), second.ctypes.data, len(second), drop)
            return self._own("lowpass", handle)
        most = self._vector if self.use == POINTS else MOST_MOMENTS
        taps = line_taps(low, self.dtype, self.engine.width(grid), self._vector, self._split(shape)[1], most)
        self.costs.append(taps.cost)
        handle = self.engine.line_lowpass(
            *(grid, taps.basis.ctypes.data, len(taps.basis), taps.basis.shape[1] // self._vector),
            *(taps.kernel.ctypes.data, taps.samples.ctypes.data, len(taps.samples), drop),
        )
        return self._own("lowpass", handle)

    def _tones(self, grid: int, low: Smoothing) -> int | None:
        tones = line_tones(low, self.dtype)
        if tones is None:
            return None
        real, imag = tones
        return self._own("tones", self.engine.tones(grid, real.ctypes.data, imag.ctypes.data, *real.shape))


def _trimmed(box: Box, truncation: float) -> Box:
    """Drop the weights that are nothing beside the largest; the corners of a box hold many."""
    magnitude = abs(box.weights)
    return Box(box.origin, np.where(magnitude > truncation * magnitude.max(), box.weights, 0).astype(box.weights.dtype))


def _beside(boxes: list[Box], lanes: int, images: int) -> Box:
    """Return filters side by side in the lanes of one box, (…, lanes): each as often as there are images."""
    low = np.min([box.origin for box in boxes], axis=0)
    high = np.max([np.add(box.origin, box.weights.shape) for box in boxes], axis=0)
    weights = np.zeros((*(high - low), lanes), boxes[0].weights.dtype)
    for f, box in enumerate(boxes):
        where = tuple(slice(o - a, o - a + n) for o, a, n in zip(box.origin, low, box.weights.shape, strict=True))
        weights[(*where, slice(f * images, (f + 1) * images))] = box.weights[..., None]
    return Box(tuple(int(k) for k in low), weights)
