"""The contract of what members are in: a folder, a tar, a zip, or objects behind a URL."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from scattercube.pipeline.sources.archives.remote import Place

Skipped = dict[str, list[str]]  # reason: names


class Container(Protocol):
    """A kind of archive.

    Attributes
    ----------
    skipped
        Names of members that are not to be read, by reason; complete once ``names`` has been asked.
    seeks
        Whether members that are not compressed by themselves can be read here and there at no cost.
    whole
        Whether it is one file, so that what becomes of it becomes of all members.
    sealed
        Whether each member has a checksum, at its end.
    """

    skipped: Skipped
    seeks: bool
    whole: bool
    sealed: bool

    @property
    def root(self) -> Place:
        """What the names of members are relative to."""

    @property
    def names(self) -> Sequence[str]:
        """The members that may be read, in the order in which that is cheapest."""

    def __contains__(self, name: str) -> bool:
        """Whether the member exists."""

    def nbytes(self, name: str) -> int:
        """Return the size of the member as it is stored in a folder or tar, unpacked from a zip."""

    def packed_nbytes(self, name: str) -> int:
        """Return the bytes that the member takes in the container."""

    def open(self, name: str) -> BinaryIO:
        """Open the member; the stream can seek, and unpacks a member that is compressed by itself."""

    def signature(self, name: str) -> list[int]:
        """Return what changes when the member does; of a bundle, what changes with its documents."""

    def mark(self, name: str) -> list[int]:
        """Return what changes when the member itself does, as far as that can be told without reading it.

        Other than the signature, it stays when members are added to a tar or zip.
        """

    def parts(self, name: str) -> Iterator[tuple[str, int]]:
        """Yield the files of a bundle, by their keys in it, and their sizes."""

    def part(self, name: str, key: str) -> str:
        """Return the name under which a file of a bundle can be opened."""

    def ahead(self, names: Sequence[str], nbytes: int) -> int:
        """Fetch the first bytes of some of the next members, where that saves waiting; return of how many.

        Where none are wanted, it finds out what members are, if it does not know.
        """
