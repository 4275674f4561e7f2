"""Who watches a run: a bar on the terminal, an artifact in Prefect."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from scattercube.pipeline.execute import Observer, StepEvent

# For consoles: names of files and labels are any text, and must not be read as markup.
PLAIN: Any = {"markup": False, "highlight": False, "soft_wrap": True}
ARTIFACT_SECONDS = 2.0  # an artifact is a request to the server; a bar is not


class Bar:
    """A live bar with samples per second and the time that is left; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards  {task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Open the bar of a stage, or say that there is nothing to do."""
        self.close()
        if n_done == n_keys:
            self.console.print(f"{stage:<8} nothing new: all {n_keys} shards are there")
            return
        resumed = f", {n_done} of them there already" if n_done else ""
        self.console.print(f"{stage:<8} {n_keys} shards{resumed}")
        self.samples, self.started = 0, time.perf_counter()
        self.remaining = n_keys - n_done
        self.stage = stage
        self.progress.start()
        self.task = self.progress.add_task(stage, total=n_keys, completed=n_done, rate="")

    def step(self, event: StepEvent) -> None:
        """Move the bar; the last key closes it and leaves one line."""
        if self.task is None:
            return
        self.samples += event.n_samples
        self.remaining -= 1
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rate = f"{self.samples / seconds:,.0f} samples/s"
        self.progress.update(self.task, advance=1, rate=rate)
        for record in event.bad:
            self.console.print(Text("quarantined ", "yellow"), f"{record['sample_id']}: {record['message']}", sep="")
        if self.remaining == 0:
            self.close()
            self.console.print(f"{self.stage:<8} {self.samples:,} samples in {seconds:.1f} s, {rate}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.progress.stop()
            self.task = None


@dataclass
class ProgressArtifact:
    """A progress artifact in Prefect for each stage, updated at most every two seconds."""

    artifact: UUID | None = None
    total: int = 0
    done: int = 0
    told: float = field(default=0.0)

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Create the artifact of a stage."""
        from prefect.artifacts import create_progress_artifact

        self.total, self.done = max(n_keys, 1), n_done
        self.artifact = cast(  # a coroutine only where a loop is running, and the flow is not asynchronous
            UUID,
            create_progress_artifact(
                progress=100 * n_done / self.total, key=f"{stage}-progress", description=f"{stage}: {n_keys} shards"
            ),
        )

    def step(self, event: StepEvent) -> None:
        """Count a key, and tell the server if it is time."""
        from prefect.artifacts import update_progress_artifact

        self.done += 1
        now = time.monotonic()
        if self.artifact is not None and (self.done == self.total or now - self.told > ARTIFACT_SECONDS):
            update_progress_artifact(self.artifact, progress=100 * self.done / self.total)
            self.told = now


@dataclass(frozen=True)
class All:
    """Several observers as one."""

    observers: Sequence[Observer]

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.begin(stage, n_keys, n_done)

    def step(self, event: StepEvent) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.step(event)
