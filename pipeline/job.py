"""One job from archive to page: plan → ingest → extract → fit → report, resumed where an earlier run stopped.

This is the whole order of work, written once. Who calls the phases is a parameter: ``--direct`` calls them as they are,
a Prefect flow calls each as a task. Both write the same bytes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args

import numpy as np
from pydantic import Field

from scattercube.pipeline import clusters, execute, extract, ingest
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.catalog import data_root as find_data_root
from scattercube.pipeline.clusters import Cluster, load_cluster, starting
from scattercube.pipeline.errors import QuarantineError, SpecError
from scattercube.pipeline.estimate import Estimate, estimate
from scattercube.pipeline.growth import Ledger, cube_growth, growth, held_grid
from scattercube.pipeline.keys import Grid
from scattercube.pipeline.places import Places, root_address
from scattercube.pipeline.plan import Plan, plan, ranges, refuse_what_cannot_fit
from scattercube.pipeline.sources import Listing, load_entry, scan
from scattercube.pipeline.spec import Model, Spec, load_spec
from scattercube.pipeline.stage import Observer, Silence, Stage, StepEvent
from scattercube.pipeline.stores.files import read_file, replace_file
from scattercube.pipeline.stores.lease import Lease
from scattercube.pipeline.stores.opening import Backend
from scattercube.pipeline.stores.protocol import LIVE, QUARANTINED, Store

if TYPE_CHECKING:
    from distributed import Client

    from scattercube.pipeline.fit import FitResult

Phase = Literal["plan", "ingest", "extract", "fit", "report"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Options(Model, strict=False):
    """How a job runs. Plain values, so that a schedule, a command line and a notebook say the same thing."""

    store: Annotated[
        str, Field(description="folder, or s3://, gs:// or az:// URL, under which everything is written")
    ] = "store"
    data: Annotated[str | None, Field(description="folder of the archives; default $SCATTERCUBE_DATA, else ./data")] = (
        None
    )
    spec: Annotated[str | None, Field(description="YAML file with a Spec; default the one the entry suggests")] = None
    set: Annotated[tuple[str, ...], Field(description="KEY=VALUE change to the Spec, for example J=3; repeatable")] = ()
    limit: Annotated[int | None, Field(ge=1, description="use only N samples, spread over the archive")] = None
    cluster: Annotated[str | None, Field(description="YAML file with a cluster; default one local process a core")] = (
        None
    )
    serial: Annotated[bool, Field(description="run every key in this process, without Dask")] = False
    backend: Annotated[
        Backend, Field(description="what keeps the stores: zarr, or icechunk (an extra), which has transactions")
    ] = "zarr"
    max_bad_fraction: Annotated[
        float,
        Field(ge=0, le=1, description="share of samples that may be quarantined before the run ends with exit code 7"),
    ] = 1.0


class Job(Options, strict=False):
    """What a user asks for: an entry, how to run it, and how far."""

    entry: Annotated[str, Field(description="catalogue name, entry file, or a bare folder, tar, zip or array file")]
    until: Annotated[Phase, Field(description="the last phase to bring up to date")] = "report"
    retry: Annotated[bool, Field(description="read again what is quarantined")] = False


@dataclass(frozen=True)
class Prepared:
    """A job with everything resolved and checked, before any work.

    Attributes
    ----------
    listing
        All rows: those that are published, and behind them what is new in the archive.
    marks
        What becomes of published rows, in the chunk store and in the cube.
    ledger
        What is to be remembered of the archive's members.
    """

    entry: Entry
    spec: Spec
    cluster: Cluster
    data_root: Path
    places: Places
    listing: Listing
    plan: Plan
    marks: tuple[Mapping[int, int], Mapping[int, int]]
    ledger: Ledger
    seconds: float


@dataclass
class Outcome:
    """What a run did.

    Attributes
    ----------
    until
        The last phase that was brought up to date.
    n_samples, n_bad
        The samples that the archive has now, as far as the stores know it, and those of them that are quarantined.
    phases
        Seconds and keys of each phase, in order; a phase that had nothing to do has ``n_done`` 0.
    fitted
        The scores, or why there are none; None where the run stopped before ``fit``.
    """

    prepared: Prepared
    until: Phase
    n_samples: int = 0
    n_bad: int = 0
    phases: list[dict[str, Any]] = field(default_factory=list)
    fitted: "FitResult | None" = None

    @property
    def nothing_new(self) -> bool:
        """Whether an earlier run had done it all."""
        return not any(phase["n_done"] for phase in self.phases) and not any(self.prepared.marks)


class Caller(Protocol):
    """How a phase, or a range of keys of one, is called: plainly, or as an orchestrator's task."""

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``work(*arguments)``."""


def call_plainly(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Call the work here and now: no orchestrator."""
    return work(*arguments)


