"""The door to Dask, and the only loop of the project: run the keys of a stage, here or on a cluster.

``run(stage, keys)`` without a client is the serial loop, the reference for the other. With a client, keys travel in
groups through a bounded window, so that the scheduler's memory stays flat however many keys there are. Steps are
idempotent, because a key may run more than once: a worker can die after it wrote and before it said so.
"""

import contextlib
import errno
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, field_validator

from scattercube.pipeline import gpus
from scattercube.pipeline.blas import one_thread
from scattercube.pipeline.errors import ChunkError, PlanError, ScattercubeError, SpecError
from scattercube.pipeline.plan import ChunkKey
from scattercube.pipeline.spec import Model, load_yaml, parse
from scattercube.pipeline.store import Store

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client, Future

ATTEMPTS = 3
TASK_SECONDS = 2.0  # a Dask task holds as many keys as take about this long
WINDOW = 3  # tasks in flight per worker thread
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}  # trying again changes nothing


@dataclass(frozen=True)
class StepEvent:
    """What one key cost. One line of the journal.

    Attributes
    ----------
    key, digest
        Which shard, and the digest of its numbers.
    read_s, compute_s, write_s
        Seconds in each part of the step.
    nbytes_in, nbytes_out, n_samples
        How much went through, uncompressed.
    bad
        Quarantined records: sample_id, source, reason, message.
    peak_nbytes
        The largest memory that the worker's process has had so far.
    """

    key: str
    digest: str
    read_s: float
    compute_s: float
    write_s: float
    nbytes_in: int
    nbytes_out: int
    n_samples: int
    bad: tuple[dict[str, str], ...] = ()
    stage: str = ""
    attempt: int = 1
    worker: str = ""
    started: float = 0.0
    peak_nbytes: int = 0


def bad_record(rows: Mapping[str, np.ndarray], index: int, reason: str, message: str) -> dict[str, str]:
    """Name the record of a row, by ``sample_id`` and ``source``, and say what is wrong with it: a row of quarantine."""
    named = {name: str(rows[name][index]) for name in ("sample_id", "source")}
    return named | {"reason": reason, "message": message}


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: every stage has this shape.

    Attributes
    ----------
    name
        ``ingest`` or ``extract``.
    store
        Where the step writes.
    template
        Makes the lazy Dataset that describes the store.
    keys
        All keys, in order.
    step
        Runs one key and writes its shard; idempotent, and picklable with its parameters inside.
    """

    name: str
    store: Store
    template: "Callable[[], xr.Dataset]"
    keys: tuple[ChunkKey, ...]
    step: Callable[[ChunkKey], StepEvent]


class Observer(Protocol):
    """Whoever wants to see the work go by: a progress bar, an artifact, a test."""

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Say that a stage starts, with ``n_done`` of ``n_keys`` finished by an earlier run."""

    def step(self, event: StepEvent) -> None:
        """Say that a key is finished and in the journal."""


@dataclass
class Silence:
    """The observer of a run that nobody watches."""

    def begin(self, stage: str, n_keys: int, n_done: int) -> None:
        """Ignore it."""

    def step(self, event: StepEvent) -> None:
        """Ignore it."""


def run(
    stage: Stage, keys: Sequence[ChunkKey], client: "Client | None" = None, observer: Observer | None = None
) -> int:
    """Run those of the given keys that the journal does not have, and journal each; return how many.

    Raises
    ------
    ChunkError
        A key failed. What was finished, in flight included, is in the journal, and the same call goes on from there.
    """
    watch = observer or Silence()
    missing = stage.store.missing(keys)
    finished = _serial(stage, missing) if client is None else _distributed(stage, missing, client)
    count = 0
    for event in finished:
        stage.store.record(asdict(event))
        watch.step(event)
        count += 1
    return count


