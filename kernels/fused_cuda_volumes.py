"""Solid harmonic scattering as the CUDA engine runs it: two launches for an order, whatever its scales and degrees."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scattercube.kernels.cascade import TRUNCATION
from scattercube.kernels.cuda_modules import passes, shared_nbytes
from scattercube.kernels.cuda_schedule import OUT, UNIT, Schedule, Space, X
from scattercube.kernels.device import Array, Constant, block_nbytes, namespace
from scattercube.kernels.engine.source import cuda_source
from scattercube.kernels.filterbank import Shape
from scattercube.kernels.harmonics import angles, powers_along_the_pole, radius

_STATIC_NBYTES = 4 << 10  # of shared memory, beside what a launch asks for
_MOST_POWERS = 16
_CONSTANT_NBYTES = 60 << 10  # of constant memory, for the roots of unity and places of all axes
_QUARTERS, _REGISTERS = 4, 1 << 14  # of a multiprocessor; registers of each
_PLANE_THREADS = {"float32": (64, 448, 640), "float64": (64, 256, 320)}  # at least, at least of large planes, at most
_POINTS_PER_THREAD = (12, 32)
_LINE_THREADS = 128
_FINISH_THREADS = 128
_MOST_SAMPLES = 1 << 15  # of a launch
_MOST_ELEMENTS = 1 << 31  # of the planes of a sample: the engine counts them in 32 bits
_ALIGNMENT = 256  # of arrays in memory
_JOB = (
    "source",
    "degree",
    "offset",
    "axial",
    "bank",
    "height",
    "width",
    "nyquist",
    "slot",
    "target",
    "rows",
    "columns",
)


def plan(
    shape: Shape, widths: Sequence[float], L: int, powers: Sequence[float], rows: dict[Shape, int], dtype: np.dtype[Any]
) -> "Plan | None":
    """Return the plan of a transform, by the parameters of `fused_volumes.plan`.

    None where planes are too large for the engine, or lengths have a prime factor that it lacks.
    """
    module = Module.of(shape, powers, dtype)
    if module is None or 2 * (L + 1) * (shape[0] + 1) * shape[1] * (shape[2] // 2 + 1) >= _MOST_ELEMENTS:
        return None
    return Plan(module, widths, L, rows)


@dataclass(frozen=True)
class _Kernels:
    """What is compiled, and the threads of a block of some of its kernels."""

    source: str
    threads: int


@dataclass(frozen=True, eq=False)
class Module:
    """The engine's source for volumes of a shape, and what its kernels are launched with."""

    shape: Shape
    powers: tuple[float, ...]
    dtype: np.dtype[Any]
    columns: int
    plane_threads: int

    @classmethod
    def of(cls, shape: Shape, powers: Sequence[float], dtype: np.dtype[Any]) -> "Module | None":
        """Plan the module; None where the engine does not have the shape."""
        D, H, W = shape
        nbytes, room = 2 * dtype.itemsize, shared_nbytes() - _STATIC_NBYTES
        if not all(map(passes, shape)) or sum(shape) * nbytes + (H + W) * 4 > _CONSTANT_NBYTES:
            return None
        columns = next((c for c in (16, 8, 4) if 2 * D * c * nbytes <= room // (2 if c > 4 else 1)), 0)
        if H * (W | 1) * nbytes > room or not columns or len(powers) > _MOST_POWERS:
            return None
        return cls(shape, tuple(powers), dtype, columns, _plane_threads(shape, dtype))

    @cached_property
    def source(self) -> str:
        """The text that is compiled."""
        D = self.shape[0]
        defines: dict[str, Any] = {
            "REAL": "float" if self.dtype.itemsize == 4 else "double",
            **dict(zip(("DEPTH", "HEIGHT", "WIDTH"), self.shape, strict=True)),
            **{f"RADICES_{a}": ", ".join(map(str, _radices(n))) for a, n in zip("ZYX", self.shape, strict=True)},
            "NYQUIST_PLACE": _places(D)[D // 2],
            "POWERS": ", ".join(map(repr, self.powers)),
            "COLUMNS": self.columns,
            "LINE_THREADS": _LINE_THREADS,
            "PLANE_THREADS": self.plane_threads,
            "PLANE_BLOCKS": self._blocks_at_once(),
            "FINISH_THREADS": _FINISH_THREADS,
        }
        return cuda_source(defines, "volumes.cu")

    def _blocks_at_once(self) -> int:
        """How many blocks with a plane a multiprocessor is to hold."""
        n_warps = _warps(self.shape, self.plane_threads, self.dtype)
        return max(1, min(n_warps * 32 // self.plane_threads, shared_nbytes() // (self.plane_nbytes + _STATIC_NBYTES)))

    @property
    def plane_nbytes(self) -> int:
        """Shared memory of a block that has a plane."""
        return self.shape[1] * (self.shape[2] | 1) * 2 * self.dtype.itemsize

    @property
    def lines_nbytes(self) -> int:
        """Shared memory of a block that has lines along z."""
        return 2 * self.shape[0] * self.columns * 2 * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class _Bank:
    """The wavelets of a degree and a width as the engine takes them: what they reach, and their weights.

    Parameters
    ----------
    height, width
        The rows ky and columns kx ≥ 0 that are kept.
    limits
        For kx = 0 … W/2, the |ky| that are reached, or -1.
    nyquist
        1 if D is even and its Nyquist frequency is reached, plus 2 if that is so of H or W.
    places
        Of the columns (ky, kx) that are reached: in a plane of all frequencies, and in one of those kept.
    factors
        ω_x² + ω_y² of these columns, and the Gaussian of it.
    axial
        For each m and power of the former, (D + 1,): by kz in the order of the transform; last, what is to be apart.
    """

    degree: int
    height: int
    width: int
    limits: NDArray[np.int32]
    nyquist: int
    places: NDArray[np.int32]
    factors: NDArray[Any]
    axial: NDArray[Any]

    @classmethod
    def of(cls, shape: Shape, degree: int, width: float, dtype: np.dtype[Any]) -> "_Bank":
        reach = radius(degree, TRUNCATION[dtype.name])
        D, H, W = shape
        z, y, x = (width * angles(n, n) for n in shape)
        rho2 = y[:, None] ** 2 + x[: W // 2 + 1] ** 2
        live = rho2 <= reach**2
        limits = live[: H // 2 + 1].sum(axis=0) - 1
        n_rows, n_columns = int(min(H, 2 * limits[0] + 1)), int((limits >= 0).sum())
        ky, kx = np.nonzero(live)
        rows = np.where(2 * ky < H, ky, ky - H) % n_rows
        at_nyquist = [n % 2 == 0 and width * math.pi <= reach for n in shape]
        axial = np.zeros((sum((degree - m) // 2 + 1 for m in range(degree + 1)), D + 1))
        tables = iter(axial)
        for m in range(degree + 1):
            for n, c in powers_along_the_pole(degree, m):
                values = c * z**n * np.exp(-(z**2) / 2) * (abs(z) <= reach) / math.prod(shape)
                table = next(tables)
                if at_nyquist[0] and (degree - m) % 2:
                    table[D], values[D // 2] = values[D // 2], 0
                table[_places(D)] = values
        return cls(
            degree,
            n_rows,
            n_columns,
            limits.astype(np.int32),
            at_nyquist[0] + 2 * (at_nyquist[1] or at_nyquist[2]),
            np.stack([ky * (W // 2 + 1) + kx, rows * n_columns + kx], axis=1).astype(np.int32),
            np.stack([rho2[live], np.exp(-rho2[live] / 2)], axis=1).astype(dtype),
            axial.astype(dtype),
        )

    def elements(self, D: int) -> int:
        """How many elements the planes of all m have."""
        return (D + (self.nyquist & 1)) * (self.degree + 1) * self.height * self.width


@dataclass(frozen=True, eq=False)
class _Step:
    """Jobs that are launched together; the costliest first."""

    jobs: Constant
    blocks: Constant
    elements: int  # of Q, for one sample


@dataclass(frozen=True)
class _Job:
    """A path of scales and a degree; its source and target among the fields before and after, -1 where it ends."""

    path: Shape
    degree: int
    source: int
    target: int
    slot: int


class Plan:
    """Solid harmonic scattering as the engine runs it; `plan` names the parameters.

    Every plane is found by itself and sums have one order, so that the bits of a result depend on nothing else in the
    batch.
    """

    def __init__(self, module: Module, widths: Sequence[float], L: int, rows: dict[Shape, int]) -> None:
        self._module, self._L, self._n_powers = module, L, len(module.powers)
        _, H, W = module.shape
        self._schedules: dict[int, Schedule] = {}
        self._banks = [_Bank.of(module.shape, l, width, module.dtype) for width in widths for l in range(L + 1)]  # noqa: E741
        self._firsts = np.cumsum([0, *(len(bank.places) for bank in self._banks)])
        self._axial_firsts = np.cumsum([0, *(bank.axial.size for bank in self._banks)])
        self._orders: list[tuple[list[_Step], int]] = []  # and how many fields go on
        slots = [rows[()]]
        sources: dict[tuple[Shape, int], int] = {((), degree): 0 for degree in range(L + 1)}
        for order in range(1, max(map(len, rows)) + 1):
            jobs: list[_Job] = []
            targets: dict[tuple[Shape, int], int] = {}
            for path in (path for path in rows if len(path) == order):
                goes_on = any(len(other) > order and other[:order] == path for other in rows)
                for degree in range(L + 1):
                    target = targets.setdefault((path, degree), len(targets)) if goes_on else -1
                    jobs.append(_Job(path, degree, sources[path[:-1], degree], target, len(slots)))
                    slots.append(rows[path] + degree * self._n_powers)
            self._orders.append((self._steps(jobs), len(targets)))
            sources = targets
        self._slots, self._n_paths = Constant(np.array(slots, np.int32)), max(slots) + self._n_powers
        if self._banks:
            steps = [(width * 2 * math.pi / W, width * 2 * math.pi / H) for width in widths for _ in range(L + 1)]
            self._limits = Constant(np.array([bank.limits for bank in self._banks]))
            self._scales = Constant(np.array(steps, module.dtype))
            self._places, self._factors, self._axial = (
                Constant(np.concatenate([getattr(bank, name) for bank in self._banks]))
                for name in ("places", "factors", "axial")
            )

    def __call__(self, x: Array, unit: Array, out: Array) -> None:
        """Fill ``out`` (B, n_paths) from volumes x (B, D, H, W) of the right type that are divided by ``unit`` (B,)."""
        xp, x = namespace(x), namespace(x).ascontiguousarray(x)
        for start in range(0, len(x), self._at_once):
            some = slice(start, min(start + self._at_once, len(x)))
            self._schedule(some.stop - start).run(xp, x[some], unit[some], out[some])

    def nbytes(self, batch: int) -> int:
        """Project the peak bytes of a call, beside its argument and result."""
        return self._schedule(min(batch, self._at_once)).nbytes if batch else 0

    @cached_property
    def _at_once(self) -> int:
        """How many volumes travel together: enough to fill a device."""
        return max(1, min(_MOST_SAMPLES, block_nbytes("cuda") // self._schedule(1).nbytes))

    # --- What is launched for some volumes ---

    def _schedule(self, n_samples: int) -> Schedule:
        if n_samples not in self._schedules:
            self._schedules[n_samples] = self._make_schedule(n_samples)
        return self._schedules[n_samples]

    def _make_schedule(self, n_samples: int) -> Schedule:
        schedule, module = Schedule(), self._module
        planes, lines, sums = (
            _Kernels(module.source, threads) for threads in (module.plane_threads, _LINE_THREADS, _FINISH_THREADS)
        )
        D, H, W = module.shape
        n_slots, nbytes = len(self._slots.host), n_samples * 2 * module.dtype.itemsize
        field = D * H * (W // 2 + 1) * nbytes
        partial = schedule.space(0, n_samples * n_slots * D * self._n_powers * 8)
        P: Space | None = schedule.space(partial.end, field) if self._orders else None
        reach = self._reach(0, range(self._L + 1)) if self._orders else (0, 0)
        arguments: tuple[Any, ...] = (X, UNIT, *reach, P, partial, n_slots)
        schedule.launch(planes, "begin", (D, n_samples), module.plane_nbytes, *arguments)
        n_sources = 1
        for steps, n_targets in self._orders:
            assert P is not None
            below = _before(P, partial.end, n_targets * field)
            after = schedule.space(below, n_targets * field) if n_targets else None
            free = max(P.end, after.end if after else 0)
            for step in steps:
                Q = schedule.space(free, step.elements * nbytes)
                tables: tuple[Any, ...] = (step.jobs, step.blocks, self._places, self._factors, self._axial)
                arguments = (*tables, P, n_sources, Q, step.elements)
                grid = (len(step.blocks.host), n_samples)
                schedule.launch(lines, "along_z", grid, module.lines_nbytes, *arguments)
                tables = (step.jobs, self._limits, self._scales)
                arguments = (*tables, Q, step.elements, after, n_targets, partial, n_slots)
                grid = (len(step.jobs.host) * D, n_samples)
                schedule.launch(planes, "planes", grid, module.plane_nbytes, *arguments)
            P, n_sources = after, n_targets
        n_sums = n_samples * n_slots * self._n_powers
        arguments = (partial, n_slots, n_samples, self._slots, UNIT, OUT, self._n_paths)
        schedule.launch(sums, "finish", (-(-n_sums // (_FINISH_THREADS // 32)),), 0, *arguments)
        return schedule

    # --- Tables ---

    def _bank(self, scale: int, degree: int) -> int:
        return scale * (self._L + 1) + degree

    def _reach(self, scale: int, degrees: Iterable[int]) -> Shape:
        """The |ky|, and how many kx ≥ 0, that wavelets from a scale on reach."""
        banks = [self._banks[self._bank(scale, degree)] for degree in degrees]
        return max(int(bank.limits[0]) for bank in banks), max(bank.width for bank in banks)

    def _steps(self, jobs: list[_Job]) -> list[_Step]:
        """Group the jobs of an order, so that the planes of a group are not too large."""
        groups: list[list[tuple[_Job, int]]] = []
        most, elements = block_nbytes("cuda") // (2 * self._module.dtype.itemsize), 0
        for job in sorted(jobs, key=lambda job: -self._cost(job)):
            bank = self._banks[self._bank(job.path[-1], job.degree)]
            size = bank.elements(self._module.shape[0])
            if not groups or elements + size > most:
                groups.append([])
                elements = 0
            groups[-1].append((job, elements))
            elements += size
        return [self._step(group) for group in groups]

    def _cost(self, job: _Job) -> float:
        bank = self._banks[self._bank(job.path[-1], job.degree)]
        return job.degree * (2 if bank.nyquist else 1) + 0.5 + (job.target >= 0) / 2

    def _step(self, group: list[tuple[_Job, int]]) -> _Step:
        jobs, blocks, elements = [], [], 0
        for i, (job, offset) in enumerate(group):
            b = self._bank(job.path[-1], job.degree)
            bank = self._banks[b]
            elements = offset + bank.elements(self._module.shape[0])
            kept = self._reach(job.path[-1] + 1, (job.degree,)) if job.target >= 0 else (0, 0)
            values = (job.source, job.degree, offset, self._axial_firsts[b], b, bank.height, bank.width, bank.nyquist)
            jobs.append((*values, job.slot, job.target, *kept))  # as Job in volumes.cu
            first, last, step = self._firsts[b], self._firsts[b + 1], self._module.columns
            blocks += [(i, c, min(step, last - c), 0) for c in range(first, last, step)]
        return _Step(Constant(np.array(jobs, np.int32)), Constant(np.array(blocks, np.int32)), elements)


def _before(taken: Space, first: int, nbytes: int) -> int:
    """Return from where on there is room: between ``first`` and what is taken, or behind it."""
    return first if first + nbytes + _ALIGNMENT <= taken.start else taken.end


def _radices(n: int) -> tuple[int, ...]:
    """Return the radices of the passes: the last is even where n is; of two, the first needs more registers."""
    possible = [a for a in range(2, n) if n % a == 0 and passes(a) == (a,)]
    ways = [passes(n) or (), *((a, n // a) for a in possible if n // a in possible)]
    ways = [tuple(sorted(way, key=lambda radix: (radix % 2 == 0, radix))) for way in ways if len(way) == len(ways[0])]
    return min(ways, key=lambda way: max(4 * way[0], 2.5 * way[-1]))


def _places(n: int) -> NDArray[np.intp]:
    """Return where element t of a line of n points stands in reversed order."""
    t, place, block = np.arange(n), np.zeros(n, np.intp), 1
    for radix in _radices(n):
        rest = n // (block * radix)
        place += t // rest * block
        t, block = t % rest, block * radix
    return place


def _warps(shape: Shape, threads: int, dtype: np.dtype[Any]) -> int:
    """Return how many warps with planes a multiprocessor has registers for, in blocks of so many threads."""
    _, H, W = shape
    first, pairs = _radices(W)[0], H // 2 if H % 2 == 0 else H
    kept = -(-pairs * W // first // threads) * (H // pairs) * first  # of the plane, by a thread
    values = kept + 4 * _radices(H)[0]
    registers = max(72, 16 + values) if dtype.itemsize == 4 else max(176, 80 + 2 * values)  # the compiler's choice
    return _QUARTERS * (_REGISTERS // 32 // (-(-registers // 8) * 8))


def _plane_threads(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Choose the threads of a block: those that idle least in the passes, and rather more."""
    _, H, W = shape
    pairs = H // 2 if H % 2 == 0 else H
    work = [H * W // r for n in (H, W) for r in _radices(n)] + [4 * pairs * W // _radices(W)[0]]
    few, many = (H * W // points for points in reversed(_POINTS_PER_THREAD))
    least, enough, most = _PLANE_THREADS[dtype.name]
    some = [threads for threads in range(least, most + 1, 32) if min(few, enough) <= threads <= max(many, least)]

    def cost(threads: int) -> tuple[int, ...]:
        lacking = max(0, threads // 32 - _warps(shape, threads, dtype))
        return lacking, sum(-(-w // threads) * threads for w in work), -threads

    return min(some, key=cost)
