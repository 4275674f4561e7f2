"""The three kinds of archive: a folder (or one file in it), a tar, a zip. What comes from outside is not trusted."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_IFREG
from typing import Any, BinaryIO, Protocol, cast

from scattercube.pipeline.errors import SourceError

MAX_MEMBER_NBYTES = 1 << 30  # of a member that is decoded in memory as a whole
MAX_RATIO = 250  # unpacked bytes per packed byte; real pictures and text stay below 100
RATIO_FREE_NBYTES = 16 << 20  # below this size any ratio is harmless
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OPEN_STREAMS = 4  # per thread; a reader works on one or two members at a time

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ZIP = (".zip", ".npz")
_UNPACK: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".tbz2": bz2.open,
    ".xz": lzma.open,
    ".txz": lzma.open,
}
DAMAGE = (  # what the containers raise on damaged bytes
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)

Skipped = dict[str, list[str]]  # reason: names


class Container(Protocol):
    """A kind of archive.

    Attributes
    ----------
    root
        What the names of members are relative to.
    skipped
        Names of members that are not to be read, by reason; complete once ``names`` has been asked.
    """

    root: Path
    skipped: Skipped

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
        """Return what changes when the member does."""


def open_container(path: Path) -> Container:
    """List what is at a path. Raises SourceError where that is no archive of its kind."""
    if path.is_dir():
        return _Folder(path)
    kinds: dict[tuple[str, ...], Callable[[Path], Container]] = {_TAR: _Tar, _ZIP: _Zip}
    for suffixes, kind in kinds.items():
        if path.name.lower().endswith(suffixes):
            try:
                return kind(path)
            except DAMAGE as failure:
                if isinstance(failure, SourceError):
                    raise
                raise SourceError(f"{path}: cannot be listed as {suffixes[0]}: {failure}") from failure
    return _Folder(path.parent, only=path.name)


class _Folder:
    """A folder with everything below it, or one file of it. It is listed only when asked: reading needs no listing."""

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.skipped: Skipped = defaultdict(list)
        self.root = root
        self._only = only

    @cached_property
    def names(self) -> Sequence[str]:
        return [self._only] if self._only else sorted(self._walk(str(self.root), ""))

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as found:
            for item in found:
                name = _printable(f"{prefix}{item.name}")
                if item.name.startswith(".") or item.name == "__MACOSX":
                    continue
                if item.is_dir(follow_symlinks=False):
                    yield from self._walk(item.path, f"{prefix}{item.name}/")
                elif item.is_file():
                    yield name
                else:
                    self.skipped["they are links to nothing, or devices"].append(name)

    def _path(self, name: str) -> Path:
        path = self.root / name
        if path.exists():
            return path
        return self.root / os.fsdecode(_unprintable(name))

    def __contains__(self, name: str) -> bool:
        return not _leaves(name) and self._path(name).is_file()

    def nbytes(self, name: str) -> int:
        return self._path(name).stat().st_size

    packed_nbytes = nbytes

    def open(self, name: str) -> BinaryIO:
        path = self._path(name)
        return _unpacked(path, name) if packed_suffix(name) else path.open("rb")

    def signature(self, name: str) -> list[int]:
        status = self._path(name).stat()
        return [status.st_size, status.st_mtime_ns]


class _Tar:
    """A tar is indexed once; then a member is a range of the (unpacked) stream, which every thread reads by itself."""

    def __init__(self, path: Path) -> None:
        self.skipped: Skipped = defaultdict(list)
        self.root = self._path = path
        self._key = ("tar", str(path), *stat(path))
        self._places: dict[str, tuple[int, int]] = {}
        with self._open_stream() as stream, tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as listing:
            self._index(listing, stream)
        self.names: Sequence[str] = list(self._places)

    def _open_stream(self) -> BinaryIO:
        return _unpacked(self._path, self._path.name) if packed_suffix(self._path.name) else self._path.open("rb")

    def _index(self, listing: tarfile.TarFile, stream: BinaryIO) -> None:
        limit = max(self._path.stat().st_size * MAX_RATIO, RATIO_FREE_NBYTES)
        try:
            while (member := listing.next()) is not None:
                setattr(listing, "members", [])  # noqa: B010  not in the stubs; tarfile would keep a kilobyte per member
                name = _printable(member.name.removeprefix("./"))
                regular = member.isreg() and not member.issparse()
                if not member.isdir() and _admit(name, regular, self._places, self.skipped):
                    self._places[name] = (member.offset_data, member.size)
                if listing.offset > limit and packed_suffix(self._path.name):
                    raise SourceError(
                        f"{self._path}: unpacks to more than {MAX_RATIO} times its size; refused as a bomb"
                    )
            stream.seek(listing.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                self.skipped[f"they follow a damaged header at byte {listing.offset}"].append("names unknown")
        except DAMAGE as failure:
            if isinstance(failure, SourceError):
                raise
            self.skipped[f"the archive breaks off ({failure})"].append("names unknown")

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def nbytes(self, name: str) -> int:
        return self._places[name][1]

    packed_nbytes = nbytes

    def open(self, name: str) -> BinaryIO:
        window = io.BufferedReader(_Window(lambda: streams.get(self._key, self._open_stream), *self._places[name]))
        return _unpacked(window, name) if packed_suffix(name) else window

    def signature(self, name: str) -> list[int]:
        return list(stat(self._path))


class _Zip:
    """A zip: its directory is the index, and its checksums tell damage."""

    def __init__(self, path: Path) -> None:
        self.skipped: Skipped = defaultdict(list)
        self.root = self._path = path
        self._zip = zipfile.ZipFile(path)  # its streams may be read from several threads
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            name = _printable(member.filename.removeprefix("./"))
            regular = S_IFMT(member.external_attr >> 16) in (0, S_IFREG)  # 0: written where files have no such type
            if not member.is_dir() and _admit(name, regular, self._members, self.skipped):
                self._members[name] = member
        self.names: Sequence[str] = list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def nbytes(self, name: str) -> int:
        return self._members[name].file_size

    def packed_nbytes(self, name: str) -> int:
        return self._members[name].compress_size

    def open(self, name: str) -> BinaryIO:
        stream = self._zip.open(self._members[name])
        return _unpacked(stream, name) if packed_suffix(name) else cast(BinaryIO, stream)

    def signature(self, name: str) -> list[int]:
        return list(stat(self._path))


class _Window(io.RawIOBase):
    """A range of a stream that others move as well."""

    def __init__(self, stream: Callable[[], BinaryIO], start: int, size: int) -> None:
        self._stream, self._start, self._size, self._position = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        stream = self._stream()
        stream.seek(self._start + self._position)
        content = stream.read(wanted)
        if not content:
            raise EOFError(f"the archive ends {self._size - self._position} bytes before the member does")
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


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


def stat(path: Path) -> tuple[int, int]:
    """Return size and modification time (ns) of an archive. Raises SourceError where it is gone."""
    try:
        status = path.stat()
    except OSError as failure:
        raise SourceError(f"{path}: {failure.strerror}; the archive is gone or out of reach") from failure
    return status.st_size, status.st_mtime_ns


def packed_suffix(name: str) -> str:
    """Return the suffix that says how a file is compressed by itself, or nothing."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in _UNPACK else ""


def _unpacked(source: Any, name: str) -> BinaryIO:
    return cast(BinaryIO, _UNPACK[packed_suffix(name)](source))


def _admit(name: str, regular: bool, known: dict[str, Any], skipped: Skipped) -> bool:
    """Whether a member may be read; what is refused, and would be missed, is written down."""
    if _leaves(name):
        skipped["their names leave the archive"].append(name)
    elif name.startswith((".", "__MACOSX/")) or "/." in name:  # hidden files, and what a Mac adds to its archives
        return False
    elif not regular:
        skipped["they are links, devices or sparse files"].append(name)
    else:
        if name in known:
            skipped["later members have the same name"].append(name)
        return True
    return False


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _printable(name: str) -> str:
    """Escape bytes that are not UTF-8, and control characters: names are stored as text, and shown on terminals."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in found[0].encode()), text)


def _unprintable(name: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda escape: bytes([int(escape[1], 16)]), name.encode())
