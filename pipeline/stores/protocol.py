"""The contract of stores: what every back-end does for a run and for its readers.

A store is one Zarr v3 group, of which readers see published versions only. A version adds samples (rows) behind those
of the version before; published rows never move, and of them only the status changes. ``tests/test_stores.py`` holds
every back-end to this contract, on a local disk and on an object store.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from scattercube.pipeline.keys import ChunkKey, Keys

if TYPE_CHECKING:
    import xarray as xr

# The status of a sample: an unwritten chunk also reads as fill values. Partial: some of it is NaN, by its coverage.
# Superseded: its member changed, and a later row has what it is now. Removed: its member is gone from the archive.
OK, QUARANTINED, ABSENT, PARTIAL, SUPERSEDED, REMOVED = range(6)
LIVE = (OK, QUARANTINED, PARTIAL)  # what the archive has now
IDENTITY = "identity"  # the attribute that says what a store holds; the same identity is resumed, another is refused
ROWS = "rows"  # the part of the identity that grows from version to version


class Written(NamedTuple):
    """What a step wrote: the digest of its numbers, and what the driver needs to make it part of the store."""

    digest: str
    change: Any = None


@dataclass(frozen=True)
class Version:
    """A published state of a store.

    Attributes
    ----------
    number
        From 1.
    name
        What it is opened by: the number as text, or the back-end's own name of the state (a snapshot).
    n_rows
        How many samples it has.
    created
        When, ISO 8601 in UTC.
    note
        What it was made of, in a line.
    """

    number: int
    name: str
    n_rows: int
    created: str
    note: str = ""


class Store(Protocol):
    """One group that is written in parallel and published as a whole.

    A store travels by pickle to the processes that write. Only one process, the driver, calls ``begin``, ``record``,
    ``mark`` and ``publish``; it holds the store's lease (`lease.py`) meanwhile. Whatever dies when, ``begin`` with the
    same template goes on from what is recorded. All methods raise StoreError, which says what, where, and the remedy.

    Attributes
    ----------
    url
        Where the group is: an absolute path, or a URL of an object store.
    """

    @property
    def url(self) -> str:
        """Where the group is: an absolute path, or a URL of an object store."""

    @property
    def published(self) -> bool:
        """Whether readers see a version, and nothing waits to be published."""

    def begin(self, template: "xr.Dataset", first: int = 0) -> None:
        """Start, or resume, the version that a template describes.

        The template's data variables are never read: only their dims, shapes, dtypes, attributes and encoding
        (``chunks``, ``shards``) count. Its coordinates are written. Nothing happens where the store holds this identity
        already, published or begun. Another version that was begun and differs in ``identity[ROWS]`` alone is given up.

        Parameters
        ----------
        template
            All rows of the version, those of the versions before in front and unchanged.
        first
            How many rows are published already. More than none only where the store holds the template's identity but
            for ``identity[ROWS]``.

        Raises
        ------
        StoreError
            The store holds something else (the message shows the difference), is of a newer format, or cannot be
            written.
        """

    def missing(self, keys: Keys) -> Keys:
        """Return the keys of the version begun that are not recorded: the whole of "resume"."""

    def write(self, key: ChunkKey, arrays: Mapping[str, np.ndarray]) -> Written:
        """Write one key of each array, in any process. Writing it again gives the same.

        A key is one whole shard of each array; along ``sample`` it may start at the first row of the version instead,
        inside a shard whose rows before are published, and stay.

        Raises
        ------
        StoreError
            An array is not exactly that, or the ground refused it.
        """

    def record(self, events: Sequence[Mapping[str, Any]], changes: Sequence[Any]) -> None:
        """Make finished keys part of the version, durably; ``changes`` are what ``write`` returned with them.

        From here on ``read`` finds them, in any process, and ``missing`` does not name them.
        """

    def mark(self, rows: Mapping[int, int]) -> None:
        """Give published rows another status (SUPERSEDED, REMOVED) with the version begun. Durable, repeatable."""

    def settle(self, n_samples: int) -> None:
        """Write the status of samples that are made by several keys each, from what the events say of them.

        What any of its keys says of a sample holds for all of it, and quarantine goes before the rest.
        """

    def publish(self, note: str = "") -> None:
        """Let readers see the version: one atomic step, before which they see the one before, and after which it."""

    def read(self, name: str, region: slice | Mapping[str, slice]) -> np.ndarray:
        """Read some samples of one variable, or a region by dims, of the version begun or published.

        Raises
        ------
        StoreError
            It is absent (never fill values in its place) or damaged.
        """

    def events(self) -> list[dict[str, Any]]:
        """Return what was recorded, of all versions, the last word on each key of each; each has its ``version``."""

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the version begun, else of the published; empty where there is no store."""

    def versions(self) -> list[Version]:
        """Return the published versions, the first one first."""

    def open(self, version: str | None = None) -> "xr.Dataset":
        """Open a published version lazily, the last by default, with its own status of every row."""

    def content_digest(self) -> str:
        """Return a digest of what the store holds: its identity and the numbers of every recorded key."""

    def verify(self) -> Iterable[str]:
        """Read all published rows again and yield a sentence for each key whose numbers are not those recorded."""

    def sweep(self) -> Iterable[str]:
        """Remove what killed writers left behind and no version holds; yield the name of each."""
