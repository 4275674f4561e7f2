"""Run an archive to its cube on a Dask-CUDA worker, and say how much of the time the kernels take.

    python -m tests.gpu.archive                              # 65,536 images of 32², one GPU
    python -m tests.gpu.archive --cluster deploy/clusters/local.yaml --images 512      # the same on processors

The kernels' own time is that of the same transform on arrays that are on the device already. What is missing to it goes
into starting the cluster, reading and decoding chunks, transfers, and encoding and writing the cube.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scattercube.kernels import Scattering2D, to_device
from scattercube.pipeline.job import Job, Outcome, prepare, run
from scattercube.pipeline.stage import Silence, StepEvent

SIDE, J = 32, 2


@dataclass
class Steps(Silence):
    """What each key cost."""

    events: list[StepEvent] = field(default_factory=list)

    def step(self, event: StepEvent) -> None:
        self.events.append(event)


def kernel_s(images: np.ndarray, device: str, at_once: int) -> float:
    """Seconds that the transform takes for all images, so many at once, from arrays on the device to such."""
    S = Scattering2D(J, (SIDE, SIDE))
    parts = [to_device(images[i : i + at_once].astype(np.float32), device) for i in range(0, len(images), at_once)]
    S(parts[0])
    if device == "cuda":
        import cupy

        cupy.cuda.Device().synchronize()
    begin = time.perf_counter()
    for part in parts:
        S(part)
    if device == "cuda":
        cupy.cuda.Device().synchronize()
    return time.perf_counter() - begin


def report(outcome: Outcome, events: list[StepEvent], images: np.ndarray) -> str:
    """Say what the extraction took, beside the kernels alone."""
    device = outcome.prepared.cluster.device
    alone = kernel_s(images, device, outcome.prepared.plan.feature_grid.shard)
    extracting = [event for event in events if event.stage == "extract"]
    first, last = (
        min(e.started for e in extracting),
        max(e.started + e.read_s + e.compute_s + e.write_s for e in extracting),
    )
    out_nbytes = sum(e.nbytes_out for e in extracting)
    phase = next(p for p in outcome.phases if p["name"] == "extract")
    rows = [
        ("images", f"{len(images):,} of {SIDE}², J={J}: {out_nbytes / 2**20:,.0f} MiB of features"),
        ("device, keys", f"{device}, {len(extracting)}"),
        ("extract, with the cluster's start", f"{phase['wall_s']:.2f} s"),
        ("from the first key's start to the last one's end", f"{last - first:.2f} s"),
        *(
            (f"{part} of all keys, summed", f"{sum(getattr(e, f'{part}_s') for e in extracting):.2f} s")
            for part in ("read", "compute", "write")
        ),
        ("kernels alone", f"{alone:.3f} s"),
        ("kernels alone / first key to last", f"{alone / (last - first):.3f}"),
        ("archive to cube", f"{out_nbytes / (last - first) / 1e6:,.0f} MB/s of features"),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1 << 16)
    parser.add_argument("--cluster", default="deploy/clusters/one-gpu.yaml")
    options = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (options.images, SIDE, SIDE), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "images.npy"
        np.save(archive, images)
        job = Job(
            entry=str(archive),
            store=str(Path(folder) / "store"),
            cluster=options.cluster,
            set=(f"J={J}",),
            until="extract",
        )
        steps = Steps()
        outcome = run(job, observer=steps, prepared=prepare(job))
        print(report(outcome, steps.events, images))


if __name__ == "__main__":
    main()
