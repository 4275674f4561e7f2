"""A cascade as the compiled CPU engine runs it: the operations of `primitives`, fused, on wide vectors."""

import math
import weakref
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.arguments import units
from scattercube.kernels.engine.library import Engine, active_engine
from scattercube.kernels.filterbank import Box, Lowpass, Shape
from scattercube.kernels.fused_averages import DROP, MOST_MOMENTS, line_taps, line_tones
from scattercube.kernels.fused_schedule import Block, Schedule, Step
from scattercube.kernels.primitives import Smoothing

if TYPE_CHECKING:
    from scattercube.kernels.cascade import Cascade

_SIGNALS, _FEW_SIGNALS, _POINTS = range(3)

_ALIGNMENT = 64
_SMALL = {1: 1 << 12, 2: 96 * 96}  # points of a line, of a grid, up to which signals side by side stay in cache
_MOST_AVERAGING = 20  # operations of averages over those of transforms, from which on the portable way is faster
_TRANSFORM = 60  # operations per point of a wavelet transform
_MOST_POINTS = 1 << 31  # the engine counts them in 32 bits
_CONVERTED = 4  # blocks for each thread that are converted at once, where a batch is of another type
_CACHE_NBYTES = 1 << 20  # of a core's own cache, for the arrays between two operations
_WEIGHT = {"float32": 1e-6, "float64": 1e-12}  # of a filter's peak: smaller weights are left out


