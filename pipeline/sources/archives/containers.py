"""The three kinds of archive: a folder (or one file in it), a tar, a zip. What comes from outside is not trusted."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_IFREG, S_ISREG
from typing import Any, BinaryIO, cast
from weakref import finalize

import numpy as np

from scattercube.pipeline.errors import SourceError, said_by
from scattercube.pipeline.sources.archives.bundles import DOCUMENTS, collapse, is_bundle, is_document
from scattercube.pipeline.sources.archives.container import Container, Skipped
from scattercube.pipeline.sources.archives.indexes import TarIndex, remembered
from scattercube.pipeline.sources.archives.remote import Place, Remote, fetch_ahead, watch
from scattercube.pipeline.sources.archives.streams import Part, streams

MAX_MEMBER_NBYTES = 1 << 30  # of a member that is decoded in memory as a whole
MAX_RATIO = 250  # unpacked bytes per packed byte; real pictures and text stay below 100
RATIO_FREE_NBYTES = 16 << 20  # below this size any ratio is harmless
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ZIP = (".zip", ".npz")
_STEP_NBYTES = 1 << 20
_ZIP_HEAD = 256  # bytes that stand before a member beside its name, with room for what other programs add
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


def open_container(path: Path) -> Container:
    """List what is at a path. Raises SourceError where that is no archive of its kind."""
    if path.is_dir():
        return _Folder(path.parent, only=path.name) if is_bundle(path.name) else _Folder(path)
    return open_packed(path) or _Folder(path.parent, only=path.name)


def open_packed(path: Place) -> Container | None:
    """List a tar or zip; None where the name is not of one. Raises SourceError where it cannot be listed."""
    kinds: dict[tuple[str, ...], Callable[[Place], Container]] = {_TAR: _Tar, _ZIP: _Zip}
    for suffixes, kind in kinds.items():
        if path.name.lower().endswith(suffixes):
            try:
                with watch():
                    return kind(path)
            except DAMAGE as failure:
                if isinstance(failure, SourceError):
                    raise
                raise SourceError(f"{path}: cannot be listed as {suffixes[0]}: {said_by(failure)}") from failure
    return None


class _Folder:
    """A folder with everything below it, or one file of it. It is listed only when asked: reading needs no listing."""

    seeks, whole, sealed = True, False, False

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.skipped: Skipped = defaultdict(list)
        self.root = root
        self._only = only

    @cached_property
    def names(self) -> Sequence[str]:
        return [self._only] if self._only else sorted(self._walk(str(self.root), ""))

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(folder) as found:
                items = list(found)
        except OSError as failure:
            if not prefix:
                raise SourceError(f"{folder}: {failure.strerror}; the folder cannot be listed") from failure
            self.skipped["their folders cannot be listed"].append(printable(prefix))
            return
        for item in items:
            name = printable(f"{prefix}{item.name}")
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            if item.is_dir(follow_symlinks=False):
                if is_bundle(name):
                    yield name
                    continue
                yield from self._walk(item.path, f"{prefix}{item.name}/")
            elif _is_file(item):
                yield name
            else:
                self.skipped["they are links to nothing, or devices"].append(name)

    def _path(self, name: str) -> Path:
        path = self.root / name
        if path.exists():
            return path
        return self.root / os.fsdecode(unprintable(name))

    def __contains__(self, name: str) -> bool:
        path = self._path(name)
        return not leaves(name) and (path.is_file() or (is_bundle(name) and path.is_dir()))

    def nbytes(self, name: str) -> int:
        return self._path(name).stat().st_size

    packed_nbytes = nbytes

    def open(self, name: str) -> BinaryIO:
        path = self._path(name)
        return unpacked(path, name) if packed_suffix(name) else path.open("rb")

    def signature(self, name: str) -> list[int]:
        path = self._path(name)
        files = [path / document for document in DOCUMENTS] if path.is_dir() else [path]
        found = [file.stat() for file in files if len(files) == 1 or file.is_file()]
        return [number for status in found for number in (status.st_size, status.st_mtime_ns)]

    mark = signature

    def parts(self, name: str) -> Iterator[tuple[str, int]]:
        top = self._path(name)
        for folder, _, files in os.walk(top):
            for file in (Path(folder) / file for file in files):
                if file.is_file():
                    yield file.relative_to(top).as_posix(), file.stat().st_size

    def part(self, name: str, key: str) -> str:
        return f"{name}/{key}"

    def ahead(self, names: Sequence[str], nbytes: int) -> int:
        return len(names)


class _Tar:
    """A tar is indexed once; then a member is a range of the (unpacked) stream, which every thread reads by itself."""

    whole, sealed = True, False

    def __init__(self, path: Place) -> None:
        self.root = self._path = path
        self._key = ("tar", str(path), *stat(path))
        index = remembered(self._key, self._index)
        self._rows, self._places, self.skipped = index.rows, index.places, index.skipped
        self.names: Sequence[str]
        self.names, self._bundles = collapse(self._rows, path)
        self.seeks = not packed_suffix(path.name)

    def _open_stream(self) -> BinaryIO:
        if not packed_suffix(self._path.name):
            return self._path.open("rb")
        return unpacked(_source(self._path), self._path.name)

    def _index(self) -> TarIndex:
        rows: dict[str, int] = {}
        skipped: Skipped = defaultdict(list)
        places: list[tuple[int, int, int]] = []
        limit = max(stat(self._path)[0] * MAX_RATIO, RATIO_FREE_NBYTES)
        packed = packed_suffix(self._path.name) != ""
        with self._open_stream() as stream, tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as listing:
            try:
                while (member := listing.next()) is not None:
                    setattr(listing, "members", [])  # noqa: B010  not in the stubs; tarfile would keep a kilobyte each
                    name = printable(member.name.removeprefix("./"))
                    regular = member.isreg() and not member.issparse()
                    if not member.isdir() and admit(name, regular, rows, skipped):
                        rows[name] = len(places)
                        places.append((member.offset_data, member.size, int(member.mtime)))
                    if listing.offset > limit and packed:
                        raise SourceError(
                            f"{self._path}: unpacks to more than {MAX_RATIO} times its size; refused as a bomb"
                        )
                stream.seek(listing.offset)
                if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    skipped[f"they follow a damaged header at byte {listing.offset}"].append("names unknown")
            except DAMAGE as failure:
                if isinstance(failure, SourceError):
                    raise
                skipped[f"the archive breaks off ({said_by(failure)})"].append("names unknown")
                stream.seek(0)  # after an error nobody knows where it stands
            if packed and not isinstance(self._path, Remote):
                self._vouch(stream, limit)
        return TarIndex(rows, np.array(places, np.int64).reshape(-1, 3), skipped)

    def _vouch(self, stream: BinaryIO, limit: int) -> None:
        try:
            drain(stream, limit)
        except DAMAGE as failure:
            raise SourceError(
                f"{self._path}: {said_by(failure)}: it breaks off, or was changed since it was packed, and nothing "
                "tells where; get another copy"
            ) from failure

    def _place(self, name: str) -> tuple[int, int]:
        start, size, _ = self._places[self._rows[name]].tolist()
        return start, size

    def __contains__(self, name: str) -> bool:
        return name in self._rows or name in self._bundles

    def nbytes(self, name: str) -> int:
        return self._place(name)[1]

    def parts(self, name: str) -> Iterator[tuple[str, int]]:
        top = self._bundles[name]
        return ((n.removeprefix(top), self._place(n)[1]) for n in self._rows if n.startswith(top))

    def part(self, name: str, key: str) -> str:
        return self._bundles[name] + key

    packed_nbytes = nbytes

    def open(self, name: str) -> BinaryIO:
        window = io.BufferedReader(Part(lambda: streams.get(self._key, self._open_stream), *self._place(name)))
        return unpacked(window, name) if packed_suffix(name) else window

    def signature(self, name: str) -> list[int]:
        return list(stat(self._path))

    def mark(self, name: str) -> list[int]:
        return self._places[self._rows[name], 1:].tolist() if name in self._rows else self.signature(name)

    def ahead(self, names: Sequence[str], nbytes: int) -> int:
        if not (nbytes and self.seeks and isinstance(self._path, Remote)):
            return len(names)
        places = [self._place(name) if name in self._rows else (0, 0) for name in names]
        return fetch_ahead(self._path, [(start, min(size, nbytes)) for start, size in places])


class _Zip:
    """A zip: its directory is the index, and its checksums tell damage."""

    seeks, whole, sealed = False, True, True

    def __init__(self, path: Place) -> None:
        self.skipped: Skipped = defaultdict(list)
        self.root = self._path = path
        self._zip = zipfile.ZipFile(_source(path))  # its streams may be read from several threads
        finalize(self, self._zip.close)  # also in a cycle, of which the garbage collector might take the file first
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            name = printable(member.filename.removeprefix("./"))
            regular = S_IFMT(member.external_attr >> 16) in (0, S_IFREG)  # 0: written where files have no such type
            if not member.is_dir() and admit(name, regular, self._members, self.skipped):
                self._members[name] = member
        self.names: Sequence[str]
        self.names, self._bundles = collapse(self._members, path)

    def __contains__(self, name: str) -> bool:
        return name in self._members or name in self._bundles

    def parts(self, name: str) -> Iterator[tuple[str, int]]:
        top = self._bundles[name]
        return ((n.removeprefix(top), i.file_size) for n, i in self._members.items() if n.startswith(top))

    def part(self, name: str, key: str) -> str:
        return self._bundles[name] + key

    def nbytes(self, name: str) -> int:
        return self._members[name].file_size

    def packed_nbytes(self, name: str) -> int:
        return self._members[name].compress_size

    def open(self, name: str) -> BinaryIO:
        stream = self._zip.open(self._members[name])
        return unpacked(stream, name) if packed_suffix(name) else cast(BinaryIO, stream)

    def signature(self, name: str) -> list[int]:
        return list(stat(self._path))

    def mark(self, name: str) -> list[int]:
        member = self._members.get(name)
        return [member.file_size, member.CRC] if member else self.signature(name)

    def ahead(self, names: Sequence[str], nbytes: int) -> int:
        if not (nbytes and isinstance(self._path, Remote)):
            return len(names)
        members = [self._members[name] for name in names if name in self._members]
        sizes = [min(member.compress_size, nbytes) + len(member.orig_filename) + _ZIP_HEAD for member in members]
        places = [(member.header_offset, size) for member, size in zip(members, sizes, strict=True)]
        return fetch_ahead(self._path, places) + len(names) - len(members)


def stat(path: Place) -> tuple[int, int]:
    """Return size and modification time (ns), or tag, of an archive. Raises SourceError where it is gone."""
    if isinstance(path, Remote):
        return path.stat().version
    try:
        status = path.stat()
    except OSError as failure:
        raise SourceError(f"{path}: {failure.strerror}; the archive is gone or out of reach") from failure
    if not S_ISREG(status.st_mode):
        raise SourceError(f"{path}: neither a file nor a folder; what it gives does not end, or never begins")
    return status.st_size, status.st_mtime_ns


def packed_suffix(name: str) -> str:
    """Return the suffix that says how a file is compressed by itself, or nothing."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in _UNPACK else ""


