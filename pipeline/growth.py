"""What is new in an archive that was read before: which samples are to be appended, and which rows are no longer so.

Rows of a store never move. A sample whose member changed becomes a new row behind the others, and its old row is marked
superseded; one that is gone is marked removed. A ledger beside the store remembers what members looked like from
outside (size, time or tag), so that only those that look different are read again; and those are compared with what
the store holds: a file that was merely touched is no new sample.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError, StoreError
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.sources import READERS, Columns, Layout, Listing, read
from scattercube.pipeline.stores.protocol import IDENTITY, LIVE, QUARANTINED, REMOVED, ROWS, SUPERSEDED, Store

_AT_ONCE = 256  # samples that are compared together, at most


@dataclass(frozen=True)
class Growth:
    """What a run makes of an archive, beside what the store has.

    Attributes
    ----------
    listing
        All rows: those that are published first, as they are, and behind them the new ones.
    first
        How many are published.
    marks
        Published rows, and the status they get: SUPERSEDED or REMOVED.
    """

    listing: Listing
    first: int
    marks: Mapping[int, int]


def growth(
    store: Store,
    listing: Listing,
    known: Mapping[str, str],
    entry: Entry,
    data_root: Path,
    *,
    retry: bool = False,
) -> Growth:
    """Compare what an archive holds now with what its chunk store has.

    A version that was begun is finished as it was begun, from the archive as it is: what came later is for the next.

    Parameters
    ----------
    known
        What members looked like when they were read: the ledger.
    retry
        Read again what is quarantined, whatever it looks like from outside.

    Raises
    ------
    StoreError
        The archive or the entry says something else of samples that are published: other columns, another label.
    """
    import pandas as pd  # not for --help

    attributes = store.attributes()
    identity = json.loads(attributes.get(IDENTITY, "{}"))
    if identity.get("entry") != entry.digest or ROWS not in identity:
        return Growth(listing, 0, {})  # nothing, or another: beginning the store says so
    grid = held_grid(attributes)
    versions = store.versions()
    first = versions[-1].n_rows if versions else 0
    names = (*listing.columns, "source")
    held = {name: store.read(name, slice(0, grid.sizes[0])) for name in names}
    status = store.read("status", slice(0, first)) if first else np.zeros(0, np.uint8)
    if not store.published:
        begun = replace(listing, columns=held, checksum=json.loads(attributes["input_checksums"]))
        ids = held["sample_id"]
        live = np.flatnonzero(np.isin(status[:first], LIVE))
        again = live[np.isin(ids[live], ids[first:])]
        gone = live[~np.isin(ids[live], listing.columns["sample_id"])]
        return Growth(begun, first, _marks(again, gone))
    live = np.flatnonzero(np.isin(status, LIVE))
    place = pd.Index(held["sample_id"][live]).get_indexer(pd.Index(listing.columns["sample_id"]))
    rows, listed = live[place[place >= 0]], np.flatnonzero(place >= 0)
    _refuse_other_columns(store, held, rows, listing.columns, listed)
    looks = {name: known.get(name) != mark for name, mark in listing.marks.items()}
    doubtful = np.fromiter((looks.get(name, True) for name in listing.columns["member"][listed]), bool, len(listed))
    if retry:
        doubtful |= status[rows] == QUARANTINED
    changed = np.zeros(len(listed), bool)
    changed[doubtful] = _differ(store, grid, listing, rows[doubtful], listed[doubtful], status, entry, data_root)
    gone = np.setdiff1d(live, rows)
    fresh = np.sort(np.concatenate([np.flatnonzero(place < 0), listed[changed]]))
    if entry.limit is not None and (len(fresh) or len(gone)):
        raise StoreError(
            f"{store.url}: holds {entry.limit} samples (--limit) of an archive that has changed since; choose another "
            "--store, or remove this one to choose anew"
        )
    now = listing.columns | {"source": listing.sources}
    columns = {name: np.concatenate([held[name], values[fresh]]) for name, values in now.items()}
    return Growth(replace(listing, columns=columns), grid.sizes[0], _marks(rows[changed], gone))


def held_grid(attributes: Mapping[str, Any], n_samples: int | None = None) -> Grid:
    """Return how a store is cut, from its attributes; for as many samples as it has, or for others."""
    identity = json.loads(attributes[IDENTITY])
    return Grid.of_extent(identity["grid"], identity[ROWS]["samples"] if n_samples is None else n_samples)


def _marks(superseded: np.ndarray, removed: np.ndarray) -> dict[int, int]:
    return dict.fromkeys(superseded.tolist(), SUPERSEDED) | dict.fromkeys(removed.tolist(), REMOVED)


def _refuse_other_columns(
    store: Store, held: Mapping[str, np.ndarray], rows: np.ndarray, listed: Columns, at: np.ndarray
) -> None:
    """Raise StoreError where something beside the values of a published sample is no longer as it was."""
    for name, values in listed.items():
        before, now = held[name][rows], values[at]
        same = before == now
        if before.dtype.kind == "f":
            same |= np.isnan(before) & np.isnan(now)
        if not np.all(same):
            index = int(np.flatnonzero(~np.asarray(same, bool))[0])
            raise StoreError(
                f"{store.url}: {name} of {np.count_nonzero(~np.asarray(same, bool))} samples is no longer what is "
                f"published, the first: {held['sample_id'][rows[index]]} has {before[index]!r}, now {now[index]!r}; "
                "choose another --store, or remove this one to make it anew"
            )


def _differ(
    store: Store,
    grid: Grid,
    listing: Listing,
    rows: np.ndarray,
    listed: np.ndarray,
    status: np.ndarray,
    entry: Entry,
    data_root: Path,
) -> np.ndarray:
    """Say of each sample whether the archive has something else than the store's row: other values, or another fate."""
    differ = np.zeros(len(rows), bool)
    needed = ("member", "item", *READERS[entry.reader].offsets)
    for start, stop in _together(rows, listed):
        region = slice(int(rows[start]), int(rows[start]) + stop - start)
        columns = {name: values[listed[start:stop]] for name, values in listing.columns.items() if name in needed}
        for window in _windows(grid, listing.layout):
            dims = dict(zip(listing.layout.signal_dims, window, strict=True))
            held = store.read("signal", {"sample": region, **dims})
            for index, sample in enumerate(read(entry, data_root, columns, window)):
                if isinstance(sample, RecordError) != (status[rows[start + index]] == QUARANTINED):
                    differ[start + index] = True
                elif not isinstance(sample, RecordError):
                    differ[start + index] |= not np.array_equal(sample, held[index], equal_nan=held.dtype.kind == "f")
    return differ


