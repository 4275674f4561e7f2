"""Measure the transforms on a CUDA device beside Kymatio's torch backend: check, time, weigh, print, in eight minutes.

    python -m tests.gpu.measure                          # prints; exit code 1 where a row of ours fails
    python -m tests.gpu.measure --write docs/gpu.md      # and writes the page, anew after every row
    python -m tests.gpu.measure --rows 0 9 --slow        # some rows; Kymatio's filters for 512² take a minute
    python -m tests.gpu.measure --quick                  # a moment's work: does it run at all?

Ours takes and returns CuPy arrays, in Kymatio's convention where Kymatio does the same work. A time is the larger of
the median by the device's events and the mean by the clock, synchronised, of many calls after a warm-up. A graph is the
same call captured once and replayed; its replay is checked with another input and a poisoned output. Errors are
‖S − S64‖ / ‖S64‖ of the first inputs, where S64 is what NumPy finds in double precision, of all coefficients and of the
worst path.

The floor of a call is the larger of two times: its nominal flops (5 n log2 n a complex transform of n points, of all
that the definition asks for: `tests/benchmarks/where_time_goes.py` counts them) at the better of the two rates of cuFFT
that are measured first, and the bytes of its input and its result at the bandwidth of a copy. The roofline fraction is
the floor over the time of our better call. It may exceed one: kernels skip what a wavelet does not reach, and what fits
into the L2 cache is faster than a copy.
"""

import argparse
import datetime
import importlib
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scattercube.flows.bench import QUICK, WORKS, Work
from scattercube.kernels import to_host
from tests.benchmarks.where_time_goes import flops, transforms
from tests.gpu import peers
from tests.gpu.gauge import (
    LIMITS,
    Call,
    Timing,
    captured,
    device_problem,
    errors,
    peak_nbytes,
    poison,
    release,
    timed,
    within,
)
from tests.gpu.tables import short, table, times, tiny

KYMATIO = {"padding": "kymatio"}
ADJOINT_LIMIT = 5e-5  # of the error of a gradient: y/|y| is steep where |y| is small
REPLAY_LIMIT = 1e-6  # by which a replay may differ from a call
N_KERNELS = 10
ARCHIVES_S = 200.0  # after which archives are given up
ABOUT_ARCHIVES = """One worker of Dask-CUDA, by `deploy/clusters/one-gpu.yaml`, and noise in the page cache: from the
archive to the chunk store, and from that to the cube. Kernels alone: the same transform on arrays that are on the
device already. Once begun: what is done after each thread has ended a key, with filters and kernels on the device."""
GIBI, MEBI = 2**30, 2**20


@dataclass(frozen=True)
class Case:
    """A row: a work, and how it is measured.

    Parameters
    ----------
    work
        The work.
    peer
        Whether Kymatio does it too, in its convention; else ours is in its own.
    slow
        Whether making Kymatio's filters takes so long that it must be asked for.
    profiled
        Whether the most expensive kernels are listed.
    adjoint
        Whether the gradient of a weighted sum of the coefficients is measured too, all of what it takes counted.
    n_checked
        How many inputs are compared with double precision.
    """

    work: Work
    peer: bool = True
    slow: bool = False
    profiled: bool = False
    adjoint: bool = False
    n_checked: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """What ours is made with."""
        return KYMATIO if self.peer and self.work.transform != "HarmonicScattering3D" else {}

    @property
    def title(self) -> str:
        return self.work.title if self.peer else f"{self.work.title}, own padding"


