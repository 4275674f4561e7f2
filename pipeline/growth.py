"""What is new in an archive that was read before: which samples are to be appended, and which rows are no longer so.

Rows of a store never move. A sample whose member changed becomes a new row behind the others, and its old row is marked
superseded; one that is gone is marked removed. A ledger beside the store remembers what members looked like from
outside (size, time or tag), so that only those that look different are read again; and those are compared with what
the store holds: a file that was merely touched is no new sample. It also counts the runs that read a bad member again
and found it as bad, of which the store, being as it was, knows nothing.
"""

import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError, StoreError
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.sources import READERS, Columns, Layout, Listing, read
from scattercube.pipeline.stores.protocol import IDENTITY, LIVE, QUARANTINED, REMOVED, ROWS, SUPERSEDED, Store

_AT_ONCE = 256  # samples that are compared together, at most


class Retries(NamedTuple):
    """How often a member with quarantined samples was read again, and was as bad; the last time, in seconds (POSIX)."""

    times: int
    last: float


@dataclass(frozen=True)
class Ledger:
    """What is remembered of an archive's members beside the store, as Parquet.

    Attributes
    ----------
    marks
        By member, what it looked like when it was read.
    retries
        By member, the attempts that left the store as it was.
    """

    marks: Mapping[str, str]
    retries: Mapping[str, Retries] = field(default_factory=dict)

    def content(self) -> bytes:
        """Write it down."""
        import pandas as pd

        table = pd.DataFrame({"member": list(self.marks), "mark": list(self.marks.values())}, dtype="str")
        again = [self.retries.get(member, Retries(0, 0.0)) for member in self.marks]
        table["retries"] = np.array([one.times for one in again], np.int64)
        table["last_retry"] = np.array([one.last for one in again], np.float64)
        file = io.BytesIO()
        table.to_parquet(file)
        return file.getvalue()

    @classmethod
    def of(cls, content: bytes | None) -> Self:
        """Read it back; one that is absent or damaged knows nothing, and everything is compared."""
        if content is None:
            return cls({})
        import pandas as pd

        try:
            table = pd.read_parquet(io.BytesIO(content), columns=["member", "mark", "retries", "last_retry"])
        except (ValueError, OSError, KeyError):  # what Arrow raises for damaged bytes, or where a column is not there
            return cls({})
        again = table[table["retries"] > 0]
        retries = map(Retries, again["retries"].tolist(), again["last_retry"].tolist())
        return cls(
            dict(zip(table["member"].tolist(), table["mark"].tolist(), strict=True)),
            dict(zip(again["member"].tolist(), retries, strict=True)),
        )


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
    ledger
        What is to be remembered of the members once the run has read them.
    """

    listing: Listing
    first: int
    marks: Mapping[int, int]
    ledger: Ledger


def growth(
    store: Store,
    listing: Listing,
    known: Ledger,
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
        What is remembered of the members.
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
        return Growth(listing, 0, {}, Ledger(listing.marks))  # nothing, or another: beginning the store says so
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
        return Growth(begun, first, _marks(again, gone), Ledger(listing.marks, known.retries))
    live = np.flatnonzero(np.isin(status, LIVE))
    place = pd.Index(held["sample_id"][live]).get_indexer(pd.Index(listing.columns["sample_id"]))
    rows, listed = live[place[place >= 0]], np.flatnonzero(place >= 0)
    _refuse_other_columns(store, held, rows, listing.columns, listed)
    looks = {name: known.marks.get(name) != mark for name, mark in listing.marks.items()}
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
    bad, members = (status[rows] == QUARANTINED) & ~changed, listing.columns["member"][listed]
    retries = _retries(known, set(members[bad]), set(members[bad & doubtful]))
    grown = replace(listing, columns=columns)
    return Growth(grown, grid.sizes[0], _marks(rows[changed], gone), Ledger(listing.marks, retries))


def held_grid(attributes: Mapping[str, Any], n_samples: int | None = None) -> Grid:
    """Return how a store is cut, from its attributes; for as many samples as it has, or for others."""
    identity = json.loads(attributes[IDENTITY])
    return Grid.of_extent(identity["grid"], identity[ROWS]["samples"] if n_samples is None else n_samples)


def _retries(known: Ledger, bad: set[str], tried: set[str]) -> dict[str, Retries]:
    """Count one more for the members that were tried in vain; those that are no longer bad are forgotten."""
    now, never = time.time(), Retries(0, 0.0)
    before = {member: known.retries.get(member, never) for member in bad}
    counted = {m: Retries(one.times + 1, now) if m in tried else one for m, one in before.items()}
    return {member: one for member, one in counted.items() if one.times}


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
