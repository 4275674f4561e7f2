"""What a run says to a person: on the terminal, and as the summary artifact in Prefect."""

import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from rich.table import Table

from scattercube.pipeline.catalog import described_entry
from scattercube.pipeline.estimate import Estimate
from scattercube.pipeline.job import PHASES, Job, Outcome, Prepared
from scattercube.pipeline.plan import Plan, in_words
from scattercube.pipeline.stage import MARKS


def prefect_server() -> str:
    """Say which Prefect server a flow will talk to, without importing Prefect."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        return f"Prefect server: {url}"
    return "Prefect: the active profile's server, else an embedded one, which takes up to 20 s to start the first time"


def plan_table(prepared: Prepared, timed: Estimate | None = None) -> Table:
    """Lay out a plan, with the time that it will take where that is known."""
    plan, listing, threads = prepared.plan, prepared.listing, prepared.cluster.threads
    table = Table(title=f"{prepared.entry.title}  ·  {prepared.entry.name}", show_header=False, title_justify="left")
    parameters = ", ".join(f"{name}={value}" for name, value in prepared.spec.model_dump().items())
    rows = {
        "archive": listing.uri,
        "samples": f"{plan.signal_shape[0]:,} of {_by(listing.layout.shape)} {listing.layout.dtype}",
        "Spec": f"{prepared.spec.digest}: {parameters}",
        "chunk store": f"{in_words(plan.signal_nbytes)} in {len(plan.signal_grid.behind(0).keys)} shards",
        "feature cube": f"{_by(plan.feature_shape)}, {in_words(plan.feature_nbytes)} in {_pieces(plan)}",
        "tasks": f"{len(plan.signal_grid.keys):,} to ingest, {len(plan.feature_grid.keys):,} to extract, a shard each",
        "one worker": f"about {in_words(plan.worker_nbytes + (threads - 1) * plan.key_nbytes)} of memory",
        **_device(prepared),
        **_time(timed),
        "cube": prepared.places.cube,
        "page": prepared.places.page,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for note in listing.notes:
        table.add_row("note", note)
    return table


def _device(prepared: Prepared) -> dict[str, str]:
    if prepared.cluster.device != "cuda":
        return {}
    plan = prepared.plan
    signals = plan.feature_grid.shard[0] * prod(plan.signal_shape[1 : -len(prepared.spec.signal_dims)])
    return {"one device": f"about {in_words(plan.transform(prepared.spec).nbytes(signals, 'cuda'))} of its memory"}


def _time(timed: Estimate | None) -> dict[str, str]:
    if timed is None:
        return {}
    if not timed.n_ingest + timed.n_extract:
        return {"time": "none: every shard is there"}
    shares = f"a shard takes {timed.ingest.each:.2g} s to ingest, {timed.extract.each:.2g} s to extract"
    found = f"from {timed.ingest.n_timed + timed.extract.n_timed} that were done and thrown away"
    return {"time": f"about {in_time(timed.seconds)} with {timed.workers} workers: {shares} ({found})"}


def in_time(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _pieces(plan: Plan) -> str:
    """Say how a cube is cut: into shards of samples, or of a part of a field, and that into tiles."""
    n_keys = len(plan.feature_grid.behind(0).keys)
    per_key = plan.feature_nbytes / n_keys
    if len(plan.feature_grid.dims) == 1:
        return f"{n_keys:,} {'shard' if n_keys == 1 else 'shards'} of {in_words(per_key)}"
    around = _by([axis.halo + axis.margin for axis in plan.axes])
    return (
        f"{n_keys:,} {'shard' if n_keys == 1 else 'shards'} of {_by(plan.feature_grid.shard[1:])} outputs, "
        f"{in_words(per_key)} each, in tiles of {_by([axis.n_out for axis in plan.axes])}, "
        f"each computed from {_by(plan.transformed_shape)} values with a halo of {around}"
    )


def introduction(job: Job, prepared: Prepared) -> Iterator[str]:
    """Yield the first lines of a run: what it is about, an inferred entry in full, what the reader noticed."""
    entry, plan = prepared.entry, prepared.plan
    n = plan.signal_shape[0]
    field = f" of {_by(prepared.listing.layout.shape)}" if len(plan.feature_grid.dims) > 1 else ""
    first = plan.signal_grid.first  # rows of versions before may be superseded or removed
    word = "row" if first else "sample"
    yield f"{entry.title}: {n:,} {word if n == 1 else word + 's'}{field} from {prepared.listing.uri}"
    if first:
        codes = list(prepared.marks[0].values())
        marked = "".join(f", {codes.count(code)} {word}" for code, word in MARKS.items() if code in codes)
        yield f"since the last run: {n - first:,} new{marked}"
    if described_entry(job.entry) is None:
        yield f"no entry was given; this one was inferred, and is saved as {prepared.places.entry_file}:"
        yield "\n".join(f"  {line}" for line in entry.to_yaml().splitlines())
    yield from (f"note: {note}" for note in prepared.listing.notes)


def conclusion(outcome: Outcome) -> Iterator[str]:
    """Yield the last lines of a run: what was done, the scores, and where things are."""
    places = outcome.prepared.places
    if outcome.nothing_new:
        yield f"nothing new: {outcome.prepared.entry.name} is up to date"
    else:
        done = [f"{phase['name']} {phase['wall_s']:.1f} s" for phase in outcome.phases]
        yield f"done: {', '.join(done)}"
    if outcome.n_bad:
        yield (
            f"{outcome.n_bad} of {outcome.n_samples} samples are quarantined: "
            f"scattercube quarantine list {outcome.prepared.entry.name}"
        )
    if outcome.fitted is not None:
        yield outcome.fitted.scores["summary"] if outcome.fitted.scores else f"nothing to fit: {outcome.fitted.nothing}"
    for name, phase, address in (("cube", "extract", places.cube), ("page", "report", places.page)):
        if PHASES.index(outcome.until) >= PHASES.index(phase):
            yield f"{name}  {address.removeprefix(f'{Path.cwd()}/')}"
