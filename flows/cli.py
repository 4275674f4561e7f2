"""The ``scattercube`` command.

Exit codes: 0 done, or nothing to do · 1 a fault in the program · 2 wrong usage, entry, Spec or cluster file ·
3 refused by the plan · 4 the archive cannot be read · 5 the store cannot be written, or holds something else ·
6 a key failed after its retries · 7 more samples are quarantined than ``--max-bad-fraction`` allows ·
130, 143 interrupted.
``doctor``, ``diff`` and ``verify`` return 1 where a run cannot work, cubes differ, or numbers are not as written.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from scattercube import __version__
from scattercube.flows import cube_commands, quarantine
from scattercube.flows.summary import plan_table
from scattercube.flows.terminal import (
    DEFAULTS,
    INTERRUPTED,
    Common,
    Direct,
    EntryName,
    OutFile,
    Terminated,
    complain,
    do,
    print_json,
    say,
    warn,
)
from scattercube.pipeline.errors import ScattercubeError
from scattercube.pipeline.job import Job, Options, Phase, how_long, prepare
from scattercube.pipeline.spec import explain

app = App(
    name="scattercube",
    help="Turn an archive of images into a labelled cube of wavelet scattering features, a classifier and a report.\n\n"
    "Start with: scattercube run textures",
    version=__version__,
    default_parameter=Parameter(negative=()),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(quarantine.app)
for _command in (cube_commands.diff, cube_commands.export, cube_commands.verify):
    app.command(_command)

PHASE_HELP: dict[str, tuple[Phase, str]] = {
    "run": ("report", "Do everything: plan, ingest, extract, fit, report. Doing it again continues, or does nothing."),
    "ingest": ("ingest", "Read the archive into the chunk store (Zarr), and stop there."),
    "extract": ("extract", "Compute the scattering cube, after whatever must come before it, and stop there."),
    "fit": ("fit", "Fit and score the linear heads, after whatever must come before them, and stop there."),
    "report": ("report", "Write the page, after whatever must come before it: `run` by the name of its last phase."),
}


def _phase_command(until: Phase) -> Callable[..., int]:
    def command(entry: EntryName, /, *, options: Common = DEFAULTS, direct: Direct = False) -> int:
        return do(Job(entry=entry, until=until, **options.model_dump()), direct)

    return command


for _name, (_until, _help) in PHASE_HELP.items():
    app.command(_phase_command(_until), name=_name, help=_help)


@app.command
def plan(entry: EntryName, /, *, options: Common = DEFAULTS, time: bool = True) -> int:
    """Show what a run would read, write, need and take, and refuse what cannot work. Leaves nothing behind.

    Parameters
    ----------
    time
        Time the first shards, for about ten seconds.
    """
    job = Job(entry=entry, until="plan", **options.model_dump())
    prepared = prepare(job)
    say.print(plan_table(prepared, how_long(prepared, serial=job.serial) if time else None))
    return 0


@app.command
def apply(head: str, cube: str, /, *, out: OutFile = Path("predictions.parquet")) -> int:
    """Apply a fitted head to a feature cube that was computed with the same Spec.

    Parameters
    ----------
    head
        The folder of a head, or its URL: <store>/<entry>/results/<spec>/heads/<head>.
    cube
        The cube, or its URL: <store>/<entry>/features/<spec>.
    out
        Where to write one row a sample: identity, and the predicted label with decision values or the predicted number.
        Parquet, or CSV by its ending.
    """
    from scattercube.pipeline import fit as stage

    found = stage.apply(head, cube)
    table = found.drop_dims("class", errors="ignore").to_dataframe()
    if "decision" in found:
        table = table.join(found["decision"].to_pandas().add_prefix("decision "))
    if out.suffix == ".csv":
        table.to_csv(out)
    else:
        table.to_parquet(out)
    say.print(f"{len(table)} predictions in {out}")
    return 0


@app.command
def catalog(
    *,
    data: str | None = None,
    store: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """List the entries of the catalogue, and whether their archives are there; or, with --store, what was produced.

    Parameters
    ----------
    data
        Folder of the archives; default $SCATTERCUBE_DATA, else ./data.
    store
        What was a --store, a folder or URL: list its cubes instead, and whether their archives are what they were.
    as_json
        One JSON array, for programs.
    """
    from scattercube.flows.doctor import availability
    from scattercube.pipeline.catalog import data_root, list_entries

    if store is not None:
        cube_commands.show_produced(store, data, as_json=as_json)
        return 0
    root, entries = data_root(data), list_entries()
    if as_json:
        rows = [
            {"name": e.name, "title": e.title, "reader": e.reader, "archive": availability(e, root)} for e in entries
        ]
        print_json(rows)
        return 0
    table = Table("name", "what", "reader", "archive", title=None)
    for entry in entries:
        table.add_row(entry.name, entry.title, entry.reader, availability(entry, root))
    say.print(table)
    say.print(f"archives are looked for under {root}  (--data or SCATTERCUBE_DATA)")
    return 0


@app.command
def doctor(*, store: str = "store", data: str | None = None) -> int:
    """Check this machine: versions, cores, memory, GPU, Prefect, data folder and store. Exit code 0 if a run can work.

    Parameters
    ----------
    store
        The folder or URL that runs would write to.
    data
        Folder of the archives; default $SCATTERCUBE_DATA, else ./data.
    """
    from scattercube.flows.doctor import examine

    rows = examine(store, data)
    table = Table("", "what", "found", show_header=False, box=None)
    marks = {True: Text("✓", "green"), False: Text("✗", "red"), None: Text("·")}
    for row in rows:
        table.add_row(marks[row.fine], row.what, row.found)
    say.print(table)
    return 0 if all(row.fine is not False for row in rows) else 1


@app.command
def bench(*, threads: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1, quick: bool = False) -> int:
    """Time the transforms on this machine with every engine that it has, and beside Kymatio where that is installed.

    Works are batches of noise in single precision. ``error`` is the largest relative distance of an engine from the
    same transform in double precision, ``MB`` the projected peak of a call. Takes a minute, with Kymatio three.

    Parameters
    ----------
    threads
        Threads of a call.
    quick
        Tiny works, a few seconds: to see that everything works.
    """
    from scattercube.flows.bench import measure, table

    found = {}
    for engine, measured in measure(quick, threads):
        warn.print(f"{engine}: done", style="dim")
        found[engine] = measured
    say.print(table(found, quick))
    return 0


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error the user can act on becomes one line."""
    try:
        result: Any = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as failure:
        cause = failure.__cause__
        return complain(f"--{explain(cause, Options)}" if isinstance(cause, ValidationError) else str(failure), 2)
    except ScattercubeError as failure:
        return complain(str(failure), failure.exit_code)
    except KeyboardInterrupt as stop:
        return complain(INTERRUPTED, 143 if isinstance(stop, Terminated) else 130)
    return result if isinstance(result, int) else 0
