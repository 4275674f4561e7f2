"""The CUDA engine's modules: its one source behind the constants of a grid; threads, signals and memory of a block."""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.axes import Axis
from scattercube.kernels.device import Constant, most_shared_nbytes
from scattercube.kernels.engine.source import cuda_source
from scattercube.kernels.filterbank import Lowpass, Shape
from scattercube.kernels.fused_averages import DROP, MOST_MOMENTS, line_taps
from scattercube.kernels.primitives import Smoothing

SHARED_NBYTES = 227 << 10
"""Of shared memory, what a block may take on the devices that this is made for (compute capability 9.0)."""


_RADICES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16)
_CONSTANT_NBYTES = 60 << 10  # of constant memory, for the roots of unity and places of both axes
_POINTS = 4096  # of a block, in all of its signals
_MOST_SIGNALS = 8
_POINTS_PER_THREAD = 16
_THREADS = (64, 1024)
_REGISTERS = (1 << 16, 64)  # of a multiprocessor; what a thread may need
_READINGS_NBYTES = 44 << 10  # of static shared memory, for what rows of filters have
_READING_NBYTES = 20  # of static shared memory, for each row of a grid and each alias
_STATIC_NBYTES = 1 << 11  # of shared memory, for all else that a block has, and the system
_ROWS_NBYTES = 72 << 10  # of shared memory, for rows of a large grid: several blocks at once
_AVERAGES = ("MOMENTS", "TAPS", "SAMPLING", "WEIGHTS")


def shared_nbytes() -> int:
    """Return how much shared memory a block may take here: where there is no device, as much as it is made for."""
    return min(SHARED_NBYTES, most_shared_nbytes())