def prepare(job: Job) -> Prepared:
    """Resolve and check everything that can be checked before the work: entry, Spec, archive, plan, room.

    Raises
    ------
    EntryError, SpecError, SourceError, PlanError, StoreError
        Whatever would have stopped the run later.
    """
    begin, root, data_root = time.perf_counter(), root_address(job.store), find_data_root(job.data)
    entry = load_entry(job.entry, data_root)
    if job.limit is not None:
        entry = entry.prune(job.limit)
    spec = (load_spec(Path(job.spec)) if job.spec else entry.spec).override(list(job.set))
    cluster = load_cluster(Path(job.cluster)) if job.cluster else Cluster()
    if job.serial and job.cluster:
        raise SpecError(f"--serial and --cluster {job.cluster}: choose one")
    clusters.refuse_without_device(cluster)
    places = Places(root, entry.name, spec.digest, job.backend)
    chunks, cube = places.chunk_store, places.cube_store
    known = Ledger.of(read_file(places.ledger))
    found = growth(chunks, scan(entry, data_root), known, entry, data_root, retry=job.retry)
    first, marks = cube_growth(chunks, found, cube)
    n_samples = len(found.listing.columns["sample_id"])
    held = (_grid_of(chunks, n_samples, found.first), _grid_of(cube, n_samples, first))
    planned = plan(spec, n_samples, found.listing.layout, masked=entry.sample.missing, held=held)
    memory = clusters.machine()[1] if job.serial else cluster.worker_nbytes()
    threads = 1 if job.serial else cluster.threads
    refuse_what_cannot_fit(planned, root, _missing_nbytes(chunks, cube, planned), memory, threads)
    spent = time.perf_counter() - begin
    became = (found.marks, marks)
    return Prepared(entry, spec, cluster, data_root, places, found.listing, planned, became, found.ledger, spent)


def _grid_of(store: Store, n_samples: int, first: int) -> Grid | None:
    """How a store is cut that has published rows already, for so many samples; None where there are none."""
    return replace(held_grid(store.attributes(), n_samples), first=first) if first else None


