"""What every stage of the pipeline is: a store, its keys, and a step for each; and what is said of it as it runs."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scattercube.pipeline.keys import ChunkKey, Keys
from scattercube.pipeline.stores.contents import lasting
from scattercube.pipeline.stores.protocol import IDENTITY, REMOVED, SUPERSEDED, Store

if TYPE_CHECKING:
    import xarray as xr

NO_MARKS: Mapping[int, int] = MappingProxyType({})
MARKS = {SUPERSEDED: "superseded", REMOVED: "removed"}


@dataclass(frozen=True)
class StepEvent:
    """What one key cost. One line of the journal.

    Attributes
    ----------
    key, digest
        Which shard, and the digest of its numbers.
    change
        What makes it part of its store; not in the journal.
    read_s, compute_s, write_s
        Seconds in each part of the step.
    nbytes_in, nbytes_out, n_samples
        How much went through, uncompressed.
    bad
        Quarantined records: sample_id, source, reason, message.
    not_ok
        Number and status of the samples that are not ok, where a sample is made by several keys.
    peak_nbytes
        The largest memory that the worker's process has had so far.
    """

    key: str
    digest: str
    read_s: float
    compute_s: float
    write_s: float
    nbytes_in: int
    nbytes_out: int
    n_samples: int
    bad: tuple[dict[str, str], ...] = ()
    not_ok: tuple[tuple[int, int], ...] = ()
    stage: str = ""
    attempt: int = 1
    worker: str = ""
    started: float = 0.0
    peak_nbytes: int = 0
    change: Any = None

    def line(self) -> dict[str, Any]:
        """Return what the journal keeps."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "change"}


def bad_record(rows: Mapping[str, np.ndarray], index: int, reason: str, message: str) -> dict[str, str]:
    """Name the record of a row, by ``sample_id`` and ``source``, and say what is wrong with it: a row of quarantine."""
    named = {name: str(rows[name][index]) for name in ("sample_id", "source")}
    return named | {"reason": reason, "message": message}


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: every stage has this shape.

    Attributes
    ----------
    name
        ``ingest`` or ``extract``.
    store
        Where the step writes.
    holds
        What must be the same for a run to go on with a store that is there (`identity`).
    template
        Makes the lazy Dataset that describes the store.
    keys
        All keys, in order.
    step
        Runs one key and writes its shard; idempotent, and picklable with its parameters inside.
    source, needs
        The stage whose shards this one reads while it still runs, and which of its keys a key needs; none where all of
        it must be there before.
    marks
        Published rows, and the status that they get with what this stage adds.
    """

    name: str
    store: Store
    holds: Mapping[str, Any]
    template: "Callable[[], xr.Dataset]"
    keys: Keys
    step: Callable[[ChunkKey], StepEvent]
    source: "Stage | None" = None
    needs: Callable[[ChunkKey], Iterable[ChunkKey]] | None = None
    marks: Mapping[int, int] = field(default_factory=dict)

    @property
    def current(self) -> bool:
        """Whether the store has all of it, published, and holds what this stage makes."""
        if self.marks or len(self.keys) or not self.store.published:
            return False
        held = json.loads(self.store.attributes().get(IDENTITY, "{}"))
        return lasting(held) == self.holds

    @property
    def n_keys(self) -> int:
        """How many keys the whole store has, those of versions before included."""
        return len(self.keys.grid.behind(0).keys)

    def begin(self) -> None:
        """Begin the store's version, or resume it."""
        self.store.begin(self.template(), self.keys.grid.first)
        if self.marks:
            self.store.mark(self.marks)

    def finish(self, seconds: float) -> None:
        """Publish the version, with a note of what it was made of, and where.

        Parameters
        ----------
        seconds
            What its keys took, those of this run, all processes together.
        """
        grid = self.keys.grid
        if len(grid.dims) > 1:
            self.store.settle(grid.sizes[0])
        codes = list(self.marks.values())
        said = [f"{grid.sizes[0] - grid.first} samples"]
        said += [f"{codes.count(code)} {word}" for code, word in MARKS.items() if code in codes]
        self.store.publish(f"{', '.join(said)}; {seconds:.3g} s of work, on {platform.node()}")


class Observer(Protocol):
    """Whoever wants to see the work go by: a progress bar, an artifact, a test."""

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Say that a stage starts, with ``n_done`` of ``n_keys`` finished by an earlier run."""

    def step(self, event: StepEvent) -> None:
        """Say that a key is finished and in the journal."""


@dataclass
class Silence:
    """The observer of a run that nobody watches."""

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Ignore it."""

    def step(self, event: StepEvent) -> None:
        """Ignore it."""
