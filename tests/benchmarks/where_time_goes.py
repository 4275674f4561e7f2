"""Where the time of a call goes: the compiled engine's operations, and how fast its Fourier transforms are.

Flops are nominal: 5 n log2 n for a complex transform of n points, half of that for a real one.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft

from scattercube.flows.bench import best_s
from scattercube.kernels import HarmonicScattering3D, Scattering2D, TimeFrequencyScattering
from scattercube.kernels.cascade import Cascade
from scattercube.kernels.engine.library import Engine
from scattercube.kernels.fused_plan import Plan
from scattercube.kernels.fused_schedule import Schedule

STOPWATCH = "stopwatch"  # what taking a call apart costs


@dataclass(frozen=True)
class Split:
    """A call, taken apart.

    Parameters
    ----------
    seconds
        Of the call, with a stopwatch at every operation.
    spent
        The seconds of each operation of the compiled engine; what remains is Python's and the portable primitives'.
    root, flops
        Flops of the transform of the inputs, and of all transforms.
    """

    seconds: float
    spent: Counter[str]
    root: float
    flops: float

    def __str__(self) -> str:
        """The shares of the operations, the largest first."""
        rest = {"Python": self.seconds - sum(self.spent.values())} if self.spent else {}
        shares = {**dict(self.spent.most_common()), **rest}
        return ", ".join(f"{name} {s / self.seconds:.0%}" for name, s in shares.items() if s > 0.005 * self.seconds)

    @property
    def rate(self) -> float:
        """Flops per second of the transform of the inputs, an operation of its own; NaN where it is not."""
        return self.root / self.spent["spectrum"] if self.spent["spectrum"] > 0 else math.nan


def split(S: Any, batch: int, call: Callable[[], Any], turns: int = 5) -> Split:
    """Take a call apart: the best of some turns."""
    root, count = (batch * n for n in transforms(S))
    found = []
    for _ in range(turns):
        with stopwatch() as spent:
            seconds = best_s(call, 0)
        seconds -= spent.pop(STOPWATCH, 0.0)
        found.append(Split(seconds, spent, root, count))
    return min(found, key=lambda one: one.seconds)


def flops(n: int, real: bool = False) -> float:
    return (2.5 if real else 5) * n * math.log2(n)


def transforms(S: Any) -> tuple[float, float]:
    """Count the flops of one input's own transform, and of all: every path back, every path that goes on forth."""
    if isinstance(S, HarmonicScattering3D):
        paths = [path for path in S.paths.rows if path]
        one, n_wavelets = flops(math.prod(S.shape), real=True), (S.L + 1) ** 2
        return one, (len(paths) * n_wavelets + 1 + (S.L + 1) * sum(map(S._goes_on, paths))) * one
    cascade: Cascade = S._time if isinstance(S, TimeFrequencyScattering) else S
    sizes = [math.prod(cascade._grid(level)) for level in range(len(cascade._lowpasses))]
    root = flops(sizes[0], real=True)
    count = root
    for scales, rows in cascade.paths.rows.items():
        if scales:
            n = sizes[cascade._level(scales[-1])]
            count += rows.size * (flops(n) + flops(n, real=True) * bool(cascade._next(scales)))
    return root, count


@contextmanager
def stopwatch() -> Iterator[Counter[str]]:
    """Collect the seconds spent in each operation of the compiled engine."""
    seconds: Counter[str] = Counter()
    found, run, alike = Engine.__getattr__, Plan.run, Plan._alike

    def timed(self: Engine, name: str) -> Callable[..., Any]:
        function = found(self, name)
        return function if name == "run" else lambda *arguments: watched(name, lambda: function(*arguments))

    def step_by_step(self: Plan, schedule: Schedule, steps: slice, *arguments: Any) -> None:
        for i, step in enumerate(schedule.steps):
            name = step.call
            if name == "wavelet":
                name = f"wavelet, {'last' if step.deeper is None else 'inner'}"
            watched(name, lambda i=i: run(self, schedule, slice(i, i + 1), *arguments))
            way = best_s(lambda: run(self, schedule, slice(0, 0), *arguments), 0)  # to the engine and back
            seconds[name] -= way
            seconds[STOPWATCH] += 2 * way

    def watched(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name] += time.perf_counter() - start
        return result

    def one_by_one(self: Plan, blocks: Any, most: int) -> Any:
        return alike(self, blocks, 1)

    Engine.__getattr__, Plan.run, Plan._alike = timed, step_by_step, one_by_one  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Engine.__getattr__, Plan.run, Plan._alike = found, run, alike  # type: ignore[method-assign]


def scipy_rate() -> float:
    """Measure the best flops per second of scipy.fft on batches of complex lines and grids that stay in cache."""
    best = 0.0
    for shape, axes in (((32, 256), 1), ((8, 1024), 1), ((8, 32, 32), 2), ((2, 64, 64), 2)):
        x = np.ones(shape, np.complex64)
        n, dims = math.prod(shape[1:]), tuple(range(1, axes + 1))
        best = max(best, shape[0] * flops(n) / best_s(lambda x=x, dims=dims: scipy.fft.fftn(x, axes=dims), 0.05))
    return best


def engine_rate() -> float:
    """Measure the best rate of the engine's transforms on small images, which stay in cache; NaN without an engine."""
    rates = []
    for J, size, batch in ((2, 24, 16), (2, 32, 16), (3, 48, 16), (4, 112, 1), (4, 240, 1)):
        S, x = Scattering2D(J, (size, size)), np.ones((batch, size, size), np.float32)
        rates.append(split(S, batch, lambda S=S, x=x: S(x), turns=50).rate)
    return max(rates)
