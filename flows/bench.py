"""Time the transforms on this machine, with every engine that it has: what ``scattercube bench`` does.

An engine is chosen once per process, so each works in one of its own, which is this module run as a program.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.table import Table

AUDIO_HZ = 44_100
"""The sampling rate at which the speed on signals is told."""

PEER = "Kymatio"
_NOT_HERE = 3  # exit code of a process whose engine this processor does not run

Call = Callable[[], Any]
Timed = tuple[float, int]  # seconds, projected bytes


@dataclass(frozen=True)
class Work:
    """A batch of noise to transform.

    Parameters
    ----------
    title
        What it is, in a few words.
    transform
        The name of a class in `scattercube.kernels`.
    parameters
        Its own, and Kymatio's.
    batch
        How many inputs.
    """

    title: str
    transform: str
    parameters: Mapping[str, Any]
    batch: int

    def make(self, **more: Any) -> Any:
        """Construct the transform."""
        return getattr(importlib.import_module("scattercube.kernels"), self.transform)(**self.parameters, **more)

    def inputs(self) -> NDArray[np.float32]:
        """Return the inputs, always the same: (batch, *shape)."""
        shape = self.parameters["shape"]
        shape = shape if isinstance(shape, tuple) else (shape,)
        return np.random.default_rng(0).standard_normal((self.batch, *shape), dtype=np.float32)

    def speed(self, seconds: float) -> str:
        """Say how much is done in a second, if the work takes so many."""
        each, of = self.batch / seconds, {"Scattering2D": "images", "HarmonicScattering3D": "volumes"}
        if self.transform in of:
            return f"{_three(each)} {of[self.transform]}/s"
        return f"{_three(each * self.parameters['shape'] / AUDIO_HZ)} s audio/s"


WORKS = (
    Work("256 × 32², J=2", "Scattering2D", {"J": 2, "shape": (32, 32)}, 256),
    Work("64 × 64², J=3", "Scattering2D", {"J": 3, "shape": (64, 64)}, 64),
    Work("4 × 256², J=4", "Scattering2D", {"J": 4, "shape": (256, 256)}, 4),
    Work("512², J=5", "Scattering2D", {"J": 5, "shape": (512, 512)}, 1),
    Work("16 × 2^13, J=6, Q=8", "Scattering1D", {"J": 6, "shape": 2**13, "Q": 8}, 16),
    Work("4 × 2^16, J=10, Q=8", "Scattering1D", {"J": 10, "shape": 2**16, "Q": 8}, 4),
    Work("4 × 2^16, J=12, Q=16", "Scattering1D", {"J": 12, "shape": 2**16, "Q": 16}, 4),
    Work("64³, J=2, L=3", "HarmonicScattering3D", {"J": 2, "shape": (64, 64, 64), "L": 3}, 1),
    Work("joint 2^14, J=8, Q=8", "TimeFrequencyScattering", {"J": 8, "J_fr": 3, "shape": 2**14, "Q": 8}, 1),
)
QUICK = (
    Work("8 × 16², J=2", "Scattering2D", {"J": 2, "shape": (16, 16)}, 8),
    Work("4 × 2^9, J=4, Q=4", "Scattering1D", {"J": 4, "shape": 2**9, "Q": 4}, 4),
    Work("8³, J=1, L=1", "HarmonicScattering3D", {"J": 1, "shape": (8, 8, 8), "L": 1}, 1),
    Work("joint 2^8, J=4, Q=2", "TimeFrequencyScattering", {"J": 4, "J_fr": 1, "shape": 2**8, "Q": 2}, 1),
)
"""A moment's work."""
WORKS_OF = {False: WORKS, True: QUICK}


@dataclass(frozen=True)
class Measured:
    """What one engine did with one work.

    Parameters
    ----------
    seconds
        Of the best call.
    nbytes
        The projected peak of a call.
    error
        ‖S − S64‖ / ‖S64‖, where S64 is what the portable engine finds in double precision.
    """

    seconds: float
    nbytes: int
    error: float


def measure(quick: bool, threads: int) -> Iterator[tuple[str, list[Measured | None]]]:
    """Yield (engine, what it did with each of `WORKS_OF`) for every engine that runs here, the slowest first.

    Where Kymatio is installed it is the last one: the faster of its NumPy and torch backends, on the works that it has.
    It extends images and signals in its own way, so that its ``error`` is NaN, and it projects no ``nbytes``.
    """
    from scattercube.kernels.engine.library import INSTRUCTION_SETS, built

    engines = ["portable", *(name for name in reversed(INSTRUCTION_SETS) if name in built())]
    if importlib.util.find_spec("kymatio"):
        engines.append(PEER)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "exact"
        _elsewhere("portable", quick, threads, exact, "float64")
        for engine in engines:
            here = Path(folder) / engine
            if (calls := _elsewhere(engine, quick, threads, here, "float32")) is not None:
                errors = [_error(here / f"{i}.npy", exact / f"{i}.npy") for i in range(len(calls))]
                yield engine, [c and Measured(c[0], c[1], e) for c, e in zip(calls, errors, strict=True)]


