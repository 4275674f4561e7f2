"""What a plain store can be asked of its files: what lacks, what is too many, and whether the numbers are right."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey, Grid
from scattercube.pipeline.stores.contents import digest_of, settled
from scattercube.pipeline.stores.files import PARTIAL_FILE, Files, explained
from scattercube.pipeline.stores.states import State, apply

_CHUNK = re.compile(r"(?P<array>.+)/c[./](?P<index>\d+(?:[./]\d+)*)")


def n_rows(state: State) -> int:
    """Return how many samples the version begun or published has."""
    name = state.arrays[0]
    return int(state.metadata[name]["shape"][0])


def refuse_unwritten(state: State, group: Files, name: str, rows: slice) -> None:
    """Raise StoreError for new rows that share a file with published ones, and are not written yet."""
    begun = state.begun
    assert begun is not None
    shared = state.shared(name)
    touched = range(max(rows.start, shared.start), min(rows.stop, shared.stop))
    if not begun["first"] or not touched or begun["settled"]:
        return
    # What has no shards does not say which rows it has, but is written before what has.
    sharded = [other for other in state.arrays if state.coding(other).chunk is not None]
    files = [
        (state.coding(other), file)
        for other in ([name] if name in sharded else sharded)
        for file in state.shared_files(other)
    ]
    ends = ((coding, group.read_end(file, coding.ending_nbytes)) for coding, file in files)
    if not files or not all(end and coding.is_extended_by(end, begun["token"]) for coding, end in ends):
        raise StoreError(f"{state.url}/{name}: rows {shared.start} to {shared.stop} are not written yet; run again")


def refuse_gaps(state: State, group: Files) -> None:
    """Raise StoreError where a shard of the version begun is not there."""
    for name in state.arrays:
        coding, shape = state.coding(name), state.metadata[name]["shape"]
        counts = [-(-size // n) for size, n in zip(shape, coding.shape, strict=True)]
        there = {index for found, index in _chunks(group, f"{name}/") if found == state.file(name, index)}
        for index in product(*map(range, counts)):
            if index not in there:
                raise gone(state, state.file(name, index))
        refuse_unwritten(state, group, name, slice(0, shape[0]))


def leftovers(state: State, group: Files) -> Iterator[str]:
    """Yield the files that a killed writer left, and shards behind the last row."""
    for name in group.names():
        if name.endswith(PARTIAL_FILE):
            yield name
        elif (match := _CHUNK.fullmatch(name)) and match["array"] in state.metadata:
            metadata = state.metadata[match["array"]]
            index = [int(part) for part in re.split("[./]", match["index"])]
            cut = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            if any(i * n >= size for i, n, size in zip(index, cut, metadata["shape"], strict=False)):
                yield name


def undo(status: np.ndarray, start: int, versions: Sequence[Mapping[str, Any]]) -> None:
    """Give a status that begins at row ``start`` the codes that it had before the marks of these versions."""
    for each in reversed(versions):
        apply(status, start, each["marks"], 2)


def wrong_keys(state: State, events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each key of the published versions whose numbers are not those of its event."""
    recorded: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        recorded.setdefault(event["version"], []).append(event)
    for version in state.versions:
        before = state.versions[version["number"] - 2]["n_rows"] if version["number"] > 1 else 0
        found = recorded.get(version["number"], [])
        if version["n_rows"] == before:
            continue
        dims = [dim for dim, _ in ChunkKey.parse(found[0]["key"]).offsets] if found else ["sample"]
        grid = _grid(state, dims, version["n_rows"], before)
        for key in grid.keys.without(event["key"] for event in found):
            yield f"{state.url}: {key} of version {version['number']} was never recorded, so nothing is known of it"
        if len(dims) > 1:
            yield from _wrong_status(state, version, before, found)
        for event in found:
            key = ChunkKey.parse(event["key"])
            try:
                content = _content(state, grid, key, version["arrays"])
            except Exception as failure:  # whatever codecs raise for damaged bytes
                yield f"{key} of version {version['number']}: {explained(state.url, 'read it', failure)}"
                continue
            if content != event["digest"]:
                yield (
                    f"{state.url}: {key} of version {version['number']} has other numbers than were recorded: digest "
                    f"{content}, not {event['digest']}; the store is damaged"
                )


def _wrong_status(
    state: State, version: Mapping[str, Any], before: int, events: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield a sentence where the status of samples that several keys make is not what these say of them."""
    expected, where = settled(events, version["n_rows"])[before:], f"status of version {version['number']}"
    try:
        status = np.asarray(state.array("status")[before : version["n_rows"]])
    except Exception as failure:  # whatever codecs raise for damaged bytes
        yield f"{where}: {explained(state.url, 'read it', failure)}"
        return
    undo(status, before, state.versions)
    if len(wrong := np.flatnonzero(status != expected)):
        yield (
            f"{state.url}: {where} has {status[wrong[0]]} for sample {before + wrong[0]}, recorded was "
            f"{expected[wrong[0]]}; the store is damaged"
        )


def _content(state: State, grid: Grid, key: ChunkKey, arrays: Sequence[str]) -> str:
    def values(name: str) -> np.ndarray:
        box = state.box(name, grid.region(key))
        found = np.asarray(state.array(name)[box])
        if name == "status":
            undo(found, box[0].start, state.versions)
        return found

    cut = (name for name in arrays if set(grid.dims) <= set(state.metadata[name]["dimension_names"]))
    return digest_of(map(values, cut))


def _grid(state: State, dims: Sequence[str], rows: int, first: int) -> Grid:
    """Return the grid of the keys of a version."""
    name = next(name for name in state.arrays if set(dims) <= set(state.metadata[name]["dimension_names"]))
    has, coding = state.metadata[name]["dimension_names"], state.coding(name)
    axes = [has.index(dim) for dim in dims]
    sizes = (rows, *(state.metadata[name]["shape"][axis] for axis in axes[1:]))
    shard = tuple(coding.shape[axis] for axis in axes)
    return Grid(tuple(dims), sizes, shard, shard, first)


def _chunks(group: Files, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in group.names(prefix):
        if match := _CHUNK.fullmatch(name):
            yield name, tuple(int(part) for part in re.split("[./]", match["index"]))


def gone(state: State, file: str) -> StoreError:
    """Say that a shard is not there, and what helps."""
    return StoreError(
        f"{state.url}/{file}: the shard is not there, so the version is not whole: run the same command again; where "
        f"that does not help, remove {state.url} to make it anew"
    )
