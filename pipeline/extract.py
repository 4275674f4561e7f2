"""Second stage: scatter the chunk store into the feature cube, a shard at a time.

On a GPU, keys overlap: a worker takes several at a time (``threads`` of its cluster), so that one is read and decoded,
one computed, one encoded and written, and arrays travel meanwhile. The same code on the CPU is a plain loop.
"""

import threading
from functools import lru_cache, partial
from time import perf_counter
from typing import Literal

import numpy as np

from scattercube.kernels import Scattering2D
from scattercube.kernels.device import through
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.execute import Stage, StepEvent, bad_record
from scattercube.pipeline.places import Places
from scattercube.pipeline.plan import ChunkKey, Plan, scattering
from scattercube.pipeline.spec import Spec
from scattercube.pipeline.store import OK, QUARANTINED, Store, open_cube

PART_NBYTES = 64 << 20  # of features: a shard that has more is computed in parts, which overlap on a device

_building = threading.Lock()  # where several threads of a worker need the filters first


def stage(places: Places, entry: Entry, spec: Spec, plan: Plan, device: Literal["cpu", "cuda"]) -> Stage:
    """Describe the stage: chunk store in, ``scattering`` and ``status`` out. The chunk store must be published."""
    from scattercube.pipeline.cube import feature_template  # xarray: not for workers

    chunks, cube = Store(places.chunks), Store(places.cube)
    shape = (plan.signal_shape[-2], plan.signal_shape[-1])
    return Stage(
        name="extract",
        store=cube,
        template=lambda: feature_template(open_cube(places.chunks), entry, spec, plan, scattering(spec, shape)),
        keys=plan.feature_grid.keys,
        step=partial(_step, chunks, cube, plan, spec, device),
    )


@lru_cache(maxsize=4)
def _transform(spec: Spec, shape: tuple[int, int]) -> Scattering2D:
    """Filters are rebuilt once in each worker process: they never travel."""
    return scattering(spec, shape)


def _step(
    chunks: Store, cube: Store, plan: Plan, spec: Spec, device: Literal["cpu", "cuda"], key: ChunkKey
) -> StepEvent:
    """Scatter one shard. Rows whose sample is not ok are NaN."""
    begin = perf_counter()
    region = plan.feature_grid.region(key)
    signal, status = chunks.read("signal", region), chunks.read("status", region)
    reading = perf_counter()
    with _building:
        transform = _transform(spec, (plan.signal_shape[-2], plan.signal_shape[-1]))
    bad: tuple[dict[str, str], ...] = ()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is quarantined
        images = signal.astype(spec.dtype, copy=False)
        usable = np.flatnonzero((status == OK) & _finite(images))
        features = np.full((len(signal), *plan.feature_shape[1:]), np.nan, spec.dtype)
        at_once = max(1, PART_NBYTES // features[0].nbytes)
        parts = [usable[start : start + at_once] for start in range(0, len(usable), at_once)]
        for part, found in zip(parts, through(transform, (images[part] for part in parts), device), strict=True):
            features[part] = found
    lost = np.flatnonzero((status == OK) & ~_finite(features))
    if len(lost):
        rows = {name: chunks.read(name, region) for name in ("sample_id", "source")}
        message = f"values too large for {spec.dtype}: the transform of this sample is not finite"
        bad = tuple(bad_record(rows, index, "non-finite", message) for index in lost.tolist())
        status[lost], features[lost] = QUARANTINED, np.nan
    computing = perf_counter()
    digest = cube.write(key, {"scattering": features, "status": status})
    return StepEvent(
        key=str(key),
        digest=digest,
        read_s=reading - begin,
        compute_s=computing - reading,
        write_s=perf_counter() - computing,
        nbytes_in=signal.nbytes,
        nbytes_out=features.nbytes,
        n_samples=len(signal),
        bad=bad,
    )


def _finite(values: np.ndarray) -> np.ndarray:
    """Say of each sample whether all of it is finite."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
