"""Tight banks: wavelets and low-pass whose squared spectra sum to one, and the fast wavelet transform they make.

Squared spectra are differences of low-pass windows with Meyer's smooth edges, so that the sums telescope. A window with
its edge at Nyquist of a grid is 1 when it is folded onto that grid, so the wavelets of scale 2^j and above are a tight
bank for signals subsampled by 2^j. No wavelet of scale 2^j is wider than that grid, which holds its energy exactly.

References
----------
.. [1] I. Daubechies, "Ten lectures on wavelets", SIAM (1992), section 4.2: Meyer's wavelets and the polynomial ν.
.. [2] J. Andén and S. Mallat, "Deep scattering spectrum", IEEE TSP 62 (2014): constant-Q banks, their linear end, and
   the Littlewood–Paley sum of real signals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import primitives
from scattercube.kernels.arguments import checked
from scattercube.kernels.cascade import TRUNCATION
from scattercube.kernels.device import Array, namespace
from scattercube.kernels.filterbank import Bank, Box, Shape, Spans

_HALF_POWER = math.sqrt(math.log(2))  # where the squared Gaussian exp(−½x²)² is ½
_STEP_NPOINTS = 1 << 15  # temporaries of a quarter of a megabyte stay in cache


@dataclass(frozen=True)
class Edge:
    """Where a window falls from 1 to 0: over ``cutoff`` ± ``width``, and through ½ at the cutoff."""

    cutoff: float
    width: float

    def window(self, f: NDArray[Any]) -> NDArray[np.float64]:
        """Evaluate cos²(½πν(t)), with ν(t) = t⁴(35 − 84t + 70t² − 20t³) t from 0 to 1 along the edge of |f| [1]_."""
        t = np.clip((abs(f) - self.cutoff) / (2 * self.width) + 0.5, 0, 1)
        nu = t**4 * (35 - t * (84 - t * (70 - t * 20)))
        window: NDArray[np.float64] = np.cos(math.pi / 2 * nu) ** 2
        return window

    def scaled(self, factor: float) -> "Edge":
        """Return the edge with its frequencies multiplied."""
        return Edge(factor * self.cutoff, factor * self.width)


_LOWPASS = Edge(1 / 3, 1 / 6)  # of φ at scale 1, in cycles per sample: it ends at Nyquist


def meyer_spectrum(T: float, n_points: int) -> NDArray[np.float64]:
    """Return the spectrum (n_points,) of the low-pass of scale ``T`` ≥ 1 samples, zero frequency first.

    It is 1 up to 1/(6T) and 0 from 1/(2T) cycles per sample: sampling every ``T`` aliases nothing.
    """
    spectrum: NDArray[np.float64] = np.sqrt(_LOWPASS.scaled(1 / T).window(np.fft.fftfreq(n_points)))
    return spectrum


@dataclass(frozen=True)
class Meyer1D:
    """The analytic wavelet with |ψ̂(f)|² = 2·(outer(f) − inner(f)) at positive frequencies f, in cycles per sample.

    Parameters
    ----------
    outer, inner
        Edges of the windows above and below.
    j
        log2 of the subsampling that it is meant for.
    n
        Index in its bank.
    """

    outer: Edge
    inner: Edge
    j: int
    n: int

    @property
    def xi(self) -> float:
        """Frequency of the peak, or of the middle of a flat one, in cycles per sample."""
        return _peak(self.outer, self.inner)

    @property
    def sigma(self) -> float:
        """Width of the Gaussian with the same half-power band, which lies between the cutoffs, in cycles per sample."""
        return (self.outer.cutoff - self.inner.cutoff) / (2 * _HALF_POWER)

    def box(self, grid: int | Shape, truncation: float, dtype: np.dtype[Any]) -> Box:
        """Evaluate the spectrum on a grid, where it exceeds ``truncation`` × its peak."""
        n_points = grid if isinstance(grid, int) else grid[0]
        ((lo, hi),) = self.spans((n_points,), truncation)
        f = np.arange(lo, hi) / n_points
        return _trimmed(Box((lo,), np.sqrt(2 * (self.outer.window(f) - self.inner.window(f)))), truncation, dtype)

    def spans(self, grid: Shape, truncation: float) -> Spans:
        """Return the first index and the one after the last that `box` has at most, in a list."""
        lo = max(1, math.floor((self.inner.cutoff - self.inner.width) * grid[0]))
        return [(lo, math.ceil((self.outer.cutoff + self.outer.width) * grid[0]) + 1)]


def meyer_bank(J: int, Q: int) -> list[Meyer1D]:
    """Return the wavelets of a 1-D bank by falling frequency.

    Half-power bands lie side by side from Nyquist down to the low-pass of scale 2^J: Q per octave, and linearly spaced
    by 1/2^(J+1) cycles per sample where the octaves end, below 2^⌈log2 Q⌉ such steps [2]_. Q = 1 is Meyer's own [1]_.

    Raises
    ------
    ValueError
        J < 1 or Q < 1.
    """
    if J < 1 or Q < 1:
        raise ValueError(f"J={J}, Q={Q}: a tight bank needs J ≥ 1 and Q ≥ 1")
    # In steps: where the octaves end; in them edges of relative width a touch each other, below those of width ½.
    step, elbow = 2.0 ** -(J + 1), 1 << (Q - 1).bit_length()
    a = (1 - 2 ** (-1 / Q)) / (1 + 2 ** (-1 / Q))
    octaves = [2.0 ** (J - i / Q) for i in range(Q * max(0, J - (Q - 1).bit_length()))]
    linear = range(min(elbow, 2**J), 1, -1)
    edges = [Edge(c, a * c) for c in octaves] + [Edge(m, min(a * m, 0.5) if m == elbow else 0.5) for m in linear]
    scales = [i // Q for i in range(len(octaves))] + [J - (m - 1).bit_length() for m in linear]
    windows = [edge.scaled(step) for edge in edges] + [_LOWPASS.scaled(2 * step)]
    return [Meyer1D(*pair, j, n) for n, (pair, j) in enumerate(zip(pairwise(windows), scales, strict=True))]


@dataclass(frozen=True)
class Meyer2D:
    """The one-sided wavelet with |ψ̂|² = 2·(outer² − inner²)·sector; frequencies in cycles per pixel.

    outer² and inner² are products of one window per axis, so that the low-pass is separable and the corners of the
    spectrum belong to the bank; the sector is a window of the angle to the wave vector (cos α, sin α), rows first.

    Parameters
    ----------
    outer, inner
        Edges of the windows of each axis.
    sector
        Edge of the window of the angle, in radians.
    alpha
        Direction of the wave vector, in radians from the row axis towards the column axis.
    j
        log2 of the subsampling that it is meant for.
    """

    outer: Edge
    inner: Edge
    sector: Edge
    alpha: float
    j: int

    @classmethod
    def at(cls, j: int, theta: int, L: int, J: int) -> Self:
        """Return the wavelet of scale 2^j out of 2^J and of orientation ``theta`` out of ``L``, numbered as Morlet's.

        Raises
        ------
        ValueError
            L < 3: a wavelet's band would be wider than the grid of its scale.
        """
        if L < 3:
            raise ValueError(f"L={L}: a tight bank in 2-D needs L ≥ 3 orientations; its wavelets would alias")
        half = math.pi / (2 * L)
        # A band along an axis reaches 2/3 of its grid there and must end at 1/2 across: a slope of 3/4.
        sector = Edge(half, min(half, math.atan(0.75) - half))
        octave = Edge(1 / 2, 1 / 6)
        inner = octave.scaled(0.5 ** (j + 1)) if j < J - 1 else _LOWPASS.scaled(0.5**J)
        return cls(octave.scaled(0.5**j), inner, sector, (int(L - L / 2 - 1) - theta) * math.pi / L, j)

    @property
    def xi(self) -> float:
        """Frequency of the peak along the wave vector, or of the middle of a flat one, in radians per pixel."""
        return 2 * math.pi * _peak(self.outer, self.inner) / self._nearness

    @property
    def sigma(self) -> float:
        """Width in pixels of the Gaussian whose half-power band is that between the cutoffs, along the wave vector."""
        return _HALF_POWER * self._nearness / (math.pi * (self.outer.cutoff - self.inner.cutoff))

    @property
    def _nearness(self) -> float:
        """Cosine of the angle between the wave vector and the nearer axis."""
        return max(abs(math.cos(self.alpha)), abs(math.sin(self.alpha)))

    def box(self, grid: Shape, truncation: float, dtype: np.dtype[Any]) -> Box:
        """Evaluate the spectrum on a grid, where it exceeds ``truncation`` × its peak."""
        spans = self.spans(grid, truncation)
        f = [np.arange(lo, hi) / n for (lo, hi), n in zip(spans, grid, strict=True)]
        outer, inner = ([edge.window(axis) for axis in f] for edge in (self.outer, self.inner))
        c, s = math.cos(self.alpha), math.sin(self.alpha)
        weights = np.empty((len(f[0]), len(f[1])))
        step = max(1, _STEP_NPOINTS // len(f[1]))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            y, x = f[0][part, None], f[1]
            sector = self.sector.window(np.arctan2(abs(c * x - s * y), c * y + s * x))
            ring = outer[0][part, None] * outer[1] - inner[0][part, None] * inner[1]
            weights[part] = np.sqrt(2 * ring * sector)
        return _trimmed(Box(tuple(lo for lo, _ in spans), weights), truncation, dtype)

    def spans(self, grid: Shape, truncation: float) -> Spans:
        """Return the first index and the one after the last that `box` has at most, per axis."""
        ends = self.outer.cutoff + self.outer.width, self.inner.cutoff - self.inner.width
        return [
            (math.floor(min(e * lo for e in ends) * n), math.ceil(max(e * hi for e in ends) * n) + 1)
            for (lo, hi), n in zip(self._extents(), grid, strict=True)
        ]

    def _extents(self) -> list[tuple[float, float]]:
        """Least and greatest coordinate, per axis, of the sector's part of the square's border max(|y|, |x|) = 1."""
        reach = self.sector.cutoff + self.sector.width
        low, high = self.alpha - reach, self.alpha + reach
        corners = range(math.ceil(low / (math.pi / 4)), math.floor(high / (math.pi / 4)) + 1)
        angles = np.array([low, high, *(corner * math.pi / 4 for corner in corners)])
        border = np.stack([np.cos(angles), np.sin(angles)])
        border /= abs(border).max(axis=0)
        return [(min(points), max(points)) for points in border]


def _peak(outer: Edge, inner: Edge) -> float:
    """The middle of where the outer window is still 1 and the inner one is 0 already."""
    return (outer.cutoff - outer.width + inner.cutoff + inner.width) / 2


def _trimmed(box: Box, truncation: float, dtype: np.dtype[Any]) -> Box:
    """Cut off the margins that ``truncation`` × √2, the peak, exceeds; a wavelet that falls between bins is one 0."""
    there = box.weights > truncation * math.sqrt(2)
    kept = [there] if there.ndim == 1 else [there.any(axis=1), there.any(axis=0)]
    spans = [(k[0], k[-1] + 1) if len(k := np.flatnonzero(line)) else (0, 1) for line in kept]
    origin = tuple(o + int(lo) for o, (lo, _) in zip(box.origin, spans, strict=True))
    return Box(origin, box.weights[tuple(slice(lo, hi) for lo, hi in spans)].astype(dtype))


class TightFrame:
    """Fast wavelet transform of periodic real signals (1-D) and images (2-D) with a tight bank.

    Coefficients are √(2^(j·d))·(x ∗ ψ)(2^j·u), d the number of dimensions: their energies sum to that of x, and the
    transform's adjoint is its inverse.

    Parameters
    ----------
    J
        log2 of the largest scale, in samples, ≥ 1.
    shape
        Points per axis, (N,) or (H, W), multiples of 2^J.
    Q
        Wavelets per octave, in 1-D.
    L
        Orientations in [0°, 180°), in 2-D.
    dtype
        ``"float32"`` or ``"float64"``: precision of the arithmetic.

    Attributes
    ----------
    psi
        The wavelets of each scale: ``psi[j]`` is a list.

    Raises
    ------
    ValueError
        A parameter is out of its range, or a size is not a multiple of 2^J.
    """

    def __init__(self, J: int, shape: Shape, Q: int = 1, L: int = 8, dtype: str = "float32") -> None:
        if len(shape) not in (1, 2):
            raise ValueError(f"shape={shape}: expected (N,) or (H, W)")
        if J < 1:
            raise ValueError(f"J={J}: a tight bank needs J ≥ 1")
        if any(n < 1 or n % 2**J for n in shape):
            raise ValueError(f"shape={shape}: with J={J} every size must be a multiple of {2**J}; pad or crop it")
        if (name := np.dtype(dtype).name) not in TRUNCATION:
            raise ValueError(f'dtype={name!r}: expected "float32" or "float64"')
        self.J, self.shape, self.dtype = J, shape, np.dtype(name)
        self.psi: list[list[Meyer1D]] | list[list[Meyer2D]]
        if len(shape) == 1:
            self.psi = [list(group) for _, group in groupby(meyer_bank(J, Q), lambda psi: psi.j)]
        else:
            self.psi = [[Meyer2D.at(j, theta, L, J) for theta in range(L)] for j in range(J)]
        self._banks = [Bank(self._boxes(j), shape, tuple(n >> j for n in shape)) for j in range(J + 1)]

    def analyse(self, x: Array) -> tuple[Array, list[Array]]:
        """Return the low-pass coefficients and those of each scale's wavelets.

        Parameters
        ----------
        x
            (…, *shape), real.

        Returns
        -------
        low
            (…, *shape/2^J), real.
        details
            For each j, (…, wavelets, *shape/2^j), complex.

        Raises
        ------
        TypeError
            ``x`` is not an array of real numbers.
        ValueError
            The last axes are not ``shape``, or a value is not finite.
        """
        batch = primitives.extend(checked(x, self.shape, self.dtype).astype(self.dtype, copy=False), ())
        X = primitives.spectrum(batch, len(self.shape))
        lead = x.shape[: x.ndim - len(self.shape)]
        *details, low = (self._coefficients(X, bank, lead) for bank in self._banks)
        return low.reshape(lead + self._banks[-1].out).real, details

    def reconstruct(self, low: Array, details: Sequence[Array]) -> Array:
        """Return the signal (…, *shape) whose coefficients `analyse` returns; for any others, the adjoint's."""
        xp, nd = namespace(low), len(self.shape)
        lead = low.shape[: low.ndim - nd]
        X = xp.zeros((*self.shape, 1, math.prod(lead)), dtype=np.result_type(self.dtype, np.complex64))
        for coefficients, bank in zip([*details, xp.expand_dims(low, -nd - 1)], self._banks, strict=True):
            G = coefficients.reshape(-1, len(bank), 1, *bank.out).astype(X.dtype) * self._amplitude(bank)
            primitives.wavelet_adjoint(xp.moveaxis(G, (0, 1, 2), (-1, -3, -2)), bank, primitives.ALL, X)
        x = primitives.spectrum_adjoint(X, nd)
        return primitives.extend_adjoint(x, (), self.shape).reshape(lead + self.shape)

    def littlewood_paley(self) -> NDArray[np.float64]:
        """Return |φ̂(ω)|² + ½ Σ |ψ̂(ω)|² + |ψ̂(−ω)|² on the grid, zero frequency first: 1 everywhere [2]_."""
        squares = [box.dense(self.shape).astype(np.float64) ** 2 for bank in self._banks for box in bank.boxes]
        psi = np.sum(squares[:-1], axis=0)
        total: NDArray[np.float64] = squares[-1] + (psi + np.roll(np.flip(psi), 1, axis=range(psi.ndim))) / 2
        return total

    def _boxes(self, j: int) -> tuple[Box, ...]:
        """The wavelets of scale 2^j, or for j = J the low-pass."""
        if j < self.J:
            return tuple(psi.box(self.shape, TRUNCATION[self.dtype.name], self.dtype) for psi in self.psi[j])
        reaches = [((n >> j) - 1) // 2 for n in self.shape]
        phis = [meyer_spectrum(2**j, n)[np.arange(-r, r + 1)] for n, r in zip(self.shape, reaches, strict=True)]
        return (Box(tuple(-r for r in reaches), reduce(np.multiply.outer, phis).astype(self.dtype)),)

    def _amplitude(self, bank: Bank) -> float:
        return math.sqrt(math.prod(self.shape) / math.prod(bank.out))

    def _coefficients(self, X: Array, bank: Bank, lead: Shape) -> Array:
        """The coefficients (*lead, filters, *out) of spectra (*shape, 1, prod(lead))."""
        y = self._amplitude(bank) * primitives.wavelet(X, bank)[..., 0, :]
        return namespace(X).moveaxis(y, (-1, -2), (0, 1)).reshape((*lead, len(bank), *bank.out))
