"""Solid harmonic wavelets of volumes: their spectra, and what a volume responds to all those of a degree.

Three facts carry the computation. The 2l + 1 wavelets of a degree may be mixed by any unitary matrix: the *real* solid
harmonics have real responses, and half spectra suffice. Each is a polynomial in ω_z and |ω|², times the real or the
imaginary part of (ω_x + iω_y)^m: two wavelets share their transform along z. And Gaussians end: frequencies that a
wavelet does not reach are neither stored nor transformed, axis by axis.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.cascade import TRUNCATION
from scattercube.kernels.device import Array, Constant, Device, block_nbytes, device_of, fft, namespace

Shape = tuple[int, ...]
Grid = NDArray[np.float64]

# Multiplications of a matrix product below which it is faster than Fourier transforms of its rows, and below which no
# BLAS starts threads of its own.
_PRODUCT_SIZE = 1 << 18


@dataclass(frozen=True)
class Band:
    """The low frequencies of real volumes: per axis the bins 0 … k and −k … −1; on the last axis the former alone.

    Parameters
    ----------
    shape
        Points (D, H, W) of the volume.
    kept
        Bins held per axis: all of them where little would be gained by less.
    """

    shape: Shape
    kept: Shape

    @classmethod
    def of(cls, shape: Shape, reach: float) -> Self:
        """Hold the frequencies up to ``reach``, in radians per voxel."""
        spans = [2 * int(reach * n / (2 * math.pi)) + 1 for n in shape]
        kept = [n if 4 * span > 3 * n else span for span, n in zip(spans, shape, strict=True)]
        return cls(shape, (*kept[:2], kept[2] // 2 + 1))

    def frequencies(self) -> tuple[Grid, Grid, Grid]:
        """The angular frequencies ω_z, ω_y, ω_x of the bins, in radians per voxel, shaped to broadcast."""
        z, y = (angles(n, kept) for n, kept in zip(self.shape[:2], self.kept[:2], strict=True))
        return z[:, None, None], y[:, None], angles(self.shape[2], 2 * self.kept[2] - 1)[: self.kept[2]]

    def holds_nyquist(self, axis: int) -> bool:
        """Say whether an axis is even and all its bins are held."""
        n = self.shape[axis]
        return n % 2 == 0 and self.kept[axis] == (n if axis < 2 else n // 2 + 1)

    def spectrum(self, x: Array) -> Array:
        """Transform volumes (…, D, H, W): the bins (…, *kept)."""
        return self.along_z(self.of_planes(x))

    def of_planes(self, x: Array) -> Array:
        """Transform planes (…, H, W) along their axes alone."""
        F = fft(namespace(x))
        return _crop(F.fft(F.rfft(x, axis=-1)[..., : self.kept[2]], axis=-2), -2, self.kept[1])

    def along_z(self, X: Array) -> Array:
        """Transform spectra of planes (…, D, *kept[1:]) along the first axis of a volume."""
        return _crop(fft(namespace(X)).fft(X, axis=-3, overwrite_x=True), -3, self.kept[0])

    def cut(self, X: Array) -> Array:
        """Return the bins of this band from those of a wider one."""
        return _crop(_crop(X, -3, self.kept[0]), -2, self.kept[1])[..., : self.kept[2]]

    def back_along_z(self, X: Array, weights: Array | None = None) -> Array:
        """Transform weighted bins back along the first axis: spectra of planes (…, D, *kept[1:])."""
        return fft(namespace(X)).ifft(_spread(X, weights, -3, self.shape[0]), axis=-3, overwrite_x=True)

    def to_planes(self, X: Array, weights: Array | None = None) -> Array:
        """Transform weighted spectra of planes back: real planes (…, H, W)."""
        F, width = fft(namespace(X)), self.shape[2]
        X = F.ifft(_spread(X, weights, -2, self.shape[1]), axis=-2, overwrite_x=True)
        if 2 * math.prod(X.shape[-2:]) * width > _PRODUCT_SIZE:
            return F.irfft(X, n=width, axis=-1, overwrite_x=True)
        xp = namespace(X)
        pairs = xp.ascontiguousarray(X).view(X.real.dtype)  # a transform may leave its axes in another order
        planes: Array = pairs @ _waves(X.shape[-1], width, X.real.dtype).on(xp)
        return planes

    def at_nyquist(self, X: Array, axis: int) -> Array:
        """Return the bins (…, ·, ·), of either sign, of the plane at an axis's Nyquist frequency."""
        plane = X[_at(axis - 3, self.shape[axis] // 2)]
        if axis == 2:
            return plane
        F = fft(namespace(X))
        return F.fft2(F.irfft2(plane, s=(self.shape[1 - axis], self.shape[2])))


def step_nbytes(device: Device) -> int:
    """Return how large the planes that are transformed at once may be: what a step reads and writes stays in cache."""
    return block_nbytes(device) // 16


def planes_at_once(n_samples: int, shape: Shape, dtype: np.dtype[Any], device: Device) -> int:
    """Return how many planes of volumes are transformed at once, so that all steps are about equal."""
    most = max(1, step_nbytes(device) // (n_samples * shape[1] * shape[2] * dtype.itemsize))
    return -(-shape[0] // -(-shape[0] // most))


def angles(n: int, kept: int) -> Grid:
    """Return the lowest of n frequencies in the order of an FFT, in radians; −π at Nyquist."""
    bins = np.arange(kept)
    return 2 * math.pi / n * (bins - kept * (2 * bins >= kept))


@functools.cache
def _waves(kept: int, n: int, dtype: np.dtype[Any]) -> Constant:
    """The transform of a line's lowest bins to n reals: (2 · kept, n), for real and imaginary parts in turn."""
    unit = np.eye(kept)[:, None] * np.array([[1], [1j]])
    return Constant(np.fft.irfft(unit.reshape(2 * kept, kept), n).astype(dtype))


def _at(axis: int, part: slice | int) -> tuple[Any, ...]:
    """Index an axis that is counted from the end."""
    return (..., part, *[slice(None)] * (-1 - axis))


def _crop(X: Array, axis: int, kept: int) -> Array:
    """Keep the lowest frequencies of an axis."""
    n = X.shape[axis]
    if kept == n:
        return X
    ends = [X[_at(axis, part)] for part in (slice(kept - kept // 2), slice(n - kept // 2, n))]
    return namespace(X).concatenate(ends, axis=axis)


def _spread(X: Array, weights: Array | None, axis: int, n: int) -> Array:
    """Return X · weights on n frequencies of an axis, zero at those that X does not hold."""
    kept = X.shape[axis]
    if kept == n:
        return X if weights is None else X * weights
    out = namespace(X).zeros(tuple(n if a == X.ndim + axis else size for a, size in enumerate(X.shape)), X.dtype)
    head, tail = slice(kept - kept // 2), slice(kept - kept // 2, kept)
    for source, target in ((head, head), (tail, slice(n - kept // 2, n))):
        here = _at(axis, source)
        namespace(X).multiply(X[here], 1 if weights is None else weights[here], out=out[_at(axis, target)])
    return out


@dataclass(frozen=True, eq=False)
class Wavelet:
    """One wavelet of a degree: what is its own beside the factor it shares with another.

    Parameters
    ----------
    planar
        Re or Im (ω_x + iω_y)^m on the last two axes of the band, 0 at the Nyquist frequency of an odd axis.
    nyquist
        The wavelet on the planes at these frequencies: (axis, complex spectrum of the plane), each bin once.
    """

    planar: Constant
    nyquist: tuple[tuple[int, Constant], ...]


@dataclass(frozen=True, eq=False)
class Harmonics:
    """The 2l + 1 wavelets of a degree l and a width s: i^l r^l Y_lm exp(−r²/2) in Fourier, r = s|ω|, Y_lm real.

    They have Kymatio's normalisation and are sampled as it does, at frequencies −N/2 ≤ k < N/2 of an axis of N points.
    A wavelet that is odd along an axis of even N cannot be so at k = −N/2: to these frequencies it responds with
    imaginary numbers.

    Parameters
    ----------
    degree
        l.
    band
        The frequencies that are reached.
    axial
        For m = 0 … l, the factor that depends on ω_z and |ω|²: (*kept).
    wavelets
        For each m, one wavelet, or two where m > 0.
    """

    degree: int
    band: Band
    axial: tuple[Constant, ...]
    wavelets: tuple[tuple[Wavelet, ...], ...]

    @classmethod
    def of(cls, degree: int, width: float, shape: Shape, dtype: np.dtype[Any]) -> Self:
        """Sample the wavelets of a width, in voxels, for volumes of a shape."""
        reach = radius(degree, TRUNCATION[dtype.name]) / width
        band = Band.of(shape, reach)
        z, y, x = (width * omega for omega in band.frequencies())
        axial, wavelets = [], []
        for m in range(degree + 1):
            shared, parts = _factors(degree, m, z, y, x)
            pair = []
            for part, planar in enumerate(parts):
                is_odd = (degree - m) % 2, part, (m - part) % 2
                odd = [axis for axis in range(3) if is_odd[axis] and band.holds_nyquist(axis)]
                for axis in odd:
                    (planar if axis else shared)[_at(axis - 3, shape[axis] // 2)] = 0
                planes = [(a, _plane(degree, m, part, a, odd, width, shape)) for a in odd if reach >= math.pi]
                nyquist = tuple((a, Constant(plane.astype(np.result_type(dtype, 1j)))) for a, plane in planes)
                pair.append(Wavelet(Constant(planar.astype(dtype)), nyquist))
            axial.append(Constant(shared.astype(dtype)))
            wavelets.append(tuple(pair))
        return cls(degree, band, tuple(axial), tuple(wavelets))

    def modulus(self, X: Array) -> Array:
        """Return √(Σ_m |x ∗ ψ_m|²), (B, D, H, W), from a spectrum of x (B, …) on this band or a wider one."""
        xp, shape = namespace(X), self.band.shape
        U = xp.zeros((len(X), *shape), X.real.dtype)
        for _, _, planes, parts in self._responses(X, planes_at_once(len(X), shape, U.dtype, device_of(X))):
            for y in parts:
                y *= y
                U[:, planes] += y
        return xp.sqrt(U, out=U)

    def adjoint(self, X: Array, w: Array) -> Array:
        """Return the sum over m of the adjoint of the convolution with ψ_m, applied to w · (x ∗ ψ_m): (B, D, H, W)."""
        xp, band = namespace(X), self.band
        sums = [xp.zeros((len(X), band.shape[0], *band.kept[1:]), X.dtype) for _ in self.axial]
        borders = {axis: xp.zeros_like(border) for axis, border in self._borders(X).items()}
        for m, wavelet, _, parts in self._responses(X, band.shape[0]):
            weighted = [y * w for y in parts]
            sums[m] += band.of_planes(weighted[0]) * wavelet.planar.on(xp)
            for axis, plane in wavelet.nyquist:
                real, imaginary = ((y * _signs(y, band.shape, axis)).sum(axis=axis + 1) for y in weighted)
                borders[axis] += fft(xp).fft2(real + 1j * imaginary) * plane.on(xp).conj()
        total = sum(band.along_z(S) * W.on(xp) for S, W in zip(sums, self.axial, strict=True))
        G = band.to_planes(band.back_along_z(total * -1j if self.degree % 2 else total))
        for axis, border in borders.items():
            G += xp.expand_dims(fft(xp).ifft2(border).real, axis + 1) * _signs(G, band.shape, axis)
        return G

    def _responses(self, X: Array, step: int) -> Iterator[tuple[int, Wavelet, slice, list[Array]]]:
        """Yield m, a wavelet, some planes, and x ∗ ψ there: its real and, if there is one, its imaginary part."""
        xp, band, borders = namespace(X), self.band, self._borders(X)
        X = band.cut(X) * 1j if self.degree % 2 else band.cut(X)
        for m, (W, pair) in enumerate(zip(self.axial, self.wavelets, strict=True)):
            along_z = band.back_along_z(X, W.on(xp))
            for wavelet in pair:
                waves = {axis: fft(xp).ifft2(borders[axis] * plane.on(xp)) for axis, plane in wavelet.nyquist}
                for start in range(0, band.shape[0], step):
                    planes = slice(start, start + step)
                    parts = [band.to_planes(along_z[:, planes], wavelet.planar.on(xp))]
                    if len(waves) > 1:
                        parts[0] += self._sum({axis: wave.real for axis, wave in waves.items()}, planes)
                    if waves:
                        parts.append(self._sum({axis: wave.imag for axis, wave in waves.items()}, planes))
                    yield m, wavelet, planes, parts
            del along_z  # before the next one is made

    def _borders(self, X: Array) -> dict[int, Array]:
        """The spectrum on each plane of Nyquist frequencies that some wavelet sees."""
        axes = {axis for pair in self.wavelets for wavelet in pair for axis, _ in wavelet.nyquist}
        return {axis: self.band.at_nyquist(X, axis) for axis in sorted(axes)}

    def _sum(self, waves: dict[int, Array], planes: slice) -> Array:
        """Add real fields that are constant along an axis but for their alternating sign."""
        total = None
        for axis, wave in waves.items():
            signs = _signs(wave, self.band.shape, axis)
            wave = namespace(wave).expand_dims(wave, axis + 1)
            field = wave[:, planes] * signs if axis else wave * signs[planes]
            total = field if total is None else namespace(wave).add(total, field, out=total)
        return total


def _signs(like: Array, shape: Shape, axis: int) -> Array:
    """The wave (−1)^n along an axis, shaped to broadcast against volumes."""
    signs = 1 - 2 * (namespace(like).arange(shape[axis]) % 2)
    return signs.astype(like.dtype).reshape(-1, *[1] * (2 - axis))


def _factors(degree: int, m: int, z: Grid, y: Grid, x: Grid) -> tuple[Grid, list[Grid]]:
    """Evaluate the wavelets ±m, but for i^l, at s·ω: a factor they share, and one each that is free of z."""
    rho2 = y * y + x * x
    shared = sum(c * rho2**i * z**n for i, (n, c) in enumerate(powers_along_the_pole(degree, m)))
    power = (x + 1j * y) ** m
    return shared * np.exp(-(z * z + rho2) / 2), [power.real, power.imag][: 2 if m else 1]


def powers_along_the_pole(degree: int, m: int) -> list[tuple[int, float]]:
    """Return (n, c) of the terms c z^n ρ^(l − m − n) of r^l Y_lm / ρ^m e^(imφ), from n = l − m down, times a norm.

    Hobson, "The theory of spherical and ellipsoidal harmonics" (1931), section 69, in powers of z and of the distance
    ρ from the pole's axis; real harmonics, of unit norm on the sphere, times Kymatio's c_l (2π)^{3/2}.
    """
    l = degree  # noqa: E741
    if l % 2:
        norm = 1 / (2 ** ((l + 3) / 2) * math.sqrt(math.pi * (2 * l + 1)) * math.factorial((l + 1) // 2))
    else:
        norm = 1 / (2 * math.pi * math.sqrt(l + 0.5) * math.prod(range(l + 1, 0, -2)))
    norm *= (2 * math.pi) ** 1.5 * math.sqrt((2 * l + 1) / (4 * math.pi))
    norm *= math.sqrt((2 if m else 1) * math.factorial(l - m) * math.factorial(l + m))
    factorials = (math.factorial(i) * math.factorial(i + m) * 2 ** (2 * i + m) for i in range((l - m) // 2 + 1))
    exponents = range(l - m, -1, -2)
    return [
        (n, norm * (-1) ** i / (f * math.factorial(n)))
        for i, (n, f) in enumerate(zip(exponents, factorials, strict=True))
    ]


def _plane(
    degree: int, m: int, part: int, axis: int, odd: list[int], width: float, shape: Shape
) -> NDArray[np.complex128]:
    """Sample a wavelet where an axis is at its Nyquist frequency and the odd axes before it are not; divide by N."""
    grids = [angles(n, n) for n in shape]
    grids[axis] = np.array([-math.pi])
    z, y, x = (width * grid.reshape(-1, *[1] * (2 - a)) for a, grid in enumerate(grids))
    shared, parts = _factors(degree, m, z, y, x)
    values = np.asarray(shared * parts[part] * 1j ** (degree % 2) / shape[axis], dtype=np.complex128)
    for before in odd[: odd.index(axis)]:
        values[_at(before - 3, shape[before] // 2)] = 0
    return values.squeeze(axis)


def radius(degree: int, truncation: float) -> float:
    """Return the r beyond which r^l exp(−r²/2) is below a part of its peak, which is at √l."""
    peak = degree * (math.log(degree) - 1) / 2 if degree else 0.0
    r2 = 1.0 + degree
    for _ in range(50):  # a contraction by l/r²
        r2 = degree * math.log(r2) - 2 * (peak + math.log(truncation))
    return math.sqrt(r2)
