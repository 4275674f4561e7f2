"""Time every transform against Kymatio's fastest backend: one process, the same inputs and parameters.

    uv run --group bench python tests/benchmarks/bench_kernels.py            # prints
    uv run --group bench python tests/benchmarks/bench_kernels.py --write    # and brings the pages up to date

Kymatio is release 0.3: its NumPy backend, and its torch backend where torch is installed. All take turns and the best
of several counts, so that a busy machine slows them alike. Ours is in Kymatio's convention, compiled and portable;
``error`` is ‖ours − peer's‖ / ‖peer's‖. Release 0.3 has no joint transform: a stand-in does its operations.
"""

import argparse
import ctypes
import datetime
import gc
import importlib.util
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import where_time_goes
from stand_in import JointStandIn
from threadpoolctl import threadpool_limits

from scattercube.flows.bench import WORKS, Call, Work, best_s, call_of, peer_call
from scattercube.kernels import active_engine

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
BACKENDS = [name for name in ("numpy", "torch") if importlib.util.find_spec(name)]
LOAD = os.getloadavg()[0]
CALLS = ("ours", "portable", *BACKENDS)


@dataclass
class Row:
    """What was found for one work: best seconds, peak bytes and seconds of construction by call."""

    work: Work
    error: float = math.nan
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CALLS, math.inf))
    peak_nbytes: dict[str, float] = field(default_factory=dict)
    built_s: dict[str, float] = field(default_factory=dict)
    first_s: dict[str, float] = field(default_factory=dict)
    projected_nbytes: int = 0
    split: where_time_goes.Split | None = None

    @property
    def peer(self) -> str:
        """The faster of the peer's backends."""
        return min(BACKENDS, key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        return self.seconds[self.peer] / self.seconds["ours"]


@contextmanager
def engine_named(name: str) -> Iterator[None]:
    """Choose the engine of the transforms whose first call is made here."""
    before = os.environ.get("SCATTERCUBE_ENGINE", "")
    os.environ["SCATTERCUBE_ENGINE"] = name
    active_engine.cache_clear()
    try:
        yield
    finally:
        os.environ["SCATTERCUBE_ENGINE"] = before
        active_engine.cache_clear()


def ours(work: Work) -> Any:
    """Construct our transform in the peer's convention."""
    return work.make() if work.transform == "HarmonicScattering3D" else work.make(padding="kymatio")


def peer(work: Work, backend: str) -> Call:
    """Construct the peer's transform, or what stands in for it."""
    if (call := peer_call(work, backend)) is not None:
        return call
    module = importlib.import_module(backend)
    stand_in, x = JointStandIn(ours(work), module), work.inputs()
    signals = x if module is np else module.from_numpy(x)
    return lambda: np.asarray(stand_in(signals))


def in_order(work: Work, S: Any, values: np.ndarray) -> np.ndarray:
    """Lay out the peer's result as ours.

    Release 0.3 takes the mean over aliases where 0.4 and ours take the sum: at order m in 1-D it lacks 2^(j1 + … + jm).
    """
    if work.transform == "Scattering1D":
        exponent = sum(np.maximum(S.paths.columns[f"j{m}"], 0).astype(int) for m in (1, 2))
        return values * np.ldexp(1.0, exponent)[:, None]
    if work.transform == "HarmonicScattering3D":
        return values.reshape(len(values), -1)
    return values


def constructed(make: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


def peak_nbytes(i: int, name: str) -> float:
    """Measure by how much a call of ours or of a backend raises the resident memory of a process of its own (Linux).

    What is freed there goes back to the system at once, and is not taken again unseen.
    """
    freeing = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--peak", str(i), name], env=os.environ | freeing, check=True, capture_output=True
    )
    return float(done.stdout)


def peak_here(i: int, name: str) -> float:
    work = WORKS[i]
    call = call_of(ours(work), work.inputs(), 1) if name == "ours" else peer(work, name)
    call()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark, back to what is resident now
    except (OSError, AttributeError):
        return math.nan
    before = status_nbytes("VmRSS")
    call()
    return status_nbytes("VmHWM") - before


def status_nbytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", status)[1])


def first_result_s(i: int, call: str) -> float:
    """Measure the time from the start of Python to the first result of one work."""
    code = f"from scattercube.flows.bench import WORKS, peer_call; work = WORKS[{i}]; {call}"
    _, seconds = constructed(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    return seconds


def measure(i: int, threads: list[int], turns: int) -> Iterator[Row]:
    """Yield a row per thread count; the first also has memory, construction, first results and where the time goes."""
    work, x, row = WORKS[i], WORKS[i].inputs(), Row(WORKS[i])
    S, row.built_s["ours"] = constructed(lambda: ours(work))
    result = S(x)
    with engine_named("portable"):
        portable = ours(work)
        portable(x)
    peers = {}
    for backend in BACKENDS:
        peers[backend], row.built_s[backend] = constructed(lambda backend=backend: peer(work, backend))
        expected = in_order(work, S, peers[backend]())
    own = result[:, 3:] if work.transform == "HarmonicScattering3D" else result  # the peer has no order 0
    row.error = np.linalg.norm(own - expected) / np.linalg.norm(expected)
    for n in threads:
        if "torch" in BACKENDS:
            importlib.import_module("torch").set_num_threads(n)
        calls = {"ours": call_of(S, x, n), "portable": call_of(portable, x, n)} | peers
        row = replace(row, seconds=dict.fromkeys(CALLS, math.inf))
        for _ in range(turns):
            for name, call in calls.items():
                row.seconds[name] = min(row.seconds[name], best_s(call, 0.1))
        if row.split is None:
            row.peak_nbytes = {name: peak_nbytes(i, name) for name in ("ours", row.peer)}
            row.projected_nbytes = S.nbytes(len(x))
            row.split = where_time_goes.split(S, work.batch, calls["ours"])
            row.first_s["ours"] = first_result_s(i, "work.make()(work.inputs())")
            if work.transform != "TimeFrequencyScattering":
                row.first_s["numpy"] = first_result_s(i, "peer_call(work, 'numpy')()")
        yield row


# --- Tables ---


def cells(*values: object) -> str:
    return f"| {' | '.join(map(str, values))} |"


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    return "\n".join([cells(*head), cells("---", *["--:"] * (len(head) - 1)), *(cells(*row) for row in rows)])


def short(value: float, unit: float = 1e-3) -> str:
    """Three figures of a value in its unit."""
    if not math.isfinite(value):
        return "–"
    return f"{value / unit:,.0f}" if value / unit >= 100 else f"{value / unit:.3g}"


def title(row: Row) -> str:
    return row.work.title + (" ¹" if row.work.transform == "TimeFrequencyScattering" else "")


def speed_table(rows: list[Row]) -> str:
    head = ("work", "ours", "ours, portable", *(f"Kymatio {name}" for name in BACKENDS), "ratio to the best", "error")
    return table(
        head,
        [(title(r), *(short(r.seconds[n]) for n in CALLS), f"**{r.ratio:.1f}×**", f"{r.error:.0e}") for r in rows],
    )


def cost_table(rows: list[Row]) -> str:
    head = ("work", "peak MiB, measured", "`nbytes`", "Kymatio's", "construction s", "Kymatio's", "first result s")
    mebi = 2**20
    return table(
        (*head, "Kymatio's"),
        [
            (
                title(r),
                short(r.peak_nbytes["ours"], mebi),
                short(r.projected_nbytes, mebi),
                short(r.peak_nbytes[r.peer], mebi),
                short(r.built_s["ours"], 1),
                short(r.built_s[r.peer] if "numpy" in r.first_s else math.nan, 1),  # a stand-in is built from ours
                *(short(r.first_s.get(name, math.nan), 1) for name in ("ours", "numpy")),
            )
            for r in rows
        ],
    )


def split_table(rows: list[Row], limit: float) -> str:
    head = ("work", "operations of the engine", "FFTs, GFLOP", "GFLOP/s of a call", "of `spectrum`", "of the limit")
    body = []
    for row in rows:
        split, seconds = row.split, row.seconds["ours"]
        rates = (short(value, 1e9) for value in (split.flops, split.flops / seconds, split.rate))
        body.append((title(row), str(split) or "portable", *rates, f"{split.flops / seconds / limit:.0%}"))
    return table(head, body)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text())[1] if info.exists() else platform.processor()
    versions = ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in ("kymatio", *BACKENDS))
    return (
        f"{model}, {os.cpu_count()} cores, engine {active_engine()}; {versions}, scipy {scipy.__version__}, "
        f"Python {platform.python_version()}; {datetime.date.today():%d %B %Y}, {LOAD:.1f} other processes at work; "
        "milliseconds a call, float32."
    )


