"""Plans of the CUDA engine on NumPy arrays: kernels are the emulator's, memory is poisoned, and can be kept apart.

The fixture ``emulated`` makes `Cascade` take NumPy arrays for arrays on a device.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np
import numpy.ma  # imported later, it would be made of the function below
import pytest

from scattercube.kernels import cascade, cuda_modules, cuda_schedule, device
from scattercube.kernels.cuda_schedule import Given, Schedule
from tests.cuda import emulation

_empty = np.empty
_kernels: dict[tuple[str, str], emulation.Kernel] = {}


@dataclass(frozen=True)
class _Module:
    """What `device.compiled` takes a kernel from."""

    source: str

    def get_function(self, name: str) -> emulation.Kernel:
        if (self.source, name) not in _kernels:
            _compile(self.source, [name])
        return _kernels[self.source, name]


def text_of(source: str) -> str:
    """Return a source without the constants in front, all of them lines of their own."""
    return re.sub(r"\A(#define .*\n)*", "", source)


def _compile(source: str, names: Sequence[str]) -> None:
    text = text_of(source)
    constants = source.removesuffix(text)
    made = emulation.Module(f"{constants}#line 1\n{text}", device.CUDA_OPTIONS, names)  # the same lines in all modules
    _kernels.update({(source, name): made.get_function(name) for name in names})


def compile_all(schedules: Iterable[Schedule]) -> None:
    """Compile what schedules launch, once: a module by itself takes most of a second, so two at a time."""
    wanted: dict[str, list[str]] = {}
    for launch in (launch for schedule in schedules for launch in schedule.launches):
        names = wanted.setdefault(launch.source.source, [])
        if launch.name not in names and (launch.source.source, launch.name) not in _kernels:
            names.append(launch.name)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: _compile(*item), [item for item in wanted.items() if item[1]]))


@wraps(np.empty)
def poisoned(shape: Any, dtype: Any = float, **keywords: Any) -> np.ndarray:
    array = _empty(shape, dtype, **keywords)
    if array.dtype.kind in "fc" or array.dtype == np.uint8:
        array.fill(np.nan if array.dtype.kind in "fc" else 0xFF)  # NaN to a kernel, too
    return array


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transforms take NumPy arrays for arrays on a device."""
    monkeypatch.setattr(device, "_module", lambda xp, device_id, source: _Module(source))
    monkeypatch.setattr(cascade, "device_of", lambda x: "cuda")
    monkeypatch.setattr(np, "empty", poisoned)


@contextmanager
def apart() -> Iterator[None]:
    """Give each array of a schedule memory of its own, at whose ends an access is an error, for the calls within."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "run", _run_apart)
        yield


def _run_apart(self: Schedule, xp: ModuleType, *given: np.ndarray) -> None:
    ours = [emulation.guarded(array) for array in given]
    spaces: dict[int, np.ndarray] = {}
    for launch in self.launches:
        bound = cuda_schedule._bind(xp, launch)
        arguments = [emulation.guarded(a) if isinstance(a, np.ndarray) else a for a in bound.arguments]
        for place, *_ in bound.given:
            argument = launch.arguments[place]
            if isinstance(argument, Given):
                arguments[place] = np.uint64(ours[argument.index].ctypes.data + argument.offset)
            else:
                whole = argument.whole or argument
                if id(whole) not in spaces:
                    spaces[id(whole)] = emulation.guarded(poisoned(whole.end - whole.start, np.uint8))
                arguments[place] = np.uint64(spaces[id(whole)].ctypes.data + argument.start - whole.start)
        bound.kernel(bound.grid, bound.block, tuple(arguments), shared_mem=bound.shared_nbytes)
    for theirs, array in zip(given, ours, strict=True):
        if theirs.flags.writeable:
            theirs[...] = array
        else:
            np.testing.assert_array_equal(theirs, array)


@dataclass(frozen=True)
class Case:
    """A transform, and how much it is given.

    ``shared_nbytes`` is the shared memory that a block may take where small grids are to be large; 0 for a device's.
    """

    make: Callable[..., cascade.Cascade]
    J: int
    shape: int | tuple[int, int]
    parameters: dict[str, Any]
    batch: int = 2
    shared_nbytes: int = 0

    def __str__(self) -> str:
        words = [self.make.__name__, self.J, self.shape, *(f"{k}={v}" for k, v in self.parameters.items())]
        return " ".join(map(str, words)) + (f" in {self.shared_nbytes}" if self.shared_nbytes else "")

    def transform(self) -> cascade.Cascade:
        """Make the transform and its plan."""
        with pytest.MonkeyPatch.context() as patch:
            if self.shared_nbytes:
                patch.setattr(cuda_modules, "SHARED_NBYTES", self.shared_nbytes)
            S = self.make(self.J, self.shape, **self.parameters)
            assert S._fused_cuda is None or S._fused_cuda._modules
        return S


def portable(S: cascade.Cascade, dtype: str = "float64") -> cascade.Cascade:
    """Return the same transform in a precision, left to the primitives."""
    make = S._arguments
    twin = copy.copy(make.func(*make.args, **make.keywords | {"dtype": dtype}))
    vars(twin).update(_fused=None, _fused_cuda=None)
    return twin


def noise(S: cascade.Cascade, batch: int, seed: int = 0) -> np.ndarray:
    """Return a batch of noise that cannot be written to."""
    x = np.random.default_rng(seed).standard_normal((batch, *S.shape)).astype(S.dtype)
    x.flags.writeable = False
    return x


ORDERS = [("reversed", 0), ("natural", 0), *(("shuffled", seed) for seed in range(3))]


def barrier_is_needed(run: Callable[[], np.ndarray | None], expected: np.ndarray, line: int) -> bool:
    """Say whether without the barrier of a line some order of the threads gives something else, or nothing."""
    for order in ORDERS:
        with emulation.schedule(*order), emulation.barriers(without_line=line):
            found = run()
        if found is None or not np.array_equal(found, expected):
            return True
    return False
