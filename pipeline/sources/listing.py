"""What an archive holds, a row per sample; and the samples of some rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scattercube.pipeline.catalog import Entry, search
from scattercube.pipeline.errors import RecordError, SourceError
from scattercube.pipeline.sources import labels, molecules
from scattercube.pipeline.sources.archives.archive import HEAD_NBYTES, Archive, locate, open_archive
from scattercube.pipeline.sources.array_files import arrays, grids, raw
from scattercube.pipeline.sources.pictures import delimited, images
from scattercube.pipeline.sources.pictures.sampling import Pictures
from scattercube.pipeline.sources.reader import Columns, Layout, Reader, Window
from scattercube.pipeline.sources.sky_maps import sky
from scattercube.pipeline.sources.sounds import audio

READERS: dict[str, Reader] = {
    "images": Pictures(images.SUFFIXES, images.SINGLE, images.head, images.decode),
    "idx": arrays.ArrayFiles(raw.IDX_SUFFIXES),
    "arrays": arrays.ArrayFiles(grids.SUFFIXES),
    "sky": sky.SkyImages(),
    "csv": Pictures(delimited.SUFFIXES, (), delimited.head, delimited.decode),
    "audio": audio,
    "molecules": molecules,
}


@dataclass(frozen=True)
class Listing:
    """The samples of an archive, in reading order.

    Attributes
    ----------
    columns
        One row per sample. ``sample_id`` (unique and stable: member and position), ``member``, ``item`` (int64, the
        position in the member), the reader's own (``y0`` and ``x0`` of patches, …), ``label`` (where the entry has
        labels), ``split`` (train, test, unused or empty), then metadata. Text is in object arrays.
    layout
        What every sample looks like.
    uri
        The folder or file that member names are relative to.
    checksum
        What identifies the input cheaply.
    notes
        What a person should know: members skipped, labels missing, alpha dropped.
    marks
        By member, what changes when it does, as far as that can be told without reading it.
    """

    columns: Columns
    layout: Layout
    uri: str
    checksum: dict[str, Any]
    notes: tuple[str, ...]
    marks: dict[str, str]

    @property
    def sources(self) -> np.ndarray:
        """Where samples come from: archive and member."""
        return np.array([f"{self.uri}/{member}" for member in self.columns["member"].tolist()], dtype=object)


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
    if out.note:
        notes.append(f"of {deciding}, and of others like it, {out.note}")
    parts = [
        reader.samples(entry, _header(entry, archive, name) if reader.needs_header(entry, name) else header)
        for name in archive.each(names, HEAD_NBYTES if reader.needs_header(entry, names[0]) else 0)
    ]
    counts = np.array([len(part["item"]) for part in parts])
    if not counts.sum():
        raise SourceError(f"{archive.path}: the {len(names)} members hold no samples")
    own = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    member = np.repeat(np.array(names, dtype=object), counts)
    columns: Columns = {"sample_id": member, "member": member}
    found, said = labels.describe(entry, archive, names, counts, own)
    columns |= {name: values for name, values in own.items() if name != "split"} | found
    if "split" in own:
        columns["split"] = own["split"]
    columns["sample_id"] = _names_of_samples(columns, reader)
    if entry.limit is not None and entry.limit < len(member):
        chosen = _spread(columns, entry.limit)
        columns = {name: values[chosen] for name, values in columns.items()}
    checksum = _checksum(entry, archive, names)
    return Listing(columns, out, str(archive.root), checksum, tuple(notes + said), archive.marks(names))


def identify(entry: Entry, data_root: Path) -> dict[str, Any]:
    """Return `Listing.checksum` of an entry's archive as it is now; no member is opened for it, only a table of labels.

    Raises
    ------
    SourceError
        The archive is absent, or holds nothing of the kind.
    """
    archive = open_archive(locate(entry, data_root))
    return _checksum(entry, archive, select(entry, archive)[0])


def _checksum(entry: Entry, archive: Archive, names: Sequence[str]) -> dict[str, Any]:
    partners = [name for name in sorted(labels.partners(entry, names)) if name in archive]
    checksum = archive.checksum([*names, *partners])
    if entry.labels and entry.labels.table:
        checksum["table"] = labels.table_checksum(entry.labels.table.file, archive)
    if entry.sky and entry.sky.cutouts:
        checksum["table"] = labels.table_checksum(entry.sky.cutouts.table, archive)
    return checksum


def read(
    entry: Entry, data_root: Path, rows: Mapping[str, np.ndarray], window: Window | None = None
) -> Iterator[np.ndarray | RecordError]:
    """Yield the samples of some rows of ``Listing.columns``, one item a row, in their order.

    Every array has the listing's layout, or is the same ``window`` of each. A record that cannot be used comes as a
    RecordError, with a reason: unreadable, wrong-shape, non-finite, too-large or missing.

    Raises
    ------
    SourceError
        The archive as a whole is gone.
    """
    archive = open_archive(locate(entry, data_root))
    reader, layout = READERS[entry.reader], _remembered(entry, archive)
    pattern = entry.labels.pattern if entry.labels else None
    member = rows["member"]
    places = {name: rows[name] for name in ("item", *reader.offsets) if name in rows}
    changes = np.flatnonzero(member[1:] != member[:-1]) + 1
    bounds = [0, *changes.tolist(), len(member)] if len(member) else []
    names = [str(member[start]) for start in bounds[:-1]]
    for name, (start, stop) in zip(archive.each(names), pairwise(bounds), strict=True):
        mine = {column: values[start:stop] for column, values in places.items()}
        if pattern and not search(pattern, name, "labels.pattern"):
            yield from [RecordError("missing", f"{name}: labels.pattern does not match the name")] * (stop - start)
        else:
            yield from reader.read(entry, archive, name, layout, mine, window or layout.whole)


_decided: dict[tuple[str, str], tuple[str, list[int], Layout]] = {}


def _remembered(entry: Entry, archive: Archive) -> Layout:
    """The layout that the first readable member decides, without listing the archive for every call."""
    key = (entry.digest, str(archive.path))
    name, signature, out = _decided.get(key, ("", [], None))
    if out is None or name not in archive or archive.signature(name) != signature:
        *_, out = _decide(entry, archive, select(entry, archive)[0])
    return out


def _decide(entry: Entry, archive: Archive, names: Sequence[str]) -> tuple[str, Any, Layout]:
    """Find the first member whose head can be read; what it looks like, all samples look like."""
    first: RecordError | None = None
    reader = READERS[entry.reader]
    for name in names:
        try:
            archive.vouch(name)
            header = reader.header(entry, archive, name)
        except RecordError as failure:
            first = first or failure
            continue
        out = reader.layout(entry, header)
        _decided[entry.digest, str(archive.path)] = (name, archive.signature(name), out)
        return name, header, out
    raise SourceError(f"{archive.path}: none of {len(names)} members can be read; the first: {first}")


def select(entry: Entry, archive: Archive) -> tuple[list[str], list[str]]:
    """Return the members that hold samples, and notes about the others. Raises SourceError where there are none."""
    names, notes = archive.select(entry.members, READERS[entry.reader].suffixes)
    partners = labels.partners(entry, names)
    return [name for name in names if name not in partners], notes


def _header(entry: Entry, archive: Archive, name: str) -> Any:
    try:
        return READERS[entry.reader].header(entry, archive, name)
    except RecordError:
        return None  # it still gets a row, and is quarantined when it is read


def _names_of_samples(columns: Columns, reader: Reader) -> np.ndarray:
    """Name every sample by what does not change when the archive grows."""
    names = [
        member if member.lower().endswith(reader.single) else f"{member}#{item}"
        for member, item in zip(columns["member"].tolist(), columns["item"].tolist(), strict=True)
    ]
    offsets = [columns[name].tolist() for name in reader.offsets if name in columns]
    if offsets:
        names = [f"{name}@{','.join(map(str, at))}" for name, *at in zip(names, *offsets, strict=True)]
    return np.array(names, dtype=object)


def _spread(columns: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Choose n rows, evenly over splits and labels and within them over the archive; in reading order."""
    size = len(columns["sample_id"])
    groups = [
        np.unique(columns[name].astype(str), return_inverse=True)[1] for name in ("label", "split") if name in columns
    ]
    order = np.lexsort([np.arange(size), *groups])
    return np.sort(order[(np.arange(n) * size + size // 2) // n])
