"""The cascade of wavelet moduli and averages: one loop for every dimension, order and bank, and its adjoint."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels import fused_cpu, fused_cuda, fused_cuda_adjoint, memory, primitives
from scattercube.kernels.arguments import Rebuilt, checked, checked_pair, integer, units
from scattercube.kernels.axes import Axis
from scattercube.kernels.cascade_steps import Rows, Step
from scattercube.kernels.cuda_units import finite_units
from scattercube.kernels.device import Array, Constant, Device, block_nbytes, device_of, namespace
from scattercube.kernels.filterbank import Bank, Box, Shape, Wavelet, fold
from scattercube.kernels.paths import Paths
from scattercube.kernels.primitives import Smoothing

Groups = dict[int, list[Box]]
"""The filters of a bank on the finest grid, by scale j."""

TRUNCATION = {"float32": 1e-6, "float64": 1e-12}
"""What a filter is cut at, in Fourier and in space, relative to its peak: the floor of the errors each dtype shows."""

_ROOT: Rows = np.zeros(1, dtype=np.intp)  # the row of order 0, the prefix of order 1
_LANES = 4  # of a processor's vector: as many lines are transformed at once, however long they are


class Cascade(Rebuilt):
    """The coefficients |…||x ∗ ψ1| ∗ ψ2|… ∗ ψm| ∗ φ of every path of wavelets of rising scale, of any order m.

    Behind a wavelet of scale 2^j one sample in 2^level is kept, level = min(j, the last one that φ has).

    Parameters
    ----------
    axes
        The axes of an input, all of one stride.
    wavelets
        Those of the first order, of the second, …, by scale j; the last ones serve all higher orders.
    n_levels
        Levels at which φ acts.
    paths
        The labels of the output, and its row for every path.
    max_order
        Largest order, ≥ 0.
    dtype
        float32 or float64: precision of the arithmetic and of the result.
    coarse
        How a filter is carried to a coarser grid, ``fold`` or ``crop``.
    global_average
        The output has no axes but ``path``.

    Attributes
    ----------
    shape
        Samples per axis of an input.
    output_shape
        (n_paths, samples kept per axis).
    halo
        Samples on each side beyond which nothing reaches a coefficient, a multiple of the stride: all of the widest
        path's envelope but `TRUNCATION`. Envelopes are Gaussian, and their variances add along a path. None for
        wavelets that decay as a power of the distance.
    widths
        For each order, by scale j, the standard deviation in samples of the widest envelope of its wavelets; the last
        serves all higher orders. None where envelopes are not Gaussian, or nothing is averaged.
    """

    _fourier_scale = 0.0  # of φ, in samples, where it is applied in Fourier, which takes a spectrum

    halo: int | None
    widths: list[dict[int, float]] | None

    def __init__(
        self,
        axes: tuple[Axis, ...],
        wavelets: Sequence[Mapping[int, Sequence[Wavelet]]],
        n_levels: int,
        paths: Paths,
        max_order: int,
        dtype: np.dtype[Any],
        coarse: Callable[[Box, Shape], Box] = fold,
        global_average: bool = False,
    ) -> None:
        self.paths, self.max_order, self.dtype = paths, max_order, dtype
        self.shape = tuple(axis.size for axis in axes)
        self._axes, self._wavelets, self._n_levels, self._coarse = axes, wavelets, n_levels, coarse
        self._kept = (len(paths), *(1 if global_average else axis.n_out for axis in axes))
        self.output_shape: Shape = self._kept[:1] if global_average else self._kept
        self._is_extended = any(axis.padded != axis.size for axis in axes)

    def __call__(self, x: Array, threads: int = 1) -> Array:
        r"""Return the coefficients (…, \*output_shape) of arrays (…, \*shape), in the namespace of ``x``.

        With the compiled engine (NumPy arrays), the bits for an input depend neither on what else is in the batch nor
        on ``threads``, how many of its threads work; without it, the batch changes them by rounding alone.

        Raises
        ------
        TypeError
            ``x`` is not an array of real numbers.
        ValueError
            The last axes are not ``shape``, or a value is not finite.
        """
        on_device = self._fused_cuda if device_of(x) == "cuda" else None
        batch = checked(x, self.shape, self.dtype, finite=on_device is None)
        threads = integer("threads", threads, 1)
        out = namespace(x).empty((len(batch), *self._kept), dtype=self.dtype)
        if device_of(x) == "cpu" and self._fused:
            self._fused(batch, out, threads)
        elif on_device:
            batch = batch.astype(self.dtype, copy=False)
            on_device(batch, finite_units(batch, x), out)
        else:
            for part in self._blocks(batch):
                block = batch[part].astype(self.dtype, copy=False)
                unit = units(block).reshape(-1, *(1 for _ in self.shape))
                self._scatter(block / unit, out[part])
                with np.errstate(over="ignore"):  # as in the compiled engine
                    out[part] *= unit.reshape(-1, *(1 for _ in self._kept))
        return out.reshape(x.shape[: -len(self.shape)] + self.output_shape)

    def adjoint(self, x: Array, g: Array) -> Array:
        r"""Return the gradient of Σ S(x)·g with respect to ``x``: (…, \*shape), (…, \*output_shape) → (…, \*shape).

        |y| has the gradient y/|y|, and 0 where y = 0.

        Raises
        ------
        TypeError
            ``x`` or ``g`` is not an array of real numbers.
        ValueError
            A shape does not fit, or a value is not finite.
        """
        on_device = self._fused_cuda_adjoint if device_of(x) == "cuda" else None
        batch, weights = checked_pair(x, g, self.shape, self.output_shape, self.dtype, finite=on_device is None)
        weights = weights.reshape(len(batch), *self._kept)
        gradient = namespace(x).empty(batch.shape, dtype=self.dtype)
        if on_device:
            batch, weights = (array.astype(self.dtype, copy=False) for array in (batch, weights))
            unit = finite_units(batch, x)
            finite_units(weights, g, "g")
            on_device(batch, unit, weights, gradient)
            return gradient.reshape(x.shape)
        for part in self._blocks(batch):
            images, g = (array[part].astype(self.dtype, copy=False) for array in (batch, weights))
            G = primitives.average_adjoint(g, self._lowpasses[0], _ROOT)
            if self.max_order:
                X = primitives.spectrum(primitives.extend(images, self._indices), len(self.shape))
                G = G + primitives.spectrum_adjoint(self._ascend(X, (), _ROOT, g), len(self.shape))
            gradient[part] = primitives.extend_adjoint(G, self._indices, self.shape)
        return gradient.reshape(x.shape)

    @property
    def positions(self) -> tuple[NDArray[np.float64], ...]:
        """The input sample at which each output lies: an array for each axis behind ``path``."""
        return tuple(axis.positions for axis in self._axes[: len(self.output_shape) - 1])

    def phi_hat(self) -> NDArray[np.float64]:
        """Return the spectrum of the low-pass on the extended grid, zero frequency first."""
        return reduce(np.multiply.outer, self._make_phi(0))

    def littlewood_paley(self, order: int = 1) -> NDArray[np.float64]:
        """Return |φ̂(ω)|² + ½ Σ |ψ̂(ω)|² + |ψ̂(−ω)|²: the energy of a real input that the bank of an order keeps at ω."""
        grid = self._grid(0)
        wavelets = np.zeros(grid)
        for box in (box for boxes in self._groups[self._which(order - 1)].values() for box in boxes):
            wavelets += box.dense(grid) ** 2
        mirrored = np.roll(np.flip(wavelets), 1, axis=tuple(range(len(grid))))
        total: NDArray[np.float64] = self.phi_hat() ** 2 + (wavelets + mirrored) / 2
        return total

    @cached_property
    def filter_digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the filters, in single precision, and of the grids they act on.

        Where a processor rounds exponentials differently, a value on the edge of single precision may change them.
        """
        digest = hashlib.sha256(repr((self._axes, self.max_order, self.dtype.name)).encode())
        for key, bank in self._banks.items():
            for box in bank.boxes:
                digest.update(repr((key, box.origin)).encode())
                digest.update(box.weights.astype("<f4").tobytes())
        for lowpass in self._lowpasses:
            digest.update(repr(lowpass.kept).encode())
            for constant in lowpass.constants:
                digest.update(constant.host.astype("<f4").tobytes())
        return digest.hexdigest()[:12]

    def nbytes(self, batch: int, device: Device = "cpu", threads: int = 1) -> int:
        """Project the peak bytes that ``S(x)`` allocates for ``batch`` inputs of its own dtype, the result included.

        Inputs are taken in blocks, so that beyond the result the peak does not grow with the batch. The filters, which
        stay, and about 64 KiB of bookkeeping are not counted.
        """
        result = batch * math.prod(self._kept) * self.dtype.itemsize
        if device == "cpu" and self._fused:
            return result + self._fused.nbytes(batch, threads)
        if device == "cuda" and self._fused_cuda:
            return result + batch * self.dtype.itemsize + self._fused_cuda.nbytes(batch)
        return result + memory.of_primitives(self, batch, device)

    def foreseen_nbytes(self, batch: int) -> int:
        """Bound `nbytes` on the CPU, with one thread, from the sizes of grids: no filter is made for it."""
        return memory.of_cascade(self, batch)

    @property
    def filter_nbytes(self) -> int:
        """About how many bytes the filters take, which stay: as boxes, and as the compiled engine reads them.

        And the low-passes. It is known before there is one.
        """
        return memory.of_filters(self)

    @cached_property
    def _fused(self) -> fused_cpu.Plan | None:
        """What the compiled engine makes of this cascade; None where there is no engine for it."""
        return fused_cpu.plan(self)

    @cached_property
    def _fused_cuda(self) -> fused_cuda.Plan | None:
        """What the CUDA engine makes of this cascade; None where it does not have one of its grids."""
        return fused_cuda.plan(self)

    @cached_property
    def _fused_cuda_adjoint(self) -> fused_cuda_adjoint.Plan | None:
        """What the CUDA engine makes of the adjoint; None where it does not have one of its grids."""
        return fused_cuda_adjoint.plan(self)

    @property
    def _widest(self) -> int:
        """How many filters of the first order share a scale, at most."""
        return max(map(len, self._wavelets[0].values()), default=1)

    # --- The filters: made when something is transformed, not when it is planned ---

    @abstractmethod
    def _make_groups(self) -> list[Groups]:
        """Evaluate the wavelets on the finest grid."""

    @abstractmethod
    def _make_lowpass(self, level: int) -> Smoothing:
        """Return φ as it acts at a level."""

    @abstractmethod
    def _make_phi(self, level: int) -> tuple[NDArray[np.float64], ...]:
        """Return the spectrum of φ on the grid of a level, per axis."""

    @cached_property
    def _indices(self) -> tuple[Constant, ...]:
        return tuple(Constant(axis.index) for axis in self._axes) if self._is_extended else ()

    @cached_property
    def _groups(self) -> list[Groups]:
        return self._make_groups()

    @cached_property
    def _lowpasses(self) -> list[Smoothing]:
        return [self._make_lowpass(level) for level in range(self._n_levels)]

    @cached_property
    def _banks(self) -> dict[tuple[int, int, int], Bank]:
        """By (which bank, level read, j), the filters of scale 2^j for that level."""
        banks = {}
        for which, level, j in self._wanted():
            grid = self._grid(level)
            boxes = tuple(self._coarse(box, grid) if level else box for box in self._groups[which][j])
            banks[which, level, j] = Bank(boxes, grid, self._grid(self._level(j)))
        return banks

    def _wanted(self) -> list[tuple[int, int, int]]:
        """The keys of the banks, each once."""
        wanted = {
            (self._which(m), level, j): None
            for m in range(self.max_order)
            for j in self._wavelets[self._which(m)]
            for level in ([self._level(i) for i in self._wavelets[self._which(m - 1)] if i < j] if m else [0])
        }
        return list(wanted)

    def _which(self, m: int) -> int:
        """The bank that follows m wavelets."""
        return min(max(m, 0), len(self._wavelets) - 1)

    def _level(self, j: int) -> int:
        return min(j, self._n_levels - 1)

    def _grid(self, level: int) -> Shape:
        """Points per axis of the extended input subsampled by 2^level."""
        return tuple(axis.padded >> level for axis in self._axes)

    def _bank(self, scales: tuple[int, ...]) -> Bank:
        """The filters that end a path of these scales."""
        return self._banks[self._key(scales)]

    def _key(self, scales: tuple[int, ...]) -> tuple[int, int, int]:
        """The key of that bank."""
        level = self._level(scales[-2]) if len(scales) > 1 else 0
        return self._which(len(scales) - 1), level, scales[-1]

    @property
    def _truncation(self) -> float:
        return TRUNCATION[self.dtype.name]

    def _next(self, scales: tuple[int, ...]) -> list[int]:
        """The scales with which a path may go on."""
        if len(scales) == self.max_order:
            return []
        return [j for j in self._wavelets[self._which(len(scales))] if not scales or j > scales[-1]]

    def _n_filters(self, path: tuple[int, ...]) -> int:
        """How many filters end a path of these scales."""
        return len(self._wavelets[self._which(len(path) - 1)][path[-1]])

    # --- The cascade ---

    def _scatter(self, images: Array, out: Array) -> None:
        """Fill the coefficients of a block of finite inputs of the right type."""
        signal = primitives.extend(images, self._indices)
        primitives.average(signal, self._lowpasses[0], out, _ROOT)
        if self.max_order:
            X = primitives.spectrum(signal, len(self.shape))
            del signal
            self._descend(X, (), _ROOT, out)

    def _descend(self, X: Array, scales: tuple[int, ...], prefixes: Rows, out: Array) -> None:
        """Fill the coefficients of every path that goes on from here.

        ``X`` holds the spectra of |…|x ∗ ψ1|… ∗ ψm| for the paths of these scales (j1, …, jm). A prefix is the tuple of
        their filters (nm, …, n1), each counted in its group, as one number.
        """
        for step in self._steps(scales, prefixes, X):
            bank, lowpass = self._bank(step.scales), self._lowpasses[self._level(step.scales[-1])]
            part = primitives.some(X, step.prefixes)
            if step.longer is None:
                primitives.scatter_last(part, bank, step.filters, lowpass, out, step.rows)
            else:
                U = primitives.wavelet_modulus(part, bank, step.filters)
                primitives.average(U, lowpass, out, step.rows)
                deeper = primitives.spectrum(U, len(self.shape))
                del U
                self._descend(deeper, step.scales, step.longer, out)
                del deeper

    def _ascend(self, X: Array, scales: tuple[int, ...], prefixes: Rows, g: Array) -> Array:
        """Return the gradient with respect to the spectra ``X`` of what `_descend` writes, weighted by ``g``."""
        total = namespace(X).zeros_like(X)
        for step in self._steps(scales, prefixes, X):
            bank, lowpass = self._bank(step.scales), self._lowpasses[self._level(step.scales[-1])]
            y = primitives.wavelet(primitives.some(X, step.prefixes), bank, step.filters)
            G = primitives.average_adjoint(g, lowpass, step.rows)
            if step.longer is not None:
                deeper = primitives.spectrum(primitives.longer(abs(y), len(self.shape)), len(self.shape))
                deeper = self._ascend(deeper, step.scales, step.longer, g)
                G = G + primitives.spectrum_adjoint(deeper, len(self.shape))
            G = primitives.modulus_adjoint(y, G.reshape(y.shape))
            primitives.wavelet_adjoint(G, bank, step.filters, primitives.some(total, step.prefixes))
        return total

    def _steps(self, scales: tuple[int, ...], prefixes: Rows, X: Array) -> Iterator[Step]:
        """Yield the steps that go on from here, each of as many filters and prefixes as stay in cache."""
        n_images, device = X.shape[-1], device_of(X)
        for j in self._next(scales):
            path = (*scales, j)
            n_filters = self._n_filters(path)
            rows = self.paths.rows[path].T.reshape(n_filters, -1)  # of every prefix, also of those not in X
            numbers = np.arange(n_filters)[:, None] * rows.shape[1]
            n_some, n_parts = self._at_once(j, n_filters, n_images, device)
            for f in range(0, n_filters, n_some):
                filters = slice(f, min(f + n_some, n_filters))
                for p in range(0, len(prefixes), n_parts):
                    part = slice(p, min(p + n_parts, len(prefixes)))
                    longer = (numbers[filters] + prefixes[part]).ravel() if self._next(path) else None
                    yield Step(path, filters, part, rows[filters][:, prefixes[part]].ravel(), longer)

    # --- Blocks: intermediates stay in cache where they can, and memory does not grow with the batch ---

    def _blocks(self, batch: Array) -> Iterator[slice]:
        n_images = self._images_at_once(device_of(batch))
        return (slice(start, start + n_images) for start in range(0, len(batch), n_images))

    def _signal_nbytes(self, level: int) -> int:
        return self.dtype.itemsize * math.prod(self._grid(level))

    def _images_at_once(self, device: Device) -> int:
        return max(1, block_nbytes(device) // (self._widest * 2 * self._signal_nbytes(0)))

    def _at_once(self, j: int, n_filters: int, n_images: int, device: Device) -> tuple[int, int]:
        """How many filters of scale j, and how many prefixes, may meet at once."""
        lanes = max(_LANES, block_nbytes(device) // (2 * self._signal_nbytes(self._level(j))))
        n_some = max(1, min(n_filters, lanes // n_images))
        return n_some, max(1, lanes // (n_images * n_some))