@cache
def passes(n: int) -> tuple[int, ...] | None:
    """Return the radices of the fewest passes over n points, of like size; None for a prime factor above 13."""
    best: dict[int, tuple[int, ...]] = {1: ()}

    def found(m: int) -> tuple[int, ...] | None:
        if m not in best:
            rest = ((r, found(m // r)) for r in _RADICES if m % r == 0)
            ways = [tuple(sorted((r, *way))) for r, way in rest if way is not None]
            best[m] = min(ways, key=lambda way: (len(way), max(way), way), default=())
        return best[m] or (None if m > 1 else ())

    return found(n) if n > 1 else (1,)


def split(n: int) -> Shape | None:
    """Return the grid n1 × n2 of a line of n points: near a square, few passes, n2 even; None where there is none."""
    factors = [(k, n // k) for k in range(1, n + 1) if n % k == 0]
    possible = [(a, b) for a, b in factors if passes(a) and passes(b)]

    def cost(grid: Shape) -> tuple[Any, ...]:
        n_passes = sum(len(passes(k) or ()) for k in grid)
        return grid[1] % 2, n_passes + abs(math.log2(grid[0] / grid[1])) / 2

    return min(possible, key=cost, default=None)


@dataclass(frozen=True, eq=False)
class Module:
    """The engine's source for one grid, and what its kernels are launched with.

    Parameters
    ----------
    shape
        (n1, n2) of the grid.
    n
        Points per axis of the signals: (n1, n2), or (n1·n2,) of a line.
    defines
        The constants in front of the source.
    kernel
        The table of a line's average, or one zero.
    whole
        Whether a whole signal fits the shared memory of a block.
    signals, rows, columns
        Signals of a block; of a large grid, rows and columns.
    threads
        Of a block.
    average_nbytes
        Shared memory for the moments of a large line.
    """

    shape: Shape
    n: Shape
    defines: dict[str, str]
    kernel: Constant
    whole: bool
    signals: int
    rows: int
    columns: int
    threads: int
    average_nbytes: int
    dtype: np.dtype[Any]

    @classmethod
    def of(
        cls,
        n: Shape,
        axes: tuple[Axis, ...],
        level: int,
        low: Smoothing,
        aliases: Shape,
        dtype: np.dtype[Any],
        may_be_whole: bool = True,
    ) -> "Module | None":
        """Plan the module of a level; None where the engine does not have its grid."""
        line = len(n) == 1
        shape = split(n[0]) if line else n
        if shape is None or any(passes(k) is None for k in shape):
            return None
        complex_nbytes = 2 * dtype.itemsize
        if sum(shape) * (complex_nbytes + 4) > _CONSTANT_NBYTES:
            return None
        n1, n2 = shape
        pitch = n2 | 1
        reading_nbytes = 0 if line else aliases[0] * _READING_NBYTES  # of a row, beside the dynamic shared memory
        room = shared_nbytes()
        whole = may_be_whole and n1 * (pitch * complex_nbytes + reading_nbytes) <= room - _STATIC_NBYTES
        whole = whole and n1 * reading_nbytes <= _READINGS_NBYTES
        signals = max(1, min(_MOST_SIGNALS, _POINTS // (n1 * n2))) if whole else 1
        columns = next((some for some in (32, 16) if n1 * (some | 1) * complex_nbytes <= room // 3), 8)
        row_nbytes = pitch * complex_nbytes + reading_nbytes
        if not whole and max(8 * row_nbytes, n1 * (columns | 1) * complex_nbytes) > room - _STATIC_NBYTES:
            return None
        rows = max(8, min(n1, _ROWS_NBYTES // row_nbytes)) if not whole else n1
        rows = rows if whole else max(8, min(rows, _READINGS_NBYTES // max(1, reading_nbytes)))
        if line and not whole:
            rows = min(rows, 16)  # neighbouring frequencies, which are read and written together
        threads = _threads(shape, signals if whole else 1, (n1 if whole else rows, n2 if whole else columns))
        defines: dict[str, Any] = {
            "REAL": "float" if dtype.itemsize == 4 else "double",
            "LINE": int(line),
            "WHOLE": int(whole),
            "N1": n1,
            "N2": n2,
            "RADICES1": ", ".join(map(str, passes(n1) or ())),
            "RADICES2": ", ".join(map(str, passes(n2) or ())),
            "SIGNALS": signals,
            "ROWS": rows,
            "COLUMNS": columns,
            "THREADS": threads,
            "ALIASES1": aliases[0],
            "ALIASES2": aliases[-1],
            **{name: number for number, name in enumerate(_AVERAGES)},
        }
        shared = n1 * (signals * pitch * complex_nbytes + reading_nbytes)
        defines["BLOCKS_PER_SM"] = max(1, _blocks_per_sm(shared, threads))
        widest = 32 if whole else columns  # block of samples: whole ones lie in a block of columns
        average, kernel = _line_average(low, shape, widest, dtype) if line else _grid_average(low, axes, level, dtype)
        n_moments = n1 * n2 // average["BLOCK"] * average["N_MOMENTS"] if line else 0
        n_kept = (n_moments or n1 * n2) if line else average["OUT1"] * n2
        defines |= average | {"OUTPUTS": math.prod(low.kept), "AVERAGED": n_kept}
        fit = n_moments * dtype.itemsize <= room - _STATIC_NBYTES
        defines["MOMENTS_FIT"] = int(fit)  # else they are read where they are
        average_nbytes = n_moments * dtype.itemsize if fit else 0
        texts = {name: str(value) for name, value in defines.items()}
        return cls(shape, n, texts, Constant(kernel), whole, signals, rows, columns, threads, average_nbytes, dtype)

    @cached_property
    def source(self) -> str:
        """The text that is compiled."""
        return cuda_source(self.defines, "scattering.cu")

    @cached_property
    def twiddles(self) -> Constant:
        """exp(2πi k1·u2/n) of a line, (n1, n2): u2 at its reversed place where signals are whole."""
        n1, n2 = self.shape
        if len(self.n) == 2:
            return Constant(np.zeros(1, np.result_type(self.dtype, np.complex64)))
        u2 = np.empty(n2, np.int64)
        u2[places(n2) if self.whole else np.arange(n2)] = np.arange(n2)
        turns = np.multiply.outer(np.arange(n1), u2) % (n1 * n2)
        return Constant(np.exp(2j * math.pi * turns / (n1 * n2)).astype(np.result_type(self.dtype, np.complex64)))

    @property
    def spectrum(self) -> int:
        """Elements of the stored half of a spectrum."""
        return math.prod(self.n[:-1]) * (self.n[-1] // 2 + 1)

    @property
    def averaged(self) -> int:
        """Numbers that a path of a large grid leaves to `average_paths`."""
        return int(self.defines["AVERAGED"])

    @property
    def pitch(self) -> int:
        """Elements from one row in shared memory to the next."""
        return self.shape[1] | 1

    @property
    def complex_nbytes(self) -> int:
        """Of one element of a spectrum."""
        return 2 * self.dtype.itemsize

    @property
    def whole_nbytes(self) -> int:
        """Shared memory of a block of whole signals."""
        return self.signals * self.shape[0] * self.pitch * self.complex_nbytes

    @property
    def rows_nbytes(self) -> int:
        """Shared memory of a block of rows."""
        return self.rows * self.pitch * self.complex_nbytes

    @property
    def columns_nbytes(self) -> int:
        """Shared memory of a block of columns."""
        return self.shape[0] * (self.columns | 1) * self.complex_nbytes

    def blocks_per_sm(self, dynamic_nbytes: int) -> int:
        """Return how many blocks with so much dynamic shared memory a multiprocessor should hold; 0 if it cannot."""
        readings = self.rows * int(self.defines["ALIASES1"]) * _READING_NBYTES if len(self.n) == 2 else 0
        return _blocks_per_sm(dynamic_nbytes + readings, self.threads)


def places(n: int) -> NDArray[np.intp]:
    """Return where element t of a line of n points stands in reversed order."""
    t, place, block = np.arange(n), np.zeros(n, np.intp), 1
    for radix in passes(n) or ():
        rest = n // (block * radix)
        place += t // rest * block
        t, block = t % rest, block * radix
    return place


def _blocks_per_sm(nbytes: int, threads: int) -> int:
    """Blocks with so much shared memory, and so many threads, that a multiprocessor should hold."""
    return min(shared_nbytes() // (nbytes + _STATIC_NBYTES), _REGISTERS[0] // _REGISTERS[1] // threads)


def _threads(shape: Shape, signals: int, lines: Shape) -> int:
    """Choose the threads that idle least in the passes over so many rows and columns of so many signals."""
    n1, n2 = shape
    work = [signals * lines[0] * n2 // r for r in passes(n2) or ()] + [
        signals * lines[1] * n1 // r for r in passes(n1) or ()
    ]
    points = signals * max(lines[0] * n2, lines[1] * n1)
    least, most = _THREADS
    wanted = min(most, max(least, points // _POINTS_PER_THREAD))
    some = [threads for threads in range(least, most + 1, 32) if 0.6 * wanted <= threads <= 1.25 * wanted] or [least]
    return min(some, key=lambda threads: (sum(-(-w // threads) * threads for w in work), -threads))


def _literal(values: NDArray[Any]) -> str:
    """Write an array as a C initialiser."""
    if values.ndim > 1:
        return "{" + ", ".join(map(_literal, values)) + "}"
    return "{" + ", ".join(f"{float(value)!r}{'f' if values.dtype.itemsize == 4 else ''}" for value in values) + "}"


def _grid_average(
    low: Smoothing, axes: tuple[Axis, ...], level: int, dtype: np.dtype[Any]
) -> tuple[dict[str, Any], NDArray[Any]]:
    """The taps of a separable low-pass along each axis."""
    assert isinstance(low, Lowpass)
    defines: dict[str, Any] = {"STRIDE": axes[0].step(level)}
    for i, (axis, matrix) in enumerate(zip(axes, low.matrices, strict=True), 1):
        first, row = int(axis.samples(level)[0]), matrix.host[0].astype(np.float64)
        begin, end = _support(np.roll(row, -first), DROP[dtype.name])
        taps = np.roll(row, -first - begin)[: end - begin].astype(dtype)
        defines |= {
            f"OUT{i}": len(matrix.host),
            f"START{i}": (first + begin) % len(row),
            f"N_TAPS{i}": len(taps),
            f"TAPS{i}": _literal(taps),
        }
    return defines, np.zeros(1, dtype)


def _support(kernel: NDArray[np.float64], drop: float) -> tuple[int, int]:
    """Return begin ≤ 0 < end of the indices, on the circle, at which a kernel is not nothing."""
    n = len(kernel)
    loud = np.flatnonzero(abs(kernel) > drop * abs(kernel).max())
    signed = np.sort(np.where(loud > n // 2, loud - n, loud))
    if len(signed) == 0 or signed[-1] + 1 - signed[0] >= n:
        return -(n // 2), n - n // 2
    return int(min(signed[0], 0)), int(max(signed[-1], 0)) + 1


def _line_average(
    low: Smoothing, shape: Shape, widest: int, dtype: np.dtype[Any]
) -> tuple[dict[str, Any], NDArray[Any]]:
    """The table of a line's low-pass, and the constants that say how it is used."""
    if isinstance(low, Lowpass):
        none = {"AVERAGE": "WEIGHTS", "BLOCK": 1, "N_MOMENTS": 0, "FIRST": 0, "STRIDE": 1}
        return none, np.ascontiguousarray(low.matrices[0].host[0], dtype)
    taps = line_taps(low, dtype, widest // 4, 4, shape[1], MOST_MOMENTS)
    n_moments, block = taps.basis.shape if len(taps.basis) else (1, 1)
    samples = taps.samples // n_moments * block
    step = int(samples[1] - samples[0]) if len(samples) > 1 else 1
    defines: dict[str, Any] = {"FIRST": int(samples[0]), "STRIDE": step, "BLOCK": block, "N_MOMENTS": 0}
    if np.count_nonzero(taps.kernel) == 1:
        return defines | {"AVERAGE": "SAMPLING"}, np.zeros(1, dtype)
    kernel = taps.kernel.reshape(-1, n_moments)
    begin, end = _support(abs(kernel).max(axis=1).astype(np.float64), DROP[dtype.name])
    table = np.roll(kernel, -begin, axis=0)[: end - begin]
    defines |= {"AVERAGE": "TAPS", "FIRST_TAP": begin, "N_TAPS": len(table)}
    if len(taps.basis):
        defines |= {"AVERAGE": "MOMENTS", "N_MOMENTS": n_moments, "BASIS": _literal(taps.basis.T.astype(dtype))}
    return defines, np.ascontiguousarray(table, dtype)