NOTE = "¹ Against a stand-in that does the operations of Kymatio 0.4, path by path: release 0.3 has no such transform."


COSTS = """\
Peaks are what a call adds to the resident memory of a process of its own, filters not counted. The first result counts
from the start of Python, imports and construction included."""
SPLIT = """\
`wavelet, last` is the fused operation of the last order: gather, transform back, modulus, low-pass; `wavelet, inner`
the same where paths go on, which also transforms them forth again, `hear` an average taken from a spectrum,
`convolve` a wavelet without modulus, `across` the wavelets across bands with their moduli and averages there. Flops
are nominal: 5 n log2 n a complex transform of n points, of all that the definition asks for, also where the kernels
skip frequencies that a wavelet does not reach, as in 3-D. The limit is the engine's best rate on the transforms of
small real images, packing and transposing included: {engine} GFLOP/s here (that of scipy.fft: {scipy} GFLOP/s). What
is missing to it goes into gathering, moduli, low-passes and memory."""


def page(found: dict[int, list[Row]]) -> str:
    """Write docs/benchmarks.md."""
    limit, scipy_rate = where_time_goes.engine_rate(), where_time_goes.scipy_rate()
    notes = SPLIT.format(engine=short(limit, 1e9), scipy=short(scipy_rate, 1e9))
    lines = ["# Benchmarks", "", "Written by `tests/benchmarks/bench_kernels.py --write`.", "", machine(), ""]
    for threads, rows in found.items():
        lines += [f"## {threads} thread{'s' * (threads > 1)}", "", speed_table(rows), ""]
    first = next(iter(found.values()))
    lines += [NOTE, "", "## Memory, construction, first result", "", cost_table(first), ""]
    lines += [COSTS, "", "## Where the time goes", "", split_table(first, limit), "", notes]
    return "\n".join(lines) + "\n"