def table(found: Mapping[str, Sequence[Measured | None]], quick: bool) -> "Table":
    """Lay out what `measure` found: a row per work, a column of milliseconds per engine."""
    from rich.table import Table

    *_, best = (name for name in found if name != PEER)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("ms a call", no_wrap=True)
    for name in (*found, f"with {best}", "error", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, work in enumerate(WORKS_OF[quick]):
        ours = [here for name in found if name != PEER and (here := found[name][i])]
        table.add_row(
            work.title,
            *("–" if (here := calls[i]) is None else _three(here.seconds * 1e3) for calls in found.values()),
            work.speed(ours[-1].seconds),
            f"{max(here.error for here in ours):.0e}",
            _three(ours[-1].nbytes / 1e6),
        )
    return table


def best_s(call: Call, budget_s: float) -> float:
    """Return the time of the fastest of some calls, one or as many as fit into so much time."""
    best, end = float("inf"), time.perf_counter() + budget_s
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def call_of(transform: Any, x: NDArray[Any], threads: int) -> Call:
    """Return a call of a transform, with so many threads where it can use any."""
    if "threads" in signature(type(transform).__call__).parameters:
        return lambda: transform(x, threads=threads)
    return lambda: transform(x)


def peer_call(work: Work, backend: str) -> Call | None:
    """Return a call of Kymatio's transform in NumPy or torch, None where it has none or there is no such backend."""
    if importlib.util.find_spec(backend) is None:
        return None
    special: Any = importlib.import_module("scipy.special")
    if not hasattr(special, "sph_harm"):  # gone in SciPy 1.17, imported by Kymatio for its 3-D transform
        special.sph_harm = lambda m, n, azimuth, polar: special.sph_harm_y(n, m, polar, azimuth)
    if (make := getattr(importlib.import_module(f"kymatio.{backend}"), work.transform, None)) is None:
        return None
    transform, x = make(**work.parameters), work.inputs()
    if backend == "torch":
        x = importlib.import_module("torch").from_numpy(x)
    return lambda: np.asarray(transform(x))


# --- One engine: a process that writes its results into a folder ---


def _elsewhere(engine: str, quick: bool, threads: int, folder: Path, dtype: str) -> list[Timed | None] | None:
    """Let a process of its own work with an engine; None where this processor does not run it."""
    folder.mkdir()
    environment = {"SCATTERCUBE_ENGINE": "" if engine == PEER else engine}
    # Threads of the linear algebra, which are Kymatio's only ones: ours are told how many they may be.
    blas = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment |= dict.fromkeys(blas, str(threads if engine == PEER else 1))
    request = json.dumps({"engine": engine, "quick": quick, "threads": threads, "folder": str(folder), "dtype": dtype})
    command = [sys.executable, "-m", "scattercube.flows.bench", request]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)  # noqa: S603 our own
    if done.returncode == _NOT_HERE:
        return None
    if done.returncode:
        raise RuntimeError(f"the engine {engine} failed: {done.stderr}")
    calls: list[Timed | None] = json.loads((folder / "calls.json").read_text(encoding="utf-8"))
    return calls


def _work(engine: str, quick: bool, threads: int, folder: str, dtype: str) -> None:
    """Do all works with the engine of this process."""
    from scattercube.kernels import active_engine

    try:
        active_engine()
    except ValueError:
        sys.exit(_NOT_HERE)
    calls: list[Timed | None] = []
    for i, work in enumerate(WORKS_OF[quick]):
        budget_s = 0.0 if quick else 0.4
        if engine == PEER:
            peers = [call for backend in ("numpy", "torch") if (call := peer_call(work, backend))]
            for call in peers:
                call()
            calls.append((min(best_s(call, budget_s) for call in peers), 0) if peers else None)
            continue
        transform, x = work.make(dtype=dtype), work.inputs()
        call = call_of(transform, x, threads)
        np.save(Path(folder) / f"{i}.npy", call())
        calls.append((best_s(call, budget_s) if dtype == "float32" else 0.0, transform.nbytes(len(x))))
    (Path(folder) / "calls.json").write_text(json.dumps(calls), encoding="utf-8")


def _three(value: float) -> str:
    """Write a number for people, with three significant figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _error(actual: Path, exact: Path) -> float:
    if not actual.exists():
        return float("nan")
    expected = np.load(exact)
    return float(np.linalg.norm(np.load(actual) - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    _work(**json.loads(sys.argv[1]))
