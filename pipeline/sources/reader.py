"""The contract of readers: what a kind of files must say before any work, and give during it.

A reader is a module, or an object, with the members of `Reader`. One test in ``tests/test_readers.py`` holds all of
them to it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.sources.archives.archive import Archive

Columns = dict[str, np.ndarray]
"""A value for each sample, by column; text is in object arrays."""

Window = tuple[slice, ...]
"""A part of a sample: a slice for each of its signal's dims, with start and stop inside the sample."""


@dataclass(frozen=True)
class Layout:
    """What all samples of an archive look like.

    Attributes
    ----------
    dims, shape
        Of one sample: ``channel``, where there are channels, and then the dims of the signal.
    dtype
        Of one sample, in native byte order.
    channels
        The names of the channels, where there are any.
    spacing, units
        For each dim of the signal, how far apart neighbouring values are, and in what.
    source_dtype
        Of the archive's values, where they become others on the way.
    note
        What a person should know of how values become samples; may be empty.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    channels: tuple[str, ...] = ()
    spacing: tuple[float, ...] = (1.0, 1.0)
    units: tuple[str, ...] = ("pixel", "pixel")
    source_dtype: np.dtype | None = None
    note: str = ""

    @property
    def signal_dims(self) -> tuple[str, ...]:
        """The dims of the signal: all but ``channel``."""
        return self.dims[-len(self.spacing) :]

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """The shape of the signal of one channel."""
        return self.shape[-len(self.spacing) :]

    @property
    def whole(self) -> Window:
        """The window that is all of a sample."""
        return tuple(slice(0, size) for size in self.signal_shape)


class Reader(Protocol):
    """A kind of files.

    Attributes
    ----------
    suffixes
        How the names of its members end, in lower case.
    single
        Those of the suffixes whose members hold one item, which needs no number.
    offsets
        Which columns of `samples` (int64) say where a sample starts in its item; they are part of its name.
    """

    @property
    def suffixes(self) -> tuple[str, ...]:
        """How the names of its members end, in lower case."""

    @property
    def single(self) -> tuple[str, ...]:
        """Those of the suffixes whose members hold one item, which needs no number."""

    @property
    def offsets(self) -> tuple[str, ...]:
        """Which columns of `samples` say where a sample starts in its item."""

    def header(self, entry: Entry, archive: Archive, name: str) -> Any:
        """Return what the head of a member says, without reading its values. Raises RecordError."""

    def layout(self, entry: Entry, header: Any) -> Layout:
        """Return what samples look like when the archive's members look like this one. Raises EntryError."""

    def needs_header(self, entry: Entry, name: str) -> bool:
        """Say whether a look inside is needed to know the samples of a member."""

    def samples(self, entry: Entry, header: Any) -> Columns:
        """List the samples of a member, a row each, or none.

        ``item`` (int64) is the position of the sample's item in the member. With it come all ``offsets``, or, where
        samples are whole items, none. Other columns are metadata, and the same for all members; a ``split`` goes before
        what the entry says. ``header`` is None where the head is not needed, or cannot be read: then one row that will
        be quarantined when it is read.
        """

    def read(
        self, entry: Entry, archive: Archive, name: str, layout: Layout, rows: Mapping[str, np.ndarray], window: Window
    ) -> Iterator[np.ndarray | RecordError]:
        """Yield the window of some samples of a member, one item a row: an array, or why it cannot be had.

        ``rows`` holds the columns ``item`` and ``offsets`` of `samples`, in ascending order. Arrays have the layout's
        dtype and dims. What belongs to one record alone comes as RecordError: unreadable, wrong-shape, non-finite,
        too-large or missing.
        """
