"""Morlet wavelets and their Gaussian low-pass, as spectra on boxes.

References
----------
.. [1] J. Bruna and S. Mallat, "Invariant scattering convolution networks", IEEE TPAMI 35 (2013): the Morlet wavelet and
   the cascade with its low-pass (section 2).
.. [2] M. Andreux et al., "Kymatio: scattering transforms in Python", JMLR 21 (2020): the constants of the banks.
.. [3] J. Andén and S. Mallat, "Deep scattering spectrum", IEEE TSP 62 (2014): the constant-Q bank and its linear end.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.filterbank import Box, Shape, Spans, centred, fold, folded_spans

# The 1-D bank of [2]_: at scale 1 the low-pass has this width, in cycles/sample; neighbours meet at √½ of their peaks;
# a wavelet is taken to end five widths above its centre.
SIGMA_0 = 0.1
_MEETING = math.sqrt(0.5)
_ENDS = 5.0
_REACH = 7.5  # standard deviations within which a Gaussian is 1 − 6e-14 of itself


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
        spans = self._unfolded(grid, truncation)
        omegas = [2 * math.pi / n * np.arange(*span, dtype=np.float64) for span, n in zip(spans, grid, strict=True)]
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
        held = self.spans(grid, truncation)
        weights = np.zeros(tuple(hi - lo for lo, hi in held), dtype)
        for (rows, columns), target in centred(spans, grid):
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

    def spans(self, grid: Shape, truncation: float) -> Spans:
        """Return the first index and the one after the last of `box`, per axis."""
        return [
            (lo, hi) if -(n // 2) <= lo and hi <= n - n // 2 else (-(n // 2), n - n // 2)
            for (lo, hi), n in zip(self._unfolded(grid, truncation), grid, strict=True)
        ]

    def _unfolded(self, grid: Shape, truncation: float) -> Spans:
        """The same, as far as the spectrum reaches, beyond the Nyquist border too."""
        directions = math.cos(self.alpha), math.sin(self.alpha)
        along, across = self.sigma**2, (self.sigma / self.slant) ** 2
        floor = math.exp(-0.5 * along * self.xi**2)
        reach, reach_at_zero = (math.sqrt(2 * math.log(max(peak / truncation, 1))) for peak in (1, floor))
        spans: Spans = []
        for n, direction, other in zip(grid, directions, directions[::-1], strict=True):
            variance = along * other * other + across * direction * direction
            extent = math.sqrt(variance / (along * across))  # of the ellipse ĝ = exp(−½), along this axis
            centre = self.xi * direction
            low = min(centre - reach * extent, -reach_at_zero * extent)
            high = max(centre + reach * extent, reach_at_zero * extent)
            spans.append((math.floor(low * n / (2 * math.pi)), math.ceil(high * n / (2 * math.pi)) + 1))
        return spans


def gaussian_box(sigma: float, n: int) -> Box:
    """Evaluate the spectrum of a sampled Gaussian of unit integral and width ``sigma`` ≥ 0.8 px on n frequencies."""
    omega = 2 * math.pi * (np.arange(-(n // 2), n - n // 2) / n + np.arange(-4, 5)[:, None])
    return Box((-(n // 2),), np.exp(-0.5 * (sigma * omega) ** 2).sum(axis=0))


@dataclass(frozen=True)
class Morlet1D:
    """The wavelet ψ(t) = g(t)·(exp(2πiξt) − κ), with κ such that its mean vanishes and of unit L1 norm [2]_.

    Parameters
    ----------
    xi
        Centre frequency, in cycles per sample, > 0.
    sigma
        Standard deviation of the Gaussian ĝ, in cycles per sample.
    j
        log2 of the largest subsampling that keeps ψ.
    n
        Index in its bank.
    """

    xi: float
    sigma: float
    j: int
    n: int

    def box(self, grid: int | Shape, truncation: float, dtype: np.dtype[Any]) -> Box:
        """Evaluate the spectrum on a grid, where it exceeds ``truncation`` × its peak; zero frequency is exactly 0."""
        n_points = grid if isinstance(grid, int) else grid[0]
        xi, width = self.xi * n_points, self.sigma * n_points
        lo, hi = self._unfolded(n_points, truncation)
        k = np.arange(lo, hi, dtype=np.float64)
        wave, bump = np.exp(-0.5 * ((k - xi) / width) ** 2), np.exp(-0.5 * (k / width) ** 2)
        zeros = slice(-lo % n_points, None, n_points)  # what folds onto ω = 0: none where the wavelet ends before it
        if bump[zeros].any():
            wave -= wave[zeros].sum() / bump[zeros].sum() * bump
        box = fold(Box((lo,), wave), (n_points,))
        reach_in_time = math.ceil(_REACH / (2 * math.pi * self.sigma))
        if 2 * reach_in_time < n_points:
            norm = self._norm(reach_in_time)
        else:  # the wavelet meets itself round the circle
            norm = abs(np.fft.ifft(box.dense((n_points,)))).sum()
        weights = (box.weights / norm).astype(dtype)
        weights[-box.origin[0] % n_points :: n_points] = 0  # exactly, also after rounding
        return Box(box.origin, weights)

    def spans(self, grid: Shape, truncation: float) -> Spans:
        """Return the first index and the one after the last of `box`, in a list."""
        return folded_spans([self._unfolded(grid[0], truncation)], grid)

    def _unfolded(self, n_points: int, truncation: float) -> tuple[int, int]:
        """The same, as far as the spectrum reaches."""
        xi, width = self.xi * n_points, self.sigma * n_points
        ratio = xi / width
        # ĝ(ω − ξ) and κĝ(ω) nearly cancel where ξ ≪ σ: their difference then peaks at about ξ/σ.
        reach = math.sqrt(-2 * math.log(truncation * min(1.0, ratio / 2)))
        low = min(xi - reach * width, -width * math.sqrt(max(0.0, reach**2 - ratio**2)))
        return math.floor(low), math.ceil(xi + reach * width) + 1

    def _norm(self, reach: int) -> float:
        """Σ|ψ(t)| over |t| ≤ reach, with Σ g(t) = 1."""
        if self.xi**2 > 50 * self.sigma**2:  # κ < 2e-11
            return 1.0
        t = np.arange(-reach, reach + 1, dtype=np.float64)
        g = np.exp(-0.5 * (2 * math.pi * self.sigma * t) ** 2)
        wave = np.exp(2j * math.pi * self.xi * t)
        norm: float = (g * abs(wave - (g * wave.real).sum() / g.sum())).sum()
        return self.sigma * math.sqrt(2 * math.pi) * norm


def morlet_bank(J: int, Q: int) -> list[Morlet1D]:
    """Return the wavelets of a 1-D bank by falling frequency: Q per octave down to the width 0.1/2^J, then linear [3]_.

    Raises
    ------
    ValueError
        J < 0 or Q < 1.
    """
    if J < 0 or Q < 1:
        raise ValueError(f"J={J}, Q={Q}: a bank needs J ≥ 0 and Q ≥ 1")
    step = 2 ** (1 / Q)
    narrowest = SIGMA_0 / 2**J
    xi = max(1 / (1 + 2 ** (3 / Q)), 0.35)
    sigma = xi * (step - 1) / (step + 1) / math.sqrt(-2 * math.log(_MEETING))
    widths: list[tuple[float, float]] = []
    if sigma <= narrowest:
        xi = sigma
    else:
        widths.append((xi, sigma))
        while sigma > narrowest * step:
            xi, sigma = xi / step, sigma / step
            widths.append((xi, sigma))
    widths += [(xi * (1 - q / Q), narrowest) for q in range(1, Q)]
    return [Morlet1D(xi, sigma, _subsampling(xi, sigma), n) for n, (xi, sigma) in enumerate(widths)]


def _subsampling(xi: float, sigma: float) -> int:
    """log2 of the largest subsampling that leaves a wavelet below the Nyquist border."""
    return math.floor(-math.log2(min(xi + _ENDS * sigma, 0.5))) - 1


def gaussian_spectrum(sigma: float, n_points: int) -> NDArray[np.float64]:
    """Return the spectrum (n_points,) of a sampled Gaussian of unit sum, zero frequency first.

    ``sigma`` is its width in Fourier, in cycles per sample. What lies beyond the Nyquist border is folded back, so the
    Gaussian is positive in time and its sum is its L1 norm.
    """
    reach = math.ceil(9 * sigma * n_points)
    gaussian = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma * n_points)) ** 2)
    spectrum: NDArray[np.float64] = fold(Box((-reach,), gaussian), (n_points,)).dense((n_points,))
    spectrum /= spectrum[0]
    return spectrum
