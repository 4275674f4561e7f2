"""Where the columns of a Parquet file are, and what their values will take in memory, before a library takes it.

Apache Parquet, format/src/main/thrift/parquet.thrift; Thrift's compact protocol. What the end of a file says of its
sizes is only what somebody wrote there; a page is unpacked to what its own head says. The end is parsed here, because
Arrow ends the process where it finds damage in it.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.array_files.forms import refuse_bomb

_LONGEST_HEAD = 1 << 16
_LARGEST_PAGE = 1 << 28
_DEEPEST = 16
_MAGIC = b"PAR1"
_LONGEST_FOOTER = 64 << 20
_ITEMSIZES = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8}  # of physical types: BOOLEAN, INT32, INT64, FLOAT, DOUBLE
_UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_V2, _N_VALUES = 2, 3, 5, 7, 8, 1
_STRUCT, _LIST, _SET, _BINARY, _DOUBLE, _BYTE = 12, 9, 10, 8, 7, 3


@dataclass(frozen=True)
class Chunk:
    """The part of a column that is in one row group: its path, where it is, what it should hold.

    Attributes
    ----------
    itemsize
        Bytes of one of its numbers; 0 for texts and images, which are in the pages as they are.
    """

    path: tuple[str, ...]
    start: int
    nbytes: int
    unpacked_nbytes: int
    n_values: int
    itemsize: int


@dataclass(frozen=True)
class RowGroup:
    """Rows that are stored together."""

    n_rows: int
    chunks: tuple[Chunk, ...]


def footer(stream: BinaryIO, nbytes: int) -> tuple[RowGroup, ...]:
    """Return the row groups of a file of so many bytes. Raises RecordError where its end is damaged."""
    stream.seek(max(0, nbytes - 8))
    end = stream.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > min(nbytes - 12, _LONGEST_FOOTER):
        raise RecordError("unreadable", "no Parquet file, or not all of one: its end is not there")
    stream.seek(nbytes - 8 - length)
    try:
        groups = _Head(stream.read(length), "the end of the file").struct().get(4, [])
        found = tuple(RowGroup(group[3], tuple(map(_chunk, group[1]))) for group in groups)
        if any(group.n_rows < 0 for group in found):
            raise ValueError("fewer than no rows")
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as failure:
        raise RecordError("unreadable", f"the end of the file is damaged: {failure!r}") from failure


def _chunk(fields: dict[int, Any]) -> Chunk:
    if fields.get(1) is not None:
        raise RecordError("unreadable", f"a column in another file, {fields[1]!r}, which is not followed")
    about = fields[3]
    starts = [start for start in (about[9], about.get(11)) if start]
    path = tuple(part.decode("utf-8", "replace") for part in about[3])
    return Chunk(path, min(starts), about[7], about[6], about[5], _ITEMSIZES.get(about[1], 0))


@dataclass(frozen=True)
class Pages:
    """What the pages of one column chunk hold: values, and the unpacked bytes of the dictionary."""

    n_values: int
    dictionary_nbytes: int


def walk(stream: BinaryIO, start: int, nbytes: int, n_values: int, itemsize: int, where: str) -> Pages:
    """Go from page to page of a column chunk.

    Parameters
    ----------
    start, nbytes, n_values
        Where the chunk is, and how many values it should hold.
    itemsize
        Bytes of one of its numbers in memory; 0 for texts and images, which are in the pages as they are.

    Raises
    ------
    RecordError
        ``too-large``: pages unpack to far more than they are; ``unreadable``: they are not what they should be.
    """
    at, found, dictionary = start, 0, 0
    while found < n_values:
        stream.seek(at)
        head = _Head(stream.read(_LONGEST_HEAD), where)
        fields = head.struct()
        packed, unpacked = fields.get(_PACKED), fields.get(_UNPACKED)
        if not isinstance(packed, int) or not isinstance(unpacked, int) or packed < 0 or unpacked < 0:
            raise RecordError("unreadable", f"{where}: a page without a size at byte {at}")
        if unpacked > _LARGEST_PAGE:
            raise RecordError("too-large", f"{where}: a page of {unpacked} bytes; the largest are {_LARGEST_PAGE}")
        refuse_bomb(f"{where}: page", unpacked, packed)
        data = fields.get(_DATA) or fields.get(_DATA_V2)
        if isinstance(data, dict):
            found += max(0, int(data.get(_N_VALUES, 0)))
        elif _DICTIONARY in fields:
            dictionary = unpacked
        at += head.position + packed
        if at > start + nbytes:
            raise RecordError("unreadable", f"{where}: pages end at byte {at}, their column at {start + nbytes}")
    refuse_bomb(f"{where}: {found} values", found * itemsize, nbytes)
    return Pages(found, dictionary)


class _Head:
    """A struct in Thrift's compact protocol, as far as it is needed here."""

    def __init__(self, content: bytes, where: str) -> None:
        self._content, self._where, self.position = content, where, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields by number. Raises RecordError where it is none."""
        if depth > _DEEPEST:
            raise self._broken()
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self._content) - self.position:
                raise self._broken()
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        nbytes = {_BYTE: 1, _DOUBLE: 8}.get(kind, 0)
        if kind == _BINARY:
            nbytes = self._varint()
        elif not nbytes:
            raise self._broken()
        self.position += nbytes
        if self.position > len(self._content):
            raise self._broken()
        return self._content[self.position - nbytes : self.position]

    def _byte(self) -> int:
        if self.position >= len(self._content):
            raise self._broken()
        self.position += 1
        return self._content[self.position - 1]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise self._broken()

    def _zigzag(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)

    def _broken(self) -> RecordError:
        return RecordError("unreadable", f"{self._where}: damaged, or cut short")
