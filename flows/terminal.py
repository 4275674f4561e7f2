"""What all commands share: the terminal, the options of a job, and running one."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from scattercube.flows.progress import PLAIN, Bar
from scattercube.flows.summary import conclusion, introduction, prefect_server
from scattercube.pipeline.job import Job, Options, prepare
from scattercube.pipeline.job import run as run_job

INTERRUPTED = "interrupted; what is finished is kept, the same command continues from there"

say = Console(**PLAIN)
warn = Console(stderr=True, **PLAIN)

Common = Annotated[Options, Parameter(name="*")]
DEFAULTS = Options()
Direct = Annotated[bool, Parameter(help="without Prefect: the same bytes, no server, no record of the run")]

ENTRY_HELP = (
    "a name from `scattercube catalog`, an entry file (.yaml), or a bare folder, tar, zip or array file, for which "
    "reader and labels are inferred, shown and saved"
)
EntryName = Annotated[str, Parameter(help=ENTRY_HELP)]


def _refuse_url(_type: Any, path: Path) -> None:
    if re.fullmatch("[A-Za-z][A-Za-z0-9+.-]+:", path.parts[0] if path.parts else ""):  # a Path has lost one slash
        raise ValueError("a URL; give a file on this machine, and copy it there")


OutFile = Annotated[Path, Parameter(validator=_refuse_url)]


class Terminated(KeyboardInterrupt):
    """SIGTERM: how batch systems, services and containers ask a process to end."""


def terminated(_signal: int, _frame: Any) -> NoReturn:
    """End in order: the cluster is closed, and the store given back to whoever comes next."""
    raise Terminated


def interrupted(number: int, _frame: Any) -> NoReturn:
    """End at once, with everything that was started.

    A terminal interrupts the embedded server too, and Prefect would go on asking it for minutes. The store needs no
    farewell: it is made for processes that die at any moment.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.terminate()
    os._exit(complain(INTERRUPTED, 128 + number))


def print_json(value: Any) -> None:
    """Print plain values for a program: no colours, no line breaks of the terminal's."""
    say.print(json.dumps(value, indent=1, ensure_ascii=False))


def complain(message: str, code: int) -> int:
    """Say what went wrong, and return the exit code."""
    warn.print("scattercube:", Text(message), style="red")
    return code


def do(job: Job, direct: bool) -> int:
    """Run a job, with or without Prefect, and say what it did; return the exit code."""
    prepared = prepare(job)
    for line in introduction(job, prepared):
        warn.print(line)
    if direct:
        signal.signal(signal.SIGTERM, terminated)
        with Bar(warn) as bar:
            outcome = run_job(job, observer=bar, prepared=prepared)
    else:
        warn.print(prefect_server(), style="dim")
        # Prefect is imported here: it takes seconds, and neither --help nor --direct nor a refusal needs it.
        from scattercube.flows.run import prepared_before
        from scattercube.flows.run import run as flow

        prepared_before.set(prepared)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupted)
        outcome = flow(job)
    for line in conclusion(outcome):
        say.print(line)
    return 0
