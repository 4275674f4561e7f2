"""How a filter, given as a Fourier spectrum on a box, meets a grid: folded, cropped, arranged in banks, made a matrix.

A filter of scattering is real in Fourier and negligible outside a box, so a box is what is evaluated. Frequencies are
signed bins of the padded grid: index k of an axis of N points is the angular frequency 2πk/N.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from scattercube.kernels.device import Constant

Shape = tuple[int, ...]
Slices = tuple[slice, ...]
Spans = list[tuple[int, int]]
"""First index and the one after the last, per axis."""
Piece: TypeAlias = "tuple[slice, slice, Constant]"
"""Where a piece of a filter reads a spectrum, where it writes the folded one, and its weights."""

_CACHE_NBYTES = 1 << 19  # of a core, shared with what is read


@dataclass(frozen=True, eq=False)
class Box:
    """A real spectrum that vanishes outside a box.

    Parameters
    ----------
    origin
        Signed frequency index of the first sample, per axis.
    weights
        The spectrum inside the box, one axis per dimension.
    """

    origin: Shape
    weights: NDArray[Any]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First index and the one after the last, per axis."""
        return [(o, o + w) for o, w in zip(self.origin, self.weights.shape, strict=True)]

    def dense(self, grid: Shape) -> NDArray[Any]:
        """Return the spectrum on a whole grid that the box fits on, zero frequency first."""
        full = np.zeros(grid, self.weights.dtype)
        full[np.ix_(*(np.arange(lo, hi) % n for (lo, hi), n in zip(self.spans, grid, strict=True)))] = self.weights
        return full


class Wavelet(Protocol):
    """A filter that is evaluated when it is needed."""

    def box(self, grid: Shape, truncation: float, dtype: np.dtype[Any], /) -> Box:
        """Evaluate the spectrum on a grid, where it exceeds ``truncation`` × its peak."""

    def spans(self, grid: Shape, truncation: float, /) -> Spans:
        """Return the first index and the one after the last that `box` has at most, per axis."""


