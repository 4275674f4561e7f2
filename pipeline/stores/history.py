"""What an Icechunk repository has had: its branches, the snapshots that runs made, and what these say."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import zarr

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.stores import repositories
from scattercube.pipeline.stores.protocol import IDENTITY
from scattercube.pipeline.stores.repositories import assure, committing, explained, patiently, tip
from scattercube.pipeline.stores.snapshots import Snapshot
from scattercube.pipeline.stores.transactions import State, events_in

if TYPE_CHECKING:
    from icechunk import Repository, Session, SnapshotInfo

MAIN, RUN = "main", "run"


class History:
    """The snapshots of a repository that is opened when it is first needed, in every process anew.

    Parameters
    ----------
    url
        Where it is.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._repository: Repository | None = None

    def __reduce__(self) -> tuple[type["History"], tuple[str]]:
        return History, (self.url,)

    def create(self) -> None:
        """Open the repository, or make it."""
        self._repository = repositories.created(self.url)

    def split(self, shards: Mapping[str, int]) -> None:
        """Say how manifests are split."""
        self._repository = repositories.split(self.url, shards)

    def repository_or_none(self) -> "Repository | None":
        """Return the repository; None where there is none."""
        if self._repository is None:
            self._repository = repositories.opened(self.url)
        return self._repository

    def repository(self) -> "Repository":
        """Return the repository. Raises StoreError where there is none."""
        if (repository := self.repository_or_none()) is None:
            raise StoreError(f"{self.url}: there is no store, so no version is begun; run `scattercube run` first")
        return repository

    def tips(self) -> tuple[str | None, str | None]:
        """Return the snapshots of the published version and of the one begun; None where there is none."""
        if (repository := self.repository_or_none()) is None:
            return None, None
        main, run = tip(repository, MAIN), tip(repository, RUN)
        published = main if main and State.of(repository.lookup_snapshot(main).metadata) else None
        return published, None if run == main else run

    def state(self, snapshot: str) -> State:
        """Return where the version of a snapshot stands."""
        state = State.of(self.repository().lookup_snapshot(snapshot).metadata)
        if state is None:
            raise StoreError(f"{self.url}: snapshot {snapshot} is none that a run has made; choose another --store")
        return state

    def snapshot(self, session: "Session") -> Snapshot:
        """Return what a session begins with."""
        return Snapshot(self.url, session, self.state(session.snapshot_id))

    def at(self, snapshot: str) -> Snapshot:
        """Return a snapshot, to read from."""
        return self.snapshot(self.repository().readonly_session(snapshot_id=snapshot))

    def attributes(self, snapshot: str | None) -> dict[str, Any]:
        """Return the attributes of a snapshot; of none, none."""
        if snapshot is None:
            return {}
        return dict(zarr.open_group(self.at(snapshot).session.store, mode="r", zarr_format=3).attrs)

    def identity(self, snapshot: str | None) -> Any:
        """Return what a snapshot holds; None of none."""
        return json.loads(self.attributes(snapshot).get(IDENTITY, "null"))

    def branch(self) -> "Repository":
        """Make the branch of a version that begins."""
        repository = self.repository()
        if tip(repository, RUN) is None:
            main = repository.lookup_branch(MAIN)
            assure(lambda: repository.create_branch(RUN, main), lambda: tip(repository, RUN) == main)
        return repository

    def tidy(self) -> None:
        """Do what a process that was killed after it published has left undone."""
        published, begun = self.tips()
        repository = self.repository()
        if published and (name := f"v{self.state(published).version}") not in repository.list_tags():
            assure(lambda: repository.create_tag(name, published), lambda: name in repository.list_tags())
        if published and begun is None and tip(repository, RUN):
            repository.delete_branch(RUN)

    def writing(self) -> "Session":
        """Return a session at the tip of the version begun. Raises StoreError where there is none."""
        if self.tips()[1] is None:
            raise StoreError(f"{self.url}: no version is begun, or it was published meanwhile; run the command again")
        return self.repository().writable_session(RUN)

    def commit(
        self,
        action: str,
        change: Callable[[Snapshot], State],
        events: Sequence[Mapping[str, Any]] = (),
        state: State | None = None,
    ) -> str:
        """Change the version begun in one transaction; with a state, begin that version with it. Return the tip."""
        with explained(self.url, action), committing(self.url):
            session = self.writing() if state is None else self.branch().writable_session(RUN)
            after = change(Snapshot(self.url, session, state or self.state(session.snapshot_id)))
            if not session.has_uncommitted_changes:
                return session.snapshot_id
            return self.move(session, action, after.metadata(events))

    def move(self, session: "Session", action: str, metadata: Mapping[str, str]) -> str:
        """Commit what a session has changed, and return the tip of the version begun, which it is then."""
        before = session.snapshot_id
        try:
            return session.commit(action, dict(metadata))
        except repositories.library().ConflictError:
            # Where an answer was lost, the library has asked again, and found its own commit in its way.
            if (found := self._last_commit()).parent_id != before or found.metadata != metadata:
                raise
            return str(found.id)

    @patiently
    def _last_commit(self) -> "SnapshotInfo":
        with explained(self.url, "look at its last commit"):
            repository = self.repository()
            return repository.lookup_snapshot(repository.lookup_branch(RUN))

    def recorded(self) -> Iterator[tuple[State, list[dict[str, Any]]]]:
        """Yield what the commits say, the last first."""
        published, begun = self.tips()
        if (newest := begun or published) is None:
            return
        for snapshot in self.repository().ancestry(snapshot_id=newest):
            if (state := State.of(snapshot.metadata)) is None:
                return
            yield state, events_in(snapshot.metadata)
