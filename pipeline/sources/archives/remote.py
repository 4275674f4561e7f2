"""Files and folders behind URLs, with what the containers use of a ``Path``.

Bytes come in blocks that the threads of a process share; who goes forward gets larger parts at once. What a stream
could not fetch is raised as what it is, whatever a parser made of it: see `watch`.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote

from scattercube.pipeline.errors import SourceError
from scattercube.pipeline.sources.archives import objects
from scattercube.pipeline.sources.archives.objects import ChangedError, GoneError, State
from scattercube.pipeline.sources.archives.streams import Positioned

if TYPE_CHECKING:
    from obstore import Bytes

BLOCK_NBYTES = 1 << 18
LONGEST = 32  # blocks that one request asks for at most
AHEAD = 32  # blocks that a thread fetches before they are asked for
_GAP = 4  # blocks that are fetched along rather than asking twice
_KEPT_NBYTES = 64 << 20  # of blocks, by a process
_AT_ONCE = 16  # requests
_MAX_WHOLE_NBYTES = 1 << 30  # of a file that is held in memory: a table of labels, an index
_T = TypeVar("_T")


@dataclass(frozen=True)
class Remote:
    """A file or folder behind a URL.

    Attributes
    ----------
    base, key
        The bucket or server, and the name there, as plain text.
    anonymous
        Whether object stores are asked without credentials.
    index
        The file of a folder that lists its files, where the server does not.
    folder
        Whether it is a folder; known of what `resolved` returns.
    state
        What there was when it was last asked; all that is read must be of this version.
    version
        What blocks of this version are kept under.
    """

    base: str
    key: str
    anonymous: bool = False
    index: str | None = None
    folder: bool = False
    state: State | None = field(default=None, compare=False)
    version: Any = field(default=None, compare=False)

    @classmethod
    def at(cls, url: str, anonymous: bool = False, index: str | None = None) -> "Remote":
        """Return the place that a URL names; one that ends in a slash is a folder."""
        scheme, _, rest = url.partition("://")
        host, _, key = rest.partition("/")
        base = f"{scheme}://{host}"
        key = unquote(key) if objects.is_web(base) else key
        return cls(base, key.strip("/"), anonymous, index, key[-1:] in ("", "/") or index is not None)

    def __str__(self) -> str:
        return objects.url(self.base, self.key)

    @property
    def name(self) -> str:
        """The last part of the key, or the bucket or server."""
        return PurePosixPath(self.key).name or self.base.partition("://")[2]

    @property
    def is_secure(self) -> bool:
        """Whether it comes over an encrypted connection, so that nobody on the way can change it."""
        return not objects.address(self.base).startswith("http://")

    @property
    def parent(self) -> "Remote":
        """The folder that it is in."""
        return Remote(self.base, self.key.rpartition("/")[0], self.anonymous, folder=True)

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.base, f"{self.key}/{name}".removeprefix("/"), self.anonymous)

    def resolved(self) -> "Remote":
        """Look what it is: a file, with its state, or a folder. Raises GoneError where it is neither, SourceError."""
        if self.folder or self in _folders:
            return replace(self, folder=True)
        try:
            return self.seen()
        except GoneError:
            if objects.is_web(self.base) or next(self.walk(), None) is None:
                raise
        _folders.add(self)
        return replace(self, folder=True)

    def seen(self, nbytes: int = 1) -> "Remote":
        """Return it with its state of now; of its first bytes, whole blocks are kept. Raises GoneError, SourceError."""
        content, state = objects.get(self.base, self.key, self.anonymous, 0, nbytes)
        found = self.with_state(state)
        _blocks.put(found, 0, content)
        return found

    def with_state(self, state: State) -> "Remote":
        """Return it with a state, which a listing told."""
        return replace(self, state=state, version=(str(self), *state.version) if state.tag else next(_nameless))

    def stat(self) -> State:
        """Return its state; the server is asked only where it is not known."""
        return self.state or cast(State, self.seen().state)

    def is_dir(self) -> bool:
        """Whether it is a folder; known of what `resolved` returns."""
        return self.folder

    def is_file(self) -> bool:
        """Whether there is a file now. Raises SourceError where that cannot be told."""
        try:
            self.seen()
        except GoneError:
            return False
        return True

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the version that was seen; the stream can seek."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(_Stream(self if self.state else self.seen())))

    def read_bytes(self) -> bytes:
        """Return all of a file. Raises SourceError, also where it is too large to hold."""
        place = self if self.state else self.seen()
        if place.stat().nbytes > _MAX_WHOLE_NBYTES:
            raise SourceError(f"{self}: {place.stat().nbytes} bytes; at most {_MAX_WHOLE_NBYTES} are held in memory")
        with place.open() as stream:
            return stream.read()

    def walk(self) -> Iterator[tuple[str, State | None]]:
        """Yield the names of all files below this folder, and what a listing tells of them. Raises SourceError."""
        if self.index is None:
            if objects.is_web(self.base):
                raise SourceError(f"{self}/: web servers do not list folders; name a file, or give the entry an index")
            for key, state in objects.walk(self.base, self.key, self.anonymous):
                yield key.removeprefix(f"{self.key}/"), state
        else:
            lines = (self / self.index).read_bytes().decode("utf-8", "replace").splitlines()
            names = (line.strip().removeprefix("./") for line in lines if not line.startswith("#"))
            yield from ((name, None) for name in names if name)


Place = Path | Remote
_folders: set[Remote] = set()
_nameless = count()  # versions of files whose servers tell nothing that names them


class _Blocks:
    """The blocks that a process keeps, the most recently used last."""

    def __init__(self) -> None:
        self._lock, self._nbytes = threading.Lock(), 0
        self._kept: OrderedDict[tuple[Any, int], bytes] = OrderedDict()

    def get(self, place: Remote, index: int) -> bytes | None:
        with self._lock:
            content = self._kept.get((place.version, index))
            if content is not None:
                self._kept.move_to_end((place.version, index))
            return content

    def put(self, place: Remote, first: int, content: "Bytes | bytes") -> None:
        """Keep what are whole blocks; the last one of a file is shorter."""
        view, nbytes = memoryview(content), place.stat().nbytes
        for start in range(0, len(view), BLOCK_NBYTES):
            block = bytes(view[start : start + BLOCK_NBYTES])
            if len(block) < BLOCK_NBYTES and first * BLOCK_NBYTES + start + len(block) < nbytes:
                return
            key = (place.version, first + start // BLOCK_NBYTES)
            with self._lock:
                self._nbytes += len(block) - len(self._kept.pop(key, b""))
                self._kept[key] = block
                while self._nbytes > _KEPT_NBYTES:
                    self._nbytes -= len(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._nbytes = 0


_blocks = _Blocks()


def _fetch(place: Remote, first: int, stop: int) -> bytes:
    """Fetch blocks in one request, keep them, and return the first. Raises ChangedError, GoneError, SourceError."""
    begin, end = first * BLOCK_NBYTES, min(stop * BLOCK_NBYTES, place.stat().nbytes)
    content, state = objects.get(place.base, place.key, place.anonymous, begin, end)
    if state.version != place.stat().version:
        raise ChangedError(f"{place}: changed while it was read; run again when nobody writes to it")
    _blocks.put(place, first, content)
    return bytes(memoryview(content)[:BLOCK_NBYTES])


class _Stream(Positioned):
    """A remote file; what is read forward comes in parts that double."""

    def __init__(self, place: Remote) -> None:
        super().__init__(place.stat().nbytes)
        self._place, self._next, self._window = place, 0, 1

    def _read(self, start: int, stop: int) -> memoryview:
        index = start // BLOCK_NBYTES
        block = _blocks.get(self._place, index)
        if block is None:
            with _remembering():
                block = self._fetch(index, -(-stop // BLOCK_NBYTES))
        return memoryview(block)[start - index * BLOCK_NBYTES :][: stop - start]

    def _fetch(self, index: int, wanted: int) -> bytes:
        forward = 0 <= index - self._next <= _GAP
        length = min(max(self._window if forward else 1, wanted - index), LONGEST)
        n_blocks = -(-self._nbytes // BLOCK_NBYTES)
        later = range(index + 1, min(index + length, n_blocks))
        stop = next((other for other in later if _blocks.get(self._place, other) is not None), later.stop)
        self._next, self._window = stop, min(2 * length, LONGEST)
        return _fetch(self._place, index, stop)


class _Trouble(threading.local):
    """What a thread's streams could not fetch: how often, and the last."""

    number = 0
    last: SourceError


