"""Time archive → cube against the kernel alone, one worker against two, and against a script with Kymatio.

    uv run --group bench python tests/benchmarks/bench_pipeline.py                  # prints
    uv run --group bench python tests/benchmarks/bench_pipeline.py --write          # and writes docs/throughput.md
    uv run --group bench python tests/benchmarks/bench_pipeline.py --works mosaic   # some of them

``kernel`` is the transform alone in one thread on the same samples, in memory; ``wall`` is from the archive to the
published cube, with one worker, which computes in one thread, on two cores. ``start`` is the part of it that is spent
once, whatever the archive: waiting for the worker's process and what it imports, and for its end.
``efficiency`` is kernel over the rest; ``of keys``, over the seconds from the first key to the last, without the plan
and the making of the stores: what many times such an archive would tend to. For ``1 → 2 workers`` each worker has a
core. ``script`` is what one would write without this project: read, transform in batches with Kymatio, save NumPy
files; it does a part of the archive, and its time is scaled. ``error`` is the cube's against the kernel.
"""

import argparse
import datetime
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scattercube.kernels import Scattering1D, Scattering2D, active_engine
from scattercube.pipeline.catalog import data_root
from scattercube.pipeline.job import Job, prepare
from scattercube.pipeline.plan import in_words

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "throughput.md"
SECONDS = 20.0  # of the kernel or the script, beyond which the rest is scaled


ONE_RUN = """
import contextlib, os, sys, time
os.sched_setaffinity(0, set(range(int(sys.argv[2]))))
from scattercube.pipeline import clusters, execute, job
connect, starting, now, spent = clusters.connect, job.starting, time.perf_counter, []

@contextlib.contextmanager
def imported(cluster):
    with connect(cluster) as client:
        for stage in ("ingest", "extract"):
            client.run(__import__, f"scattercube.pipeline.{stage}")
        yield client

@contextlib.contextmanager
def timed(cluster):
    def waited():
        begin = now()
        found = client()
        spent.append(now() - begin)
        return found

    with starting(cluster) as client:
        yield waited
        begin = now()
    spent.append(now() - begin)

clusters.connect, job.starting = imported, timed
if __name__ == "__main__":
    begin = now()
    job.run(job.Job.model_validate_json(sys.argv[1]))
    print(now() - begin, sum(spent), execute.peak_nbytes())
"""


@dataclass(frozen=True)
class Work:
    """One archive: an entry, changes to its Spec, and what makes it where it is synthetic."""

    name: str
    entry: str
    set: tuple[str, ...] = ()
    make: Callable[[Path], str] | None = None
    limit: int | None = None


def mosaic(side: int) -> Callable[[Path], str]:
    """Make a mosaic of noise, written a band at a time."""

    def make(folder: Path) -> str:
        rng = np.random.default_rng(0)
        values = np.lib.format.open_memmap(folder / "mosaic.npy", "w+", np.float32, (side, side))
        for start in range(0, side, 256):
            values[start : start + 256] = rng.standard_normal((min(256, side - start), side), np.float32)
        del values
        return entry(folder, "mosaic", "arrays", "mosaic.npy", "spec: {J: 3, padding: support}")

    return make


