"""Files in an object store, which knows only whole ones. A log is made of segments that are never written again."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.files import ANOTHER, explained

if TYPE_CHECKING:
    from obstore.store import ObjectStore


@dataclass(frozen=True)
class ObjectFiles:
    """Objects under a URL: ``s3://bucket/prefix``. Credentials come from the environment, in every process anew."""

    place: str

    def read(self, name: str) -> bytes | None:
        """Return what an object holds; None where there is none."""
        import obstore

        with self._explained(f"read {name}"), suppress(FileNotFoundError):
            return obstore.get(self.client, name).bytes().to_bytes()
        return None

    def read_end(self, name: str, nbytes: int) -> bytes | None:
        """Return the last bytes of an object, so many or all that it has; None where there is none."""
        import obstore

        with self._explained(f"read {name}"), suppress(FileNotFoundError):
            return obstore.get(self.client, name, options={"range": {"suffix": nbytes}}).bytes().to_bytes()
        return None

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

        with self._explained(f"create {name}"):
            try:
                obstore.put(self.client, name, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
            return True

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the objects below a folder, or of those in one that begin so."""
        import obstore

        folder, _, begin = prefix.rpartition("/")
        with self._explained(f"list {prefix or 'all'}"):
            if not begin:
                for found in obstore.list(self.client, folder or None, chunk_size=1000):
                    yield from (meta["path"] for meta in found)
                return
            shallow = obstore.list_with_delimiter(self.client, folder or None)
            yield from (meta["path"] for meta in shallow["objects"] if meta["path"].startswith(prefix))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        import obstore

        with self._explained(f"remove {name}"), suppress(FileNotFoundError):
            obstore.delete(self.client, name)

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

    def _head(self, name: str) -> Any:
        import obstore

        with self._explained(f"look at {name}"), suppress(FileNotFoundError):
            return obstore.head(self.client, name)
        return None

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as failure:
            raise explained(self.place, action, failure) from failure


def _segment(name: str) -> int:
    """Return the number of a log's segment."""
    digits = name.rpartition("/")[2].removesuffix(".jsonl")
    return int(digits) if digits.isdecimal() else 0