def readme_table(found: dict[int, list[Row]]) -> str:
    """The table of the README: the first thread count in full, the ratios of all."""
    first, *others = found.items()
    threads, rows = first
    head = ("work", "ours ms", "portable", "Kymatio's best", f"ratio, {threads} thread", *(f"{n}" for n, _ in others))
    body = []
    for i, row in enumerate(rows):
        seconds = (row.seconds["ours"], row.seconds["portable"], row.seconds[row.peer])
        ratios = (f"{of[i].ratio:.1f}×" for of in found.values())
        body.append((title(row), *map(short, seconds), *ratios, f"{row.error:.0e}"))
    return f"{machine()}\n\n{table((*head, 'error'), body)}\n\n{NOTE}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts, default 1 2")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--works", type=int, nargs="+", default=list(range(len(WORKS))), help="which rows, from 0")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and the README's table")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # the work and whose call: its memory, and no more
    options = parser.parse_args()
    if options.peak:
        print(peak_here(int(options.peak[0]), options.peak[1]))
        return
    if "torch" not in BACKENDS:
        print("torch is not installed: Kymatio's NumPy backend alone is measured")
    found: dict[int, list[Row]] = {threads: [] for threads in options.threads}
    for i in options.works:
        for threads, row in zip(options.threads, measure(i, options.threads, options.turns), strict=True):
            found[threads].append(row)
            print(threads, speed_table([row]).splitlines()[-1], flush=True)
    text = page(found)
    print(text)
    if options.write:
        PAGES[0].write_text(text, encoding="utf-8")
        before, _, after = PAGES[1].read_text(encoding="utf-8").split("<!-- benchmark -->")
        block = f"{before}<!-- benchmark -->\n{readme_table(found)}\n<!-- benchmark -->{after}"
        PAGES[1].write_text(block, encoding="utf-8")


if __name__ == "__main__":
    with threadpool_limits(1, user_api="blas"):
        main()
