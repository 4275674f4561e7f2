"""Solid harmonic scattering as the compiled CPU engine runs it: everything between two spectra of a volume at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.cascade import TRUNCATION
from scattercube.kernels.engine.library import Engine, active_engine
from scattercube.kernels.filterbank import Shape
from scattercube.kernels.fused_tables import POINTS, ROUNDING_NBYTES
from scattercube.kernels.harmonics import angles, powers_along_the_pole, radius

_ALIGNMENT = 64
_SPECTRA_NBYTES = 1 << 22  # of the volumes that are taken at once


def plan(
    shape: Shape, widths: Sequence[float], L: int, powers: Sequence[float], rows: dict[Shape, int], dtype: np.dtype[Any]
) -> "Plan | None":
    """Return the plan of a transform; None where no engine is at hand, or none for axes of such a length.

    Parameters
    ----------
    shape
        (D, H, W) of the volumes.
    widths
        Of the wavelets' Gaussians, in voxels, by scale.
    L
        The largest degree.
    powers
        Of the moduli that are summed.
    rows
        The row of degree 0 and of the first power for each path of scales; other degrees and powers follow.
    dtype
        float32 or float64.
    """
    return Plan(shape, widths, L, powers, rows, dtype) if possible(shape, dtype) else None


def possible(shape: Shape, dtype: np.dtype[Any]) -> bool:
    """Tell whether an engine is at hand that transforms axes of these lengths."""
    return active_engine() != "portable" and all(map(Engine(dtype).possible, shape))


def at_once(volume_nbytes: int, threads: int) -> int:
    """Return how many volumes to take at once, so that threads have work and spectra stay in cache."""
    return max(threads, _SPECTRA_NBYTES // volume_nbytes)


def filter_nbytes(shape: Shape, widths: Sequence[float], L: int, dtype: np.dtype[Any]) -> int:
    """Return the bytes of the tables of all scales and degrees, and of what the last one to be made takes meanwhile."""
    planes = [[_depth(shape, degree, width, dtype) * shape[1] for degree in range(L + 1)] for width in widths]
    tables = sum((2 * degree + 2) * n for of in planes for degree, n in enumerate(of)) * dtype.itemsize
    return tables + max((16 * (L + 4) * max(of) for of in planes), default=0)


def foreseen_nbytes(
    shape: Shape, widths: Sequence[float], L: int, max_order: int, dtype: np.dtype[Any], batch: int
) -> int:
    """Return `Plan.nbytes` in one thread, counted as ``Solid`` in volumes.cpp does, before anything is planned."""
    D, H, W = shape
    depths = [[_depth(shape, degree, width, dtype) for degree in range(L + 1)] for width in widths]
    V, itemsize = Engine(dtype).lanes(POINTS), dtype.itemsize
    rows, columns = -(-H // V), -(-W // V)
    spectra = [2 * V * itemsize * of[L] * rows * W for of in depths]
    depth = max((max(of) for of in depths), default=0)
    planes = max(((degree + 1) * n for of in depths for degree, n in enumerate(of)), default=0)
    vectors = 2 * (columns * planes * H + 2 * depth * (H | 1) + max(shape)) + H * D + 2 * planes * rows
    deeper = sum(spectra[1:max_order])  # of a path that goes on to every next scale
    nbytes: int = batch * sum(spectra[:1]) + vectors * V * itemsize + deeper + ROUNDING_NBYTES
    return nbytes


def _depth(shape: Shape, degree: int, width: float, dtype: np.dtype[Any]) -> int:
    """How many planes of frequencies along z, zero and above, a degree and a width reach."""
    reach = radius(degree, TRUNCATION[dtype.name])
    return 1 + min(shape[0] // 2, int(reach / width * shape[0] / (2 * math.pi)))


class Plan:
    """Solid harmonic scattering as the engine runs it; `plan` names the parameters.

    The bits of a result depend neither on the batch nor on the number of threads: a job is all paths of one volume, one
    degree and one first scale.
    """

    def __init__(
        self,
        shape: Shape,
        widths: Sequence[float],
        L: int,
        powers: Sequence[float],
        rows: dict[Shape, int],
        dtype: np.dtype[Any],
    ) -> None:
        self._engine, self._volume_nbytes = Engine(dtype), math.prod(shape) * dtype.itemsize
        paths = sorted(path for path in rows if path)  # a path before all that begin with it
        nodes = np.zeros((len(paths), 3), np.int32)
        for i, path in enumerate(paths):
            family = sum(other[: len(path)] == path for other in paths)
            nodes[i] = path[-1], i + family, rows[path]
        q = np.array(powers, np.float64)
        handle = self._engine.volumes(*shape, L + 1, q.ctypes.data, len(q), nodes.ctypes.data, len(nodes))
        self._handle = self._engine.own(self, "volumes", handle)
        for width in widths:
            for degree in range(L + 1):
                self._add(_Tables.of(shape, degree, width, dtype))

    def __call__(self, x: NDArray[Any], scale: NDArray[Any], out: NDArray[np.float64], threads: int) -> None:
        """Fill ``out`` (B, n_paths) with the sums for finite volumes x (B, D, H, W) times their scales (B,)."""
        volumes = np.ascontiguousarray(x)
        memory = np.empty(self.nbytes(len(volumes), threads), np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % _ALIGNMENT
        self._engine.scatter_volumes(
            *(self._handle, volumes.ctypes.data, scale.ctypes.data, len(volumes)),
            *(out.ctypes.data, out.shape[1], start, threads),
        )

    def at_once(self, threads: int) -> int:
        """Return how many volumes to take at once, so that threads have work and spectra stay in cache."""
        return at_once(self._volume_nbytes, threads)

    def nbytes(self, batch: int, threads: int = 1) -> int:
        """Return the bytes that the engine works in for so many volumes at once."""
        return int(self._engine.volumes_nbytes(self._handle, batch, threads)) + _ALIGNMENT

    def _add(self, tables: "_Tables") -> None:
        arrays = (tables.axial, tables.planar, tables.rho2)
        addresses = (array.ctypes.data for array in arrays)
        if not self._engine.add_harmonics(self._handle, tables.degree, len(tables.rho2), tables.nyquist, *addresses):
            raise MemoryError("no memory for the wavelets of the compiled engine")


@dataclass(frozen=True)
class _Tables:
    """The wavelets of a degree as the engine takes them, their pole along x: see ``Harmonics`` in volumes.h.

    Energy summed over all wavelets of a degree is the same whatever their pole.
    """

    degree: int
    nyquist: int
    axial: NDArray[Any]
    planar: NDArray[Any]
    rho2: NDArray[Any]

    @classmethod
    def of(cls, shape: Shape, degree: int, width: float, dtype: np.dtype[Any]) -> "_Tables":
        reach = radius(degree, TRUNCATION[dtype.name])
        z, y, x = (width * angles(n, n) for n in shape)
        z = z[: _depth(shape, degree, width, dtype)]
        rho2 = z[:, None] ** 2 + y**2
        planar, axial = [], []
        for m in range(degree + 1):
            power = np.exp(-rho2 / 2) * (rho2 <= reach**2) * (y + 1j * z[:, None]) ** m
            planar += [power.real, power.imag][: 2 if m else 1]
            axial += [c * x**n * np.exp(-(x**2) / 2) * (abs(x) <= reach) for n, c in powers_along_the_pole(degree, m)]
        nyquist = sum(1 << axis for axis, n in enumerate(shape) if n % 2 == 0 and reach / width >= math.pi)
        return cls(degree, nyquist, *(np.array(table, dtype) for table in (axial, planar, rho2)))
