"""A cascade as the CUDA engine runs it: the operations of `primitives`, fused, few launches for each pair of scales."""

import math
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.cuda_filters import Filters
from scattercube.kernels.cuda_modules import Module, places
from scattercube.kernels.cuda_schedule import OUT, UNIT, Given, Schedule, Space, X
from scattercube.kernels.device import Array, Constant, namespace
from scattercube.kernels.filterbank import Bank, Shape
from scattercube.kernels.threads import evenly

if TYPE_CHECKING:
    from scattercube.kernels.cascade import Cascade

_SPECTRA_NBYTES = 384 << 20  # of the spectra that a step reads: enough to fill a device
_MOST_ELEMENTS = 1 << 31  # of an array of spectra: the engine counts them in 32 bits
_MOST_BLOCKS = 1 << 16  # of a grid of launches, along its second and third axis


def plan(cascade: "Cascade") -> "Plan | None":
    """Return the plan of a cascade; None where the engine lacks one of its grids: the portable primitives serve."""
    filters = {bank: Filters.of(bank) for bank in cascade._banks.values()}
    aliases: dict[int, Shape] = {}  # of each level, per axis
    for (_, _, j), bank in cascade._banks.items():
        before = aliases.get(cascade._level(j), (1, 1))
        aliases[cascade._level(j)] = tuple(max(pair) for pair in zip(before, filters[bank].aliases, strict=True))
    modules = [
        Module.of(cascade._grid(level), cascade._axes, level, low, aliases.get(level, (1, 1)), cascade.dtype)
        for level, low in enumerate(cascade._lowpasses)
    ]
    possible = [module for module in modules if module]
    made = Plan(cascade, possible, filters) if len(possible) == len(modules) else None
    return made if made and made.possible() else None


@dataclass(frozen=True)
class Signals:
    """Spectra of all prefixes of some scales, (images, prefixes), and the first byte of memory that is free."""

    place: Space | Given
    scales: Shape
    n_prefixes: int
    free: int


@dataclass(frozen=True)
class Rows:
    """Where averages go: an array (images, rows, samples kept), and how many rows it has."""

    place: Space | Given
    count: int


