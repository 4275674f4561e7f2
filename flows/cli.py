"""The ``scattercube`` command.

Exit codes: 0 done, or nothing to do · 1 a fault in the program · 2 wrong usage, entry, Spec or cluster file ·
3 refused by the plan · 4 the archive cannot be read · 5 the store cannot be written, or holds something else ·
6 a key failed after its retries · 130 interrupted.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, validators
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scattercube import __version__
from scattercube.flows.progress import PLAIN, Bar
from scattercube.flows.summary import conclusion, introduction, plan_table, prefect_server
from scattercube.pipeline.errors import ScattercubeError
from scattercube.pipeline.job import Job, Options, Phase, how_long, prepare
from scattercube.pipeline.job import run as run_job
from scattercube.pipeline.spec import explain

INTERRUPTED = "interrupted; what is finished is kept, the same command continues from there"

app = App(
    name="scattercube",
    help="Turn an archive of images into a labelled cube of wavelet scattering features, a classifier and a report.\n\n"
    "Start with: scattercube run textures",
    version=__version__,
    default_parameter=Parameter(negative=()),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
say = Console(**PLAIN)
warn = Console(stderr=True, **PLAIN)

Common = Annotated[Options, Parameter(name="*")]
DEFAULTS = Options()
Direct = Annotated[bool, Parameter(help="without Prefect: the same bytes, no server, no record of the run")]


PHASE_HELP: dict[str, tuple[Phase, str]] = {
    "run": ("report", "Do everything: plan, ingest, extract, fit, report. Doing it again continues, or does nothing."),
    "ingest": ("ingest", "Read the archive into the chunk store (Zarr), and stop there."),
    "extract": ("extract", "Compute the scattering cube, after whatever must come before it, and stop there."),
    "fit": ("fit", "Fit and score the linear heads, after whatever must come before them, and stop there."),
    "report": ("report", "Write the page, after whatever must come before it: `run` by the name of its last phase."),
}
ENTRY_HELP = (
    "a name from `scattercube catalog`, an entry file (.yaml), or a bare folder, tar, zip or array file, for which "
    "reader and labels are inferred, shown and saved"
)
EntryName = Annotated[str, Parameter(help=ENTRY_HELP)]


def _phase_command(until: Phase) -> Callable[..., int]:
    def command(entry: EntryName, /, *, options: Common = DEFAULTS, direct: Direct = False) -> int:
        return _do(Job(entry=entry, until=until, **options.model_dump()), direct)

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
def apply(head: Path, cube: Path, /, *, out: Path = Path("predictions.parquet")) -> int:
    """Apply a fitted head to a feature cube that was computed with the same Spec.

    Parameters
    ----------
    head
        The folder of a head: <store>/<entry>/results/<spec>/<head>.
    cube
        The cube: <store>/<entry>/features/<spec>.
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
def catalog(*, data: str | None = None) -> int:
    """List the entries of the catalogue, and whether their archives are there.

    Parameters
    ----------
    data
        Folder of the archives; default $SCATTERCUBE_DATA, else ./data.
    """
    from scattercube.flows.doctor import availability
    from scattercube.pipeline.catalog import data_root, list_entries

    root = data_root(data)
    table = Table("name", "what", "reader", "archive", title=None)
    for entry in list_entries():
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
        The folder that runs would write to.
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
        return _complain(f"--{explain(cause, Options)}" if isinstance(cause, ValidationError) else str(failure), 2)
    except ScattercubeError as failure:
        return _complain(str(failure), failure.exit_code)
    except KeyboardInterrupt:
        return _complain(INTERRUPTED, 130)
    return result if isinstance(result, int) else 0


def _interrupted(_signal: int, _frame: Any) -> NoReturn:
    """End at once, with everything that was started.

    A terminal interrupts the embedded server too, and Prefect would go on asking it for minutes. The store needs no
    farewell: it is made for processes that die at any moment.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.terminate()
    os._exit(_complain(INTERRUPTED, 130))


def _complain(message: str, code: int) -> int:
    warn.print("scattercube:", Text(message), style="red")
    return code


def _do(job: Job, direct: bool) -> int:
    prepared = prepare(job)
    for line in introduction(job, prepared):
        warn.print(line)
    if direct:
        with Bar(warn) as bar:
            outcome = run_job(job, observer=bar, prepared=prepared)
    else:
        warn.print(prefect_server(), style="dim")
        # Prefect is imported here: it takes seconds, and neither --help nor --direct nor a refusal needs it.
        from scattercube.flows.run import prepared_before
        from scattercube.flows.run import run as flow

        prepared_before.set(prepared)
        signal.signal(signal.SIGINT, _interrupted)
        outcome = flow(job)
    for line in conclusion(outcome):
        say.print(line)
    return 0
