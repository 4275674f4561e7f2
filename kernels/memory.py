"""What a cascade takes of memory, from the sizes of its grids alone: it is known before a filter is made."""

import math
from typing import TYPE_CHECKING

from scattercube.kernels.device import Device
from scattercube.kernels.engine.library import Engine
from scattercube.kernels.filterbank import Shape, Spans, blocks_of, crop, cropped_spans, folded_spans
from scattercube.kernels.fused_cpu import CACHE_NBYTES, SMALL
from scattercube.kernels.fused_tables import POINTS, ROUNDING_NBYTES, aligned, possible, split

if TYPE_CHECKING:
    from scattercube.kernels.cascade import Cascade
    from scattercube.kernels.time_frequency import TimeFrequencyScattering

_COLUMNS_NBYTES = 36 << 10  # of the columns that the engine transforms together, where they are more than two


def of_filters(S: "Cascade") -> int:
    """Return about how many bytes filters and low-passes take: as arrays, and as the compiled engine reads them."""
    points = sum(math.prod(hi - lo for lo, hi in spans) for key in S._wanted() for spans in _spans(S, *key))
    grids = (S._grid(level) for level in range(S._n_levels))
    if len(S.shape) == 1:  # a spectrum, or the weights of a mean
        averages = sum(n for (n,) in grids)
    else:
        averages = sum(axis.n_out * n for grid in grids for axis, n in zip(S._axes, grid, strict=True))
    return 2 * (points + averages) * S.dtype.itemsize


def of_cascade(S: "Cascade", batch: int) -> int:
    """Bound what a call with ``batch`` inputs allocates on the CPU, in one thread, the result included."""
    if math.prod(S._grid(0)) <= SMALL[len(S.shape)]:
        return S.nbytes(batch)  # what little it has of filters is made in no time
    result = batch * math.prod(S._kept) * S.dtype.itemsize
    if not possible(S):
        return result + of_primitives(S, batch, "cpu")
    fused = Points(S).nbytes()
    # Where φ is much longer than the stride or has slow tails, and only there, primitives may be faster.
    is_long = S._fourier_scale >= 2 * S._axes[0].stride or (S._fourier_scale > 0 and S.widths is None)
    return result + (max(fused, of_primitives(S, batch, "cpu")) if is_long else fused)