def plan(cascade: "Cascade") -> "Plan | None":
    """Return the plan of a cascade; None where no engine is at hand, or the portable primitives serve better.

    They do for lines whose length has a large prime factor, and where φ is much longer than the stride: they average in
    Fourier.
    """
    if active_engine() == "portable" or math.prod(cascade._grid(0)) >= _MOST_POINTS:
        return None
    sizes = {n for level in range(len(cascade._lowpasses)) for n in cascade._grid(level)}
    if not all(map(Engine(cascade.dtype).possible, sizes)):
        return None
    made = Plan(cascade)
    return made if made.averaging() < _MOST_AVERAGING else None


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Plan:
    """A cascade as the engine runs it.

    Small images and short lines lie side by side in the lanes of vectors; of larger ones, each vector holds
    neighbouring points. The choice depends on the grids alone: so the bits of a result depend neither on the batch
    nor on the number of threads.

    Parameters
    ----------
    cascade
        What to run.
    """

    def __init__(self, cascade: "Cascade") -> None:
        self._engine, self._dtype = Engine(cascade.dtype), cascade.dtype
        self._cascade: Any = weakref.proxy(cascade)
        shapes = [cascade._grid(level) for level in range(len(cascade._lowpasses))]
        points = math.prod(shapes[0]) > _SMALL[len(shapes[0])]
        self._use = _POINTS if points else _SIGNALS
        self._lanes = 1 if points else self._engine.lanes(_SIGNALS)
        self._vector = self._engine.lanes(self._use) if points else 1
        self._grids = [self._own("grid", self._engine.grid(self._use, len(s) == 1, *self._split(s))) for s in shapes]
        self._costs: list[float] = []  # of each low-pass, in operations per point
        self._lowpasses = list(map(self._lowpass, self._grids, shapes, cascade._lowpasses))
        self._tones = list(map(self._make_tones, self._grids, cascade._lowpasses))
        self._banks: dict[tuple[int, ...], int] = {}
        self._schedules: dict[tuple[int, ...], Schedule] = {}
        self._n_paths = len(cascade.paths)
        sizes = [axis.size for axis in cascade._axes]
        indices = [axis.index.astype(np.int32) for axis in cascade._axes]
        self._rows = indices[0] * np.int32(sizes[1]) if len(sizes) > 1 else np.zeros(1, np.int32)
        self._columns = indices[-1]

    def __call__(self, batch: NDArray[Any], out: NDArray[Any], threads: int) -> None:
        """Fill ``out`` (B, n_paths, samples kept) from a batch of finite arrays."""
        blocks, outer, inner = self._shares(len(batch), threads)
        schedules = [self._schedule(block, inner) for _, block in blocks[:1] + blocks[-1:]]
        nbytes = max((outer * each.nbytes + threads * each.workspace_nbytes for each in schedules), default=0)
        memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
        base = memory.ctypes.data + -memory.ctypes.data % _ALIGNMENT
        is_ready = batch.dtype == self._dtype and batch.flags.c_contiguous
        for some in self._alike(blocks, 1 if inner > 1 else len(blocks) if is_ready else _CONVERTED * outer):
            (first, block), (last, end) = some[0], some[-1]
            part = slice(first, last + end.present)
            images = np.ascontiguousarray(batch[part], dtype=self._dtype)
            if len(some) > 1:
                self._scatter_blocks(images, out[part], block, outer, base)
            else:
                self._scatter(images, out[part], block, inner, base)

    def nbytes(self, batch: int, threads: int = 1) -> int:
        """Project the peak bytes of a call: the arrays between operations, and a workspace for each thread."""
        blocks, outer, inner = self._shares(batch, threads)
        schedules = [self._schedule(block, inner) for _, block in blocks[:1] + blocks[-1:]]
        return max((outer * each.nbytes + threads * each.workspace_nbytes for each in schedules), default=0)

    def _shares(self, batch: int, threads: int) -> tuple[list[tuple[int, Block]], int, int]:
        """The blocks of a batch, how many of them work at once, and the threads of each."""
        blocks = list(self._blocks(batch))
        outer = threads if len(blocks) >= 2 * threads else 1  # images in parallel, or the filters of each
        return blocks, outer, threads // outer

    def _alike(self, blocks: list[tuple[int, Block]], most: int) -> Iterator[list[tuple[int, Block]]]:
        """Yield runs of blocks of one kind that the engine takes in one call, of so many blocks at most."""
        for _, group in groupby(blocks, key=lambda numbered: (numbered[1].use, numbered[1].images)):
            run = list(group)
            for start in range(0, len(run), max(1, most)):
                yield run[start : start + max(1, most)]

    def averaging(self) -> float:
        """Return the operations that averages take, relative to those of the wavelet transforms."""
        cascade, averages, transforms = self._cascade, 0.0, 0
        for path, rows in cascade.paths.rows.items():
            if path:
                level = cascade._level(path[-1])
                points = rows.size * math.prod(cascade._grid(level))
                heard = self._tones[level] is not None and cascade._next(path)
                averages += 0 if heard else points * self._costs[level]
                transforms += points * _TRANSFORM
        return averages / transforms if transforms else 0.0

    # --- What the engine knows of a cascade ---

    def _own(self, kind: str, handle: int | None) -> int:
        return self._engine.own(self, kind, handle)

    def _split(self, shape: Shape) -> tuple[int, int]:
        """The two factors of a line that lie nearest, the first a multiple of a vector where it can be; or the grid."""
        if len(shape) == 2:
            return shape[0], shape[1]
        (n,) = shape
        if n <= 256 and self._use == _SIGNALS:
            return 1, n
        small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
        factors = sorted({*small, *(n // k for k in small)})
        whole = [k for k in factors if k % self._vector == 0] or factors
        first = min(whole, key=lambda k: abs(math.log(2 * k * k / n)))  # short columns, several of which stay in cache
        return first, n // first

    def _lowpass(self, grid: int, shape: Shape, low: Smoothing) -> int:
        drop = DROP[self._dtype.name]
        if isinstance(low, Lowpass):
            first, second = low.matrices[0].host, low.matrices[-1].host
            self._costs.append(0)  # few outputs, or bands along two axes
            handle = self._engine.lowpass(grid, first.ctypes.data, len(first), second.ctypes.data, len(second), drop)
            return self._own("lowpass", handle)
        most = self._vector if self._use == _POINTS else MOST_MOMENTS
        taps = line_taps(low, self._dtype, self._engine.width(grid), self._vector, self._split(shape)[1], most)
        self._costs.append(taps.cost)
        handle = self._engine.line_lowpass(
            *(grid, taps.basis.ctypes.data, len(taps.basis), taps.basis.shape[1] // self._vector),
            *(taps.kernel.ctypes.data, taps.samples.ctypes.data, len(taps.samples), drop),
        )
        return self._own("lowpass", handle)

    def _make_tones(self, grid: int, low: Smoothing) -> int | None:
        tones = line_tones(low, self._dtype)
        if tones is None:
            return None
        real, imag = tones
        return self._own("tones", self._engine.tones(grid, real.ctypes.data, imag.ctypes.data, *real.shape))

    def _bank(self, cascade: "Cascade", path: tuple[int, ...], block: Block) -> int:
        """The engine's form of the bank that ends a path; at order 1, filters fill the lanes that images leave."""
        bank, level = cascade._bank(path), cascade._level(path[-1])
        above = cascade._level(path[-2]) if len(path) > 1 else 0
        side_by_side = block.lanes // block.images if len(path) == 1 else 1
        lanes = block.lanes if side_by_side > 1 else 1
        key = (id(bank), side_by_side, lanes)
        if key not in self._banks:
            handle = self._own("bank", self._engine.bank(self._grids[above], self._grids[level], lanes))
            boxes = [_trimmed(box, _WEIGHT[self._dtype.name]) for box in bank.boxes]
            for start in range(0, len(boxes), side_by_side):
                box = _beside(boxes[start : start + side_by_side], lanes, block.images) if lanes > 1 else boxes[start]
                origin, extent = np.array(box.origin), np.array(box.weights.shape)
                weights = np.ascontiguousarray(box.weights)
                made = self._engine.add_filter(handle, origin.ctypes.data, extent.ctypes.data, weights.ctypes.data)
                if not made:
                    raise MemoryError("no memory for the filters of the compiled engine")
            self._banks[key] = handle
        return self._banks[key]

    # --- The cascade ---

    def _blocks(self, batch: int) -> Iterator[tuple[int, Block]]:
        """Yield (first image, block)."""
        few = self._engine.lanes(_FEW_SIGNALS)
        start = 0
        while start < batch:
            rest = batch - start
            if self._use == _POINTS:
                block = Block(1, 1, _POINTS, 1)
            elif rest > few:
                block = Block(self._lanes, min(rest, self._lanes), _SIGNALS, self._lanes)
            else:
                block = Block(1 << (rest - 1).bit_length(), rest, _FEW_SIGNALS, few)
            yield start, block
            start += block.present

    def _field_nbytes(self, level: int, block: Block) -> int:
        return _aligned(int(self._engine.field(self._grids[level])) * block.lanes * self._dtype.itemsize)

    def _spectrum_nbytes(self, level: int, block: Block) -> int:
        return _aligned(2 * int(self._engine.half(self._grids[level])) * block.lanes * self._dtype.itemsize)

    def _at_once(self, level: int, n_filters: int, groups: int, block: Block, threads: int) -> int:
        """How many filters make spectra at once, before paths go on from these."""
        each = groups * self._spectrum_nbytes(level, block)
        return max(1, min(n_filters, max(threads, _CACHE_NBYTES // each)))

    def _n_filters(self, path: tuple[int, ...], block: Block) -> int:
        """Filters of a bank as the engine counts them: at order 1, those that share the lanes count as one."""
        n_filters = len(self._cascade._bank(path))
        return block.groups(n_filters) if len(path) == 1 else n_filters

    def _scatter(self, images: NDArray[Any], out: NDArray[Any], block: Block, threads: int, base: int) -> None:
        """Fill the coefficients (present, n_paths, …) of the images of a block, with all threads."""
        engine, schedule, unit = self._engine, self._schedule(block, threads), units(images)
        scale = 1 / unit
        engine.extend(
            *(block.use, self._grids[0], images.ctypes.data, scale.ctypes.data, block.images, block.present),
            *(images[0].size, self._rows.ctypes.data, self._columns.ctypes.data, base),
        )
        self.run(schedule, slice(None), block, threads, base, out, unit)

    def _scatter_blocks(self, images: NDArray[Any], out: NDArray[Any], block: Block, threads: int, base: int) -> None:
        """Fill the coefficients of the images of several blocks of one kind, a block to a thread."""
        schedule, unit = self._schedule(block, 1), units(images)
        scale = 1 / unit
        self._engine.run_blocks(
            *(block.use, self._grids[0], images.ctypes.data, scale.ctypes.data, unit.ctypes.data, block.images),
            *(len(images), images[0].size, self._rows.ctypes.data, self._columns.ctypes.data),
            *(schedule.table.ctypes.data, len(schedule.steps), base, schedule.nbytes, schedule.workspace_nbytes),
            *(out.ctypes.data, out[0].size, self._n_paths, threads),
        )

    def run(
        self,
        schedule: Schedule,
        steps: slice,
        block: Block,
        threads: int,
        base: int,
        out: NDArray[Any],
        unit: NDArray[Any],
    ) -> None:
        """Do steps of a block whose extended field stands at the address ``base``, before all else."""
        table = schedule.table[steps]
        self._engine.run(
            *(block.use, table.ctypes.data, len(table), base, base + schedule.nbytes, schedule.workspace_nbytes),
            *(out.ctypes.data, unit.ctypes.data, self._n_paths, block.images, block.present, threads),
        )

    def _schedule(self, block: Block, threads: int) -> Schedule:
        """The steps that take a block from its extended field, at offset 0, to all its coefficients."""
        key = (block.use, block.images, threads)
        if key not in self._schedules:
            cascade, field = self._cascade, self._field_nbytes(0, block)
            rows = np.full(block.lanes // block.images, -1, np.int32)
            rows[0] = 0
            schedule = Schedule([], field)
            if cascade.max_order:
                schedule.steps.append(Step("spectrum", 0, field, 1, None, self._grids[0]))
                schedule.nbytes += self._spectrum_nbytes(0, block)
            if cascade.max_order and self._tones[0] is not None:
                schedule.steps.append(self._hear(0, field, 1, rows))
            else:
                schedule.steps.append(Step("average", 0, None, 1, rows, self._lowpasses[0]))
            if cascade.max_order:
                self._descend(schedule, field, 1, (), np.zeros(1, np.intp), block, threads, schedule.nbytes)
            schedule.workspace_nbytes = self._engine.workspace(
                block.use, schedule.table.ctypes.data, len(schedule.steps)
            )
            self._schedules[key] = schedule
        return self._schedules[key]

    def _descend(
        self,
        schedule: Schedule,
        X: int,
        groups: int,
        scales: tuple[int, ...],
        prefixes: NDArray[np.intp],
        block: Block,
        threads: int,
        free: int,
    ) -> None:
        """Add the steps of every path that goes on from ``groups`` of spectra at ``X``; from ``free`` on, memory is.

        ``prefixes`` says, as in `Cascade`, which filters led to each signal of each image; −1 is a lane without any.
        """
        cascade, m = self._cascade, len(scales)
        for j in cascade._next(scales):
            path, level = (*scales, j), cascade._level(j)
            bank = self._bank(cascade, path, block)
            table = cascade.paths.rows[path].T
            table = table.reshape(len(table), -1)  # (filters, every prefix)
            n_filters, goes_on = self._n_filters(path, block), bool(cascade._next(path))
            at_once = self._at_once(level, n_filters, groups, block, threads) if goes_on else n_filters
            for first in range(0, n_filters, at_once):
                count = min(at_once, n_filters - first)
                if m:
                    numbers = np.arange(first, first + count)[:, None]
                    longer = np.where(prefixes < 0, -1, numbers * table.shape[1] + prefixes).ravel()
                else:
                    side = block.lanes // block.images
                    numbers = np.arange(first * side, (first + count) * side)
                    longer = np.where(numbers < len(table), numbers, -1)
                rows = np.where(longer < 0, -1, table.ravel()[longer]).astype(np.int32)
                plan = (bank, first, count, self._lowpasses[level])
                if not goes_on:
                    schedule.steps.append(Step("wavelet", X, None, groups, rows, *plan))
                    continue
                some = groups * count
                end = free + _aligned(some * self._spectrum_nbytes(level, block))
                schedule.nbytes = max(schedule.nbytes, end)
                heard = self._tones[level] is not None
                schedule.steps.append(Step("wavelet", X, free, groups, None if heard else rows, *plan))
                if heard:
                    schedule.steps.append(self._hear(level, free, some, rows))
                self._descend(schedule, free, some, path, longer, block, threads, end)

    def _hear(self, level: int, X: int, groups: int, rows: NDArray[np.int32]) -> Step:
        """The averages of signals from their spectra."""
        tones = self._tones[level]
        assert tones is not None
        return Step("hear", X, None, groups, rows, tones)


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
