"""The plain back-end: a Zarr v3 group that any tool reads, on a local disk or an object store.

Beside the group is its run folder, ``<group>.run``, with what waits and the journals. The protocol, in the order in
which files appear:

1. ``begin`` writes coordinates, and then what waits: the document of the group, with the metadata of all arrays inside.
   Readers do not look there. What was begun is resumed; a template that was cut off is written again.
2. ``write`` puts one whole shard of every array. It is there or it is not, whatever kills the process.
3. ``record`` appends lines to the journal of the version, durably, *after* the shard is written. What it does not name
   is missing, and is written again: a repeated write gives the same bytes.
4. ``publish`` puts the group's ``zarr.json`` in place: the one commit point.

A version adds rows behind those of the version before, and readers of that go on reading the same, because

* a shard that has published rows is extended such that whoever holds its old index still finds what it names
  (`shards.py`);
* columns and ``status`` are chunks that are replaced as a whole, with the same published rows;
* the status of published rows, where it changes, is written under other names: its chunks are called ``c/0`` or
  ``c.0``, by turns, which the group's document says (``chunk_key_encoding``). Readers of the version before find
  theirs; only when the status has changed once more is it gone.

Two writers of one shard would lose each other's chunks without a word: what is not exactly one shard is refused.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.addresses import URL
from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey, Keys
from scattercube.pipeline.stores import beginning, checks
from scattercube.pipeline.stores.beginning import journal, waiting
from scattercube.pipeline.stores.contents import content_digest, digest_of, settled
from scattercube.pipeline.stores.documents import ROOT_DOCUMENT, metadata_of, zarr_store
from scattercube.pipeline.stores.files import explained, files_at
from scattercube.pipeline.stores.protocol import IDENTITY, OK, REMOVED, SUPERSEDED, Version, Written
from scattercube.pipeline.stores.regions import read_region
from scattercube.pipeline.stores.states import VERSIONS, WAITING, State, apply, listed, load, other_separator, runs

if TYPE_CHECKING:
    import xarray as xr


class PlainStore:
    """A store in plain Zarr. See `stores.protocol.Store`, which it implements.

    Parameters
    ----------
    url
        A folder, or a URL like ``s3://bucket/prefix``. What it takes to get there is in the environment, in every
        process anew.
    """

    def __init__(self, url: str, _token: str | None = None) -> None:
        self._url = url.rstrip("/") if URL.match(url) else str(Path(url).expanduser().absolute())
        self._group, self._run = files_at(self._url), files_at(f"{self._url}.run")
        self._token = _token  # of the version that this run has begun: nobody writes into another by mistake
        self._end: int | None = None  # of its journal, as this run left it

    def __reduce__(self) -> tuple[type["PlainStore"], tuple[str, str | None]]:
        return PlainStore, (self._url, self._token)

    def __repr__(self) -> str:
        return f"PlainStore({self._url!r})"

    @property
    def url(self) -> str:
        """Where the group is."""
        return self._url

    @property
    def published(self) -> bool:
        """Whether readers see a version, and nothing waits to be published."""
        state = self._state()
        return state.root is not None and state.begun is None

    def begin(self, template: "xr.Dataset", first: int = 0) -> None:
        """Start, or resume, the version that a template describes; see the protocol."""
        wanted = json.loads(template.attrs[IDENTITY])
        with self._explained("begin"):
            state, self._end = self._state(), None
            if state.root is None and next(iter(self._group.names()), None) is None:
                beginning.forget(self._run)  # removed by hand: what stands beside it speaks of nothing
                state = self._state()
            if state.begun and wanted != state.identity() and wanted == state.identity(state.root or {}):
                beginning.give_up(self._run, state.number)
            elif wanted != state.identity():
                beginning.begin(self._group, self._run, state, template, first)
            state = self._state()
            self._token = state.begun["token"] if state.begun else None
            for _ in self.sweep():
                pass

    def missing(self, keys: Keys) -> Keys:
        """Return the keys of the version begun that are not recorded. Where none is begun, what is published is not."""
        with self._explained("read the journal"):
            state = self._state()
            first = keys.grid.first
            since = state.number if state.begun and first and first == state.begun["first"] else 1
            left = keys.without(
                event["key"] for number in range(since, state.number + 1) for event in self._journalled(number)
            )
            if len(left) and state.begun is None and (n_rows := state.n_published):  # its journal is lost
                left = left.without(str(key) for key in left if dict(key.offsets).get("sample", 0) < n_rows)
            return left

    def write(self, key: ChunkKey, arrays: Mapping[str, np.ndarray]) -> Written:
        """Write one key of each array: whole shards, or the new rows of one."""
        with self._explained(f"write {key}"):
            state = self._state()
            if state.begun is None or self._token not in (None, state.begun["token"]):
                raise StoreError(f"{self._url}: the version that {key} is of is not begun here any more; run again")
            starts = dict(key.offsets)
            cut = [name for name in state.arrays if set(starts) <= set(state.metadata[name]["dimension_names"])]
            if set(arrays) != set(cut):
                raise StoreError(f"{self._url} {key}: got {', '.join(arrays)}; a key is written of {', '.join(cut)}")
            files = {name: self._file(state, name, starts, key, arrays[name]) for name in cut}
            # What has no shards comes first: where the shards are longer than published, so is that.
            for name in sorted(cut, key=lambda name: state.coding(name).chunk is not None):
                self._put(state, name, files[name], arrays[name])
        return Written(digest_of(arrays[name] for name in cut))

    def record(self, events: Sequence[Mapping[str, Any]], changes: Sequence[Any]) -> None:
        """Append finished keys to the journal of the version, durably."""
        if not events:
            return
        begun, end = self._begun("record"), self._end
        self._end = None  # what is torn when this fails is cut off by the next
        lines = b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)
        self._end = self._run.append(journal(begun["number"]), lines, end)

    def mark(self, rows: Mapping[int, int]) -> None:
        """Give published rows another status with the version begun; without one, in a version of their own."""
        if not rows:
            return
        with self._explained("mark"):
            state = self._state()
            order = np.array(sorted(rows), np.int64)
            codes = np.array([rows[row] for row in order.tolist()], np.int64)
            if order[0] < 0 or order[-1] >= state.n_published or not np.isin(codes, (SUPERSEDED, REMOVED)).all():
                raise StoreError(
                    f"{self._url}: asked to mark rows {order[0]} to {order[-1]} of {state.n_published} that are "
                    f"published as {sorted(set(codes.tolist()))}; they can be superseded ({SUPERSEDED}) or removed "
                    f"({REMOVED})"
                )
            begun = state.begun
            if begun is None:
                status = self.read("status", slice(0, state.n_published))
                if np.array_equal(status[order], codes):
                    return
                begun = waiting(state.number + 1, state.document, state.arrays, state.n_published)
            marked = np.full(state.n_published, OK, np.int64)
            apply(marked, 0, begun["marks"], 2)
            marked[order] = codes
            rows_now = np.flatnonzero(marked)
            beginning.wait(self._run, {**begun, "marks": runs(rows_now, marked[rows_now])})
            self._token = begun["token"]

    def settle(self, n_samples: int) -> None:
        """Write the status of the new samples, each made by several keys, from the journal."""
        begun = self._begun("settle")
        with self._explained("write status"):
            state, first = self._state(), int(begun["first"])
            if state.metadata["status"]["shape"] != [n_samples]:
                raise StoreError(f"{self._url}: has {state.metadata['status']['shape'][0]} samples, not {n_samples}")
            status = settled(self._journalled(begun["number"]), n_samples)
            length = state.coding("status").shape[0]
            start = first // length * length
            if first > start:
                status[start:first] = state.array("status")[start:first]
            for index in range(start // length, -(-n_samples // length)):
                self._write_status(state, index, status[index * length : (index + 1) * length])
            beginning.wait(self._run, {**begun, "settled": True})

    def publish(self, note: str = "") -> None:
        """Let readers see the version: everything else first, then the group's document, atomically and durably."""
        with self._explained("publish"):
            state = self._state()
            if (begun := state.begun) is None:
                if state.root is None:
                    raise StoreError(f"{self._url}: nothing is begun here, so nothing can be published; run again")
                return
            checks.refuse_gaps(state, self._group)
            for _ in self.sweep():  # what a worker left that was killed: nobody begins a version that is published
                pass
            document = json.loads(json.dumps(begun["document"]))
            marks = self._move_status(state, document) if begun["marks"] else []
            before = metadata_of(state.root or begun["document"])
            for name, metadata in metadata_of(document).items():
                if metadata != before[name]:
                    self._group.write(f"{name}/{ROOT_DOCUMENT}", json.dumps(metadata).encode())
            now = datetime.now(UTC).isoformat(timespec="seconds")
            version = {"number": begun["number"], "n_rows": checks.n_rows(state), "created": now, "note": note}
            version |= {"arrays": begun["arrays"], "marks": marks}
            document["attributes"][VERSIONS] = json.dumps([*state.versions, version])
            self._group.write(ROOT_DOCUMENT, json.dumps(document).encode())
            self._run.remove(WAITING)
            self._end = self._token = None

    def read(self, name: str, region: slice | Mapping[str, slice]) -> np.ndarray:
        """Read some samples of one variable, or a region by dims, of the version begun or published."""
        wanted = {"sample": region} if isinstance(region, slice) else region
        with self._explained(f"read {name} {', '.join(f'{dim} {s.start}:{s.stop}' for dim, s in wanted.items())}"):
            state = self._state()
            if not state.document or name not in state.metadata:
                raise StoreError(f"{self._url}: there is no {name}; run `scattercube run` first")
            box = state.box(name, wanted)
            if state.begun and name in state.arrays:
                checks.refuse_unwritten(state, self._group, name, box[0])
            values = read_region(state, self._group, name, box)
            if name == "status" and state.begun:
                apply(values, box[0].start or 0, state.begun["marks"], 2)
        return values.astype(object) if values.dtype.kind in "TU" else values

    def events(self) -> list[dict[str, Any]]:
        """Return the journals, the last word on each key of each; each has its ``version``."""
        with self._explained("read the journal"):
            words = {
                (number, event["key"]): event | {"version": number}
                for number in range(1, self._state().number + 1)
                for event in self._journalled(number)
            }
        return list(words.values())

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the version begun, else of the published; empty where there is no store."""
        return dict(self._state().document.get("attributes", {}))

    def versions(self) -> list[Version]:
        """Return the published versions, the first one first; each is named by its number."""
        return [
            Version(each["number"], str(each["number"]), each["n_rows"], each["created"], each["note"])
            for each in self._state().versions
        ]

    def open(self, version: str | None = None) -> "xr.Dataset":
        """Open a published version lazily: of an earlier one, its rows, with the status that they had."""
        import xarray as xr

        with self._explained("open"):
            if self._state().root is None:
                raise StoreError(f"{self._url}: no published store there; run `scattercube run` or `extract` first")
            cube: xr.Dataset = xr.open_zarr(zarr_store(self._url), chunks=None)
            versions = listed({"attributes": cube.attrs})
            chosen = next((each for each in versions if str(each["number"]) == version), None)
            if version is None:
                return cube
            if chosen is None:
                raise StoreError(f"{self._url}: has no version {version}; it has 1 to {len(versions)}")
            cube = cube.isel(sample=slice(0, chosen["n_rows"]))
            status = cube["status"].values.copy()
            checks.undo(status, 0, versions[chosen["number"] :])
            return cube.assign(status=cube["status"].copy(data=status))

    def content_digest(self) -> str:
        """Return a digest of what the store holds: its identity, the numbers of every recorded key, and marks."""
        state = self._state()
        return content_digest(state.identity(), self.events(), state.versions)

    def verify(self) -> Iterable[str]:
        """Read all published rows again and yield a sentence for each key whose numbers are not those recorded."""
        with self._explained("verify"):
            yield from checks.wrong_keys(self._published(), self.events())

    def sweep(self) -> Iterable[str]:
        """Remove partial files, shards beyond the last row, and journals of no version; yield the name of each."""
        with self._explained("sweep"):
            state = self._state()
            if not state.document:
                return
            for files, found in (
                (self._group, checks.leftovers(state, self._group)),
                (self._run, beginning.leftovers(self._run, state)),
            ):
                for name in list(found):
                    files.remove(name)
                    yield f"{files.place}/{name}"

    def _state(self) -> State:
        with self._explained("read its documents"):
            return load(self._group, self._run)

    def _published(self) -> State:
        state = self._state()
        return State(state.url, state.root)

    def _begun(self, action: str) -> Mapping[str, Any]:
        begun = self._state().begun
        if begun is None or self._token not in (None, begun["token"]):
            raise StoreError(f"{self._url}: cannot {action}: another run has ended the version that this one began")
        return begun

    def _journalled(self, number: int) -> Iterator[dict[str, Any]]:
        """Read a journal line by line: to know the keys of a million events is not to hold the events."""
        for line in self._run.lines(journal(number)):
            event: dict[str, Any] = json.loads(line)
            yield event

    def _file(
        self, state: State, name: str, starts: Mapping[str, int], key: ChunkKey, values: np.ndarray
    ) -> tuple[int, ...]:
        """Return the index of the file that a key is, of an array; raises StoreError for what is not exactly that."""
        assert state.begun is not None
        metadata, coding = state.metadata[name], state.coding(name)
        at = [starts.get(dim, 0) for dim in metadata["dimension_names"]]
        index = tuple(start // n for start, n in zip(at, coding.shape, strict=True))
        begins = [i * n for i, n in zip(index, coding.shape, strict=True)]
        stops = [min(begin + n, size) for begin, n, size in zip(begins, coding.shape, metadata["shape"], strict=True)]
        begins[0] = max(begins[0], int(state.begun["first"]))
        expected = tuple(stop - start for start, stop in zip(at, stops, strict=True))
        if at != begins or values.shape != expected or values.dtype != coding.dtype:
            raise StoreError(
                f"{self._url}/{name} {key}: got {values.dtype}{values.shape}; one write is one whole shard, here "
                f"{coding.dtype}{expected} starting at a multiple of {coding.shape}, or at row {state.begun['first']} "
                "behind what is published"
            )
        return index

    def _put(self, state: State, name: str, index: tuple[int, ...], values: np.ndarray) -> None:
        """Write a whole file, or the rows of one behind those that are published."""
        assert state.begun is not None
        coding, file = state.coding(name), state.file(name, index)
        kept = max(0, int(state.begun["first"]) - index[0] * coding.shape[0])
        if not kept:
            self._group.write(file, *coding.encode(values))
        elif coding.chunk is None:
            start = index[0] * coding.shape[0]
            before = np.asarray(state.array(name)[(slice(start, start + kept), ...)])
            self._group.write(file, *coding.encode(np.concatenate([before, values])))
        else:
            old = self._group.read(file)
            if old is None:
                raise checks.gone(state, file)
            self._group.write(file, coding.extended(old, kept, values, state.begun["token"]))

    def _write_status(self, state: State, index: int, values: np.ndarray, *, other: bool = False) -> None:
        self._group.write(state.file("status", (index,), other=other), *state.coding("status").encode(values))

    def _move_status(self, state: State, document: dict[str, Any]) -> list[list[int]]:
        """Write the whole status, with marks, under the other names; return the marks with what they change."""
        assert state.begun is not None
        before = np.asarray(state.array("status")[:])
        after = before.copy()
        apply(after, 0, state.begun["marks"], 2)
        length = state.coding("status").shape[0]
        for index in range(-(-len(after) // length)):
            self._write_status(state, index, after[index * length : (index + 1) * length], other=True)
        encoding = metadata_of(document)["status"]["chunk_key_encoding"]["configuration"]
        encoding["separator"] = other_separator(encoding["separator"])
        changed = np.flatnonzero(before != after)
        return runs(changed, before[changed], after[changed])

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as failure:
            raise explained(self._url, action, failure) from failure
