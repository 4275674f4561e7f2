"""The container that a folder behind a URL is, and the choice of a container for what is behind one."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import BinaryIO

from scattercube.pipeline.sources.archives.bundles import DOCUMENTS, collapse, is_bundle
from scattercube.pipeline.sources.archives.container import Container, Skipped
from scattercube.pipeline.sources.archives.containers import (
    admit,
    leaves,
    open_packed,
    packed_suffix,
    printable,
    unpacked,
    unprintable,
)
from scattercube.pipeline.sources.archives.objects import GoneError, State
from scattercube.pipeline.sources.archives.remote import AHEAD, BLOCK_NBYTES, Remote, fetch_ahead, together


def open_remote(place: Remote) -> Container:
    """List what `Remote.resolved` has found behind a URL. Raises SourceError where that is no archive of its kind."""
    if place.is_dir():
        return _Prefix(place.parent, only=place) if is_bundle(place.name) else _Prefix(place)
    return open_packed(place) or _Prefix(place.parent, only=place)


class _Prefix:
    """A folder behind a URL, or one file of it. It is listed only when asked: reading needs no listing.

    A member is an object. To ask what it is takes as long as to get its first part, so that comes along.
    """

    seeks, whole, sealed = True, False, False

    def __init__(self, root: Remote, only: Remote | None = None) -> None:
        self.skipped: Skipped = defaultdict(list)
        self.root = root
        self._only = only
        self._states: dict[str, State] = {only.name: only.state} if only and only.state else {}
        self._keys: dict[str, str] = {}  # of members whose names are not printable
        self._signatures: dict[str, list[int]] = {}  # of bundles
        self._usual_nbytes = BLOCK_NBYTES

    @cached_property
    def names(self) -> Sequence[str]:
        if self._only:
            return [self._only.name]
        found: dict[str, State | None] = {}
        for key, state in self.root.walk():
            if admit(name := printable(key), True, found, self.skipped):
                found[name] = state
                if name != key:
                    self._keys[name] = key
        parents = {str(parent) for name in found for parent in PurePosixPath(name).parents}
        for name in parents & found.keys():
            if (state := found[name]) is not None and state.nbytes == 0:
                del found[name]  # stands for the folder
        self._states |= {name: state for name, state in found.items() if state}
        return sorted(collapse(found, self.root)[0])

    def _member(self, name: str, nbytes: int = 1) -> Remote:
        """Return a member with its state, which is asked for where it is not known. Raises GoneError."""
        if leaves(name):
            raise GoneError(f"{name}: not below {self.root}")
        place = self.root / self._keys.get(name, name)
        if name in self._states:
            return place.with_state(self._states[name])
        try:
            found = place.seen(nbytes)
        except GoneError:
            if name in self._keys or (key := unprintable(name).decode("utf-8", "replace")) == name:
                raise
            self._keys[name] = key
            return self._member(name, nbytes)
        self._states[name] = state = found.stat()
        self._usual_nbytes = min(max(state.nbytes, BLOCK_NBYTES), 4 * BLOCK_NBYTES)
        return found

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self.signature(name))
        except GoneError:
            return False

    def nbytes(self, name: str) -> int:
        return self._member(name).stat().nbytes

    packed_nbytes = nbytes

    def open(self, name: str) -> BinaryIO:
        stream = self._member(name).open()
        return unpacked(stream, name) if packed_suffix(name) else stream

    def signature(self, name: str) -> list[int]:
        if not is_bundle(name):
            return list(self._member(name, self._usual_nbytes).stat().version)
        if name not in self._signatures:
            documents = [f"{name}/{document}" for document in DOCUMENTS]
            found = together([partial(self._member, document) for document in documents])
            if lost := [place for place in found if not isinstance(place, Remote | GoneError)]:
                raise lost[0]
            self._signatures[name] = [n for place in found if isinstance(place, Remote) for n in place.stat()]
        return self._signatures[name]

    mark = signature

    def parts(self, name: str) -> Iterator[tuple[str, int]]:
        top = f"{name}/"
        if self._only or self.root.index is None:
            found = dict((self._only or self.root / name).walk())
        else:
            found = {key.removeprefix(top): None for key, _ in self.root.walk() if key.startswith(top)}
        self._states |= {top + key: state for key, state in found.items() if state}
        self.ahead([top + key for key in found], 0)
        yield from ((key, self.nbytes(top + key)) for key in found)

    def part(self, name: str, key: str) -> str:
        return f"{name}/{key}"

    def ahead(self, names: Sequence[str], nbytes: int) -> int:
        calls: list[Callable[[], object]] = []
        room, n_names = AHEAD, 0
        for name in names:
            state = self._states.get(name)
            n_blocks = -(-min(state.nbytes if state else self._usual_nbytes, nbytes) // BLOCK_NBYTES)
            if n_blocks > room and calls:
                break
            room, n_names = room - n_blocks, n_names + 1
            if is_bundle(name):
                continue
            if state is None:
                calls.append(partial(self._member, name, max(1, n_blocks * BLOCK_NBYTES)))
            elif nbytes:
                calls.append(partial(fetch_ahead, self._member(name), [(0, n_blocks * BLOCK_NBYTES)]))
        together(calls)
        return n_names
