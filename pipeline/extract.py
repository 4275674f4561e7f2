"""Second stage: scatter the chunk store into the feature cube, a shard at a time.

On a GPU, keys overlap: a worker takes several at a time (``threads`` of its cluster), so that one is read and decoded,
one computed, one encoded and written, and arrays travel meanwhile. The same code on the CPU is a plain loop.
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.kernels.device import Device, through
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.identity import of_cube
from scattercube.pipeline.keys import ChunkKey
from scattercube.pipeline.places import Places
from scattercube.pipeline.plan import Plan
from scattercube.pipeline.spec import Spec
from scattercube.pipeline.stage import NO_MARKS, Stage, StepEvent, bad_record
from scattercube.pipeline.stores.protocol import OK, PARTIAL, QUARANTINED, Store
from scattercube.pipeline.tiles import Axis, Index, gather, spans
from scattercube.pipeline.transforms import Transform, least_coverage, with_gaps

if TYPE_CHECKING:
    import xarray as xr

PART_NBYTES = 64 << 20  # of features: a shard that has more is computed in parts, which overlap on a device

_building = threading.Lock()  # where several threads of a worker need the filters first
# Keys of one worker overlap, so that one is read or written while another is computed; two that are computed would
# share what is meant for one. On a GPU the device takes them in turn.
_computing = threading.Lock()


def stage(
    places: Places,
    entry: Entry,
    spec: Spec,
    plan: Plan,
    device: Device,
    source: Stage,
    marks: Mapping[int, int] = NO_MARKS,
) -> Stage:
    """Describe the stage: chunk store in, ``scattering`` and ``status`` out.

    Keys run as soon as ``source``, the first stage, has what they need; only of fields must it be complete, because
    the state of a sample is known then.
    """

    def template() -> "xr.Dataset":
        from scattercube.pipeline.cube import feature_template  # xarray: not for workers

        return feature_template(source.template(), entry, spec, plan)

    chunks, cube = source.store, places.cube_store
    is_field = len(plan.signal_grid.dims) > 1
    return Stage(
        name="extract",
        store=cube,
        holds=of_cube(spec, plan, dict(source.holds)),
        template=template,
        keys=plan.feature_grid.keys,
        step=partial(_step, chunks, cube, plan, spec, device),
        marks=marks,
        source=None if is_field else source,
        needs=None if is_field else partial(needed, plan),
    )


def needed(plan: Plan, key: ChunkKey) -> Iterator[ChunkKey]:
    """Yield the keys of the first stage that write what a key of this one reads; none for what is published."""
    grid, region = plan.signal_grid, plan.feature_grid.region(key)
    axes = dict(zip(plan.signal_dims[-len(plan.axes) :], plan.axes, strict=True)) if plan.axes else {}
    touched: list[list[int]] = []
    for dim, shard in zip(grid.dims, grid.shard, strict=True):
        if dim in axes:
            held = spans(_index(axes[dim], region[dim]))
            first, last = held[0].start, held[-1].stop - 1
        else:
            first, last = region[dim].start, region[dim].stop - 1
        begin = grid.first if dim == "sample" else 0
        aligned = range(first // shard * shard, last + 1, shard)
        touched.append([max(start, begin) for start in aligned if start + shard > begin and begin <= last])
    for starts in product(*touched):
        yield ChunkKey(tuple(zip(grid.dims, starts, strict=True)))


def _step(chunks: Store, cube: Store, plan: Plan, spec: Spec, device: Device, key: ChunkKey) -> StepEvent:
    """Scatter one shard: some samples, or a tile of one. Rows whose sample is not ok are NaN."""
    begin = perf_counter()
    region = plan.feature_grid.region(key)
    samples = region["sample"]
    status = chunks.read("status", samples)
    signal = _surroundings(chunks, plan, region) if plan.axes else chunks.read("signal", samples)
    reading = perf_counter()
    with _building:
        transform = plan.transform(spec)  # filters are built once in each worker process: they never travel
    turn = _computing if device == "cpu" else nullcontext()
    with turn, np.errstate(over="ignore", invalid="ignore"):  # what overflows is quarantined
        waited = perf_counter() - reading
        arrays = _scattered(transform, plan, spec, region, signal.astype(spec.dtype, copy=False), status, device)
    is_field = len(plan.feature_grid.dims) > 1
    bad = _judge(chunks, samples, status, arrays, spec, whole=not is_field)
    computing = perf_counter()
    written = dict(zip(("scattering", "coverage"), arrays, strict=False)) | ({} if is_field else {"status": status})
    digest, change = cube.write(key, written)
    return StepEvent(
        key=str(key),
        digest=digest,
        read_s=reading - begin,
        compute_s=computing - reading - waited,
        write_s=perf_counter() - computing,
        nbytes_in=signal.nbytes,
        nbytes_out=sum(array.nbytes for array in arrays),
        n_samples=len(signal),
        bad=bad,
        not_ok=tuple((samples.start + i, int(status[i])) for i in np.flatnonzero(status).tolist()) if is_field else (),
        change=change,
    )


def _scattered(
    transform: Transform,
    plan: Plan,
    spec: Spec,
    region: Mapping[str, slice],
    images: np.ndarray,
    status: np.ndarray,
    device: Device,
) -> list[np.ndarray]:
    """Return the coefficients of a region, and their coverage where values may be missing; NaN for what is not ok."""
    usable = np.flatnonzero((status == OK) & (plan.masked | _finite(images)))
    behind = plan.feature_dims.index("path") + 1
    dims = zip(plan.feature_dims[behind:], plan.feature_shape[behind:], strict=True)
    outputs = [region.get(dim, slice(0, size)) for dim, size in dims]
    shape = (len(images), *plan.feature_shape[1:behind], *(part.stop - part.start for part in outputs))
    at_once = max(1, PART_NBYTES // (math.prod(shape[1:]) * np.dtype(spec.dtype).itemsize))
    parts: list[Any] = [usable[start : start + at_once] for start in range(0, len(usable), at_once)]
    if len(usable) == len(images):
        parts = [slice(start, start + at_once) for start in range(0, len(images), at_once)]
    cut = [axis.tiles(part.stop - part.start) for axis, part in zip(plan.axes, outputs, strict=False)]
    tiles = [tuple(zip(*tile, strict=True)) or ((), ()) for tile in product(*cut)]
    work = [(part, *tile) for part in parts for tile in tiles]
    pieces = (images[(part, Ellipsis, *where)] for part, where, _ in work)
    found: Iterator[tuple[np.ndarray, ...]]
    if plan.masked:
        margins = [axis.margin for axis in plan.axes]
        found = (with_gaps(transform, spec, piece, margins, device) for piece in pieces)
    else:
        found = ((result,) for result in through(transform, pieces, device))
    if len(work) == 1 and len(usable) == len(images) and device == "cpu":
        whole = next(found)
        if whole[0].shape == shape:
            return list(whole)  # as it is: no copy
        found = iter((whole,))
    arrays = [np.full(shape, np.nan, spec.dtype) for _ in range(1 + plan.masked)]
    for (part, _, where), results in zip(work, found, strict=True):
        size: Any = (Ellipsis, *(slice(0, out.stop - out.start) for out in where))
        for array, result in zip(arrays, results, strict=True):
            array[(part, Ellipsis, *where)] = result[size]
    return arrays


def _index(axis: Axis, outputs: slice | None) -> Index:
    """Which values of a field some outputs of an axis need; all of them where it is not cut."""
    first, stop = (outputs.start, outputs.stop) if outputs else (0, axis.total)
    return axis.index(first, -(-(stop - first) // axis.n_out))


def _surroundings(chunks: Store, plan: Plan, region: Mapping[str, slice]) -> np.ndarray:
    """Read what the outputs of a region see: their values, the halo around them, and what lies beyond the border."""
    dims = plan.signal_dims[-len(plan.axes) :]
    indices = [_index(axis, region.get(dim)) for dim, axis in zip(dims, plan.axes, strict=True)]

    def read(window: tuple[slice, ...]) -> np.ndarray:
        return chunks.read("signal", {"sample": region["sample"], **dict(zip(dims, window, strict=True))})

    return gather(read, indices)


def _judge(
    chunks: Store,
    samples: slice,
    status: np.ndarray,
    arrays: Sequence[np.ndarray],
    spec: Spec,
    *,
    whole: bool,
) -> tuple[dict[str, str], ...]:
    """Mark and name samples whose coefficients are no numbers; where coverage is too little, that is what they are.

    ``whole``: these are samples, and not parts of one, in which all may be missing.
    """
    features, *coverage = arrays
    lost, empty = ~np.isfinite(features), np.zeros(len(status), bool)
    for share in coverage:
        lost &= share >= least_coverage(spec)
        empty = (status == OK) & whole & ~share.reshape(len(status), -1).any(axis=1)
        status[(status == OK) & ~_finite(features)] = PARTIAL
    lost_rows = np.isin(status, (OK, PARTIAL)) & lost.any(axis=tuple(range(1, lost.ndim)))
    messages = {
        f"values too large for {spec.dtype}: the transform of this sample is not finite": lost_rows & ~empty,
        "no value is there: all are missing": empty,
    }
    if not (lost_rows | empty).any():
        return ()
    rows = {name: chunks.read(name, samples) for name in ("sample_id", "source")}
    bad = []
    for message, which in messages.items():
        status[which], features[which] = QUARANTINED, np.nan
        bad += [bad_record(rows, index, "non-finite", message) for index in np.flatnonzero(which).tolist()]
    return tuple(bad)


def _finite(values: np.ndarray) -> np.ndarray:
    """Say of each sample whether all of it is finite."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
