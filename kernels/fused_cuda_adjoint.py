"""The adjoint of a cascade as the CUDA engine runs it: few launches for each pair of scales, and no atomics."""

import math
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import fused_cuda
from scattercube.kernels.cuda_filters import Filters
from scattercube.kernels.cuda_modules import Module, places
from scattercube.kernels.cuda_schedule import OUT, Given, Schedule, Space
from scattercube.kernels.device import Array, Constant, namespace
from scattercube.kernels.engine.source import cuda_source
from scattercube.kernels.filterbank import Shape
from scattercube.kernels.fused_cuda import Rows, Signals
from scattercube.kernels.threads import evenly

if TYPE_CHECKING:
    from scattercube.kernels.cascade import Cascade

_G, _GRADIENT = Given(3), Given(4)  # behind the images, their units, and coefficients that nobody asks for
_BETWEEN_NBYTES = 256 << 20  # of what a step leaves to be summed over filters: enough to fill a device
_MOST_BLOCKS = 1 << 16  # of a grid of launches, along its second axis
_TOGETHER = 4  # signals that a thread sums for


def plan(cascade: "Cascade") -> "Plan | None":
    """Return the plan of a cascade's adjoint; None where the engine lacks one of its grids."""
    forward = cascade._fused_cuda
    if not forward:
        return None
    modules = [_Module.of(cascade, level, module) for level, module in enumerate(forward._modules)]
    possible = [module for module in modules if module]
    made = Plan(cascade, forward, possible) if len(possible) == len(modules) else None
    return made if made and made.possible() else None