class Plan:
    """A cascade as the engine runs it.

    Every path is found by itself, so that the bits of a result depend on nothing else in the batch.

    Parameters
    ----------
    cascade
        What to run.
    modules
        The engine's module of each level.
    filters
        The banks as the engine takes them.
    """

    def __init__(self, cascade: "Cascade", modules: list[Module], filters: dict[Bank, Filters]) -> None:
        self._cascade: Any = weakref.proxy(cascade)
        self._modules, self._filters = modules, filters
        self._n_paths = len(cascade.paths)
        self._schedules: dict[int, Schedule] = {}
        self._path_rows: dict[Shape, Constant] = {(): Constant(np.zeros((1, 1), np.int32))}
        index = [axis.index.astype(np.int32) for axis in cascade._axes]
        if len(index) == 2 and not modules[0].whole:
            natural = np.empty_like(index[1])
            natural[places(len(natural))] = index[1]  # columns stand at their places
            index[1] = natural
        self._index = (Constant(np.zeros(1, np.int32)), *map(Constant, index))[-2:]
        self._size: Shape = (1, *cascade.shape)[-2:]

    def __call__(self, batch: Array, unit: Array, out: Array) -> None:
        """Fill ``out`` (B, n_paths, samples kept) from a batch of the right type that is divided by ``unit`` (B,)."""
        xp, n_images = namespace(batch), len(batch)
        batch = xp.ascontiguousarray(batch)
        for some in self._blocks(n_images):
            self._schedule(some.stop - some.start).run(xp, batch[some], unit[some], out[some])

    def nbytes(self, batch: int) -> int:
        """Project the peak bytes of a call, beside its argument and result."""
        blocks = {some.stop - some.start for some in self._blocks(batch)}
        return max((self._schedule(n_images).nbytes for n_images in blocks), default=0)

    @property
    def averages_lines(self) -> bool:
        """Whether `averages` can be had at every level: what a line leaves to average fits a block."""
        return all(int(module.defines.get("MOMENTS_FIT", 0)) for module in self._modules)

    def possible(self) -> bool:
        """Tell whether what one image needs can be counted."""
        return self._images_at_once > 0

    @cached_property
    def _images_at_once(self) -> int:
        """How many images travel together: their spectra of the widest step fill a device, and can be counted."""
        cascade = self._cascade
        widest: int = max((len(cascade._bank((j,))) * self.spectrum_nbytes(j) for j in cascade._next(())), default=1)
        elements, blocks = self._most((), 1)
        elements = max(elements, math.prod(self._modules[0].n))
        possible: int = min((_MOST_ELEMENTS - 1) // elements, (_MOST_BLOCKS - 1) // blocks)
        return min(possible, max(1, _SPECTRA_NBYTES // widest))

    def _blocks(self, batch: int) -> list[slice]:
        return evenly(batch, -(-batch // self._images_at_once))

    def spectrum_nbytes(self, j: int) -> int:
        """Return the bytes of a spectrum behind a wavelet of scale j."""
        module: Module = self._modules[self._cascade._level(j)]
        return module.spectrum * module.complex_nbytes

    def _most(self, scales: Shape, n_prefixes: int) -> tuple[int, int]:
        """The most elements of an array, and the most blocks along an axis of a launch, that an image leads to."""
        most = (1, 1)
        for j in self._cascade._next(scales):
            path, module = (*scales, j), self._modules[self._cascade._level(j)]
            n_paths = n_prefixes * len(self._cascade._bank(path))
            here = (n_paths * math.prod(module.n), n_prefixes if module.whole else n_paths)
            below = self._most(path, n_paths)
            most = (max(most[0], here[0], below[0]), max(most[1], here[1], below[1]))
        return most

    # --- What is launched for a block of images ---

    def _schedule(self, n_images: int) -> Schedule:
        if n_images not in self._schedules:
            schedule, module = Schedule(), self._modules[0]
            goes_on = bool(self._cascade.max_order)
            spectra = schedule.space(0, n_images * module.spectrum * module.complex_nbytes) if goes_on else None
            self.extend(schedule, n_images, spectra, spectra.end if spectra else 0, Rows(OUT, self._n_paths))
            if spectra:
                self._descend(schedule, n_images, Signals(spectra, (), 1, spectra.end))
            self._schedules[n_images] = schedule
        return self._schedules[n_images]

    def extend(self, schedule: Schedule, n_images: int, spectra: Space | Given | None, free: int, out: Rows) -> None:
        """Continue images, average them into the first row of each, and find their spectra."""
        image, module = (X, *self._size, *self._index), self._modules[0]
        if module.whole:
            schedule.launch(
                *(module, "extend_whole", (-(-n_images // module.signals),), module.whole_nbytes),
                *(*image, n_images, 0, out.place, UNIT, out.count, module.kernel, module.twiddles, spectra),
            )
            return
        V, B = self._between(schedule, module, n_images, free, bool(spectra))
        grid = (-(-module.shape[1] // module.columns), n_images)
        schedule.launch(module, "extend_columns", grid, module.columns_nbytes, *image, UNIT, V, B)
        self._end(schedule, module, n_images, (V, B, spectra), (1, 1), self._path_rows[()], out)

    def _descend(self, schedule: Schedule, n_images: int, signals: Signals) -> None:
        """Fill the coefficients of every path that goes on from these spectra."""
        cascade = self._cascade
        for j in cascade._next(signals.scales):
            path, n_prefixes = (*signals.scales, j), signals.n_prefixes * len(cascade._bank((*signals.scales, j)))
            deeper = None
            if cascade._next(path):
                deeper = schedule.space(signals.free, n_images * n_prefixes * self.spectrum_nbytes(j))
            here = Signals(signals.place, signals.scales, signals.n_prefixes, deeper.end if deeper else signals.free)
            self.wavelet(schedule, n_images, here, j, deeper, Rows(OUT, self._n_paths))
            if deeper:
                self._descend(schedule, n_images, Signals(deeper, path, n_prefixes, deeper.end))

    def wavelet(
        self, schedule: Schedule, n_images: int, signals: Signals, j: int, deeper: Space | Given | None, out: Rows
    ) -> None:
        """Apply the filters of a scale, average into the rows of their paths, and find the spectra."""
        path, n_signals = (*signals.scales, j), n_images * signals.n_prefixes
        module, source, n_filters = self._source(signals, j)
        rows = self._rows(path, n_filters)
        if module.whole:
            schedule.launch(
                *(module, "wavelet_whole", (n_filters, -(-n_signals // module.signals)), module.whole_nbytes),
                *(*source, n_signals, signals.n_prefixes, rows, out.place, UNIT, out.count),
                *(module.kernel, module.twiddles, deeper),
            )
            return
        A = self._rows_of_grids(schedule, module, source, n_signals, n_filters, signals.free)
        V, B = self._between(schedule, module, n_signals * n_filters, A.end, bool(deeper))
        grid = (-(-module.shape[1] // module.columns), n_signals * n_filters)
        schedule.launch(module, "wavelet_columns", grid, module.columns_nbytes, A, V, B)
        spaces, counts = (V, B, deeper), (signals.n_prefixes, n_filters)
        self._end(schedule, module, n_signals * n_filters, spaces, counts, rows, out)

    def bands(
        self,
        schedule: Schedule,
        n_images: int,
        signals: Signals,
        j: int,
        filters: Filters,
        first_band: int,
        Y: Space | Given,
    ) -> None:
        """Apply one filter of scale j to lines, without the modulus: prefixes are bands of (bands, images, n)."""
        n_signals, cascade = n_images * signals.n_prefixes, self._cascade
        module, read = self._modules[cascade._level(j)], self._modules[cascade._level(signals.scales[-1])]
        source = (signals.place, 1, *read.n, filters.filters, filters.rows, filters.weights)
        if module.whole:
            schedule.launch(
                *(module, "bands_whole", (-(-n_signals // module.signals),), module.whole_nbytes, *source, n_signals),
                *(signals.n_prefixes, first_band, module.twiddles, Y),
            )
            return
        A = self._rows_of_grids(schedule, module, source, n_signals, 1, signals.free)
        grid = (-(-module.shape[1] // module.columns), n_signals)
        given = (A, signals.n_prefixes, first_band, Y)
        schedule.launch(module, "bands_columns", grid, module.columns_nbytes, *given)

    def averages(
        self, schedule: Schedule, lines: Space, j: int, n_lines: int, n_images: int, first_row: int, out: Rows
    ) -> None:
        """Average lines (outputs, images, n) of scale j into the rows of each image from the first on."""
        module = self._modules[self._cascade._level(j)]
        schedule.launch(
            *(module, "average_lines", (n_lines,), module.average_nbytes, lines, n_images, first_row),
            *(out.place, UNIT, out.count, module.kernel),
        )

    def _source(self, signals: Signals, j: int) -> tuple[Module, tuple[Any, ...], int]:
        """The module of a scale, what its kernels read, and the number of its filters."""
        cascade = self._cascade
        read = self._modules[cascade._level(signals.scales[-1]) if signals.scales else 0]
        filters = self._filters[cascade._bank((*signals.scales, j))]
        source = (signals.place, *(1, *read.n)[-2:], filters.filters, filters.rows, filters.weights)
        return self._modules[cascade._level(j)], source, len(filters)

    def _rows_of_grids(
        self, schedule: Schedule, module: Module, source: tuple[Any, ...], n_signals: int, n_filters: int, free: int
    ) -> Space:
        A = schedule.space(free, n_signals * n_filters * math.prod(module.shape) * module.complex_nbytes)
        grid = (-(-module.shape[0] // module.rows), n_filters, n_signals)
        schedule.launch(module, "wavelet_rows", grid, module.rows_nbytes, *source, module.twiddles, A)
        return A

    def _between(
        self, schedule: Schedule, module: Module, n_paths: int, free: int, goes_on: bool
    ) -> tuple[Space, Space | None]:
        """Room for what lies between the kernels of a large grid: what is left to average, and to transform forth."""
        V = schedule.space(free, n_paths * module.averaged * module.dtype.itemsize)
        n_rows = module.shape[0] // 2 + 1
        B = schedule.space(V.end, n_paths * n_rows * module.shape[1] * module.complex_nbytes) if goes_on else None
        return V, B

    def _end(
        self,
        schedule: Schedule,
        module: Module,
        n_paths: int,
        spaces: tuple[Space, Space | None, Space | Given | None],
        counts: tuple[int, int],
        rows: Constant,
        out: Rows,
    ) -> None:
        """End the averages and the transform forth of a large grid, for so many prefixes and filters."""
        V, B, spectra = spaces
        schedule.launch(
            *(module, "average_paths", (n_paths,), module.average_nbytes, V, *counts, rows),
            *(out.place, UNIT, out.count, module.kernel),
        )
        if B:
            grid = (-(-(module.shape[0] // 2 + 1) // module.rows), n_paths)
            schedule.launch(
                *(module, "spectrum_rows", grid, module.rows_nbytes, B, *counts, module.twiddles, spectra),
            )

    def _rows(self, path: Shape, n_filters: int) -> Constant:
        """The output row of (filters, prefixes), counted as the spectra are."""
        if path not in self._path_rows:
            rows: NDArray[np.intp] = self._cascade.paths.rows[path].T.reshape(n_filters, -1)
            self._path_rows[path] = Constant(np.ascontiguousarray(rows, np.int32))
        return self._path_rows[path]