def _together(rows: np.ndarray, listed: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut what follows each other, in the store and in the listing, into pieces."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(listed) < 1)) + 1
    for first, last in pairwise([0, *breaks.tolist(), len(rows)]):
        for start in range(first, last, _AT_ONCE):
            yield start, min(start + _AT_ONCE, last)


def _windows(grid: Grid, layout: Layout) -> Iterator[tuple[slice, ...]]:
    """Yield the parts of a sample that are compared at a time: all of it, or the shards of a field."""
    if len(grid.dims) == 1:
        yield layout.whole
        return
    of_one = replace(grid, sizes=(1, *grid.sizes[1:]), shard=(1, *grid.shard[1:]), first=0)
    for key in of_one.keys:
        region = of_one.region(key)
        yield tuple(region.get(dim, whole) for dim, whole in zip(layout.signal_dims, layout.whole, strict=True))


def ledger(marks: Mapping[str, str]) -> bytes:
    """Write down what members look like, as Parquet."""
    import pandas as pd

    content = io.BytesIO()
    pd.DataFrame({"member": list(marks), "mark": list(marks.values())}, dtype="str").to_parquet(content)
    return content.getvalue()


def marks_in(content: bytes | None) -> dict[str, str]:
    """Read a ledger back; one that is absent or damaged knows nothing, and everything is compared."""
    if content is None:
        return {}
    import pandas as pd

    try:
        table = pd.read_parquet(io.BytesIO(content), columns=["member", "mark"])
    except (ValueError, OSError, KeyError):  # what Arrow raises for damaged bytes
        return {}
    return dict(zip(table["member"].tolist(), table["mark"].tolist(), strict=True))


def cube_growth(chunks: Store, growth: Growth, cube: Store) -> tuple[int, dict[int, int]]:
    """Return how many rows of a cube are published, and what the chunk store says of these and the cube does not."""
    versions = cube.versions()
    first = versions[-1].n_rows if versions else 0
    if not first:
        return 0, {}
    status = chunks.read("status", slice(0, first))
    for row, code in growth.marks.items():
        if row < first:
            status[row] = code
    marked = np.isin(status, (SUPERSEDED, REMOVED)) & (cube.read("status", slice(0, first)) != status)
    return first, {int(row): int(status[row]) for row in np.flatnonzero(marked)}
