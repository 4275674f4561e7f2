"""What the CUDA engine does with a block of images, as a list of launches, and the memory between them."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from scattercube.kernels.device import Array, Constant, address, compiled, device_id
from scattercube.kernels.filterbank import Shape

_ALIGNMENT = 256


class Source(Protocol):
    """What kernels are compiled from, and how many threads their blocks have."""

    @property
    def source(self) -> str:
        """The text that is compiled."""

    @property
    def threads(self) -> int:
        """Threads of a block."""


@dataclass(frozen=True)
class Given:
    """An array that a call is given, its number among them, or what lies so many bytes behind its beginning."""

    index: int
    offset: int = 0


@dataclass(frozen=True)
class Space:
    """A part of a block's memory, and of what it is a part itself."""

    start: int
    end: int
    whole: "Space | None" = None

    def behind(self, nbytes: int) -> "Space":
        """Return all but the first bytes."""
        return Space(self.start + nbytes, self.end, self)


X, UNIT, OUT = map(Given, range(3))
"""The images, their units, and their coefficients."""


@dataclass(frozen=True, eq=False)
class _Launch:
    source: Source
    name: str
    grid: Shape
    shared_nbytes: int
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class _Bound:
    """A launch on a device: what is fixed of its arguments, and which are the addresses of arrays of a call."""

    kernel: Any
    grid: Shape
    block: Shape
    arguments: list[Any]
    given: list[tuple[int, int, int]]
    shared_nbytes: int


@dataclass(eq=False)
class Schedule:
    """Launches in order, and the bytes of the arrays between them."""

    launches: list[_Launch] = field(default_factory=list)
    nbytes: int = 0
    _bound: dict[tuple[str, int], list[_Bound]] = field(default_factory=dict)

    def space(self, free: int, nbytes: int) -> Space:
        """Take memory from ``free`` on, which nothing holds that is still needed."""
        start = -(-free // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = max(self.nbytes, start + nbytes)
        return Space(start, start + nbytes)

    def launch(self, source: Source, name: str, grid: Shape, shared_nbytes: int, *arguments: Any) -> None:
        """Add a launch; arguments are integers, constants, what a call is given, parts of memory, or None: no array."""
        self.launches.append(_Launch(source, name, grid, shared_nbytes, arguments))

    def run(self, xp: ModuleType, *given: Array) -> None:
        """Launch all for the arrays of a call."""
        key = (xp.__name__, device_id(xp))
        if key not in self._bound:
            self._bound[key] = [_bind(xp, launch) for launch in self.launches]
        memory = xp.empty(max(1, self.nbytes), np.uint8)
        bases = (*map(address, given), address(memory))
        for bound in self._bound[key]:
            arguments = bound.arguments.copy()  # other threads may run the same
            for place, base, offset in bound.given:
                arguments[place] = np.uint64(bases[base] + offset)
            bound.kernel(bound.grid, bound.block, tuple(arguments), shared_mem=bound.shared_nbytes)


def _bind(xp: ModuleType, launch: _Launch) -> _Bound:
    arguments: list[Any] = []
    given = []
    for place, argument in enumerate(launch.arguments):
        fixed: Any = np.uint64(0)  # no array, or one whose address a call brings
        match argument:
            case Given():
                given.append((place, argument.index, argument.offset))
            case Space():
                given.append((place, -1, argument.start))
            case Constant():
                fixed = argument.on(xp)
            case int():
                fixed = np.int32(argument)
            case np.generic():
                fixed = argument
        arguments.append(fixed)
    kernel = compiled(xp, device_id(xp), launch.source.source, launch.name, launch.shared_nbytes)
    grid = (*launch.grid, 1, 1)[:3]
    return _Bound(kernel, grid, (launch.source.threads, 1, 1), arguments, given, launch.shared_nbytes)
