"""What an archive holds, a row per sample; and the samples of some rows."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError, SourceError
from scattercube.pipeline.sources import arrays, delimited, images, labels
from scattercube.pipeline.sources.archive import Archive, locate, open_archive
from scattercube.pipeline.sources.sampling import Header, Layout, corners, cut, layout


@dataclass(frozen=True)
class Reader:
    """A kind of files.

    Attributes
    ----------
    suffixes
        How the names of its members end.
    single
        The suffixes of members that always hold one image, so that counting needs no look inside.
    header
        Size, dtype and number of the images in a member, without pixels. Raises RecordError.
    read
        Yield the images at some positions of a member, ``(y, x)`` or ``(y, x, channel)``; one item a position, a
        RecordError where there is none to be had.
    """

    suffixes: tuple[str, ...]
    single: tuple[str, ...]
    header: Callable[[Entry, Archive, str], Header]
    read: Callable[[Entry, Archive, str, Sequence[int]], Iterator[np.ndarray | RecordError]]


READERS = {
    "images": Reader(images.SUFFIXES, images.SINGLE, images.header, images.read),
    "idx": Reader(arrays.IDX_SUFFIXES, (), arrays.header, arrays.read),
    "arrays": Reader(arrays.NPY_SUFFIXES, (), arrays.header, arrays.read),
    "csv": Reader(delimited.SUFFIXES, (), delimited.header, delimited.read),
}


@dataclass(frozen=True)
class Listing:
    """The samples of an archive, in reading order.

    Attributes
    ----------
    columns
        One row per sample. ``sample_id`` (unique and stable: member and position), ``member``, ``item`` (int64, the
        position in the member), ``y0`` and ``x0`` (int64, patches only), ``label`` (where the entry has labels),
        ``split`` (train, test, unused or empty), then metadata. Text is in object arrays.
    dims, shape, dtype, channels
        Of one sample; ``channels`` names the channels, where there are any.
    uri
        The folder or file that member names are relative to.
    checksum
        What identifies the input cheaply.
    notes
        What a person should know: members skipped, labels missing, alpha dropped.
    """

    columns: dict[str, np.ndarray]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    channels: tuple[str, ...]
    uri: str
    checksum: dict[str, Any]
    notes: tuple[str, ...]


def scan(entry: Entry, data_root: Path) -> Listing:
    """List the samples of an entry's archive: no pixels, and of files only the heads that the policy needs.

    Raises
    ------
    SourceError
        The archive is absent, holds nothing of the kind, or nothing that can be read.
    EntryError
        The entry does not describe what the archive holds.
    """
    archive = open_archive(locate(entry, data_root))
    names, notes = select(entry, archive)
    reader = READERS[entry.reader]
    deciding, header, out = _decide(entry, archive, names)
    if header.alpha:
        notes.append(f"the alpha channel of {deciding}, and of others that have one, is dropped")
    counts, parts = [], []
    for name in names:
        known: Header | None = header
        if entry.sample.patches or not name.lower().endswith(reader.single):
            known = _header(entry, archive, name)
        parts.append(_positions(entry, known))
        counts.append(parts[-1].shape[1])
    item, y0, x0, height, width = np.concatenate(parts, axis=1)
    if not len(item):
        raise SourceError(f"{archive.path}: the {len(names)} members hold no samples")
    member = np.repeat(np.array(names, dtype=object), counts)
    columns: dict[str, np.ndarray] = {"sample_id": member, "member": member, "item": item}
    found, said = labels.describe(entry, archive, names, np.array(counts), item)
    if entry.sample.patches:
        columns |= {"y0": y0, "x0": x0}
        if position := entry.split.position:
            extent = width if position.axis == "x" else height
            found["split"] = labels.by_position(position, y0, x0, entry.sample.patches.size, extent)
    columns |= found
    columns["sample_id"] = _names_of_samples(columns, reader.single)
    if entry.limit is not None and entry.limit < len(item):
        chosen = _spread(columns, entry.limit)
        columns = {name: values[chosen] for name, values in columns.items()}
    checksum = archive.checksum([*names, *sorted(labels.partners(entry, names))])
    if entry.labels and entry.labels.table:
        checksum["table"] = labels.table_checksum(entry.labels.table, archive)
    return Listing(
        columns,
        out.dims,
        out.shape,
        out.dtype,
        out.channels,
        str(archive.root),
        checksum,
        tuple(notes + said),
    )


def read(entry: Entry, data_root: Path, rows: Mapping[str, np.ndarray]) -> Iterator[np.ndarray | RecordError]:
    """Yield the samples of some rows of ``Listing.columns``, one item a row, in their order.

    Every array has the listing's shape and dtype. A record that cannot be used comes as a RecordError, with a reason:
    unreadable, wrong-shape, non-finite, too-large or missing.

    Raises
    ------
    SourceError
        The archive as a whole is gone.
    """
    archive = open_archive(locate(entry, data_root))
    reader, out = READERS[entry.reader], _remembered(entry, archive)
    pattern = re.compile(entry.labels.pattern) if entry.labels and entry.labels.pattern else None
    member, item = rows["member"], rows["item"]
    corner = zip(rows["y0"].tolist(), rows["x0"].tolist(), strict=True) if entry.sample.patches else None
    changes = np.flatnonzero(member[1:] != member[:-1]) + 1
    for start, stop in pairwise([0, *changes.tolist(), len(member)]):
        if start == stop:
            return
        name, mine = str(member[start]), item[start:stop]
        # The patches of an image follow each other: it is decoded once for all of them.
        fresh = np.concatenate([[True], mine[1:] != mine[:-1]])
        found = reader.read(entry, archive, name, mine[fresh])
        image: np.ndarray | RecordError
        for is_fresh in fresh.tolist():
            if is_fresh:
                image = next(found)
            y0, x0 = next(corner) if corner else (0, 0)
            if isinstance(image, RecordError):
                yield image
            elif pattern and not pattern.search(name):
                yield RecordError("missing", f"{name}: labels.pattern does not match the name")
            else:
                try:
                    yield cut(image, out, entry.sample, y0, x0)
                except RecordError as failure:
                    yield RecordError(failure.reason, f"{name}: {failure}")


_decided: dict[tuple[str, str], tuple[str, list[int], Layout]] = {}


def _remembered(entry: Entry, archive: Archive) -> Layout:
    """The layout that the first readable member decides, without listing the archive for every call."""
    key = (entry.digest, str(archive.path))
    name, signature, out = _decided.get(key, ("", [], None))
    if out is None or name not in archive or archive.signature(name) != signature:
        *_, out = _decide(entry, archive, select(entry, archive)[0])
    return out


def _decide(entry: Entry, archive: Archive, names: Sequence[str]) -> tuple[str, Header, Layout]:
    """Find the first member whose head can be read; what it looks like, all samples look like."""
    first: RecordError | None = None
    for name in names:
        try:
            header = READERS[entry.reader].header(entry, archive, name)
        except RecordError as failure:
            first = first or failure
            continue
        out = layout(header, entry.sample)
        _decided[entry.digest, str(archive.path)] = (name, archive.signature(name), out)
        return name, header, out
    raise SourceError(f"{archive.path}: none of {len(names)} members can be read; the first: {first}")


def select(entry: Entry, archive: Archive) -> tuple[list[str], list[str]]:
    """Return the members that hold samples, and notes about the others. Raises SourceError where there are none."""
    names, notes = archive.select(entry.members, READERS[entry.reader].suffixes)
    partners = labels.partners(entry, names)
    return [name for name in names if name not in partners], notes


def _header(entry: Entry, archive: Archive, name: str) -> Header | None:
    try:
        return READERS[entry.reader].header(entry, archive, name)
    except RecordError:
        return None  # it still gets a row, and is quarantined when it is read


def _positions(entry: Entry, header: Header | None) -> np.ndarray:
    """Item, y0, x0 and the image's height and width for every sample of a member, ``(5, sample)``."""
    if header is None:
        return np.zeros((5, 1), np.int64)
    y0, x0 = corners(header, entry.sample)
    n_items = header.n_items
    item = np.repeat(np.arange(n_items), len(y0))
    size = np.full((2, len(item)), [[header.height], [header.width]])
    return np.stack([item, np.tile(y0, n_items), np.tile(x0, n_items), *size])


def _names_of_samples(columns: Mapping[str, np.ndarray], single: tuple[str, ...]) -> np.ndarray:
    """Name every sample by what does not change when the archive grows."""
    names = [
        member if member.lower().endswith(single) else f"{member}#{item}"
        for member, item in zip(columns["member"].tolist(), columns["item"].tolist(), strict=True)
    ]
    if "y0" in columns:
        at = zip(names, columns["y0"].tolist(), columns["x0"].tolist(), strict=True)
        names = [f"{name}@{y0},{x0}" for name, y0, x0 in at]
    return np.array(names, dtype=object)


def _spread(columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Choose n rows, evenly over splits and labels and within them over the archive; in reading order."""
    size = len(columns["sample_id"])
    groups = [
        np.unique(columns[name].astype(str), return_inverse=True)[1] for name in ("label", "split") if name in columns
    ]
    order = np.lexsort([np.arange(size), *groups])
    return np.sort(order[(np.arange(n) * size + size // 2) // n])
