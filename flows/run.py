"""The flow: the phases of a job as Prefect tasks, with retries, progress and artifacts.

A task is a phase, or a range of keys of one: tens per run. Keys themselves are Dask futures: Prefect records a few
dozen task runs a second, and a run may have millions of keys. No task runs on a Dask worker: a worker with one thread
that waited for its own futures would hold the thread they need.
"""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from rich.console import Console

from scattercube.flows.artifacts import publish_artifacts
from scattercube.flows.progress import PLAIN, All, Bar, ProgressArtifact
from scattercube.pipeline import job as pipeline_job
from scattercube.pipeline.errors import ChunkError, ScattercubeError
from scattercube.pipeline.job import Job, Outcome, Prepared

# What the command line has prepared already, to refuse a job before a server starts; a scheduled run prepares itself.
prepared_before: ContextVar[Prepared | None] = ContextVar("prepared_before", default=None)


@flow(name="scattercube", flow_run_name="{job.entry}", persist_result=False)
def run(job: Job) -> Outcome:
    """Bring the cube, the fit and the page of one entry up to date. Doing it again does nothing."""
    with Bar(Console(stderr=True, **PLAIN)) as bar:
        outcome = pipeline_job.run(
            job, call=call_as_task, observer=All([bar, ProgressArtifact()]), prepared=prepared_before.get()
        )
    publish_artifacts(outcome)
    return outcome


def call_as_task(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run one phase or range of keys as a Prefect task, here in the flow's process.

    Nothing is cached by Prefect: the journal of the store knows what is done, and a retry continues from it. Only a
    failed key is worth a retry; a refusal would be the same again.
    """

    def failed_key(_task: Any, _run: Any, state: Any) -> bool:
        return isinstance(state.data, ChunkError) or "ChunkError" in (state.message or "")

    def phase() -> Any:  # without parameters: Prefect would walk through them in search of futures
        return work(*arguments)

    return task(
        name=name.split()[0],
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=1,
        retry_delay_seconds=1,
        retry_condition_fn=failed_key,
    )(phase)()


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log what a user can act on as the one line that it is; other exceptions keep their traceback."""
    if record.exc_info and isinstance(record.exc_info[1], ScattercubeError):
        record.exc_info = None
    return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_logger).addFilter(_without_traceback)
