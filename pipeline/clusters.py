"""Where steps run: clusters on this machine, of its processors or GPUs, or reached at an address."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from scattercube.pipeline import gpus
from scattercube.pipeline.errors import ChunkError, PlanError, SpecError
from scattercube.pipeline.spec import Model, load_yaml, parse

if TYPE_CHECKING:
    from distributed import Client


# Shard after shard, a worker allocates and frees the same few arrays. What glibc gives back, and Dask has it give back
# at once, is mapped anew, page by page: a tenth of a run. One arena, because each keeps what its threads have freed.
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}


class Cluster(Model):
    """Where steps run: a YAML file under ``deploy/clusters``."""

    kind: Annotated[
        Literal["local", "cuda", "address"],
        Field(description="`local` processes, `cuda` one worker a GPU, or the `address` of a running scheduler"),
    ] = "local"
    workers: Annotated[int | None, Field(ge=1, description="processes; default one a core, or one a GPU")] = None
    threads: Annotated[
        int, Field(ge=1, description="keys at a time in one worker: one is read or written while another is computed")
    ] = 2
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
    ChunkError
        Workers died as they started.
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
    settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _MALLOC.items()}
    with dask.config.set(settings):
        try:
            started = _start(cluster)
        except (OSError, RuntimeError) as failure:  # a nanny's, whose worker died before it had said that it is there
            raise ChunkError(
                f"the {cluster.n_workers} workers of the cluster did not start: {failure}; the system may have ended "
                "one for want of memory: run the same command again, it resumes, with fewer workers or with --serial"
            ) from failure
        client = Client(started)
        try:
            yield client
        finally:
            # After a worker's death a cluster may never finish closing; its processes end with ours in any case. What
            # breaks off while it closes is no news either.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            for what in (client, started):
                with contextlib.suppress(TimeoutError):
                    what.close(timeout=20)


@contextlib.contextmanager
def starting(cluster: Cluster) -> "Iterator[Callable[[], Client]]":
    """As ``connect``, while the caller does something else; yield what waits for the client and returns it."""
    with ThreadPoolExecutor(1) as elsewhere, contextlib.ExitStack() as held:
        client = elsewhere.submit(held.enter_context, connect(cluster))
        try:
            yield client.result
        finally:
            wait([client])  # what is not there yet cannot be closed


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