class Points:
    """What the compiled engine takes for one large signal at a time, whose neighbouring points fill its vectors.

    The counts are those of ``Grid`` in plan.h and of points.cpp.

    Parameters
    ----------
    S
        What is transformed.
    """

    def __init__(self, S: "Cascade") -> None:
        self._cascade, self._itemsize = S, S.dtype.itemsize
        self._vector: int = Engine(S.dtype).lanes(POINTS)

    def nbytes(self) -> int:
        """Return the bytes of the arrays between operations, and of the workspace of one thread."""
        field, spectra = aligned(math.prod(self._cascade._grid(0)) * self._itemsize), 0
        if self._cascade.max_order:
            spectra = self.spectrum_nbytes(0) + self._below((), 1)
        return field + spectra + self.workspace_nbytes()

    def spectrum_nbytes(self, level: int) -> int:
        """Return the bytes of the spectrum of a signal of a level."""
        n1, n2 = self._split(level)
        strips = (n1 // 2 + self._vector) // self._vector
        return aligned(2 * strips * (n2 | 1) * self._vector * self._itemsize)

    def workspace_nbytes(self) -> int:
        """Return the bytes in which |x ∗ ψ| is made of a spectrum, smoothed and transformed."""
        return max(self._workspace_nbytes(level) for level in range(self._cascade._n_levels)) + ROUNDING_NBYTES

    def _workspace_nbytes(self, level: int) -> int:
        (n1, n2), V, itemsize = self._split(level), self._vector, self._itemsize
        row = -(-n2 // V)  # vectors of it
        strips = 2 * ((n1 + 1) * (row | 1) + row * V) * V * itemsize
        columns = max(2 * n1 * V * itemsize, _COLUMNS_NBYTES) + 2 * n1 * V * itemsize
        kept = [axis.n_out for axis in self._cascade._axes]
        if len(kept) == 1:
            return strips + columns + max(kept[0] * V, n1 * n2) * itemsize
        return strips + columns + (kept[0] * row * V + 2 * row * V * V + 2 * (kept[1] + V) * V) * itemsize

    def _split(self, level: int) -> tuple[int, int]:
        return split(self._cascade._grid(level), POINTS, self._vector)

    def _below(self, scales: Shape, n_spectra: int) -> int:
        """The spectra that are there at once on the paths that go on from so many of these scales."""
        S, most = self._cascade, 0
        for j in S._next(scales):
            path = (*scales, j)
            if S._next(path):
                each = n_spectra * self.spectrum_nbytes(S._level(j))
                at_once = n_spectra * max(1, min(S._n_filters(path), CACHE_NBYTES // each))
                most = max(most, at_once * (each // n_spectra) + self._below(path, at_once))
        return most


def of_joint(S: "TimeFrequencyScattering") -> int:
    """Bound what the compiled engine takes for a signal of a joint transform, as `fused_cpu_joint` lays it out."""
    time, n_times, itemsize = S._time, S.output_shape[-1], S.dtype.itemsize
    points = Points(time)
    front = aligned(time._signal_nbytes(0)) + points.spectrum_nbytes(0)
    across = 0
    for stage in (S._order_1, *S._stages):
        across = max(across, stage.bank.fused.nbytes(1) if stage.bank.fused else 0)
    for stage in S._stages:
        lines = 2 * stage.bank.n_bands + stage.bank.n_outputs
        front = max(front, aligned(lines * time._signal_nbytes(time._level(stage.j))))
    groups = time._wavelets[0].items()
    spectra = sum(len(group) * points.spectrum_nbytes(time._level(j)) for j, group in groups)
    S1 = aligned(sum(len(group) for _, group in groups) * n_times * itemsize)
    return front + spectra + S1 + max(points.workspace_nbytes(), across)


def of_primitives(S: "Cascade", batch: int, device: Device) -> int:
    """Return the peak bytes of the portable primitives, without the result."""
    n_images = min(batch, S._images_at_once(device))
    signal = n_images * S._signal_nbytes(0)
    before = signal * S._axes[-1].size // S._axes[-1].padded if S._is_extended else 0  # all axes but one done
    here = signal + max(before, _smoothing_nbytes(S, signal))
    if S.max_order:
        here = max(here, 3 * signal, 2 * signal + _nbytes_below(S, (), n_images, 1, device))
    return n_images * math.prod(S.shape) * S.dtype.itemsize + here  # what is brought to one, and the rest


def _smoothing_nbytes(S: "Cascade", signals: int) -> int:
    """What the average of signals of so many bytes allocates: a line's spectrum, or next to nothing."""
    return signals if S._fourier_scale else 0


def _nbytes_below(S: "Cascade", scales: Shape, n_images: int, n_prefixes: int, device: Device) -> int:
    """The peak of `Cascade._descend` without its argument: the arrays of the largest step, or of those below it."""
    peak = 0
    for j in S._next(scales):
        path, level = (*scales, j), S._level(j)
        n_some, n_parts = S._at_once(j, S._n_filters(path), n_images, device)
        n_parts = min(n_parts, n_prefixes)
        signals = n_images * n_parts * n_some * S._signal_nbytes(level)
        n_blocks = _n_blocks(S, path) if len(S.shape) > 1 else 1
        aliases = 2 * signals // n_some * n_blocks if n_blocks > 1 else 0
        here = max(2 * signals + max(aliases, signals), signals + _smoothing_nbytes(S, signals))
        if S._next(path):
            deeper = _nbytes_below(S, path, n_images, n_some * n_parts, device)
            here = max(here, 2 * signals + max(signals, deeper))
        peak = max(peak, here)
    return peak


def _n_blocks(S: "Cascade", path: Shape) -> int:
    """How many blocks of its output's grid a bank meets."""
    which, level, j = S._key(path)
    grid, out = S._grid(level), S._grid(S._level(j))
    return len(set().union(*(blocks_of(spans, grid, out) for spans in _spans(S, which, level, j))))


def _spans(S: "Cascade", which: int, level: int, j: int) -> list[Spans]:
    """Where the filters of a bank lie on the grid that they read; see `Cascade._wanted`."""
    finest = [psi.spans(S._grid(0), S._truncation) for psi in S._wavelets[which][j]]
    if not level:
        return finest
    coarse = cropped_spans if S._coarse is crop else folded_spans
    return [coarse(spans, S._grid(level)) for spans in finest]
