"""What joint time–frequency scattering goes through: bands, and what follows each wavelet of the second order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scattercube.kernels.bands import BandBank
from scattercube.kernels.device import Array


@dataclass(frozen=True, eq=False)
class Part:
    """Some bands: |x ∗ ψ1| for some of the wavelets of a scale.

    Parameters
    ----------
    j, filters
        The scale, and which of its wavelets.
    bands
        Their places among all bands.
    spectrum
        (n, bands, signals).
    """

    j: int
    filters: slice
    bands: slice
    spectrum: Array


@dataclass(frozen=True, eq=False)
class Stage:
    """The coefficients to which one wavelet ψ2 leads, or those of the first order.

    Parameters
    ----------
    j, wavelet
        Its scale, and which of the wavelets of that scale it is.
    bank
        The filters across the bands of smaller scale; at the first order, across all.
    rows
        Where their outputs stand.
    """

    j: int
    wavelet: slice
    bank: BandBank
    rows: slice

    def met(self, parts: Sequence[Part]) -> Iterator[Part]:
        """Choose the bands that ψ2 meets."""
        return (part for part in parts if part.j < self.j)
