"""Who watches a run: a bar on the terminal, an artifact in Prefect."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from scattercube.pipeline.stage import Observer, StepEvent

# For consoles: names of files and labels are any text, and must not be read as markup.
PLAIN: Any = {"markup": False, "highlight": False, "soft_wrap": True}
ARTIFACT_SECONDS = 2.0  # an artifact is a request to the server; a bar is not


class Bar:
    """A live bar with samples, or shards of fields, per second and the time that is left; else plain lines."""

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
        self.stages: dict[str, _Stage] = {}

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Open the bar of a stage, or say that there is nothing to do."""
        self.close(stage)
        if n_done == n_keys:
            self.console.print(f"{stage:<8} nothing new: all {n_keys} shards are there")
            return
        resumed = f", {n_done} of them there already" if n_done else ""
        self.console.print(f"{stage:<8} {n_keys} shards{resumed}")
        self.progress.start()
        task = self.progress.add_task(stage, total=n_keys, completed=n_done, rate="")
        self.stages[stage] = _Stage(task, n_keys - n_done, time.perf_counter())

    def step(self, event: StepEvent) -> None:
        """Move the bar; the last key closes it and leaves one line."""
        here = self.stages.get(event.stage)
        if here is None:
            return
        parts = "," in event.key  # of fields: many shards make one sample
        here.done += 1 if parts else event.n_samples
        here.remaining -= 1
        seconds = max(time.perf_counter() - here.started, 1e-9)
        what = "shards" if parts else "samples"
        rate = f"{_rate(here.done / seconds)} {what}/s"
        self.progress.update(here.task, advance=1, rate=rate)
        for record in event.bad:
            self.console.print(Text("quarantined ", "yellow"), f"{record['sample_id']}: {record['message']}", sep="")
        if here.remaining == 0:
            self.close(event.stage)
            self.console.print(f"{event.stage:<8} {here.done:,} {what} in {seconds:.1f} s, {rate}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        for stage in list(self.stages):
            self.close(stage)

    def close(self, stage: str) -> None:
        """Take the bar of a stage off the terminal."""
        here = self.stages.pop(stage, None)
        if here is not None:
            self.progress.remove_task(here.task)
        if not self.stages:
            self.progress.stop()


@dataclass
class _Stage:
    """What a bar knows of a stage."""

    task: TaskID
    remaining: int
    started: float
    done: int = 0  # samples, or shards of fields


def _rate(per_second: float) -> str:
    """Write a rate for people: whole numbers, or two figures where these would say nothing."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


@dataclass
class ProgressArtifact:
    """A progress artifact in Prefect for each stage, updated at most every two seconds."""

    stages: "dict[str, _Told]" = field(default_factory=dict)

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Create the artifact of a stage."""
        from prefect.artifacts import create_progress_artifact

        progress = 100 * n_done / max(n_keys, 1)
        artifact = cast(  # a coroutine only where a loop is running, and the flow is not asynchronous
            UUID,
            create_progress_artifact(
                progress=progress, key=f"{stage}-progress", description=f"{stage}: {n_keys} shards"
            ),
        )
        self.stages[stage] = _Told(artifact, max(n_keys, 1), n_done)

    def step(self, event: StepEvent) -> None:
        """Count a key, and tell the server if it is time."""
        from prefect.artifacts import update_progress_artifact

        here = self.stages[event.stage]
        here.done += 1
        now = time.monotonic()
        if here.done == here.total or now - here.at > ARTIFACT_SECONDS:
            update_progress_artifact(here.artifact, progress=100 * here.done / here.total)
            here.at = now


@dataclass
class _Told:
    """What Prefect has been told of a stage."""

    artifact: UUID
    total: int
    done: int
    at: float = 0.0


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
