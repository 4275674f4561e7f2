"""An archive by member name: a folder, a tar (plain or compressed), a zip, or one file by itself.

An archive is listed once and then read member by member, without unpacking it anywhere. Names that leave the archive,
links and devices are skipped and said, and sizes are bounded before memory is.
"""

import fnmatch
import hashlib
import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from scattercube.pipeline.addresses import URL
from scattercube.pipeline.catalog import DATA_VARIABLE, PACKAGE_LOCATION, Entry
from scattercube.pipeline.errors import RecordError, ScattercubeError, SourceError, said_by
from scattercube.pipeline.sources.archives.bundles import is_bundle
from scattercube.pipeline.sources.archives.container import Container
from scattercube.pipeline.sources.archives.containers import (
    MAX_MEMBER_NBYTES,
    MAX_RATIO,
    RATIO_FREE_NBYTES,
    drain,
    open_container,
    packed_suffix,
    stat,
)
from scattercube.pipeline.sources.archives.objects import ChangedError, GoneError
from scattercube.pipeline.sources.archives.prefixes import open_remote
from scattercube.pipeline.sources.archives.remote import Place, Remote, watch
from scattercube.pipeline.sources.archives.streams import streams

HEAD_NBYTES = 1 << 16  # at the beginning of a member, where its head is as a rule
_AHEAD_NBYTES = 1 << 20  # of a member: most images are smaller, and of larger files often only a part is wanted
_MOST_VOUCHED = 1 << 16
_AHEAD = 256  # members that are looked at for what to fetch next

_vouched: set[tuple[Any, ...]] = set()  # members of this version whose checksums are right


