"""The index of a tar: where its members are. A large one is remembered on this machine, for all who read the tar.

A tar has no directory: to find its members is to go through all of it, 33 s for a million. Every worker would do that,
and every run. What is remembered holds for one size and time (or tag) of the archive.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REMEMBERED = 10_000  # members: to index fewer takes less than half a second
MOST_FILES = 32  # that are kept


@dataclass(frozen=True)
class TarIndex:
    """Where the members of a tar are.

    Attributes
    ----------
    rows
        By name, the row in ``places``.
    places
        Where each member starts in the (unpacked) tar, its size in bytes, and its time: (members, 3) int64.
    skipped
        Names of members that are not to be read, by reason.
    """

    rows: dict[str, int]
    places: np.ndarray
    skipped: dict[str, list[str]]


def remembered(key: tuple[object, ...], make: Callable[[], TarIndex]) -> TarIndex:
    """Return the index of an archive that this key identifies: remembered, or made, and remembered where it is large.

    What cannot be kept or read back is made again.
    """
    named = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    file = folder() / f"tar-{named}.npz"
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        return _read(file, repr(key))
    index = make()
    if len(index.rows) >= REMEMBERED:
        with suppress(OSError):
            _write(file, repr(key), index)
    return index


def folder() -> Path:
    """Return where indexes are kept: in the user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scattercube"


def _read(file: Path, key: str) -> TarIndex:
    with file.open("rb") as stream, zipfile.ZipFile(stream), np.load(stream, allow_pickle=False) as held:
        about = json.loads(held["about"].tobytes())
        names = held["names"].tobytes().decode("utf-8", "surrogatepass").split("\0")
        if about["key"] != key or len(names) != len(held["rows"]):
            raise ValueError(file)
        return TarIndex(dict(zip(names, held["rows"].tolist(), strict=True)), held["places"], about["skipped"])


def _write(file: Path, key: str, index: TarIndex) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(
        content,
        about=np.frombuffer(json.dumps({"key": key, "skipped": index.skipped}).encode(), np.uint8),
        names=np.frombuffer("\0".join(index.rows).encode("utf-8", "surrogatepass"), np.uint8),
        rows=np.fromiter(index.rows.values(), np.int64, len(index.rows)),
        places=index.places,
    )
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, delete=False) as partial:
        partial.write(content.getbuffer())
    Path(partial.name).replace(file)
    held = sorted(file.parent.glob("tar-*.npz"), key=lambda each: each.stat().st_mtime)
    for old in held[:-MOST_FILES]:
        old.unlink(missing_ok=True)
