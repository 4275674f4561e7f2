"""The door to Zarr: one group on a local file system, written shard by shard, published by a single file.

The protocol, in the order in which files appear:

1. ``create`` writes the coordinates and the metadata of every array, but not the group's own ``zarr.json``: until that
   exists, no reader sees a store. The document waits in the run folder beside the store.
2. ``write`` puts one whole shard of every variable that is cut along ``sample``. Zarr renames it into place, so it
   is there or it is not, whatever kills the process.
3. ``record`` appends one line to the journal, fsynced, *after* the shard is written. What the journal does not name
   is missing, and is written again: a repeated write gives the same bytes.
4. ``publish`` puts the group's ``zarr.json`` in place, with the metadata of all arrays inside: the one commit point.

Two writers of one shard would lose each other's chunks without a word: what is not exactly one shard is refused.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey, Keys
from scattercube.pipeline.spec import digest

if TYPE_CHECKING:
    import xarray as xr

# A shard of zeros is written too: what is not there has not been written.
zarr.config.set({"array.write_empty_chunks": True})

ROOT_DOCUMENT = "zarr.json"
# The status of a sample: an unwritten chunk also reads as fill values. Partial: some of it is NaN, by its coverage.
OK, QUARANTINED, ABSENT, PARTIAL = 0, 1, 2, 3
IDENTITY = "identity"  # the attribute that says what a store holds; the same identity is resumed, another is refused


@dataclass(frozen=True)
class Store:
    """One Zarr v3 group and, beside it, the folder with its journal.

    Attributes
    ----------
    path
        The group: what ``xarray.open_zarr`` opens.
    """

    path: Path

    @property
    def run_folder(self) -> Path:
        """The journal and, before publication, the waiting root document."""
        return self.path.with_name(self.path.name + ".run")

    @property
    def journal(self) -> Path:
        """One JSON object a line, one line a finished key."""
        return self.run_folder / "journal.jsonl"

    @property
    def published(self) -> bool:
        """Whether readers see the store."""
        return (self.path / ROOT_DOCUMENT).exists()

    def create(self, template: "xr.Dataset") -> None:
        """Write everything but the numbers: coordinates, array metadata, and the root document, which waits.

        The template's data variables are never read: only their dims, shapes, dtypes, attributes and their encoding
        (``chunks`` and ``shards``) count. A store that holds the same identity already is left as it is, so that a run
        resumes.

        Raises
        ------
        StoreError
            The store holds something else, or cannot be written.
        """
        if not self.path.exists() and self.run_folder.exists():  # removed by hand: its journal speaks of nothing
            shutil.rmtree(self.run_folder)
        held = self._identity()
        wanted = json.loads(template.attrs[IDENTITY])
        if held is not None:
            if held != wanted:
                raise StoreError(f"{self.path}: holds another cube: {_difference(held, wanted)}; {_REMEDY}")
            self._sweep()
            return
        if self.path.exists():
            if not self.run_folder.exists():
                raise StoreError(f"{self.path}: holds something that no run has made; choose another --store")
            shutil.rmtree(self.path)  # a template that was cut off: nothing in it can have been journalled
        with self._explained("create"):
            documents = _documents(template)
            self.run_folder.mkdir(parents=True, exist_ok=True)  # first: what stands beside it is ours
            self.journal.unlink(missing_ok=True)
            for name, content in documents.items():
                if name != ROOT_DOCUMENT:
                    target = self.path / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
            replace_file(self.run_folder / ROOT_DOCUMENT, documents[ROOT_DOCUMENT])

    def write(self, key: ChunkKey, arrays: Mapping[str, np.ndarray]) -> str:
        """Write one shard of each array and return the digest of the numbers.

        Raises
        ------
        StoreError
            An array is not exactly the shard of ``key``, or the disk refused it.
        """
        starts = dict(key.offsets)
        content = hashlib.sha256()
        for name, values in arrays.items():
            array = self._array(name, "r+")
            shard, at = array.shards or array.chunks, [starts.get(dim, 0) for dim in array.metadata.dimension_names]
            expected = tuple(min(n, size - a) for n, size, a in zip(shard, array.shape, at, strict=True))
            aligned = not any(a % n for a, n in zip(at, shard, strict=True))
            if not aligned or values.shape != expected or values.dtype != array.dtype:
                raise StoreError(
                    f"{self.path.name}/{name} {key}: got {values.dtype}{values.shape}; one write is one whole shard, "
                    f"here {array.dtype}{expected} starting at a multiple of {shard}"
                )
            with self._explained(f"write {name} {key}"):
                array[tuple(slice(a, a + n) for a, n in zip(at, expected, strict=True))] = values
            content.update(np.ascontiguousarray(values).data)
        return content.hexdigest()[:32]

    def read(self, name: str, region: slice | Mapping[str, slice]) -> np.ndarray:
        """Read some samples of one variable, or a region by dims; raises StoreError when it is absent or damaged."""
        wanted = {"sample": region} if isinstance(region, slice) else region
        with self._explained(f"read {name} {', '.join(f'{dim} {s.start}:{s.stop}' for dim, s in wanted.items())}"):
            array = self._array(name, "r")
            dims = zip(array.metadata.dimension_names, array.shape, strict=True)
            box = tuple(wanted.get(dim, slice(0, size)) for dim, size in dims)
            self._refuse_absent_shards(name, array, box)
            values = np.asarray(array[box])
        return values.astype(object) if values.dtype.kind in "TU" else values

    def record(self, event: Mapping[str, Any]) -> None:
        """Append one finished key to the journal, durably. Only the driver calls this, after the shard is written."""
        with self._explained("journal"), self.journal.open("ab") as file:
            file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Return the journal, the last word on each key; a torn last line is left out, and cut off the file."""
        return list({event["key"]: event for event in self._journalled()}.values())

    def _journalled(self) -> Iterator[dict[str, Any]]:
        """Read the journal line by line: to know the keys of a million events is not to hold the events."""
        if not self.journal.exists():
            return
        whole = 0
        with self._explained("read the journal"), self.journal.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                event: dict[str, Any] = json.loads(line)
                yield event
        if whole < self.journal.stat().st_size:
            os.truncate(self.journal, whole)

    def missing(self, keys: Keys) -> Keys:
        """Return the keys that are not in the journal: the whole of "resume"."""
        return keys.without(event["key"] for event in self._journalled())

    def settle(self, n_samples: int) -> None:
        """Write the status of every sample of a store whose samples are made by several keys, from the journal.

        What any of its keys says of a sample holds for all of it, and quarantine goes before the rest.
        """
        status = np.full(n_samples, OK, np.uint8)
        for sample, code in (pair for event in self._journalled() for pair in event["not_ok"]):
            if status[sample] != QUARANTINED:
                status[sample] = code
        with self._explained("write status"):
            self._array("status", "r+")[:] = status

    def publish(self) -> None:
        """Let readers see the store: put the root document in place, atomically and durably."""
        with self._explained("publish"):
            replace_file(self.path / ROOT_DOCUMENT, (self.run_folder / ROOT_DOCUMENT).read_bytes())

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the published or waiting root; empty where there is no store."""
        for document in (self.path / ROOT_DOCUMENT, self.run_folder / ROOT_DOCUMENT):
            if document.exists():
                attributes: dict[str, Any] = json.loads(document.read_bytes()).get("attributes", {})
                return attributes
        return {}

    def content_digest(self) -> str:
        """Return a digest of what the store holds: its identity and the numbers of every finished shard."""
        return digest([self._identity(), sorted((event["key"], event["digest"]) for event in self.events())])

    def _identity(self) -> Any:
        text = self.attributes().get(IDENTITY)
        return None if text is None else json.loads(text)

    def _array(self, name: str, mode: str) -> Any:
        return zarr.open_array(self.path / name, mode=mode, zarr_format=3)

    def _refuse_absent_shards(self, name: str, array: Any, box: tuple[slice, ...]) -> None:
        """Zarr would read an absent shard as zeros or NaN, without a word."""
        lengths = array.shards or array.chunks
        touched = [range(s.start // n, -(-s.stop // n)) for s, n in zip(box, lengths, strict=True)]
        for index in product(*touched):
            file = self.path / name / array.metadata.encode_chunk_key(index)
            if not file.exists():
                raise StoreError(
                    f"{file}: the shard is not there, though it was written: remove {self.path} to make it anew"
                )

    def _sweep(self) -> None:
        """Remove what a killed writer left beside its shard."""
        for orphan in self.path.rglob("*.partial"):
            orphan.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as failure:
            raise StoreError(
                f"{self.path}: cannot {action}: {failure.strerror or failure}; {_remedy(failure)}"
            ) from failure
        except (ValueError, RuntimeError, KeyError) as failure:  # what codecs and metadata raise for damaged bytes
            raise StoreError(f"{self.path}: cannot {action}: {failure}; the store is damaged: {_REMEDY}") from failure


def open_cube(path: Path) -> "xr.Dataset":
    """Open a chunk store or a feature cube lazily. Nothing here but plain ``xarray.open_zarr``.

    Raises
    ------
    StoreError
        There is no published store.
    """
    import xarray as xr

    if not (path / ROOT_DOCUMENT).exists():
        raise StoreError(f"{path}: no published store there; run `scattercube run` or `extract` first")
    cube: xr.Dataset = xr.open_zarr(path, chunks=None)
    return cube


_REMEDY = "choose another --store, or remove this folder to make it anew"
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again, it resumes",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again, it resumes",
    errno.EACCES: "choose a --store that you may write to",
    errno.EPERM: "choose a --store that you may write to",
    errno.EROFS: "the file system is read-only: choose another --store",
    errno.ENOENT: _REMEDY,
    errno.ENOTDIR: "a file stands where a folder is needed: choose another --store",
}


def _remedy(failure: OSError) -> str:
    return _REMEDIES.get(failure.errno or 0, "see the message of the operating system")


def _documents(template: "xr.Dataset") -> dict[str, bytes]:
    """Write a template into memory: every file of the store but the shards, by name."""
    memory = zarr.storage.MemoryStore()
    with warnings.catch_warnings():
        # Consolidated metadata is our commit point, knowingly ahead of the specification.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", category=UserWarning)
        template.coords.to_dataset().assign_attrs(template.attrs).to_zarr(memory, zarr_format=3, consolidated=False)
        group = zarr.open_group(memory, mode="r+")
        for name, variable in template.data_vars.items():
            group.create_array(
                str(name),
                shape=variable.shape,
                dtype=variable.dtype,
                chunks=variable.encoding["chunks"],
                shards=variable.encoding.get("shards"),
                compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="shuffle")],
                fill_value=np.nan if variable.dtype.kind == "f" else 0,
                dimension_names=[str(dim) for dim in variable.dims],
                attributes=dict(variable.attrs),
            )
        zarr.consolidate_metadata(memory)
    return {name: content.to_bytes() for name, content in memory._store_dict.items()}


def replace_file(target: Path, content: bytes) -> None:
    """Replace a file atomically and durably, in a folder that is made if need be. Raises StoreError."""
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as failure:
        raise StoreError(f"{target}: cannot write: {failure.strerror}; {_remedy(failure)}") from failure


def _difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**held, **wanted} if held.get(name) != wanted.get(name)]
    return "; ".join(f"{name} is {held.get(name)}, this run has {wanted.get(name)}" for name in names)