class Archive:
    """An archive on this machine or behind a URL, by member name.

    Attributes
    ----------
    path
        The folder or file.
    root
        What the names of members are relative to: the archive itself, or the folder of a single file.
    learnt
        What readers found out about members, kept as long as the listing.
    """

    def __init__(self, path: Place, container: Container) -> None:
        self.path = path
        self.root = container.root
        self._container = container
        self.learnt: dict[str, Any] = {}

    @property
    def names(self) -> Sequence[str]:
        """All members that may be read, in reading order."""
        return self._container.names

    @property
    def notes(self) -> list[str]:
        """Sentences about the members that are refused."""
        _ = self._container.names  # listing finds them
        skipped = [
            f"members skipped because {why}: {len(names)} ({some(names)})"
            for why, names in self._container.skipped.items()
        ]
        return skipped + (self._notes_of_distance(self.path) if isinstance(self.path, Remote) else [])

    def _notes_of_distance(self, place: Remote) -> list[str]:
        notes = []
        if not place.is_secure:
            notes.append(f"{place} comes without encryption, so nobody vouches for what it holds")
        if self._container.whole and packed_suffix(place.name):
            notes.append(f"{place.name} is compressed as a whole, so that every worker gets it from its beginning")
        return notes

    def each(self, names: Sequence[str], nbytes: int = _AHEAD_NBYTES) -> Iterator[str]:
        """Go through members in this order, of each of which the first bytes are wanted.

        Where they are far away, those of the next members are fetched several at once.
        """
        ready = 0 if len(names) > 1 else 1
        for position, name in enumerate(names):
            if isinstance(self.path, Remote) and position >= ready:
                ready = position + self._container.ahead(names[position : position + _AHEAD], nbytes)
            yield name

    def select(self, globs: Sequence[str], suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Return the members that match a glob and have one of the suffixes, and notes about the others.

        Raises
        ------
        SourceError
            Nothing is left.
        """
        matches = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
        matching = [name for name in self.names if matches(name)]
        chosen = [name for name in matching if name.lower().endswith(suffixes)]
        if not chosen:
            there = f"it holds {len(self.names)} files" + (f": {some(self.names)}" if self.names else "")
            raise SourceError(
                f"{self.path}: no member matches {' or '.join(globs)} and ends in {', '.join(suffixes)}; {there}"
                f"{'; ' + '; '.join(self.notes) if self.notes else ''}"
            )
        notes = self.notes
        if len(chosen) < len(matching):
            others = [name for name in matching if not name.lower().endswith(suffixes)]
            notes.append(f"{len(others)} members are no {', '.join(suffixes)}: {some(others)}")
        return chosen, notes

    def checksum(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what identifies members cheaply: path, size and mtime or tag; of a folder, a digest over these."""
        if self.path.is_dir():
            digest = hashlib.sha256()
            for name in self.each(names, 0):
                try:
                    signature = self.signature(name)
                except RecordError:  # it has gone since it was listed
                    signature = []
                digest.update(repr((name, *signature)).encode())
            return {"path": str(self.path), "n_members": len(names), "sha256_of_list": digest.hexdigest()}
        nbytes, changed = stat(self.path)
        kind = "tag" if isinstance(self.path, Remote) else "mtime_ns"
        return {"path": str(self.path), "nbytes": nbytes, kind: changed}

    def signature(self, name: str) -> list[int]:
        """Return numbers that change when the member changes."""
        with self._errors(name):
            return self._container.signature(name)

    def marks(self, names: Sequence[str]) -> dict[str, str]:
        """Return by member what changes when it does, as far as that can be told without reading it."""
        found = {}
        for name in self.each(names, 0):
            try:
                with self._errors(name):
                    found[name] = " ".join(map(str, self._container.mark(name)))
            except RecordError:  # it has gone since it was listed
                found[name] = ""
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._container

    def nbytes(self, name: str) -> int:
        """Return the member's size, and for a member that is compressed by itself the largest size that is believed."""
        with self._errors(name):
            nbytes = self._container.nbytes(name)
            return max(nbytes * MAX_RATIO, RATIO_FREE_NBYTES) if packed_suffix(name) else nbytes

    def read(self, name: str) -> bytes:
        """Return the bytes of a member. Raises RecordError: missing, too-large or unreadable."""
        with self._errors(name), self._open(name) as stream:
            content = stream.read(MAX_MEMBER_NBYTES + 1)
        if len(content) > MAX_MEMBER_NBYTES:
            raise RecordError("too-large", f"{name}: more than {MAX_MEMBER_NBYTES} bytes")
        return content

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a member for a look at its head. Raises RecordError: missing, too-large or unreadable."""
        with self._errors(name), self._open(name) as stream:
            yield stream

    def vouch(self, name: str) -> None:
        """Read a member to its end, once in a process, where it has a checksum there; see `drain`.

        Who reads all of it meets the checksum by himself. Raises RecordError: missing, too-large or unreadable.
        """
        if is_bundle(name) or not (packed_suffix(name) or self._container.sealed):
            return
        key = (str(self.path), name, *self.signature(name))
        if key in _vouched:
            return
        with self._errors(name), self._open(name) as stream:
            drain(stream, self.nbytes(name))
        if len(_vouched) >= _MOST_VOUCHED:
            _vouched.clear()
        _vouched.add(key)

    @contextmanager
    def stream(self, name: str, *, head: bool = False) -> Iterator[BinaryIO]:
        """Open a member that is read in many calls; each thread keeps its own, so that going forward never starts anew.

        The position is where the last call left it: seek first. Of a ``head`` alone nothing is vouched for. Raises
        RecordError: missing, too-large or unreadable.
        """
        if not head:
            self.vouch(name)
        key: tuple[Any, ...] = (str(self.path), name)
        try:
            with self._errors(name):
                key += (*self.signature(name),)
                yield streams.get(key, lambda: self._open(name))
        except BaseException:
            streams.drop(key)  # after an error nobody knows where it stands
            raise

    def random(self, name: str) -> BinaryIO:
        """Open a member that is read here and there; the caller closes it, and meets what damage raises.

        It is read where it lies. One that would have to be unpacked from its start for every jump is held in memory.
        Raises RecordError: missing, too-large or unreadable.
        """
        if packed_suffix(name) or not self._container.seeks:
            return io.BytesIO(self.read(name))
        with self._errors(name):
            return self._open(name)

    def parts(self, name: str) -> Iterator[tuple[str, int]]:
        """Yield the files of a bundle, by their keys in it, and their sizes. Raises RecordError."""
        with self._errors(name):
            yield from self._container.parts(name)

    def part(self, name: str, key: str) -> str:
        """Return the name of a file of a bundle, whether it is there or not."""
        return self._container.part(name, key)

    def read_range(self, name: str, start: int, stop: int | None) -> bytes:
        """Return bytes of a member, to its end where ``stop`` is None. Raises RecordError, as `read` does."""
        if stop is not None:
            self.vouch(name)
        with self._errors(name), self._open(name) as stream:
            stream.seek(start)
            return stream.read((self.nbytes(name) if stop is None else stop) - start)

    def _open(self, name: str) -> BinaryIO:
        container = self._container
        if name not in container:
            raise RecordError("missing", f"{name}: no longer in {self.path}")
        nbytes, packed = container.nbytes(name), container.packed_nbytes(name)
        if nbytes > max(packed * MAX_RATIO, RATIO_FREE_NBYTES):
            raise RecordError(
                "too-large",
                f"{name}: {packed} bytes unpack to {nbytes}, more than {MAX_RATIO} times; refused as a bomb",
            )
        return container.open(name)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn what containers and parsers raise on damaged bytes into a RecordError: the list of that has no end."""
        try:
            with watch():
                yield
        except (GoneError, ChangedError) as failure:
            if self._container.whole:
                raise
            reason = "missing" if isinstance(failure, GoneError) else "unreadable"
            raise RecordError(reason, f"{name}: {failure}") from failure
        except ScattercubeError:
            raise
        except FileNotFoundError as failure:
            raise RecordError("missing", f"{name}: no longer in {self.path}") from failure
        except Exception as failure:
            raise RecordError("unreadable", f"{name}: {said_by(failure)}") from failure

    errors = _errors  # for those who read a stream of `random` through a library


def locate(entry: Entry, data_root: Path) -> Place:
    """Return where the entry's archive is. Raises SourceError where it should be on this machine and is absent."""
    if URL.match(entry.location):
        return Remote.at(entry.location, entry.anonymous, entry.index)
    if package := PACKAGE_LOCATION.fullmatch(entry.location):
        path = _package_folder(entry, package["package"]) / package["path"]
        remedy = f"another version of {package['package']} is installed than the entry was written for"
    else:
        path = data_root / entry.location
        remedy = (
            "correct location in the entry"
            if Path(entry.location).is_absolute()
            else f"put it there, or name the folder that holds {entry.location} with --data or ${DATA_VARIABLE}"
        )
    if not exists(path):
        raise SourceError(f"{entry.name}: no archive at {path}; {remedy}")
    return path


def exists(path: Path) -> bool:
    """Whether there is something at a path that a user gave; one that cannot be a path has nothing."""
    try:
        return path.exists()
    except OSError:  # a name that is too long, or in a folder that may not be looked at
        return False


def _package_folder(entry: Entry, package: str) -> Path:
    found = importlib.util.find_spec(package)  # a top-level name: found without importing anything
    if found is None or not found.submodule_search_locations:
        raise SourceError(
            f"{entry.name}: location {entry.location}: the package {package} is not installed; install it"
        )
    return Path(next(iter(found.submodule_search_locations)))


def open_archive(path: Place) -> Archive:
    """Return the archive at a place; the listing of an unchanged file is made once per process.

    Raises
    ------
    SourceError
        There is nothing, or a tar or zip that cannot be listed.
    """
    path = path.resolved() if isinstance(path, Remote) else path
    if path.is_dir():
        return Archive(path, open_remote(path) if isinstance(path, Remote) else open_container(path))
    return _open_file(path, *stat(path))


@lru_cache(maxsize=16)
def _open_file(path: Place, nbytes: int, changed: int) -> Archive:
    """List an archive file again when its size, and its modification time or tag, say that it is another."""
    return Archive(path, open_remote(path) if isinstance(path, Remote) else open_container(path))


def some(names: Sequence[str]) -> str:
    """Return the first three names, and whether there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