def _missing_nbytes(chunks: Store, cube: Store, planned: Plan) -> int:
    """Bytes of both stores, uncompressed, that no earlier run has written."""
    arrays = (
        (chunks, planned.signal_grid, planned.signal_nbytes),
        (cube, planned.feature_grid, planned.feature_nbytes),
    )
    return sum(nbytes * len(store.missing(grid.keys)) // len(grid.behind(0).keys) for store, grid, nbytes in arrays)


def how_long(prepared: Prepared, *, serial: bool) -> Estimate:
    """Time the first keys of a job, for about ten seconds, and estimate all of it; leaves nothing behind."""
    cores = clusters.machine()[0]
    workers = 1 if serial else prepared.cluster.n_workers
    return estimate(
        prepared.places,
        prepared.entry,
        prepared.spec,
        prepared.data_root,
        prepared.listing,
        prepared.plan,
        workers,
        1 if serial else max(cores, workers) if prepared.cluster.kind == "address" else cores,
        prepared.cluster.device,
        cluster=not serial and prepared.cluster.kind != "address",
    )


def run(
    job: Job, call: Caller = call_plainly, observer: Observer | None = None, prepared: Prepared | None = None
) -> Outcome:
    """Bring every phase up to ``job.until`` up to date, and say what was done.

    ``prepared`` is what ``prepare(job)`` returned, for a caller that has looked at it already.
    """
    from scattercube.pipeline import fit, report

    watch = observer or Silence()
    started = datetime.now(UTC)
    prepared = prepared or call("plan", prepare, job)
    outcome = Outcome(
        prepared, job.until, phases=[{"name": "plan", "wall_s": prepared.seconds, "n_keys": 0, "n_done": 0}]
    )
    places, reached = prepared.places, PHASES.index(job.until)
    with ExitStack() as held:
        # No cluster starts when nothing is missing; where something is, while stores are made.
        client: Callable[[], Client] | None = None
        work = _Spent(watch)
        for stages in _stages(prepared, reached):
            begin = time.perf_counter()
            _keep(places.entry_file, prepared.entry.to_yaml().encode())
            begun = [stage for stage in stages if not stage.current]
            leases = {
                stage.name: held.enter_context(Lease.take(places.lease(stage.store), stage.store.url))
                for stage in begun
            }
            confirm = partial(_confirm, leases)
            if client is None and not job.serial and any(stage.store.missing(stage.keys) for stage in stages):
                client = held.enter_context(starting(prepared.cluster))
            for stage in begun:
                stage.begin()
            missing = {stage.name: stage.store.missing(stage.keys) for stage in stages}
            for stage in stages:
                watch.begin(stage.name, stage.n_keys, stage.n_keys - len(missing[stage.name]))
            for stage in reversed(stages):  # the last one asks for what it needs of the one before
                for part in ranges(stage.store.missing(stage.keys)):
                    where = client and client()
                    call(f"{stage.name} {part[0]}–{part[-1]}", execute.run, stage, part, where, work, confirm)
            for stage in begun:
                if missing[stage.name] or not stage.store.published:
                    confirm(stage.name)
                    stage.finish(work.seconds.get(stage.name, 0.0))
            if stages[0].name == "ingest":
                _keep(places.ledger, prepared.ledger.content())
            wall = time.perf_counter() - begin
            for stage in stages:
                seconds = wall * work.share(stage.name, stages)
                outcome.phases.append(_phase(stage.name, seconds, stage.n_keys, len(missing[stage.name])))
    if reached >= PHASES.index("fit"):
        begin = time.perf_counter()
        outcome.fitted = call("fit", fit.fit, places, prepared.entry.fit, places.cube_store.content_digest())
        outcome.phases.append(_phase("fit", time.perf_counter() - begin, 1, int(outcome.fitted.fresh)))
    fitted = outcome.fitted
    if job.until == "report" and fitted and not (outcome.nothing_new and report.shows(places, fitted.inputs)):
        begin = time.perf_counter()
        record = _record(job, outcome, started)
        replace_file(places.run_file, record.encode())
        call("report", report.report, places)
        outcome.phases.append(_phase("report", time.perf_counter() - begin, 1, 1))
    if reached >= PHASES.index("ingest"):
        store = places.cube_store if reached >= PHASES.index("extract") else places.chunk_store
        _refuse_too_many_bad(job, outcome, store)
    return outcome


def _refuse_too_many_bad(job: Job, outcome: Outcome, store: Store) -> None:
    status = store.read("status", slice(0, outcome.prepared.plan.signal_shape[0]))
    outcome.n_samples, outcome.n_bad = (int(np.isin(status, codes).sum()) for codes in (LIVE, (QUARANTINED,)))
    if outcome.n_bad > job.max_bad_fraction * outcome.n_samples:
        raise QuarantineError(
            f"{store.url}: {outcome.n_bad} of {outcome.n_samples} samples are quarantined, "
            f"{outcome.n_bad / outcome.n_samples:.2%}; max_bad_fraction allows {job.max_bad_fraction:.2%}; all others "
            f"are done and published: see `scattercube quarantine list {job.entry}`, mend the archive and run again"
        )


def _confirm(leases: Mapping[str, Lease], stage: str) -> None:
    """Raise StoreError where another run has taken over the store of a stage."""
    leases[stage].confirm()


def _keep(address: str, content: bytes) -> None:
    """Write a file beside the stores; left alone where it stands already."""
    if read_file(address) != content:
        replace_file(address, content)


@dataclass
class _Spent:
    """An observer that adds up the seconds of each stage's keys, for whoever watches besides."""

    watch: Observer
    seconds: dict[str, float] = field(default_factory=dict)

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Tell the other."""
        self.watch.begin(stage, n_keys, n_done)

    def step(self, event: StepEvent) -> None:
        """Add up, and tell the other."""
        spent = event.read_s + event.compute_s + event.write_s
        self.seconds[event.stage] = self.seconds.get(event.stage, 0.0) + spent
        self.watch.step(event)

    def share(self, stage: str, stages: Sequence[Stage]) -> float:
        """Return the share of a stage in what several took together."""
        total = sum(self.seconds.get(one.name, 0.0) for one in stages)
        return self.seconds.get(stage, 0.0) / total if total else 1 / len(stages)


def _stages(prepared: Prepared, reached: int) -> list[list[Stage]]:
    """The keyed stages up to a phase; those that run together stand together."""
    places, entry, planned = prepared.places, prepared.entry, prepared.plan
    reading = ingest.stage(places, entry, prepared.data_root, prepared.listing, planned, prepared.marks[0])
    if reached < PHASES.index("extract"):
        return [[reading]][:reached]
    scattering = extract.stage(
        places, entry, prepared.spec, planned, prepared.cluster.device, reading, prepared.marks[1]
    )
    return [[reading, scattering]] if scattering.source else [[reading], [scattering]]


def _phase(name: str, seconds: float, n_keys: int, n_done: int) -> dict[str, Any]:
    return {"name": name, "wall_s": seconds, "n_keys": n_keys, "n_done": n_done}


def _record(job: Job, outcome: Outcome, started: datetime) -> str:
    """Write down what ran, for the report and for whoever wonders years later."""
    from scattercube.pipeline.cube import host, versions

    prepared, (cores, memory_nbytes) = outcome.prepared, clusters.machine()
    phases = [phase | {"n_skipped": phase["n_keys"] - phase["n_done"]} for phase in outcome.phases]
    return json.dumps(
        {
            "entry": prepared.entry.name,
            "spec_digest": prepared.spec.digest,
            "started": started.isoformat(timespec="seconds"),
            "job": job.model_dump(mode="json"),
            "phases": phases,
            "host": host() | {"cores": cores, "memory_nbytes": memory_nbytes},
            "driver_peak_nbytes": execute.peak_nbytes(),
            "versions": versions(),
            "cluster": "serial" if job.serial else prepared.cluster.model_dump_json(exclude_none=True),
            "log": list(prepared.listing.notes),
        },
        indent=1,
    )