@dataclass(frozen=True, eq=False)
class _Module:
    """The engine's source with the adjoint behind it.

    Parameters
    ----------
    engine
        The module that it stands on: not always the one that runs forth, as a block holds more.
    shared_nbytes
        Of a block of whole signals or of columns.
    """

    engine: Module
    shared_nbytes: int

    @classmethod
    def of(cls, cascade: "Cascade", level: int, forward: Module) -> Self | None:
        """Plan the module of a level; None where a block does not hold what it has to."""
        engine: Module | None = forward
        if forward.whole and not forward.blocks_per_sm(forward.whole_nbytes // forward.signals + _spare(forward, 1)):
            aliases = tuple(int(forward.defines[f"ALIASES{axis}"]) for axis in (1, 2))
            low = cascade._lowpasses[level]
            engine = Module.of(forward.n, cascade._axes, level, low, aliases, forward.dtype, may_be_whole=False)
        if engine is None or (not engine.whole and not engine.blocks_per_sm(engine.columns_nbytes + _spare(engine, 1))):
            return None
        nbytes = engine.whole_nbytes if engine.whole else engine.columns_nbytes
        return cls(engine, nbytes + _spare(engine, engine.signals))

    @cached_property
    def source(self) -> str:
        """The text that is compiled."""
        blocks = max(1, self.engine.blocks_per_sm(self.shared_nbytes))
        constants = self.engine.defines | {"ADJOINT_BLOCKS_PER_SM": str(blocks)}
        return cuda_source(constants, "scattering.cu", "adjoint.cu")

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.engine.threads


def _spare(module: Module, n_signals: int) -> int:
    """The shared memory that the averages of so many signals of a block take on their way back."""
    if len(module.n) == 1:
        return 0
    width = module.shape[1] if module.whole else module.columns
    weights = n_signals * int(module.defines["OUT1"]) * width + int(module.defines["N_TAPS2"])
    return weights * module.dtype.itemsize


class Plan:
    """The adjoint of a cascade as the engine runs it.

    Every path is found by itself, and every sum has one order, so that the bits of a result depend on nothing else in
    the batch.

    Parameters
    ----------
    cascade
        What to run.
    forward
        Its plan, which finds the spectra of all paths that go on.
    modules
        The module of each level.
    """

    def __init__(self, cascade: "Cascade", forward: fused_cuda.Plan, modules: list[_Module]) -> None:
        self._cascade: Any = weakref.proxy(cascade)
        self._forward, self._modules = forward, modules
        self._n_paths = len(cascade.paths)
        self._schedules: dict[int, Schedule] = {}
        self._size: Shape = (1, *cascade.shape)[-2:]
        self._sources = _sources([axis.index for axis in cascade._axes], cascade.shape, modules[0].engine)

    def __call__(self, batch: Array, unit: Array, g: Array, gradient: Array) -> None:
        """Fill ``gradient`` (B, …) for a batch of the right type, ``unit`` (B,) and weights ``g`` (B, n_paths, …)."""
        xp = namespace(batch)
        batch, g = xp.ascontiguousarray(batch), xp.ascontiguousarray(g)
        for some in self._blocks(len(batch)):
            n_images = some.stop - some.start
            schedule = self._schedule(n_images)
            unwanted = xp.empty(max(1, self._unwanted_nbytes(n_images)), np.uint8)
            schedule.run(xp, batch[some], unit[some], unwanted, g[some], gradient[some])

    def nbytes(self, batch: int) -> int:
        """Project the peak bytes of a call, beside its arguments and result."""
        blocks = {some.stop - some.start for some in self._blocks(batch)}
        return max((self._schedule(n).nbytes + self._unwanted_nbytes(n) for n in blocks), default=0)

    def possible(self) -> bool:
        """Tell whether what one image needs can be launched."""
        return self._images_at_once > 0

    def _unwanted_nbytes(self, n_images: int) -> int:
        """Of the coefficients that come with the spectra."""
        cascade = self._cascade
        return n_images * math.prod(cascade._kept) * int(cascade.dtype.itemsize) if cascade._next(()) else 0

    @cached_property
    def _images_at_once(self) -> int:
        """How many images travel together: the widest of their steps fills a device, and can be launched."""
        nbytes, blocks = self._most((), 1)
        return min(self._forward._images_at_once, (_MOST_BLOCKS - 1) // blocks, max(1, _BETWEEN_NBYTES // nbytes))

    def _most(self, scales: Shape, n_prefixes: int) -> tuple[int, int]:
        """The most bytes of an array, and the most blocks along an axis of a launch, that an image leads to."""
        most = (1, 1)
        for j in self._cascade._next(scales):
            path, engine = (*scales, j), self._module(j).engine
            n_paths = n_prefixes * len(self._cascade._bank(path))
            here = (n_paths * math.prod(engine.n) * engine.complex_nbytes, n_prefixes if engine.whole else n_paths)
            below = self._most(path, n_paths)
            most = (max(most[0], here[0], below[0]), max(most[1], here[1], below[1]))
        return most

    def _blocks(self, batch: int) -> list[slice]:
        return evenly(batch, -(-batch // self._images_at_once))

    def _module(self, j: int) -> _Module:
        module: _Module = self._modules[self._cascade._level(j)]
        return module

    # --- What is launched for a block of images ---

    def _schedule(self, n_images: int) -> Schedule:
        if n_images in self._schedules:
            return self._schedules[n_images]
        schedule, module, H = Schedule(), self._modules[0], None
        if self._cascade._next(()):
            spectra_nbytes = n_images * module.engine.spectrum * module.engine.complex_nbytes
            X = schedule.space(0, spectra_nbytes)
            self._forward.extend(schedule, n_images, X, X.end, Rows(OUT, self._n_paths))
            H = schedule.space(X.end, spectra_nbytes)
            self._ascend(schedule, n_images, Signals(X, (), 1, H.end), H)
        slopes = self._slopes(schedule, module, n_images, 1, H, self._forward._path_rows[()], 0)
        grid = (-(-math.prod(self._size) // module.threads), n_images)
        schedule.launch(module, "extend_adjoint", grid, 0, slopes, *self._sources, *self._size, _GRADIENT)
        self._schedules[n_images] = schedule
        return schedule

    def _ascend(self, schedule: Schedule, n_images: int, signals: Signals, H: Space) -> None:
        """Fill the gradient with respect to spectra, as half spectra, of all paths that go on from these."""
        cascade = self._cascade
        for number, j in enumerate(cascade._next(signals.scales)):
            path, module = (*signals.scales, j), self._module(j)
            n_paths = signals.n_prefixes * len(cascade._bank(path))
            slopes, free, rows = None, signals.free, self._forward._rows(path, len(cascade._bank(path)))
            if cascade._next(path):
                nbytes = n_images * n_paths * self._forward.spectrum_nbytes(j)
                deeper = schedule.space(free, nbytes)
                here, scratch = replace(signals, free=deeper.end), Rows(OUT, self._n_paths)
                self._forward.wavelet(schedule, n_images, here, j, deeper, scratch)
                deeper_H = schedule.space(deeper.end, nbytes)
                self._ascend(schedule, n_images, Signals(deeper, path, n_paths, deeper_H.end), deeper_H)
                slopes = self._slopes(schedule, module, n_images, n_paths, deeper_H, rows, free)
                free = slopes.end
            self._wavelet(schedule, n_images, replace(signals, free=free), j, slopes, H, added=number > 0)

    def _slopes(
        self,
        schedule: Schedule,
        module: _Module,
        n_images: int,
        n_prefixes: int,
        H: Space | None,
        rows: Constant,
        free: int,
    ) -> Space:
        """Find the slopes of signals, from ``free`` on, from the weights of their averages and from H."""
        engine, n_signals = module.engine, n_images * n_prefixes
        slopes = schedule.space(free, n_signals * math.prod(engine.n) * engine.dtype.itemsize)
        weights = (rows, _G, self._n_paths, engine.kernel)
        if engine.whole:
            grid: Shape = (-(-n_signals // engine.signals),)
            arguments = (H, n_signals, n_prefixes, *weights, engine.twiddles, slopes)
            schedule.launch(module, "slopes_whole", grid, module.shared_nbytes, *arguments)
            return slopes
        B = None
        if H:
            n_rows = engine.shape[0] // 2 + 1
            B = schedule.space(H.end, n_signals * n_rows * engine.shape[1] * engine.complex_nbytes)
            grid = (-(-n_rows // engine.rows), n_signals)
            schedule.launch(module, "slopes_rows", grid, engine.rows_nbytes, H, engine.twiddles, B)
        grid = (-(-engine.shape[1] // engine.columns), n_signals)
        schedule.launch(module, "slopes_columns", grid, module.shared_nbytes, B, n_prefixes, *weights, slopes)
        return slopes

    def _wavelet(
        self, schedule: Schedule, n_images: int, signals: Signals, j: int, slopes: Space | None, H: Space, added: bool
    ) -> None:
        """Take slopes, or the weights of averages where a path ends, through the filters of a scale back to spectra."""
        module, n_signals = self._module(j), n_images * signals.n_prefixes
        engine = module.engine
        _, source, n_filters = self._forward._source(signals, j)
        rows = self._forward._rows((*signals.scales, j), n_filters)
        weights = (rows, _G, self._n_paths, engine.kernel)
        nbytes = n_signals * n_filters * math.prod(engine.n) * engine.complex_nbytes
        C = schedule.space(signals.free, nbytes)
        if engine.whole:
            grid: Shape = (n_filters, -(-n_signals // engine.signals))
            arguments: tuple[Any, ...] = (*source, n_signals, signals.n_prefixes, *weights, engine.twiddles, slopes, C)
            schedule.launch(module, "wavelet_adjoint_whole", grid, module.shared_nbytes, *arguments)
        else:
            A = C if len(engine.n) == 2 else schedule.space(C.end, nbytes)
            n_row_groups = -(-engine.shape[0] // engine.rows)
            grid = (n_row_groups, n_filters, n_signals)
            schedule.launch(module, "wavelet_rows", grid, engine.rows_nbytes, *source, engine.twiddles, A)
            grid = (-(-engine.shape[1] // engine.columns), n_signals * n_filters)
            arguments = (A, signals.n_prefixes, n_filters, *weights, slopes)
            schedule.launch(module, "wavelet_adjoint_columns", grid, module.shared_nbytes, *arguments)
            grid = (n_row_groups, n_signals * n_filters)
            schedule.launch(module, "wavelet_adjoint_rows", grid, engine.rows_nbytes, A, engine.twiddles, C)
        _, *read, _, _, _ = source
        height, width = (
            _touched(self._forward._filters[self._cascade._bank((*signals.scales, j))], tuple(read))
            if added
            else (read[0], read[1] // 2 + 1)
        )
        grid = (-(-height * width // module.threads), -(-n_signals // _TOGETHER))
        arguments = (C, *source[1:], n_filters, height, width, n_signals, int(added), H)
        schedule.launch(module, "spectra_adjoint", grid, 0, *arguments)


def _touched(filters: Filters, read: Shape) -> Shape:
    """Rows and columns of the stored half of a spectrum that hold all that filters, or their mirror images, read."""
    reaches = []
    for axis, n in enumerate(read):
        bins = [(origin + np.arange(size)) % n for origin, size in filters.filters.host[:, [axis, axis + 2]]]
        reaches.append(max(int(np.minimum(some, n - some).max()) for some in bins))
    return min(2 * reaches[0] + 1, read[0]), min(reaches[1] + 1, read[1] // 2 + 1)


def _sources(indices: list[NDArray[np.intp]], shape: Shape, module: Module) -> tuple[Constant, ...]:
    """Where the slopes of what continues each sample stand: of rows and columns, the first of each sample, and all."""
    n1, n2 = module.shape
    columns = places(n2) if module.whole or len(module.n) == 2 else np.arange(n2)
    if len(indices) == 1:
        # A line is a row, of samples in some order.
        stands = [np.zeros(1, np.intp), np.add.outer(places(n1) * n2, columns).ravel()]
        indices, shape = [np.zeros(1, np.intp), *indices], (1, *shape)
    else:
        stands = [places(n1) * n2, columns]
    tables = []
    for index, size, there in zip(indices, shape, stands, strict=True):
        order = np.argsort(index, kind="stable")
        tables += [np.searchsorted(index[order], np.arange(size + 1)), there[order]]
    return tuple(Constant(table.astype(np.int32)) for table in tables)
