"""What was produced under a root of stores: each cube with its Spec, versions, samples, size, age and freshness."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scattercube.pipeline.addresses import URL
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import EntryError, ScattercubeError, SourceError, StoreError
from scattercube.pipeline.places import address
from scattercube.pipeline.reading import arrays_of, column, document, feature_cube
from scattercube.pipeline.sources import identify, locate
from scattercube.pipeline.spec import parse
from scattercube.pipeline.stores.files import files_at
from scattercube.pipeline.stores.opening import backend_at, store_at
from scattercube.pipeline.stores.protocol import Store

Freshness = Literal["fresh", "archive changed", "archive absent", "archive elsewhere, not asked", "unknown"]
STATUS = ("ok", "quarantined", "absent", "partial", "superseded", "removed")  # in words, by number
_NOT_IN_A_FEW_WORDS = ("transform", "min_coverage")
_BESIDE = (".run", ".lease")  # how folders end that stand beside a group


@dataclass(frozen=True)
class Produced:
    """One feature cube, or what stands in the place of one.

    Attributes
    ----------
    path
        Where it is.
    entry, title
        What it was made from.
    spec_digest, spec
        The Spec, and it in a few words.
    versions
        The names of the published versions, the first one first.
    samples
        How many there are of each status.
    nbytes
        As stored.
    created
        When the last version was, ISO 8601.
    freshness
        Whether the archive is still what the cube was made from, by size, time or tag and the table of labels.
    dims, dtype, arrays
        What an analyst gets.
    how_to_open
        The Python line that opens it.
    problem
        Why it cannot be opened; empty where it can.
    """

    path: str
    entry: str
    spec_digest: str
    title: str = ""
    spec: str = ""
    versions: tuple[str, ...] = ()
    samples: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0
    created: str = ""
    freshness: Freshness = "unknown"
    dims: dict[str, int] = field(default_factory=dict)
    dtype: str = ""
    arrays: tuple[str, ...] = ()
    how_to_open: str = ""
    problem: str = ""

    def document(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def produced(root: str, data_root: Path) -> list[Produced]:
    """Return what is under a root of stores, by entry and Spec; cubes that are unfinished or damaged say so.

    To know whether they are fresh, archives under ``data_root`` are listed, as a run would; those behind URLs are not.

    Raises
    ------
    StoreError
        There is nothing.
    """
    if not (entries := files_at(root).folders()):
        raise StoreError(f"{root}: no store there; `scattercube run ENTRY --store {root}` makes one")
    now = cache(lambda text: _archive_now(text, data_root))
    return [_described(place, now) for entry in entries for place in _cubes(f"{root}/{entry}")]


def stores_at(place: str) -> list[str]:
    """Return the stores at a place: itself, or those of an entry's folder, or those of all entries under a root.

    Raises
    ------
    StoreError
        There is none.
    """
    at = address(place)
    if backend_at(at):
        return [at]
    entries = [at, *(f"{at}/{name}" for name in files_at(at).folders())]
    found = [store for entry in entries for store in (f"{entry}/chunks", *_cubes(entry)) if backend_at(store)]
    if not found:
        raise StoreError(f"{place}: no store there; give a cube, a chunk store, or a folder that was a --store")
    return found


def store_there(place: str) -> Store:
    """Return the store at a place, as the back-end that made it keeps it."""
    return store_at(place, backend_at(place) or "icechunk")


def faults_of(place: str) -> Iterator[str]:
    """Yield a sentence for each key of a store whose numbers are not those that were recorded.

    A store of which nothing was recorded is not taken for a good one.
    """
    store = store_there(place)
    if not store.versions():
        yield (
            f"{place}: lists no versions, so nothing says what its numbers should be: it is not finished, or of an "
            "older scattercube; run again, or remove it to make it anew"
        )
        return
    yield from store.verify()


def how_to_open(place: str) -> str:
    """Return the expression of Python that opens a cube: xarray alone reads what is plain Zarr on a disk."""
    plain = backend_at(place) == "zarr" and not URL.match(place)
    name = json.dumps(place, ensure_ascii=False)
    return f"xarray.open_zarr({name}, chunks=None)" if plain else f"scattercube.open_cube({name})"


def _cubes(entry: str) -> Iterator[str]:
    for name in files_at(entry).folders("features"):
        if not name.endswith(_BESIDE):
            yield f"{entry}/features/{name}"


def _described(place: str, archive_now: Any) -> Produced:
    (entry, _, spec_digest), nbytes = place.split("/")[-3:], files_at(place).nbytes()
    try:
        cube = feature_cube(place)
        versions = store_there(place).versions()
        counts = np.bincount(column(cube, "status"), minlength=len(STATUS)).tolist()
    except ScattercubeError as failure:
        return Produced(place, entry, spec_digest, nbytes=nbytes, problem=str(failure))
    return Produced(
        path=place,
        entry=entry,
        spec_digest=spec_digest,
        title=cube.attrs.get("title", ""),
        spec=in_a_few_words(document(cube, "spec")),
        versions=tuple(version.name for version in versions),
        samples={name: n for name, n in zip(STATUS, counts, strict=False) if n},
        nbytes=nbytes,
        created=versions[-1].created if versions else cube.attrs.get("created", ""),
        freshness=_freshness(document(cube, "input_checksums"), archive_now(cube.attrs.get("entry", ""))),
        dims={str(dim): size for dim, size in cube["scattering"].sizes.items()},
        dtype=str(cube["scattering"].dtype),
        arrays=(*arrays_of(cube), "status"),
        how_to_open=how_to_open(place),
    )


def in_a_few_words(spec: dict[str, Any]) -> str:
    """Write the fields of a Spec in a line: the transform, and what else is given."""
    rest = [f"{name}={_short(value)}" for name, value in spec.items() if name not in _NOT_IN_A_FEW_WORDS]
    return " ".join([str(spec.get("transform", "")), *rest])


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)


def _archive_now(entry_text: str, data_root: Path) -> Freshness | dict[str, Any]:
    """Return what identifies an entry's archive now, or why that is not known."""
    import yaml

    try:
        entry = parse(Entry, yaml.safe_load(entry_text), "the cube's entry", EntryError)
    except (EntryError, yaml.YAMLError):
        return "unknown"
    if URL.match(entry.location):
        return "archive elsewhere, not asked"
    try:
        locate(entry, data_root)
    except SourceError:
        return "archive absent"
    try:
        return identify(entry, data_root)
    except ScattercubeError:  # it holds nothing any more that the entry describes
        return "archive changed"


def _freshness(then: dict[str, Any], now: Freshness | dict[str, Any]) -> Freshness:
    if isinstance(now, str):
        return now
    # Not its place: a copy elsewhere is the same archive.
    same = {**then, "path": ""} == {**now, "path": ""}
    return "fresh" if same else "archive changed"
