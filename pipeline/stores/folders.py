"""Files in a folder of a local file system: whole and durable by a temporary file, fsync and a rename."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores.files import ANOTHER, PARTIAL_FILE, explained


@dataclass(frozen=True)
class LocalFiles:
    """Files under a folder, which is made when the first is written."""

    place: str

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as failure:
            raise explained(self.place, f"read {name}", failure) from failure

    def read_end(self, name: str, nbytes: int) -> bytes | None:
        """Return the last bytes of a file, so many or all that it has; None where there is none."""
        absent = suppress(FileNotFoundError, NotADirectoryError)
        with self._explained(f"read {name}"), absent, self._path(name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - nbytes))
            return file.read()
        return None

    def size(self, name: str) -> int | None:
        """Return how many bytes a file has; None where there is none."""
        state = self._stat(name)
        return None if state is None else state.st_size

    def write(self, name: str, *parts: bytes) -> None:
        """Write a file as a whole, durably."""
        with self._explained(f"write {name}"):
            partial = self._partial(name, parts)
            try:
                partial.replace(self._path(name))
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            _sync_folder(partial.parent)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file where there is none, durably."""
        target = self._path(name)
        with self._explained(f"create {name}"):
            partial = self._partial(name, (content,))
            try:
                os.link(partial, target)
            except FileExistsError:
                return False
            except OSError as failure:
                if failure.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                with suppress(FileExistsError), target.open("xb") as file:  # a file system without hard links
                    _write_durably(file, (content,))
                    return True
                return False
            finally:
                partial.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return True

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the files below a folder, or of those in one that begin so."""
        folder, _, begin = prefix.rpartition("/")
        root = Path(self.place)
        with self._explained(f"list {prefix or 'all'}"):
            for path, folders, found in os.walk(root / folder, onerror=_raise_unless_absent):
                here = Path(path).relative_to(root)
                yield from ((here / name).as_posix() for name in found if name.startswith(begin))
                if begin:
                    folders.clear()

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder."""
        with self._explained(f"list {folder or 'all'}"), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(path.name for path in self._path(folder).iterdir() if path.is_dir())
        return []

    def nbytes(self) -> int:
        """Return how many bytes all files have together."""
        return sum(self.size(name) or 0 for name in self.names())

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._explained(f"remove {name}"), suppress(FileNotFoundError, NotADirectoryError):
            self._path(name).unlink()

    def clear(self) -> None:
        """Remove the folder."""
        with self._explained("remove it"), suppress(FileNotFoundError):
            shutil.rmtree(self.place)

    def append(self, log: str, lines: bytes, end: int | None = None) -> int:
        """Append whole lines to ``<log>.jsonl``, durably, and return how long it is."""
        path = self._path(f"{log}.jsonl")
        with self._explained(f"append to {path.name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not path.exists()
            with path.open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                if end is None:
                    end = _end_of_last_line(file, size)
                    file.truncate(end)
                elif size != end:
                    raise StoreError(f"{path}: has {size} bytes where this run left {end}; {ANOTHER}")
                _write_durably(file, (lines,))
            if fresh:
                _sync_folder(path.parent)
            return end + len(lines)

    def lines(self, log: str) -> Iterator[bytes]:
        """Yield the whole lines of a log."""
        path = self._path(f"{log}.jsonl")
        if not path.exists():
            return
        with self._explained(f"read {path.name}"), path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))

    def forget(self, log: str) -> None:
        """Remove a log."""
        self.remove(f"{log}.jsonl")

    def _path(self, name: str) -> Path:
        return Path(self.place) / name

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return self._path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as failure:
            raise explained(self.place, f"look at {name}", failure) from failure

    def _partial(self, name: str, parts: tuple[bytes, ...]) -> Path:
        """Write a file under another name in its folder, durably; two processes never use the same."""
        target = self._path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{PARTIAL_FILE}")
        try:
            with partial.open("wb") as file:
                _write_durably(file, parts)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        return partial

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as failure:
            raise explained(self.place, action, failure) from failure


def _write_durably(file: Any, parts: tuple[bytes, ...]) -> None:
    for part in parts:
        file.write(part)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, after a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _end_of_last_line(file: Any, size: int) -> int:
    """Return where the last whole line of a file ends, from behind: a log can be long."""
    stop = size
    while stop > 0:
        start = max(0, stop - (1 << 16))
        file.seek(start)
        newline = file.read(stop - start).rfind(b"\n")
        if newline >= 0:
            return int(start + newline + 1)
        stop = start
    return 0


def _raise_unless_absent(failure: OSError) -> None:
    if not isinstance(failure, FileNotFoundError | NotADirectoryError):
        raise failure
