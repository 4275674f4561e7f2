"""Filters across bands, the wavelets of a first order by falling frequency, for joint time–frequency scattering.

References
----------
.. [1] J. Andén, V. Lostanlen and S. Mallat, "Joint time–frequency scattering", IEEE TSP 67 (2019).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import fused_bands
from scattercube.kernels.axes import Padding
from scattercube.kernels.cascade import TRUNCATION
from scattercube.kernels.device import Array, Constant, Device, block_nbytes, device_of, namespace
from scattercube.kernels.morlet import SIGMA_0, Morlet1D, gaussian_spectrum, morlet_bank
from scattercube.kernels.paths import Quantity

_SERIAL_PRODUCT = 1 << 18  # multiplications of real matrices up to which OpenBLAS, like others, uses one thread
_EXACT = 1e-15  # of a filter's peak: there are few bands, and what is negligible is dropped where filters are used


@dataclass(frozen=True, eq=False)
class BandWavelet:
    """A filter across bands, and how what it gives is sampled.

    Parameters
    ----------
    xi
        Centre frequency, in cycles per band; its sign is the spin, and 0 the low-pass.
    sigma
        Standard deviation of the Gaussian in Fourier, in cycles per band.
    j
        log2 of the largest subsampling that keeps it.
    step
        Bands from one modulus to the next.
    spacing
        Bands from one output, which is smoothed, to the next.
    called
        The same as the labels have it, which differs from ``spacing`` in the peer's convention alone.
    kernel
        (n_places,) complex: the filter at each distance in bands, on the circle.
    """

    xi: float
    sigma: float
    j: int
    step: int
    spacing: int
    called: int
    kernel: NDArray[np.complex128]

    @property
    def spin(self) -> int:
        """The sign of ``xi``."""
        return (self.xi > 0) - (self.xi < 0)


@dataclass(frozen=True, eq=False)
class BandBank:
    """Filters across some bands with what smooths and samples their moduli, as two matrices.

    Parameters
    ----------
    kernels
        (rows, bands) complex: the convolutions, at the samples that matter.
    smoothing
        (outputs, rows) real: the low-pass from each filter's rows to its outputs; filters follow each other.
    """

    kernels: Constant
    smoothing: Constant

    @property
    def n_bands(self) -> int:
        """How many bands it meets."""
        return len(self.kernels.host.T)

    @property
    def n_outputs(self) -> int:
        """How many outputs all its filters have."""
        return len(self.smoothing.host)

    @cached_property
    def fused(self) -> fused_bands.Plan | None:
        """What the compiled engine does with NumPy arrays; None where there is no engine."""
        return fused_bands.plan(self.kernels.host, self.smoothing.host)

    @cached_property
    def parts(self) -> tuple[Constant, Constant]:
        """The real and the imaginary part of the kernels."""
        kernels = self.kernels.host
        return Constant(np.ascontiguousarray(kernels.real)), Constant(np.ascontiguousarray(kernels.imag))

    @property
    def lanes_in_a_product(self) -> int:
        """How many columns of bands make a product for which no BLAS starts threads of its own."""
        return max(1, _SERIAL_PRODUCT // (len(self.kernels.host) * max(self.n_bands, self.n_outputs)))

    def lanes_at_once(self, cache_nbytes: int) -> int:
        """How many columns of bands meet the kernels at once: as many as stay in cache, in whole products."""
        some = self.lanes_in_a_product
        return max(1, cache_nbytes // (4 * self.kernels.host[:, 0].nbytes) // some) * some

    def nbytes(self, band_nbytes: int, device: Device, threads: int) -> int:
        """Project what `modulus_across` allocates for bands of so many bytes, real ones."""
        if device == "cpu" and self.fused:
            return (2 * self.n_bands + self.n_outputs) * band_nbytes + self.fused.nbytes(threads)
        itemsize = self.smoothing.host.itemsize
        if device == "cuda":  # complex bands, filtered ones and their moduli, smoothed ones beside the result
            n_rows = len(self.kernels.host)
            lanes = min(band_nbytes, block_nbytes(device) // (2 * n_rows))
            return self.n_outputs * (band_nbytes + lanes) + (2 * self.n_bands + 3 * n_rows) * lanes
        lanes = min(band_nbytes, self.lanes_at_once(block_nbytes(device)) * itemsize)
        return self.n_outputs * (band_nbytes + 2 * lanes) + (4 * len(self.kernels.host) + 4 * self.n_bands) * lanes


@dataclass(frozen=True, eq=False)
class Bands:
    """The places of bands and all filters across them. Beyond the last band lie places where nothing sounds.

    Parameters
    ----------
    wavelets
        The low-pass of scale 2^J_fr, the wavelets of spin +1, and their mirror images, of spin −1.
    phi
        (n_places,): the average of scale F, on the circle.
    stride
        Bands between outputs.
    kept
        The places of the ``"joint"`` format's outputs.
    """

    wavelets: tuple[BandWavelet, ...]
    phi: NDArray[np.float64]
    stride: int
    kept: NDArray[np.intp]

    @classmethod
    def of(cls, n_bands: int, J_fr: int, Q_fr: int, F: float, dtype: np.dtype[Any]) -> Self:
        """Lay out ``n_bands`` bands on a circle so large that nothing goes round it."""
        scale, stride = 2**J_fr, 1 << (math.floor(F).bit_length() - 1)
        reach = math.sqrt(-2 * math.log(TRUNCATION[dtype.name])) / (2 * math.pi * SIGMA_0)
        away = math.ceil(reach * (2 * scale + F))  # a filter's reach at both ends, and the average's
        multiple = max(scale, stride)
        n_places = -(-(n_bands + away) // multiple) * multiple
        up = _wavelets(J_fr, Q_fr, n_places)
        down = [np.roll(spectrum[::-1], 1) for _, spectrum in up]
        return cls._of(n_places, n_bands, J_fr, F, stride, (stride, stride), up, down)

    @classmethod
    def peers(cls, n_nominal: int, J_fr: int, Q_fr: int, F: float) -> Self:
        """Lay out bands as Kymatio 0.4 does: on a circle of ``n_nominal`` = (J + 1)·Q1 bands and a margin, F ≤ 2^J_fr.

        Its spin 0 has an output at every stride-th band, but as many as if they lay 2^J_fr apart, and is labelled so.
        """
        scale, stride = 2**J_fr, 1 << (math.floor(F).bit_length() - 1)
        n_places = (n_nominal + math.floor(8 * F)) // scale * scale
        up = _wavelets(J_fr, Q_fr, n_places)
        down = [_peers_mirror(psi, spectrum) for psi, spectrum in up]
        return cls._of(n_places, n_places, J_fr, F, stride, (stride, scale), up, down)

    @classmethod
    def _of(
        cls,
        n_places: int,
        n_kept: int,
        J_fr: int,
        F: float,
        stride: int,
        of_spin_0: tuple[int, int],
        up: list[tuple[Morlet1D, NDArray[np.float64]]],
        down: list[NDArray[np.float64]],
    ) -> Self:
        sigma = SIGMA_0 / 2**J_fr
        low = np.fft.ifft(gaussian_spectrum(sigma, n_places))
        wavelets = [BandWavelet(0.0, sigma, J_fr, stride, *of_spin_0, low)]
        for sign, spectra in ((1, [spectrum for _, spectrum in up]), (-1, down)):
            for (psi, _), spectrum in zip(up, spectra, strict=True):
                step, kernel = min(2**psi.j, stride), np.fft.ifft(spectrum)
                wavelets.append(BandWavelet(sign * psi.xi, psi.sigma, psi.j, step, stride, stride, kernel))
        phi = np.fft.ifft(gaussian_spectrum(SIGMA_0 / F, n_places)).real
        return cls(tuple(wavelets), phi, stride, np.arange(0, n_kept, stride))

    @property
    def rising(self) -> tuple[BandWavelet, ...]:
        """The filters of spin ≥ 0, which suffice for what is real."""
        return tuple(psi for psi in self.wavelets if psi.spin >= 0)

    def bank(self, wavelets: Sequence[BandWavelet], n_bands: int, joint: bool, dtype: np.dtype[Any]) -> BandBank:
        """Sample filters at the first ``n_bands`` bands, with outputs as far as these go or at all that are kept."""
        n_places = len(self.phi)
        kernels, smoothings = [], []
        for psi in wavelets:
            outputs = self.kept if joint else psi.spacing * np.arange(-(-n_bands // psi.called))
            rows = np.arange(0, n_places, psi.step)
            kernel = psi.kernel[(rows[:, None] - np.arange(n_bands)) % n_places]
            distance = (outputs[:, None] - rows) % n_places
            # The low-pass of spin 0 has smoothed already.
            smoothing = psi.step * self.phi[distance] if psi.spin else (distance == 0).astype(np.float64)
            loudest = abs(kernel).max(axis=1) / abs(psi.kernel).max() * smoothing.max(axis=0) / smoothing.max()
            heard = loudest > TRUNCATION[dtype.name]
            kernels.append(kernel[heard])
            smoothings.append(smoothing[:, heard])
        smoothing = np.zeros(np.sum([block.shape for block in smoothings], axis=0), dtype)
        row = column = 0
        for block in smoothings:
            smoothing[row : row + block.shape[0], column : column + block.shape[1]] = block
            row, column = row + block.shape[0], column + block.shape[1]
        complex_dtype = np.result_type(dtype, np.complex64)
        return BandBank(Constant(np.concatenate(kernels).astype(complex_dtype)), Constant(smoothing))


def scale_across(F: float | None, J_fr: int, n_nominal: int, padding: Padding) -> float:
    """Return the scale of the average in bands, of which there are nominally so many, or refuse it."""
    if 2**J_fr > n_nominal:
        remedy = f"the largest possible J_fr is {n_nominal.bit_length() - 1}"
        raise ValueError(f"J_fr={J_fr}: 2^J_fr = {2**J_fr} exceeds (J + 1)·Q1 = {n_nominal} bands; {remedy}")
    if F is None:
        return 1 << J_fr
    if not isinstance(F, int | float | np.integer | np.floating):
        raise TypeError(f"F={F!r}: expected a number of bands")
    most, name = (2**J_fr, '2^J_fr for padding="kymatio"') if padding == "kymatio" else (n_nominal, "(J + 1)·Q1")
    if not 1 <= F <= most:
        raise ValueError(f"F={F}: must be from 1 to {most} bands, {name}")
    return float(F)


def band_labels(wavelets: Sequence[BandWavelet], per_octave: int) -> dict[str, Quantity]:
    """Return the labels of filters across bands, in cycles per octave of so many bands."""
    what = "the wavelet across bands"
    xi, sigma = (per_octave * np.array([getattr(psi, name) for psi in wavelets]) for name in ("xi", "sigma"))
    j, spin = (np.array([getattr(psi, name) for psi in wavelets], dtype=np.int8) for name in ("j", "spin"))
    return {
        "j_fr": Quantity(j, "1", f"log2 of the largest subsampling of {what}"),
        "xi_fr": Quantity(xi, "cycles/octave", f"centre frequency of {what}, its sign the spin"),
        "sigma_fr": Quantity(sigma, "cycles/octave", f"standard deviation of the Gaussian in frequency of {what}"),
        "n_fr": Quantity(np.arange(len(wavelets), dtype=np.int16), "1", f"index of {what} in its bank"),
        "spin": Quantity(spin, "1", "1: from low to high bands, -1: from high to low, 0: mean across bands"),
    }


def modulus_across(Y: Array, bank: BandBank, threads: int = 1) -> Array:
    """Return the smoothed |Y ∗ ψ| of every filter of a bank: (bands, …) → (outputs, …) real."""
    if device_of(Y) == "cpu" and bank.fused:
        return bank.fused(Y, threads)
    xp, lanes = namespace(Y), Y.shape[1:]
    smoothing, Y = bank.smoothing.on(xp), Y.reshape(len(Y), -1)
    Z = xp.empty((len(smoothing), Y.shape[1]), smoothing.dtype)
    if device_of(Y) == "cuda":
        kernels = bank.kernels.on(xp)
        step = max(1, block_nbytes("cuda") // kernels[:, :1].nbytes)
        for start in range(0, Y.shape[1], step):
            part = slice(start, start + step)
            Z[:, part] = smoothing @ abs(kernels @ Y[:, part].astype(kernels.dtype, copy=False))
        return Z.reshape(-1, *lanes)
    for part in _blocks(Y, bank):
        re, im = _filtered(Y[:, part], bank)
        Z[:, part] = _unstacked(smoothing @ xp.sqrt(re * re + im * im), Y[:, part])
    return Z.reshape(-1, *lanes)


def modulus_across_adjoint(Y: Array, bank: BandBank, G: Array) -> Array:
    """Return the adjoint of `modulus_across` at ``Y``: (outputs, …) real → (bands, …) complex."""
    xp, lanes = namespace(Y), Y.shape[1:]
    real, imag = (kernels.on(xp).T for kernels in bank.parts)
    smoothing, Y, G = bank.smoothing.on(xp), Y.reshape(len(Y), -1), G.reshape(len(G), -1)
    total = xp.empty(Y.shape, bank.kernels.host.dtype)
    for part in _blocks(Y, bank):
        re, im = _filtered(Y[:, part], bank)
        modulus = xp.sqrt(re * re + im * im)
        weight = smoothing.T @ _stacked(G[:, part], bank) / xp.where(modulus == 0, 1, modulus)
        re, im = weight * re, weight * im
        total.real[:, part] = _unstacked(real @ re + imag @ im, Y[:, part])
        total.imag[:, part] = _unstacked(real @ im - imag @ re, Y[:, part])
    return total.reshape(-1, *lanes)


def _blocks(Y: Array, bank: BandBank) -> Iterator[slice]:
    step = bank.lanes_at_once(block_nbytes(device_of(Y)))
    return (slice(start, start + step) for start in range(0, Y.shape[1], step))


# Matrices are multiplied as stacks of small real ones, (stack, n, lanes in a product).


def _filtered(Y: Array, bank: BandBank) -> tuple[Array, Array]:
    """The real and the imaginary part of Y ∗ ψ: (bands, lanes) → (stack, rows, lanes in a product)."""
    xp = namespace(Y)
    real, imag = (kernels.on(xp) for kernels in bank.parts)
    x = _stacked(Y.real, bank)
    if not xp.iscomplexobj(Y):
        return real @ x, imag @ x
    y = _stacked(Y.imag, bank)
    return real @ x - imag @ y, real @ y + imag @ x


def _stacked(Y: Array, bank: BandBank) -> Array:
    some = bank.lanes_in_a_product
    n_stack = -(-Y.shape[1] // some)
    stack = namespace(Y).zeros((n_stack, len(Y), some), Y.dtype)
    whole = Y.shape[1] // some
    stack[:whole] = Y[:, : whole * some].reshape(len(Y), whole, some).swapaxes(0, 1)
    if whole < n_stack:
        stack[whole, :, : Y.shape[1] - whole * some] = Y[:, whole * some :]
    return stack


def _unstacked(stack: Array, like: Array) -> Array:
    """Undo `_stacked`, without the zeros that filled the last matrix."""
    return stack.swapaxes(0, 1).reshape(stack.shape[1], -1)[:, : like.shape[1]]


def _wavelets(J_fr: int, Q_fr: int, n_places: int) -> list[tuple[Morlet1D, NDArray[np.float64]]]:
    """The wavelets across bands with their spectra."""
    grid, double = (n_places,), np.dtype(np.float64)
    return [(psi, psi.box(n_places, _EXACT, double).dense(grid)) for psi in morlet_bank(J_fr, Q_fr)]


def _peers_mirror(psi: Morlet1D, spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mirror a wavelet as the peer has it: its sum of aliases ends at the frequency −1, so the tail beyond is lost."""
    n = len(spectrum)
    mirrored = np.roll(spectrum[::-1], 1)
    beyond = np.arange(n + 1, 2 * n)
    mirrored[-beyond % n] -= np.exp(-0.5 * ((beyond / n - psi.xi) / psi.sigma) ** 2)
    mirrored /= abs(np.fft.ifft(mirrored)).sum()
    return mirrored
