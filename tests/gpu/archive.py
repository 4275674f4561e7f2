"""Run archives to their cubes on a Dask-CUDA worker, and say how much of the time the kernels would need.

    python -m tests.gpu.archive                              # all archives, one GPU, threads as in its cluster file
    python -m tests.gpu.archive --threads 3 8 --rows 1       # one of them, with so many keys at a time
    python -m tests.gpu.archive --cluster deploy/clusters/local.yaml --part 64       # a 64th of each, on processors

Archives are noise, made beforehand and in the page cache. The kernels' own time is that of the same transform on arrays
that are on the device already, in batches as the pipeline makes them. What a run takes beside it is to read and decode
chunks, to send and fetch arrays, and to encode and write the cube. Clusters are up when the clock starts, and kernels
compiled.
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scattercube.kernels import to_device
from scattercube.pipeline.clusters import load_cluster
from scattercube.pipeline.extract import PART_NBYTES
from scattercube.pipeline.job import Job, Prepared, prepare, run
from scattercube.pipeline.stage import Silence, StepEvent
from tests.gpu.tables import short, table

PARTS = ("read", "compute", "write")
RATE = 1 << 15  # Hz, of the recordings
Archive = Callable[[Path, int], tuple[Path, tuple[str, ...]]]
"""Writes a part of an archive into a folder; returns what to run, and what to set."""


def images(side: int, J: int, n: int) -> Archive:
    """Return what writes grey images of bytes."""

    def write(folder: Path, part: int) -> tuple[Path, tuple[str, ...]]:
        file = folder / "images.npy"
        np.save(file, np.random.default_rng(0).integers(0, 256, (max(1, n // part), side, side), np.uint8))
        return file, (f"J={J}",)

    return write


def recordings(n_files: int, **spec: Any) -> Archive:
    """Return what writes WAV files of one channel, 128 s each, and the entry that cuts them into 2^16 values."""

    def write(folder: Path, part: int) -> tuple[Path, tuple[str, ...]]:
        rng = np.random.default_rng(0)
        for number in range(max(1, n_files // part)):
            with wave.open(str(folder / f"{number:02}.wav"), "wb") as sound:
                sound.setnchannels(1)
                sound.setsampwidth(2)
                sound.setframerate(RATE)
                sound.writeframes(rng.integers(-(2**14), 2**14, 64 << 16, np.int16).tobytes())
        entry = {
            "name": "recordings",
            "title": "Noise",
            "description": "Noise",
            "licence": "none",
            "reader": "audio",
            "location": str(folder),
            "sample": {"segments": {"seconds": (1 << 16) / RATE}},
            "spec": {"transform": "scattering1d", "J": 8, "Q": 8, **spec},
        }
        file = folder / "recordings.yaml"
        file.write_text(yaml.safe_dump(entry), encoding="utf-8")
        return file, ()

    return write


WORKS: dict[str, Archive] = {
    "images of 32², J=2": images(32, 2, 1 << 16),
    "images of 256², J=4": images(256, 4, 1 << 12),
    "signals of 2^16, J=8, Q=8": recordings(64),
    "signals of 2^16, J=8, Q=8, T global": recordings(256, T="global"),
}


@dataclass
class Steps(Silence):
    """What each key cost."""

    events: list[StepEvent] = field(default_factory=list)

    def step(self, event: StepEvent) -> None:
        self.events.append(event)


@dataclass(frozen=True)
class Spent:
    """What a run took.

    Parameters
    ----------
    n_samples, n_keys, nbytes_in, nbytes_out
        What went through the kernels' stage: uncompressed bytes.
    ingest_s, extract_s
        From the start of the first key to the end of the last one, of either stage.
    steady
        Seconds of the kernels alone over seconds of the kernels' stage, once every thread has ended a key: filters and
        kernels are on the device then.
    parts_s
        Reading, computing and writing of the keys of the kernels' stage, summed.
    kernels_s
        Of the kernels alone.
    """

    n_samples: int
    n_keys: int
    nbytes_in: int
    nbytes_out: int
    ingest_s: float
    extract_s: float
    steady: float
    parts_s: tuple[float, ...]
    kernels_s: float


def kernels_s(prepared: Prepared) -> float:
    """Seconds that the transform takes for as many samples of noise, from arrays on the device to such."""
    device, plan = prepared.cluster.device, prepared.plan
    n_samples = plan.feature_shape[0]
    S = plan.transform(prepared.spec)
    nbytes = math.prod(plan.feature_shape[1:]) * np.dtype(prepared.spec.dtype).itemsize
    at_once = min(n_samples, plan.feature_grid.shard[0], max(1, PART_NBYTES // nbytes))
    n_calls = -(-n_samples // at_once)
    x = to_device(np.random.default_rng(0).standard_normal((at_once, *plan.signal_shape[1:]), np.float32), device)

    def finished() -> None:
        if device == "cuda":
            import cupy

            cupy.cuda.Device().synchronize()

    best = math.inf
    for _ in range(3):
        S(x)
        finished()
        begin = time.perf_counter()
        for _ in range(n_calls):
            S(x)
        finished()
        best = min(best, time.perf_counter() - begin)
    return best


def spent(archive: Path, settings: tuple[str, ...], clusters: Sequence[Path], folder: Path) -> Iterator[Spent]:
    """Run an archive to its chunk store, and that to a cube with each cluster."""
    job = Job(entry=str(archive), store=str(folder), cluster=str(clusters[0]), set=settings, until="ingest")
    ingest_s, _ = _stage(job, prepare(job), "ingest")
    for cluster in clusters:
        job = job.model_copy(update={"until": "extract", "cluster": str(cluster)})
        prepared = prepare(job)
        alone_s = kernels_s(prepared)
        extract_s, events = _stage(job, prepared, "extract")
        yield Spent(
            n_samples=sum(event.n_samples for event in events),
            n_keys=len(events),
            nbytes_in=sum(event.nbytes_in for event in events),
            nbytes_out=sum(event.nbytes_out for event in events),
            ingest_s=ingest_s,
            extract_s=extract_s,
            steady=steady(events, prepared.cluster.threads, alone_s),
            parts_s=tuple(sum(getattr(event, f"{part}_s") for event in events) for part in PARTS),
            kernels_s=alone_s,
        )
        shutil.rmtree(prepared.places.cube)


def _stage(job: Job, prepared: Prepared, name: str) -> tuple[float, list[StepEvent]]:
    """Run a job; return the seconds from the first key of a stage to its last one, and the keys."""
    steps = Steps()
    outcome = run(job, observer=steps, prepared=prepared)
    events = [event for event in steps.events if event.stage == name]
    if outcome.n_bad or not events:
        raise RuntimeError(f"{outcome.n_bad} samples are quarantined, {len(events)} keys are done")
    return max(map(ended, events)) - min(event.started for event in events), events


def ended(event: StepEvent) -> float:
    return event.started + event.read_s + event.compute_s + event.write_s


def steady(events: Sequence[StepEvent], threads: int, kernels_s: float) -> float:
    """Return what share of the time the kernels need, of what is done after each thread has ended a key; else NaN."""
    in_order = sorted(events, key=ended)
    begin, rest = in_order[:threads][-1], in_order[threads:]
    if not rest or (seconds := ended(rest[-1]) - ended(begin)) <= 0:
        return math.nan
    return kernels_s * sum(event.n_samples for event in rest) / sum(event.n_samples for event in events) / seconds


HEAD = (
    "archive", "keys at a time", "in, MB", "out, MB", "kernels alone, s", "chunks → cube, s", "kernels / that",
    "once begun",
    "read, compute, write of all keys, s", "archive → chunks, s",
)  # fmt: skip


def row(title: str, threads: int, found: Spent) -> tuple[Any, ...]:
    """Lay out what a run took."""
    return (
        f"{found.n_samples:,} {title}",
        f"{threads} ({found.n_keys} keys)",
        *(short(nbytes, 1e6) for nbytes in (found.nbytes_in, found.nbytes_out)),
        *(short(seconds) for seconds in (found.kernels_s, found.extract_s)),
        *("–" if math.isnan(share) else f"{share:.0%}" for share in (found.kernels_s / found.extract_s, found.steady)),
        ", ".join(short(seconds) for seconds in found.parts_s),
        short(found.ingest_s),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, default=Path("deploy/clusters/one-gpu.yaml"))
    parser.add_argument("--threads", type=int, nargs="+", help="keys at a time in one worker, in place of the file's")
    parser.add_argument("--rows", type=int, nargs="+", default=range(len(WORKS)), help="which archives")
    parser.add_argument("--part", type=int, default=1, help="divide the archives by this")
    parser.add_argument("--folder", type=Path, help="where archives and stores go for a while; default a temporary one")
    options = parser.parse_args()
    cluster = load_cluster(options.cluster)
    rows: list[tuple[Any, ...]] = []
    for title in [list(WORKS)[i] for i in options.rows]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            (there := Path(folder, "archive")).mkdir()
            archive, settings = WORKS[title](there, options.part)
            all_threads, files = options.threads or [cluster.threads], []
            for threads in all_threads:
                files.append(Path(folder, f"{threads}.yaml"))
                told = cluster.model_dump(mode="json", exclude_none=True) | {"threads": threads}
                files[-1].write_text(yaml.safe_dump(told), encoding="utf-8")
            for threads, found in zip(all_threads, spent(archive, settings, files, Path(folder, "store")), strict=True):
                rows.append(row(title, threads, found))
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(HEAD, rows, n_words=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
