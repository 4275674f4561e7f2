"""The scattering transform of volumes with solid harmonic wavelets: integrals without position or direction."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import fused_cuda_volumes, fused_volumes
from scattercube.kernels.arguments import Rebuilt, checked, checked_pair, integer, units
from scattercube.kernels.cascade import TRUNCATION
from scattercube.kernels.cuda_units import finite_units
from scattercube.kernels.device import Array, Constant, Device, block_nbytes, device_of, namespace
from scattercube.kernels.harmonics import Band, Harmonics, planes_at_once, radius, step_nbytes
from scattercube.kernels.paths import Paths


class HarmonicScattering3D(Rebuilt):
    """Solid harmonic scattering of volumes (Eickenberg, Exarchakis, Hirn and Mallat, NIPS 2017, section 3).

    ``S(x)`` turns periodic volumes ``(…, D, H, W)`` into coefficients ``(…, n_paths)`` of type ``dtype``, in the
    namespace (NumPy or CuPy) of ``x``: for each power q the sums over all voxels of x^q (|x|^q if q is no integer) and
    of U^q, where

        U1(j1, l) = √(Σ_m |x ∗ ψ_j1,l,m|²),   U2(j1, j2, l) = √(Σ_m |U1(j1, l) ∗ ψ_j2,l,m|²),   j1 < j2,

    and so on, m = −l … l: the degree stays along a path. Axes are z, y, x. Wavelets are r^l exp(−r²/2) times the
    spherical harmonic Y_lm in Fourier, r = σ_0 2^j |ω|, normalised and sampled as Kymatio does. Integers and booleans
    are converted; the input is never modified. Where U is far below its peak there is only rounding, which a power
    below 1 raises.

    Parameters
    ----------
    J
        Scales are j = 0 … J; 0 ≤ J and σ_0 2^J ≤ min(D, H, W).
    shape
        (D, H, W) of the volumes, in voxels.
    L
        Degrees are l = 0 … L; 0 ≤ L.
    sigma_0
        Width of the wavelets' Gaussian in space at j = 0, in voxels, > 0. Below about 2 the finest wavelets reach the
        Nyquist frequency, where the grid's own directions show.
    integral_powers
        The powers q, each > 0.
    max_order
        Largest scattering order, ≥ 0.
    dtype
        ``"float32"`` or ``"float64"``: precision of the arithmetic and of the result.

    Attributes
    ----------
    output_shape
        (n_paths,).
    paths
        The label of each coefficient: first order 0, a row per power; then the scales (j1), (j1, j2), … in this order,
        with all degrees of each, and all powers of each degree. Hence ``S(x)[..., n_powers:]`` reshaped to
        (…, scales, L + 1, n_powers) is Kymatio's array.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    TypeError
        A parameter that counts is not an integer.
    """

    def __init__(
        self,
        J: int,
        shape: tuple[int, int, int],
        L: int = 3,
        sigma_0: float = 1.0,
        integral_powers: Sequence[float] = (0.5, 1.0, 2.0),
        max_order: int = 2,
        dtype: str = "float32",
    ) -> None:
        self.J, self.L, self.max_order = integer("J", J, 0), integer("L", L, 0), integer("max_order", max_order, 0)
        if len(shape) != 3:
            raise ValueError(f"shape={shape!r}: expected (D, H, W)")
        self.shape = tuple(integer("shape", size, 1) for size in shape)
        self.sigma_0, self.integral_powers = float(sigma_0), tuple(float(q) for q in integral_powers)
        if not 0 < self.sigma_0 < math.inf:
            raise ValueError(f"sigma_0={sigma_0!r}: must be a positive number of voxels")
        if not self.integral_powers or not all(0 < q < math.inf for q in self.integral_powers):
            raise ValueError(f"integral_powers={integral_powers!r}: expected positive numbers, at least one")
        if self.max_order and self.sigma_0 * 2**self.J > min(self.shape):
            raise ValueError(
                f"J={self.J} and sigma_0={self.sigma_0:g} need volumes of at least {self.sigma_0 * 2**self.J:g} voxels "
                f"per axis, shape is {self.shape}; lower J or sigma_0"
            )
        if (name := np.dtype(dtype).name) not in TRUNCATION:
            raise ValueError(f'dtype={name!r}: expected "float32" or "float64"')
        self.dtype = np.dtype(name)
        self.halo: int | None = None  # a volume is periodic
        self.paths = self._make_paths()
        self.output_shape = (len(self.paths),)
        self._powers = Constant(self.paths.columns["power"].copy())
        self._widths = [self.sigma_0 * 2**j for j in range(self.J + 1 if self.max_order else 0)]

    def __call__(self, x: Array, threads: int = 1) -> Array:
        """Return the coefficients (…, n_paths) of volumes (…, D, H, W), in the namespace of ``x``.

        With an engine, the bits for a volume depend neither on what else is in the batch nor on ``threads``, how many
        threads work on NumPy arrays; without one, the batch changes them by rounding alone.

        Raises
        ------
        TypeError
            ``x`` is not an array of real numbers.
        ValueError
            The last three axes are not (D, H, W), or a value is not finite.
        """
        xp, device = namespace(x), device_of(x)
        on_device = self._fused_cuda if device == "cuda" else None
        batch = checked(x, self.shape, self.dtype, finite=on_device is None)
        fused, threads = self._fused if device == "cpu" else None, integer("threads", threads, 1)
        out = xp.empty((len(batch), len(self.paths)), self.dtype)
        if on_device:
            batch = batch.astype(self.dtype, copy=False)
            on_device(batch, finite_units(batch, x), out)
            return out.reshape(x.shape[:-3] + self.output_shape)
        at_once = fused.at_once(threads) if fused else self._at_once(device)
        for some in _blocks(batch, at_once):
            volumes = batch[some].astype(self.dtype, copy=False)
            S, unit = xp.empty(out[some].shape), units(volumes)
            if fused:
                fused(volumes, 1 / unit, S, threads)
            else:
                self._scatter(volumes / unit[:, None, None, None], S)
            out[some] = S * unit[:, None] ** self._powers.on(xp)
        return out.reshape(x.shape[:-3] + self.output_shape)

    def adjoint(self, x: Array, g: Array) -> Array:
        """Return the gradient of ⟨S(x), g⟩ with respect to x: (…, D, H, W), for g (…, n_paths).

        The modulus has the gradient y/|y|, and 0 where y = 0.

        Raises
        ------
        TypeError
            ``x`` is not an array of real numbers.
        ValueError
            A shape is not as above, or a value is not finite.
        """
        batch, rows = checked_pair(x, g, self.shape, self.output_shape, self.dtype)
        xp = namespace(x)
        out = xp.empty(batch.shape, self.dtype)
        for some in _blocks(batch, self._at_once(device_of(x))):
            volumes = batch[some].astype(self.dtype, copy=False)
            unit = units(volumes)
            weights = rows[some] * unit[:, None] ** (self._powers.on(xp) - 1)
            volumes = volumes / unit[:, None, None, None]
            out[some] = self._gradient(volumes, weights.astype(self.dtype))
        return out.reshape(x.shape)

    def nbytes(self, batch: int, device: Device = "cpu", threads: int = 1) -> int:
        """Project the peak bytes that ``S(x)`` allocates for ``batch`` volumes of its own dtype, the result included.

        Volumes are taken in blocks, one at a time where they are large, so that beyond the result the peak does not
        grow with the batch. The filters, which stay, and about 64 KiB of bookkeeping are not counted.
        """
        result = batch * len(self.paths) * self.dtype.itemsize
        if device == "cuda" and self._fused_cuda:
            return result + batch * self.dtype.itemsize + self._fused_cuda.nbytes(batch)
        finite = min(batch * self._volume_nbytes(), block_nbytes(device)) // self.dtype.itemsize  # checked first
        if self._fused and device == "cpu":
            n_volumes = min(batch, self._fused.at_once(threads))
            work = self._fused.nbytes(n_volumes, threads) + n_volumes * len(self.paths) * 8
        else:
            work = min(batch, self._at_once(device)) * self._peak(device)
        return max(finite, result + work)

    def foreseen_nbytes(self, batch: int) -> int:
        """Bound `nbytes` on the CPU, with one thread, from the shape alone: no wavelet is made for it."""
        if not fused_volumes.possible(self.shape, self.dtype):
            return self.nbytes(batch)
        result = batch * len(self.paths) * self.dtype.itemsize
        at_once = min(batch, fused_volumes.at_once(self._volume_nbytes(), 1))
        work = fused_volumes.foreseen_nbytes(self.shape, self._widths, self.L, self.max_order, self.dtype, at_once)
        finite = min(batch * self._volume_nbytes(), block_nbytes("cpu")) // self.dtype.itemsize
        return max(finite, result + work + at_once * len(self.paths) * 8)

    @property
    def filter_nbytes(self) -> int:
        """About how many bytes the wavelets take, as the compiled engine reads them or as arrays; known before."""
        itemsize = self.dtype.itemsize
        if fused_volumes.possible(self.shape, self.dtype):
            return fused_volumes.filter_nbytes(self.shape, self._widths, self.L, self.dtype)
        points = sum(math.prod(self._band(j).kept) for j in range(len(self._widths)))
        return points * sum(3 * degree + 2 for degree in range(self.L + 1)) * itemsize

    def _peak(self, device: Device) -> int:
        """The peak of `_scatter` for one volume, its argument included."""
        volume = self._volume_nbytes()
        if not self.max_order:
            return 3 * volume  # x in its unit, |x| and a power of it
        band = self._band(0)
        below = self._nbytes_below((), self._bins_nbytes(*band.kept), device)
        return volume + max(2 * volume, self._spectrum_nbytes(band), below)

    @cached_property
    def _fused(self) -> fused_volumes.Plan | None:
        """What the compiled engine makes of this transform; None where there is no engine for it."""
        return fused_volumes.plan(*self._plan_parameters())

    @cached_property
    def _fused_cuda(self) -> fused_cuda_volumes.Plan | None:
        """What the CUDA engine makes of this transform; None where it does not have the shape."""
        return fused_cuda_volumes.plan(*self._plan_parameters())

    def _plan_parameters(self) -> tuple[Any, ...]:
        rows = {path: int(numbers[0, 0]) for path, numbers in self.paths.rows.items()}
        return self.shape, self._widths, self.L, self.integral_powers, rows, self.dtype

    @cached_property
    def _wavelets(self) -> list[list[Harmonics]]:
        """The wavelets by scale and degree, as all but the compiled engine take them."""
        degrees = range(self.L + 1)
        return [[Harmonics.of(degree, width, self.shape, self.dtype) for degree in degrees] for width in self._widths]

    def _reach(self, j: int) -> float:
        """Up to which frequency wavelets of a scale reach, in radians per voxel."""
        reach: float = radius(self.L, TRUNCATION[self.dtype.name]) / self._widths[j]
        return reach

    def _band(self, j: int) -> Band:
        """The band of the wavelets of a scale and of the largest degree."""
        return Band.of(self.shape, self._reach(j))

    def _volume_nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _bins_nbytes(self, *kept: int) -> int:
        return 2 * self.dtype.itemsize * math.prod(kept)

    def _spectrum_nbytes(self, band: Band) -> int:
        """The peak of `Band.spectrum` for one volume: its lines' spectra, its planes', its own."""
        D, H, W = self.shape
        lines, columns = self._bins_nbytes(D, H, W // 2 + 1), self._bins_nbytes(D, H, band.kept[2])
        planes, all_ = self._bins_nbytes(D, *band.kept[1:]), self._bins_nbytes(*band.kept)
        return max(lines + columns, columns + planes, planes + all_)

    def _nbytes_below(self, scales: tuple[int, ...], X: int, device: Device) -> int:
        """The peak of `_descend` for one volume, its argument of X bytes included."""
        volume, D = self._volume_nbytes(), self.shape[0]
        planes = volume * planes_at_once(1, self.shape, self.dtype, device) // D
        peak = 0
        for j in range(scales[-1] + 1 if scales else 0, self.J + 1):
            band = self._band(j)
            at_nyquist = self.L and self._reach(j) >= math.pi and any(map(band.holds_nyquist, range(3)))
            here = self._bins_nbytes(*band.kept) + self._bins_nbytes(D, *band.kept[1:]) + 3 * planes
            if at_nyquist:  # imaginary parts, and single planes
                here += 3 * planes + 9 * self._bins_nbytes(*sorted(self.shape)[1:])
            peak = max(peak, X + volume + here)
            if self._goes_on((*scales, j)):
                below = self._band(j + 1)
                deeper = self._nbytes_below((*scales, j), self._bins_nbytes(*below.kept), device)
                peak = max(peak, X + volume + self._spectrum_nbytes(below), X + deeper)
        return peak

    @property
    def positions(self) -> tuple[()]:
        """Where outputs lie: all voxels are summed, so that there is no axis behind ``path``."""
        return ()

    @cached_property
    def filter_digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the filters, in single precision, and their bands."""
        digest = hashlib.sha256(repr((self.max_order, self.integral_powers, self.dtype.name)).encode())
        for wavelet in (wavelet for scale in self._wavelets for wavelet in scale):
            digest.update(repr(wavelet.band).encode())
            for weights in (*wavelet.axial, *(part.planar for pair in wavelet.wavelets for part in pair)):
                digest.update(weights.host.astype("<f4").tobytes())
        return digest.hexdigest()[:12]

    def _make_paths(self) -> Paths:
        n_powers = len(self.integral_powers)
        scales = [c for order in range(self.max_order + 1) for c in combinations(range(self.J + 1), order)]
        labels: list[tuple[Any, ...]] = []
        rows: dict[tuple[int, ...], NDArray[np.intp]] = {}
        for path in scales:
            degrees = range(self.L + 1) if path else (-1,)
            first = len(labels)
            labels += [(path, degree, q) for degree in degrees for q in self.integral_powers]
            rows[path] = np.arange(first, len(labels)).reshape(len(degrees), n_powers)
        columns = {
            "order": np.array([len(path) for path, _, _ in labels], dtype=np.int8),
            "l": np.array([degree for _, degree, _ in labels], dtype=np.int8),
            "power": np.array([q for _, _, q in labels]),
        }
        units = {"order": "1", "l": "1", "power": "1"}
        descriptions = {
            "order": "scattering order: the number of wavelets along the path",
            "l": "degree of the solid harmonics along the path, -1 at order 0",
            "power": "power q of the modulus that is summed over all voxels",
        }
        for m in range(1, self.max_order + 1):
            j = np.array([path[m - 1] if len(path) >= m else -1 for path, _, _ in labels], dtype=np.int8)
            columns[f"j{m}"] = j
            columns[f"scale{m}"] = np.where(j < 0, np.nan, self.sigma_0 * 2.0**j)
            units |= {f"j{m}": "1", f"scale{m}": "voxel"}
            descriptions[f"j{m}"] = f"scale index of wavelet {m} of the path"
            descriptions[f"scale{m}"] = f"standard deviation in space of the Gaussian of wavelet {m} of the path"
        return Paths(columns, units, descriptions, rows)

    # --- The cascade ---

    def _at_once(self, device: Device) -> int:
        return max(1, step_nbytes(device) // self._volume_nbytes())

    def _scatter(self, x: Array, out: Array) -> None:
        """Fill the coefficients (B, n_paths) of finite volumes (B, D, H, W) of the right type."""
        S0 = self._integrals(abs(x))
        for i, q in enumerate(self.integral_powers):
            if q % 2 == 1:
                S0[:, i] = (x**q).sum(axis=(1, 2, 3))
        out[:, self._rows((), 0)] = S0
        if self.max_order:
            X = self._wavelets[0][self.L].band.spectrum(x)
            for degree in range(self.L + 1):
                self._descend(X, degree, (), out)

    def _descend(self, X: Array, degree: int, scales: tuple[int, ...], out: Array) -> None:
        """Fill the coefficients of one degree on all paths that go on from here; X is the spectrum of U[scales]."""
        for j in range(scales[-1] + 1 if scales else 0, self.J + 1):
            self._visit(X, degree, (*scales, j), out)

    def _visit(self, X: Array, degree: int, path: tuple[int, ...], out: Array) -> None:
        """Fill the coefficients of a path and of all that begin with it."""
        U = self._wavelets[path[-1]][degree].modulus(X)
        out[:, self._rows(path, degree)] = self._integrals(U)
        if self._goes_on(path):
            X = self._wavelets[path[-1] + 1][degree].band.spectrum(U)
            del U
            self._descend(X, degree, path, out)

    def _rows(self, path: tuple[int, ...], degree: int) -> slice:
        first = int(self.paths.rows[path][degree, 0])
        return slice(first, first + len(self.integral_powers))

    def _goes_on(self, path: tuple[int, ...]) -> bool:
        return len(path) < self.max_order and path[-1] < self.J

    def _integrals(self, U: Array) -> Array:
        """Return the sums over all voxels of U^q for each power, (B, n_powers)."""
        xp, step = namespace(U), planes_at_once(len(U), self.shape, U.dtype, device_of(U))
        sums = xp.zeros((len(U), len(self.integral_powers)))
        for start in range(0, self.shape[0], step):
            planes = U[:, start : start + step]
            for i, q in enumerate(self.integral_powers):
                sums[:, i] += (planes if q == 1 else planes**q).sum(axis=(1, 2, 3))
        return sums

    def _slopes(self, U: Array, g: Array) -> Array:
        """Return the derivative of Σ_q g_q Σ U^q (Σ |U|^q if q is no integer), 0 where infinite; g is (B, n_powers)."""
        xp = namespace(U)
        slopes = xp.zeros_like(U)
        for i, q in enumerate(self.integral_powers):
            slope = U ** (q - 1) if q % 1 == 0 else xp.sign(U) * xp.where(U == 0, 1, abs(U)) ** (q - 1)
            slopes += q * g[:, i, None, None, None] * slope
        return slopes

    def _gradient(self, x: Array, g: Array) -> Array:
        """Return the gradient of ⟨S(x), g⟩ for finite volumes of the right type."""
        G = self._slopes(x, g[:, self._rows((), 0)])
        if self.max_order:
            X = self._wavelets[0][self.L].band.spectrum(x)
            for degree in range(self.L + 1):
                G += self._gradient_through(X, degree, (), g)
        return G

    def _gradient_through(self, X: Array, degree: int, scales: tuple[int, ...], g: Array) -> Array:
        """Return what all paths that go on from here add to the gradient with respect to U[scales]."""
        xp, total = namespace(X), 0
        for j in range(scales[-1] + 1 if scales else 0, self.J + 1):
            path = (*scales, j)
            wavelet = self._wavelets[j][degree]
            U = wavelet.modulus(X)
            slopes = self._slopes(U, g[:, self._rows(path, degree)])
            if self._goes_on(path):
                slopes += self._gradient_through(self._wavelets[j + 1][degree].band.spectrum(U), degree, path, g)
            total += wavelet.adjoint(X, slopes / xp.where(U > 0, U, 1))
        return total


def _blocks(batch: Array, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, len(batch), step))
