"""A cascade as the compiled CPU engine runs it: the operations of `primitives`, fused, on wide vectors."""

import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import fused_plan
from scattercube.kernels.fused_schedule import Block, Schedule, Step
from scattercube.kernels.fused_tables import Tables, possible

if TYPE_CHECKING:
    from scattercube.kernels.cascade import Cascade

SMALL = {1: 1 << 12, 2: 96 * 96}  # points of a line, of a grid, up to which signals side by side stay in cache
_MOST_AVERAGING = 20  # operations of averages over those of transforms, from which on the portable way is faster
_TRANSFORM = 60  # operations per point of a wavelet transform
CACHE_NBYTES = 1 << 20  # of a core's own cache, for the arrays between two operations


def plan(cascade: "Cascade") -> "Plan | None":
    """Return the plan of a cascade; None where no engine is at hand, or the portable primitives serve better.

    They do for lines whose length has a large prime factor, and where φ is much longer than the stride: they average in
    Fourier.
    """
    if not possible(cascade):
        return None
    made = Plan(cascade)
    return made if made.averaging() < _MOST_AVERAGING else None


class Plan(fused_plan.Plan):
    """A cascade as the engine runs it.

    Small images and short lines lie side by side in the lanes of vectors; of larger ones, each vector holds
    neighbouring points. The choice depends on the grids alone.

    Parameters
    ----------
    cascade
        What to run.
    """

    def __init__(self, cascade: "Cascade") -> None:
        grid = cascade._grid(0)
        super().__init__(Tables(cascade, points=math.prod(grid) > SMALL[len(grid)]), len(cascade.paths))
        self._cascade: Any = weakref.proxy(cascade)

    def averaging(self) -> float:
        """Return the operations that averages take, relative to those of the wavelet transforms."""
        cascade, averages, transforms = self._cascade, 0.0, 0
        for path, rows in cascade.paths.rows.items():
            if path:
                level = cascade._level(path[-1])
                points = rows.size * math.prod(cascade._grid(level))
                heard = self._tables.tones[level] is not None and cascade._next(path)
                averages += 0 if heard else points * self._tables.costs[level]
                transforms += points * _TRANSFORM
        return averages / transforms if transforms else 0.0

    def _at_once(self, level: int, n_filters: int, groups: int, block: Block, threads: int) -> int:
        """How many filters make spectra at once, before paths go on from these."""
        each = groups * self._tables.spectrum_nbytes(level, block.lanes)
        return max(1, min(n_filters, max(threads, CACHE_NBYTES // each)))

    def _n_filters(self, path: tuple[int, ...], block: Block) -> int:
        """Filters of a bank as the engine counts them: at order 1, those that share the lanes count as one."""
        n_filters = self._cascade._n_filters(path)
        return block.groups(n_filters) if len(path) == 1 else n_filters

    def _steps(self, block: Block, threads: int) -> Schedule:
        cascade, tables = self._cascade, self._tables
        field = tables.field_nbytes(0, block.lanes)
        rows = np.full(block.lanes // block.images, -1, np.int32)
        rows[0] = 0
        schedule = Schedule([], field)
        if cascade.max_order:
            schedule.steps.append(Step("spectrum", 0, field, 1, None, tables.grids[0]))
            schedule.nbytes += tables.spectrum_nbytes(0, block.lanes)
        schedule.steps.append(tables.order_0(field if cascade.max_order else None, rows))
        if cascade.max_order:
            self._descend(schedule, field, 1, (), np.zeros(1, np.intp), block, threads, schedule.nbytes)
        return schedule

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
        cascade, tables, m = self._cascade, self._tables, len(scales)
        for j in cascade._next(scales):
            path, level = (*scales, j), cascade._level(j)
            bank = tables.bank(path, block)
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
                schedule.steps += tables.wavelets(X, free if goes_on else None, groups, rows, bank, first, count, level)
                if goes_on:
                    end = free + groups * count * tables.spectrum_nbytes(level, block.lanes)
                    schedule.nbytes = max(schedule.nbytes, end)
                    self._descend(schedule, free, groups * count, path, longer, block, threads, end)