_trouble = _Trouble()


@contextmanager
def _remembering() -> Iterator[None]:
    try:
        yield
    except SourceError as failure:
        # A copy: it is kept, and what its frames hold should not be.
        _trouble.number, _trouble.last = _trouble.number + 1, type(failure)(*failure.args)
        raise


@contextmanager
def watch() -> Iterator[None]:
    """Raise what a stream could not fetch inside, also where a library took that for the end, or for damage."""
    before = _trouble.number
    try:
        yield
    except Exception:
        if _trouble.number > before:
            raise _trouble.last from None
        raise
    if _trouble.number > before:
        raise _trouble.last


def together(calls: Sequence[Callable[[], _T]]) -> list[_T | SourceError]:
    """Make calls that wait for servers, several at once; return what each returns, or its SourceError."""

    def outcome(call: Callable[[], _T]) -> _T | SourceError:
        try:
            return call()
        except SourceError as failure:
            return failure

    if len(calls) < 2:
        return [outcome(call) for call in calls]
    with ThreadPoolExecutor(min(len(calls), _AT_ONCE)) as pool:
        return list(pool.map(outcome, calls))


def fetch_ahead(place: Remote, parts: Sequence[tuple[int, int]]) -> int:
    """Fetch the parts (offset, nbytes) that come first, as many as may be kept ahead; return how many that were.

    Neighbours come in one request, and the requests go out together. What cannot be fetched is asked for again by its
    stream, which says what is wrong.
    """
    wanted: set[int] = set()
    n_parts = 0
    for offset, nbytes in parts:
        blocks = range(offset // BLOCK_NBYTES, -(-(offset + nbytes) // BLOCK_NBYTES))
        if len(blocks) > AHEAD or len(wanted.union(blocks)) > AHEAD:
            break
        wanted, n_parts = wanted.union(blocks), n_parts + 1
    runs: list[tuple[int, int]] = []
    for block in sorted(block for block in wanted if _blocks.get(place, block) is None):
        if runs and block - runs[-1][1] <= _GAP and block - runs[-1][0] < LONGEST:
            runs[-1] = runs[-1][0], block + 1
        else:
            runs.append((block, block + 1))
    together([partial(_fetch, place, *run) for run in runs])
    return max(n_parts, 1)  # one that is too large by itself is left to its stream
