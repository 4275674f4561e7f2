"""First stage: read the records of an archive into the chunk store, a shard at a time."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.identity import of_chunks
from scattercube.pipeline.keys import ChunkKey, Grid
from scattercube.pipeline.places import Places
from scattercube.pipeline.plan import Plan
from scattercube.pipeline.sources import READERS, Layout, Listing, read
from scattercube.pipeline.stage import NO_MARKS, Stage, StepEvent, bad_record
from scattercube.pipeline.stores.protocol import OK, QUARANTINED, Store

if TYPE_CHECKING:
    import xarray as xr


def stage(
    places: Places, entry: Entry, data_root: Path, listing: Listing, plan: Plan, marks: Mapping[int, int] = NO_MARKS
) -> Stage:
    """Describe the stage: archive in, ``signal`` and ``status`` out."""

    @cache  # the next stage asks for it too
    def template() -> "xr.Dataset":
        from scattercube.pipeline.cube import chunk_template  # xarray: not for workers

        return chunk_template(entry, listing, plan)

    store = places.chunk_store
    needed = ("member", "item", *READERS[entry.reader].offsets)  # to find a record again
    columns = tuple(name for name in needed if name in listing.columns)
    return Stage(
        name="ingest",
        store=store,
        holds=of_chunks(entry, listing.layout, plan),
        template=template,
        keys=plan.signal_grid.keys,
        step=partial(_step, store, plan.signal_grid, listing.layout, columns, entry, data_root),
        marks=marks,
    )


def _step(
    store: Store, grid: Grid, layout: Layout, columns: tuple[str, ...], entry: Entry, data_root: Path, key: ChunkKey
) -> StepEvent:
    """Read one shard's records, or a piece of one that is a field.

    A record that cannot be used is named, marked, and left as zeros under its status.
    """
    begin = perf_counter()
    region = grid.region(key)
    samples = region["sample"]
    rows = {name: store.read(name, samples) for name in columns}
    window = tuple(region.get(dim, whole) for dim, whole in zip(layout.signal_dims, layout.whole, strict=True))
    lead = layout.shape[: -len(window)]
    signal = np.zeros((samples.stop - samples.start, *lead, *(s.stop - s.start for s in window)), layout.dtype)
    status = np.full(len(signal), OK, np.uint8)
    failures: list[tuple[int, RecordError]] = []
    for index, sample in enumerate(read(entry, data_root, rows, window)):
        if isinstance(sample, RecordError):
            failures.append((index, sample))
        else:
            signal[index] = sample
    status[[index for index, _ in failures]] = QUARANTINED
    bad = _named(store, samples, rows, failures)
    reading = perf_counter()
    is_field = len(grid.dims) > 1
    digest, change = store.write(key, {"signal": signal} | ({} if is_field else {"status": status}))
    return StepEvent(
        key=str(key),
        digest=digest,
        read_s=reading - begin,
        compute_s=0.0,
        write_s=perf_counter() - reading,
        nbytes_in=signal.nbytes,
        nbytes_out=signal.nbytes,
        n_samples=len(signal),
        bad=bad,
        not_ok=tuple((samples.start + i, int(status[i])) for i in np.flatnonzero(status).tolist()) if is_field else (),
        change=change,
    )


def _named(
    store: Store, samples: slice, rows: Mapping[str, np.ndarray], failures: Sequence[tuple[int, RecordError]]
) -> tuple[dict[str, str], ...]:
    """Name the records that cannot be used; their member's name stands beside the message, and not in it."""
    if not failures:
        return ()
    names = {name: store.read(name, samples) for name in ("sample_id", "source")}
    return tuple(
        bad_record(names, index, failure.reason, str(failure).removeprefix(f"{rows['member'][index]}: "))
        for index, failure in failures
    )
