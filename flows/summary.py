"""What a run says to a person: on the terminal, and as the summary artifact in Prefect."""

import os
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from scattercube.pipeline.catalog import described_entry
from scattercube.pipeline.job import Job, Outcome, Prepared
from scattercube.pipeline.plan import in_words


def prefect_server() -> str:
    """Say which Prefect server a flow will talk to, without importing Prefect."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        return f"Prefect server: {url}"
    return "Prefect: the active profile's server, else an embedded one, which takes up to 20 s to start the first time"


def plan_table(prepared: Prepared) -> Table:
    """Lay out a plan."""
    plan, listing = prepared.plan, prepared.listing
    table = Table(title=f"{prepared.entry.title}  ·  {prepared.entry.name}", show_header=False, title_justify="left")
    parameters = ", ".join(f"{name}={value}" for name, value in prepared.spec.model_dump().items())
    per_key = plan.feature_nbytes / len(plan.feature_grid.keys)
    rows = {
        "archive": listing.uri,
        "samples": f"{plan.signal_shape[0]:,} of {'×'.join(map(str, listing.shape))} {listing.dtype}",
        "Spec": f"{prepared.spec.digest}: {parameters}",
        "chunk store": f"{in_words(plan.signal_nbytes)} in {len(plan.signal_grid.keys)} shards",
        "feature cube": f"{'×'.join(map(str, plan.feature_shape))}, {in_words(plan.feature_nbytes)} "
        f"in {len(plan.feature_grid.keys)} shards of {in_words(per_key)}",
        "one worker": f"about {in_words(plan.worker_nbytes)} of memory",
        "cube": str(prepared.places.cube),
        "page": str(prepared.places.page),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for note in listing.notes:
        table.add_row("note", note)
    return table


def introduction(job: Job, prepared: Prepared) -> Iterator[str]:
    """Yield the first lines of a run: what it is about, an inferred entry in full, what the reader noticed."""
    entry, plan = prepared.entry, prepared.plan
    yield f"{entry.title}: {plan.signal_shape[0]:,} samples from {prepared.listing.uri}"
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
    if outcome.fitted is not None:
        yield outcome.fitted.scores["summary"] if outcome.fitted.scores else f"nothing to fit: {outcome.fitted.nothing}"
    for name, path in (("cube", places.cube), ("page", places.page)):
        if path.exists():
            yield f"{name}  {path if not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())}"