SMALL_IMAGES = Work("4096 × 32², J=2", "Scattering2D", {"J": 2, "shape": (32, 32)}, 4096)
IMAGES = Work("128 × 256², J=4", "Scattering2D", {"J": 4, "shape": (256, 256)}, 128)
TILE = Work("2048², J=5", "Scattering2D", {"J": 5, "shape": (2048, 2048)}, 1)
SIGNALS = Work("64 × 2^16, J=8, Q=8", "Scattering1D", {"J": 8, "shape": 2**16, "Q": 8}, 64)
VOLUME = Work("128³, J=2, L=3", "HarmonicScattering3D", {"J": 2, "shape": (128, 128, 128), "L": 3}, 1)
JOINT = Work("16 × joint 2^14, J=8, Q=8", "TimeFrequencyScattering", {"J": 8, "J_fr": 3, "shape": 2**14, "Q": 8}, 16)
CASES = (
    *(Case(work, slow=work.parameters["shape"] == (512, 512), n_checked=min(work.batch, 2)) for work in WORKS),
    Case(SMALL_IMAGES, profiled=True, adjoint=True, n_checked=2),
    Case(SMALL_IMAGES, peer=False, n_checked=2),
    Case(IMAGES, profiled=True, adjoint=True),
    Case(IMAGES, peer=False),
    Case(TILE, peer=False),
    Case(SIGNALS, profiled=True, adjoint=True),
    Case(VOLUME, adjoint=True),
    Case(JOINT),
)
MOMENT = (*(Case(work, profiled=work is QUICK[0], adjoint=True) for work in QUICK), Case(QUICK[0], peer=False))


# --- Ceilings ---


