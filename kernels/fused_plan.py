"""A transform as the compiled CPU engine runs it: a batch in blocks, each of which goes through a schedule."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.arguments import units
from scattercube.kernels.fused_schedule import Block, Schedule
from scattercube.kernels.fused_tables import ALIGNMENT, FEW_SIGNALS, POINTS, SIGNALS, Tables

_CONVERTED = 4  # blocks for each thread that are converted at once, where a batch is of another type


class Plan(ABC):
    """A transform as the engine runs it.

    The bits of a result depend neither on the batch nor on the number of threads.

    Parameters
    ----------
    tables
        What the engine knows of it.
    n_rows
        How many rows an input has in the output.
    """

    def __init__(self, tables: Tables, n_rows: int) -> None:
        self._tables, self._n_rows = tables, n_rows
        self._schedules: dict[tuple[int, ...], Schedule] = {}

    def __call__(self, batch: NDArray[Any], out: NDArray[Any], threads: int) -> None:
        """Fill ``out`` (B, n_rows, samples kept) from a batch of finite arrays."""
        dtype = self._tables.dtype
        blocks, outer, inner = self._shares(len(batch), threads)
        memory = np.empty(self.nbytes(len(batch), threads) + ALIGNMENT, np.uint8)
        base = memory.ctypes.data + -memory.ctypes.data % ALIGNMENT
        is_ready = batch.dtype == dtype and batch.flags.c_contiguous
        for some in self._alike(blocks, 1 if inner > 1 else len(blocks) if is_ready else _CONVERTED * outer):
            (first, block), (last, end) = some[0], some[-1]
            part = slice(first, last + end.present)
            images = np.ascontiguousarray(batch[part], dtype=dtype)
            if len(some) > 1:
                self._scatter_blocks(images, out[part], block, outer, base)
            else:
                self._scatter(images, out[part], block, inner, base)

    def nbytes(self, batch: int, threads: int = 1) -> int:
        """Project the peak bytes of a call: the arrays between operations, and a workspace for each thread."""
        blocks, outer, inner = self._shares(batch, threads)
        schedules = [self._schedule(block, inner) for _, block in blocks[:1] + blocks[-1:]]
        return max((outer * each.nbytes + threads * each.workspace_nbytes for each in schedules), default=0)

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
        self._tables.engine.run(
            *(block.use, table.ctypes.data, len(table), base, base + schedule.nbytes, schedule.workspace_nbytes),
            *(out.ctypes.data, unit.ctypes.data, self._n_rows, block.images, block.present, threads),
        )

    @abstractmethod
    def _steps(self, block: Block, threads: int) -> Schedule:
        """Return the steps that take a block from its extended field, at offset 0, to all its coefficients."""

    def _schedule(self, block: Block, threads: int) -> Schedule:
        key = (block.use, block.images, threads)
        if key not in self._schedules:
            schedule = self._steps(block, threads)
            schedule.workspace_nbytes = self._tables.engine.workspace(
                block.use, schedule.table.ctypes.data, len(schedule.steps)
            )
            self._schedules[key] = schedule
        return self._schedules[key]

    # --- Blocks ---

    def _shares(self, batch: int, threads: int) -> tuple[list[tuple[int, Block]], int, int]:
        """The blocks of a batch, how many of them work at once, and the threads of each."""
        blocks = list(self._blocks(batch))
        outer = threads if len(blocks) >= 2 * threads else 1  # images in parallel, or the filters of each
        return blocks, outer, threads // outer

    def _blocks(self, batch: int) -> Iterator[tuple[int, Block]]:
        """Yield (first image, block)."""
        tables, start = self._tables, 0
        few = tables.engine.lanes(FEW_SIGNALS)
        while start < batch:
            rest = batch - start
            if tables.use == POINTS:
                block = Block(1, 1, POINTS, 1)
            elif rest > few:
                block = Block(tables.lanes, min(rest, tables.lanes), SIGNALS, tables.lanes)
            else:
                block = Block(1 << (rest - 1).bit_length(), rest, FEW_SIGNALS, few)
            yield start, block
            start += block.present

    def _alike(self, blocks: list[tuple[int, Block]], most: int) -> Iterator[list[tuple[int, Block]]]:
        """Yield runs of blocks of one kind that the engine takes in one call, of so many blocks at most."""
        for _, group in groupby(blocks, key=lambda numbered: (numbered[1].use, numbered[1].images)):
            run = list(group)
            for start in range(0, len(run), max(1, most)):
                yield run[start : start + max(1, most)]

    def _scatter(self, images: NDArray[Any], out: NDArray[Any], block: Block, threads: int, base: int) -> None:
        """Fill the coefficients (present, n_rows, …) of the images of a block, with all threads."""
        tables, schedule, unit = self._tables, self._schedule(block, threads), units(images)
        scale = 1 / unit
        tables.engine.extend(
            *(block.use, tables.grids[0], images.ctypes.data, scale.ctypes.data, block.images, block.present),
            *(images[0].size, tables.rows.ctypes.data, tables.columns.ctypes.data, base),
        )
        self.run(schedule, slice(None), block, threads, base, out, unit)

    def _scatter_blocks(self, images: NDArray[Any], out: NDArray[Any], block: Block, threads: int, base: int) -> None:
        """Fill the coefficients of the images of several blocks of one kind, a block to a thread."""
        tables, schedule, unit = self._tables, self._schedule(block, 1), units(images)
        scale = 1 / unit
        tables.engine.run_blocks(
            *(block.use, tables.grids[0], images.ctypes.data, scale.ctypes.data, unit.ctypes.data, block.images),
            *(len(images), images[0].size, tables.rows.ctypes.data, tables.columns.ctypes.data),
            *(schedule.table.ctypes.data, len(schedule.steps), base, schedule.nbytes, schedule.workspace_nbytes),
            *(out.ctypes.data, out[0].size, self._n_rows, threads),
        )
