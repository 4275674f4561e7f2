"""The Icechunk back-end: a repository of which every state is a snapshot, written in transactions.

Readers see the branch ``main``, which moves from published version to published version. What a run makes is on the
branch ``run``, in this order:

1. ``begin`` commits the template on ``run``: coordinates, arrays and attributes, of all rows.
2. ``write`` puts shards into a fork of a session, in any process; nothing refers to them yet. The driver gets the fork.
3. ``record`` merges forks and commits them, with the events in the commit's metadata: a shard and its journal cannot
   disagree. What was not recorded is missing, and is written again; what was written in vain, ``sweep`` removes.
4. ``publish`` commits the list of versions on ``run`` and resets ``main`` to it, the one step that readers see. The tag
   ``v<number>`` keeps the version for good. Versions share whatever shards did not change.

An analyst needs Icechunk, Zarr and xarray, and of this project nothing::

    storage = icechunk.local_filesystem_storage(path)  # or icechunk.s3_storage(bucket=…, prefix=…, from_env=True)
    session = icechunk.Repository.open(storage).readonly_session("main")  # or tag="v1": as it was then
    cube = xarray.open_zarr(session.store, consolidated=False)

A commit on a local disk survives a process that is killed; Icechunk does not wait until the disk has it, as the plain
store does, so that a power cut may cost the last ones.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.keys import ChunkKey, Keys
from scattercube.pipeline.stores.contents import content_digest, difference, digest_of, lasting, settled
from scattercube.pipeline.stores.documents import write_template
from scattercube.pipeline.stores.history import MAIN, RUN, History
from scattercube.pipeline.stores.protocol import IDENTITY, REMOVED, SUPERSEDED, Version, Written
from scattercube.pipeline.stores.repositories import assure, committing, explained, patiently
from scattercube.pipeline.stores.snapshots import Snapshot
from scattercube.pipeline.stores.states import VERSIONS, listed, runs
from scattercube.pipeline.stores.transactions import State, grow, splits

if TYPE_CHECKING:
    import xarray as xr

SWEEP_MARGIN = timedelta(minutes=10)  # between the clock of an object store and ours
_ANEW = "choose another --store, or remove this one to make it anew"


class IcechunkStore:
    """A store in an Icechunk repository. It does what `stores.protocol.Store` says.

    Parameters
    ----------
    url
        A folder, or ``s3://bucket/prefix``. What it takes to get there is in the environment, of every process.
    """

    def __init__(self, url: str) -> None:
        self._url = url if "://" in url else str(Path(url).expanduser().absolute())
        self._history = History(self._url)
        self._read_last: Snapshot | None = None
        self._began: datetime | None = None
        self._token = ""  # of the version that was begun here, or where this was pickled

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read_last": None, "_began": None}

    def __repr__(self) -> str:
        return f"IcechunkStore({self._url!r})"

    @property
    def url(self) -> str:
        """Where the repository is."""
        return self._url

    @property
    @patiently
    def published(self) -> bool:
        """Whether readers see a version, and nothing waits to be published."""
        with explained(self._url, "read"):
            published, begun = self._history.tips()
        return published is not None and begun is None

    @patiently
    def begin(self, template: "xr.Dataset", first: int = 0) -> None:
        """Start, or resume, the version that a template describes: one commit on a new branch ``run``."""
        self._began = datetime.now(UTC)
        self._history.create()
        with explained(self._url, "begin"), committing(self._url):
            published, begun = self._history.tips()
            wanted = json.loads(template.attrs[IDENTITY])
            self._refuse_another(self._history.identity(begun or published), wanted)
            if begun is None or self._history.identity(begun) != wanted:
                fresh = self._history.identity(published) != wanted
                if fresh:
                    self._refuse_other_rows(published, wanted, first)
                if begun is not None:  # another version, of which nothing is published: it is given up
                    self._history.repository().delete_branch(RUN)
                if fresh:
                    self._start(template, published, first)
            self._history.tidy()
            begun = self._history.tips()[1]
            self._token = self._history.state(begun).token if begun else ""

    @patiently
    def missing(self, keys: Keys) -> Keys:
        """Return the keys of the version begun that are not recorded. Where none is begun, what is published is not."""
        with explained(self._url, "read the events"):
            published, begun = self._history.tips()
            state, first = self._history.state(begun) if begun else None, keys.grid.first
            only = state.version if state and first and first == state.first else 1  # what is before is of no interest
            recorded = takewhile(lambda each: each[0].version >= only, self._history.recorded())
            done: Iterable[str] = (event["key"] for _, events in recorded for event in events)
            if published and begun is None:
                n_rows = self._history.state(published).n_rows
                done = chain(done, (str(key) for key in keys if dict(key.offsets).get("sample", 0) < n_rows))
            return keys.without(done)

    @patiently
    def write(self, key: ChunkKey, arrays: Mapping[str, np.ndarray]) -> Written:
        """Write one key of each array, in a fork of a session, which is what ``record`` needs."""
        with explained(self._url, f"write {key}"):
            fork = self._history.writing().fork()
            snapshot = self._history.snapshot(fork)
            if self._token not in ("", snapshot.state.token):
                raise StoreError(f"{self._url}: the version that {key} is of is not begun here any more; run again")
            names = [name for name in snapshot.state.arrays if name != "status" or len(key.offsets) == 1]
            if set(arrays) != set(names):
                raise StoreError(f"{self._url} {key}: got {', '.join(arrays)}; a key is written of {', '.join(names)}")
            for name in names:
                snapshot.write(name, key, arrays[name])
        return Written(digest_of(arrays[name] for name in names), fork)

    @patiently
    def record(self, events: Sequence[Mapping[str, Any]], changes: Sequence[Any]) -> None:
        """Merge what was written and commit it, with the events in the commit's metadata."""
        if not events:
            return
        if len(events) != len(changes) or any(change is None for change in changes):
            raise StoreError(f"{self._url}: {len(events)} keys came without all that they wrote; run the command again")

        def change(draft: Snapshot) -> State:
            if any(self._history.state(each.snapshot_id).token != draft.state.token for each in changes):
                raise StoreError(f"{self._url}: {events[0]['key']} … are of a version that was given up; run again")
            first, (length,) = draft.state.first, draft.array("status").chunks
            start = first // length * length
            before = np.asarray(draft.array("status")[start:first])
            draft.session.merge(*changes)
            if str(ChunkKey((("sample", first),))) not in {event["key"] for event in events}:
                return draft.state
            # Its shard of the status holds the rows before it as they were when it was written: without later marks.
            draft.set_status(dict(enumerate(before.tolist(), start)))
            return replace(draft.state, tail=True)

        self._history.commit(f"record {events[0]['key']} …", change, events)

    @patiently
    def mark(self, rows: Mapping[int, int]) -> None:
        """Give published rows another status with the version begun; without one, in a version of their own."""

        def change(draft: Snapshot) -> State:
            first = draft.state.first
            beyond = [row for row in rows if not 0 <= row < first]
            if beyond or not set(rows.values()) <= {SUPERSEDED, REMOVED}:
                raise StoreError(
                    f"{self._url}: asked to mark rows up to {max(rows)} of {first} that are published as "
                    f"{sorted(set(rows.values()))}; they can be superseded ({SUPERSEDED}) or removed ({REMOVED})"
                )
            held = draft.read("status", {"sample": slice(0, first)})
            draft.set_status({row: code for row, code in rows.items() if held[row] != code})
            return draft.state

        if not rows:
            return
        with explained(self._url, "mark"):
            published, begun = self._history.tips()
            last = self._history.state(published) if published and not begun else None
        self._history.commit("mark", change, state=last.next(last.n_rows, last.arrays) if last else None)

    @patiently
    def settle(self, n_samples: int) -> None:
        """Write the status of samples that are made by several keys each, from the events."""

        def change(draft: Snapshot) -> State:
            state = draft.state
            if n_samples != state.n_rows:
                raise StoreError(f"{self._url}: has {state.n_rows} samples, not {n_samples}")
            recorded = takewhile(lambda each: each[0].version == state.version, self._history.recorded())
            status = settled((event for _, events in recorded for event in events), n_samples)
            draft.set_status(dict(enumerate(status[state.first :].tolist(), state.first)))
            return replace(state, tail=True)

        self._history.commit("settle", change)

    @patiently
    def publish(self, note: str = "") -> None:
        """Commit the list of versions, and reset ``main`` to it: the one step that readers see."""
        with explained(self._url, "publish"):
            published, begun = self._history.tips()
            if begun is None:
                if published is None:
                    raise StoreError(f"{self._url}: nothing is begun here, so nothing can be published; run again")
                return
            before = self._history.at(published).array("status")[:] if published else np.zeros(0, np.uint8)

            def change(draft: Snapshot) -> State:
                self._refuse_gaps(draft)
                group, state = zarr.open_group(draft.session.store, mode="r+"), draft.state
                after = np.asarray(draft.array("status")[: len(before)])
                changed = np.flatnonzero(before != after)
                now = datetime.now(UTC).isoformat(timespec="seconds")
                version = {"number": state.version, "n_rows": state.n_rows, "created": now, "note": note}
                version |= {"arrays": list(state.arrays), "marks": runs(changed, before[changed], after[changed])}
                group.attrs[VERSIONS] = json.dumps([*listed({"attributes": dict(group.attrs)}), version])
                return replace(state, final=True)

            if not self._history.state(begun).final:  # else it was killed between the two steps
                begun = self._history.commit("publish", change)
            repository = self._history.repository()
            with committing(self._url):
                main = published or repository.lookup_branch(MAIN)
                assure(
                    lambda: repository.reset_branch(MAIN, begun, from_snapshot_id=main),
                    lambda: repository.lookup_branch(MAIN) == begun,
                )
                self._history.tidy()
            self._token = ""

    @patiently
    def read(self, name: str, region: slice | Mapping[str, slice]) -> np.ndarray:
        """Read some samples of one variable, or a region by dims, at the tip of ``run``, else of ``main``."""
        wanted = {"sample": region} if isinstance(region, slice) else region
        with explained(self._url, f"read {name} {', '.join(f'{dim} {s.start}:{s.stop}' for dim, s in wanted.items())}"):
            published, begun = self._history.tips()
            if (newest := begun or published) is None:
                raise StoreError(f"{self._url}: there is no store; run `scattercube run` first")
            if (snapshot := self._read_last) is None or snapshot.session.snapshot_id != newest:
                self._read_last = snapshot = self._history.at(newest)
            return snapshot.read(name, wanted)

    @patiently
    def events(self) -> list[dict[str, Any]]:
        """Return what was recorded, of all versions, the last word on each key of each; each has its ``version``."""
        words: dict[tuple[int, str], dict[str, Any]] = {}
        with explained(self._url, "read the events"):
            for state, events in self._history.recorded():
                for event in reversed(events):
                    words.setdefault((state.version, event["key"]), event | {"version": state.version})
        return list(reversed(words.values()))

    @patiently
    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the version begun, else of the published; empty where there is no store."""
        with explained(self._url, "read the attributes"):
            published, begun = self._history.tips()
            return self._history.attributes(begun or published)

    @patiently
    def versions(self) -> list[Version]:
        """Return the published versions, the first one first; each is named by its snapshot."""
        with explained(self._url, "read the versions"):
            published, _ = self._history.tips()
            if published is None:
                return []
            repository = self._history.repository()
            tags, found = repository.list_tags(), []
            for each in listed({"attributes": self._history.attributes(published)}):
                tag = f"v{each['number']}"  # the last may not have it yet
                name = repository.lookup_tag(tag) if tag in tags else published
                found.append(Version(each["number"], name, each["n_rows"], each["created"], each["note"]))
            return found

    @patiently
    def open(self, version: str | None = None) -> "xr.Dataset":
        """Open a published version lazily, by its number or its snapshot, the last by default: as it was then."""
        import xarray as xr

        if not (versions := self.versions()):
            raise StoreError(f"{self._url}: no published store there; run `scattercube run` or `extract` first")
        known = {name: each.name for each in versions for name in (str(each.number), each.name)}
        if version is not None and version not in known:
            raise StoreError(f"{self._url}: has no version {version}; it has 1 to {versions[-1].number}")
        with explained(self._url, "open"):
            snapshot = self._history.at(known[version or str(versions[-1].number)])
            cube: xr.Dataset = xr.open_zarr(snapshot.session.store, consolidated=False, chunks=None)
            return cube

    def content_digest(self) -> str:
        """Return a digest of what the store holds: its identity, the numbers of every recorded key, and marks."""
        attributes = self.attributes()
        identity = json.loads(attributes.get(IDENTITY, "null"))
        return content_digest(identity, self.events(), listed({"attributes": attributes}))

    def verify(self) -> Iterable[str]:
        """Read all published rows again and yield a sentence for each key whose numbers are not those recorded."""
        if not (versions := self.versions()):
            return
        with explained(self._url, "open"):
            snapshots = [self._history.at(version.name) for version in versions]
        for event in self.events():
            if event["version"] > len(versions):
                continue
            try:
                with explained(self._url, f"read {event['key']}"):
                    key, then = ChunkKey.parse(event["key"]), snapshots[event["version"] - 1]
                    found = then.content(key, snapshots[-1])
            except StoreError as failure:
                yield str(failure)
                continue
            if found != event["digest"]:
                yield (
                    f"{self._url}: {key} of version {event['version']} has other numbers than were recorded: digest "
                    f"{found}, not {event['digest']}; the store is damaged"
                )

    def sweep(self) -> Iterable[str]:
        """Remove what no branch and no tag refers to, and yield what it was.

        Where this process has begun a version, only what is older: its workers may have written what is not recorded.
        """
        before = datetime.now(UTC) if self._began is None else self._began - SWEEP_MARGIN
        with explained(self._url, "sweep"), committing(self._url):
            if (repository := self._history.repository_or_none()) is None:
                return
            gone = repository.garbage_collect(before)
        for what in ("chunks", "manifests", "snapshots", "transaction_logs"):
            if count := getattr(gone, f"{what}_deleted"):
                yield f"{self._url}: {count} {what.replace('_', ' ')}"

    def _refuse_gaps(self, draft: Snapshot) -> None:
        """Raise StoreError where not all keys of a version are recorded, or samples of several keys not settled."""
        version, n_keys = draft.state.version, draft.n_keys()
        recorded = takewhile(lambda each: each[0].version == version, self._history.recorded())
        keys = {event["key"] for _, events in recorded for event in events}
        if len(keys) < n_keys:
            raise StoreError(
                f"{self._url}: {n_keys - len(keys)} of {n_keys} keys are not recorded; run the command again"
            )
        if keys and "," in next(iter(keys)) and not draft.state.tail:
            raise StoreError(f"{self._url}: the status of the samples is not settled; run the command again")

    def _refuse_another(self, held: Any, wanted: Mapping[str, Any]) -> None:
        if held is None:
            return
        if held.get("format", 0) > wanted.get("format", 0):
            raise StoreError(
                f"{self._url}: is of format {held['format']}, of a newer scattercube; this one writes format "
                f"{wanted.get('format')}: upgrade it, or choose another --store"
            )
        if differ := difference(lasting(held), lasting(wanted)):
            raise StoreError(f"{self._url}: holds another cube: {differ}; {_ANEW}")

    def _refuse_other_rows(self, published: str | None, wanted: Mapping[str, Any], first: int) -> None:
        n_rows = self._history.state(published).n_rows if published else 0
        if first != n_rows:
            raise StoreError(
                f"{self._url}: has {n_rows} published rows, and this run begins behind {first}: "
                f"{difference(self._history.identity(published) or {}, wanted)}; {_ANEW}"
            )

    def _start(self, template: "xr.Dataset", published: str | None, first: int) -> None:
        """Commit what a version has besides shards, on a new branch."""
        before = self._history.state(published) if published else State(0, 0, 0, ())
        if published is None:
            self._history.split(splits(template))
        session = self._history.branch().writable_session(RUN)
        if published is None:
            write_template(session.store, template)
        else:
            grow(session, template, first)
        names = [str(name) for name in template.data_vars]
        self._history.move(session, "begin", before.next(template.sizes["sample"], names).metadata())