def fold(box: Box, grid: Shape) -> Box:
    """Sum the aliases of a spectrum on a coarser grid, which samples the filter in space. A box that fits is kept."""
    if folded_spans(box.spans, grid) == box.spans:
        return box
    folded = np.zeros(grid, box.weights.dtype)
    for source, target in centred(box.spans, grid):
        folded[target] += box.weights[source]
    return Box(tuple(-(n // 2) for n in grid), folded)


def folded_spans(spans: Spans, grid: Shape) -> Spans:
    """Return where a spectrum with these spans lies once it is folded."""
    if all(hi - lo <= n for (lo, hi), n in zip(spans, grid, strict=True)):
        return spans
    return [(-(n // 2), n - n // 2) for n in grid]


def crop(box: Box, grid: Shape) -> Box:
    """Drop the frequencies beyond a coarser grid's Nyquist border, which leaves tails 1/x in space; `fold` does not."""
    spans = cropped_spans(box.spans, grid)
    window = tuple(slice(low - o, high - o) for (low, high), o in zip(spans, box.origin, strict=True))
    return Box(tuple(low for low, _ in spans), box.weights[window])


def cropped_spans(spans: Spans, grid: Shape) -> Spans:
    """Return where a spectrum with these spans lies once it is cropped."""
    lows = [max(lo, -(n // 2)) for (lo, _), n in zip(spans, grid, strict=True)]
    highs = [max(low, min(hi, n - n // 2)) for low, (_, hi), n in zip(lows, spans, grid, strict=True)]
    return list(zip(lows, highs, strict=True))


def blocks_of(spans: Spans, grid: Shape, out: Shape) -> set[Shape]:
    """Return where those blocks of ``out`` points start on a grid that a filter with these spans meets."""
    starts = [[(a - a % n) % N for a, _ in _split(lo, hi, n)] for (lo, hi), n, N in zip(spans, out, grid, strict=True)]
    return set(itertools.product(*starts))


def _split(lo: int, hi: int, n: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut the indices lo ≤ k < hi wherever k − start is a multiple of n."""
    return list(itertools.pairwise(sorted({lo, hi, *range(lo + (start - lo) % n, hi, n)})))


def centred(spans: list[tuple[int, int]], grid: Shape) -> Iterator[tuple[Slices, Slices]]:
    """Yield (slices of the box, slices of the grid with zero frequency at n//2), one period of the grid at a time."""
    axes = [
        [
            (slice(a - lo, b - lo), slice((a + n // 2) % n, (a + n // 2) % n + b - a))
            for a, b in _split(lo, hi, n, -(n // 2))
        ]
        for (lo, hi), n in zip(spans, grid, strict=True)
    ]
    for pieces in itertools.product(*axes):
        yield tuple(source for source, _ in pieces), tuple(target for _, target in pieces)


@dataclass(frozen=True, eq=False)
class Bank:
    """Filters that are applied together to one spectrum, each product subsampled to the same number of points.

    Subsampling N points to n folds the frequencies k + n, k + 2n, … onto k: a filter meets them by `pieces` (lines) or,
    all filters at once, by `matrices` (images).

    Parameters
    ----------
    boxes
        The filters; each fits ``grid``.
    grid
        Points per axis of the spectra that are read.
    out
        Points per axis of what is written; ``out`` divides ``grid``.
    """

    boxes: tuple[Box, ...]
    grid: Shape
    out: Shape

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def pieces(self) -> list[list[Piece]]:
        """Each filter of a bank of lines, cut where it is folded. Its box may be tiny beside the grid."""
        (N,), (n,) = self.grid, self.out
        filters = []
        for box in self.boxes:
            ((lo, hi),) = box.spans
            parts = [(slice(a % N, a % N + b - a), slice(a % n, a % n + b - a), a, b) for a, b in _split(lo, hi, n)]
            # Complex, as the spectrum is: NumPy would convert real weights at every use.
            weights = box.weights.astype(np.result_type(box.weights, np.complex64))
            filters.append([(source, target, Constant(weights[a - lo : b - lo])) for source, target, a, b in parts])
        return filters

    @cached_property
    def matrices(self) -> tuple[Constant, tuple[Shape, ...]]:
        """One small matrix per frequency of ``out``, (out, filters, blocks), and where each block starts on ``grid``.

        A grid of N points is N/n blocks of n, and subsampling to n points sums the blocks. Those that no filter touches
        are left out.
        """
        pieces: dict[Shape, list[tuple[int, Slices, Slices]]] = {}
        for f, box in enumerate(self.boxes):
            spans = zip(box.spans, self.out, strict=True)
            for parts in itertools.product(*(_split(lo, hi, n) for (lo, hi), n in spans)):
                block = tuple((a - a % n) % N for (a, _), n, N in zip(parts, self.out, self.grid, strict=True))
                source = tuple(slice(a - o, b - o) for (a, b), o in zip(parts, box.origin, strict=True))
                target = tuple(slice(a % n, a % n + b - a) for (a, b), n in zip(parts, self.out, strict=True))
                pieces.setdefault(block, []).append((f, source, target))
        blocks = tuple(sorted(pieces))
        weights = np.zeros((*self.out, len(self), len(blocks)), self.boxes[0].weights.dtype)
        step = max(1, _CACHE_NBYTES // weights[0].nbytes)  # rows that stay in cache while all filters are written
        for start in range(0, self.out[0], step):
            for b, block in enumerate(blocks):
                for f, source, target in pieces[block]:
                    lo, hi = max(start, target[0].start), min(start + step, target[0].stop)
                    if lo < hi:
                        shift = source[0].start - target[0].start
                        there: tuple[slice | int, ...] = (slice(lo, hi), *target[1:], f, b)
                        weights[there] = self.boxes[f].weights[(slice(lo + shift, hi + shift), *source[1:])]
        return Constant(weights), blocks


@dataclass(frozen=True, eq=False)
class Lowpass:
    """A separable low-pass that keeps chosen samples: one matrix (samples kept, n) per axis."""

    matrices: tuple[Constant, ...]

    @classmethod
    def of(cls, spectra: list[NDArray[np.float64]], samples: list[NDArray[np.intp]], dtype: np.dtype[Any]) -> Self:
        """Make the circular convolution with a spectrum (n,) and the choice of samples one matrix, for each axis."""
        kernels = [np.fft.ifft(spectrum).real.astype(dtype) for spectrum in spectra]
        backwards = [np.concatenate([k[::-1], k[::-1]]) for k in kernels]  # row o starts where k[samples[o]] is
        rows = [
            sliding_window_view(b, len(b) // 2)[(len(b) // 2 - 1 - s) % (len(b) // 2)]
            for b, s in zip(backwards, samples, strict=True)
        ]
        return cls(tuple(Constant(matrix) for matrix in rows))

    @property
    def kept(self) -> Shape:
        """How many samples are kept, per axis."""
        return tuple(len(matrix.host) for matrix in self.matrices)

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The arrays that say what the low-pass does."""
        return self.matrices


@dataclass(frozen=True, eq=False)
class LineLowpass:
    """A low-pass of lines for which a matrix would be large, applied in Fourier.

    Parameters
    ----------
    phi
        The half spectrum as far as it is not negligible.
    n
        Points of the line.
    fine
        Points of the smoothed line: as many as the half spectrum needs.
    samples
        Which of these are kept.
    """

    phi: Constant
    n: int
    fine: int
    samples: slice

    @classmethod
    def of(cls, spectrum: NDArray[np.float64], step: int, first: int, n_out: int, dtype: np.dtype[Any]) -> Self:
        """Keep ``n_out`` of the samples that are multiples of ``step``, from the one numbered ``first`` on."""
        n = len(spectrum)
        half = spectrum[: n // 2 + 1]
        phi = half[: 1 + np.flatnonzero(abs(half) > 0.01 * np.finfo(dtype).eps * half[0])[-1]]
        factor = 1  # of oversampling, until no frequency of φ is folded
        while factor < step and 2 * len(phi) > factor * (n // step):
            factor *= 2
        samples = slice(first * factor, (first + n_out) * factor, factor)
        return cls(Constant(phi.astype(dtype)), n, factor * (n // step), samples)

    @property
    def kept(self) -> Shape:
        """How many samples are kept."""
        return (len(range(self.fine)[self.samples]),)

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The array that says what the low-pass does."""
        return (self.phi,)


@dataclass(frozen=True, eq=False)
class Sampling:
    """The choice of samples of a line of ``n`` points, without a low-pass."""

    n: int
    samples: slice

    @property
    def kept(self) -> Shape:
        """How many samples are kept."""
        return (len(range(self.n)[self.samples]),)

    @property
    def constants(self) -> tuple[Constant, ...]:
        """No array: samples are taken as they are."""
        return ()
