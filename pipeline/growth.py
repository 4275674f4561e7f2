"""What is new in an archive that was read before: which samples are to be appended, and which rows are no longer so.

Rows of a store never move. A sample whose member changed becomes a new row behind the others, and its old row is marked
superseded; one that is gone is marked removed. A ledger beside the store remembers what members looked like from
outside (size, time or tag), so that only those that look different are read again; and those are compared with what
the store holds: a file that was merely touched is no new sample.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError, StoreError
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.sources import READERS, Columns, Layout, Listing, read
from scattercube.pipeline.stores.protocol import OK, QUARANTINED, REMOVED, SUPERSEDED, Store

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

    @property
    def n_new(self) -> int:
        """How many rows are new."""
        return len(self.listing.columns["sample_id"]) - self.first


def grown(
    store: Store,
    grid: Grid,
    listing: Listing,
    known: Mapping[str, str],
    entry: Entry,
    data_root: Path,
    *,
    retry: bool = False,
) -> Growth:
    """Compare what an archive holds now with what a published chunk store has.

    Parameters
    ----------
    grid
        The store's.
    known
        What members looked like when they were read: the ledger.
    retry
        Read again what is quarantined, whatever it looks like from outside.

    Raises
    ------
    StoreError
        The archive or the entry says something else of samples that are published: other columns, another label.
    """
    held = {name: store.read(name, slice(0, grid.sizes[0])) for name in (*listing.columns, "status")}
    live = np.flatnonzero(~np.isin(held["status"], (SUPERSEDED, REMOVED)))
    ids = pd.Index(held["sample_id"][live])
    place = ids.get_indexer(pd.Index(listing.columns["sample_id"]))
    is_known = place >= 0
    rows = live[place[is_known]]
    listed = np.flatnonzero(is_known)
    _refuse_other_columns(store, held, rows, listing.columns, listed)
    member = listing.columns["member"]
    looks = {name: known.get(name) != mark for name, mark in listing.marks.items()}
    doubtful = np.fromiter((looks.get(name, True) for name in member[listed]), bool, len(listed))
    if retry:
        doubtful |= held["status"][rows] == QUARANTINED
    changed = np.zeros(len(listed), bool)
    changed[doubtful] = _differ(
        store, grid, listing, rows[doubtful], listed[doubtful], held["status"], entry, data_root
    )
    gone = np.setdiff1d(live, rows)
    fresh = np.sort(np.concatenate([np.flatnonzero(~is_known), listed[changed]]))
    columns = {name: np.concatenate([held[name], values[fresh]]) for name, values in listing.columns.items()}
    marks = dict.fromkeys(rows[changed].tolist(), SUPERSEDED) | dict.fromkeys(gone.tolist(), REMOVED)
    return Growth(replace(listing, columns=columns), grid.sizes[0], marks)


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
                fate = QUARANTINED if isinstance(sample, RecordError) else OK
                before = status[rows[start + index]]
                if (before == QUARANTINED) != (fate == QUARANTINED):
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
    content = io.BytesIO()
    pd.DataFrame({"member": list(marks), "mark": list(marks.values())}, dtype="str").to_parquet(content)
    return content.getvalue()


def marks_in(content: bytes | None) -> dict[str, str]:
    """Read a ledger back; one that is absent or damaged knows nothing, and everything is compared."""
    if content is None:
        return {}
    try:
        table = pd.read_parquet(io.BytesIO(content), columns=["member", "mark"])
    except (ValueError, OSError, KeyError):  # what Arrow raises for damaged bytes
        return {}
    return dict(zip(table["member"].tolist(), table["mark"].tolist(), strict=True))
