"""Filters as Fourier spectra on boxes: the Morlet bank in 2-D, its Gaussian low-pass, and how a filter meets a grid.

A filter of scattering is real in Fourier and negligible outside a box, so a box is what is evaluated. Frequencies are
signed bins of the padded grid: index k of an axis of N points is the angular frequency 2πk/N.

References
----------
.. [1] J. Bruna and S. Mallat, "Invariant scattering convolution networks", IEEE TPAMI 35 (2013): the Morlet wavelet and
   the cascade with its low-pass (section 2).
.. [2] M. Andreux et al., "Kymatio: scattering transforms in Python", JMLR 21 (2020): the constants of the bank.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.device import Constant

Shape = tuple[int, ...]
Slices = tuple[slice, ...]

_CACHE_NBYTES = 1 << 19  # of a core, shared with what is read


# --- Spectra on boxes, in any number of dimensions ---


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


def fold(box: Box, grid: Shape) -> Box:
    """Sum the aliases of a spectrum on a coarser grid, which samples the filter in space. A box that fits is kept."""
    if all(hi - lo <= n for (lo, hi), n in zip(box.spans, grid, strict=True)):
        return box
    folded = np.zeros(grid, box.weights.dtype)
    for source, target in _centred(box.spans, grid):
        folded[target] += box.weights[source]
    return Box(tuple(-(n // 2) for n in grid), folded)


def crop(box: Box, grid: Shape) -> Box:
    """Drop the frequencies beyond a coarser grid's Nyquist border, which leaves tails 1/x in space; `fold` does not."""
    lows = [max(lo, -(n // 2)) for (lo, _), n in zip(box.spans, grid, strict=True)]
    highs = [max(low, min(hi, n - n // 2)) for low, (_, hi), n in zip(lows, box.spans, grid, strict=True)]
    window = tuple(slice(low - o, high - o) for low, high, o in zip(lows, highs, box.origin, strict=True))
    return Box(tuple(lows), box.weights[window])


def _split(lo: int, hi: int, n: int, start: int = 0) -> list[tuple[int, int]]:
    """Cut the indices lo ≤ k < hi wherever k − start is a multiple of n."""
    return list(itertools.pairwise(sorted({lo, hi, *range(lo + (start - lo) % n, hi, n)})))


def _centred(spans: list[tuple[int, int]], grid: Shape) -> Iterator[tuple[Slices, Slices]]:
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
    """Filters that are applied together, arranged by the frequency of ``out`` onto which their aliases fall.

    A grid of N points is N/n blocks of n, and subsampling to n points sums the blocks. Those that no filter touches are
    left out; at every frequency of ``out`` the filters then are one small matrix.

    Parameters
    ----------
    weights
        (out, filters, blocks): the filters' values, real.
    blocks
        Where each block starts on ``grid``, per axis.
    grid
        Points per axis of the spectra that are read.
    out
        Points per axis of the spectra that are written; ``out`` divides ``grid``.
    """

    weights: Constant
    blocks: tuple[Shape, ...]
    grid: Shape
    out: Shape

    @classmethod
    def of(cls, boxes: Sequence[Box], grid: Shape, out: Shape) -> Self:
        """Arrange boxes that fit ``grid``."""
        pieces: dict[Shape, list[tuple[int, Slices, Slices]]] = {}
        for f, box in enumerate(boxes):
            for parts in itertools.product(*(_split(lo, hi, n) for (lo, hi), n in zip(box.spans, out, strict=True))):
                block = tuple((a - a % n) % N for (a, _), n, N in zip(parts, out, grid, strict=True))
                source = tuple(slice(a - o, b - o) for (a, b), o in zip(parts, box.origin, strict=True))
                target = tuple(slice(a % n, a % n + b - a) for (a, b), n in zip(parts, out, strict=True))
                pieces.setdefault(block, []).append((f, source, target))
        blocks = tuple(sorted(pieces))
        weights = np.zeros((*out, len(boxes), len(blocks)), boxes[0].weights.dtype)
        step = max(1, _CACHE_NBYTES // weights[0].nbytes)  # rows that stay in cache while all filters are written
        for start in range(0, out[0], step):
            for b, block in enumerate(blocks):
                for f, source, target in pieces[block]:
                    lo, hi = max(start, target[0].start), min(start + step, target[0].stop)
                    if lo < hi:
                        shift = source[0].start - target[0].start
                        there: tuple[slice | int, ...] = (slice(lo, hi), *target[1:], f, b)
                        weights[there] = boxes[f].weights[(slice(lo + shift, hi + shift), *source[1:])]
        return cls(Constant(weights), blocks, grid, out)


@dataclass(frozen=True, eq=False)
class Lowpass:
    """A separable low-pass that keeps chosen samples: one matrix (samples kept, n) per axis."""

    matrices: tuple[Constant, ...]

    @classmethod
    def of(cls, spectra: list[NDArray[np.float64]], samples: list[NDArray[np.intp]], dtype: np.dtype[Any]) -> Self:
        """Make the circular convolution with a spectrum (n,) and the choice of samples one matrix, for each axis."""
        kernels = [np.fft.ifft(spectrum).real for spectrum in spectra]
        rows = [k[(s[:, None] - np.arange(len(k))) % len(k)] for k, s in zip(kernels, samples, strict=True)]
        return cls(tuple(Constant(matrix.astype(dtype)) for matrix in rows))


# --- Morlet wavelets and the Gaussian ---


@dataclass(frozen=True)
class Morlet:
    """The wavelet ψ(u) = g(u)·(exp(iξ n·u) − K), with n = (cos α, sin α) on (rows, columns) [1]_.

    g is the Gaussian of width σ along n and σ/slant across it, of unit integral; K makes the mean vanish. Its constants
    are those of [2]_.

    Parameters
    ----------
    sigma
        Width of the envelope along the wave vector, in pixels.
    xi
        Centre frequency, in radians per pixel.
    alpha
        Direction of the wave vector, in radians from the row axis towards the column axis.
    slant
        Width along over width across the wave vector.
    """

    sigma: float
    xi: float
    alpha: float
    slant: float

    @classmethod
    def at(cls, j: int, theta: int, L: int) -> Self:
        """Return the wavelet of scale 2^j and of orientation ``theta`` out of ``L``."""
        return cls(0.8 * 2**j, 0.75 * math.pi / 2**j, (int(L - L / 2 - 1) - theta) * math.pi / L, 4 / L)

    def box(self, grid: Shape, truncation: float, dtype: np.dtype[Any]) -> Box:
        """Evaluate the spectrum on a grid, in closed form, where it exceeds ``truncation`` × its peak.

        Sampling in space sums the frequencies ω + 2πm, so what lies beyond the Nyquist border is folded back.
        """
        c, s = math.cos(self.alpha), math.sin(self.alpha)
        # ĝ(ω) = exp(−½ωᵀΣω) and ψ̂(ω) = ĝ(ω)·(tilt(ω) − K), tilt(ω) = ĝ(ω − ξn)/ĝ(ω), a product of one factor per axis.
        along, across = self.sigma**2, (self.sigma / self.slant) ** 2
        yy, xx, yx = along * c * c + across * s * s, along * s * s + across * c * c, (along - across) * c * s
        rise, floor = along * self.xi, math.exp(-0.5 * along * self.xi**2)
        reach, reach_at_zero = (math.sqrt(2 * math.log(max(peak / truncation, 1))) for peak in (1, floor))

        spans: list[tuple[int, int]] = []
        omegas: list[NDArray[np.float64]] = []
        for n, direction, variance in zip(grid, (c, s), (xx, yy), strict=True):
            extent = math.sqrt(variance / (along * across))  # of the ellipse ĝ = exp(−½), along this axis
            centre = self.xi * direction
            low = min(centre - reach * extent, -reach_at_zero * extent)
            high = max(centre + reach * extent, reach_at_zero * extent)
            spans.append((math.floor(low * n / (2 * math.pi)), math.ceil(high * n / (2 * math.pi)) + 1))
            omegas.append(2 * math.pi / n * np.arange(*spans[-1], dtype=np.float64))
        tilts = floor * np.exp(rise * c * omegas[0]), np.exp(rise * s * omegas[1])

        def gaussian(rows: slice, columns: slice) -> NDArray[np.float64]:
            y, x = omegas[0][rows, None], omegas[1][columns]
            exponent = (-yx * y) * x
            exponent -= 0.5 * yy * y * y
            exponent -= 0.5 * xx * x * x
            return np.exp(exponent, out=exponent)

        def tilt(rows: slice, columns: slice) -> NDArray[np.float64]:
            return np.multiply.outer(tilts[0][rows], tilts[1][columns])

        # K from the very samples that fold onto ω = 0: the mean vanishes whatever the truncation.
        zeros = tuple(slice(-lo % n, None, n) for (lo, _), n in zip(spans, grid, strict=True))
        mean = gaussian(*zeros)
        K = np.sum(mean * tilt(*zeros)) / np.sum(mean)

        # An axis that reaches beyond the Nyquist border is held whole, with what lies beyond folded back.
        inside = [-(n // 2) <= lo and hi <= n - n // 2 for (lo, hi), n in zip(spans, grid, strict=True)]
        held = [span if ok else (-(n // 2), n - n // 2) for span, ok, n in zip(spans, inside, grid, strict=True)]
        weights = np.zeros(tuple(hi - lo for lo, hi in held), dtype)
        for (rows, columns), target in _centred(spans, grid):
            top, left = (t.start - n // 2 - lo for t, n, (lo, _) in zip(target, grid, held, strict=True))
            width = columns.stop - columns.start
            step = max(1, 2**15 // width)  # temporaries of a quarter of a megabyte stay in cache
            for start in range(rows.start, rows.stop, step):
                part = slice(start, min(start + step, rows.stop))
                value = tilt(part, columns)
                value -= K
                value *= gaussian(part, columns)
                first = top + start - rows.start
                weights[first : first + len(value), left : left + width] += value
        weights[tuple(-lo for lo, _ in held)] = 0  # exactly, also after rounding
        return Box(tuple(lo for lo, _ in held), weights)


def gaussian_box(sigma: float, n: int) -> Box:
    """Evaluate the spectrum of a sampled Gaussian of unit integral and width ``sigma`` ≥ 0.8 px on n frequencies."""
    omega = 2 * math.pi * (np.arange(-(n // 2), n - n // 2) / n + np.arange(-4, 5)[:, None])
    return Box((-(n // 2),), np.exp(-0.5 * (sigma * omega) ** 2).sum(axis=0))