def _source(path: Place) -> Any:
    """What a library opens: a path, or a stream where that is elsewhere."""
    return path.open("rb") if isinstance(path, Remote) else path


def unpacked(source: Any, name: str) -> BinaryIO:
    """Return a stream of what a file that is compressed by itself unpacks to."""
    return cast(BinaryIO, _UNPACK[packed_suffix(name)](source))


def _is_file(item: "os.DirEntry[str]") -> bool:
    try:
        return item.is_file()
    except OSError:  # a link that leads to itself
        return False


def drain(stream: BinaryIO, limit: int) -> None:
    """Read a packed stream to its end, where its checksum is; until then nobody knows whether what came out is right.

    One with something else behind it passes, and so does bzip2 that breaks off: its blocks have checksums of their own,
    and come out as a whole. Raises one of `DAMAGE`, also where it unpacks to more than ``limit`` bytes.
    """
    try:
        while stream.read(_STEP_NBYTES):
            if stream.tell() > limit:
                raise ValueError(f"unpacks to more than {limit} bytes; refused as a bomb")
    except EOFError:
        if not isinstance(stream, bz2.BZ2File):
            raise
    except gzip.BadGzipFile as failure:
        if not str(failure).startswith("Not a gzipped file"):
            raise


def admit(name: str, regular: bool, known: dict[str, Any], skipped: Skipped) -> bool:
    """Whether a member may be read; what is refused, and would be missed, is written down."""
    plain = name.rpartition("/")[0] if is_document(name) else name
    if leaves(name):
        skipped["their names leave the archive"].append(name)
    elif plain.startswith((".", "__MACOSX/")) or "/." in plain:  # hidden files, and what a Mac adds to its archives
        return False
    elif not regular:
        skipped["they are links, devices or sparse files"].append(name)
    else:
        if name in known:
            skipped["later members have the same name"].append(name)
        return True
    return False


def leaves(name: str) -> bool:
    """Whether a name leads out of its archive."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def printable(name: str) -> str:
    """Escape bytes that are not UTF-8, and control characters: names are stored as text, and shown on terminals."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in found[0].encode()), text)


def unprintable(name: str) -> bytes:
    """Return the bytes that `printable` has escaped."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda escape: bytes([int(escape[1], 16)]), name.encode())
