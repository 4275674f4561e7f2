"""``scattercube quarantine``: what could not be used, and trying it again."""

from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Table

from scattercube.flows.terminal import DEFAULTS, Common, Direct, EntryName, do, print_json, say
from scattercube.pipeline.job import Job, prepare
from scattercube.pipeline.quarantine import quarantined

app = App(name="quarantine", help="Records that could not be used: list them, or try them again.")


@app.command(name="list")
def list_records(
    entry: EntryName,
    /,
    *,
    options: Common = DEFAULTS,
    as_json: Annotated[bool, Parameter(name="--json", help="one JSON array, for programs")] = False,
) -> int:
    """List what is quarantined, and why."""
    prepared = prepare(Job(entry=entry, until="plan", **options.model_dump()))
    records = quarantined(prepared.places)
    if as_json:
        print_json([asdict(record) for record in records])
        return 0
    table = Table("sample", "reason", "what", "found by", "tries", "last")
    for record in records:
        table.add_row(record.sample_id, record.reason, record.message, record.stage, str(record.attempts), record.last)
    say.print(table if records else f"nothing of {prepared.entry.name} is quarantined")
    if records:
        say.print(f"{len(records)} records; mended files are read by the next run, `retry` reads all of them again")
    return 0


@app.command
def retry(entry: EntryName, /, *, options: Common = DEFAULTS, direct: Direct = False) -> int:
    """Run everything, and read again what is quarantined, even where its file looks as it did."""
    return do(Job(entry=entry, until="report", retry=True, **options.model_dump()), direct)
