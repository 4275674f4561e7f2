"""Reader of text tables whose rows are flattened images."""

import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, RecordError
from scattercube.pipeline.policies import Csv
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.pictures.sampling import Header
from scattercube.pipeline.sources.reader import Window

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
_LONGEST_LINE = 16 << 20


class _Places(threading.local):
    """Per thread and member: the next row, and the byte at which it begins."""

    def __init__(self) -> None:
        self.next: dict[tuple[str | int, ...], tuple[int, int]] = {}


_places = _Places()


def head(entry: Entry, archive: Archive, name: str) -> Header:
    """Return the number of rows and the declared size of their images. Raises RecordError."""
    assert entry.csv is not None
    believed, nbytes, n_lines = archive.nbytes(name), 0, 0
    with archive.open(name) as stream:
        for line in _lines(stream):
            n_lines, nbytes = n_lines + 1, nbytes + len(line)
            if nbytes > believed:
                raise RecordError("too-large", f"{name}: unpacks to more than {believed} bytes; refused as a bomb")
    return Header(*entry.csv.shape, np.dtype(np.float32), n_items=max(n_lines - entry.csv.header, 0))


def decode(
    entry: Entry, archive: Archive, name: str, items: Sequence[int], window: Window | None
) -> Iterator[np.ndarray | RecordError]:
    """Yield the rows ``items`` as ``(y, x)`` float32, or why one cannot be had. Ascending items read the file once."""
    assert entry.csv is not None
    for item in items:
        try:
            line = _line(archive, name, int(item), entry.csv)
            image = _image(line, entry.csv, _position(entry, archive, name), f"{name}: row {item}")
            yield image if window is None else image[window]
        except RecordError as failure:
            yield failure


def column(entry: Entry, archive: Archive, name: str) -> np.ndarray:
    """Return the label column as text."""
    assert entry.csv is not None
    position = _position(entry, archive, name)
    assert position is not None
    delimiter = entry.csv.delimiter.encode()
    with archive.open(name) as stream:
        lines = iter(_lines(stream))
        if entry.csv.header:
            next(lines, None)
        return np.array([_field(line, delimiter, position).decode("utf-8", "replace") for line in lines], object)


def _position(entry: Entry, archive: Archive, name: str) -> int | None:
    """Where the label column is, from 0 or negative from the end. Raises EntryError where no column is called so."""
    wanted = entry.labels.column if entry.labels else None
    if not isinstance(wanted, str):
        return wanted
    assert entry.csv is not None
    if name not in archive.learnt:
        with archive.open(name) as stream:
            heading = stream.readline(_LONGEST_LINE).decode("utf-8-sig", "replace")
        archive.learnt[name] = [field.strip().strip('"') for field in heading.split(entry.csv.delimiter)]
    names: list[str] = archive.learnt[name]
    if wanted not in names:
        raise EntryError(f"labels.column: {name} has no column {wanted!r}; it has {', '.join(names[:8])}…")
    return names.index(wanted)


def _line(archive: Archive, name: str, item: int, csv: Csv) -> bytes:
    key: tuple[str | int, ...] = (str(archive.path), name, *archive.signature(name))
    with archive.stream(name) as stream:
        row, offset = _places.next.get(key, (0, 0))
        if item < row:
            row, offset = 0, 0
        stream.seek(offset)
        if offset == 0 and csv.header:
            stream.readline(_LONGEST_LINE)
        for line in _lines(stream):
            row += 1
            if row > item:
                _places.next[key] = (row, stream.tell())
                return line
    raise RecordError("missing", f"{name}: row {item}; the file has {row}")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines that are not blank, without their ends; of one that is too long the first part."""
    while line := stream.readline(_LONGEST_LINE):
        rest = line
        while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(_LONGEST_LINE)
        if line.strip():
            yield line.rstrip(b"\r\n")


def _field(line: bytes, delimiter: bytes, position: int) -> bytes:
    """One field, without making an object of every other where it stands near an end."""
    fields = line.split(delimiter, position + 1) if position >= 0 else line.rsplit(delimiter, -position)
    found = position if position >= 0 else len(fields) + position
    return fields[found].strip().strip(b'"') if 0 <= found < len(fields) else b""


def _image(line: bytes, csv: Csv, label: int | None, where: str) -> np.ndarray:
    if len(line) >= _LONGEST_LINE:
        raise RecordError("too-large", f"{where}: longer than {_LONGEST_LINE} bytes")
    fields = line.split(csv.delimiter.encode())
    if label is not None and -len(fields) <= label < len(fields):
        del fields[label]
    if len(fields) != csv.shape[0] * csv.shape[1]:
        raise RecordError("wrong-shape", f"{where}: {len(fields)} pixels; csv.shape {list(csv.shape)} has other")
    try:
        return np.array(fields).astype(np.float32).reshape(csv.shape)
    except ValueError as failure:
        raise RecordError("unreadable", f"{where}: {failure}") from failure