def attempt(name: str, step: Callable[[ChunkKey], StepEvent], key: ChunkKey) -> StepEvent:
    """Run one step, up to three times where the reason may pass."""
    started = time.time()
    for number in range(1, ATTEMPTS + 1):
        try:
            with one_thread:
                event = step(key)
            return replace(
                event,
                stage=name,
                attempt=number,
                started=started,
                worker=f"pid {os.getpid()}",
                peak_nbytes=peak_nbytes(),
            )
        except OSError as failure:
            if number == ATTEMPTS or _lasting(failure):
                raise ChunkError(f"{name} {key}: {failure}") from failure
            time.sleep(0.2 * 4**number)
        except ScattercubeError as failure:
            raise ChunkError(f"{name} {key}: {failure}") from failure
        except Exception as failure:
            raise ChunkError(f"{name} {key}: {type(failure).__name__}: {failure}") from failure
    raise AssertionError("unreachable: the last attempt returns or raises")


def peak_nbytes() -> int:
    """Return the largest resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent, of which a worker is a fork for a moment
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lasting(failure: BaseException | None) -> bool:
    while failure is not None:
        if isinstance(failure, OSError) and failure.errno in LASTING:
            return True
        failure = failure.__cause__
    return False


def _serial(stage: Stage, keys: Sequence[ChunkKey]) -> Iterator[StepEvent]:
    for key in keys:
        yield attempt(stage.name, stage.step, key)


def _attempt_group(
    name: str, step: Callable[[ChunkKey], StepEvent], group: tuple[ChunkKey, ...]
) -> tuple[list[StepEvent], ChunkError | None]:
    """Run a group on a worker. A failure comes back as a value, so that the keys before it are not lost."""
    done: list[StepEvent] = []
    for key in group:
        try:
            done.append(attempt(name, step, key))
        except ChunkError as failure:
            return done, failure
    return done, None


@dataclass
class _Window:
    """The keys that wait, and the groups in flight."""

    client: "Client"
    stage: Stage
    waiting: deque[ChunkKey]
    groups: "dict[Future[Any], tuple[ChunkKey, ...]]" = field(default_factory=dict)
    seconds_per_key: float = TASK_SECONDS

    def submit(self, size: int | None = None) -> "Future[Any]":
        threads = max(1, sum(self.client.nthreads().values()))
        # The last groups are small, so that workers end together.
        fair = max(1, len(self.waiting) // (WINDOW * threads))
        wanted = size or min(fair, max(1, round(TASK_SECONDS / max(self.seconds_per_key, 1e-3))))
        group = tuple(self.waiting.popleft() for _ in range(min(wanted, len(self.waiting))))
        future = self.client.submit(_attempt_group, self.stage.name, self.stage.step, group, pure=False)
        self.groups[future] = group
        return future


def _distributed(stage: Stage, keys: Sequence[ChunkKey], client: "Client") -> Iterator[StepEvent]:
    from distributed import KilledWorker, as_completed

    window = _Window(client, stage, deque(keys))
    threads = max(1, sum(client.nthreads().values()))
    # A future that is kept is computed again when its worker dies. Without its loop, the latest client's would serve.
    stream = as_completed([window.submit(1) for _ in range(min(len(keys), WINDOW * threads))], loop=client.loop)
    problem: ChunkError | None = None
    suspects: list[ChunkKey] = []
    for future in stream:
        group = window.groups.pop(future)
        try:
            events, failure = future.result()
        except KilledWorker:  # whatever else the worker had is as suspect as the key that is to blame
            events, failure = [], None
            suspects.extend(group)
        yield from events
        if events:
            window.seconds_per_key = sum(e.read_s + e.compute_s + e.write_s for e in events) / len(events)
        problem = problem or failure
        if problem is None and window.waiting:
            stream.add(window.submit())
    for key in suspects:  # each with all workers to itself
        window.waiting.appendleft(key)
        try:
            events, failure = window.submit(1).result()
        except KilledWorker as death:
            events, failure = [], ChunkError(f"{stage.name} {key}: its worker died each time it ran: {death}")
        window.groups.clear()
        yield from events
        problem = problem or failure
    if problem is not None:
        raise problem


class Cluster(Model):
    """Where steps run: a YAML file under ``deploy/clusters``."""

    kind: Annotated[
        Literal["local", "cuda", "address"],
        Field(description="`local` processes, `cuda` one worker a GPU, or the `address` of a running scheduler"),
    ] = "local"
    workers: Annotated[int | None, Field(ge=1, description="processes; default one a core, or one a GPU")] = None
    threads: Annotated[int, Field(ge=1, description="keys at a time in one worker")] = 1
    memory: Annotated[
        str | None, Field(description="limit of one worker, for example 4GiB; default an equal share")
    ] = None
    devices: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(min_length=1, strict=False, description="cuda only: GPUs to use, as CUDA counts them; default all"),
    ] = None
    device_memory_limit: Annotated[
        str | None, Field(description="cuda only: device memory of one worker, for example 60GiB; default all")
    ] = None
    rmm_pool: Annotated[
        str | None, Field(description="cuda only: device memory that RMM takes at the start, for example 40GiB")
    ] = None
    address: Annotated[str | None, Field(description="address only: for example tls://scheduler:8786")] = None

    @field_validator("memory", "rmm_pool", "device_memory_limit")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            parsed_nbytes(text)
        return text

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where the kernels of a step run."""
        return "cuda" if self.kind == "cuda" else "cpu"

    @property
    def n_workers(self) -> int:
        """Processes of a local cluster."""
        return len(gpus.chosen(self)) if self.kind == "cuda" else self.workers or machine()[0]

    def worker_nbytes(self) -> int | None:
        """The memory that one worker may use for its keys; None where only the far end knows."""
        if self.kind == "address" and self.memory is None:
            return None
        limit = machine()[1] // self.n_workers if self.memory is None else parsed_nbytes(self.memory)
        return max(0, limit - gpus.CUDA_NBYTES) if self.kind == "cuda" else limit


