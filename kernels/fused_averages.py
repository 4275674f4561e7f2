"""How the compiled engine averages lines: by taps, by the moments of blocks of points, or by a few frequencies."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.filterbank import LineLowpass, Sampling
from scattercube.kernels.primitives import Smoothing

DROP = {"float32": 5e-8, "float64": 1e-14}
"""Of a low-pass's sum of magnitudes, what is left out at its ends."""

MOST_MOMENTS = 8
_TONES_NBYTES = 1 << 18  # of a table that stays in cache beside what it meets


@dataclass(frozen=True, eq=False)
class LineTaps:
    """A low-pass along a line, split where it is wide: into moments of blocks of points, and what these add up to.

    Parameters
    ----------
    basis
        (moments, block): polynomials on a block of points; without rows where taps themselves are cheaper, or
        polynomials not exact enough.
    kernel
        (n,), or of the moments of every block (n/block × moments,).
    samples
        Where the kernel stands for each output, counted in points or in moments.
    cost
        Operations per vector of points.
    """

    basis: NDArray[Any]
    kernel: NDArray[Any]
    samples: NDArray[np.intp]
    cost: float


def line_taps(
    low: LineLowpass | Sampling, dtype: np.dtype[Any], width: int, vector: int, row: int, most_moments: int
) -> LineTaps:
    """Find the cheapest way to average a line.

    Parameters
    ----------
    low
        The low-pass, or the choice of samples.
    dtype
        float32 or float64.
    width
        Vectors of points that the engine smooths together.
    vector
        Points in a vector.
    row
        Points in a row of the line's grid.
    most_moments
        How many moments the engine can take.
    """
    if isinstance(low, Sampling):
        exact = np.zeros(low.n)
        exact[0] = 1
        samples = np.ascontiguousarray(np.arange(low.n)[low.samples])
    else:
        exact = np.fft.irfft(low.phi.host.astype(np.float64), low.n)
        # The rounding of φ̂ is left far out, where φ is nothing.
        exact[abs(exact) <= np.finfo(dtype).eps / 8 * exact.max()] = 0
        samples = np.arange(low.fine)[low.samples] * (low.n // low.fine)
    step = int(samples[1] - samples[0]) if len(samples) > 1 else low.n
    reach = np.count_nonzero(abs(exact) > DROP[dtype.name] * abs(exact).max())
    taps = (reach + width * vector) / step * (1 + 12 / width)  # and the way to them
    best = LineTaps(np.zeros((0, vector), dtype), exact.astype(dtype), samples, taps)
    for moments in (4, MOST_MOMENTS):
        for vectors in (8, 4, 2, 1):
            block = vectors * vector
            cost = moments * (1 + reach / (block * step)) + 8 * vector / step  # moments, then their taps
            fits = vectors <= width and moments <= min(block, most_moments)
            if not fits or cost >= best.cost or any(k % block for k in (step, *samples[:1], row)):
                continue
            basis = np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, block), moments - 1))[0]
            blocks = exact.reshape(-1, block)
            kernel = blocks @ basis
            if abs(blocks - kernel @ basis.T).sum() <= 2 * DROP[dtype.name] * abs(exact).sum():
                places = samples // block * moments
                best = LineTaps(np.ascontiguousarray(basis.T, dtype), kernel.ravel().astype(dtype), places, cost)
    return best


def line_tones(low: Smoothing, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return the averages as sums over the frequencies that φ lets through, where these are few.

    Output o is the sum over k of real[o, k]·Re X[k] + imag[o, k]·Im X[k].
    """
    if not isinstance(low, LineLowpass):
        return None
    samples, bins = np.arange(low.fine)[low.samples], np.arange(len(low.phi.host))
    if 2 * len(samples) * len(bins) * dtype.itemsize > _TONES_NBYTES:
        return None
    weights = np.where(2 * bins % low.n, 2, 1) * low.phi.host.astype(np.float64)  # a real signal's other half
    angles = 2 * math.pi / low.fine * (np.multiply.outer(samples, bins) % low.fine)
    return (weights * np.cos(angles)).astype(dtype), (-weights * np.sin(angles)).astype(dtype)