@dataclass
class Ceilings:
    """What the machine does at best.

    Parameters
    ----------
    rows
        The name, the value and the unit of each measurement.
    bandwidth
        Bytes per second of a copy on the device, read and written.
    flop_rate
        Nominal flops per second of cuFFT.
    notes
        What went wrong.
    """

    rows: list[tuple[str, float, str]] = field(default_factory=list)
    bandwidth: float = math.nan
    flop_rate: float = math.nan
    notes: list[str] = field(default_factory=list)

    def measure(self, small: bool) -> None:
        """Measure all; with small arrays where there is but a moment."""
        large, half = 64 * MEBI if small else 4 * GIBI, 8 * MEBI
        lines, grids = ((512, 2**13), (64, 144, 144)) if small else ((2**14, 2**13), (4096, 144, 144))
        mebibytes = f"{large // MEBI:,} MiB"
        self.bandwidth = self._add(f"copy on the device, {mebibytes}", "TB/s", lambda: copy_rate(large))
        self._add("copy inside L2, 8 + 8 MiB", "TB/s", lambda: copy_rate(half, n_in_graph=20))
        self._add("pinned host → device", "GB/s", lambda: host_rate(large // 4, to_the_device=True))
        self._add("device → pinned host", "GB/s", lambda: host_rate(large // 4, to_the_device=False))
        rates = (
            self._add(f"cuFFT complex64, {lines[0]:,} × 2^13", "TFLOP/s", lambda: fft_rate(lines)),
            self._add(f"cuFFT complex64, {grids[0]:,} × 144²", "TFLOP/s", lambda: fft_rate(grids)),
        )
        self.flop_rate = float(np.fmax(*rates))

    def _add(self, name: str, unit: str, measured: Callable[[], float]) -> float:
        """Measure a rate, note it, and return it; NaN where that fails."""
        rate = math.nan
        with guarded(name, self.notes):
            rate = measured()
        with guarded(name, self.notes):
            release()
        self.rows.append((name, rate / {"GB/s": 1e9}.get(unit, 1e12), unit))
        return rate


def copy_rate(nbytes: int, n_in_graph: int = 0) -> float:
    """Return the bytes per second, read and written, of copies of so many bytes; many of them in a graph, or one."""
    import cupy as cp

    source = cp.arange(nbytes // 4, dtype=cp.float32)
    target = cp.empty_like(source)
    copies: tuple[Call, ...] = (lambda: cp.copyto(target, source), lambda: cp.negative(source, out=target))
    best = 0.0
    for copy in copies:
        if n_in_graph:
            graph = captured(lambda copy=copy: [copy() for _ in range(n_in_graph)])
            best = max(best, 2 * nbytes * n_in_graph / timed(graph.replay, 0.1).events_s)
        else:
            best = max(best, 2 * nbytes / timed(copy, 0.2).events_s)
    if not bool((target == -source).all()):
        raise RuntimeError("the copy is not what was copied")
    return best


def host_rate(nbytes: int, to_the_device: bool) -> float:
    """Return the bytes per second of copies from pinned memory to the device, or back."""
    import cupy as cp

    runtime = cp.cuda.runtime
    host, device = cp.cuda.alloc_pinned_memory(nbytes), cp.zeros(nbytes, dtype=cp.uint8)
    values = np.frombuffer(host, dtype=np.uint8, count=nbytes)
    values[:] = 1
    ends = (device.data.ptr, host.ptr) if to_the_device else (host.ptr, device.data.ptr)
    kind = runtime.memcpyHostToDevice if to_the_device else runtime.memcpyDeviceToHost
    stream = cp.cuda.get_current_stream().ptr
    rate = nbytes / timed(lambda: runtime.memcpyAsync(*ends, nbytes, kind, stream), 0.2).events_s
    if int(device.sum(dtype=cp.int64)) != int(values.sum(dtype=np.int64)):
        raise RuntimeError("the copy is not what was copied")
    return rate


def fft_rate(shape: tuple[int, ...]) -> float:
    """Return the nominal flops per second of cuFFT on a batch of complex lines or grids, out of place."""
    import cupy as cp
    import cupyx.scipy.fft

    numbers = cp.random.default_rng(0).standard_normal((*shape[:-1], 2 * shape[-1]), dtype=cp.float32)
    x = numbers.view(cp.complex64)
    y = cp.full_like(x, cp.nan)
    plan = cupyx.scipy.fft.get_fft_plan(x, axes=tuple(range(1, len(shape))))
    from cupy.cuda import cufft  # which the plan has loaded

    timing = timed(lambda: plan.fft(x, y, cufft.CUFFT_FORWARD), 0.2)
    first = np.fft.fftn(to_host(x[0]).astype(np.complex128))
    if not np.linalg.norm(to_host(y[0]) - first) < 1e-5 * np.linalg.norm(first):
        raise RuntimeError("cuFFT's result is not the Fourier transform")
    return shape[0] * flops(math.prod(shape[1:])) / timing.events_s


# --- Rows ---


@dataclass
class Row:
    """What was found for a case: times by whose they are, NaN or absent where there is none.

    Parameters
    ----------
    number
        Of the row, for ``--rows``.
    case
        What was measured.
    times
        Of ``ours``, ``ours, graph``, ``Kymatio`` and ``Kymatio, graph``; of ``our adjoint`` and ``Kymatio's adjoint``.
    error, worst
        Of ours against double precision: of all, of the worst path.
    adjoint_error
        Of our gradient against double precision.
    distance
        ‖ours − Kymatio's‖ / ‖Kymatio's‖, of one input.
    peak_nbytes, projected_nbytes, peer_nbytes
        Of memory: ours, measured and projected, and Kymatio's.
    flops, nbytes
        Nominal flops; bytes of input and result.
    kernels
        The most expensive kernels: name, launches a call, seconds a call.
    notes
        Why something is missing.
    """

    number: int
    case: Case
    times: dict[str, Timing] = field(default_factory=dict)
    error: float = math.nan
    worst: float = math.nan
    adjoint_error: float = math.nan
    distance: float = math.nan
    peak_nbytes: float = math.nan
    projected_nbytes: float = math.nan
    peer_nbytes: float = math.nan
    flops: float = math.nan
    nbytes: float = math.nan
    kernels: list[tuple[str, float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def seconds(self, name: str) -> float:
        return self.times[name].seconds if name in self.times else math.nan

    @property
    def best_s(self) -> float:
        """Of ours."""
        return min((self.seconds(name) for name in ("ours", "ours, graph") if name in self.times), default=math.nan)

    @property
    def ok(self) -> bool:
        """Whether ours ran and is right."""
        adjoint = not self.case.adjoint or self.adjoint_error <= ADJOINT_LIMIT
        return "ours" in self.times and within(self.error, self.worst, "float32") and adjoint

    def floor_s(self, ceilings: Ceilings) -> float:
        return max(self.flops / ceilings.flop_rate, self.nbytes / ceilings.bandwidth)


@contextmanager
def guarded(what: str, notes: list[str]) -> Iterator[None]:
    """Note the first line of an exception, and go on."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        notes.append(f"{what}: {type(error).__name__}: {lines[0][:200]}")
        say(f"  {notes[-1]}")


def measure_row(row: Row, known: peers.Known, peer_wanted: bool, budget_s: float) -> None:
    """Measure ours, then Kymatio's, each on a device that holds nothing of the other's."""
    first = measure_ours(row, known.exact, budget_s)
    if known.adjoint is not None:
        measure_adjoint(row, known.adjoint, budget_s)
    with guarded("release", row.notes):
        release()
    if peer_wanted:
        measure_peer(row, known.peer, first, budget_s)
        with guarded("release", row.notes):
            release()
    elif row.case.peer:
        row.notes.append("Kymatio: making its filters takes a minute, --slow measures it")


def measure_ours(row: Row, exact: Future[np.ndarray], budget_s: float) -> np.ndarray | None:
    """Check, weigh and time ours; return the coefficients of the first input."""
    import cupy as cp

    work, first = row.case.work, None
    with guarded("ours", row.notes):
        S, values = work.make(**row.case.options), work.inputs()
        row.projected_nbytes = S.nbytes(work.batch, "cuda")
        row.flops = work.batch * transforms(S)[1]
        row.nbytes = values.nbytes + 4 * work.batch * math.prod(S.output_shape)
        x = cp.asarray(values)
        poison(row.projected_nbytes)
        y = S(x)
        if not bool(cp.isfinite(y).all()):
            raise RuntimeError("a coefficient is not finite")
        first = to_host(y[: row.case.n_checked])
        del y
        row.error, row.worst = errors(first, exact.result())
        row.times["ours"] = timed(lambda: S(x), budget_s)
        with guarded("peak", row.notes):
            row.peak_nbytes = peak_nbytes(lambda: S(x))
        release()
        with guarded("our graph", row.notes):
            graph = captured(lambda: S(x))
            x.set(np.roll(values, 1, axis=-1))
            graph.out.fill(cp.nan)
            graph.replay()
            replayed, called = graph.out, S(x)
            if not float(cp.linalg.norm((replayed - called).ravel()) / cp.linalg.norm(called.ravel())) < REPLAY_LIMIT:
                raise RuntimeError("a replay on another input differs from a call")
            row.times["ours, graph"] = timed(graph.replay, budget_s)
        if row.case.profiled:
            with guarded("profile", row.notes):
                row.kernels = hottest(lambda: S(x))
    return first


def measure_adjoint(row: Row, exact: Future[np.ndarray], budget_s: float) -> None:
    """Check and time our gradient, from an input and weights of its coefficients."""
    import cupy as cp

    with guarded("our adjoint", row.notes):
        S = row.case.work.make(**row.case.options)
        x, g = cp.asarray(row.case.work.inputs()), cp.asarray(peers.weights(S, row.case.work.batch))
        gradient = to_host(S.adjoint(x, g)[:1])
        row.adjoint_error = errors(gradient[:, None], exact.result()[:, None])[0]
        row.times["our adjoint"] = timed(lambda: S.adjoint(x, g), budget_s)


def measure_peer(row: Row, written: Future[Path] | None, ours: np.ndarray | None, budget_s: float) -> None:
    """Time and weigh Kymatio's transform, or what stands in for it."""
    work = row.case.work
    with guarded("Kymatio", row.notes), importlib.import_module("torch").no_grad():
        torch = importlib.import_module("torch")
        S = work.make(**row.case.options)
        peer = peers.read_peer(work, written) if written else peers.stand_in(S)
        x = torch.from_numpy(work.inputs()).cuda()
        y = peer(x)
        values, which = peers.as_ours(work, S, y[:1].cpu().numpy())
        if not np.isfinite(values).all():
            raise RuntimeError("a coefficient is not finite")
        if ours is not None:
            row.distance = errors(ours[:1, which], values)[0]
        del y
        peer(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        peer(x)
        row.peer_nbytes = torch.cuda.max_memory_allocated() - before
        row.times["Kymatio"] = timed(lambda: peer(x), budget_s)
        with guarded("Kymatio's graph", row.notes):
            row.times["Kymatio, graph"] = peer_graph(peer, x, budget_s)
        if row.case.adjoint:
            with guarded("Kymatio's adjoint", row.notes), torch.enable_grad():
                x.requires_grad_()
                g = torch.randn_like(peer(x))
                row.times["Kymatio's adjoint"] = timed(lambda: torch.autograd.grad(peer(x), x, g), budget_s)


def peer_graph(peer: Callable[[Any], Any], x: Any, budget_s: float) -> Timing:
    """Time a torch transform in a CUDA graph, whose replay is checked with another input."""
    torch = importlib.import_module("torch")
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            peer(x)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        y = peer(x)
    x.copy_(torch.roll(x, 1, -1))
    y.fill_(math.nan)
    graph.replay()
    called = peer(x)
    if not float(torch.linalg.norm((y - called).ravel()) / torch.linalg.norm(called.ravel())) < REPLAY_LIMIT:
        raise RuntimeError("a replay on another input differs from a call")
    del called
    return timed(graph.replay, budget_s)


def hottest(call: Call, n_calls: int = 3) -> list[tuple[str, float, float]]:
    """List the most expensive kernels of a call: name, launches, seconds; torch's profiler sees the whole process."""
    torch = importlib.import_module("torch")
    profiler = importlib.import_module("torch.profiler")
    torch.cuda.init()
    call()
    torch.cuda.synchronize()
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(n_calls):
            call()
        torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds[event.name] += event.time_range.elapsed_us() * 1e-6 / n_calls
            launches[event.name] += 1 / n_calls
    if not seconds:
        raise RuntimeError("the profiler saw no kernel")
    total = [("all", sum(launches.values()), sum(seconds.values()))]
    return [(name, launches[name], spent) for name, spent in seconds.most_common(N_KERNELS)] + total


# --- Tables ---


def row_table(head: tuple[str, ...], rows: list[Row], columns: Callable[[Row], tuple[object, ...]]) -> str:
    """Lay out the number and the work of each row, and what else a table says of it."""
    return table(("#", "work", *head), [(row.number, row.case.title, *columns(row)) for row in rows])


def speed_table(rows: list[Row]) -> str:
    names = ("ours", "ours, graph", "Kymatio", "Kymatio, graph")
    return row_table(
        ("ours, ms", *names[1:], "Kymatio / ours", "graph / our better"),
        rows,
        lambda row: (
            *(short(row.seconds(name), 1e-3) for name in names),
            times(row.seconds("Kymatio") / row.seconds("ours")),
            times(row.seconds("Kymatio, graph") / row.best_s),
        ),
    )


def error_table(rows: list[Row]) -> str:
    return row_table(
        ("error", "worst path", "inputs", "from Kymatio", ""),
        rows,
        lambda row: (
            tiny(row.error),
            tiny(row.worst),
            row.case.n_checked,
            tiny(row.distance),
            "" if row.ok else "**failed**",
        ),
    )


def adjoint_table(rows: list[Row]) -> str:
    """Lay out the rows whose adjoint was asked for."""
    return row_table(
        ("ours, ms", "transform alone", "Kymatio, ms", "Kymatio / ours", "error"),
        [row for row in rows if row.case.adjoint],
        lambda row: (
            *(short(row.seconds(name), 1e-3) for name in ("our adjoint", "ours", "Kymatio's adjoint")),
            times(row.seconds("Kymatio's adjoint") / row.seconds("our adjoint")),
            tiny(row.adjoint_error),
        ),
    )


def cost_table(rows: list[Row], ceilings: Ceilings) -> str:
    def columns(row: Row) -> tuple[object, ...]:
        floor_s = row.floor_s(ceilings)
        fraction = floor_s / row.best_s
        return (
            *(short(nbytes, MEBI) for nbytes in (row.peak_nbytes, row.projected_nbytes)),
            short(row.peak_nbytes / row.projected_nbytes),
            short(row.peer_nbytes, MEBI),
            short(row.flops, 1e9),
            short(row.nbytes, MEBI),
            short(floor_s, 1e-3),
            "–" if math.isnan(fraction) else f"{fraction:.0%}",
        )

    head = ("peak MiB", "`nbytes`", "ratio", "Kymatio's", "GFLOP", "in + out MiB", "floor ms", "roofline")
    return row_table(head, rows, columns)


def kernel_table(row: Row) -> str:
    total = row.kernels[-1][2]
    rows = [
        (f"`{name[:90]}`", short(launches), short(spent, 1e-6), f"{spent / total:.0%}")
        for name, launches, spent in row.kernels
    ]
    return table(("kernel", "launches", "µs a call", "share"), rows, n_words=1)


def machine() -> str:
    """Say in a line on what this was measured."""
    import cupy as cp

    runtime = cp.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    cuda = f"{runtime.runtimeGetVersion() // 1000}.{runtime.runtimeGetVersion() % 1000 // 10}"
    versions = []
    for module in ("cupy", "torch", "kymatio", "numpy", "scipy"):
        with guarded(module, versions):
            versions.append(f"{module} {importlib.import_module(module).__version__}")
    return (
        f"{name}, driver {driver}, CUDA {cuda}; {', '.join(versions)}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores; {datetime.date.today():%d %B %Y}."
    )


@dataclass
class Archives:
    """The table of `tests.gpu.archive`, or why there is none."""

    text: str = ""
    notes: list[str] = field(default_factory=list)

    def measure(self) -> None:
        """Run it, in a process of its own: it starts clusters."""
        with guarded("archives", self.notes):
            command = [sys.executable, "-m", "tests.gpu.archive"]
            found = subprocess.run(command, capture_output=True, text=True, timeout=ARCHIVES_S)
            if found.returncode:
                raise RuntimeError(found.stderr.strip().splitlines()[-1])
            self.text = found.stdout.strip()


def page(about: str, ceilings: Ceilings, rows: list[Row], archives: Archives, sections: dict[str, float]) -> str:
    """Write the page: every table, with why something is missing beneath."""
    _, _, measured, weighed = __doc__.strip().split("\n\n")
    lines = ["# On a CUDA device", "", "Written by `python -m tests.gpu.measure --write`.", "", about, ""]
    lines += ["## The machine at its best", ""]
    lines += [table(("", "", "unit"), [(name, short(value), unit) for name, value, unit in ceilings.rows], 1), ""]
    lines += [f"- {note}" for note in ceilings.notes] + [""] * bool(ceilings.notes)
    lines += [
        "Copies count bytes read and bytes written, those inside L2 in a graph of twenty; cuFFT's flops are nominal.",
        "",
        "## Speed",
        "",
        f"Milliseconds a call, float32.\n{measured}",
        "",
        speed_table(rows),
        "",
        *(f"- {row.case.title}, {note}" for row in rows for note in row.notes),
        "",
        "Joint rows stand against a stand-in that does the operations of Kymatio 0.4, path by path.",
        "",
        "## Accuracy",
        "",
        error_table(rows),
        "",
        f"Up to {LIMITS['float32'][0]:g} and {LIMITS['float32'][1]:g} pass. Kymatio's own rounding is in the distance "
        "from it.",
        "",
        "## Adjoints",
        "",
        "The gradient of a weighted sum of the coefficients with respect to the input: the transform is computed again "
        "on the way,\nas Kymatio's is, which torch differentiates (eager). Errors are of the first input's gradient.",
        "",
        adjoint_table(rows),
        "",
        "## Memory and roofline",
        "",
        cost_table(rows, ceilings),
        "",
        "Peaks are what a call adds to what is there before it: result and work areas of cuFFT included, filters not.\n"
        f"{weighed}",
        "",
    ]
    for row in rows:
        if row.kernels:
            lines += [f"## Where the time goes: {row.case.title}", "", kernel_table(row), ""]
    if archives.text or archives.notes:
        lines += ["## Archive to cube", "", ABOUT_ARCHIVES, "", archives.text, *(f"- {n}" for n in archives.notes), ""]
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sections.items())
    lines += ["## How long this took", "", f"{spent}; {sum(sections.values()):.0f} s in all."]
    return "\n".join(lines) + "\n"


# --- The run ---


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def section(name: str, sections: dict[str, float]) -> Iterator[None]:
    """Count the seconds of a section."""
    start = time.perf_counter()
    try:
        yield
    finally:
        sections[name] = time.perf_counter() - start
        say(f"-- {name}: {sections[name]:.1f} s, {sum(sections.values()):.0f} s in all")


def run(options: argparse.Namespace) -> int:
    """Measure all that is asked for, and return the exit code."""
    all_cases = MOMENT if options.quick else CASES
    chosen = [(i, case) for i, case in enumerate(all_cases) if options.rows is None or i in options.rows]
    with_peer = [case.peer and (options.slow or not case.slow) for _, case in chosen]
    budget_s = 0.05 if options.quick else 0.4
    sections: dict[str, float] = {}
    rows: list[Row] = []
    ceilings, archives, start = Ceilings(), Archives(), time.perf_counter()

    def write() -> str:
        text = page(about, ceilings, rows, archives, sections)
        if options.write:
            options.write.write_text(text, encoding="utf-8")
        return text

    with tempfile.TemporaryDirectory() as folder:
        works = [
            peers.Wanted(
                case.work,
                case.options,
                case.n_checked,
                adjoint=case.adjoint,
                peer=wanted and case.work.transform != "TimeFrequencyScattering",
            )
            for (_, case), wanted in zip(chosen, with_peer, strict=True)
        ]
        n_processes = max(1, min(len(chosen), (os.cpu_count() or 2) - 1))
        # Leaving the pool waits for all of it: nothing else works while the device is measured.
        with section("references and filters", sections), peers.processes(n_processes) as pool:
            prepared = peers.prepare(pool, works, Path(folder))
        about = machine()
        say(about)
        with section("ceilings", sections):
            ceilings.measure(small=options.quick)
        for name, value, unit in ceilings.rows:
            say(f"  {name}: {short(value)} {unit}")
        for (number, case), known, wanted in zip(chosen, prepared, with_peer, strict=True):
            row = Row(number, case)
            rows.append(row)
            with section(f"row {number}", sections):
                if time.perf_counter() - start > options.limit_s:
                    row.notes.append(f"not measured: {options.limit_s:g} s were over")
                else:
                    measure_row(row, known, wanted, budget_s)
            say(speed_table([row]).splitlines()[-1])
            say(error_table([row]).splitlines()[-1])
            write()
    if options.rows is None and not options.quick:
        release()
        with section("archives", sections):
            archives.measure()
    say("")
    say(write())
    failed = [row.case.title for row in rows if not row.ok]
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the page to this file")
    parser.add_argument("--quick", action="store_true", help="small works, little time each")
    parser.add_argument("--rows", type=int, nargs="+", help="which rows, by their number in the tables")
    parser.add_argument("--slow", action="store_true", help="Kymatio's transform of 512² too")
    parser.add_argument("--limit-s", type=float, default=420, help="rows begun later than this are left out")
    options = parser.parse_args()
    if unknown := set(options.rows or ()) - set(range(len(MOMENT if options.quick else CASES))):
        parser.error(f"there is no row {', '.join(map(str, sorted(unknown)))}")
    if problem := device_problem():
        say(problem)
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
