"""The scattering transform in 2-D: a cascade of wavelet moduli and averages, of any order."""

import hashlib
import math
import operator
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.device import Array, Constant, Device, block_nbytes, device_of, namespace
from scattercube.kernels.filterbank import Bank, Box, Lowpass, crop, fold
from scattercube.kernels.morlet import Morlet, gaussian_box
from scattercube.kernels.paths import morlet_paths
from scattercube.kernels.primitives import average, scatter_last, spectrum, wavelet_modulus

Padding = Literal["minimal", "support", "kymatio"]

# What a filter is cut at, in Fourier and in space, relative to its peak: the floor of the errors each dtype may show.
_TRUNCATION = {"float32": 1e-6, "float64": 1e-12}


@dataclass(frozen=True)
class _Axis:
    """How one axis is extended and which of its smoothed samples are kept."""

    size: int
    before: int
    padded: int
    stride: int
    first: int
    n_out: int

    @classmethod
    def of(cls, size: int, J: int, padding: Padding, halo: int) -> Self:
        stride = 2**J
        if padding == "support":
            padded = _good_size(halo + size + halo, stride)
            return cls(size, halo, padded, stride, halo // stride, -(-size // stride))
        peer = ((size + stride) // stride + 1) * stride
        padded = peer if padding == "kymatio" else _good_size(peer, stride)
        return cls(size, (peer - size) // 2, padded, stride, 1, size // stride)

    @property
    def positions(self) -> NDArray[np.float64]:
        return self.stride * (self.first + np.arange(self.n_out, dtype=np.float64)) - self.before

    @property
    def reflection(self) -> NDArray[np.intp]:
        """The input index behind each padded one: a reflection that does not repeat the edge, as often as it takes."""
        last = self.size - 1
        index: NDArray[np.intp] = last - abs((np.arange(self.padded) - self.before) % (2 * last) - last)
        return index

    def samples(self, resolution: int) -> NDArray[np.intp]:
        """The kept samples, counted on the padded axis subsampled by 2^resolution."""
        return (self.stride >> resolution) * (self.first + np.arange(self.n_out))


class Scattering2D:
    """Scattering transform of images with Morlet wavelets (Bruna and Mallat, IEEE TPAMI 35, 2013, section 2).

    ``S(x)`` turns images ``(…, H, W)`` into coefficients ``(…, n_paths, h, w)`` of type ``dtype``, in the namespace
    (NumPy or CuPy) of ``x``. Coefficient p of order m is |…||x ∗ ψ1| ∗ ψ2|… ∗ ψm| ∗ φ, sampled every 2^J pixels;
    ``S.paths`` says which wavelets. Images of integers and booleans are converted; the input is never modified.

    Parameters
    ----------
    J
        log2 of the largest scale and of the output's stride, in pixels; 1 ≤ J, 2^J ≤ min(H, W).
    shape
        (H, W) of the images, in pixels.
    L
        Number of orientations in [0°, 180°).
    max_order
        Largest scattering order, ≥ 0.
    padding
        How far images are continued beyond their border, always by reflection. ``"minimal"``: by about 2^J pixels,
        for small samples; floor(M/2^J) outputs per axis. ``"support"``: by the support of the cascade (``halo``), so
        that a tile cut with its halo gives the values of the whole; ceil(M/2^J) outputs, at the pixels 2^J·i.
        ``"kymatio"``: the numbers of Kymatio 0.4, whose coarse filters are cropped in Fourier; for comparisons.
    dtype
        ``"float32"`` or ``"float64"``: precision of the arithmetic and of the result.

    Attributes
    ----------
    output_shape
        (n_paths, h, w).
    paths
        The label of each coefficient.
    halo
        Pixels on each side beyond which nothing reaches a coefficient, a multiple of 2^J. Envelopes are Gaussian and
        their variances add along a path; 1e-6 (float32) or 1e-12 (float64) of the widest path's envelope lies beyond.

    Raises
    ------
    ValueError
        A parameter is out of its range, or 2^J exceeds the image.
    """

    def __init__(
        self,
        J: int,
        shape: tuple[int, int],
        L: int = 8,
        max_order: int = 2,
        padding: Padding = "minimal",
        dtype: str = "float32",
    ) -> None:
        self.J, self.L, self.max_order = _integer("J", J, 1), _integer("L", L, 1), _integer("max_order", max_order, 0)
        self.shape = _shape(shape, self.J)
        if padding not in ("minimal", "support", "kymatio"):
            raise ValueError(f'padding={padding!r}: expected "minimal", "support" or "kymatio"')
        if (name := np.dtype(dtype).name) not in _TRUNCATION:
            raise ValueError(f'dtype={name!r}: expected "float32" or "float64"')
        self.padding: Padding = padding
        self.dtype = np.dtype(name)
        self.halo = self._halo()
        self.paths = morlet_paths(self.J, self.L, self.max_order)
        self._axes = tuple(_Axis.of(size, self.J, padding, self.halo) for size in self.shape)
        self.output_shape = (len(self.paths), self._axes[0].n_out, self._axes[1].n_out)
        self._reflection = tuple(Constant(axis.reflection) for axis in self._axes)
        self._lowpasses = [self._lowpass(resolution) for resolution in range(self.J)]
        self._banks = self._make_banks()

    def __call__(self, x: Array) -> Array:
        """Return the coefficients (…, n_paths, h, w) of images (…, H, W).

        The same call gives the same bits; which other images are in the batch changes an image's by rounding alone.

        Raises
        ------
        TypeError
            ``x`` is not an array of real numbers.
        ValueError
            The last two axes are not (H, W), or a value is not finite.
        """
        xp = namespace(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x has dtype {x.dtype}: expected real numbers")
        if x.shape[-2:] != self.shape:
            raise ValueError(f"x has shape {x.shape}: expected (…, {self.shape[0]}, {self.shape[1]})")
        images = x.reshape(math.prod(x.shape[:-2]), *self.shape)
        out = xp.empty((len(images), *self.output_shape), dtype=self.dtype)
        step = self._images_at_once(device_of(x))
        for start in range(0, len(images), step):
            with np.errstate(over="ignore"):  # what overflows is refused as not finite
                block = images[start : start + step].astype(self.dtype, copy=False)
            if not xp.isfinite(block).all():
                raise ValueError(self._not_finite(x))
            self._scatter(block, out[start : start + step])
        return out.reshape(x.shape[:-2] + self.output_shape)

    @property
    def positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The input row (h,) and the input column (w,), in pixels, at which each output row and column lies."""
        return self._axes[0].positions, self._axes[1].positions

    def psi_hat(self, j: int, theta: int) -> NDArray[np.floating]:
        """Return the spectrum (H', W') of a wavelet on the padded grid, zero frequency first."""
        return self._wavelet(j, theta).dense(self._grid(0))

    def phi_hat(self) -> NDArray[np.float64]:
        """Return the spectrum (H', W') of the low-pass on the padded grid, zero frequency first."""
        rows, columns = self._phi(0)
        return np.multiply.outer(rows, columns)

    def littlewood_paley(self) -> NDArray[np.float64]:
        """Return |φ̂(ω)|² + ½ Σ |ψ̂(ω)|² + |ψ̂(−ω)|², (H', W'): the energy of a real image that the bank keeps at ω."""
        wavelets = np.zeros(self._grid(0))
        for j in range(self.J):
            for theta in range(self.L):
                wavelets += self.psi_hat(j, theta) ** 2
        mirrored = np.roll(wavelets[::-1, ::-1], 1, axis=(0, 1))
        total: NDArray[np.float64] = self.phi_hat() ** 2 + (wavelets + mirrored) / 2
        return total

    @cached_property
    def filter_digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the filters, in single precision, and of the grids they act on.

        Where a processor rounds exponentials differently, a value on the edge of single precision may change them.
        """
        digest = hashlib.sha256(repr((self._axes, self.max_order, self.dtype.name)).encode())
        for key, bank in self._banks.items():
            digest.update(repr((key, bank.blocks)).encode())
            digest.update(bank.weights.host.astype("<f4").tobytes())
        for lowpass in self._lowpasses:
            for matrix in lowpass.matrices:
                digest.update(matrix.host.astype("<f4").tobytes())
        return digest.hexdigest()[:12]

    def nbytes(self, batch: int, device: Device = "cpu") -> int:
        """Project the peak bytes that ``S(x)`` allocates for ``batch`` images of its own dtype, the result included.

        Images are taken in blocks, so that beyond the result the peak does not grow with the batch. The filters, which
        are there before, and about 64 KiB of bookkeeping are not counted.
        """
        n_images = min(batch, self._images_at_once(device))
        spectra = n_images * self._spectrum_nbytes(0)
        below = max(spectra // 2, self._nbytes_below((), n_images, 1, device)) if self.max_order else 0
        return batch * math.prod(self.output_shape) * self.dtype.itemsize + spectra + below

    # --- The filters ---

    def _grid(self, resolution: int) -> tuple[int, ...]:
        """Points per axis of the padded images subsampled by 2^resolution."""
        return tuple(axis.padded >> resolution for axis in self._axes)

    def _amplitude(self) -> float:
        """The peer normalises its Gaussians with 3.1415 for π."""
        return math.pi / 3.1415 if self.padding == "kymatio" else 1.0

    def _wavelet(self, j: int, theta: int, resolution: int = 0) -> Box:
        box = Morlet.at(j, theta, self.L).box(self._grid(0), _TRUNCATION[self.dtype.name], self.dtype)
        if self.padding == "kymatio":
            box.weights[...] *= self._amplitude()
        return self._coarse(box, self._grid(resolution)) if resolution else box

    def _coarse(self, box: Box, grid: tuple[int, ...]) -> Box:
        return crop(box, grid) if self.padding == "kymatio" else fold(box, grid)

    def _phi(self, resolution: int) -> list[NDArray[np.float64]]:
        """The spectrum of the low-pass per axis, on the grid of a resolution."""
        sigma, amplitude = 0.8 * 2.0 ** (self.J - 1), math.sqrt(self._amplitude())
        grid = self._grid(resolution)
        boxes = (gaussian_box(sigma, axis.padded) for axis in self._axes)
        return [amplitude * self._coarse(box, (n,)).dense((n,)) for box, n in zip(boxes, grid, strict=True)]

    def _lowpass(self, resolution: int) -> Lowpass:
        return Lowpass.of(self._phi(resolution), [axis.samples(resolution) for axis in self._axes], self.dtype)

    def _make_banks(self) -> dict[tuple[int, int], Bank]:
        """The wavelets of scale 2^j as they act on images subsampled by 2^r: {(r, j): bank}."""
        banks = {}
        for j in range(self.J if self.max_order else 0):
            for resolution in range(max(j, 1) if self.max_order > 1 else 1):
                boxes = [self._wavelet(j, theta, resolution) for theta in range(self.L)]
                banks[resolution, j] = Bank.of(boxes, self._grid(resolution), self._grid(j))
        return banks

    def _halo(self) -> int:
        stride: int = 2**self.J
        longest = max(1.0, self.L / 4)  # a wavelet's envelope is 1/slant times longer across its wave vector
        widths = [0.8 * 2**j * longest for j in range(self.J)][self.J - min(self.max_order, self.J) :]
        sigma = math.hypot(0.8 * 2 ** (self.J - 1), *widths)
        reach = -NormalDist().inv_cdf(_TRUNCATION[self.dtype.name])
        return stride * math.ceil(reach * sigma / stride)

    # --- The cascade ---

    def _scatter(self, images: Array, out: Array) -> None:
        """Fill the coefficients (images, n_paths, h, w) of a block of finite images of the right type."""
        xp = namespace(images)
        rows, columns = (index.on(xp) for index in self._reflection)
        x = xp.ascontiguousarray(xp.moveaxis(images.take(columns, axis=2).take(rows, axis=1), 0, -1))
        out[:, 0] = xp.moveaxis(average(x, self._lowpasses[0]), -1, 0)
        if self.max_order:
            X = spectrum(x, 2)
            del x
            self._descend(X[:, :, None], (), np.zeros(1, dtype=np.intp), out)

    def _descend(self, X: Array, scales: tuple[int, ...], prefixes: NDArray[np.intp], out: Array) -> None:
        r"""Fill the coefficients of every path that goes on from here.

        ``X`` (\*grid, prefixes, images) holds the spectra of U[path] for paths of these scales (j1, …, jm); a prefix is
        their orientations (θm, …, θ1) as one number in base L.
        """
        n_images = X.shape[-1]
        for j in range(scales[-1] + 1 if scales else 0, self.J):
            bank, lowpass = self._banks[scales[-1] if scales else 0, j], self._lowpasses[j]
            rows = self.paths.rows[(*scales, j)].T.reshape(self.L, -1)
            ends = len(scales) + 1 == self.max_order or j == self.J - 1
            step = self._prefixes_at_once(n_images, j, device_of(X))
            for start in range(0, len(prefixes), step):
                some = prefixes[start : start + step]
                part = X[:, :, start : start + step]
                if ends:
                    S = scatter_last(part, bank, lowpass)
                else:
                    U = wavelet_modulus(part, bank)
                    S = average(U, lowpass)
                out[:, rows[:, some].ravel()] = S.reshape(*S.shape[:2], -1, n_images).transpose(3, 2, 0, 1)
                if not ends:
                    deeper = spectrum(U.reshape(*bank.out, -1, n_images), 2)
                    del U
                    longer = np.arange(self.L)[:, None] * self.L ** len(scales) + some
                    self._descend(deeper, (*scales, j), longer.ravel(), out)

    # --- Blocks: intermediates stay in cache where they can, and memory does not grow with the batch ---

    def _spectrum_nbytes(self, resolution: int) -> int:
        return 2 * self.dtype.itemsize * math.prod(self._grid(resolution))

    def _images_at_once(self, device: Device) -> int:
        return self._prefixes_at_once(1, 0, device)

    def _prefixes_at_once(self, n_images: int, j: int, device: Device) -> int:
        """How many spectra of each image may meet all filters of scale j at once: at least one."""
        return max(1, block_nbytes(device) // (n_images * self.L * self._spectrum_nbytes(j)))

    def _nbytes_below(self, scales: tuple[int, ...], n_images: int, n_prefixes: int, device: Device) -> int:
        """The peak of `_descend` without its argument: the arrays of the largest part, or of what it descends to."""
        peak = 0
        for j in range(scales[-1] + 1 if scales else 0, self.J):
            n_some = min(n_prefixes, self._prefixes_at_once(n_images, j, device))
            n_blocks = len(self._banks[scales[-1] if scales else 0, j].blocks)
            lanes = n_images * n_some * self._spectrum_nbytes(j)
            products, aliases = lanes * self.L, lanes * n_blocks if n_blocks > 1 else 0
            here = products + max(aliases, products // 2)  # a modulus is half a spectrum
            if len(scales) + 1 < self.max_order:
                here = max(here, products + self._nbytes_below((*scales, j), n_images, n_some * self.L, device))
            peak = max(peak, here)
        return peak

    def _not_finite(self, x: Array) -> str:
        xp = namespace(x)
        with np.errstate(over="ignore"):
            bad = ~xp.isfinite(x.astype(self.dtype))
        first = tuple(int(index) for index in xp.argwhere(bad)[0])
        count = f"{int(bad.sum())} of {x.size} values"
        return f"x is not finite in {self.dtype} at {count}, the first at index {first}; mask or fill them"


def _integer(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an integer") from None
    if number < least:
        raise ValueError(f"{name}={number}: must be at least {least}")
    return number


def _shape(shape: tuple[int, int], J: int) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"shape={shape!r}: expected (H, W)")
    H, W = (_integer("shape", size, 1) for size in shape)
    if min(H, W) < 2**J:
        largest = min(H, W).bit_length() - 1
        remedy = f"the largest possible J is {largest}" if largest else "no J fits an image one pixel wide"
        raise ValueError(f"J={J} needs images of at least {2**J} pixels per axis, shape is ({H}, {W}); {remedy}")
    return H, W


def _good_size(least: int, stride: int) -> int:
    """The smallest multiple of the stride, a power of two, that is ≥ least and has no prime factor above 5."""
    count = -(-least // stride)
    while math.prod(p ** _multiplicity(p, count) for p in (2, 3, 5)) != count:
        count += 1
    return count * stride


def _multiplicity(prime: int, number: int) -> int:
    power = 0
    while number % prime ** (power + 1) == 0:
        power += 1
    return power
