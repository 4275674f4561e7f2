"""One job from archive to page: plan → ingest → extract → fit → report, resumed where an earlier run stopped.

This is the whole order of work, written once. Who calls the phases is a parameter: ``--direct`` calls them as they are,
a Prefect flow calls each as a task. Both write the same bytes.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args

from pydantic import Field

from scattercube.pipeline import clusters, execute, extract, ingest
from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.catalog import data_root as find_data_root
from scattercube.pipeline.clusters import Cluster, load_cluster, starting
from scattercube.pipeline.errors import SpecError
from scattercube.pipeline.estimate import Estimate, estimate
from scattercube.pipeline.execute import Observer, Silence, Stage, StepEvent
from scattercube.pipeline.places import Places, local_root
from scattercube.pipeline.plan import Plan, plan, ranges, refuse_what_cannot_fit
from scattercube.pipeline.sources import Listing, load_entry, scan
from scattercube.pipeline.spec import Model, Spec, load_spec
from scattercube.pipeline.store import Store, replace_file

if TYPE_CHECKING:
    from distributed import Client

    from scattercube.pipeline.fit import FitResult

Phase = Literal["plan", "ingest", "extract", "fit", "report"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Options(Model, strict=False):
    """How a job runs. Plain values, so that a schedule, a command line and a notebook say the same thing."""

    store: Annotated[str, Field(description="folder under which everything is written")] = "store"
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


class Job(Options, strict=False):
    """What a user asks for: an entry, how to run it, and how far."""

    entry: Annotated[str, Field(description="catalogue name, entry file, or a bare folder, tar, zip or array file")]
    until: Annotated[Phase, Field(description="the last phase to bring up to date")] = "report"


@dataclass(frozen=True)
class Prepared:
    """A job with everything resolved and checked, before any work."""

    entry: Entry
    spec: Spec
    cluster: Cluster
    data_root: Path
    places: Places
    listing: Listing
    plan: Plan
    seconds: float


@dataclass
class Outcome:
    """What a run did.

    Attributes
    ----------
    phases
        Seconds and keys of each phase, in order; a phase that had nothing to do has ``n_done`` 0.
    fitted
        The scores, or why there are none; None where the run stopped before ``fit``.
    """

    prepared: Prepared
    phases: list[dict[str, Any]] = field(default_factory=list)
    fitted: "FitResult | None" = None

    @property
    def nothing_new(self) -> bool:
        """Whether an earlier run had done it all."""
        return not any(phase["n_done"] for phase in self.phases)


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
    begin, root, data_root = time.perf_counter(), local_root(job.store), find_data_root(job.data)
    entry = load_entry(job.entry, data_root)
    if job.limit is not None:
        entry = entry.prune(job.limit)
    spec = (load_spec(Path(job.spec)) if job.spec else entry.spec).override(list(job.set))
    cluster = load_cluster(Path(job.cluster)) if job.cluster else Cluster()
    if job.serial and job.cluster:
        raise SpecError(f"--serial and --cluster {job.cluster}: choose one")
    clusters.refuse_without_device(cluster)
    listing = scan(entry, data_root)
    planned = plan(spec, len(listing.columns["sample_id"]), listing.layout, masked=entry.sample.missing)
    places = Places(root, entry.name, spec.digest)
    memory = clusters.machine()[1] if job.serial else cluster.worker_nbytes()
    threads = 1 if job.serial else cluster.threads
    refuse_what_cannot_fit(planned, root, _missing_nbytes(places, planned), memory, threads)
    return Prepared(entry, spec, cluster, data_root, places, listing, planned, time.perf_counter() - begin)


def _missing_nbytes(places: Places, planned: Plan) -> int:
    """Bytes of both stores, uncompressed, that no earlier run has written."""
    arrays = (
        (places.chunks, planned.signal_grid, planned.signal_nbytes),
        (places.cube, planned.feature_grid, planned.feature_nbytes),
    )
    return sum(nbytes * len(Store(path).missing(grid.keys)) // len(grid.keys) for path, grid, nbytes in arrays)


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
    outcome = Outcome(prepared, [{"name": "plan", "wall_s": prepared.seconds, "n_keys": 0, "n_done": 0}])
    places, reached = prepared.places, PHASES.index(job.until)
    with ExitStack() as held:
        # No cluster starts when nothing is missing; where something is, while stores are made.
        client: Callable[[], Client] | None = None
        work = _Spent(watch)
        for stages in _stages(prepared, reached):
            begin = time.perf_counter()
            if client is None and not job.serial and any(stage.store.missing(stage.keys) for stage in stages):
                client = held.enter_context(starting(prepared.cluster))
            for stage in stages:
                stage.store.create(stage.template())
                _keep_entry(places.entry_file, prepared.entry)
            missing = {stage.name: stage.store.missing(stage.keys) for stage in stages}
            for stage in stages:
                watch.begin(stage.name, len(stage.keys), len(stage.keys) - len(missing[stage.name]))
            for stage in reversed(stages):  # the last one asks for what it needs of the one before
                for part in ranges(stage.store.missing(stage.keys)):
                    call(f"{stage.name} {part[0]}–{part[-1]}", execute.run, stage, part, client and client(), work)
            for stage in stages:
                if missing[stage.name] or not stage.store.published:
                    if len((grid := stage.keys.grid).dims) > 1:
                        stage.store.settle(grid.sizes[0])
                    stage.store.publish()
            wall = time.perf_counter() - begin
            for stage in stages:
                seconds = wall * work.share(stage.name, stages)
                outcome.phases.append(_phase(stage.name, seconds, len(stage.keys), len(missing[stage.name])))
    if reached >= PHASES.index("fit"):
        begin = time.perf_counter()
        outcome.fitted = call("fit", fit.fit, places, prepared.entry.fit, Store(places.cube).content_digest())
        outcome.phases.append(_phase("fit", time.perf_counter() - begin, 1, int(outcome.fitted.fresh)))
    if reached >= PHASES.index("report") and (not outcome.nothing_new or _older(places.page, places.scores)):
        begin = time.perf_counter()
        record = _record(job, outcome, started)
        replace_file(places.run_file, record.encode())
        call("report", report.report, places)
        outcome.phases.append(_phase("report", time.perf_counter() - begin, 1, 1))
    return outcome


def _keep_entry(file: Path, entry: Entry) -> None:
    """Write the resolved entry beside what is made from it; left alone where it stands already."""
    text = entry.to_yaml().encode()
    if not file.exists() or file.read_bytes() != text:
        replace_file(file, text)


def _older(page: Path, scores: Path) -> bool:
    """Whether a page is absent, or from before the scores that it should show."""
    return not page.exists() or page.stat().st_mtime_ns < scores.stat().st_mtime_ns


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
    reading = ingest.stage(places, entry, prepared.data_root, prepared.listing, planned)
    if reached < PHASES.index("extract"):
        return [[reading]][:reached]
    scattering = extract.stage(places, entry, prepared.spec, planned, prepared.cluster.device, reading)
    return [[reading, scattering]] if scattering.source else [[reading], [scattering]]


def _phase(name: str, seconds: float, n_keys: int, n_done: int) -> dict[str, Any]:
    return {"name": name, "wall_s": seconds, "n_keys": n_keys, "n_done": n_done}


def _record(job: Job, outcome: Outcome, started: datetime) -> str:
    """Write down what ran, for the report and for whoever wonders years later."""
    from scattercube.pipeline.cube import versions

    prepared, (cores, memory_nbytes) = outcome.prepared, clusters.machine()
    phases = [phase | {"n_skipped": phase["n_keys"] - phase["n_done"]} for phase in outcome.phases]
    return json.dumps(
        {
            "entry": prepared.entry.name,
            "spec_digest": prepared.spec.digest,
            "started": started.isoformat(timespec="seconds"),
            "job": job.model_dump(mode="json"),
            "phases": phases,
            "host": {
                "cpu": platform.processor() or platform.machine(),
                "cores": cores,
                "memory_nbytes": memory_nbytes,
                "platform": platform.platform(),
            },
            "driver_peak_nbytes": execute.peak_nbytes(),
            "versions": versions(),
            "cluster": "serial" if job.serial else prepared.cluster.model_dump_json(exclude_none=True),
            "log": list(prepared.listing.notes),
        },
        indent=1,
    )