def recording(hours: float, rate: int = 16_000) -> Callable[[Path], str]:
    """Make a recording of noise, written a minute at a time."""

    def make(folder: Path) -> str:
        rng = np.random.default_rng(0)
        with wave.open(str(folder / "recording.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            for _ in range(round(60 * hours)):
                file.writeframes((3000 * rng.standard_normal(60 * rate, np.float32)).astype("<i2").tobytes())
        spec = "spec: {transform: scattering1d, J: 10, Q: 8, padding: support}"
        return entry(folder, "recording", "audio", "recording.wav", spec)

    return make


def entry(folder: Path, name: str, reader: str, file: str, spec: str) -> str:
    """Write an entry beside what it describes."""
    text = f"name: {name}\ntitle: Synthetic\nlicence: CC0-1.0\nreader: {reader}\nlocation: {folder / file}\n{spec}\n"
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


WORKS = {
    "mnist": Work("mnist", "mnist"),
    "kth-tips": Work("kth-tips", "kth-tips"),
    "esc10": Work("esc10", "esc10"),
    "mosaic": Work("mosaic of 8,192²", "", make=mosaic(8192)),
    "recording": Work("recording of 10 h", "", make=recording(10.0)),
}


@dataclass
class Row:
    """What was found."""

    work: Work
    signal: str = ""
    cube: str = ""
    wall: float = math.nan
    start: float = math.nan
    pinned: dict[int, float] = field(default_factory=dict)
    kernel: float = math.nan
    script: float = math.nan
    error: float = math.nan
    peak: int = 0
    keys: float = math.nan
    predicted: int = 0
    shares: dict[str, float] = field(default_factory=dict)


def measure(work: Work, folder: Path, scaling: bool) -> Row:
    """Run one archive every way."""
    row, name = Row(work), work.make(folder) if work.make else work.entry
    job = Job(entry=name, until="extract", store=str(folder / "store"), set=work.set, limit=work.limit)
    prepared = prepare(job)
    plan = prepared.plan
    row.signal = f"{plan.signal_shape[0]:,} × {'×'.join(map(str, plan.signal_shape[1:]))}"
    row.cube, row.predicted = in_words(plan.feature_nbytes), plan.worker_nbytes + plan.key_nbytes
    row.wall, row.start, _ = _elsewhere(job, folder, workers=1, cores=2)
    row.peak, row.keys, row.shares = _journal(prepared.places)
    row.kernel, row.error = _kernel(prepared)
    row.script = _script(prepared)
    if scaling:
        for workers in (1, 2):
            wall, start, _ = _elsewhere(job, folder, workers=workers, cores=workers)
            row.pinned[workers] = wall - start
    return row


def _elsewhere(job: Job, folder: Path, workers: int, cores: int) -> tuple[float, float, int]:
    """Seconds from the archive to the published cube, in a process on so many cores, of these the start; its memory."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    cluster = folder / "cluster.yaml"
    cluster.write_text(f"{{kind: local, workers: {workers}}}")
    job = job.model_copy(update={"cluster": str(cluster)})
    script = folder / "one_run.py"
    script.write_text(ONE_RUN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(script), job.model_dump_json(), str(cores)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    wall, start, peak = done.stdout.split()[-3:]
    return float(wall), float(start), int(peak)


def growth(folder: Path) -> str:
    """Lay out what an archive of 10^4, 10^5 and 10^6 small images takes: memory, and time for a thousand."""
    lines = ["| images of 16×16 | wall s | ms for 1,000 | worker MB | driver MB |", "|" + 5 * "---|"]
    for n in (10**4, 10**5, 10**6):
        archive = folder / f"n{n}"
        archive.mkdir()
        np.save(archive / "images.npy", np.random.default_rng(0).integers(0, 256, (n, 16, 16), np.uint8))
        job = Job(entry=str(archive), until="extract", store=str(folder / "store"), set=("J=2",))
        wall, start, driver = _elsewhere(job, folder, workers=1, cores=2)
        worker, *_ = _journal(prepare(job).places)
        lines.append(
            f"| {n:,} | {wall:.3g} | {1e6 * (wall - start) / n:.3g} | {worker / 1e6:.0f} | {driver / 1e6:.0f} |"
        )
        shutil.rmtree(archive)
    return "\n".join(lines)


def _journal(places) -> tuple[int, float, dict[str, float]]:
    """The largest memory of a worker, the seconds from the first key to the last, and where the time of keys went."""
    events = [event for store in (places.chunk_store, places.cube_store) for event in store.events()]
    parts = {
        "read": sum(e["read_s"] for e in events if e["stage"] == "ingest"),
        "write chunks": sum(e["write_s"] for e in events if e["stage"] == "ingest"),
        "read chunks": sum(e["read_s"] for e in events if e["stage"] == "extract"),
        "compute": sum(e["compute_s"] for e in events if e["stage"] == "extract"),
        "write": sum(e["write_s"] for e in events if e["stage"] == "extract"),
    }
    total = sum(parts.values())
    last = max(e["started"] + e["read_s"] + e["compute_s"] + e["write_s"] for e in events)
    keys = last - min(e["started"] for e in events)
    return max(e["peak_nbytes"] for e in events), keys, {name: value / total for name, value in parts.items()}


def _kernel(prepared) -> tuple[float, float]:
    """Seconds of the transform alone on all samples, and the cube's error; beyond some time, the rest is scaled."""
    plan, spec = prepared.plan, prepared.spec
    chunks, cube = prepared.places.chunk_store, prepared.places.cube_store
    done, seconds, error, size = 0, 0.0, 0.0, 0.0
    if len(plan.feature_grid.dims) > 1:
        pieces = list(_field_pieces(plan))
    else:
        pieces = [
            ({"sample": part}, {"sample": part}) for part in _slices(plan.signal_shape[0], plan.feature_grid.shard[0])
        ]
    total = sum(math.prod(s.stop - s.start for s in region.values()) for region, _ in pieces)
    transform = None
    for region, outputs in pieces:
        x = chunks.read("signal", region).astype(spec.dtype, copy=False)
        shape = x.shape[-len(spec.signal_dims) :]
        if transform is None or transform.shape != shape:
            kind = Scattering2D if len(shape) == 2 else Scattering1D
            options = spec.model_dump(exclude={"transform", "boundary", "min_coverage"})
            transform = kind(shape=shape if len(shape) == 2 else shape[0], **options)
            transform(x[:1])  # filters and engine are there
        begin = time.perf_counter()
        S = transform(x)
        seconds += time.perf_counter() - begin
        if len(outputs) == 1 or len(pieces) == 1:
            found = cube.read("scattering", outputs)
            error, size = error + float(np.sum((found - S) ** 2)), size + float(np.sum(S**2))
        done += math.prod(s.stop - s.start for s in region.values())
        if seconds > SECONDS:
            break
    return seconds * total / done, math.sqrt(error / size) if size else math.nan


def _field_pieces(plan) -> Iterator[tuple[dict[str, slice], dict[str, slice]]]:
    """A field whole, or, where it is long, in pieces without halos, as somebody would who has but the transform."""
    dims, shape = plan.signal_dims[-len(plan.axes) :], plan.signal_shape[-len(plan.axes) :]
    if len(dims) == 2:
        whole = {dim: slice(0, size) for dim, size in zip(dims, shape, strict=True)}
        outputs = {dim: slice(0, axis.total) for dim, axis in zip(dims, plan.axes, strict=True)}
        yield {"sample": slice(0, 1)} | whole, {"sample": slice(0, 1)} | outputs
        return
    for part in _slices(shape[0], 1 << 20):
        yield {"sample": slice(0, 1), dims[0]: part}, {"sample": slice(0, 1), dims[0]: slice(0, 0)}


def _slices(n: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _script(prepared) -> float:
    """Seconds of a loop with Kymatio's NumPy backend over batches, and numpy.save; a part of it, scaled."""
    from kymatio.scattering1d.frontend.numpy_frontend import ScatteringNumPy1D as Peer1D
    from kymatio.scattering2d.frontend.numpy_frontend import ScatteringNumPy2D as Peer2D

    plan, spec = prepared.plan, prepared.spec
    chunks = prepared.places.chunk_store
    n_axes = len(spec.signal_dims)
    shape = plan.signal_shape[-n_axes:]
    piece = tuple(min(size, 1024 if n_axes == 2 else 1 << 18) for size in shape)
    batch = max(1, (1 << 18) // math.prod(piece))
    if n_axes == 2:
        peer = Peer2D(J=spec.J, shape=piece, L=spec.L, max_order=spec.max_order)
    else:
        peer = Peer1D(
            J=spec.J, shape=piece, Q=spec.Q[0] if isinstance(spec.Q, tuple) else spec.Q, max_order=spec.max_order
        )
    region = {dim: slice(0, size) for dim, size in zip(spec.signal_dims, piece, strict=True)}
    units, done, seconds = math.prod(plan.signal_shape), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, plan.signal_shape[0], batch)):
            x = chunks.read("signal", {"sample": slice(start, min(start + batch, plan.signal_shape[0]))} | region)
            begin = time.perf_counter()
            np.save(Path(folder) / f"{number}.npy", peer(np.ascontiguousarray(x, np.float32)))
            seconds += time.perf_counter() - begin
            done += x.size
            if seconds > SECONDS / 4:
                break
    return seconds * units / done


def table(rows: list[Row]) -> str:
    """Lay out the rows as Markdown."""
    lines = [
        "| archive | samples | cube | kernel s | wall s | of it start | efficiency | of keys | 1 → 2 workers | "
        "script ÷ wall | worker MB, predicted | error |",
        "|" + 12 * "---|",
    ]
    for row in rows:
        speedup = f"{row.pinned[1] / row.pinned[2]:.2f}×" if row.pinned else "–"
        lines.append(
            f"| {row.work.name} | {row.signal} | {row.cube} | {row.kernel:.3g} | {row.wall:.3g} | {row.start:.2g} | "
            f"**{row.kernel / (row.wall - row.start):.2f}** | {row.kernel / row.keys:.2f} | {speedup} | "
            f"{row.script / row.wall:.1f}× | "
            f"{row.peak / 1e6:.0f}, {row.predicted / 1e6:.0f} | "
            f"{'–' if math.isnan(row.error) else f'{row.error:.0e}'} |"
        )
    lines += ["", "Where the time of the keys goes:", "", "| archive | " + " | ".join(rows[0].shares) + " |"]
    lines.append("|---|" + "---|" * len(rows[0].shares))
    lines += [
        f"| {row.work.name} | " + " | ".join(f"{100 * share:.0f} %" for share in row.shares.values()) + " |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--write", action="store_true", help="bring docs/throughput.md up to date")
    parser.add_argument("--no-scaling", action="store_true", help="leave out one worker against two")
    given = parser.parse_args()
    rows = []
    for name in given.works:
        if WORKS[name].make is None and not data_root().exists():
            print(f"{name}: no archives in {data_root()}; set SCATTERCUBE_DATA")
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(WORKS[name], Path(folder), not given.no_scaling))
        print(table(rows[-1:]), flush=True)
    grown = ""
    if not given.no_scaling:
        with tempfile.TemporaryDirectory() as folder:
            grown = growth(Path(folder))
        print(grown, flush=True)
        grown = f"\n\nWhat an archive takes as it grows:\n\n{grown}"
    if given.write and rows:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end -->")
        today = datetime.date.today().isoformat()
        where = (
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, engine {active_engine()}, {today}"
        )
        PAGE.write_text(
            f"{before}<!-- table -->\n{where}\n\n{table(rows)}{grown}\n<!-- end -->{after}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