def parsed_nbytes(text: str) -> int:
    """Read a size like ``4GiB``."""
    from dask.utils import parse_bytes

    return int(parse_bytes(text))


def machine() -> tuple[int, int]:
    """Return the cores and the bytes of memory that this process may use, the limits of its control group included."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return int(CPU_COUNT), int(MEMORY_LIMIT)


def load_cluster(path: Path) -> Cluster:
    """Read a cluster file. Raises SpecError, naming the field."""
    cluster = parse(Cluster, load_yaml(path, SpecError), str(path), SpecError)
    if (cluster.kind == "address") != (cluster.address is not None):
        raise SpecError(f"{path}: `address` goes with `kind: address`, and only there")
    if problem := gpus.contradiction(cluster, parsed_nbytes):
        raise SpecError(f"{path}: {problem}")
    return cluster


def refuse_without_device(cluster: Cluster) -> None:
    """Raise PlanError, saying what is missing, when a cluster needs a GPU that this machine does not have."""
    if cluster.kind == "cuda" and (problem := gpus.problem(cluster)):
        raise PlanError(f"cluster kind cuda: {problem}")


@contextlib.contextmanager
def connect(cluster: Cluster) -> "Iterator[Client]":
    """Start or reach a cluster; yield its client, and close what was started, with a time limit.

    Raises
    ------
    PlanError
        No scheduler answers at the address.
    """
    import dask
    from distributed import Client

    # Every worker that comes and goes is news to Dask, not to whoever watches a run.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if cluster.kind == "address":
        try:
            reached = Client(cluster.address, timeout=20)
        except (OSError, ValueError) as failure:
            raise PlanError(
                f"cluster address {cluster.address}: no Dask scheduler answers there: {failure}"
            ) from failure
        with reached:
            yield reached
        return
    # A worker that dies is started again; Dask's cluster would miss it for 15 s, and then drop it for good.
    settings = gpus.settings(cluster, parsed_nbytes) | {"distributed.deploy.lost-worker-timeout": "1 day"}
    with dask.config.set(settings):
        started = _start(cluster)
        client = Client(started)
        try:
            yield client
        finally:
            # After a worker's death a cluster may never finish closing; its processes end with ours in any case.
            for what in (client, started):
                with contextlib.suppress(TimeoutError):
                    what.close(timeout=20)


def _start(cluster: Cluster) -> Any:
    options: dict[str, Any] = {
        "n_workers": cluster.n_workers,
        "threads_per_worker": cluster.threads,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",  # any free port, for this machine only
    }
    if cluster.memory is not None:
        options["memory_limit"] = cluster.memory
    if cluster.kind == "local":
        from distributed import LocalCluster

        return LocalCluster(**options)
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(**options, **gpus.options(cluster))
