"""Files in an object store, which knows only whole ones. A log is made of segments that are never written again.

The client repeats what fails and may be asked twice. It does not repeat what is answered, where the answer breaks off,
nor the removal of an object, nor, where an answer is lost, what creates one; so it is done here.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.files import ANOTHER, explained, is_refused

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

_Answer = TypeVar("_Answer")
_PAGE = 1000  # of a list, in objects: what S3 tells at once
_LONGEST_PAUSE_S = 15.0
_REPEATED = re.compile(r"after \d+ retries")  # says the client of a request that it has repeated


@dataclass(frozen=True)
class ObjectFiles:
    """Objects under a URL: ``s3://bucket/prefix``. Credentials come from the environment, in every process anew."""

    place: str

    def read(self, name: str) -> bytes | None:
        """Return what an object holds; None where there is none."""
        return self._read(name, {})

    def read_end(self, name: str, nbytes: int) -> bytes | None:
        """Return the last bytes of an object, so many or all that it has; None where there is none."""
        return self._read(name, {"range": {"suffix": nbytes}})

    def size(self, name: str) -> int | None:
        """Return how many bytes an object has; None where there is none."""
        state = self._head(name)
        return None if state is None else state["size"]

    def write(self, name: str, *parts: bytes) -> None:
        """Write an object as a whole, in one request: one that is cut off leaves nothing behind."""
        import obstore

        with self._explained(f"write {name}"):
            obstore.put(self.client, name, b"".join(parts), use_multipart=False)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object where there is none."""
        import obstore
        from obstore import exceptions

        def create() -> bool:
            try:
                obstore.put(self.client, name, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError as failure:
                if self._head(name) is None:  # 409: two came together, and S3 took neither
                    raise exceptions.GenericError(str(failure)) from failure
                return False
            return True

        return self._ask(f"create {name}", create)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the objects below a folder, or of those in one that begin so."""
        folder, _, begin = prefix.rpartition("/")
        if begin:
            found = self._level(folder)["objects"]
            yield from (meta["path"] for meta in found if meta["path"].startswith(prefix))
        else:
            yield from (meta["path"] for meta in self._all(folder))

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of what stands for folders in one."""
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in self._level(folder)["common_prefixes"])

    def nbytes(self) -> int:
        """Return how many bytes all objects have together, from their list."""
        return sum(meta["size"] for meta in self._all())

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        import obstore

        def remove() -> None:
            with suppress(FileNotFoundError):
                obstore.delete(self.client, name)

        self._ask(f"remove {name}", remove)

    def clear(self) -> None:
        """Remove every object."""
        for name in list(self.names()):
            self.remove(name)

    def append(self, log: str, lines: bytes, end: int | None = None) -> int:
        """Write the next segment of a log, ``<log>/000001.jsonl``, and return its number."""
        if end is None:
            end = max((_segment(name) for name in self.names(f"{log}/")), default=0)
        name = f"{log}/{end + 1:06d}.jsonl"
        if not self.create(name, lines) and self.read(name) != lines:
            raise StoreError(f"{self.place}: {name} is there already; {ANOTHER}")
        return end + 1

    def lines(self, log: str) -> Iterator[bytes]:
        """Yield the lines of a log."""
        for name in sorted(self.names(f"{log}/"), key=_segment):
            yield from (self.read(name) or b"").splitlines(keepends=True)

    def forget(self, log: str) -> None:
        """Remove a log, its last segment first: what is left when this is cut off is the beginning of it."""
        for name in sorted(self.names(f"{log}/"), key=_segment, reverse=True):
            self.remove(name)

    @property
    def client(self) -> "ObjectStore":
        """The connection of this process, whose root is this place."""
        from scattercube.pipeline.sources.archives import objects

        return objects._store(self.place, False)

    def _read(self, name: str, options: "GetOptions") -> bytes | None:
        import obstore

        def read() -> bytes | None:
            with suppress(FileNotFoundError):
                return obstore.get(self.client, name, options=options).bytes().to_bytes()
            return None

        return self._ask(f"read {name}", read)

    def _head(self, name: str) -> Any:
        import obstore

        with self._explained(f"look at {name}"), suppress(FileNotFoundError):
            return obstore.head(self.client, name)
        return None

    def _level(self, folder: str) -> Any:
        import obstore

        return self._ask(f"list {folder or 'all'}", lambda: obstore.list_with_delimiter(self.client, folder or None))

    def _all(self, folder: str = "") -> Iterator[Any]:
        """Yield what is known of each object below a folder, page by page: what breaks off goes on behind the last."""
        import obstore

        last: str | None = None

        def page() -> Any:
            return next(iter(obstore.list(self.client, folder or None, offset=last, chunk_size=_PAGE)), ())

        while found := self._ask(f"list {folder or 'all'}", page):
            yield from found
            if len(found) < _PAGE:
                return
            last = found[-1]["path"]

    def _ask(self, action: str, request: Callable[[], _Answer]) -> _Answer:
        """Make a request, and again where the client does not: what then fails may have been done before."""
        with self._explained(action):
            return repeated(request, is_broken_off)

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as failure:
            raise explained(self.place, action, failure) from failure


def pauses() -> Iterator[float]:
    """Yield how long to wait before a request that has broken off is made again, as often as the client would."""
    from scattercube.pipeline.sources.archives import objects

    yield from (min(objects.FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S) for number in range(objects.RETRIES))


def repeated(request: Callable[[], _Answer], passes: Callable[[Exception], bool]) -> _Answer:
    """Make a request, and again after each of the pauses as long as it fails for what passes."""
    for pause_s in pauses():
        try:
            return request()
        except Exception as failure:
            if not passes(failure):
                raise
        time.sleep(pause_s)
    return request()


def is_broken_off(failure: Exception) -> bool:
    """Whether a request has failed for what may pass, and the client does not repeat that."""
    from obstore import exceptions

    if not isinstance(failure, exceptions.GenericError) or is_refused(failure):
        return False
    said = str(failure)
    return "response body" in said or not _REPEATED.search(said)


def _segment(name: str) -> int:
    """Return the number of a log's segment."""
    digits = name.rpartition("/")[2].removesuffix(".jsonl")
    return int(digits) if digits.isdecimal() else 0
