"""Streams over a part of something else, and the streams that a thread keeps open."""

import io
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

_OPEN_STREAMS = 4  # per thread; a reader works on one or two members at a time


class Positioned(io.RawIOBase, ABC):
    """A stream of known size that can seek, whose bytes come from somewhere else."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes, self._position = nbytes, 0

    @abstractmethod
    def _read(self, start: int, stop: int) -> bytes | memoryview:
        """Return some bytes from ``start`` on, at least one and none from ``stop`` on."""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can seek."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; one behind the end is allowed."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._nbytes}[whence]
        if position < 0:
            raise ValueError(f"byte {position} is before the beginning")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; none only at the end."""
        stop = min(self._position + len(buffer), self._nbytes)
        if self._position >= stop:
            return 0
        content = self._read(self._position, stop)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class Part(Positioned):
    """A range of a stream that others move as well."""

    def __init__(self, stream: Callable[[], BinaryIO], start: int, nbytes: int) -> None:
        super().__init__(nbytes)
        self._stream, self._start = stream, start

    def _read(self, start: int, stop: int) -> bytes:
        stream = self._stream()
        stream.seek(self._start + start)
        content = stream.read(stop - start)
        if not content:
            raise EOFError(f"the archive ends {self._nbytes - start} bytes before the member does")
        return content


class _Held:
    """A stream that is closed when its last user lets go of it, also where a thread ends."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def __del__(self) -> None:
        self.stream.close()


class _Streams(threading.local):
    """The streams that one thread keeps open, the most recently used last."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Any, ...], _Held] = OrderedDict()

    def get(self, key: tuple[Any, ...], opener: Callable[[], BinaryIO]) -> BinaryIO:
        if key not in self._held:
            self._held[key] = _Held(opener())
            while len(self._held) > _OPEN_STREAMS:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key].stream

    def drop(self, key: tuple[Any, ...]) -> None:
        self._held.pop(key, None)


streams = _Streams()
