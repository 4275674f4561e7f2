"""Small named files under one place: a folder of a local file system, or a prefix of an object store.

What stands here is what a store needs besides Zarr: whole files that are there or are not, whatever is killed when, and
logs that only grow. On a file system that takes a temporary file, a rename and fsync; an object store has it by nature.
"""

import errno
import re
from collections.abc import Iterator
from typing import Protocol

from scattercube.pipeline.addresses import URL, check_place, hide_secrets
from scattercube.pipeline.errors import SourceError, StoreError

PARTIAL_FILE = ".partial"  # how the name of a file ends that is not whole yet
REMEDY = "choose another --store, or remove this one to make it anew"
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again, it resumes",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again, it resumes",
    errno.EACCES: "choose a --store that you may write to",
    errno.EPERM: "choose a --store that you may write to",
    errno.EROFS: "the file system is read-only: choose another --store",
    errno.ENOENT: REMEDY,
    errno.ENOTDIR: "a file stands where a folder is needed: choose another --store",
    errno.EISDIR: "a folder stands where a file is needed: choose another --store",
}
_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION to those of somebody who may write there",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to those of somebody who may write there",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY to those of somebody who may write there",
}
ANOTHER = "another run writes here: let it end, or stop it, and run the same command again, it resumes"


class Files(Protocol):
    """Whole files by name, ``/`` between folders, and logs. All methods raise StoreError with its remedy.

    Attributes
    ----------
    place
        The folder, or the URL of the prefix.
    """

    @property
    def place(self) -> str:
        """The folder, or the URL of the prefix."""

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""

    def read_end(self, name: str, nbytes: int) -> bytes | None:
        """Return the last bytes of a file, so many or all that it has; None where there is none."""

    def size(self, name: str) -> int | None:
        """Return how many bytes a file has; None where there is none."""

    def write(self, name: str, *parts: bytes) -> None:
        """Write a file as a whole, durably: whoever reads it meanwhile reads what it was before, or what it is then."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file where there is none, durably; return False, and leave it, where there is one.

        Where an answer of an object store is lost and the request is made again, False may be said of one's own file.
        """

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all files below a folder, ``a/b/``; or of those in a folder that begin so, ``a/b``."""

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder, ``a/b``, sorted; without that of the folder itself."""

    def nbytes(self) -> int:
        """Return how many bytes all files have together."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def clear(self) -> None:
        """Remove everything."""

    def append(self, log: str, lines: bytes, end: int | None = None) -> int:
        """Append whole lines to a log, durably, and return where it ends now.

        Parameters
        ----------
        end
            What the append before returned. Where the log does not end there any more, another one has written:
            StoreError. None: wherever its last whole line ends; what was torn behind that is cut off.
        """

    def lines(self, log: str) -> Iterator[bytes]:
        """Yield the whole lines of a log."""

    def forget(self, log: str) -> None:
        """Remove a log."""


def files_at(place: str) -> Files:
    """Return the files under a folder or under a URL of an object store. Raises StoreError for any other URL."""
    # These two stand on what is here.
    from scattercube.pipeline.stores.buckets import ObjectFiles
    from scattercube.pipeline.stores.folders import LocalFiles

    if not URL.match(place):
        return LocalFiles(place)
    try:
        return ObjectFiles(check_place(place))
    except ValueError as failure:
        raise StoreError(f"{hide_secrets(place)}: {failure}") from failure


def read_file(address: str) -> bytes | None:
    """Return what a file holds, by its path or URL; None where there is none. Raises StoreError."""
    folder, _, name = address.rpartition("/")
    return files_at(folder).read(name)


def replace_file(address: str, content: bytes) -> None:
    """Replace a file, by its path or URL, atomically and durably; folders are made if need be. Raises StoreError."""
    folder, _, name = address.rpartition("/")
    files_at(folder).write(name, content)


def explained(where: str, action: str, failure: Exception) -> StoreError:
    """Say in one sentence what went wrong, where, and what helps."""
    from obstore import exceptions

    if isinstance(failure, StoreError):
        return failure
    # Only what a request to an object store raises needs the reader of archives.
    from scattercube.pipeline.sources.archives import objects

    if is_refused(failure):
        return StoreError(f"{where}: cannot {action}: access is refused (401 or 403); {_ACCESS.get(where[:2], REMEDY)}")
    if isinstance(failure, FileNotFoundError) and failure.errno is None:  # of an object store, where to write
        return StoreError(f"{where}: cannot {action}: there is no such bucket; make it, or correct the address")
    if isinstance(failure, exceptions.BaseError | SourceError):
        said = failure if isinstance(failure, SourceError) else objects.explained(where, "", failure)
        reason, _, remedy = str(said).removeprefix(f"{where}: ").partition("; ")
        remedy = _ACCESS.get(where[:2], remedy) if reason.startswith("no credentials") else remedy
        return StoreError(f"{where}: cannot {action}: {reason}; {remedy}")
    if isinstance(failure, OSError):
        remedy = _REMEDIES.get(failure.errno or 0, "see the message of the operating system")
        return StoreError(f"{where}: cannot {action}: {failure.strerror or failure}; {remedy}")
    return StoreError(f"{where}: cannot {action}: {failure}; the store is damaged: {REMEDY}")


def is_refused(failure: Exception) -> bool:
    """Whether an object store says that we may not; of a list it says so in words alone."""
    from obstore import exceptions

    refusals = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    return isinstance(failure, refusals) or bool(re.search(r"\b(401 Unauthorized|403 Forbidden)", str(failure)))
