"""How long a run will take: the first keys of its own archive, done in this process and timed.

The keys run through the stages themselves, into a store that is thrown away. What they cost is multiplied by how many
keys are missing, and shared out among the workers.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from scattercube.kernels.device import Device
from scattercube.pipeline import extract, ingest
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.execute import attempt
from scattercube.pipeline.keys import ChunkKey
from scattercube.pipeline.places import Places, refuse_unwritable
from scattercube.pipeline.plan import Plan
from scattercube.pipeline.sources import Listing
from scattercube.pipeline.spec import Spec
from scattercube.pipeline.stage import Stage

CALIBRATION_SECONDS = 10.0
CLUSTER_SECONDS = 3.0  # until the processes of a local cluster are there
SHARING = 1.15  # of a key among as many workers as there are cores: they share memory, caches and clock


@dataclass(frozen=True)
class Cost:
    """What the keys of a stage cost.

    Attributes
    ----------
    first
        Seconds of a worker's first key, beyond those of another: imports, filters, the archive's index.
    each, computing
        Seconds of every key, and of these in the transform.
    n_timed
        How many were timed.
    """

    first: float
    each: float
    computing: float
    n_timed: int


@dataclass(frozen=True)
class Estimate:
    """What the stages of a run cost, and how much of them is left to do.

    Attributes
    ----------
    n_ingest, n_extract
        Keys that are missing.
    workers, cores
        How many keys may be computed at once, and how many processors there are for that and all else.
    cluster_s
        Seconds until a cluster is there.
    """

    ingest: Cost
    extract: Cost
    n_ingest: int
    n_extract: int
    workers: int
    cores: int
    cluster_s: float

    @property
    def seconds(self) -> float:
        """All of it: until the cube is published.

        Reading and writing overlap with computing as far as there are processors for both.
        """
        if not self.n_ingest + self.n_extract:
            return 0.0
        spent = self.n_ingest * self.ingest.each + self.n_extract * self.extract.each
        at_once = max(1, min(self.cores, 2 * self.workers, max(self.n_ingest, self.n_extract)))
        computed = ceil(self.n_extract / self.workers) * self.extract.computing
        sharing = SHARING if at_once > 1 else 1.0
        return sharing * (self.ingest.first + self.extract.first + max(spent / at_once, computed)) + self.cluster_s


def estimate(
    places: Places,
    entry: Entry,
    spec: Spec,
    data_root: Path,
    listing: Listing,
    plan: Plan,
    workers: int,
    cores: int,
    device: Device = "cpu",
    *,
    cluster: bool = True,
    seconds: float = CALIBRATION_SECONDS,
) -> Estimate:
    """Time the first keys of both stages for about so many seconds; nothing stays on the disk.

    Parameters
    ----------
    workers, cores
        Keys that are computed at once, and processors.
    cluster
        Whether a cluster is to be started.

    Raises
    ------
    ChunkError
        A key cannot be done at all.
    """
    stores = ((places.chunk_store, plan.signal_grid), (places.cube_store, plan.feature_grid))
    n_ingest, n_extract = (len(store.missing(grid.keys)) for store, grid in stores)
    plan = replace(plan, signal_grid=plan.signal_grid.behind(0), feature_grid=plan.feature_grid.behind(0))
    # On the disk of the store, which may not be there yet; beside an object store, where the system has such things.
    scratch = Path(tempfile.mkdtemp(prefix=".calibration-", dir=refuse_unwritable(places.root)))
    try:
        there = Places(str(scratch), places.entry_name, places.spec_digest)
        reading = ingest.stage(there, entry, data_root, listing, plan)
        scattering = extract.stage(there, entry, spec, plan, device, reading)
        costs = _timed(reading, scattering, plan, seconds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Estimate(*costs, n_ingest, n_extract, workers, cores, CLUSTER_SECONDS if cluster else 0.0)


def _timed(reading: Stage, scattering: Stage, plan: Plan, seconds: float) -> tuple[Cost, Cost]:
    """Do one key of the second stage after the other, and before each what it needs of the first."""
    end = time.perf_counter() + seconds
    read: dict[str, tuple[float, float]] = {}
    scattered: list[tuple[float, float]] = []
    reading.begin()
    for key in scattering.keys:
        for needed in extract.needed(plan, key):
            if str(needed) not in read:
                read[str(needed)] = _timed_key(reading, needed)
        if not scattered:
            if len(plan.signal_grid.dims) > 1:
                reading.store.settle(plan.signal_grid.sizes[0])
            scattering.begin()
        scattered.append(_timed_key(scattering, key))
        if time.perf_counter() > end and len(scattered) > 1:
            break
    return _cost(list(read.values())), _cost(scattered)


def _timed_key(stage: Stage, key: ChunkKey) -> tuple[float, float]:
    """Seconds of a key, and of these in the transform."""
    begin = time.perf_counter()
    event = attempt(stage.name, stage.step, key)
    return time.perf_counter() - begin, event.compute_s


def _cost(keys: list[tuple[float, float]]) -> Cost:
    later = keys[1:] or keys
    each, computing = (sum(values) / len(later) for values in zip(*later, strict=True))
    return Cost(max(0.0, keys[0][0] - each), each, computing, len(keys))
