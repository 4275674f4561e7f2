"""What a plain store holds at a moment: the version that readers see, the one that is begun, and the arrays of both."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from scattercube.pipeline.stores.documents import ROOT_DOCUMENT, array_in, metadata_of, zarr_store
from scattercube.pipeline.stores.files import Files
from scattercube.pipeline.stores.protocol import IDENTITY
from scattercube.pipeline.stores.shards import Coding

WAITING = "waiting.json"  # in the run folder: the version that is begun, with the document that it will publish
VERSIONS = "store_versions"  # the attribute that lists the published versions, JSON
Runs = Sequence[Sequence[int]]  # rows that follow each other and have the same codes: start, stop, codes


@dataclass(frozen=True)
class State:
    """A moment of a store.

    Attributes
    ----------
    url
        Of the group.
    root
        The group's document; None where nothing is published.
    begun
        What waits: ``number`` and ``token`` of the version, how many rows are published (``first``), the names of the
        arrays that keys write, ``marks``, whether the status is ``settled``, and the ``document``. None where no
        version is begun.
    cut_off
        Whether a version was to begin, and did not get as far.
    """

    url: str
    root: Mapping[str, Any] | None = None
    begun: Mapping[str, Any] | None = None
    cut_off: bool = False
    _codings: dict[str, Coding] = field(default_factory=dict)
    _arrays: dict[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> Mapping[str, Any]:
        """The document of the version begun, else of the published; empty where there is no store."""
        return self.begun["document"] if self.begun else self.root or {}

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of all arrays of that, by name."""
        return metadata_of(self.document)

    @property
    def versions(self) -> list[dict[str, Any]]:
        """The published versions, as the document lists them."""
        return listed(self.root)

    @property
    def n_published(self) -> int:
        """How many rows are published."""
        versions = self.versions
        return int(versions[-1]["n_rows"]) if versions else 0

    @property
    def number(self) -> int:
        """The number of the version begun, else of the one published last; 0 where there is no store."""
        return int(self.begun["number"]) if self.begun else len(self.versions)

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays that keys write."""
        return list(self.begun["arrays"] if self.begun else self.versions[-1]["arrays"] if self.versions else ())

    def identity(self, document: Mapping[str, Any] | None = None) -> Any:
        """Return what a document says that the store holds, by default that of the version begun or published."""
        text = (self.document if document is None else document).get("attributes", {}).get(IDENTITY)
        return None if text is None else json.loads(text)

    def coding(self, name: str) -> Coding:
        """Return how the files of an array are encoded."""
        if name not in self._codings:
            self._codings[name] = Coding.of(self.metadata[name])
        return self._codings[name]

    def array(self, name: str) -> Any:
        """Open an array to read from."""
        if name not in self._arrays:
            self._arrays[name] = array_in(zarr_store(self.url), name, self.metadata[name])
        return self._arrays[name]

    def file(self, name: str, index: Sequence[int], *, other: bool = False) -> str:
        """Return the name of the file of a shard or chunk; ``other``: where the next status goes (`PlainStore`)."""
        separator = self.metadata[name]["chunk_key_encoding"]["configuration"]["separator"]
        if other:
            separator = other_separator(separator)
        return f"{name}/{separator.join(map(str, ('c', *index)))}"

    def box(self, name: str, region: Mapping[str, slice]) -> tuple[slice, ...]:
        """Return a region of an array by axis: all of those that are not named."""
        dims = zip(self.metadata[name]["dimension_names"], self.metadata[name]["shape"], strict=True)
        return tuple(region.get(dim, slice(0, size)) for dim, size in dims)

    def shared(self, name: str) -> slice:
        """Return the new rows that share a file with published ones."""
        first = int(self.begun["first"]) if self.begun else 0
        length = self.coding(name).shape[0]
        return slice(first, min(-(-first // length) * length, self.metadata[name]["shape"][0]))

    def shared_files(self, name: str) -> list[str]:
        """Return the names of the files that have these rows."""
        rows, length = self.shared(name), self.coding(name).shape[0]
        if rows.start >= rows.stop:
            return []
        axes = zip(self.metadata[name]["shape"][1:], self.coding(name).shape[1:], strict=True)
        beside = product(*(range(-(-size // n)) for size, n in axes))
        return [self.file(name, (rows.start // length, *place)) for place in beside]


def load(group: Files, run: Files) -> State:
    """Return what a store holds now. What waits is looked at first: published meanwhile, it counts as such."""
    waiting = run.read(WAITING)
    return _parsed(group.place, waiting, group.read(ROOT_DOCUMENT))


@lru_cache(maxsize=16)
def _parsed(place: str, waiting: bytes | None, content: bytes | None) -> State:
    root = json.loads(content) if content else None
    begun = json.loads(waiting) if waiting else None
    if begun is not None and begun["number"] <= len(listed(root)):
        begun = None  # the run was killed after it published, before it tidied up
    whole = begun is not None and begun["document"] is not None
    return State(place, root, begun if whole else None, begun is not None and not whole)


def listed(document: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the versions that the document of a group lists."""
    versions: list[dict[str, Any]] = json.loads((document or {}).get("attributes", {}).get(VERSIONS, "[]"))
    return versions


def other_separator(separator: str) -> str:
    """Return the other of the two separators that the name of a chunk can have."""
    return "." if separator == "/" else "/"


def runs(rows: np.ndarray, *codes: np.ndarray) -> list[list[int]]:
    """Put rows together that follow each other and have the same codes."""
    if not len(rows):
        return []
    breaks = np.diff(rows) != 1
    for code in codes:
        breaks |= np.diff(code) != 0
    starts = np.flatnonzero(np.concatenate([[True], breaks]))
    stops = np.append(starts[1:], len(rows)) - 1
    columns = [rows[starts], rows[stops] + 1, *(code[starts] for code in codes)]
    return [list(map(int, run)) for run in zip(*columns, strict=True)]


def apply(status: np.ndarray, start: int, found: Runs, code: int) -> None:
    """Give rows of a status that begins at row ``start`` one of the codes of their run."""
    for run in found:
        status[max(run[0] - start, 0) : max(run[1] - start, 0)] = run[code]
